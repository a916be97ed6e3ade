"""A folder a class: what is in it is of that class. Made for sets such as Nerthus (bowel preparation, grades 0 to 3).

```text
<class>/<clip>                   a video, DICOM or NIfTI file, or a folder of frames
<class>/<group>/<clip>           the same, by patient: all clips of a group stay on one side of a split
<class>/<clip>_0001.jpg, …       frames of several clips in one folder: names alike but for the last number are a clip
```

A video is of one class as a whole, and so it is split as a whole: frames of one video on both sides of a split would be
leakage, however many frames there are. Without a folder for the group each clip is a group, and a DICOM file is of the
patient it names (as a hash, see `medvid_core.data.readers.dicom_header.patient_hash`). Where patients stand in a table,
use the ``manifest`` layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from medvid_core.data.clip import Case, Index
from medvid_core.data.datasets import buv, camus, cardiac_udc, echonet, ovarian, polyps, videos, vos, vtus
from medvid_core.data.datasets.folders import list_files, list_folders, make_index, natural_key, require_folder
from medvid_core.data.datasets.media import Media, clip_reader, list_clips, reader_by_name, require_one_kind, stem
from medvid_core.data.readers.frames import SUFFIXES as IMAGES
from medvid_core.errors import DataError, did_you_mean
from medvid_core.specs import OutputSpec

LAYOUT = "<class>/<clip> or <class>/<group>/<clip>, two classes or more; a clip is a file or a folder of frames"
_OTHERS = (buv, camus, cardiac_udc, echonet, ovarian, polyps, videos, vos, vtus)
_PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")
_THINGS = ["image", "img", "frame", "picture", "video", "clip", "mask", "label", "annotation", "segmentation", "gt"]
_NO_CLASSES = (*_THINGS, *(f"{name}s" for name in _THINGS))
"""Names that say what files are, not of which class."""

_LAST_NUMBER = re.compile(r"[-_. ]*[0-9]*$")


@dataclass(frozen=True, kw_only=True)
class ClassFoldersConfig:
    """How the folders are read.

    Attributes:
        classes: the folders to use, in order; default: all, in natural order.
        ordinal: the classes are grades in rising order.
    """

    classes: tuple[str, ...] = ()
    ordinal: bool = False


def can_read(root: Path) -> bool:
    """Whether two folders or more hold clips, one of them several, and no other layout fits.

    One clip a folder is a folder a case, and folders called images or test are no classes.
    """
    if not root.is_dir() or (root / "manifest.csv").is_file() or any(other.can_read(root) for other in _OTHERS):
        return False
    folders = list_folders(root)
    if any(folder.name.lower() in (*_PARTS, *_NO_CLASSES) for folder in folders):
        return False
    counts = [_count(folder) for folder in folders]
    return sum(count > 0 for count in counts) > 1 and max(counts) > 1


def _count(folder: Path) -> int:
    """How many clips a class seems to have, by names."""
    count = 0
    for path in folder.iterdir():
        if not path.name.startswith("."):
            names = [inside.name for inside in path.iterdir()] if path.is_dir() else [path.name]
            kinds = {reader_by_name(name) for name in names}
            count += bool(kinds - {"", "frames"} or (path.is_dir() and "frames" in kinds))
    return count


def index(root: Path | None, config: ClassFoldersConfig) -> Index:
    """List the cases; the header of every clip is opened. A clip that cannot be read is skipped, by name.

    Raises:
        DataError: if the folder is missing or empty, a class is not there, or there are fewer than two.
    """
    root = require_folder(root, LAYOUT)
    folders = {folder.name: folder for folder in list_folders(root)}
    parts = [name for name in folders if name.lower() in _PARTS]
    if parts:
        raise DataError(
            f"{root} holds the folder {parts[0]}, which is a part of a split and no class. Name one of the parts, or "
            "write a manifest with the columns file, label and split."
        )
    absent = [name for name in config.classes if name not in folders]
    if absent:
        raise DataError(
            f"{root} has no folder {absent[0]!r}, which dataset.classes names.{did_you_mean(absent[0], folders)} "
            f"Folders found: {', '.join(folders)}."
        )
    skipped: dict[str, str] = {}
    found = {name: _cases(folders[name], skipped) for name in config.classes or folders}
    empty = [name for name, cases in found.items() if not cases and name not in config.classes]
    skipped |= {name: "no clip in this folder can be read: it is not taken for a class" for name in empty}
    names = tuple(name for name in found if name not in empty)
    if len(names) == 1:
        raise DataError(
            f"{root}: every clip is in the folder {names[0]!r}. There must be two classes at least to tell apart; "
            f"expected: {LAYOUT}."
        )
    cases = [
        replace(case, targets={"label": number}, stratum=name)
        for number, name in enumerate(names)
        for case in found[name]
    ]
    task = "ordinal" if config.ordinal else "classification"
    return make_index(cases, (OutputSpec(name="label", task=task, classes=names),), skipped, root, LAYOUT)


def _cases(folder: Path, skipped: dict[str, str]) -> list[Case]:
    """The clips of one class."""
    cases = []
    for name, group, media in _media(folder, skipped):
        try:
            info = media.measure()
        except DataError as error:
            skipped[name] = str(error)
            continue
        cases.append(
            Case(
                case_id=name,
                group_id=group or info.patient or name,
                frames=info.frames,
                streams={"video": media.source()},
                fps=info.fps,
                spacing=info.spacing,
                times_s=info.times_s,
            )
        )
    return cases


def _media(folder: Path, skipped: dict[str, str]) -> Iterator[tuple[str, str, Media]]:
    """Yield name, group (empty for none) and files of the clips of one class, in natural order, folders last."""
    for path in list_clips(folder):
        yield f"{folder.name}/{stem(path)}", "", Media(clip_reader(path), (path,))
    runs: dict[str, list[Path]] = {}
    for path in list_files(folder, IMAGES):
        runs.setdefault(_LAST_NUMBER.sub("", path.stem), []).append(path)
    for run in sorted(runs, key=natural_key):
        yield f"{folder.name}/{run or folder.name}", "", Media("frames", tuple(runs[run]))
    for inside in list_folders(folder):
        name = f"{folder.name}/{inside.name}"
        if images := list_files(inside, IMAGES):
            yield from _frames(name, "", inside, images, skipped)
            continue
        clips = [(f"{name}/{stem(path)}", path) for path in list_clips(inside)]
        yield from ((clip, inside.name, Media(clip_reader(path), (path,))) for clip, path in clips)
        framed = [(deeper, list_files(deeper, IMAGES)) for deeper in list_folders(inside)]
        for deeper, images in framed:
            if images:
                yield from _frames(f"{name}/{deeper.name}", inside.name, deeper, images, skipped)
        if not clips and not any(images for _, images in framed):
            skipped[name] = "the folder holds neither frames nor clips"


def _frames(
    name: str, group: str, folder: Path, images: list[Path], skipped: dict[str, str]
) -> Iterator[tuple[str, str, Media]]:
    """Yield a folder of frames, unless it holds clips too."""
    try:
        require_one_kind(folder)
    except DataError as error:
        skipped[name] = str(error)
    else:
        yield name, group, Media("frames", tuple(images))
