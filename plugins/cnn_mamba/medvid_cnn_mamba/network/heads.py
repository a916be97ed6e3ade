"""From features of frames to what is asked for: pooling that can stream, and one linear head an output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from medvid_core.specs import FRAME_TASKS, OutputSpec


class PoolState(NamedTuple):
    """What a pool remembers of the frames it has seen: a weighted sum, kept in range by the largest weight's logarithm.

    Attributes:
        largest: [B], largest score so far; -inf before the first frame.
        weight: [B], sum of exp(score - largest).
        total: [B,D], sum of exp(score - largest) times the features.
    """

    largest: Tensor
    weight: Tensor
    total: Tensor


class Pool(nn.Module):
    """Weighted mean over the frames so far: equal weights (``mean``), or softmax of a learnt score (``attention``).

    Running maximum and sums (Milakov & Gimelshein, 2018, algorithm 3), so that a stream needs no frame of the future
    and no memory of the past, and gives what the whole clip gives.
    """

    def __init__(self, width: int, kind: str = "mean") -> None:
        super().__init__()
        self.width = width
        self.score = nn.Linear(width, 1) if kind == "attention" else None

    def initial_state(self, batch: int, like: Tensor) -> PoolState:
        """Return the state before the first frame."""
        return PoolState(like.new_full((batch,), -torch.inf), like.new_zeros(batch), like.new_zeros(batch, self.width))

    def step(self, features: Tensor, real: Tensor, state: PoolState) -> tuple[Tensor, PoolState]:
        """Take in frames [B,T,D], of which ``real`` [B,T] count; return the mean so far [B,D] and the state then."""
        scores = features.new_zeros(features.shape[:2]) if self.score is None else self.score(features)[..., 0]
        scores = scores.masked_fill(~real, -torch.inf)
        largest = torch.maximum(state.largest, scores.detach().amax(1))  # for range alone: the result is free of it
        shift = largest.masked_fill(largest.isinf(), 0)  # no frame yet: every weight is exp(-inf)
        weights = (scores - shift[:, None]).exp()
        kept = (state.largest - shift).exp()
        weight = kept * state.weight + weights.sum(1)
        total = kept[:, None] * state.total + (weights[..., None] * features).sum(1)
        pooled = total / weight.clamp(min=torch.finfo(weight.dtype).tiny)[:, None]
        return pooled, PoolState(largest, weight, total)

    def forward(self, features: Tensor, real: Tensor) -> Tensor:
        """Frames [B,T,D] -> [B,D]."""
        return self.step(features, real, self.initial_state(len(features), features))[0]


class Ordinal(nn.Module):
    """Logits of lying above each grade but the last: one direction, one threshold a grade (CORAL, Cao et al., 2020)."""

    def __init__(self, width: int, grades: int) -> None:
        super().__init__()
        self.direction = nn.Linear(width, 1, bias=False)
        self.thresholds = nn.Parameter(torch.arange(grades - 1, 0, -1).float() - grades / 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B,D] -> [B,K-1]."""
        return cast(Tensor, self.direction(x)) + self.thresholds


class Regression(nn.Module):
    """``center + scale * linear(x)``, with both from the training cases."""

    def __init__(self, width: int, output: OutputSpec) -> None:
        super().__init__()
        count = len(output.classes)
        self.linear = nn.Linear(width, count)
        self.register_buffer("center", torch.tensor(output.center or (0.0,) * count), persistent=False)
        self.register_buffer("scale", torch.tensor(output.scale or (1.0,) * count), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B,D] -> [B,numbers]."""
        return self.get_buffer("center") + self.get_buffer("scale") * cast(Tensor, self.linear(x))


def _head(width: int, output: OutputSpec) -> nn.Module:
    if output.task == "regression":
        return Regression(width, output)
    if output.task == "ordinal":
        return Ordinal(width, len(output.classes))
    return nn.Linear(width, 1 if output.task == "anomaly" else len(output.classes))


class Heads(nn.Module):
    """One head for every output.

    Args:
        width: features D of a frame.
        outputs: what is asked for: any task but segmentation.
        dropout: probability in front of the heads.
    """

    def __init__(self, width: int, outputs: Sequence[OutputSpec], dropout: float = 0.0) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.dropout = nn.Dropout(dropout)
        # by number: not every name of an output can be that of a module
        self.heads = nn.ModuleList(_head(width, output) for output in outputs)

    def forward(self, frames: Tensor | None, pooled: Tensor) -> dict[str, Tensor]:
        """Return every output.

        Args:
            frames: features [B,T,D]; None where the network has none of single frames, and nothing asks for them.
            pooled: features of the clip [B,D].
        """
        found = {}
        for output, head in zip(self.outputs, self.heads, strict=True):
            if output.task in FRAME_TASKS:
                assert frames is not None
                value = head(self.dropout(frames))
                found[output.name] = value[..., 0] if output.task == "anomaly" else value
            else:
                found[output.name] = head(self.dropout(pooled))
        return found
