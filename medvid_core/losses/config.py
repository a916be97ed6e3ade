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
class FocalConfig:
    """Class-balanced focal loss.

    Attributes:
        gamma: exponent, 0 or at least 1; the higher, the less pixels count that are nearly right.
        alpha: one weight a class, the background first (two for a lone class); empty: 0.05 for the background, the rest
            shared evenly.
        balance: ``alpha``: those weights; ``frequency``: in each clip one over the number of pixels of each class,
            adding up to 1.
    """

    gamma: float = 2.0
    alpha: tuple[float, ...] = ()
    balance: str = "alpha"

    def __post_init__(self) -> None:
        if self.balance not in ("alpha", "frequency"):
            raise ConfigError(f"loss.balance={self.balance!r} cannot be used: it must be alpha or frequency.")
        if self.balance == "frequency" and self.alpha:
            raise ConfigError("loss.alpha has no effect with loss.balance=frequency. Leave one of them out.")
        if 0 < self.gamma < 1 or self.gamma < 0:
            raise ConfigError(f"loss.gamma={self.gamma} must be 0, or 1 or more: between them gradients are infinite.")
        if any(weight < 0 for weight in self.alpha):
            raise ConfigError(f"loss.alpha={self.alpha} must not hold a number below 0.")


@dataclass
class TverskyConfig:
    """Tversky loss: soft Dice with different weights for what is missed and what is too much.

    Attributes:
        false_positive: weight of what is too much.
        false_negative: weight of what is missed.
        smooth: added to numerator and denominator.
    """

    false_positive: float = 0.3
    false_negative: float = 0.7
    smooth: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.false_positive, self.false_negative) < 0:
            raise ConfigError(
                f"loss.false_positive={self.false_positive} and loss.false_negative={self.false_negative} must not be "
                "below 0."
            )
        if self.smooth <= 0:
            raise ConfigError(f"loss.smooth={self.smooth} must be above 0: a frame may lack a class.")


@dataclass
class FocalTverskyConfig(FocalConfig, TverskyConfig):
    """Sum of the class-balanced focal loss and the Tversky loss; the defaults find more of what is there.

    Attributes:
        gamma: as in the focal loss.
        alpha: as in the focal loss.
        balance: as in the focal loss.
        false_positive: as in the Tversky loss.
        false_negative: as in the Tversky loss.
        smooth: as in the Tversky loss.
        focal_weight: factor of the focal part.
        tversky_weight: factor of the Tversky part.
    """

    focal_weight: float = 0.4
    tversky_weight: float = 0.6

    def __post_init__(self) -> None:
        FocalConfig.__post_init__(self)
        TverskyConfig.__post_init__(self)


@dataclass
class RecallConfig:
    """The recall loss has no settings."""


@dataclass
class BoundaryCEConfig:
    """Cross-entropy, with more on the outlines of the classes.

    Attributes:
        boundary_weight: factor of the part on outlines.
    """

    boundary_weight: float = 0.5


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
