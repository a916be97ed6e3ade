"""Find videos to predict on: no annotation, any of the kinds that are read."""

from __future__ import annotations

from pathlib import Path

from medvid_core.data.clip import Case
from medvid_core.data.datasets.folders import list_files, list_folders
from medvid_core.data.datasets.media import Media, locate
from medvid_core.data.readers import frames, video
from medvid_core.errors import DataError


def find_cases(path: Path) -> list[Case]:
    """Return the cases at a path: a video, a folder of frames, or a folder of either.

    Raises:
        DataError: nothing is there, or nothing readable.
    """
    if not path.exists():
        raise DataError(f"There is no file or folder {path} to predict on.")
    if path.is_file() or list_files(path, frames.SUFFIXES):
        return [_case(path.stem if path.is_file() else path.name, locate(path.parent, path.name))]
    found = [*list_files(path, video.SUFFIXES), *(p for p in list_folders(path) if list_files(p, frames.SUFFIXES))]
    if not found:
        kinds = ", ".join((*video.SUFFIXES, *frames.SUFFIXES))
        raise DataError(f"{path} holds no video and no folder of frames to predict on. Endings that are read: {kinds}.")
    return [_case(item.name, locate(path, item.name)) for item in found]


def _case(name: str, media: Media) -> Case:
    measured = media.measure()
    return Case(
        case_id=name, group_id=name, frames=measured.frames, fps=measured.fps, streams={"video": media.source()}
    )
