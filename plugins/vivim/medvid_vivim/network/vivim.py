"""Vivim: clips in, masks of every frame out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec
from medvid_vivim.config import VivimConfig
from medvid_vivim.network.decoder import Decoder
from medvid_vivim.network.mamba import MambaLayer
from medvid_vivim.network.segformer import MixTransformer, drop_path_rates

EDGE_OUTPUT = "edge"


class Encoder(nn.Module):
    """Four stages: patch embedding and SegFormer blocks frame by frame, then Mamba layers over the clip."""

    def __init__(self, config: VivimConfig) -> None:
        super().__init__()
        self.downsample_layers = MixTransformer(config)
        rates = drop_path_rates(config.mamba_drop_path, sum(config.mamba_depths))
        # each layer sits in a Sequential of its own, as in the original's checkpoints (stages.i.j.0)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    nn.Sequential(_mamba_layer(config, width, rates[_rate_at(config, stage, layer)]))
                    for layer in range(config.mamba_depths[stage])
                )
            )
            for stage, width in enumerate(config.stage_widths)
        )

    def forward(self, video: Tensor) -> list[Tensor]:
        """[B,T,C,H,W] -> [B*T,C_i,h_i,w_i] of each stage. A stage's output is the next one's input."""
        clips, frames = video.shape[:2]
        # features side by side, as the blocks of tokens need them: nothing is laid out anew between stages
        x = video.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = []
        for index, layers in enumerate(self.stages):
            x = self.downsample_layers(x, index)
            x = layers(x.view(clips, frames, *x.shape[1:]).transpose(1, 2))  # [B,C,T,h,w]
            x = x.transpose(1, 2).flatten(0, 1)
            features.append(x)
        return features


class Vivim(nn.Module):
    """The network (Yang et al., IEEE TCSVT 2025), under the original's parameter names."""

    def __init__(self, config: VivimConfig, output: OutputSpec) -> None:
        super().__init__()
        self.config = config
        self.output_name = output.name
        self.encoder = Encoder(config)
        self.decoder = Decoder(
            config.stage_widths,
            config.fused_width,
            config.decoder_dropout,
            map_dropout=config.map_dropout,
            channel_dropout=config.channel_dropout,
        )
        self.out = nn.Conv2d(config.fused_width, len(output.classes), 1)
        if config.edge:
            self.edgeocr_cls_head = _edge_head(config)

    @property
    def edge_channels(self) -> int:
        """Channels of the edge output; 0 without one."""
        return 0 if not self.config.edge else 2 if self.config.edge_head == "paper" else 1

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``video`` [B,T,C,H,W] -> logits [B,T,K,H,W] (and ``edge`` logits [B,T,C,H,W])."""
        video: Tensor = batch["video"]
        if video.shape[2] != self.config.in_channels:
            raise ConfigError(
                f"The video has {video.shape[2]} channels, the model is made for {self.config.in_channels} "
                "(model.in_channels)."
            )
        features = self.encoder(video)
        outputs = {self.output_name: _resized(self.out(self.decoder(features)), video)}
        if self.config.edge:
            outputs[EDGE_OUTPUT] = _resized(self.edgeocr_cls_head(features[0]), video)
        return outputs


def _rate_at(config: VivimConfig, stage: int, layer: int) -> int:
    """Place of a Mamba layer's drop-path rate among the rates of all layers."""
    if config.mamba_drop_path_by == "stage":
        return min(stage, sum(config.mamba_depths) - 1)
    return sum(config.mamba_depths[:stage]) + layer


def _edge_head(config: VivimConfig) -> nn.Module:
    """Features of the first stage [M,C,h,w] -> edge logits [M,1,h,w], or [M,2,h,w] of no edge and edge."""
    width = config.stage_widths[0]
    if config.edge_head == "released":
        return nn.Conv2d(width, 1, 1)
    # the paper says three convolutional layers and no more; these sizes are ours
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2, 1),
    )


def _mamba_layer(config: VivimConfig, width: int, drop_path: float) -> MambaLayer:
    return MambaLayer(
        width,
        config.state_size,
        config.conv_width,
        config.expansion,
        config.frames,
        drop_path,
        config.scan_backend,
    )


def _resized(logits: Tensor, video: Tensor) -> Tensor:
    """[B*T,K,h,w] -> [B,T,K,H,W] of the video."""
    logits = F.interpolate(logits, size=video.shape[3:], mode="bilinear", align_corners=False)
    return logits.view(*video.shape[:2], *logits.shape[1:])


def build(config: VivimConfig, outputs: tuple[OutputSpec, ...]) -> Vivim:
    """Make the network for one segmentation output.

    Raises:
        ConfigError: other tasks, several outputs, or an output named as the edge output.
    """
    if len(outputs) != 1 or outputs[0].task != "segmentation":
        asked = ", ".join(f"{output.name} ({output.task})" for output in outputs) or "none"
        raise ConfigError(f"Vivim predicts exactly one segmentation; asked for: {asked}.")
    if config.edge and outputs[0].name == EDGE_OUTPUT:
        raise ConfigError(
            f"With model.edge, the output {EDGE_OUTPUT!r} is Vivim's own; name the segmentation otherwise."
        )
    return Vivim(config, outputs[0])
