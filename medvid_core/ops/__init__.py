"""Numerical building blocks shared by models: the selective scan and the Mamba mixers built on it."""

from medvid_core.ops.backends import BACKENDS, choose_backend
from medvid_core.ops.conv import causal_conv1d
from medvid_core.ops.depthwise import depthwise_conv
from medvid_core.ops.mamba import BidirectionalMixer, MambaMixer, MixerState, ScanMixer, SpatioTemporalMixer
from medvid_core.ops.scan import selective_scan

__all__ = [
    "BACKENDS",
    "BidirectionalMixer",
    "MambaMixer",
    "MixerState",
    "ScanMixer",
    "SpatioTemporalMixer",
    "causal_conv1d",
    "choose_backend",
    "depthwise_conv",
    "selective_scan",
]
