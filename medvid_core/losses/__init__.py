"""Losses that any model may use."""

from medvid_core.losses.base import ChecksTraining, Loss

__all__ = ["ChecksTraining", "Loss"]
