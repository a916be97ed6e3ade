"""A dressed person painted over a picture: limbs of any outline, shaded as if round, clothes whose pattern moves along.

Every part of the body is a bone with an outline in front of and behind it (`Part`); its pixels know where on the part
they lie, which is what the shading and the weave are looked up by. Parts are painted from the far side to the near one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medvid_core.data.phantoms.walker import Doubles, Joints

Floats = npt.NDArray[np.float32]
Real = npt.NDArray[np.floating[Any]]
Colour = tuple[float, float, float]

PATTERNS = ("plain", "plain", "rings", "stripes", "checks", "blotches")
_WEAVE = 64  # cells of a side of a weave
_CELLS = 100.0  # cells a metre
_SOFT_PX = 1.3  # width of the ramp at an outline: what the lens blurs


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Build and clothes of one person.

    Attributes:
        height_m: body height.
        stout: widths of the body over those of a slim one.
        skin, hair, shirt, trousers, shoes: colours in 0 to 1.
        weave: pattern of the shirt, one of `PATTERNS`, and of the trousers.
        accent: second colour of the shirt's pattern.
        sleeve: share of the arm that the shirt covers: 0.5 to the elbow, 1 to the wrist.
        legs: share of the leg that the trousers cover: 0.5 to the knee, 1 to the foot.
        hem: how far the shirt hangs below the hip joint, in body heights.
        long_hair: whether it reaches the neck.
        seed: of the weave.
    """

    height_m: float
    stout: float
    skin: Colour
    hair: Colour
    shirt: Colour
    accent: Colour
    trousers: Colour
    shoes: Colour
    weave: tuple[str, str]
    sleeve: float
    legs: float
    hem: float
    long_hair: bool
    seed: int


_SKINS = ((0.93, 0.76, 0.65), (0.86, 0.66, 0.53), (0.72, 0.52, 0.39), (0.50, 0.34, 0.25), (0.36, 0.24, 0.18))
_HAIRS = ((0.10, 0.08, 0.07), (0.25, 0.17, 0.11), (0.45, 0.33, 0.20), (0.62, 0.62, 0.62), (0.82, 0.81, 0.79))


def draw_looks(rng: np.random.Generator, height_m: tuple[float, float] = (1.52, 1.78)) -> Looks:
    """Draw a person."""
    shirt, accent, trousers = (_cloth(rng) for _ in range(3))
    return Looks(
        height_m=float(rng.uniform(*height_m)), stout=float(rng.uniform(0.92, 1.28)),
        skin=_SKINS[int(rng.integers(len(_SKINS)))], hair=_HAIRS[int(rng.integers(len(_HAIRS)))], shirt=shirt,
        accent=accent, trousers=_scaled(trousers, 0.75), shoes=_scaled(_cloth(rng), float(rng.uniform(0.4, 1.1))),
        weave=(str(rng.choice(PATTERNS)), str(rng.choice(("plain", "plain", "plain", "blotches")))),
        sleeve=float(rng.choice((0.42, 0.5, 1.0, 1.0))), legs=float(rng.choice((0.56, 1.0, 1.0, 1.0))),
        hem=float(rng.uniform(0.0, 0.05)), long_hair=bool(rng.random() < 0.4), seed=int(rng.integers(2**31)),
    )  # fmt: skip


def _cloth(rng: np.random.Generator) -> Colour:
    """A dyed colour: any hue, mostly muted, from nearly black to white."""
    hue = rng.uniform(0, 6)
    value, saturation = rng.uniform(0.15, 0.95), rng.beta(1.3, 1.8)
    wheel = np.clip(np.abs(np.mod(hue + np.array([0.0, 4.0, 2.0]), 6.0) - 3.0) - 1.0, 0.0, 1.0)
    red, green, blue = value * (1.0 - saturation * (1.0 - wheel))
    return float(red), float(green), float(blue)


def _scaled(colour: Colour, by: float) -> Colour:
    red, green, blue = (min(1.0, by * part) for part in colour)
    return red, green, blue


