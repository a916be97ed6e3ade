"""The structure loss: as released, as intended, and as the ovarian extension computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.data.clip import UNLABELLED, Batch, Case
from medvid_core.specs import OutputSpec
from medvid_vivim.config import StructureLossConfig

WINDOW = 31
"""Side, in pixels, of the neighbourhood in which a pixel counts as near the boundary."""


class StructureLoss:
    """Binary cross-entropy plus a weighted soft intersection over union (Wei et al., AAAI 2020, as used by Vivim).

    With p = sigmoid(logit), mask m and weights w = 1 + 5 |mean of m over 31x31 - m| (zeros beyond the border counted):

        bce = mean over pixels of the cross-entropy
        iou = mean over frames of 1 - (I + s) / (U - I + s),  I = sum w p m,  U = sum w (p + m),  s = 1

    ``released``: the weights were meant for the cross-entropy too, but the original's call ``reduce='none'`` averages
    it first, so that they cancel there; its results were made so.
    ``intended``: bce = mean over frames of (sum of w times the cross-entropy) / (sum of w), as F3Net has it.
    ``ovarian``: the same, with s = 1e-6.

    With several classes, released and intended (neither is in the original) take each foreground class against the
    rest, with the logit z_k - log(sum of exp z_j over j != k), whose sigmoid is the softmax probability. The ovarian
    extension takes every class, the background included, with its own logit z_k. All are averaged over those classes.

    With ``frames: centre`` only the frame a window is about counts, the one at position (T - 1) // 2 (see `_centre`).
    Frames that are padding or without labels are left out; pixels marked 255 have weight 0 and count as background
    in the neighbourhood means.
    """

    def __init__(self, config: StructureLossConfig, output: OutputSpec) -> None:
        self.centre_only = config.frames == "centre"
        self.output_name = output.name
        self.classes = len(output.classes)
        self.weighted = config.form != "released"
        self.ovarian = config.form == "ovarian"
        self.smooth = 1e-6 if self.ovarian else 1.0

    def check_training(self, model: nn.Module, cases: Sequence[Case]) -> list[str]:
        """Say so where the network has an edge head, which this loss does not teach."""
        if not edge_channels(model):
            return []
        return ["model.edge=true, but the edge head learns nothing: set loss.edge=released or loss.edge=paper."]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Labelled pixels (``bce``) and frames that have any (``iou``, and ``bce`` where it is weighted)."""
        pixels = (batch["mask"] != UNLABELLED)[self.supervised(batch)].flatten(1).sum(1)
        frames = (pixels > 0).sum()
        return {"bce": frames if self.weighted else pixels.sum(), "iou": frames}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Sums of the two parts over what `counts` counts; logits [B,T,K,H,W], mask [B,T,H,W]."""
        frames = self.supervised(batch)
        mask = batch["mask"][frames]
        # selecting, rather than multiplying by zero, keeps even non-finite values of other frames out
        logits = self._binary(outputs[self.output_name][frames].float())
        return self.parts(logits, self.targets(mask), (mask != UNLABELLED)[:, None].float())

    def parts(self, logits: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Sums of the two parts; binary logits and targets [M,F,H,W], labelled pixels [M,1,H,W]."""
        target = target * valid
        weight = (1 + 5 * (_neighbourhood_mean(target) - target).abs()) * valid
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if self.weighted:
            bce = (entropy * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1)
        else:
            bce = (entropy * valid).sum((2, 3))
        p = logits.sigmoid()
        intersection = (weight * p * target).sum((2, 3))
        total = (weight * (p + target)).sum((2, 3))
        iou = (1 - (intersection + self.smooth) / (total - intersection + self.smooth)) * valid.amax((2, 3))
        share = 1 / logits.shape[1]
        return {"bce": bce.sum() * share, "iou": iou.sum() * share}

    def supervised(self, batch: Batch) -> Tensor:
        """Frames that count, bool [B,T]; of these, with ``frames: centre``, the centre alone."""
        real: Tensor = batch["frame_real"]
        frames: Tensor = real & batch["mask_labelled"]
        if self.centre_only:
            frames = frames & _centre(real)
        return frames

    def targets(self, mask: Tensor) -> Tensor:
        """Mask [M,H,W] -> binary or soft targets [M,F,H,W], one channel a class that is taken by itself."""
        if self.classes > 1:
            classes = torch.arange(0 if self.ovarian else 1, self.classes, device=mask.device)[:, None, None]
            return (mask[:, None] == classes).float()
        target = mask if mask.is_floating_point() else mask == 1
        return target[:, None].float()

    def _binary(self, logits: Tensor) -> Tensor:
        """Logits [M,K,H,W] -> binary logits [M,F,H,W] of the classes in `targets`."""
        if self.classes == 1 or self.ovarian:
            return logits
        rest = [torch.cat([logits[:, :k], logits[:, k + 1 :]], 1).logsumexp(1) for k in range(1, self.classes)]
        return logits[:, 1:] - torch.stack(rest, 1)


def edge_channels(model: nn.Module) -> int:
    """Channels of a network's edge output; 0 where it has none."""
    return int(getattr(model, "edge_channels", 0))


def _centre(real: Tensor) -> Tensor:
    """Mark the frame each window is about, bool [B,T], given which frames are real.

    This is position (T - 1) // 2, where dense sampling puts the frame it makes the window for, so that each frame of
    a video is supervised once an epoch even where its window overhangs the video. The original supervises position
    T // 2 of windows that start (T - 1) // 2 frames before theirs: the same for odd T, and for its T = 5; for even T
    it supervises the frame after the one the window is about, and we do not follow.

    Where that position is padding (a video shorter than the window), the same rule is applied to the real frames
    alone.
    """
    length = real.shape[1]
    middle = (length - 1) // 2
    at_middle = torch.arange(length, device=real.device) == middle
    among_real = real & (real.cumsum(1) - 1 == (real.sum(1, keepdim=True) - 1) // 2)
    return torch.where(real[:, middle, None], at_middle, among_real)


def _neighbourhood_mean(x: Tensor) -> Tensor:
    """Mean over the window around each pixel of [M,F,H,W], zeros beyond the border counted; one axis at a time."""
    x = F.avg_pool2d(x, (WINDOW, 1), stride=1, padding=(WINDOW // 2, 0))
    return F.avg_pool2d(x, (1, WINDOW), stride=1, padding=(0, WINDOW // 2))
