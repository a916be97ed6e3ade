"""DICOM cines, one frame or many, through pydicom, which is imported when such a file is read.

What is done to pixels: grey of 8 bits is taken as it is; of more bits, or signed, it is drawn through the grey window
or look-up table that the file names (PS3.3 C.11.2; one for all frames, so that they stay comparable), and refused where
it names none, because a guess would darken 10- and 12-bit recordings without a word. MONOCHROME1 is inverted, YBR
becomes RGB, a palette is looked up. As masks, pixels keep their raw integers.

No name, id or date of a patient is put into any result, error text, warning or log: in a damaged header any element may
hold them, and pydicom quotes what it cannot read. See also `medvid_core.data.readers.dicom_header`.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from medvid_core.data.clip import Array
from medvid_core.data.readers import dicom_header as header
from medvid_core.data.readers.cine import CineInfo, check_range, signature
from medvid_core.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

SUFFIXES = (".dcm", ".dicom")
"""Names of DICOM files end in one of these, in any case; files of no known ending are told by `has_magic`."""

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PALETTE = "PALETTE COLOR"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_JPEG_12_BIT = "1.2.840.10008.1.2.4.51"
_DECODERS = ("pydicom", "pillow", "pylibjpeg", "pyjpegls", "gdcm")  # the same one wherever it is there: same pixels
_UNDEFINED = 0xFFFFFFFF
_REMEDY = "Copy it again from its source, or remove its case from the data."


def has_magic(path: Path) -> bool:
    """Whether a file holds ``DICM`` at byte 128, as every DICOM file does."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def probe(path: str) -> CineInfo:
    """Read the header, and look whether all frames are there; no frame is decoded.

    Raises:
        DataError: if the file is missing, no DICOM file, holds no pixels, is truncated, or is compressed in a way that
            nothing installed can read.
    """
    return _probe(*signature(path, "DICOM file"))


@functools.lru_cache(maxsize=4096)
def _probe(path: str, size: int, changed: int) -> CineInfo:
    with _opened(path) as (dataset, file):
        frames = _frames(dataset)
        if not _at_pixels(file, dataset):
            raise DataError(f"The DICOM file {path} holds no pixels: it is truncated, or no image. {_REMEDY}")
        _decoder(dataset, path)
        _check_complete(file, dataset, path, size)
        fps, times = header.timing(dataset, frames)
        return CineInfo(frames, fps, header.spacing(dataset), times, header.patient(dataset))


def count_frames(path: str) -> int:
    """Return the number of frames.

    Raises:
        DataError: see `probe`.
    """
    return probe(path).frames


def size(path: str) -> tuple[int, int]:
    """Return height and width.

    Raises:
        DataError: if the file is missing or no image.
    """
    with _opened(path) as (dataset, _):
        return int(dataset.Rows), int(dataset.Columns)


def read(path: str, frames: Sequence[int]) -> Array:
    """Read the wanted frames, in any order and with repeats, as uint8 [T,H,W,3]; the others are not decoded.

    Raises:
        DataError: if the file is missing, truncated or damaged, or does not say how its values look.
    """
    return _gather(path, frames, raw=False)


def read_raw(path: str, frames: Sequence[int]) -> Array:
    """Read the wanted frames with the integers in the file, [T,H,W], or [T,H,W,3] where they are in colour.

    Raises:
        DataError: if the file is missing, truncated or damaged.
    """
    return _gather(path, frames, raw=True)


def _gather(path: str, frames: Sequence[int], raw: bool) -> Array:
    """Decode each wanted frame once, and put it where it was asked for."""
    wanted = sorted(set(frames))
    places: dict[int, list[int]] = {}
    for position, number in enumerate(frames):
        places.setdefault(number, []).append(position)
    out: Array | None = None
    with _opened(path) as (dataset, _):
        check_range(path, wanted, _frames(dataset))
        for number, pixels in zip(wanted, _decode(path, dataset, wanted), strict=True):
            picture = pixels if raw else _to_rgb(pixels, dataset, path)
            if out is None:
                out = np.empty((len(frames), *picture.shape), picture.dtype)
            out[places[number]] = picture
    return np.empty((0, 0, 0, 3), np.uint8) if out is None else out


