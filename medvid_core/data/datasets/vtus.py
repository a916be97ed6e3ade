"""The layout of VTUS, the thyroid ultrasound videos of Vivim.

``Train/<case>/*.jpg`` with ``Train_GT/<case>/*.png``, and ``Test/`` with ``Test_GT/`` likewise: the split is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medvid_core.data.clip import Case, Index, Source
from medvid_core.data.datasets.folders import list_files, list_folders, make_index, pair, require_folder
from medvid_core.data.datasets.masks import MaskConfig, MaskPlan, plan
from medvid_core.data.readers.frames import SUFFIXES
from medvid_core.errors import DataError

LAYOUT = "Train/<case>/*.jpg with Train_GT/<case>/*.png, and Test/ with Test_GT/ likewise"
_SPLITS = {"Train": "train", "Test": "test"}


@dataclass(frozen=True, kw_only=True)
class VTUSConfig(MaskConfig):
    """Masks are 0 and 255; the one class is the nodule."""

    classes: tuple[str, ...] = ("nodule",)


def can_read(root: Path) -> bool:
    """Whether a split and its masks are there."""
    return any((root / name).is_dir() and (root / f"{name}_GT").is_dir() for name in _SPLITS)


def index(root: Path | None, config: VTUSConfig) -> Index:
    """List the cases; no file is opened. The group of a case is the case.

    Raises:
        DataError: if the folder is missing or empty, masks and frames do not match, or no clip is usable.
        ConfigError: if class names and mask values do not fit.
    """
    root = require_folder(root, LAYOUT)
    masks = plan(config)
    skipped: dict[str, str] = {}
    cases = []
    for folder, split in _SPLITS.items():
        for case in list_folders(root / folder) if (root / folder).is_dir() else ():
            frames = list_files(case, SUFFIXES)
            if frames:
                cases.append(_case(case, frames, root / f"{folder}_GT" / case.name, split, masks))
            else:
                skipped[f"{folder}/{case.name}"] = "the folder holds no images"
    return make_index(cases, (masks.output(),), skipped, root, LAYOUT)


def _case(folder: Path, frames: list[Path], mask_folder: Path, split: str, masks: MaskPlan) -> Case:
    """One sweep with a mask for every frame."""
    if not mask_folder.is_dir():
        raise DataError(
            f"The masks of {folder} are missing: there is no folder {mask_folder}. Add it, or remove the case."
        )
    paths = pair(frames, list_files(mask_folder, SUFFIXES), str(mask_folder), sparse=False)
    return Case(
        case_id=folder.name,
        group_id=folder.name,
        frames=len(frames),
        split=split,
        streams={
            "video": Source(reader="frames", paths=tuple(map(str, frames))),
            "mask": masks.source("frames", paths),
        },
    )
