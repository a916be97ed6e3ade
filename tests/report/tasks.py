"""Run directories of tasks beside segmentation, with tables and results as a run writes them."""

import json
import math

import numpy as np

from medvid_core.engine.scoring import CaseRow, build_metrics, columns, summarise, write_tables
from medvid_core.metrics.base import ScoredCase
from medvid_core.plugins import registry
from medvid_core.specs import OutputSpec


def output(task, classes=("mild", "severe"), name="state", **values):
    return OutputSpec(name=name, task=task, classes=tuple(classes), **values)


def case(number, predicted, true=None, frames=None, name="state", **values):
    """One case; its id says which. ``true`` is of the case, ``frames`` of its frames."""
    return ScoredCase(
        case_id=values.pop("case_id", f"case-{number}"),
        group_id=values.pop("group_id", f"patient-{number}"),
        predicted={name: np.asarray(predicted, np.float64)},
        true={} if true is None else {name: np.asarray(true, np.float64)},
        true_frames={} if frames is None else {name: np.asarray(frames, np.float64)},
        fps=20.0,
    )


def write_run(directory, record, outputs, cases, metrics=("auto",), constant=None):
    """Write a run directory as training does; return it.

    ``constant`` are the cases as the constant prediction has them.
    """
    built = build_metrics(registry(), metrics, tuple(outputs))
    rows = [_row(found, outputs, built) for found in cases]
    results = summarise(rows, built)
    baselines = {"untrained": {name: 0.25 for name in results}}
    if constant is not None:
        baselines["constant"] = summarise([_row(found, outputs, built) for found in constant], built)
    specs = {spec.name: spec for spec in (registry().find("metric", metric.name).spec for metric in built)}
    record |= {
        "dataset": record["dataset"]
        | {
            "classes": list(outputs[0].classes),
            "outputs": [
                {"name": o.name, "task": o.task, "classes": list(o.classes), "center": o.center, "scale": o.scale}
                for o in outputs
            ],
        },
        "metrics": {name: spec.higher_is_better for name, spec in specs.items()},
        "results": _plain(results),
        "baselines": {which: _plain(values) for which, values in baselines.items()},
    }
    (directory / "run.json").write_text(json.dumps(record))
    write_tables(directory, rows, outputs)
    return directory


def _row(found, outputs, metrics):
    frames = max(len(values) for values in found.predicted.values())
    row = CaseRow(case_id=found.case_id, group_id=found.group_id, frames=frames, scored_frames=frames)
    row.scored = found
    row |= columns(found, outputs)
    for metric in metrics:
        row |= metric.per_case(found)
    return row


def _plain(values):
    return {name: None if math.isnan(value) else value for name, value in values.items()}
