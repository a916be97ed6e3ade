"""R(2+1)D-18 (Tran et al., CVPR 2018), the network of EchoNet-Dynamic (Ouyang et al., Nature 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D

from medvid_cnn_mamba.config import R2Plus1DConfig
from medvid_cnn_mamba.network.heads import Heads
from medvid_core.errors import ConfigError
from medvid_core.specs import FRAME_TASKS, OutputSpec


def _separated(source: int, middle: int, target: int) -> nn.Sequential:
    """Return torchvision's stem for any width: 7x7 over space at half size, then 3 over time."""
    return nn.Sequential(
        nn.Conv3d(source, middle, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, target, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(target),
        nn.ReLU(inplace=True),
    )


def _stage(source: int, target: int, blocks: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or source != target:
        downsample = nn.Sequential(nn.Conv3d(source, target, 1, stride, bias=False), nn.BatchNorm3d(target))
    first = BasicBlock(source, target, Conv2Plus1D, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(target, target, Conv2Plus1D) for _ in range(blocks - 1)))


class R2Plus1D(nn.Module):
    """torchvision's ``r2plus1d_18`` up to its classifier, under the same parameter names, and heads.

    Every convolution is one over space followed by one over time, centred: each value depends on frames before and
    after, and only clips have outputs. The whole clip is seen, frames that are not real too: they repeat the nearest
    real one.

    Args:
        config: sizes; by default those of ``r2plus1d_18``.
        outputs: what is asked for, of whole clips.

    Raises:
        ConfigError: an output has a value for every frame.
    """

    attribution_layer = "layer4"
    """The module whose output [B,D,T',h,w] Grad-CAM explains."""

    def __init__(self, config: R2Plus1DConfig, outputs: tuple[OutputSpec, ...]) -> None:
        super().__init__()
        _refuse_frame_tasks(outputs)
        width = config.width
        self.stem = _separated(3, max(1, 45 * width // 64), width)
        self.layer1 = _stage(width, width, config.blocks[0], 1)
        self.layer2 = _stage(width, 2 * width, config.blocks[1], 2)
        self.layer3 = _stage(2 * width, 4 * width, config.blocks[2], 2)
        self.layer4 = _stage(4 * width, 8 * width, config.blocks[3], 2)
        self.heads = Heads(8 * width, outputs, config.dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, video: Tensor) -> Tensor:
        """[B,T,C,H,W] -> mean over time and space of the last stage [B,D]."""
        x = self.stem(video.transpose(1, 2))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return cast(Tensor, x.mean((2, 3, 4)))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return every output of a batch with ``video`` [B,T,C,H,W]."""
        return cast(dict[str, Tensor], self.heads(None, self.features(batch["video"])))


def _refuse_frame_tasks(outputs: tuple[OutputSpec, ...]) -> None:
    for output in outputs:
        if output.task in FRAME_TASKS:
            raise ConfigError(
                f"R(2+1)D gives no value for single frames, as output {output.name!r} ({output.task}) needs: each of "
                "its values is of several frames at once. Choose another model, or outputs=[…] of whole clips."
            )
