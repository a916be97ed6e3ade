"""Two-stream 3D networks of walking people as a medvid plugin."""

__version__ = "0.1.0"
