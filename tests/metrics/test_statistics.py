"""Intervals and tests over patients: by hand, beside scipy, and what is said of too few patients.

That they keep their promises on average is shown by `benchmarks/patients.py`.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from medvid_core import DataError, OutputSpec, create_metric
from medvid_core.metrics import ScoredCase
from medvid_core.metrics.permutation import holm, sign_flip_test, swap_test
from medvid_core.metrics.statistics import (
    FEWEST_GROUPS,
    bootstrap,
    bounds_of,
    by_group,
    cut,
    difference,
    mean_interval,
    paired,
)

ILL = OutputSpec(name="ill", task="classification", classes=("no", "yes"))


def mean_of(values):
    return {"mean": float(np.mean(values))}


def each_by_itself(values) -> dict[str, list[float]]:
    return {f"p{number:03}": [float(value)] for number, value in enumerate(values)}


def scored(seed, patients=8, clips=2, skill=1.0) -> list[ScoredCase]:
    """Clips of ill and healthy patients in turn, with a model's probability."""
    make, found = np.random.default_rng(seed), []
    for patient in range(patients):
        for clip in range(clips):
            p = 1 / (1 + math.exp(-(skill * (2 * (patient % 2) - 1) + make.normal())))
            predicted, true = {"ill": np.array([1 - p, p])}, {"ill": np.array(float(patient % 2))}
            name = f"c{patient}-{clip}"
            found.append(ScoredCase(case_id=name, group_id=f"p{patient}", predicted=predicted, true=true))
    return found


GROUPS = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.lists(st.integers(-5, 5), min_size=1, max_size=4), min_size=2, max_size=8
)


# --- intervals ---------------------------------------------------------------------------------------------------


def test_mean_interval_of_equal_groups_is_students():
    values = np.random.default_rng(0).normal(size=(25, 3))
    found = mean_interval({f"p{number}": row for number, row in enumerate(values.tolist())})
    means = values.mean(1)
    expected = stats.t.interval(0.95, 24, loc=means.mean(), scale=stats.sem(means))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.value == pytest.approx(values.mean())
    assert (found.groups, found.note) == (25, "")


def test_mean_interval_of_unequal_groups_by_hand():
    """Patients {0, 2} and {1} and {5}: mean 2, residuals -2, -1, 3; error √(3/2 · 14) / 4."""
    found = mean_interval({"a": [0, 2, math.nan], "b": [1], "c": [5], "d": [math.nan]}, level=0.9)
    half = stats.t.ppf(0.95, 2) * math.sqrt(1.5 * 14) / 4
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half))
    assert found.groups == 3


def test_bootstrap_is_scipys_bca_at_the_wider_level():
    """With one case a patient; scipy draws others, so that the ends agree within the noise of drawing."""
    values = np.random.default_rng(1).exponential(size=40)
    found = bootstrap(each_by_itself(values), mean_of, resamples=20_000)["mean"]
    wider = 2 * stats.norm.cdf(math.sqrt(40 / 39) * stats.t.ppf(0.975, 39)) - 1
    expected = stats.bootstrap(
        (values,), np.mean, confidence_level=wider, n_resamples=20_000, method="BCa", rng=np.random.default_rng(2)
    ).confidence_interval
    noise = 0.05 * (expected.high - expected.low)
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=noise), pytest.approx(expected.high, abs=noise))
    assert found.value == pytest.approx(values.mean())
    assert (found.groups, found.undefined, found.note) == (40, 0, "")


def test_copies_of_a_patients_cases_teach_nothing():
    """Three identical clips of each patient: the same intervals as one. As patients, they would halve them."""
    values = np.random.default_rng(3).normal(size=30)
    once = each_by_itself(values)
    thrice = {name: 3 * value for name, value in once.items()}
    assert bootstrap(thrice, mean_of)["mean"].low == pytest.approx(bootstrap(once, mean_of)["mean"].low)
    assert mean_interval(thrice).low == pytest.approx(mean_interval(once).low)
    wrong = mean_interval(each_by_itself(np.repeat(values, 3)))
    assert wrong.high - wrong.low < 0.6 * (mean_interval(once).high - mean_interval(once).low)


@given(GROUPS)
@settings(max_examples=30)
def test_order_changes_nothing(groups):
    turned = {name: groups[name][::-1] for name in reversed(groups)}
    assert bootstrap(turned, mean_of, resamples=50) == bootstrap(groups, mean_of, resamples=50)
    assert mean_interval(turned) == mean_interval(groups)
    assert sign_flip_test(turned, 20) == sign_flip_test(groups, 20)


def test_bootstrap_follows_its_seed():
    groups = each_by_itself(np.random.default_rng(4).normal(size=30))
    one, again, other = (bootstrap(groups, mean_of, 200, seed)["mean"] for seed in (0, 0, 1))
    assert one == again
    assert one.low != other.low


def test_bootstrap_of_a_metric():
    """AUROC of all cases, with what scikit-learn says of them as its value."""
    cases = scored(0, patients=24)
    found = bootstrap(by_group(cases), create_metric("auroc", [ILL]).summarise, resamples=300)["auroc"]
    p, y = [case.predicted["ill"][1] for case in cases], [case.true["ill"] for case in cases]
    assert found.value == pytest.approx(sk.roc_auc_score(y, p))
    assert 0.5 < found.low < found.value < found.high <= 1


