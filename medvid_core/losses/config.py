"""Configurations of core's losses."""

from dataclasses import dataclass


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
