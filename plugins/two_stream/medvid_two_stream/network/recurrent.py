"""An image network on each frame and an LSTM over the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.specs import OutputSpec
from medvid_two_stream.config import CNNLSTMConfig, channels_of
from medvid_two_stream.network.decision import log_probability, only_output
from medvid_two_stream.network.inputs import as_pictures, look
from medvid_two_stream.network.trunks import image_net


class CNNLSTM(nn.Module):
    """ResNet, LSTM, ReLU and a linear layer, which answers for every frame what it has seen so far.

    Trained on every frame (``NAME/frames`` [B,T',K]); the decision is the mean of the probabilities of real frames.
    """

    def __init__(self, config: CNNLSTMConfig, outputs: tuple[OutputSpec, ...]) -> None:
        super().__init__()
        self.config = config
        self.output = only_output(outputs)
        self.cnn = image_net(config.trunk, channels_of(config.input))
        self.cnn.fc = nn.Linear(self.cnn.fc.in_features, config.features)
        self.out = nn.Identity()
        self.lstm = nn.LSTM(config.features, config.hidden, config.layers, batch_first=True)
        self.fc = nn.Linear(config.hidden, len(self.output.classes))

    @property
    def attribution_layer(self) -> dict[str, str]:
        """The module whose output [B,D,T',H',W'] is explained."""
        return {self.config.input: "out"}

    def maps(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> [B,D,T,H/32,W/32]."""
        found = as_pictures(x)
        for name, layer in self.cnn.named_children():
            if name not in ("avgpool", "fc"):
                found = layer(found)
        return cast(Tensor, self.out(torch.unflatten(found, 0, (x.shape[0], x.shape[2])).transpose(1, 2)))

    def frames(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> logits [B,T,K]."""
        features = self.cnn.fc(self.maps(x).mean((3, 4)).transpose(1, 2))
        return cast(Tensor, self.fc(F.relu(self.lstm(features)[0])))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the decision [B,K] and the logits of every frame [B,T',K]."""
        logits = self.frames(look(batch, self.config.input))
        name = self.output.name
        return {name: log_probability(logits, batch["frame_real"]), f"{name}/frames": logits}
