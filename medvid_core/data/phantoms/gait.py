"""People who walk across a room, seen from the side, some with a spinal deformity: what to draw, and how it is drawn.

Two cues tell the classes apart, and either can be switched off.

static
    Patients with a deformity lean further forward: every single frame shows it, no matter how the frames follow.

dynamic
    Everybody strays from an even walk by a few hundredths of a second, ahead of it and behind it by turns. Controls do
    so slowly, about once a stride. With a deformity part of it comes in surges, some five a second, each fast and then
    nearly halted. Cadence, stride, way, and how often each pose is shown are drawn alike: only how far a frame is from
    the one before differs.

What the other cue would have told is then drawn alike for both classes. `medvid_core.data.phantoms.walker` holds how a
body walks, `medvid_core.data.phantoms.figure` and `medvid_core.data.phantoms.room` what it looks like.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from medvid_core.data.phantoms.figure import Figure, Floats, Looks, draw_looks, in_pixels
from medvid_core.data.phantoms.room import draw_backdrop, draw_room
from medvid_core.data.phantoms.walker import Doubles, Joints, Style, joints, standing
from medvid_core.errors import ConfigError, did_you_mean

Bytes = npt.NDArray[np.uint8]

CLASSES = ("control", "deformity")
CUES = ("both", "static", "dynamic")
SETTINGS = ("room", "laboratory")
FPS = 30.0

_LEAN_DEG = 8.0  # of all; half of the difference between the classes is added or taken off
_LEAN_GAP_DEG = 8.0
_LEAN_SD_DEG = 2.4
_DRIFT_S = (1.2, 1.6)  # period of the slow straying of all
_DRIFT_LAG_S = (0.03, 0.045)
_SURGE_S = (0.17, 0.23)  # period of the surges
_SURGE_DEPTH = (0.6, 0.72)  # how much faster and slower than on average; with the drift less than 1: nobody steps back
_MARGIN_M = 1.0  # of room that the outline of a walker needs beyond the way of the hips
_SKIRTING = 0.80  # of the picture's height, where wall and floor meet
_FURTHER = 0.025  # of the picture's height, by which an assistant's feet are higher
_CACHED_BYTES = 1_500_000  # larger videos are not kept: the cache holds 128 of them


@dataclass(kw_only=True)
class GaitPhantomConfig:
    """Who walks in the gait phantom, and what tells the classes apart.

    Attributes:
        cue: "both", "static" (trunk lean only) or "dynamic" (surging gait only).
        setting: "room" (furnished, arms swing) or "laboratory" (plain backdrop, fists on the collarbones): there little
            but the legs moves, once the picture follows the patient.
        patients: number of patients; every other one has a deformity.
        videos_per_patient: fewest and most videos of a patient.
        frames: frames a video, at 30 a second.
        size: height and width in pixels.
        difficulty: 0 is easy; at 1 the gap in lean is 0.3 of that, and surges are 0.45 as strong.
        assistants: share of videos in which a taller person walks along or stands by.
        seed: every case is a pure function of the configuration and its number.
    """

    cue: str = "both"
    setting: str = "room"
    patients: int = 60
    videos_per_patient: tuple[int, int] = (2, 3)
    frames: int = 60
    size: tuple[int, int] = (160, 240)
    difficulty: float = 0.0
    assistants: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        self.validate()
        self.size = (self.size[0], self.size[1])  # a list when it comes from YAML
        self.videos_per_patient = (self.videos_per_patient[0], self.videos_per_patient[1])

    def validate(self) -> None:
        """Raise ConfigError naming the first field that cannot be used, its value and what is allowed."""
        for name, known in (("cue", CUES), ("setting", SETTINGS)):
            value = getattr(self, name)
            if value not in known:
                hint = did_you_mean(value, known)
                raise ConfigError(f"gait phantom: {name}={value!r} is unknown; allowed: {', '.join(known)}.{hint}")
        _check("patients", self.patients, 1, 1_000_000)
        for name in ("videos_per_patient", "size"):
            if len(getattr(self, name)) != 2:
                raise ConfigError(f"gait phantom: {name}={getattr(self, name)} must be two numbers.")
        for count in self.videos_per_patient:
            _check("videos_per_patient", count, 1, 1000)
        if self.videos_per_patient[0] > self.videos_per_patient[1]:
            raise ConfigError(f"gait phantom: videos_per_patient={self.videos_per_patient} must be (fewest, most).")
        _check("frames", self.frames, 2, 150)
        for side in self.size:
            _check("size", side, 48, 2048)
        _check("difficulty", self.difficulty, 0.0, 1.0)
        _check("assistants", self.assistants, 0.0, 1.0)
        _check("seed", self.seed, 0, 2**63 - 1)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise ConfigError(f"gait phantom: {name}={value} is out of range; allowed: {low} to {high}.")


@dataclass(frozen=True, kw_only=True)
class Person:
    """Someone in a video.

    Attributes:
        looks: build and clothes.
        style: how they walk.
        phase: of the gait cycle in each frame [T]; see `medvid_core.data.phantoms.walker`.
        place_m: what is added to the way walked, along the direction of walking.
        ground: row of the picture on which they stand.
        stands: whether they stand there all the time instead.
    """

    looks: Looks
    style: Style
    phase: tuple[float, ...]
    place_m: float
    ground: float
    stands: bool = False


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One video: a pure function of its fields, and hashable.

    Attributes:
        size: height and width in pixels.
        label: index of the class in `CLASSES`.
        patient: who is filmed.
        assistant: who is with them, further from the camera; None for nobody.
        setting: one of `SETTINGS`.
        direction: 1 to the right of the picture, -1 to the left.
        scale: pixels a metre.
        cycle_s: mean time of a stride.
        room: what the room is drawn from.
        noise: standard deviation of the camera's noise, grey levels.
        stream: what the noise is drawn from.
    """

    size: tuple[int, int]
    label: int
    patient: Person
    assistant: Person | None
    setting: str
    direction: int
    scale: float
    cycle_s: float
    room: tuple[int, ...]
    noise: float
    stream: tuple[int, ...]

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.patient.phase)

    @property
    def speed_m_s(self) -> float:
        """Mean walking speed."""
        return self.patient.style.stride * self.patient.looks.height_m / self.cycle_s


