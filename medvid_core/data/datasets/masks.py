"""What the adapters share about masks: their configuration, and the sources and outputs that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

from medvid_core.data.clip import Source
from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How raw mask values become classes.

    Attributes:
        classes: one name: binary, the name of the foreground. Several: the first is the background.
            None: ``("foreground",)``, or as many as ``mask_values`` asks for.
        mask_values: raw pixel value of each class in order, background first (two values for a binary task).
            Default: 0 and 255 for a binary task (0 and 1 where ``mask_ignore`` is 255), else 0, 1, 2, ….
        mask_nonzero: every pixel that is not zero belongs to the one foreground class.
        mask_ignore: raw value of pixels that nobody annotated; -1 for none.
        mask_resize: resize masks (nearest neighbour) to the size of their frames where the two differ.
    """

    classes: tuple[str, ...] = ()
    mask_values: tuple[int, ...] = ()
    mask_nonzero: bool = False
    mask_ignore: int = -1
    mask_resize: bool = False


@dataclass(frozen=True)
class MaskPlan:
    """Class names, raw values and the way to read them."""

    classes: tuple[str, ...]
    values: tuple[int, ...]
    nonzero: bool
    ignore: int
    resize: bool

    def output(self) -> OutputSpec:
        """What a model predicts from these masks."""
        return OutputSpec(name="mask", task="segmentation", classes=self.classes)

    def source(self, reader: str, paths: tuple[str, ...]) -> Source:
        """The mask stream of one case."""
        return Source(
            reader=reader,
            paths=paths,
            values=self.values,
            nonzero=self.nonzero,
            ignore=self.ignore,
            options="resize" if self.resize else None,
        )


def plan(config: MaskConfig) -> MaskPlan:
    """Settle classes and values.

    Raises:
        ConfigError: if names and values do not fit each other.
    """
    values = tuple(config.mask_values)
    classes = tuple(config.classes) or default_classes(len(values) - 1, "foreground")
    wanted = max(2, len(classes))
    if config.mask_nonzero and (len(classes) > 1 or values):
        raise ConfigError(
            "dataset.mask_nonzero=true makes one class of every non-zero value: it goes with one name in "
            f"dataset.classes and no dataset.mask_values, not with classes {list(classes)} and values {list(values)}."
        )
    if values and len(values) != wanted:
        raise ConfigError(
            f"dataset.mask_values={list(values)} must hold {wanted} values, one for each class in order, background "
            f"first, to fit dataset.classes={list(classes)}."
        )
    if len(classes) > 255 or len(set(classes)) < len(classes) or len(set(values)) < len(values):
        raise ConfigError(
            f"dataset.classes={list(classes)} and dataset.mask_values={list(values)} must not repeat themselves, "
            "and there can be 255 at most."
        )
    if any(not 0 <= value < 65535 for value in values) or not -1 <= config.mask_ignore < 65535:
        raise ConfigError("dataset.mask_values and dataset.mask_ignore must lie in 0 to 65534 (mask_ignore=-1: none).")
    if not values and not config.mask_nonzero:
        binary = (0, 1) if config.mask_ignore == 255 else (0, 255)
        values = binary if len(classes) == 1 else tuple(range(len(classes)))
    return MaskPlan(classes, values, config.mask_nonzero, config.mask_ignore, config.mask_resize)


def default_classes(foregrounds: int, only: str = "class1") -> tuple[str, ...]:
    """Names for classes nobody named: one foreground (binary), or background and ``class1``, ``class2``, …."""
    if foregrounds < 2:
        return (only,)
    return ("background", *(f"class{number}" for number in range(1, foregrounds + 1)))
