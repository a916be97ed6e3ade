"""From what streams and frames say to one answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec
from medvid_two_stream.network.inputs import real_steps


def only_output(outputs: Sequence[OutputSpec]) -> OutputSpec:
    """Return the one output that these networks have.

    Raises:
        ConfigError: there are several.
    """
    if len(outputs) != 1:
        names = ", ".join(output.name for output in outputs) or "none"
        raise ConfigError(f"This network answers one question, and there are: {names}. Choose one with outputs=[…].")
    return outputs[0]


def log_probability(logits: Tensor, frame_real: Tensor) -> Tensor:
    """Return the logarithm of the mean probability over the real frames.

    Args:
        logits: of clips [B,K], or of their steps [B,T',K], see `real_steps`.
        frame_real: bool [B,T].

    Returns:
        [B,K]; its softmax is that mean.
    """
    logs = logits.log_softmax(-1)
    if logs.dim() == 2:
        return logs
    real = real_steps(frame_real, logs.shape[1])
    return logs.masked_fill(~real[..., None], -torch.inf).logsumexp(1) - real.sum(1, keepdim=True).log()


def mean_features(features: Tensor, frame_real: Tensor) -> Tensor:
    """Return the features [B,D] of clips, or the mean of those of their steps [B,T',D] that are real."""
    if features.dim() == 2:
        return features
    real = real_steps(frame_real, features.shape[1])
    return (features * real[..., None]).sum(1) / real.sum(1, keepdim=True)


def log_mean_probability(logs: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of probabilities whose logarithms [B,K] are given."""
    return torch.stack(list(logs)).logsumexp(0) - math.log(len(logs))


def over_steps(logits: Sequence[Tensor]) -> list[Tensor]:
    """Return all logits [B,T',K] where any are of steps: those of whole clips [B,K] count at every one."""
    if all(each.dim() == 2 for each in logits):
        return list(logits)
    return [each if each.dim() == 3 else each[:, None] for each in logits]
