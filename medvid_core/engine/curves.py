"""Metrics at the threshold that is best for all cases, where these were scored in several runs."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medvid_core.engine.compare import common_metrics
from medvid_core.engine.finished import FinishedRun
from medvid_core.errors import DataError
from medvid_core.metrics.base import Floats
from medvid_core.metrics.thresholds import BestOfCurve, at_best_thresholds


def read_curves(directory: Path) -> dict[str, dict[str, Floats]]:
    """Return by case the curves of ``curves.csv``, by name, [N] each.

    Raises:
        DataError: the table is missing or damaged.
    """
    path = directory / "curves.csv"
    if not path.is_file():
        raise DataError(f"There is no file {path}. Score the model anew.")
    found: dict[str, dict[str, Floats]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                case_id, name = line.pop("case_id"), line.pop("curve")
                found.setdefault(case_id, {})[name] = np.array([float(cell) for cell in line.values() if cell])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}. Score the model anew.") from error
    return found


def at_one_threshold(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return runs whose rows hold `BestOfCurve` metrics at one threshold for the cases of all of them together.

    Raises:
        DataError: a run's table of curves is missing or damaged.
    """
    metrics = [metric for metric in common_metrics(runs) if isinstance(metric, BestOfCurve)]
    if not metrics:
        return list(runs)
    heads = {metric.name for metric in metrics}
    places = [(run, case_id) for run in runs for case_id in run.rows]
    kept = {run.directory: read_curves(run.directory) for run in runs}
    for run, case_id in places:
        if case_id not in kept[run.directory]:
            raise DataError(f"{run.directory / 'curves.csv'} lacks the case {case_id!r}. Score the model anew.")
    values = at_best_thresholds(
        metrics,
        [{n: run.number(case, n) for n in run.rows[case] if n.split("/")[0] in heads} for run, case in places],
        [kept[run.directory][case] for run, case in places],
    )
    cells = {
        (run.directory, case): {name: "" if math.isnan(value) else repr(value) for name, value in row.items()}
        for (run, case), row in zip(places, values, strict=True)
    }
    return [
        replace(run, rows={case: {**row, **cells[run.directory, case]} for case, row in run.rows.items()})
        for run in runs
    ]