def draw_patient(config: GaitPhantomConfig, number: int) -> tuple[Walk, ...]:
    """Draw the parameters of all videos of a patient; nothing depends on how many patients there are."""
    rng = np.random.default_rng([config.seed, number])
    label = number % 2
    looks = draw_looks(rng)
    easy = 1.0 - 0.7 * config.difficulty
    # without the static cue both classes are drawn from the mixture of both
    side = label if config.cue != "dynamic" else int(rng.integers(2))
    spread = float(np.clip(rng.standard_normal(), -2.5, 2.5)) * _LEAN_SD_DEG
    style = Style(
        reach=float(rng.uniform(0.72, 1.02)), arm_swing=float(rng.uniform(0.5, 1.2)),
        lean_deg=_LEAN_DEG + (side - 0.5) * _LEAN_GAP_DEG * easy + spread, kyphosis=float(rng.uniform(0.004, 0.03)),
        slump_deg=float(rng.uniform(-2.0, 12.0)), arms_held=config.setting == "laboratory",
    )  # fmt: skip
    cycle_s = float(rng.uniform(1.0, 1.3))
    drift_s, drift_lag_s, surge_s, depth = (
        float(rng.uniform(*limits)) for limits in (_DRIFT_S, _DRIFT_LAG_S, _SURGE_S, _SURGE_DEPTH)
    )
    surge_lag_s = depth * surge_s / (2 * np.pi)
    calm_lag_s = float(np.hypot(drift_lag_s, surge_lag_s))  # a control strays as far on the whole
    tall = float(rng.uniform(0.66, 0.76))  # share of the picture's height
    videos = int(rng.integers(config.videos_per_patient[0], config.videos_per_patient[1] + 1))
    surges = label == 1 and config.cue != "static"
    made = []
    for video in range(videos):
        rng = np.random.default_rng([config.seed, number, video + 1])
        even = float(rng.uniform()) + np.arange(config.frames) / (FPS * cycle_s)
        slow = _waves(rng, config.frames, drift_s)
        fast = _waves(rng, config.frames, surge_s) * (1.0 - 0.55 * config.difficulty)
        lag_s = drift_lag_s * slow + surge_lag_s * fast if surges else calm_lag_s * slow
        patient = Person(
            looks=looks, style=style, phase=tuple((even + lag_s / cycle_s).tolist()), place_m=0.0,
            ground=config.size[0] * float(rng.uniform(0.90, 0.95)),
        )  # fmt: skip
        made.append(_film(config, rng, patient, even, label, cycle_s, tall, (config.seed, number, video + 1)))
    return tuple(made)


