"""What is behind a walker: a room with skirting, floor, door, window, pictures and furniture, or a plain backdrop."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Floats = npt.NDArray[np.float32]
_Ink = tuple[int, int, int]

_FINE = 3  # drawn so many times larger, then averaged
_WALLS = ((226, 222, 210), (205, 214, 220), (214, 205, 190), (190, 200, 190), (232, 232, 232), (176, 182, 192))
_FLOORS = ((150, 115, 82), (120, 92, 68), (168, 164, 156), (112, 120, 126), (186, 170, 146), (140, 150, 140))
_WOODS = ((120, 84, 54), (168, 128, 88), (92, 66, 48), (210, 204, 196), (70, 74, 82))


def draw_room(rng: np.random.Generator, size: tuple[int, int], skirting: float) -> Floats:
    """Draw a room [H, W, 3] in 0 to 1; wall and floor meet at row ``skirting``."""
    height, width = size
    picture = Image.new("RGB", (width * _FINE, height * _FINE), _tint(rng, _WALLS))
    pen = ImageDraw.Draw(picture)
    pen_width, pen_height = picture.size
    floor_row = int(skirting * _FINE)
    _wallpaper(rng, pen, pen_width, floor_row)
    for draw in rng.permutation(np.array([_door, _window, _pictures, _cabinet, _chair, _radiator], dtype=object))[
        : int(rng.integers(2, 5))
    ]:
        draw(rng, pen, pen_width, floor_row)
    _floor(rng, pen, pen_width, pen_height, floor_row)
    room = np.asarray(picture, dtype=np.float32).reshape(height, _FINE, width, _FINE, 3).mean((1, 3)) / 255.0
    return np.asarray(np.clip(room * _light(rng, size), 0.0, 1.0), dtype=np.float32)


def draw_backdrop(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Draw a seamless, evenly lit backdrop of one colour [H, W, 3] in 0 to 1."""
    return np.full((*size, 3), np.array(_tint(rng, _WALLS)) / 255.0, dtype=np.float32)


def _tint(rng: np.random.Generator, colours: tuple[_Ink, ...]) -> _Ink:
    """One of the colours, a little off."""
    red, green, blue = np.array(colours[int(rng.integers(len(colours)))]) + rng.integers(-12, 13, 3)
    return _ink(red), _ink(green), _ink(blue)


def _ink(level: float) -> int:
    return int(min(max(level, 0), 255))


def _shaded(colour: _Ink, by: float) -> _Ink:
    red, green, blue = (_ink(by * part) for part in colour)
    return red, green, blue


