"""What the cells of a manifest say of a clip beside its masks: classes, grades, numbers, anomalies."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medvid_core.data.clip import Target
from medvid_core.data.datasets.folders import natural_key
from medvid_core.data.datasets.tables import number_in, read_table
from medvid_core.errors import ConfigError, DataError, did_you_mean
from medvid_core.specs import OutputSpec

FRAME_LABEL = "frame_label"
"""Name of the output that the column ``frame_labels`` makes."""

_RANGE = re.compile(r"([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?(?:\s*:\s*(.+))?")
_SHOWN = 60  # letters of a cell in an error

Cells = dict[str, str]
Numbered = Sequence[tuple[int, Cells]]
"""Rows of a table by column, each with its line number."""


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """What the columns of a table mean.

    Attributes:
        labels: the class names of ``label`` in order; default: those found, in natural order.
        ordinal: the labels are grades in rising order.
        multilabel: a cell of ``label`` may hold several, separated by ``|``; ``|`` alone says that none applies.
        targets: columns that hold a number to predict.
        frame_classes: the class names of ``frame_labels`` in order; default: those found, in natural order.
    """

    labels: tuple[str, ...] = ()
    ordinal: bool = False
    multilabel: bool = False
    targets: tuple[str, ...] = ()
    frame_classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """One column that says something to predict.

    Attributes:
        output: what a model predicts.
        name: the column.
        frames: whether the column may say it of single frames.
    """

    output: OutputSpec
    name: str
    frames: bool = False

    def read(self, cells: Cells, frames: int, table: Path, row: int) -> tuple[Target | None, tuple[float, ...]]:
        """Return what a row says of the clip, None for nothing, and of each of its frames, empty for nothing.

        Raises:
            DataError: if a cell cannot be understood, or names a frame the clip has not.
        """
        text, where = cells.get(self.name, ""), f"{table}, row {row}"
        names = self.output.classes
        if not text:
            return None, ()
        if self.output.task == "regression":
            return number_in(cells, self.name, where), ()
        if self.output.task == "multilabel":
            found = _several(text)
            return tuple(float(name in found) for name in names), ()
        if self.output.task == "frame_classification":
            spans = _spans(text, table, f"{where}, column {self.name}")
            return None, _of_frames(spans, frames, [float(names.index(name)) for *_, name in spans], math.nan, where)
        if self.output.task == "anomaly":
            return self._anomaly(text, frames, table, where)
        return names.index(text), ()

    def _anomaly(self, text: str, frames: int, table: Path, where: str) -> tuple[Target, tuple[float, ...]]:
        """Read 0 or 1, or the abnormal frames; where some row says frames, 0 says it of every frame.

        A number alone is 0 or 1, of the clip: were 2 frame 2, nobody could tell what 1 means.
        """
        if text in ("0", "1"):
            return int(text), (0.0,) * frames if self.frames and text == "0" else ()
        if re.fullmatch("[0-9]{1,9}", text):
            raise DataError(
                f"{where}, column {self.name}: {text!r} is neither 0 nor 1, which are said of the whole clip. If frame "
                f"{text} is meant, write {text}-{text}; likewise 0-0 and 1-1 for the frames 0 and 1."
            )
        spans = _spans(text, table, f"{where}, column {self.name}", named=False)
        return 1, _of_frames(spans, frames, [1.0] * len(spans), 0.0, where)


def find_columns(rows: Numbered, config: LabelConfig, table: Path) -> list[Column]:
    """Return the columns that say something in some row, in the order label, numbers, frame labels, anomaly.

    Raises:
        DataError: if a cell cannot be understood, a label is not among those configured, or all are the same.
        ConfigError: if settings contradict each other, or two outputs would have one name.
    """
    found = [_label(rows, config, table), *(number_column(rows, name, table) for name in config.targets)]
    found += [_frame_labels(rows, config, table), _anomalies(rows)]
    columns = [column for column in found if column is not None]
    names = ["mask", *(column.output.name for column in columns)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"dataset.targets={list(config.targets)}: {twice!r} would be predicted twice.")
    return columns


def _said(rows: Numbered, column: str) -> list[tuple[int, str]]:
    """Row number and text of the cells that are not empty."""
    return [(number, cells[column]) for number, cells in rows if cells.get(column)]


def _several(text: str) -> list[str]:
    """The labels in a cell."""
    return [part.strip() for part in text.split("|") if part.strip()]


def _label(rows: Numbered, config: LabelConfig, table: Path) -> Column | None:
    """The class, grade or labels of a clip."""
    if config.ordinal and config.multilabel:
        raise ConfigError("dataset.ordinal and dataset.multilabel cannot both be true: grades exclude one another.")
    said = _said(rows, "label")
    if not said:
        return None
    used = [(number, part) for number, text in said for part in (_several(text) if config.multilabel else [text])]
    task = "multilabel" if config.multilabel else "ordinal" if config.ordinal else "classification"
    names = _names(used, config.labels, "labels", table, least=1 if config.multilabel else 2)
    return Column(OutputSpec(name="label", task=task, classes=names), "label")


def _names(
    used: list[tuple[int, str]], configured: tuple[str, ...], setting: str, table: Path, least: int = 2
) -> tuple[str, ...]:
    """The class names in order, configured or found."""
    names = tuple(configured) or tuple(sorted({name for _, name in used}, key=natural_key))
    for number, name in used:
        if name not in names:
            raise DataError(
                f"{table}, row {number}: the label {name!r} is not in dataset.{setting}={list(names)}."
                f"{did_you_mean(name, names)} Correct the row, or add the name."
            )
    if len(names) < least:
        found = f"every label is {names[0]!r}" if names else "no row names a label"
        raise DataError(
            f"{table}: {found}. There must be {'one at least' if least == 1 else 'two at least to tell apart'}; where "
            "others are known that no row has, name all with dataset.labels=[…]."
        )
    return names


def number_column(rows: Numbered, name: str, table: Path, setting: str = "targets") -> Column:
    """Return the column of a number of each clip, which a setting names.

    Raises:
        DataError: if there is none, or it is empty.
    """
    known = {column for _, cells in rows for column in cells}
    if name not in known:
        raise DataError(
            f"{table} has no column {name!r}, which dataset.{setting} names.{did_you_mean(name, known)} Columns found: "
            f"{', '.join(sorted(known))}."
        )
    if not _said(rows, name):
        raise DataError(f"{table}: the column {name!r}, which dataset.{setting} names, is empty in every row.")
    return Column(OutputSpec(name=name, task="regression", classes=(name,)), name)


def _frame_labels(rows: Numbered, config: LabelConfig, table: Path) -> Column | None:
    """The class of each frame."""
    said = _said(rows, "frame_labels")
    if not said:
        return None
    used = [
        (number, name)
        for number, text in said
        for *_, name in _spans(text, table, f"{table}, row {number}, column frame_labels")
    ]
    names = _names(used, config.frame_classes, "frame_classes", table)
    return Column(OutputSpec(name=FRAME_LABEL, task="frame_classification", classes=names), "frame_labels")


def _anomalies(rows: Numbered) -> Column | None:
    """Whether, or where, something is wrong in a clip."""
    said = {text for _, text in _said(rows, "anomaly")}
    if not said:
        return None
    return Column(OutputSpec(name="anomaly", task="anomaly", classes=("anomaly",)), "anomaly", bool(said - {"0", "1"}))


def _spans(text: str, table: Path, where: str, named: bool = True) -> list[tuple[int, int, str]]:
    """Read ``10-20:systole;21-40:diastole``, or a CSV file with the columns frame and label: first, last, name."""
    path = table.parent / text
    if named and text.lower().endswith(".csv"):
        cells = read_table(path, ("frame", "label"))
        return [_span(f"{row['frame']}:{row['label']}", f"{path}, row {number}", True) for number, row in cells]
    return [_span(part.strip(), where, named) for part in text.split(";") if part.strip()]


def _span(text: str, where: str, named: bool) -> tuple[int, int, str]:
    """Read ``10-20:systole`` or ``10:systole``; without ``named`` ``10-20`` or ``10``."""
    match = _RANGE.fullmatch(text)
    if match is None or (match[3] is not None) != named or int(match[2] or match[1]) < int(match[1]):
        form = "frames and a label such as 10-20:systole" if named else "0, 1, or frames such as 10-20"
        raise DataError(f"{where}: {text[:_SHOWN]!r} is not {form}. Frames count from 0; several are separated by ';'.")
    return int(match[1]), int(match[2] or match[1]), match[3] or ""


def _of_frames(
    spans: list[tuple[int, int, str]], frames: int, values: list[float], other: float, where: str
) -> tuple[float, ...]:
    """The value of every frame: that of its span, ``other`` in none."""
    out = [other] * frames
    for (first, last, _), value in zip(spans, values, strict=True):
        if last >= frames:
            raise DataError(f"{where}: frame {last} is labelled, but the clip has {frames} frames (0 to {frames - 1}).")
        out[first : last + 1] = [value] * (last + 1 - first)
    return tuple(out)
