"""Frames stored one file each: JPEG, PNG, BMP, TIFF or WebP, through Pillow.

What is done to pixels: images become 8-bit RGB (grey is repeated, a palette is looked up, transparency is dropped).
16-bit grey and floating point images are refused, because the file does not say which value is white and a guess
would darken 10- and 12-bit recordings without a word. Masks keep their raw integers: a palette image gives its
indices, a 1-bit image 0 and 1, a 16-bit image its 16-bit values. EXIF orientation is not applied: masks are drawn on
the pixels as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image

from medvid_core.data.clip import Array
from medvid_core.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Names of image files end in one of these, in any case."""

_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """Open one image; whatever goes wrong inside becomes a `DataError` that names the file."""
    try:
        with Image.open(path) as image:
            if image.format in ("TIFF", "WEBP") and getattr(image, "n_frames", 1) > 1:
                raise DataError(
                    f"{path} holds {getattr(image, 'n_frames', 1)} images. Store one frame a file, or a video file."
                )
            yield image
    except FileNotFoundError as error:
        raise DataError(f"The image {path} does not exist. Restore it, or remove its case from the data.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"The image {path} cannot be read ({error}): it is truncated, damaged or not an image. "
            "Copy it again from its source, or remove its case from the data."
        ) from error


def size(path: str) -> tuple[int, int]:
    """Return height and width of one image; only its header is read.

    Raises:
        DataError: if the file is missing or no image.
    """
    with _opened(path) as image:
        return image.height, image.width


def read_image(path: str) -> Array:
    """Read one image as uint8 [H,W,3].

    Raises:
        DataError: if the file is missing, damaged, or has more than 8 bits a channel.
    """
    with _opened(path) as image:
        if image.mode not in _EIGHT_BIT:
            raise DataError(
                f"The image {path} has more than 8 bits a pixel (mode {image.mode}), and does not say which value is "
                "black and which white. Convert the images to 8 bits with the grey window you want."
            )
        return np.asarray(image.convert("RGB"))


def read_images(paths: Sequence[str], frames: Sequence[int]) -> Array:
    """Read the wanted frames of one case, uint8 [T,H,W,3].

    Raises:
        DataError: if a file cannot be read, or its size differs from that of the first one read.
    """
    out: Array | None = None
    for position, frame in enumerate(frames):
        image = read_image(paths[frame])
        if out is None:
            out = np.empty((len(frames), *image.shape), np.uint8)
        if image.shape != out.shape[1:]:
            raise DataError(
                f"The frame {paths[frame]} is {_extent(image)} pixels while {paths[frames[0]]} is {_extent(out[0])}: "
                "frames of one case must have one size. Resize them, or make two cases of them."
            )
        out[position] = image
    return np.empty((0, 0, 0, 3), np.uint8) if out is None else out


def read_raw_mask(path: str) -> Array:
    """Read one mask as the integers in the file, [H,W], or [H,W,3] where the mask is in colour.

    An RGB mask whose three channels are equal is grey.

    Raises:
        DataError: if the file is missing or damaged, or its pixels are no integers.
    """
    with _opened(path) as image:
        if image.mode == "F":
            raise DataError(f"The mask {path} holds floating point values. Store class numbers as an 8-bit PNG.")
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            image = image.convert("L" if image.mode == "LA" else "P" if image.mode == "PA" else "RGB")
        return grey_if_equal(np.asarray(image))


def grey_if_equal(mask: Array) -> Array:
    """Reduce a mask [...,3] whose channels are equal to [...], booleans to 0 and 1; leave any other as it is."""
    if mask.dtype == np.bool_:
        return mask.astype(np.uint8)
    if mask.ndim < 3 or mask.shape[-1] != 3:
        return mask
    red = mask[..., 0]
    equal = np.array_equal(red, mask[..., 1]) and np.array_equal(red, mask[..., 2])
    return np.ascontiguousarray(red) if equal else mask


def _extent(image: Array) -> str:
    """Width times height, as people write it."""
    return f"{image.shape[1]}x{image.shape[0]}"
