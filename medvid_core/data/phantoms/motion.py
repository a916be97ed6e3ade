"""Clips of beating hearts whose question only time can answer: what to draw, and how it is drawn.

The pictures are those of the echo phantom (`medvid_core.data.phantoms.echo`), but what a single frame shows is drawn
apart from the answer: the mean size of the heart, its wall, place, machine and rate do not depend on how much it
ejects, and a clip starts anywhere in the beat. `medvid_core.data.datasets.motion_phantom` makes the questions.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from medvid_core.data.phantoms import speckle
from medvid_core.data.phantoms.echo import VENDORS, Bytes, EchoCase, _Scene
from medvid_core.data.phantoms.heart import LeftVentricle, volume_curve
from medvid_core.data.phantoms.rhythm import Rhythm
from medvid_core.data.phantoms.speckle import STYLES
from medvid_core.errors import ConfigError, did_you_mean

Doubles = npt.NDArray[np.float64]

LENGTHS = {
    "order": (16, 1),
    "ejection_fraction": (16, 1),
    "arrhythmia": (48, 4),
    "stall": (48, 4),
    "phase": (32, 2),
    "progression": (16, 1),
}
"""The questions, and the frames and beats of a clip (of a visit, for ``progression``) unless others are asked for."""

_LEAST_BEATS = {"arrhythmia": 3, "stall": 2}
_CHUNK = 40_000  # beam samples worked on at once, as in the echo phantom
_CACHED_BYTES = 500_000  # larger recordings are not kept: the cache holds 512 of them


@dataclass(kw_only=True)
class MotionPhantomConfig:
    """What the motion phantom asks and draws.

    Attributes:
        question: "order", "ejection_fraction", "arrhythmia", "stall", "phase" or "progression".
        patients: number of patients; each gives one case, for "order" three.
        frames: frames a clip, for "progression" a visit. None: 16; 48 for "arrhythmia" and "stall", 32 for "phase".
        beats: beats of usual length these frames hold, which sets the frame rate. None: 1; 4 for "arrhythmia" and
            "stall", 2 for "phase".
        size: height and width in pixels.
        seed: every case is a pure function of the configuration and its number.
        vendor: "mixed", or the style of one (invented) vendor of the echo phantom.
        heart_rate_bpm: lowest and highest usual heart rate.
        ejection_fraction: lowest and highest ejection fraction in percent (at the first visit, for "progression").
        noise_db: electronic noise beyond that of the vendor's machine.
        abnormal_fraction: share of abnormal clips among those of "arrhythmia" and "stall".
        visits: fewest and most visits of a history ("progression").
        visit_interval_days: mean time between visits; the visit to be predicted comes exactly so long after the last.
        slope_per_year: mean and standard deviation over patients of the drift in points of ejection fraction a year.
        visit_noise: standard deviation of the true ejection fraction about its drift, in points.
        measurement_noise: standard deviation of the measured ejection fraction in the history about the true one.
    """

    question: str = "order"
    patients: int = 60
    frames: int | None = None
    beats: int | None = None
    size: tuple[int, int] = (64, 64)
    seed: int = 0
    vendor: str = "mixed"
    heart_rate_bpm: tuple[float, float] = (50.0, 80.0)
    ejection_fraction: tuple[float, float] = (30.0, 70.0)
    noise_db: float = 0.0
    abnormal_fraction: float = 0.5
    visits: tuple[int, int] = (2, 5)
    visit_interval_days: float = 180.0
    slope_per_year: tuple[float, float] = (-4.0, 7.0)
    visit_noise: float = 2.0
    measurement_noise: float = 4.0

    def __post_init__(self) -> None:
        self.validate()
        self.size = (self.size[0], self.size[1])  # a list when it comes from YAML
        self.heart_rate_bpm = (self.heart_rate_bpm[0], self.heart_rate_bpm[1])
        self.ejection_fraction = (self.ejection_fraction[0], self.ejection_fraction[1])
        self.visits = (self.visits[0], self.visits[1])
        self.slope_per_year = (self.slope_per_year[0], self.slope_per_year[1])

    @property
    def length(self) -> tuple[int, int]:
        """Frames and beats of a clip (of a visit)."""
        frames, beats = LENGTHS[self.question]
        return (
            self.frames if self.frames is not None else frames,
            self.beats if self.beats is not None else beats,
        )

    def validate(self) -> None:
        """Raise ConfigError naming the first field that cannot be used, its value and what is allowed."""
        _check_choice("question", self.question, tuple(LENGTHS))
        _check_choice("vendor", self.vendor, ("mixed", *VENDORS))
        _check("patients", self.patients, 1, 1_000_000)
        frames, beats = self.length
        _check("beats", beats, _LEAST_BEATS.get(self.question, 1), 1000)
        _check("frames", frames, 8 * beats, 10_000, f" (8 frames for each of {beats} beats)")
        for name in ("size", "heart_rate_bpm", "ejection_fraction", "visits", "slope_per_year"):
            if len(getattr(self, name)) != 2:
                raise ConfigError(f"motion phantom: {name}={getattr(self, name)} must be two numbers.")
        for side in self.size:
            _check("size", side, 32, 2048)
        _check("seed", self.seed, 0, 2**63 - 1)
        _check_range("heart_rate_bpm", self.heart_rate_bpm, 40.0, 90.0)
        _check_range("ejection_fraction", self.ejection_fraction, *EJECTION_LIMITS)
        _check_range("visits", self.visits, 2, 100)
        _check("noise_db", self.noise_db, -40.0, 20.0)
        _check("abnormal_fraction", self.abnormal_fraction, 0.0, 1.0)
        _check("visit_interval_days", self.visit_interval_days, 1.0, 3650.0)
        _check("slope_per_year", self.slope_per_year[0], -50.0, 50.0)
        for name, value in (
            ("slope_per_year", self.slope_per_year[1]),
            ("visit_noise", self.visit_noise),
            ("measurement_noise", self.measurement_noise),
        ):
            _check(name, value, 0.0, 50.0)


EJECTION_LIMITS = (15.0, 75.0)
"""Percent; a drifting ejection fraction stays between them."""


def _check(name: str, value: float, low: float, high: float, why: str = "") -> None:
    if not low <= value <= high:  # also refuses NaN
        raise ConfigError(f"motion phantom: {name}={value} is out of range; allowed: {low} to {high}{why}.")


def _check_range(name: str, pair: tuple[float, float], low: float, high: float) -> None:
    for value in pair:
        _check(name, value, low, high)
    if pair[0] > pair[1]:
        raise ConfigError(f"motion phantom: {name}={pair} must be (lowest, highest).")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        hint = did_you_mean(value, known)
        raise ConfigError(f"motion phantom: {name}={value!r} is unknown; allowed: {', '.join(known)}.{hint}")


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One patient as a single frame shows him: nothing here depends on how much the heart ejects.

    Lengths are those of the ventricle filled to its mean over the beat.
    """

    vendor: str
    heart_rate_bpm: float
    length_mm: float
    radius_mm: float
    septum_mm: float
    lateral_mm: float
    longitudinal: float
    depth_mm: float
    apex_mm: tuple[float, float]
    tilt_rad: float

    def ventricle(self, ejection_fraction: float) -> LeftVentricle:
        """Return the ventricle that ejects so many percent; the wall keeps its volume.

        A healthy wall shortens the radius by c and the length by l c, so EF = 1 - (1 - c)^2 (1 - l c).
        """
        low, high = 0.0, 1.0
        for _ in range(50):
            c = (low + high) / 2
            ejects = 1.0 - (1.0 - c) ** 2 * (1.0 - self.longitudinal * c)
            low, high = (c, high) if 100.0 * ejects < ejection_fraction else (low, c)
        mean = 1.0 - self._mean_fullness()  # activation
        radius = self.radius_mm / (1.0 - low * mean)
        length = self.length_mm / (1.0 - self.longitudinal * low * mean)
        septum, lateral = (
            math.sqrt(radius**2 + (2 * self.radius_mm + wall) * wall * self.length_mm / length) - radius
            for wall in (self.septum_mm, self.lateral_mm)
        )
        return LeftVentricle(
            length_mm=length, radius_mm=radius, septum_mm=septum, lateral_mm=lateral, contraction=low,
            longitudinal=self.longitudinal, wall="none", severity=0.0,
        )  # fmt: skip

    def _mean_fullness(self) -> float:
        times = np.linspace(0.0, 60.0 / self.heart_rate_bpm, 200, endpoint=False)
        return float(volume_curve(times, self.heart_rate_bpm).mean())

    def shifted(self, rng: np.random.Generator) -> Anatomy:
        """Return the same patient with the probe put on anew."""
        x, z = self.apex_mm[0] + rng.uniform(-2.0, 2.0), self.apex_mm[1] + rng.uniform(-2.0, 2.0)
        return replace(self, apex_mm=(float(x), float(z)), tilt_rad=self.tilt_rad + float(rng.uniform(-0.04, 0.04)))


