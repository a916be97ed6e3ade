"""Losses for masks of which there is little: focal, Tversky, their sum, recall, cross-entropy with more on outlines.

Real, labelled frames and labelled pixels alone count. A lone class is taken for two, the background and itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from medvid_core.data.clip import UNLABELLED, Batch
from medvid_core.errors import ConfigError
from medvid_core.losses.base import segmentation_output
from medvid_core.losses.config import BoundaryCEConfig, FocalConfig, FocalTverskyConfig, RecallConfig, TverskyConfig
from medvid_core.losses.segmentation import at_least_float32
from medvid_core.specs import OutputSpec

_FOCAL_EPS = 1e-6
"""Added to probabilities under a logarithm, as in the published code."""
_BACKGROUND = 0.05
"""The background's share of the weights where none are given: of three classes, the published 0.05, 0.475, 0.475."""


@dataclass(frozen=True)
class Labelled:
    """The M annotated, real frames of a batch.

    Attributes:
        logits: of every class, the background first, [M,K,H,W].
        mask: class of every pixel, long [M,H,W].
        clip: which clip of the batch each frame is of, long [M].
    """

    logits: Tensor
    mask: Tensor
    clip: Tensor

    @cached_property
    def valid(self) -> Tensor:
        """Annotated pixels, float [M,1,H,W]."""
        return (self.mask != UNLABELLED).unsqueeze(1).to(self.logits)

    @cached_property
    def target(self) -> Tensor:
        """Which class each pixel is, float [M,K,H,W]; zero everywhere where unlabelled."""
        numbers = torch.arange(self.logits.shape[1], device=self.mask.device).view(-1, 1, 1)
        return (self.mask.unsqueeze(1) == numbers).to(self.logits)

    @cached_property
    def probabilities(self) -> Tensor:
        """Softmax, [M,K,H,W]."""
        return self.logits.softmax(1)

    @cached_property
    def against_rest(self) -> Tensor:
        """z_k - log(sum of exp z_j over j != k), whose sigmoid is the softmax probability, [M,K,H,W]."""
        z = self.logits
        rest = [torch.cat([z[:, :k], z[:, k + 1 :]], 1).logsumexp(1) for k in range(z.shape[1])]
        return z - torch.stack(rest, 1)


def labelled(outputs: Mapping[str, Tensor], batch: Batch, name: str) -> Labelled:
    """Return the annotated frames; logits [B,T,K,H,W], mask [B,T,H,W]."""
    frames = batch["frame_real"] & batch["mask_labelled"]
    logits = at_least_float32(outputs[name][frames])
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return Labelled(logits, batch["mask"][frames], frames.nonzero()[:, 0])


def labelled_in_frames(batch: Batch) -> Tensor:
    """Return how many pixels of each annotated, real frame are labelled, long [M]."""
    frames = batch["frame_real"] & batch["mask_labelled"]
    pixels: Tensor = (batch["mask"][frames] != UNLABELLED).flatten(1).sum(1)
    return pixels


def sums_of_clips(frames: Labelled, counts: Tensor, clips: int) -> Tensor:
    """Add counts of frames [M,K] up over each of a batch's clips; return for every frame those of its clip, [M,K]."""
    return counts.new_zeros(clips, counts.shape[1]).index_add(0, frames.clip, counts)[frames.clip]


class Focal:
    """Class-balanced focal loss, each class against all others.

    Mean over labelled pixels of Σ_c α_c [t (1 - p)^γ + (1 - t) p^γ] BCE(p, t), with the softmax probability p of class
    c and t = 1 where a pixel is of it (Lin et al., ICCV 2017; in this form in the ovarian extension of Vivim).

    ``balance=frequency``: α_c in proportion to one over the number of pixels of class c, adding up to 1. The published
    code counts in a whole batch, here each clip counts for itself: the same where a batch is one clip, and independent
    of accumulation and processes. A class that a clip lacks then takes practically all the weight.
    """

    def __init__(self, config: FocalConfig, output: OutputSpec) -> None:
        classes = max(2, len(output.classes))
        if config.alpha and len(config.alpha) != classes:
            raise ConfigError(
                f"loss.alpha has {len(config.alpha)} values for {classes} classes, the background included."
            )
        shared = (1 - _BACKGROUND) / (classes - 1)
        self.alpha = config.alpha or (_BACKGROUND, *[shared] * (classes - 1))
        self.by_frequency = config.balance == "frequency"
        self.gamma, self.name = config.gamma, output.name

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of labelled pixels."""
        return {"focal": labelled_in_frames(batch).sum()}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the summed focal loss of the pixels."""
        frames = labelled(outputs, batch, self.name)
        p, t = frames.probabilities, frames.target
        entropy = -(t * (p + _FOCAL_EPS).log() + (1 - t) * (1 - p + _FOCAL_EPS).log())
        hard = t * (1 - p) ** self.gamma + (1 - t) * p**self.gamma
        each = (hard * entropy * frames.valid).sum((2, 3))
        return {"focal": (each * self._weights(frames, len(batch["mask"]))).sum()}

    def _weights(self, frames: Labelled, clips: int) -> Tensor:
        """α of every frame and class, [M,K] or [K]."""
        if not self.by_frequency:
            return frames.logits.new_tensor(self.alpha)
        inverse = 1 / (sums_of_clips(frames, frames.target.sum((2, 3)), clips) + 1e-6)
        return inverse / inverse.sum(1, keepdim=True)


