"""The motion phantom: what a frame shows says nothing of the answer, what changes between frames does."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from medvid_core.config import ClipConfig
from medvid_core.data.datasets import motion_phantom
from medvid_core.data.datasets.motion_phantom import OUTPUTS, index, read_video, shuffled
from medvid_core.data.loader import load_sample
from medvid_core.data.phantoms import motion
from medvid_core.data.phantoms.motion import LENGTHS, MotionPhantomConfig, draw_anatomy
from medvid_core.errors import ConfigError, DataError
from medvid_core.specs import ClipSpec

SMALL = (32, 32)


def cases(question, patients=6, **settings_):
    return index(None, MotionPhantomConfig(question=question, patients=patients, **settings_)).cases


def video(case):
    return read_video(case.streams["video"], range(case.frames))


def recording(case, visit=0):
    return case.streams["video"].options.recordings[visit]


def cells(frames, side=16):
    """Mean grey of the cells of a coarse grid, [T, side * side]: what a linear model of single frames is given."""
    t, h, w = frames.shape
    return frames.reshape(t, side, h // side, side, w // side).mean((2, 4)).reshape(t, -1) / 255.0


def ridge(features, wanted, groups):
    """Predictions [N,D] of ridge regression on standardised features, five-fold by group."""
    names, number = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(names))[number] % 5
    x = (features - features.mean(0)) / (features.std(0) + 1e-9)
    predicted = np.zeros_like(wanted)
    for k in range(5):
        train, test = fold != k, fold == k
        mean = wanted[train].mean(0)
        gram = x[train] @ x[train].T + 0.1 * x.shape[1] * np.eye(train.sum())
        predicted[test] = x[test] @ (x[train].T @ np.linalg.solve(gram, wanted[train] - mean)) + mean
    return predicted


def motion_features(frames):
    """Size and skewness of the change from frame to frame, cell by cell."""
    change = np.diff(cells(frames), axis=0)
    return np.concatenate([np.abs(change).mean(0), 100 * (change**3).mean(0)])


# All questions


@pytest.mark.parametrize("question", LENGTHS)
def test_cases_are_what_the_contract_says(question):
    config = MotionPhantomConfig(question=question, patients=4, size=(40, 48))
    made = index(None, config)
    assert made.outputs == (OUTPUTS[question],)
    output = made.outputs[0]
    assert len(made.cases) == (12 if question == "order" else 4)
    assert len({case.case_id for case in made.cases}) == len(made.cases)
    assert len({case.group_id for case in made.cases}) == 4
    frames, _ = LENGTHS[question]
    for case in made.cases:
        visits = len(case.streams["video"].options.recordings)
        assert case.frames == frames * visits
        assert (visits > 1) == (question == "progression")
        assert case.knows(output)
        assert set(case.targets) <= {output.name}
        assert all(len(values) == case.frames for values in case.frame_targets.values())
    case = made.cases[-1]
    whole = video(case)
    assert whole.shape == (case.frames, 40, 48)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(read_video(case.streams["video"], [5, 0, 5]), whole[[5, 0, 5]])
    assert pickle.loads(pickle.dumps(case)) == case  # it travels to loading workers


@pytest.mark.parametrize("question", LENGTHS)
def test_a_clip_of_the_loader_holds_all_frames_and_the_target(question):
    case = cases(question, 1, size=SMALL)[0]
    clip = ClipConfig(frames=case.frames, size=SMALL)
    sample = load_sample(case, np.arange(case.frames), np.ones(case.frames, bool), clip, ClipSpec())
    name = OUTPUTS[question].name
    assert sample["video"].shape == (case.frames, 3, *SMALL)
    assert name in (sample["frame_targets"] if question in ("phase", "stall", "arrhythmia") else sample["targets"])


@pytest.mark.parametrize("question", LENGTHS)
def test_a_case_is_a_pure_function_of_the_configuration(question):
    first, again = cases(question, 3, size=SMALL), cases(question, 3, size=SMALL)
    assert first == again
    assert first[: len(cases(question, 2, size=SMALL))] == cases(question, 2, size=SMALL)  # whatever else is drawn
    assert first != cases(question, 3, size=SMALL, seed=1)
    one = recording(first[0])
    np.testing.assert_array_equal(motion._render(one), motion._render(recording(again[0])))
    assert motion.render(one) is motion.render(recording(again[0]))  # remembered
    assert not motion.render(one).flags.writeable


def test_what_a_single_frame_shows_is_drawn_apart_from_the_ejection_fraction():
    """The mean volume of a heart, over its beat, does not go with how much it ejects, nor does its wall."""
    anatomy = draw_anatomy(np.random.default_rng(0), MotionPhantomConfig())
    weak, strong = anatomy.ventricle(30.0), anatomy.ventricle(70.0)
    for ventricle, wanted in ((weak, 30.0), (strong, 70.0)):
        edv, esv = ventricle.volume_ml(np.array([0.0, 1.0], np.float32))
        assert 100 * (edv - esv) / edv == pytest.approx(wanted, abs=0.01)
    made = cases("ejection_fraction", 200, frames=32)
    ejects = np.array([case.targets["ejection_fraction"] for case in made])
    hearts = [recording(case).heart for case in made]
    volumes = [
        np.mean(heart.esv_ml + np.array(recording(case).fullness) * (heart.edv_ml - heart.esv_ml))
        for case, heart in zip(made, hearts, strict=True)
    ]
    assert abs(np.corrcoef(ejects, volumes)[0, 1]) < 0.2
    assert abs(np.corrcoef(ejects, [heart.depth_mm for heart in hearts])[0, 1]) < 0.2
    assert np.ptp(volumes) > 50
    mean = 0.45  # activation near the mean volume
    walls = [v.septum_mm * (2 * v.radius_mm + v.septum_mm) * v.length(np.float32(0)) for v in (weak, strong)]
    assert walls[0] == pytest.approx(walls[1], rel=1e-4)  # the same muscle
    assert weak.radius_mm * (1 - weak.contraction * mean) == pytest.approx(
        strong.radius_mm * (1 - strong.contraction * mean), rel=0.02
    )


def test_more_noise_can_be_asked_for():
    quiet, loud = (video(cases("order", 1, size=SMALL, noise_db=level)[0])[0] for level in (-20.0, 12.0))
    assert loud[quiet > 0].mean() > quiet[quiet > 0].mean() + 10


# Order


def test_the_three_orders_hold_the_same_frames():
    for number in range(4):
        physiologic, reversed_, mixed = cases("order", 4, size=SMALL)[3 * number : 3 * number + 3]
        assert [case.targets["order"] for case in (physiologic, reversed_, mixed)] == [0, 1, 2]
        assert physiologic.group_id == reversed_.group_id == mixed.group_id
        clips = [video(case) for case in (physiologic, reversed_, mixed)]
        frames = [sorted(frame.tobytes() for frame in clip) for clip in clips]
        assert frames[0] == frames[1] == frames[2]
        assert len(set(frames[0])) == 16
        np.testing.assert_array_equal(clips[0][::-1], clips[1])
        assert not np.array_equal(clips[2], clips[0])
        assert {physiologic.fps, physiologic.spacing} == {mixed.fps, mixed.spacing}


def test_an_order_clip_is_a_whole_beat_from_anywhere():
    starts = []
    for case in cases("order", 40)[::3]:
        fullness = np.array(recording(case).fullness)
        assert fullness.max() > 0.97
        assert fullness.min() < 0.03
        turns = np.roll(fullness, -int(np.argmax(fullness)))
        assert (np.diff(turns[: int(np.argmin(turns)) + 1]) <= 1e-9).all()  # one fall, one rise
        assert (np.diff(turns[int(np.argmin(turns)) :]) >= -1e-9).all()
        starts.append(int(np.argmax(fullness)))
    assert len(set(starts)) > 8


@given(frames=st.integers(8, 64), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_shuffled_order_is_no_beat_at_any_speed_from_any_start(frames, seed):
    order = shuffled(np.random.default_rng(seed), frames)
    assert sorted(order) == list(range(frames))
    for step in range(1, frames):  # 1: as it was; -1: reversed; others: faster
        kept = sum((b - a) % frames == step for a, b in itertools.pairwise(order))
        assert kept <= max(2, frames // 4)


def test_order_is_at_chance_without_time_and_above_with_it():
    made = cases("order", 40, size=SMALL, ejection_fraction=(50.0, 70.0))
    clips, groups = [video(case) for case in made], [case.group_id for case in made]
    truth = np.array([case.targets["order"] for case in made])
    still = np.array([np.concatenate([cells(clip).mean(0), cells(clip).std(0)]) for clip in clips])
    # The three cases of a patient are alike, so that whatever is predicted for them is right for one of three.
    np.testing.assert_allclose(still[0::3], still[1::3], atol=1e-12)
    np.testing.assert_allclose(still[0::3], still[2::3], atol=1e-12)
    moving = np.array([motion_features(clip) for clip in clips])
    accuracy = (ridge(moving, np.eye(3)[truth], groups).argmax(1) == truth).mean()
    assert accuracy > 0.5


# Ejection fraction


def test_the_ejection_fraction_is_read_off_motion_not_off_frames():
    made = cases("ejection_fraction", 100, size=SMALL)
    clips, groups = [video(case) for case in made], [case.group_id for case in made]
    truth = np.array([[case.targets["ejection_fraction"]] for case in made])

    def r2(features):
        return 1 - np.sum((ridge(np.array(features), truth, groups) - truth) ** 2) / np.sum((truth - truth.mean()) ** 2)

    assert r2([cells(clip)[0] for clip in clips]) < 0.1
    assert r2([cells(clip).mean(0) for clip in clips]) < 0.1
    assert r2([np.abs(np.diff(cells(clip), axis=0)).mean(0) for clip in clips]) > 0.35


# Arrhythmia and stall


@pytest.mark.parametrize("question", ["arrhythmia", "stall"])
def test_half_of_the_clips_are_abnormal_and_frames_agree_with_the_clip(question):
    made = cases(question, 60)
    labels = [case.targets[question] for case in made]
    assert sum(labels) == pytest.approx(30, abs=1)
    for case in made:
        frames = case.frame_targets[question]
        assert set(frames) <= {0.0, 1.0}
        assert max(frames) == case.targets[question] == int(case.stratum != "normal")
    assert not any(case.targets[question] for case in cases(question, 20, abnormal_fraction=0.0))
    assert all(case.targets[question] for case in cases(question, 20, abnormal_fraction=1.0))


def starts_of_systole(case):
    """Frames at which a full or half full ventricle begins to empty."""
    fullness = np.array(recording(case).fullness)
    falls = np.diff(fullness) < -0.02
    return [k + 1 for k in range(1, len(falls)) if falls[k] and not falls[k - 1]]


def test_an_early_beat_is_followed_by_a_pause_and_lies_in_the_clip():
    early = [case for case in cases("arrhythmia", 100, frames=120) if case.stratum == "premature"]
    assert len(early) > 15
    assert sum(max(np.flatnonzero(case.frame_targets["arrhythmia"])) < 112 for case in early) > 10
    for case in early:
        marked = np.flatnonzero(case.frame_targets["arrhythmia"])
        np.testing.assert_array_equal(marked, np.arange(marked[0], marked[-1] + 1))  # one beat
        assert marked[-1] < case.frames - 1
        assert len(marked) == pytest.approx(30 * (2 - 0.725), abs=4)  # longer than the usual 30 frames
        assert marked[0] > 17  # the R peak before it is in the clip
        fullness = np.array(recording(case).fullness)
        assert fullness[marked[0]] < 0.9  # cut short
        gaps = np.diff(starts_of_systole(case))
        assert gaps.min() < 26
        # the beat after the pause is seen where the clip does not end with its R peak
        assert gaps.max() > 33 or marked[-1] > case.frames - 8


def test_the_intervals_of_an_irregular_rhythm_differ_and_those_of_a_normal_one_do_not():
    spread = {"normal": [], "irregular": []}
    for case in cases("arrhythmia", 60, frames=240, beats=8):
        if case.stratum in spread:
            spread[case.stratum].append(np.std(np.diff(starts_of_systole(case))) / 30)
    assert max(spread["normal"]) < 0.06
    assert np.median(spread["irregular"]) > 0.12


@pytest.mark.parametrize(("frames", "beats"), [(48, 4), (16, 2), (90, 3)])
def test_a_stalled_heart_stands_still_at_a_volume_that_every_beat_passes(frames, beats):
    for case in cases("stall", 40, frames=frames, beats=beats):
        fullness = np.array(recording(case).fullness)
        marked = np.flatnonzero(case.frame_targets["stall"])
        if not len(marked):
            continue
        np.testing.assert_array_equal(marked, np.arange(marked[0], marked[-1] + 1))
        assert len(marked) >= max(3, round(0.25 * frames / beats))
        assert np.ptp(fullness[marked]) == 0
        assert 0.15 < fullness[marked[0]] < 0.7
        assert fullness[marked[0] - 1] != fullness[marked[0]] != fullness[marked[-1] + 1]
        clip = video(case)[[marked[0], marked[1]]] if frames == 16 else None
        assert clip is None or not np.array_equal(clip[0], clip[1])  # noise and the probe go on


# Phase


def test_systole_is_where_the_ventricle_ejects_and_the_valve_does_not_tell():
    for case in cases("phase", 20):
        one, phases = recording(case), np.array(case.frame_targets["phase"])
        assert len(set(one.opening)) == 1
        change = np.diff(np.array(one.fullness))
        assert (phases[:-1][change < -0.05] == 0).all()
        assert (phases[:-1][change > 0.02] == 1).all()
        assert 0.25 < (phases == 0).mean() < 0.55


# Progression


def test_a_history_leads_to_the_next_visit():
    made = cases("progression", 80)
    for case in made:
        ((name, past),) = case.history.items()
        visits = len(case.streams["video"].options.recordings)
        assert name == "next_ejection_fraction"
        assert len(past) == visits == int(case.metadata["visits"])
        times = np.array(case.times_s).reshape(visits, -1)
        np.testing.assert_allclose(times[:, 0], [when for when, _ in past])
        np.testing.assert_allclose(np.diff(times, axis=1), 1 / case.fps, rtol=1e-6)
        assert (np.diff(times[:, 0]) > 80 * 86_400).all()
        assert float(case.visit_time) - times[-1, 0] == pytest.approx(180 * 86_400, abs=1)
        assert 15 <= case.targets[name] <= 75
    assert {int(case.metadata["visits"]) for case in made} == {2, 3, 4, 5}


def test_the_drift_shows_in_the_visits_and_measuring_blurs_it():
    drifts, slopes, errors = [], [], []
    for case in cases("progression", 200, visit_noise=0.0, visits=(4, 4)):
        seen = [recording(case, visit).ejection_fraction for visit in range(4)]
        when, measured = zip(*case.history["next_ejection_fraction"], strict=True)
        course = [*seen, case.targets["next_ejection_fraction"]]
        if min(course) > 15.1 and max(course) < 74.9:  # nothing clipped
            years = np.array([*when, float(case.visit_time)]) / (365.25 * 86_400)
            drifts.append(np.polyfit(years, course, 1)[0])
            slopes.append(float(case.metadata["slope_per_year"]))
            errors += list(np.subtract(measured, seen))
    np.testing.assert_allclose(drifts, slopes, atol=0.05)
    assert np.std(errors) == pytest.approx(4.0, rel=0.15)
    assert np.mean(slopes) == pytest.approx(-4.0, abs=2.0)


# Settings


@pytest.mark.parametrize(
    ("settings_", "text"),
    [
        (
            {"question": "ordre"},
            "motion phantom: question='ordre' is unknown; allowed: order, ejection_fraction, arrhythmia, stall, phase, "
            "progression. Did you mean 'order'?",
        ),
        ({"patients": 0}, "motion phantom: patients=0 is out of range; allowed: 1 to 1000000."),
        (
            {"frames": 12, "beats": 2},
            "motion phantom: frames=12 is out of range; allowed: 16 to 10000 (8 frames for each of 2 beats).",
        ),
        (
            {"question": "arrhythmia", "beats": 2},
            "motion phantom: beats=2 is out of range; allowed: 3 to 1000.",
        ),
        ({"size": (64, 16)}, "motion phantom: size=16 is out of range; allowed: 32 to 2048."),
        ({"size": (64, 64, 3)}, "motion phantom: size=(64, 64, 3) must be two numbers."),
        ({"seed": -1}, "motion phantom: seed=-1 is out of range; allowed: 0 to 9223372036854775807."),
        (
            {"heart_rate_bpm": (60.0, 180.0)},
            "motion phantom: heart_rate_bpm=180.0 is out of range; allowed: 40.0 to 90.0.",
        ),
        (
            {"ejection_fraction": (60.0, 40.0)},
            "motion phantom: ejection_fraction=(60.0, 40.0) must be (lowest, highest).",
        ),
        ({"visits": (1, 3)}, "motion phantom: visits=1 is out of range; allowed: 2 to 100."),
        (
            {"noise_db": float("nan")},
            "motion phantom: noise_db=nan is out of range; allowed: -40.0 to 20.0.",
        ),
        ({"measurement_noise": -1.0}, "motion phantom: measurement_noise=-1.0 is out of range; allowed: 0.0 to 50.0."),
        (
            {"vendor": "astor"},
            "motion phantom: vendor='astor' is unknown; allowed: mixed, aster, borea, cygna, delos. "
            "Did you mean 'aster'?",
        ),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(settings_, text):
    with pytest.raises(ConfigError) as error:
        MotionPhantomConfig(**settings_)
    assert str(error.value) == text


def test_the_settings_travel_through_yaml():
    config = MotionPhantomConfig(question="stall", size=(48, 32), frames=40)
    plain = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config))))
    assert MotionPhantomConfig(**plain) == config


def test_a_folder_is_refused():
    with pytest.raises(DataError, match="it has no use for the folder"):
        motion_phantom.index(Path("somewhere"), MotionPhantomConfig())


def test_indexing_imports_no_torch():
    code = (
        "import sys; from medvid_core.data.datasets.motion_phantom import index; "
        "from medvid_core.data.phantoms.motion import MotionPhantomConfig as C; "
        "index(None, C(patients=1)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
