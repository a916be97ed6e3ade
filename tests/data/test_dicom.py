"""DICOM cines: what pixels become, what the header says, and an error for everything that can be wrong."""

from __future__ import annotations

import io
import logging
import pickle
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space

from medvid_core.data.clip import Source
from medvid_core.data.datasets import manifest
from medvid_core.data.datasets.manifest import ManifestConfig
from medvid_core.data.datasets.unlabelled import find_cases
from medvid_core.data.readers import dicom, dicom_header, frame_count, image_size, read_images, read_masks
from medvid_core.data.readers.dicom_header import patient_hash
from medvid_core.errors import DataError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the test data ../shared/data is not on this machine")

NAME, ID, BIRTH = "Doe^Jane", "SECRET-4711", "19610203"


def write(path: Path, pixels: np.ndarray, *, syntax: str = uid.ExplicitVRLittleEndian, **tags) -> Path:
    """Write frames [T,H,W] or [T,H,W,3]; ``tags`` override what describes them, PixelData included."""
    data = FileDataset(str(path), {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uid.UltrasoundMultiFrameImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data.PatientName, data.PatientID, data.PatientBirthDate = NAME, ID, BIRTH
    bits = pixels.dtype.itemsize * 8
    colour = pixels.ndim == 4
    described = {
        "NumberOfFrames": len(pixels),
        "Rows": pixels.shape[1],
        "Columns": pixels.shape[2],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes(),
    }
    if colour:
        described["PlanarConfiguration"] = 0
    for keyword, value in (described | tags).items():
        setattr(data, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path, enforce_file_format=True)
    return path


def ramp(frames: int = 4, size: tuple[int, int] = (6, 10)) -> np.ndarray:
    """Grey frames [T,H,W] whose values tell frame, row and column apart."""
    t, y, x = np.mgrid[:frames, : size[0], : size[1]]
    return (50 * t + 10 * y % 50 + x).astype(np.uint8)


def colours(frames: int = 3, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 256, (frames, 1, 1, 3), dtype=np.uint8)
    return np.repeat(np.repeat(flat, size[0], 1), size[1], 2)


def source(path: Path, **more) -> Source:
    return Source(reader="dicom", paths=(str(path),), **more)


# --- pixels --------------------------------------------------------------------------------------------------------


def test_grey_is_taken_as_it_is(tmp_path):
    pixels = ramp()
    path = write(tmp_path / "a.dcm", pixels, WindowCenter="10", WindowWidth="2")
    images = read_images(source(path), [3, 0, 3])
    np.testing.assert_array_equal(images, np.repeat(pixels[[3, 0, 3]][..., None], 3, -1))
    assert (frame_count(source(path)), image_size(source(path))) == (4, (6, 10))
    assert read_images(source(path), []).shape[0] == 0


def test_one_frame_without_a_number_of_frames(tmp_path):
    path = write(tmp_path / "a.dcm", ramp(1), NumberOfFrames=None)
    assert frame_count(source(path)) == 1
    np.testing.assert_array_equal(read_images(source(path), [0])[0, ..., 0], ramp(1)[0])


def test_monochrome1_is_inverted(tmp_path):
    path = write(tmp_path / "a.dcm", ramp(), PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_images(source(path), [1])[0, ..., 0], 255 - ramp()[1])


def test_window_of_more_bits(tmp_path):
    """PS3.3 C.11.2.1.2: with centre 100 and width 51, 75 is the first black and 125 the last white."""
    values = np.array([[[0, 74, 75, 100, 125, 4000]]], np.uint16)
    tags = {"WindowCenter": ["100", "7"], "WindowWidth": ["51", "8"], "BitsStored": 12, "HighBit": 11}
    grey = read_images(source(write(tmp_path / "a.dcm", values, **tags)), [0])[0, 0, :, 0]
    expected = [0, 0, 0.01, 0.51, 1, 1]  # ((x - 99.5) / 50 + 0.5)
    np.testing.assert_allclose(grey, 255 * np.array(expected), atol=0.51)
    inverted = write(tmp_path / "b.dcm", values, **tags, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_images(source(inverted), [0])[0, 0, :, 0], 255 - grey)
    exact = write(tmp_path / "c.dcm", values, **tags, VOILUTFunction="LINEAR_EXACT")
    expected = [0, 0, 0.5 / 51, 0.5, 50.5 / 51, 1]
    np.testing.assert_allclose(read_images(source(exact), [0])[0, 0, :, 0], 255 * np.array(expected), atol=0.51)
    sigmoid = write(tmp_path / "d.dcm", values, **tags, VOILUTFunction="SIGMOID")
    assert read_images(source(sigmoid), [0])[0, 0, 3, 0] == 128


def test_window_after_rescale_of_signed_values(tmp_path):
    values = np.array([[[-10, 0, 10]]], np.int16)
    tags = {"RescaleSlope": "2", "RescaleIntercept": "100", "WindowCenter": "100.5", "WindowWidth": "41"}
    grey = read_images(source(write(tmp_path / "a.dcm", values, **tags)), [0])[0, 0, :, 0]
    assert grey.tolist() == [0, 128, 255]


def test_window_in_functional_groups(tmp_path):
    frame, window = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = "100.5", "101"
    frame.FrameVOILUTSequence = [window]
    values = np.array([[[50, 100, 150]]], np.uint16)
    for holder in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        path = write(tmp_path / f"{holder}.dcm", values, **{holder: [frame]})
        assert read_images(source(path), [0])[0, 0, :, 0].tolist() == [0, 128, 255]


def test_look_up_table_of_more_bits(tmp_path):
    table = Dataset()
    table.add_new(0x00283002, "US", [4, 10, 16])
    table.add_new(0x00283006, "US", [0, 16384, 32768, 65535])
    values = np.array([[[0, 10, 11, 12, 13, 900]]], np.uint16)
    grey = read_images(source(write(tmp_path / "a.dcm", values, VOILUTSequence=[table])), [0])[0, 0, :, 0]
    assert grey.tolist() == [0, 0, 64, 128, 255, 255]


def test_more_bits_without_a_window_are_refused(tmp_path):
    path = write(tmp_path / "a.dcm", ramp().astype(np.uint16))
    with pytest.raises(DataError, match=r"a\.dcm has 16 bits a pixel and names no grey window.*convert it to 8 bits"):
        read_images(source(path), [0])


def test_colours(tmp_path):
    pixels = colours()
    plain = write(tmp_path / "rgb.dcm", pixels)
    planar = write(
        tmp_path / "planar.dcm", pixels, PlanarConfiguration=1, PixelData=pixels.transpose(0, 3, 1, 2).tobytes()
    )
    ybr = convert_color_space(pixels, "RGB", "YBR_FULL")
    full = write(tmp_path / "ybr.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    halved = np.stack([ybr[:, :, ::2, 0], ybr[:, :, 1::2, 0], ybr[:, :, ::2, 1], ybr[:, :, ::2, 2]], -1)
    half = write(tmp_path / "422.dcm", ybr, PhotometricInterpretation="YBR_FULL_422", PixelData=halved.tobytes())
    np.testing.assert_array_equal(read_images(source(plain), [2, 0]), pixels[[2, 0]])
    np.testing.assert_array_equal(read_images(source(planar), [2, 0]), pixels[[2, 0]])
    for path in (full, half):
        np.testing.assert_allclose(read_images(source(path), [0, 1, 2]).astype(int), pixels, atol=2)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_is_looked_up(tmp_path, bits):
    tables = {"Red": [0, 255, 10, 20], "Green": [0, 0, 30, 40], "Blue": [7, 0, 50, 60]}
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, table in tables.items():
        entries = np.array(table, np.uint8) if bits == 8 else np.array(table, np.uint16) * 257
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, bits]
        tags[f"{colour}PaletteColorLookupTableData"] = entries.tobytes()
    pixels = np.array([[[0, 1, 2, 3]], [[3, 3, 0, 0]]], np.uint8)
    path = write(tmp_path / "a.dcm", pixels, **tags)
    expected = np.stack([np.array(table, np.uint8)[pixels] for table in tables.values()], -1)
    np.testing.assert_array_equal(read_images(source(path), [1, 0]), expected[[1, 0]])


def jpegs(pixels: np.ndarray) -> list[bytes]:
    out = []
    for frame in pixels:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, "JPEG", quality=95)
        out.append(stream.getvalue())
    return out


def compressed(path: Path, pixels: np.ndarray, **tags) -> Path:
    kind = "YBR_FULL_422" if pixels.ndim == 4 else "MONOCHROME2"
    tags = {"PhotometricInterpretation": kind, "PixelData": encapsulate(jpegs(pixels))} | tags
    return write(path, pixels, syntax=uid.JPEGBaseline8Bit, **tags)


def test_jpeg(tmp_path):
    pixels = colours(size=(16, 16))
    path = compressed(tmp_path / "a.dcm", pixels)
    assert np.abs(read_images(source(path), [2, 0]).astype(int) - pixels[[2, 0]]).max() <= 4
    grey = np.repeat(np.repeat(np.array([[[10]], [[200]]], np.uint8), 16, 1), 16, 2)
    path = compressed(tmp_path / "b.dcm", grey)
    assert np.abs(read_images(source(path), [1])[0, ..., 0].astype(int) - 200).max() <= 2


def test_only_wanted_frames_are_decoded(tmp_path, monkeypatch):
    path = compressed(tmp_path / "a.dcm", colours(6, (16, 16)))
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **more: opened.append(1) or real(*args, **more))
    dicom.read(str(path), [4, 1, 4])
    assert len(opened) == 2


