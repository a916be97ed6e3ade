"""A CSV table that says what there is: one row a clip.

| column | what it holds |
| --- | --- |
| ``file`` | a video, DICOM or NIfTI file, an image, a folder of images, or a glob; relative to the table |
| ``mask`` | optional, likewise: makes the task segmentation |
| ``label`` | optional, a class name: makes the task classification (or ordinal, or multilabel, see `LabelConfig`) |
| ``frame_labels`` | optional, a CSV file of frame and label, or ``10-20:systole;21-40:diastole``: classes of frames |
| ``anomaly`` | optional, 0, 1, or the abnormal frames, ``10-20;33`` |
| ``case_id``, ``group_id`` | optional, name of the clip (default: ``file`` without ending) and of the patient |
| ``split`` | optional, ``train``, ``val`` or ``test`` |
| ``fps``, ``spacing_mm`` | optional, frames a second; mm a pixel, one number or ``row column`` |
| ``study_id``, ``stratum``, ``view`` | optional, as in `Case` |
| ``visit_time`` | optional, when it was recorded: a date, or a number of days; see `ManifestConfig.progression` |
| any other | kept as metadata of the case; a number to predict where ``dataset.targets`` names it |

Columns are separated by comma, semicolon or tab; case and spaces around names do not matter. Frames count from 0. The
patient of a DICOM file without ``group_id`` is the hash of its patient id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medvid_core.data.clip import Case, Index, Target
from medvid_core.data.datasets.folders import labelled_frames, make_index
from medvid_core.data.datasets.labels import Column, LabelConfig, find_columns, number_column
from medvid_core.data.datasets.masks import MaskConfig, MaskPlan, plan
from medvid_core.data.datasets.media import Media, locate, mask_source, stem
from medvid_core.data.datasets.tables import fill, read_lines
from medvid_core.data.datasets.visits import histories, next_output
from medvid_core.data.readers.cine import CineInfo
from medvid_core.errors import ConfigError, DataError, did_you_mean

LAYOUT = "a CSV table with a column file and a column mask, label, frame_labels or anomaly"
_VISITS = "several visits of a patient (group_id), each with a visit_time and the number to be foreseen"
_SPLITS = ("train", "val", "test")
_COPIED = ("study_id", "stratum", "view", "visit_time")
_ANSWERS = ("label", "frame_labels", "anomaly")
_KNOWN = ("file", "mask", *_ANSWERS, "case_id", "group_id", "split", "fps", "spacing_mm", *_COPIED)


@dataclass(frozen=True, kw_only=True)
class ManifestConfig(LabelConfig, MaskConfig):
    """How the table is read.

    Attributes:
        mask_sparse: frames without a mask are unlabelled rather than an error (frames stored as images).
        classes: in a table without masks, the same as ``labels``.
        label_column: the column that holds the label.
        group_column: the column that names the patient.
        progression: a column that holds a number, to be foreseen: cases are then the visits of a patient so far, and
            their target is the number at the next (see `medvid_core.data.datasets.visits`).
    """

    mask_sparse: bool = False
    label_column: str = "label"
    group_column: str = "group_id"
    progression: str = ""


@dataclass(frozen=True)
class _Row:
    """One line of the table: number of its last line in the file, and its cells by column."""

    number: int
    cells: dict[str, str]
    extra: dict[str, str] = field(default_factory=dict)


def can_read(root: Path) -> bool:
    """Whether this is a CSV file, or a folder with a ``manifest.csv``."""
    return root.suffix.lower() == ".csv" if root.is_file() else (root / "manifest.csv").is_file()


def hint(root: Path) -> str:
    """Return how to use the one CSV file of a folder as a manifest; nothing where no column of it is like one's."""
    tables = [path for path in sorted(root.iterdir()) if path.suffix.lower() == ".csv"] if root.is_dir() else []
    if len(tables) != 1:
        return ""
    try:
        columns = read_lines(tables[0])[0][1]
    except (DataError, IndexError):
        return ""
    if not any(column.lower() in _KNOWN or "file" in column.lower() for column in columns):
        return ""
    return (
        f"If {tables[0].name} in it lists the clips, call it manifest.csv or give --data {tables[0]}. It needs a "
        "column file, and mask, label, frame_labels, anomaly or numbers (dataset.targets); it has "
        f"{', '.join(columns)}."
    )


def index(root: Path | None, config: ManifestConfig) -> Index:
    """List the cases; the header of every video is opened. A video that cannot be read is skipped, by name.

    Raises:
        DataError: if the table, a column, a file, a cell or a mask is missing or does not fit; the text names the row.
        ConfigError: if class names and mask values do not fit, or settings contradict each other.
    """
    table = _table(root)
    rows = _rows(table, config)
    if config.progression:
        return _progression(table, rows, config)
    has_masks = any(row.cells.get("mask") for row in rows)
    masks = plan(config) if has_masks else None
    if config.classes and not config.labels and not has_masks:
        config = replace(config, labels=tuple(config.classes))
    columns = find_columns([(row.number, row.cells | row.extra) for row in rows], config, table)
    if masks is None and not columns:
        raise DataError(
            f"{table} has no mask and no label in any row: there is nothing to learn. Fill the column mask, label, "
            "frame_labels or anomaly, or name columns of numbers with dataset.targets=[…]; columns found: "
            f"{', '.join(rows[0].cells | rows[0].extra)}."
        )
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    for row in rows:
        _add(row, table, config, masks, columns, cases, skipped)
    outputs = [masks.output()] if masks else []
    outputs += [column.output for column in columns]
    return make_index(cases, tuple(outputs), skipped, table, LAYOUT)


