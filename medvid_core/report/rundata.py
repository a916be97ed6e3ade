"""What the report knows of a run: its files, read with every gap allowed for."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from medvid_core.errors import DataError
from medvid_core.report.palette import palette, to_hex
from medvid_core.report.text import BASELINES, metric_name
from medvid_core.specs import TASKS, OutputSpec

Row = dict[str, Any]
TEXT_COLUMNS = ("case_id", "group_id", "problem")
COUNT_COLUMNS = ("frames", "scored_frames")
_NAMED = ("classification", "ordinal")
"""Tasks whose truth and prediction stand as names in ``cases.csv``."""
_KINDS = ("true", "predicted")
FIT = {
    "classification": "the probability given to the true class",
    "multilabel": "the mean probability given to what is true of each label",
    "frame_classification": "the mean probability given to the true class of each frame",
    "regression": "the error",
    "ordinal": "the error in grades",
    "anomaly": "how high abnormal frames score and how low normal ones do",
}
"""What `medvid_core.engine.scoring.merit` is, where the headline metric has no value for a single case."""


@dataclass(frozen=True)
class RunData:
    """The files of a run directory.

    Attributes:
        directory: where they are.
        record: ``run.json``.
        log: ``metrics.jsonl``, in order.
        rows: ``cases.csv``: ids and names of classes as text, everything else as numbers, NaN where undefined.
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
        """Column of the first metric, of the first output where several have it; empty if there is none."""
        name = next(iter(self.metrics), "")
        of_outputs = [f"{name}/{output.name}" for output in self.outputs]
        return next((column for column in (name, *of_outputs) if column in self.columns), name)

    @property
    def scored(self) -> list[Row]:
        """The rows of the cases that have an annotated frame."""
        return [row for row in self.rows if row.get("scored_frames", 1)]

    @functools.cached_property
    def outputs(self) -> list[OutputSpec]:
        """What the model predicts; records of older runs know of one segmentation only."""
        data = self.record.get("dataset") or {}
        found = [_output(entry) for entry in data.get("outputs") or [] if isinstance(entry, Mapping)]
        known = [output for output in found if output.task in TASKS]
        classes = tuple(str(name) for name in data.get("classes") or [])
        return known or [OutputSpec(name="mask", task="segmentation", classes=classes)]

    @property
    def others(self) -> list[OutputSpec]:
        """All outputs that are no masks."""
        return [output for output in self.outputs if output.task != "segmentation"]

    @property
    def mask_classes(self) -> list[str]:
        """Class names of the masks: one if binary, else background first; empty without masks."""
        return next((list(output.classes) for output in self.outputs if output.task == "segmentation"), [])

    @property
    def has_masks(self) -> bool:
        """Whether masks are predicted."""
        return len(self.others) < len(self.outputs)

    @property
    def labels(self) -> list[str]:
        """Names of all classes and numbers that metrics may have parts for."""
        return list(dict.fromkeys(label for o in self.outputs if len(o.classes) > 1 for label in o.classes))

    @functools.cached_property
    def columns(self) -> dict[str, None]:
        """Every name a metric's value or part stands under, in the order of the results."""
        named = [*(self.record.get("results") or {}), *(name for row in self.rows[:1] for name in row)]
        return dict.fromkeys(name for name in named if name.split("/")[0] in self.metrics)

    @property
    def baseline_names(self) -> dict[str, str]:
        """The trivial predictors that were scored → what they are called here."""
        of_masks = {"constant": "best constant map"} if self.outputs[0].task == "segmentation" else {}
        known = BASELINES | of_masks
        scored = [str(which) for which, values in (self.record.get("baselines") or {}).items() if values]
        ordered = [which for which in known if which in scored] + [which for which in scored if which not in known]
        return {which: known.get(which, which) for which in ordered}

    def colour(self, label: str) -> str | None:
        """Return the colour of a class, ``#rrggbb``; None for what is no class. A background is black."""
        for output in self.outputs:
            if label in output.classes:
                skipped = 0 if output.task == "segmentation" else 1  # the background's
                colours = palette(len(output.classes) + skipped)[skipped:]
                return to_hex(colours[output.classes.index(label)])
        return None

    def higher_is_better(self, name: str) -> bool:
        """Whether larger values of a metric, or of its part for one class, are better."""
        return self.metrics.get(name.split("/")[0], True)

    def values(self, name: str) -> list[float]:
        """Return the defined values of a metric over the scored cases."""
        found = [row.get(name, math.nan) for row in self.scored]
        return [value for value in found if isinstance(value, float) and not math.isnan(value)]

    def parts(self, metric: str) -> list[str]:
        """Return the classes a metric is also given for, in table order."""
        columns = self.columns
        return [label for label in self.labels if f"{metric}/{label}" in columns]

    def taken_apart(self, column: str) -> tuple[str, str]:
        """Return the column over all classes, and the class, of a column: ``f1/lv`` → ``f1``, ``lv``.

        A part that is no class stays: ``bland-altman/edv/bias`` → ``bland-altman/bias``, ``edv``.
        """
        metric, *words = column.split("/")
        outputs = [output.name for output in self.outputs] if len(self.outputs) > 1 else []
        kept = [words.pop(0)] if words and words[0] in outputs else []
        rest = "/".join(words)
        for label in sorted(self.labels, key=len, reverse=True):
            before, found, after = f"/{rest}/".partition(f"/{label}/")
            if found:
                kept += [part for part in (before.strip("/"), after.strip("/")) if part]
                return "/".join([metric, *kept]), label
        return column, ""

    @property
    def order(self) -> str:
        """By what cases go from best to worst, in words."""
        by_metric = bool(self.values(self.headline)) or not self.others
        return metric_name(self.headline) if by_metric else FIT[self.others[0].task]

    def of_cases(self, name: str) -> bool:
        """Whether a value is the mean of what cases have, and cases have more than yes and no."""
        values = self.values(name)
        if len(values) < 2 or set(values) <= {0.0, 1.0}:
            return False
        return math.isclose(mean(values), self.result(name), rel_tol=1e-6, abs_tol=1e-9)

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


