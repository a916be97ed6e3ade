"""Runs are compared only if they can be, patient by patient, and the tables say what was measured and what was not."""

import argparse
import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import yaml

from medvid_core import plugins
from medvid_core.cli import compare as cli
from medvid_core.engine import checkpoint
from medvid_core.engine.compare import compare, read_scored
from medvid_core.engine.contrast import RunsCase, values_of
from medvid_core.engine.cost import Cost, Estimate, Memory
from medvid_core.engine.energy import Energy
from medvid_core.engine.finished import grouped, read_finished
from medvid_core.engine.operations import ENERGY_CAVEAT
from medvid_core.engine.scoring import CaseRow, build_metrics, columns, write_tables
from medvid_core.engine.train_many import train_missing
from medvid_core.errors import ConfigError, DataError, MedvidError
from medvid_core.metrics.base import CaseMetric, ScoredCase
from medvid_core.metrics.permutation import swap_test
from medvid_core.metrics.statistics import bootstrap, by_group, difference, mean_interval, paired
from medvid_core.models import ModelInfo
from medvid_core.report.comparison import escape_tex, glance, latex, markdown, tables, write_comparison
from medvid_core.report.comparison_html import page
from medvid_core.specs import ClipSpec, OutputSpec

VIEW = OutputSpec(name="view", task="classification", classes=("a2c", "a4c", "plax"))
RESAMPLES = 200