class Tversky:
    """One minus the Tversky index of each frame and class, the background included (Salehi et al., MLMI 2017).

    1 - (TP + s) / (TP + a FP + b FN + s) with soft counts; mean over classes, then over frames. With a = b = 1/2 this
    is soft Dice. A class that a frame lacks costs about 1 as soon as its probabilities add up to more than s: for the
    published s nearly always; with s = 1 a little of it costs little.
    """

    def __init__(self, config: TverskyConfig, output: OutputSpec) -> None:
        self.false_positive, self.false_negative = config.false_positive, config.false_negative
        self.smooth, self.name = config.smooth, output.name

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of frames with a labelled pixel."""
        return {"tversky": (labelled_in_frames(batch) > 0).sum()}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sum over frames."""
        frames = labelled(outputs, batch, self.name)
        p, t = frames.probabilities * frames.valid, frames.target
        tp = (p * t).sum((2, 3))
        fp, fn = p.sum((2, 3)) - tp, t.sum((2, 3)) - tp
        index = (tp + self.smooth) / (tp + self.false_positive * fp + self.false_negative * fn + self.smooth)
        return {"tversky": ((1 - index).mean(1) * frames.valid.flatten(1).amax(1)).sum()}


class FocalTversky:
    """A weighted sum of the focal and the Tversky loss."""

    def __init__(self, config: FocalTverskyConfig, output: OutputSpec) -> None:
        self.terms = ((config.focal_weight, Focal(config, output)), (config.tversky_weight, Tversky(config, output)))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the counts of both parts."""
        return {name: count for _, loss in self.terms for name, count in loss.counts(batch).items()}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sums of both parts."""
        return {name: weight * total for weight, loss in self.terms for name, total in loss(outputs, batch).items()}


class Recall:
    """Recall loss: cross-entropy, more of it for classes of which much is missed (Tian et al., ICRA 2022).

    -1/N Σ_c Σ_(n: y_n = c) FN_c / (FN_c + TP_c) log p_(n,c) over N labelled pixels, the background included. A pixel is
    found (TP) if its own class is the likeliest, else missed (FN); the weight, one minus the recall, is held fixed. A
    class that is found whole has no weight, and one of which there is no pixel costs nothing.

    The paper takes the recall over a whole batch, here each clip counts for itself: the same where a batch is one clip,
    and independent of accumulation and processes.
    """

    def __init__(self, config: RecallConfig, output: OutputSpec) -> None:
        self.name = output.name

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of labelled pixels."""
        return {"recall": labelled_in_frames(batch).sum()}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the summed recall loss of the pixels."""
        frames, clips = labelled(outputs, batch, self.name), len(batch["mask"])
        missed = (frames.logits.argmax(1) != frames.mask).unsqueeze(1)
        fn = sums_of_clips(frames, (frames.target * missed).sum((2, 3)), clips)
        pixels = sums_of_clips(frames, frames.target.sum((2, 3)), clips)
        entropy = F.cross_entropy(frames.logits, frames.mask, ignore_index=UNLABELLED, reduction="none")
        of_classes = (frames.target * entropy.unsqueeze(1)).sum((2, 3))
        return {"recall": (fn / pixels.clamp(min=1) * of_classes).sum()}


class BoundaryCE:
    """Cross-entropy, plus on the outlines of the classes the binary cross-entropy of each against all others.

    Mean over labelled pixels of CE + w / K Σ_c b_c BCE(p_c, t_c), where b_c = 1 at a pixel whose right or lower
    neighbour differs from it in being of class c (the ovarian extension of Vivim, with w = 0.5).
    """

    def __init__(self, config: BoundaryCEConfig, output: OutputSpec) -> None:
        self.weight, self.name = config.boundary_weight, output.name

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of labelled pixels, for both parts."""
        pixels = labelled_in_frames(batch).sum()
        return {"cross_entropy": pixels, "boundary": pixels}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sums over pixels."""
        frames = labelled(outputs, batch, self.name)
        entropy = F.cross_entropy(frames.logits, frames.mask, ignore_index=UNLABELLED, reduction="sum")
        each = F.binary_cross_entropy_with_logits(frames.against_rest, frames.target, reduction="none")
        boundary = (each * _outlines(frames)).sum() / frames.logits.shape[1]
        return {"cross_entropy": entropy, "boundary": self.weight * boundary}


def _outlines(frames: Labelled) -> Tensor:
    """Where a labelled pixel and its labelled right or lower neighbour differ, by class, float [M,K,H,W]."""
    t, valid = frames.target, frames.valid
    right = (t[..., :-1] - t[..., 1:]).abs() * valid[..., :-1] * valid[..., 1:]
    below = (t[..., :-1, :] - t[..., 1:, :]).abs() * valid[..., :-1, :] * valid[..., 1:, :]
    return torch.maximum(F.pad(right, (0, 1)), F.pad(below, (0, 0, 0, 1)))


def build_focal(config: FocalConfig, outputs: tuple[OutputSpec, ...]) -> Focal:
    """Build the class-balanced focal loss."""
    return Focal(config, segmentation_output(outputs))


def build_tversky(config: TverskyConfig, outputs: tuple[OutputSpec, ...]) -> Tversky:
    """Build the Tversky loss."""
    return Tversky(config, segmentation_output(outputs))


def build_focal_tversky(config: FocalTverskyConfig, outputs: tuple[OutputSpec, ...]) -> FocalTversky:
    """Build the sum of focal and Tversky loss."""
    return FocalTversky(config, segmentation_output(outputs))


def build_recall(config: RecallConfig, outputs: tuple[OutputSpec, ...]) -> Recall:
    """Build the recall loss."""
    return Recall(config, segmentation_output(outputs))


def build_boundary_ce(config: BoundaryCEConfig, outputs: tuple[OutputSpec, ...]) -> BoundaryCE:
    """Build cross-entropy with more on the outlines."""
    return BoundaryCE(config, segmentation_output(outputs))
