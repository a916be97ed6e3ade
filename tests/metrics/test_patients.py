"""One result a patient, and what became of every class: parity with published metrics, and by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from medvid_core.metrics.base import ScoredCase
from medvid_core.metrics.classification import AUROC, Accuracy, class_results, confusion, ranked_results
from medvid_core.metrics.patients import averaged, of_patients
from medvid_core.specs import OutputSpec

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "two_stream" / "cv_and_metrics.json"


def sigmoid(values):
    return 1 / (1 + np.exp(-np.asarray(values, np.float64)))


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip("../shared/golden/two_stream is not on this machine")
    return json.loads(GOLDEN.read_text())["metrics"]


def clips(golden, classes=("ASD", "non-ASD")):
    """The clips of the published evaluation: the mean of both streams' probabilities; the last class is label 1."""
    p = (sigmoid(golden["logit_rgb"]) + sigmoid(golden["logit_flow"])) / 2
    flipped = classes[0] != "ASD"
    found = []
    for number, (value, label, patient) in enumerate(
        zip(p, golden["label(1=non-ASD)"], golden["patient"], strict=True)
    ):
        of_classes = np.array([value, 1 - value] if flipped else [1 - value, value])
        true = {"d": np.array(float(1 - label if flipped else label))}
        case_id, group_id = f"c{number:02}", f"p{patient:02}"
        found.append(ScoredCase(case_id=case_id, group_id=group_id, predicted={"d": of_classes}, true=true))
    return OutputSpec(name="d", task="classification", classes=classes), found


def assert_published(output, cases, expected):
    """Of the positive class, the second: accuracy, precision, recall, F1, AUROC, confusion."""
    positive = ranked_results(output, cases)[1]
    found = [positive.precision, positive.recall, positive.f1, positive.auroc]
    assert found == pytest.approx([expected[key] for key in ("precision", "recall", "f1", "auroc")], abs=1e-6)
    assert Accuracy((output,)).summarise(cases)["accuracy"] == pytest.approx(expected["acc"], abs=1e-6)
    assert AUROC((output,)).summarise(cases)["auroc"] == pytest.approx(expected["auroc"], abs=1e-6)
    true, called = [int(case.true["d"]) for case in cases], [int(case.predicted["d"].argmax()) for case in cases]
    assert confusion(np.array(true), np.array(called), 2).tolist() == expected["cm"]


def test_pooled_clips_are_scored_as_published(golden):
    assert_published(*clips(golden), golden["pooled_per_clip"])


def test_which_class_is_positive_changes_precision_and_f1(golden):
    assert_published(*clips(golden, ("non-ASD", "ASD")), golden["pooled_with_ASD_as_positive"])


def test_patients_are_scored_as_published(golden):
    """The mean probability of a patient's clips."""
    output, cases = clips(golden)
    patients, left_out = averaged(cases, (output,))
    assert (len(patients), left_out) == (8, {})
    assert_published(output, patients, golden["per_patient_mean_prob"])


def test_results_of_classes_by_hand():
    """Of 6 a's 4 are found and 1 b is called so; b's precision 1 of 3; c never occurs."""
    a, b, c = class_results(np.array([[4, 2, 0], [1, 1, 0], [0, 0, 0]]), ("a", "b", "c"))
    assert (a.count, a.precision, a.recall, a.specificity, a.f1) == (6, 4 / 5, 4 / 6, 1 / 2, 8 / 11)
    assert (b.count, b.precision, b.recall, b.specificity) == (2, 1 / 3, 1 / 2, 4 / 6)
    assert c.count == 0
    assert c.specificity == 1
    assert all(math.isnan(value) for value in (c.precision, c.recall, c.f1, c.auroc))


def scored(case_id, group, **values):
    predicted = {name: np.asarray(value[0], np.float64) for name, value in values.items()}
    true = {name: np.asarray(value[1], np.float64) for name, value in values.items() if value[1] is not None}
    return ScoredCase(case_id=case_id, group_id=group, predicted=predicted, true=true)


def test_labels_have_results_of_their_own():
    signs = OutputSpec(name="signs", task="multilabel", classes=("x", "y"))
    cases = [scored("a", "p", signs=([0.9, 0.2], [1, 1])), scored("b", "q", signs=([0.8, 0.7], [0, math.nan]))]
    x, y = ranked_results(signs, cases)
    assert (x.name, x.count, x.precision, x.recall, x.specificity, x.auroc) == ("x", 1, 0.5, 1, 0, 1)
    assert (y.count, y.recall) == (1, 0)


def test_numbers_are_averaged_and_unclear_truths_left_out():
    """Numbers: means of both. A class that differs within a patient, and values of frames, are left out and named."""
    outputs = (
        OutputSpec(name="ef", task="regression", classes=("ef",)),
        OutputSpec(name="view", task="classification", classes=("a", "b")),
        OutputSpec(name="phase", task="frame_classification", classes=("s", "d")),
    )
    frames = np.zeros((3, 2))
    cases = [
        scored("1", "p", ef=([50], [40]), view=([0.9, 0.1], 0), phase=(frames, None)),
        scored("2", "p", ef=([60], [50]), view=([0.9, 0.1], 1), phase=(frames, None)),
        scored("3", "q", ef=([70], None), view=([0.2, 0.8], 1), phase=(frames, None)),
    ]
    patients, left_out = averaged(cases, outputs)
    assert [(case.case_id, case.group_id) for case in patients] == [("p", "p"), ("q", "q")]
    assert [case.predicted["ef"].tolist() for case in patients] == [[55], [70]]
    assert patients[0].true["ef"].tolist() == [45]
    assert "ef" not in patients[1].true
    assert left_out == {
        "phase": "it is predicted frame by frame",
        "view": "cases of one patient differ in it (e.g. those of 'p')",
    }
    accuracy = Accuracy(outputs)
    assert of_patients([accuracy], list(left_out)) == []
    narrowed = of_patients([accuracy], ["phase"])
    assert [output.name for output in narrowed[0].outputs] == ["view"]
    assert accuracy.outputs == outputs[1:2]
