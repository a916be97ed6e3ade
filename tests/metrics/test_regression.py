"""Metrics of numbers: by hand, beside scikit-learn, and where they are undefined."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from medvid_core import ConfigError, OutputSpec, create_metric
from medvid_core.metrics import ScoredCase, segmentation

EF = OutputSpec(name="ef", task="regression", classes=("ef",), center=(55.0,), scale=(12.0,))
VOLUMES = OutputSpec(name="volumes", task="regression", classes=("edv", "esv"), center=(1.0, 0.5), scale=(0.2, 0.1))
PLAIN = OutputSpec(name="x", task="regression", classes=("x",))
ALL = ("mae", "rmse", "r2", "squared-correlation", "bland-altman", "auroc-below", "mae-low")


def cases(output, predicted, true) -> list[ScoredCase]:
    """One case for each number, or row of numbers; None: not known."""
    return [
        ScoredCase(
            case_id=f"c{number}",
            group_id=f"p{number}",
            predicted={output.name: np.atleast_1d(np.asarray(p, dtype=float))},
            true={} if y is None else {output.name: np.atleast_1d(np.asarray(y, dtype=float))},
        )
        for number, (p, y) in enumerate(zip(predicted, true, strict=True))
    ]


def score(name, predicted, true, output=PLAIN) -> dict[str, float]:
    return create_metric(name, [output]).summarise(cases(output, predicted, true))


NUMBERS = st.integers(1, 20).flatmap(lambda n: hnp.arrays(np.int64, (2, n), elements=st.integers(20, 80)))


def test_by_hand():
    """Errors 1, -1, 4 of 1, 3, 5."""
    predicted, true = [2, 2, 9], [1, 3, 5]
    assert score("mae", predicted, true) == {"mae": pytest.approx(2)}
    assert score("rmse", predicted, true) == {"rmse": pytest.approx(math.sqrt(6))}
    assert score("r2", predicted, true) == {"r2": pytest.approx(1 - 18 / 8)}
    bias, half = 4 / 3, 1.96 * math.sqrt((18 - 16 / 3) / 2)
    assert score("bland-altman", predicted, true) == pytest.approx(
        {
            "bland-altman": half,
            "bland-altman/bias": bias,
            "bland-altman/lower": bias - half,
            "bland-altman/upper": bias + half,
        }
    )


def test_r2_is_not_the_squared_correlation():
    """Twice the truth: a perfect line and a bad prediction."""
    assert score("squared-correlation", [2, 4, 6], [1, 2, 3]) == {"squared-correlation": pytest.approx(1)}
    assert score("r2", [2, 4, 6], [1, 2, 3]) == {"r2": pytest.approx(1 - 14 / 2)}


@given(NUMBERS)
@settings(max_examples=40)
def test_as_in_scikit_learn(drawn):
    predicted, true = drawn
    assert score("mae", predicted, true)["mae"] == pytest.approx(sk.mean_absolute_error(true, predicted))
    assert score("rmse", predicted, true)["rmse"] == pytest.approx(sk.root_mean_squared_error(true, predicted))
    r2, squared = score("r2", predicted, true)["r2"], score("squared-correlation", predicted, true)
    if len(set(true)) == 1:
        assert math.isnan(r2)
    else:
        assert r2 == pytest.approx(sk.r2_score(true, predicted))
    if len(set(true)) == 1 or len(set(predicted)) == 1:
        assert math.isnan(squared["squared-correlation"])
    else:
        assert squared["squared-correlation"] == pytest.approx(np.corrcoef(true, predicted)[0, 1] ** 2)
        assert r2 <= squared["squared-correlation"] + 1e-9
    below = score("auroc-below", predicted, true)
    for threshold in (35, 40, 45, 50):
        low = true < threshold
        if low.all() or not low.any():
            assert math.isnan(below[f"auroc-below/{threshold}"])
        else:
            assert below[f"auroc-below/{threshold}"] == pytest.approx(sk.roc_auc_score(low, -predicted))


@given(NUMBERS, st.randoms(use_true_random=False))
@settings(max_examples=40)
@pytest.mark.parametrize("name", ALL)
def test_order_of_cases_changes_nothing(name, drawn, random):
    made = cases(EF, *drawn)
    metric = create_metric(name, [EF])
    assert metric.summarise(random.sample(made, len(made))) == pytest.approx(metric.summarise(made), nan_ok=True)


@given(st.lists(st.integers(20, 80), min_size=2, unique=True))
@settings(max_examples=40)
def test_perfect_prediction(true):
    assert score("mae", true, true)["mae"] == score("rmse", true, true)["rmse"] == 0
    assert score("r2", true, true)["r2"] == 1
    assert score("squared-correlation", true, true)["squared-correlation"] == pytest.approx(1)
    assert set(score("bland-altman", true, true).values()) == {0}
    assert {v for v in score("auroc-below", true, true).values() if v == v} <= {1.0}


def test_low_range_is_set_by_the_training_cases():
    """Below 55 - 12 = 43, and below 40."""
    predicted, true = [50, 50, 50, 70], [30, 39, 42, 43]
    assert score("mae-low", predicted, true, EF) == pytest.approx(
        {"mae-low": (20 + 11 + 8) / 3, "mae-low/below-40": (20 + 11) / 2}
    )
    without = score("mae-low", predicted, true, PLAIN)
    assert math.isnan(without["mae-low"])
    assert without["mae-low/below-40"] == pytest.approx(31 / 2)


def test_thresholds_that_no_value_can_reach_are_not_asked_for():
    """Litres never lie on both sides of 35; a mean of 55 and a deviation of 5 reach 40, not 35."""
    found = score("auroc-below", [[1.0, 0.5], [0.9, 0.4]], [[1.1, 0.6], [0.8, 0.5]], VOLUMES)
    assert set(found) == {"auroc-below", "auroc-below/edv", "auroc-below/esv"}
    assert all(map(math.isnan, found.values()))
    narrow = OutputSpec(name="ef", task="regression", classes=("ef",), center=(55.0,), scale=(5.0,))
    assert set(score("auroc-below", [50, 40], [49, 41], narrow)) == {
        "auroc-below",
        "auroc-below/40",
        "auroc-below/45",
        "auroc-below/50",
    }


def test_equal_to_a_threshold_is_not_below():
    assert score("auroc-below", [30, 60], [40, 41], EF)["auroc-below/45"] != 1.0
    assert math.isnan(score("auroc-below", [30, 60], [40, 41], EF)["auroc-below/40"])


def test_several_numbers():
    found = score("mae", [[1, 10], [2, 20]], [[2, 14], [2, math.nan]], VOLUMES)
    assert found == pytest.approx({"mae": (0.5 + 4) / 2, "mae/edv": 0.5, "mae/esv": 4})


def test_undefined_is_nan():
    for name in ALL:
        assert all(map(math.isnan, create_metric(name, [EF]).summarise([]).values())), name
    one = score("bland-altman", [3], [1])
    assert one.pop("bland-altman/bias") == 2
    assert all(map(math.isnan, one.values()))
    assert math.isnan(score("r2", [3], [1])["r2"])
    assert math.isnan(score("squared-correlation", [3, 3], [1, 2])["squared-correlation"])
    assert score("mae", [3, 100], [1, None]) == {"mae": 2}


@pytest.mark.parametrize("name", ["mae", "mae-low"])
def test_values_of_cases_have_the_metric_as_their_mean(name):
    made = cases(EF, [50, 42, 61], [38, 41, 55])
    metric = create_metric(name, [EF])
    rows = [metric.per_case(case) for case in made]
    for column, value in metric.summarise(made).items():
        assert value == pytest.approx(np.nanmean([row[column] for row in rows]))


def test_mae_means_what_the_task_asks_for():
    masks = OutputSpec(name="mask", task="segmentation", classes=("lesion",))
    assert isinstance(create_metric("mae", [masks]), segmentation.MeanAbsoluteError)
    with pytest.raises(ConfigError, match="'mae' means one thing for a segmentation and another for a regression"):
        create_metric("mae", [masks, EF])


def changes(name, last, predicted, true, output=PLAIN) -> dict[str, float]:
    """Score cases of which some have a number that was measured before."""
    made = [
        one if before is None else replace(one, last={output.name: np.atleast_1d(np.asarray(before, dtype=float))})
        for one, before in zip(cases(output, predicted, true), last, strict=True)
    ]
    return create_metric(name, [output]).summarise(made)


def test_worsening_by_hand():
    """Falls by 10, 9, 30, and a rise; the falls foreseen are 5, 5, 1 and 0. What has no past, or no future, is out."""
    last, true = [60, 60, 70, 50, None, 60], [50, 51, 40, 55, 20, None]
    predicted = [55, 55, 69, 50, 90, 90]
    assert changes("auroc-worsened", last, predicted, true) == {"auroc-worsened": pytest.approx((0.5 + 1 + 0 + 1) / 4)}
    # of six pairs of changes -10, -9, -30, 5, called -5, -5, -1, 0: right 3 with the rise, and half of the first two
    assert changes("c-index", last, predicted, true) == {"c-index": pytest.approx((3 + 0.5) / 6)}


def test_carrying_forward_foresees_no_change():
    last, true = [60, 60, 70, 50], [40, 61, 55, 45]
    assert changes("auroc-worsened", last, last, true) == {"auroc-worsened": 0.5}
    assert changes("c-index", last, last, true) == {"c-index": 0.5}
    assert changes("auroc-worsened", last, true, true) == {"auroc-worsened": 1.0}
    assert changes("c-index", last, true, true) == {"c-index": 1.0}


@pytest.mark.parametrize("name", ["auroc-worsened", "c-index"])
def test_without_a_history_there_is_no_column(name):
    """A plain regression is asked nothing about change; where all changed alike, the answer is undefined."""
    assert changes(name, [None, None], [1, 2], [3, 4]) == {}
    assert math.isnan(changes(name, [60, 60], [1, 2], [59, 59])[name])


@given(NUMBERS, st.integers(0, 99))
@settings(max_examples=40)
def test_concordance_is_that_of_all_pairs(drawn, seed):
    predicted, true = drawn
    last = np.random.default_rng(seed).integers(40, 60, len(true))
    pairs = [(i, j) for i in range(len(true)) for j in range(i) if true[i] - last[i] != true[j] - last[j]]
    called = [np.sign((predicted - last)[i] - (predicted - last)[j]) for i, j in pairs]
    right = [np.sign((true - last)[i] - (true - last)[j]) for i, j in pairs]
    expected = np.mean([(1 + a * b) / 2 for a, b in zip(called, right, strict=True)]) if pairs else math.nan
    assert changes("c-index", last, predicted, true)["c-index"] == pytest.approx(expected, nan_ok=True)
    worsened = last - true >= 10
    if worsened.any() and not worsened.all():
        area = sk.roc_auc_score(worsened, last - predicted)
        assert changes("auroc-worsened", last, predicted, true)["auroc-worsened"] == pytest.approx(area)


def test_change_of_several_numbers():
    """Each by itself, where it is known, and the mean."""
    last = [[100, 50], [100, 50], [100, math.nan]]
    found = changes("auroc-worsened", last, [[80, 50], [99, 60], [70, 0]], [[85, 40], [99, 50], [99, 0]], VOLUMES)
    assert found == {"auroc-worsened": 0.75, "auroc-worsened/edv": 0.5, "auroc-worsened/esv": 1.0}
