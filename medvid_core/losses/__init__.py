"""Losses that any model may use."""

from medvid_core.losses.base import ChecksTraining, Loss, segmentation_output

__all__ = ["ChecksTraining", "Loss", "segmentation_output"]
