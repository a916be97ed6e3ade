"""Find videos to predict on, in no layout of a data set, or with masks beside some: any of the kinds that are read."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path

from medvid_core.data.clip import Case, Index, Source
from medvid_core.data.datasets.folders import list_files, list_folders, require_folder
from medvid_core.data.datasets.media import CLIP_SUFFIXES, list_clips, locate, require_one_kind, stem
from medvid_core.data.datasets.ovarian import list_frames
from medvid_core.data.datasets.videos import LAYOUT, MARKS, VideosConfig
from medvid_core.data.readers import frames
from medvid_core.errors import DataError


def index(root: Path | None, config: VideosConfig) -> Index:
    """List the videos of a folder and of those inside, with masks beside them or without: see `find_cases`.

    Raises:
        DataError: nothing is there.
    """
    cases, skipped = find_cases(require_folder(root, LAYOUT), nested=True)
    return Index(cases=tuple(cases), outputs=(), skipped=skipped)


def find_cases(path: Path, nested: bool = False) -> tuple[list[Case], dict[str, str]]:
    """Find what is at a path: a video, DICOM or NIfTI file, a folder of frames, or a folder of any of these.

    Every DICOM file is a case, however many are in a folder. The group of a case is the patient where the file says
    whose it is (a hash, see `medvid_core.data.readers.dicom_header.patient_hash`), else the case. Masks are no videos:
    what is named ``a_mask`` or ``a_gt`` beside ``a``, and images beside those called ``…_frame`` in the same folder.

    Args:
        path: where to look.
        nested: look in the folders inside as well, whose cases have them in their names; images beside videos are then
            passed over.

    Returns:
        The cases, and the reason why for each one that cannot be read.

    Raises:
        DataError: nothing is there, or nothing readable.
    """
    if not path.exists():
        raise DataError(f"There is no file or folder {path} to predict on.")
    if path.is_file() or (not nested and list_files(path, frames.SUFFIXES)):
        return [_case(path, _name(path))], {}
    found = list(_videos(path, nested))
    if not found:
        kinds = ", ".join((*CLIP_SUFFIXES, *frames.SUFFIXES))
        raise DataError(f"{path} holds no video and no folder of frames to predict on. Endings that are read: {kinds}.")
    cases, skipped = [], {}
    for item in found:
        inside = item.relative_to(path)
        try:
            cases.append(_case(item, inside.with_name(_name(item)).as_posix()))
        except DataError as error:
            skipped[inside.as_posix()] = str(error)
    return cases, skipped


def _videos(folder: Path, nested: bool) -> Iterator[Path]:
    """Yield the videos and folders of frames that are no masks, those of the folders inside last."""
    folders = list_folders(folder)
    of_frames = [p for p in folders if list_files(p, frames.SUFFIXES) and not (nested and list_clips(p))]
    found = [*list_clips(folder), *of_frames]
    names = {_name(item) for item in found}
    yield from (item for item in found if not _is_mask(_name(item), names))
    if nested:
        for inside in folders:
            if inside not in of_frames and not _is_mask(inside.name, names):
                yield from _videos(inside, nested)


def _name(path: Path) -> str:
    return stem(path) if path.is_file() else path.name


def _is_mask(name: str, names: Set[str]) -> bool:
    """Whether something is named as the masks of another of these."""
    return any(name.endswith(mark) and name.removesuffix(mark) in names for mark in (*MARKS, "_gt"))


def _case(path: Path, name: str) -> Case:
    if path.is_dir():
        require_one_kind(path)
        if chosen := list_frames(path):
            source = Source(reader="frames", paths=tuple(map(str, chosen)))
            return Case(case_id=name, group_id=name, frames=len(chosen), streams={"video": source})
    media = locate(path.parent, path.name)
    info = media.measure()
    return Case(
        case_id=name,
        group_id=info.patient or name,
        frames=info.frames,
        fps=info.fps,
        spacing=info.spacing,
        times_s=info.times_s,
        streams={"video": media.source()},
    )
