"""Fixtures computed by the original code, and how far this code is from them.

The tests assert the rows, and as a script this prints their table, from the repository:
``python plugins/mediVista_sam/tests/golden.py > benchmarks/results/parity_medivista_sam.md``. The fixtures' folder lies
beside the repository; where it is absent nothing can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import get_rel_pos
from torch import Tensor, nn

from medvid_core.specs import OutputSpec
from medvid_core.testing.parity import Fixtures, Row, compare, part, print_table, read_tensors, read_values, relative
from medvid_medivista_sam.config import MediViSTAConfig, Variant
from medvid_medivista_sam.importer import FIRST_VERSION, SECOND_VERSION, _fitted, _renamed, import_meta, import_v1
from medvid_medivista_sam.network import MediViSTA, build
from medvid_medivista_sam.network.attention import Clip, TemporalFusionAttention, by_head, temporal_kernel
from medvid_medivista_sam.network.blocks import SpatioTemporalBlock
from medvid_medivista_sam.network.decoder import MaskDecoder
from medvid_medivista_sam.network.encoder import SAM_MEAN, SAM_STD, SamEncoder
from medvid_medivista_sam.network.fusion import FusionBlock, WaveletBranch
from medvid_medivista_sam.network.layers import MLP, resized_positions, sinusoidal
from medvid_medivista_sam.network.model import min_max
from medvid_medivista_sam.network.prompt_encoder import PromptEncoder
from medvid_medivista_sam.network.up_path import UpLevel, transposed_convs

FOLDER = Path(__file__).resolve().parents[3].parent / "shared" / "golden" / "medivista_sam"

GRADIENT = 1e-4
"""Largest error of a parameter's gradient, of the L2 norm of the tensor."""

FOUR = (OutputSpec(name="mask", task="segmentation", classes=("background", "cavity", "wall", "atrium")),)

read_json = partial(read_values, FOLDER)


@dataclass(frozen=True)
class Fixture:
    """Tensors of a fixture, and its own tolerance."""

    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    about: dict[str, Any]

    def row(self, name: str, got: Tensor) -> Row:
        return compare(name, got, self.outputs[name], **self.about["suggested_tolerance"])


def read(name: str) -> Fixture:
    tensors = read_tensors(FOLDER, name)
    weights = {key: x.float() if x.is_floating_point() else x for key, x in part(tensors, "w.").items()}
    return Fixture(weights, part(tensors, "in."), part(tensors, "out."), read_json(name))


def renamed(weights: Mapping[str, Tensor], rules: Any, prefix: str = "") -> dict[str, Tensor]:
    """Weights of a part under our names; `prefix` is where it lies in the whole, in the original."""
    return {_renamed(prefix + key, rules): value for key, value in weights.items()}


# the first version -------------------------------------------------------------------------------------------------


def medivista(**config: Any) -> MediViSTA:
    """The tiny network with the weights of the fixture."""
    model = build(MediViSTAConfig(variant="tiny", **config), FOUR)
    import_v1(read("medivista_tiny_full").weights, model)
    return model.eval()


def frames_of_batch() -> Tensor:
    """The fixture's clips [2,3,1,64,64] as the original sees them: stretched over the whole batch."""
    video = read("medivista_tiny_full").inputs["image_bchwt"].permute(0, 4, 1, 2, 3)
    return over_batch(video)


def over_batch(video: Tensor) -> Tensor:
    """Stretch a batch as the original does: as if it were one clip."""
    return min_max(video.flatten(0, 1)[None])[0].view_as(video)


def segment(model: MediViSTA, video: Tensor) -> Tensor:
    """Logits [M,K,H,W] of frames that are stretched already."""
    return model.decode(model.encode(video, Clip(*video.shape[:2])))


def cross_entropy(logits: Tensor) -> Tensor:
    label = read("medivista_tiny_full").inputs["label_bhwt"].permute(0, 3, 1, 2).flatten(0, 1).long()
    return F.cross_entropy(logits, label)


