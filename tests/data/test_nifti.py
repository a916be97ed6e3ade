"""NIfTI cines: axes, grey values, spacing and rate, masks, and an error for everything that can be wrong."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medvid_core.data.clip import Source
from medvid_core.data.datasets import manifest
from medvid_core.data.datasets.manifest import ManifestConfig
from medvid_core.data.datasets.unlabelled import find_cases
from medvid_core.data.readers import frame_count, image_size, nifti, read_images, read_masks
from medvid_core.errors import DataError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the test data ../shared/data is not on this machine")


def write(path: Path, frames: np.ndarray, *, deep: bool = False, zooms=None, units=None, slope=None) -> Path:
    """Write frames [T,H,W] with axes (x, y, t), or (x, y, 1, t)."""
    array = np.transpose(frames, (2, 1, 0))
    image = nibabel.Nifti1Image(array[:, :, None] if deep else array, np.eye(4), dtype=frames.dtype)
    if zooms:
        image.header.set_zooms(zooms)
    if units:
        image.header.set_xyzt_units(*units)
    if slope:
        image.header.set_slope_inter(*slope)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def ramp(frames: int = 4, size: tuple[int, int] = (6, 10)) -> np.ndarray:
    t, y, x = np.mgrid[:frames, : size[0], : size[1]]
    return (50 * t + 10 * y % 50 + x).astype(np.uint8)


def source(path: Path, **more) -> Source:
    return Source(reader="nifti", paths=(str(path),), **more)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("deep", [False, True])
def test_bytes_are_taken_as_they_are(tmp_path, name, deep):
    path = write(tmp_path / name, ramp(), deep=deep)
    images = read_images(source(path), [3, 0, 3])
    np.testing.assert_array_equal(images, np.repeat(ramp()[[3, 0, 3]][..., None], 3, -1))
    assert (frame_count(source(path)), image_size(source(path))) == (4, (6, 10))


def test_other_types_are_scaled_by_one_map_a_file(tmp_path):
    """The smallest value of the file becomes 0, the largest 255, whichever frames are read together."""
    frames = np.array([[[-100, 0]], [[100, 300]]], np.int16)
    path = write(tmp_path / "a.nii.gz", frames)
    expected = [[[0, 64]], [[128, 255]]]
    np.testing.assert_array_equal(read_images(source(path), [0, 1])[..., 0], expected)
    np.testing.assert_array_equal(read_images(source(path), [0])[..., 0], expected[:1])
    decimal = write(tmp_path / "b.nii", np.array([[[np.nan, 0.5, 1.0, np.inf]]], np.float32))
    assert read_images(source(decimal), [0])[0, 0, :, 0].tolist() == [0, 0, 255, 0]
    flat = write(tmp_path / "c.nii", np.full((2, 3, 3), 7, np.int16))
    assert not read_images(source(flat), [1]).any()
    falling = write(tmp_path / "d.nii", frames)
    raw = bytearray(falling.read_bytes())
    raw[112:120] = np.array([-2, 5], "<f4").tobytes()  # scl_slope, scl_inter
    falling.write_bytes(raw)
    np.testing.assert_array_equal(read_images(source(falling), [0])[0, 0, :, 0], [255, 191])


@pytest.mark.parametrize(
    ("zooms", "units", "deep", "spacing", "fps"),
    [
        ((0.2, 0.3, 1, 0.04), ("mm", "sec"), True, (0.3, 0.2), 25),
        ((0.2, 0.3, 1, 40), ("mm", "msec"), True, (0.3, 0.2), 25),
        ((200, 300, 1, 40000), ("micron", "usec"), True, (0.3, 0.2), 25),
        ((0.2, 0.3, 1, 0.04), None, True, (0.3, 0.2), 25),
        ((1, 1, 1, 1), None, True, None, None),
        ((1, 1, 1, 0), ("mm", "sec"), True, (1, 1), None),
        ((0.2, 0.3, 0.04), ("mm", "sec"), False, (0.3, 0.2), None),
    ],
)
def test_spacing_and_rate(tmp_path, zooms, units, deep, spacing, fps):
    """Row, then column; without a named unit mm and s, but 1 is what a header holds that nobody filled in."""
    info = nifti.probe(str(write(tmp_path / "a.nii", ramp(), deep=deep, zooms=zooms, units=units)))
    assert info.spacing == (None if spacing is None else pytest.approx(spacing))
    assert info.fps == (None if fps is None else pytest.approx(fps))


def test_masks_keep_their_integers(tmp_path):
    frames = np.zeros((3, 4, 5))
    frames[1, 0, :3] = [1, 2, 1]
    for number, kind in enumerate((np.uint8, np.int16, np.float64)):
        path = write(tmp_path / f"{number}.nii.gz", frames.astype(kind))
        masks = read_masks(source(path, values=(0, 1, 2)), [1, 0], size=(4, 5))
        assert masks[0, 0].tolist() == [1, 2, 1, 0, 0]
        assert nifti.drawn_frames(str(path)) == (1,)
    with pytest.raises(DataError, match=r"2\.nii\.gz \(frame 1\) holds the values 2"):
        read_masks(source(path, values=(0, 1)), [1])
    halves = write(tmp_path / "half.nii", frames / 2)
    with pytest.raises(DataError, match=r"half\.nii holds values that are no integers"):
        read_masks(source(halves, values=(0, 1, 2)), [1])


def test_finding_files_and_a_manifest(tmp_path):
    write(tmp_path / "a.nii", ramp())
    write(tmp_path / "b.c.nii.gz", ramp(), deep=True, zooms=(0.2, 0.3, 1, 0.04), units=("mm", "sec"))
    cases, skipped = find_cases(tmp_path)
    assert ([case.case_id for case in cases], skipped) == (["a", "b.c"], {})
    assert (cases[1].fps, cases[1].spacing) == (pytest.approx(25), pytest.approx((0.3, 0.2)))
    write(tmp_path / "mask.nii.gz", (ramp() > 100).astype(np.uint8))
    (tmp_path / "manifest.csv").write_text("file,mask\nb.c.nii.gz,mask.nii.gz\n")
    case = manifest.index(tmp_path, ManifestConfig(mask_values=(0, 1))).cases[0]
    assert (case.case_id, case.streams["mask"].reader) == ("b.c", "nifti")
    np.testing.assert_array_equal(read_masks(case.streams["mask"], [2], size=(6, 10))[0], ramp()[2] > 100)


def test_what_is_no_video_of_one_plane(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 3, 2), np.uint8), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"a\.nii holds 3 slices in each of 2 volumes .* Save each slice as a file"):
        nifti.probe(str(tmp_path / "a.nii"))
    image = nibabel.Nifti1Image(np.zeros((4, 5, 1, 2, 3), np.uint8), np.eye(4))
    nibabel.save(image, tmp_path / "b.nii")
    with pytest.raises(DataError, match=r"b\.nii has the axes \(4, 5, 1, 2, 3\); a video has \(x, y, time\)"):
        nifti.probe(str(tmp_path / "b.nii"))
    colour = np.zeros((4, 5, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), tmp_path / "c.nii")
    with pytest.raises(DataError, match=r"c\.nii holds .* values; grey values are read"):
        nifti.probe(str(tmp_path / "c.nii"))


def test_frames_out_of_range_and_missing_files(tmp_path):
    path = write(tmp_path / "a.nii", ramp())
    for frame in (4, -1):
        with pytest.raises(DataError, match=rf"Frame {frame} was asked of .*a\.nii, which has 4 frames"):
            read_images(source(path), [0, frame])
    for call in (nifti.probe, nifti.size, nifti.drawn_frames):
        with pytest.raises(DataError, match=r"The NIfTI file .*gone\.nii does not exist"):
            call(str(tmp_path / "gone.nii"))


def test_truncated_files(tmp_path):
    plain, packed = write(tmp_path / "a.nii", ramp()), write(tmp_path / "b.nii.gz", ramp())
    plain.write_bytes(plain.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"a\.nii ends before its 4 frames do: it is truncated"):
        nifti.probe(str(plain))
    with pytest.raises(DataError, match=r"a\.nii cannot be read"):
        read_images(source(plain), [0])
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"b\.nii\.gz cannot be read"):
        read_images(source(packed), [0])
    (tmp_path / "text.nii").write_text("hello" * 200)
    with pytest.raises(DataError, match=r"text\.nii cannot be read .* no NIfTI file"):
        nifti.probe(str(tmp_path / "text.nii"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_damage_is_read_or_a_clear_error(tmp_path, data):
    whole = tmp_path / "whole.nii"
    if not whole.exists():
        write(whole, ramp().astype(np.int16), deep=True)
    damaged = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, 351))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"{data.draw(st.integers(0, 10**9))}.nii"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    said = path.name
    try:
        frames = nifti.probe(str(path)).frames
        assert len(nifti.read(str(path), [frames - 1])) == 1
    except DataError as error:
        said = str(error)
    assert path.name in said
    path.unlink()


@needs_shared
def test_functional_images_are_refused_with_the_reason():
    with pytest.raises(DataError, match=r"functional\.nii holds 3 slices in each of 20 volumes"):
        find_cases(SHARED / "nifti_4d/functional.nii")
    with pytest.raises(DataError, match=r"functional\.nii holds 3 slices"):
        read_images(source(SHARED / "nifti_4d/functional.nii"), [0])
