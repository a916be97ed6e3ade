"""Overlap and error of segmentations, per frame and foreground class.

Conventions: class 0 is the background and is not scored; the value of a case is the mean over its annotated frames,
then over classes. Prediction and annotation both empty score 1, only one of them empty scores 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from medvid_core.metrics.base import Floats, Metric, Row, ScoredFrames, mean
from medvid_core.specs import OutputSpec


def _ratio(numerator: Tensor, denominator: Tensor, when_zero: Tensor | float) -> Tensor:
    """Return the quotient, and ``when_zero`` where the denominator is 0."""
    value = numerator / denominator.clamp(min=1e-300)
    return torch.where(denominator > 0, value, torch.as_tensor(when_zero, dtype=value.dtype, device=value.device))


def with_classes(name: str, values: Tensor, outputs: tuple[OutputSpec, ...]) -> dict[str, Tensor]:
    """Return the mean over classes where they are not NaN, and each class by name, of values [T,classes]."""
    classes = next(output for output in outputs if output.task == "segmentation").classes
    if len(classes) == 1:
        return {name: values[:, 0]}
    return {name: values.nanmean(1), **{f"{name}/{label}": values[:, i] for i, label in enumerate(classes[1:])}}


class Overlap(Metric):
    """A metric that is a function of the confusion counts alone."""

    def score(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        """Return the value of each frame and class from pixel counts [T,classes]."""
        raise NotImplementedError

    def per_frame(self, frames: ScoredFrames) -> Mapping[str, Tensor]:
        """Return the value of each frame."""
        return with_classes(self.name, self.score(*frames.confusion.unbind(2)), self.outputs)


def _both_empty(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    return ((tp + fp + fn) == 0).to(tp.dtype)


class Dice(Overlap):
    """Dice similarity coefficient, 2 TP / (2 TP + FP + FN)."""

    name = "dice"

    def score(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        """Return Dice, 0 to 1."""
        return _ratio(2 * tp, 2 * tp + fp + fn, 1.0)


class Jaccard(Overlap):
    """Jaccard index (intersection over union), TP / (TP + FP + FN)."""

    name = "jaccard"

    def score(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        """Return the Jaccard index, 0 to 1."""
        return _ratio(tp, tp + fp + fn, 1.0)


class Precision(Overlap):
    """Precision (positive predictive value), TP / (TP + FP)."""

    name = "precision"

    def score(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        """Return precision, 0 to 1."""
        return _ratio(tp, tp + fp, _both_empty(tp, fp, fn))


class Recall(Overlap):
    """Recall (sensitivity), TP / (TP + FN)."""

    name = "recall"

    def score(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        """Return recall, 0 to 1."""
        return _ratio(tp, tp + fn, _both_empty(tp, fp, fn))


class Specificity(Overlap):
    """Specificity, TN / (TN + FP); 1 where no pixel is negative."""

    name = "specificity"

    def score(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        """Return specificity, 0 to 1."""
        return _ratio(tn, tn + fp, 1.0)


class FMeasure(Overlap):
    """F-measure (1 + β²) P R / (β² P + R) with β² = 0.3, which favours precision (Achanta et al., CVPR 2009)."""

    name = "f-measure"
    beta_squared = 0.3

    def score(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        """Return the F-measure, 0 to 1."""
        weighted = (1 + self.beta_squared) * tp
        return _ratio(weighted, weighted + self.beta_squared * fn + fp, 1.0)


class WherePresent(Metric):
    """An overlap of those frames alone whose annotation holds the class: of the others it is undefined.

    A class that is in few frames is otherwise scored 1 in all others for not being predicted there. The result is the
    mean over classes of the classes' results, so that a class counts the same however rare it is. What is predicted
    where the class is not, this does not see.

    Args:
        of: the overlap.
        outputs: what is predicted.
    """

    def __init__(self, of: type[Overlap], outputs: tuple[OutputSpec, ...]) -> None:
        super().__init__(outputs)
        self.of, self.name = of(outputs), f"{of.name}-present"

    def per_frame(self, frames: ScoredFrames) -> Mapping[str, Tensor]:
        """Return the value of each frame; NaN where the class is not."""
        tp, fp, fn, tn = frames.confusion.unbind(2)
        return with_classes(self.name, torch.where(tp + fn > 0, self.of.score(tp, fp, fn, tn), torch.nan), self.outputs)

    def per_case(self, values: Mapping[str, Floats]) -> Mapping[str, float | Floats]:
        """Return the mean over the frames that hold a class, then over classes."""
        return self._over_classes({name: mean(column) for name, column in values.items()})

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the mean over the cases that hold a class, then over classes."""
        return self._over_classes(super().summarise(rows))

    def _over_classes(self, found: dict[str, float]) -> dict[str, float]:
        parts = [value for name, value in found.items() if name != self.name]
        return {**found, self.name: mean(parts)} if parts else found


build_dice_present, build_jaccard_present, build_precision_present, build_recall_present = (
    partial(WherePresent, of) for of in (Dice, Jaccard, Precision, Recall)
)


class MeanAbsoluteError(Metric):
    """Mean over annotated pixels of \\|probability - annotation\\|."""

    name = "mae"

    def per_frame(self, frames: ScoredFrames) -> Mapping[str, Tensor]:
        """Return the error of each frame, 0 to 1."""
        first = 0 if frames.probabilities.shape[1] == 1 else 1
        columns = []
        for column, number in enumerate(frames.foreground):
            error = (frames.probabilities[:, column + first] - (frames.mask == number).float()).abs() * frames.valid
            columns.append(error.flatten(1).double().sum(1) / frames.valid.flatten(1).sum(1).clamp(min=1))
        return with_classes(self.name, torch.stack(columns, 1), self.outputs)
