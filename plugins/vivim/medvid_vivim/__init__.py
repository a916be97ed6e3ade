"""Vivim (Yang et al., IEEE TCSVT 2025) as a medvid plugin, written anew from its published description."""

__version__ = "0.1.0"
