"""The Mix Transformer encoder of SegFormer (Xie et al., NeurIPS 2021), under Hugging Face's parameter names.

Frames are independent here: M = B*T of them form the batch. All layer norms have eps 1e-5, as the published
checkpoints are run, although their configuration says 1e-6.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.errors import ConfigError
from medvid_core.ops import depthwise_conv
from medvid_vivim.config import VivimConfig

EPS = 1e-5


class DropPath(nn.Module):
    """Stochastic depth: in training, zero a sample's residual with probability p and scale the others by 1/(1-p)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, residual: Tensor) -> Tensor:
        """[M, ...] -> [M, ...]."""
        if not self.training or self.probability == 0:
            return residual
        keep = 1 - self.probability
        kept = residual.new_empty(residual.shape[0], *[1] * (residual.dim() - 1)).bernoulli_(keep)
        return residual * (kept / keep)

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"{self.probability:.4f}"


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Probabilities rising linearly from 0 at the first block to `last` at the last."""
    return [last * index / max(1, blocks - 1) for index in range(blocks)]


def on_grid(tokens: Tensor, *grid: int) -> Tensor:
    """Lay tokens [M,L,C] out on their grid, without copying: [M,C,*grid] where the product of `grid` is L."""
    return tokens.transpose(1, 2).view(tokens.shape[0], tokens.shape[2], *grid)


class PatchEmbedding(nn.Module):
    """Overlapping patches: [M,C,H,W] -> tokens [M,h*w,C'] in raster order, h and w."""

    def __init__(self, in_channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2)
        self.layer_norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Embed frames."""
        x = self.proj(x)
        height, width = x.shape[2:]
        return self.layer_norm(x.flatten(2).transpose(1, 2)), height, width


class EfficientSelfAttention(nn.Module):
    """Attention whose keys and values come from the grid reduced by a strided convolution."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.layer_norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens [M,h*w,C] -> [M,h*w,C]."""
        context = tokens
        if self.reduction > 1:
            if min(height, width) < self.reduction:
                raise ConfigError(
                    f"Frames are too small: a grid of {height}x{width} cannot be reduced by {self.reduction} "
                    "(model.reductions). Frames of at least 32x32 pixels work with the default ones (clip.size)."
                )
            grid = on_grid(tokens, height, width)
            context = self.layer_norm(self.sr(grid).flatten(2).transpose(1, 2))
        q, k, v = (
            self._by_head(layer(x)) for layer, x in ((self.query, tokens), (self.key, context), (self.value, context))
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def _by_head(self, x: Tensor) -> Tensor:
        """[M,L,C] -> [M,heads,L,C/heads]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention and its output projection, named as in the checkpoints."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        # the checkpoints call it `self`, which cannot be written as an attribute
        self.add_module("self", EfficientSelfAttention(width, heads, reduction))
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens [M,h*w,C] -> [M,h*w,C]."""
        return cast(Tensor, self.output["dense"](self.get_submodule("self")(tokens, height, width)))


class FrameConv(nn.Module):
    """Depth-wise 3x3 convolution of tokens laid out on their grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens [M,h*w,C] -> [M,h*w,C]."""
        weight, bias = self.dwconv.weight, cast(Tensor, self.dwconv.bias)
        return depthwise_conv(torch.unflatten(tokens, 1, (1, height, width)), weight, bias).flatten(1, 3)


class MixFFN(nn.Module):
    """Feed-forward layer with a depth-wise convolution and exact GELU, fourfold hidden width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense1 = nn.Linear(width, 4 * width)
        self.dwconv = FrameConv(4 * width)
        self.dense2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens [M,h*w,C] -> [M,h*w,C]."""
        return cast(Tensor, self.dense2(F.gelu(self.dwconv(self.dense1(tokens), height, width))))


class SegformerLayer(nn.Module):
    """x + Attention(LN x), then x + MixFFN(LN x); drop-path acts frame by frame."""

    def __init__(self, width: int, heads: int, reduction: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.layer_norm_1 = nn.LayerNorm(width, eps=EPS)
        self.attention = Attention(width, heads, reduction)
        self.drop_path = DropPath(drop_path)
        self.layer_norm_2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MixFFN(width)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens [M,h*w,C] -> [M,h*w,C]."""
        tokens = tokens + self.drop_path(self.attention(self.layer_norm_1(tokens), height, width))
        return cast(Tensor, tokens + self.drop_path(self.mlp(self.layer_norm_2(tokens), height, width)))


class MixTransformer(nn.Module):
    """Patch embeddings and blocks of the four stages. Vivim puts its Mamba layers between them.

    SegFormer's norm at the end of a stage is left out, as in the original Vivim.
    """

    def __init__(self, config: VivimConfig) -> None:
        super().__init__()
        widths, depths = config.stage_widths, config.stage_depths
        inputs = (config.in_channels, *widths[:-1])
        shapes = ((7, 4), (3, 2), (3, 2), (3, 2))  # kernel and stride
        self.patch_embeddings = nn.ModuleList(
            PatchEmbedding(c, width, *shape) for c, width, shape in zip(inputs, widths, shapes, strict=True)
        )
        rates = iter(drop_path_rates(config.encoder_drop_path, sum(depths)))
        self.block = nn.ModuleList(
            nn.ModuleList(SegformerLayer(width, heads, reduction, next(rates)) for _ in range(depth))
            for width, heads, reduction, depth in zip(widths, config.heads, config.reductions, depths, strict=True)
        )
        self.apply(init_segformer)

    def forward(self, x: Tensor, stage: int) -> Tensor:
        """One stage: [M,C,H,W] -> [M,C',h,w]."""
        tokens, height, width = self.patch_embeddings[stage](x)
        for layer in cast(nn.ModuleList, self.block[stage]):
            tokens = layer(tokens, height, width)
        return on_grid(tokens, height, width)


def init_segformer(module: nn.Module) -> None:
    """SegFormer's own start: linear weights normal with 0.02, convolutions with sqrt(2 / fan out), biases zero.

    The original Vivim never trains from this: it always loads published weights.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
    if module.bias is not None:
        with torch.no_grad():
            module.bias.zero_()
