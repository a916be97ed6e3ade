"""A folder of video files with masks beside them.

The masks of ``name.mp4`` are ``name_mask.avi`` (a video, best lossless, e.g. FFV1), or a folder ``name_mask/`` with
one PNG a frame in natural order. ``-mask``, ``.mask`` and the plurals ``_masks``, ``-masks`` are read likewise. Folders
inside are searched too. Masks elsewhere, or under other names, are for the ``manifest`` layout to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medvid_core.data.clip import Case, Index
from medvid_core.data.datasets.folders import list_files, list_folders, make_index, require_folder
from medvid_core.data.datasets.masks import MaskConfig, MaskPlan, plan
from medvid_core.data.datasets.media import Media, locate, mask_source
from medvid_core.data.readers.frames import SUFFIXES as IMAGES
from medvid_core.data.readers.video import SUFFIXES as VIDEOS
from medvid_core.errors import DataError

LAYOUT = "video files name.mp4 (or another kind), each with a folder name_mask/ of PNGs or a video name_mask.avi"
MARKS = ("_mask", "-mask", ".mask", "_masks", "-masks", ".masks")
"""What the names of masks add to those of their videos."""


@dataclass(frozen=True, kw_only=True)
class VideosConfig(MaskConfig):
    """See `MaskConfig`."""


def can_read(root: Path) -> bool:
    """Whether a video with masks beside it is there, and no manifest that says better what there is."""
    if not root.is_dir() or (root / "manifest.csv").is_file():
        return False
    return any(_beside(path) is not None for path in _videos(root))


def index(root: Path | None, config: VideosConfig) -> Index:
    """List the cases; the header of every video is opened. The group of a case is the case.

    Raises:
        DataError: if the folder is missing or empty, masks and frames do not match, or no clip is usable.
        ConfigError: if class names and mask values do not fit.
    """
    root = require_folder(root, LAYOUT)
    settled = plan(config)
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    for path in _videos(root):
        name = path.relative_to(root).with_suffix("").as_posix()
        beside = _beside(path)
        if beside is None:
            skipped[name] = f"no mask beside {path.name}"
            continue
        images = Media("video", (path,))
        try:
            masks = locate(root, str(beside.relative_to(root)))
            info, _ = images.measure(), masks.measure()
        except DataError as error:
            skipped[name] = str(error)
            continue
        cases.append(_case(name, images, info.frames, info.fps, masks, settled))
    return make_index(cases, (settled.output(),), skipped, root, LAYOUT)


def _case(name: str, images: Media, frames: int, fps: float | None, masks: Media, settled: MaskPlan) -> Case:
    """One video with a mask for every frame."""
    return Case(
        case_id=name,
        group_id=name,
        frames=frames,
        fps=fps,
        streams={"video": images.source(), "mask": mask_source(images, frames, masks, settled)},
    )


def _videos(folder: Path) -> Iterator[Path]:
    """Yield the video files that are no masks, in natural order, the folders inside last."""
    for path in list_files(folder, VIDEOS):
        if not path.stem.lower().endswith(MARKS):
            yield path
    for inside in list_folders(folder):
        yield from _videos(inside)


def _beside(path: Path) -> Path | None:
    """The file or folder that holds the masks of a video; None where there is none."""
    for mark in MARKS:
        folder = path.with_name(path.stem + mark)
        if folder.is_dir():
            return folder
        for suffix in (*VIDEOS, *IMAGES):
            if (found := folder.with_name(folder.name + suffix)).is_file():
                return found
    return None