def weave(pattern: str, colour: Colour, accent: Colour, rng: np.random.Generator) -> Floats:
    """One repeat of a cloth [64, 64, 3], a cell each centimetre; rows go along a limb, columns round it."""
    rows, columns = np.indices((_WEAVE, _WEAVE)) / _WEAVE
    count = int(rng.integers(6, 11))
    rings = 0.5 + 0.5 * np.tanh(3.0 * np.sin(2 * np.pi * count * rows))
    stripes = 0.5 + 0.5 * np.tanh(3.0 * np.sin(2 * np.pi * count * columns))
    noise = _ripples(rng, 5)
    share = {
        "plain": np.zeros_like(rows),
        "rings": rings,
        "stripes": stripes,
        "checks": 0.5 * (rings + stripes),
        "blotches": 0.5 + 0.5 * np.tanh(2.0 * noise),
    }[pattern]
    cloth = np.asarray(colour) + share[..., None] * (np.asarray(accent) - np.asarray(colour))
    return np.asarray(cloth * (1.0 + 0.06 * _ripples(rng, 9)[..., None]), dtype=np.float32)


def _ripples(rng: np.random.Generator, waves: int) -> Doubles:
    """Smooth noise of unit power that repeats [64, 64], with up to so many waves a side."""
    k = np.fft.fftfreq(_WEAVE, 1.0 / _WEAVE)
    low = np.exp(-0.5 * (k[:, None] ** 2 + k**2) / (0.5 * waves) ** 2)
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((_WEAVE, _WEAVE))) * low).real
    return np.asarray(field / field.std())


@dataclass(frozen=True, kw_only=True)
class Part:
    """A bone with an outline.

    Attributes:
        start, end: joints; for limbs from the trunk outward, for the foot from heel to toe.
        along: places on the bone, 0 at the start and 1 at the end, at which the outline is given.
        front, back: distance of the outline from the bone there, in body heights.
        bow: how far the bone itself is bent forward there.
        cloths: (place on the bone up to which it reaches, name of a cloth), in order.
        detail: "" or "head".
    """

    start: str
    end: str
    along: tuple[float, ...]
    front: tuple[float, ...]
    back: tuple[float, ...]
    cloths: tuple[tuple[float, str], ...]
    bow: tuple[float, ...] = ()
    detail: str = ""


def _arm(looks: Looks, side: str) -> tuple[Part, ...]:
    long = looks.sleeve > 0.5
    slack = 0.004 if long else 0.0
    upper = ((9.0, "shirt"),) if long else ((2 * looks.sleeve, "shirt"), (9.0, "skin"))
    fore = ((2 * looks.sleeve - 1.0, "shirt"), (9.0, "skin")) if long else ((9.0, "skin"),)
    return (
        Part(
            start=f"{side}_shoulder", end=f"{side}_elbow", along=(0.0, 0.25, 0.6, 1.0),
            front=(0.027, 0.028, 0.025 + slack, 0.020 + slack), back=(0.030, 0.030, 0.025 + slack, 0.021 + slack),
            cloths=upper,
        ),
        Part(
            start=f"{side}_elbow", end=f"{side}_wrist", along=(0.0, 0.3, 0.7, 1.0),
            front=(0.020 + slack, 0.022 + slack, 0.017 + slack, 0.013 + slack),
            back=(0.021 + slack, 0.021 + slack, 0.016 + slack, 0.013 + slack), cloths=fore,
        ),
        Part(
            start=f"{side}_wrist", end=f"{side}_fingers", along=(0.0, 0.3, 0.7, 1.0),
            front=(0.013, 0.021, 0.019, 0.009), back=(0.012, 0.016, 0.014, 0.008), cloths=((9.0, "skin"),),
        ),
    )  # fmt: skip


def _leg(looks: Looks, side: str) -> tuple[Part, ...]:
    shank: tuple[tuple[float, str], ...] = ((0.97, "trousers"), (9.0, "shoes"))
    loose = 0.008
    if looks.legs < 0.75:  # shorts, to below the knee
        shank, loose = ((2 * looks.legs - 1.0, "trousers"), (0.93, "skin"), (9.0, "shoes")), 0.0
    return (
        Part(
            start=f"{side}_hip", end=f"{side}_knee", along=(0.0, 0.2, 0.6, 1.0),
            front=(0.056, 0.056, 0.043, 0.033), back=(0.060, 0.056, 0.041, 0.030), cloths=((9.0, "trousers"),),
        ),
        Part(
            start=f"{side}_knee", end=f"{side}_ankle", along=(0.0, 0.12, 0.35, 0.7, 1.0),
            front=(0.033, 0.031, 0.026 + loose / 2, 0.021 + loose, 0.018 + loose),
            back=(0.030, 0.032, 0.040, 0.026 + loose, 0.020 + loose), cloths=shank,
        ),
        Part(
            start=f"{side}_heel", end=f"{side}_ball", along=(0.0, 0.15, 0.4, 0.75, 1.0),
            front=(0.020, 0.044, 0.046, 0.032, 0.024), back=(0.0, 0.0, 0.0, 0.0, 0.0), cloths=((9.0, "shoes"),),
        ),
        Part(
            start=f"{side}_ball", end=f"{side}_toe", along=(0.0, 0.6, 1.0), front=(0.024, 0.018, 0.010),
            back=(0.0, 0.0, 0.0), cloths=((9.0, "shoes"),),
        ),
    )  # fmt: skip


