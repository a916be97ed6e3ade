"""A stream: from an input to a map of features, and from there to logits."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.errors import ConfigError
from medvid_two_stream.network.inputs import as_pictures

KINETICS_MEAN = (0.43216, 0.394666, 0.37645)
KINETICS_STD = (0.22803, 0.22145, 0.216989)
"""Of torchvision's 3D networks, for pictures in [0, 1]."""

Window = tuple[int, int, int]


class Published(NamedTuple):
    """How published files of a trunk name things.

    Attributes:
        stem: the first convolution.
        classifier: beginning of the classifier's names.
        inside: what our names of the trunk's parameters begin with, and those of the files do not.
        mean: that the pictures were normalised with.
        std: likewise.
    """

    stem: str
    classifier: str
    inside: str = "body."
    mean: tuple[float, float, float] = KINETICS_MEAN
    std: tuple[float, float, float] = KINETICS_STD


class Head(nn.Module):
    """Pool, drop out, and a linear layer.

    Args:
        width: features D.
        classes: K; 0 for no classifier, where another one reads the features.
        dropout: probability.
        window: pool over windows of so many frames, rows and columns, one step apart, classify each window and average
            the logits. As the classifier is affine, that is a mean of the features whose weights over time form a
            trapezoid (with 17 frames and windows of 8: 1, 2, …, 8, 8, 8, …, 2, 1), and fewer frames than a window has
            are an error. Dropout is drawn anew for every window. None: the mean over all places, of any number.
        one_logit: two classes from one logit z, as (0, z): softmax is then sigmoid, cross-entropy binary.
        per_frame: leave time alone, and answer for every frame.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        dropout: float = 0.0,
        window: Window | None = None,
        one_logit: bool = False,
        per_frame: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.window = window
        self.one_logit = one_logit and classes == 2
        self.per_frame = per_frame
        self.dropout = nn.Dropout(dropout)
        if classes:
            self.proj = nn.Linear(width, 1 if self.one_logit else classes)
            if not one_logit:  # the original's begins as torch initialises it
                nn.init.normal_(self.proj.weight, std=0.01)
                nn.init.zeros_(self.proj.bias)

    def pool(self, maps: Tensor) -> Tensor:
        """Maps [B,D,T,H,W] -> [B,T',H',W',D]: one place, one a frame, or one a window.

        Raises:
            ConfigError: the maps are smaller than the window.
        """
        if self.window is None:
            return maps.mean((3, 4) if self.per_frame else (2, 3, 4), keepdim=True).permute(0, 2, 3, 4, 1)
        if any(have < need for have, need in zip(maps.shape[2:], self.window, strict=True)):
            frames, height, width = self.window
            raise ConfigError(
                f"model.compat=true pools features over {frames} frames and {height}x{width} places, and these clips "
                f"give {maps.shape[2]} frames and {maps.shape[3]}x{maps.shape[4]} places. Use at least {frames} frames "
                f"(one more where flow is read) of at least {32 * (height - 1) + 1} pixels, or model.compat=false."
            )
        return F.avg_pool3d(maps, self.window, stride=1).permute(0, 2, 3, 4, 1)

    def features(self, maps: Tensor) -> Tensor:
        """Maps [B,D,T,H,W] -> [B,D], or of every frame [B,T,D]."""
        return self.pool(maps).mean((2, 3) if self.per_frame else (1, 2, 3))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B,D,T,H,W] -> logits [B,K], or of every frame [B,T,K]."""
        logits = self.proj(self.dropout(self.pool(maps))).mean((2, 3) if self.per_frame else (1, 2, 3))
        return F.pad(logits, (1, 0)) if self.one_logit else logits


class Stream(nn.Module):
    """A trunk with its classifier; trunks say in `look` how they see.

    Attributes:
        published: how files of this trunk name things.
        head_name: module that holds the classifier.
    """

    published: Published
    head_name = "head"

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Identity()

    def look(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> [B,D,T',H',W']."""
        raise NotImplementedError

    @property
    def classifier(self) -> Head:
        """The classifier."""
        return cast(Head, self.get_submodule(self.head_name))

    def maps(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> features [B,D,T',H',W'], which pass through the module ``out``: what attribution explains."""
        return cast(Tensor, self.out(self.look(x)))

    def features(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> [B,D], or of every frame [B,T,D]."""
        return self.classifier.features(self.maps(x))

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> logits [B,K], or of every frame [B,T,K]."""
        return cast(Tensor, self.classifier(self.maps(x)))


class ClipStream(Stream):
    """A stream whose trunk maps clips [B,C,T,H,W] to [B,D,T',H',W']."""

    def __init__(self, body: nn.Module, head: Head, published: Published) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.published = published

    def look(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> [B,D,T',H',W']."""
        return cast(Tensor, self.body(x))


class FrameStream(ClipStream):
    """A stream whose trunk maps single frames [N,C,H,W] to [N,D,H',W'].

    Args:
        body: the trunk.
        head: a classifier of every frame.
        published: how files of this trunk name things.
        scrambled: mix channels and time as the original does, see `as_pictures`.
    """

    def __init__(self, body: nn.Module, head: Head, published: Published, scrambled: bool = False) -> None:
        super().__init__(body, head, published)
        self.scrambled = scrambled

    def look(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] -> [B,D,T,H',W']."""
        maps = self.body(as_pictures(x, self.scrambled))
        return torch.unflatten(maps, 0, (x.shape[0], x.shape[2])).transpose(1, 2)
