"""Configurations of core's baselines."""

from dataclasses import dataclass


@dataclass
class UNetConfig:
    """A 2D U-Net with residual units, applied to every frame by itself.

    Attributes:
        in_channels: image channels.
        channels: feature maps at each level; every further level halves height and width.
        residual_units: convolutions in each residual unit.
        dropout: probability.
    """

    in_channels: int = 3
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    residual_units: int = 2
    dropout: float = 0.0