def full_rows() -> Iterator[Row]:
    """The whole released network in evaluation mode, forward and gradients."""
    data = read("medivista_tiny_full")
    model = medivista(wiring="released")
    video = frames_of_batch()
    features = model.encode(video, Clip(2, 3))
    logits = model.decode(features)
    yield data.row("eval.image_embeddings", features.image)
    yield data.row("eval.masks", logits)
    loss = cross_entropy(logits)
    yield data.row("evalgrad.ce_loss", loss[None])
    loss.backward()
    parameters = {name: x for name, x in model.named_parameters() if x.grad is not None}
    for name, gradient in data.outputs.items():
        if name.startswith("evalgrad.") and "loss" not in name:
            yield relative(name, parameters[ours(name.removeprefix("evalgrad."))].grad, gradient, GRADIENT)
    norms = {ours(name): norm for name, norm in data.about["grad_norms"].items() if norm is not None}
    assert set(norms) == set(parameters)
    for name, norm in norms.items():
        if norm > 1e-6:  # the key biases shift all scores of a query alike: their gradient is rounding noise
            yield relative(f"grad norm {name}", parameters[name].grad.norm(), norm, GRADIENT)


def ours(name: str) -> str:
    """A name of the tiny released network under ours; only the last of its two blocks is kept."""
    return _renamed(name, FIRST_VERSION).replace("image_encoder.blocks.1.", "image_encoder.blocks.0.")


def train_rows() -> Iterator[Row]:
    """Training mode: statistics of the batch, and what becomes of the stored ones."""
    data = read("medivista_tiny_full")
    model = medivista(wiring="released").train()
    features = model.encode(frames_of_batch(), Clip(2, 3))
    logits = model.decode(features)
    tolerance = data.about["train_suggested_tolerance"]
    yield compare("train.masks", logits, data.outputs["train.masks"], tolerance["masks_atol"])
    yield data.row("train.image_embeddings", features.image)
    yield compare(
        "train.ce_loss", cross_entropy(logits)[None], data.outputs["train.ce_loss"], tolerance["ce_loss_atol"]
    )
    for name in data.outputs:
        if name.startswith("train.bn_after."):
            yield data.row(name, model.state_dict()[ours(name.removeprefix("train.bn_after."))])


def intermediate_rows() -> Iterator[Row]:
    """Every stage of the released network."""
    data = read("medivista_tiny_intermediates")
    model = medivista(wiring="released")
    seen: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module, index: int | None = None) -> None:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            seen[name] = output if index is None else output[index]
            seen[f"{name} in"] = inputs[0]

        module.register_forward_hook(hook)

    encoder, decoder = model.image_encoder, model.mask_decoder
    for index, name in enumerate(("x1", "x2", "x3", "x4", "x5_prepe")):
        watch(name, encoder.stem.levels[index])
    watch("block", encoder.blocks[0])
    watch("dec_hs", decoder.transformer, 0)
    watch("dec_src", decoder.transformer, 1)
    watch("ch_adjust", decoder.up_path.adjust)
    for index in range(3):
        watch(f"up{index}", decoder.up_path.levels[index])
    watch("upscaled", decoder.up_path)
    video = frames_of_batch()
    yield data.row("eval.preprocessed", video.permute(0, 2, 3, 4, 1))
    with torch.no_grad():
        segment(model, video)
    yield read("medivista_tiny_full").row("eval.x4", seen["x4"])
    for name in ("x1", "x2", "x3", "x5_prepe", "dec_hs", "dec_src", "ch_adjust", "up0", "up1", "up2", "upscaled"):
        yield data.row(f"eval.{name}", seen[name])
    yield data.row("eval.pe", sinusoidal(seen["x5_prepe"]).expand(6, -1, -1, -1))
    for name in ("block0_in", "block1_in"):  # the same, as the blocks do not follow one another
        yield data.row(f"eval.{name}", seen["block in"])
    first = medivista(wiring="paper", cross_frame=False, sam_positions=False).image_encoder.blocks[0]
    yield data.row("eval.block0_out", first(seen["block in"], Clip(2, 3)))  # thrown away by the original
    yield read("medivista_tiny_full").row("eval.block1_out", seen["block"])
    yield data.row("eval.dense_prompt", model.prompt_encoder.dense((4, 4)))
    yield data.row("eval.dense_pe", model.prompt_encoder.positions(4, 4))


