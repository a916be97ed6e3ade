"""Prompts: what a user points at in a video, for models that take it (`ModelSpec.prompts`).

A file of prompts is JSON, with coordinates in pixels of the source, (x, y) from the centre of the top left pixel::

    {"prompts": [
      {"frame": 0, "class": "lv", "points": [[120, 80], [40, 30]], "labels": [1, 0]},
      {"frame": 0, "class": "la", "box": [90, 150, 170, 210]},
      {"case": "patient2", "frame": 12, "class": "lv", "mask": "patient2_frame12.png"}
    ]}

``labels`` says which points lie inside (1) and outside (0); without it all are inside. A box is left, top, right,
bottom; a mask is an image of the source's size beside the file, where every pixel above 0 belongs to the class.
``case`` is the name of the video without its ending, and may be left out where there is one video only; ``class`` may
be left out where the model knows one only. Boxes, points and masks of one frame and class may be combined.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from medvid_core.data.clip import Array, Case
from medvid_core.data.transforms import crop_box
from medvid_core.errors import DataError, did_you_mean
from medvid_core.specs import OutputSpec

KINDS = ("point", "box", "mask")
"""What may be pointed with."""

ModelPrompt = dict[str, Any]
"""A prompt as models are given it: ``class`` (int), ``frame`` (int, in the clip) and any of ``points`` float [N,2],
``labels`` long [N], ``box`` float [4] and ``mask`` float [H,W] of 0 and 1, in pixels of the clip."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt in pixels of the source.

    Attributes:
        frame: of the video.
        label: class of the pixels that are meant, as in masks: 1 for the foreground of a binary output.
        points: (x, y) of each.
        positive: whether each lies inside.
        box: left, top, right, bottom.
        mask: bool [H,W].
    """

    frame: int
    label: int
    points: tuple[tuple[float, float], ...] = ()
    positive: tuple[bool, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: Array | None = None

    def check(self, height: int, width: int) -> None:
        """Refuse a prompt that points beyond the picture.

        Raises:
            DataError: a mask of another size, or a point or a side of the box outside.
        """
        what = f"The prompt of class {self.label} on frame {self.frame}"
        if self.mask is not None and self.mask.shape != (height, width):
            rows, columns = self.mask.shape
            raise DataError(f"{what}: its mask is {columns} x {rows} pixels, the video {width} x {height}.")
        corners = (self.box[:2], self.box[2:]) if self.box is not None else ()
        for x, y in (*self.points, *corners):
            if not (-1 <= x <= width and -1 <= y <= height):  # a pixel of grace: some count from corners
                raise DataError(f"{what}: ({x:g}, {y:g}) lies outside the video, which has {width} x {height} pixels.")

    def to_model(self, frame: int, affine: Tensor, size: Sequence[int]) -> ModelPrompt:
        """Return the prompt as a model takes it.

        Args:
            frame: its frame in the clip.
            affine: [3,3], source → clip pixel coordinates.
            size: height and width of the clip.
        """
        found: ModelPrompt = {"class": self.label, "frame": frame}
        if self.points:
            found["points"] = _moved(self.points, affine)
            found["labels"] = torch.tensor([int(inside) for inside in self.positive])
        if self.box is not None:
            found["box"] = _moved((self.box[:2], self.box[2:]), affine).flatten()
        if self.mask is not None:
            mask = torch.from_numpy(self.mask.astype(np.float32))[None, None]
            crop = crop_box(affine, size, (self.mask.shape[0], self.mask.shape[1]))
            mask = mask if crop is None else crop.cut(mask)
            found["mask"] = F.interpolate(mask, size=tuple(size), mode="nearest-exact")[0, 0]
        return found


def _moved(points: Sequence[Sequence[float]], affine: Tensor) -> Tensor:
    """Points [N,2] in pixels of the clip."""
    x = torch.tensor([[*point, 1.0] for point in points], dtype=torch.float32)
    return (x @ affine.T)[:, :2]


def read_prompts(path: Path, cases: Sequence[Case], output: OutputSpec) -> dict[str, tuple[Prompt, ...]]:
    """Read a file of prompts.

    Args:
        path: the JSON file.
        cases: the videos it is for.
        output: the masks it is for.

    Returns:
        The prompts of each case that has any.

    Raises:
        DataError: the file is missing or no such JSON, or a prompt names no case, class or frame that is there.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"The prompts {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}.") from error
    entries = content.get("prompts") if isinstance(content, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f'{path} holds no prompts. Expected: {{"prompts": [{{"frame": 0, "points": [[x, y]]}}, …]}}.')
    for key in content:
        if key != "prompts":
            raise DataError(
                f"{path}: unknown key {key!r} beside 'prompts'. Everything belongs into the list of prompts."
            )
    found: dict[str, dict[tuple[int, int], Prompt]] = {}
    for number, entry in enumerate(entries):
        reader = _Entry(entry, f"{path}, prompt {number}", path.parent)
        case = reader.case(cases)
        prompt, of_case = reader.prompt(case, output), found.setdefault(case.case_id, {})
        place = (prompt.frame, prompt.label)
        of_case[place] = reader.joined(of_case[place], prompt) if place in of_case else prompt
    return {name: tuple(prompts.values()) for name, prompts in found.items()}