class _Hush(logging.Filter):
    """Drops what is logged by threads that are reading."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        return threading.get_ident() not in self.threads


_hush = _Hush()


@functools.cache
def _hush_pydicom() -> None:
    """Attach the filter to every logger of pydicom: a logger does not ask the filters of those above it."""
    importlib.import_module("pydicom.pixels.decoders")  # its loggers are there once it is imported
    for name in list(logging.Logger.manager.loggerDict):
        if name.split(".")[0] == "pydicom":
            logging.getLogger(name).addFilter(_hush)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep back what pydicom warns of and logs: it quotes values, which may be names."""
    _hush_pydicom()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _hush.threads.add(threading.get_ident())
        try:
            yield
        finally:
            _hush.threads.discard(threading.get_ident())


@contextmanager
def _opened(path: str) -> Iterator[tuple[Dataset, BinaryIO]]:
    """Read the header, and leave the file where the pixels begin; what goes wrong is a `DataError` naming the file."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        with _silent(), open(path, "rb") as file:
            yield dcmread(file, stop_before_pixels=True, specific_tags=list(header.TAGS)), file
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"The DICOM file {path} does not exist. Restore it, or remove its case from the data."
        ) from error
    except InvalidDicomError as error:
        raise DataError(f"{path} is no DICOM file: DICM does not stand at byte 128. {_REMEDY}") from error
    except Exception as error:  # pydicom and its decoders raise nearly anything on damaged data
        # of the error its kind alone: its text quotes values, which may be names
        raise DataError(
            f"The DICOM file {path} cannot be decoded ({type(error).__name__}): it is truncated or damaged. {_REMEDY}"
        ) from None


def _frames(dataset: Dataset) -> int:
    """Number of frames the header declares, one where it does not say."""
    return int(dataset.get("NumberOfFrames") or 1)


def _decode(path: str, dataset: Dataset, wanted: Sequence[int]) -> Iterator[Array]:
    """Yield the pixels of these frames, colours as RGB."""
    from pydicom import dcmread
    from pydicom.pixels.utils import iter_pixels

    syntax, decoder = dataset.file_meta.TransferSyntaxUID, _decoder(dataset, path)
    # from the path, so that other frames are not even read; a deflated file has to be read whole
    source = dcmread(path) if syntax == _DEFLATED else path
    at_once = [wanted] if wanted else []
    if dataset.PhotometricInterpretation == "YBR_FULL_422" and not syntax.is_encapsulated:
        # pydicom 3.0 takes the second frame it yields, and all that follow, for one without subsampling
        at_once = [[number] for number in wanted]
    for indices in at_once:
        yield from iter_pixels(source, indices=indices, decoding_plugin=decoder)


def _decoder(dataset: Dataset, path: str) -> str:
    """Name the decoder to use, empty where pixels are not compressed.

    Raises:
        DataError: if none is installed, or there is none.
    """
    from pydicom.pixels.decoders.base import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(
            f"The DICOM file {path} is compressed as {_name(syntax)}, which is not read. Convert it: a video stream "
            "with 'dcmdump +W' and FFmpeg to .mp4, an image with 'gdcmconv --raw'."
        ) from None
    if not decoder.is_available:
        raise DataError(
            f"The DICOM file {path} is compressed as {_name(syntax)}, for which no decoder is installed. Install them "
            "with: pip install 'medvid-core[dicom]'."
        )
    usable = [name for name in _DECODERS if name in decoder.available_plugins]
    if syntax == _JPEG_12_BIT and _bits(dataset) > 8 and "pillow" in usable:
        usable.remove("pillow")  # reads 8 bits only
        if not usable:
            raise DataError(
                f"The DICOM file {path} is a JPEG of {_bits(dataset)} bits, for which no decoder is installed. "
                "Install one with: pip install 'medvid-core[dicom]'."
            )
    return usable[0] if usable else ""


def _name(syntax: UID) -> str:
    """What a transfer syntax is called; nothing of a text that is none: in a damaged file it may hold a name."""
    return str(syntax.name) if syntax.is_transfer_syntax else "something unknown"


def _bits(dataset: Dataset) -> int:
    """Bits a pixel.

    Raises:
        ValueError: if there cannot be so many.
    """
    bits = int(dataset.BitsStored)
    if not 1 <= bits <= 64:
        raise ValueError
    return bits


def _at_pixels(file: BinaryIO, dataset: Dataset) -> bool:
    """Whether pixels begin where the file stands."""
    start = file.tell()
    found = len(file.read(8)) == 8
    file.seek(start)
    return found or dataset.file_meta.TransferSyntaxUID == _DEFLATED


def _check_complete(file: BinaryIO, dataset: Dataset, path: str, size: int) -> None:
    """Raise `DataError` if fewer bytes, or fewer compressed frames, follow than the header declares."""
    from pydicom.encaps import parse_fragments
    from pydicom.pixels.utils import get_expected_length

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == _DEFLATED:
        return
    order = "<" if syntax.is_little_endian else ">"
    file.seek(4 if syntax.is_implicit_VR else 8, os.SEEK_CUR)
    (length,) = struct.unpack(f"{order}L", file.read(4))
    if length != _UNDEFINED:
        complete = size - file.tell() >= get_expected_length(dataset)
    else:
        count, offsets = parse_fragments(file)
        file.seek(offsets[-1] + 4)
        complete = count > _frames(dataset)  # the first one is the table of offsets
        complete = complete and offsets[-1] + 8 + struct.unpack("<L", file.read(4))[0] <= size
    if not complete:
        raise DataError(
            f"The DICOM file {path} declares more frames than it holds: it is truncated or damaged. {_REMEDY}"
        )


def _to_rgb(pixels: Array, dataset: Dataset, path: str) -> Array:
    """Return one decoded frame as uint8 [H,W,3]."""
    from pydicom.pixels.processing import apply_color_lut

    kind = str(dataset.PhotometricInterpretation)
    if kind in _GREY:
        grey = _grey(pixels, dataset, path)
        return np.repeat((255 - grey if kind == "MONOCHROME1" else grey)[..., None], 3, axis=-1)
    if kind == _PALETTE:
        pixels = apply_color_lut(pixels, dataset)
        pixels = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    elif kind not in _COLOUR or pixels.dtype != np.uint8:
        raise DataError(  # the kind is a term of the standard: pydicom has refused all others
            f"The DICOM file {path} holds {kind} pixels of {_bits(dataset)} bits, which are not read: grey, and "
            f"{', '.join((_PALETTE, *_COLOUR))} of 8 bits are. Convert it to RGB."
        )
    return pixels


def _grey(pixels: Array, dataset: Dataset, path: str) -> Array:
    """Return grey values as uint8 [H,W], drawn through the file's window where they have more than 8 bits."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    if _bits(dataset) <= 8 and not dataset.get("PixelRepresentation"):
        return pixels.astype(np.uint8)
    if dataset.get("ModalityLUTSequence"):
        values = apply_modality_lut(pixels, dataset)
    else:
        slope, intercept = (
            header.numbers(header.element(dataset, f"Rescale{part}", "PixelValueTransformationSequence"))
            for part in ("Slope", "Intercept")
        )
        values = pixels * slope[0] + intercept[0] if slope and intercept else pixels
    if dataset.get("VOILUTSequence"):
        levels = 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
        return np.asarray(np.round(apply_voi(values.astype(np.int64), dataset) * (255 / levels)), np.uint8)
    center, width = (
        header.numbers(header.element(dataset, f"Window{part}", "FrameVOILUTSequence")) for part in ("Center", "Width")
    )
    if not center or not width or width[0] < 1:
        raise DataError(
            f"The DICOM file {path} has {_bits(dataset)} bits a pixel and names no grey window, so that it does "
            "not say which value is black and which white. Give it a WindowCenter and WindowWidth, or convert it to "
            "8 bits with the window you want."
        )
    function = str(header.element(dataset, "VOILUTFunction", "FrameVOILUTSequence") or "LINEAR")
    return np.round(255 * _window(values.astype(np.float64), center[0], width[0], function)).astype(np.uint8)


def _window(values: Array, center: float, width: float, function: str) -> Array:
    """Map values to 0 (black) to 1 (white) as PS3.3 C.11.2.1.2 and C.11.2.1.3 say."""
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (values - center) / width)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)