def _waves(rng: np.random.Generator, frames: int, period_s: float) -> Doubles:
    """Waves between -1 and 1 [T], each of nearly that period, from anywhere in a wave on."""
    times = np.arange(frames) / FPS
    count = int(times[-1] / (0.9 * period_s)) + 3
    starts = np.concatenate([[0.0], np.cumsum(period_s * rng.uniform(0.9, 1.1, count))]) - period_s * rng.uniform()
    return np.asarray(np.sin(2 * np.pi * np.interp(times, starts, np.arange(count + 1))))


def _film(
    config: GaitPhantomConfig, rng: np.random.Generator, patient: Person, even: Doubles, label: int, cycle_s: float,
    tall: float, stream: tuple[int, ...],
) -> Walk:  # fmt: skip
    """Place camera and assistant: the way, walked evenly, lies in the middle of the picture, give or take."""
    height, width = config.size
    stride_m = patient.style.stride * patient.looks.height_m
    way_m = stride_m * float(even[-1] - even[0])
    scale = min(tall * height / patient.looks.height_m, width / (way_m + _MARGIN_M))
    spare_m = width / scale - way_m - _MARGIN_M
    middle_m = stride_m * float(even[0] + even[-1]) / 2
    place_m = float(rng.uniform(-0.5, 0.5)) * spare_m - middle_m
    placed = replace(patient, place_m=place_m)
    assistant = None
    if rng.random() < config.assistants:
        assistant = _assistant(rng, placed, stride_m / cycle_s, even, cycle_s, width / scale, height)
    return Walk(
        size=config.size, label=label, patient=placed, assistant=assistant, setting=config.setting,
        direction=int(rng.choice((-1, 1))), scale=scale, cycle_s=cycle_s, room=stream[:2],
        noise=float(rng.uniform(1.5, 5.0)), stream=stream,
    )  # fmt: skip


def _assistant(
    rng: np.random.Generator, patient: Person, speed_m_s: float, even: Doubles, cycle_s: float, width_m: float,
    height: int,
) -> Person:  # fmt: skip
    """Someone taller, a step further from the camera, who walks along or stands by; never hurried, never surging."""
    tall = patient.looks.height_m * float(rng.uniform(1.07, 1.16))
    looks = draw_looks(rng, (tall, tall))
    style = Style(reach=float(rng.uniform(0.85, 1.0)), arm_swing=0.8, lean_deg=float(rng.uniform(1.0, 6.0)))
    phase = float(rng.uniform()) + (even - even[0]) * cycle_s * speed_m_s / (style.stride * tall)
    behind_m = float(rng.choice((-1.0, 1.0))) * float(rng.uniform(0.55, 0.9))
    start_m = patient.place_m + patient.style.stride * patient.looks.height_m * float(even[0])
    stands = bool(rng.random() < 0.4)
    place_m = float(rng.uniform(-0.4, 0.4)) * width_m if stands else start_m + behind_m - style.stride * tall * phase[0]
    return Person(
        looks=looks, style=style, phase=tuple(phase.tolist()), place_m=float(place_m),
        ground=patient.ground - _FURTHER * height, stands=stands,
    )  # fmt: skip


def body(person: Person) -> Joints:
    """Joints of a person in each frame, name → [T, 2] in body heights, as `medvid_core.data.phantoms.walker` has them.

    x is counted from the middle of the picture, along the direction of walking.
    """
    phase = np.array(person.phase)
    found = standing(len(phase), person.style) if person.stands else joints(phase, person.style)
    shift = np.array([person.place_m / person.looks.height_m, 0.0])
    return {name: place + shift for name, place in found.items()}