_KEYS = ("case", "frame", "class", "points", "labels", "box", "mask")


class _Entry:
    """One entry of a file, and how errors call it."""

    def __init__(self, entry: Any, where: str, folder: Path) -> None:
        self.where, self.folder = where, folder
        if not isinstance(entry, Mapping):
            raise DataError(f"{where} must be an object with {', '.join(_KEYS)}.")
        self.entry = entry
        for key in entry:
            if key not in _KEYS:
                raise DataError(f"{where}: unknown key {key!r}.{did_you_mean(key, _KEYS)} Known: {', '.join(_KEYS)}.")

    def case(self, cases: Sequence[Case]) -> Case:
        names = [case.case_id for case in cases]
        name = self.entry.get("case", names[0] if len(names) == 1 else None)
        if name is None:
            raise DataError(f"{self.where} does not say for which of the {len(names)} videos it is: add case.")
        if name not in names:
            raise DataError(f"{self.where}: there is no video {name!r}.{did_you_mean(str(name), names)}")
        return cases[names.index(name)]

    def prompt(self, case: Case, output: OutputSpec) -> Prompt:
        frame = self.entry.get("frame")
        if type(frame) is not int or not 0 <= frame < case.frames:
            raise DataError(f"{self.where}: frame={frame} must be from 0 to {case.frames - 1}.")
        points = self._numbers("points", 2)
        labels = self.entry.get("labels", [1] * len(points))
        if (
            not isinstance(labels, list)
            or len(labels) != len(points)
            or any(type(label) is not int or label not in (0, 1) for label in labels)
        ):
            raise DataError(f"{self.where}: labels must be 1 (inside) or 0 (outside) for each of the points.")
        box = self._box()
        mask = self._mask()
        if not points and box is None and mask is None:
            raise DataError(f"{self.where} holds neither points nor box nor mask.")
        return Prompt(
            frame=frame,
            label=self._label(output),
            points=tuple((x, y) for x, y in points),
            positive=tuple(label == 1 for label in labels),
            box=box,
            mask=mask,
        )

    def joined(self, first: Prompt, second: Prompt) -> Prompt:
        """Return two prompts of one class in one frame as one: models take no more."""
        for what in ("box", "mask"):
            if getattr(first, what) is not None and getattr(second, what) is not None:
                raise DataError(f"{self.where} gives a second {what} for its class and frame. Leave one out.")
        return replace(
            first,
            points=first.points + second.points,
            positive=first.positive + second.positive,
            box=second.box if first.box is None else first.box,
            mask=second.mask if first.mask is None else first.mask,
        )

    def _label(self, output: OutputSpec) -> int:
        names = output.classes if len(output.classes) == 1 else output.classes[1:]
        name = self.entry.get("class", names[0] if len(names) == 1 else None)
        if name not in names:
            hint = did_you_mean(str(name), names)
            raise DataError(f"{self.where}: class={name!r} must be one of {', '.join(names)}.{hint}")
        return names.index(name) + 1

    def _box(self) -> tuple[float, float, float, float] | None:
        box = self.entry.get("box")
        if box is None:
            return None
        if not _are_numbers(box, 4) or not (box[0] < box[2] and box[1] < box[3]):
            raise DataError(f"{self.where}: box={box} must be left, top, right, bottom.")
        return (box[0], box[1], box[2], box[3])

    def _numbers(self, key: str, width: int) -> list[list[float]]:
        rows = self.entry.get(key, [])
        if not isinstance(rows, list) or not all(_are_numbers(row, width) for row in rows):
            raise DataError(f"{self.where}: {key} must be a list of [x, y].")
        return rows

    def _mask(self) -> Array | None:
        name = self.entry.get("mask")
        if name is None:
            return None
        try:
            with Image.open(self.folder / str(name)) as image:
                inside = np.asarray(image.convert("L")) > 0
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{self.where}: the mask {name} cannot be read: {error}.") from error
        if not inside.any():
            raise DataError(f"{self.where}: the mask {name} is empty: no pixel of it is above 0.")
        return inside


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int | float) and np.isfinite(value) for value in values)
    )


def from_mask(mask: Array, frame: int, kind: str) -> tuple[Prompt, ...]:
    """Return what an annotator would have pointed at, one prompt a class, so that models with prompts can be scored.

    Args:
        mask: classes of a frame, [H,W]; 255 = unlabelled.
        frame: its number.
        kind: ``mask``; ``box``, the tightest around all pixels of the class; or ``point``, the one farthest from
            the edge of the class.
    """
    prompts = []
    for label in (int(value) for value in np.unique(mask) if 0 < value < 255):
        inside = mask == label
        rows, columns = np.nonzero(inside)
        if kind == "mask":
            prompts.append(Prompt(frame=frame, label=label, mask=inside))
        elif kind == "box":
            box = (float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max()))
            prompts.append(Prompt(frame=frame, label=label, box=box))
        else:
            depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(int(depth.argmax()), depth.shape)
            prompts.append(Prompt(frame=frame, label=label, points=((float(x), float(y)),), positive=(True,)))
    return tuple(prompts)
