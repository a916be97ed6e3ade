"""One colour a class, told apart by colour-blind readers too."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Colours = npt.NDArray[np.uint8]

# Okabe & Ito, "Color Universal Design" (2008); in this order because sky blue and orange stand out best on grey
_OKABE_ITO = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
)
_GOLDEN_RATIO = 0.618034


def palette(classes: int) -> Colours:
    """Return the colour of each mask value, uint8 [max(2, classes),3].

    Args:
        classes: number of classes of the output; 1 is binary and has two mask values.

    Value 0, the background, is black. Beyond seven foreground classes the hues are spread by the golden ratio.
    """
    rows = [(0, 0, 0), *_OKABE_ITO[: max(2, classes) - 1]]
    for number in range(len(rows), max(2, classes)):
        hue, level = number * _GOLDEN_RATIO % 1.0, 1.0 - 0.22 * (number % 3)
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * (number % 2), level)
        rows.append((round(255 * red), round(255 * green), round(255 * blue)))
    return np.array(rows, np.uint8)


def foreground(classes: Sequence[str]) -> dict[int, str]:
    """Return mask value → name of the classes that are drawn: a lone class has value 1, else class 0 is left out."""
    return {1: classes[0]} if len(classes) == 1 else dict(enumerate(classes[1:], 1))


def to_hex(colour: Sequence[int] | Colours) -> str:
    """Return ``#rrggbb``."""
    return "#" + "".join(f"{int(part):02x}" for part in colour)
