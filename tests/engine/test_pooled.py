"""Results of folds put together: pooled over cases, one a patient, and class by class."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml

from medvid_core import plugins
from medvid_core.data.contents import Content
from medvid_core.data.folds import Folds
from medvid_core.engine import checkpoint
from medvid_core.engine.cv_folds import Divided
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
    result = pool(runs, Divided(folds), out, 100)
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


@pytest.mark.parametrize(("second", "epoch"), [(0.75, None), (0.5, 2)])
def test_evaluations_that_are_all_the_same_choose_nothing(tmp_path, second, epoch):
    directory = finish(tmp_path / "fold0", 0, cases(0))
    with open(directory / "metrics.jsonl", "a") as file:
        for step, value in ((4, 0.75), (6, second)):
            file.write(json.dumps({"kind": "evaluation", "split": "val", "step": step, "accuracy": value}) + "\n")
    assert best_epoch(read_finished(directory)) == epoch
    run = read_finished(directory)
    folds = Folds(test=(tuple(run.tested), ("z",)), val=(("v",), ("v",)))
    notes = pool([run], Divided(folds), tmp_path, 100).notes
    assert ("Fold 0: validation cases chose no checkpoint; no evaluation was better than another." in notes) is (
        epoch is None
    )


def test_every_fold_has_intervals_of_its_own(found):
    """Those of its patients alone, in all three tables."""
    out, result = found
    for fold in result.folds:
        for name, value in fold.values.items():
            assert fold.intervals[name].value == pytest.approx(value)
            assert fold.intervals[name].patients == 6
        low, high = fold.intervals["accuracy"].low, fold.intervals["accuracy"].high
        assert low < fold.values["accuracy"] < high
        lines = csv.DictReader((out / "cv.csv").read_text().splitlines())
        line = next(line for line in lines if line["of"] == f"fold {fold.fold}")
        assert (float(line["accuracy:low"]), float(line["accuracy:high"])) == (low, high)
    assert (
        f"{result.folds[0].values['accuracy']:.3f} ({result.folds[0].intervals['accuracy'].low:.3f} to"
        in (out / "cv.md").read_text()
    )


def test_what_was_left_out_and_noted_is_told(tmp_path):
    """Cases that no fold could use, by class; what all runs noted; a class that a fold does not test."""
    runs = []
    for fold in range(2):
        directory = finish(tmp_path / f"fold{fold}", fold, cases(fold))
        record = json.loads((directory / "run.json").read_text())
        record["dataset"]["skipped"] = {"lost": "no person is seen.", f"lost{fold}": "truncated"}
        record["notes"] = ["patient names 4 for 9 cases", f"only of fold {fold}", "left out lost: no person is seen"]
        (directory / "run.json").write_text(json.dumps(record))
        runs.append(read_finished(directory))
    folds = Folds(test=tuple(tuple(run.tested) for run in runs), val=(("v",), ("v",)))
    contents = {name: Content(frozenset({"gait: healthy"})) for name in runs[0].tested}
    contents[runs[1].tested[0]] = Content(frozenset({"gait: ill"}))
    lost = {"lost": frozenset({"gait: healthy"}), "lost1": frozenset({"gait: healthy"})}
    notes = pool(runs, Divided(folds, contents, lost), tmp_path, 100).notes
    assert "3 case(s) are left out (2 × gait: healthy): they cannot be used, e.g. 'lost': no person is seen." in notes
    assert "All folds: patient names 4 for 9 cases." in notes
    assert "Fold 0: no test case holds gait: ill; its own values leave that out." in notes
    assert not any("only of fold" in note for note in notes)


def test_an_epoch_that_nothing_chose_is_not_said_to_be_chosen(tmp_path):
    runs = []
    for fold in range(2):
        directory = finish(tmp_path / f"fold{fold}", fold, cases(fold))
        run = read_finished(directory)
        run.splits["val"].clear()
        runs.append(run)
    folds = Folds(test=tuple(tuple(run.tested) for run in runs), val=((), ()))
    text = markdown_of(pool(runs, Divided(folds), tmp_path, 100))
    assert "In no fold did validation cases choose an epoch." in text
    assert "The epoch was chosen by" not in text
