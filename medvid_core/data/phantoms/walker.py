"""How a person walks, seen from the side: joints in the plane of progression from the phase of the gait cycle.

Lengths are in body heights, x forward, y up from the ground. A phase of n is the n-th heel strike of the right foot;
the left leg is half a cycle late. Segment lengths: Drillis & Contini (1966), as in Winter, "Biomechanics and Motor
Control of Human Movement", fig. 4.1. The joint angles are Fourier series written for this phantom after the normative
curves of natural cadence (Winter, "The Biomechanics and Motor Control of Human Gait", 1991; arms: Murray et al.,
1967, "Patterns of sagittal rotation of the upper limbs in walking"); they are approximate, the hip's
against the vertical.

Angles alone let the feet skate. Here a foot on the ground stays where it is, and rolls over heel and ball; the pelvis
moves as the leg that bears the weight carries it; hip and knee then follow from both (inverse kinematics), and stay
within a few degrees of the curves.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Joints = dict[str, Doubles]

THIGH, SHANK, ANKLE = 0.245, 0.246, 0.039
UPPER_ARM, FOREARM, HAND = 0.186, 0.146, 0.075
TRUNK, NECK, HEAD = 0.288, 0.052, 0.13
HEEL_BACK, BALL, TOE = 0.038, 0.075, 0.045  # ankle to heel, ankle to ball, ball to tip, along the sole
STANCE = 0.62  # share of the cycle that a foot is on the ground
DOUBLE = STANCE - 0.5  # share that begins with both feet on the ground


@dataclass(frozen=True)
class _Curve:
    """An angle over the cycle in degrees: its mean, then cosine and sine of each harmonic."""

    mean: float
    harmonics: tuple[tuple[float, float], ...]

    def swing(self, phase: Doubles) -> Doubles:
        """How far the angle is from its mean."""
        found = np.zeros_like(phase)
        for k, (cosine, sine) in enumerate(self.harmonics, start=1):
            found = found + cosine * np.cos(2 * np.pi * k * phase) + sine * np.sin(2 * np.pi * k * phase)
        return found


# Flexion of hip and knee, dorsiflexion of the ankle and forward swing of the arm are positive.
_HIP = _Curve(9.0, ((19.0, -2.6), (-4.2, -2.1), (-0.2, 1.4)))
_KNEE = _Curve(23.6, ((-3.6, -20.1), (-15.1, 8.0), (-0.3, 3.9), (-0.5, 0.7)))
_ANKLE = _Curve(2.6, ((-0.7, 5.9), (0.7, -7.2), (-3.2, 1.4), (2.6, -0.7), (-0.4, -1.0)))
_SHOULDER = _Curve(-5.0, ((-19.0, 0.0), (1.5, -1.0)))
_ELBOW = _Curve(30.0, ((-11.0, -4.0), (2.0, 0.0)))
_FLAT_DEG = 5.0  # the sole lies flat where the curves tilt it by less
_STEADY = 0.5  # the trunk goes on more evenly than the legs alone would carry it
_STRETCH = 1.01  # the most that a leg looks longer at heel strike: the pelvis lists, which a side view does not show
_TURN = 0.014  # of each hip joint forward and back, as the pelvis turns
_HELD_DEG = (35.0, 140.0)  # arms held up: upper arm against the trunk, forearm against the upper arm
_CLEARANCE = 0.012  # of the swinging foot beyond what the curves give
_SAMPLES = 240  # of the cycle, where the motion of the pelvis is worked out; even


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one person walks.

    Attributes:
        reach: swing of the hip over that of the normative curve; it sets the length of a step.
        arm_swing: swing of shoulder and elbow likewise.
        lean_deg: trunk inclination, forward positive.
        kyphosis: how far the thorax bulges backward, in body heights.
        slump_deg: how far the head is bent forward beyond what follows from the lean.
        arms_held: whether the fists rest on the collarbones, as for a side view of the spine, instead of swinging.
    """

    reach: float = 1.0
    arm_swing: float = 1.0
    lean_deg: float = 4.0
    kyphosis: float = 0.012
    slump_deg: float = 0.0
    arms_held: bool = False

    @property
    def stride(self) -> float:
        """Way between two strikes of the same heel, in body heights."""
        return _pelvis(self.reach).stride


