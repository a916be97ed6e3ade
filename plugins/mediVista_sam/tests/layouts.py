"""SAM's weights as Meta publishes them, with random values, for the tests."""

from __future__ import annotations

import torch

from medvid_core.specs import OutputSpec
from medvid_medivista_sam.config import VARIANTS, MediViSTAConfig
from medvid_medivista_sam.network import MediViSTA
from medvid_medivista_sam.network.decoder import MaskDecoder
from medvid_medivista_sam.network.encoder import SamEncoder
from medvid_medivista_sam.network.layers import MLP
from medvid_medivista_sam.network.prompt_encoder import PromptEncoder
from medvid_medivista_sam.network.up_path import transposed_convs


def plain_sam(variant="tiny", grid=None):
    """SAM itself, of our parts."""
    shape = VARIANTS[variant]
    return MediViSTA(
        MediViSTAConfig(wiring="fusion", variant=variant, temporal=False, cross_branch=False, low_rank=0),
        OutputSpec(name="mask", task="segmentation", classes=tuple("abcd")),
        SamEncoder(shape, grid or shape.grid),
        PromptEncoder(256),
        MaskDecoder(4, 256, shape.decoder_mlp, transposed_convs(256, 2), 32),
    )


def meta_file(variant="tiny", grid=None):
    """A state dict in Meta's layout, with random values."""
    torch.manual_seed(7)
    model = plain_sam(variant, grid)
    head = {f"mask_decoder.iou_prediction_head.{k}": x for k, x in MLP(256, 256, 4, 3).state_dict().items()}
    names = {k: k.replace(".mlp.fc", ".mlp.lin") if k.startswith("image_encoder") else k for k in model.state_dict()}
    state = {names[k]: x for k, x in model.state_dict().items()} | head
    return {k: torch.randn_like(x) for k, x in state.items()}
