"""How a model is scored: case by case, one row a case, the same for any number of processes."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from medvid_core.plugins import Registry
from medvid_core.specs import ClipSpec, MetricSpec, OutputSpec, resolve

CaseRow = dict[str, Any]
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


def build_metrics(registry: Registry, names: Sequence[str], outputs: tuple[OutputSpec, ...]) -> tuple[Metric, ...]:
    """Build the metrics by name.

    Raises:
        PluginError: a name that no plugin offers.
    """
    metrics = []
    for name in names:
        spec = registry.find("metric", name).spec
        assert isinstance(spec, MetricSpec)
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
    row: CaseRow = {"case_id": case.case_id, "group_id": case.group_id, "frames": case.frames, "scored_frames": scored}
    joined = {name: torch.cat(parts).double().numpy() for name, parts in columns.items()}
    for metric in scorer.metrics:
        row |= metric.per_case({name: v for name, v in joined.items() if name.split("/")[0] == metric.name})
    return row


def score_cases(
    model: nn.Module,
    cases: Sequence[Case],
    scorer: Scorer,
    rank: int = 0,
    processes: int = 1,
    progress: Progress = iter,
) -> list[CaseRow]:
    """Return one row a case, in the order of ``cases``, on every process.

    Each process scores its share; the rows are gathered and keyed by case id.

    Raises:
        DataError: no case has an annotated frame.
    """
    was_training = model.training
    model.eval()
    mine = []
    for case in progress(cases[rank::processes]):
        blocks = segment_case(
            model,
            scorer.output,
            case,
            scorer.clip,
            scorer.spec,
            scorer.steps,
            scorer.settings.batch_size,
            scorer.device,
        )
        mine.append(score_blocks(case, blocks, scorer))
    model.train(was_training)
    rows = {row["case_id"]: row for row in _gather(mine, processes)}
    ordered = [rows[case.case_id] for case in cases]
    if ordered and not any(row["scored_frames"] for row in ordered):
        raise DataError(f"None of the {len(ordered)} cases to evaluate has an annotated frame.")
    return ordered


def _gather(rows: list[CaseRow], processes: int) -> list[CaseRow]:
    if processes == 1:
        return rows
    shares: list[Any] = [None] * processes
    torch.distributed.all_gather_object(shares, rows)
    return [row for share in shares for row in share]


def summarise(rows: Sequence[CaseRow], metrics: Sequence[Metric]) -> dict[str, float]:
    """Return every metric over all rows that have scored frames."""
    scored = [row for row in rows if row["scored_frames"]]
    numbers = [{key: value for key, value in row.items() if isinstance(value, float)} for row in scored]
    return {name: value for metric in metrics for name, value in metric.summarise(numbers).items()}


def write_rows(path: Path, rows: Sequence[CaseRow]) -> None:
    """Write the per-case table as CSV; an undefined value is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})


class ConstantMap(nn.Module):
    """The best constant predictor: for every pixel, how often each class stood there in the training masks."""

    def __init__(self, output: OutputSpec, frequencies: Tensor) -> None:
        super().__init__()
        self.output = output
        values = frequencies.clamp(1e-6, 1 - 1e-6)
        self.register_buffer("logits", values.logit() if len(values) == 1 else values.log())

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the same logits for every frame, [B,T,K,H,W]."""
        b, t = batch["video"].shape[:2]
        logits = self.get_buffer("logits")
        return {self.output.name: logits.expand(b, t, *logits.shape)}


def constant_predictor(cases: Sequence[Case], output: OutputSpec, clip: ClipConfig) -> ConstantMap:
    """Build the constant predictor from up to eight labelled frames of each training case."""
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
    frequencies = total / total.sum(0).clamp(min=1)
    return ConstantMap(output, frequencies[1:] if len(output.classes) == 1 else frequencies)


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
