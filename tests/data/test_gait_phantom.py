"""The gait phantom: a body that walks, in pictures that tell the classes apart by just the cue that was asked for."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ks_2samp
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medvid_core.config import ClipConfig
from medvid_core.data.datasets.gait_phantom import index, read_video
from medvid_core.data.loader import load_sample
from medvid_core.data.phantoms import gait, walker
from medvid_core.data.phantoms.gait import CLASSES, GaitPhantomConfig, body, draw_patient, render, truth
from medvid_core.data.phantoms.walker import STANCE, Style, joints
from medvid_core.errors import ConfigError, DataError
from medvid_core.specs import ClipSpec

PHASE = np.arange(400) / 200
SMALL = (48, 72)
LIMBS = [f"{side}_{name}" for side in ("right", "left") for name in ("knee", "ankle", "toe", "elbow", "wrist")]


def walks(patients=2, **settings):
    config = GaitPhantomConfig(patients=patients, **settings)
    return [walk for number in range(patients) for walk in draw_patient(config, number)]


def one(**settings):
    return walks(1, videos_per_patient=(1, 1), **settings)[0]


def accuracy(features, walks_):
    """Accuracy of a logistic regression, ten-fold; every patient has one video."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return cross_val_score(model, features, [walk.label for walk in walks_], cv=10).mean()


# The body


@pytest.mark.parametrize("reach", [0.72, 0.87, 1.02])
def test_feet_on_the_ground_stay_there_and_no_foot_sinks_in(reach):
    found = joints(PHASE, Style(reach=reach))
    for side, late in (("right", 0.0), ("left", 0.5)):
        stride, within = np.divmod(PHASE - late, 1.0)
        for number in (0, 1):
            flat = (stride == number) & (within > 0.1) & (within < 0.38)
            assert flat.sum() > 50
            for name in ("heel", "ball", "toe"):
                assert np.ptp(found[f"{side}_{name}"][flat], axis=0) == pytest.approx([0, 0], abs=1e-9)
            rolls = (stride == number) & (within > 0.1) & (within < STANCE - 0.005)
            assert np.ptp(found[f"{side}_ball"][rolls], axis=0) == pytest.approx([0, 0], abs=1e-9)
            heel = (stride == 0) & (within < 0.05)
            assert np.ptp(found[f"{side}_heel"][heel], axis=0) == pytest.approx([0, 0], abs=1e-9)
        assert found[f"{side}_heel"][(within > 0.5) & (within < STANCE), 1].max() > 0.05  # it has left the ground
        lowest = np.min([found[f"{side}_{name}"][:, 1] for name in ("heel", "ball", "toe")], axis=0)
        assert lowest.min() > -1e-9
        assert lowest[within > STANCE + 0.05].max() > 0.01


def test_joint_angles_keep_near_the_normative_curves():
    """Hip and knee of natural cadence (Winter 1991): mean difference, range, and the knee bent most in early swing."""
    found = joints(PHASE, Style())
    hip, knee = walker.flexion_deg(found, "right")
    wanted_hip, wanted_knee, _ = walker.leg_angles(PHASE)
    assert np.abs(hip - wanted_hip).mean() < 4
    assert np.abs(knee - wanted_knee).mean() < 8
    assert np.ptp(hip) == pytest.approx(40, abs=6)
    assert 50 < knee.max() < 68
    assert 0.68 < PHASE[np.argmax(knee)] % 1.0 < 0.8
    assert knee.min() > -1e-6  # never bends the wrong way
    np.testing.assert_allclose(walker.flexion_deg(found, "left")[1][100:], knee[:-100], atol=1e-9)


