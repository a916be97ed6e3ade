"""The slow pathway of SlowFast (Feichtenhofer et al., ICCV 2019) under PyTorchVideo's parameter names."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from medvid_two_stream.network.stream import Head, Published, Stream, Window

SPATIAL_STRIDES = (1, 2, 2, 2)
TEMPORAL_KERNELS = (1, 1, 3, 3)

SLOW_MEAN, SLOW_STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
"""Of pictures in [0, 1] that PyTorchVideo's Kinetics weights were trained with."""


class Stem(nn.Module):
    """[B,C,T,H,W] -> [B,width,T,H/4,W/4].

    Args:
        channels: of the input.
        width: of the output.
        frames: that the convolution spans.
    """

    def __init__(self, channels: int, width: int, frames: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, width, (frames, 7, 7), (1, 2, 2), (frames // 2, 3, 3), bias=False)
        self.norm = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise and pool."""
        return F.max_pool3d(F.relu(self.norm(self.conv(x))), (1, 3, 3), (1, 2, 2), (0, 1, 1))


class Branch(nn.Module):
    """The three convolutions of a residual block: over time or none, over space with its stride, back to full width."""

    def __init__(self, source: int, inner: int, target: int, frames: int, stride: int) -> None:
        super().__init__()
        self.conv_a = nn.Conv3d(source, inner, (frames, 1, 1), padding=(frames // 2, 0, 0), bias=False)
        self.norm_a = nn.BatchNorm3d(inner)
        self.conv_b = nn.Conv3d(inner, inner, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.norm_b = nn.BatchNorm3d(inner)
        self.conv_c = nn.Conv3d(inner, target, 1, bias=False)
        self.norm_c = nn.BatchNorm3d(target)

    def forward(self, x: Tensor) -> Tensor:
        """[B,source,T,H,W] -> [B,target,T,H/stride,W/stride]."""
        x = F.relu(self.norm_a(self.conv_a(x)))
        x = F.relu(self.norm_b(self.conv_b(x)))
        return cast(Tensor, self.norm_c(self.conv_c(x)))


class Block(nn.Module):
    """A residual block; the first of a stage has a convolution in its shortcut."""

    def __init__(self, source: int, target: int, frames: int, stride: int, first: bool) -> None:
        super().__init__()
        if first:
            self.branch1_conv = nn.Conv3d(source, target, 1, (1, stride, stride), bias=False)
            self.branch1_norm = nn.BatchNorm3d(target)
        self.first = first
        self.branch2 = Branch(source, target // 4, target, frames, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B,source,T,H,W] -> [B,target,T,H/stride,W/stride]."""
        shortcut = self.branch1_norm(self.branch1_conv(x)) if self.first else x
        return F.relu(shortcut + self.branch2(x))


class Stage(nn.Module):
    """Residual blocks of one width."""

    def __init__(self, source: int, target: int, blocks: int, frames: int, stride: int) -> None:
        super().__init__()
        first = Block(source, target, frames, stride, first=True)
        rest = (Block(target, target, frames, 1, first=False) for _ in range(blocks - 1))
        self.res_blocks = nn.ModuleList([first, *rest])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks one after the other."""
        for block in self.res_blocks:
            x = block(x)
        return x


class SlowResNet(Stream):
    """SLOW 8x8 in PyTorchVideo's layout: no stride over time, convolutions over time in the last two stages.

    Args:
        channels: of the input.
        head: the classifier, for ``32 * width`` features.
        blocks: residual blocks of each stage.
        width: channels of the stem.
        scratch: whether the stem spans three frames, as in PyTorchVideo's network without published weights.
    """

    published = Published("blocks.0.conv.weight", "blocks.5.proj", "", SLOW_MEAN, SLOW_STD)
    head_name = "blocks.5"

    def __init__(
        self, channels: int, head: Head, blocks: tuple[int, ...], width: int = 64, scratch: bool = False
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        source = width
        for number, count in enumerate(blocks):
            target = 4 * width * 2**number
            stages.append(Stage(source, target, count, TEMPORAL_KERNELS[number], SPATIAL_STRIDES[number]))
            source = target
        self.blocks = nn.ModuleList([Stem(channels, width, 3 if scratch else 1), *stages, head])
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def look(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> [B,D,T,H/32,W/32]."""
        for block in self.blocks[:5]:
            x = block(x)
        return x


def head_window(scratch: bool) -> Window:
    """Return the window (frames, height, width) over which PyTorchVideo's head pools pictures of 224 pixels."""
    return (4 if scratch else 8, 7, 7)
