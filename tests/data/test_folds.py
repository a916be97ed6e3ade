"""Folds: whole patients, alike in what they hold, and a file of them that may be edited."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from medvid_core.config import SplitConfig
from medvid_core.data.clip import Case, Source
from medvid_core.data.contents import Content, content_of
from medvid_core.data.folds import (
    Folds,
    check_classes,
    check_folds,
    imbalance_of,
    lacking,
    make_folds,
    read_folds,
    strata,
    stratified_folds,
)
from medvid_core.data.splits import split_cases
from medvid_core.errors import ConfigError, DataError
from medvid_core.specs import OutputSpec

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "two_stream" / "cv_and_metrics.json"
VIEW = OutputSpec(name="view", task="classification", classes=("a", "b", "c"))
MASK = OutputSpec(name="mask", task="segmentation", classes=("background", "solid", "fluid"))


def case(name, group=None, view=0, **known) -> Case:
    return Case(case_id=name, group_id=group or name, frames=4, streams={}, targets={"view": view}, **known)


def cohort(groups, views=None):
    views = views or [0] * len(groups)
    return [case(f"c{n:02}", f"p{group}", view) for n, (group, view) in enumerate(zip(groups, views, strict=True))]


def divided(cases, count, **config):
    contents = [content_of(one, (VIEW,)) for one in cases]
    return make_folds(cases, (VIEW,), contents, count, SplitConfig(**config))


@pytest.mark.skipif(not GOLDEN.is_file(), reason="../shared/golden/two_stream is not on this machine")
def test_folds_of_the_published_cohort_are_reproduced():
    """81 patients, 2399 clips: the patients of every fold, as scikit-learn divides them unshuffled."""
    golden = json.loads(GOLDEN.read_text())
    patients = golden["patients"]
    cases = [
        case(f"{number:02}-{clip:03}", f"{number:02}", patient["label"])
        for number, patient in enumerate(patients)
        for clip in range(patient["clips"])
    ]
    folds = divided(cases, 5, attempts=0)
    owner = {one.case_id: int(one.group_id) for one in cases}
    positive = {one.case_id for one in cases if one.targets["view"]}
    for test, expected in zip(folds.test, golden["folds_StratifiedGroupKFold5_noshuffle"], strict=True):
        assert sorted({owner[name] for name in test}) == expected["val_patients"]
        assert (len(test), len(positive & set(test))) == (expected["val_clips"], expected["val_pos"])


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=30, max_size=60),
    st.integers(2, 5),
    st.one_of(st.none(), st.integers(0, 2**31)),
)
@pytest.mark.filterwarnings("ignore:The least populated class")
def test_the_division_is_scikit_learns(rows, count, seed):
    groups, labels = zip(*rows, strict=True)
    splitter = StratifiedGroupKFold(count, shuffle=seed is not None, random_state=seed)
    assume(max(Counter(labels).values()) >= count <= len(set(groups)))
    expected = np.zeros(len(rows), int)
    for number, (_, test) in enumerate(splitter.split(groups, labels, groups)):
        expected[test] = number
    np.testing.assert_array_equal(stratified_folds(groups, labels, count, seed), expected)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=12, max_size=40),
    st.integers(2, 4),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.15, 0.5]),
)
def test_no_patient_straddles_and_every_case_is_tested_once(rows, count, seed, val):
    cases = cohort(*map(list, zip(*rows, strict=True)))
    patients = {one.group_id for one in cases}
    if len(patients) < count:
        with pytest.raises(DataError, match=f"{len(patients)} patients cannot be divided into {count} folds"):
            divided(cases, count, seed=seed, val=val)
        return
    folds = divided(cases, count, seed=seed, val=val)
    assert sorted(name for test in folds.test for name in test) == [one.case_id for one in cases]
    check_folds(folds, cases, SplitConfig(), "here")
    assert folds == divided(cases, count, seed=seed, val=val)
    for fold, names in enumerate(folds.val):
        parts = folds.parts(cases, fold)
        assert [one.case_id for one in parts["val"]] == list(names)
        assert sum(map(len, parts.values())) == len(cases)
        owners = [{one.group_id for one in members} for members in parts.values()]
        assert sum(map(len, owners)) == len(patients)
        rest = len(patients) - len(owners[2])
        assert len(owners[1]) == (min(max(round(val * rest), 1), rest - 1) if val else 0)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 100), st.integers(2, 5))
def test_classes_are_spread_as_evenly_as_they_can_be(seed, count):
    """Of many patients with a case each: no fold differs by more than one case of a class from another."""
    views = np.random.default_rng(seed).integers(0, 3, 60).tolist()
    cases = cohort(range(60), views)
    folds = divided(cases, count, seed=seed)
    known = {one.case_id: one.targets["view"] for one in cases}
    tables = [Counter(known[name] for name in test) for test in folds.test]
    for view in set(views):
        held = [table[view] for table in tables]
        assert max(held) - min(held) <= 1


def test_the_most_even_of_several_shuffles_is_taken():
    cases = cohort(np.repeat(range(20), 3).tolist(), np.random.default_rng(1).integers(0, 3, 60).tolist())
    one, ten = divided(cases, 4, attempts=1), divided(cases, 4, attempts=10)
    shares = np.eye(3)[[one.targets["view"] for one in cases]]
    tried = [
        imbalance_of(
            stratified_folds([c.group_id for c in cases], [c.targets["view"] for c in cases], 4, seed),
            shares,
            np.ones(60),
        )
        for seed in range(10)
    ]
    assert one.imbalance == pytest.approx(tried[0])
    assert ten.imbalance == pytest.approx(min(tried))
    assert min(tried) < tried[0]


def test_imbalance_by_hand():
    """Two folds of two cases; one holds the thing in both, the other in none: each is off by a half, twice."""
    assert imbalance_of(np.array([0, 0, 1, 1]), np.array([[1.0], [1], [0], [0]]), np.ones(4)) == 1.0
    assert imbalance_of(np.array([0, 1, 0, 1]), np.array([[1.0], [1], [0], [0]]), np.ones(4)) == 0.0


def read_mask(source, frames):
    """Masks of 4x4 pixels: class 1 in the upper rows, class 2 in the last frame."""
    found = np.zeros((4, 4, 4), np.uint8)
    found[:, : source.options] = 1
    found[3, 3] = 2 if source.options < 4 else 1
    return found[list(frames)]


def read_video(source, frames):
    return np.zeros((len(frames), 4, 4), np.uint8)


def segmented(name, rows, labelled=None, stratum=""):
    streams = {
        "video": Source(reader=f"{__name__}:read_video"),
        "mask": Source(reader=f"{__name__}:read_mask", options=rows, values=(0, 1, 2)),
    }
    return Case(case_id=name, group_id=name, frames=4, streams=streams, labelled=labelled, stratum=stratum)


@pytest.fixture
def readable(monkeypatch):
    """This module under a name by which its readers are found."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or type(sys)(__name__))
    for name in ("read_mask", "read_video"):
        monkeypatch.setattr(sys.modules[__name__], name, globals()[name], raising=False)