def test_the_body_goes_on_without_jumps_and_its_bones_keep_their_length():
    style = Style(lean_deg=12.0)
    found = joints(PHASE, style)
    assert found["hips"][-1, 0] - found["hips"][0, 0] == pytest.approx(style.stride * PHASE[-1], abs=0.03)
    assert np.diff(found["hips"][:, 0]).min() > 0
    assert 0.02 < np.ptp(found["hips"][:, 1]) < 0.04
    for name, place in found.items():
        assert np.abs(np.diff(place, axis=0)).max() < 0.03, name
    for start, end, length in (
        ("hip", "knee", walker.THIGH), ("knee", "ankle", walker.SHANK), ("elbow", "wrist", walker.FOREARM),
    ):  # fmt: skip
        bone = np.hypot(*(found[f"right_{end}"] - found[f"right_{start}"]).T)
        assert bone == pytest.approx(np.full(400, length), rel=0.03)
    lean = found["shoulders"] - found["hips"]
    assert np.rad2deg(np.arctan2(*lean.T)) == pytest.approx(np.full(400, 12.0), abs=1.3)


def test_arms_swing_against_the_legs():
    found = joints(PHASE, Style())
    arm, leg = (found[f"right_{name}"][:, 0] - found["hips"][:, 0] for name in ("wrist", "ankle"))
    assert np.corrcoef(arm, leg)[0, 1] < -0.8


# Pictures


def test_a_planted_foot_does_not_slide_in_the_picture():
    for walk in walks(6, videos_per_patient=(1, 1)):
        found = gait.picture_joints(walk, walk.patient)
        for side, late in (("right", 0.0), ("left", 0.5)):
            phase = np.array(walk.patient.phase) - late
            for stride in np.unique(np.floor(phase)):
                here = (np.floor(phase) == stride) & (phase % 1.0 > 0.1) & (phase % 1.0 < STANCE)
                if here.sum() > 3:
                    assert np.ptp(found[f"{side}_ball"][here, 0]) < 1.0


def test_the_mask_is_where_the_patient_differs_from_the_room():
    walk = replace(one(assistants=1.0), noise=0.0)
    real = truth(walk)
    video = render(walk).astype(float)
    scene = gait._Scene(walk)
    scene.people, scene.joints, scene.grounds = scene.people[:1], scene.joints[:1], scene.grounds[:1]
    for frame in (0, 29, 59):
        # all but the lamps, and the shadow, which is below the shoes' upper edge
        without = scene.draw(frame).astype(float)
        changed = np.abs(video[frame] - without).max(-1) > 3
        above = np.arange(walk.size[0]) < walk.patient.ground - 0.12 * walk.size[0]
        inside, outside = real.mask[frame] > 0.5, real.mask[frame] < 0.01
        assert not changed[outside & above[:, None]].any()
        assert changed[inside].mean() > 0.9
        left, top, right, bottom = real.box[frame]
        assert inside[top:bottom, left:right].sum() == inside.sum()
        assert bottom - top == pytest.approx(walk.scale * walk.patient.looks.height_m, rel=0.1)
    assert set(np.unique(real.mask.sum((1, 2)) > 500)) == {True}
    for name in ("hips", "thorax", "right_knee", "left_ankle", "right_wrist"):
        column, row = real.joints[name].astype(int).T
        assert (real.mask[np.arange(60), row, column] > 0.5).all(), name


def test_the_walker_faces_where_he_goes_and_stays_in_the_picture():
    seen = set()
    for walk in walks(8):
        real = truth(walk)
        assert real.box[:, 0].min() > 0
        assert real.box[:, 2].max() < walk.size[1]
        assert real.box[:, 1].min() > 0
        assert real.box[:, 3].max() < walk.size[0]
        middle = real.joints["hips"][:, 0]
        assert (middle[-1] - middle[0]) * walk.direction > 60
        face = real.joints["chin"][:, 0] - real.joints["shoulders"][:, 0]
        assert (face * walk.direction > 0).all()
        seen.add(walk.direction)
    assert seen == {-1, 1}


