"""MediViSTA-SAM (Kim et al., 2023 and 2025) as a medvid plugin, written anew from its published description."""

__version__ = "0.1.0"
