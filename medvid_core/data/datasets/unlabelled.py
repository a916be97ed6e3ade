"""Find videos to predict on: no annotation, any of the kinds that are read."""

from __future__ import annotations

from pathlib import Path

from medvid_core.data.clip import Case
from medvid_core.data.datasets.folders import list_files, list_folders
from medvid_core.data.datasets.media import locate
from medvid_core.data.readers import frames, video
from medvid_core.errors import DataError


def find_cases(path: Path) -> tuple[list[Case], dict[str, str]]:
    """Find what is at a path: a video, a folder of frames, or a folder of either.

    Returns:
        The cases, and the reason why for each one that cannot be read.

    Raises:
        DataError: nothing is there, or nothing readable.
    """
    if not path.exists():
        raise DataError(f"There is no file or folder {path} to predict on.")
    if path.is_file() or list_files(path, frames.SUFFIXES):
        return [_case(path)], {}
    found = [*list_files(path, video.SUFFIXES), *(p for p in list_folders(path) if list_files(p, frames.SUFFIXES))]
    if not found:
        kinds = ", ".join((*video.SUFFIXES, *frames.SUFFIXES))
        raise DataError(f"{path} holds no video and no folder of frames to predict on. Endings that are read: {kinds}.")
    cases, skipped = [], {}
    for item in found:
        try:
            cases.append(_case(item))
        except DataError as error:
            skipped[item.name] = str(error)
    return cases, skipped


def _case(path: Path) -> Case:
    _require_one_kind(path)
    media = locate(path.parent, path.name)
    measured, name = media.measure(), path.stem if path.is_file() else path.name
    return Case(
        case_id=name, group_id=name, frames=measured.frames, fps=measured.fps, streams={"video": media.source()}
    )


def _require_one_kind(path: Path) -> None:
    """Refuse a folder whose images would be taken for one case and whose videos would be passed over."""
    if path.is_file():
        return
    images, videos = list_files(path, frames.SUFFIXES), list_files(path, video.SUFFIXES)
    if images and videos:
        raise DataError(
            f"{path} holds {len(images)} image(s) (first: {images[0].name}) and {len(videos)} video(s) (first: "
            f"{videos[0].name}): neither one case of frames nor a folder of videos. Move one kind elsewhere."
        )