def _trunk(looks: Looks, bulge: float) -> tuple[Part, ...]:
    """Neck, trunk and head; the trunk from its top down."""
    below = 1.0 + looks.hem / 0.288
    return (
        Part(
            start="neck", end="chin", along=(0.0, 0.5, 1.0), front=(0.030, 0.026, 0.028), back=(0.034, 0.031, 0.034),
            cloths=((0.1, "shirt"), (9.0, "skin")),
        ),
        Part(
            start="shoulders", end="hips", along=(0.0, 0.12, 0.3, 0.5, 0.7, 0.88, 1.0, 1.12),
            front=(0.020, 0.046, 0.066, 0.063, 0.058, 0.062, 0.056, 0.044),
            back=(0.030, 0.048, 0.056, 0.050, 0.047, 0.064, 0.073, 0.060),
            bow=(0.0, -0.6 * bulge, -bulge, -0.4 * bulge, 0.5 * bulge, 0.2 * bulge, 0.0, 0.0),
            cloths=((below, "shirt"), (9.0, "trousers")),
        ),
        Part(
            start="crown", end="chin", along=(0.46, 0.54, 0.60, 0.66, 0.73, 0.78, 0.86, 0.96, 1.0),
            front=(0.060, 0.058, 0.066, 0.069, 0.057, 0.059, 0.055, 0.050, 0.034),
            back=(0.060, 0.060, 0.058, 0.054, 0.048, 0.042, 0.032, 0.020, 0.008),
            cloths=((9.0, "skin"),), detail="head",
        ),
    )  # fmt: skip


