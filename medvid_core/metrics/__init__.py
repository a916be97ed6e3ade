"""Metrics: one row of values a case, and a summary over rows."""

from medvid_core.metrics.base import CaseMetric, Metric, ScoredCase, ScoredFrames

__all__ = ["CaseMetric", "Metric", "ScoredCase", "ScoredFrames"]
