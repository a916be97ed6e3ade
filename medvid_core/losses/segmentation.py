"""Cross-entropy and soft Dice for segmentation, counting real, labelled frames and labelled pixels only."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from medvid_core.data.clip import UNLABELLED, Batch
from medvid_core.errors import ConfigError
from medvid_core.losses.base import segmentation_output
from medvid_core.losses.config import CrossEntropyConfig, DiceCEConfig, DiceConfig
from medvid_core.specs import OutputSpec


def labelled_pixels(batch: Batch) -> Tensor:
    """Return bool [B,T,H,W]: pixels that are annotated, in frames that are real and annotated."""
    frames = batch["frame_real"] & batch["mask_labelled"]
    labelled: Tensor = (batch["mask"] != UNLABELLED) & frames[:, :, None, None]
    return labelled


def at_least_float32(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32, and others as they are."""
    wide: Tensor = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide


def one_hot(mask: Tensor, classes: int) -> Tensor:
    """Return float [B,T,K,H,W] from class indices [B,T,H,W]; unlabelled pixels are zero in every class.

    With one class the mask's class 1 is the foreground channel.
    """
    if classes == 1:
        return (mask == 1).float().unsqueeze(2)
    indices = torch.arange(classes, device=mask.device).view(1, 1, classes, 1, 1)
    return (mask.unsqueeze(2) == indices).float()


def probabilities(logits: Tensor) -> Tensor:
    """Return sigmoid (K = 1) or softmax over K of logits [B,T,K,H,W]."""
    return logits.sigmoid() if logits.shape[2] == 1 else logits.softmax(2)


class CrossEntropy:
    """Mean over labelled pixels of the cross-entropy (binary for one class), in nats."""

    def __init__(self, config: CrossEntropyConfig, output: OutputSpec) -> None:
        weights = config.class_weights
        if weights and len(weights) != len(output.classes):
            raise ConfigError(f"loss.class_weights has {len(weights)} values for {len(output.classes)} classes.")
        self.name = output.name
        self.weights = torch.tensor(weights) if weights else None

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of labelled pixels."""
        return {"cross_entropy": labelled_pixels(batch).sum()}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the summed cross-entropy."""
        logits, valid, mask = at_least_float32(outputs[self.name]), labelled_pixels(batch), batch["mask"]
        if logits.shape[2] == 1:
            weight = None if self.weights is None else self.weights.to(logits)
            per_pixel = F.binary_cross_entropy_with_logits(
                logits[:, :, 0], (mask == 1).to(logits), pos_weight=weight, reduction="none"
            )
            return {"cross_entropy": (per_pixel * valid).sum()}
        target = torch.where(valid, mask, UNLABELLED)
        weight = None if self.weights is None else self.weights.to(logits)
        total = F.cross_entropy(
            logits.flatten(0, 1), target.flatten(0, 1), weight, ignore_index=UNLABELLED, reduction="sum"
        )
        return {"cross_entropy": total}


class Dice:
    """One minus the soft Dice coefficient, per clip and foreground class.

    ``1 - (2 Σ p g + s) / (Σ p + Σ g + s)`` with the sums over labelled pixels of the whole clip (Milletari et al.,
    3DV 2016, in the form without squares), averaged over classes and clips.
    """

    def __init__(self, config: DiceConfig, output: OutputSpec) -> None:
        self.name = output.name
        self.classes = len(output.classes)
        self.smooth = config.smooth

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of clips with any labelled pixel."""
        return {"dice": labelled_pixels(batch).flatten(1).any(1).sum()}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the summed Dice loss of the clips."""
        valid = labelled_pixels(batch).unsqueeze(2)
        predicted = probabilities(at_least_float32(outputs[self.name])) * valid
        target = one_hot(batch["mask"], self.classes) * valid
        first = 0 if self.classes == 1 else 1  # class 0 is the background
        dims = (1, 3, 4)
        overlap = (predicted * target).sum(dims)[:, first:]
        total = (predicted.sum(dims) + target.sum(dims))[:, first:]
        per_clip = 1 - ((2 * overlap + self.smooth) / (total + self.smooth)).mean(1)
        return {"dice": (per_clip * valid.flatten(1).any(1)).sum()}


class Weighted:
    """A weighted sum of losses."""

    def __init__(self, *terms: tuple[float, CrossEntropy | Dice]) -> None:
        self.terms = terms

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the counts of every part."""
        return {name: count for _, loss in self.terms for name, count in loss.counts(batch).items()}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sums of every part."""
        return {name: weight * total for weight, loss in self.terms for name, total in loss(outputs, batch).items()}


def build_cross_entropy(config: CrossEntropyConfig, outputs: tuple[OutputSpec, ...]) -> CrossEntropy:
    """Build the cross-entropy loss."""
    return CrossEntropy(config, segmentation_output(outputs))


def build_dice(config: DiceConfig, outputs: tuple[OutputSpec, ...]) -> Dice:
    """Build the soft Dice loss."""
    return Dice(config, segmentation_output(outputs))


def build_dice_ce(config: DiceCEConfig, outputs: tuple[OutputSpec, ...]) -> Weighted:
    """Build the sum of soft Dice and cross-entropy."""
    output = segmentation_output(outputs)
    return Weighted(
        (config.dice_weight, Dice(DiceConfig(smooth=config.smooth), output)),
        (config.cross_entropy_weight, CrossEntropy(CrossEntropyConfig(), output)),
    )