def draw_anatomy(rng: np.random.Generator, config: MotionPhantomConfig) -> Anatomy:
    """Draw a patient and the machine he is seen with."""
    vendor = str(rng.choice(VENDORS)) if config.vendor == "mixed" else config.vendor
    slender = rng.uniform(1.55, 1.95)  # length over diameter
    volume_ml = rng.uniform(55.0, 120.0)
    radius = (volume_ml * 1000.0 / (0.746 * math.pi * 2.0 * slender)) ** (1 / 3)  # as in the echo phantom
    wall = rng.uniform(7.0, 14.0)
    apex = (float(rng.uniform(-2.0, 8.0)), float(rng.uniform(19.0, 27.0)))
    return Anatomy(
        vendor=vendor, heart_rate_bpm=float(rng.uniform(*config.heart_rate_bpm)), length_mm=2.0 * slender * radius,
        radius_mm=radius, septum_mm=wall + float(rng.uniform(-1.0, 2.0)), lateral_mm=wall,
        longitudinal=float(rng.uniform(0.35, 0.5)), apex_mm=apex, tilt_rad=float(np.deg2rad(rng.uniform(-10.0, 2.0))),
        depth_mm=(apex[1] + 2.0 * slender * radius + float(rng.uniform(28.0, 40.0))) * STYLES[vendor].depth_ratio,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What the probe sees from one place: a pure function of its fields, and hashable.

    Attributes:
        heart: anatomy, machine, number of frames and frame rate, as the echo phantom draws them.
        stream: what the speckle, the noise and the drift of the probe are drawn from.
        fullness: share of the stroke volume in the ventricle in each frame [T].
        opening: of the mitral valve in each frame [T].
        noise_db: electronic noise beyond that of the machine.
    """

    heart: EchoCase
    stream: tuple[int, ...]
    fullness: tuple[float, ...]
    opening: tuple[float, ...]
    noise_db: float = 0.0

    @property
    def ejection_fraction(self) -> float:
        """Exact, in percent."""
        return self.heart.ejection_fraction


def frame_times(config: MotionPhantomConfig, heart_rate_bpm: float) -> Doubles:
    """Return the time of each frame of a clip [T] in seconds: they divide ``beats`` usual beats evenly."""
    frames, beats = config.length
    return np.asarray(np.arange(frames) * (beats * 60.0 / heart_rate_bpm / frames), dtype=np.float64)


def record(
    config: MotionPhantomConfig,
    anatomy: Anatomy,
    ejection_fraction: float,
    rhythm: Rhythm,
    stream: tuple[int, ...],
    heart_time_s: Doubles | None = None,
    opening: float | None = None,
) -> Recording:
    """Return the recording of a clip.

    Args:
        config: the phantom's.
        anatomy: the patient.
        ejection_fraction: in percent.
        rhythm: when the heart beats.
        stream: see `Recording`.
        heart_time_s: the time in its rhythm that the heart shows in each frame [T]; None: that of the frame.
        opening: a state the mitral valve is held in, so that it tells nothing; None: it follows the inflow.
    """
    times = frame_times(config, anatomy.heart_rate_bpm)
    shown = times if heart_time_s is None else heart_time_s
    fullness = rhythm.fullness(shown)
    valve = rhythm.opening(shown) if opening is None else np.full(len(times), opening)
    return Recording(
        heart=_heart(config, anatomy, anatomy.ventricle(ejection_fraction), fullness),
        stream=stream,
        fullness=tuple(fullness.tolist()),
        opening=tuple(valve.tolist()),
        noise_db=config.noise_db,
    )


def _heart(config: MotionPhantomConfig, anatomy: Anatomy, ventricle: LeftVentricle, fullness: Doubles) -> EchoCase:
    """The patient as the echo phantom wants him."""
    frames, beats = config.length
    edv, esv = (float(volume) for volume in ventricle.volume_ml(np.array([0.0, 1.0], np.float32)))
    heart = EchoCase(
        index=0, seed=config.seed, frames=frames, size=config.size,
        fps=frames * anatomy.heart_rate_bpm / (60.0 * beats), vendor=anatomy.vendor,
        heart_rate_bpm=anatomy.heart_rate_bpm, abnormal=False, abnormal_wall="none", severity=0.0, edv_ml=edv,
        esv_ml=esv, ejection_fraction=100.0 * (edv - esv) / edv, ed_frame=int(np.argmax(fullness)),
        es_frame=int(np.argmin(fullness)), spacing_mm=(0.0, 0.0), depth_mm=anatomy.depth_mm, apex_mm=anatomy.apex_mm,
        tilt_rad=anatomy.tilt_rad, ventricle=ventricle,
    )  # fmt: skip
    return replace(heart, spacing_mm=(heart.sector.spacing_mm, heart.sector.spacing_mm))


def render(recording: Recording) -> Bytes:
    """Draw a recording: video [T, H, W], grey in 0 to 255.

    The array is read-only: recordings of up to 0.5 MB are kept in the process and handed out again.
    """
    heart = recording.heart
    small = heart.frames * heart.size[0] * heart.size[1] <= _CACHED_BYTES
    return _render_cached(recording) if small else _render(recording)


def _render(recording: Recording) -> Bytes:
    heart = recording.heart
    rng = np.random.default_rng(recording.stream)
    scene = _Scene(heart, rng)
    scene.noise = scene.noise * speckle.decibels(recording.noise_db)
    scene.activation = _activation(heart, np.array(recording.fullness))
    scene.opening = np.array(recording.opening, np.float32)[:, None, None]
    depths, angles = heart.sector.samples()
    step = max(1, _CHUNK // (len(depths) * len(angles)))
    parts = [scene.draw(slice(k, min(k + step, heart.frames)), rng)[0] for k in range(0, heart.frames, step)]
    video = np.concatenate(parts)
    video.setflags(write=False)
    return video


_render_cached = functools.lru_cache(maxsize=512)(_render)


def _activation(heart: EchoCase, fullness: Doubles) -> speckle.Floats:
    """State of contraction of each frame [T, 1, 1] at which the ventricle holds its volume."""
    grid = np.linspace(0.0, 1.0, 129, dtype=np.float32)
    volumes = heart.ventricle.volume_ml(grid)
    wanted = heart.esv_ml + fullness * (heart.edv_ml - heart.esv_ml)
    activation = np.interp(wanted, volumes[::-1], grid[::-1])
    return np.asarray(activation[:, None, None], dtype=np.float32)
