"""SAM's prompt encoder (Kirillov et al., ICCV 2023): points, boxes and masks, under Meta's parameter names."""

from __future__ import annotations

import math
from typing import cast

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from medvid_medivista_sam.network.layers import full_precision

MASK_CHANNELS = 16

NO_POINT = -1
"""Label of a token that stands for no point; those of points are 0 (outside) and 1 (inside)."""

UPPER_LEFT, LOWER_RIGHT = 2, 3
"""Numbers of the embeddings of a box's corners; those of points have their label's."""


class FourierPositions(nn.Module):
    """Random Fourier features of places (Tancik et al., NeurIPS 2020): sin and cos of 2 pi (2x - 1) G."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, dim // 2))

    def forward(self, places: Tensor) -> Tensor:
        """(x, y) in 0..1, [...,2] -> [...,D]; in float32 whatever the precision around it."""
        with full_precision(places):
            matrix = self.get_buffer("positional_encoding_gaussian_matrix").float()
            angle = 2 * math.pi * ((2 * places.float() - 1) @ matrix)
            return torch.cat([angle.sin(), angle.cos()], -1)

    def grid(self, height: int, width: int) -> Tensor:
        """Features of the centres of a grid's cells, [1,D,height,width]."""
        device = self.get_buffer("positional_encoding_gaussian_matrix").device
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
        return cast(Tensor, self(places)).permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """Points and boxes become sparse tokens, a mask a dense map that is added to the image embedding."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.pe_layer = FourierPositions(dim)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, MASK_CHANNELS // 4, 2, stride=2),
            LayerNorm2d(MASK_CHANNELS // 4),
            nn.GELU(),
            nn.Conv2d(MASK_CHANNELS // 4, MASK_CHANNELS, 2, stride=2),
            LayerNorm2d(MASK_CHANNELS),
            nn.GELU(),
            nn.Conv2d(MASK_CHANNELS, dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def positions(self, height: int, width: int) -> Tensor:
        """Positions of the image embedding's cells, [1,D,height,width]."""
        return self.pe_layer.grid(height, width)

    def sparse(
        self,
        size: tuple[int, int],
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Tensor:
        """Tokens of points and boxes.

        Args:
            size: height and width of the frame in pixels.
            points: [P,N,2], x and y in pixels.
            labels: of the points [P,N]: 1 inside, 0 outside, -1 no point.
            boxes: [P,4], x0, y0, x1, y1 in pixels.

        Returns:
            [P,N',D]: N tokens of points, and one more where there is no box; two of the box. Without either [1,0,D].
        """
        found = []
        if points is not None and labels is not None:
            if boxes is None:  # SAM always sees a token more than points, be it a box's or none
                points = torch.cat([points, points.new_zeros(len(points), 1, 2)], 1)
                labels = torch.cat([labels, labels.new_full((len(labels), 1), NO_POINT)], 1)
            found.append(self._points(size, points, labels))
        if boxes is not None:
            corners = self._places(size, torch.unflatten(boxes, -1, (2, 2)))
            found.append(corners + torch.cat([self._embedding(kind) for kind in (UPPER_LEFT, LOWER_RIGHT)]))
        return torch.cat(found, 1) if found else self.no_mask_embed.weight.new_zeros(1, 0, self.dim)

    def dense(self, grid: tuple[int, int], masks: Tensor | None = None) -> Tensor:
        """Map of masks, logits [P,1,4h,4w] -> [P,D,h,w]; without masks [1,D,h,w] that says so."""
        if masks is not None:
            return cast(Tensor, self.mask_downscaling(masks))
        return self.no_mask_embed.weight[:, :, None, None].expand(1, self.dim, *grid)

    def _points(self, size: tuple[int, int], points: Tensor, labels: Tensor) -> Tensor:
        known = torch.stack([self._embedding(0)[0], self._embedding(1)[0]])[labels.clamp(min=0)]
        return torch.where(
            labels[..., None] == NO_POINT, self.not_a_point_embed.weight, self._places(size, points) + known
        )

    def _embedding(self, kind: int) -> Tensor:
        return cast(nn.Embedding, self.point_embeddings[kind]).weight

    def _places(self, size: tuple[int, int], places: Tensor) -> Tensor:
        """Positions of pixels' centres, [...,2] -> [...,D]."""
        return cast(Tensor, self.pe_layer((places + 0.5) / places.new_tensor((size[1], size[0]))))