def test_what_masks_hold(readable):
    """Upper row of four is class 1; class 2 fills the last row of the last of four frames."""
    found = content_of(segmented("a", 1), (MASK,))
    assert found.classes == {"mask: solid", "mask: fluid"}
    assert found.shares == (16 / 64, 4 / 64)
    assert found.presence == (1.0, 0.25)
    assert found.annotated == 4
    assert content_of(segmented("a", 1, labelled=(0, 1)), (MASK,)).classes == {"mask: solid"}


def test_the_compound_stratum(readable):
    """Type, quarter of annotated frames, more or less of each class than the median."""
    cases = [segmented("a", 1, (0,), "cyst"), segmented("b", 2, (0, 1), "cyst"), segmented("c", 3, None, "tumour")]
    contents = [content_of(one, (MASK,)) for one in cases]
    words = strata(cases, (MASK,), contents, "auto")
    assert words == [
        ("cyst", "quarter 1", "low", "low"),
        ("cyst", "quarter 2", "low", "low"),
        ("tumour", "quarter 4", "high", "high"),
    ]
    assert strata(cases, (MASK,), contents, "none") == [(), (), ()]


def test_what_else_folds_are_balanced_by():
    """Labels together; the quarter of a number; normal or abnormal by the frames; the class before everything else."""

    def words(output, **targets):
        name, values = next(iter(targets.items()))
        cases = [
            Case(case_id=str(n), group_id="p", frames=1, streams={}, targets={} if v is None else {name: v})
            for n, v in enumerate(values)
        ]
        return [each[0] for each in strata(cases, (output,), [Content(frozenset())] * len(cases), "auto")]

    signs = OutputSpec(name="signs", task="multilabel", classes=("x", "y"))
    assert words(signs, signs=[(1, 1), (0, 1), (0, 0), None]) == ["x+y", "y", "no label", "unknown"]
    number = OutputSpec(name="ef", task="regression", classes=("ef",))
    assert words(number, ef=[10.0, 20.0, None, 30.0, 40.0]) == [
        "quarter 1",
        "quarter 2",
        "unknown",
        "quarter 3",
        "quarter 4",
    ]
    assert words(VIEW, view=[2, 0]) == ["c", "a"]
    stall = OutputSpec(name="stall", task="anomaly", classes=("stall",))
    by_frames = Case(case_id="f", group_id="p", frames=2, streams={}, frame_targets={"stall": (0.0, 1.0)})
    by_case = Case(case_id="c", group_id="p", frames=2, streams={}, targets={"stall": 0})
    assert strata([by_frames, by_case], (stall,), [Content(frozenset())] * 2, "auto") == [("abnormal",), ("normal",)]


