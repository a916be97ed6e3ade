"""Masks stored as one file a class: each pixel belongs to the class whose file is brightest there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvid_core.data.clip import Array, Source
from medvid_core.data.readers.frames import read_raw_mask
from medvid_core.errors import DataError

READER = f"{__name__}:read"


def read(source: Source, frames: Sequence[int]) -> Array:
    """Read the wanted frames as class indices.

    Ties go to the earlier class, and pixels that no file covers to the first, the background: as the ovarian fork of
    Vivim stacks its masks.

    Args:
        source: ``paths`` holds, frame after frame, one file for each of its ``values``; ``""`` is an empty mask.
        frames: frame numbers, each with one file at least.

    Returns:
        uint8 [T,H,W].

    Raises:
        DataError: a file cannot be read, or the files of a frame, or the frames, differ in size.
    """
    count = len(source.values)
    masks = [_of_frame(source.paths[frame * count : (frame + 1) * count]) for frame in frames]
    for frame, mask in zip(frames, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise DataError(
                f"The masks of frame {frame} are {_size(mask)} pixels while those of frame {frames[0]} are "
                f"{_size(masks[0])} ({source.paths[frame * count]}). Give all frames of a case one size."
            )
    return np.stack(masks)


def _of_frame(paths: Sequence[str]) -> Array:
    """The class of each pixel of one frame."""
    layers: dict[int, Array] = {}
    for number, path in enumerate(paths):
        if not path:
            continue
        raw = read_raw_mask(path)
        layers[number] = raw.max(axis=-1) if raw.ndim == 3 else raw
    size = next(iter(layers.values())).shape
    for number, layer in layers.items():
        if layer.shape != size:
            first = paths[next(iter(layers))]
            raise DataError(
                f"The mask {paths[number]} is {_size(layer)} pixels while {first} is {size[1]}x{size[0]}: the masks of "
                "a frame must have one size. Export them anew."
            )
    empty = np.zeros(size, np.uint16)
    stacked = np.stack([layers.get(number, empty) for number in range(len(paths))])
    classes: Array = stacked.argmax(0).astype(np.uint8)
    return classes


def _size(mask: Array) -> str:
    return f"{mask.shape[1]}x{mask.shape[0]}"
