"""EchoNet-Dynamic: the layout, and parity with the published data set code (../shared/golden/cnn_mamba)."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from medvid_core.config import ClipConfig
from medvid_core.data import transforms
from medvid_core.data.clip import Array, Case
from medvid_core.data.datasets import echonet
from medvid_core.data.datasets.echonet import EchoNetConfig, draw_tracing
from medvid_core.data.loader import load_sample
from medvid_core.data.readers import read_images, read_masks
from medvid_core.data.sampling import covering_starts, random_start, window
from medvid_core.errors import DataError
from medvid_core.plugins import registry
from medvid_core.specs import ClipSpec, DatasetSpec

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "cnn_mamba"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/cnn_mamba is not on this machine")

HEADER = "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"
CHORDS = [(8, 2, 8, 13), (6, 3, 10, 3), (4, 6, 12, 6), (5, 9, 11, 9), (7, 12, 9, 12)]


def clip(path: Path, frames: int, size: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=50)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuvj420p"
        for number in range(frames):
            picture = np.full((size, size, 3), number * 4, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def tracing(name: str, frame: int, chords=CHORDS) -> list[str]:
    return [f"{name},{x1},{y1},{x2},{y2},{frame}" for x1, y1, x2, y2 in chords]


def write(root: Path, files: list[str], tracings: list[str] | None = None, videos=("0XA", "0XB")) -> Path:
    for name in videos:
        clip(root / "Videos" / f"{name}.avi", 12)
    (root / "Videos").mkdir(exist_ok=True)
    (root / "FileList.csv").write_text("\n".join([HEADER, *files]) + "\n")
    if tracings is not None:
        (root / "VolumeTracings.csv").write_text("\n".join(["FileName,X1,Y1,X2,Y2,Frame", *tracings]) + "\n")
    return root


def index(root: Path):
    return echonet.index(root, EchoNetConfig())


# --- layout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", ["", ".avi"])
@pytest.mark.parametrize("traced", ["", ".avi"])
def test_layout(tmp_path, listed, traced):
    """Names with and without suffix in either table; splits in any case; the frame traced last is end diastole."""
    files = [f"0XA{listed},55.5,50,110,16,16,48,12,TRAIN", f"0XB{listed},30.25,51,111,16,16,,12,Val"]
    root = write(tmp_path, files, [*tracing(f"0XA{traced}", 9), *tracing(f"0XA{traced}", 3)])
    assert echonet.can_read(root)
    found = index(root)
    assert [(output.name, output.task, output.classes) for output in found.outputs] == [
        ("mask", "segmentation", ("lv",)),
        ("ejection_fraction", "regression", ("ejection_fraction",)),
    ]
    a, b = found.cases
    assert (a.case_id, a.group_id, a.frames, a.split, a.fps, a.labelled) == ("0XA", "0XA", 12, "train", 48, (3, 9))
    assert dict(a.targets) == {"ejection_fraction": 55.5}
    assert dict(a.metadata) == {"edv_ml": "110", "esv_ml": "50", "ed_frame": "3", "es_frame": "9"}
    assert (b.split, b.fps, b.labelled, sorted(b.streams)) == ("val", 50, None, ["video"])
    masks = read_masks(a.streams["mask"], [9, 3], size=(16, 16))
    np.testing.assert_array_equal(masks[0], draw_tracing(CHORDS, (16, 16)))
    assert read_images(a.streams["video"], [11]).shape == (1, 16, 16, 3)
    assert pickle.loads(pickle.dumps(found)) == found


def test_without_tracings_there_is_the_ejection_fraction(tmp_path):
    found = index(write(tmp_path, ["0XA,55.5,,,,,,,TRAIN", "0XB,,,,,,,,TRAIN"]))
    assert [output.name for output in found.outputs] == ["ejection_fraction"]
    assert [dict(case.targets) for case in found.cases] == [{"ejection_fraction": 55.5}, {}]


def test_without_an_ejection_fraction_there_is_the_mask(tmp_path):
    found = index(write(tmp_path, ["0XA,,,,,,,,TRAIN"], tracing("0XA.avi", 3)))
    assert [output.name for output in found.outputs] == ["mask"]
    with pytest.raises(DataError, match=r"has no EF in any row, and no video is traced: there is nothing to learn"):
        index(write(tmp_path, ["0XA,,,,,,,,TRAIN"], []))


def test_videos_that_cannot_be_used_are_skipped_by_name(tmp_path):
    files = [f"{name},50,,,,,,,TRAIN" for name in ("0XA", "0XB", "0XC", "0XD")]
    root = write(tmp_path, files, tracing("0XB", 12))
    (root / "Videos/0XD.avi").write_bytes(b"no video")
    found = index(root)
    assert [case.case_id for case in found.cases] == ["0XA"]
    assert found.skipped["0XC"] == "there is no such video in the folder Videos"
    assert found.skipped["0XB"].startswith("frame 12 is traced, but ")
    assert "0XD.avi cannot be decoded" in found.skipped["0XD"]


def test_zero_samples_is_an_error_with_the_reason(tmp_path):
    root = write(tmp_path, ["0XA,50,,,,,,,TRAIN"], [], videos=())
    with pytest.raises(DataError, match=r"No usable clip in .*0XA: there is no such video in the folder Videos"):
        index(root)


@pytest.mark.parametrize(
    ("files", "tracings", "message"),
    [
        (["0XA,50,,,,,,,TRIAN"], [], r"FileList\.csv, row 2: the split 'trian' .* Did you mean 'train'\?"),
        (["0XA,many,,,,,,,TRAIN"], [], r"FileList\.csv, row 2, column ef: 'many' is not a number"),
        ([",50,,,,,,,TRAIN"], [], r"row 2: the column FileName is empty"),
        (["0XA,50,,,,,,,TRAIN"], ["0XA,1,2,3,,5"], r"VolumeTracings\.csv, row 2: the column y2 is empty"),
        (["0XA,50,,,,,,,TRAIN"], ["0XA,1,2,x,4,5"], r"VolumeTracings\.csv, row 2, column x2: 'x' is not a number"),
        (["0XA,50,,,,,,,TRAIN,9"], [], r"row 2: 10 cells for 9 columns"),
    ],
)
def test_tables_that_are_wrong(tmp_path, files, tracings, message):
    with pytest.raises(DataError, match=message):
        index(write(tmp_path, files, tracings))


def test_folders_that_are_wrong(tmp_path):
    with pytest.raises(DataError, match=r"No folder was given"):
        echonet.index(None, EchoNetConfig())
    (tmp_path / "Videos").mkdir()
    assert not echonet.can_read(tmp_path)
    with pytest.raises(DataError, match=r"has no FileList\.csv or no folder Videos"):
        index(tmp_path)
    (tmp_path / "FileList.csv").write_text("Name,EF\n0XA,50\n")
    with pytest.raises(DataError, match=r"FileList\.csv has no column 'filename'"):
        index(tmp_path)


def test_the_settings_that_come_with_it():
    spec = registry().find("dataset", "echonet-dynamic").spec
    assert isinstance(spec, DatasetSpec)
    assert spec.defaults == {
        "clip.frames": 32,
        "clip.stride": 2,
        "clip.size": (112, 112),
        "clip.padding": "zero",
        "clip.mean": (0.1294,),
        "clip.std": (0.1966,),
        "augment.pad": 12,
    }


# --- tracings ------------------------------------------------------------------------------------------------------


@needs_golden
def test_tracings_are_drawn_to_the_pixel():
    golden = load_file(GOLDEN / "echonet_traces.safetensors")
    rows = golden["tracings"].reshape(3, 2, 21, 5)
    frames = json.loads((GOLDEN / "echonet_clips.json").read_text())["trace_index"]
    for case, (large, small, large_area, small_area) in enumerate(frames):
        # the frame traced last is the large one, the first the small one
        for part, (name, frame, area) in enumerate((("small", small, small_area), ("large", large, large_area))):
            assert set(rows[case, part, :, 4]) == {frame}
            drawn = draw_tracing(rows[case, part, :, :4], (112, 112))
            assert drawn.sum() == area
            np.testing.assert_array_equal(drawn, golden[f"{case}.{name}"])


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(*[st.integers(-3, 14)] * 4), min_size=3, max_size=8))
def test_even_odd_rule_and_boundary(chords):
    """Against the definition, point by point: on an edge, or an odd number of edges to the right."""
    corners = [(x1, y1) for x1, y1, _, _ in chords[1:]] + [(x2, y2) for _, _, x2, y2 in reversed(chords[1:])]
    edges = list(zip(corners, [*corners[1:], corners[0]], strict=True))
    drawn = draw_tracing(chords, (10, 12))
    for y in range(10):
        for x in range(12):
            odd = False
            on_edge = False
            for (ax, ay), (bx, by) in edges:
                cross = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
                on_edge |= cross == 0 and min(ax, bx) <= x <= max(ax, bx) and min(ay, by) <= y <= max(ay, by)
                if (ay > y) != (by > y):
                    odd ^= x < ax + (y - ay) * (bx - ax) / (by - ay)
            assert drawn[y, x] == (on_edge or odd)


# --- clips ---------------------------------------------------------------------------------------------------------


def golden_video(number: int, frames: int) -> Array:
    """A video of the fixtures, uint8 [T,112,112,3]: SplitMix64 of the pixel's number; pixel (0,0) holds the frame's."""
    with np.errstate(over="ignore"):
        z = np.arange(1, frames * 112 * 112 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(100 + number) * np.uint64(0xD1342543DE82EF95)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    grey = (z >> np.uint64(56)).astype(np.uint8).reshape(frames, 112, 112)
    grey[:, 0, 0] = np.arange(frames)
    return np.repeat(grey[..., None], 3, -1)


def lossless(path: Path, pictures: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=50)
        stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], "bgr0"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_dir():
        pytest.skip("../shared/golden/cnn_mamba is not on this machine")
    return json.loads((GOLDEN / "echonet_clips.json").read_text())


@pytest.fixture(scope="module")
def cases(golden, tmp_path_factory) -> dict[str, Case]:
    """The three videos of the fixtures, written in the published layout and read by the adapter."""
    root = tmp_path_factory.mktemp("EchoNet-Dynamic")
    (root / "FileList.csv").write_text(golden["files"]["FileList.csv"])
    tracings = load_file(GOLDEN / "echonet_traces.safetensors")["tracings"].reshape(3, 42, 5)
    for number, frames in enumerate((80, 50, 200)):
        lossless(root / f"Videos/0X{'ABC'[number]}.avi", golden_video(number, frames))
    lines = [
        f"0X{'ABC'[number]}.avi,{x1},{y1},{x2},{y2},{int(frame)}"
        for number in range(3)
        for x1, y1, x2, y2, frame in tracings[number].tolist()
    ]
    (root / "VolumeTracings.csv").write_text("\n".join(["FileName,X1,Y1,X2,Y2,Frame", *lines]))
    return {f"{case.case_id}.avi": case for case in index(root).cases}


def settings_of(entry: dict) -> ClipConfig:
    """Our settings for one entry of the fixtures."""
    wanted = entry["kw"]
    length = wanted["length"] or min(entry["n_frames"] // wanted["period"], wanted["max_length"])
    return ClipConfig(frames=length, stride=wanted["period"], size=(112, 112), padding="zero", overlap=length - 1)


PLAIN = ClipSpec(mean=(0, 0, 0), std=(1, 1, 1))


def test_the_adapter_reads_the_fixtures(cases, golden):
    assert [case.frames for case in cases.values()] == [80, 50, 200]
    for entry in golden["cases"]:
        assert cases[entry["file"]].targets["ejection_fraction"] == entry["target"]
    traces = load_file(GOLDEN / "echonet_traces.safetensors")
    for number, case in enumerate(cases.values()):
        large, small = int(case.metadata["ed_frame"]), int(case.metadata["es_frame"])
        assert [large, small] == golden["trace_index"][number][:2]
        masks = read_masks(case.streams["mask"], [large, small], size=(112, 112))
        np.testing.assert_array_equal(masks[0], traces[f"{number}.large"])
        np.testing.assert_array_equal(masks[1], traces[f"{number}.small"])


def test_clips_hold_the_same_frames_and_zeros(cases, golden):
    """Every clip of the fixtures that is spelt out: its frames by pixel (0,0), and zeros after the end of the video."""
    for entry in golden["cases"]:
        case, clip = cases[entry["file"]], settings_of(entry)
        assert entry["shape"][-3] == clip.frames
        for frames in (entry["first_clip_frames"], entry["last_clip_frames"]):
            indices, real = window(frames[0], case.frames, clip)
            assert np.where(real, indices, 0).tolist() == frames
            if clip.frames > 32 or entry["kw"]["clips"] == 3:
                continue  # the window says it all: frames are read for a few clips of each video
            video = load_sample(case.only(()), indices, real, clip, PLAIN)["video"]
            assert (255 * video[:, 0, 0, 0]).round().int().tolist() == frames
            assert not video[~torch.from_numpy(real)].any()
            assert not real.all() or np.array_equal(np.diff(indices), [clip.stride] * (clip.frames - 1))


def test_all_clips_of_a_video(cases, golden):
    """Every start, one apart: as many clips as published, from the first to the last one."""
    entries = [entry for entry in golden["cases"] if entry["kw"]["clips"] == "all"]
    assert [entry["n_clips"] for entry in entries] == [18, 2, 138]
    for entry in entries:
        starts = covering_starts(cases[entry["file"]].frames, settings_of(entry), overlap=31)
        assert starts == list(range(entry["n_clips"]))
        assert (starts[0], starts[-1]) == (entry["first_clip_frames"][0], entry["last_clip_frames"][0])


def published_starts(frames: int, clip: ClipConfig) -> set[int]:
    """``np.random.choice(f - (length - 1) * period)`` of the published code, f padded to length * period."""
    return set(range(max(frames, clip.frames * clip.stride) - (clip.frames - 1) * clip.stride))


def drawn_starts(case: Case, clip: ClipConfig) -> set[int]:
    rng = np.random.default_rng(0)
    return {random_start(case.only(()), clip, rng) for _ in range(2500)}


def test_random_clips_start_where_the_published_ones_do(cases, golden):
    for entry in golden["cases"]:
        case, clip = cases[entry["file"]], settings_of(entry)
        if case.frames >= clip.frames * clip.stride:
            found = drawn_starts(case, clip)
            assert found == published_starts(case.frames, clip)
            assert {entry["first_clip_frames"][0], entry["last_clip_frames"][0]} <= found


def test_random_clips_of_videos_that_are_padded(cases):
    """A video padded to 64 frames has clips from frame 0 and from frame 1 on."""
    clip = ClipConfig(frames=32, stride=2, size=(112, 112), padding="zero")
    assert published_starts(50, clip) == {0, 1}
    assert drawn_starts(cases["0XB.avi"], clip) == {0, 1}


def test_window_shifted_in_a_border_of_zeros(cases, golden):
    """pad=12: the published probe, its random numbers drawn as it draws them (start, then the corner of the window)."""
    probe = golden["pad12_seed3_file1"]["probe"]
    drawn = np.random.RandomState(3)
    case, clip = cases["0XB.avi"], ClipConfig(frames=32, stride=2, size=(112, 112), padding="zero")
    start = int(drawn.choice(len(published_starts(50, clip)), 1)[0])
    i, j = drawn.randint(0, 24, 2)
    spec = ClipSpec(mean=tuple(m / 255 for m in (30, 31, 32)), std=tuple(s / 255 for s in (50, 51, 52)))
    video = load_sample(case.only(()), *window(start, 50, clip), clip, spec)["video"]
    moved = transforms.shift(video, 12 - int(i), 12 - int(j), 0).transpose(0, 1)
    assert list(moved.shape) == probe["shape"]
    np.testing.assert_allclose(moved.flatten()[probe["idx"]], probe["val"], atol=2e-5)
    found = [moved.double().mean(), moved.double().std(correction=0), moved.abs().max()]
    np.testing.assert_allclose(found, [probe["mean"], probe["std"], probe["absmax"]], atol=1e-5)
