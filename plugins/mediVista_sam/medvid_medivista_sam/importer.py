"""Weights of SAM, as Meta, timm and transformers store them, and of both versions of MediViSTA-SAM.

Parameters here bear Meta's and timm's names. Tables of positions for another grid are resized, as SAM itself does for
other frame sizes. Every key of a file is loaded, or dropped with the reason, or the file is refused.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.errors import CheckpointError
from medvid_core.weights import ImportReport, load_strictly
from medvid_medivista_sam.config import VARIANTS
from medvid_medivista_sam.network.encoder import SAM_MEAN, SAM_STD
from medvid_medivista_sam.network.layers import resized_positions
from medvid_medivista_sam.network.model import MediViSTA

ENCODER = "image_encoder."

Shape = tuple[int, ...]
Rename = tuple[str, str | Callable[[re.Match[str]], str]]

_MLP: Rename = (r"^(image_encoder\.blocks\.\d+\.mlp)\.lin", r"\1.fc")

OWN_MASKS: Mapping[str, str] = {
    "mask_decoder.mask_tokens.*": "belongs to SAM's own masks, which are not the classes here",
    "mask_decoder.output_hypernetworks_mlps.*": "belongs to SAM's own masks, which are not the classes here",
}
"""Keys of SAM that are never loaded, though the model has some of the same name."""

QUALITY: Mapping[str, str] = {
    "mask_decoder.iou_prediction_head.*": "estimates the quality of a mask, which nothing reads",
}

WITHOUT_HOME: Mapping[str, str] = {
    "image_encoder.blocks.*.attn.rel_pos_?": "the blocks have no relative positions",
    "image_encoder.pos_embed": "the encoder has sinusoidal positions instead",
    "image_encoder.patch_embed.*": "the encoder has a convolutional stem instead",
    "image_encoder.neck.*": "the encoder ends in a convolution of its own",
    "mask_decoder.output_upscaling.*": "the way up to pixels is another",
}
"""Keys of SAM for which the model may have no place, depending on its wiring."""

EARLIER_BLOCKS = "the published code, and so model.wiring=released, keeps the last block's result alone"

NOT_IN_SAM = (
    "image_encoder.stem.*",
    "image_encoder.out_conv.*",
    "image_encoder.branch.*",
    "image_encoder.factors.*",
    "image_encoder.blocks.*.temporal*",
    "image_encoder.blocks.*.cross*",
    "image_encoder.blocks.*.adapter*",
    "image_encoder.blocks.*.cores*",
    "mask_decoder.up_path.*",
    "mask_decoder.mask_tokens.*",
    "mask_decoder.output_hypernetworks_mlps.*",
    "mask_decoder.output_upscaling.[4679].*",  # SAM's has two stages, ours four
)
"""Entries of the model that a file of SAM does not hold."""


@dataclass(frozen=True, kw_only=True)
class SamReport(ImportReport):
    """What became of a file.

    Attributes:
        resized: entries that were fitted to the model, with the file's shape and the model's.
    """

    resized: tuple[tuple[str, Shape, Shape], ...] = ()

    def text(self) -> str:
        """The whole report, for people."""
        head, *lines = super().text().splitlines()
        fitted = [f"  resized, {name}: {theirs} in the file, {ours} here" for name, theirs, ours in self.resized]
        return "\n".join([head, *fitted, *lines])


def import_meta(state: Mapping[str, Tensor], model: nn.Module) -> SamReport:
    """Load SAM from Meta's files (``sam_vit_b_01ec64.pth``, and those of vit_l and vit_h).

    The parts that MediViSTA adds stay as initialised, as do the tokens and filters of its classes.

    Raises:
        CheckpointError: the file is of another variant, or keys are missing, unexpected or of another shape; the model
            is unchanged.
    """
    hint = "Is it a file of SAM as Meta publishes it? model.variant must name its size."
    dropped = {**OWN_MASKS, **QUALITY}
    return _load(state, model, "Meta SAM", [_MLP], dropped, WITHOUT_HOME, NOT_IN_SAM, hint)


def import_timm(state: Mapping[str, Tensor], model: nn.Module) -> SamReport:
    """Load SAM's image encoder from timm's weights (``samvit_base_patch16.sa1b`` and its kin).

    Such files have neither prompt encoder nor mask decoder: both stay as initialised.

    Raises:
        CheckpointError: as `import_meta`.
    """
    hint = "Is it timm's samvit_base_patch16, samvit_large_patch16 or samvit_huge_patch16? model.variant must fit."
    fresh = (*NOT_IN_SAM, "prompt_encoder.*", "mask_decoder.*")
    without_home = {**WITHOUT_HOME, "image_encoder.head.*": "timm's classifier"}
    inside = {ENCODER + key: value for key, value in state.items()}
    return _load(inside, model, "timm SAM", [], {}, without_home, fresh, hint)


TRANSFORMERS: Sequence[Rename] = (
    (r"^vision_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm"),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^vision_encoder\.pos_embed$", "image_encoder.pos_embed"),
    _MLP,
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (
        r"^(prompt_encoder\.shared_embedding|shared_image_embedding)\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^(mask_decoder\.transformer\..*)layer_norm", r"\1norm"),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
)


def import_hf(state: Mapping[str, Tensor], model: nn.Module) -> SamReport:
    """Load SAM from the weights of transformers' ``SamModel`` (``facebook/sam-vit-base`` and its kin).

    Raises:
        CheckpointError: as `import_meta`.
    """
    hint = "Is it the model.safetensors of transformers' SamModel? model.variant must name its size."
    renamed = {_renamed(key, TRANSFORMERS): value for key, value in state.items()}
    dropped = {**OWN_MASKS, **QUALITY}
    return _load(renamed, model, "transformers SAM", [], dropped, WITHOUT_HOME, NOT_IN_SAM, hint)


_UP = r"^mask_decoder\.up(\d)\."
_LEVEL = r"mask_decoder.up_path.levels.\1."

FIRST_VERSION: Sequence[Rename] = (
    _MLP,
    (r"^image_encoder\.inc\.double_conv\.", "image_encoder.stem.levels.0."),
    (r"^image_encoder\.down(\d)\.maxpool_conv\.1\.double_conv\.", r"image_encoder.stem.levels.\1."),
    (r"^(image_encoder\.blocks\.\d+)\.temporal_norm1\.", r"\1.temporal_norm."),
    (r"^(image_encoder\.blocks\.\d+)\.cross_frame_attention\.", r"\1.cross_attn."),
    (r"^(image_encoder\.blocks\.\d+)\.MLP_Adapter\.D_fc", r"\1.adapter.fc"),
    (_UP + r"MHCA\.(query|key|value)\.weight$", _LEVEL + r"attention.\2"),
    (_UP + r"MHCA\.Yconv\.", _LEVEL + "attention.deep_in."),
    (_UP + r"MHCA\.conv\.", _LEVEL + "attention.gate."),
    # behind a pooling or resizing layer, which has no number here
    (_UP + r"MHCA\.Sconv\.(\d)\.", lambda m: f"mask_decoder.up_path.levels.{m[1]}.attention.fine_in.{int(m[2]) - 1}."),
    (
        _UP + r"MHCA\.Yconv2\.(\d)\.",
        lambda m: f"mask_decoder.up_path.levels.{m[1]}.attention.deep_out.{int(m[2]) - 1}.",
    ),
    (_UP + r"conv\.", _LEVEL + "merge."),
    (r"^mask_decoder\.ch_adjust\.", "mask_decoder.up_path.adjust."),
    (r"^mask_decoder\.ch_adjust1\.", "mask_decoder.up_path.final."),
)

FIRST_VERSION_DEAD: Mapping[str, str] = {
    "image_encoder.pos_embed": "never used by the published code",
    "image_encoder.patch_embed.*": "never used by the published code",
    "image_encoder.neck.*": "never used by the published code",
    "image_encoder.blocks.*.cross_frame_attention.*": "never used by the published code",
    "mask_decoder.up3.*": "never used by the published code",
    "*.penc.inv_freq": "positions are computed",
    "image_encoder.blocks.*.temporal_*": "model.temporal is off",
    "image_encoder.blocks.*.MLP_Adapter.*": "model.adapter is off",
    "mask_decoder.up?.*": "model.up_path is another",
    "mask_decoder.ch_adjust*": "model.up_path is another",
}


def import_v1(state: Mapping[str, Tensor], model: nn.Module) -> SamReport:
    """Load the first version's state dict, for ``wiring=released`` or ``wiring=paper``.

    With ``released`` the network computes what the published code does. With ``paper`` all blocks are loaded, of which
    the published code trains and uses only the last.

    Raises:
        CheckpointError: the model is of another wiring, the file of another variant or number of classes, or keys are
            missing, unexpected or of another shape; the model is unchanged.
    """
    config = _medivista(model).config
    if config.wiring == "fusion":
        raise CheckpointError("Weights of the first version need model.wiring=released or model.wiring=paper.")
    fresh = ["image_encoder.blocks.*.cross_norm.*", "image_encoder.blocks.*.attn.rel_pos_?"]
    if config.up_path == "sam":
        fresh.append("mask_decoder.output_upscaling.*")
    hint = "The output must have as many classes as the file (mask_tokens), and model.variant its size."
    name = "MediViSTA-SAM, first version"
    return _load(state, model, name, FIRST_VERSION, QUALITY, FIRST_VERSION_DEAD, fresh, hint)


SECOND_VERSION: Sequence[Rename] = (
    _MLP,
    (r"^image_encoder\.Conv\.conv\.", "image_encoder.branch.conv."),
    (r"^image_encoder\.msag\.pointwiseConv\.", "image_encoder.branch.gate.point."),
    (r"^image_encoder\.msag\.ordinaryConv\.", "image_encoder.branch.gate.plain."),
    (r"^image_encoder\.msag\.dilationConv\.", "image_encoder.branch.gate.dilated."),
    (r"^image_encoder\.msag\.voteConv\.", "image_encoder.branch.gate.vote."),
    (r"^image_encoder\.cnn_embed\.downs\.(\d)\.maxpool_conv\.", r"image_encoder.branch.embed.\1."),
    (r"^(image_encoder\.blocks\.\d+)\.Space_Adapter\.", r"\1.cross.attention."),
    (r"^(image_encoder\.blocks\.\d+)\.refine_Adapter\.conv\.", r"\1.cross.refine."),
    (r"^(image_encoder\.blocks\.\d+)\.Temporal_Adapter\.", r"\1.temporal."),
)

SECOND_VERSION_DEAD: Mapping[str, str] = {
    "image_encoder.blocks.*.Space_Adapter.*": "used in global blocks alone, with model.cross_branch",
    "image_encoder.blocks.*.refine_Adapter.*": "used between global blocks alone, with model.cross_branch",
    "image_encoder.blocks.*.Temporal_Adapter.*": "model.temporal is off",
    "image_encoder.Conv.*": "model.cross_branch is off",
    "image_encoder.msag.*": "model.cross_branch is off",
    "image_encoder.cnn_embed.*": "model.cross_branch is off",
}


def import_v2(state: Mapping[str, Tensor], model: nn.Module) -> SamReport:
    """Load the second version's state dict, for ``wiring=fusion``; what is not published of it stays as initialised.

    Set ``model.grid`` to the file's (16 for frames of 256 pixels) to keep its table of positions as it is.

    Raises:
        CheckpointError: as `import_v1`.
    """
    if _medivista(model).config.wiring != "fusion":
        raise CheckpointError("Weights of the second version need model.wiring=fusion.")
    fresh = ("image_encoder.branch.detail.*", "image_encoder.factors.*", "image_encoder.blocks.*.cores.*")
    hint = "The output must have as many classes as the file (mask_tokens), and model.variant its size."
    return _load(state, model, "MediViSTA, second version", SECOND_VERSION, QUALITY, SECOND_VERSION_DEAD, fresh, hint)


def _load(
    state: Mapping[str, Tensor],
    model: nn.Module,
    source: str,
    rules: Sequence[Rename],
    dropped: Mapping[str, str],
    without_home: Mapping[str, str],
    fresh: Sequence[str],
    hint: str,
) -> SamReport:
    """Load a file of any kind.

    Args:
        state: the file.
        model: where it goes.
        source: what kind of file it is, for people.
        rules: how the file's names become the model's.
        dropped: patterns of keys that are dropped in any case, with the reason.
        without_home: the same of keys that are dropped if the model has no place for them.
        fresh: patterns of entries of the model that such files do not hold.
        hint: what to do if it does not fit.
    """
    medivista = _medivista(model)
    _check_variant(state, medivista, source)
    if medivista.config.wiring == "released":
        last = medivista.image_encoder.shape.depth - 1
        dropped = {**dropped, **{f"image_encoder.blocks.{index}.*": EARLIER_BLOCKS for index in range(last)}}
        rules = [*rules, (rf"^image_encoder\.blocks\.{last}\.", "image_encoder.blocks.0.")]
    own = model.state_dict()
    left_out: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    resized = []
    for key, value in state.items():
        reason = next((why for pattern, why in dropped.items() if fnmatch.fnmatchcase(key, pattern)), None)
        if reason is not None:
            left_out[key] = reason
            continue
        name = _renamed(key, rules)
        name = name if name in own else key  # what has no home is reported under the file's name
        kept[name] = value
        if name in own and own[name].shape != value.shape:
            kept[name] = _fitted(name, value, own[name].shape)
            resized.append((name, tuple(value.shape), tuple(own[name].shape)))
    weight, bias = (f"image_encoder.patch_embed.proj.{part}" for part in ("weight", "bias"))
    if weight in own and weight in kept and own[weight].shape[1] == 1 and kept[weight].shape[1] == 3 and bias in kept:
        kept[weight], kept[bias] = grey_patch_embedding(kept[weight], kept[bias])
    report = load_strictly(model, kept, source=source, dead=without_home, fresh=fresh, hint=hint)
    values = {field.name: getattr(report, field.name) for field in fields(report)}
    values["dropped"] = (*left_out.items(), *report.dropped)
    return SamReport(**values, resized=tuple(resized))


def grey_patch_embedding(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """SAM's patch embedding for grey frames in 0..1: exactly what it computes of the same frame in three channels.

    SAM sees (255 g - mean) / std in each channel; scale and shift become part of weight [D,1,p,p] and bias [D].
    """
    mean, std = (weight.new_tensor(values)[:, None, None] for values in (SAM_MEAN, SAM_STD))
    scaled = weight / std
    return 255 * scaled.sum(1, keepdim=True), bias - (scaled * mean).sum((1, 2, 3))


def _fitted(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Resize a table of positions; anything else is left as it is, to be refused."""
    if name == "image_encoder.pos_embed" and value.dim() == 4 and value.shape[3] == shape[3]:
        return resized_positions(value, (shape[1], shape[2]))
    if ".rel_pos_" in name and value.dim() == 2 and value.shape[1] == shape[1]:
        return F.interpolate(value.T[None], size=shape[0], mode="linear", align_corners=False)[0].T
    return value


