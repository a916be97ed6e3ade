"""The two-stream networks and their baselines. The ``build_*`` functions make them."""

from __future__ import annotations

from medvid_core.specs import OutputSpec
from medvid_two_stream.config import AttentionBranchConfig, CNNLSTMConfig, CrossAttentionConfig, TwoStreamConfig
from medvid_two_stream.network.attention import AttentionBranch, CrossAttention
from medvid_two_stream.network.recurrent import CNNLSTM
from medvid_two_stream.network.two_stream import TwoStream

Outputs = tuple[OutputSpec, ...]


def build_two_stream(config: TwoStreamConfig, outputs: Outputs) -> TwoStream:
    """Build one or more streams and their fusion."""
    return TwoStream(config, outputs)


def build_cnn_lstm(config: CNNLSTMConfig, outputs: Outputs) -> CNNLSTM:
    """Build the recurrent baseline."""
    return CNNLSTM(config, outputs)


def build_attention_branch(config: AttentionBranchConfig, outputs: Outputs) -> AttentionBranch:
    """Build the network with an attention branch."""
    return AttentionBranch(config, outputs)


def build_cross_attention(config: CrossAttentionConfig, outputs: Outputs) -> CrossAttention:
    """Build the network that asks a map."""
    return CrossAttention(config, outputs)
