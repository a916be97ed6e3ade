"""Configurations of core's losses."""

from dataclasses import dataclass

from medvid_core.errors import ConfigError


@dataclass
class CrossEntropyConfig:
    """Pixel-wise cross-entropy.

    Attributes:
        class_weights: one weight a class, empty for equal weights; with a single class, the weight of its pixels
            against the background's.
    """

    class_weights: tuple[float, ...] = ()


@dataclass
class DiceConfig:
    """Soft Dice loss.

    Attributes:
        smooth: added to numerator and denominator, so that an empty class predicted empty costs nothing.
    """

    smooth: float = 1.0


@dataclass
class DiceCEConfig:
    """Sum of soft Dice and cross-entropy.

    Attributes:
        dice_weight: factor of the Dice part.
        cross_entropy_weight: factor of the cross-entropy part.
        smooth: as in the Dice loss.
    """

    dice_weight: float = 1.0
    cross_entropy_weight: float = 1.0
    smooth: float = 1.0


@dataclass
class ByTaskConfig:
    """Settings of the loss that takes for every output what is usual for its task.

    Attributes:
        label_smoothing: share of the probability spread over all classes (classification).
        class_weights: one factor a class, for classification of clips and frames; for multilabel and anomaly that of
            the positive side. Empty: all 1.
        regression: ``mse`` or ``huber``.
        huber_delta: where the Huber loss turns linear, in standard deviations of the training cases.
        smoothing: factor of the truncated smoothing (frame_classification).
        mil_smoothness: factor of the squared change of the score from frame to frame (videos labelled as a whole).
        mil_sparsity: factor of the sum of the scores of abnormal videos.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    regression: str = "mse"
    huber_delta: float = 1.0
    smoothing: float = 0.15
    mil_smoothness: float = 8e-4
    mil_sparsity: float = 8e-4

    def __post_init__(self) -> None:
        if self.regression not in ("mse", "huber"):
            raise ConfigError(f"loss.regression={self.regression!r} cannot be used: it must be mse or huber.")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"loss.label_smoothing={self.label_smoothing} cannot be used: from 0 to below 1.")


@dataclass
class NormalOnlyConfig:
    """The loss that makes the anomaly score of normal videos small has no settings."""
