"""EchoNet-Dynamic: ejection fraction of apical four-chamber echocardiograms, with the left ventricle traced twice.

``FileList.csv`` (one row a video: FileName, EF in percent, ESV and EDV in ml, FPS, Split, …), ``VolumeTracings.csv``
(FileName, X1, Y1, X2, Y2, Frame: the long axis, then chords across it) and ``Videos/``. Names stand with or without
``.avi``, splits in any case, as the releases have them. One video is one patient.

The protocol of the paper (Ouyang et al., Nature 2020; github.com/echonet/dynamic): the settings that come with this
data set are its clips, 32 frames at every second one, zeros after the end of a short video, and a window shifted by up
to 12 pixels in training. It averages the predictions of all clips of a video, one from every frame on:
``clip.overlap=31`` does that, at thirty times the cost of evaluation. The authors leave out the few videos with fewer
than two traced frames also where only the ejection fraction is predicted; here they are used for that.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medvid_core.data.clip import Array, Case, Index, Source, Target
from medvid_core.data.datasets.folders import list_files, make_index, require_folder
from medvid_core.data.datasets.tables import number_in, read_table
from medvid_core.data.readers import video
from medvid_core.errors import DataError, did_you_mean
from medvid_core.specs import OutputSpec

LAYOUT = "FileList.csv, VolumeTracings.csv and Videos/*.avi, as EchoNet-Dynamic is published"
MASK = OutputSpec(name="mask", task="segmentation", classes=("lv",))
EJECTION_FRACTION = OutputSpec(name="ejection_fraction", task="regression", classes=("ejection_fraction",))

_SPLITS = ("train", "val", "test")
_ENDS = ("x1", "y1", "x2", "y2")
_LEAST_ROWS = 3  # the long axis and two chords: four corners

Chord = tuple[float, float, float, float]
"""One row of a tracing: x1, y1, x2, y2 in pixels."""
Traces = tuple[tuple[int, tuple[Chord, ...]], ...]
"""Traced frames of a video, in the order of the table, with their rows."""


@dataclass(frozen=True, kw_only=True)
class EchoNetConfig:
    """Nothing to set."""


def can_read(root: Path) -> bool:
    """Whether the list of files and the folder of videos are there."""
    return (root / "FileList.csv").is_file() and (root / "Videos").is_dir()


def index(root: Path | None, config: EchoNetConfig) -> Index:
    """List the cases; the header of every video is opened. The group of a case is the case.

    Outputs: the mask of the left ventricle in the two traced frames, and the ejection fraction in percent. Metadata of
    a case: ``edv_ml``, ``esv_ml``, ``ed_frame`` and ``es_frame``.

    Raises:
        DataError: if the folder or a table is missing or wrong, or no video is usable; the text says why.
    """
    root = require_folder(root, LAYOUT)
    table = root / "FileList.csv"
    if not can_read(root):
        raise DataError(f"{root} has no FileList.csv or no folder Videos. Expected: {LAYOUT}.")
    videos = {path.stem: path for path in list_files(root / "Videos", video.SUFFIXES)}
    traces = _traces(root / "VolumeTracings.csv")
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    for number, row in read_table(table, ("filename",)):
        name = _stem(row["filename"])
        where = f"{table}, row {number}"
        if not name:
            raise DataError(f"{where}: the column FileName is empty.")
        try:
            cases.append(_case(name, videos.get(name), row, where, traces.get(name, ())))
        except _UnusableError as error:
            skipped[name] = str(error)
    outputs = [MASK] if any("mask" in case.streams for case in cases) else []
    outputs += [EJECTION_FRACTION] if any(case.targets for case in cases) else []
    if cases and not outputs:
        raise DataError(f"{table} has no EF in any row, and no video is traced: there is nothing to learn.")
    return make_index(cases, tuple(outputs), skipped, root, LAYOUT)


class _UnusableError(DataError):
    """A case that is left out."""


def _stem(name: str) -> str:
    """The name of a video without its ending, where it has a known one."""
    path = Path(name)
    return path.stem if path.suffix.lower() in video.SUFFIXES else name


def _traces(table: Path) -> dict[str, Traces]:
    """Read which frames of which video are traced, in the order of the rows; nothing without the table.

    Raises:
        DataError: if a column is missing, or a cell is no number.
    """
    if not table.is_file():
        return {}
    found: dict[str, dict[int, list[Chord]]] = {}
    for number, row in read_table(table, ("filename", *_ENDS, "frame")):
        where = f"{table}, row {number}"
        ends = [_required(row, column, where) for column in _ENDS]
        frame = int(_required(row, "frame", where))
        found.setdefault(_stem(row["filename"]), {}).setdefault(frame, []).append((ends[0], ends[1], ends[2], ends[3]))
    return {
        name: tuple((frame, tuple(rows)) for frame, rows in frames.items() if len(rows) >= _LEAST_ROWS)
        for name, frames in found.items()
    }


def _required(row: dict[str, str], column: str, where: str) -> float:
    """The number in a cell."""
    value = number_in(row, column, where)
    if value is None:
        raise DataError(f"{where}: the column {column} is empty.")
    return value


def _case(name: str, path: Path | None, row: dict[str, str], where: str, traces: Traces) -> Case:
    """One video.

    Raises:
        _UnusableError: if it is missing, damaged, or lacks a traced frame.
        DataError: if a cell of its row is wrong.
    """
    split = row.get("split", "").lower()
    if split and split not in _SPLITS:
        raise DataError(f"{where}: the split {split!r} is not train, val or test.{did_you_mean(split, _SPLITS)}")
    ef, fps = number_in(row, "ef", where), number_in(row, "fps", where)
    if path is None:
        raise _UnusableError("there is no such video in the folder Videos")
    try:
        info = video.probe(str(path))
    except DataError as error:
        raise _UnusableError(str(error)) from error
    beyond = [frame for frame, _ in traces if not 0 <= frame < info.frames]
    if beyond:
        raise _UnusableError(f"frame {beyond[0]} is traced, but {path} has {info.frames} frames: it is truncated")
    streams = {"video": Source(reader="video", paths=(str(path),))}
    if traces:
        reader = f"{__name__}:read_tracings"
        streams["mask"] = Source(reader=reader, paths=(str(path),), values=(0, 1), options=traces)
    targets: dict[str, Target] = {} if ef is None else {EJECTION_FRACTION.name: ef}
    return Case(
        case_id=name,
        group_id=name,
        frames=info.frames,
        streams=streams,
        labelled=tuple(sorted(frame for frame, _ in traces)) if traces else None,
        split=split or None,
        fps=fps if fps else info.fps,
        view="A4C",
        targets=targets,
        metadata=_metadata(row, traces),
    )


def _metadata(row: dict[str, str], traces: Traces) -> dict[str, str]:
    """Volumes, and the frames of end diastole (traced last in the table) and end systole (first), as published."""
    found = {f"{column}_ml": row[column] for column in ("edv", "esv") if row.get(column)}
    if len(traces) > 1:
        found |= {"ed_frame": str(traces[-1][0]), "es_frame": str(traces[0][0])}
    return found


def read_tracings(source: Source, frames: Sequence[int]) -> Array:
    """Draw the masks of traced frames, uint8 [T,H,W]: 1 inside the left ventricle.

    Raises:
        DataError: if the video cannot be read, whose size the masks have.
    """
    size = _size(source.paths[0])
    rows = dict(source.options)
    return np.stack([draw_tracing(rows[frame], size) for frame in frames])


@functools.lru_cache(maxsize=4096)
def _size(path: str) -> tuple[int, int]:
    """Height and width of a video; its first frame is decoded once."""
    return video.size(path)


def draw_tracing(rows: Sequence[Chord], size: tuple[int, int]) -> Array:
    """Draw one tracing as EchoNet-Dynamic does, to the pixel: uint8 [H,W].

    The corners are the left ends of the chords, down, and the right ends, up, without the long axis (the first row);
    they are rounded to pixels (half to even). A pixel is inside by the even-odd rule, or if the outline passes exactly
    through its centre, as in scikit-image's ``draw.polygon``.

    Args:
        rows: the long axis and the chords, x1, y1, x2, y2 in pixels.
        size: height and width.
    """
    chords = np.rint(np.asarray(rows, np.float64)[1:]).astype(np.int64)
    x = np.concatenate([chords[:, 0], chords[::-1, 2]])
    y = np.concatenate([chords[:, 1], chords[::-1, 3]])
    out = np.zeros(size, np.uint8)
    top, left = max(0, int(y.min())), max(0, int(x.min()))
    bottom, right = min(size[0], int(y.max()) + 1), min(size[1], int(x.max()) + 1)
    if top < bottom and left < right:
        py, px = np.mgrid[top:bottom, left:right]
        out[top:bottom, left:right] = _inside(px[..., None], py[..., None], x, y)
    return out


def _inside(px: Array, py: Array, x: Array, y: Array) -> Array:
    """Whether points [...,1] are in or on a polygon [N], in integers: no rounding, no point is missed."""
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    side = (x2 - x) * (py - y) - (y2 - y) * (px - x)  # 0: on the line through the edge
    on_edge = (
        (side == 0)
        & (np.minimum(x, x2) <= px)
        & (px <= np.maximum(x, x2))
        & (np.minimum(y, y2) <= py)
        & (py <= np.maximum(y, y2))
    )
    crosses = ((y > py) != (y2 > py)) & ((side > 0) == (y2 > y)) & (side != 0)  # the ray to the right meets the edge
    return np.asarray(on_edge.any(-1) | (crosses.sum(-1) % 2 == 1))
