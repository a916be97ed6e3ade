"""What the report knows of a run: its files, read with every gap allowed for."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from medvid_core.errors import DataError

Row = dict[str, Any]
TEXT_COLUMNS = ("case_id", "group_id")
COUNT_COLUMNS = ("frames", "scored_frames")


@dataclass(frozen=True)
class RunData:
    """The files of a run directory.

    Attributes:
        directory: where they are.
        record: ``run.json``.
        log: ``metrics.jsonl``, in order.
        rows: ``cases.csv``: ids as text, everything else as numbers, NaN where a value is undefined.
        splits: part → case ids.
        config: ``config.yaml`` as text.
        overlays: ``overlays/index.json``.
    """

    directory: Path
    record: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    rows: Sequence[Row]
    splits: Mapping[str, Sequence[str]]
    config: str
    overlays: Sequence[Mapping[str, Any]]

    @property
    def metrics(self) -> dict[str, bool]:
        """Metric name → whether higher is better; the first is the headline."""
        return dict(self.record.get("metrics") or {})

    @property
    def headline(self) -> str:
        """Name of the first metric, empty if there is none."""
        return next(iter(self.metrics), "")

    @property
    def scored(self) -> list[Row]:
        """The rows of the cases that have an annotated frame."""
        return [row for row in self.rows if row.get("scored_frames", 1)]

    @property
    def classes(self) -> list[str]:
        """Class names as the data set gives them: one for a binary task, else background first."""
        return [str(name) for name in self.record.get("dataset", {}).get("classes", [])]

    def higher_is_better(self, name: str) -> bool:
        """Whether larger values of a metric, or of its part for one class, are better."""
        return self.metrics.get(name.split("/")[0], True)

    def values(self, name: str) -> list[float]:
        """Return the defined values of a metric over the scored cases."""
        found = [row.get(name, math.nan) for row in self.scored]
        return [value for value in found if isinstance(value, float) and not math.isnan(value)]

    def parts(self, metric: str) -> list[str]:
        """Return the classes a metric is also given for, in table order."""
        names = {name for row in self.rows[:1] for name in row} | set(self.record.get("results") or {})
        order = {label: i for i, label in enumerate(self.classes)}
        found = [name.removeprefix(f"{metric}/") for name in names if name.startswith(f"{metric}/")]
        return sorted(found, key=lambda label: (order.get(label, len(order)), label))

    def result(self, name: str) -> float:
        """Return a metric over all scored cases; NaN if undefined."""
        found = (self.record.get("results") or {}).get(name)
        return as_float(found) if found is not None else mean(self.values(name))

    def baseline(self, which: str, name: str) -> float:
        """Return what a trivial predictor reaches on the same cases; NaN if unknown."""
        return as_float(((self.record.get("baselines") or {}).get(which) or {}).get(name))

    def better(self, one: float, other: float) -> bool:
        """Whether one value of the headline metric is better than another; false if either is undefined."""
        return one > other if self.higher_is_better(self.headline) else one < other


def as_float(value: Any) -> float:
    """Return a number, NaN for anything that is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else math.nan


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation (n - 1), NaN below two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def interval(rows: Sequence[Row], name: str) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean of a metric over groups (patients), by Student's t.

    Cases of one group are not independent, so each group enters with its mean. Values that all lie in [0, 1] keep
    their interval there. None below three groups.
    """
    groups: dict[str, list[float]] = {}
    for row in rows:
        value = row.get(name, math.nan)
        if isinstance(value, float) and not math.isnan(value):
            groups.setdefault(str(row.get("group_id", "")) or str(row.get("case_id")), []).append(value)
    means = [mean(values) for values in groups.values()]
    if len(means) < 3:
        return None
    half = float(stats.t.ppf(0.975, len(means) - 1)) * deviation(means) / math.sqrt(len(means))
    low, high = mean(means) - half, mean(means) + half
    bounded = all(0 <= value <= 1 for value in means)
    return (max(0.0, low), min(1.0, high)) if bounded else (low, high)


def read_run(directory: Path) -> RunData:
    """Read a run directory; all but ``run.json`` may be missing.

    Raises:
        DataError: there is no readable ``run.json``.
    """
    path = directory / "run.json"
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{directory} is no run directory: it holds no run.json.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} cannot be read: it holds no JSON object.")
    return RunData(
        directory=directory,
        record=record,
        log=_read_log(directory / "metrics.jsonl"),
        rows=_read_rows(directory / "cases.csv"),
        splits=_read_json(directory / "splits.json", dict),
        config=_read_text(directory / "config.yaml"),
        overlays=_read_json(directory / "overlays" / "index.json", list),
    )


def _read_text(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.exists() else ""


def _read_json(path: Path, kind: type) -> Any:
    """Read a JSON file of the wanted kind; empty if it is missing or something else."""
    try:
        found = json.loads(_read_text(path) or "null")
    except ValueError:
        found = None
    return found if isinstance(found, kind) else kind()


def _read_log(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in _read_text(path).splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run may be cut short
        if isinstance(values, dict) and "step" in values:
            lines.append(values)
    return lines


def _read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [_typed(row) for row in csv.DictReader(file)]


def _typed(row: Mapping[str | None, Any]) -> Row:
    typed: Row = {}
    for name, value in row.items():
        if name is None:
            continue
        if name in TEXT_COLUMNS:
            typed[name] = value or ""
        else:
            number = as_float(value)
            whole = name in COUNT_COLUMNS and not math.isnan(number)
            typed[name] = int(number) if whole else number
    return typed
