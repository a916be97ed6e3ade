"""The U-shaped convolutional stem: frames to tokens, and finer features for the way back up."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from medvid_medivista_sam.network.layers import double_conv

WIDTHS = (4, 8, 16, 32)
"""Channels at full, half, quarter and eighth resolution."""


class Skips(NamedTuple):
    """Features at half, quarter and eighth resolution: [M,8,H/2,W/2], [M,16,H/4,W/4], [M,32,H/8,W/8]."""

    half: Tensor
    quarter: Tensor
    eighth: Tensor


class Stem(nn.Module):
    """Five times two convolutions, with max pooling between; the last level has the tokens' D channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = (1, *WIDTHS, dim)
        self.levels = nn.ModuleList(double_conv(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, frames: Tensor) -> tuple[Tensor, Skips]:
        """[M,1,H,W] -> [M,D,H/16,W/16] and the finer features."""
        levels = []
        x = frames
        for index, level in enumerate(self.levels):
            x = level(F.max_pool2d(x, 2) if index else x)
            levels.append(x)
        return x, Skips(*levels[1:4])
