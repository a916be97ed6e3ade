"""Breast ultrasound videos (BUV): a folder of frames a lesion, by diagnosis, with masks likewise.

``rawframes/<diagnosis>/<case>/*.png`` with ``masks/<diagnosis>/<case>/*.png``. The level of the diagnosis,
``benign`` or ``malignant``, may be missing. ``train.txt`` and ``test.txt``, with a case a line, fix the split.

Sets in the layout of VTUS, or with ``JPEGImages`` and ``Annotations``, are read as `medvid_core.data.datasets.vtus` and
`medvid_core.data.datasets.vos`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medvid_core.data.clip import Case, Index, Source
from medvid_core.data.datasets.folders import (
    labelled_frames,
    list_files,
    list_folders,
    make_index,
    pair,
    require_folder,
)
from medvid_core.data.datasets.masks import MaskConfig, MaskPlan, plan
from medvid_core.data.datasets.vos import read_splits
from medvid_core.data.readers.frames import SUFFIXES
from medvid_core.errors import DataError
from medvid_core.specs import OutputSpec

LAYOUT = "rawframes/[benign|malignant/]<case>/*.png with masks/[benign|malignant/]<case>/*.png"
DIAGNOSES = ("benign", "malignant")


@dataclass(frozen=True, kw_only=True)
class BUVConfig(MaskConfig):
    """What is not black in a mask is the lesion."""

    classes: tuple[str, ...] = ("lesion",)
    mask_nonzero: bool = True


def can_read(root: Path) -> bool:
    """Whether both folders are there."""
    return (root / "rawframes").is_dir() and (root / "masks").is_dir()


def index(root: Path | None, config: BUVConfig) -> Index:
    """List the cases; no file is opened. The group of a case is the case. Outputs are ``mask`` and ``diagnosis``.

    Raises:
        DataError: if the folder is missing or empty, masks and frames do not match, a split file names an unknown case,
            or no clip is usable.
        ConfigError: if class names and mask values do not fit.
    """
    root = require_folder(root, LAYOUT)
    if not can_read(root):
        raise DataError(f"{root} has no folders rawframes and masks. Expected: {LAYOUT}.")
    masks = plan(config)
    found = _folders(root / "rawframes")
    splits = read_splits(root, [name for name, _ in found], root / "rawframes")
    skipped: dict[str, str] = {}
    cases = []
    for name, diagnosis in found:
        frames = list_files(root / "rawframes" / name, SUFFIXES)
        if frames:
            cases.append(_case(root, name, diagnosis, frames, splits.get(name), masks))
        else:
            skipped[name] = "the folder holds no images"
    outputs = [masks.output()]
    if any(case.targets for case in cases):
        outputs.append(OutputSpec(name="diagnosis", task="classification", classes=DIAGNOSES))
    return make_index(cases, tuple(outputs), skipped, root, LAYOUT)


def _folders(frames: Path) -> list[tuple[str, str]]:
    """The path of each case below ``rawframes``, and its diagnosis, empty where unknown."""
    found = []
    for folder in list_folders(frames):
        if folder.name.lower() in DIAGNOSES:
            found += [(f"{folder.name}/{case.name}", folder.name.lower()) for case in list_folders(folder)]
        else:
            found.append((folder.name, ""))
    return found


def _case(root: Path, name: str, diagnosis: str, frames: list[Path], split: str | None, masks: MaskPlan) -> Case:
    """One lesion, some or all of its frames annotated."""
    folder = root / "masks" / name
    if not folder.is_dir():
        raise DataError(f"The masks of {name} are missing: there is no folder {folder}. Add it, or remove the case.")
    paths = pair(frames, list_files(folder, SUFFIXES), str(folder), sparse=True)
    return Case(
        case_id=name,
        group_id=name,
        frames=len(frames),
        split=split,
        stratum=diagnosis,
        labelled=labelled_frames(paths),
        targets={"diagnosis": DIAGNOSES.index(diagnosis)} if diagnosis else {},
        streams={
            "video": Source(reader="frames", paths=tuple(map(str, frames))),
            "mask": masks.source("frames", paths),
        },
    )
