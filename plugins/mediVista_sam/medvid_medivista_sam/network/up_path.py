"""From tokens back to pixels: attention that joins the stem's features, or SAM's transposed convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medvid_medivista_sam.network.layers import conv_relu, double_conv, full_precision, run, sinusoidal
from medvid_medivista_sam.network.stem import Skips

CHUNK = {"cpu": 2**19, "cuda": 2**26}
"""Attention weights held at a time: on a CPU they stay in its cache, which makes them faster than all at once."""


class QuerySoftmax(torch.autograd.Function):
    """Attention whose softmax runs over the queries, with memory linear in the number of tokens.

    Z = A V with A_ij = exp(s_ij) / sum_i' exp(s_i'j), s_ij = q_i . k_j / sqrt(c). Each key shares its value out among
    the queries, whatever the other keys do, so that a block of keys is computed completely by itself: the result is
    that of the whole matrix. The backward pass computes each block again. With P the transpose of A, one row a key:

        Z = sum over blocks of P^T V,  dV = P dZ,  dS = P (V dZ^T - rowsum(V dV)),  dK = dS Q,  dQ = sum of dS^T K
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Three times [M,N,c] -> [M,N,c]."""
        ctx.save_for_backward(q, k, v)
        z = torch.zeros_like(q)
        scaled = (q * q.shape[-1] ** -0.5).transpose(1, 2)
        for some, keys in _blocks(q):
            weights = (k[some, keys] @ scaled[some]).softmax(-1)
            z[some].baddbmm_(weights.transpose(1, 2), v[some, keys])
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values."""
        q, k, v = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        dq, dk, dv = torch.zeros_like(q), torch.empty_like(k), torch.empty_like(v)
        scaled = (q * scale).transpose(1, 2)
        with full_precision(q):
            for some, keys in _blocks(q):
                weights = (k[some, keys] @ scaled[some]).softmax(-1)
                dv[some, keys] = weights @ dz[some]
                mean = (v[some, keys] * dv[some, keys]).sum(-1, keepdim=True)
                ds = torch.baddbmm(-mean, v[some, keys], dz[some].transpose(1, 2)).mul_(weights)
                dk[some, keys] = ds @ q[some] * scale
                dq[some].baddbmm_(ds.transpose(1, 2), k[some, keys], alpha=scale)
        return dq, dk, dv


def _blocks(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """Frames and keys that are computed at a time."""
    frames, tokens = q.shape[:2]
    limit = CHUNK.get(q.device.type, CHUNK["cpu"])
    keys = min(tokens, max(1, limit // tokens))
    several = max(1, limit // (tokens * keys))
    for first, key in itertools.product(range(0, frames, several), range(0, tokens, keys)):
        yield slice(first, first + several), slice(key, key + keys)


def query_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention [M,N,c] whose softmax runs over the queries; in float32 whatever the precision around it."""
    with full_precision(q):
        parts = (part if part.dtype == torch.float64 else part.float() for part in (q, k, v))
        return cast(Tensor, QuerySoftmax.apply(*parts)).to(q.dtype)


def upsampled(x: Tensor) -> Tensor:
    """Twice the size, bilinear, corners on corners."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class GatedAttention(nn.Module):
    """Lets the deeper features say where the finer ones matter (multi-head cross-attention, of one head).

    Queries and keys come from the deeper level Y, values from the finer S, pooled to the same grid; what the attention
    gives weighs S. Softmax runs over the queries, as in the published code.

    Args:
        deep: channels of Y, twice those of S.
    """

    def __init__(self, deep: int) -> None:
        super().__init__()
        fine = deep // 2
        self.fine_in = nn.Sequential(*conv_relu(fine, fine, 1))
        self.deep_in = nn.Sequential(*conv_relu(deep, fine, 1))
        # applied as x @ W, so transposed against a linear layer's
        self.query, self.key, self.value = (nn.Parameter(torch.empty(fine, fine)) for _ in range(3))
        for weight in (self.query, self.key, self.value):
            nn.init.uniform_(weight, -(fine**-0.5), fine**-0.5)
        self.gate = nn.Sequential(*conv_relu(fine, fine, 1))
        self.deep_out = nn.Sequential(nn.Conv2d(deep, deep, 3, padding=1), *conv_relu(deep, fine, 1))

    def forward(self, y: Tensor, s: Tensor) -> Tensor:
        """[M,2C,h,w] and [M,C,2h,2w] -> [M,2C,2h,2w]."""
        s, y = s + sinusoidal(s), y + sinusoidal(y)
        deep = self.deep_in(y).flatten(2).transpose(1, 2)
        fine = self.fine_in(F.max_pool2d(s, 2)).flatten(2).transpose(1, 2)
        z = query_softmax(deep @ self.query, deep @ self.key, fine @ self.value)
        z = torch.unflatten(z.transpose(1, 2), 2, y.shape[2:])
        return torch.cat([upsampled(self.gate(z)) * s, self.deep_out(upsampled(y))], 1)


class UpLevel(nn.Module):
    """Doubles the resolution: gated attention and two convolutions."""

    def __init__(self, deep: int) -> None:
        super().__init__()
        self.attention = GatedAttention(deep)
        self.merge = double_conv(deep, deep // 2)

    def forward(self, y: Tensor, s: Tensor) -> Tensor:
        """[M,2C,h,w] and [M,C,2h,2w] -> [M,C,2h,2w]."""
        return cast(Tensor, self.merge(self.attention(y, s)))


class UpPath(nn.Module):
    """Image embedding and the stem's features to features of every pixel.

    Three levels join the stem's at an eighth, a quarter and half the resolution; a transposed convolution does the
    rest. (The figure has a fourth level; in the published code it is never called.)
    """

    WIDTH = 64
    channels = 8
    """Of the result."""

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.adjust = nn.Sequential(*conv_relu(embedding, self.WIDTH, 3))
        self.levels = nn.ModuleList(UpLevel(self.WIDTH >> index) for index in range(3))
        last = nn.ConvTranspose2d(self.channels, self.channels, 2, stride=2)
        self.final = nn.Sequential(last, nn.BatchNorm2d(self.channels), nn.ReLU(inplace=True))

    def forward(self, image: Tensor, skips: Skips, checkpointing: bool = False) -> Tensor:
        """[M,D,H/16,W/16] -> [M,8,H,W]."""
        x = self.adjust(image)
        for level, skip in zip(self.levels, reversed(skips), strict=True):
            x = run(level, checkpointing, x, skip)
        return cast(Tensor, run(self.final, checkpointing, x))


def transposed_convs(embedding: int, stages: int) -> nn.Sequential:
    """SAM's way up: each stage doubles the resolution, from D to D/4, D/8, ... channels.

    SAM has two stages, the second version four, so that its masks have the size of the frame.
    """
    widths = [embedding, *(embedding >> index for index in range(2, stages + 2))]
    layers: list[nn.Module] = []
    for index, (source, target) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.ConvTranspose2d(source, target, 2, stride=2))
        if index < stages - 1:
            layers.append(LayerNorm2d(target))
        layers.append(nn.GELU())
    return nn.Sequential(*layers)
