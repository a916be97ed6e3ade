"""Finished runs as comparisons read them: what was predicted for every test case, and which belong together."""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvid_core.config import read_config_file
from medvid_core.engine import checkpoint
from medvid_core.engine.run import read_json
from medvid_core.engine.scoring import mask_classes
from medvid_core.errors import CheckpointError, DataError
from medvid_core.metrics.base import Floats, ScoredCase
from medvid_core.models import MODEL_FILE, ModelInfo
from medvid_core.specs import FRAME_TASKS, OutputSpec

Cells = Mapping[str, str]

TRACKERS = "train.trackers"
"""A setting that changes nothing of what is learnt: runs that differ in it alone are repetitions of each other."""

_LONGEST_LABEL = 60


@dataclass(frozen=True)
class FinishedRun:
    """A run directory whose training has ended.

    Attributes:
        directory: where it is.
        record: ``run.json``.
        settings: ``config.yaml``, by dotted key.
        splits: part → case ids.
        info: the model.
        rows: ``cases.csv`` as it stands, of the cases that were scored, by case id.
    """

    directory: Path
    record: Mapping[str, Any]
    settings: Mapping[str, Any]
    splits: Mapping[str, Sequence[str]]
    info: ModelInfo
    rows: Mapping[str, Cells]

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return int(self.settings.get("seed", 0))

    @property
    def recipe(self) -> dict[str, Any]:
        """All settings but seed, trackers and the places of data and cache: equal for repetitions of one training."""
        others = ("seed", "dataset.root", "cache", TRACKERS)
        return {key: value for key, value in self.settings.items() if key not in others}

    @property
    def data(self) -> Mapping[str, Any]:
        """What the record says of the data."""
        found: Mapping[str, Any] = self.record.get("dataset") or {}
        return found

    @property
    def tested(self) -> list[str]:
        """The ids of the cases the result is of."""
        return list(self.splits.get(str(self.record.get("split")), ()))

    @functools.cached_property
    def scored(self) -> Mapping[str, ScoredCase]:
        """What was predicted for the scored cases beside masks, by case id."""
        alarms = self.record.get("alarm_thresholds") or {}
        cases = read_scored(self.directory, self.info.outputs)
        return {case.case_id: dataclasses.replace(case, alarms=alarms) for case in cases}

    def number(self, case_id: str, column: str) -> float:
        """Return a number of a case's row; NaN where undefined."""
        return _number(self.rows[case_id].get(column, ""))


_LEFT = (MODEL_FILE, "cases.csv")
"""What a finished run leaves, and a comparison cannot do without."""


def has_finished(directory: Path) -> bool:
    """Whether a run is over, and has left its model and the table of its cases.

    Raises:
        DataError: its record is damaged.
    """
    left = all((directory / name).is_file() for name in _LEFT)
    return left and read_json(directory / "run.json").get("status") == "done"


def read_finished(directory: Path) -> FinishedRun:
    """Read the directory of a finished run.

    Raises:
        DataError: it is none, or has not finished, or a file in it is damaged. CheckpointError: the model file is.
    """
    if not (directory / "run.json").is_file():
        raise DataError(f"{directory} is no run directory: it holds no run.json.")
    record = read_json(directory / "run.json")
    if not has_finished(directory):
        missing = "".join(f", no {name}" for name in _LEFT if not (directory / name).is_file())
        raise DataError(
            f"The run {directory} has not finished (status {record.get('status', 'unknown')!r}{missing}). "
            f"Go on with: medvid-run train --resume {directory}"
        )
    _, header = checkpoint.read(directory / MODEL_FILE)
    if not isinstance(header.get("model"), dict):
        raise CheckpointError(f"{directory / MODEL_FILE} is not a model file.")
    rows = {row["case_id"]: row for row in _table(directory / "cases.csv") if row.get("scored_frames") != "0"}
    if not rows:
        raise DataError(f"{directory / 'cases.csv'} holds no scored case, so there is nothing to compare.")
    return FinishedRun(
        directory=directory,
        record=record,
        settings=read_config_file(directory / "config.yaml"),
        splits=read_json(directory / "splits.json"),
        info=ModelInfo.from_dict(header["model"]),
        rows=rows,
    )


def read_scored(directory: Path, outputs: Sequence[OutputSpec]) -> list[ScoredCase]:
    """Return what a run predicted beside masks, from its ``cases.csv`` and ``frames.csv``; of the scored cases.

    Args:
        directory: the run directory, or that of an evaluation.
        outputs: what the model predicts; segmentations are passed over.

    Raises:
        DataError: a table is missing or damaged, or lacks a column.
    """
    others = [output for output in outputs if output.task != "segmentation"]
    if not others:
        return []
    frames: dict[str, list[Cells]] = {}
    if any(output.task in FRAME_TASKS for output in others):
        for line in _table(directory / "frames.csv"):
            frames.setdefault(line["case_id"], []).append(line)
    rows = [row for row in _table(directory / "cases.csv") if row.get("scored_frames") != "0"]
    try:
        return [_case(row, sorted(frames.get(row["case_id"], ()), key=_frame), others) for row in rows]
    except KeyError as error:
        raise DataError(f"The tables in {directory} lack the column {error}. Score the model anew.") from error
    except ValueError as error:
        raise DataError(f"The tables in {directory} are damaged: {error}. Score the model anew.") from error