def unlabelled(root: Path | None, config: ManifestConfig) -> Index:
    """List the clips of all rows to predict on; what is known of them is not looked at, but for a history of visits.

    Raises:
        DataError: if the table, a file or a cell is missing or does not fit; the text names the row.
        ConfigError: if settings contradict each other.
    """
    if config.progression:
        return index(root, config)
    table = _table(root)
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    for row in _rows(table, replace(config, label_column="label")):  # a column of labels need not be there
        _add(row, table, config, None, [], cases, skipped)
    return make_index(cases, (), skipped, table, "a CSV table with a column file")


def _progression(table: Path, rows: Sequence[_Row], config: ManifestConfig) -> Index:
    """List patients' histories: their clips, joined."""
    name = config.progression
    if config.targets:
        raise ConfigError(
            f"dataset.progression={name} foresees one number, and dataset.targets={list(config.targets)} names others. "
            "Leave one of the two out."
        )
    column = number_column([(row.number, row.extra) for row in rows], name, table, "progression")
    clips: list[Case] = []
    skipped: dict[str, str] = {}
    for row in rows:
        _add(row, table, config, None, [column], clips, skipped)
    checked = make_index(clips, (), skipped, table, LAYOUT)
    cases, left_out = histories(checked.cases, name, table)
    return make_index(cases, (next_output(name),), {**skipped, **left_out}, table, _VISITS)


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
    lines = read_lines(table)
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
    filled = fill(table, header, number, cells)
    row = _Row(
        number,
        {name: cell for name, cell in filled.items() if name in _KNOWN},
        {name: cell for name, cell in filled.items() if name and name not in _KNOWN},
    )
    if not row.cells["file"]:
        raise DataError(f"{table}, row {number}: the column file is empty. Name the clip, or remove the row.")
    return row


def _add(
    row: _Row,
    table: Path,
    config: ManifestConfig,
    masks: MaskPlan | None,
    columns: Sequence[Column],
    cases: list[Case],
    skipped: dict[str, str],
) -> None:
    """Enter one row as a case, or the reason to leave it out."""
    where = f"{table}, row {row.number}"
    name = row.cells.get("case_id") or _default_name(row.cells["file"])
    images = _locate(table, row, "file")
    drawn = _locate(table, row, "mask") if masks is not None and row.cells.get("mask") else None
    if masks is not None and drawn is None and not columns:
        skipped[name] = f"row {row.number} has no mask"
        return
    try:
        info = images.measure()
        if drawn is not None:
            drawn.measure()
    except DataError as error:
        skipped[name] = str(error)
        return
    case = _case(row, table, name, images, info, columns)
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
    path = path.parent if "*" in path.name or "?" in path.name else path.with_name(stem(path))
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def _locate(table: Path, row: _Row, column: str) -> Media:
    """Find the files a cell names, relative to the table."""
    try:
        return locate(table.parent, row.cells[column])
    except (DataError, ValueError) as error:
        raise DataError(f"{table}, row {row.number}, column {column}: {error}. Correct the path.") from error


def _case(row: _Row, table: Path, name: str, images: Media, info: CineInfo, columns: Sequence[Column]) -> Case:
    """The case of a row, without its masks; what the table says of it goes before what the file says."""
    cells, where = row.cells, f"{table}, row {row.number}"
    split = cells.get("split", "").lower()
    if split and split not in _SPLITS:
        raise DataError(f"{where}: the split {split!r} is not train, val or test.{did_you_mean(split, _SPLITS)}")
    fps = _numbers(cells.get("fps", ""), 1, f"{where}, column fps")
    spacing = _numbers(cells.get("spacing_mm", ""), 2, f"{where}, column spacing_mm")
    targets: dict[str, Target] = {}
    frame_targets: dict[str, tuple[float, ...]] = {}
    for column in columns:
        target, of_frames = column.read(cells | row.extra, info.frames, table, row.number)
        if target is not None:
            targets[column.output.name] = target
        if of_frames:
            frame_targets[column.output.name] = of_frames
    return Case(
        case_id=name,
        group_id=cells.get("group_id") or info.patient or name,
        frames=info.frames,
        streams={"video": images.source()},
        split=split or None,
        fps=fps[0] if fps else info.fps,
        times_s=() if fps else info.times_s,
        spacing=(spacing[0], spacing[-1]) if spacing else info.spacing,
        targets=targets,
        frame_targets=frame_targets,
        metadata=row.extra,
        study_id=cells.get("study_id", ""),
        stratum=cells.get("stratum") or cells.get("label", ""),
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
