"""The loss of the two-stream networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec
from medvid_two_stream.config import TwoStreamLossConfig
from medvid_two_stream.network.inputs import real_steps

if TYPE_CHECKING:
    from medvid_core.losses import Loss


class TwoStreamLoss:
    """Cross-entropy of everything a network gives under the name of an output: the network says what is trained.

    That is every ``NAME/…`` beside the decision ``NAME``: the logits of each stream (the original's
    ``different_loss``), or their fusion (``sum_loss``); their losses are added. Of a network that gives nothing of the
    kind it is the decision. Logits of frames [B,T',K] have the label of their clip, and a clip's loss is the mean over
    its real frames.
    """

    def __init__(self, config: TwoStreamLossConfig, outputs: tuple[OutputSpec, ...]) -> None:
        self.config = config
        self.names = tuple(output.name for output in outputs)
        for output in outputs:
            if config.class_weights and len(config.class_weights) != len(output.classes):
                raise ConfigError(
                    f"loss.class_weights has {len(config.class_weights)} values for the {len(output.classes)} classes "
                    f"of {output.name!r}."
                )

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the number of clips whose class is known, for every output."""
        return {name: _target(batch, name)[1].sum() for name in self.names}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the summed loss of every output."""
        found = {}
        for name in self.names:
            target, known = _target(batch, name)
            trained = [value for key, value in outputs.items() if key.startswith(f"{name}/")] or [outputs[name]]
            each = torch.stack([self._each(value.float(), target, batch["frame_real"]) for value in trained])
            each = each.mean(0) if self.config.average else each.sum(0)
            found[name] = torch.where(known, each, 0).sum()
        return found

    def _each(self, logits: Tensor, target: Tensor, frame_real: Tensor) -> Tensor:
        """Return the loss of every clip [B]."""
        weights = logits.new_tensor(self.config.class_weights) if self.config.class_weights else None
        if logits.dim() == 2:
            return F.cross_entropy(logits, target, weights, reduction="none")
        real = real_steps(frame_real, logits.shape[1])
        repeated = target[:, None].expand(logits.shape[:2])
        every = F.cross_entropy(logits.transpose(1, 2), repeated, weights, reduction="none")
        return torch.where(real, every, 0).sum(1) / real.sum(1)


def _target(batch: Mapping[str, Any], name: str) -> tuple[Tensor, Tensor]:
    """Return the class of each clip [B], 0 where unknown, and where it is known [B]."""
    if name not in batch["targets"]:
        nothing = batch["frame_real"].new_zeros(len(batch["frame_real"]))
        return nothing.long(), nothing
    known = batch["targets_present"][name]
    return torch.where(known, batch["targets"][name].long(), 0), known


def build_two_stream_loss(config: TwoStreamLossConfig, outputs: tuple[OutputSpec, ...]) -> Loss:
    """Build the loss."""
    return TwoStreamLoss(config, outputs)
