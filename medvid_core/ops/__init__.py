"""Numerical building blocks shared by models: the selective scan and the Mamba mixers built on it."""

from medvid_core.ops.mamba import MambaMixer, SpatioTemporalMixer, causal_conv1d
from medvid_core.ops.scan import BACKENDS, selective_scan

__all__ = ["BACKENDS", "MambaMixer", "SpatioTemporalMixer", "causal_conv1d", "selective_scan"]
