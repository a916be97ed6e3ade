"""One result a patient instead of one a case: patients with many clips then count no more than others.

Probabilities and numbers of a patient's cases are averaged before anything is decided, scored or ranked; of values that
cases have by themselves (Dice) the mean is taken.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from medvid_core.metrics.base import CaseMetric, Metric, ScoredCase
from medvid_core.metrics.statistics import by_group
from medvid_core.specs import FRAME_TASKS, OutputSpec


def averaged(cases: Sequence[ScoredCase], outputs: Sequence[OutputSpec]) -> tuple[list[ScoredCase], dict[str, str]]:
    """Return one case a patient, of the outputs that patients have a single truth of.

    Args:
        cases: with what was predicted for each.
        outputs: what was predicted.

    Returns:
        Patients, whose id is both ``case_id`` and ``group_id``; and by name the outputs that are left out, each with
        the reason: what is predicted frame by frame, and classes that differ between cases of a patient.
    """
    groups = by_group(cases)
    left_out = {o.name: "it is predicted frame by frame" for o in outputs if o.task in FRAME_TASKS}
    kept = [output for output in outputs if output.task not in FRAME_TASKS and output.task != "segmentation"]
    for output in kept:
        if output.task == "regression":
            continue
        mixed = next((name for name, mine in groups.items() if not _agree(mine, output.name)), None)
        if mixed is not None:
            left_out[output.name] = f"cases of one patient differ in it (e.g. those of {mixed!r})"
    names = [output.name for output in kept if output.name not in left_out]
    return [_patient(group, mine, names) for group, mine in groups.items()], left_out


def _agree(cases: Sequence[ScoredCase], name: str) -> bool:
    known = [case.true[name] for case in cases if name in case.true]
    return all(np.array_equal(value, known[0], equal_nan=True) for value in known)


def _patient(group: str, cases: Sequence[ScoredCase], names: Sequence[str]) -> ScoredCase:
    """Return the mean of a patient's cases; the truth is that of the cases which have one."""
    true = {name: [case.true[name] for case in cases if name in case.true] for name in names}
    return ScoredCase(
        case_id=group,
        group_id=group,
        predicted={name: np.mean([case.predicted[name] for case in cases], axis=0) for name in names},
        true={name: np.mean(values, axis=0) for name, values in true.items() if values},
    )


def of_patients(metrics: Sequence[Metric | CaseMetric], left_out: Sequence[str]) -> list[Metric | CaseMetric]:
    """Return the metrics, each without the outputs that are left out; those with none remaining are dropped."""
    found: list[Metric | CaseMetric] = []
    for metric in metrics:
        if isinstance(metric, Metric):
            found.append(metric)
            continue
        outputs = tuple(output for output in metric.outputs if output.name not in left_out)
        if outputs:
            narrowed = copy.copy(metric)
            narrowed.outputs = outputs
            found.append(narrowed)
    return found
