"""Encoder blocks: SAM's attention step, and the block of the first version around it."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer_sam import window_partition, window_unpartition
from torch import Tensor, nn

from medvid_medivista_sam.network.attention import Change, Clip, CrossFrameAttention, FrameAttention, TemporalAttention

MLP_RATIO = 4
ADAPTER_SCALE = 0.5
ADAPTER_RATIO = 4


class SamBlock(nn.Module):
    """A block of SAM's encoder, of timm's parts and under its parameter names.

    Args:
        dim: channels D.
        heads: attention heads.
        window: side of the attention's windows in tokens; 0: the whole frame.
        grid: side of the grid the relative positions are stored for; None: there are none.
        eps: of the layer norms; SAM's is 1e-6.
    """

    def __init__(self, dim: int, heads: int, window: int = 0, grid: int | None = None, eps: float = 1e-6) -> None:
        super().__init__()
        self.window = window
        side = window or grid
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = FrameAttention(dim, heads, use_rel_pos=grid is not None, input_size=(side, side) if side else None)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, MLP_RATIO * dim)

    def attention(self, x: Tensor, change: Change | None = None) -> Tensor:
        """Attention of normalised tokens [M,h,w,D] -> [M,h,w,D], in windows where the block has them.

        A frame that does not fill its windows is padded with zeros, which take part in the attention, as in SAM.
        `change` is that of `FrameAttention`.
        """
        if not self.window:
            return cast(Tensor, self.attn(x, change))
        windows, padded = window_partition(x, self.window)
        return cast(Tensor, window_unpartition(self.attn(windows, change), self.window, x.shape[1:3], padded))


class Adapter(nn.Module):
    """Bottleneck D -> D/4 -> D with GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // ADAPTER_RATIO)
        self.fc2 = nn.Linear(dim // ADAPTER_RATIO, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,D]."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class SpatioTemporalBlock(SamBlock):
    """The first version's block: across frames, then within them, then a feed-forward layer with an adapter beside it.

    ``x += across(x)``; ``x += attention(norm1(x))``; out = ``mlp(norm2(x)) + 0.5 adapter(x)``, where the adapter sees
    x as it is, and without a skip connection around the last line, in the figure as in the code.

    ``across`` is temporal attention of the norm of x and a linear layer; in the figure, cross-frame attention of
    another norm of that follows.

    Args:
        dim: channels D.
        heads: attention heads.
        window: side of the attention's windows in tokens; 0: the whole frame.
        grid: side of the grid the relative positions are stored for; None: there are none.
        eps: of the layer norms.
        temporal: whether there is temporal attention.
        cross_frame: whether there is cross-frame attention.
        adapter: whether there is an adapter.
        mlp_residual: whether there is a skip connection around the feed-forward layer.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int = 0,
        grid: int | None = None,
        eps: float = 1e-5,
        *,
        temporal: bool = True,
        cross_frame: bool = False,
        adapter: bool = True,
        mlp_residual: bool = False,
    ) -> None:
        super().__init__(dim, heads, window, grid, eps)
        self.temporal, self.cross_frame = temporal, cross_frame
        self.mlp_residual = mlp_residual
        if temporal:
            self.temporal_norm = nn.LayerNorm(dim, eps=eps)
            self.temporal_attn = TemporalAttention(dim, heads)
            self.temporal_fc = nn.Linear(dim, dim)
        if cross_frame:
            self.cross_norm = nn.LayerNorm(dim, eps=eps)
            self.cross_attn = CrossFrameAttention(dim, heads)
        self.adapter = Adapter(dim) if adapter else None

    def across(self, x: Tensor, clip: Clip) -> Tensor:
        """What frames tell one another: tokens [M,N,D] -> [M,N,D]."""
        if self.temporal:
            x = self.temporal_fc(self.temporal_attn(self.temporal_norm(x), clip))
        if self.cross_frame:
            x = self.cross_attn(self.cross_norm(x), clip.previous(x.device))
        return x

    def forward(self, x: Tensor, clip: Clip) -> Tensor:
        """[M,h,w,D] -> [M,h,w,D]."""
        if self.temporal or self.cross_frame:
            x = x + self.across(x.flatten(1, 2), clip).view_as(x)
        x = x + self.attention(self.norm1(x))
        y = self.mlp(self.norm2(x))
        if self.adapter is not None:
            y = y + ADAPTER_SCALE * self.adapter(x)
        return cast(Tensor, x + y if self.mlp_residual else y)
