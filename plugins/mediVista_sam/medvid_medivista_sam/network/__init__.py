"""MediViSTA-SAM's network. `build` makes it."""

from medvid_medivista_sam.network.model import MediViSTA, build

__all__ = ["MediViSTA", "build"]