def _wallpaper(rng: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, floor: int) -> None:
    """Sometimes stripes, sometimes a dado of another colour."""
    kind = int(rng.integers(3))
    colour = _tint(rng, _WALLS)
    if kind == 1:
        step = int(rng.uniform(0.03, 0.07) * width)
        for left in range(0, width, step):
            pen.rectangle((left, 0, left + step // 2, floor), fill=colour)
    elif kind == 2:
        pen.rectangle((0, int(floor * rng.uniform(0.5, 0.65)), width, floor), fill=_shaded(colour, 0.9))


def _floor(rng: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, height: int, floor: int) -> None:
    """Boards or tiles that run away from the camera, and the skirting board."""
    colour = _tint(rng, _FLOORS)
    pen.rectangle((0, floor, width, height), fill=colour)
    seam, step = _shaded(colour, 0.88), float(rng.uniform(0.06, 0.14)) * width
    vanish = width * float(rng.uniform(0.35, 0.65))
    narrower = 0.9 * height / (0.9 * height + height - floor)  # at the wall: the boards meet 0.9 of a height above it
    for k in range(-20, 40):
        foot = k * step
        pen.line((vanish + (foot - vanish) * narrower, floor, foot, height), fill=seam, width=_FINE - 1)
    if rng.random() < 0.6:
        for share in (0.12, 0.3, 0.58):
            row = floor + share * (height - floor)
            pen.line((0, row, width, row), fill=seam, width=_FINE - 1)
    board = max(2, height // 45)
    pen.rectangle((0, floor - board, width, floor), fill=_shaded(_tint(rng, _WOODS), 1.1))


def _door(rng: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, floor: int) -> None:
    left, wide, tall = rng.uniform(0.0, 0.85) * width, 0.34 * floor, rng.uniform(0.78, 0.88) * floor
    colour = _tint(rng, _WOODS)
    pen.rectangle((left - 6, floor - tall - 6, left + wide + 6, floor), fill=_shaded(colour, 0.8))
    pen.rectangle((left, floor - tall, left + wide, floor), fill=colour)
    for low, high in ((0.08, 0.45), (0.52, 0.92)):
        box = (left + 0.15 * wide, floor - high * tall, left + 0.85 * wide, floor - low * tall)
        pen.rectangle(box, outline=_shaded(colour, 0.75), width=3)
    pen.ellipse((left + 0.85 * wide, floor - 0.5 * tall, left + 0.93 * wide, floor - 0.46 * tall), fill=(200, 190, 140))


def _window(rng: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, floor: int) -> None:
    left, top = rng.uniform(0.0, 0.75) * width, rng.uniform(0.1, 0.2) * floor
    wide, tall = rng.uniform(0.35, 0.6) * floor, rng.uniform(0.35, 0.45) * floor
    pen.rectangle((left - 6, top - 6, left + wide + 6, top + tall + 6), fill=(236, 234, 228))
    pen.rectangle((left, top, left + wide, top + tall), fill=_tint(rng, ((168, 200, 226), (205, 220, 230))))
    pen.line((left + wide / 2, top, left + wide / 2, top + tall), fill=(236, 234, 228), width=5)
    pen.line((left, top + tall / 2, left + wide, top + tall / 2), fill=(236, 234, 228), width=5)


def _pictures(rng: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, floor: int) -> None:
    for _ in range(int(rng.integers(1, 4))):
        left, top = rng.uniform(0.0, 0.9) * width, rng.uniform(0.12, 0.35) * floor
        wide, tall = rng.uniform(0.12, 0.25) * floor, rng.uniform(0.12, 0.25) * floor
        pen.rectangle((left, top, left + wide, top + tall), fill=_tint(rng, _WOODS))
        pen.rectangle((left + 5, top + 5, left + wide - 5, top + tall - 5), fill=_tint(rng, _WALLS + _FLOORS))


def _cabinet(rng: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, floor: int) -> None:
    left, wide, tall = rng.uniform(-0.05, 0.8) * width, rng.uniform(0.35, 0.7) * floor, rng.uniform(0.25, 0.5) * floor
    colour = _tint(rng, _WOODS)
    pen.rectangle((left, floor - tall, left + wide, floor), fill=colour)
    doors = int(rng.integers(2, 4))
    for k in range(doors):
        box = (left + k * wide / doors + 3, floor - tall + 6, left + (k + 1) * wide / doors - 3, floor - 5)
        pen.rectangle(box, outline=_shaded(colour, 0.72), width=3)


def _chair(rng: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, floor: int) -> None:
    left, wide, seat, bar = rng.uniform(0.0, 0.88) * width, 0.19 * floor, 0.24 * floor, 0.022 * floor
    colour = _tint(rng, _WOODS + _FLOORS)
    for column in (left, left + wide - bar):
        pen.rectangle((column, floor - seat, column + bar, floor), fill=_shaded(colour, 0.7))
    pen.rectangle((left, floor - 0.48 * floor, left + bar, floor - seat), fill=_shaded(colour, 0.7))
    pen.rectangle((left, floor - seat - 1.3 * bar, left + wide, floor - seat), fill=colour)


def _radiator(rng: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, floor: int) -> None:
    left, ribs, rib = rng.uniform(0.0, 0.8) * width, int(rng.integers(7, 13)), 0.045 * floor
    for k in range(ribs):
        box = (left + k * rib, floor - 0.32 * floor, left + (k + 0.7) * rib, floor - 0.05 * floor)
        pen.rectangle(box, fill=(228, 226, 220), outline=(188, 186, 180))


def _light(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Brightness and tint that vary slowly over the picture, plaster and dust in fine grain [H, W, 3]."""
    rows, columns = np.indices(size, dtype=np.float32)
    y, x = rows / size[0] - 0.5, columns / size[1] - 0.5
    lamp_x, lamp_y = rng.uniform(-0.6, 0.6), rng.uniform(-0.9, 0.0)
    fall = np.exp(-0.5 * ((x - lamp_x) ** 2 + (y - lamp_y) ** 2) / rng.uniform(0.5, 1.2) ** 2)
    grain = rng.standard_normal(size, dtype=np.float32)
    coarse = (grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1) + np.roll(grain, (1, 1), (0, 1))) / 2
    level = rng.uniform(0.62, 0.8) + 0.3 * fall + rng.uniform(0.003, 0.012) * coarse
    warmth = float(rng.uniform(-0.05, 0.07))
    return np.asarray(level[..., None] * np.array([1.0 + warmth, 1.0, 1.0 - warmth]), dtype=np.float32)
