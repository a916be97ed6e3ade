"""What a model reaches in parts of the cases: by vendor, view, site, or whatever else the data say of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medvid_core.data.clip import Case
from medvid_core.data.datasets.folders import natural_key
from medvid_core.engine.contrast import Metrics, RunsCase, Value, values_of
from medvid_core.engine.scoring import CaseRow
from medvid_core.errors import ConfigError, did_you_mean
from medvid_core.metrics.statistics import RESAMPLES
from medvid_core.metrics.thresholds import at_best_thresholds

MOST_PARTS = 40
"""A column with more different values is no division."""
ALL, UNKNOWN = "(all)", "(unknown)"


@dataclass(frozen=True)
class Part:
    """Some cases and what the model reaches in them.

    Attributes:
        value: what they have in common.
        rows: of those that could be scored.
        values: every metric with its interval; empty where no case could be scored.
    """

    value: str
    rows: Sequence[CaseRow]
    values: Mapping[str, Value]

    @property
    def patients(self) -> int:
        """How many patients the cases are of."""
        return len({row["group_id"] for row in self.rows})


@dataclass(frozen=True)
class Breakdown:
    """A result by the values of a column.

    Attributes:
        column: what the cases are divided by.
        parts: all cases first, then those of each value.
        metrics: name → whether higher is better, without parts such as ``dice/lv``.
    """

    column: str
    parts: Sequence[Part]
    metrics: Mapping[str, bool]


def values_by(column: str, cases: Sequence[Case], splits: Mapping[str, str]) -> list[str]:
    """Return what every case has in a column: metadata, or view, split, group or stratum; `UNKNOWN` where it has none.

    Args:
        column: the name.
        cases: the cases.
        splits: case id → part of the data, for those whose part is not the data set's own.

    Raises:
        ConfigError: no case has it, or the cases have too many different values; the text says what there is.
    """
    known = [_attributes(case, splits) for case in cases]
    names = sorted({name for attributes in known for name in attributes})
    if column not in names:
        raise ConfigError(
            f"--by {column}: no case has it.{did_you_mean(column, names)} "
            f"The cases can be divided by: {', '.join(names)}."
        )
    found = [attributes.get(column, UNKNOWN) for attributes in known]
    if (count := len(set(found))) > MOST_PARTS:
        raise ConfigError(
            f"--by {column}: the {len(cases)} cases have {count} different values; a division has {MOST_PARTS} at "
            "most. Every case's own values are in cases.csv."
        )
    return found


def _attributes(case: Case, splits: Mapping[str, str]) -> dict[str, str]:
    """What is said of a case, as far as it is."""
    own = {
        "view": case.view,
        "split": splits.get(case.case_id, case.split or ""),
        "group": case.group_id,
        "stratum": case.stratum,
    }
    said = {name: value for name, value in own.items() if value}
    return {name: value for name, value in {**case.metadata, **said}.items() if value}


def break_down(
    column: str,
    values: Sequence[str],
    rows: Sequence[CaseRow],
    metrics: Metrics,
    higher_is_better: Mapping[str, bool],
    resamples: int = RESAMPLES,
) -> Breakdown:
    """Return every metric over all cases and over those of each value, with intervals over patients.

    Args:
        column: what the cases are divided by.
        values: of each case.
        rows: what was scored, likewise.
        metrics: those of the rows.
        higher_is_better: by name of the metric.
        resamples: of the bootstrap, for metrics that are no means.
    """
    kinds = sorted(set(values), key=lambda value: (value == UNKNOWN, natural_key(value)))
    scored = [(value, row) for value, row in zip(values, rows, strict=True) if row["scored_frames"]]
    columns = list(dict.fromkeys(name for _, row in scored for name, cell in row.items() if isinstance(cell, float)))
    groups = {ALL: [row for _, row in scored], **{kind: [row for v, row in scored if v == kind] for kind in kinds}}
    parts = [_part(kind, mine, columns, metrics, higher_is_better, resamples) for kind, mine in groups.items()]
    outputs = {f"{metric.name}/{output.name}" for metric in metrics for output in metric.outputs}
    order = [metric.name for metric in metrics]
    names = sorted((n for n in parts[0].values if "/" not in n or n in outputs), key=lambda n: order.index(_head(n)))
    return Breakdown(column, parts, {name: higher_is_better[_head(name)] for name in names})


def _head(name: str) -> str:
    return name.split("/")[0]


def _part(
    value: str,
    rows: Sequence[CaseRow],
    columns: Sequence[str],
    metrics: Metrics,
    higher_is_better: Mapping[str, bool],
    resamples: int,
) -> Part:
    own = [{name: row.get(name, math.nan) for name in columns} for row in rows]
    own = at_best_thresholds(metrics, own, [row.curves for row in rows])  # a part has a best threshold of its own
    cases = [
        RunsCase(case_id=row["case_id"], group_id=row["group_id"], rows=(values,), scored=(row.scored,))
        for row, values in zip(rows, own, strict=True)
    ]
    return Part(value, rows, values_of(cases, metrics, higher_is_better, resamples) if cases else {})