CASES = [case("a1", "a"), case("a2", "a"), case("b1", "b", 1), case("c1", "c", 1), case("d1", "d")]


def write(path, folds, **more):
    path.write_text(json.dumps({"folds": [{"test": test, "val": val} for test, val in folds], **more}))
    return path


@pytest.mark.parametrize(
    ("folds", "more", "text"),
    [
        (
            [(["a1", "b1"], []), (["a2", "c1", "d1"], [])],
            {},
            "patient 'a' is in the test part of fold 0 (case 'a1') and in the test part of fold 1 (case 'a2'): the "
            "result would be too good. Put all cases of a patient into one fold.",
        ),
        (
            [(["a1", "a2", "b1"], []), (["c1", "d11"], [])],
            {},
            "the test part of fold 1 names case 'd11', which the data do not hold. Did you mean 'd1'?",
        ),
        (
            [(["a1", "a2", "b1"], []), (["c1"], [])],
            {},
            "case 'd1' of the data is in no fold (1 such). Put it into the test part of one fold, or into held_out; or "
            "remove the file to have the folds made anew.",
        ),
        (
            [(["a1", "a2", "b1"], []), (["c1", "d1", "b1"], [])],
            {},
            "case 'b1' is in the test part of fold 0 and in the test part of fold 1. Leave it in one of them.",
        ),
        (
            [(["a1", "a2", "b1"], []), (["c1"], [])],
            {"held_out": ["d1", "b1"]},
            "case 'b1' is in the test part of fold 0 and in held_out. Leave it in one of them.",
        ),
        (
            [(["b1", "c1"], ["a1"]), (["a1", "a2", "d1"], [])],
            {},
            "in fold 0 patient 'a' is validated on (case 'a1') and trained on (case 'a2'). Put all cases of a patient "
            "on one side.",
        ),
        (
            [(["a1", "a2", "b1"], ["b1"]), (["c1", "d1"], [])],
            {},
            "case 'b1' is in the validation part of fold 0 and is tested there.",
        ),
        (
            [(["a1", "a2", "b1"], ["c1", "d1"]), (["c1", "d1"], [])],
            {},
            "fold 0 has no case left to train on.",
        ),
        (
            [(["a1", "a2", "b1", "c1", "d1"], []), ([], [])],
            {},
            "fold 0 has no case left to train on.",
        ),
        (
            [([], []), (["a1", "a2", "b1", "c1", "d1"], [])],
            {},
            "fold 0 has no test case. Move some to it, or take the fold out.",
        ),
    ],
)
def test_a_file_that_does_not_divide_the_data_is_refused(tmp_path, folds, more, text):
    path = write(tmp_path / "splits.json", folds, **more)
    with pytest.raises(DataError) as info:
        split_cases(CASES, SplitConfig(file=str(path), fold=0))
    assert str(info.value) == f"{path}: {text}"