def read_pixels(directory: Path, output: OutputSpec) -> dict[str, npt.NDArray[np.int64]]:
    """Return how many pixels of each true class were called which, [K,K], by case, from ``pixels.csv``.

    Raises:
        DataError: the table is missing or damaged.
    """
    names = mask_classes(output)
    found: dict[str, npt.NDArray[np.int64]] = {}
    try:
        for line in _table(directory / "pixels.csv"):
            counts = found.setdefault(line["case_id"], np.zeros((len(names), len(names)), np.int64))
            counts[names.index(line["true"])] = [int(line[f"pixels/{name}"]) for name in names]
    except (KeyError, ValueError) as error:
        raise DataError(f"{directory / 'pixels.csv'} is damaged: {error}. Score the model anew.") from error
    return found


def _frame(line: Cells) -> int:
    return int(line["frame"])


def _table(path: Path) -> Iterator[Cells]:
    if not path.is_file():
        raise DataError(f"There is no file {path}. Score the model anew.")
    with open(path, newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _number(cell: str) -> float:
    return float(cell) if cell else math.nan


def _case(row: Cells, frames: Sequence[Cells], outputs: Sequence[OutputSpec]) -> ScoredCase:
    predicted, true, true_frames = {}, {}, {}
    for output in outputs:
        name = output.name
        if output.task in FRAME_TASKS:
            predicted[name], true_frames[name] = _of_frames(frames, output)
            known = _number(row[f"true/{name}"]) if output.task == "anomaly" else math.nan
            if not math.isnan(known):
                true[name] = np.array(known)
        else:
            predicted[name], known_values = _of_case(row, output)
            if not np.isnan(known_values).all():
                true[name] = known_values
    return ScoredCase(
        case_id=row["case_id"],
        group_id=row["group_id"],
        predicted=predicted,
        true=true,
        true_frames={name: values for name, values in true_frames.items() if not np.isnan(values).all()},
        fps=_number(row.get("fps", "")),
        last={output.name: values for output in outputs if (values := _last(row, output)) is not None},
    )


def _last(row: Cells, output: OutputSpec) -> Floats | None:
    """Return what was measured before; None where nothing was, as for all that is no number."""
    name = output.name if len(output.classes) == 1 else f"{output.name}/{output.classes[0]}"
    if output.task != "regression" or f"last/{name}" not in row:
        return None
    values = _numbers_of(row, "last", output)
    return None if np.isnan(values).all() else values


def _of_case(row: Cells, output: OutputSpec) -> tuple[Floats, Floats]:
    """Return what is predicted and what is true of a whole case; NaN where unknown."""
    name, classes = output.name, output.classes
    if output.task == "multilabel":
        return _numbers(row, f"p/{name}", classes), _numbers(row, f"true/{name}", classes)
    if output.task == "regression":
        return _numbers_of(row, "predicted", output), _numbers_of(row, "true", output)
    # of grades, the probability of lying above each but the last
    labels = [f">{grade}" for grade in classes[:-1]] if output.task == "ordinal" else classes
    return _numbers(row, f"p/{name}", labels), np.array(_index(row[f"true/{name}"], classes))


def _of_frames(frames: Sequence[Cells], output: OutputSpec) -> tuple[Floats, Floats]:
    """Return what is predicted and what is true of every frame; NaN where unknown."""
    name = output.name
    if output.task == "anomaly":
        return (
            np.array([_number(line[f"score/{name}"]) for line in frames]),
            np.array([_number(line[f"true/{name}"]) for line in frames]),
        )
    return (
        np.array([_numbers(line, f"p/{name}", output.classes) for line in frames]),
        np.array([_index(line[f"true/{name}"], output.classes) for line in frames]),
    )


def _numbers_of(row: Cells, kind: str, output: OutputSpec) -> Floats:
    """Return the numbers of a regression; the only one stands under the name of the output."""
    if len(output.classes) == 1:
        return np.array([_number(row[f"{kind}/{output.name}"])])
    return _numbers(row, f"{kind}/{output.name}", output.classes)


def _numbers(row: Cells, start: str, labels: Sequence[str]) -> Floats:
    return np.array([_number(row[f"{start}/{label}"]) for label in labels])


def _index(label: str, classes: Sequence[str]) -> float:
    """Return the index of a class; NaN where none is known."""
    if label and label not in classes:
        raise ValueError(f"{label!r} is none of the classes {', '.join(classes)}")
    return float(classes.index(label)) if label else math.nan


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs whose results are not of the same cases, or not of the same things.

    Raises:
        DataError: naming the two runs and what differs.
    """
    first = runs[0]
    for run in runs[1:]:
        for what, mine, other in _compared(first, run):
            if mine != other:
                raise DataError(
                    f"{first.directory} and {run.directory} cannot be compared: they differ in {what} "
                    f"({mine} and {other}). Train or score both on the same data and split."
                )
        if mismatch := sorted(set(first.tested) ^ set(run.tested)) or sorted(first.rows.keys() ^ run.rows.keys()):
            raise DataError(
                f"{first.directory} and {run.directory} cannot be compared: they were not scored on the same test "
                f"cases ({len(mismatch)} are of one alone, e.g. {mismatch[0]!r}). Train both with the same split."
            )
        if differing := [words for case_id in sorted(first.rows) if (words := _other_truth(first, run, case_id))]:
            raise DataError(
                f"{first.directory} and {run.directory} cannot be compared: the truth of {len(differing)} of their "
                f"{len(first.rows)} test cases is not the same, e.g. {differing[0]}. Train or score both on the same "
                "labels."
            )


def _other_truth(one: FinishedRun, other: FinishedRun, case_id: str) -> str:
    """Return what is true of a case in one run and not in the other, in words; empty where they agree."""
    mine, theirs = one.rows[case_id], other.rows[case_id]
    for column in mine:
        if column.startswith(("true/", "last/")) and mine[column] != theirs.get(column):
            return f"{column} of {case_id!r}: {mine[column] or 'unknown'} and {theirs.get(column) or 'unknown'}"
    if not any(output.task in FRAME_TASKS for output in one.info.outputs):
        return ""
    frames, their_frames = one.scored[case_id].true_frames, other.scored[case_id].true_frames
    for name in sorted(frames.keys() | their_frames.keys()):
        nothing = np.zeros(0)
        if not np.array_equal(frames.get(name, nothing), their_frames.get(name, nothing), equal_nan=True):
            return f"{name} of the frames of {case_id!r}"
    return ""


def _compared(one: FinishedRun, other: FinishedRun) -> list[tuple[str, Any, Any]]:
    return [
        (what, of(one), of(other))
        for what, of in (
            ("what they predict", lambda run: names_of(run.info.outputs)),
            ("the fingerprint of their data", lambda run: str(run.data.get("fingerprint"))[:16]),
            ("the part of the data they were scored on", lambda run: run.record.get("split")),
            ("evaluate.at", lambda run: run.settings.get("evaluate.at")),
        )
    ]


def names_of(outputs: Sequence[OutputSpec]) -> str:
    """Return what is predicted, in words."""
    return "; ".join(f"{output.name}: {output.task} of {', '.join(output.classes)}" for output in outputs)


def grouped(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Return the runs of each model by its label: those with the same settings but for the seed are together.

    Raises:
        DataError: two runs are the same in everything.
    """
    groups: list[list[FinishedRun]] = []
    for run in runs:
        group = next((group for group in groups if group[0].recipe == run.recipe), None)
        if group is None:
            groups.append([run])
        elif twin := next((other for other in group if other.seed == run.seed), None):
            raise DataError(
                f"{twin.directory} and {run.directory} are the same model with the same settings and seed: one run "
                "counted twice says nothing. Leave one out, or train with another seed."
            )
        else:
            group.append(run)
    return {label: group for label, group in zip(_labels([group[0] for group in groups]), groups, strict=True)}


def _labels(firsts: Sequence[FinishedRun]) -> list[str]:
    """Return a name for each model; those that share one are told apart by the settings in which they differ."""
    names = [run.info.name.rpartition("/")[2] for run in firsts]
    labels = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        alike = [number for number, other in enumerate(names) if other == name]
        settings = _what_differs([firsts[number].recipe for number in alike])
        if max(map(len, settings)) <= _LONGEST_LABEL:
            for number, text in zip(alike, settings, strict=True):
                labels[number] = f"{name} ({text})"
    for places in ([run.directory.name for run in firsts], [str(run.directory) for run in firsts]):
        twice = {label for label in labels if labels.count(label) > 1}  # too many settings to name: the folder does
        labels = [f"{label} ({at})" if label in twice else label for label, at in zip(labels, places, strict=True)]
    return labels


def _what_differs(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the settings of each recipe that are not the same in all."""
    known = sorted({key for recipe in recipes for key in recipe})
    keys = [key for key in known if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)]
    return [", ".join(f"{key}={recipe.get(key)}" for key in keys) for recipe in recipes]
