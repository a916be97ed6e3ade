"""How a model is scored: case by case, one row a case, the same for any number of processes."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.config import ClipConfig, EvaluateConfig
from medvid_core.data.clip import UNLABELLED, Case
from medvid_core.data.loader import read_case_masks
from medvid_core.data.preprocess import Step
from medvid_core.data.readers import image_size
from medvid_core.data.transforms import to_source
from medvid_core.engine.inference import FrameBlock, segment_case
from medvid_core.errors import DataError
from medvid_core.metrics.base import Metric, ScoredFrames
from medvid_core.models import check_tasks
from medvid_core.plugins import Registry
from medvid_core.specs import ClipSpec, MetricSpec, OutputSpec, resolve

CaseRow = dict[str, Any]
_NO_METRICS = ("case_id", "group_id", "frames", "scored_frames", "problem")
Progress = Callable[[Sequence[Case]], Iterable[Case]]


@dataclass(frozen=True)
class Scorer:
    """Everything needed to score a model on cases, apart from the two."""

    outputs: tuple[OutputSpec, ...]
    metrics: tuple[Metric, ...]
    clip: ClipConfig
    spec: ClipSpec
    steps: Sequence[Step]
    settings: EvaluateConfig
    device: torch.device

    @property
    def output(self) -> OutputSpec:
        """The output that is scored."""
        return self.outputs[0]

    def segment(self, model: nn.Module, case: Case) -> Iterator[FrameBlock]:
        """Yield the class probabilities of a case as they come."""
        return segment_case(
            model, self.output, case, self.clip, self.spec, self.steps, self.settings.batch_size, self.device
        )


def build_metrics(registry: Registry, names: Sequence[str], outputs: tuple[OutputSpec, ...]) -> tuple[Metric, ...]:
    """Build the metrics by name.

    Raises:
        PluginError: a name that no plugin offers. ConfigError: a metric of another task.
    """
    metrics = []
    for name in names:
        spec = registry.find("metric", name).spec
        assert isinstance(spec, MetricSpec)
        check_tasks(spec, outputs)
        metrics.append(resolve(spec.build)(outputs))
    return tuple(metrics)


def block_masks(case: Case, block: FrameBlock, at: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities [n,K,H,W], masks [n,H,W] and which frames are annotated [n].

    Args:
        case: the video.
        block: predictions in model pixels.
        at: ``source`` brings the prediction to source pixels, ``model`` the annotation to model pixels.
    """
    annotation, labelled = read_case_masks(case, block.frames, block.source_size)
    masks = torch.from_numpy(annotation)
    if at == "source":
        values = to_source(block.probabilities, block.affine, block.source_size)
    else:
        values = block.probabilities
        masks = F.interpolate(masks[:, None], size=values.shape[-2:], mode="nearest-exact")[:, 0]
    return values, masks.long(), torch.from_numpy(labelled)


def score_blocks(case: Case, blocks: Iterable[FrameBlock], scorer: Scorer) -> CaseRow:
    """Return the row of one case: its ids, number of scored frames, and every metric."""
    columns: dict[str, list[Tensor]] = {}
    scored = 0
    for block in blocks:
        values, masks, labelled = block_masks(case, block, scorer.settings.at)
        labelled &= (masks != UNLABELLED).flatten(1).any(1)
        if not labelled.any():
            continue
        scored += int(labelled.sum())
        frames = ScoredFrames(values[labelled], masks[labelled], labelled[labelled])
        for metric in scorer.metrics:
            for name, column in metric.per_frame(frames).items():
                columns.setdefault(name, []).append(column)
    row: CaseRow = {**_identity(case), "scored_frames": scored}
    joined = {name: torch.cat(parts).double().numpy() for name, parts in columns.items()}
    for metric in scorer.metrics:
        row |= metric.per_case({name: v for name, v in joined.items() if name.split("/")[0] == metric.name})
    return row


def _identity(case: Case) -> CaseRow:
    return {"case_id": case.case_id, "group_id": case.group_id, "frames": case.frames}


def problems(rows: Sequence[CaseRow]) -> list[str]:
    """Return a line for each case that could not be read."""
    return [f"left out {row['case_id']}: {row['problem']}" for row in rows if "problem" in row]


