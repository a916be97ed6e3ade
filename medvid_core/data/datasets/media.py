"""Videos and masks by whatever path names them: a video file, a folder of images, one image, or a glob."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from medvid_core.data.clip import Source
from medvid_core.data.datasets.folders import list_files, natural_key, pair
from medvid_core.data.datasets.masks import MaskPlan
from medvid_core.data.readers import frames as frame_files
from medvid_core.data.readers import video
from medvid_core.data.readers.video import VideoInfo
from medvid_core.errors import DataError


@dataclass(frozen=True)
class Media:
    """Files of one stream: one video, or images in natural order."""

    reader: str
    paths: tuple[Path, ...]

    def source(self) -> Source:
        """The stream."""
        return Source(reader=self.reader, paths=tuple(map(str, self.paths)))

    def measure(self) -> VideoInfo:
        """Number and rate of frames.

        Raises:
            DataError: if a video cannot be read.
        """
        if self.reader == "video":
            return video.probe(str(self.paths[0]))
        return VideoInfo(len(self.paths), None)

    def __str__(self) -> str:
        return str(self.paths[0] if len(self.paths) == 1 else self.paths[0].parent)


def locate(base: Path, text: str) -> Media:
    """Find the files that a path names.

    Args:
        base: what a relative path starts from.
        text: a video file, an image, a folder of images, or a glob of images.

    Raises:
        DataError: if nothing is there, or it is none of these.
    """
    path = base / text
    if path.is_dir():
        images = list_files(path, frame_files.SUFFIXES)
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
    return _of_files([path for path in found if path.is_file()])


def _of_files(paths: list[Path]) -> Media:
    """Images, or exactly one video."""
    suffixes = {path.suffix.lower() for path in paths}
    if len(paths) == 1 and suffixes <= set(video.SUFFIXES):
        return Media("video", tuple(paths))
    if paths and suffixes <= set(frame_files.SUFFIXES):
        return Media("frames", tuple(paths))
    if len(paths) == 1:
        known = ", ".join((*video.SUFFIXES, *frame_files.SUFFIXES))
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
