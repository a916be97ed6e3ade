"""Vivim's network. `build` makes it."""

from medvid_vivim.network.vivim import Vivim, build

__all__ = ["Vivim", "build"]