def cases(accuracy, patients=25, per_patient=2, seed=0):
    """Cases of three classes, of which about so many are called right."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99)  # the same for every model
    found = []
    for patient in range(patients):
        for clip in range(per_patient):
            true = truth.integers(3)
            logits = rng.normal(0, 0.5, 3)
            logits[true if rng.random() < accuracy else (true + 1) % 3] += 3
            p = np.exp(logits) / np.exp(logits).sum()
            case_id, group_id = f"p{patient:02d}-{clip}", f"p{patient:02d}"
            true = {"view": np.array(float(true))}
            found.append(ScoredCase(case_id=case_id, group_id=group_id, predicted={"view": p}, true=true))
    return found


def finish(directory, scored, model="lab/cnn", outputs=(VIEW,), metrics=("accuracy", "f1"), seed=0, **changes):
    """Write a run directory as training leaves it."""
    record = {
        "status": "done",
        "split": "test",
        "metrics": dict.fromkeys(metrics, True),
        "dataset": {"name": "views", "fingerprint": "ab" * 32},
        "baselines": {"constant": {"accuracy": 0.34}},
        "versions": {"torch": "2"},
    } | changes.pop("record", {})
    settings = {"seed": seed, "preset": "tiny", "metrics": list(metrics), "evaluate": {"at": "source"}}
    settings |= {"model": {"name": model}} | changes.pop("settings", {})
    assert not changes
    built = build_metrics(plugins.registry(), metrics, outputs)
    rows = []
    for case in scored:
        row = CaseRow(case_id=case.case_id, group_id=case.group_id, frames=4, scored_frames=4)
        row.scored = case
        row |= columns(case, outputs)
        for metric in built:
            row |= metric.per_case(case) if isinstance(metric, CaseMetric) else {}
        rows.append(row)
    info = ModelInfo(model, "1.0", {}, tuple(outputs), ClipSpec(), 4, (32, 32))
    checkpoint.write(directory / "model.safetensors", {"x": torch.zeros(1)}, {"kind": "model", "model": info.to_dict()})
    write_tables(directory, rows, outputs)
    splits = {"train": ["other"], "val": [], "test": [case.case_id for case in scored]}
    (directory / "splits.json").write_text(json.dumps(splits))
    (directory / "run.json").write_text(json.dumps(record))
    (directory / "config.yaml").write_text(yaml.safe_dump(settings))
    return directory


@pytest.fixture
def pair(tmp_path):
    """Two models, the second better."""
    return [finish(tmp_path / "one", cases(0.55)), finish(tmp_path / "two", cases(0.9, seed=1), "lab/cnn-mamba")]


def relabelled(scored):
    """The same cases, of which the first and the last are said to be of another class."""
    other = lambda case: dataclasses.replace(case, true={"view": (case.true["view"] + 1) % 3})  # noqa: E731
    return [other(scored[0]), *scored[1:-1], other(scored[-1])]


OUTPUTS = (
    VIEW,
    OutputSpec(name="signs", task="multilabel", classes=("effusion", "b-lines")),
    OutputSpec(name="ef", task="regression", classes=("ef",), center=(55.0,), scale=(10.0,)),
    OutputSpec(name="volumes", task="regression", classes=("edv", "esv")),
    OutputSpec(name="grade", task="ordinal", classes=("none", "mild", "severe")),
    OutputSpec(name="phase", task="frame_classification", classes=("systole", "diastole")),
    OutputSpec(name="stall", task="anomaly", classes=("stall",)),
)


def of_all_tasks(number, known):
    rng = np.random.default_rng(number)
    frames = 3 + number
    return ScoredCase(
        case_id=f"case-{number}",
        group_id=f"patient-{number}",
        predicted={
            "view": rng.dirichlet(np.ones(3)),
            "signs": rng.random(2),
            "ef": rng.random(1) * 60,
            "volumes": rng.random(2) * 100,
            "grade": rng.random(2),
            "phase": rng.dirichlet(np.ones(2), frames),
            "stall": rng.normal(size=frames),
        },
        true={
            "view": np.array(2.0),
            "signs": np.array([1.0, 0.0]),
            "ef": np.array([57.25]),
            "volumes": np.array([120.5, 55.0]),
            "grade": np.array(1.0),
            "stall": np.array(1.0),
        }
        if known
        else {"ef": np.array([31.0])},
        true_frames={
            "phase": np.array([math.nan, *rng.integers(0, 2, frames - 1)]),
            "stall": rng.integers(0, 2, frames).astype(float),
        }
        if known
        else {},
    )


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_what_a_run_predicted_is_read_back_to_the_bit(tmp_path):
    """Every task, known and unknown, several frames: what the engine writes is what comparisons read."""
    wanted = [of_all_tasks(0, known=True), of_all_tasks(1, known=False)]
    finish(tmp_path / "run", wanted, outputs=OUTPUTS, metrics=("accuracy",))
    found = read_scored(tmp_path / "run", OUTPUTS)
    for one, other in zip(found, wanted, strict=True):
        assert (one.case_id, one.group_id) == (other.case_id, other.group_id)
        same(one.predicted, other.predicted)
        same(one.true, other.true)
        same(one.true_frames, other.true_frames)


def test_tables_that_do_not_hold_what_is_needed_are_refused(tmp_path):
    """A missing column, a class the model does not know, a missing table."""
    run = finish(tmp_path / "run", cases(0.5))
    more = dataclasses.replace(VIEW, classes=("a2c", "a4c", "plax", "psax"))
    with pytest.raises(DataError, match="lack the column 'p/view/psax'"):
        read_scored(run, [more])
    renamed = dataclasses.replace(VIEW, classes=("a2c", "a4c", "subcostal"))
    table = run / "cases.csv"
    table.write_text(table.read_text().replace("p/view/plax", "p/view/subcostal"))
    with pytest.raises(DataError, match="'plax' is none of the classes a2c, a4c, subcostal"):
        read_scored(run, [renamed])
    with pytest.raises(DataError, match=r"There is no file .*frames\.csv"):
        read_scored(run, [OUTPUTS[-1]])


def values(comparison, label):
    return next(entry for entry in comparison.entries if entry.label == label).values


def test_values_and_intervals_are_those_of_the_statistics(pair, tmp_path):
    """Accuracy, a mean over cases, by the t-interval over patients; F1, of all together, by the bootstrap."""
    found = values(compare(pair, tmp_path / "out", resamples=RESAMPLES), "cnn")
    scored = cases(0.55)
    accuracy, f1 = build_metrics(plugins.registry(), ("accuracy", "f1"), (VIEW,))
    right = {group: [accuracy.per_case(c)["accuracy"] for c in mine] for group, mine in by_group(scored).items()}
    wanted = mean_interval(right)
    assert (found["accuracy"].value, found["accuracy"].low) == pytest.approx((wanted.value, wanted.low))
    drawn = bootstrap(by_group(scored), f1.summarise, RESAMPLES)["f1"]
    assert (found["f1"].value, found["f1"].low, found["f1"].high) == pytest.approx((drawn.value, drawn.low, drawn.high))
    assert found["f1/plax"].value == pytest.approx(f1.summarise(scored)["f1/plax"])


def test_differences_are_found_where_they_are(pair, tmp_path):
    """The better model is better in both kinds of metric; one compared with its like is not."""
    like = finish(tmp_path / "like", cases(0.55, seed=2), "lab/gru")
    result = compare([*pair, like], tmp_path / "out", resamples=RESAMPLES)
    first, better, alike = result.entries
    assert not first.differences
    for name in ("accuracy", "f1"):
        found = better.differences[name]
        assert found.difference == pytest.approx(better.values[name].value - first.values[name].value)
        assert 0 < found.low < found.difference < found.high
        assert found.p_value < 0.02
        assert found.p_holm == pytest.approx(min(1, 2 * found.p_value))  # the smaller of two
        assert alike.differences[name].p_value > 0.05
        assert alike.differences[name].p_holm == pytest.approx(
            max(alike.differences[name].p_value, better.differences[name].p_holm)
        )


def test_differences_are_those_of_the_statistics(pair, tmp_path):
    """Drawing places of cases whose arrays stand ready gives, to the bit, what drawing the cases themselves gives."""
    found = compare(pair, tmp_path / "out", resamples=RESAMPLES).entries[1].differences["f1"]
    (f1,) = build_metrics(plugins.registry(), ("f1",), (VIEW,))
    pairs = paired(cases(0.9, seed=1), cases(0.55))
    wanted = bootstrap(pairs, difference(f1.summarise), RESAMPLES)["f1"]
    assert (found.difference, found.low, found.high) == (wanted.value, wanted.low, wanted.high)
    test = swap_test(pairs, f1.summarise, RESAMPLES)["f1"]
    assert (found.p_value, found.discordant) == (test.p_value, test.discordant)


class Counted(dict):
    """Says how often it was looked into."""

    looks = 0

    def __getitem__(self, name):
        Counted.looks += 1
        return super().__getitem__(name)


def test_resampling_does_not_gather_the_cases_anew():
    """Else a difference on a thousand cases takes minutes: what is drawn thousands of times is gathered once."""
    metrics = build_metrics(plugins.registry(), ("f1", "auroc"), (VIEW,))
    scored = [dataclasses.replace(case, predicted=Counted(case.predicted)) for case in cases(0.6)]
    runs = [RunsCase(case.case_id, case.group_id, ({},), (case,)) for case in scored]
    Counted.looks = 0
    values_of(runs, metrics, {}, RESAMPLES)
    assert 0 < Counted.looks <= 4 * len(scored)


def test_seeds_of_one_model_are_one_row(tmp_path):
    """Each case counts with its mean over seeds; the spread over seeds is told beside the interval."""
    runs = [finish(tmp_path / f"s{k}", cases(0.6, seed=k), seed=k) for k in range(3)]
    other = [finish(tmp_path / f"o{k}", cases(0.7, seed=k), "lab/gru", seed=k) for k in range(3)]
    result = compare([*runs, *other], tmp_path / "out", resamples=RESAMPLES)
    assert [(entry.label, entry.seeds) for entry in result.entries] == [("cnn", (0, 1, 2)), ("gru", (0, 1, 2))]
    accuracy, f1 = build_metrics(plugins.registry(), ("accuracy", "f1"), (VIEW,))
    for metric, name in ((accuracy, "accuracy"), (f1, "f1")):
        each = [metric.summarise(cases(0.6, seed=k))[name] for k in range(3)]
        found = values(result, "cnn")[name]
        assert found.of_seeds == pytest.approx(each)
        assert found.value == pytest.approx(np.mean(each))
        assert found.deviation == pytest.approx(np.std(each, ddof=1))
    shown = markdown(result)
    assert f"± {values(result, 'cnn')['accuracy'].deviation:.3f}" in shown
    assert "what another seed would change is the ±" in shown


def test_different_numbers_of_seeds_have_no_swap_test(tmp_path):
    """F1 of three seeds cannot be exchanged with that of one; accuracy, averaged per case, can."""
    runs = [finish(tmp_path / f"s{k}", cases(0.6, seed=k), seed=k) for k in range(2)]
    other = finish(tmp_path / "o", cases(0.7), "lab/gru")
    differences = compare([*runs, other], tmp_path / "out", resamples=RESAMPLES).entries[1].differences
    assert math.isnan(differences["f1"].p_value)
    assert "no test: 1 runs cannot be swapped with 2" in differences["f1"].note
    assert not math.isnan(differences["accuracy"].p_value)


def test_one_run_alone_is_a_table_with_one_row(pair, tmp_path):
    result = compare(pair[:1], tmp_path / "out", resamples=RESAMPLES)
    assert [table.title for table in tables(result)] == ["Results"]
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert [row["model"] for row in rows] == ["cnn", "constant prediction"]


def test_every_recorded_trivial_predictor_is_copied(tmp_path):
    """What looks at no video stands in every table; what depends on the model, with the model."""
    baselines = {
        "untrained": {"accuracy": 0.11, "f1": None},
        "constant": {"accuracy": 0.34},
        "carry-forward": {"accuracy": 0.52, "f1": 0.51},
        "trend": {"accuracy": 0.53},
    }
    run = finish(tmp_path / "run", cases(0.6), record={"baselines": baselines})
    found = compare([run], tmp_path / "out", resamples=RESAMPLES)
    assert dict(found.entries[0].untrained) == {"accuracy": 0.11}
    shown = (tmp_path / "out" / "comparison.md").read_text()
    assert "| constant prediction |  | 0.340 | – |" in shown
    assert "| last value carried forward |  | 0.520 | 0.510 |" in shown
    assert "| straight line through earlier values |  | 0.530 | – |" in shown
    assert "untrained" not in shown
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["baselines"] == {
        "constant": {"accuracy": 0.34},
        "carry-forward": {"accuracy": 0.52, "f1": 0.51},
        "trend": {"accuracy": 0.53},
    }
    model, *others = csv.DictReader((tmp_path / "out" / "comparison.csv").open())
    assert (model["accuracy:untrained"], model["f1:untrained"]) == ("0.11", "")
    assert [row["accuracy"] for row in others] == ["0.34", "0.52", "0.53"]
    assert "last value carried forward" in (tmp_path / "out" / "comparison.html").read_text()
    assert "last value carried forward" in (tmp_path / "out" / "comparison.tex").read_text()


def test_intervals_end_where_the_metric_does(tmp_path):
    """Three patients, half of them right: no table says that an accuracy may be negative, or above 1."""
    runs = [finish(tmp_path / str(k), cases(0.5, patients=3, seed=k), f"lab/{k}") for k in range(2)]
    first, other = compare(runs, tmp_path / "out", resamples=RESAMPLES).entries
    right = {
        group: [case.predicted["view"].argmax() == case.true["view"] for case in mine]
        for group, mine in by_group(cases(0.5, patients=3)).items()
    }
    uncut = mean_interval(right)
    assert uncut.low < 0
    assert uncut.high > 1
    assert (first.values["accuracy"].low, first.values["accuracy"].high) == (0, 1)
    assert -1 <= other.differences["accuracy"].low <= other.differences["accuracy"].high <= 1
    for kind in ("md", "tex", "html"):
        text = (tmp_path / "out" / f"comparison.{kind}").read_text()
        assert f"{uncut.value:.3f} (0.000 to 1.000)" in text
    (row, *_) = csv.DictReader((tmp_path / "out" / "comparison.csv").open())
    assert (row["accuracy:low"], row["accuracy:high"]) == ("0.0", "1.0")


def test_an_error_that_may_be_large_is_not_cut_above(tmp_path):
    """Errors of a number end at 0, not at 1, however small they happen to be."""
    ef = OUTPUTS[2]

    def guessed(errors):
        return [
            ScoredCase(
                case_id=f"c{n}",
                group_id=f"p{n}",
                predicted={"ef": np.array([50.0 + error])},
                true={"ef": np.array([50.0])},
            )
            for n, error in enumerate(errors)
        ]

    run = finish(
        tmp_path / "run", guessed([0.0, 0.0, 0.9]), outputs=(ef,), metrics=("mae",), record={"metrics": {"mae": False}}
    )
    found = compare([run], tmp_path / "out", resamples=RESAMPLES).entries[0].values["mae"]
    assert found.low == 0
    assert found.high == pytest.approx(0.3 + 4.302653 * 0.3, rel=1e-5)


def test_the_same_runs_give_the_same_files(pair, tmp_path):
    for name in ("a", "b"):
        compare(pair, tmp_path / name, resamples=RESAMPLES)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [f"comparison.{kind}" for kind in ("csv", "html", "json", "md", "tex")]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_few_patients_are_called_few(tmp_path):
    runs = [finish(tmp_path / str(k), cases(0.6, patients=3, seed=k), f"lab/{k}") for k in range(2)]
    compare(runs, tmp_path / "out", resamples=RESAMPLES)
    assert "n too small: 3 patients" in (tmp_path / "out" / "comparison.md").read_text()
    assert "so that p cannot fall below" in (tmp_path / "out" / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"scored": relabelled(cases(0.6, seed=1))},
            r"the truth of 2 of their 50 test cases is not the same, e\.g\. true/view of 'p00-0': plax and a2c\.",
        ),
        (
            {"record": {"dataset": {"name": "views", "fingerprint": "cd" * 32}}},
            "differ in the fingerprint of their data",
        ),
        ({"record": {"split": "val"}}, "differ in the part of the data they were scored on"),
        ({"settings": {"evaluate": {"at": "model"}}}, r"differ in evaluate\.at \(source and model\)"),
        ({"metrics": ("balanced-accuracy",)}, "have no metric in common"),
        ({"outputs": (dataclasses.replace(VIEW, classes=("a", "b", "c")),)}, "differ in what they predict"),
        ({"record": {"status": "stopped"}}, r"has not finished \(status 'stopped'\)"),
        ({"model": "lab/cnn"}, "are the same model with the same settings and seed"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, change, message):
    """What differs is named, and nothing is written."""
    one = finish(tmp_path / "one", cases(0.6))
    two = finish(tmp_path / "two", **{"scored": cases(0.6, seed=1), "model": "lab/gru", **change})
    with pytest.raises(MedvidError, match=message):
        compare([one, two], tmp_path / "out", resamples=RESAMPLES)
    assert not (tmp_path / "out").exists()


def test_other_labels_of_frames_are_refused(tmp_path):
    """What is true of frames stands in a table of its own; so does what was measured before, in a column."""
    stall, ef = OUTPUTS[-1], OUTPUTS[2]

    def runs(name, output, change):
        scored = [of_all_tasks(n, known=True) for n in range(3)]
        other = [*scored[:2], change(scored[2])]
        words = {"outputs": (output,), "metrics": ("mae",) if output is ef else ("frame-auroc",)}
        one = finish(tmp_path / f"{name}-one", scored, **words)
        return [one, finish(tmp_path / f"{name}-two", other, "lab/gru", **words)]

    def turned(case):
        return dataclasses.replace(case, true_frames={"stall": 1 - case.true_frames["stall"]})

    message = r"the truth of 1 of their 3 test cases is not the same, e\.g\. stall of the frames of 'case-2'\."
    with pytest.raises(DataError, match=message):
        compare(runs("frames", stall, turned), tmp_path / "out")
    with pytest.raises(DataError, match=message):
        compare(runs("unknown", stall, lambda case: dataclasses.replace(case, true_frames={})), tmp_path / "out")
    with pytest.raises(DataError, match=r"e\.g\. true/ef of 'case-2': 57\.25 and unknown\."):
        compare(runs("number", ef, lambda case: dataclasses.replace(case, true={})), tmp_path / "out")


def test_alarm_thresholds_are_those_of_each_run(tmp_path):
    """Recorded ones are kept, also while resampling; where none are, a note says on what they were chosen."""
    stall, name = OUTPUTS[-1], "sensitivity-at-95-specificity"
    scored = [of_all_tasks(n, known=True) for n in range(6)]
    words = {"outputs": (stall,), "metrics": (name,)}
    low, high = {"frame": -9.0, "video": -9.0}, {"frame": 9.0, "video": 9.0}
    runs = [
        finish(tmp_path / kind, scored, f"lab/{kind}", **words, record={"alarm_thresholds": {"stall": limits}})
        for kind, limits in (("low", low), ("high", high))
    ]
    found = compare(runs, tmp_path / "out", resamples=RESAMPLES)
    shown = [(entry.values[name].low, entry.values[name].value, entry.values[name].high) for entry in found.entries]
    assert shown == [(1, 1, 1), (0, 0, 0)]
    assert found.entries[1].differences[name].difference == -1
    assert not found.notes
    without = finish(tmp_path / "without", scored, "lab/without", **words)
    assert (
        f"{without}: alarm thresholds of stall were chosen on the very cases that are scored (test)"
        in (compare([without], tmp_path / "alone", resamples=RESAMPLES).notes[0])
    )


def test_what_was_measured_before_is_read_back(tmp_path):
    """Of the cases that have a history; a table in which none has does not know the column."""
    known = [of_all_tasks(n, known=True) for n in range(2)]
    first = dataclasses.replace(known[0], last={"ef": np.array([61.5]), "volumes": np.array([120.0, math.nan])})
    run = finish(tmp_path / "run", [first, known[1]], outputs=OUTPUTS, metrics=("accuracy",))
    found = read_scored(run, OUTPUTS)
    same(found[0].last, first.last)
    assert [dict(case.last) for case in found[1:]] == [{}]
    run = finish(tmp_path / "without", known, outputs=OUTPUTS, metrics=("accuracy",))
    assert "last/" not in (run / "cases.csv").read_text()
    assert [dict(case.last) for case in read_scored(run, OUTPUTS)] == [{}, {}]


def test_other_test_cases_are_refused(tmp_path):
    """A case more, or one that could not be read: the mean of the others is no comparison."""
    one = finish(tmp_path / "one", cases(0.6))
    two = finish(tmp_path / "two", cases(0.6, patients=24), "lab/gru")
    with pytest.raises(DataError, match=r"not scored on the same test cases \(2 are of one alone, e\.g\. 'p24-0'\)"):
        compare([one, two], tmp_path / "out")
    with pytest.raises(DataError, match="is no run directory"):
        compare([one, tmp_path], tmp_path / "out")
    with pytest.raises(ConfigError, match="There is nothing to compare"):
        compare([], tmp_path / "out")


@pytest.mark.parametrize(
    ("other", "labels"),
    [
        ({}, ["cnn (optimizer.lr=0.1)", "cnn (optimizer.lr=0.2)", "gru"]),
        ({"betas": "x" * 80}, ["cnn (first)", "cnn (second)", "gru"]),  # too long to name
    ],
)
def test_models_of_one_name_are_told_apart(tmp_path, other, labels):
    """By the settings in which they differ; where these are too many, by their folders."""
    runs = [
        finish(tmp_path / "first", cases(0.6), settings={"optimizer": {"lr": 0.1}}),
        finish(tmp_path / "second", cases(0.6, seed=1), settings={"optimizer": {"lr": 0.2, **other}}),
        finish(tmp_path / "third", cases(0.6, seed=2), "lab/gru"),
    ]
    assert list(grouped([read_finished(run) for run in runs])) == labels


def a_cost(joules=None, rates=None, acs=0):
    source = "n/a on this machine: no counter" if joules is None else "RAPL counter of the whole processor"
    return Cost(
        parameters=1_500_000,
        trained_parameters=1_500_000,
        gflop_per_clip=2.5,
        gflop_per_frame=0.5,
        latency_s=0.012,
        latency_p95_s=0.015,
        latency_min_s=0.011,
        timed_calls=100,
        clips_per_s=140.0,
        best_batch=8,
        memory=Memory(None, note="it was killed"),
        energy=Energy(joules, None if joules is None else joules / 2, source),
        estimate=Estimate(1_250_000_000, acs, rates or {}, 5.75e-3),
        frames=5,
        size=(32, 32),
        device="x86_64, CPU",
        threads=2,
        precision="float32",
        scan="",
        versions={"python": "3", "torch": "2"},
        load_average=4.2,
    )


@pytest.fixture
def with_cost(pair, tmp_path):
    found = compare(pair, tmp_path / "plain", resamples=RESAMPLES)
    costs = (a_cost(joules=0.8), a_cost(rates={"lif1": 0.18, "lif2": 0.0}, acs=7_800_000))
    entries = [dataclasses.replace(entry, cost=cost) for entry, cost in zip(found.entries, costs, strict=True)]
    return dataclasses.replace(found, entries=tuple(entries))


def test_measured_and_estimated_stand_apart(with_cost, tmp_path):
    """An estimate never fills the gap of a measurement, and never stands without its caveat."""
    by_title = {table.title: table for table in tables(with_cost)}
    assert list(by_title) == [
        "At a glance",
        "Results",
        "Differences from cnn",
        "Cost, measured",
        "Energy, estimated",
        "Spike rates of cnn-mamba",
    ]
    measured, estimated = by_title["Cost, measured"], by_title["Energy, estimated"]
    assert not any("estimate" in name or "MAC" in name for name in measured.head)
    assert [row[-2:] for row in measured.rows] == [["0.8", "0.4"], ["n/a", "n/a"]]
    assert [row[9] for row in measured.rows] == ["n/a", "n/a"]  # memory, whose reason is said below
    assert "cnn: no memory, it was killed." in measured.after
    assert "Energy: n/a on this machine: no counter." in measured.after
    assert measured.after.count("The machine was not idle as the command began (load average 4.2).") == 1
    assert [row[1:] for row in estimated.rows] == [["–", "1,250", "0", "5,750"], ["9", "1,250", "7.8", "5,750"]]
    assert estimated.after == f"cnn-mamba: 1 layer never saw a spike. {ENERGY_CAVEAT}"
    assert [row[-1] for row in by_title["At a glance"].rows] == ["0.8", "n/a"]
    assert by_title["Spike rates of cnn-mamba"].rows == [["lif1", "18"], ["lif2", "0"]]
    write_comparison(with_cost, tmp_path / "out")
    assert "| lif1 | 18 |" in (tmp_path / "out" / "comparison.md").read_text()
    assert '<th scope="row">lif1</th><td>18</td>' in (tmp_path / "out" / "comparison.html").read_text()
    for kind in ("md", "html", "json"):
        assert "arXiv 2409.08290" in (tmp_path / "out" / f"comparison.{kind}").read_text()
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert [row["energy per clip, J"] for row in rows] == ["0.8", "", ""]  # the last is the constant prediction
    assert [row["(estimated) estimated energy per clip, µJ"] for row in rows] == ["5750.0", "5750.0", ""]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["entries"][0]["cost"]["latency_s"] == 0.012


@pytest.mark.parametrize(
    ("outputs", "metrics", "shown"),
    [
        ((VIEW,), ("balanced-accuracy", "accuracy", "f1"), ["accuracy", "f1"]),
        ((OUTPUTS[2],), ("rmse", "mae", "r2"), ["mae", "r2"]),
        ((VIEW, OUTPUTS[2]), ("auroc", "r2", "f1", "accuracy", "mae"), ["accuracy", "f1", "mae", "r2"]),
        ((OUTPUTS[2], OUTPUTS[3]), ("rmse", "mae"), ["mae/ef", "mae/volumes"]),
        ((OUTPUTS[4],), ("grade-mae", "kappa", "f1"), ["grade-mae", "kappa"]),  # no table of papers: the first two
        ((VIEW,), ("auroc", "balanced-accuracy"), ["auroc", "balanced-accuracy"]),  # the usual ones were not computed
    ],
)
def test_the_first_table_shows_what_papers_print(tmp_path, outputs, metrics, shown):
    """Accuracy and F1 of classes, MAE and R² of numbers, whichever metric chose the checkpoint."""
    run = finish(tmp_path / "run", [of_all_tasks(n, known=True) for n in range(3)], outputs=outputs, metrics=metrics)
    found = compare([run], tmp_path / "out", resamples=RESAMPLES)
    assert glance(found) == shown
    (entry,) = (dataclasses.replace(entry, cost=a_cost()) for entry in found.entries)
    first, *_ = tables(dataclasses.replace(found, entries=(entry,)))
    assert first.title == "At a glance"
    assert len(first.head) == len(shown) + 3


def test_the_load_of_the_machine_is_read_before_our_own(pair, tmp_path, monkeypatch):
    """Once, as the command begins: from then on the load is ours, and every model but the first would be accused."""
    loads = iter([0.25])
    monkeypatch.setattr(cli.os, "getloadavg", lambda: (next(loads), 9.0, 9.0))
    given = []
    monkeypatch.setattr("medvid_core.engine.compare.measure_cost", lambda *words: given.append(words[-1]) or a_cost())
    command(*pair, "--out", tmp_path / "out", "--resamples", 100)
    assert given == [0.25, 0.25]


def test_time_is_drawn_only_where_it_was_measured(with_cost, pair, tmp_path):
    assert "Accuracy of every model against the time of a clip" in page(with_cost)
    without = compare(pair, tmp_path / "out", resamples=RESAMPLES)
    assert "against the time of a clip" not in page(without)
    assert "Accuracy of every model with 95 % interval" in page(without)


def test_names_cannot_break_the_tables(tmp_path):
    """A name is a name: in LaTeX, in Markdown, in HTML."""
    evil = "a|b_<script>alert(1)</script>&amp;%$#{}~^\\"
    run = finish(tmp_path / "one", cases(0.6), f"lab/{evil.replace('/', '')}")
    shown = compare([run], tmp_path / "out", resamples=RESAMPLES)
    assert "<script" not in page(shown)
    assert "a|b_&lt;script&gt;" in page(shown)
    assert "a\\|b_&lt;script>" in markdown(shown)
    row = next(line for line in latex(shown).splitlines() if line.startswith("a|b"))
    assert row.startswith(r"a|b\_\textless{}script\textgreater{}alert(1)")
    assert escape_tex("±µ5 % ↑") == r"$\pm$$\mu$5 \% $\uparrow$"
    assert escape_tex("\\^~{}$#&_") == r"\textbackslash{}\textasciicircum{}\textasciitilde{}\{\}\$\#\&\_"


QUICK = ("preset=tiny", "dataset.cases=8", "dataset.frames=3", "dataset.size=[32,32]", "train.max_steps=1")
QUICK += ("evaluate.overlays=0", "split.test=0.5", "metrics=[dice,mae]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A comparison of one model with two seeds, trained by the command, and what it said."""
    out = tmp_path_factory.mktemp("compare")
    said = []
    runs = train_missing(["unet"], None, 2, QUICK, out, plugins.registry(), said.append)
    return out, runs, said


