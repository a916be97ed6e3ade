"""Metrics: one row of values a case, and a summary over rows."""

from medvid_core.metrics.base import Metric, ScoredFrames

__all__ = ["Metric", "ScoredFrames"]
