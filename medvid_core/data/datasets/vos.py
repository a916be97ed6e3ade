"""The layout of video object segmentation (DAVIS, YouTube-VOS, and many medical sets after them).

``JPEGImages/<case>/*`` with ``Annotations/<case>/*.png``: palette or grey masks, 0 the background, 255 unlabelled.
Frames without an annotation file are unlabelled. ``ImageSets/{train,val,test}.txt`` (one case a line) fix the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medvid_core.data.clip import Case, Index, Source
from medvid_core.data.datasets.folders import (
    labelled_frames,
    list_files,
    list_folders,
    make_index,
    pair,
    require_folder,
)
from medvid_core.data.datasets.masks import MaskConfig, MaskPlan, default_classes, plan
from medvid_core.data.readers.frames import SUFFIXES, read_raw_mask
from medvid_core.data.readers.masks import colour_error
from medvid_core.errors import DataError, did_you_mean

LAYOUT = "JPEGImages/<case>/*.jpg with Annotations/<case>/*.png"
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class VOSConfig(MaskConfig):
    """Mask values are found in the annotations unless ``mask_values`` says them.

    Finding them decodes every annotation once at indexing (about 1 ms for 256x256 pixels, 10 ms for 1920x1080).
    Without ``classes`` the values found are named class1, class2, … in rising order. Where 255 is the only
    value but 0, it is the foreground; elsewhere it means unlabelled.
    """

    mask_ignore: int = 255


def can_read(root: Path) -> bool:
    """Whether both folders are there."""
    return (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir()


def index(root: Path | None, config: VOSConfig) -> Index:
    """List the cases. The group of a case is the case.

    Raises:
        DataError: if the folder is missing or empty, masks and frames do not match, a split file names an unknown
            case, the annotations hold other values than declared, or no clip is usable.
        ConfigError: if class names and mask values do not fit.
    """
    root = require_folder(root, LAYOUT)
    if not can_read(root):
        raise DataError(f"{root} has no folders JPEGImages and Annotations. Expected: {LAYOUT}.")
    frames = {folder.name: list_files(folder, SUFFIXES) for folder in list_folders(root / "JPEGImages")}
    splits = read_splits(root / "ImageSets", list(frames), root / "JPEGImages")
    masks: dict[str, tuple[str, ...]] = {}
    skipped: dict[str, str] = {}
    for name in frames:
        _pair_case(root, name, frames[name], masks, skipped)
    settled = plan(config) if config.mask_values else _scan(config, masks, skipped, root)
    cases = [_case(name, frames[name], masks[name], splits.get(name), settled) for name in masks]
    return make_index(cases, (settled.output(),), skipped, root, LAYOUT)


def _pair_case(
    root: Path, name: str, frames: Sequence[Path], masks: dict[str, tuple[str, ...]], skipped: dict[str, str]
) -> None:
    """Enter the masks of one case, or the reason to leave it out."""
    folder = root / "Annotations" / name
    annotations = list_files(folder, SUFFIXES) if folder.is_dir() else []
    if not frames:
        skipped[name] = "the folder holds no images"
    elif not annotations:
        skipped[name] = f"no annotations in {folder}"
    else:
        masks[name] = pair(frames, annotations, str(folder), sparse=True)


def _case(name: str, frames: Sequence[Path], masks: tuple[str, ...], split: str | None, settled: MaskPlan) -> Case:
    """One video, some or all of its frames annotated."""
    return Case(
        case_id=name,
        group_id=name,
        frames=len(frames),
        split=split,
        labelled=labelled_frames(masks),
        streams={
            "video": Source(reader="frames", paths=tuple(map(str, frames))),
            "mask": settled.source("frames", masks),
        },
    )


def read_splits(folder: Path, cases: Sequence[str], where: Path) -> dict[str, str]:
    """Read which case is in which split from ``train.txt``, ``val.txt`` and ``test.txt``, where there are any.

    Args:
        folder: of the lists.
        cases: that there are.
        where: the folder of the cases, for error texts.

    Raises:
        DataError: a list names an unknown case, or one of another list.
    """
    found: dict[str, str] = {}
    for split in _SPLITS:
        path = folder / f"{split}.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in filter(None, map(str.strip, lines)):
            if line not in cases:
                raise DataError(
                    f"{path} names the case {line!r}, which is not in {where}."
                    f"{did_you_mean(line, cases)} Correct the list, or add the case."
                )
            if found.setdefault(line, split) != split:
                raise DataError(
                    f"{path} names the case {line!r}, which is also in {found[line]}.txt. Remove it from one."
                )
    return found


def _scan(config: VOSConfig, masks: dict[str, tuple[str, ...]], skipped: dict[str, str], root: Path) -> MaskPlan:
    """Settle classes by the values in all annotations; a case with a damaged one is moved to ``skipped``."""
    values: set[int] = set()
    for name in list(masks):
        try:
            values |= _values(masks[name], config.mask_nonzero)
        except DataError as error:
            skipped[name] = str(error)
            del masks[name]
    if config.mask_ignore in values and values <= {0, config.mask_ignore}:
        config = replace(config, mask_ignore=-1)
    objects = sorted(values - {0, config.mask_ignore})
    if masks and not objects:
        raise DataError(f"The annotations in {root / 'Annotations'} are all background. Check that they are the masks.")
    if config.mask_nonzero or not objects:
        return plan(config)
    classes = tuple(config.classes) or default_classes(len(objects))
    if objects[-1] < len(classes):  # class numbers, some of them perhaps in no annotation
        objects = list(range(1, len(classes)))
    if max(2, len(classes)) != len(objects) + 1:
        raise DataError(
            f"The annotations in {root / 'Annotations'} hold the values 0, {', '.join(map(str, objects))}, which do "
            f"not fit dataset.classes={list(classes)}. Name background and every class, set dataset.mask_values=[…], "
            "or set dataset.mask_nonzero=true to make one class of all."
        )
    return plan(replace(config, classes=classes, mask_values=(0, *objects)))


def _values(paths: Sequence[str], nonzero: bool) -> set[int]:
    """Raw values in these masks; of colours the largest channel, where every ``nonzero`` value is one class.

    Raises:
        DataError: if one cannot be read, or is in colour.
    """
    values: set[int] = set()
    for path in filter(None, paths):
        raw = read_raw_mask(path)
        if raw.ndim == 3:
            if not nonzero:
                raise colour_error(path)
            raw = raw.max(axis=-1)
        found = np.flatnonzero(np.bincount(raw.ravel(), minlength=1)) if raw.dtype == np.uint8 else np.unique(raw)
        values.update(int(value) for value in found)
    return values