def test_run_lengths_and_deflate(tmp_path):
    pixels = ramp()
    plain = write(tmp_path / "a.dcm", pixels)
    data = dcmread(plain)
    data.compress(uid.RLELossless)
    data.save_as(tmp_path / "rle.dcm")
    deflated = write(tmp_path / "deflated.dcm", pixels, syntax=uid.DeflatedExplicitVRLittleEndian)
    for path in (tmp_path / "rle.dcm", deflated):
        assert dicom.probe(str(path)).frames == 4
        np.testing.assert_array_equal(read_images(source(path), [2])[0, ..., 0], pixels[2])


def test_masks_keep_their_integers(tmp_path):
    values = np.zeros((3, 4, 5), np.uint16)
    values[1, 0, :3] = [300, 7, 300]
    path = write(tmp_path / "a.dcm", values)
    masks = read_masks(source(path, values=(0, 300), ignore=7), [1, 0], size=(4, 5))
    assert masks[0, 0].tolist() == [1, 255, 1, 0, 0]
    assert not masks[1].any()
    with pytest.raises(DataError, match=r"a\.dcm \(frame 1\) holds the values 7"):
        read_masks(source(path, values=(0, 300)), [1])


# --- header --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "fps", "times"),
    [
        ({}, None, ()),
        ({"FrameTime": "40"}, 25.0, ()),
        ({"FrameTime": "0", "CineRate": "30"}, 30.0, ()),
        ({"RecommendedDisplayFrameRate": "12"}, 12.0, ()),
        ({"FrameTimeVector": ["0", "20", "20", "20"]}, 50.0, ()),
        ({"FrameTimeVector": ["40", "20", "20", "20"], "CineRate": "7"}, 50.0, ()),
        ({"FrameTimeVector": ["0", "20", "40", "60"]}, 25.0, (0.0, 0.02, 0.06, 0.12)),
        ({"FrameTimeVector": ["0", "20"], "FrameTime": "40"}, 25.0, ()),
    ],
)
def test_frame_times(tmp_path, tags, fps, times):
    info = dicom.probe(str(write(tmp_path / "a.dcm", ramp(), **tags)))
    assert info.fps == (None if fps is None else pytest.approx(fps))
    assert info.times_s == pytest.approx(times)


