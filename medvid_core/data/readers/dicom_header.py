"""What a DICOM header says of a cine: patient, pixel spacing, frame times.

Only the elements of `TAGS` are ever read from a file. Of those that identify a patient `PatientID` alone is among them,
and nothing but its hash leaves this module.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_PALETTE = ("Red", "Green", "Blue")
TAGS = (
    *("PatientID", "SequenceOfUltrasoundRegions", "PixelSpacing", "NumberOfFrames"),
    *("FrameIncrementPointer", "FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PaletteColorLookupTableUID"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _PALETTE),
    *(f"{colour}PaletteColorLookupTableData" for colour in _PALETTE),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _PALETTE),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
"""Keywords of the elements that are read."""

_TWO_DIMENSIONAL, _TISSUE, _COLOUR_FLOW, _CENTIMETRE = 1, 1, 2, 3  # of an ultrasound region, PS3.3 C.8.5.5
_HASH_DIGITS = 12


def patient_hash(patient_id: str) -> str:
    """Return a short name for a patient: the first 12 hexadecimal digits of the SHA-256 of the patient id.

    It is the same in every file and on every machine, so that all clips of a patient fall into one group. There is no
    salt: who has a list of ids can find the one behind a hash. It keeps ids out of tables and logs; it does not make
    data anonymous. An empty id gives an empty name.
    """
    text = patient_id.strip()
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS] if text else ""


def patient(dataset: Dataset) -> str:
    """Return the hash of the patient id; empty where there is none."""
    try:
        return patient_hash(str(dataset.get("PatientID") or ""))
    except (ValueError, TypeError, AttributeError):  # the text would hold the id
        return ""


def element(dataset: Dataset, keyword: str, group: str) -> Any:
    """Return an element of the image, or of the functional groups of all frames, or of the first one; None without."""
    if (value := dataset.get(keyword)) is not None:
        return value
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for frame in (dataset.get(sequence) or ())[:1]:
            for item in (frame.get(group) or ())[:1]:
                if (value := item.get(keyword)) is not None:
                    return value
    return None


def numbers(value: Any) -> list[float]:
    """Return one number or several as floats; none where the element is absent, empty or no number."""
    try:
        many = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
        found = [float(part) for part in many]
    except (TypeError, ValueError):
        return []
    return found if all(map(math.isfinite, found)) else []


def spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Return mm per pixel (row, column), None where unknown.

    Of an ultrasound image the largest two-dimensional region of tissue (else of colour flow) that is measured in
    centimetres counts (PS3.3 C.8.5.5). A region that reaches out of the picture is of another picture, which was
    resized later: its spacing does not hold. Without regions, `PixelSpacing`.
    """
    regions = dataset.get("SequenceOfUltrasoundRegions")
    if regions:
        usable = [region for region in regions if _is_measured(region, dataset)]
        if not usable:
            return None
        best = max(usable, key=lambda region: (region.get("RegionDataType") == _TISSUE, _area(region)))
        row, column = (abs(10 * numbers(best.get(f"PhysicalDelta{axis}"))[0]) for axis in "YX")
        return row, column
    values = numbers(element(dataset, "PixelSpacing", "PixelMeasuresSequence"))
    return (values[0], values[1]) if len(values) == 2 and min(values) > 0 else None


def _is_measured(region: Dataset, dataset: Dataset) -> bool:
    """Whether a region shows tissue or flow in two dimensions, in centimetres, and lies inside the picture."""
    deltas = [numbers(region.get(f"PhysicalDelta{axis}")) for axis in "XY"]
    return (
        region.get("RegionSpatialFormat") == _TWO_DIMENSIONAL
        and region.get("RegionDataType") in (_TISSUE, _COLOUR_FLOW)
        and all(region.get(f"PhysicalUnits{axis}Direction") == _CENTIMETRE for axis in "XY")
        and all(len(delta) == 1 and delta[0] != 0 for delta in deltas)
        and _area(region) > 0
        and region.RegionLocationMaxX1 <= dataset.Columns
        and region.RegionLocationMaxY1 <= dataset.Rows
    )


def _area(region: Dataset) -> int:
    """Pixels in a region; 0 where it does not say."""
    corners = [numbers(region.get(f"RegionLocation{corner}")) for corner in ("MinX0", "MaxX1", "MinY0", "MaxY1")]
    if any(len(corner) != 1 for corner in corners):
        return 0
    (left,), (right,), (top,), (bottom,) = corners
    return int(max(0.0, right - left) * max(0.0, bottom - top))


def timing(dataset: Dataset, frames: int) -> tuple[float | None, tuple[float, ...]]:
    """Return frames per second, None where unknown, and the time of each frame in s where they are uneven.

    `FrameTimeVector` holds the ms between a frame and the one before (its first value means nothing), `FrameTime` the
    ms between any two; else `CineRate` or `RecommendedDisplayFrameRate` (PS3.3 C.7.6.5). Zeros count as unknown.
    """
    steps = numbers(dataset.get("FrameTimeVector"))
    if len(steps) == frames > 1 and min(steps[1:]) > 0:
        steps = steps[1:]
        total = sum(steps)
        even = max(steps) - min(steps) <= 1e-3 * total / len(steps)
        times = (elapsed / 1000 for elapsed in itertools.accumulate(steps, initial=0.0))
        return 1000 * len(steps) / total, () if even else tuple(times)
    interval = numbers(dataset.get("FrameTime"))
    if interval and interval[0] > 0:
        return 1000 / interval[0], ()
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        rate = numbers(dataset.get(keyword))
        if rate and rate[0] > 0:
            return rate[0], ()
    return None, ()
