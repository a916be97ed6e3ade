"""SegFormer's all-MLP decoder, without its classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_vivim.network.segformer import init_segformer


class Projection(nn.Module):
    """A stage's linear map to the decoder's width; holds parameters, `Decoder` applies them."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, width)


class Decoder(nn.Module):
    """Bring all stages to the grid of the first and fuse them.

    As published: project every stage to E channels, resize, concatenate (last stage first), 1x1 convolution from 4E
    to E, batch norm, ReLU, dropout. Projecting, fusing and resizing are all linear and resizing acts on each channel
    alone, so we fuse before resizing, and multiply the two weight matrices of a stage before they meet the pixels. The
    result is the same up to rounding, for a small part of the arithmetic.

    Args:
        widths: channels of each stage.
        width: E.
        dropout: of the fused features.
        map_dropout: of each projected and resized stage, in training, where a coin says so for the whole batch; this
            dropout stands between the two linear maps, which are then computed as published.
        channel_dropout: of whole channels of the fused features, after the other.
    """

    def __init__(
        self,
        widths: Sequence[int],
        width: int,
        dropout: float,
        map_dropout: float = 0.0,
        channel_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.linear_c = nn.ModuleList(Projection(channels, width) for channels in widths)
        self.linear_fuse = nn.Conv2d(len(widths) * width, width, 1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.map_dropout = map_dropout
        self.channel_dropout = nn.Dropout2d(channel_dropout)
        self.apply(init_segformer)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Features [M,C_i,h_i,w_i] of all stages -> [M,E,h_0,w_0]."""
        fused = self._with_dropped_maps(stages) if self.training and self.map_dropout else self._fused_first(stages)
        dropped = self.dropout(self.relu(self.batch_norm(fused) if self.batch_norm.training else fused))
        return cast(Tensor, self.channel_dropout(dropped))

    def _with_dropped_maps(self, stages: Sequence[Tensor]) -> Tensor:
        """In the published order: projected, resized, perhaps dropped, fused."""
        maps = []
        for x, layer in zip(stages, self.linear_c, strict=True):
            projection = cast(Projection, layer).proj
            y = F.conv2d(x, projection.weight[:, :, None, None], projection.bias)
            y = F.interpolate(y, size=stages[0].shape[2:], mode="bilinear", align_corners=False)
            maps.append(F.dropout(y, self.map_dropout) if torch.rand(()) < 0.5 else y)
        return cast(Tensor, self.linear_fuse(torch.cat(maps[::-1], 1)))

    def _fused_first(self, stages: Sequence[Tensor]) -> Tensor:
        """Fused before they are resized; in evaluation with the batch norm."""
        grid = stages[0].shape[2:]
        weights, bias = self._fused()
        fused = None
        for x, weight in zip(stages, weights, strict=True):
            y = F.conv2d(x, weight[:, :, None, None], bias if fused is None else None)
            if fused is None:
                fused = y
            else:
                fused += F.interpolate(y, size=grid, mode="bilinear", align_corners=False)
        assert fused is not None
        return fused

    def _fused(self) -> tuple[list[Tensor], Tensor]:
        """One matrix [E,C_i] for each stage, and one bias [E]; in evaluation the batch norm is part of them."""
        # the convolution sees the last stage first
        fuse = self.linear_fuse.weight.flatten(1).chunk(len(self.linear_c), dim=1)[::-1]
        projections = [cast(Projection, layer).proj for layer in self.linear_c]
        weights = [w @ p.weight for w, p in zip(fuse, projections, strict=True)]
        bias = torch.stack([w @ p.bias for w, p in zip(fuse, projections, strict=True)]).sum(0)
        norm = self.batch_norm
        if norm.training:
            return weights, bias
        scale = norm.weight * torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
        return [scale[:, None] * w for w in weights], scale * (bias - cast(Tensor, norm.running_mean)) + norm.bias
