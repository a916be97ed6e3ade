"""Frames as they come: files as they are read whole, and folders in bounded time and memory."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import av
import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset

from medvid_core.data.datasets.unlabelled import find_cases
from medvid_core.data.loader import frame_times
from medvid_core.data.readers import live, read_images
from medvid_core.data.readers.live import live_frames
from medvid_core.errors import DataError

FRAMES = 12


def pictures(count: int = FRAMES) -> np.ndarray:
    """Frames [T,32,48,3] that do not compress, so that a cut file has lost some."""
    return np.random.default_rng(0).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)


def write_video(path: Path, codec: str = "mpeg4", pixels: str = "yuv420p", rate: int = 20) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, pixels
        for picture in pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def turn(path: Path) -> Path:
    """Mark an MP4 as taken with the camera on its side: turned by 90° where it is shown."""
    data = path.read_bytes()
    fixed = lambda *values: b"".join(int(v).to_bytes(4, "big", signed=True) for v in values)  # noqa: E731
    one = 1 << 16
    at = data.index(fixed(one, 0, 0, 0, one, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    path.write_bytes(data[:at] + fixed(0, one, 0, -one, 0, 0, 0, 0, 1 << 30) + data[at + 36 :])
    return path


def write_dicom(path: Path) -> Path:
    """A cine whose frames come at uneven times."""
    grey = pictures()[..., 0].copy()
    data = FileDataset(str(path), {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uid.UltrasoundMultiFrameImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data.NumberOfFrames, data.Rows, data.Columns = grey.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.FrameTimeVector = ["0", *(str(20 + 5 * (number % 3)) for number in range(FRAMES - 1))]
    data.PixelData = grey.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def write_nifti(path: Path) -> Path:
    image = nibabel.Nifti1Image(np.transpose(pictures()[..., 0], (2, 1, 0))[:, :, None].copy(), np.eye(4))
    image.header.set_zooms((0.5, 0.5, 1, 0.04))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return path


FILES = {
    "mp4": lambda folder: write_video(folder / "a.mp4"),
    "turned": lambda folder: turn(write_video(folder / "a.mp4")),
    "avi": lambda folder: write_video(folder / "a.avi", "mjpeg", "yuvj420p"),
    "mpeg": lambda folder: write_video(folder / "a.mpg", "mpeg2video", rate=25),
    "gif": lambda folder: write_video(folder / "a.gif", "gif", "rgb8"),
    "dicom": lambda folder: write_dicom(folder / "a.dcm"),
    "dicom without an ending": lambda folder: write_dicom(folder / "I_0001"),
    "nifti": lambda folder: write_nifti(folder / "a.nii"),
    "packed nifti": lambda folder: write_nifti(folder / "a.nii.gz"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_streams_what_it_holds(tmp_path, kind):
    """Frames and times are those that `predict` and training work with."""
    path = FILES[kind](tmp_path)
    (case,), skipped = find_cases(path)
    assert not skipped
    found = list(live_frames(str(path)))
    assert [frame.number for frame in found] == list(range(FRAMES)) == list(range(case.frames))
    np.testing.assert_array_equal(
        np.stack([frame.image for frame in found]), read_images(case.streams["video"], range(FRAMES))
    )
    times = frame_times(case, np.arange(FRAMES)).tolist()
    assert [frame.time_s for frame in found] == pytest.approx(times)


def test_a_file_is_decoded_as_it_is_used(tmp_path, monkeypatch):
    """One frame after the other, whatever is asked of it: each is decoded once, and none ahead."""
    path = write_video(tmp_path / "a.mpg", "mpeg2video", rate=25)
    made = []
    real = live.video.upright
    monkeypatch.setattr(live.video, "upright", lambda *a: made.append(1) or real(*a))
    for number, _ in enumerate(live_frames(str(path)), start=1):
        assert len(made) == number


@pytest.mark.parametrize("ending", ["avi", "gif"])
def test_a_file_cut_short_is_refused(tmp_path, ending):
    """What FFmpeg takes for a shorter video is an error here as elsewhere."""
    kinds = {"avi": ("mjpeg", "yuvj420p"), "gif": ("gif", "rgb8")}
    path = write_video(tmp_path / f"a.{ending}", *kinds[ending])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"it is truncated|is damaged inside"):
        list(live_frames(str(path)))


def test_a_file_that_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"hello" * 100)
    with pytest.raises(DataError, match=r"The video .*a\.mp4 cannot be decoded"):
        list(live_frames(str(tmp_path / "a.mp4")))
    (tmp_path / "a.csv").write_text("frame,label")
    with pytest.raises(DataError, match=r"a\.csv is of no known kind \(known endings: \.mp4"):
        list(live_frames(str(tmp_path / "a.csv")))


def test_an_address_that_breaks_off_is_not_one_that_cannot_be_opened(tmp_path, monkeypatch):
    """An address goes to FFmpeg as it is; what was opened and fails later is told so, with the frame."""
    address = f"file:{turn(write_video(tmp_path / 'a.mp4'))}"
    found = list(live_frames(address))
    assert [frame.image.shape for frame in found] == [(48, 32, 3)] * FRAMES
    assert found[1].time_s == pytest.approx(0.05)
    real = av.open
    monkeypatch.setattr(live.av, "open", lambda *a, **k: _Breaking(real(*a, **k)))
    stream = live_frames(address)
    assert [next(stream).number for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"a\.mp4 broke off at frame 3 \(.*Invalid data.*\); all frames before it are"):
        next(stream)


class _Breaking:
    """A container whose fourth frame does not come."""

    def __init__(self, container):
        self.container, self.streams = container, container.streams

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.container.close()

    def decode(self, stream):
        for number, frame in enumerate(self.container.decode(stream)):
            if number == 3:
                raise av.error.InvalidDataError(1094995529, "Invalid data found when processing input")
            yield frame


# --- folders -------------------------------------------------------------------------------------------------------


def save(folder: Path, *names: str) -> None:
    """Write images that appear whole."""
    for name in names:
        Image.fromarray(np.full((4, 4), sum(name.encode()) % 256, np.uint8)).save(folder / "unfinished", "PNG")
        os.replace(folder / "unfinished", folder / name)


@pytest.fixture
def listings(monkeypatch):
    """How often the folder has been listed."""
    seen = []
    real = os.scandir
    monkeypatch.setattr(live.os, "scandir", lambda folder: seen.append(folder) or real(folder))
    return seen


def values(frames) -> list[int]:
    return [int(frame.image[0, 0, 0]) for frame in frames]


def test_a_folder_in_batches_is_in_natural_order(tmp_path, monkeypatch):
    """However few names are kept at a time."""
    names = [f"f{number}.png" for number in (*range(2, 30), 100, 101)]
    save(tmp_path, *reversed(names), "g.txt", ".hidden.png")
    monkeypatch.setattr(live, "BATCH", 3)
    monkeypatch.setattr(live, "STEADY", 10**6)
    assert values(live_frames(str(tmp_path), idle_s=0.1)) == [sum(name.encode()) % 256 for name in names]


def test_numbered_frames_are_taken_without_listing_the_folder(tmp_path, listings):
    """The cost of a frame does not grow with the folder, nor does what is remembered."""
    save(tmp_path, *(f"f{number:03}.png" for number in range(live.STEADY + 1)))
    frames = live_frames(str(tmp_path), idle_s=5)
    for _ in range(live.STEADY + 1):
        next(frames)
    before = len(listings)
    for number in range(live.STEADY + 1, 60):
        save(tmp_path, f"f{number:03}.png")
        assert next(frames).number == number
    assert len(listings) == before
    local = frames.gi_yieldfrom.gi_frame.f_locals
    assert max(len(value) for value in local.values() if isinstance(value, list | set | dict)) <= 1


def test_a_number_left_out_is_no_end(tmp_path, listings):
    """After a moment the folder is listed for a frame of another name."""
    save(tmp_path, *(f"f{number:03}.png" for number in (*range(20), 22, 23)), "x.png")
    assert len(list(live_frames(str(tmp_path), idle_s=0.5))) == 23


@pytest.mark.parametrize("start", [3, live.STEADY + 5])
def test_a_frame_that_comes_late_is_refused(tmp_path, start):
    """A file was added to … after … was taken, but comes before it by name. … number the files as they are written."""
    save(tmp_path, *(f"f{number}.png" for number in range(10, 10 + start)))
    frames = live_frames(str(tmp_path), idle_s=0.5)
    for _ in range(start):
        next(frames)
    save(tmp_path, "f9.png")
    with pytest.raises(DataError, match=rf"after f{9 + start}\.png was taken, but comes before it by name\. .* number"):
        next(frames)


def test_frames_that_are_removed_behind_the_stream_do_not_matter(tmp_path):
    save(tmp_path, *(f"f{number}.png" for number in range(10)))
    frames = live_frames(str(tmp_path), idle_s=0.3)
    for _ in range(10):
        next(frames)
    for number in range(8):
        (tmp_path / f"f{number}.png").unlink()
    save(tmp_path, "f10.png", "f12.png")
    assert [frame.number for frame in frames] == [10, 11]


def test_a_damaged_frame_is_refused_once_the_next_is_there(tmp_path):
    """A half-written frame is waited for, but not after another was begun."""
    save(tmp_path, *(f"f{number:03}.png" for number in range(20)))
    frames = live_frames(str(tmp_path), idle_s=60)
    for _ in range(20):
        next(frames)
    (tmp_path / "f020.png").write_bytes((tmp_path / "f000.png").read_bytes()[:40])
    timer = threading.Timer(0.1, save, (tmp_path, "f021.png"))
    timer.start()
    with pytest.raises(DataError, match=r"f020\.png cannot be read"):
        next(frames)
    timer.join()
