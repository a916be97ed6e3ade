"""The trivial predictors any trained model must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.config import ClipConfig
from medvid_core.data.clip import Case
from medvid_core.data.loader import read_case_masks
from medvid_core.data.readers import image_size
from medvid_core.metrics.base import CaseMetric, Floats, Metric, ScoredCase
from medvid_core.specs import FRAME_TASKS, OutputSpec


class Constant(nn.Module):
    """Predicts the same for every video, whatever is in it.

    Args:
        values: name of an output -> its raw value for one clip; of outputs with a value a frame, for one frame.
        per_frame: names of the latter.
    """

    def __init__(self, values: Mapping[str, Tensor], per_frame: Sequence[str]) -> None:
        super().__init__()
        self.names, self.per_frame = tuple(values), frozenset(per_frame)
        for number, value in enumerate(values.values()):
            self.register_buffer(f"value{number}", value)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the same outputs for every clip."""
        clips, frames = batch["video"].shape[:2]
        found = {}
        for number, name in enumerate(self.names):
            value = self.get_buffer(f"value{number}")
            repeats = (clips, frames) if name in self.per_frame else (clips,)
            found[name] = value.expand(*repeats, *value.shape)
        return found


def constant_predictor(cases: Sequence[Case], outputs: Sequence[OutputSpec], clip: ClipConfig) -> Constant:
    """Build the best constant prediction from the training cases.

    A mask: see `constant_mask`. A class: the share of each (its logarithm). Labels and grades: the log-odds of each.
    A number: the mean. An anomaly: the same score for all.
    """
    values: dict[str, Tensor] = {}
    for output in outputs:
        if output.task == "segmentation":
            values[output.name] = constant_mask(cases, output, clip)
        else:
            values[output.name] = _constant_value(cases, output)
    frames = [output.name for output in outputs if output.task in ("segmentation", *FRAME_TASKS)]
    return Constant(values, frames)


def known_values(cases: Sequence[Case], output: OutputSpec) -> Floats:
    """Return what the cases know of an output, of whole cases [n,...], or of all their frames [n]."""
    if output.task in FRAME_TASKS:
        values = [np.asarray(case.frame_targets.get(output.name, ()), np.float64) for case in cases]
        frames: Floats = np.concatenate([np.empty(0), *values])
        frames = frames[~np.isnan(frames)]
        if len(frames) or output.task == "frame_classification":
            return frames
    found = [case.targets[output.name] for case in cases if output.name in case.targets]
    return np.array(found, np.float64)


def _constant_value(cases: Sequence[Case], output: OutputSpec) -> Tensor:
    known = known_values(cases, output)
    count = len(output.classes)
    if output.task == "anomaly":
        return torch.tensor(0.0)
    if output.task in ("classification", "frame_classification"):
        shares = np.bincount(known.astype(int), minlength=count) + 1e-6
        return torch.from_numpy(np.log(shares / shares.sum())).float()
    if output.task == "regression":
        values = known.reshape(len(known), -1)
        return torch.from_numpy(np.nanmean(values, 0) if len(values) else np.zeros(count)).float().expand(count).clone()
    thresholds = np.arange(count - 1) if output.task == "ordinal" else np.zeros(1)
    grades = known.reshape(len(known), -1)
    above, there = (grades > thresholds).sum(0), (~np.isnan(grades)).sum(0)  # NaN lies above nothing
    share = np.where(there > 0, above / np.maximum(there, 1), 0.5).clip(1e-6, 1 - 1e-6)
    return torch.from_numpy(np.log(share / (1 - share))).float()


def best_threshold(frequency: Tensor) -> float:
    """Return the t for which the region ``frequency >= t`` has the largest expected Dice with the masks.

    Expected overlap and size are sums of the frequencies [H,W], so Dice is 2 Σ_region f / (|region| + Σ f), taken as
    the ratio of expectations.
    """
    falling = frequency.flatten().sort(descending=True).values
    sizes = torch.arange(1, len(falling) + 1)
    dice = 2 * falling.cumsum(0) / (sizes + falling.sum()).clamp(min=1e-12)
    return float(falling[dice.argmax()])


def constant_mask(cases: Sequence[Case], output: OutputSpec, clip: ClipConfig) -> Tensor:
    """Return the logits [K,H,W] of the best constant mask, from up to eight labelled frames of each training case.

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
    chosen = torch.where((excess >= 1).any(0), excess.argmax(0) + 1, 0)
    count = len(output.classes)
    # sure, and finite
    return torch.stack([chosen == number for number in (range(count) if count > 1 else (1,))]).float() * 40 - 20


def from_history(
    cases: Sequence[Case], outputs: Sequence[OutputSpec], metrics: Sequence[Metric | CaseMetric]
) -> dict[str, dict[str, float]]:
    """Score what anyone would foresee who knows what was measured at a patient's earlier visits.

    ``carry-forward`` repeats the last value; ``trend`` goes on along each patient's straight line (least squares; of a
    single visit, its value) to ``visit_time``. Nothing, where a case has no history of some output.
    """
    if not outputs or any(output.task != "regression" or len(output.classes) > 1 for output in outputs):
        return {}
    if not all(case.history.get(output.name) for case in cases for output in outputs):
        return {}
    found = {}
    for name, foresee in (("carry-forward", _last), ("trend", _trend)):
        scored = [
            ScoredCase(
                case_id=case.case_id,
                group_id=case.group_id,
                predicted={output.name: np.array([foresee(case, output.name)]) for output in outputs},
                true={
                    output.name: np.asarray(case.targets[output.name], np.float64).reshape(-1)
                    for output in outputs
                    if output.name in case.targets
                },
                last={output.name: np.array([_last(case, output.name)]) for output in outputs},
            )
            for case in cases
        ]
        found[name] = {
            key: value
            for metric in metrics
            if isinstance(metric, CaseMetric)
            for key, value in metric.summarise(scored).items()
        }
    return found


def _last(case: Case, name: str) -> float:
    return case.history[name][-1][1]


def _trend(case: Case, name: str) -> float:
    times, values = np.array(case.history[name]).T
    if len(times) == 1:
        return float(values[0])
    slope, level = np.polyfit(times - times[-1], values, 1)
    return float(level + slope * (float(case.visit_time) - times[-1]))