def command(*words):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    cli.run(parser.parse_args([str(word) for word in words]))


def test_models_are_trained_and_masks_compared(trained, tmp_path, capsys):
    """Two seeds on the same split; the values are those the runs report."""
    out, runs, said = trained
    assert runs == [out / "unet" / "seed0", out / "unet" / "seed1"]
    assert said == ["training run 1 of 2, unet with seed 0", "training run 2 of 2, unet with seed 1"]
    finished = [read_finished(run) for run in runs]
    assert finished[0].splits == finished[1].splits
    command(*runs, "--out", tmp_path / "out", "--no-cost", "--resamples", 200)
    printed = capsys.readouterr().out
    assert printed.startswith("# 1 model on echo-phantom\n")
    assert "| constant prediction |" in printed
    row, _ = csv.DictReader((tmp_path / "out" / "comparison.csv").open())
    for name in ("dice", "dice/lv", "mae"):
        each = [run.record["results"][name] for run in finished]
        assert float(row[name]) == pytest.approx(np.mean(each), nan_ok=True)
    assert "dice:low" in row
    assert "clips/s" not in row


def test_finished_runs_are_kept_and_stopped_ones_go_on(trained):
    """Nothing is trained twice; a run that lost its end gets the same end again."""
    out, runs, _ = trained
    before = (runs[0] / "model.safetensors").read_bytes(), (runs[1] / "cases.csv").read_bytes()
    record = json.loads((runs[1] / "run.json").read_text())
    (runs[1] / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
    touched = (runs[0] / "model.safetensors").stat().st_mtime_ns
    said = []
    assert train_missing(["unet"], None, 2, QUICK, out, plugins.registry(), said.append) == runs
    assert said[0] == f"kept     run 1 of 2, unet with seed 0: {runs[0]}"
    assert said[1] == "resuming run 2 of 2, unet with seed 1"
    assert (runs[0] / "model.safetensors").stat().st_mtime_ns == touched
    assert (runs[0] / "model.safetensors").read_bytes() == before[0]
    assert (runs[1] / "cases.csv").read_bytes() == before[1]
    (runs[1] / "cases.csv").unlink()  # as a run leaves it that was killed before it wrote its tables
    with pytest.raises(DataError, match=r"has not finished \(status 'done', no cases\.csv\)\. Go on with: medvid-run"):
        read_finished(runs[1])
    train_missing(["unet"], None, 2, QUICK, out, plugins.registry(), said.append)
    assert said[3] == "resuming run 2 of 2, unet with seed 1"
    assert (runs[1] / "cases.csv").read_bytes() == before[1]


def test_trackers_may_differ(trained):
    """They change nothing of what is learnt: the runs are kept, and are still seeds of one model."""
    out, runs, _ = trained
    said = []
    train_missing(["unet"], None, 2, (*QUICK, "train.trackers=[tensorboard]"), out, plugins.registry(), said.append)
    assert [line[:4] for line in said] == ["kept", "kept"]
    one, other = map(read_finished, runs)
    told = dataclasses.replace(other, settings={**other.settings, "train.trackers": ["tensorboard"]})
    assert len(grouped([one, told])) == 1


def test_what_cannot_be_trained_is_refused_before_anything_is(trained, tmp_path):
    """Other settings than those of a run that is there; models twice; no seeds."""
    out, runs, _ = trained
    plan = lambda models, settings=QUICK, seeds=1: train_missing(  # noqa: E731
        models, None, seeds, settings, out, plugins.registry(), pytest.fail
    )
    with pytest.raises(ConfigError, match=f"{runs[0]} was trained with train.max_steps=1, not 2"):
        plan(["unet"], (*QUICK, "train.max_steps=2"))
    with pytest.raises(ConfigError, match="--models names unet twice"):
        plan(["unet", "unet"])
    with pytest.raises(ConfigError, match="--seeds 0 cannot be used"):
        plan(["unet"], seeds=0)
    with pytest.raises(MedvidError, match="No model is called 'unett'"):
        plan(["unet", "unett"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "takes either finished runs"),
        (("--models", "unet", "some/run"), "takes either finished runs"),
        (("some/run", "train.epochs=3"), "Finished runs have their settings and data"),
        (("some/run", "--data", "views"), "Finished runs have their settings and data"),
        (("some/run", "--resamples", "3"), "--resamples 3 cannot be used"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        command(*words, "--out", tmp_path / "out")
