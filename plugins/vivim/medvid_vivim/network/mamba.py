"""Vivim's Mamba layer: the spatio-temporal mixer and a feed-forward layer that keeps detail."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.ops import SpatioTemporalMixer, depthwise_conv
from medvid_vivim.network.segformer import EPS, DropPath, on_grid

Grid = tuple[int, int, int]
"""T, h, w of a clip's tokens."""


class ClipConv(nn.Module):
    """Depth-wise 3x3x3 convolution over (t, row, column), padded with zeros in time too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(width, width, 3, padding=1, groups=width)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens [B,T*h*w,C] -> [B,T*h*w,C]."""
        weight, bias = self.dwconv.weight.squeeze(1), cast(Tensor, self.dwconv.bias)
        return depthwise_conv(torch.unflatten(tokens, 1, grid), weight, bias).flatten(1, 3)


class DetailFFN(nn.Module):
    """Feed-forward layer with a convolution over the clip and exact GELU, fourfold hidden width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.dwconv = ClipConv(4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens [B,T*h*w,C] -> [B,T*h*w,C]."""
        return cast(Tensor, self.fc2(F.gelu(self.dwconv(self.fc1(tokens), grid))))


class MambaLayer(nn.Module):
    """x + Mixer(LN x), then x + DetailFFN(LN x), over the tokens of a whole clip in (t, row, column) order."""

    def __init__(
        self,
        width: int,
        state_size: int = 16,
        conv_width: int = 4,
        expansion: int = 2,
        frames: int | None = None,
        drop_path: float = 0.0,
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.mamba = SpatioTemporalMixer(
            width, state_size, conv_width, expansion, frames=frames, scan_backend=scan_backend
        )
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = DetailFFN(width)
        self.apply(init_mamba)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,T,h,w] -> [B,C,T,h,w]."""
        grid = (x.shape[2], x.shape[3], x.shape[4])
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.drop_path(self.mamba(self.norm1(tokens), grid[0]))
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens), grid))
        return on_grid(tokens, *grid)


def init_mamba(module: nn.Module) -> None:
    """The original's start: every linear weight normal with 0.02, every linear bias zero.

    That includes the biases of the step sizes, so that Mamba's own spread of step sizes is lost and all start near
    softplus(0) = 0.69. Convolutions keep PyTorch's start, A_log and D the mixer's.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
