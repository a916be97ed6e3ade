"""Rhythms: regular ones repeat the beat of the echo phantom, others fill and empty as they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvid_core.data.phantoms import rhythm
from medvid_core.data.phantoms.heart import systole_s, valve_opening, volume_curve


@given(rate=st.floats(40.0, 90.0), phase=st.floats(0.0, 0.99))
@settings(max_examples=30, deadline=None)
def test_a_regular_rhythm_repeats_the_beat_of_the_echo_phantom(rate, phase):
    interval = 60.0 / rate
    times = np.linspace(0.0, 3 * interval, 301)
    beats = rhythm.regular(rate, 3, phase)
    since = times + phase * interval
    np.testing.assert_allclose(beats.fullness(times), volume_curve(since, rate), atol=1e-9)
    # The phantom's valve looks at the volume a moment before and after, which at the R peak lies in the next beat.
    np.testing.assert_allclose(beats.opening(times), valve_opening(since, rate), atol=0.02)
    within = np.mod(since, interval)
    edges = np.array([0.0, systole_s(rate), interval])
    away = np.abs(within[:, None] - edges).min(1) > 1e-9
    np.testing.assert_array_equal(beats.systole(times)[away], (within < systole_s(rate))[away])


@given(
    rate=st.floats(40.0, 90.0),
    intervals=st.lists(st.floats(0.65, 1.5), min_size=4, max_size=12),
    phase=st.floats(0.0, 0.6),
)
@settings(max_examples=50, deadline=None)
def test_any_rhythm_fills_and_empties_without_jumps(rate, intervals, phase):
    beats = rhythm.from_intervals(rate, intervals, phase)
    times = np.linspace(0.0, beats.r_peaks_s[-1] - 1e-9, 4000)
    fullness, opening = beats.fullness(times), beats.opening(times)
    step = times[1]
    assert fullness.min() >= -1e-9
    assert fullness.max() <= 1 + 1e-9
    assert np.abs(np.diff(fullness)).max() < 25 * step  # no faster than the fastest filling
    assert opening.min() >= 0
    assert opening.max() <= 1
    assert not opening[beats.systole(times)].any()


def test_the_beat_is_not_its_own_reverse_from_any_start():
    times = np.arange(200) / 200
    forward = volume_curve(times, 60.0)
    distances = [np.abs(np.roll(forward[::-1], shift) - forward).max() for shift in range(200)]
    assert min(distances) > 0.15


def test_times_outside_the_beats_are_refused():
    with pytest.raises(ValueError, match="Times must lie from"):
        rhythm.regular(60.0, 1, 0.0).fullness(np.array([5.0]))
