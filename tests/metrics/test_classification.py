"""Metrics of classes, labels and grades: by hand, beside scikit-learn, and where they are undefined."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from medvid_core import OutputSpec, create_metric
from medvid_core.metrics import ScoredCase
from medvid_core.metrics.curves import alarm_threshold, auroc, average_precision, share_above
from medvid_core.metrics.defaults import DEFAULT_METRICS
from medvid_core.plugins import registry
from medvid_core.specs import TASKS

BINARY = OutputSpec(name="ill", task="classification", classes=("no", "yes"))
VIEWS = OutputSpec(name="view", task="classification", classes=("a", "b", "c"))
LABELS = OutputSpec(name="signs", task="multilabel", classes=("x", "y"))
GRADES = OutputSpec(name="grade", task="ordinal", classes=("0", "1", "2", "3"))


def cases(output, predicted, true) -> list[ScoredCase]:
    """One case for each prediction; None: not known."""
    return [
        ScoredCase(
            case_id=f"c{number}",
            group_id=f"p{number}",
            predicted={output.name: np.asarray(p, dtype=float)},
            true={} if y is None else {output.name: np.asarray(y, dtype=float)},
        )
        for number, (p, y) in enumerate(zip(predicted, true, strict=True))
    ]


def score(name, output, predicted, true) -> dict[str, float]:
    return create_metric(name, [output]).summarise(cases(output, predicted, true))


def one_hot(classes, count):
    return np.eye(count)[classes]


def grades_as_thresholds(grades):
    """The probabilities of an ordinal output that stand for these grades."""
    return (np.arange(3) < np.asarray(grades)[:, None]) * 0.8 + 0.1


@st.composite
def classified(draw, classes=3):
    count = draw(st.integers(1, 30))
    true = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    # few distinct values, so that ties occur
    raw = draw(hnp.arrays(np.int64, (count, classes), elements=st.integers(1, 4)))
    return raw / raw.sum(1, keepdims=True), np.array(true)


def test_by_hand():
    """Truth 0 0 0 1 2, called 0 0 1 1 0."""
    predicted, true = one_hot([0, 0, 1, 1, 0], 3), [0, 0, 0, 1, 2]
    assert score("accuracy", VIEWS, predicted, true) == {"accuracy": pytest.approx(3 / 5)}
    assert score("balanced-accuracy", VIEWS, predicted, true) == {
        "balanced-accuracy": pytest.approx((2 / 3 + 1 + 0) / 3),
        "balanced-accuracy/a": pytest.approx(2 / 3),
        "balanced-accuracy/b": 1.0,
        "balanced-accuracy/c": 0.0,
    }
    assert score("f1", VIEWS, predicted, true) == {
        "f1": pytest.approx((2 / 3 + 2 / 3 + 0) / 3),
        "f1/a": pytest.approx(4 / 6),
        "f1/b": pytest.approx(2 / 3),
        "f1/c": 0.0,
    }
    assert score("precision", VIEWS, predicted, true) == {
        "precision": pytest.approx((2 / 3 + 1 / 2 + 0) / 3),  # c is never called, and counts
        "precision/a": pytest.approx(2 / 3),
        "precision/b": 1 / 2,
        "precision/c": 0.0,
    }
    assert score("recall", VIEWS, predicted, true) == {
        "recall": pytest.approx((2 / 3 + 1 + 0) / 3),
        "recall/a": pytest.approx(2 / 3),
        "recall/b": 1.0,
        "recall/c": 0.0,
    }


def test_sensitivity_specificity_and_positive_predictive_value_of_two_classes():
    """Of 3 ill 2 are found, of 5 well 4 are left alone: parts of recall; 2 of the 3 called ill are: of precision."""
    predicted, true = one_hot([1, 1, 0, 1, 0, 0, 0, 0], 2), [1, 1, 1, 0, 0, 0, 0, 0]
    recall, precision = (score(name, BINARY, predicted, true) for name in ("recall", "precision"))
    assert (recall["recall/yes"], recall["recall/no"]) == (pytest.approx(2 / 3), pytest.approx(4 / 5))
    assert (precision["precision/yes"], precision["precision/no"]) == (pytest.approx(2 / 3), pytest.approx(4 / 5))


def test_areas_by_hand():
    """Positives 0.9 and 0.4, negatives 0.6, 0.4 and 0.1: of 6 pairs 4 right and one tie."""
    p = np.array([0.9, 0.4, 0.6, 0.4, 0.1])
    predicted, true = np.stack([1 - p, p], 1), [1, 1, 0, 0, 0]
    assert score("auroc", BINARY, predicted, true) == {"auroc": pytest.approx(4.5 / 6)}
    assert score("average-precision", BINARY, predicted, true) == {
        "average-precision": pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 4),
        "average-precision/prevalence": pytest.approx(2 / 5),
    }


def test_kappa_and_grades_by_hand():
    """Grades 0 1 3 called 0 2 3: off by a third; weights 1 observed, (0+4+9 + 1+1+4 + 9+1+0) / 3 expected."""
    predicted, true = grades_as_thresholds([0, 2, 3]), [0, 1, 3]
    assert score("grade-mae", GRADES, predicted, true) == {"grade-mae": pytest.approx(1 / 3)}
    assert score("kappa", GRADES, predicted, true) == {"kappa": pytest.approx(1 - 1 / (29 / 3))}
    assert score("accuracy", GRADES, predicted, true) == {"accuracy": pytest.approx(2 / 3)}


@given(classified())
@settings(max_examples=25)
def test_classes_as_in_scikit_learn(drawn):
    predicted, true = drawn
    called = predicted.argmax(1)
    assert score("accuracy", VIEWS, *drawn)["accuracy"] == pytest.approx(sk.accuracy_score(true, called))
    balanced = sk.recall_score(true, called, average="macro", labels=np.unique(true), zero_division=0)
    assert score("balanced-accuracy", VIEWS, *drawn)["balanced-accuracy"] == pytest.approx(balanced)
    assert score("f1", VIEWS, *drawn)["f1"] == pytest.approx(sk.f1_score(true, called, average="macro"))
    precision = sk.precision_score(true, called, average="macro", zero_division=0)
    assert score("precision", VIEWS, *drawn)["precision"] == pytest.approx(precision)
    assert score("recall", VIEWS, *drawn)["recall"] == pytest.approx(balanced)
    for k, name in enumerate(VIEWS.classes):
        one = true == k
        for metric, reference in (("auroc", sk.roc_auc_score), ("average-precision", sk.average_precision_score)):
            found = score(metric, VIEWS, *drawn)[f"{metric}/{name}"]
            if one.all() or not one.any():
                assert math.isnan(found)
            else:
                assert found == pytest.approx(reference(one, predicted[:, k]))


@given(classified(classes=4))
@settings(max_examples=25)
def test_kappa_as_in_scikit_learn(drawn):
    predicted, true = drawn
    called = predicted.argmax(1)
    found = score("kappa", GRADES, grades_as_thresholds(called), true)["kappa"]
    if len({*called, *true}) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(sk.cohen_kappa_score(true, called, labels=range(4), weights="quadratic"))


@given(classified(classes=2))
@settings(max_examples=25)
def test_labels_are_averaged(drawn):
    """Each label as if it were alone; F1 of its presence; the mean over labels."""
    predicted, true = drawn[0], one_hot(drawn[1], 2)
    for name in ("auroc", "average-precision", "f1", "balanced-accuracy", "precision", "recall"):
        both = score(name, LABELS, predicted, true)
        each = []
        for k, label in enumerate(LABELS.classes):
            one = OutputSpec(name="signs", task="multilabel", classes=(label,))
            alone = score(name, one, predicted[:, [k]], true[:, [k]])
            each.append(alone[name])
            assert both[f"{name}/{label}"] == pytest.approx(alone[name], nan_ok=True)
        assert both[name] == pytest.approx(np.mean([v for v in each if v == v] or [math.nan]), nan_ok=True)
    f1 = sk.f1_score(true, predicted > 0.5, average=None, zero_division=math.nan)
    assert score("f1", LABELS, predicted, true)["f1"] == pytest.approx(np.nanmean(f1), nan_ok=True)
    recall = sk.recall_score(true, predicted > 0.5, average=None, zero_division=math.nan)
    assert score("recall", LABELS, predicted, true)["recall"] == pytest.approx(np.nanmean(recall), nan_ok=True)
    accuracy = score("accuracy", LABELS, predicted, true)["accuracy"]
    assert accuracy == pytest.approx(1 - sk.hamming_loss(true, predicted > 0.5))


def test_unknown_labels_do_not_count():
    predicted, true = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], [[1, math.nan], [0, math.nan], [0, math.nan]]
    assert score("auroc", LABELS, predicted, true) == {
        "auroc": 1.0,
        "auroc/x": 1.0,
        "auroc/y": pytest.approx(math.nan, nan_ok=True),
    }
    assert score("accuracy", LABELS, predicted, true)["accuracy"] == pytest.approx(2 / 3)


@given(classified(), st.randoms(use_true_random=False))
@settings(max_examples=25)
@pytest.mark.parametrize("name", ["accuracy", "balanced-accuracy", "f1", "auroc", "average-precision"])
def test_order_of_cases_changes_nothing(name, drawn, random):
    made = cases(VIEWS, *drawn)
    metric = create_metric(name, [VIEWS])
    mixed = random.sample(made, len(made))
    assert metric.summarise(mixed) == pytest.approx(metric.summarise(made), nan_ok=True)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20))
@settings(max_examples=25)
@pytest.mark.parametrize("name", ["accuracy", "balanced-accuracy", "f1", "auroc", "average-precision"])
def test_perfect_prediction_is_one(name, true):
    found = score(name, VIEWS, one_hot(true, 3), true)[name]
    if name in ("auroc", "average-precision") and len(set(true)) == 1:
        assert math.isnan(found)
    else:
        assert found == 1.0


@given(classified(classes=2))
@settings(max_examples=25)
def test_monotone_transforms_leave_areas(drawn):
    scores, positive = drawn[0][:, 1], drawn[1] == 1
    for area in (auroc, average_precision):
        assert area(np.exp(3 * scores) - 7, positive) == pytest.approx(area(scores, positive), nan_ok=True)


@given(classified(classes=2))
@settings(max_examples=25)
def test_sensitivity_is_a_point_of_the_curve(drawn):
    """The highest sensitivity whose false positives are at most 5 %."""
    scores, positive = drawn[0][:, 1], drawn[1] == 1
    limit = alarm_threshold(scores[~positive])
    found = share_above(scores[positive], np.full(positive.sum(), limit))
    if positive.all() or not positive.any():
        assert math.isnan(found)
    else:
        false, true, _ = sk.roc_curve(positive, scores, drop_intermediate=False)
        assert found == pytest.approx(true[false <= 0.05 + 1e-9].max())


def test_alarm_threshold_by_hand():
    """Of 20 normal ones, 19 lie at or below it; of 10, all must, since 9 are only 90 %."""
    assert alarm_threshold(np.arange(20.0)) == 18
    assert alarm_threshold(np.arange(10.0)) == 9
    assert math.isnan(alarm_threshold(np.zeros(0)))


def test_one_class_and_no_case():
    """What is undefined is NaN, never 0."""
    sure = one_hot([1, 1], 2)
    for name in ("auroc", "average-precision"):
        assert math.isnan(score(name, BINARY, sure, [1, 1])[name])
    for name in ("accuracy", "balanced-accuracy", "f1", "precision", "recall", "auroc", "average-precision"):
        for output in (BINARY, VIEWS, LABELS):
            assert all(map(math.isnan, create_metric(name, [output]).summarise([]).values()))
    for name in ("kappa", "grade-mae", "accuracy", "f1"):
        assert all(map(math.isnan, create_metric(name, [GRADES]).summarise([]).values()))


def test_a_score_that_is_nan_is_not_a_rank():
    scores, positive = np.array([0.1, math.nan]), np.array([False, True])
    assert math.isnan(auroc(scores, positive))
    assert math.isnan(average_precision(scores, positive))
    assert math.isnan(share_above(scores, np.zeros(2)))
    assert math.isnan(share_above(np.zeros(2), scores))


def test_unknown_targets_are_left_out():
    assert score("accuracy", BINARY, one_hot([1, 0, 0], 2), [1, 0, None]) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("name", "output", "true"),
    [
        ("accuracy", VIEWS, [0, 1, 2]),
        ("accuracy", LABELS, [[0, 1], [1, math.nan], [1, 1]]),
        ("grade-mae", GRADES, [0, 1, 3]),
    ],
)
def test_values_of_cases_have_the_metric_as_their_mean(name, output, true):
    width = {"ordinal": 3}.get(output.task, len(output.classes))
    made = cases(output, np.random.default_rng(0).random((3, width)), true)
    metric = create_metric(name, [output])
    rows = [metric.per_case(case)[name] for case in made]
    assert metric.summarise(made)[name] == pytest.approx(np.mean(rows))
    assert 0 < np.mean(rows) != 1


def test_several_outputs_are_told_apart():
    metric = create_metric("accuracy", [BINARY, GRADES])
    case = ScoredCase(
        case_id="c",
        group_id="p",
        predicted={"ill": np.array([0.2, 0.8]), "grade": np.array([0.9, 0.9, 0.1])},
        true={"ill": np.array(1.0), "grade": np.array(1.0)},
    )
    assert metric.per_case(case) == metric.summarise([case]) == {"accuracy/ill": 1.0, "accuracy/grade": 0.0}


@pytest.mark.parametrize("task", TASKS)
def test_defaults_exist_and_fit_their_task(task):
    specs = [registry().find("metric", name).spec for name in DEFAULT_METRICS[task]]
    assert specs
    assert all(task in spec.tasks for spec in specs)
    output = OutputSpec(name="o", task=task, classes=("a", "b", "c"))
    for spec in specs:
        assert create_metric(spec.name, [output]).name == spec.name