def _renamed(key: str, rules: Sequence[Rename]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _medivista(model: nn.Module) -> MediViSTA:
    if not isinstance(model, MediViSTA):
        raise CheckpointError(f"These weights are for MediViSTA-SAM; the model is {type(model).__name__}.")
    return model


def _check_variant(state: Mapping[str, Tensor], model: MediViSTA, source: str) -> None:
    """Refuse a file of another size in one sentence, rather than key by key."""
    found = {int(m[1]) for key in state if (m := re.match(r"image_encoder\.blocks\.(\d+)\.", key))}
    norm = state.get("image_encoder.blocks.0.norm1.weight")
    if not found or norm is None:
        raise CheckpointError(f"The file holds no image encoder of the kind {source}: it has no block 0.")
    theirs, ours = (len(found), len(norm)), (model.image_encoder.shape.depth, model.image_encoder.shape.dim)
    if theirs != ours:
        names = {(variant.depth, variant.dim): name for name, variant in VARIANTS.items()}
        remedy = f"Set model.variant={names[theirs]}." if theirs in names else "No model.variant is of that size."
        raise CheckpointError(
            f"The file ({source}) has {theirs[0]} blocks of width {theirs[1]}, the model {ours[0]} of width {ours[1]}. "
            f"{remedy}"
        )
