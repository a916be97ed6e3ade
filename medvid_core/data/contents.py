"""What stands in a case that folds shall share evenly: its classes and, of masks, how much of each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medvid_core.data.clip import UNLABELLED, Case
from medvid_core.data.loader import read_case_masks
from medvid_core.data.readers import image_size
from medvid_core.errors import DataError
from medvid_core.specs import OutputSpec

_FRAMES_AT_ONCE = 32


@dataclass(frozen=True)
class Content:
    """What is known of a case that folds shall share evenly.

    Attributes:
        classes: names of the classes that stand in it, as ``output: class``.
        shares: of masks, share of the annotated pixels of each foreground class.
        presence: of masks, share of the annotated frames in which each foreground class stands.
        annotated: number of frames with masks; 1 where masks are not predicted.
        digest: hash of the masks themselves; empty where there are none, or one cannot be read.
        key: see `key_of`.
    """

    classes: frozenset[str]
    shares: tuple[float, ...] = ()
    presence: tuple[float, ...] = ()
    annotated: int = 1
    digest: str = ""
    key: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**vars(self), "classes": sorted(self.classes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Content:
        """Return what `to_dict` gave.

        Raises:
            KeyError, TypeError: it did not give that.
        """
        sequences = {name: tuple(data[name]) for name in ("shares", "presence")}
        return cls(**{**data, **sequences, "classes": frozenset(data["classes"])})


def masks_of(outputs: Sequence[OutputSpec]) -> OutputSpec | None:
    """Return the output that is predicted as masks; None where there is none."""
    return next((output for output in outputs if output.task == "segmentation"), None)


def key_of(case: Case, outputs: Sequence[OutputSpec]) -> str:
    """Return a hash of all that `content_of` depends on; of files size and time of change, not what is in them."""
    masks, video = case.streams.get("mask"), case.streams["video"]
    files = [*(masks.paths if masks else ()), *video.paths[:1]]  # the first frame gives the size
    known = [sorted(known_classes(case, output)) for output in outputs]
    parts = (tuple(outputs), known, case.frames, case.labelled, masks, video.reader, [_changed(path) for path in files])
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _changed(path: str) -> tuple[int, int]:
    """Size and time of change of a file; zeros where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def content_of(case: Case, outputs: Sequence[OutputSpec]) -> Content:
    """Look at the targets of a case and, where masks are predicted, at all of its masks."""
    classes = classes_of(case, outputs)
    masks = masks_of(outputs)
    if masks is None:
        return Content(classes)
    key = key_of(case, outputs)
    names = masks.classes if len(masks.classes) == 1 else masks.classes[1:]
    frames = [frame for frame in range(case.frames) if case.is_labelled(frame)]
    pixels, present, known = np.zeros(len(names)), np.zeros(len(names)), 0
    digest = hashlib.sha256()
    try:
        size = image_size(case.streams["video"]) if frames else (1, 1)
        for start in range(0, len(frames), _FRAMES_AT_ONCE):
            found, _ = read_case_masks(case, frames[start : start + _FRAMES_AT_ONCE], size)
            where = np.stack([found == number for number in range(1, len(names) + 1)])
            pixels += where.sum((1, 2, 3))
            present += where.any((2, 3)).sum(1)
            known += int((found != UNLABELLED).sum())
            digest.update(found.tobytes())
    except DataError:  # a corrupt file costs its case, as in training and evaluation
        return Content(classes, (0.0,) * len(names), (0.0,) * len(names), 0, key=key)
    classes |= {f"{masks.name}: {name}" for name, count in zip(names, present, strict=True) if count}
    return Content(
        classes,
        tuple((pixels / max(1, known)).tolist()),
        tuple((present / max(1, len(frames))).tolist()),
        len(frames),
        digest.hexdigest(),
        key,
    )


def classes_of(case: Case, outputs: Sequence[OutputSpec]) -> frozenset[str]:
    """Return the names of the classes that are true of a case or of its frames, as ``output: class``; none of masks."""
    return frozenset(f"{output.name}: {name}" for output in outputs for name in known_classes(case, output))


def known_classes(case: Case, output: OutputSpec) -> Iterable[str]:
    """Return the classes that are true of a case, or of a frame of it."""
    if output.task == "frame_classification":
        values = np.asarray(case.frame_targets.get(output.name, ()), np.float64)
        return {output.classes[int(value)] for value in values[~np.isnan(values)]}
    if output.name not in case.targets:
        return ()
    if output.task == "classification":
        return (output.classes[int(np.asarray(case.targets[output.name]))],)
    if output.task == "multilabel":
        values = np.asarray(case.targets[output.name], np.float64)
        return {name for name, value in zip(output.classes, values, strict=True) if value > 0}
    return ()