def test_cases_that_were_left_out_are_in_no_part(tmp_path):
    """Not even where their patient is validated on; one that is put into a fold by hand is used again."""
    folds = [(["a1", "b1"], []), (["c1"], ["a1"])]
    path = write(tmp_path / "splits.json", folds, left_out=["a2", "d1", "gone"])
    read = read_folds(path)
    assert read.unused == {"a2", "d1", "gone"}
    assert read.to_dict()["left_out"] == ["a2", "d1", "gone"]
    parts = split_cases(CASES, SplitConfig(file=str(path), fold=1))
    assert {part: [one.case_id for one in cases] for part, cases in parts.items()} == {
        "train": ["b1"],
        "val": ["a1"],
        "test": ["c1"],
    }
    write(path, [(["a1", "a2", "b1"], []), (["c1"], [])], left_out=["a2", "d1"])
    parts = split_cases(CASES, SplitConfig(file=str(path), fold=1))
    assert [one.case_id for one in parts["train"]] == ["a1", "a2", "b1"]
    write(path, [(["a1", "a2", "b1"], []), (["c1"], [])], left_out=["a2"])
    with pytest.raises(DataError, match="case 'd1' of the data is in no fold"):
        split_cases(CASES, SplitConfig(file=str(path), fold=1))


def test_a_class_that_a_fold_could_not_learn_is_refused(tmp_path):
    folds = read_folds(write(tmp_path / "s.json", [(["a1", "a2", "b1"], ["c1"]), (["c1", "d1"], [])]))
    contents = {one.case_id: content_of(one, (VIEW,)) for one in CASES}
    with pytest.raises(DataError) as info:
        check_classes(folds, contents, "s.json")
    assert str(info.value) == (
        "s.json: no training case of fold 0 holds view: b (cases that do: b1, c1). Move some of them to another fold "
        "or out of 'val', divide into fewer folds (--folds), or leave the class out."
    )
    check_classes(read_folds(write(tmp_path / "t.json", [(["a1", "a2", "b1"], []), (["c1", "d1"], [])])), contents, "")


SIGNS = OutputSpec(name="signs", task="multilabel", classes=("x", "y", "z"))


@pytest.mark.parametrize(
    "rows",
    [
        [(1, 0, 1), (0, 1, 0), (1, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 0), (1, 1, 0)],
        [(1, 0, 0), (1, 1, 0), (1, 1, 0), (0, 1, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1), (1, 0, 0)],
    ],
)
def test_validation_leaves_the_last_case_of_a_class_for_training(rows):
    """Two patients have z: one is tested, and the most even validation part would take the other."""
    cases = [
        Case(case_id=f"c{n}", group_id=f"p{n}", frames=4, streams={}, targets={"signs": row})
        for n, row in enumerate(rows)
    ]
    contents = {one.case_id: content_of(one, (SIGNS,)) for one in cases}
    config = SplitConfig(val=0.3, attempts=3)
    folds = make_folds(cases, (SIGNS,), list(contents.values()), 3, config)
    assert all(folds.val)
    check_classes(folds, contents, "here")


