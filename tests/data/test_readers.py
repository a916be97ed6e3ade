"""Readers: exact frames, mask values, and an error that names the file for everything that can be wrong with one."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medvid_core.data.clip import UNLABELLED, Source
from medvid_core.data.readers import frame_count, image_size, read_images, read_masks, video
from medvid_core.errors import DataError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the test data ../shared/data is not on this machine")

FRAMES = 40
BITS = 8
COUNTS = {  # as in ../shared/data/SOURCES.md
    "covid/Cov-Atlas+(45).gif": 21,
    "covid/Cov-Atlas-+(43).gif": 39,
    "covid/Cov-Atlas-pleural.mp4": 77,
    "covid/Cov_convex_volpecelli_sonographic_v2.mov": 402,
    "covid/Cov_convex_volpecelli_sonographic_v3.mov": 399,
    "covid/Cov_recommendations_likebutterfly_mov5.mov": 138,
    "pneumonia/Pneu_liftl_pneu_case3_clip3.mp4": 25,
    "pneumonia/Pneu_northumbria_0409_set1_vid1.avi": 90,
    "pneumonia/Pneu_northumbria_0409_set2_vid3.avi": 92,
    "pneumonia/Pneu_northumbria_0409_set3_vid1.avi": 90,
    "pneumonia/Pneu_northumbria_0409_set6_vid3.avi": 91,
    "pneumonia/Pneu_northumbria_0409_set6_vid5.avi": 93,
    "regular/Reg_northumbria_0409_set3_vid2.avi": 94,
    "regular/Reg_northumbria_1009_vid2.avi": 92,
    "regular/Reg_northumbria_1009_vid3.avi": 91,
    "regular/Reg_pat2Image_134441.mpeg": 215,
    "regular/Reg_pat3Image_134811.mpeg": 207,
    "regular/Reg_pat4Image_140606.mpeg": 218,
}


def barcode(number: int) -> np.ndarray:
    """A picture [64,128,3] whose eight bars spell a number."""
    bars = [255 if number >> bit & 1 else 0 for bit in range(BITS)]
    row = np.repeat(np.array(bars, np.uint8), 16)
    return np.repeat(np.broadcast_to(row, (64, 128))[..., None], 3, axis=-1).copy()


def numbers(images: np.ndarray) -> list[int]:
    """Read the numbers back from [T,64,128,3]."""
    middles = images[:, 32, 8::16, 0] > 127
    return [int(sum(bit << place for place, bit in enumerate(row))) for row in middles.astype(int)]


def write_video(
    path: Path, codec: str, frames: list[np.ndarray], *, options=None, pixels="yuv420p", bframes=0, **more
) -> Path:
    with av.open(str(path), "w", **more) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = bframes
        for frame in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24" if frame.ndim == 3 else "gray"))
            )
        container.mux(stream.encode())
    return path


KINDS = {
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4-b.avi": {"codec": "mpeg4", "bframes": 2},
    "mpeg4-b.mp4": {"codec": "mpeg4", "bframes": 2},
    "h264.mp4": {"codec": "libx264", "bframes": 3, "options": {"preset": "ultrafast", "bf": "3", "g": "12"}},
    "h264.mkv": {
        "codec": "libx264",
        "bframes": 3,
        "options": {"preset": "medium", "bf": "3", "x264-params": "open-gop=1:keyint=12"},
    },
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "10", "cpu-used": "8"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "10", "cpu-used": "8"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "bframes": 2},
    "ffv1.mkv": {"codec": "ffv1"},
    "numbers.gif": {"codec": "gif", "pixels": "rgb8"},
}


@pytest.fixture(scope="module", params=KINDS)
def numbered(request, tmp_path_factory) -> Path:
    """A video whose frame t shows the number t."""
    kind = dict(KINDS[request.param])
    codec = kind.pop("codec")
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV cannot write {codec}")
    path = tmp_path_factory.mktemp("numbered") / request.param
    return write_video(path, codec, [barcode(number) for number in range(FRAMES)], **kind)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=8))
def test_random_access_gives_exactly_the_frames_asked_for(numbered, wanted):
    assert numbers(read_images(Source(reader="video", paths=(str(numbered),)), wanted)) == wanted


def test_count_and_size_of_every_kind_of_video(numbered):
    source = Source(reader="video", paths=(str(numbered),))
    assert frame_count(source) == FRAMES
    assert image_size(source) == (64, 128)
    assert numbers(video.read(str(numbered), range(FRAMES))) == list(range(FRAMES))


def test_only_frames_after_the_nearest_keyframe_are_decoded(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.avi", "mjpeg", [barcode(n) for n in range(FRAMES)], pixels="yuvj420p")
    decoded = []
    frames = video._frames
    monkeypatch.setattr(video, "_frames", lambda *a: (decoded.append(1) or frame for frame in frames(*a)))
    assert numbers(video.read(str(path), [FRAMES - 1])) == [FRAMES - 1]
    assert len(decoded) == 1


def test_windows_one_after_the_other_decode_every_frame_once(tmp_path, monkeypatch):
    """Whatever lies between the keyframes: of this video there is one."""
    path = write_video(tmp_path / "a.mp4", "mpeg4", [barcode(n) for n in range(FRAMES)], options={"g": "1000"})
    other = write_video(tmp_path / "b.mp4", "mpeg4", [barcode(n) for n in range(5)])
    decoded = []
    frames = video._frames
    monkeypatch.setattr(video, "_frames", lambda *a: (decoded.append(1) or frame for frame in frames(*a)))
    for first in range(0, FRAMES, 8):
        assert numbers(video.read(str(path), range(first, first + 8))) == list(range(first, first + 8))
    assert len(decoded) == FRAMES
    assert numbers(video.read(str(path), [2, 30])) == [2, 30]  # back again
    assert numbers(video.read(str(other), [4])) == [4]
    assert numbers(video.read(str(path), [31])) == [31]  # not where it was left


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    path = write_video(tmp_path / "a.mp4", "mpeg4", [barcode(n) for n in range(6)])
    assert numbers(video.read(str(path), [0])) == [0]
    path.unlink()
    write_video(path, "mpeg4", [barcode(n + 10) for n in range(7)])
    assert numbers(video.read(str(path), [1])) == [11]


def test_one_reformatter_a_read(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.avi", "mjpeg", [barcode(n) for n in range(5)], pixels="yuvj420p")
    made = []
    real = video.VideoReformatter
    monkeypatch.setattr(video, "VideoReformatter", lambda: made.append(1) or real())
    video.read(str(path), range(5))
    assert len(made) == 1


def test_wrong_time_stamps_fall_back_to_decoding_from_the_start(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", "mpeg4", [barcode(n) for n in range(FRAMES)])
    real = video._listing(*video._signature(str(path)))
    shifted = video._Listing(real.frames, tuple(stamp + 1 for stamp in real.stamps), real.keyframes)
    monkeypatch.setattr(video, "_listing", lambda *signature: shifted)
    assert numbers(video.read(str(path), [30, 3])) == [30, 3]


def test_rotated_video_is_shown_upright(tmp_path):
    path = write_video(tmp_path / "a.mp4", "mpeg4", [barcode(5)] * 3)
    flat = video.read(str(path), [0])[0]
    data = path.read_bytes()
    fixed = lambda *values: b"".join(int(v).to_bytes(4, "big", signed=True) for v in values)  # noqa: E731
    one = 1 << 16
    upright = fixed(one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    start = data.index(b"tkhd")
    at = data.index(upright, start)
    path.write_bytes(data[:at] + fixed(0, one, 0, -one, 0, 0, 0, 0, 1 << 30) + data[at + 36 :])  # 90° clockwise
    turned = video.read(str(path), [0])[0]
    assert image_size(Source(reader="video", paths=(str(path),))) == (128, 64)
    np.testing.assert_array_equal(turned, np.rot90(flat, -1))


@needs_shared
@pytest.mark.parametrize("name", COUNTS)
def test_real_videos_decode_with_their_frame_counts(name):
    path = str(SHARED / "cls_pocus_lung" / name)
    count = COUNTS[name]
    assert video.count_frames(path) == count
    every = video.read(path, range(count))
    assert every.shape[0] == count
    assert every.dtype == np.uint8
    some = [count - 1, count // 2, 0, count // 3, count // 2]
    np.testing.assert_array_equal(video.read(path, some), every[some])
    with pytest.raises(DataError, match=rf"Frame {count} was asked of .* has {count} frames"):
        video.read(path, [count])


@needs_shared
def test_shared_videos_are_all_listed():
    table = SHARED / "cls_pocus_lung" / "labels.csv"
    assert {row["file"] for row in csv.DictReader(table.open(encoding="utf-8"))} == set(COUNTS)


@needs_shared
@pytest.mark.parametrize("name", ["regular/Reg_pat2Image_134441.mpeg", "pneumonia/Pneu_northumbria_0409_set2_vid3.avi"])
@pytest.mark.parametrize("harm", ["truncated", "zeroed"])
def test_damaged_real_videos_are_refused(tmp_path, name, harm):
    data = bytearray((SHARED / "cls_pocus_lung" / name).read_bytes())
    middle = len(data) // 2
    data[middle:] = b"" if harm == "truncated" else bytes(200) + data[middle + 200 :]
    path = tmp_path / Path(name).name
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"The video {re.escape(str(path))} .*Copy it again from its source"):
        video.read(str(path), range(COUNTS[name]))


@pytest.mark.parametrize("frame", [-1, FRAMES])
def test_frame_numbers_outside_a_video(numbered, frame):
    with pytest.raises(DataError, match=rf"Frame {frame} was asked of .* has {FRAMES} frames \(0 to {FRAMES - 1}\)"):
        video.read(str(numbered), [3, frame])


def test_frames_cut_away_by_an_edit_list_do_not_count(tmp_path):
    whole = write_video(tmp_path / "a.mp4", "mpeg4", [barcode(n) for n in range(FRAMES)])
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(whole)) as source, av.open(str(tmp_path / "b.mp4"), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                step = packet.duration
                packet.pts, packet.dts = packet.pts - 15 * step, packet.dts - 15 * step
                packet.stream = stream
                target.mux(packet)
    cut = str(tmp_path / "b.mp4")
    assert video.count_frames(cut) == FRAMES - 15
    assert numbers(video.read(cut, [0, 20, 7])) == [15, 35, 22]


def noise(count: int) -> list[np.ndarray]:
    """Pictures that do not compress."""
    return list(np.random.default_rng(0).integers(0, 256, (count, 64, 128, 3), np.uint8))


def test_truncated_mp4_without_its_index(tmp_path):
    path = write_video(tmp_path / "a.mp4", "mpeg4", noise(20))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(
        DataError, match=r"The video .*a\.mp4 cannot be decoded \(.+\)\. Copy it again .* encode what is left"
    ):
        frame_count(Source(reader="video", paths=(str(path),)))


def test_truncated_video_whose_header_promises_more(tmp_path):
    """The video … declares 20 frames but holds 13: it is truncated. Copy it again from its source, …"""
    path = write_video(tmp_path / "a.mp4", "mpeg4", noise(20), container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert frame_count(Source(reader="video", paths=(str(path),))) == 20
    with pytest.raises(DataError, match=r"a\.mp4 declares 20 frames but holds \d+: it is truncated\. Copy it again"):
        video.read(str(path), [0])


def test_truncated_gif(tmp_path):
    path = write_video(tmp_path / "a.gif", "gif", noise(12), pixels="rgb8")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"The video .*a\.gif has no end: it is truncated\. Copy it again"):
        video.count_frames(str(path))


@pytest.mark.parametrize("content", [b"", b"hello", bytes(5000)])
def test_no_video_at_all(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"The video .*a\.mp4 cannot be decoded"):
        video.count_frames(str(path))


def test_missing_video(tmp_path):
    with pytest.raises(DataError, match=r"The video .*none\.mp4 does not exist\. Restore it, or remove its case"):
        read_images(Source(reader="video", paths=(str(tmp_path / "none.mp4"),)), [0])


def test_sound_only(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"a\.mp4 has no video stream"):
        video.count_frames(str(path))


# --- image files ---------------------------------------------------------------------------------------------------


def save(path: Path, array: np.ndarray, **options) -> str:
    Image.fromarray(array).save(path, **options)
    return str(path)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_image_files_come_back_as_they_were(tmp_path, suffix):
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    path = save(tmp_path / f"a.{suffix}", image, **({"lossless": True} if suffix == "webp" else {}))
    source = Source(reader="frames", paths=(path, path))
    assert frame_count(source) == 2
    assert image_size(source) == (12, 20)
    np.testing.assert_array_equal(read_images(source, [1, 0, 1]), np.stack([image] * 3))


def test_grey_becomes_rgb(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    read = read_images(Source(reader="frames", paths=(save(tmp_path / "a.png", grey),)), [0])
    np.testing.assert_array_equal(read, np.repeat(grey[None, ..., None], 3, axis=-1))


def test_no_frames_wanted(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    assert len(read_images(Source(reader="frames", paths=(path,)), [])) == 0


def test_truncated_jpeg(tmp_path):
    """The image … cannot be read (…): it is truncated, damaged or not an image. Copy it again from its source, …"""
    path = tmp_path / "0007.jpg"
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "jpeg")
    path.write_bytes(buffer.getvalue()[:900])
    with pytest.raises(
        DataError, match=r"0007\.jpg cannot be read \(.*\): it is truncated.*Copy it again from its source"
    ):
        read_images(Source(reader="frames", paths=(str(path),)), [0])


def test_missing_image(tmp_path):
    with pytest.raises(DataError, match=r"The image .*gone\.png does not exist\. Restore it"):
        read_images(Source(reader="frames", paths=(str(tmp_path / "gone.png"),)), [0])


def test_sixteen_bit_images_are_refused(tmp_path):
    path = save(tmp_path / "a.png", np.full((4, 4), 900, np.uint16))
    with pytest.raises(DataError, match=r"a\.png has more than 8 bits a pixel .* Convert the images to 8 bits"):
        read_images(Source(reader="frames", paths=(path,)), [0])


def test_pages_of_a_tiff_are_not_frames(tmp_path):
    pages = [Image.fromarray(np.full((4, 4), n, np.uint8)) for n in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"a\.tif holds 3 images\. Store one frame a file"):
        read_images(Source(reader="frames", paths=(str(tmp_path / "a.tif"),)), [0])


def test_frames_of_different_sizes(tmp_path):
    paths = (save(tmp_path / "1.png", np.zeros((4, 6), np.uint8)), save(tmp_path / "2.png", np.zeros((4, 5), np.uint8)))
    with pytest.raises(DataError, match=r"2\.png is 5x4 pixels while .*1\.png is 6x4: .*Resize them"):
        read_images(Source(reader="frames", paths=paths), [0, 1])


def test_frame_numbers_outside(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    for frame in (1, -1):
        with pytest.raises(DataError, match=rf"Frame {frame} was asked of the 1 frames starting with .*a\.png"):
            read_images(Source(reader="frames", paths=(path,)), [frame])


# --- masks ---------------------------------------------------------------------------------------------------------


def mask_source(path: str, **options) -> Source:
    return Source(reader="frames", paths=(path,), **options)


def test_values_become_class_indices(tmp_path):
    raw = np.array([[0, 85, 170], [255, 85, 0]], np.uint8)
    source = mask_source(save(tmp_path / "a.png", raw), values=(0, 170, 85), ignore=255)
    np.testing.assert_array_equal(read_masks(source, [0])[0], [[0, 2, 1], [UNLABELLED, 2, 0]])


def test_palette_masks_are_read_as_indices(tmp_path):
    raw = np.array([[0, 1], [2, 255]], np.uint8)
    image = Image.fromarray(raw)
    image.putpalette([channel for index in range(256) for channel in (index * 7 % 256, 255 - index, 3)])
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    read = read_masks(mask_source(str(tmp_path / "a.png"), values=(0, 1, 2), ignore=255), [0])
    np.testing.assert_array_equal(read[0], [[0, 1], [2, UNLABELLED]])


def test_one_bit_and_sixteen_bit_masks(tmp_path):
    one_bit = save(tmp_path / "a.png", np.array([[True, False]]))
    np.testing.assert_array_equal(read_masks(mask_source(one_bit, values=(0, 1)), [0])[0], [[1, 0]])
    wide = save(tmp_path / "b.png", np.array([[0, 1000, 40000]], np.uint16))
    read = read_masks(mask_source(wide, values=(0, 1000, 40000)), [0])
    np.testing.assert_array_equal(read[0], [[0, 1, 2]])


def test_nonzero_reads_colours_too(tmp_path):
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0, 1] = (0, 33, 0)
    path = save(tmp_path / "a.png", colour)
    np.testing.assert_array_equal(read_masks(mask_source(path, nonzero=True), [0])[0], [[0, 1], [0, 0]])
    with pytest.raises(DataError, match=r"a\.png is in colour, .*dataset\.mask_nonzero=true"):
        read_masks(mask_source(path, values=(0, 33)), [0])


def test_a_value_outside_the_classes(tmp_path):
    """The mask … holds the values 33, which belong to no class; allowed are 0, 255. Set dataset.mask_values=[…], …"""
    path = save(tmp_path / "a.png", np.array([[0, 33, 255]], np.uint8))
    message = (
        r"a\.png holds the values 33, .* allowed are 0, 255\. Set dataset\.mask_values=.* or dataset\.mask_nonzero=true"
    )
    with pytest.raises(DataError, match=message):
        read_masks(mask_source(path, values=(0, 255)), [0])
    with pytest.raises(DataError, match=r"allowed are 0, 255 \(7 is unlabelled\)"):
        read_masks(mask_source(path, values=(0, 255), ignore=7), [0])


def test_undeclared_values(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match=r"No mask values are declared for .*a\.png\. Set dataset\.mask_values"):
        read_masks(mask_source(path), [0])


def test_a_mask_of_another_size(tmp_path):
    path = save(tmp_path / "a.png", np.kron(np.eye(2, dtype=np.uint8), np.ones((2, 3), np.uint8)))
    with pytest.raises(
        DataError, match=r"a\.png is 6x4 pixels while frame 0 of its video is 2x2\..*dataset\.mask_resize=true"
    ):
        read_masks(mask_source(path, values=(0, 1)), [0], size=(2, 2))
    read = read_masks(mask_source(path, values=(0, 1), options="resize"), [0], size=(2, 2))
    np.testing.assert_array_equal(read[0], np.eye(2))


def test_a_frame_without_a_mask_is_unlabelled(tmp_path):
    path = save(tmp_path / "a.png", np.ones((2, 3), np.uint8))
    source = Source(reader="frames", paths=("", path), values=(0, 1))
    read = read_masks(source, [0, 1, 0])
    assert [set(np.unique(mask)) for mask in read] == [{UNLABELLED}, {1}, {UNLABELLED}]
    assert read_masks(source, [0], size=(5, 5)).shape == (1, 5, 5)


def test_lossless_mask_video(tmp_path):
    frames = [np.full((16, 16), 255 * (n % 2), np.uint8) for n in range(6)]
    path = write_video(tmp_path / "m.mkv", "ffv1", frames, pixels="gray")
    source = Source(reader="video", paths=(str(path),), values=(0, 255))
    assert [int(mask.max()) for mask in read_masks(source, [5, 0, 3])] == [1, 0, 1]
    with pytest.raises(DataError, match=r"m\.mkv \(frame 3\) holds the values 255"):
        read_masks(Source(reader="video", paths=(str(path),), values=(0, 1)), [0, 3])


# --- readers by name -----------------------------------------------------------------------------------------------


def drawn(source: Source, frames) -> np.ndarray:
    return np.stack([np.full((4, 6), frame, np.uint8) for frame in frames])


def wrong(source: Source, frames) -> np.ndarray:
    return np.zeros((1, 4, 6), np.float32)


@pytest.fixture
def by_name(monkeypatch):
    functions = {"here:drawn": drawn, "here:wrong": wrong}
    monkeypatch.setattr("medvid_core.data.readers.resolve", functions.__getitem__)


@pytest.mark.usefixtures("by_name")
def test_reader_by_name():
    source = Source(reader="here:drawn", values=(0, 1, 2))
    assert read_images(source, [2, 0]).shape == (2, 4, 6, 3)
    np.testing.assert_array_equal(read_masks(source, [2, 0])[:, 0, 0], [2, 0])
    assert image_size(source) == (4, 6)
    with pytest.raises(DataError, match=r"here:drawn \(frame 3\) holds the values 3"):
        read_masks(source, [3])
    with pytest.raises(DataError, match=r"here:drawn does not tell its number of frames"):
        frame_count(source)
    with pytest.raises(
        DataError, match=r"here:wrong gave float32 of shape \(1, 4, 6\) for 2 frames; it must give uint8"
    ):
        read_images(Source(reader="here:wrong"), [0, 1])


def test_a_video_source_names_one_file():
    with pytest.raises(DataError, match=r"must name one file, not 2: a, b"):
        read_images(Source(reader="video", paths=("a", "b")), [0])