def test_assistants_are_taller_and_keep_pace_or_stand():
    made = walks(30, assistants=1.0)
    assert {walk.assistant.stands for walk in made} == {True, False}
    for walk in made:
        helper, patient = (gait.picture_joints(walk, person) for person in (walk.assistant, walk.patient))
        assert np.ptp(helper["crown"][:, 1]) < 0.05 * walk.size[0]
        assert helper["crown"][:, 1].mean() < patient["crown"][:, 1].mean()
        apart = helper["hips"][:, 0] - patient["hips"][:, 0]
        if walk.assistant.stands:
            assert np.ptp(helper["hips"]) == pytest.approx(np.ptp(helper["hips"][0]))
        else:
            assert np.abs(apart).min() > 0.4 * walk.scale
            assert np.ptp(apart) < 0.2 * walk.scale
    assert all(walk.assistant is None for walk in walks(30, assistants=0.0))


@pytest.mark.parametrize("size", [(48, 72), (96, 96), (160, 240)])
def test_frames_are_drawn_one_by_one_and_small_videos_are_kept(size):
    walk = one(size=size, frames=20)
    whole = render(walk)
    assert whole.shape == (20, *size, 3)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(render(walk, [7, 0, 7]), whole[[7, 0, 7]])
    np.testing.assert_array_equal(gait._Scene(walk).draw(7), whole[7])
    hits = gait._render_cached.cache_info().hits
    render(walk, [3])
    assert gait._render_cached.cache_info().hits - hits == (3 * 20 * size[0] * size[1] <= 1_500_000)


def test_people_and_rooms_differ_between_patients_and_rooms_are_shared_by_videos():
    config = GaitPhantomConfig(videos_per_patient=(2, 2), assistants=0.0)
    (first, again), (other, _) = (draw_patient(config, number) for number in (0, 1))
    assert first.patient.looks == again.patient.looks != other.patient.looks
    rooms = [gait._Scene(walk).room for walk in (first, again, other)]
    np.testing.assert_array_equal(rooms[0], rooms[1])
    assert np.abs(rooms[0] - rooms[2]).mean() > 0.02
    assert first.patient.phase != again.patient.phase


# Cases


def test_cases_are_what_the_contract_says():
    config = GaitPhantomConfig(patients=12, frames=20, size=SMALL)
    made = index(None, config)
    (output,) = made.outputs
    assert (output.name, output.task, output.classes) == ("diagnosis", "classification", CLASSES)
    assert CLASSES == ("control", "deformity")
    groups = {}
    for case in made.cases:
        assert case.knows(output)
        assert (case.frames, case.fps, case.view) == (20, 30.0, "lateral")
        assert case.stratum == CLASSES[case.targets["diagnosis"]]
        groups.setdefault(case.group_id, []).append(case.targets["diagnosis"])
    assert len(groups) == 12
    assert all(len(set(labels)) == 1 and 2 <= len(labels) <= 3 for labels in groups.values())
    assert {len(labels) for labels in groups.values()} == {2, 3}
    assert sum(labels[0] for labels in groups.values()) == 6  # balanced
    assert len({case.case_id for case in made.cases}) == len(made.cases)
    case = made.cases[-1]
    assert set(case.metadata) == {"direction", "assistant", "lean_deg", "cadence_steps_min", "speed_m_s"}
    assert 85 < float(case.metadata["cadence_steps_min"]) < 125
    video = read_video(case.streams["video"], range(20))
    np.testing.assert_array_equal(read_video(case.streams["video"], [5, 0]), video[[5, 0]])
    assert pickle.loads(pickle.dumps(case)) == case  # it travels to loading workers
    sample = load_sample(
        case, np.arange(8), np.ones(8, bool), ClipConfig(frames=8, size=(48, 48)), ClipSpec(size=(48, 48))
    )
    assert sample["video"].shape == (8, 3, 48, 48)
    assert sample["targets"]["diagnosis"] == case.targets["diagnosis"]