class Figure:
    """A person ready to be painted at one scale.

    Args:
        looks: build and clothes.
        bulge: how far the thorax bulges backward, in body heights.
        scale: pixels a metre.
        direction: 1 walks to the right of the picture, -1 to the left.
    """

    def __init__(self, looks: Looks, bulge: float, scale: float, direction: int) -> None:
        self.looks, self.scale, self.direction = looks, scale, direction
        rng = np.random.default_rng(looks.seed)
        self.cloths = {
            "shirt": weave(looks.weave[0], looks.shirt, looks.accent, rng),
            "trousers": weave(looks.weave[1], looks.trousers, _scaled(looks.trousers, 0.6), rng),
            "shoes": weave("plain", looks.shoes, looks.shoes, rng),
            "skin": weave("plain", looks.skin, looks.skin, rng),
        }
        near, far = ("right", "left") if direction > 0 else ("left", "right")
        neck, trunk, head = _trunk(looks, bulge)
        # far limbs lie in the shade of the body
        self.parts = (
            *((part, 0.70) for part in _arm(looks, far)),
            *((part, 0.74) for part in _leg(looks, far)[::-1]),
            (neck, 0.9),
            *((part, 1.0) for part in _leg(looks, near)[::-1]),
            (trunk, 1.0),
            (head, 1.0),
            *((part, 1.04) for part in _arm(looks, near)),
        )

    def paint(self, canvas: Floats, cover: Floats, places: Joints, frame: int) -> None:
        """Paint one frame over ``canvas`` [H, W, 3] in 0 to 1, and add where it is to ``cover`` [H, W].

        ``places``: joints in pixels (column, row) [T, 2].
        """
        for part, light in self.parts:
            self._paint(canvas, cover, part, light, places[part.start][frame], places[part.end][frame])

    def _paint(self, canvas: Floats, cover: Floats, part: Part, light: float, start: Doubles, end: Doubles) -> None:
        unit = self.scale * self.looks.height_m
        wide = unit * (self.looks.stout if part.detail == "" and "heel" not in part.start else 1.0)
        reach = wide * (max(*part.front, *part.back) + max(map(abs, part.bow), default=0.0)) + 2.0
        low, high = np.minimum(start, end) - reach, np.maximum(start, end) + reach
        left, top = (max(int(edge), 0) for edge in low)
        right, bottom = int(high[0]) + 1, int(high[1]) + 1
        window = canvas[top:bottom, left:right]
        if window.size == 0:
            return
        rows = np.arange(window.shape[0], dtype=np.float32)[:, None] + np.float32(top + 0.5 - start[1])
        columns = np.arange(window.shape[1], dtype=np.float32) + np.float32(left + 0.5 - start[0])
        length = max(float(np.hypot(*(end - start))), 1e-3)
        ux, uy = (np.float32(step) for step in (end - start) / length)
        along = (columns * ux + rows * uy) / np.float32(length)
        across = np.float32(self.direction) * (columns * uy - rows * ux)
        on_bone = np.clip(along, part.along[0], part.along[-1])
        bow = np.interp(on_bone, part.along, part.bow) * wide if part.bow else 0.0
        across = across - bow
        ahead = across > 0
        width = wide * np.where(
            ahead, np.interp(on_bone, part.along, part.front), np.interp(on_bone, part.along, part.back)
        )
        beyond = (along - on_bone) * length
        alpha = np.clip(0.5 - (np.hypot(across, beyond) - width) / _SOFT_PX, 0.0, 1.0).astype(np.float32)
        round_ = np.clip(across / np.maximum(width, 1e-3), -1.0, 1.0)
        # lit from above and ahead; darker towards the outline
        shade = light * (0.66 + 0.34 * np.sqrt(1.0 - 0.92 * round_**2) + 0.06 * round_ * (uy + 0.3))
        colour = self._colour(part, along, along * length, across, round_) * shade[..., None]
        window += (colour.astype(np.float32) - window) * alpha[..., None]
        part_cover = cover[top:bottom, left:right]
        part_cover += (1.0 - part_cover) * alpha

    def _colour(self, part: Part, along: Real, down: Real, across: Real, side: Real) -> Floats:
        """Colour of each pixel of a part, unshaded [..., 3]."""
        cells = _CELLS / self.scale
        row, column = (np.floor(cells * place).astype(np.int64) & (_WEAVE - 1) for place in (down, across))
        (_, name), *others = part.cloths
        colour = self.cloths[name][row, column]
        border = part.cloths[0][0]
        for until, name in others:
            edge = np.clip((along - border) * 24.0 + 0.5, 0.0, 1.0)[..., None]
            colour = colour + (self.cloths[name][row, column] - colour) * edge
            border = until
        return self._head(colour, along, side) if part.detail == "head" else colour

    def _head(self, colour: Floats, along: Real, side: Real) -> Floats:
        """Hair, eye, mouth and ear on the side of a head."""
        looks = self.looks
        hairline = np.where(along < 0.34, 0.95 - 1.1 * np.maximum(along - 0.12, 0.0), 0.12 - 1.1 * (along - 0.34))
        hairline = np.where(along > (1.2 if looks.long_hair else 0.66), -2.0, np.maximum(hairline, -0.22))
        hair = np.clip((hairline - side) * 5.0, 0.0, 1.0)
        ear = np.exp(-(((along - 0.56) / 0.08) ** 2) - ((side + 0.02) / 0.13) ** 2) * 1.3
        eye = np.exp(-(((along - 0.5) / 0.035) ** 2) - ((side - 0.68) / 0.11) ** 2)
        brow = np.exp(-(((along - 0.42) / 0.025) ** 2) - ((side - 0.7) / 0.18) ** 2)
        mouth = np.exp(-(((along - 0.83) / 0.025) ** 2) - ((side - 0.85) / 0.16) ** 2)
        combed = colour + (np.asarray(looks.hair) - colour) * hair[..., None]
        face = combed + (0.88 * np.asarray(looks.skin) - combed) * np.clip(ear, 0.0, 1.0)[..., None]
        dark = 1.0 - 0.8 * eye - 0.4 * brow - 0.45 * mouth
        return np.asarray(face * dark[..., None], dtype=np.float32)


def in_pixels(found: Joints, height_m: float, scale: float, direction: int, origin: tuple[float, float]) -> Joints:
    """Turn joints in body heights [T, 2] into pixels (column, row); ``origin``: pixel of x = 0 on the ground.

    The far foot stands a little higher in the picture, as the camera looks down on the floor.
    """
    far = "left" if direction > 0 else "right"
    raised = {f"{far}_{name}": 0.014 for name in ("ankle", "heel", "ball", "toe")} | {f"{far}_knee": 0.006}
    unit = scale * height_m
    return {
        name: np.stack(
            [origin[0] + direction * unit * place[:, 0], origin[1] - unit * (place[:, 1] + raised.get(name, 0.0))], -1
        )
        for name, place in found.items()
    }
