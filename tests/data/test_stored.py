"""Prepared streams on disk: nothing is lost beyond what is said, any frame alone, damage is found."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvid_core.data.clip import Source
from medvid_core.data.readers import image_size, read_images, read_stream, stored
from medvid_core.errors import DataError


def source(path: Path, kind: str = "image") -> Source:
    return Source(reader=stored.READER, paths=(str(path),), kind=kind)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    reach=st.floats(1e-3, 511.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_vector_is_off_by_half_a_step_at_most(tmp_path_factory, shape, reach, seed):
    """1/128 pixel, as the page says."""
    frames, height, width = shape
    vectors = np.random.default_rng(seed).uniform(-reach, reach, (frames, 2, height, width)).astype(np.float32)
    path = tmp_path_factory.mktemp("vectors") / "flow.frames"
    stored.write(path, vectors)
    found = read_stream(source(path, "vector"), range(frames))
    assert found.dtype == np.float32
    assert np.abs(found.astype(np.float64) - vectors).max() <= stored.STEP / 2 == 1 / 128


@pytest.mark.parametrize("wrong", [512.0, -600.0, np.nan, np.inf])
def test_a_vector_that_cannot_be_stored_is_an_error(tmp_path, wrong):
    vectors = np.zeros((2, 2, 4, 4), np.float32)
    vectors[1, 0, 2, 3] = wrong
    with pytest.raises(DataError, match=r"Frame 1 of the stream flow holds vectors .* longer than 511.98 pixels"):
        stored.write(tmp_path / "flow.frames", vectors)


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_come_back_in_any_order(tmp_path, channels):
    frames = np.random.default_rng(0).integers(0, 256, (7, channels, 5, 6), np.uint8)
    path = tmp_path / "x.frames"
    assert stored.write(path, iter(frames)) == 7
    order = [6, 0, 3, 3]
    if channels == 3:
        np.testing.assert_array_equal(read_images(source(path), order), frames[order].transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(read_stream(source(path), order), frames[order])
        assert image_size(source(path)) == (5, 6)
    else:
        np.testing.assert_array_equal(read_stream(source(path, "mask"), order), frames[order])


def test_a_smooth_picture_takes_little_room(tmp_path):
    y, x = np.mgrid[:64, :64]
    frame = np.stack([x, y, x + y]).astype(np.uint8)
    stored.write(tmp_path / "x.frames", [frame] * 4)
    assert (tmp_path / "x.frames").stat().st_size < 4 * frame.size / 20


def test_a_clip_reads_its_own_frames_only(tmp_path, monkeypatch):
    stored.write(tmp_path / "x.frames", np.zeros((50, 1, 4, 4), np.uint8))
    unpacked = []
    real = stored._unpack
    monkeypatch.setattr(stored, "_unpack", lambda packed, index: unpacked.append(1) or real(packed, index))
    read_stream(source(tmp_path / "x.frames", "mask"), [3, 40])
    assert len(unpacked) == 2


@pytest.mark.parametrize("keep", [0, 10, -1, -40])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "x.frames"
    stored.write(path, np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), np.uint8))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"The prepared file .*x\.frames is damaged"):
        read_stream(source(path, "mask"), [0])


def test_a_changed_byte_is_found(tmp_path):
    path = tmp_path / "x.frames"
    stored.write(path, np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16), np.uint8))
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged \(frame 0"):
        read_stream(source(path, "mask"), [0])


def test_frames_that_are_not_there(tmp_path):
    path = tmp_path / "x.frames"
    stored.write(path, np.zeros((3, 1, 4, 4), np.uint8))
    with pytest.raises(DataError, match="holds 3 frames, and was asked for frame 3"):
        read_stream(source(path, "mask"), [3])
    path.unlink()
    with pytest.raises(DataError, match="does not exist any more"):
        read_stream(source(path, "mask"), [0])


def test_frames_must_be_alike(tmp_path):
    with pytest.raises(DataError, match="has no frame"):
        stored.write(tmp_path / "x.frames", [])
    with pytest.raises(DataError, match="all must be alike"):
        stored.write(tmp_path / "x.frames", [np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 5), np.uint8)])