def region(box, delta=(0.02, 0.03), *, kind=1, layout=1, unit=3) -> Dataset:
    one = Dataset()
    one.RegionSpatialFormat, one.RegionDataType = layout, kind
    one.RegionLocationMinX0, one.RegionLocationMinY0, one.RegionLocationMaxX1, one.RegionLocationMaxY1 = box
    one.PhysicalUnitsXDirection = one.PhysicalUnitsYDirection = unit
    one.PhysicalDeltaX, one.PhysicalDeltaY = delta
    return one


@pytest.mark.parametrize(
    ("tags", "spacing"),
    [
        ({}, None),
        ({"PixelSpacing": ["0.5", "0.25"]}, (0.5, 0.25)),
        ({"regions": [region((0, 0, 9, 5))]}, (0.3, 0.2)),
        ({"regions": [region((0, 0, 9, 5), (-0.02, 0.03))]}, (0.3, 0.2)),
        ({"regions": [region((0, 0, 3, 3), (1, 1)), region((4, 0, 9, 5))]}, (0.3, 0.2)),
        ({"regions": [region((0, 0, 9, 5), (1, 1), kind=2), region((0, 0, 3, 3))]}, (0.3, 0.2)),
        ({"regions": [region((0, 0, 9, 5), layout=3)]}, None),
        ({"regions": [region((0, 0, 9, 5), unit=4)]}, None),
        ({"regions": [region((0, 0, 640, 480))], "PixelSpacing": ["1", "1"]}, None),
    ],
)
def test_spacing(tmp_path, tags, spacing):
    """mm a pixel, row then column: deltas are centimetres, x before y. A region outside the picture was resized."""
    tags = {("SequenceOfUltrasoundRegions" if key == "regions" else key): value for key, value in tags.items()}
    info = dicom.probe(str(write(tmp_path / "a.dcm", ramp(), **tags)))
    assert info.spacing == (None if spacing is None else pytest.approx(spacing))


