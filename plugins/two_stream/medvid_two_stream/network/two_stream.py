"""Streams that look at a clip in different ways, and their fusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from medvid_core.specs import OutputSpec
from medvid_two_stream.config import TORCHVISION_IMAGE, TwoStreamConfig
from medvid_two_stream.network.decision import (
    log_mean_probability,
    log_probability,
    mean_features,
    only_output,
    over_steps,
)
from medvid_two_stream.network.inputs import look, shuffled, uniform_temporal_subsample
from medvid_two_stream.network.stream import Stream
from medvid_two_stream.network.trunks import make_stream

COMPAT_FRAMES = 16
"""Frames that the original's 3D network sees beside a 2D network of flow."""


class TwoStream(nn.Module):
    """Streams and what becomes of their answers.

    The output ``NAME`` [B,K] is the decision: its softmax is the probability. What is trained is called ``NAME/…``,
    and the loss ``two-stream`` takes all of it; where there is nothing of that kind, the decision itself is trained.

    | fusion | trained | decision |
    | --- | --- | --- |
    | ``separate`` | the logits of each stream, ``NAME/<input>`` | mean of the streams' probabilities |
    | ``sum``, ``learnt`` | their (weighted) mean, ``NAME/fused`` | its probability; with ``compat`` as ``separate`` |
    | ``concat`` | the decision | softmax of one classifier of all features |

    Networks of single frames have logits [B,T',K], and their probability is the mean over real frames. Beside a stream
    of flow between frames, they see the frames that a flow begins at: one less than there are.

    The original trains the mean of logits (``sum_loss``), and decides by the mean of probabilities all the same; its
    2D networks see pictures whose planes are mixed over channels and time; beside a 2D network of flow, its 3D network
    sees 16 frames, unevenly spaced. ``compat`` does as it does.
    """

    def __init__(self, config: TwoStreamConfig, outputs: tuple[OutputSpec, ...]) -> None:
        super().__init__()
        self.config = config
        self.output = only_output(outputs)
        classes = len(self.output.classes)
        joint = config.fusion == "concat"
        self.streams = nn.ModuleDict(
            {name: make_stream(config, config.trunk_of(name), name, 0 if joint else classes) for name in config.inputs}
        )
        if joint:
            width = sum(self.stream(name).classifier.width for name in config.inputs)
            self.joint = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, classes))
        if config.fusion == "learnt":
            self.weights = nn.Parameter(torch.zeros(len(config.inputs)))

    @property
    def attribution_layer(self) -> dict[str, str]:
        """For each input, the module whose output [B,D,T',H',W'] is explained: the last features of its stream."""
        return {name: f"streams.{name}.out" for name in self.streams}

    def stream(self, name: str) -> Stream:
        """Return the stream of an input."""
        return cast(Stream, self.streams[name])

    def seen(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what every stream looks at, [B,C,T',H,W]."""
        found = {name: look(batch, name) for name in self.streams}
        per_frame = {name: self.config.trunk_of(name) in TORCHVISION_IMAGE for name in found}
        if "flow" not in found or len(found) == 1:
            return found
        for name, clip in found.items():
            if name == "flow" or clip.shape[2] == 1:
                continue
            if per_frame[name]:
                found[name] = clip[:, :, :-1]
            elif self.config.compat and per_frame["flow"]:
                found[name] = clip[:, :, uniform_temporal_subsample(clip.shape[2] - 1, COMPAT_FRAMES)]
        return found

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the decision [B,K] and what is trained.

        Args:
            batch: with ``frame_real`` [B,T] and the streams that `two_stream_needs` names.
        """
        if self.config.shuffled:  # drawn anew for every step of training, always the same otherwise
            batch = shuffled(batch, None if self.training else torch.Generator().manual_seed(0))
        seen, real, name = self.seen(batch), batch["frame_real"], self.output.name
        if self.config.fusion == "concat":
            features = [mean_features(self.stream(key).features(clip), real) for key, clip in seen.items()]
            return {name: self.joint(torch.cat(features, 1))}
        logits = {key: cast(Tensor, self.streams[key](clip)) for key, clip in seen.items()}
        mean = log_mean_probability([log_probability(each, real) for each in logits.values()])
        if self.config.fusion == "separate":
            return {name: mean, **{f"{name}/{key}": each for key, each in logits.items()}}
        fused = self._fused(list(logits.values()))
        return {name: mean if self.config.compat else log_probability(fused, real), f"{name}/fused": fused}

    def _fused(self, logits: list[Tensor]) -> Tensor:
        """Return the weighted mean of logits, [B,K], or [B,T',K] where any has steps."""
        every = over_steps(logits)
        if self.config.fusion == "sum":
            return cast(Tensor, sum(every)) / len(every)
        return cast(Tensor, sum(weight * each for weight, each in zip(self.weights.softmax(0), every, strict=True)))