def _smooth(u: Doubles) -> Doubles:
    u = np.clip(u, 0.0, 1.0)
    return np.asarray(u * u * (3.0 - 2.0 * u))


def leg_angles(phase: Doubles, reach: float = 1.0) -> tuple[Doubles, Doubles, Doubles]:
    """Hip flexion, knee flexion and ankle dorsiflexion in degrees, as the curves have them."""
    knee = np.maximum(_KNEE.mean + _KNEE.swing(phase), 0.0)
    return _HIP.mean + reach * _HIP.swing(phase), knee, _ANKLE.mean + _ANKLE.swing(phase)


def _hanging_leg(phase: Doubles, reach: float) -> tuple[Doubles, Doubles]:
    """Ankle seen from the hip [..., 2], and the tilt of the foot in radians (toes up), as the curves have them."""
    hip, knee, ankle = (np.deg2rad(angle) for angle in leg_angles(phase, reach))
    place = THIGH * _down(hip) + SHANK * _down(hip - knee)
    tilt = hip - knee + ankle
    return place, np.sign(tilt) * np.maximum(np.abs(tilt) - np.deg2rad(_FLAT_DEG), 0.0)


def _down(angle: Doubles) -> Doubles:
    """Unit vector [..., 2] that hangs down, swung forward by an angle."""
    return np.stack([np.sin(angle), -np.cos(angle)], -1)


def _turned(x: float, y: float, tilt: Doubles) -> Doubles:
    """A point of the foot, turned about the ankle [..., 2]."""
    return np.stack([x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)], -1)


def _rolling_ankle(tilt: Doubles) -> Doubles:
    """Ankle of a foot on the ground [..., 2], seen from below it when flat: turns about heel or ball."""
    about = np.where(tilt > 0, -HEEL_BACK, BALL)
    pivot = np.stack([about, np.zeros_like(tilt)], -1)
    turned = np.where(
        (tilt > 0)[..., None], _turned(-HEEL_BACK, -ANKLE, tilt), _turned(BALL, -ANKLE, tilt)
    )  # fmt: skip
    return np.asarray(pivot - turned)


@dataclass(frozen=True)
class _Pelvis:
    """Motion of the hips over the cycle: steady progress and harmonics of the step; where the right foot lands."""

    stride: float
    sway: npt.NDArray[np.complex128]
    height: npt.NDArray[np.complex128]
    foothold: float

    def place(self, phase: Doubles) -> Doubles:
        """Hip joints [..., 2]."""
        waves = np.exp(4j * np.pi * phase[..., None] * np.arange(len(self.sway)))
        x, y = ((waves * terms).real.sum(-1) for terms in (self.sway, self.height))
        return np.stack([self.stride * phase + x, y], -1)


@functools.lru_cache(maxsize=1024)
def _pelvis(reach: float) -> _Pelvis:
    """Work out how the bearing leg carries the hips; in double support the weight goes over from one to the other."""
    phase = np.arange(_SAMPLES) / _SAMPLES
    hanging, tilt = _hanging_leg(phase, reach)
    carried = _rolling_ankle(tilt) - hanging  # hips, seen from the foothold
    half = _SAMPLES // 2
    weight = _smooth(phase[:half] / DOUBLE)
    speed = np.gradient(carried[:, 0]) * _SAMPLES
    bearing = weight * speed[:half] + (1 - weight) * speed[half:]
    stride = float(bearing.mean())
    way = _STEADY * np.cumsum(bearing - stride) / _SAMPLES
    height = weight * carried[:half, 1] + (1 - weight) * carried[half:, 1]
    steady = _Pelvis(stride, _harmonics(way), _harmonics(height), 0.0)
    stands = int(STANCE * _SAMPLES)
    progress = _hips(steady.place(phase), phase)[:stands, 0]
    foothold = float((progress - carried[:stands, 0]).mean())
    # no higher than both legs reach
    ahead = progress - foothold - _rolling_ankle(tilt)[:stands, 0]
    reached = _rolling_ankle(tilt)[:stands, 1] + np.sqrt((_STRETCH * (THIGH + SHANK)) ** 2 - ahead**2)
    limit = reached[:half].copy()
    limit[: stands - half] = np.minimum(limit[: stands - half], reached[half:])
    heights = _harmonics(np.minimum(height, limit))
    found = _Pelvis(stride, steady.sway, heights, foothold)
    heights[0] -= max(0.0, float((found.place(phase[:half])[:, 1] - limit).max()))
    return found