def test_patients_are_told_apart_by_a_hash(tmp_path):
    write(tmp_path / "a.dcm", ramp())
    write(tmp_path / "b.dcm", ramp(), PatientID=f"{ID} ")
    write(tmp_path / "c.dcm", ramp(), PatientID="")
    groups = {case.case_id: case.group_id for case in find_cases(tmp_path)[0]}
    assert groups == {"a": patient_hash(ID), "b": patient_hash(ID), "c": "c"}
    assert patient_hash("abc") == "ba7816bf8f01"  # SHA-256 of abc, FIPS 180-2


def test_nothing_identifies_the_patient(tmp_path, recwarn, caplog):
    """Whatever is returned, raised, warned of or logged holds neither name, id nor date."""
    good = write(tmp_path / "good.dcm", ramp())
    data = dcmread(good)
    data.PatientID = "X" * 70 + ID  # too long: pydicom warns of it, value and all
    data.FrameTime, data.SequenceOfUltrasoundRegions = "40", [region((0, 0, 9, 5))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(tmp_path / "long.dcm")
    (tmp_path / "cut.dcm").write_bytes(good.read_bytes()[:-20])
    write(tmp_path / "deep.dcm", ramp().astype(np.uint16))
    recwarn.clear()
    cases, skipped = find_cases(tmp_path)
    said = [repr(cases), repr(skipped)]
    for case in cases:
        try:
            said.append(repr(read_images(case.streams["video"], [0])))
        except DataError as error:
            said += [str(error), repr(error.__cause__)]
    said += [str(warning.message) for warning in recwarn] + [caplog.text]
    assert len(said) > 4
    for secret in (NAME, "Doe", ID, BIRTH, "XXXX"):
        assert not [text for text in said if secret in text]


def test_pydicom_is_imported_when_it_is_needed():
    code = (
        "import sys, medvid_core.data.readers, medvid_core.data.datasets.manifest;"
        "sys.exit('pydicom' in sys.modules or 'nibabel' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- finding files -------------------------------------------------------------------------------------------------


def test_files_without_an_ending_are_recognised(tmp_path):
    write(tmp_path / "I_000001", ramp())
    write(tmp_path / "1.2.840.10008.7", ramp())
    write(tmp_path / "B.DCM", ramp())
    (tmp_path / "LICENSE").write_text("no picture")
    (tmp_path / "short").write_bytes(b"\0" * 100)
    cases, skipped = find_cases(tmp_path)
    assert [case.case_id for case in cases] == ["1.2.840.10008.7", "B", "I_000001"]
    assert not skipped
    assert [read_images(case.streams["video"], [3]).shape for case in cases] == [(1, 6, 10, 3)] * 3
    assert pickle.loads(pickle.dumps(cases)) == cases


def test_a_folder_of_files_is_no_clip(tmp_path):
    write(tmp_path / "study/a.dcm", ramp())
    (tmp_path / "manifest.csv").write_text("file,label\nstudy,x\nstudy/a.dcm,y\n")
    with pytest.raises(DataError, match=r"row 2, column file: the folder .*study holds no images, but 1 file"):
        manifest.index(tmp_path, ManifestConfig())


def test_manifest_of_dicom(tmp_path):
    write(tmp_path / "a.dcm", ramp(), FrameTimeVector=["0", "20", "40", "60"], PixelSpacing=["0.5", "0.25"])
    write(tmp_path / "b", ramp())
    table = tmp_path / "manifest.csv"
    table.write_text("file,label,group_id,fps,spacing_mm\na.dcm,x,,,\nb,y,p,10,1\n")
    a, b = manifest.index(tmp_path, ManifestConfig()).cases
    assert (a.case_id, a.group_id, a.spacing, a.frames) == ("a", patient_hash(ID), (0.5, 0.25), 4)
    assert (a.fps, a.times_s) == (pytest.approx(25), pytest.approx((0, 0.02, 0.06, 0.12)))
    assert (b.case_id, b.group_id, b.fps, b.times_s, b.spacing) == ("b", "p", 10, (), (1, 1))


# --- what can be wrong ---------------------------------------------------------------------------------------------


def test_frames_out_of_range(tmp_path):
    path = write(tmp_path / "a.dcm", ramp())
    for frame in (4, -1):
        with pytest.raises(DataError, match=rf"Frame {frame} was asked of .*a\.dcm, which has 4 frames \(0 to 3\)"):
            read_images(source(path), [0, frame])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"The DICOM file .*gone\.dcm does not exist"):
        dicom.probe(str(tmp_path / "gone.dcm"))
    with pytest.raises(DataError, match=r"The DICOM file .*gone\.dcm does not exist"):
        dicom.read(str(tmp_path / "gone.dcm"), [0])
    (tmp_path / "text.dcm").write_text("hello" * 100)
    with pytest.raises(DataError, match=r"text\.dcm is no DICOM file"):
        dicom.probe(str(tmp_path / "text.dcm"))
    data = dcmread(write(tmp_path / "report.dcm", ramp()))
    del data.PixelData
    data.save_as(tmp_path / "report.dcm")
    with pytest.raises(DataError, match=r"report\.dcm holds no pixels"):
        dicom.probe(str(tmp_path / "report.dcm"))


def test_truncated_files(tmp_path):
    """Files that end early are found out by their headers, without decoding."""
    plain, jpeg = write(tmp_path / "a.dcm", ramp()), compressed(tmp_path / "b.dcm", colours(5, (16, 16)))
    for path, cut in ((plain, 5), (plain, 200), (jpeg, 40), (jpeg, 400)):
        short = tmp_path / f"{cut}.dcm"
        short.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(DataError, match=rf"{cut}\.dcm declares more frames than it holds: it is truncated"):
            dicom.probe(str(short))
    fewer = write(tmp_path / "c.dcm", ramp(), NumberOfFrames=5)
    with pytest.raises(DataError, match=r"declares more frames than it holds"):
        dicom.probe(str(fewer))


def whole_file(path: Path) -> bytes:
    """A compressed cine with all that is read from a header; made once."""
    if not path.exists():
        compressed(path, colours(4, (16, 16)), FrameTime="40", SequenceOfUltrasoundRegions=[region((0, 0, 9, 5))])
    return path.read_bytes()


def said_of(path: Path, content: bytes, caplog) -> tuple[str, str]:
    """Read a file; return the error, and with it, as a traceback would show it, every warning and line of log."""
    path.write_bytes(content)
    caplog.clear()
    shown = error_text = ""
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        try:
            frames = dicom.probe(str(path)).frames
            if frames < 100:
                assert len(dicom.read(str(path), [frames - 1])) == 1
        except DataError as error:
            error_text, shown = str(error), "".join(traceback.format_exception(error))
    path.unlink()
    return error_text, "\n".join([shown, *(str(warning.message) for warning in warned), caplog.text])


def assert_nobody_is_named(said: str) -> None:
    for secret in ("Doe", "Jane", "SECRET", "4711", BIRTH):
        assert secret not in said


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_damage_is_read_or_a_clear_error(tmp_path, caplog, data):
    damaged = bytearray(whole_file(tmp_path / "whole.dcm"))
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(132, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"{data.draw(st.integers(0, 10**9))}.dcm"
    error, said = said_of(path, damaged[: data.draw(st.integers(0, len(damaged)))], caplog)
    assert not error or path.name in error
    assert_nobody_is_named(said)


def lengths_before_the_patient(content: bytes) -> list[int]:
    """Where the lengths stand of the elements up to the patient's name: one too long swallows name, id and birth."""
    places, end = [], content.index(NAME.encode())
    at = content.index(b"DICM") + 4
    while at < end:
        wide = content[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN")
        place = at + 8 if wide else at + 6
        length = int.from_bytes(content[place : place + (4 if wide else 2)], "little")
        places.append(place)
        at = place + (4 if wide else 2) + length
    return places


def test_damaged_lengths_name_nobody(tmp_path, caplog):
    """Where one value swallows those that follow, no text may quote it: neither medvid's nor pydicom's."""
    content = whole_file(tmp_path / "whole.dcm")
    errors = set()
    for at in lengths_before_the_patient(content):
        for length in (0, 1, 8, 64, 66, *range(100, 400, 7), 0xFFFF):
            damaged = content[:at] + length.to_bytes(2, "little") + content[at + 2 :]
            error, said = said_of(tmp_path / "a.dcm", damaged, caplog)
            assert_nobody_is_named(said)
            errors.add(error.partition("a.dcm ")[2][:24])
    assert {"is compressed as somethi", "holds no pixels: it is t"} <= errors
    assert any(error.startswith("cannot be decoded (") for error in errors)


def test_a_damaged_element_is_not_quoted_as_the_kind_of_pixels(tmp_path, caplog):
    """Elements that describe pixels may be the patient's in a damaged header."""
    content = write(tmp_path / "a.dcm", colours()).read_bytes()
    name, kind = b"\x10\x00\x10\x00PN", b"\x28\x00\x04\x00CS"
    swapped = content.replace(kind, b"\x29\x00\x04\x00CS").replace(name, b"\x28\x00\x04\x00PN")
    assert swapped != content
    error, said = said_of(tmp_path / "b.dcm", swapped, caplog)
    assert "b.dcm cannot be decoded (ValueError): it is truncated or damaged" in error
    assert_nobody_is_named(said)


def test_frame_times_of_a_long_cine_take_no_time(tmp_path):
    """Each time is that of the frame before and its step: not a sum from the start, which grows with the square."""

    class Counted(float):
        additions = 0

        def __radd__(self, other):
            Counted.additions += 1
            return float(other) + float(self)

    count = 300
    dataset = Dataset()
    steps = [Counted(10 + number % 3) for number in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dicom_header, "numbers", lambda value: steps)
        _, times = dicom_header.timing(dataset, count)
    assert times == pytest.approx(np.cumsum([0, *steps[1:]]) / 1000)
    assert Counted.additions <= 3 * count


def test_what_is_logged_elsewhere_is_not_kept_back(tmp_path, caplog):
    """An application that uses pydicom itself still has its log."""
    dicom.probe(str(write(tmp_path / "a.dcm", ramp())))
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("pydicom").warning("said by another")
    assert "said by another" in caplog.text


def test_pixels_that_are_not_read(tmp_path):
    partial = write(tmp_path / "a.dcm", colours(), PhotometricInterpretation="YBR_PARTIAL_422")
    with pytest.raises(DataError, match=r"a\.dcm"):
        read_images(source(partial), [0])
    deep = write(tmp_path / "b.dcm", colours().astype(np.uint16))
    with pytest.raises(DataError, match=r"b\.dcm holds RGB pixels of 16 bits, which are not read"):
        read_images(source(deep), [0])
    film = write(tmp_path / "c.dcm", ramp(), syntax=uid.MPEG4HP41, PixelData=encapsulate([b"\0\0\0\1" * 9]))
    with pytest.raises(DataError, match=r"c\.dcm is compressed as MPEG-4 AVC.*which is not read\. Convert it"):
        dicom.probe(str(film))


def test_a_decoder_that_is_not_installed(tmp_path, monkeypatch):
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder

    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    path = write(tmp_path / "a.dcm", ramp(), syntax=uid.JPEGLSLossless, PixelData=encapsulate([b"\0\0"] * 4))
    with pytest.raises(
        DataError, match=r"no decoder is installed\. Install them with: pip install 'medvid-core\[dicom"
    ):
        dicom.probe(str(path))


def test_lossless_syntaxes_of_the_extra(tmp_path):
    pytest.importorskip("openjpeg", reason="the extra medvid-core[dicom] is not installed")
    pytest.importorskip("jpeg_ls", reason="the extra medvid-core[dicom] is not installed")
    for number, syntax in enumerate((uid.JPEGLSLossless, uid.JPEG2000Lossless)):
        pixels = ramp(4, (64, 96))
        data = dcmread(write(tmp_path / "plain.dcm", pixels))
        data.compress(syntax)
        path = tmp_path / f"{number}.dcm"
        data.save_as(path)
        np.testing.assert_array_equal(read_images(source(path), [3, 1])[..., 0], pixels[[3, 1]])


# --- real files ----------------------------------------------------------------------------------------------------


REAL = {  # as in ../shared/data/SOURCES.md: frames, height, width, fps
    "I_000000": (75, 512, 512, 15.0),
    "I_000001": (34, 430, 480, 33.3),
    "I_000003": (17, 430, 480, 14.9),
    "examples_ybr_color": (30, 240, 320, 30.0),
    "multiframe-test1": (16, 256, 256, 14.4),
}


@needs_shared
def test_real_cines():
    cases, skipped = find_cases(SHARED / "dicom_cine")
    assert not skipped
    assert {case.case_id for case in cases} == set(REAL)
    for case in cases:
        frames, height, width, fps = REAL[case.case_id]
        assert (case.frames, case.fps) == (frames, pytest.approx(fps, abs=0.05))
        assert read_images(case.streams["video"], [frames - 1, 0]).shape == (2, height, width, 3)
    by_name = {case.case_id: case for case in cases}
    assert by_name["I_000001"].spacing == pytest.approx((0.2286, 0.2857), abs=1e-4)
    assert by_name["examples_ybr_color"].spacing is None  # its region is that of a picture of 640x480
    assert by_name["I_000001"].group_id == by_name["I_000003"].group_id == patient_hash("HP_EXAMPLE")


@needs_shared
def test_real_colours():
    """Colour Doppler: red and blue flow; the trace of the ECG is green; the cine without flow is grey in its middle."""
    flow = dicom.read(str(SHARED / "dicom_cine/I_000003.dcm"), [8])[0].astype(int)
    red, blue = flow[..., 0] - flow[..., 2] > 100, flow[..., 2] - flow[..., 0] > 100
    assert red[60:280, 100:400].sum() > 500
    assert blue[60:280, 100:400].sum() > 500
    trace = flow[370:410]
    assert ((trace[..., 1] - trace[..., 0] > 60) & (trace[..., 1] - trace[..., 2] > 60)).sum() > 100
    grey = dicom.read(str(SHARED / "dicom_cine/I_000001.dcm"), [8])[0].astype(int)[60:340, 60:400]
    assert np.abs(grey[..., 0] - grey[..., 2]).mean() < 2


@needs_shared
@pytest.mark.parametrize(("column", "classes"), [("view_number", 6), ("stage_name", 3)])
def test_stress_echo_is_one_patient(column, classes):
    table = SHARED / "cls_stress_echo_dicom/labels.csv"
    found = manifest.index(table, ManifestConfig(label_column=column))
    assert (len(found.cases), dict(found.skipped), len(found.outputs[0].classes)) == (18, {}, classes)
    assert {case.group_id for case in found.cases} == {patient_hash("Stress00001")}
    assert all(str(case.frames) == case.metadata["frames"] for case in found.cases)
    assert all(case.spacing == pytest.approx((0.3628, 0.3628), abs=1e-4) for case in found.cases)
    late = next(case for case in found.cases if case.case_id == "I_000013")
    assert len(late.times_s) == late.frames == 15
    assert late.fps == pytest.approx(14 / late.times_s[-1])
    assert "Stress00001" not in repr(found)
