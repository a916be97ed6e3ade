"""Weights of the original Vivim (and forks of it), and of SegFormer checkpoints.

Vivim here bears the original's parameter names, so that importing means little more than leaving out what is never
used.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from medvid_core.errors import CheckpointError
from medvid_core.weights import ImportReport, load_strictly

DEAD: Mapping[str, str] = {
    "encoder.downsample_layers.layer_norm.*": "SegFormer's norm at the end of a stage, which Vivim skips",
    "decoder.classifier.*": "SegFormer's own classifier, which Vivim replaces by 'out'",
    "criterion.*": "part of the training loss, not of the network",
}

LIGHTNING_PREFIX = "model."


def import_upstream(state: Mapping[str, Tensor], model: nn.Module) -> ImportReport:
    """Load a state dict of the original Vivim or of its ovarian fork, bare or from a Lightning checkpoint.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; the model is unchanged.
    """
    # only a leading prefix: names further down may contain "model." as well
    bare = {key.removeprefix(LIGHTNING_PREFIX): value for key, value in state.items()}
    if len(bare) != len(state):
        raise CheckpointError(f"Some keys occur with and without the prefix {LIGHTNING_PREFIX!r}; which ones count?")
    hint = (
        "The file's edge head (edgeocr_cls_head) needs model.edge=true, its number of classes that of the output, "
        "its widths and depths those of the model; config_from_upstream translates the original's arguments."
    )
    return load_strictly(model, bare, source="original Vivim", dead=DEAD, hint=hint)


def import_segformer(state: Mapping[str, Tensor], model: nn.Module) -> ImportReport:
    """Load encoder and decoder from a Hugging Face SegFormer checkpoint; Mamba layers and heads stay as initialised.

    A checkpoint of the encoder alone (ImageNet classification) leaves the decoder as initialised too.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; the model is unchanged.
    """
    renamed = {_from_segformer(key): value for key, value in state.items()}
    fresh = ["encoder.stages.*", "out.*", "edgeocr_cls_head.*"]
    if not any(key.startswith("decoder.") for key in renamed):
        fresh.append("decoder.*")
    dead = {**DEAD, "classifier.*": "SegFormer's image classifier"}
    hint = "Choose the same encoder with model.variant, and the same decoder width with model.decoder_width."
    return load_strictly(model, renamed, source="SegFormer", dead=dead, fresh=fresh, hint=hint)


def _from_segformer(key: str) -> str:
    for theirs, ours in (("segformer.encoder.", "encoder.downsample_layers."), ("decode_head.", "decoder.")):
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key
