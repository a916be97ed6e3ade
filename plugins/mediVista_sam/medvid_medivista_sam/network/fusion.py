"""What the second version (IEEE JBHI 2025) adds to SAM's encoder: a wavelet branch, low-rank factors, its block.

Every addition gives 0 until it is trained, so that the encoder starts as SAM's.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from medvid_medivista_sam.network.attention import CrossAttention, TemporalFusionAttention
from medvid_medivista_sam.network.blocks import SamBlock
from medvid_medivista_sam.network.layers import conv_norm, conv_relu, run

BRANCH_WIDTHS = (64, 128, 256, 512)
"""Channels of the convolutional branch at full, half, quarter and eighth resolution."""

DROPOUT = 0.1


def stretched(x: Tensor) -> Tensor:
    """[M,1,h,w] stretched to 0..1, frame by frame; a constant becomes 0."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return (x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny)


def wavelet_detail(frames: Tensor) -> Tensor:
    """Fine detail of grey frames [M,1,H,W] in 0..1: the three detail bands of the Haar transform, summed.

    Each band is stretched to 0..1, then their sum, resized to the frame (bilinear). The published code swaps height and
    width in that last step.
    """
    a, b, c, d = (frames[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1))
    bands = (a + b - c - d, a - b + c - d, a - b - c + d)
    total = torch.stack([stretched(band / 2) for band in bands]).sum(0)
    return stretched(F.interpolate(total, size=frames.shape[2:], mode="bilinear", align_corners=False))


class DetailGate(nn.Module):
    """Adds wavelet detail to the image where a gate lets it: image + sigmoid(conv [image, detail]) * detail.

    The second version names such a block and does not publish it; this one is ours.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels + 1, 1, 3, padding=1)

    def forward(self, image: Tensor, detail: Tensor) -> Tensor:
        """[M,3,H,W] and [M,1,H,W] -> [M,3,H,W]."""
        return image + torch.sigmoid(self.gate(torch.cat([image, detail], 1))) * detail


class MultiScaleGate(nn.Module):
    """Weighs features by what three convolutions (1x1, 3x3, dilated 3x3) vote for, in 0..1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.point = nn.Sequential(*conv_norm(width, width, 1))
        self.plain = nn.Sequential(*conv_norm(width, width, 3))
        self.dilated = nn.Sequential(*conv_norm(width, width, 3, dilation=2))
        self.vote = nn.Sequential(*conv_norm(3 * width, width, 1))

    def forward(self, x: Tensor, checkpointing: bool = False) -> Tensor:
        """[M,C,H,W] -> [M,C,H,W]."""
        scales = torch.cat([run(part, checkpointing, x) for part in (self.point, self.plain, self.dilated)], 1)
        return cast(Tensor, x * self.vote(F.relu(scales, inplace=True)).sigmoid())


