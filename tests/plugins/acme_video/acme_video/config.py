"""Settings."""

from dataclasses import dataclass


@dataclass
class AcmeNetConfig:
    """Three convolutions."""

    width: int = 16


@dataclass
class AcmeBlobsConfig:
    """Drifting squares."""

    cases: int = 8
    frames: int = 6
    side: int = 40


@dataclass
class AcmeFocalConfig:
    """Focal loss."""

    gamma: float = 1.0


@dataclass
class AcmeDifferenceConfig:
    """Frame differences."""

    factor: float = 1.0
