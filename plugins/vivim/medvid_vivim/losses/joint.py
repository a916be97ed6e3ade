"""The structure loss together with the terms that teach the edge branch, as released and as the paper has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.data.clip import UNLABELLED, Batch, Case
from medvid_core.errors import ConfigError
from medvid_vivim.losses.edges import edges_by_distance, edges_by_sobel
from medvid_vivim.losses.regressor import Regressor
from medvid_vivim.losses.structure import StructureLoss, edge_channels
from medvid_vivim.network.vivim import EDGE_OUTPUT

EDGE_WEIGHT, AFFINE_WEIGHT, ATTENTION_WEIGHT = 0.3, 0.3, 0.1
ATTENTION_THRESHOLD = 0.8
"""Logit of the edge branch above which a pixel keeps its label in the attention term."""
FIRST_WEIGHT = 0.01
"""Of being unlike the first frame's outline, against being like one's own."""


class EdgeLoss:
    """What both forms share: the structure loss, and the class-balanced cross-entropy of the edges.

    Each pixel on an edge weighs n_off / n, each other n_on / n, with the number of pixels on, off and both. The
    released code counts them in a whole batch, here each clip counts for itself: the same where a batch is one clip,
    and independent of accumulation and processes.

    Args:
        structure: the loss of the masks; it says which frames are supervised.
        regressor: tells outlines apart; None: without the affine term.
    """

    form = ""
    channels = 0

    def __init__(self, structure: StructureLoss, regressor: Regressor | None) -> None:
        self.structure, self.regressor = structure, regressor
        self.classes = max(2, structure.classes)

    def check_training(self, model: nn.Module, cases: Sequence[Case]) -> list[str]:
        """Refuse a network without the right edge head; say so where the affine term is off, or idle.

        Raises:
            ConfigError: the network has no edge head, or another one.
        """
        if edge_channels(model) != self.channels:
            raise ConfigError(
                f"loss.edge={self.form} teaches an edge head of {self.channels} channel(s), and the network has "
                f"{edge_channels(model) or 'none'}. Set model.edge=true and model.edge_head={self.form}."
            )
        if self.regressor is None:
            return [
                f"loss.edge={self.form} without loss.regressor: its affine term is switched off, the others stay. It "
                "needs the pretrained regressor of InverseForm (distance_measures_regressor.pth)."
            ]
        return []

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return those of the structure loss, pixels where edges are known, and frames."""
        mask = batch["mask"][self.structure.supervised(batch)]
        known = self.edges(mask)[1].flatten(1).sum(1)
        found = {**self.structure.counts(batch), "edge": known.sum()}
        return found if self.regressor is None else {**found, "affine": (known > 0).sum()}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sums of all parts; besides the mask's, logits ``edge`` [B,T,C,H,W]."""
        frames = self.structure.supervised(batch)
        mask, logits = batch["mask"][frames], outputs[EDGE_OUTPUT][frames].float()
        edges, known = self.edges(mask)
        clips = frames.nonzero()[:, 0]
        found = self.structure(outputs, batch)
        found["edge"] = EDGE_WEIGHT * balanced_entropy(self.edge_logit(logits), edges, known, clips, len(frames))
        if self.regressor is not None:
            each = self.affine(self.regressor, logits, edges, known, batch, frames)
            found["affine"] = AFFINE_WEIGHT * (each * known.flatten(1).any(1)).sum()
        return found

    def edges(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return edges and where they are known, bool [M,H,W], of masks [M,H,W]."""
        raise NotImplementedError

    def edge_logit(self, logits: Tensor) -> Tensor:
        """Return the logit of being on an edge, [M,H,W]."""
        raise NotImplementedError

    def affine(
        self, regressor: Regressor, logits: Tensor, edges: Tensor, known: Tensor, batch: Batch, frames: Tensor
    ) -> Tensor:
        """Return the affine term of each supervised frame, [M]."""
        raise NotImplementedError


class ReleasedEdgeLoss(EdgeLoss):
    """Structure + 0.3 edges + 0.1 attention + 0.3 affine, as the released code computes them, for one class.

    Attention: the structure loss against a mask that keeps its labels where the edge branch's logit is above 0.8 and is
    **foreground everywhere else**; it has no gradient into the edge branch. Affine: `Regressor.distance` of the
    log-softmax of the edge logits, which over a single channel is 0 everywhere: a constant **without gradient**.
    """

    form = "released"
    channels = 1

    def __init__(self, structure: StructureLoss, regressor: Regressor | None) -> None:
        super().__init__(structure, regressor)
        if structure.classes > 1:
            raise ConfigError(
                f"loss.edge=released is for one class, as the released code; the data have {structure.classes}. "
                "Use loss.edge=paper."
            )

    def check_training(self, model: nn.Module, cases: Sequence[Case]) -> list[str]:
        """As in `EdgeLoss`; also say that the affine term teaches nothing.

        Raises:
            ConfigError: the network has no edge head, or another one.
        """
        notes = super().check_training(model, cases)
        idle = (
            "loss.edge=released: the affine term is a constant, it teaches nothing. loss.edge=paper has one that does."
        )
        return notes or [idle]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """As in `EdgeLoss`, and those of the attention term."""
        found = super().counts(batch)
        return found | {f"attention/{name}": count for name, count in self.structure.counts(batch).items()}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """As in `EdgeLoss`, and the attention term."""
        frames = self.structure.supervised(batch)
        mask = batch["mask"][frames]
        logits, edge = (outputs[name][frames].float() for name in (self.structure.output_name, EDGE_OUTPUT))
        target = torch.where(edge.detach() > ATTENTION_THRESHOLD, self.structure.targets(mask), 1.0)
        attention = self.structure.parts(logits, target, (mask != UNLABELLED)[:, None].float())
        weighted = {f"attention/{name}": ATTENTION_WEIGHT * total for name, total in attention.items()}
        return super().__call__(outputs, batch) | weighted

    def edges(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By distance."""
        return edges_by_distance(mask, self.classes)

    def edge_logit(self, logits: Tensor) -> Tensor:
        """Of the one channel."""
        return logits[:, 0]

    def affine(
        self, regressor: Regressor, logits: Tensor, edges: Tensor, known: Tensor, batch: Batch, frames: Tensor
    ) -> Tensor:
        """Return the distance of a map that is 0 everywhere."""
        return regressor.distance(logits.log_softmax(1), (edges & known)[:, None])


class PaperEdgeLoss(EdgeLoss):
    """Structure + 0.3 edges + 0.3 affine, as in the paper, for any number of classes.

    Edges are drawn by Sobel filters, and predicted as one of two classes. With d(f, g) the `Regressor.distance` between
    the predicted outlines of frame f and the annotated ones of frame g, the affine term of frame t is

        1.00 d(t, t) - 0.01 d(t, 1),

    our reading of the paper's mean(1.00 |θ_t - I| - 0.01 |θ_1 - I|): the outline of a frame is to be its own, not that
    of the clip's first annotated frame. That frame has the first part alone.
    """

    form = "paper"
    channels = 2

    def edges(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By Sobel filters."""
        return edges_by_sobel(mask, self.classes)

    def edge_logit(self, logits: Tensor) -> Tensor:
        """Of the second class against the first."""
        return logits[:, 1] - logits[:, 0]

    def affine(
        self, regressor: Regressor, logits: Tensor, edges: Tensor, known: Tensor, batch: Batch, frames: Tensor
    ) -> Tensor:
        """Return the distance to the frame's own outlines, less a little of that to the first frame's."""
        predicted = logits.log_softmax(1)
        own = _distance(regressor, predicted, edges, known)
        clips, positions = frames.nonzero().unbind(1)
        first = (batch["frame_real"] & batch["mask_labelled"]).int().argmax(1)[clips]
        others = positions != first
        if not others.any():
            return own
        at_first, known_there = self.edges(batch["mask"][clips[others], first[others]])
        apart = _distance(regressor, predicted[others], at_first, known_there & known[others])
        return own.index_add(0, others.nonzero()[:, 0], apart, alpha=-FIRST_WEIGHT)


def _distance(regressor: Regressor, predicted: Tensor, edges: Tensor, known: Tensor) -> Tensor:
    """Distance of log-probabilities [M,2,H,W] to edges [M,H,W], both 0 where nothing is known, [M]."""
    true = torch.stack([~edges, edges], 1)
    return regressor.distance(predicted * known[:, None], true & known[:, None])


def balanced_entropy(logits: Tensor, edges: Tensor, known: Tensor, clips: Tensor, count: int) -> Tensor:
    """Sum over pixels of the cross-entropy of edges, balanced within each of ``count`` clips; all maps [M,H,W]."""
    on, off = ((each & known).flatten(1).sum(1) for each in (edges, ~edges))
    zeros = logits.new_zeros(count)
    share = (zeros.index_add(0, clips, on.float()) / zeros.index_add(0, clips, (on + off).float()).clamp(min=1))[clips]
    weight = torch.where(edges, 1 - share[:, None, None], share[:, None, None]) * known
    return (F.binary_cross_entropy_with_logits(logits, edges.float(), reduction="none") * weight).sum()
