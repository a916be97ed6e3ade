"""Trunks by name: the slow networks, and torchvision's behind the same interface."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from torchvision.models.video import mvit_v2_s, r2plus1d_18, r3d_18, swin3d_t

from medvid_two_stream.config import SLOW_BLOCKS, TORCHVISION_IMAGE, TrunkConfig, channels_of
from medvid_two_stream.network.slow import SlowResNet, Stem, head_window
from medvid_two_stream.network.stream import ClipStream, FrameStream, Head, Published, Stream

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MVIT = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


class MViTMaps(nn.Module):
    """torchvision's MViT for clips of any length and size: features of all places, not of the class token.

    Its relative positions are stretched to the clip, as torchvision does itself between stages.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.conv_proj = net.conv_proj
        self.pos_encoding = net.pos_encoding
        self.blocks = net.blocks
        self.norm = net.norm

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> [B,D,T/2,H/32,W/32]."""
        x = self.conv_proj(x)
        place = tuple(x.shape[2:])
        x = self.pos_encoding(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            x, place = block(x, place)
        return torch.unflatten(self.norm(x)[:, 1:].transpose(1, 2), 2, place)


class SwinMaps(nn.Module):
    """torchvision's video Swin transformer up to its pool."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.patch_embed = net.patch_embed
        self.pos_drop = net.pos_drop
        self.features = net.features
        self.norm = net.norm

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> [B,D,T/2,H/32,W/32]."""
        x = self.norm(self.features(self.pos_drop(self.patch_embed(x))))
        return x.permute(0, 4, 1, 2, 3)


def _with_channels(parent: nn.Module, name: str, channels: int) -> None:
    """Replace a first convolution by one for other inputs."""
    old = cast(Any, getattr(parent, name))
    if old.in_channels == channels:
        return
    new = type(old)(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    setattr(parent, name, new)


def image_net(trunk: str, channels: int) -> Any:
    """Return torchvision's image network for inputs of any number of channels, freshly initialised."""
    net = {"resnet18": resnet18, "resnet50": resnet50}[trunk](weights=None)
    _with_channels(net, "conv1", channels)
    return net


def _layers(net: nn.Module, without: tuple[str, ...]) -> nn.Sequential:
    """Return the children of a network that runs them one after the other, under their names."""
    return nn.Sequential(OrderedDict((name, child) for name, child in net.named_children() if name not in without))


def _torchvision_video(trunk: str, channels: int) -> tuple[nn.Module, int, Published]:
    """Return body, features and names of files of a torchvision network."""
    if trunk == "mvit_v2_s":
        net = mvit_v2_s(weights=None)
        _with_channels(net, "conv_proj", channels)
        return MViTMaps(net), 768, Published("conv_proj.weight", "head", "body.", *MVIT)
    if trunk == "swin3d_t":
        net = swin3d_t(weights=None)
        _with_channels(net.patch_embed, "proj", channels)
        return SwinMaps(net), net.num_features, Published("patch_embed.proj.weight", "head", "body.", *IMAGENET)
    net = {"r3d_18": r3d_18, "r2plus1d_18": r2plus1d_18}[trunk](weights=None)
    _with_channels(net.stem, "0", channels)
    return _layers(net, without=("avgpool", "fc")), 512, Published("stem.0.weight", "fc")


def make_stream(config: TrunkConfig, trunk: str, name: str, classes: int) -> Stream:
    """Make a stream.

    Args:
        config: its sizes.
        trunk: which network.
        name: what it looks at.
        classes: K; 0 for features alone.
    """
    channels = channels_of(name)
    if trunk in SLOW_BLOCKS:
        window = head_window(config.scratch) if config.compat else None
        head = Head(32 * config.width, classes, config.dropout, window, one_logit=config.compat)
        net = SlowResNet(channels, head, config.blocks or SLOW_BLOCKS[trunk], config.width, config.scratch)
        if config.compat:  # the original puts the stem in anew, as torch initialises it
            cast(Stem, net.blocks[0]).conv.reset_parameters()
        return net
    if trunk in TORCHVISION_IMAGE:
        net = image_net(trunk, channels)
        # the original's has no dropout
        dropout = 0.0 if config.compat else config.dropout
        head = Head(net.fc.in_features, classes, dropout, one_logit=config.compat, per_frame=True)
        frames = _layers(net, without=("avgpool", "fc"))
        return FrameStream(frames, head, Published("conv1.weight", "fc", "body.", *IMAGENET), config.compat)
    body, width, published = _torchvision_video(trunk, channels)
    return ClipStream(body, Head(width, classes, config.dropout), published)