def _hips(middle: Doubles, phase: Doubles) -> Doubles:
    """Hip joint of the leg whose heel strikes at whole phases: the pelvis turns with the leg."""
    return np.asarray(middle + _TURN * np.stack([np.cos(2 * np.pi * phase), np.zeros_like(phase)], -1))


def _harmonics(values: Doubles, count: int = 6) -> npt.NDArray[np.complex128]:
    """Mean and first harmonics of what repeats each step."""
    terms = np.fft.rfft(values)[: count + 1] / len(values)
    terms[1:] *= 2
    return np.asarray(terms)


def _leg(phase: Doubles, reach: float, hips: Doubles, late: float = 0.0) -> Joints:
    """Joints of a leg, given where its hip is [T, 2]; its heel strikes at whole phases, ``late`` cycles on."""
    pelvis = _pelvis(reach)
    turn = np.floor(phase)
    within = phase - turn
    hanging, tilt = _hanging_leg(within, reach)
    foothold = np.stack([pelvis.foothold + pelvis.stride * (turn + late), np.zeros_like(turn)], -1)
    planted = foothold + _rolling_ankle(tilt)
    # the swing begins and ends where the foot stands
    off, on = np.array([STANCE]), np.array([1.0])
    errors = []
    for moment, ahead in ((off, 0.0), (on, pelvis.stride)):
        free, foot = _hanging_leg(moment % 1.0, reach)
        stands = _rolling_ankle(foot)[0] + [pelvis.foothold + ahead, 0.0]
        errors.append(stands - _hips(pelvis.place(moment), moment)[0] - free[0])
    share = _smooth((within - STANCE) / (1.0 - STANCE))[:, None]
    swung = hips + hanging + errors[0] * (1.0 - share) + errors[1] * share
    swung[:, 1] += _CLEARANCE * np.sin(np.pi * np.clip((within - STANCE) / (1.0 - STANCE), 0.0, 1.0))
    in_swing = within >= STANCE
    toes = np.where(in_swing, tilt * _smooth((within - STANCE) / 0.12), np.maximum(tilt, 0.0))
    ball = _turned(BALL, -ANKLE, tilt)
    tip = ball + TOE * np.stack([np.cos(toes), np.sin(toes)], -1)
    heel = _turned(-HEEL_BACK, -ANKLE, tilt)
    lowest = np.minimum(np.minimum(heel[:, 1], ball[:, 1]), tip[:, 1])
    swung[:, 1] = np.maximum(swung[:, 1], -lowest)
    ankle = np.where(in_swing[:, None], swung, planted)
    return {"knee": _knee(hips, ankle), "ankle": ankle, "heel": ankle + heel, "ball": ankle + ball, "toe": ankle + tip}


def _knee(hips: Doubles, ankle: Doubles) -> Doubles:
    """Where thigh and shank meet, in front of the line from hip to ankle."""
    line = ankle - hips
    length = np.hypot(line[:, 0], line[:, 1])
    stretch = np.maximum(length / (0.9999 * (THIGH + SHANK)), 1.0)
    thigh, shank = THIGH * stretch, SHANK * stretch
    inner = np.arccos((thigh**2 + length**2 - shank**2) / (2 * thigh * length))
    return np.asarray(hips + thigh[:, None] * _down(np.arctan2(line[:, 0], -line[:, 1]) + inner))


