"""Train, val and test: whole patients, what the data set fixes is obeyed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvid_core.config import SplitConfig
from medvid_core.data.clip import Case
from medvid_core.data.splits import recorded_splits, split_cases, straddles
from medvid_core.errors import DataError


def case(name, group=None, split=None) -> Case:
    return Case(case_id=name, group_id=group or name, frames=1, streams={}, split=split)


def ids(splits) -> dict[str, list[str]]:
    return {part: [one.case_id for one in cases] for part, cases in splits.items()}


FRACTIONS = st.tuples(st.floats(0, 0.49), st.floats(0, 0.49))


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), FRACTIONS, st.integers(0, 2**32))
def test_no_patient_straddles_parts_and_no_case_is_lost(groups, fractions, seed):
    cases = [case(f"c{number}", f"p{group}") for number, group in enumerate(groups)]
    config = SplitConfig(val=fractions[0], test=fractions[1], seed=seed)
    if fractions[1] and len(set(groups)) == 1 and len(groups) > 1:
        with pytest.raises(DataError, match="are of one patient"):
            split_cases(cases, config)
        return
    splits = split_cases(cases, config)
    owner = {}
    for part, members in splits.items():
        for one in members:
            assert owner.setdefault(one.group_id, part) == part
    assert not straddles(splits)
    assert sorted(one.case_id for part in splits.values() for one in part) == sorted(one.case_id for one in cases)
    assert splits["train"]
    number = len(set(groups))
    if fractions[1] and number >= 2:
        assert splits["test"]
    if all(fractions) and number >= 3:
        assert splits["val"]
    assert ids(splits) == ids(split_cases(cases, config))


@settings(deadline=None)
@given(st.permutations([case(f"c{n}", f"p{n % 7}") for n in range(14)]))
def test_the_order_of_the_files_does_not_matter(cases):
    """A folder listed in another order gives the same parts."""
    in_order = sorted(cases, key=lambda one: one.case_id)
    found, expected = ids(split_cases(cases, SplitConfig())), ids(split_cases(in_order, SplitConfig()))
    assert {part: set(names) for part, names in found.items()} == {part: set(n) for part, n in expected.items()}


def test_fractions_are_those_of_the_whole():
    splits = split_cases([case(f"c{n:03}") for n in range(100)], SplitConfig(val=0.15, test=0.2))
    assert {part: len(cases) for part, cases in splits.items()} == {"train": 65, "val": 15, "test": 20}
    splits = split_cases([case(f"c{n:03}") for n in range(100)], SplitConfig(val=0, test=0))
    assert {part: len(cases) for part, cases in splits.items()} == {"train": 100, "val": 0, "test": 0}


def test_the_seed_of_the_split_changes_it():
    cases = [case(f"c{n}") for n in range(30)]
    assert ids(split_cases(cases, SplitConfig(seed=0))) != ids(split_cases(cases, SplitConfig(seed=1)))


def test_fixed_parts_are_obeyed():
    cases = [case("a", split="train"), case("b", split="val"), case("c", split="test"), case("d", split="train")]
    assert ids(split_cases(cases, SplitConfig())) == {"train": ["a", "d"], "val": ["b"], "test": ["c"]}


def test_validation_cases_are_taken_from_training_where_the_data_set_fixes_none():
    """Whole patients, and the test part stays what it is."""
    cases = [case(f"c{n}", f"p{n // 2}", "train") for n in range(20)] + [case("t", split="test")]
    splits = split_cases(cases, SplitConfig(val=0.2))
    assert ids(splits)["test"] == ["t"]
    assert len(splits["val"]) == 4
    assert {one.group_id for one in splits["val"]}.isdisjoint(one.group_id for one in splits["train"])
    one_patient = [case("a", "p", "train"), case("b", "p", "train"), case("t", split="test")]
    assert ids(split_cases(one_patient, SplitConfig()))["val"] == []


@pytest.mark.parametrize(
    ("cases", "text"),
    [
        (
            [case("a", split="train"), case("b")],
            "Some cases name a split and some do not (e.g. 'b'). Give every case one, or none.",
        ),
        (
            [case("a", split="train"), case("b", split="tset")],
            "Case 'b' has split 'tset'; it must be one of train, val, test.",
        ),
        (
            [case("a", "p", "train"), case("v", split="val"), case("b", "p", "test")],
            "Group 'p' (case 'b') is in both train and test: the result would be too good. "
            "Give all cases of a patient the same split.",
        ),
        ([case("a", split="test")], "There is no training case: every case is in val or test."),
    ],
)
def test_parts_that_cannot_be_right_are_refused(cases, text):
    with pytest.raises(DataError) as info:
        split_cases(cases, SplitConfig())
    assert str(info.value) == text


def test_a_test_set_alone_can_be_scored():
    """Scoring needs no training case: an external test set has none."""
    splits = split_cases([case("a", split="test"), case("b", split="test")], SplitConfig(), training=False)
    assert ids(splits) == {"train": [], "val": [], "test": ["a", "b"]}


def test_recorded_parts_hold_when_cases_are_added():
    """A case added later can turn no training case into a test case."""
    cases = [case(f"c{n:02}") for n in range(10)]
    recorded = ids(split_cases(cases, SplitConfig()))
    more = [case("b0"), *cases, case("z")]
    assert ids(recorded_splits(more, recorded)) == recorded
    assert ids(split_cases(more, SplitConfig())) != recorded


def test_clips_of_one_patient_are_divided_only_where_it_is_asked_for():
    """Nothing can be held out of one patient; that is said with what to do, and done by name alone."""
    cases = [case(f"c{number}", "p") for number in range(10)]
    with pytest.raises(DataError) as info:
        split_cases(cases, SplitConfig())
    assert str(info.value) == (
        "All 10 cases are of one patient (group 'p'), so that none can be held out for the test. Add other patients, "
        "hold none out (split.test=0), or divide the clips of this one (split.group=none), knowing that the result "
        "says nothing of other patients."
    )
    splits = split_cases(cases, SplitConfig(group="none"))
    assert [len(splits[part]) for part in ("train", "val", "test")] == [7, 1, 2]
    assert {one.group_id for part in splits.values() for one in part} == {"p"}  # whose they are is not forgotten
    assert straddles(splits)
    assert len(split_cases(cases, SplitConfig(test=0, val=0))["train"]) == 10