def test_difference_of_two_models():
    """The better model's lead; a model has none over itself, and that is said."""
    good, bad = scored(0, 24, skill=2), scored(1, 24, skill=0)
    metric = create_metric("auroc", [ILL]).summarise
    lead = bootstrap(paired(good, bad), difference(metric), resamples=300)["auroc"]
    assert lead.value == pytest.approx(metric(good)["auroc"] - metric(bad)["auroc"])
    assert 0 < lead.low < lead.value < lead.high
    none = bootstrap(paired(good, good), difference(metric), resamples=20)["auroc"]
    assert (none.value, none.low, none.high) == (0, 0, 0)
    assert none.note == "every resample gives the same value, so that the interval says nothing"


def test_few_patients_are_said_to_be_few():
    groups = each_by_itself(range(FEWEST_GROUPS - 1))
    for found in (mean_interval(groups), bootstrap(groups, mean_of, 50)["mean"]):
        assert found.note == "n too small: 19 patients; with fewer than 20 intervals tend to be too narrow"
        assert found.low < found.value < found.high
    for found in (mean_interval({"a": [1, 2]}), bootstrap({"a": [1, 2]}, mean_of)["mean"]):
        assert found.note.startswith("n too small: one patient")
        assert found.value == 1.5
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_an_interval_without_width_is_said_to_say_nothing():
    """All right, in 20 patients: not proof that the model never errs."""
    found = mean_interval(each_by_itself([1] * 20))
    assert (found.low, found.high) == (1, 1)
    assert found.note == "all patients are alike, so that the interval says nothing"


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([0.2, 1.0, math.nan], True, (0, 1)),
        ([0.2, 1.0], False, (0, math.inf)),  # an error: 1 is nothing special
        ([0.2, 1.1], True, (0, math.inf)),
        ([-0.1, 0.5], True, (-math.inf, math.inf)),
    ],
)
def test_bounds_of_a_mean(values, share, expected):
    assert bounds_of(values, share) == expected


def test_an_interval_is_cut_and_stays_itself():
    found = mean_interval(each_by_itself([0, 1, 1]))
    assert found.low < 0
    assert found.high > 1
    shown = cut(found, (0, 1))
    assert (shown.low, shown.high) == (0, 1)
    assert replace(shown, low=found.low, high=found.high) == found
    undefined = cut(mean_interval({"a": [1.0]}), (0, 1))
    assert math.isnan(undefined.low)
    assert math.isnan(undefined.high)


def test_undefined_resamples_are_left_out_and_counted():
    """Of patients 0, 0, …, 1, many draws miss the only 1."""

    def only_with_a_one(values):
        return {"x": float(np.mean(values)) if max(values) == 1 else math.nan}

    found = bootstrap(each_by_itself([0] * 24 + [1]), only_with_a_one, 500)["x"]
    assert found.undefined == pytest.approx((24 / 25) ** 25, abs=0.08)
    assert found.note == f"undefined in {found.undefined:.0%} of the resamples"
    assert found.low > 0
    never = bootstrap(each_by_itself(range(25)), lambda values: {"x": math.nan}, 20)["x"]
    assert never.note == "undefined for these cases"
    assert math.isnan(never.low)


def test_nothing_to_resample_is_an_error():
    with pytest.raises(DataError, match="no cases to resample"):
        bootstrap({}, mean_of)
    with pytest.raises(DataError, match="no values to take the mean of"):
        mean_interval({"a": [math.nan]})


# --- tests ---------------------------------------------------------------------------------------------------------


def test_sign_flips_by_hand():
    """Three patients with 1, 2 and 3: of eight sign patterns two are as extreme. p cannot be smaller, which is said."""
    found = sign_flip_test({"a": [1.0], "b": [0.5, 1.5], "c": [3.0], "d": [0.0], "e": [math.nan]})
    assert found.difference == pytest.approx(6 / 5)
    assert (found.p_value, found.least_p) == (0.25, 0.25)
    assert (found.groups, found.discordant, found.permutations, found.exact) == (4, 3, 8, True)
    assert found.note == "n too small: the models differ in 3 patients, so that p cannot fall below 0.25"


def test_sign_flips_are_scipys():
    """All 2^9 patterns, against scipy's exact test of the same statistic."""
    values = np.random.default_rng(5).normal(0.4, 1, size=9)
    found = sign_flip_test(each_by_itself(values))
    expected = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert found.exact
    assert found.p_value == pytest.approx(expected.pvalue)
    assert 0.02 < found.p_value < 0.98


def test_drawn_permutations_come_close_to_all_of_them():
    groups = each_by_itself(np.random.default_rng(6).normal(0.4, 1, size=12))
    every, drawn = sign_flip_test(groups, 4096), sign_flip_test(groups, 4000)
    assert (every.exact, drawn.exact) == (True, False)
    assert drawn.p_value == pytest.approx(every.p_value, abs=0.03)
    assert (every.permutations, drawn.permutations) == (4096, 4000)


