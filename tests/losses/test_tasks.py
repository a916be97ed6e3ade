"""The losses of every task but segmentation, against values worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from medvid_core import Case, ConfigError, DataError, OutputSpec, create_loss
from medvid_core.losses import ChecksTraining
from medvid_core.losses.tasks import top_k_mean


def output(task, classes=("a", "b", "c"), **more):
    return OutputSpec(name="x", task=task, classes=classes, **more)


def batch(clips=2, frames=4, real=None, **known):
    """A batch that knows what is named: ``targets`` and ``frame_targets`` of x, and where they are present."""
    found = {
        "frame_real": torch.ones(clips, frames, dtype=torch.bool) if real is None else torch.tensor(real),
        **{key: {} for key in ("targets", "targets_present", "frame_targets", "frame_targets_present")},
    }
    for kind in ("targets", "frame_targets"):
        if kind in known:
            values = torch.tensor(known[kind])
            present = known.get(f"{kind}_present", torch.ones(values.shape[: 1 if kind == "targets" else 2]))
            found[kind] = {"x": values}
            found[f"{kind}_present"] = {"x": torch.as_tensor(present).bool()}
    return found


def parts(spec, raw, given, name="by-task", **settings):
    loss = create_loss(name, (spec,), **settings)
    counts = loss.counts(given)
    sums = loss({"x": torch.tensor(raw)}, given)
    assert counts.keys() == sums.keys()
    return {key: (float(sums[key]), int(counts[key])) for key in sums}


def test_classification_leaves_out_what_is_not_known():
    given = batch(targets=[1, 2], targets_present=[True, False])
    logits = [[0.0, 2.0, 1.0], [9.0, 0.0, 0.0]]
    want = -math.log(math.exp(2) / (1 + math.exp(2) + math.exp(1)))
    assert parts(output("classification"), logits, given) == {"x": (pytest.approx(want, rel=1e-6), 1)}


def test_class_weights_and_smoothing():
    given = batch(clips=1, targets=[1])
    logs = torch.tensor([0.0, 2.0, 1.0]).log_softmax(0)
    weighted = parts(output("classification"), [[0.0, 2.0, 1.0]], given, class_weights=(1.0, 3.0, 1.0))
    assert weighted["x"][0] == pytest.approx(-3 * float(logs[1]), rel=1e-6)
    smoothed = parts(output("classification"), [[0.0, 2.0, 1.0]], given, label_smoothing=0.3)
    assert smoothed["x"][0] == pytest.approx(-float(0.7 * logs[1] + 0.1 * logs.sum()), rel=1e-6)
    with pytest.raises(ConfigError, match="class_weights has 2 values for the 3 classes of 'x'"):
        create_loss("by-task", (output("classification"),), class_weights=(1.0, 2.0))


def test_multilabel_is_the_mean_over_labels():
    given = batch(clips=1, targets=[[1.0, 0.0, 1.0]])
    want = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2)) + math.log(2)) / 3
    assert parts(output("multilabel"), [[1.0, 2.0, 0.0]], given)["x"] == (pytest.approx(want, rel=1e-6), 1)


def test_regression_is_in_standard_deviations_of_the_training_cases():
    spec = output("regression", ("ef",), center=(50.0,), scale=(10.0,))
    given = batch(targets=[60.0, 40.0])
    assert parts(spec, [[55.0], [70.0]], given)["x"] == (pytest.approx(0.25 + 9.0), 2)
    huber = parts(spec, [[55.0], [70.0]], given, regression="huber", huber_delta=1.0)
    assert huber["x"][0] == pytest.approx(0.125 + 2.5)


def test_grades_are_thresholds():
    """Grade 1 of three: above the first threshold, not above the second."""
    given = batch(clips=1, targets=[1])
    want = math.log1p(math.exp(-2.0)) + math.log1p(math.exp(-1.0))
    assert parts(output("ordinal"), [[2.0, -1.0]], given)["x"] == (pytest.approx(want, rel=1e-6), 1)


def test_actions_are_scored_where_known_and_smoothed_everywhere():
    given = batch(clips=1, frames=3, frame_targets=[[0.0, 0.0, 1.0]], frame_targets_present=[[True, False, True]])
    logits = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 3.0]]])
    logs = logits.log_softmax(2)[0]
    found = parts(output("frame_classification", ("a", "b")), logits.tolist(), given, smoothing=0.5)
    assert found["x"] == (pytest.approx(-float(logs[0, 0] + logs[2, 1]), rel=1e-6), 2)
    jumps = (logs[1:] - logs[:-1]).abs().clamp(max=4).square().mean(1).sum()
    assert found["x/smoothing"] == (pytest.approx(0.5 * float(jumps), rel=1e-6), 2)


def test_padding_is_neither_known_nor_a_neighbour():
    given = batch(clips=1, frames=3, real=[[True, True, False]], frame_targets=[[0.0, 1.0, 1.0]])
    found = parts(output("frame_classification", ("a", "b")), [[[0.0, 0.0]] * 2 + [[50.0, -50.0]]], given)
    assert found["x"] == (pytest.approx(2 * math.log(2)), 2)
    assert found["x/smoothing"] == (pytest.approx(0.0, abs=1e-7), 1)


def test_a_video_score_is_the_mean_of_the_highest_sixteenth():
    scores = torch.arange(40.0)[None]
    real = torch.ones(1, 40, dtype=torch.bool)
    assert float(top_k_mean(scores, real)) == pytest.approx((39 + 38 + 37) / 3)  # ceil(40 / 16) = 3
    real[0, 35:] = False
    assert float(top_k_mean(scores, real)) == pytest.approx((34 + 33 + 32) / 3)
    assert float(top_k_mean(scores[:, :1], real[:, :1])) == 0.0


def test_an_anomaly_learns_from_frames_where_they_are_labelled_and_else_from_the_video():
    """Clip 0 has frame labels, clip 1 a label of the whole: neither is trained by the other's loss."""
    given = batch(
        frames=2,
        targets=[1.0, 1.0],
        frame_targets=[[0.0, 1.0], [0.0, 0.0]],
        frame_targets_present=[[True, True], [False, False]],
    )
    found = parts(output("anomaly", ("x",)), [[-1.0, 2.0], [0.5, 1.5]], given, mil_smoothness=0.1, mil_sparsity=0.2)
    assert found["x"] == (pytest.approx(math.log1p(math.exp(-1)) + math.log1p(math.exp(-2)), rel=1e-6), 2)
    assert found["x/video"] == (pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-6), 1)
    low, high = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-1.5))
    assert found["x/smoothness"] == (pytest.approx(0.1 * (high - low) ** 2, rel=1e-5), 1)
    assert found["x/sparsity"] == (pytest.approx(0.2 * (high + low), rel=1e-6), 1)