def joints(phase: Doubles, style: Style) -> Joints:
    """Where the joints are at phases [T]: name → [T, 2] in body heights.

    Names: hips, waist, thorax, shoulders, neck, chin, crown; and with ``right_`` or ``left_`` before them: shoulder,
    elbow, wrist, fingers, hip, knee, ankle, heel, ball, toe.
    """
    hips = _pelvis(style.reach).place(phase)
    sway = np.deg2rad(style.lean_deg + 1.2 * np.cos(4 * np.pi * (phase - 0.05)))
    up = -_down(-sway)
    back = np.stack([-up[:, 1], up[:, 0]], -1)
    shoulders = hips + TRUNK * up
    bent = sway + np.deg2rad(10.0 + style.slump_deg)
    neck = shoulders + 0.012 * up + 0.3 * style.kyphosis * back
    chin = neck + NECK * -_down(-bent)
    nod = np.deg2rad(2.0 + 0.35 * style.lean_deg + 0.6 * style.slump_deg) + 0.3 * (sway - np.deg2rad(style.lean_deg))
    crown = chin + HEAD * -_down(-nod)
    found = {
        "hips": hips,
        "waist": hips + 0.3 * TRUNK * up - 0.35 * style.kyphosis * back,
        "thorax": hips + 0.72 * TRUNK * up + style.kyphosis * back,
        "shoulders": shoulders,
        "neck": neck,
        "chin": chin,
        "crown": crown,
    }
    for side, late in (("right", 0.0), ("left", 0.5)):
        # the pelvis turns with the legs, the shoulders against them
        turn = np.cos(2 * np.pi * (phase - late))[:, None] * np.array([1.0, 0.0])
        shoulder = shoulders - 0.018 * up - (0.0 if style.arms_held else 0.02 * style.arm_swing) * turn
        hip = _hips(hips, phase - late)
        parts = {"shoulder": shoulder, "hip": hip, **_leg(phase - late, style.reach, hip, late)}
        parts |= _arm(shoulder, *(_held(sway) if style.arms_held else _swung(phase - late, style)))
        found |= {f"{side}_{name}": place for name, place in parts.items()}
    return found


def _swung(phase: Doubles, style: Style) -> tuple[Doubles, Doubles]:
    """Angles of upper arm and forearm against the vertical; the arm swings against the leg of its side."""
    upper = np.deg2rad(_SHOULDER.mean + 0.25 * style.lean_deg + style.arm_swing * _SHOULDER.swing(phase))
    return upper, upper + np.deg2rad(0.7 * _ELBOW.mean + style.arm_swing * _ELBOW.swing(phase))


def _held(sway: Doubles) -> tuple[Doubles, Doubles]:
    """The same angles of an arm that is held to the trunk, which is inclined by ``sway``."""
    upper = np.deg2rad(_HELD_DEG[0]) - sway
    return upper, upper + np.deg2rad(_HELD_DEG[1])


def _arm(shoulder: Doubles, upper: Doubles, fore: Doubles) -> Joints:
    """The arm from the shoulder down."""
    elbow = shoulder + UPPER_ARM * _down(upper)
    wrist = elbow + FOREARM * _down(fore)
    return {"elbow": elbow, "wrist": wrist, "fingers": wrist + HAND * _down(fore + 0.15)}


def flexion_deg(found: Joints, side: str) -> tuple[Doubles, Doubles]:
    """Hip and knee flexion [T] that the joints show, the hip's against the vertical."""
    thigh = found[f"{side}_knee"] - found[f"{side}_hip"]
    shank = found[f"{side}_ankle"] - found[f"{side}_knee"]
    hip, lower = (np.rad2deg(np.arctan2(part[:, 0], -part[:, 1])) for part in (thigh, shank))
    return hip, hip - lower


def standing(frames: int, style: Style) -> Joints:
    """Joints of someone who stands still for so many frames, as `joints` names them; x = 0 is at the hips."""
    found = joints(np.array([0.27]), replace(style, arm_swing=0.15))
    found = {name: place - [found["hips"][0, 0], 0.0] for name, place in found.items()}
    for side, ahead in (("right", 0.02), ("left", -0.03)):
        hip = found[f"{side}_hip"] = found["hips"]
        ankle = np.array([[ahead, ANKLE]])
        found[f"{side}_ankle"], found[f"{side}_knee"] = ankle, _knee(hip, ankle)
        for name, along in (("heel", -HEEL_BACK), ("ball", BALL), ("toe", BALL + TOE)):
            found[f"{side}_{name}"] = ankle + np.array([along, -ANKLE])
    return {name: np.repeat(place, frames, axis=0) for name, place in found.items()}
