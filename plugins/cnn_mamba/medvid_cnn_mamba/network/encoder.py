"""What is seen in each frame, and what changes from frame to frame."""

from __future__ import annotations

from typing import cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.errors import ConfigError


def _freeze_norms(net: nn.Module) -> None:
    """Have batch normalisation use its stored statistics, and keep them."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class FrameEncoder(nn.Module):
    """A timm image network applied to each frame by itself.

    Args:
        name: any model name of timm, e.g. ``convnextv2_atto``.
        channels: of the frames.
        drop_path: probability of skipping a residual branch.
        frozen_norm: keep batch normalisation at its stored statistics: a batch of correlated frames estimates others.

    Raises:
        ConfigError: timm has no such model, or it gives no features.
    """

    def __init__(self, name: str, channels: int = 3, drop_path: float = 0.0, frozen_norm: bool = False) -> None:
        super().__init__()
        self.name = name
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8])
            raise ConfigError(
                f"model.encoder={name!r}: timm has no such model." + (f" Near it: {close}." if close else "")
            )
        options = {"drop_path_rate": drop_path} if drop_path else {}
        try:
            self.net = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **options)
        except TypeError as error:
            raise ConfigError(f"model.encoder={name!r} cannot be made with these settings: {error}.") from error
        # the width in front of the classifier, which of some networks (mobilenetv3) is not num_features
        self.width = int(getattr(self.net, "head_hidden_size", None) or self.net.num_features)
        self.frozen_norm = frozen_norm

    @property
    def last_stage(self) -> str:
        """The module of ``net`` that gives the last feature maps [N,C,h,w]; empty for a network of another kind."""
        stages = getattr(self.net, "feature_info", None)
        if not isinstance(stages, list) or getattr(self.net, "output_fmt", "NCHW") != "NCHW":
            return ""
        name = str(stages[-1]["module"])
        return name if any(isinstance(layer, nn.Conv2d) for layer in self.net.get_submodule(name).modules()) else ""

    def train(self, mode: bool = True) -> FrameEncoder:
        """Set the mode; frozen normalisation stays in evaluation mode."""
        super().train(mode)
        if self.frozen_norm:
            _freeze_norms(self.net)
        return self

    def forward(self, video: Tensor) -> Tensor:
        """[B,T,C,H,W] -> [B,T,D]."""
        try:
            features = cast(Tensor, self.net(video.flatten(0, 1)))
        except AssertionError as error:  # how timm's networks of one size say it
            raise ConfigError(
                f"model.encoder={self.name!r} does not take frames of {video.shape[-2]}x{video.shape[-1]} pixels "
                f"({error}). Set clip.size, or choose a convolutional encoder."
            ) from error
        return torch.unflatten(features, 0, video.shape[:2])


class MotionBranch(nn.Module):
    """What changed since the frame before (0 for the first), small: speckle changes more than what moves does.

    The difference itself on 16 x 16 fields, each a feature, so that a linear layer can read off what moves where, which
    way and how fast; and what a small convolutional network makes of it, on 4 x 4 fields.
    """

    SIDE, FIELDS, CONVOLVED = 32, 16, 4

    def __init__(self, channels: int = 3, width: int = 64, frozen_norm: bool = False) -> None:
        super().__init__()
        self.frozen_norm = frozen_norm
        widths = (width // 4, width // 2, width)
        layers: list[nn.Module] = []
        for source, target in zip((channels, *widths), widths, strict=False):
            # not a norm of each frame by itself: that would take away how fast things move
            layers += [nn.Conv2d(source, target, 3, stride=2, padding=1), nn.BatchNorm2d(target), nn.GELU()]
        self.net = nn.Sequential(*layers)
        self.width = channels * self.FIELDS**2 + width * self.CONVOLVED**2

    def train(self, mode: bool = True) -> MotionBranch:
        """Set the mode; frozen normalisation stays in evaluation mode."""
        super().train(mode)
        if self.frozen_norm:
            _freeze_norms(self.net)
        return self

    def forward(self, video: Tensor, before: Tensor | None = None) -> Tensor:
        """Return the features of the change.

        Args:
            video: [B,T,C,H,W].
            before: the frame in front of the first [B,C,H,W]; None: there is none.

        Returns:
            [B,T,D].
        """
        previous = torch.cat([(video[:, 0] if before is None else before)[:, None], video[:, :-1]], 1)
        change = F.adaptive_avg_pool2d((video - previous).flatten(0, 1), self.SIDE)
        plain = F.adaptive_avg_pool2d(change, self.FIELDS).flatten(1)
        return torch.unflatten(torch.cat([plain, self.net(change).flatten(1)], 1), 0, video.shape[:2])
