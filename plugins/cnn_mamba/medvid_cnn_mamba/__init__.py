"""CNN-Mamba as a medvid plugin: a design of our own, after the idea of an unpublished project."""

__version__ = "0.1.0"
