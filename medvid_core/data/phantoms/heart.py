"""A beating heart in the apical four-chamber view: its geometry, and how strongly each part echoes.

The left ventricle is a truncated half-ellipsoid (bullet), apex up. Coordinates of the heart, in mm: the apex of
the cavity at (0, 0), y down the long axis to the mitral plane, x to the right of the picture (septum at x < 0,
lateral wall at x > 0). Volumes follow Simpson's method of discs (Lang et al. 2015, chamber quantification):
V = sum over discs of pi/4 * D(y)^2 * dy. The wall keeps its volume while it moves, so it thickens in systole.

"Activation" is the state of contraction: 0 at end-diastole, 1 at end-systole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

WIDEST = 0.72  # level of the largest diameter, as a fraction of the long axis from the apex
BASE_WIDTH = math.sqrt(1.0 - (1.0 / WIDEST - 1.0) ** 2)  # width of the mitral plane over the largest one
WALLS = ("septal", "lateral", "apical")
ISOVOLUMIC_CONTRACTION_S, ISOVOLUMIC_RELAXATION_S = 0.05, 0.07


def smooth(u: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Smoothstep of ``u`` clipped to [0, 1]."""
    u = np.clip(u, 0.0, 1.0)
    return np.asarray(u * u * (3.0 - 2.0 * u))


def systole_s(heart_rate_bpm: float) -> float:
    """From the R peak to the end of ejection: Weissler (1968), ejection = 413 - 1.7 * rate in ms."""
    return ISOVOLUMIC_CONTRACTION_S + 0.413 - 0.0017 * heart_rate_bpm


def volume_curve(time_s: Doubles, heart_rate_bpm: float) -> Doubles:
    """Fraction of the stroke volume in the ventricle at times after the R peak: 1 = end-diastole, 0 = end-systole.

    Isovolumic contraction, ejection, isovolumic relaxation, rapid filling (three quarters of the stroke volume),
    diastasis, atrial kick.
    """
    time_s = np.mod(time_s, 60.0 / heart_rate_bpm)
    closing = systole_s(heart_rate_bpm)
    filling = closing + ISOVOLUMIC_RELAXATION_S
    rest = 60.0 / heart_rate_bpm - filling
    ejected = smooth((time_s - ISOVOLUMIC_CONTRACTION_S) / (closing - ISOVOLUMIC_CONTRACTION_S))
    early = smooth((time_s - filling) / (0.42 * rest))
    kick = smooth((time_s - filling - 0.65 * rest) / (0.35 * rest))
    return np.asarray(1.0 - ejected + 0.74 * early + 0.26 * kick, dtype=np.float64)