def score_cases(
    model: nn.Module,
    cases: Sequence[Case],
    scorer: Scorer,
    rank: int = 0,
    processes: int = 1,
    progress: Progress = iter,
) -> list[CaseRow]:
    """Return one row a case, in the order of ``cases``, on every process.

    Each process scores its share; the rows are gathered and keyed by case id. A case that cannot be read has no
    scored frames, and the reason under ``problem``.

    Raises:
        DataError: no case has a readable, annotated frame.
    """
    was_training = model.training
    model.eval()
    mine = []
    for case in progress(cases[rank::processes]):
        try:
            mine.append(score_blocks(case, scorer.segment(model, case), scorer))
        except DataError as error:  # a corrupt file costs its case, not the run
            mine.append({**_identity(case), "scored_frames": 0, "problem": str(error)})
    model.train(was_training)
    rows = {row["case_id"]: row for row in _gather(mine, processes)}
    ordered = [rows[case.case_id] for case in cases]
    if ordered and not any(row["scored_frames"] for row in ordered):
        reason = next((f" First problem: {row['problem']}" for row in ordered if "problem" in row), "")
        raise DataError(f"None of the {len(ordered)} cases to evaluate has an annotated frame.{reason}")
    return ordered


def _gather(rows: list[CaseRow], processes: int) -> list[CaseRow]:
    if processes == 1:
        return rows
    shares: list[Any] = [None] * processes
    torch.distributed.all_gather_object(shares, rows)
    return [row for share in shares for row in share]


def summarise(rows: Sequence[CaseRow], metrics: Sequence[Metric]) -> dict[str, float]:
    """Return every metric over all rows that have scored frames."""
    scored = [{k: v for k, v in row.items() if k not in _NO_METRICS} for row in rows if row["scored_frames"]]
    return {name: value for metric in metrics for name, value in metric.summarise(scored).items()}


def write_rows(path: Path, rows: Sequence[CaseRow]) -> None:
    """Write the per-case table as CSV; an undefined value is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})


class ConstantMap(nn.Module):
    """Predicts the same mask for every frame of every video.

    Args:
        output: the segmentation output.
        classes: class of each pixel, long [H,W].
    """

    def __init__(self, output: OutputSpec, classes: Tensor) -> None:
        super().__init__()
        self.output = output
        count = len(output.classes)
        chosen = [classes == number for number in (range(count) if count > 1 else (1,))]
        self.register_buffer("logits", torch.stack(chosen).float() * 40 - 20)  # sure, and finite

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the same logits for every frame, [B,T,K,H,W]."""
        b, t = batch["video"].shape[:2]
        logits = self.get_buffer("logits")
        return {self.output.name: logits.expand(b, t, *logits.shape)}


def best_threshold(frequency: Tensor) -> float:
    """Return the t for which the region ``frequency >= t`` has the largest expected Dice with the masks.

    Expected overlap and size are sums of the frequencies [H,W], so Dice is 2 Σ_region f / (|region| + Σ f), taken as
    the ratio of expectations.
    """
    falling = frequency.flatten().sort(descending=True).values
    sizes = torch.arange(1, len(falling) + 1)
    dice = 2 * falling.cumsum(0) / (sizes + falling.sum()).clamp(min=1e-12)
    return float(falling[dice.argmax()])


def constant_predictor(cases: Sequence[Case], output: OutputSpec, clip: ClipConfig) -> ConstantMap:
    """Build the best constant mask from up to eight labelled frames of each training case.

    A pixel belongs to a class where that stood often enough for the largest expected Dice; where two classes claim it,
    to the one that exceeds its threshold the most.
    """
    classes = max(2, len(output.classes))
    total = torch.zeros(classes, *clip.size)
    for case in cases:
        known = [frame for frame in range(case.frames) if case.is_labelled(frame)]
        frames = [known[i] for i in np.linspace(0, len(known) - 1, min(8, len(known))).astype(int)]
        if not frames:
            continue
        masks, _ = read_case_masks(case, frames, image_size(case.streams["video"]))
        small = F.interpolate(torch.from_numpy(masks)[:, None], size=tuple(clip.size), mode="nearest-exact")[:, 0]
        total += torch.stack([(small == number).float().sum(0) for number in range(classes)])
    frequencies = (total / total.sum(0).clamp(min=1))[1:]
    thresholds = torch.tensor([max(best_threshold(frequency), 1e-6) for frequency in frequencies])
    excess = frequencies / thresholds[:, None, None]
    return ConstantMap(output, torch.where((excess >= 1).any(0), excess.argmax(0) + 1, 0))


def best_and_worst(
    rows: Sequence[CaseRow], metric: str, higher_is_better: bool, count: int
) -> tuple[list[str], list[str]]:
    """Return the ids of the best and of the worst cases by a metric, without overlap."""
    ranked = sorted(
        (row for row in rows if row["scored_frames"] and not math.isnan(row.get(metric, math.nan))),
        key=lambda row: row[metric],
        reverse=higher_is_better,
    )
    best = [row["case_id"] for row in ranked[:count]]
    worst = [row["case_id"] for row in reversed(ranked[len(best) :][-count:])] if count else []
    return best, worst
