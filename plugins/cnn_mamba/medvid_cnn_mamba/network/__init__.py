"""CNN-Mamba's network and those it is compared with. The ``build_*`` functions make them."""

from __future__ import annotations

from medvid_cnn_mamba.config import (
    CNNConfig,
    CNNGRUConfig,
    CNNMambaConfig,
    CNNSNNConfig,
    CNNTransformerConfig,
    R2Plus1DConfig,
    SNNConfig,
)
from medvid_cnn_mamba.network.r2plus1d import R2Plus1D
from medvid_cnn_mamba.network.spiking import SpikingNet
from medvid_cnn_mamba.network.temporal import GRUStack, MambaStack, NoStack, TransformerStack
from medvid_cnn_mamba.network.video import ForecastNet, VideoNet
from medvid_core.specs import OutputSpec

CHANNELS = 3

Outputs = tuple[OutputSpec, ...]


def build_cnn_mamba(config: CNNMambaConfig, outputs: Outputs) -> VideoNet | ForecastNet:
    """Build CNN-Mamba."""
    stack = MambaStack(
        config.width, config.layers, config.state_size, config.bidirectional, config.dropout, config.scan_backend
    )
    kind = ForecastNet if config.anomaly == "forecast" else VideoNet
    return kind(config, CHANNELS, outputs, stack)


def build_cnn(config: CNNConfig, outputs: Outputs) -> VideoNet:
    """Build the per-frame network with pooling."""
    return VideoNet(config, CHANNELS, outputs, NoStack())


def build_cnn_gru(config: CNNGRUConfig, outputs: Outputs) -> VideoNet:
    """Build the recurrent baseline."""
    return VideoNet(config, CHANNELS, outputs, GRUStack(config.width, config.layers, config.dropout))


def build_cnn_transformer(config: CNNTransformerConfig, outputs: Outputs) -> VideoNet:
    """Build the attention baseline."""
    stack = TransformerStack(config.width, config.layers, config.heads, config.longest, config.dropout)
    return VideoNet(config, CHANNELS, outputs, stack)


def build_r2plus1d(config: R2Plus1DConfig, outputs: Outputs) -> R2Plus1D:
    """Build R(2+1)D-18, the baseline of EchoNet-Dynamic."""
    return R2Plus1D(config, outputs)


def build_snn(config: SNNConfig, outputs: Outputs) -> SpikingNet:
    """Build the spiking baseline.

    Raises:
        ConfigError: spikingjelly is not installed.
    """
    return SpikingNet(config, CHANNELS, outputs)


def build_cnn_snn(config: CNNSNNConfig, outputs: Outputs) -> SpikingNet:
    """Build the spiking baseline with an analog stem.

    Raises:
        ConfigError: spikingjelly is not installed.
    """
    return SpikingNet(config, CHANNELS, outputs)
