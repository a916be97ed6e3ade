"""What Vivim is trained with: the structure loss, with or without the terms of the edge branch."""

from __future__ import annotations

from medvid_core.losses import Loss, segmentation_output
from medvid_core.specs import OutputSpec
from medvid_vivim.config import StructureLossConfig
from medvid_vivim.losses.joint import PaperEdgeLoss, ReleasedEdgeLoss
from medvid_vivim.losses.regressor import Regressor
from medvid_vivim.losses.structure import StructureLoss


def build_structure(config: StructureLossConfig, outputs: tuple[OutputSpec, ...]) -> Loss:
    """Make the loss for the one segmentation output.

    Raises:
        ConfigError: there is none, or more than one; or the released edge terms are asked of several classes.
        CheckpointError: the regressor's file cannot be read, or is none.
    """
    structure = StructureLoss(config, segmentation_output(outputs))
    if config.edge == "none":
        return structure
    regressor = Regressor.read(config.regressor) if config.regressor else None
    return (ReleasedEdgeLoss if config.edge == "released" else PaperEdgeLoss)(structure, regressor)
