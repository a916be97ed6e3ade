"""Results of folds put together: pooled over cases, one a patient, and class by class."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml

from medvid_core import plugins
from medvid_core.data.folds import Folds
from medvid_core.engine import checkpoint
from medvid_core.engine.finished import read_finished
from medvid_core.engine.pooled import best_epoch, pool
from medvid_core.engine.scoring import CaseRow, build_metrics, columns, write_tables
from medvid_core.metrics.base import CaseMetric, ScoredCase
from medvid_core.metrics.curves import auroc
from medvid_core.models import ModelInfo
from medvid_core.report.cv import markdown_of, write_cv
from medvid_core.specs import ClipSpec, OutputSpec

METRICS = ("accuracy", "auroc", "mae")
GAIT = OutputSpec(name="gait", task="classification", classes=("healthy", "ill"))


def outputs(fold):
    """The number is centred on the training cases, which differ from fold to fold."""
    return (GAIT, OutputSpec(name="age", task="regression", classes=("age",), center=(50.0 + 10 * fold,), scale=(5.0,)))


def finish(directory, fold, cases):
    """Write a run directory as training leaves it."""
    built = build_metrics(plugins.registry(), METRICS, outputs(fold))
    rows = []
    for case in cases:
        row = CaseRow(case_id=case.case_id, group_id=case.group_id, frames=4, scored_frames=4)
        row.scored = case
        row |= columns(case, outputs(fold))
        for metric in built:
            row |= metric.per_case(case) if isinstance(metric, CaseMetric) else {}
        rows.append(row)
    info = ModelInfo("lab/cnn", "1.0", {}, outputs(fold), ClipSpec(), 4, (32, 32))
    checkpoint.write(directory / "model.safetensors", {"x": torch.zeros(1)}, {"kind": "model", "model": info.to_dict()})
    write_tables(directory, rows, outputs(fold))
    results = {}
    for metric in built:
        results |= metric.summarise([row.scored for row in rows])
    record = {
        "status": "done",
        "split": "test",
        "metrics": {"accuracy": True, "auroc": True, "mae": False},
        "results": results,
        "best": {"step": 4, "value": 0.75},
        "dataset": {"name": "walks", "fingerprint": "ab" * 32},
        "baselines": {"constant": {"accuracy": 0.5}},
    }
    splits = {"train": ["other"], "val": ["v"], "test": [case.case_id for case in cases]}
    (directory / "splits.json").write_text(json.dumps(splits))
    (directory / "run.json").write_text(json.dumps(record))
    (directory / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "preset": "tiny", "metrics": list(METRICS)}))
    lines = [{"kind": "train", "step": step, "epoch": (step - 1) // 2} for step in range(1, 7)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def cases(fold):
    """Six patients with one to three walks each."""
    rng = np.random.default_rng(fold)
    found = []
    for patient in range(6):
        for walk in range(1 + patient % 3):
            p = rng.random()
            found.append(
                ScoredCase(
                    case_id=f"{fold}-{patient}-{walk}",
                    group_id=f"{fold}-{patient}",
                    predicted={"gait": np.array([1 - p, p]), "age": rng.normal(60, 5, 1)},
                    true={"gait": np.array(float(patient % 2)), "age": np.array([60.0 + patient])},
                )
            )
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Two folds, put together and written."""
    out = tmp_path_factory.mktemp("pooled")
    runs = [read_finished(finish(out / f"fold{fold}", fold, cases(fold))) for fold in range(2)]
    folds = Folds(test=tuple(tuple(run.tested) for run in runs), val=(("v",), ("v",)), imbalance=0.1)
    result = pool(runs, folds, out, 100)
    write_cv(result, out)
    return out, result


def by_patient():
    """Mean probability and truth of each patient, by hand."""
    groups = {}
    for case in (*cases(0), *cases(1)):
        groups.setdefault(case.group_id, []).append(case)
    p = np.array([np.mean([case.predicted["gait"][1] for case in mine]) for mine in groups.values()])
    return p, np.array([float(mine[0].true["gait"]) for mine in groups.values()])


def test_cases_are_pooled(found):
    _, result = found
    everything = [*cases(0), *cases(1)]
    p = np.array([case.predicted["gait"][1] for case in everything])
    true = np.array([float(case.true["gait"]) for case in everything])
    assert result.pooled["accuracy"].value == pytest.approx(((p > 0.5) == true).mean())
    assert result.pooled["auroc"].value == pytest.approx(auroc(p, true == 1))
    assert result.pooled["auroc"].patients == 12
    assert result.outputs[1].center == (55.0,)
    assert len(result.rows) == len(everything)
    assert {row["fold"] for row in result.rows} == {"0", "1"}


def test_every_patient_counts_once(found):
    _, result = found
    p, true = by_patient()
    assert len(p) == 12
    assert result.per_patient["accuracy"].value == pytest.approx(((p > 0.5) == true).mean())
    assert result.per_patient["auroc"].value == pytest.approx(auroc(p, true == 1))
    assert result.per_patient["accuracy"].value != result.pooled["accuracy"].value


def test_confusion_of_cases_and_of_patients(found):
    out, result = found
    p, true = by_patient()
    of_patients = next(each for each in result.classes if each.unit == "patients")
    counts = [[int(((true == i) & ((p > 0.5) == j)).sum()) for j in (0, 1)] for i in (0, 1)]
    assert of_patients.counts.tolist() == counts
    with open(out / "confusion-patients.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        [r"true \ predicted", "healthy", "ill"],
        ["healthy", *map(str, counts[0])],
        ["ill", *map(str, counts[1])],
    ]
    ill = of_patients.results[1]
    assert (ill.name, ill.count, ill.recall) == ("ill", 6, counts[1][1] / 6)
    with open(out / "patients.csv", newline="") as file:
        written = {row["group_id"]: row for row in csv.DictReader(file)}
    assert sorted(float(row["p/gait/ill"]) for row in written.values()) == pytest.approx(sorted(p))
    for name in ("confusion", "confusion-patients"):
        assert (out / f"{name}.svg").read_text().startswith("<?xml")
    assert "Confusion matrix of gait: patients" in (out / "cv.html").read_text()


def test_what_is_positive_is_said(found):
    out, _ = found
    text = (out / "cv.md").read_text()
    assert "gait: positive is ill (class 1, the other is healthy)" in text
    assert text == markdown_of(found[1])
    data = json.loads((out / "cv.json").read_text())
    assert data["classes"][0]["positive"].startswith("gait: positive is ill")


def test_the_best_epoch_is_that_of_the_step_kept(found):
    out, result = found
    assert [fold.best_epoch for fold in result.folds] == [2, 2]
    run = read_finished(out / "fold0")
    run.splits["val"].clear()
    assert best_epoch(run) is None  # nothing chose it
