"""Metrics of anomaly scores: by hand, beside scikit-learn and the training loss, and where they are undefined."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from medvid_core import OutputSpec, create_metric
from medvid_core.losses.tasks import top_k_mean
from medvid_core.metrics import ScoredCase
from medvid_core.metrics.anomaly import alarms_of, video_scores, video_truth
from medvid_core.metrics.gather import Drawn

STALL = OutputSpec(name="stall", task="anomaly", classes=("stall",))
ALL = (
    "anomaly-auroc",
    "frame-auroc",
    "frame-ap",
    "video-auroc",
    "video-ap",
    "sensitivity-at-95-specificity",
    "detection-delay",
)


def case(scores, frames=None, video=None, fps=math.nan, name="c") -> ScoredCase:
    """A video from its scores, the truth of its frames ("0", "1" or "?" each) and its label."""
    truth = {} if frames is None else {"stall": np.array([{"0": 0.0, "1": 1.0}.get(c, math.nan) for c in frames])}
    return ScoredCase(
        case_id=name,
        group_id=name,
        predicted={"stall": np.asarray(scores, dtype=float)},
        true={} if video is None else {"stall": np.array(float(video))},
        true_frames=truth,
        fps=fps,
    )


def score(name, *made) -> dict[str, float]:
    return create_metric(name, [STALL]).summarise(made)


VIDEO = st.integers(1, 10).flatmap(
    lambda n: st.tuples(hnp.arrays(np.int64, n, elements=st.integers(0, 5)), st.text("01?", min_size=n, max_size=n))
)


def test_frames_by_hand():
    """Pooled: positives 3 and 1, negatives 2, 0, 2; of the first video alone 3 of 4 pairs, the second has one class."""
    made = case([3, 1, 2, 0], "1100"), case([2], "0")
    assert score("frame-auroc", *made) == {
        "frame-auroc": pytest.approx((3 + 1) / 6),
        "frame-auroc/per-video": pytest.approx(3 / 4),
    }
    assert score("frame-ap", *made) == {
        "frame-ap": pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 4),
        "frame-ap/per-video": pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3),
        "frame-ap/prevalence": pytest.approx(2 / 5),
    }


def test_videos_by_hand():
    """17 frames: the mean of the two highest; its highest alone ranks otherwise."""
    made = (
        case([0] * 15 + [4, 4], video=1),
        case([0] * 16 + [5], video=0),
        case([1] * 16, video=0),
    )
    assert score("video-auroc", *made) == {"video-auroc": 1.0, "video-auroc/max": 0.5}
    assert score("video-ap", *made) == {
        "video-ap": 1.0,
        "video-ap/max": 0.5,
        "video-ap/prevalence": pytest.approx(1 / 3),
    }


@given(hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(-5, 5)))
def test_video_score_is_that_of_training(scores):
    trained = top_k_mean(torch.from_numpy(scores)[None], torch.ones(1, len(scores), dtype=torch.bool))
    assert video_scores(scores) == pytest.approx((trained.item(), scores.max()))


@pytest.mark.parametrize(
    ("frames", "video", "expected"),
    [
        (None, 1, 1.0),
        (None, 0, 0.0),
        (None, None, math.nan),
        ("010", None, 1.0),
        ("?1?", None, 1.0),
        ("000", None, 0.0),
        ("0?0", None, math.nan),  # nobody looked at the frame between
        ("???", None, math.nan),
    ],
)
def test_truth_of_a_video(frames, video, expected):
    assert video_truth(case([0, 0, 0], frames, video), STALL) == pytest.approx(expected, nan_ok=True)


def test_frames_of_a_normal_video_are_normal():
    """They need no annotation; those of an abnormal one do."""
    made = case([1, 5], video=0), case([3, 9], "1?", video=1)
    assert score("frame-auroc", *made)["frame-auroc"] == 1 / 2
    assert score("frame-ap", *made)["frame-ap/prevalence"] == pytest.approx(1 / 3)


def test_the_figure_that_chooses_is_defined_with_either_kind_of_label():
    frames = case([0, 2, 1], "011"), case([1], "0")
    assert score("anomaly-auroc", *frames)["anomaly-auroc"] == score("frame-auroc", *frames)["frame-auroc"] == 3.5 / 4
    videos = case([0, 2], video=1), case([1, 1], video=0), case([3, 0], video=0)
    assert math.isnan(score("frame-auroc", *videos)["frame-auroc"])
    assert score("anomaly-auroc", *videos)["anomaly-auroc"] == score("video-auroc", *videos)["video-auroc"] == 1 / 2


def test_detection_by_hand():
    """Of 20 normal frames 0 … 19, 95 % lie at or below 18: alarms are above it."""
    normal = case(range(20), "0" * 20)
    late = case([0, 50, 1, 18, 19], "0" + "?" + "111", fps=10.0)  # the alarm before the onset does not count
    missed = case([1, 1], "11", fps=10.0)
    at_once = case([40], "1")
    found = score("detection-delay", normal, late, missed, at_once)
    # the 0 of `late` is normal too: of 21, 20 lie at or below 18
    assert found == {
        "detection-delay": pytest.approx((2 + 0) / 2),
        "detection-delay/seconds": pytest.approx(2 / 10),
        "detection-delay/missed": pytest.approx(1 / 3),
    }
    assert score("sensitivity-at-95-specificity", normal, late, missed, at_once) == {
        "sensitivity-at-95-specificity": pytest.approx(2 / 6),  # 19 and 40, of 1 18 19, 1 1 and 40
        "sensitivity-at-95-specificity/video": pytest.approx(2 / 3),  # 50 and 40, not 1, lie above 18.5
        "sensitivity-at-95-specificity/specificity": pytest.approx(20 / 21),
        "sensitivity-at-95-specificity/video-specificity": 1.0,
    }


def test_thresholds_that_validation_chose_stay():
    """Whatever the scored cases are like: those of other models raise other alarms, and none may choose anew."""
    validation = case(range(20), "0" * 20), case([7], "0"), case([40], "1")
    alarms = alarms_of(validation, [STALL])
    assert alarms == {"stall": {"frame": 18.0, "video": 18.5}}  # of 21 frames, 20 lie at or below 18
    made = [
        replace(one, alarms=alarms)
        for one in (case([18, 19, 30, 31], "0000"), case([1, 2, 20], "011", fps=2.0), case([17, 18], "11"))
    ]
    assert score("sensitivity-at-95-specificity", *made) == {
        "sensitivity-at-95-specificity": 1 / 4,
        "sensitivity-at-95-specificity/video": 1 / 2,
        "sensitivity-at-95-specificity/specificity": pytest.approx(2 / 5),  # 18 and 1, not 19, 30 and 31
        "sensitivity-at-95-specificity/video-specificity": 0.0,
    }
    assert score("detection-delay", *made) == {
        "detection-delay": 1.0,
        "detection-delay/seconds": 0.5,
        "detection-delay/missed": 1 / 2,
    }
    own = [replace(one, alarms={}) for one in made]
    assert score("sensitivity-at-95-specificity", *own)["sensitivity-at-95-specificity"] == 0  # the highest normal: 31
    other = replace(made[2], alarms={"stall": {"frame": 17.5, "video": 17.5}})  # another model's: its own threshold
    assert score("sensitivity-at-95-specificity", *made[:2], other)["sensitivity-at-95-specificity"] == 2 / 4
    assert alarms_of([case([1, 2], "11")], [STALL]) == {"stall": {}}
    assert alarms_of(validation, [replace(STALL, task="regression")]) == {}


@given(st.lists(VIDEO, min_size=1, max_size=5), st.data())
@settings(max_examples=25)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("fixed", [True, False])
def test_a_draw_is_scored_as_the_cases_it_holds(name, fixed, videos, data):
    """What is gathered once from a pool gives, to the bit, what its cases give one by one; with repetition."""
    alarms = {"stall": {"frame": 2.0, "video": 2.0}} if fixed else {}
    made = [replace(case(*video, fps=5.0, name=f"c{n}"), alarms=alarms) for n, video in enumerate(videos)]
    places = data.draw(st.lists(st.integers(0, len(made) - 1), min_size=1, max_size=8))
    metric, pool = create_metric(name, [STALL]), Drawn(made)
    for chosen in (places, places[::-1]):
        expected = metric.summarise([replace(made[place]) for place in chosen])
        np.testing.assert_equal(metric.summarise(pool.draw(chosen)), expected)


@given(st.lists(VIDEO, min_size=1, max_size=5))
@settings(max_examples=50)
def test_as_in_scikit_learn(videos):
    scores = np.concatenate([video[0] for video in videos])
    truth = "".join(video[1] for video in videos)
    known = np.array([c != "?" for c in truth])
    positive = np.array([c == "1" for c in truth])[known]
    made = [case(*video) for video in videos]
    pooled, precision = score("frame-auroc", *made), score("frame-ap", *made)
    if positive.all() or not positive.any():
        assert math.isnan(pooled["frame-auroc"])
        assert math.isnan(precision["frame-ap"])
    else:
        assert pooled["frame-auroc"] == pytest.approx(sk.roc_auc_score(positive, scores[known]))
        assert precision["frame-ap"] == pytest.approx(sk.average_precision_score(positive, scores[known]))
    each = [
        sk.roc_auc_score(np.array(list(t))[mask] == "1", s[mask])
        for s, t in videos
        if {"0", "1"} <= set(t) and (mask := np.array([c != "?" for c in t])).any()
    ]
    expected = np.mean(each) if each else math.nan
    assert pooled["frame-auroc/per-video"] == pytest.approx(expected, nan_ok=True)


@given(st.lists(VIDEO, min_size=1, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=25)
@pytest.mark.parametrize("name", ALL)
def test_neither_order_nor_a_monotone_transform_changes_anything(name, videos, random):
    """The mean of the top sixteenth is the highest score of these short videos, so that ranks are kept."""
    made = [case(*video, fps=5.0) for video in videos]
    expected = score(name, *made)
    assert score(name, *random.sample(made, len(made))) == pytest.approx(expected, nan_ok=True)
    stretched = [case(np.exp(scores) - 3, truth, fps=5.0) for scores, truth in videos]
    assert score(name, *stretched) == pytest.approx(expected, nan_ok=True)


@given(st.lists(VIDEO, min_size=1, max_size=5))
@settings(max_examples=25)
def test_perfect_scores(videos):
    """Frames scored by their truth: areas 1, every anomaly found at once."""
    made = [case([c == "1" for c in truth], truth) for _, truth in videos]
    for name in ALL[:-1]:
        values = {k: v for k, v in score(name, *made).items() if not k.endswith("prevalence")}
        assert {v for v in values.values() if v == v} <= {1.0}, name
    delay = score("detection-delay", *made)
    assert {v for v in delay.values() if v == v} <= {0.0}


@pytest.mark.parametrize("name", ALL)
def test_one_class_or_nothing_known_is_nan(name):
    for made in ([], [case([1, 2], "??")], [case([1, 2])], [case([1, 2], "11")]):
        values = score(name, *made)
        prevalence = [values.pop(key) for key in list(values) if key.endswith("prevalence")]
        assert all(map(math.isnan, values.values()))
        assert all(math.isnan(share) or share == 1 for share in prevalence)


@pytest.mark.parametrize("name", ["frame-auroc", "frame-ap"])
def test_values_of_cases_have_the_metric_as_their_mean(name):
    made = case([3, 1, 2, 0], "1100"), case([2], "0"), case([1, 2], "01")
    metric = create_metric(name, [STALL])
    rows = [metric.per_case(one)[f"{name}/per-video"] for one in made]
    assert math.isnan(rows[1])
    assert metric.summarise(made)[f"{name}/per-video"] == pytest.approx(np.nanmean(rows))
