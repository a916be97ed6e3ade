"""Reading frames and masks: one entry each, whatever the files are.

A `Source` names its reader: ``frames`` (one file a frame), ``video``, ``dicom`` or ``nifti`` (one file), or
``"module:attribute"`` of a function ``(source, frame_indices) -> uint8 [T,H,W] or [T,H,W,3]``. Masks are mapped from
raw values to class indices. Streams of other kinds (`Source.kind`) come through `read_stream`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from medvid_core.data.clip import UNLABELLED, Array, Case, Reader, Source
from medvid_core.data.readers import dicom, masks, nifti, video
from medvid_core.data.readers import frames as frame_files
from medvid_core.errors import DataError
from medvid_core.specs import resolve

__all__ = ["frame_count", "frame_times", "image_size", "read_images", "read_masks", "read_stream"]

_ONE_FILE: dict[str, ModuleType] = {"video": video, "dicom": dicom, "nifti": nifti}
_RAW = {"video": video.read, "dicom": dicom.read_raw, "nifti": nifti.read_raw}


def read_images(source: Source, frames: Sequence[int]) -> Array:
    """Read the wanted frames, in any order and with repeats.

    Returns:
        uint8 [T,H,W,3]; grey is repeated.

    Raises:
        DataError: if a file is missing, truncated or damaged, or the frames differ in size; the text names it.
    """
    if source.reader == "frames":
        _check_range(source, frames)
        return frame_files.read_images(source.paths, frames)
    if source.reader in _ONE_FILE:
        images: Array = _ONE_FILE[source.reader].read(_only_path(source), frames)
        return images
    images = _generated(source, frames)
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)


def read_masks(source: Source, frames: Sequence[int], size: tuple[int, int] | None = None) -> Array:
    """Read the masks of the wanted frames as class indices.

    Args:
        source: where they are, and which raw value means which class.
        frames: frame numbers, in any order and with repeats.
        size: height and width of the frames; a mask of another size is resized (nearest neighbour) where
            ``source.options == "resize"`` and an error elsewhere. None: as stored.

    Returns:
        uint8 [T,H,W]: class indices, `UNLABELLED` where nobody annotated and for frames without a mask.

    Raises:
        DataError: if a file cannot be read, a value belongs to no class, or sizes differ; the text names the file.
    """
    if source.reader == "frames":
        _check_range(source, frames)
        return _mask_files(source, frames, size)
    if source.reader in _RAW:
        path = _only_path(source)
        raw, origin = frame_files.grey_if_equal(_RAW[source.reader](path, frames)), path
    else:
        raw, origin = frame_files.grey_if_equal(_generated(source, frames)), source.reader
    out = []
    for frame, mask in zip(frames, raw, strict=True):
        name = f"{origin} (frame {frame})"
        out.append(masks.fit(masks.to_classes(mask, source, name), size, source, name, frame))
    return np.stack(out) if out else np.empty((0, *(size or (0, 0))), np.uint8)


def read_stream(source: Source, frames: Sequence[int]) -> Array:
    """Read a stream beside video and annotation, by its kind.

    Returns:
        image: uint8 [T,3,H,W]; mask: uint8 [T,1,H,W], 255 is certain; vector: float32 [T,2,H,W], dx and dy in pixels.

    Raises:
        DataError: a file cannot be read, or the reader gives something else; the text names it.
    """
    if source.kind == "image":
        return np.ascontiguousarray(read_images(source, frames).transpose(0, 3, 1, 2))
    if source.kind == "mask":
        images = read_images(source, frames) if source.reader in ("frames", *_RAW) else _generated(source, frames)
        return np.ascontiguousarray((images if images.ndim == 3 else images[..., 0])[:, None])
    if source.kind != "vector":
        raise DataError(f"A stream is of the kind image, mask or vector, not {source.kind!r}.")
    vectors: Array = np.asarray(resolve(source.reader)(source, frames))
    if vectors.ndim != 4 or vectors.shape[:2] != (len(frames), 2) or vectors.dtype != np.float32:
        raise DataError(
            f"The reader {source.reader} gave {vectors.dtype} of shape {vectors.shape} for {len(frames)} frames of "
            "vectors; it must give float32 [T,2,H,W]."
        )
    return vectors


def frame_times(case: Case) -> list[float]:
    """Return when each frame of a case was taken, in seconds: as the case or its video file says, or by its rate.

    A rate that is not the file's own is the user's, who knows better: the file's time stamps do not count then. Where
    nothing is known, frame numbers.

    Raises:
        DataError: the video cannot be read.
    """
    if case.times_s:
        return list(case.times_s)
    source = case.streams["video"]
    if source.reader == "video":
        path = _only_path(source)
        stamps, rate = video.frame_times(path), video.probe(path).fps
        given = case.fps is not None and (rate is None or not math.isclose(case.fps, rate, rel_tol=2e-3))
        if len(stamps) == case.frames and not given:
            return list(stamps)
    return [frame / (case.fps or 1.0) for frame in range(case.frames)]


def frame_count(source: Source) -> int:
    """Return the number of frames.

    Raises:
        DataError: if a file cannot be read, or the source is generated (its `Case` knows).
    """
    if source.reader == "frames":
        return len(source.paths)
    if source.reader in _ONE_FILE:
        return int(_ONE_FILE[source.reader].count_frames(_only_path(source)))
    raise DataError(f"The reader {source.reader} does not tell its number of frames: take it from the case.")


def image_size(source: Source) -> tuple[int, int]:
    """Return height and width of the first frame that has a file.

    Raises:
        DataError: if it cannot be read.
    """
    if source.reader == "frames":
        first = next((path for path in source.paths if path), None)
        if first is None:
            raise DataError("A source without any file has no image size.")
        return frame_files.size(first)
    if source.reader in _ONE_FILE:
        height, width = _ONE_FILE[source.reader].size(_only_path(source))
        return height, width
    shape = _generated(source, [0]).shape
    return shape[1], shape[2]


def _mask_files(source: Source, frames: Sequence[int], size: tuple[int, int] | None) -> Array:
    """Read one mask file a frame, [T,H,W]; a frame without a file is unlabelled."""
    expected = size or image_size(source)
    out = np.full((len(frames), *expected), UNLABELLED, np.uint8)
    for position, frame in enumerate(frames):
        path = source.paths[frame]
        if path:
            mask = masks.to_classes(frame_files.read_raw_mask(path), source, path)
            out[position] = masks.fit(mask, expected, source, path, frame)
    return out


def _generated(source: Source, frames: Sequence[int]) -> Array:
    """Call the source's own reader and check what it gives: uint8 [T,H,W] or [T,H,W,3]."""
    reader: Reader = resolve(source.reader)
    array = reader(source, frames)
    shape: tuple[int, ...] = getattr(array, "shape", ())
    valid = len(shape) == 3 or (len(shape) == 4 and shape[-1] == 3)
    if not valid or shape[0] != len(frames) or array.dtype != np.uint8:
        raise DataError(
            f"The reader {source.reader} gave {getattr(array, 'dtype', type(array).__name__)} of shape "
            f"{tuple(shape)} for {len(frames)} frames; it must give uint8 [T,H,W] or [T,H,W,3]."
        )
    return array


def _check_range(source: Source, frames: Sequence[int]) -> None:
    """Raise `DataError` for a frame number outside the source."""
    for frame in frames:
        if not 0 <= frame < len(source.paths):
            where = source.paths[0] if source.paths else "a source without files"
            raise DataError(f"Frame {frame} was asked of the {len(source.paths)} frames starting with {where}.")


def _only_path(source: Source) -> str:
    """Return the path of the one file of a source."""
    if len(source.paths) != 1:
        raise DataError(
            f"A {source.reader} source must name one file, not {len(source.paths)}: {', '.join(source.paths[:3])}."
        )
    return source.paths[0]
