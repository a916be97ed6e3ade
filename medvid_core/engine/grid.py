"""Settings with several values, ``optimizer.lr=1e-3,1e-4``: every combination is a point of a grid."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from medvid_core.config import Composed, flatten
from medvid_core.errors import ConfigError

FIXED = {
    "dataset": "the points would not be scored on the same cases",
    "split": "the points would not be scored on the same cases",
    "metrics": "the points would not be scored alike",
    "outputs": "the points would not predict the same",
    "evaluate": "the points would not be scored alike",
    "model.name": "models are compared with medvid-run compare --models",
    "model": "models are compared with medvid-run compare --models",
    "seed": "the best of several seeds is chance; medvid-run compare --seeds shows how much they differ",
}
"""Settings, or the sections they are in, that are the same at every point, with the reason."""
_SECTIONS = ("dataset", "split", "evaluate")
_ALIKE = ("metrics", "outputs", "evaluate.at", "evaluate.prompt", "dataset.*", "split.*")
"""Settings that must come out the same at every point, whatever sets them: a preset sets several at once."""
_SEEN = ("clip.size", "clip.fan_crop")
"""And those that decide, with ``evaluate.at=model``, which pixels are scored."""
_PAIRS = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        name: as a folder name; empty where there is no grid.
        words: ``key=value``, of the settings that differ.
    """

    name: str
    words: tuple[str, ...]


def points_of(settings: Sequence[str]) -> tuple[list[str], list[Point]]:
    """Return the settings that are the same everywhere, and the points of the grid; without one, a single point.

    A value is several if commas divide it outside of brackets and quotes: ``[64,64]`` is one, ``[64,64],[96,96]`` are
    two.

    Raises:
        ConfigError: a value that stands twice, an empty one, or a key that must be the same everywhere.
    """
    axes: dict[str, list[str]] = {}
    same = []
    for word in settings:
        key, _, text = word.partition("=")
        values = split_values(text)
        if len(values) == 1:
            same.append(word)
            continue
        section = key.split(".")[0]
        reason = FIXED.get(key) or (FIXED[section] if section in _SECTIONS else "")
        if reason:
            raise ConfigError(f"{word!r} cannot be searched over: {reason}. Give {key} one value, a list in brackets.")
        if "" in values or len(set(values)) < len(values):
            raise ConfigError(f"{word!r}: the values to search over must be different, and none empty.")
        if key in axes:
            raise ConfigError(f"{key} is given twice; give all its values at once, divided by commas.")
        axes[key] = values
    if not axes:
        return same, [Point("", ())]
    points: list[Point] = []
    for values_of_point in itertools.product(*axes.values()):
        pairs = list(zip(axes, values_of_point, strict=True))
        name = "_".join(f"{_short(key, axes)}={value}" for key, value in pairs)
        points.append(Point(_folder(name, points), tuple(f"{key}={value}" for key, value in pairs)))
    return same, points


def check_alike(points: Sequence[Point], composed: Sequence[Composed]) -> None:
    """Refuse points that would be judged by different things: their values could not be compared.

    Args:
        points: of the grid.
        composed: the settings of each.

    Raises:
        ConfigError: naming two points and the setting.
    """
    settings = [flatten(each.config.to_dict()) for each in composed]
    first = settings[0]
    patterns = [*_ALIKE, *(_SEEN if first["evaluate.at"] == "model" else ())]
    for point, other in zip(points[1:], settings[1:], strict=True):
        for key in sorted({*first, *other}):
            if first.get(key) != other.get(key) and any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns):
                pixels = " (evaluate.at=model scores the pixels the model sees)" if key in _SEEN else ""
                raise ConfigError(
                    f"The points {points[0].name} and {point.name} cannot be compared: {key} is {first.get(key)} in "
                    f"one and {other.get(key)} in the other{pixels}. Give {key} one value for all."
                )


def split_values(text: str) -> list[str]:
    """Return the parts of a value between commas that stand outside of brackets and quotes."""
    parts, closing, quote = [""], list[str](), ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in _PAIRS:
            closing.append(_PAIRS[character])
        elif closing and character == closing[-1]:
            closing.pop()
        if character == "," and not closing and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _short(key: str, keys: Sequence[str] | dict[str, list[str]]) -> str:
    """Return the last word of a key, or all of it where that would be another's too."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def _folder(name: str, points: Sequence[Point]) -> str:
    """Return a name as a folder can have it; ``=`` stays."""
    from medvid_core.report.overlay import safe_name

    if all(character.isalnum() or character in "._-=+" for character in name) and len(name) <= 80:
        return name
    return safe_name(name, [point.name for point in points])
