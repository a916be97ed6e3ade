"""The echo phantom: exact, repeatable, physiological, and readable off the picture."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvid_core.data.phantoms import echo
from medvid_core.data.phantoms.echo import CLASSES, VENDORS, EchoPhantomConfig, draw_case, render_case
from medvid_core.data.phantoms.heart import valve_opening, volume_curve
from medvid_core.errors import ConfigError

CONFIG = EchoPhantomConfig()
SOME = [draw_case(CONFIG, index) for index in range(10)]


def simpson_ml(mask, spacing_mm, discs=20):
    """Volume of one mask by discs across its own longest axis, as one measures it by hand."""
    points = np.argwhere(mask == 1) * np.array(spacing_mm)
    centred = points - points.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = centred @ axis
    half_pixel = spacing_mm[0] / 2
    edges = np.linspace(along.min() - half_pixel, along.max() + half_pixel, discs + 1)
    counts, _ = np.histogram(along, edges)
    height = edges[1] - edges[0]
    diameters = counts * spacing_mm[0] * spacing_mm[1] / height
    return float((np.pi / 4 * diameters**2 * height).sum() / 1000.0)


def areas(mask, label):
    return (mask == label).sum((1, 2))


@given(index=st.integers(0, 39), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=8, deadline=None)
def test_a_case_is_a_pure_function_of_config_and_index(index, seed):
    config = EchoPhantomConfig(seed=seed, frames=3, size=(48, 64))
    case = draw_case(config, index)
    assert case == draw_case(EchoPhantomConfig(seed=seed, frames=3, size=(48, 64)), index)
    assert hash(case) == hash(draw_case(config, index))
    for first, second in zip(echo._render(case), echo._render(case), strict=True):
        np.testing.assert_array_equal(first, second)


def test_cases_seeds_and_frames_differ():
    video, _ = render_case(SOME[0])
    assert not np.array_equal(video, render_case(SOME[1])[0])
    assert not np.array_equal(video, render_case(draw_case(EchoPhantomConfig(seed=1), 0))[0])
    assert all(not np.array_equal(video[k], video[k + 1]) for k in range(len(video) - 1))


def test_the_length_of_the_chunks_does_not_change_the_masks(monkeypatch):
    mask = echo._render(SOME[0])[1]
    monkeypatch.setattr(echo, "_CHUNK", 1)
    np.testing.assert_array_equal(mask, echo._render(SOME[0])[1])


@given(
    frames=st.integers(1, 9),
    height=st.integers(32, 90),
    width=st.integers(32, 90),
    fps=st.floats(5.0, 80.0),
    vendor=st.sampled_from(("mixed", *VENDORS)),
    rate=st.floats(30.0, 200.0),
)
@settings(max_examples=25, deadline=None)
def test_any_config_gives_clips_of_the_promised_kind(frames, height, width, fps, vendor, rate):
    config = EchoPhantomConfig(frames=frames, size=(height, width), fps=fps, vendor=vendor, heart_rate_bpm=(rate, rate))
    case = draw_case(config, 3)
    video, mask = render_case(case)
    assert video.shape == mask.shape == (frames, height, width)
    assert video.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= set(range(len(CLASSES)))
    assert 0 <= case.ed_frame < frames
    assert 0 <= case.es_frame < frames
    volumes = case.volumes_ml()
    assert volumes[case.ed_frame] == pytest.approx(volumes.max())
    assert not video.flags.writeable


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.case_id)
def test_masks_follow_the_beat(case):
    _, mask = render_case(case)
    cavity = areas(mask, 1)
    assert set(np.unique(mask)) == {0, 1, 2}
    # The volume is flat in the isovolumic phases, where probe motion moves a few pixels over the borders.
    assert cavity[case.ed_frame] >= 0.98 * cavity.max()
    assert cavity[case.es_frame] <= 1.02 * cavity.min() + 2
    assert cavity[case.es_frame] < 0.93 * cavity[case.ed_frame]
    volumes = case.volumes_ml()
    assert np.argmin(volumes) == case.es_frame or volumes.min() == pytest.approx(volumes[case.es_frame])


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.case_id)
def test_ejection_fraction_measured_on_masks_is_the_stated_one(case):
    _, mask = render_case(case)
    edv = simpson_ml(mask[case.ed_frame], case.spacing_mm)
    esv = simpson_ml(mask[case.es_frame], case.spacing_mm)
    assert edv == pytest.approx(case.edv_ml, rel=0.08)
    assert 100 * (edv - esv) / edv == pytest.approx(case.ejection_fraction, abs=4.0)
    assert case.ejection_fraction == pytest.approx(100 * (case.edv_ml - case.esv_ml) / case.edv_ml)


def test_ejection_fraction_spreads_over_patients_and_goes_with_the_abnormal_wall():
    cases = [draw_case(EchoPhantomConfig(cases=200), index) for index in range(200)]
    healthy = [c.ejection_fraction for c in cases if not c.abnormal]
    ill = [c.ejection_fraction for c in cases if c.abnormal]
    assert len(ill) == pytest.approx(80, abs=2)
    assert min(ill) < 23
    assert max(healthy) > 68
    assert max(ill) <= 51
    assert min(healthy) >= 51
    assert {c.abnormal_wall for c in cases if c.abnormal} == {"septal", "lateral", "apical"}
    assert {c.vendor for c in cases} == set(VENDORS)


@pytest.mark.parametrize("wall", ["septal", "lateral", "apical"])
def test_an_akinetic_wall_moves_and_thickens_less_than_the_others(wall):
    ventricle = replace(SOME[0].ventricle, wall=wall, severity=1.0)
    depth_mm = np.array([0.15 if wall == "apical" else 0.55, 0.7 if wall == "apical" else 0.55])
    excursion, thickening = {}, {}
    for side, level in (("septal", depth_mm[0]), ("lateral", depth_mm[1])):
        across = np.linspace(0, 60, 2401, dtype=np.float32)[None, None] * (1 if side == "lateral" else -1)
        inner, width = [], []
        for activation in (0.0, 1.0):
            state = np.full((1, 1, 1), activation, np.float32)
            mask = ventricle.mask(across, level * ventricle.length(state), state)[0, 0]
            inner.append((mask == 1).sum() * 0.025)
            width.append((mask == 2).sum() * 0.025)
        excursion[side], thickening[side] = inner[0] - inner[1], width[1] - width[0]
    still = "septal" if wall == "apical" else wall  # the apical case compares a high with a low level
    moving = "lateral" if still == "septal" else "septal"
    assert excursion[still] < 0.2 * excursion[moving]
    assert thickening[still] < 0.5 * thickening[moving]


def test_healthy_myocardium_thickens_in_systole():
    case = next(c for c in SOME if not c.abnormal)
    _, mask = render_case(case)
    row = int(np.argwhere(mask[case.es_frame] == 1)[:, 0].mean())
    assert (mask[case.es_frame, row] == 2).sum() > 1.15 * (mask[case.ed_frame, row] == 2).sum()


@pytest.mark.parametrize("vendor", VENDORS)
def test_black_outside_the_sector_and_the_heart_lies_inside(vendor):
    config = EchoPhantomConfig(vendor=vendor)
    for index in range(4):
        case = draw_case(config, index)
        video, mask = render_case(case)
        inside = case.sector.inside()
        assert not video[:, ~inside].any()
        assert not mask[:, ~inside].any()
        assert 0.25 < inside.mean() < 0.8
        scene = echo._Scene(case, np.random.default_rng(0))
        x, y = scene._to_heart(*scene.pixels, slice(None))
        assert (mask > 0).sum() > 0.95 * (case.ventricle.mask(x, y, scene.activation) > 0).sum()


def test_vendors_differ_in_style_but_not_in_the_heart():
    clips = [render_case(draw_case(EchoPhantomConfig(vendor=vendor), 0))[0] for vendor in VENDORS]
    cases = [draw_case(EchoPhantomConfig(vendor=vendor), 0) for vendor in VENDORS]
    assert len({c.ventricle for c in cases}) == 1
    levels = [clip.mean() for clip in clips]
    assert min(abs(a - b) for i, a in enumerate(levels) for b in levels[:i]) > 0.5


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("index", range(4))
def test_the_wall_can_be_told_from_the_cavity(vendor, index):
    """Smoothed over a few pixels, as the eye does, wall and cavity are apart in every style."""
    video, mask = render_case(draw_case(EchoPhantomConfig(vendor=vendor), index))
    kernel = np.ones(3) / 3
    smoothed = np.apply_along_axis(np.convolve, 2, video.astype(float), kernel, "same")
    smoothed = np.apply_along_axis(np.convolve, 1, smoothed, kernel, "same")
    cavity, wall = smoothed[mask == 1], smoothed[mask == 2]
    middle = (np.median(cavity) + np.median(wall)) / 2
    assert ((cavity < middle).mean() + (wall > middle).mean()) / 2 > 0.82
    assert 1 < video[mask == 1].mean() < 90  # a dark pool, with some noise


def test_speckle_moves_with_the_tissue():
    """At equal material points the pattern of the septum is kept from frame to frame."""
    case = replace(draw_case(EchoPhantomConfig(vendor="aster", size=(160, 160), fps=40.0), 0))
    video, mask = render_case(case)
    first, later = video[case.ed_frame].astype(float), video[case.ed_frame + 1].astype(float)
    wall = (mask[case.ed_frame] == 2) & (mask[case.ed_frame + 1] == 2)
    assert np.corrcoef(first[wall], later[wall])[0, 1] > 0.6
    other = render_case(draw_case(EchoPhantomConfig(vendor="aster", size=(160, 160), fps=40.0, seed=5), 0))[0]
    assert np.corrcoef(first[wall], other[case.ed_frame][wall].astype(float))[0, 1] < 0.5


@given(rate=st.floats(30.0, 200.0))
@settings(deadline=None)
def test_the_volume_curve_is_physiological(rate):
    beat = 60.0 / rate
    times = np.linspace(0.0, beat, 500, endpoint=False)
    volume = volume_curve(times, rate)
    assert volume[0] == 1.0
    assert volume.min() == pytest.approx(0.0, abs=1e-9)
    assert volume.max() <= 1.0 + 1e-9
    assert volume_curve(np.array([beat - 1e-6]), rate)[0] == pytest.approx(1.0, abs=1e-6)
    turn = int(np.argmin(volume))
    assert (np.diff(volume[: turn + 1]) <= 1e-12).all()
    assert (np.diff(volume[turn:]) >= -1e-12).all()
    opening = valve_opening(times, rate)
    assert opening.min() == 0.0
    assert 0.3 < opening.max() <= 1.0
    assert not opening[: turn + 1].any()  # shut while the ventricle ejects


@pytest.mark.parametrize(
    ("settings_", "text"),
    [
        ({"cases": 0}, "echo phantom: cases=0 is out of range; allowed: 1 to 1000000."),
        ({"frames": 0}, "echo phantom: frames=0 is out of range; allowed: 1 to 10000."),
        ({"size": (112, 8)}, "echo phantom: size=8 is out of range; allowed: 32 to 2048."),
        ({"size": (112, 112, 3)}, "echo phantom: size=(112, 112, 3) must be two numbers."),
        ({"fps": float("nan")}, "echo phantom: fps=nan is out of range; allowed: 1.0 to 1000.0."),
        ({"seed": -1}, "echo phantom: seed=-1 is out of range; allowed: 0 to 9223372036854775807."),
        ({"abnormal_fraction": 1.5}, "echo phantom: abnormal_fraction=1.5 is out of range; allowed: 0.0 to 1.0."),
        (
            {"heart_rate_bpm": (60.0, 400.0)},
            "echo phantom: heart_rate_bpm=400.0 is out of range; allowed: 30.0 to 200.0.",
        ),
        ({"heart_rate_bpm": (90.0, 60.0)}, "echo phantom: heart_rate_bpm=(90.0, 60.0) must be (lowest, highest)."),
        (
            {"vendor": "astor"},
            "echo phantom: vendor='astor' is unknown; allowed: mixed, aster, borea, cygna, delos. "
            "Did you mean 'aster'?",
        ),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(settings_, text):
    with pytest.raises(ConfigError) as error:
        EchoPhantomConfig(**settings_)
    assert str(error.value) == text


def test_a_case_that_does_not_exist():
    with pytest.raises(IndexError, match="case 40 does not exist; there are 40 cases"):
        draw_case(CONFIG, 40)


def test_rendering_is_fast_and_remembered():
    case = SOME[0]
    start = time.process_time()
    echo._render(case)
    assert (time.process_time() - start) / case.frames < 0.03  # 4 ms on an idle core; room for a busy one
    assert render_case(case)[0] is render_case(case)[0]