def test_a_case_is_a_pure_function_of_the_configuration():
    first = index(None, GaitPhantomConfig(patients=3, size=SMALL)).cases
    assert first == index(None, GaitPhantomConfig(patients=3, size=SMALL)).cases
    assert first[: len(index(None, GaitPhantomConfig(patients=2, size=SMALL)).cases)] == (
        index(None, GaitPhantomConfig(patients=2, size=SMALL)).cases
    )  # whatever else is drawn
    assert first != index(None, GaitPhantomConfig(patients=3, size=SMALL, seed=1)).cases
    walk = first[0].streams["video"].options
    np.testing.assert_array_equal(gait._Scene(walk).draw(3), gait._Scene(walk).draw(3))


# The laboratory


def test_in_the_laboratory_the_arms_move_with_the_trunk_alone():
    found = joints(PHASE, Style(lean_deg=10.0, arms_held=True))
    trunk = np.arctan2(*(found["shoulders"] - found["hips"]).T)
    for side in ("right", "left"):
        for name in ("elbow", "wrist", "fingers"):
            x, y = (found[f"{side}_{name}"] - found["shoulders"]).T
            # seen along the trunk it stays where it is
            along, ahead = x * np.sin(trunk) + y * np.cos(trunk), x * np.cos(trunk) - y * np.sin(trunk)
            assert np.ptp(along) < 1e-9
            assert np.ptp(ahead) < 1e-9
            assert ahead.min() > 0
    legs = [name for name in found if name.endswith(("knee", "ankle", "toe"))]
    swings = joints(PHASE, Style(lean_deg=10.0))
    assert all(np.array_equal(found[name], swings[name]) for name in legs)


def test_the_laboratory_has_a_plain_backdrop_and_the_same_walkers():
    there, here = one(setting="laboratory", assistants=0.0), one(assistants=0.0)
    assert len(np.unique(gait._Scene(there).room.reshape(-1, 3), axis=0)) == 1
    assert replace(there, setting="room", patient=here.patient) == here
    assert there.patient.phase == here.patient.phase


# The cues


def poses(walk, frames=slice(None)):
    """Hip and knee flexion of both sides [4, T]."""
    found = body(walk.patient)
    return np.concatenate([walker.flexion_deg(found, side) for side in ("right", "left")])[:, frames]


def bag(walk, frames=slice(None)):
    """What a model of shuffled frames could know of the poses: how often each angle is shown, moments, products."""
    shown = poses(walk, frames)
    scaled = shown / 30.0
    parts = [np.histogram(angle, bins=12, range=(-25, 70))[0] / angle.size for angle in shown]
    return np.concatenate([*parts, scaled.std(1), (scaled @ scaled.T / scaled.shape[1])[np.triu_indices(4)]])


def steps(walk, frames=slice(None)):
    """Size of the motion of limbs against the hips from frame to frame, over its mean: mean, spread and extremes."""
    found = body(walk.patient)
    moved = [np.hypot(*np.diff((found[name] - found["hips"])[frames], axis=0).T) for name in LIMBS]
    size = np.mean(moved, axis=0)
    return np.array([size.std(), size.min(), size.max()]) / size.mean()


def chance(cases, sigmas=2.6):
    """Limits within which the accuracy of a guess lies in 99 of 100 draws."""
    return 0.5 - sigmas * 0.5 / np.sqrt(cases), 0.5 + sigmas * 0.5 / np.sqrt(cases)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [slice(None), slice(14, 46, 2)], ids=["video", "clip"])
def test_the_dynamic_cue_is_in_the_order_of_the_frames_and_not_in_the_frames(frames):
    made = walks(400, cue="dynamic", videos_per_patient=(1, 1))
    low, high = chance(len(made))
    assert low < accuracy([bag(walk, frames) for walk in made], made) < high
    assert accuracy([steps(walk, frames) for walk in made], made) > 0.93


