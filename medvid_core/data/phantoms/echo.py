"""An echocardiography phantom: apical four-chamber clips of beating hearts, drawn on the fly from a seed.

Every clip comes with exact masks of the left ventricle and its myocardium, the ejection fraction, and the wall that
moves badly, so that a model can be trained and judged with no data at hand.

Example:
    >>> config = EchoPhantomConfig(cases=4)
    >>> case = draw_case(config, 0)
    >>> video, mask = render_case(case)   # uint8 [T, H, W] each
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from medvid_core.data.phantoms import speckle
from medvid_core.data.phantoms.heart import (
    ISOVOLUMIC_RELAXATION_S,
    WALLS,
    LeftVentricle,
    echogenicity,
    systole_s,
    valve_opening,
    volume_curve,
)
from medvid_core.data.phantoms.speckle import STYLES, Sector
from medvid_core.errors import ConfigError, did_you_mean

Bytes = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

CLASSES = ("background", "lv", "myocardium")
VENDORS = tuple(STYLES)
_CHUNK = 40_000  # beam samples worked on at once: temporaries stay in the processor's cache
_CACHED_BYTES = 4_000_000  # larger clips are not kept: the cache holds 64 of them


@dataclass(kw_only=True)
class EchoPhantomConfig:
    """What the phantom draws.

    Attributes:
        cases: number of patients, one clip each.
        frames: frames a clip.
        size: height and width in pixels.
        fps: frames a second. The default 16 frames at 20 a second hold about one beat.
        seed: every case is a pure function of this and its index.
        vendor: "mixed", or the style of one (invented) vendor: "aster", "borea", "cygna", "delos".
        abnormal_fraction: share of patients with a wall that moves badly and a low ejection fraction.
        heart_rate_bpm: lowest and highest heart rate.
    """

    cases: int = 40
    frames: int = 16
    size: tuple[int, int] = (112, 112)
    fps: float = 20.0
    seed: int = 0
    vendor: str = "mixed"
    abnormal_fraction: float = 0.4
    heart_rate_bpm: tuple[float, float] = (55.0, 95.0)

    def __post_init__(self) -> None:
        self.validate()
        self.size = (self.size[0], self.size[1])  # a list when it comes from YAML
        self.heart_rate_bpm = (self.heart_rate_bpm[0], self.heart_rate_bpm[1])

    def validate(self) -> None:
        """Raise ConfigError naming the first field that cannot be used, its value and what is allowed."""
        _check("cases", self.cases, 1, 1_000_000)
        _check("frames", self.frames, 1, 10_000)
        for name, pair in (("size", self.size), ("heart_rate_bpm", self.heart_rate_bpm)):
            if len(pair) != 2:
                raise ConfigError(f"echo phantom: {name}={pair} must be two numbers.")
        for side in self.size:
            _check("size", side, 32, 2048)
        _check("fps", self.fps, 1.0, 1000.0)
        _check("seed", self.seed, 0, 2**63 - 1)
        _check("abnormal_fraction", self.abnormal_fraction, 0.0, 1.0)
        for rate in self.heart_rate_bpm:
            _check("heart_rate_bpm", rate, 30.0, 200.0)
        if self.heart_rate_bpm[0] > self.heart_rate_bpm[1]:
            raise ConfigError(f"echo phantom: heart_rate_bpm={self.heart_rate_bpm} must be (lowest, highest).")
        if self.vendor not in ("mixed", *VENDORS):
            known = ", ".join(("mixed", *VENDORS))
            hint = did_you_mean(self.vendor, ("mixed", *VENDORS))
            raise ConfigError(f"echo phantom: vendor={self.vendor!r} is unknown; allowed: {known}.{hint}")


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise ConfigError(f"echo phantom: {name}={value} is out of range; allowed: {low} to {high}.")


@dataclass(frozen=True, kw_only=True)
class EchoCase:
    """The drawn parameters of one patient's clip; a pure function of (config, index), and hashable.

    Volumes and ``ejection_fraction`` (percent) are those of the whole beat. ``ed_frame`` and ``es_frame`` index the
    largest and smallest volume in the clip; a clip too short to hold a systole ends before end-systole.
    ``abnormal_wall`` is "none", "septal", "lateral" or "apical"; ``severity`` 1 is akinetic, 0.6 hypokinetic.
    """

    index: int
    seed: int
    frames: int
    size: tuple[int, int]
    fps: float
    vendor: str
    heart_rate_bpm: float
    abnormal: bool
    abnormal_wall: str
    severity: float
    edv_ml: float
    esv_ml: float
    ejection_fraction: float
    ed_frame: int
    es_frame: int
    spacing_mm: tuple[float, float]
    depth_mm: float
    apex_mm: tuple[float, float]  # of the cavity: x from the middle of the fan, depth
    tilt_rad: float  # of the long axis
    ventricle: LeftVentricle

    @property
    def case_id(self) -> str:
        """A name that sorts by index."""
        return f"echo-{self.index:05d}"

    @property
    def sector(self) -> Sector:
        """The fan this clip is seen through."""
        angle = STYLES[self.vendor].half_angle_deg
        return Sector(size=self.size, depth_mm=self.depth_mm, half_angle_deg=angle)

    def times_s(self) -> Doubles:
        """Time of each frame after the R peak [T]."""
        return (np.arange(self.frames) - self.ed_frame) / self.fps

    def volumes_ml(self) -> Doubles:
        """Volume of the left ventricle in each frame [T]."""
        fraction = volume_curve(self.times_s(), self.heart_rate_bpm)
        return self.esv_ml + fraction * (self.edv_ml - self.esv_ml)


def draw_case(config: EchoPhantomConfig, index: int) -> EchoCase:
    """Draw the parameters of one patient."""
    config.validate()
    if not 0 <= index < config.cases:
        raise IndexError(f"echo phantom: case {index} does not exist; there are {config.cases} cases.")
    rng = np.random.default_rng([config.seed, index])
    # Steps of the golden ratio spread the abnormal cases evenly, so that a handful of cases holds both kinds.
    start = np.random.default_rng(config.seed).random()
    abnormal = bool((start + index * 0.6180339887498949) % 1.0 < config.abnormal_fraction)
    ventricle = _draw_ventricle(rng, abnormal)
    edv, esv = (float(v) for v in ventricle.volume_ml(np.array([0.0, 1.0], np.float32)))
    vendor = str(rng.choice(VENDORS)) if config.vendor == "mixed" else config.vendor
    rate = float(rng.uniform(*config.heart_rate_bpm))
    apex = (float(rng.uniform(0.0, 7.0)), float(rng.uniform(22.0, 30.0)))
    depth = (apex[1] + ventricle.length_mm + 46.0) * STYLES[vendor].depth_ratio
    ed_frame, es_frame = _draw_timing(rng, config, rate)
    case = EchoCase(
        index=index, seed=config.seed, frames=config.frames, size=config.size, fps=config.fps, vendor=vendor,
        heart_rate_bpm=rate, abnormal=abnormal, abnormal_wall=ventricle.wall, severity=ventricle.severity,
        edv_ml=edv, esv_ml=esv, ejection_fraction=100.0 * (edv - esv) / edv, ed_frame=ed_frame, es_frame=es_frame,
        spacing_mm=(0.0, 0.0), depth_mm=depth, apex_mm=apex, tilt_rad=float(np.deg2rad(rng.uniform(-9.0, 1.0))),
        ventricle=ventricle,
    )  # fmt: skip
    return replace(case, spacing_mm=(case.sector.spacing_mm, case.sector.spacing_mm))


def _draw_ventricle(rng: np.random.Generator, abnormal: bool) -> LeftVentricle:
    """Healthy hearts eject 52 to 72 %; a bad wall comes with a larger, rounder heart that ejects 20 to 50 %."""
    target = rng.uniform(20.0, 50.0) if abnormal else min(max(rng.normal(62.0, 4.5), 52.0), 72.0)
    dilation = min(max((50.0 - target) / 30.0, 0.0), 1.0)
    edv_ml = rng.uniform(80.0, 140.0) + 60.0 * dilation
    slender = rng.uniform(1.7, 1.95) - 0.2 * dilation  # length over diameter
    # The truncated ellipsoid holds 0.746 of the cylinder around it.
    radius = (edv_ml * 1000.0 / (0.746 * math.pi * 2.0 * slender)) ** (1 / 3)
    thickness = rng.uniform(8.0, 11.0)
    healthy = LeftVentricle(
        length_mm=2.0 * slender * radius, radius_mm=radius, septum_mm=thickness + rng.uniform(-0.3, 1.5),
        lateral_mm=thickness, contraction=0.0, longitudinal=rng.uniform(0.35, 0.5),
        wall=str(rng.choice(WALLS)) if abnormal else "none",
        severity=float(rng.choice([0.6, 1.0])) if abnormal else 0.0,
    )  # fmt: skip
    return _contracting(healthy, target)


def _contracting(ventricle: LeftVentricle, target: float) -> LeftVentricle:
    """Bisect the contraction of the healthy walls until the ventricle ejects ``target`` percent."""
    low, high = 0.0, 0.7
    for _ in range(30):
        middle = (low + high) / 2
        trial = replace(ventricle, contraction=middle)
        edv, esv = trial.volume_ml(np.array([0.0, 1.0], np.float32))
        low, high = (middle, high) if 100.0 * (edv - esv) / edv < target else (low, middle)
    return replace(ventricle, contraction=low)


def _draw_timing(rng: np.random.Generator, config: EchoPhantomConfig, rate: float) -> tuple[int, int]:
    """The frames of end-diastole (the R peak, on a frame) and end-systole.

    The clip starts up to a quarter of a beat before the R peak, less where end-systole would fall out of it.
    """
    closed_s = systole_s(rate) + 0.4 * ISOVOLUMIC_RELAXATION_S  # in the middle of the smallest volume
    systole = round(closed_s * config.fps)
    lead = min(int(15.0 / rate * config.fps), max(config.frames - 1 - systole, 0))
    ed_frame = int(rng.integers(0, lead + 1))
    times = np.arange(config.frames - ed_frame) / config.fps
    first_beat = times < 60.0 / rate
    return ed_frame, ed_frame + int(np.argmin(volume_curve(times, rate)[first_beat]))


def render_case(case: EchoCase) -> tuple[Bytes, Bytes]:
    """Draw a clip: video [T, H, W] grey in 0 to 255 and mask [T, H, W] in {0, 1, 2} (see `CLASSES`).

    The arrays are read-only: clips of up to 4 MB are kept in the process and handed out again.
    """
    small = 2 * case.frames * case.size[0] * case.size[1] <= _CACHED_BYTES
    return _render_cached(case) if small else _render(case)


def _render(case: EchoCase) -> tuple[Bytes, Bytes]:
    depths, angles = case.sector.samples()
    step = max(1, _CHUNK // (len(depths) * len(angles)))
    rng = np.random.default_rng([case.seed, case.index, 1])  # not the stream of draw_case
    scene = _Scene(case, rng)
    parts = [scene.draw(slice(k, min(k + step, case.frames)), rng) for k in range(0, case.frames, step)]
    video, mask = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    video.setflags(write=False)
    mask.setflags(write=False)
    return video, mask


_render_cached = functools.lru_cache(maxsize=64)(_render)


class _Scene:
    """What stays the same over the frames of a clip."""

    def __init__(self, case: EchoCase, rng: np.random.Generator) -> None:
        self.case, self.style, self.sector = case, STYLES[case.vendor], case.sector
        depths, angles = self.sector.samples()
        self.beams = (depths[:, None] * np.sin(angles), depths[:, None] * np.cos(angles))
        self.pixels, self.inside = self.sector.pixels(), self.sector.inside()
        self.texture = speckle.tissue_texture(rng)
        plain = speckle.scatterers(self.texture, *self.beams)[None]
        tissue = speckle.loudness(plain, self.sector, self.style)
        noise = speckle.loudness(speckle.complex_noise(rng, plain.shape), self.sector, self.style)
        self.blood = float(speckle.decibels(rng.uniform(-32.0, -26.0)))
        self.gain = _gain(rng, depths, angles, self.style) / tissue
        share = (depths / depths[-1])[:, None]
        self.noise = speckle.decibels(self.style.noise_db - 16.0 * (1.0 - share)) / noise
        near = np.exp(-(((depths - 14.0) / 13.0) ** 2))[:, None] * speckle.decibels(self.style.clutter_db)
        haze = np.exp(-depths / 40.0)[:, None] * speckle.decibels(self.style.clutter_db - 13.0)
        self.clutter = (near + haze) / noise * speckle.complex_noise(rng, (len(depths), len(angles)))
        self.activation, self.opening = _beat(case)
        self.motion = _probe_motion(rng, case)

    def draw(self, frames: slice, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
        """Video and mask of some frames."""
        case, activation, opening = self.case, self.activation[frames], self.opening[frames]
        x, y = self._to_heart(*self.beams, frames)
        place = case.ventricle.walls(x, y, activation)
        scatter, mirror = echogenicity(case.ventricle, place, y, activation, opening, self.blood)
        speckles = speckle.scatterers(self.texture, *case.ventricle.material(place))
        field = scatter * speckles + np.float32(0.35) * mirror
        field = field * self.gain + self.clutter + self.noise * speckle.complex_noise(rng, field.shape)
        grey = speckle.compress(np.abs(speckle.point_spread(field, self.sector, self.style)), self.style)
        video = np.rint(255.0 * self.sector.scan_convert(grey)).astype(np.uint8)
        mask = case.ventricle.mask(*self._to_heart(*self.pixels, frames), activation)
        return video, mask * self.inside

    def _to_heart(self, x: Floats, z: Floats, frames: slice) -> tuple[Floats, Floats]:
        """Probe coordinates [H, W] to heart coordinates [T, H, W], in mm."""
        shift_x, shift_z, turn = (m[frames] for m in self.motion)
        dx, dz = x - (self.case.apex_mm[0] + shift_x), z - (self.case.apex_mm[1] + shift_z)
        cos, sin = np.cos(self.case.tilt_rad + turn), np.sin(self.case.tilt_rad + turn)
        return dx * cos + dz * sin, dz * cos - dx * sin


def _beat(case: EchoCase) -> tuple[Floats, Floats]:
    """Activation and mitral opening of each frame, both [T, 1, 1]; activation inverts the volume curve."""
    grid = np.linspace(0.0, 1.0, 129, dtype=np.float32)
    volumes = case.ventricle.volume_ml(grid)
    activation = np.interp(case.volumes_ml(), volumes[::-1], grid[::-1])
    opening = valve_opening(case.times_s(), case.heart_rate_bpm)
    return activation.astype(np.float32)[:, None, None], opening.astype(np.float32)[:, None, None]


def _gain(rng: np.random.Generator, depths: Floats, angles: Floats, style: speckle.Style) -> Floats:
    """Attenuation with depth and shadows [R, B]: one or two ribs or lung edges dim some beams beyond them."""
    loss_db = style.attenuation_db * (depths / depths[-1])[:, None] + np.zeros_like(angles)
    half = float(angles[-1])
    for _ in range(int(rng.integers(1, 3))):
        centre, width = rng.uniform(-0.9, 0.9) * half, rng.uniform(0.05, 0.16) * half
        starts = rng.uniform(15.0, 60.0)
        dip = np.exp(-(((angles - centre) / width) ** 2))
        loss_db = loss_db + rng.uniform(4.0, 12.0) * dip * np.clip((depths[:, None] - starts) / 25.0, 0.0, 1.0)
    edge = np.clip((np.abs(angles) / half - 0.8) / 0.2, 0.0, 1.0)
    return speckle.decibels(-(loss_db + 7.0 * edge))


def _probe_motion(rng: np.random.Generator, case: EchoCase) -> tuple[Floats, Floats, Floats]:
    """Slow breathing drift: sideways and along the depth in mm, and a turn in radians; each [T, 1, 1]."""
    phase = 2 * np.pi * case.times_s() * rng.uniform(0.15, 0.3)
    scales = (rng.uniform(0.4, 1.6), rng.uniform(0.3, 1.0), 0.012)
    waves = [scale * np.sin(phase + rng.uniform(0, 2 * np.pi)) for scale in scales]
    x, z, turn = (w.astype(np.float32)[:, None, None] for w in waves)
    return x, z, turn
