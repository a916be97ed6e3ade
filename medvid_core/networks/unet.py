"""MONAI's U-Net applied to each frame: what video models have to beat."""

from __future__ import annotations

from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from medvid_core.data.clip import Batch
from medvid_core.losses.base import segmentation_output
from medvid_core.networks.config import UNetConfig
from medvid_core.specs import OutputSpec


class FrameUNet(nn.Module):
    """Folds time into the batch: ``video`` [B,T,C,H,W] → logits [B,T,K,H,W]."""

    def __init__(self, config: UNetConfig, output: OutputSpec) -> None:
        super().__init__()
        self.output_name = output.name
        self.net = UNet(
            spatial_dims=2,
            in_channels=config.in_channels,
            out_channels=len(output.classes),
            channels=config.channels,
            strides=(2,) * (len(config.channels) - 1),
            num_res_units=config.residual_units,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Segment every frame."""
        video = batch["video"]
        return {self.output_name: self.net(video.flatten(0, 1)).unflatten(0, video.shape[:2])}


def build(config: UNetConfig, outputs: tuple[OutputSpec, ...]) -> FrameUNet:
    """Build the per-frame U-Net for one segmentation output."""
    return FrameUNet(config, segmentation_output(outputs))
