"""The layouts of polyp videos: those of PNS-Net and Vivim (CVC-300, CVC-612, ASU-Mayo, Kvasir), and SUN-SEG.

Frames stand in folders ``Frame``, masks in ``GT`` beside them, in one of two orders, at any depth up to four folders:

| order | as in |
| --- | --- |
| ``<video>/Frame/*.jpg`` with ``<video>/GT/*.png`` | ``Train/<video>`` of Vivim |
| ``Frame/<video>/*.jpg`` with ``GT/<video>/*.png`` | ``CVC-ClinicDB-612-Test``, ``CVC-ColonDB-300``, SUN-SEG |

Folders whose name begins with ``Train`` hold training videos. Where there are such, all else is for the test.
SUN-SEG's ``TestEasyDataset`` and ``TestHardDataset`` each hold ``Seen`` and ``Unseen``: the seen are other clips of the
polyps trained on, and are left out unless ``dataset.seen=true``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
from medvid_core.data.readers.frames import SUFFIXES
from medvid_core.errors import DataError

LAYOUT = "<video>/Frame/*.jpg with <video>/GT/*.png, or Frame/<video>/*.jpg with GT/<video>/*.png"
_DEPTH = 4
_LOOKED_INTO = 20
_SUN_CLIP = re.compile(r"case(\d+)(_\d+)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PolypsConfig(MaskConfig):
    """Masks are 0 and 255, or any grey: what is not black is the polyp.

    Attributes:
        seen: test on SUN-SEG's clips of polyps that are trained on, rather than on those of other polyps. Every clip is
            then a group of its own, and the result says nothing of other patients.
    """

    classes: tuple[str, ...] = ("polyp",)
    mask_nonzero: bool = True
    seen: bool = False


@dataclass(frozen=True)
class _Video:
    """One folder of frames, with its masks and the path that names it."""

    frames: Path
    masks: Path
    name: Path


def can_read(root: Path) -> bool:
    """Whether a pair of folders ``Frame`` and ``GT`` is there; of many folders only the first are looked into."""
    return root.is_dir() and next(_pairs(root, _DEPTH, _LOOKED_INTO), None) is not None


def _pairs(folder: Path, depth: int, most: int | None = None) -> Iterator[Path]:
    """Yield the folders that hold ``Frame`` and ``GT``."""
    if (folder / "Frame").is_dir() and (folder / "GT").is_dir():
        yield folder
    elif depth:
        for inside in list_folders(folder)[:most]:
            yield from _pairs(inside, depth - 1, most)


def index(root: Path | None, config: PolypsConfig) -> Index:
    """List the cases; no file is opened.

    The group of a SUN-SEG clip is its polyp (``case3_1`` and ``case3_2`` are of one), else the case. Pictures of
    Kvasir, which are stills, are a case each.

    Raises:
        DataError: if the folder is missing or empty, masks and frames do not match, or no clip is usable.
        ConfigError: if class names and mask values do not fit.
    """
    root = require_folder(root, LAYOUT)
    masks = plan(config)
    videos = [video for folder in _pairs(root, _DEPTH) for video in _videos(folder, root)]
    divided = any(_trains(video.name) for video in videos)
    skipped: dict[str, str] = {}
    cases: list[Case] = []
    for video in videos:
        parts = {part.lower() for part in video.name.parts}
        if ("seen" in parts and not config.seen) or ("unseen" in parts and config.seen):
            other = "shows polyps that are trained on (dataset.seen=true)" if not config.seen else "dataset.seen=true"
            skipped[video.name.as_posix()] = f"left out: {other}"
            continue
        frames = list_files(video.frames, SUFFIXES)
        if not frames:
            skipped[video.name.as_posix()] = f"{video.frames} holds no images"
            continue
        split = ("train" if _trains(video.name) else "test") if divided else None
        cases += _cases(video, frames, split, masks, config.seen)
    return make_index(cases, (masks.output(),), skipped, root, LAYOUT)


def _videos(folder: Path, root: Path) -> list[_Video]:
    """The videos of a pair of folders: the one whose frames stand in ``Frame``, or all whose folders do."""
    inside = list_folders(folder / "Frame")
    if not inside:
        return [_Video(folder / "Frame", folder / "GT", folder.relative_to(root))]
    return [_Video(video, folder / "GT" / video.name, folder.relative_to(root) / video.name) for video in inside]


def _trains(name: Path) -> bool:
    return any(part.lower().startswith("train") for part in name.parts)


def _cases(video: _Video, frames: list[Path], split: str | None, masks: MaskPlan, alone: bool) -> list[Case]:
    """One case, or of stills one a picture."""
    if not video.masks.is_dir():
        raise DataError(f"The masks of {video.frames} are missing: there is no folder {video.masks}. Add it.")
    name = video.name.as_posix() if video.name.parts else video.frames.parent.name
    paths = pair(frames, list_files(video.masks, SUFFIXES), str(video.masks), sparse=True)
    if "kvasir" in name.lower():
        return [
            _case(f"{name}/{frame.stem}", "", [frame], (mask,), split, masks)
            for frame, mask in zip(frames, paths, strict=True)
            if mask
        ]
    polyp = _SUN_CLIP.fullmatch(video.name.name)
    group = f"case{polyp[1]}" if polyp and not alone else name
    return [_case(name, group, frames, paths, split, masks)]


def _case(
    name: str, group: str, frames: list[Path], paths: tuple[str, ...], split: str | None, masks: MaskPlan
) -> Case:
    """One video; where it comes from is kept, so that parts of the test can be told apart."""
    return Case(
        case_id=name,
        group_id=group or name,
        frames=len(frames),
        split=split,
        labelled=labelled_frames(paths),
        metadata={"part": name.rpartition("/")[0]},
        streams={
            "video": Source(reader="frames", paths=tuple(map(str, frames))),
            "mask": masks.source("frames", paths),
        },
    )