class ReleasedCrossFrame(nn.Module):
    """What the published class computes, which its code never calls, under the signature of ours.

    Rows of queries, keys and values are laid out as (clip, frame, head) and read as (clip, head, frame); keys and
    values are rolled by one along what is taken for frames; keys are read, not transposed, as [c,HW], and multiplied
    element by element; softmax runs over the channels; the result is laid out as (place, frame) and read as (frame,
    place).
    """

    def __init__(self, qkv: nn.Linear, clips: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.clips, self.heads = qkv, clips, heads

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        frames = len(x) // self.clips
        parts = (
            by_head(part, self.heads).reshape(self.clips, self.heads, frames, x.shape[1], -1)
            for part in self.qkv(x).chunk(3, -1)
        )
        q, k, v = parts  # [b,heads,f,HW,c], though the rows are those of (b,f,heads)
        k, v = k.roll(1, 2), v.roll(1, 2)
        k = k.reshape(*k.shape[:3], k.shape[4], k.shape[3]).transpose(3, 4)
        y = (q * k * q.shape[-1] ** -0.5).softmax(-1) * v
        return y.permute(0, 3, 2, 1, 4).reshape(x.shape)


def block_rows() -> Iterator[Row]:
    """The block by itself, with layer norms that small inputs tell apart, and the intended cross-frame attention."""
    data = read("medivista_block_4x4")
    block = SpatioTemporalBlock(32, 4, cross_frame=True)
    weights = part(renamed(data.weights, FIRST_VERSION, "image_encoder.blocks.0."), "image_encoder.blocks.0.")
    missing, unexpected = block.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["cross_norm.weight", "cross_norm.bias"], [])
    cross, block.cross_frame = block.cross_attn, False
    clip = Clip(2, 3)
    seen: dict[str, Tensor] = {}
    parts = {
        "temporal_norm1_bhwTc": block.temporal_norm,
        "temporal_attn_bhwTc": block.temporal_attn,
        "temporal_fc": block.temporal_fc,
        "spatial_attn": block.attn,
        "mlp": block.mlp,
        "adapter": block.adapter,
    }
    for name, module in parts.items():
        module.register_forward_hook(lambda _, inputs, y, name=name: seen.update({name: y.detach()}))

    def by_place(x: Tensor) -> Tensor:
        """[b*T,h*w,c] as the fixture has it, [b*h*w,T,c]."""
        return x.view(2, 3, 16, 32).transpose(1, 2).flatten(0, 1)

    x = data.inputs["x"].requires_grad_()
    y = block(x, clip)
    yield data.row("y", y)
    for name in parts:
        got = by_place(seen[name]) if name.endswith("bhwTc") else seen[name].view(6, 4, 4, 32)
        yield data.row(name, got)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    yield data.row("grad_x_of_sum_y_times_linspace", x.grad)
    yield data.row("small.y", block(data.inputs["x_small"], clip))
    yield data.row("small.temporal_norm1_bhwTc", by_place(seen["temporal_norm1_bhwTc"]))
    around = torch.tensor([[2, 0, 1]] * 2)  # the reference wraps around to the last frame
    intended = cross(x.flatten(1, 2), around).view_as(x)
    yield data.row("cross_frame_intended_OWN_REFERENCE", intended)
    released = ReleasedCrossFrame(cross.qkv, 2, 4)
    yield data.row("cross_frame_attention_of_x", released(x.flatten(1, 2), around).view_as(x))


