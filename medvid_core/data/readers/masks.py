"""From raw mask values to class indices."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from medvid_core.data.clip import UNLABELLED, Array, Source
from medvid_core.errors import DataError

_RAW_LIMIT = 65536
_BAD = 256  # in a lookup table: a raw value that is no class


def to_classes(raw: Array, source: Source, name: str) -> Array:
    """Map raw mask values to class indices.

    Args:
        raw: [H,W] integers, or [H,W,3] where the mask is in colour.
        source: says which raw value means which class.
        name: the file (and frame) for the error text.

    Returns:
        uint8 [H,W]: class indices, `UNLABELLED` where ``source.ignore`` stood.

    Raises:
        DataError: if a value belongs to no class, or the mask is in colour and ``nonzero`` is off.
    """
    if raw.ndim == 3:
        if not source.nonzero:
            raise colour_error(name)
        raw = raw.max(axis=-1)
    if not source.values and not source.nonzero:
        raise DataError(f"No mask values are declared for {name}. Set dataset.mask_values=[…], one for each class.")
    if raw.dtype != np.uint8:
        raw = np.clip(raw, -1, _RAW_LIMIT - 1).astype(np.int64) % _RAW_LIMIT
    classes = _table(source.values, source.nonzero, source.ignore)[raw]
    if not source.nonzero and classes.max(initial=0) == _BAD:
        raise _outside(raw, classes == _BAD, source, name)
    return classes.astype(np.uint8)


def colour_error(name: str) -> DataError:
    """The error for a mask whose channels differ."""
    return DataError(
        f"The mask {name} is in colour, and colours have no class. Store class numbers (grey or palette PNG), "
        "or set dataset.mask_nonzero=true if every pixel that is not black is the one class."
    )


@functools.lru_cache(maxsize=64)
def _table(values: tuple[int, ...], nonzero: bool, ignore: int) -> Array:
    """Class of every raw value, uint16 [65536]; `_BAD` where there is none."""
    table = np.full(_RAW_LIMIT, 1 if nonzero else _BAD, np.uint16)
    if nonzero:
        table[0] = 0
    else:
        table[list(values)] = range(len(values))
    if ignore >= 0:
        table[ignore] = UNLABELLED
    return table


def _outside(raw: Array, bad: Array, source: Source, name: str) -> DataError:
    """The error for values that belong to no class."""
    found = ", ".join(str(value) for value in np.unique(raw[bad])[:8])
    ignored = f" ({source.ignore} is unlabelled)" if source.ignore >= 0 else ""
    return DataError(
        f"The mask {name} holds the values {found}, which belong to no class; "
        f"allowed are {', '.join(map(str, source.values))}{ignored}. Set dataset.mask_values=[…], one value for each "
        "class in order, or dataset.mask_nonzero=true if every non-zero pixel is the one class."
    )


def fit(mask: Array, size: tuple[int, int] | None, source: Source, name: str, frame: int) -> Array:
    """Return the mask [H,W] at ``size``: resized by nearest neighbour where ``source.options == "resize"``.

    Raises:
        DataError: if the sizes differ and resizing is not declared.
    """
    if size is None or mask.shape == size:
        return mask
    if source.options != "resize":
        raise DataError(
            f"The mask {name} is {mask.shape[1]}x{mask.shape[0]} pixels while frame {frame} of its video is "
            f"{size[1]}x{size[0]}. If both show the same field of view, set dataset.mask_resize=true; "
            "otherwise export the masks at the size of the frames."
        )
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