def test_drawn_permutations_never_give_zero():
    found = sign_flip_test(each_by_itself([1.0] * 40), 99)
    assert found.p_value == found.least_p == 0.01


def test_six_patients_can_and_five_cannot_reach_significance():
    assert sign_flip_test(each_by_itself([1.0] * 6)).note == ""
    five = sign_flip_test(each_by_itself([1.0] * 5))
    assert five.p_value == five.least_p == 2 / 2**5
    assert "5 patients" in five.note


def test_rounding_is_no_difference():
    """0.1 + 0.2 - 0.3 is not quite 0, and the order of a sum shows in its last digits."""
    found = sign_flip_test({"a": [0.1, 0.2, -0.3], "b": [1.0], "c": [-0.3, 0.1, 0.2], "d": [1.0]})
    assert found.discordant == 2
    assert found.p_value == found.least_p == 0.5
    values = [0.1, 0.7, 0.2, 1.3]
    assert sign_flip_test(each_by_itself(values)).p_value == 2 / 2**4


def test_models_alike():
    found = sign_flip_test(each_by_itself([0.0] * 8))
    assert (found.p_value, found.least_p, found.discordant) == (1, 1, 0)
    assert found.note == "the models do not differ in any patient"
    nothing = sign_flip_test({})
    assert math.isnan(nothing.p_value)
    assert nothing.note == "undefined for these cases"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=7))
@settings(max_examples=30)
def test_swapping_is_flipping_for_means(pairs):
    groups = {f"p{number}": [pair] for number, pair in enumerate(pairs)}
    swapped = swap_test(groups, mean_of)["mean"]
    flipped = sign_flip_test({name: [one - other for one, other in pair] for name, pair in groups.items()})
    assert swapped.p_value == pytest.approx(flipped.p_value)
    assert swapped.difference == pytest.approx(flipped.difference)
    assert (swapped.discordant, swapped.least_p) == (flipped.discordant, flipped.least_p)


def test_swapping_tells_a_better_model():
    metrics = [create_metric(name, [ILL]) for name in ("auroc", "f1")]

    def both(cases):
        return {name: value for metric in metrics for name, value in metric.summarise(cases).items()}

    good, bad, alike = scored(0, 16, skill=3), scored(1, 16, skill=0), scored(2, 16, skill=3)
    found = swap_test(paired(good, bad), both, 200)
    assert {"auroc", "f1"} < set(found)
    assert found["auroc"].p_value < 0.05
    assert found["f1"].p_value < 0.05
    assert swap_test(paired(good, alike), both, 200)["auroc"].p_value > 0.05
    back = swap_test(paired(bad, good), both, 200)["auroc"]
    assert back.difference == pytest.approx(-found["auroc"].difference)
    assert back.p_value == found["auroc"].p_value


def test_swapping_in_few_patients():
    """Two patients: p is 2 / 2² at best."""
    found = swap_test(paired(scored(0, 2, skill=3), scored(1, 2, skill=-3)), create_metric("auroc", [ILL]).summarise)
    assert (found["auroc"].least_p, found["auroc"].p_value) == (0.5, 0.5)
    assert found["auroc"].note == "n too small: the models differ in 2 patients, so that p cannot fall below 0.5"


def test_holm_by_hand():
    assert holm({"a": 0.04, "b": 0.01, "c": math.nan, "d": 0.03, "e": 0.9}) == pytest.approx(
        {"a": 0.09, "b": 0.04, "c": math.nan, "d": 0.09, "e": 0.9}, nan_ok=True
    )
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@given(st.dictionaries(st.text("ab", min_size=1, max_size=4), st.floats(0, 1), min_size=1))
@settings(max_examples=50)
def test_holm_keeps_the_order_and_lies_below_bonferroni(p_values):
    adjusted = holm(p_values)
    names = sorted(p_values, key=p_values.get)
    assert [adjusted[name] for name in names] == sorted(adjusted.values())
    assert adjusted[names[0]] == pytest.approx(min(1, len(names) * p_values[names[0]]))
    assert all(adjusted[name] >= p for name, p in p_values.items())


# --- pairs ---------------------------------------------------------------------------------------------------------


def test_pairs_are_matched_by_case():
    first, second = scored(0, 3), scored(1, 3)
    found = paired(first, second[::-1])
    assert list(found) == ["p0", "p1", "p2"]
    assert all(one.case_id == other.case_id for pairs in found.values() for one, other in pairs)
    assert [one for pairs in found.values() for one, _ in pairs] == first


def test_models_of_different_cases_are_refused():
    first = scored(0, 3)
    with pytest.raises(DataError, match="different cases: 2 of one are missing from the other, the first is 'c2-0'"):
        paired(first, scored(0, 2))
    with pytest.raises(DataError, match="A case occurs twice"):
        paired(first, [*first, first[0]])
    moved = [ScoredCase(case_id=one.case_id, group_id="p9", predicted={}, true={}) for one in first]
    with pytest.raises(DataError, match="'c0-0' is of patient 'p0' for one model and of 'p9' for the other"):
        paired(first, moved)
