"""Metrics of frames, actions: by hand, beside scikit-learn and a literal Levenshtein, and where they are undefined."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from medvid_core import OutputSpec, create_metric
from medvid_core.metrics import ScoredCase
from medvid_core.metrics.frames import edit_score, matched_segments

PHASE = OutputSpec(name="phase", task="frame_classification", classes=("a", "b", "c"))
ALL = ("frame-accuracy", "frame-f1", "segmental-f1", "edit-score")


def case(predicted, true, name="c") -> ScoredCase:
    """A video from two strings of classes, "?" where the truth is unknown; None: no frame annotated at all."""
    truth = {} if true is None else {"phase": np.array([math.nan if c == "?" else "abc".index(c) for c in true])}
    return ScoredCase(
        case_id=name,
        group_id=name,
        predicted={"phase": np.eye(3)[["abc".index(c) for c in predicted]]},
        true={},
        true_frames=truth,
    )


def score(name, *pairs) -> dict[str, float]:
    return create_metric(name, [PHASE]).summarise([case(*pair) for pair in pairs])


WORDS = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*[st.text("abc", min_size=n, max_size=n)] * 2, st.text("abc?", min_size=n, max_size=n))
)


def test_frames_by_hand():
    """Two videos: 3 of 4 frames right, 0 of 1."""
    pairs = ("aabb", "aaab"), ("c", "a")
    assert score("frame-accuracy", *pairs) == {
        "frame-accuracy": pytest.approx((3 / 4 + 0) / 2),
        "frame-accuracy/pooled": pytest.approx(3 / 5),
    }
    assert score("frame-f1", *pairs) == {
        "frame-f1": pytest.approx((4 / 6 + 2 / 3 + 0) / 3),
        "frame-f1/a": pytest.approx(4 / 6),
        "frame-f1/b": pytest.approx(2 / 3),
        "frame-f1/c": 0.0,
    }


def test_segments_by_hand():
    """a overlaps by 4/7, b by 1/5, a second a is in excess: at 50 and 25 % one of three is right, at 10 % two."""
    pair = "aaaabbbba", "aaaaaaabb"
    assert score("segmental-f1", pair) == {
        "segmental-f1": pytest.approx(2 * 1 / (2 * 1 + 2 + 1)),
        "segmental-f1/25": pytest.approx(2 * 1 / (2 * 1 + 2 + 1)),
        "segmental-f1/10": pytest.approx(2 * 2 / (2 * 2 + 1 + 0)),
    }


def test_a_true_segment_is_found_once():
    """Two predicted halves of one segment: the second is in excess."""
    assert matched_segments(np.array([0] * 9), np.array([0, 0, 0, 0, 1, 0, 0, 0, 0]), 0.25).tolist() == [1, 2, 0]


def test_counts_of_segments_are_summed_over_videos():
    """One right of one, and none of three: 2 / (2 + 3 + 1), not the mean of 1 and 0."""
    assert score("segmental-f1", ("aa", "aa"), ("aba", "ccc"))["segmental-f1"] == pytest.approx(2 / (2 + 3 + 1))


def test_edit_score_by_hand():
    """Segments a b c, found a c: one deletion of three; lengths do not matter."""
    assert score("edit-score", ("aaaacc", "abbbcc")) == {"edit-score": pytest.approx(1 - 1 / 3)}
    assert edit_score(np.array([0, 1]), np.array([0, 1])) == 1


@given(WORDS)
@settings(max_examples=50)
def test_edit_score_is_levenshtein(words):
    """Beside the definition by recursion."""

    def shorten(word):
        return "".join(c for i, c in enumerate(word) if i == 0 or word[i - 1] != c)

    @functools.cache
    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    one, other = shorten(words[0]), shorten(words[1])
    expected = 1 - distance(one, other) / max(len(one), len(other))
    assert score("edit-score", (words[0], words[1]))["edit-score"] == pytest.approx(expected)


@given(st.lists(WORDS, min_size=1, max_size=4))
@settings(max_examples=50)
def test_pooled_frames_as_in_scikit_learn(videos):
    predicted, true = ("".join(video[k] for video in videos) for k in (0, 1))
    pairs = [video[:2] for video in videos]
    f1 = sk.f1_score(list(true), list(predicted), average="macro")
    assert score("frame-f1", *pairs)["frame-f1"] == pytest.approx(f1)
    accuracy = sk.accuracy_score(list(true), list(predicted))
    assert score("frame-accuracy", *pairs)["frame-accuracy/pooled"] == pytest.approx(accuracy)


@given(WORDS)
@settings(max_examples=50)
@pytest.mark.parametrize("name", ALL)
def test_frames_without_annotation_are_not_there(name, words):
    """Whatever is predicted where nothing is known, the result is that of the video without these frames."""
    predicted, _, true = words
    kept = "".join(p for p, t in zip(predicted, true, strict=True) if t != "?")
    without = score(name, (kept, true.replace("?", ""))) if kept else score(name, ("a", "?"))
    assert score(name, (predicted, true)) == pytest.approx(without, nan_ok=True)


@given(st.lists(WORDS, min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=25)
@pytest.mark.parametrize("name", ALL)
def test_order_of_videos_changes_nothing_and_perfection_is_one(name, videos, random):
    pairs = [video[:2] for video in videos]
    mixed = random.sample(pairs, len(pairs))
    assert score(name, *mixed) == pytest.approx(score(name, *pairs), nan_ok=True)
    perfect = [(video[1], video[1]) for video in videos]
    assert {value for value in score(name, *perfect).values() if value == value} == {1.0}


@pytest.mark.parametrize("name", ALL)
def test_undefined_is_nan(name):
    for made in ([], [case("abc", "???")], [case("abc", None)]):
        assert all(map(math.isnan, create_metric(name, [PHASE]).summarise(made).values()))
    known = score(name, ("aab", "abb"))
    assert score(name, ("aab", "abb"), ("ccc", None)) == pytest.approx(known, nan_ok=True)


@pytest.mark.parametrize("name", ["frame-accuracy", "edit-score"])
def test_values_of_cases_have_the_metric_as_their_mean(name):
    made = [case("aabbc", "abbbc"), case("ccc", "cab"), case("a", "?")]
    metric = create_metric(name, [PHASE])
    rows = [metric.per_case(one)[name] for one in made]
    assert math.isnan(rows[2])
    assert metric.summarise(made)[name] == pytest.approx(np.mean(rows[:2]))


def test_what_is_remembered_of_a_case_is_its_own():
    """A second metric, and a second call, find the same; another case does not."""
    one, other = case("aabb", "aaab"), case("bbbb", "aaab")
    metric = create_metric("frame-accuracy", [PHASE])
    for _ in range(2):
        assert metric.summarise([one])["frame-accuracy"] == 3 / 4
        assert metric.summarise([other])["frame-accuracy"] == 1 / 4
    assert create_metric("frame-f1", [PHASE]).summarise([one])["frame-f1/a"] == pytest.approx(4 / 5)
