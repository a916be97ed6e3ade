"""When a heart beats, and how full its left ventricle is at any time: regular, early, late and irregular beats.

The course of one beat is that of `medvid_core.data.phantoms.heart.volume_curve`, which a regular rhythm repeats
exactly. It is told from its reverse by more than the length of systole: ejection is one smooth fall, filling a fast
rise, a rest (diastasis) and the atrial kick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medvid_core.data.phantoms.heart import (
    ISOVOLUMIC_CONTRACTION_S,
    ISOVOLUMIC_RELAXATION_S,
    smooth,
    systole_s,
)

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

EARLY = 0.85
"""A beat that comes sooner than this share of the usual interval cuts the filling before it short."""

_EARLY_FILLING, _KICK = 0.74, 0.26  # shares of the stroke volume, as in `heart.volume_curve`


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """The beats of one recording.

    Attributes:
        r_peaks_s: times of the R peaks, rising; the beats between them must cover every time that is asked for, and
            the shortest must hold a systole.
        heart_rate_bpm: the usual rate: it sets how long systole and filling take, whatever this beat's interval.
    """

    r_peaks_s: tuple[float, ...]
    heart_rate_bpm: float

    def beat(self, time_s: Doubles) -> Integers:
        """Number of the beat each time lies in [T].

        Raises:
            ValueError: a time lies outside all beats.
        """
        number = np.searchsorted(self.r_peaks_s, time_s, side="right") - 1
        if number.min() < 0 or number.max() >= len(self.r_peaks_s) - 1:
            first, last = self.r_peaks_s[0], self.r_peaks_s[-1]
            raise ValueError(f"Times must lie from {first} to below {last} s, where the beats are.")
        return np.asarray(number, dtype=np.int64)

    def fullness(self, time_s: Doubles) -> Doubles:
        """Share of the usual stroke volume in the ventricle [T]: 1 at end-diastole, 0 at end-systole."""
        beat, since = self._since_r(time_s)
        planned = self._planned_s()
        # An early beat starts from what little the filling before it has reached.
        start = np.concatenate([[1.0], self._refilled(self._intervals_s(), planned)])
        closing = systole_s(self.heart_rate_bpm)
        ejected = smooth((since - ISOVOLUMIC_CONTRACTION_S) / (closing - ISOVOLUMIC_CONTRACTION_S))
        return np.asarray(start[beat] * (1.0 - ejected) + self._refilled(since, planned[beat]), dtype=np.float64)

    def opening(self, time_s: Doubles) -> Doubles:
        """How far the mitral valve is open [T], 0 to 1, as in `heart.valve_opening`."""
        beat, since = self._since_r(time_s)
        step = 0.01
        planned = self._planned_s()[beat]
        rise = self._refilled(since + step, planned) - self._refilled(since - step, planned)
        inflow = np.clip(rise / (2 * step) / 4.0, 0.0, 1.0) ** 0.6
        after = since - self._filling_s
        left = self._intervals_s()[beat] - since
        window = smooth(after / 0.04) * smooth(left / 0.04)
        return np.asarray(np.where(after < 0, 0.0, np.maximum(inflow, 0.35) * window), dtype=np.float64)

    def systole(self, time_s: Doubles) -> Bools:
        """Whether the ventricle contracts [T]: from the R peak to the end of ejection."""
        return np.asarray(self._since_r(time_s)[1] < systole_s(self.heart_rate_bpm), dtype=np.bool_)

    @property
    def _filling_s(self) -> float:
        """From the R peak to the opening of the mitral valve."""
        return systole_s(self.heart_rate_bpm) + ISOVOLUMIC_RELAXATION_S

    def _since_r(self, time_s: Doubles) -> tuple[Integers, Doubles]:
        beat = self.beat(time_s)
        return beat, np.asarray(time_s - np.array(self.r_peaks_s)[beat], dtype=np.float64)

    def _intervals_s(self) -> Doubles:
        return np.diff(np.array(self.r_peaks_s, dtype=np.float64))

    def _planned_s(self) -> Doubles:
        """The interval each beat would have had if no early beat had cut it short."""
        usual, intervals = 60.0 / self.heart_rate_bpm, self._intervals_s()
        return np.where(intervals < EARLY * usual, usual, intervals)

    def _refilled(self, since_s: Doubles, planned_s: Doubles) -> Doubles:
        """Share of the stroke volume that has flowed in: fast filling, then the kick at the end of a full interval."""
        rest = 60.0 / self.heart_rate_bpm - self._filling_s
        early = smooth((since_s - self._filling_s) / (0.42 * rest))
        kick = smooth((since_s - planned_s + 0.35 * rest) / (0.35 * rest))
        return np.asarray(_EARLY_FILLING * early + _KICK * kick, dtype=np.float64)


def from_intervals(heart_rate_bpm: float, intervals: Sequence[float] | Doubles, phase: float) -> Rhythm:
    """Return a rhythm from its intervals, in units of the usual one; time 0 lies ``phase`` after the first R peak."""
    ends = np.concatenate([[0.0], np.cumsum(intervals)]) - phase
    return Rhythm(r_peaks_s=tuple((ends * 60.0 / heart_rate_bpm).tolist()), heart_rate_bpm=heart_rate_bpm)


def regular(heart_rate_bpm: float, beats: int, phase: float) -> Rhythm:
    """Return a regular rhythm that covers ``beats`` beats from time 0, which lies ``phase`` (0 to 1) into a beat."""
    return from_intervals(heart_rate_bpm, np.ones(beats + 2), phase)