def picture_joints(walk: Walk, person: Person) -> Joints:
    """Joints of a person in pixels, name → [T, 2] (column, row)."""
    origin = (walk.size[1] / 2, person.ground)
    return in_pixels(body(person), person.looks.height_m, walk.scale, walk.direction, origin)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Where the patient is.

    Attributes:
        mask: share of each pixel that the patient covers [T, H, W], 0 to 1.
        box: left, top, right, bottom of the pixels that are more than half covered [T, 4], right and bottom exclusive.
        joints: name → [T, 2], column and row in pixels.
    """

    mask: Floats
    box: npt.NDArray[np.int64]
    joints: Joints


def truth(walk: Walk) -> Truth:
    """Return mask, box and joints of the patient in every frame; nobody stands in front of them."""
    scene = _scene(walk)
    mask = np.zeros((walk.frames, *walk.size), np.float32)
    blank = np.zeros((*walk.size, 3), np.float32)
    for frame, cover in enumerate(mask):
        scene.people[-1].paint(blank, cover, scene.joints[-1], frame)
    box = np.zeros((walk.frames, 4), np.int64)
    for frame, inside in enumerate(mask > 0.5):
        columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
        box[frame] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return Truth(mask=mask, box=box, joints=scene.joints[-1])


class _Scene:
    """What all frames of a video have in common."""

    def __init__(self, walk: Walk) -> None:
        shown = [person for person in (walk.assistant, walk.patient) if person is not None]
        self.walk = walk
        rng = np.random.default_rng((*walk.room, 2**31))  # no video has this number
        plain = walk.setting == "laboratory"
        self.room = draw_backdrop(rng, walk.size) if plain else draw_room(rng, walk.size, _SKIRTING * walk.size[0])
        self.people = [
            Figure(person.looks, 0.0 if person.stands else person.style.kyphosis, walk.scale, walk.direction)
            for person in shown
        ]
        self.joints = [picture_joints(walk, person) for person in shown]
        self.grounds = [person.ground for person in shown]

    def draw(self, frame: int) -> Bytes:
        """One frame [H, W, 3]."""
        canvas = self.room.copy()
        cover = np.zeros(self.walk.size, np.float32)
        for places, ground in zip(self.joints, self.grounds, strict=True):
            self._shadow(canvas, places, ground, frame)
        for figure, places in zip(self.people, self.joints, strict=True):
            figure.paint(canvas, cover, places, frame)
        rng = np.random.default_rng((*self.walk.stream, frame))
        canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(self.walk.noise / 255.0)
        canvas *= np.float32(1.0 + 0.006 * rng.standard_normal())  # the lamps flicker
        return np.asarray(np.clip(canvas * 255.0 + 0.5, 0.0, 255.0), dtype=np.uint8)

    def _shadow(self, canvas: Floats, places: Joints, ground: float, frame: int) -> None:
        """Darken the floor below hips and feet."""
        top = int(_SKIRTING * self.walk.size[0])
        rows = np.arange(top, self.walk.size[0], dtype=np.float32)[:, None] - np.float32(ground)
        columns = np.arange(self.walk.size[1], dtype=np.float32)
        unit = self.walk.scale
        dark = np.zeros((len(rows), len(columns)), np.float32)
        for name, wide, depth in (("hips", 0.33, 0.22), ("right_ball", 0.13, 0.3), ("left_ball", 0.13, 0.3)):
            place = places[name][frame]
            lifted = 1.0 if name == "hips" else float(np.exp((place[1] - ground) / (0.06 * unit)))
            far = ((columns - place[0]) / (wide * unit)) ** 2 + (rows / (0.05 * unit)) ** 2
            dark += np.float32(depth * min(lifted, 1.0)) * np.exp(-far)
        canvas[top:] *= (1.0 - np.minimum(dark, 0.6))[..., None]


_scene = functools.lru_cache(maxsize=32)(_Scene)


def render(walk: Walk, frames: Sequence[int] | None = None) -> Bytes:
    """Draw the wanted frames of a video (None: all) [T, H, W, 3], colours in 0 to 255.

    Frames are drawn one by one, so that a short clip of a long video costs no more than its frames. Videos of up to
    1.5 MB are kept in the process.
    """
    wanted = list(range(walk.frames) if frames is None else frames)
    if 3 * walk.frames * walk.size[0] * walk.size[1] <= _CACHED_BYTES:
        return _render_cached(walk)[wanted]
    return _render(walk, wanted)


def _render(walk: Walk, wanted: Sequence[int]) -> Bytes:
    scene = _scene(walk)
    return np.stack([scene.draw(frame) for frame in wanted])


@functools.lru_cache(maxsize=128)
def _render_cached(walk: Walk) -> Bytes:
    video = _render(walk, range(walk.frames))
    video.setflags(write=False)
    return video