def valve_opening(time_s: Doubles, heart_rate_bpm: float) -> Doubles:
    """How far the mitral valve is open, 0 to 1: follows the inflow (E wave, A wave), ajar in diastasis."""
    step = 0.01
    before, after = (volume_curve(time_s + d, heart_rate_bpm) for d in (-step, step))
    inflow = np.clip((after - before) / (2 * step) / 4.0, 0.0, 1.0) ** 0.6
    time_s = np.mod(time_s, 60.0 / heart_rate_bpm)
    start = systole_s(heart_rate_bpm) + ISOVOLUMIC_RELAXATION_S
    filling = smooth((time_s - start) / 0.04) * smooth((60.0 / heart_rate_bpm - time_s) / 0.04)
    return np.asarray(np.where(time_s < start, 0.0, np.maximum(inflow, 0.35) * filling), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class WallFrame:
    """Where points lie with respect to the left ventricle; every array is [T, ...].

    Attributes:
        x: distance from the long axis in mm, negative on the septal side.
        up: height in mm above the level of the largest diameter.
        inner: 1 on the endocardium, less in the cavity.
        outer: 1 on the epicardium, less inside.
        radius_mm: half-axis of the cavity at this level and side.
        length_mm: from apex to mitral plane, one a frame.
        rest_mm: thickness of the wall on this side at end-diastole.
    """

    x: Floats
    up: Floats
    inner: Floats
    outer: Floats
    radius_mm: Floats
    length_mm: Floats
    rest_mm: Floats


@dataclass(frozen=True, kw_only=True)
class LeftVentricle:
    """Shape at end-diastole and how it contracts.

    Attributes:
        length_mm: long axis of the cavity.
        radius_mm: largest half-width of the cavity.
        septum_mm: thickness of the septum; ``lateral_mm``: of the lateral wall.
        contraction: fraction of the radius lost at end-systole where the wall is healthy.
        longitudinal: shortening of the long axis as a fraction of ``contraction``.
        wall: the abnormal wall, one of `WALLS`, or "none".
        severity: motion missing there: 1 akinetic, 0.5 hypokinetic, 0 healthy.
    """

    length_mm: float
    radius_mm: float
    septum_mm: float
    lateral_mm: float
    contraction: float
    longitudinal: float
    wall: str
    severity: float

    @property
    def apex_mm(self) -> float:
        """Thickness of the wall at the apex, at end-diastole: thinner than elsewhere."""
        return 0.75 * self.septum_mm

    def length(self, activation: Floats) -> Floats:
        """Apex to mitral plane in mm."""
        share = self.longitudinal * self.contraction * (1.0 - 0.3 * self.severity)
        return np.asarray(self.length_mm * (1.0 - share * activation), dtype=np.float32)

    def motion(self, level: Floats, right: npt.NDArray[np.bool_]) -> Floats:
        """Share of healthy motion, 0 to 1, at a level (0 apex, 1 base) of the septal or the lateral (right) side."""
        if self.wall == "apical":
            hit = smooth((0.5 - level) / 0.2)
        elif self.wall == "none":
            hit = np.zeros_like(level)
        else:
            bump = smooth(2.0 - 2.0 * ((level - 0.55) / 0.42) ** 2)
            hit = bump * (right if self.wall == "lateral" else ~right)
        return np.asarray(1.0 - self.severity * hit, dtype=np.float32)

    def radius(self, level: Floats, right: npt.NDArray[np.bool_], activation: Floats) -> Floats:
        """Half-axis of the cavity's ellipse in mm at this level and side."""
        shortened = 1.0 - self.contraction * activation * self.motion(level, right)
        return np.asarray(self.radius_mm * shortened, dtype=np.float32)

    def volume_ml(self, activation: Floats, discs: int = 200) -> Doubles:
        """Simpson's summation over discs whose diameter is the septal plus the lateral half-width; [T] → [T]."""
        activation = np.asarray(activation, dtype=np.float32)[..., None]
        level = ((np.arange(discs) + 0.5) / discs).astype(np.float32)
        profile = np.sqrt(1.0 - ((WIDEST - level) / WIDEST) ** 2)
        left, right = (self.radius(level, np.full(discs, side), activation) for side in (False, True))
        diameter = np.asarray((left + right) * profile, dtype=np.float64)
        return np.asarray(np.pi / 4 * (diameter**2).mean(-1) * self.length(activation)[..., 0] / 1000.0)

    def walls(self, x: Floats, y: Floats, activation: Floats) -> WallFrame:
        """Place points x, y [T, ...] with respect to the wall; ``activation`` [T, 1, 1] (or as x)."""
        right = x > 0
        length = self.length(activation)
        radius = self.radius(np.clip(y / length, 0.0, 1.0), right, activation)
        rest_mm = np.where(right, np.float32(self.lateral_mm), np.float32(self.septum_mm))
        # The ring between radius r and r + h keeps its volume while the long axis shortens: h follows from r.
        ring = (2 * self.radius_mm + rest_mm) * rest_mm * (self.length_mm / length)
        outer_radius = np.sqrt(radius * radius + ring)
        apical_motion = self.motion(np.zeros(1, np.float32), np.ones(1, np.bool_))
        apex = self.apex_mm * (1.0 + self.contraction * activation * apical_motion)
        widest = WIDEST * length
        up = widest - y
        inner = np.sqrt((x / radius) ** 2 + (up / widest) ** 2) + np.float32(1e-4)
        outer = np.sqrt((x / outer_radius) ** 2 + (up / (widest + apex)) ** 2) + np.float32(0.5e-4)
        return WallFrame(x=x, up=up, inner=inner, outer=outer, radius_mm=radius, length_mm=length, rest_mm=rest_mm)

    def material(self, place: WallFrame) -> tuple[Floats, Floats]:
        """Where the tissue at each point lies at end-diastole: x_mm and y_mm, each [T, ...].

        A point keeps its direction from the centre and its fraction w of the wall.
        """
        inner, outer, widest = place.inner, place.outer, WIDEST * place.length_mm
        w = np.clip((inner - 1.0) * outer / np.maximum(inner - outer, np.float32(1e-4)), 0.0, 1.0)
        core = np.minimum(inner, 1.0)
        x_rest = (self.radius_mm * core + w * place.rest_mm) * place.x / (place.radius_mm * inner)
        up_rest = (WIDEST * self.length_mm * core + w * self.apex_mm) * place.up / (widest * inner)
        # Outside the wall the motion of the epicardium is carried on, and fades with distance.
        beyond = np.maximum(outer, 1.0)
        fade = np.where(outer > 1.0, np.exp(2.0 - 2.0 * beyond), 1.0)
        share = np.where(outer > 1.0, 1.0 - fade / beyond, np.float32(0.0))
        x_rest = np.where(outer > 1.0, place.x * share + x_rest * fade, x_rest)
        up_rest = np.where(outer > 1.0, place.up * share + up_rest * fade, up_rest)
        return x_rest, WIDEST * self.length_mm * fade + widest * (1.0 - fade) - up_rest

    def mask(self, x: Floats, y: Floats, activation: Floats) -> npt.NDArray[np.uint8]:
        """Exact classes of points: 0 background, 1 cavity, 2 myocardium; both end at the mitral plane."""
        place = self.walls(x, y, activation)
        above = y <= place.length_mm
        classes = np.where(place.inner <= 1.0, 1, np.where(place.outer <= 1.0, 2, 0))
        return np.where(above, classes, 0).astype(np.uint8)


def _edge(distance_mm: Floats, width_mm: float = 1.5) -> Floats:
    """1 inside (distance > 0), 0 outside, a linear ramp of ``width_mm`` between."""
    ramp: Floats = np.clip(distance_mm / np.float32(width_mm) + np.float32(0.5), 0.0, 1.0)
    return ramp


def _ellipse(
    x: Floats, y: Floats, cx: Floats | float, cy: Floats | float, rx: Floats | float, ry: Floats | float
) -> Floats:
    """Distance inside an ellipse in mm, near its border: positive inside."""
    level = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    return np.asarray((1.0 - level) * np.minimum(rx, ry), dtype=np.float32)


def _paint(under: Floats, inside: Floats, value: Floats | float) -> Floats:
    """Lay ``value`` over what is there, where ``inside`` is 1."""
    return np.asarray(under + (value - under) * inside, dtype=np.float32)


def _stroke(x: Floats, y: Floats, start: tuple[Floats, Floats], end: tuple[Floats, Floats], width_mm: float) -> Floats:
    """A soft line between two points (each [T, 1, 1]): Gaussian across, ``width_mm`` its standard deviation."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    px, py = x - start[0], y - start[1]
    along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    square = (px - along * dx) ** 2 + (py - along * dy) ** 2
    return np.asarray(np.exp(square * np.float32(-0.5 / width_mm**2)), dtype=np.float32)


def _leaflet(
    x: Floats, y: Floats, hinge: tuple[Floats, Floats], reach_mm: float, side: float, opening: Floats
) -> Floats:
    """One valve leaflet, brightness 0 to 1: flat towards the axis when shut, swung to the apex when open."""
    shut, swung = math.radians(14.0), math.radians(64.0)
    root, tip = shut + (swung - shut) * opening, shut + (swung + 0.25 - shut) * opening
    knee = (hinge[0] + side * 0.5 * reach_mm * np.cos(root), hinge[1] - 0.5 * reach_mm * np.sin(root))
    end = (knee[0] + side * 0.5 * reach_mm * np.cos(tip), knee[1] - 0.5 * reach_mm * np.sin(tip))
    return np.maximum(_stroke(x, y, hinge, knee, 0.9), _stroke(x, y, knee, end, 1.1))


def echogenicity(
    lv: LeftVentricle, place: WallFrame, y: Floats, activation: Floats, opening: Floats, blood: float
) -> tuple[Floats, Floats]:
    """How strongly each point scatters and reflects, both [T, ...]; 1 is septal myocardium, ``blood`` the pools.

    Returns the amplitude of the diffuse scattering (speckle) and of the smooth reflectors (valves, pericardium).
    """
    epi_mm = (place.outer - 1.0) * (lv.radius_mm + lv.septum_mm)  # roughly: distance outside the epicardium
    lateral = smooth((place.x + 5.0) / 15.0)  # 0 at the septum, 1 at the lateral wall
    # Outside the heart: fat and lung, hazy near the epicardium, fading with distance.
    scatter = np.float32(0.05) + np.float32(0.3) * np.exp(-np.maximum(epi_mm, 0.0) / np.float32(14.0))
    scatter = _right_heart(scatter, lv, place, y, activation, blood)
    scatter = _left_heart(scatter, lv, place, y, activation, blood, epi_mm, lateral)
    line = np.exp(-(((epi_mm - 1.2) / 1.3) ** 2)) * _edge(place.length_mm + 6.0 - y, 8.0)
    pericardium = line * lateral * (0.5 + 1.6 * smooth((y / place.length_mm - 0.1) / 0.5))
    mirror = pericardium + _annuli_and_valves(lv, place, y, activation, opening)
    return np.asarray(scatter + 0.8 * mirror, dtype=np.float32), np.asarray(mirror, dtype=np.float32)


def _right_ventricle(lv: LeftVentricle, activation: Floats) -> tuple[float, Floats]:
    """Where its axis lies left of the septum, and its half-width: the free wall moves in during systole."""
    return -(lv.radius_mm + lv.septum_mm), 29.0 * (1.0 - 0.22 * activation)


def _right_heart(
    scatter: Floats, lv: LeftVentricle, place: WallFrame, y: Floats, activation: Floats, blood: float
) -> Floats:
    """Paint right ventricle and atrium; the tricuspid plane moves with the mitral one, 3 mm nearer the apex."""
    x, length = place.x, place.length_mm
    axis, half_width = _right_ventricle(lv, activation)
    upper = _edge(length - 3.0 - y)
    ventricle = _ellipse(x, y, axis, length - 3.0, half_width, 0.74 * length)
    scatter = _paint(scatter, _edge(ventricle + 4.5) * upper, 0.5)
    scatter = _paint(scatter, _edge(ventricle) * upper, blood)
    lower = _edge(y - length)
    radius = 21.0 * (0.88 + 0.12 * activation)
    atrium = _ellipse(x, y, axis - 6.0, 0.3 * length + 0.7 * lv.length_mm + 17.0, radius, 1.05 * radius)
    scatter = _paint(scatter, _edge(atrium + 3.0) * lower, 0.38)
    return _paint(scatter, _edge(atrium) * lower, blood)


def _left_heart(
    scatter: Floats,
    lv: LeftVentricle,
    place: WallFrame,
    y: Floats,
    activation: Floats,
    blood: float,
    epi_mm: Floats,
    lateral: Floats,
) -> Floats:
    """Paint left atrium, then left ventricle."""
    length = place.length_mm
    # The roof of the atrium stays while the mitral plane moves, so it fills in systole.
    height = lv.length_mm + 44.0 - length
    atrium = _ellipse(place.x, y, 2.0, length + 0.4 * height, 0.92 * lv.radius_mm + 3.0 * activation, 0.6 * height)
    below = _edge(y - length + 2.0)
    scatter = _paint(scatter, _edge(atrium + 3.5) * below, 0.45)
    scatter = _paint(scatter, _edge(atrium) * below, blood)
    # The lateral wall lies along the beams and returns less than the septum.
    above = _edge(length + 1.5 - y, 3.0)
    cavity = _edge((1.0 - place.inner) * lv.radius_mm)
    scatter = _paint(scatter, _edge(-epi_mm) * (1.0 - cavity) * above, 1.0 - 0.42 * lateral)
    return _paint(scatter, cavity * above, blood)


def _annuli_and_valves(lv: LeftVentricle, place: WallFrame, y: Floats, activation: Floats, opening: Floats) -> Floats:
    """Bright fibrous rings where the leaflets hinge, and the leaflets of both valves."""
    x, length = place.x, place.length_mm
    base = BASE_WIDTH * lv.radius_mm * (1.0 - lv.contraction * activation)
    axis, half_width = _right_ventricle(lv, activation)
    rings = np.zeros_like(x)
    for centre, size_mm, level in (
        (-base - 0.5 * lv.septum_mm, 3.0, 1.8),
        (base + 0.5 * lv.lateral_mm, 3.2, 2.2),
        (axis - half_width, 2.6, 1.4),
    ):
        rings += np.exp(((x - centre) ** 2 + (y - length) ** 2) * (-0.5 / size_mm**2)) * level
    anterior = _leaflet(x, y, (-base, length), 1.12 * lv.radius_mm, 1.0, opening)
    posterior = _leaflet(x, y, (base, length), 0.82 * lv.radius_mm, -1.0, opening)
    tricuspid = 0.7 * _leaflet(x, y, (axis - half_width + 2.0, length), 17.0, 1.0, opening)
    return np.asarray(rings + np.maximum(anterior, np.maximum(posterior, tricuspid)), dtype=np.float32)
