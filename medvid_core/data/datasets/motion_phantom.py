"""Questions only time can answer, drawn on the fly (`medvid_core.data.phantoms.motion`), nothing to download.

| question | task and output | a case |
| --- | --- | --- |
| ``order`` | classification ``order`` | the same frames in physiologic, reversed or shuffled order |
| ``ejection_fraction`` | regression ``ejection_fraction``, percent | whole beats of a heart of any size |
| ``arrhythmia`` | anomaly ``arrhythmia`` | several beats, of which one comes early, or all irregularly |
| ``stall`` | anomaly ``stall`` | several beats; the heart may stand still for a while in mid-motion |
| ``phase`` | frame_classification ``phase`` | systole or diastole of each frame |
| ``progression`` | regression ``next_ejection_fraction``, percent | a patient's visits, one after the other |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvid_core.data.clip import Array, Case, Index, Source
from medvid_core.data.phantoms import rhythm as rhythms
from medvid_core.data.phantoms.motion import (
    EJECTION_LIMITS,
    Anatomy,
    MotionPhantomConfig,
    Recording,
    draw_anatomy,
    frame_times,
    record,
    render,
)
from medvid_core.errors import DataError
from medvid_core.specs import OutputSpec

ORDERS = ("physiologic", "reversed", "shuffled")
PHASES = ("systole", "diastole")

OUTPUTS = {
    "order": OutputSpec(name="order", task="classification", classes=ORDERS),
    "ejection_fraction": OutputSpec(name="ejection_fraction", task="regression", classes=("ejection_fraction",)),
    "arrhythmia": OutputSpec(name="arrhythmia", task="anomaly", classes=("arrhythmia",)),
    "stall": OutputSpec(name="stall", task="anomaly", classes=("stall",)),
    "phase": OutputSpec(name="phase", task="frame_classification", classes=PHASES),
    "progression": OutputSpec(name="next_ejection_fraction", task="regression", classes=("next_ejection_fraction",)),
}
"""What there is to predict, by question."""

_AJAR = 0.35  # the mitral valve in diastasis
_DAY_S = 86_400.0
_YEAR_S = 365.25 * _DAY_S


@dataclass(frozen=True)
class Film:
    """Recordings shown one after the other.

    Attributes:
        recordings: of one visit each.
        order: the frame shown at each place; empty: as they were recorded.
    """

    recordings: tuple[Recording, ...]
    order: tuple[int, ...] = ()


def index(root: Path | None, config: MotionPhantomConfig) -> Index:
    """Draw the parameters of every case; pictures are drawn when they are read. The group of a case is the patient.

    Raises:
        DataError: if a folder was named: there is none to read.
    """
    if root is not None:
        raise DataError(
            f"The data set motion-phantom is drawn, not read: it has no use for the folder {root}. Leave it out."
        )
    config.validate()
    draw = {
        "order": _order,
        "ejection_fraction": _ejection_fraction,
        "arrhythmia": _arrhythmia,
        "stall": _stall,
        "phase": _phase,
        "progression": _progression,
    }[config.question]
    cases = tuple(case for number in range(config.patients) for case in draw(_Patient(config, number)))
    return Index(cases=cases, outputs=(OUTPUTS[config.question],))


def read_video(source: Source, frames: Sequence[int]) -> Array:
    """Draw the wanted frames, uint8 [T,H,W]."""
    film: Film = source.options
    video = np.concatenate([render(recording) for recording in film.recordings])
    wanted = [film.order[frame] for frame in frames] if film.order else list(frames)
    return video[wanted]


class _Patient:
    """What the draws of one patient have in common."""

    def __init__(self, config: MotionPhantomConfig, number: int) -> None:
        self.config, self.number = config, number
        self.rng = np.random.default_rng([config.seed, number])
        self.anatomy = draw_anatomy(self.rng, config)
        self.ejection_fraction = float(self.rng.uniform(*config.ejection_fraction))
        self.phase = float(self.rng.uniform())
        self.name = f"{config.question.replace('_', '-')}-{number:05d}"

    @property
    def times_s(self) -> rhythms.Doubles:
        return frame_times(self.config, self.anatomy.heart_rate_bpm)

    @property
    def regular(self) -> rhythms.Rhythm:
        return rhythms.regular(self.anatomy.heart_rate_bpm, self.config.length[1], self.phase)

    @property
    def abnormal(self) -> bool:
        """Steps of the golden ratio spread the abnormal cases evenly, so that a handful of cases holds both kinds."""
        start = float(np.random.default_rng(self.config.seed).random())
        return (start + self.number * 0.6180339887498949) % 1.0 < self.config.abnormal_fraction

    def stream(self, visit: int = 0) -> tuple[int, ...]:
        """Not the stream the parameters are drawn from."""
        return (self.config.seed, self.number, visit + 1)

    def record(
        self, rhythm: rhythms.Rhythm, heart_time_s: rhythms.Doubles | None = None, opening: float | None = None
    ) -> Recording:
        """One clip of this patient."""
        return record(self.config, self.anatomy, self.ejection_fraction, rhythm, self.stream(), heart_time_s, opening)


def _case(patient: _Patient, name: str, film: Film, **known: Any) -> Case:
    """The case of one film with what is ``known`` of it; metadata are added to."""
    heart = film.recordings[0].heart
    metadata = {"vendor": heart.vendor, "heart_rate_bpm": f"{heart.heart_rate_bpm:.1f}", **known.pop("metadata", {})}
    return Case(
        case_id=name,
        group_id=patient.name,
        frames=sum(recording.heart.frames for recording in film.recordings),
        fps=heart.fps,
        spacing=heart.spacing_mm,
        view="A4C",
        streams={"video": Source(reader=f"{__name__}:read_video", options=film)},
        metadata=metadata,
        **known,
    )


def _order(patient: _Patient) -> list[Case]:
    """Three cases of the very same frames: nothing that ignores their order can tell them apart."""
    recording = patient.record(patient.regular)
    forward = tuple(range(recording.heart.frames))
    orders = (forward, forward[::-1], shuffled(patient.rng, len(forward)))
    return [
        _case(patient, f"{patient.name}-{name}", Film((recording,), order), targets={"order": number})
        for number, (name, order) in enumerate(zip(ORDERS, orders, strict=True))
    ]


def shuffled(rng: np.random.Generator, frames: int) -> tuple[int, ...]:
    """Draw an order that is no beat, at any speed, in either direction, from any start: its steps are not alike.

    No step from frame to frame, counted round the beat, takes more than a quarter of the places (at least two).
    """
    while True:
        order = rng.permutation(frames)
        steps = np.diff(order) % frames
        if np.bincount(steps).max() <= max(2, frames // 4):
            return tuple(order.tolist())


def _ejection_fraction(patient: _Patient) -> list[Case]:
    recording = patient.record(patient.regular)
    heart = recording.heart
    truth = {"ejection_fraction": recording.ejection_fraction}
    metadata = {"edv_ml": f"{heart.edv_ml:.1f}", "esv_ml": f"{heart.esv_ml:.1f}"}
    return [_case(patient, patient.name, Film((recording,)), targets=truth, metadata=metadata)]


def _arrhythmia(patient: _Patient) -> list[Case]:
    """Regular beats (within 2 %), one early beat with a compensatory pause, or intervals that are all different.

    The early beat takes the place of one of which the one before is in the clip, as is the next normal one: its
    frames, pause included, are abnormal. Of an irregular rhythm all frames are.
    """
    rng, beats, phase = patient.rng, patient.config.length[1], patient.phase
    intervals = 1.0 + 0.02 * rng.standard_normal(beats + 2)
    early, kind = -1, "normal"
    if patient.abnormal:
        kind = str(rng.choice(["premature", "irregular"]))
    if kind == "premature":
        early = int(rng.integers(2, beats))
        coupling = float(rng.uniform(0.65, 0.8))
        intervals[early - 1], intervals[early] = coupling, 2.0 - coupling
    elif kind == "irregular":
        intervals = rng.uniform(0.65, 1.35, 2 * beats + 3)
    rhythm = rhythms.from_intervals(patient.anatomy.heart_rate_bpm, intervals, phase)
    wrong = rhythm.beat(patient.times_s) == early if kind != "irregular" else np.ones(len(patient.times_s), bool)
    return [_anomaly(patient, "arrhythmia", patient.record(rhythm), wrong, kind)]


def _stall(patient: _Patient) -> list[Case]:
    """Regular beats, in half of the cases with a stop of a quarter to half a beat in mid-ejection or mid-filling.

    The volume it stops at is one every beat passes through, and hearts also rest in diastasis: only a rest at the
    wrong moment is wrong. Frames that show the moment of the stop are abnormal.
    """
    rng, rhythm, times = patient.rng, patient.regular, patient.times_s
    frames, beats = patient.config.length
    wrong = np.zeros(frames, bool)
    shown = times
    if patient.abnormal:
        each = frames / beats
        count = int(rng.integers(max(3, round(0.25 * each)), max(3, round(0.5 * each)) + 1))
        step = float(times[1])
        moments = np.linspace(0.5 * each * step, (frames - count - 1) * step, 2000)
        fullness = rhythm.fullness(moments)
        stop = float(rng.choice(moments[(fullness > 0.2) & (fullness < 0.65)]))
        wrong = (times >= stop) & (times < stop + count * step)
        shown = np.where(times < stop, times, np.maximum(times - count * step, stop))
    recording = patient.record(rhythm, heart_time_s=shown)
    return [_anomaly(patient, "stall", recording, wrong, "stall" if patient.abnormal else "normal")]


def _anomaly(patient: _Patient, output: str, recording: Recording, wrong: npt.NDArray[np.bool_], kind: str) -> Case:
    return _case(
        patient,
        patient.name,
        Film((recording,)),
        stratum=kind,
        targets={output: int(wrong.any())},
        frame_targets={output: tuple(wrong.astype(float).tolist())},
    )


def _phase(patient: _Patient) -> list[Case]:
    """Systole or diastole; the mitral valve is held ajar, or it would tell them apart in every frame."""
    recording = patient.record(patient.regular, opening=_AJAR)
    diastole = ~patient.regular.systole(patient.times_s)
    phases = {"phase": tuple(diastole.astype(float).tolist())}
    return [_case(patient, patient.name, Film((recording,)), frame_targets=phases)]


def _progression(patient: _Patient) -> list[Case]:
    """The visits so far; to be predicted is the ejection fraction at the next, ``visit_time`` seconds after the first.

    Each patient has a drift of his own. The history holds what was measured at the visits so far, with an error.
    """
    rng, config = patient.rng, patient.config
    visits = int(rng.integers(config.visits[0], config.visits[1] + 1))
    gap = config.visit_interval_days * _DAY_S
    starts = np.concatenate([[0.0], np.cumsum(gap * np.append(rng.uniform(0.5, 1.5, visits - 1), 1.0))])
    slope = float(rng.normal(*config.slope_per_year))
    course = patient.ejection_fraction + slope * starts / _YEAR_S + config.visit_noise * rng.standard_normal(visits + 1)
    course = np.clip(course, *EJECTION_LIMITS)
    recordings = tuple(_visit(patient, number, float(course[number])) for number in range(visits))
    measured = course[:-1] + config.measurement_noise * rng.standard_normal(visits)
    next_s = float(starts[-1])
    case = _case(
        patient,
        patient.name,
        Film(recordings),
        visit_time=f"{next_s:.0f}",
        times_s=tuple((starts[:-1, None] + patient.times_s).ravel().tolist()),
        targets={"next_ejection_fraction": float(course[-1])},
        history={"next_ejection_fraction": tuple(zip(starts[:-1].tolist(), measured.tolist(), strict=True))},
        metadata={"slope_per_year": f"{slope:.3f}", "visits": str(visits)},
    )
    return [case]


def _visit(patient: _Patient, number: int, ejection_fraction: float) -> Recording:
    """One recording of a history: the same heart, the probe put on anew, from anywhere in the beat."""
    rng, config = patient.rng, patient.config
    anatomy: Anatomy = patient.anatomy.shifted(rng)
    rhythm = rhythms.regular(anatomy.heart_rate_bpm, config.length[1], float(rng.uniform()))
    return record(config, anatomy, ejection_fraction, rhythm, patient.stream(number))
