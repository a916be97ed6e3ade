"""Where the edges in a mask are: by distance, as the released code has it, or by Sobel filters, as the paper does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medvid_core.data.clip import UNLABELLED

RADIUS = 2
"""Pixels: an edge by distance is at most so far from the other side."""


def edges_by_distance(mask: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return edges [M,H,W] and where they are known [M,H,W], both bool, of masks [M,H,W].

    A pixel is on an edge where another one that is, if it is not, or is not, if it is, of some class (the background is
    one) lies at most `RADIUS` pixels away, the outside of the picture counting as of no class: a frame two pixels wide
    along the border is always edge, as in the released code. Near unlabelled pixels nothing is known.
    """
    edges = torch.zeros_like(mask, dtype=torch.bool)
    for number in range(classes):
        inside = mask == number
        edges |= torch.where(inside, _near(~inside, outside=True), _near(inside, outside=False))
    return edges, ~_near(mask == UNLABELLED, outside=False)


def edges_by_sobel(mask: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return edges [M,H,W] and where they are known [M,H,W], both bool, of masks [M,H,W].

    A pixel is on an edge where the Sobel filters respond to the area of some class, the picture going on beyond its
    border as it is there. Near unlabelled pixels nothing is known.
    """
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], device=mask.device)
    filters = torch.stack([kernel, kernel.T])[:, None]
    edges = torch.zeros_like(mask, dtype=torch.bool)
    for number in range(classes):
        area = F.pad((mask == number)[:, None].float(), (1, 1, 1, 1), mode="replicate")
        edges |= F.conv2d(area, filters).ne(0).any(1)
    unknown = F.max_pool2d((mask == UNLABELLED)[:, None].float(), 3, stride=1, padding=1)[:, 0]
    return edges, unknown == 0


def _near(area: Tensor, outside: bool) -> Tensor:
    """Where the area [M,H,W] is at most `RADIUS` pixels away; ``outside``: whether it goes on beyond the border."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=area.device)
    disc = (offsets[:, None] ** 2 + offsets**2 <= RADIUS**2).float()
    padded = F.pad(area.float(), (RADIUS,) * 4, value=float(outside))
    return F.conv2d(padded[:, None], disc[None, None])[:, 0] > 0