def variant_rows() -> Iterator[Row]:
    """Chained blocks, with and without a skip connection, and the published cross-frame class put in its place."""
    data = read("medivista_tiny_variants")
    video = frames_of_batch()
    base = {"sam_positions": False}
    models = {
        "stacked": medivista(**base, cross_frame=False),
        "stacked_residual": medivista(**base, cross_frame=False, mlp_residual=True),
        "stacked_cross": medivista(**base),
        "lastblock_cross": medivista(**base),
    }
    models["lastblock_cross"].image_encoder.blocks = models["lastblock_cross"].image_encoder.blocks[1:]
    for name, model in models.items():
        if name.endswith("cross"):
            for block in model.image_encoder.blocks:
                block.cross_norm = nn.Identity()  # of the figure alone
                block.cross_attn = ReleasedCrossFrame(block.cross_attn.qkv, 2, 4)
        seen: list[Tensor] = []
        model.image_encoder.blocks[-1].register_forward_hook(lambda _, inputs, y, seen=seen: seen.append(y))
        with torch.no_grad():
            features = model.encode(video, Clip(2, 3))
            yield data.row(f"{name}.block1_out", seen[0])
            yield data.row(f"{name}.image_embeddings", features.image)
            yield data.row(f"{name}.masks", model.decode(features))


def up_rows() -> Iterator[Row]:
    """A level of the way up, on a grid that is not square."""
    data = read("medivista_transformer_up")
    level = UpLevel(16)
    renamed_weights = part(renamed(data.weights, FIRST_VERSION, "mask_decoder.up0."), "mask_decoder.up_path.levels.0.")
    level.load_state_dict({key: value for key, value in renamed_weights.items() if "inv_freq" not in key})
    y, s = data.inputs["Y"], data.inputs["S"]
    yield data.row("ype", sinusoidal(y).expand_as(y))
    yield data.row("spe", sinusoidal(s).expand_as(s))
    level.eval()
    yield data.row("mhca", level.attention(y, s))
    yield data.row("y", level(y, s))
    yield data.row("y_train_mode", level.train()(y, s))


def preprocess_rows() -> Iterator[Row]:
    """The original's stretching, over the batch; clip by clip it is ours."""
    data = read("medivista_preprocess")
    video = data.inputs["image_bchwt"].permute(0, 4, 1, 2, 3)
    got = over_batch(video)
    yield data.row("preprocessed", got.permute(0, 2, 3, 4, 1))
    yield data.row("frames_bt_c_h_w", got.flatten(0, 1))


# SAM ---------------------------------------------------------------------------------------------------------------

SAM = Variant(dim=32, depth=3, heads=4, global_blocks=(1,), window=3, grid=8, decoder_mlp=64)


def new_sam() -> MediViSTA:
    """SAM of the fixture's size, of our parts, untrained."""
    return MediViSTA(
        MediViSTAConfig(wiring="fusion", temporal=False, cross_branch=False, low_rank=0),
        FOUR[0],
        SamEncoder(SAM, grid=8, patch=8, embedding=32),
        PromptEncoder(32),
        MaskDecoder(4, 32, SAM.decoder_mlp, transposed_convs(32, stages=2), 4, heads=4),
    )


def sam() -> MediViSTA:
    """The fixture's SAM, loaded by the importer."""
    model, weights = new_sam(), read("meta_sam_tiny").weights
    import_meta(weights, model)
    # whose masks the importer leaves out, as they are not classes
    decoder = part(weights, "mask_decoder.")
    model.mask_decoder.load_state_dict({k: v for k, v in decoder.items() if not k.startswith("iou_prediction_head")})
    return model.eval()


def quality(weights: Mapping[str, Tensor], dim: int) -> MLP:
    """SAM's estimate of its masks' quality, which our decoder does not have; it is read off the first token."""
    weights = part(weights, "iou_prediction_head.")
    head = MLP(dim, weights["layers.0.weight"].shape[0], weights["layers.2.weight"].shape[0], 3)
    head.load_state_dict(weights)
    return head