class WaveletBranch(nn.Module):
    """Convolutional features of image and wavelet detail, on the grid of the encoder's tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.detail = DetailGate()
        first = BRANCH_WIDTHS[0]
        self.conv = nn.Sequential(*conv_relu(3, first, 3), *conv_relu(first, first, 3))
        self.gate = MultiScaleGate(first)
        widths = (*BRANCH_WIDTHS, dim)
        self.embed = nn.Sequential(
            *(
                nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(a, b, 3, padding=1, bias=False), LayerNorm2d(b), nn.GELU())
                for a, b in itertools.pairwise(widths)
            )
        )

    def forward(self, image: Tensor, grey: Tensor, checkpointing: bool = False) -> Tensor:
        """[M,3,H,W] and [M,1,H,W] -> [M,H/16,W/16,D]."""
        x = self.detail(image, wavelet_detail(grey))
        # piece by piece: at full resolution they are the largest of the network
        x = run(self.conv, checkpointing, x)
        x = run(self.gate, checkpointing, x, checkpointing)
        return cast(Tensor, run(self.embed, checkpointing, x)).permute(0, 2, 3, 1)


class CrossBranch(nn.Module):
    """Attention of tokens to the convolutional branch, and the branch's next layer.

    Args:
        dim: channels D.
        heads: attention heads.
        refine: whether a block further on needs the branch again.
    """

    def __init__(self, dim: int, heads: int, refine: bool = True) -> None:
        super().__init__()
        self.attention = CrossAttention(dim, heads)
        self.attention.start_silent()
        self.refine: nn.Sequential | None = None
        if refine:
            self.refine = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, bias=False), LayerNorm2d(dim), nn.GELU())

    def forward(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and branch, both [M,h,w,D] -> what is added to the tokens, and the branch as it goes on."""
        y = self.attention(x.flatten(1, 2), branch.flatten(1, 2)).view_as(x)
        if self.refine is not None:
            branch = self.refine(branch.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y, branch


class Factors(nn.Module):
    """The outer factors U and V of all blocks' low-rank changes (Jie and Deng, FacT, AAAI 2023). V starts at 0."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.u = nn.Linear(dim, rank, bias=False)
        self.v = nn.Linear(rank, dim, bias=False)
        nn.init.zeros_(self.v.weight)


class Cores(nn.Module):
    """A block's own inner factors: queries and values change by V S U x, with a core S for each."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.q = nn.Linear(rank, rank, bias=False)
        self.v = nn.Linear(rank, rank, bias=False)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, factors: Factors) -> tuple[Tensor, Tensor]:
        """Tokens [M,N,D] -> changes of queries and values [M,N,D]."""
        inner = factors.u(x)
        return factors.v(self.dropout(self.q(inner))), factors.v(self.dropout(self.v(inner)))


class FusionBlock(SamBlock):
    """SAM's block, with temporal-fusion attention before it, and in global blocks the convolutional branch inside it.

    ``x += temporal(LN x)``; n = norm1(x), to which ``cross(n, branch)`` is added; ``x += attention(n)``;
    ``x += mlp(norm2(x))``. The norm LN in front of temporal-fusion attention, without parameters, is ours: how that is
    called is not published.

    Args:
        dim: channels D.
        heads: attention heads.
        window: side of the attention's windows in tokens; 0: the whole frame.
        grid: side of the grid the relative positions are stored for.
        temporal: whether there is temporal-fusion attention.
        cross: whether tokens attend to the convolutional branch.
        refine: whether a block further on needs the branch again.
        rank: of the low-rank changes of queries and values; 0: none.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        grid: int,
        *,
        temporal: bool = False,
        cross: bool = False,
        refine: bool = True,
        rank: int = 0,
    ) -> None:
        super().__init__(dim, heads, window, grid)
        self.temporal = TemporalFusionAttention(dim) if temporal else None
        if self.temporal is not None:
            self.temporal.start_silent()
        self.cross = CrossBranch(dim, heads, refine) if cross else None
        self.cores = Cores(rank) if rank else None

    def forward(
        self, x: Tensor, branch: Tensor | None, kernel: Tensor, factors: Factors | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the block.

        Args:
            x: tokens [M,h,w,D].
            branch: convolutional features [M,h,w,D], where there are any.
            kernel: weights of frames in frames [B or 1,T,T].
            factors: the outer low-rank factors, where there are any.

        Returns:
            Tokens [M,h,w,D], and the branch as it goes on.
        """
        if self.temporal is not None:
            places = F.layer_norm(x, x.shape[-1:], eps=1e-6).flatten(1, 2)
            x = x + self.temporal(places, kernel).view_as(x)
        y = self.norm1(x)
        if self.cross is not None and branch is not None:
            more, branch = self.cross(y, branch)
            y = y + more
        cores = self.cores
        x = x + self.attention(y, None if cores is None or factors is None else lambda t: cores(t, factors))
        return x + self.mlp(self.norm2(x)), branch
