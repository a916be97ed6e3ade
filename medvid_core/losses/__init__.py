"""Losses that any model may use."""

from medvid_core.losses.base import Loss

__all__ = ["Loss"]
