"""How a model is scored: case by case, one row a case, the same for any number of processes."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.config import ClipConfig, EvaluateConfig
from medvid_core.data.clip import UNLABELLED, Case
from medvid_core.data.loader import read_case_masks
from medvid_core.data.preprocess import Step
from medvid_core.data.prompts import Prompt, from_mask
from medvid_core.data.readers import image_size
from medvid_core.data.transforms import Box, crop_box, to_source
from medvid_core.engine.inference import FrameBlock, Windows, predict_case, segment_case
from medvid_core.errors import ConfigError, DataError
from medvid_core.metrics.anomaly import raise_alarms, video_scores
from medvid_core.metrics.base import CaseMetric, Floats, Metric, ScoredCase, ScoredFrames, mean
from medvid_core.metrics.classification import Integers, confusion
from medvid_core.metrics.defaults import DEFAULT_METRICS, TWO_MEANINGS
from medvid_core.metrics.thresholds import is_curve
from medvid_core.models import check_tasks
from medvid_core.plugins import Registry
from medvid_core.specs import FRAME_TASKS, ClipSpec, MetricSpec, ModelSpec, OutputSpec, resolve

_NO_METRICS = ("case_id", "group_id", "frames", "fps", "scored_frames", "problem")


class CaseRow(dict[str, Any]):
    """The row of one case: its ids, number of scored frames, what is predicted and known of it, and every metric.

    Attributes:
        scored: what is predicted beside masks, from which metrics over several cases are computed; None: nothing.
        pixels: of masks, how many annotated pixels of each class were called which, [K,K], rows true; None: no masks.
        holding: likewise, how many annotated frames hold each class, [K].
        curves: by name, the value at each of many thresholds [N], of which that of all cases is chosen.
    """

    scored: ScoredCase | None = None
    pixels: Integers | None = None
    holding: Integers | None = None
    curves: Mapping[str, Floats] = MappingProxyType({})


Progress = Callable[[Sequence[Case]], Iterable[Case]]


@dataclass(frozen=True)
class Scorer:
    """Everything needed to score a model on cases, apart from the two."""

    outputs: tuple[OutputSpec, ...]
    metrics: tuple[Metric | CaseMetric, ...]
    clip: ClipConfig
    spec: ClipSpec
    steps: Sequence[Step]
    settings: EvaluateConfig
    device: torch.device

    @property
    def masks(self) -> OutputSpec | None:
        """The segmentation that is scored."""
        return next((output for output in self.outputs if output.task == "segmentation"), None)

    @property
    def others(self) -> tuple[OutputSpec, ...]:
        """All outputs that are no masks."""
        return tuple(output for output in self.outputs if output.task != "segmentation")

    @property
    def windows(self) -> Windows:
        """How cases are read."""
        return Windows(self.clip, self.spec, self.steps, self.settings.batch_size, self.device)

    def prompts(self, case: Case) -> tuple[Prompt, ...]:
        """Return what the model is pointed at: nothing, or the first annotated frame, as `EvaluateConfig.prompt` says.

        Raises:
            DataError: the frame cannot be read.
        """
        return () if self.settings.prompt == "none" else annotated_prompts(case, self.settings.prompt)

    def segment(self, model: nn.Module, case: Case) -> Iterator[FrameBlock]:
        """Yield the class probabilities of a case as they come."""
        assert self.masks is not None
        return segment_case(model, self.masks, case, self.windows, self.prompts(case))

    def predict(self, model: nn.Module, case: Case) -> ScoredCase:
        """Return what is predicted of a case beside masks, with what is known of it."""
        return scored_case(case, self.others, predict_case(model, self.others, case, self.windows))


def check_prompt(spec: ModelSpec, settings: EvaluateConfig) -> None:
    """Refuse to point at things for a model that takes no prompts.

    Raises:
        ConfigError: it does not.
    """
    if settings.prompt != "none" and not spec.prompts:
        raise ConfigError(f"evaluate.prompt={settings.prompt}: model {spec.name!r} takes no prompts. Leave it out.")


def annotated_prompts(case: Case, kind: str) -> tuple[Prompt, ...]:
    """Return points, boxes or masks of all classes in the first annotated frame; none for a case without masks.

    Raises:
        DataError: the frame cannot be read.
    """
    if "mask" not in case.streams:
        return ()
    frame = case.labelled[0] if case.labelled else 0
    masks, _ = read_case_masks(case, [frame], image_size(case.streams["video"]))
    return from_mask(masks[0], frame, kind)


def scored_case(case: Case, outputs: Sequence[OutputSpec], predicted: Mapping[str, Tensor]) -> ScoredCase:
    """Put predictions beside what is known of a case."""
    return ScoredCase(
        case_id=case.case_id,
        group_id=case.group_id,
        predicted={name: value.double().numpy() for name, value in predicted.items()},
        true={
            output.name: np.asarray(case.targets[output.name], np.float64).reshape(
                (-1,) if output.task in ("regression", "multilabel") else ()
            )
            for output in outputs
            if output.name in case.targets
        },
        true_frames={
            output.name: np.asarray(case.frame_targets[output.name], np.float64)
            for output in outputs
            if output.name in case.frame_targets
        },
        fps=math.nan if case.fps is None else case.fps,
        last=last_values(case, outputs),
    )


def last_values(case: Case, outputs: Sequence[OutputSpec]) -> dict[str, Floats]:
    """Return what was measured last before, by output [1]: see `ScoredCase.last`."""
    histories = {output.name: case.history.get(output.name) for output in outputs}
    return {name: np.array([history[-1][1]]) for name, history in histories.items() if history}


AUTOMATIC = ("auto",)
"""The metrics of a recipe that leaves them to the task."""


def metric_names(names: Sequence[str], outputs: Sequence[OutputSpec]) -> tuple[str, ...]:
    """Return the metrics to compute: of ``auto``, what is usual for the tasks of the outputs."""
    if tuple(names) != AUTOMATIC:
        return tuple(names)
    usual = dict.fromkeys(name for output in outputs for name in DEFAULT_METRICS[output.task])
    of_masks = {output.task == "segmentation" for output in outputs}
    return tuple(name for name in usual if len(of_masks) < 2 or name not in TWO_MEANINGS)


def build_metrics(
    registry: Registry, names: Sequence[str], outputs: tuple[OutputSpec, ...]
) -> tuple[Metric | CaseMetric, ...]:
    """Build the metrics by name, each for the outputs it is made for.

    Raises:
        PluginError: a name that no plugin offers. ConfigError: a metric that fits none of the outputs.
    """
    metrics = []
    for name in metric_names(names, outputs):
        spec = registry.find("metric", name).spec
        assert isinstance(spec, MetricSpec)
        fitting = tuple(output for output in outputs if output.task in spec.tasks)
        if not fitting:
            check_tasks(spec, outputs)
        metrics.append(resolve(spec.build)(fitting))
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
        masks = F.interpolate(seen(block).cut(masks)[:, None], size=values.shape[-2:], mode="nearest-exact")[:, 0]
    return values, masks.long(), torch.from_numpy(labelled)


def seen(block: FrameBlock) -> Box:
    """Return the part of the source that the model saw."""
    size = block.probabilities.shape[-2:]
    return crop_box(block.affine, size, block.source_size) or Box(0, 0, *block.source_size)


def score_blocks(case: Case, blocks: Iterable[FrameBlock], scorer: Scorer) -> CaseRow:
    """Return the row of one case: its ids, number of scored frames, and every metric."""
    assert scorer.masks is not None
    columns: dict[str, list[Tensor]] = {}
    metrics = [metric for metric in scorer.metrics if isinstance(metric, Metric)]
    classes = len(mask_classes(scorer.masks))
    scored, pixels, holding = 0, np.zeros((classes, classes), np.int64), np.zeros(classes, np.int64)
    pointed_at = {prompt.frame for prompt in scorer.prompts(case)}  # its masks were given away
    for block in blocks:
        values, masks, labelled = block_masks(case, block, scorer.settings.at)
        labelled &= (masks != UNLABELLED).flatten(1).any(1)
        labelled &= torch.tensor([frame not in pointed_at for frame in block.frames])
        scored += int(labelled.sum())
        whole = seen(block) if scorer.settings.at == "model" else Box(0, 0, *block.source_size)
        spacing = _spacing(case, (whole.height, whole.width), (masks.shape[1], masks.shape[2]))
        for every_frame, chosen in ((False, labelled), (True, torch.ones_like(labelled))):
            wanted = [metric for metric in metrics if metric.every_frame == every_frame]
            if not chosen.any() or (every_frame and not wanted):
                continue
            indices = [frame for frame, kept in zip(block.frames, chosen.tolist(), strict=True) if kept]
            frames = ScoredFrames(values[chosen], masks[chosen], labelled[chosen], spacing, indices, case)
            if not every_frame:
                pixels += confusion(frames.mask[frames.valid].numpy(), frames.predicted[frames.valid].numpy(), classes)
                holding += [int((frames.mask == number).flatten(1).any(1).sum()) for number in range(classes)]
            for metric in wanted:
                for name, column in metric.per_frame(frames).items():
                    columns.setdefault(name, []).append(column)
    row = CaseRow({**_identity(case), "scored_frames": scored})
    row.pixels, row.holding = pixels, holding
    joined = {name: torch.cat(parts).double().numpy() for name, parts in columns.items()}
    for metric in metrics:
        row |= metric.per_case({name: v for name, v in joined.items() if name.split("/")[0] == metric.name})
    return row


def _spacing(case: Case, source: tuple[int, int], scored: tuple[int, int]) -> tuple[float, float] | None:
    """Return mm per scored pixel (row, column); None where unknown."""
    if case.spacing is None:
        return None
    return case.spacing[0] * source[0] / scored[0], case.spacing[1] * source[1] / scored[1]


def score_case(model: nn.Module, case: Case, scorer: Scorer) -> CaseRow:
    """Return the row of one case: its masks, if any are predicted, and everything else."""
    row = CaseRow({**_identity(case), "scored_frames": 0})
    if scorer.masks is not None:
        row = score_blocks(case, scorer.segment(model, case), scorer)
    if not scorer.others:
        return row
    row.scored = scorer.predict(model, case)
    if any(case.knows(output) for output in scorer.others):
        row["scored_frames"] = case.frames
    row |= {"fps": row.scored.fps, **columns(row.scored, scorer.others)}
    for metric in scorer.metrics:
        if isinstance(metric, CaseMetric):
            row |= metric.per_case(row.scored)
    return row


def columns(case: ScoredCase, outputs: Sequence[OutputSpec]) -> dict[str, Any]:
    """Return what is known and predicted of a whole case as columns of its row.

    ``true/<output>`` and ``predicted/<output>`` (a class or grade by name, or a number; of several numbers
    ``…/<output>/<number>``), ``last/<output>`` likewise of a number that was measured before, ``p/<output>/<class>``
    (of grades ``p/<output>/><grade>``: of lying above it, for all but the last), and ``score/<output>`` of an anomaly:
    the mean of the highest sixteenth of its frames.
    """
    found: dict[str, Any] = {}
    for output in outputs:
        name, classes = output.name, output.classes
        true, predicted = case.true.get(name), case.predicted[name]
        several = len(classes) > 1
        if output.task in ("classification", "ordinal"):
            chosen = predicted.argmax() if output.task == "classification" else (predicted > 0.5).sum()
            found[f"true/{name}"] = "" if true is None else classes[int(true)]
            found[f"predicted/{name}"] = classes[int(chosen)]
            labels = classes if output.task == "classification" else [f">{grade}" for grade in classes[:-1]]
            found |= {f"p/{name}/{label}": float(p) for label, p in zip(labels, predicted, strict=True)}
        elif output.task == "multilabel":
            for number, label in enumerate(classes):
                found[f"true/{name}/{label}"] = math.nan if true is None else float(true[number])
                found[f"p/{name}/{label}"] = float(predicted[number])
        elif output.task == "regression":
            for number, label in enumerate(classes):
                end = f"{name}/{label}" if several else name
                found[f"true/{end}"] = math.nan if true is None else float(true[number])
                found[f"predicted/{end}"] = float(predicted[number])
                if name in case.last:
                    found[f"last/{end}"] = float(case.last[name][number])
        elif output.task == "anomaly":
            found[f"true/{name}"] = math.nan if true is None else float(true)
            found[f"score/{name}"] = video_scores(predicted)[0]
    return found


def frame_columns(case: ScoredCase, outputs: Sequence[OutputSpec]) -> list[dict[str, Any]]:
    """Return what is known and predicted of every frame of a case, one row a frame; empty where nothing is."""
    of_frames = [output for output in outputs if output.task in FRAME_TASKS]
    if not of_frames:
        return []
    rows: list[dict[str, Any]] = [
        {"case_id": case.case_id, "frame": frame} for frame in range(len(case.predicted[of_frames[0].name]))
    ]
    for output in of_frames:
        name, predicted = output.name, case.predicted[output.name]
        true = case.true_frames.get(name, np.full(len(predicted), math.nan))
        for row, value, known in zip(rows, predicted, true, strict=True):
            if output.task == "anomaly":
                row |= {f"true/{name}": float(known), f"score/{name}": float(value)}
                continue
            row[f"true/{name}"] = "" if math.isnan(known) else output.classes[int(known)]
            row[f"predicted/{name}"] = output.classes[int(value.argmax())]
            row |= {f"p/{name}/{label}": float(p) for label, p in zip(output.classes, value, strict=True)}
    return rows


def _identity(case: Case) -> dict[str, Any]:
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
            mine.append(score_case(model, case, scorer))
        except DataError as error:  # a corrupt file costs its case, not the run
            mine.append(CaseRow({**_identity(case), "scored_frames": 0, "problem": str(error)}))
    model.train(was_training)
    rows = {row["case_id"]: row for row in _gather(mine, processes)}
    ordered = [rows[case.case_id] for case in cases]
    _complete(ordered, cases, scorer.metrics)
    if ordered and not any(row["scored_frames"] for row in ordered):
        reason = next((f" First problem: {row['problem']}" for row in ordered if "problem" in row), "")
        wanted = "an annotated frame" if scorer.masks is not None else "a known target"
        raise DataError(f"None of the {len(ordered)} cases to evaluate has {wanted}.{reason}")
    return ordered


def _complete(rows: Sequence[CaseRow], cases: Sequence[Case], metrics: Sequence[Metric | CaseMetric]) -> None:
    """Let the metrics add what only all cases tell, then take out the arrays that they kept for it.

    Curves are kept beside the row: other cases together with these have another best threshold.
    """
    for metric in metrics:
        if isinstance(metric, Metric):
            metric.across(rows, cases)
    for row in rows:
        arrays = {name: row.pop(name) for name, value in list(row.items()) if isinstance(value, np.ndarray)}
        row.curves = {name: value for name, value in arrays.items() if is_curve(name)}


def _gather(rows: list[CaseRow], processes: int) -> list[CaseRow]:
    if processes == 1:
        return rows
    shares: list[Any] = [None] * processes
    torch.distributed.all_gather_object(shares, rows)
    return [row for share in shares for row in share]


def summarise(rows: Sequence[CaseRow], metrics: Sequence[Metric | CaseMetric]) -> dict[str, float]:
    """Return every metric over all rows that have scored frames."""
    scored = [row for row in rows if row["scored_frames"]]
    values = [{k: v for k, v in row.items() if k not in _NO_METRICS} for row in scored]
    cases = [row.scored for row in scored if row.scored is not None]
    found: dict[str, float] = {}
    for metric in metrics:
        found |= metric.summarise(values) if isinstance(metric, Metric) else metric.summarise(cases)
        if isinstance(metric, CaseMetric) and len(metric.outputs) > 1:  # of several outputs, their mean chooses
            each = [found.get(f"{metric.name}/{output.name}", math.nan) for output in metric.outputs]
            found[metric.name] = mean(each)
    return found


def set_alarms(rows: Sequence[CaseRow], alarms: Mapping[str, Mapping[str, float]]) -> None:
    """Give scored cases, in place, the alarm thresholds that were chosen on others (`ScoredCase.alarms`)."""
    for row in rows:
        if row.scored is not None:
            row.scored = replace(row.scored, alarms=alarms)


def own_alarms(
    metrics: Sequence[Metric | CaseMetric],
    outputs: Sequence[OutputSpec],
    alarms: Mapping[str, Mapping[str, float]],
    part: str,
) -> str:
    """Return a remark on alarm thresholds that metrics have to choose on the very cases they score; empty if none."""
    names = raise_alarms(metrics)
    unset = [output.name for output in outputs if output.task == "anomaly" and len(alarms.get(output.name, {})) < 2]
    if not names or not unset:
        return ""
    return (
        f"alarm thresholds of {', '.join(unset)} were chosen on the very cases that are scored ({part}), not "
        f"beforehand on normal validation cases: {' and '.join(names)} look somewhat too good"
    )


def mask_classes(output: OutputSpec) -> tuple[str, ...]:
    """Return the names of all mask values of a segmentation; a lone class stands against the background."""
    return output.classes if len(output.classes) > 1 else ("background", *output.classes)


def write_tables(directory: Path, rows: Sequence[CaseRow], outputs: Sequence[OutputSpec]) -> None:
    """Write ``cases.csv``; ``frames.csv`` where something is predicted for frames; of masks ``pixels.csv``.

    ``pixels.csv`` holds a line for each case and true class: how many annotated frames hold it, and how many of its
    annotated pixels were called which. ``curves.csv``, for metrics at the best threshold, see `write_curves`.
    """
    write_curves(directory, rows)
    masks = next((output for output in outputs if output.task == "segmentation"), None)
    outputs = [output for output in outputs if output is not masks]
    write_rows(directory / "cases.csv", rows)
    if masks is not None:
        names = mask_classes(masks)
        write_rows(
            directory / "pixels.csv",
            [
                {"case_id": row["case_id"], "true": true, "frames": frames}
                | {f"pixels/{name}": count for name, count in zip(names, counts, strict=True)}
                for row in rows
                if row.pixels is not None and row.holding is not None
                for true, frames, counts in zip(names, row.holding.tolist(), row.pixels.tolist(), strict=True)
            ],
        )
    frames = [line for row in rows if row.scored is not None for line in frame_columns(row.scored, outputs)]
    if frames:
        write_rows(directory / "frames.csv", frames)


def read_holding(directory: Path, output: OutputSpec) -> Integers:
    """Return how many annotated frames of all cases hold each class of masks, [K], from ``pixels.csv``.

    Raises:
        DataError: the table is missing or damaged.
    """
    names = mask_classes(output)
    found = np.zeros(len(names), np.int64)
    try:
        with open(directory / "pixels.csv", newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                found[names.index(line["true"])] += int(line["frames"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{directory / 'pixels.csv'} is damaged: {error}. Score the model anew.") from error
    return found


def write_curves(directory: Path, rows: Sequence[CaseRow]) -> None:
    """Write ``curves.csv``, a line for each case and curve: its value at every threshold; ``nan`` where undefined.

    Nothing is written where no metric has curves.
    """
    lines = [
        {"case_id": row["case_id"], "curve": name, **{str(at): str(value) for at, value in enumerate(curve.tolist())}}
        for row in rows
        for name, curve in row.curves.items()
    ]
    if lines:
        write_rows(directory / "curves.csv", lines)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table as CSV; an undefined value is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})


def merit(row: CaseRow, metric: str, higher_is_better: bool, outputs: Sequence[OutputSpec]) -> float:
    """Return how well a case went, larger is better: its own value of a metric, or where that has none, its fit.

    The fit is that of the first output: probability of the true class, labels or frames; the negative error of a number
    or grade; the score of an anomaly, negative where there is none. NaN where nothing is known.
    """
    value = row.get(metric, math.nan)
    if isinstance(value, float) and not math.isnan(value):
        return value if higher_is_better else -value
    case = row.scored
    if case is None:
        return math.nan
    output = outputs[0]
    predicted, true = case.predicted[output.name], case.true.get(output.name)
    frames = case.true_frames.get(output.name)
    if frames is not None:
        known = ~np.isnan(frames)
        if output.task == "anomaly":
            fit = np.where(frames > 0, predicted, -predicted)[known]
        else:
            fit = predicted[known, frames[known].astype(int)]
        return float(fit.mean()) if len(fit) else math.nan
    if true is None:
        return math.nan
    if output.task == "classification":
        return float(predicted[int(true)])
    if output.task == "multilabel":
        return float(np.where(true > 0, predicted, 1 - predicted).mean())
    if output.task == "anomaly":
        return float(predicted.max() if true > 0 else -predicted.max())
    guess = (predicted > 0.5).sum() if output.task == "ordinal" else predicted
    return -float(np.abs(guess - true).mean())


def best_and_worst(
    rows: Sequence[CaseRow], metric: str, higher_is_better: bool, count: int, outputs: Sequence[OutputSpec] = ()
) -> tuple[list[str], list[str]]:
    """Return the ids of the best and of the worst cases (see `merit`), without overlap."""
    merits = [(merit(row, metric, higher_is_better, outputs), row["case_id"]) for row in rows if row["scored_frames"]]
    ranked = sorted((pair for pair in merits if not math.isnan(pair[0])), key=lambda pair: pair[0], reverse=True)
    best = [case_id for _, case_id in ranked[:count]]
    worst = [case_id for _, case_id in reversed(ranked[len(best) :][-count:])] if count else []
    return best, worst
