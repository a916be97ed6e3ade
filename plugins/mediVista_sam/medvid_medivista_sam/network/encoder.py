"""The two image encoders: that of the first version (a stem and its blocks), and SAM's whole."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from timm.layers import Format, LayerNorm2d, PatchEmbed
from torch import Tensor, nn

from medvid_medivista_sam.config import PATCH, MediViSTAConfig, Variant
from medvid_medivista_sam.network.attention import Clip, temporal_kernel
from medvid_medivista_sam.network.blocks import SpatioTemporalBlock
from medvid_medivista_sam.network.fusion import Factors, FusionBlock, WaveletBranch
from medvid_medivista_sam.network.layers import conv_relu, resized_positions, run, sinusoidal
from medvid_medivista_sam.network.stem import Skips, Stem

EMBEDDING = 256
"""Channels of SAM's image embedding."""

SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)
"""What SAM's encoder expects frames of 0..255 to be normalised with, by channel."""

RELEASED_EPS, SAM_EPS = 1e-5, 1e-6
"""The first version's code has PyTorch's default in its layer norms, SAM a smaller one."""


def patch_embedding(channels: int, dim: int, grid: int, patch: int) -> nn.Module:
    """Patches to tokens: [M,C,H,W] -> [M,H/patch,W/patch,D]."""
    layer = PatchEmbed(grid * patch, patch, channels, dim, output_fmt=Format.NHWC, strict_img_size=False)
    return cast(nn.Module, layer)


class VideoEncoder(nn.Module):
    """The first version's encoder: stem, sinusoidal positions, blocks, and a convolution to the embedding.

    Its published code feeds the stem's features to every block and keeps the last one's result, so that there is one
    block here with ``wiring=released``; with ``paper`` the blocks follow one another. With ``sam_positions``, SAM's
    patch embedding and positions are added to the stem's features, and the blocks have SAM's windows and relative
    positions.
    """

    def __init__(self, config: MediViSTAConfig) -> None:
        super().__init__()
        shape = self.shape = config.shape
        released = config.wiring == "released"
        self.sam_positions = config.sam_positions and not released
        self.stem = Stem(shape.dim)
        if self.sam_positions:
            grid = config.stored_grid
            self.patch_embed = patch_embedding(1, shape.dim, grid, PATCH)
            self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, shape.dim))
        indexes = range(shape.depth - 1 if released else 0, shape.depth)
        self.blocks = nn.ModuleList(
            SpatioTemporalBlock(
                shape.dim,
                shape.heads,
                shape.window if self.sam_positions and index not in shape.global_blocks else 0,
                config.stored_grid if self.sam_positions else None,
                SAM_EPS if self.sam_positions else RELEASED_EPS,
                temporal=config.temporal,
                cross_frame=config.cross_frame and not released,
                adapter=config.adapter,
                mlp_residual=config.mlp_residual,
            )
            for index in indexes
        )
        self.out_conv = nn.Sequential(*conv_relu(shape.dim, EMBEDDING, 3))

    def forward(self, frames: Tensor, clip: Clip, checkpointing: bool = False) -> tuple[Tensor, Skips]:
        """Grey frames [M,1,H,W] in 0..1 -> embedding [M,256,H/16,W/16] and the stem's finer features."""
        x, skips = run(self.stem, checkpointing, frames)
        x = (x + sinusoidal(x)).permute(0, 2, 3, 1)
        if self.sam_positions:
            x = x + self.patch_embed(frames) + resized_positions(self.pos_embed, x.shape[1:3])
        for block in self.blocks:
            x = run(block, checkpointing, x, clip)
        return self.out_conv(x.permute(0, 3, 1, 2)), skips


class SamEncoder(nn.Module):
    """SAM's image encoder (Kirillov et al., ICCV 2023), and what the second version adds to it.

    Parameter names are timm's. Without additions it is SAM's own.

    Args:
        shape: sizes.
        grid: side of the table of positions, in tokens.
        patch: side of a patch, in pixels.
        embedding: channels of the result.
        temporal: temporal-fusion attention before every block.
        cross_branch: a convolutional branch that the global blocks look at.
        low_rank: rank of the changes of queries and values; 0: none.
    """

    def __init__(
        self,
        shape: Variant,
        grid: int,
        patch: int = PATCH,
        embedding: int = EMBEDDING,
        *,
        temporal: bool = False,
        cross_branch: bool = False,
        low_rank: int = 0,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = patch_embedding(3, shape.dim, grid, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, shape.dim))
        self.branch = WaveletBranch(shape.dim) if cross_branch else None
        self.factors = Factors(shape.dim, low_rank) if low_rank else None
        block = partial(FusionBlock, shape.dim, shape.heads, temporal=temporal, rank=low_rank)
        self.blocks = nn.ModuleList(
            block(window=0, grid=grid, cross=cross_branch, refine=index < max(shape.global_blocks))
            if index in shape.global_blocks
            else block(window=shape.window, grid=grid)
            for index in range(shape.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(shape.dim, embedding, 1, bias=False),
            LayerNorm2d(embedding),
            nn.Conv2d(embedding, embedding, 3, padding=1, bias=False),
            LayerNorm2d(embedding),
        )

    def forward(self, frames: Tensor, clip: Clip, checkpointing: bool = False) -> Tensor:
        """Grey frames [M,1,H,W] in 0..1 -> embedding [M,256,H/16,W/16]."""
        mean, std = (frames.new_tensor(values)[:, None, None] for values in (SAM_MEAN, SAM_STD))
        image = (255 * frames - mean) / std
        branch = None if self.branch is None else self.branch(image, frames, checkpointing)
        return self.encode(image, clip, branch, checkpointing)

    def encode(self, image: Tensor, clip: Clip, branch: Tensor | None = None, checkpointing: bool = False) -> Tensor:
        """Images [M,3,H,W], normalised as SAM expects, and features [M,h,w,D] of the branch -> embedding."""
        x = self.patch_embed(image)
        x = x + resized_positions(self.pos_embed, x.shape[1:3])
        kernel = temporal_kernel(clip, x)
        for block in self.blocks:
            x, branch = run(block, checkpointing, x, branch, kernel, self.factors)
        return cast(Tensor, self.neck(x.permute(0, 3, 1, 2)))