def test_with_the_dynamic_cue_alone_all_that_a_frame_shows_is_drawn_alike():
    made = walks(600, cue="dynamic", videos_per_patient=(1, 1))
    label = np.array([walk.label for walk in made])

    def alike(values):
        values = np.asarray(values, dtype=float)
        return ks_2samp(values[label == 0], values[label == 1]).pvalue > 0.005

    assert alike([walk.patient.style.lean_deg for walk in made])
    assert alike([walk.cycle_s for walk in made])
    assert alike([walk.speed_m_s for walk in made])
    assert alike([walk.scale for walk in made])
    assert alike([walk.patient.phase[30] % 1.0 for walk in made])
    ways = [body(walk.patient)["hips"][[0, -1], 0] for walk in made]
    assert alike([start for start, _ in ways])
    assert alike([end - start for start, end in ways])
    # as far ahead of an even walk, and behind it, in either class
    even = np.arange(60) / 30
    lags = [np.array(walk.patient.phase) * walk.cycle_s - even for walk in made]
    spread = np.array([lag.std() for lag in lags])
    assert spread[label == 0].mean() == pytest.approx(spread[label == 1].mean(), rel=0.1)
    for walk in made:
        assert np.diff(walk.patient.phase).min() > 0  # nobody steps back


@pytest.mark.slow
def test_with_the_static_cue_alone_only_the_lean_differs():
    made = walks(400, cue="static", videos_per_patient=(1, 1))
    low, high = chance(len(made))
    assert low < accuracy([steps(walk) for walk in made], made) < high
    assert low < accuracy([bag(walk) for walk in made], made) < high
    lean = np.array([[walk.patient.style.lean_deg] for walk in made])
    assert 0.92 < accuracy(lean, made) < 0.98
    label = np.array([walk.label for walk in made])
    assert lean[label == 0].mean() == pytest.approx(4.0, abs=0.5)
    assert lean[label == 1].mean() == pytest.approx(12.0, abs=0.5)


def test_both_cues_are_there_by_default_and_less_of_them_where_it_is_difficult():
    easy, hard = (walks(300, videos_per_patient=(1, 1), difficulty=level) for level in (0.0, 1.0))
    assert accuracy([steps(walk) for walk in easy], easy) > 0.95
    assert accuracy([[walk.patient.style.lean_deg] for walk in easy], easy) > 0.92
    assert 0.55 < accuracy([[walk.patient.style.lean_deg] for walk in hard], hard) < 0.8
    assert accuracy([steps(walk) for walk in hard], hard) > 0.6

    def surge(made):
        return np.mean([steps(walk)[0] for walk in made if walk.label == 1])

    assert surge(hard) < 0.8 * surge(easy)


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cue": "statik"}, r"gait phantom: cue='statik' is unknown; allowed: both, static, dynamic. Did you mean"),
        ({"setting": "lab"}, r"gait phantom: setting='lab' is unknown; allowed: room, laboratory\."),
        ({"patients": 0}, r"gait phantom: patients=0 is out of range; allowed: 1 to 1000000\."),
        ({"frames": 1}, r"gait phantom: frames=1 is out of range; allowed: 2 to 150\."),
        ({"size": (32, 64)}, r"gait phantom: size=32 is out of range; allowed: 48 to 2048\."),
        ({"size": (64, 64, 3)}, r"gait phantom: size=\(64, 64, 3\) must be two numbers\."),
        ({"videos_per_patient": (3, 2)}, r"gait phantom: videos_per_patient=\(3, 2\) must be \(fewest, most\)\."),
        ({"difficulty": float("nan")}, r"gait phantom: difficulty=nan is out of range; allowed: 0.0 to 1.0\."),
        ({"assistants": 1.5}, r"gait phantom: assistants=1.5 is out of range"),
        ({"seed": -1}, r"gait phantom: seed=-1 is out of range"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        GaitPhantomConfig(**settings)


def test_there_is_no_folder_to_read(tmp_path):
    with pytest.raises(DataError, match=r"The data set gait-phantom is drawn, not read: it has no use for the folder"):
        index(tmp_path, GaitPhantomConfig())