def _output(entry: Mapping[str, Any]) -> OutputSpec:
    """Return an output as the record describes it."""

    def numbers(key: str) -> tuple[float, ...]:
        return tuple(as_float(value) for value in entry.get(key) or ())

    classes = tuple(str(label) for label in entry.get("classes") or ())
    return OutputSpec(
        name=str(entry.get("name", "")),
        task=str(entry.get("task", "")),
        classes=classes,
        center=numbers("center"),
        scale=numbers("scale"),
    )


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


def interval(rows: Sequence[Row], name: str, share: bool = True) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean of a metric over groups (patients), by Student's t.

    Cases of one group are not independent, so each group enters with its mean. An interval of values that are not
    negative does not go below 0, nor that of a ``share``, whose values all lie in [0, 1], above 1. None below three
    groups, or where they are all equal: the interval would have no width.
    """
    from medvid_core.metrics.statistics import bounds_of  # loads torch, which importing this module does not

    groups: dict[str, list[float]] = {}
    for row in rows:
        value = row.get(name, math.nan)
        if isinstance(value, float) and not math.isnan(value):
            groups.setdefault(str(row.get("group_id", "")) or str(row.get("case_id")), []).append(value)
    means = [mean(values) for values in groups.values()]
    if len(means) < 3 or min(means) == max(means):
        return None
    half = float(stats.t.ppf(0.975, len(means) - 1)) * deviation(means) / math.sqrt(len(means))
    lowest, highest = bounds_of(means, share)
    return max(lowest, mean(means) - half), min(highest, mean(means) + half)


def read_run(directory: Path) -> RunData:
    """Read a run directory; all but ``run.json`` may be missing.

    Raises:
        DataError: there is no readable ``run.json``.
    """
    return read_files(directory, _read_record(directory))


def _read_record(directory: Path) -> dict[str, Any]:
    path = directory / "run.json"
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{directory} is no run directory: it holds no run.json.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} cannot be read: it holds no JSON object.")
    return record


def read_files(directory: Path, record: Mapping[str, Any]) -> RunData:
    """Read the files of a run, or of an evaluation, beside its record; any of them may be missing."""
    run = RunData(
        directory=directory,
        record=record,
        log=_read_log(directory / "metrics.jsonl"),
        rows=[],
        splits=_read_json(directory / "splits.json", dict),
        config=_read_text(directory / "config.yaml"),
        overlays=_read_json(directory / "overlays" / "index.json", list),
    )
    named = [f"{kind}/{output.name}" for output in run.outputs if output.task in _NAMED for kind in _KINDS]
    return dataclasses.replace(run, rows=_read_rows(directory / "cases.csv", {*TEXT_COLUMNS, *named}))


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


def _read_rows(path: Path, text: Collection[str]) -> list[Row]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [_typed(row, text) for row in csv.DictReader(file)]


def _typed(row: Mapping[str | None, Any], text: Collection[str]) -> Row:
    """Return a row with ``text`` columns as they stand, counts as integers and all others as numbers."""
    typed: Row = {}
    for name, value in row.items():
        if name is None:
            continue
        if name in text:
            typed[name] = value or ""
        else:
            number = as_float(value)
            whole = name in COUNT_COLUMNS and not math.isnan(number)
            typed[name] = int(number) if whole else number
    return typed