def test_a_shuffle_that_tests_every_class_comes_before_a_more_even_one():
    rows = [(1, 1, 0), (1, 0, 0), (1, 1, 1), (1, 0, 1), (1, 0, 0), (1, 0, 0), (1, 1, 1), (1, 0, 0)]
    cases = [
        Case(case_id=f"c{n}", group_id=f"p{n}", frames=4, streams={}, targets={"signs": row})
        for n, row in enumerate(rows)
    ]
    contents = {one.case_id: content_of(one, (SIGNS,)) for one in cases}
    make = lambda attempts: make_folds(  # noqa: E731
        cases, (SIGNS,), list(contents.values()), 3, SplitConfig(val=0.3, attempts=attempts)
    )
    assert lacking(make(1), contents, "test") == {2: ["signs: z"]}
    assert lacking(make(3), contents, "test") == {}
    assert make(3).imbalance > make(1).imbalance


def test_a_part_that_lacks_a_class_is_told():
    folds = Folds(test=(("a1", "a2", "b1"), ("d1",)), val=((), ()), held_out=("c1",))
    contents = {one.case_id: content_of(one, (VIEW,)) for one in CASES}
    assert lacking(folds, contents, "test") == {1: ["view: b"]}
    assert lacking(folds, contents, "train") == {0: ["view: b"]}  # the one held out is no help


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no folds"),
        ('{"train": ["a"], "val": [], "test": []}', "holds no folds"),
        ('{"folds": [{"test": ["a"], "val": []}]}', "holds no folds"),
        ('{"folds": [{"test": ["a"], "val": []}, {"test": ["b"]}]}', "fold 1 needs a list 'val' of case ids"),
        ('{"folds": [{"test": "a", "val": []}, {"test": ["b"], "val": []}]}', "fold 0 needs a list 'test' of case ids"),
        ('{"folds": [{"test": ["a"], "val": []}, {"test": ["b"], "val": []}], "held_out": 1}', "must be lists"),
        ('{"folds": [{"test": ["a"], "val": []}, {"test": ["b"], "val": []}], "left_out": [1]}', "must be lists"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, message):
    path = tmp_path / "splits.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_folds(path)
    with pytest.raises(DataError, match="There is no file of folds"):
        read_folds(tmp_path / "absent.json")


def test_parts_by_file(tmp_path):
    """The parts of a fold; without a fold all that is not held out is trained on; clips of one patient by request."""
    path = write(tmp_path / "s.json", [(["b1"], ["c1"]), (["a1", "a2", "c1"], [])], held_out=["d1"])
    ids = lambda splits: {part: [one.case_id for one in cases] for part, cases in splits.items()}  # noqa: E731
    parts = ids(split_cases(CASES, SplitConfig(file=str(path), fold=0)))
    assert parts == {"train": ["a1", "a2"], "val": ["c1"], "test": ["b1"]}
    parts = ids(split_cases(CASES, SplitConfig(file=str(path))))
    assert parts == {"train": ["a1", "a2", "b1", "c1"], "val": [], "test": ["d1"]}
    with pytest.raises(ConfigError, match=r"split.fold=2: .* holds the folds 0 to 1"):
        split_cases(CASES, SplitConfig(file=str(path), fold=2))
    apart = write(tmp_path / "t.json", [(["a1", "b1"], []), (["a2", "c1", "d1"], [])])
    assert ids(split_cases(CASES, SplitConfig(file=str(apart), fold=0, group="none")))["test"] == ["a1", "b1"]


def test_what_is_written_is_read_back(tmp_path):
    folds = divided(cohort(range(12), [0, 1, 2] * 4), 3)
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(folds.to_dict()))
    assert read_folds(path).to_dict() == folds.to_dict()
    assert folds.made_with["folds"] == 3


def test_too_few_folds_are_refused():
    with pytest.raises(ConfigError, match="--folds 1 cannot be used"):
        divided(CASES, 1)
