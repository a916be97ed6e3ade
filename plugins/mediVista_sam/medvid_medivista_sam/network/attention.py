"""Attention across the frames of a clip, and SAM's attention within a frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import Attention, get_rel_pos
from torch import Tensor, nn

Change = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From tokens [M,N,D] to what is added to their queries and to their values."""


class Clip(NamedTuple):
    """How M = B*T frames make up clips.

    Attributes:
        clips: B.
        frames: T.
        real: [B,T], False where a frame is padding; None: all are real.
    """

    clips: int
    frames: int
    real: Tensor | None = None

    def seen(self) -> Tensor | None:
        """Return [B,T], the frames that attention may look at; all of them in a clip of nothing but padding."""
        return None if self.real is None else self.real | ~self.real.any(1, keepdim=True)

    def previous(self, device: torch.device) -> Tensor:
        """Return, for each frame, the number of the nearest real one before it [B,T]; its own where there is none."""
        number = torch.arange(self.frames, device=device).expand(self.clips, -1)
        real = number if self.real is None else torch.where(self.real, number, -1)
        latest = torch.cat([real.new_full((self.clips, 1), -1), real.cummax(1).values[:, :-1]], 1)
        return torch.where(latest < 0, number, latest)


def by_head(x: Tensor, heads: int) -> Tensor:
    """[...,N,D] -> [...,heads,N,D/heads]."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(-2, -3)


def joined(x: Tensor) -> Tensor:
    """[...,heads,N,c] -> [...,N,heads*c]."""
    return x.transpose(-2, -3).flatten(-2)


class TemporalAttention(nn.Module):
    """Each place of the grid attends to itself in all frames of the clip; no positions in time, no causal mask."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, clip: Clip) -> Tensor:
        """[B*T,N,D] -> [B*T,N,D]."""
        places = torch.unflatten(x, 0, (clip.clips, clip.frames)).transpose(1, 2).flatten(0, 1)  # [B*N,T,D]
        q, k, v = (by_head(part, self.heads) for part in self.qkv(places).chunk(3, -1))
        seen = clip.seen()
        mask = None if seen is None else seen.repeat_interleave(x.shape[1], 0)[:, None, None]
        y = self.proj(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))
        return torch.unflatten(y, 0, (clip.clips, -1)).transpose(1, 2).flatten(0, 1)


class CrossFrameAttention(nn.Module):
    """Each frame attends to the one before it: per head softmax(q_t k_{t-1}^T / sqrt(c)) v_{t-1}.

    This is what abstract and figure of the first version describe (its formula prints K for V); the class in its code
    is never called and computes something else. The first frame refers to itself: the code's shift would wrap around
    to the last one, which is a frame before it only in a clip of exactly one heart beat.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        """[B*T,N,D] and, for each frame, which one it looks at [B,T] -> [B*T,N,D]."""
        q, k, v = self.qkv(x).chunk(3, -1)
        first = torch.arange(len(previous), device=previous.device)[:, None] * previous.shape[1]
        index = (first + previous).flatten()
        y = F.scaled_dot_product_attention(
            by_head(q, self.heads), by_head(k[index], self.heads), by_head(v[index], self.heads)
        )
        return joined(y)


def temporal_kernel(clip: Clip, like: Tensor, normalised: bool = True) -> Tensor:
    """Weights exp(-|t-s|/3) of frame s in frame t, [B,T,T] or [1,T,T]; padding has none.

    Without `normalised` they do not add up to 1 and keys and values grow with the clip, as in the second version's
    code.
    """
    number = torch.arange(clip.frames, device=like.device, dtype=torch.float32)
    weights = torch.exp(-(number[:, None] - number).abs() / 3)[None]
    seen = clip.seen()
    if seen is not None:
        weights = weights * seen[:, None]
    if normalised:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(like.dtype)


class CrossAttention(nn.Module):
    """Attention between two sets of tokens, with separate projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def start_silent(self) -> None:
        """Have it give 0 until it is trained."""
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[M,N,D] and [M,L,D] -> [M,N,D]."""
        return self.attend(self.q(x), self.k(context), self.v(context))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        """Projected [M,N,D] and twice [M,L,D] -> [M,N,D]; `scale` of the logits is c^-0.5 if None."""
        q, k, v = (by_head(part, self.heads) for part in (q, k, v))
        return cast(Tensor, self.proj(joined(F.scaled_dot_product_attention(q, k, v, scale=scale))))


class TemporalFusionAttention(CrossAttention):
    """Attention of a frame to keys and values mixed over time: k_t = sum_s w_ts k_s, and v_t likewise; one head.

    (Second version, IEEE JBHI 2025.) Its code multiplies the logits by the square root of 64, the width of a head of
    SAM's, where it means to divide, and does not normalise the mix: `scale` and the kernel can say so, by default they
    do not.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, heads=1)

    def forward(self, x: Tensor, kernel: Tensor, scale: float | None = None) -> Tensor:
        """[M,N,D] and weights [B or 1,T,T] -> [M,N,D]."""
        frames = kernel.shape[-1]

        def mixed(part: Tensor) -> Tensor:
            clips = torch.unflatten(part, 0, (-1, frames)).flatten(2)  # [B,T,N*D]
            return torch.matmul(kernel.to(part.dtype), clips).view_as(part)

        return self.attend(self.q(x), mixed(self.k(x)), mixed(self.v(x)), scale)


class FrameAttention(Attention):  # type: ignore[misc]  # timm is not annotated for mypy
    """SAM's attention within a frame or window, timm's parameters; memory grows with the tokens, not their square.

    Relative positions add q_i . (R^h_ij + R^w_ij) to the logits (Li et al., MViTv2, CVPR 2022). The first term depends
    on key j through its row alone, the second through its column, so that both are inner products themselves: of
    q_i R^h over all rows with a one-hot code of j's row. Appended to queries and keys they need no matrix of logits.
    """

    def forward(self, x: Tensor, change: Change | None = None) -> Tensor:
        """[M,h,w,D] -> [M,h,w,D]; `change` gives from the tokens [M,h*w,D] what is added to queries and to values."""
        height, width = x.shape[1:3]
        x = x.flatten(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        if change is not None:
            more_q, more_v = change(x)
            q, v = q + more_q, v + more_v
        q, k, v = (by_head(part, self.num_heads) for part in (q, k, v))
        if not self.use_rel_pos:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            places = torch.unflatten(q, 2, (height, width))
            rows = torch.einsum("mnhwc,hrc->mnhwr", places, get_rel_pos(height, height, self.rel_pos_h))
            columns = torch.einsum("mnhwc,wsc->mnhws", places, get_rel_pos(width, width, self.rel_pos_w))
            codes = self._codes(height, width, k).expand(*k.shape[:2], -1, -1)
            q = torch.cat([q * self.scale, rows.flatten(2, 3), columns.flatten(2, 3)], -1)
            k = torch.cat([k, codes], -1)
            # the fused kernels want values as wide as keys
            y = F.scaled_dot_product_attention(q, k, F.pad(v, (0, height + width)), scale=1.0)[..., : v.shape[-1]]
        return torch.unflatten(self.proj(joined(y)), 1, (height, width))

    @staticmethod
    def _codes(height: int, width: int, like: Tensor) -> Tensor:
        """One-hot codes of each place's row and column, [h*w,h+w]."""
        rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, 0)
        return torch.cat([rows, torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)], 1)
