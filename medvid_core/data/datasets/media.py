"""Videos and masks by whatever path names them: a file that holds a clip, a folder of images, one image, or a glob."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from medvid_core.data.clip import Source
from medvid_core.data.datasets.folders import is_fan_mask, list_files, natural_key, pair
from medvid_core.data.datasets.masks import MaskPlan
from medvid_core.data.readers import dicom, nifti, video
from medvid_core.data.readers import frames as frame_files
from medvid_core.data.readers.cine import CineInfo
from medvid_core.errors import DataError

CLIP_SUFFIXES = (*video.SUFFIXES, *dicom.SUFFIXES, *nifti.SUFFIXES)
"""Names of files that hold a whole clip end in one of these, in any case."""

_NOT_CLIPS = (".csv", ".json", ".md", ".pdf", ".txt", ".xml", ".zip")  # need not be opened to know


@dataclass(frozen=True)
class Media:
    """Files of one stream: one file that holds all frames, or images in natural order."""

    reader: str
    paths: tuple[Path, ...]

    def source(self) -> Source:
        """The stream."""
        return Source(reader=self.reader, paths=tuple(map(str, self.paths)))

    def measure(self) -> CineInfo:
        """What the headers of the files say.

        Raises:
            DataError: if a file that holds all frames cannot be read.
        """
        path = str(self.paths[0])
        if self.reader == "dicom":
            return dicom.probe(path)
        if self.reader == "nifti":
            return nifti.probe(path)
        if self.reader == "video":
            info = video.probe(path)
            return CineInfo(info.frames, info.fps)
        return CineInfo(len(self.paths))

    def __str__(self) -> str:
        return str(self.paths[0] if len(self.paths) == 1 else self.paths[0].parent)


def reader_by_name(name: str) -> str:
    """Return which reader the ending of a file name calls for; empty where it is no known one."""
    name = name.lower()
    for reader, module in (("nifti", nifti), ("dicom", dicom), ("video", video), ("frames", frame_files)):
        if name.endswith(module.SUFFIXES):
            return reader
    return ""


def clip_reader(path: Path) -> str:
    """Return which reader reads a whole clip from a file: by its ending, DICOM also by its content; empty for none."""
    reader = reader_by_name(path.name)
    if not reader and path.suffix.lower() not in _NOT_CLIPS and dicom.has_magic(path):
        return "dicom"
    return "" if reader == "frames" else reader


def list_clips(folder: Path) -> list[Path]:
    """List the files that hold a whole clip, in natural order; hidden files are left out."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
    return sorted((path for path in found if clip_reader(path)), key=lambda path: natural_key(path.name))


def stem(path: Path) -> str:
    """Return the name of a file without its ending, where that is a known one: DICOM names may be full of dots."""
    suffix = next(
        (suffix for suffix in (".nii.gz", *CLIP_SUFFIXES, *frame_files.SUFFIXES) if path.name.lower().endswith(suffix)),
        "",
    )
    return path.name[: -len(suffix)] if suffix and len(path.name) > len(suffix) else path.name


def require_one_kind(folder: Path) -> None:
    """Refuse a folder whose images would be taken for one case and whose clips would be passed over.

    Raises:
        DataError: if both are there.
    """
    images, clips = list_files(folder, frame_files.SUFFIXES), list_clips(folder)
    if images and clips:
        raise DataError(
            f"{folder} holds {len(images)} image(s) (first: {images[0].name}) and {len(clips)} video(s) (first: "
            f"{clips[0].name}): neither one case of frames nor a folder of videos. Move one kind elsewhere."
        )


def locate(base: Path, text: str) -> Media:
    """Find the files that a path names.

    Args:
        base: what a relative path starts from.
        text: a video, DICOM or NIfTI file, an image, a folder of images, or a glob of images.

    Raises:
        DataError: if nothing is there, or it is none of these.
    """
    path = base / text
    if path.is_dir():
        images = list_files(path, frame_files.SUFFIXES)
        if not images and (clips := list_clips(path)):
            raise DataError(
                f"the folder {path} holds no images, but {len(clips)} file(s) of clips: name {clips[0].name} itself"
            )
        if not images:
            raise DataError(f"the folder {path} holds no images ({', '.join(frame_files.SUFFIXES)})")
        return Media("frames", tuple(images))
    if path.is_file():
        return _of_files([path])
    if not glob.has_magic(text):
        raise DataError(f"there is no file or folder {path}")
    found = [base / name for name in sorted(glob.glob(text, root_dir=base), key=natural_key)]
    if not found:
        raise DataError(f"no file matches {path}")
    return _of_files([path for path in found if path.is_file() and not is_fan_mask(path)])


def _of_files(paths: list[Path]) -> Media:
    """Images, or exactly one file that holds a clip."""
    if len(paths) == 1 and (reader := clip_reader(paths[0])):
        return Media(reader, tuple(paths))
    if paths and {path.suffix.lower() for path in paths} <= set(frame_files.SUFFIXES):
        return Media("frames", tuple(paths))
    if len(paths) == 1:
        known = ", ".join((*CLIP_SUFFIXES, *frame_files.SUFFIXES))
        raise DataError(f"{paths[0]} is of no known kind (known endings: {known})")
    raise DataError(f"{len(paths)} files are named, which are not all images (first: {', '.join(map(str, paths[:1]))})")


def mask_source(
    images: Media, frames: int, masks: Media, plan: MaskPlan, *, sparse: bool = False, remedy: str = ""
) -> Source:
    """Pair masks with the frames of one case.

    Image masks of image frames go by name (see `folders.pair`); those of a video go in natural order, one a frame.

    Raises:
        DataError: if they do not match, or a mask video cannot be read.
    """
    if masks.reader == "frames" and images.reader == "frames":
        paths = pair(images.paths, masks.paths, str(masks), sparse=sparse, remedy=remedy)
        return plan.source("frames", paths)
    count = masks.measure().frames
    if count != frames:
        raise DataError(
            f"{masks}: {count} masks do not match the {frames} frames of {images}. Give one mask a frame, in natural "
            "order of their names; where only some frames have masks, store the frames as images too."
        )
    return plan.source(masks.reader, tuple(map(str, masks.paths)))