def sam_rows() -> Iterator[Row]:
    """Image encoder, prompt encoder and mask decoder, and SAM's whole forward pass."""
    data = read("meta_sam_tiny")
    model = sam()
    prompts, inputs = model.prompt_encoder, data.inputs
    mean, std = (torch.tensor(values)[:, None, None] for values in (SAM_MEAN, SAM_STD))
    images = [(inputs[f"image{index}"] - mean) / std for index in range(2)]
    images = torch.stack([F.pad(x, (0, 64 - x.shape[2], 0, 64 - x.shape[1])) for x in images])
    yield data.row("preprocessed", images)
    seen: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _, inputs, y: seen.append(y[0])) for b in model.image_encoder.blocks]
    with torch.no_grad():
        embeddings = model.image_encoder.encode(images, Clip(2, 1))
    for hook in hooks:
        hook.remove()
    for index, got in enumerate(seen):
        yield data.row(f"enc_block{index}", got)
    yield data.row("image_embeddings", embeddings)
    places = prompts.positions(8, 8)
    yield data.row("dense_pe", places)
    mask = inputs["mask_input"]
    size, grid = (64, 64), (8, 8)
    given = {
        "points": (prompts.sparse(size, inputs["points"], inputs["labels"]), prompts.dense(grid)),
        "boxes": (prompts.sparse(size, boxes=inputs["boxes"]), prompts.dense(grid)),
        "point_mask": (prompts.sparse(size, inputs["points2"], inputs["labels2"]), prompts.dense(grid, mask)),
        "none": (prompts.sparse(size), prompts.dense(grid)),
    }
    head = quality(part(data.weights, "mask_decoder."), 32)

    def decoded(embedding: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        decoder, several = model.mask_decoder, embedding.expand(len(sparse), -1, -1, -1)
        tokens = decoder.attend(several, places, sparse, dense)[0]
        return decoder(several, places, sparse, dense), head(tokens[:, 0])

    for name, (sparse, dense) in given.items():
        yield data.row(f"{name}.sparse", sparse)
        yield data.row(f"{name}.dense", dense.expand(len(sparse), -1, -1, -1))
        masks, iou = decoded(embeddings[:1], sparse, dense)
        yield data.row(f"{name}.low_res_multi", masks[:, 1:])
        yield data.row(f"{name}.low_res_single", masks[:, :1])
        yield data.row(f"{name}.iou_multi", iou[:, 1:])
        yield data.row(f"{name}.iou_single", iou[:, :1])
    whole = (given["points"], (prompts.sparse(size, boxes=inputs["boxes"][:1]), prompts.dense(grid, mask)))
    for index, (sparse, dense) in enumerate(whole):
        masks, iou = decoded(embeddings[index : index + 1], sparse, dense)
        yield data.row(f"forward.{index}.low_res_logits", masks[:, 1:])
        yield data.row(f"forward.{index}.iou_predictions", iou[:, 1:])
        upscaled = F.interpolate(masks[:, 1:], size, mode="bilinear", align_corners=False)
        height, width = inputs[f"image{index}"].shape[1:]
        original = data.outputs[f"forward.{index}.upscaled_logits"].shape[2:]
        upscaled = F.interpolate(upscaled[..., :height, :width], original, mode="bilinear", align_corners=False)
        yield data.row(f"forward.{index}.upscaled_logits", upscaled)
        yield compare(f"forward.{index}.masks", upscaled > 0, data.outputs[f"forward.{index}.masks"], 0.5)


def interpolation_rows() -> Iterator[Row]:
    """Positions for other grids."""
    data = read("sam_interpolation")
    yield data.row("get_rel_pos_q8_k8", get_rel_pos(8, 8, data.inputs["rel_pos_9x8"]))
    yield data.row("get_rel_pos_q4_k8", get_rel_pos(4, 8, data.outputs["rel_pos_for_q4_k8"]))
    name = "image_encoder.blocks.2.attn.rel_pos_h"
    yield data.row("load_from_pos_embed_8to4", resized_positions(data.inputs["pos_embed_1x8x8x6"], (4, 4)))
    yield data.row("load_from_rel_pos_15to7", _fitted(name, data.inputs["rel_pos_15x4"], torch.Size([7, 4])))


# the second version ------------------------------------------------------------------------------------------------


def temporal_fusion_rows() -> Iterator[Row]:
    """As in the published code: frames are summed, not averaged, and logits multiplied where they should be divided."""
    data = read("v2_temporal_fusion_attention")
    attention = TemporalFusionAttention(32)
    attention.load_state_dict(data.weights)
    x = data.inputs["x"]
    kernel = temporal_kernel(Clip(2, 5), x, normalised=False)
    yield data.row("y", attention(x.flatten(1, 2), kernel, scale=8**0.5).view_as(x))


def branch_block_rows() -> Iterator[Row]:
    """The global block with the convolutional branch; its layer norms have PyTorch's eps here, not the encoder's."""
    data = read("v2_parablock_global")
    block = FusionBlock(32, 4, window=0, grid=6, temporal=True, cross=True)
    weights = renamed(data.weights, SECOND_VERSION, "image_encoder.blocks.0.")
    block.load_state_dict(part(weights, "image_encoder.blocks.0."))
    block.temporal = None  # the fixture's pass does not call it
    block.norm1.eps = block.norm2.eps = 1e-5
    x = data.inputs["x"]
    y, branch = block(x, data.inputs["cnnx"], temporal_kernel(Clip(4, 1), x), None)
    yield data.row("y", y)
    yield data.row("cnnx_out", branch)


def branch_rows() -> Iterator[Row]:
    """The convolutional branch, from an image on."""
    data = read("v2_cnn_branch")
    branch = WaveletBranch(32)
    weights = part(renamed(data.weights, SECOND_VERSION, "image_encoder."), "image_encoder.branch.")
    missing, unexpected = branch.load_state_dict(weights, strict=False)
    assert (sorted(missing), unexpected) == (["detail.gate.bias", "detail.gate.weight"], [])
    branch.eval()
    x = branch.conv(data.inputs["x"])
    yield data.row("conv_mean_over_hw", x.mean((2, 3)))
    x = branch.gate(x)
    yield data.row("msag_mean_over_hw", x.mean((2, 3)))
    yield data.row("embed_bhwc", branch.embed(x).permute(0, 2, 3, 1))


def second_decoder_rows() -> Iterator[Row]:
    """The mask decoder with four transposed convolutions, and a token for every class."""
    data = read("v2_mask_decoder")
    weights = {key: x for key, x in data.weights.items() if not key.startswith("iou_prediction_head")}
    decoder = MaskDecoder(4, 64, 64, transposed_convs(64, stages=4), 2, heads=4)
    decoder.load_state_dict(weights)
    head = quality(data.weights, 64)
    inputs = (data.inputs["emb"], data.inputs["pe"], torch.zeros(1, 0, 64), data.inputs["dense"])
    yield data.row("masks", decoder(*inputs))
    yield data.row("iou", head(decoder.attend(*inputs)[0][:, 0]))


FIXTURES: Fixtures = {
    "medivista_tiny_full": full_rows,
    "medivista_tiny_full, training": train_rows,
    "medivista_tiny_intermediates": intermediate_rows,
    "medivista_tiny_variants": variant_rows,
    "medivista_block_4x4": block_rows,
    "medivista_transformer_up": up_rows,
    "medivista_preprocess": preprocess_rows,
    "meta_sam_tiny": sam_rows,
    "sam_interpolation": interpolation_rows,
    "v2_temporal_fusion_attention": temporal_fusion_rows,
    "v2_parablock_global": branch_block_rows,
    "v2_cnn_branch": branch_rows,
    "v2_mask_decoder": second_decoder_rows,
}


if __name__ == "__main__":
    print_table(
        "MediViSTA-SAM against the original",
        "Fixtures were computed by the original code of both versions, and by Meta's, on the same weights.",
        FIXTURES,
    )
