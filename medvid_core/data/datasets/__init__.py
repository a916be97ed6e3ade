"""Adapters of data sets: each module turns one layout of files into an `Index`, opening as few files as it can.

Every adapter has a config dataclass, ``can_read(root)`` (file names only) and ``index(root, config)``. Reading frames
is the job of `medvid_core.data.readers`.
"""
