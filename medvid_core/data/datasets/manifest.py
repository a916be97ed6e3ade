"""A CSV table that says what there is: one row a clip.

| column | what it holds |
| --- | --- |
| ``file`` | a video file, an image, a folder of images, or a glob; relative to the table |
| ``mask`` | optional, likewise: makes the task segmentation |
| ``label`` | optional, a class name: makes the task classification |
| ``case_id``, ``group_id`` | optional, name of the clip (default: ``file`` without ending) and of the patient |
| ``split`` | optional, ``train``, ``val`` or ``test`` |
| ``fps``, ``spacing_mm`` | optional, frames a second; mm a pixel, one number or ``row column`` |
| ``study_id``, ``stratum``, ``view``, ``visit_time`` | optional, as in `Case` |
| any other | kept as metadata of the case |

Columns are separated by comma, semicolon or tab; case and spaces around names do not matter.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medvid_core.data.clip import Case, Index
from medvid_core.data.datasets.folders import labelled_frames, make_index, natural_key
from medvid_core.data.datasets.masks import MaskConfig, MaskPlan, plan
from medvid_core.data.datasets.media import Media, locate, mask_source
from medvid_core.data.readers.video import VideoInfo
from medvid_core.errors import DataError, did_you_mean
from medvid_core.specs import OutputSpec

LAYOUT = "a CSV table with a column file and a column mask or label"
_SPLITS = ("train", "val", "test")
_COPIED = ("study_id", "stratum", "view", "visit_time")
_KNOWN = ("file", "mask", "label", "case_id", "group_id", "split", "fps", "spacing_mm", *_COPIED)


@dataclass(frozen=True, kw_only=True)
class ManifestConfig(MaskConfig):
    """How the table is read.

    Attributes:
        mask_sparse: frames without a mask are unlabelled rather than an error (frames stored as images).
        labels: the class names of ``label`` in order; default: those found, in natural order. In a table
            without masks ``classes`` is read as this.
        label_column: the column that holds the label.
        group_column: the column that names the patient.
    """

    mask_sparse: bool = False
    labels: tuple[str, ...] = ()
    label_column: str = "label"
    group_column: str = "group_id"


@dataclass(frozen=True)
class _Row:
    """One line of the table: number of its last line in the file, and its cells by column."""

    number: int
    cells: dict[str, str]
    extra: dict[str, str] = field(default_factory=dict)


def can_read(root: Path) -> bool:
    """Whether this is a CSV file, or a folder with a ``manifest.csv``."""
    return root.suffix.lower() == ".csv" if root.is_file() else (root / "manifest.csv").is_file()


def index(root: Path | None, config: ManifestConfig) -> Index:
    """List the cases; the header of every video is opened. A video that cannot be read is skipped, by name.

    Raises:
        DataError: if the table, a column, a file or a mask is missing or does not fit; the text names the row.
        ConfigError: if class names and mask values do not fit.
    """
    table = _table(root)
    rows = _rows(table, config)
    has_masks = any(row.cells.get("mask") for row in rows)
    masks = plan(config) if has_masks else None
    labels = _labels(rows, config, has_masks, table)
    if masks is None and not labels:
        raise DataError(
            f"{table} has no mask and no label in any row: there is nothing to learn. Fill the column mask or label; "
            f"columns found: {', '.join(rows[0].cells | rows[0].extra)}."
        )
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    for row in rows:
        _add(row, table, config, masks, labels, cases, skipped)
    outputs = [masks.output()] if masks else []
    if labels:
        outputs.append(OutputSpec(name="label", task="classification", classes=labels))
    return make_index(cases, tuple(outputs), skipped, table, LAYOUT)


def _table(root: Path | None) -> Path:
    """The CSV file: the root itself, or ``manifest.csv`` in it."""
    if root is None:
        raise DataError(f"No table was given. Name one with --data PATH: {LAYOUT}.")
    table = root / "manifest.csv" if root.is_dir() else root
    if not table.is_file():
        raise DataError(f"The table {table} does not exist. Name with --data {LAYOUT}, or a folder with manifest.csv.")
    return table


def _rows(table: Path, config: ManifestConfig) -> list[_Row]:
    """Read the table; empty lines are passed over."""
    try:
        text = table.read_bytes().decode("utf-8-sig")
        first = text.lstrip().partition("\n")[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a CSV table ({error}). Save it as CSV in UTF-8.") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        raise DataError(f"{table} is empty. It must be {LAYOUT}.")
    header = _header(table, lines[0][1], config)
    if len(lines) == 1:
        raise DataError(f"{table} has a header and no rows. Add one row for each clip.")
    return [_row(table, header, number, cells) for number, cells in lines[1:]]


def _header(table: Path, columns: list[str], config: ManifestConfig) -> list[str]:
    """Column names, under their standard names."""
    renamed = {config.label_column.lower(): "label", config.group_column.lower(): "group_id"}
    names = [column.lower() for column in columns]
    found = ", ".join(columns)
    for column, setting in ((config.label_column, "label_column"), (config.group_column, "group_column")):
        if column not in ("label", "group_id") and column.lower() not in names:
            raise DataError(
                f"{table} has no column {column!r}, which dataset.{setting} names."
                f"{did_you_mean(column.lower(), names)} Columns found: {found}."
            )
    shadowed = {"label", "group_id"} - renamed.keys()  # another column was named to stand for these
    names = [
        renamed.get(name, f"table_{name}" if name in shadowed else name if name in _KNOWN else column)
        for name, column in zip(names, columns, strict=True)
    ]
    if "file" not in names:
        raise DataError(
            f"{table} has no column 'file'.{did_you_mean('file', columns)} Columns found: {found}. Rename the column "
            "that holds the path of each clip to 'file'."
        )
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise DataError(f"{table} has the column {twice[0]!r} more than once. Rename or remove one.")
    return names


def _row(table: Path, header: list[str], number: int, cells: list[str]) -> _Row:
    """Cells by column; short lines are filled with empty cells."""
    if len(cells) > len(header) and any(cells[len(header) :]):
        raise DataError(
            f"{table}, row {number}: {len(cells)} cells for {len(header)} columns. "
            "Put cells that hold the separator in double quotes."
        )
    filled = dict(zip(header, cells + [""] * len(header), strict=False))
    row = _Row(
        number,
        {name: cell for name, cell in filled.items() if name in _KNOWN},
        {name: cell for name, cell in filled.items() if name and name not in _KNOWN},
    )
    if not row.cells["file"]:
        raise DataError(f"{table}, row {number}: the column file is empty. Name the clip, or remove the row.")
    return row


def _labels(rows: Sequence[_Row], config: ManifestConfig, has_masks: bool, table: Path) -> tuple[str, ...]:
    """The class names of ``label``, in order; none where the table has no labels.

    Raises:
        DataError: if a label is not among those configured, or all are the same.
    """
    found = {row.cells["label"]: row.number for row in reversed(rows) if row.cells.get("label")}
    if not found:
        return ()
    setting = "classes" if config.classes and not config.labels and not has_masks else "labels"
    names = tuple(getattr(config, setting)) or tuple(sorted(found, key=natural_key))
    for label, number in found.items():
        if label not in names:
            raise DataError(
                f"{table}, row {number}: the label {label!r} is not in dataset.{setting}={list(names)}."
                f"{did_you_mean(label, names)} Correct the row, or add the name."
            )
    if len(names) < 2:
        raise DataError(f"{table}: every label is {names[0]!r}. There must be two at least to tell apart.")
    return names


def _add(
    row: _Row,
    table: Path,
    config: ManifestConfig,
    masks: MaskPlan | None,
    labels: tuple[str, ...],
    cases: list[Case],
    skipped: dict[str, str],
) -> None:
    """Enter one row as a case, or the reason to leave it out."""
    where = f"{table}, row {row.number}"
    name = row.cells.get("case_id") or _default_name(row.cells["file"])
    images = _locate(table, row, "file")
    drawn = _locate(table, row, "mask") if row.cells.get("mask") else None
    if masks is not None and drawn is None and not labels:
        skipped[name] = f"row {row.number} has no mask"
        return
    try:
        info = images.measure()
        if drawn is not None:
            drawn.measure()
    except DataError as error:
        skipped[name] = str(error)
        return
    case = _case(row, where, name, images, info, labels)
    if masks is not None and drawn is not None:
        try:
            hint = ", or set dataset.mask_sparse=true if only some frames are annotated"
            source = mask_source(images, info.frames, drawn, masks, sparse=config.mask_sparse, remedy=hint)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        labelled = labelled_frames(source.paths) if source.reader == "frames" else None
        case = replace(case, streams={**case.streams, "mask": source}, labelled=labelled)
    cases.append(case)


def _default_name(file: str) -> str:
    """The path without its ending, of a glob the folder; the last part alone where it leads out of the data."""
    path = Path(file)
    path = path.parent if "*" in path.name or "?" in path.name else path.with_suffix("")
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def _locate(table: Path, row: _Row, column: str) -> Media:
    """Find the files a cell names, relative to the table."""
    try:
        return locate(table.parent, row.cells[column])
    except (DataError, ValueError) as error:
        raise DataError(f"{table}, row {row.number}, column {column}: {error}. Correct the path.") from error


def _case(row: _Row, where: str, name: str, images: Media, info: VideoInfo, labels: Sequence[str]) -> Case:
    """The case of a row, without its masks."""
    cells = row.cells
    split = cells.get("split", "").lower()
    if split and split not in _SPLITS:
        raise DataError(f"{where}: the split {split!r} is not train, val or test.{did_you_mean(split, _SPLITS)}")
    fps = _numbers(cells.get("fps", ""), 1, f"{where}, column fps")
    spacing = _numbers(cells.get("spacing_mm", ""), 2, f"{where}, column spacing_mm")
    label = cells.get("label", "")
    return Case(
        case_id=name,
        group_id=cells.get("group_id") or name,
        frames=info.frames,
        streams={"video": images.source()},
        split=split or None,
        fps=fps[0] if fps else info.fps,
        spacing=(spacing[0], spacing[-1]) if spacing else None,
        targets={"label": labels.index(label)} if label else {},
        metadata=row.extra,
        study_id=cells.get("study_id", ""),
        stratum=cells.get("stratum") or label,
        view=cells.get("view", ""),
        visit_time=cells.get("visit_time", ""),
    )


def _numbers(text: str, most: int, where: str) -> list[float]:
    """Read up to ``most`` positive numbers, separated by space or ``x``."""
    try:
        values = [float(part) for part in text.lower().replace("x", " ").split()]
    except ValueError:
        values = [math.nan]
    if len(values) > most or not all(math.isfinite(value) and value > 0 for value in values):
        raise DataError(f"{where}: {text!r} is not {'one number' if most == 1 else 'one or two numbers'} above 0.")
    return values