def test_normal_only_never_sees_an_abnormal_video():
    given = batch(clips=3, frames=2, targets=[0.0, 1.0, 0.0], targets_present=[True, True, False])
    found = parts(output("anomaly", ("x",)), [[0.1, 0.2], [5.0, 5.0], [0.3, 0.4]], given, name="normal-only")
    assert found == {"x": (pytest.approx(1.0), 4)}
    frames = batch(frames=2, frame_targets=[[0.0, 1.0], [0.0, 0.0]])
    found = parts(output("anomaly", ("x",)), [[9.0, 9.0], [0.5, 0.25]], frames, name="normal-only")
    assert found == {"x": (pytest.approx(0.75), 2)}


def test_a_score_that_is_an_error_and_labels_do_not_go_together():
    """Which networks and cases a loss takes, it says before training; a loss of masks has nothing to say."""
    plain, forecast = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    forecast.scores_error = True
    anomaly = (output("anomaly", ("x",)),)
    normal = [Case(case_id="a", group_id="a", frames=2, streams={}, targets={"x": 0.0})]
    by_task, normal_only = create_loss("by-task", anomaly), create_loss("normal-only", anomaly)
    assert isinstance(by_task, ChecksTraining)
    assert isinstance(normal_only, ChecksTraining)
    by_task.check_training(plain, normal)
    normal_only.check_training(forecast, normal)
    create_loss("by-task", (output("classification"),)).check_training(forecast, normal)  # not of its score
    with pytest.raises(ConfigError, match=r"^The loss 'by-task' learns 'x' from labels, and the score of this network"):
        by_task.check_training(forecast, normal)
    with pytest.raises(ConfigError, match=r"^The loss 'normal-only' is for networks whose anomaly score is an error"):
        normal_only.check_training(plain, normal)
    with pytest.raises(DataError, match=r"^The loss 'normal-only' learns from normal videos, and all 0 training cases"):
        normal_only.check_training(forecast, [])
    mask = OutputSpec(name="mask", task="segmentation", classes=("a",))
    assert not isinstance(create_loss("dice", (mask,)), ChecksTraining)


def test_labels_of_videos_longer_than_a_clip_are_remarked_on():
    """Each clip is taught the label of the whole; not so where the frames are labelled, or a clip holds the video."""
    output_, plain = output("anomaly", ("x",)), torch.nn.Linear(1, 1)
    loss = create_loss("by-task", (output_,))
    video = {"case_id": "a", "group_id": "a", "frames": 10, "streams": {}}
    weak = Case(**video, targets={"x": 1})
    frames = Case(**video, targets={"x": 1}, frame_targets={"x": (0.0,) * 9 + (1.0,)})
    plain.medvid = SimpleNamespace(frames=3, stride=2)
    assert loss.check_training(plain, [frames, Case(**video, targets={"x": 0})]) == []
    (note,) = loss.check_training(plain, [weak])
    assert note.startswith("x: videos of up to 10 frames are labelled as a whole, and each clip of 6 is taught")
    plain.medvid = SimpleNamespace(frames=5, stride=2)
    assert loss.check_training(plain, [weak]) == []


def test_a_batch_that_knows_nothing_costs_nothing():
    for task in ("classification", "regression", "ordinal", "anomaly"):
        classes = ("a", "b") if task != "anomaly" else ("x",)
        raw = [[1.0] * 4] * 2 if task == "anomaly" else [[1.0]] * 2 if task == "ordinal" else [[1.0, 2.0]] * 2
        found = parts(output(task, classes), raw, batch())
        assert all(value == (0.0, 0) for value in found.values()), (task, found)
