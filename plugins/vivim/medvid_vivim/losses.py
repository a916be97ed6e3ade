"""The structure loss, as the original computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec
from medvid_vivim.config import StructureLossConfig

if TYPE_CHECKING:
    from medvid_core.losses import Loss

UNLABELLED = 255
WINDOW = 31
"""Side, in pixels, of the neighbourhood in which a pixel counts as near the boundary."""


class StructureLoss:
    """Binary cross-entropy plus a weighted soft intersection over union (Wei et al., AAAI 2020, as used by Vivim).

    With p = sigmoid(logit), mask m and weights w = 1 + 5 |mean of m over 31x31 - m| (zeros beyond the border counted):

        bce = mean over pixels of the cross-entropy
        iou = mean over frames of 1 - (I + 1) / (U - I + 1),  I = sum w p m,  U = sum w (p + m)

    The weights were meant for the cross-entropy too, but the original's call ``reduce='none'`` averages it first, so
    they cancel there; its results were made so, and so do we.

    With several classes (not in the original): the same on each foreground class against the rest, with the logit
    z_k - log(sum of exp z_j over j != k), whose sigmoid is the softmax probability, averaged over those classes.

    With ``frames: centre`` only the frame a window is about counts, the one at position (T - 1) // 2 (see `_centre`).
    Frames that are padding or without labels are left out; pixels marked 255 have weight 0 and count as background
    in the neighbourhood means.
    """

    def __init__(self, config: StructureLossConfig, output: OutputSpec) -> None:
        self.centre_only = config.frames == "centre"
        self.output_name = output.name
        self.classes = len(output.classes)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Labelled pixels (``bce``) and frames that have any (``iou``), among the supervised frames."""
        pixels = (batch["mask"] != UNLABELLED)[self._supervised(batch)].flatten(1).sum(1)
        return {"bce": pixels.sum(), "iou": (pixels > 0).sum()}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Sums of the two parts over what `counts` counts; logits [B,T,K,H,W], mask [B,T,H,W]."""
        frames = self._supervised(batch)
        mask = batch["mask"][frames]
        valid = (mask != UNLABELLED)[:, None].float()
        # selecting, rather than multiplying by zero, keeps even non-finite values of other frames out
        logits = self._one_against_rest(outputs[self.output_name][frames].float())
        target = self._targets(mask) * valid
        weight = (1 + 5 * (_neighbourhood_mean(target) - target).abs()) * valid

        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * valid
        p = logits.sigmoid()
        intersection = (weight * p * target).sum((2, 3))
        total = (weight * (p + target)).sum((2, 3))
        iou = (1 - (intersection + 1) / (total - intersection + 1)) * valid.amax((2, 3))
        share = 1 / logits.shape[1]
        return {"bce": bce.sum() * share, "iou": iou.sum() * share}

    def _supervised(self, batch: Mapping[str, Any]) -> Tensor:
        """Frames that count, bool [B,T]; of these, with ``frames: centre``, the centre alone."""
        real: Tensor = batch["frame_real"]
        frames: Tensor = real & batch["mask_labelled"]
        if self.centre_only:
            frames = frames & _centre(real)
        return frames

    def _targets(self, mask: Tensor) -> Tensor:
        """Mask [M,H,W] -> binary or soft targets [M,F,H,W], one channel a foreground class."""
        if self.classes > 1:
            classes = torch.arange(1, self.classes, device=mask.device)[:, None, None]
            return (mask[:, None] == classes).float()
        target = mask if mask.is_floating_point() else mask == 1
        return target[:, None].float()

    def _one_against_rest(self, logits: Tensor) -> Tensor:
        """Logits [M,K,H,W] -> binary logits of the foreground classes [M,F,H,W]."""
        if self.classes == 1:
            return logits
        rest = [torch.cat([logits[:, :k], logits[:, k + 1 :]], 1).logsumexp(1) for k in range(1, self.classes)]
        return logits[:, 1:] - torch.stack(rest, 1)


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


def build_structure(config: StructureLossConfig, outputs: tuple[OutputSpec, ...]) -> Loss:
    """Make the loss for the one segmentation output.

    Raises:
        ConfigError: there is none, or more than one.
    """
    found = [output for output in outputs if output.task == "segmentation"]
    if len(found) != 1:
        names = ", ".join(output.name for output in found) or "none"
        raise ConfigError(f"The structure loss needs exactly one segmentation output; there are: {names}.")
    return StructureLoss(config, found[0])
