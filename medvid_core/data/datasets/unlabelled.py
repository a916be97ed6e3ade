"""Find videos to predict on: no annotation, any of the kinds that are read."""

from __future__ import annotations

from pathlib import Path

from medvid_core.data.clip import Case
from medvid_core.data.datasets.folders import list_files, list_folders
from medvid_core.data.datasets.media import CLIP_SUFFIXES, list_clips, locate, require_one_kind, stem
from medvid_core.data.readers import frames
from medvid_core.errors import DataError


def find_cases(path: Path) -> tuple[list[Case], dict[str, str]]:
    """Find what is at a path: a video, DICOM or NIfTI file, a folder of frames, or a folder of any of these.

    Every DICOM file is a case, however many are in a folder. The group of a case is the patient where the file says
    whose it is (a hash, see `medvid_core.data.readers.dicom_header.patient_hash`), else the case.

    Returns:
        The cases, and the reason why for each one that cannot be read.

    Raises:
        DataError: nothing is there, or nothing readable.
    """
    if not path.exists():
        raise DataError(f"There is no file or folder {path} to predict on.")
    if path.is_file() or list_files(path, frames.SUFFIXES):
        return [_case(path)], {}
    found = [*list_clips(path), *(p for p in list_folders(path) if list_files(p, frames.SUFFIXES))]
    if not found:
        kinds = ", ".join((*CLIP_SUFFIXES, *frames.SUFFIXES))
        raise DataError(f"{path} holds no video and no folder of frames to predict on. Endings that are read: {kinds}.")
    cases, skipped = [], {}
    for item in found:
        try:
            cases.append(_case(item))
        except DataError as error:
            skipped[item.name] = str(error)
    return cases, skipped


def _case(path: Path) -> Case:
    if path.is_dir():
        require_one_kind(path)
    media = locate(path.parent, path.name)
    info, name = media.measure(), stem(path) if path.is_file() else path.name
    return Case(
        case_id=name,
        group_id=info.patient or name,
        frames=info.frames,
        fps=info.fps,
        spacing=info.spacing,
        times_s=info.times_s,
        streams={"video": media.source()},
    )
