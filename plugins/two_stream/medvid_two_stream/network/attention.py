"""Networks of one stream with attention: a branch that says where to look, and a map that is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.specs import OutputSpec
from medvid_two_stream.config import AttentionBranchConfig, CrossAttentionConfig, TrunkConfig, channels_of
from medvid_two_stream.network.decision import only_output
from medvid_two_stream.network.inputs import look
from medvid_two_stream.network.stream import Stream
from medvid_two_stream.network.trunks import make_stream

PADDED = 8
"""Widths that the fast kernels of attention take are multiples of this."""


class OneStream(nn.Module):
    """A network of one stream, whose features are changed in front of the classifier."""

    def __init__(self, config: TrunkConfig, name: str, outputs: tuple[OutputSpec, ...]) -> None:
        super().__init__()
        self.config = config
        self.input = name
        self.output = only_output(outputs)
        self.streams = nn.ModuleDict({name: make_stream(config, config.trunk, name, len(self.output.classes))})

    @property
    def stream(self) -> Stream:
        """The stream."""
        return cast(Stream, self.streams[self.input])

    @property
    def attribution_layer(self) -> dict[str, str]:
        """The module whose output [B,D,T',H',W'] is explained."""
        return {self.input: f"streams.{self.input}.out"}


class AttentionBranch(OneStream):
    """A branch with a classifier of its own makes a map A in (0, 1), and features are weighted with 1 + A.

    Attention branch network (Fukui et al., CVPR 2019, section 3), in 3D: both classifiers are trained, ``NAME/branch``
    and ``NAME/main``, and the latter decides.
    """

    def __init__(self, config: AttentionBranchConfig, outputs: tuple[OutputSpec, ...]) -> None:
        super().__init__(config, config.input, outputs)
        width, classes = self.stream.classifier.width, len(self.output.classes)
        self.bn_att = nn.BatchNorm3d(width)
        self.att_conv = nn.Conv3d(width, classes, 1, bias=False)
        self.bn_att2 = nn.BatchNorm3d(classes)
        self.att_conv2 = nn.Conv3d(classes, classes, 1, bias=False)
        self.att_conv3 = nn.Conv3d(classes, 1, 1, bias=False)
        self.bn_att3 = nn.BatchNorm3d(1)

    def attend(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B,D,T,H,W] -> the map A [B,1,T,H,W] and the branch's logits of every place [B,K,T,H,W]."""
        classes = F.relu(self.bn_att2(self.att_conv(self.bn_att(maps))))
        return self.bn_att3(self.att_conv3(classes)).sigmoid(), self.att_conv2(classes)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the decision [B,K] and the logits of both classifiers."""
        maps, name = self.stream.maps(look(batch, self.input)), self.output.name
        where, branch = self.attend(maps)
        main = self.stream.classifier(maps * where + maps)
        return {name: main.log_softmax(1), f"{name}/branch": branch.mean((2, 3, 4)), f"{name}/main": main}


class CrossAttentionFusion(nn.Module):
    """Features ask a map, and add the answer: ``x + softmax(q k^T / sqrt(D)) v``, with one head.

    With queries q = Wq x + bq of features, and keys k = Wk c and values v = Wv c + bv of a map c of few channels, the
    product q·k_j is (Wk^T q)·c_j, and the weights sum to 1, so that

        softmax(q k^T / sqrt(D)) v = Wv (softmax((Wk^T q) c^T / sqrt(D)) c) + bv,

    the same in exact arithmetic, with vectors as wide as the map (1 or 2) in the attention rather than D = 2048. (A
    bias of the keys adds the same to all scores of a query and cancels; there is none.) PyTorch's
    `scaled_dot_product_attention` computes it without the N x N matrix of scores, N = T·H·W.

    Args:
        width: features D.
        context: channels of the map.
    """

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.query_proj = nn.Conv3d(width, width, 1)
        self.key_proj = nn.Conv3d(context, width, 1, bias=False)
        self.value_proj = nn.Conv3d(context, width, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return x [B,D,T,H,W] with what it found in the context [B,C,T',H',W'], which is brought to its size."""
        if context.shape[2:] != x.shape[2:]:
            context = F.interpolate(context, x.shape[2:], mode="trilinear", align_corners=False)
        place = context.flatten(2).transpose(1, 2)
        place = F.pad(place, (0, -place.shape[2] % PADDED))
        key = self.key_proj.weight.flatten(1)
        asked = self.query_proj(x).flatten(2).transpose(1, 2) @ F.pad(key, (0, -key.shape[1] % PADDED))
        scale = x.shape[1] ** -0.5
        found = F.scaled_dot_product_attention(asked[:, None], place[:, None], place[:, None], scale=scale)[:, 0]
        answer = found[..., : context.shape[1]].transpose(1, 2)
        return x + cast(Tensor, self.value_proj(torch.unflatten(answer, 2, x.shape[2:])))


class CrossAttention(OneStream):
    """A stream whose last features ask where the person is, or how it moves (see `CrossAttentionFusion`)."""

    def __init__(self, config: CrossAttentionConfig, outputs: tuple[OutputSpec, ...]) -> None:
        super().__init__(config, config.input, outputs)
        self.context = config.context
        self.fusion = CrossAttentionFusion(self.stream.classifier.width, channels_of(config.context))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the logits [B,K]."""
        maps = self.stream.maps(look(batch, self.input))
        return {self.output.name: self.stream.classifier(self.fusion(maps, look(batch, self.context)))}
