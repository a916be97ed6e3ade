"""A walking person is found, followed, cut out and told from the rest; what cannot be done is said."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models
from safetensors.torch import load_file

from medvid_core import open_dataset
from medvid_core.data.cache import Cache
from medvid_core.data.clip import Case, Source
from medvid_core.data.phantoms.gait import truth
from medvid_core.data.readers import read_images, read_stream, video
from medvid_core.data.stages import made_ready, prepare_case, wanted
from medvid_core.errors import CheckpointError, ConfigError, DataError
from medvid_two_stream.preprocess import compat
from medvid_two_stream.preprocess.boxes import (
    Track,
    choose,
    crop,
    fill,
    link,
    on_the_spot,
    overlaps,
    smooth_squares,
)
from medvid_two_stream.preprocess.config import GaitConfig
from medvid_two_stream.preprocess.flow import raft_flow
from medvid_two_stream.preprocess.person import even_frames, whole
from medvid_two_stream.preprocess.stages import stages
from medvid_two_stream.preprocess.weights import Published

_SPEC = importlib.util.spec_from_file_location("two_stream_walkers", Path(__file__).with_name("walkers.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
walkers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(walkers)
scene, write = walkers.scene, walkers.write

SHARED = Path(__file__).resolve().parents[3].parent / "shared"
GOLDEN, VIDEOS = SHARED / "golden" / "two_stream", SHARED / "data" / "gait_walking"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the fixtures of the original are absent")
needs_videos = pytest.mark.skipif(not VIDEOS.is_dir(), reason="the videos of walking people are absent")

STREAMS = ("video", "person_mask", "flow")
FREE = {"person": "background", "mask": "background", "flow": "dis"}
CPU = torch.device("cpu")


def prepare(case: Case, folder: Path, streams=STREAMS, **settings):
    chosen = wanted(stages(GaitConfig(**{**FREE, "size": 64, **settings})), streams)
    return prepare_case(case, [made_ready(stage) for stage in chosen], Cache(folder), CPU)


def case_of(path: Path) -> Case:
    info = video.probe(str(path))
    source = Source(reader="video", paths=(str(path),))
    return Case(case_id=path.stem, group_id=path.stem, frames=info.frames, fps=info.fps, streams={"video": source})


def details(prepared) -> dict:
    folder = Path(prepared.case.streams["video"].paths[0]).parent
    return json.loads((folder / "entry.json").read_text())["content"]["details"]


def test_the_phantom_is_found_followed_and_told_from_the_wall(tmp_path):
    cases = open_dataset("gait-phantom", patients=3, assistants=0.0, videos_per_patient=[1, 1]).cases
    for case in cases:
        prepared = prepare(case, tmp_path, size=128)
        said, true = details(prepared), truth(case.streams["video"].options)
        boxes = np.array(said["boxes"])
        shared = [overlaps(boxes[[k]], true.box[[f]].astype(float))[0, 0] for k, f in enumerate(said["frames"])]
        assert np.mean(shared) > 0.85, case.case_id
        assert len(said["frames"]) >= 25
        masks = read_stream(prepared.case.streams["person_mask"], range(prepared.case.frames))[:, 0] > 127
        there = [
            crop((255 * true.mask[frame]).astype(np.uint8), np.array(square), 128) > 127
            for frame, square in zip(said["frames"], said["squares"], strict=True)
        ]
        assert np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(masks, there, strict=True)]) > 0.7, case.case_id
        kept = [b.sum() * ((s[2] - s[0]) / 128) ** 2 / (true.mask[f] > 0.5).sum()
                for f, s, b in zip(said["frames"], said["squares"], there, strict=True)]  # fmt: skip
        assert min(kept) > 0.95, "nobody is cut off"


def test_frames_times_and_flow_of_a_walk(tmp_path):
    path = write(tmp_path / "walk.mp4", scene())
    prepared = prepare(case_of(path), tmp_path / "cache")
    case, said = prepared.case, details(prepared)
    assert case.source_frames == tuple(range(0, 40, 2))[: case.frames]
    assert case.fps == pytest.approx(15)
    assert np.diff(case.times_s) == pytest.approx(1 / 15)
    squares = np.array(said["squares"])
    middle = squares[4:-4]
    steps = np.diff((middle[:, 0] + middle[:, 2]) / 2)
    assert steps == pytest.approx(4.0, abs=0.15), "two pixels a frame, every second frame, without trembling"
    assert np.ptp(middle[:, 2] - middle[:, 0]) < 2
    flow = read_stream(case.streams["flow"], [8])[0]
    mask = read_stream(case.streams["person_mask"], [8])[0, 0] > 200
    scale = 64 / (squares[8, 2] - squares[8, 0])
    assert abs(np.median(flow[0][mask])) < 0.5, "the square goes with the person"
    assert np.median(flow[0][:, :16]) == pytest.approx(-4.0 * scale, rel=0.15), "and the wall goes by"
    assert not read_stream(case.streams["flow"], [case.frames - 1]).any()


def test_only_the_stages_a_model_needs(tmp_path):
    path = write(tmp_path / "walk.mp4", scene())
    assert prepare(case_of(path), tmp_path / "cache", streams=("video",)).case.streams.keys() == {"video"}
    assert prepare(case_of(path), tmp_path / "cache", streams=("flow",)).case.streams.keys() == {"video", "flow"}


@pytest.mark.parametrize("flow", ["dis", "farneback"])
def test_flow_of_opencv_is_right(tmp_path, flow):
    """A wall that goes by while the figure stays in its square."""
    path = write(tmp_path / "walk.mp4", scene(step=3, count=36))
    prepared = prepare(case_of(path), tmp_path / "cache", flow=flow, stride=1)
    squares = np.array(details(prepared)["squares"])
    found = read_stream(prepared.case.streams["flow"], [10])[0]
    scale = 64 / (squares[10, 2] - squares[10, 0])
    assert np.median(found[0][:, :16]) == pytest.approx(-3 * scale, rel=0.2)


def test_rotation_metadata_is_obeyed(tmp_path):
    """A video filmed on its side is prepared upright."""
    flat = write(tmp_path / "flat.mp4", [np.ascontiguousarray(np.rot90(p)) for p in scene()])
    data = flat.read_bytes()
    fixed = lambda *values: b"".join(int(v).to_bytes(4, "big", signed=True) for v in values)  # noqa: E731
    one = 1 << 16
    at = data.index(fixed(one, 0, 0, 0, one, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    flat.write_bytes(data[:at] + fixed(0, one, 0, -one, 0, 0, 0, 0, 1 << 30) + data[at + 36 :])
    upright = prepare(case_of(write(tmp_path / "upright.mp4", scene())), tmp_path / "cache")
    turned = prepare(case_of(flat), tmp_path / "cache")
    assert turned.case.source_frames == upright.case.source_frames
    a, b = (read_images(p.case.streams["video"], [5])[0].astype(int) for p in (upright, turned))
    assert np.abs(a - b).mean() < 8


def test_a_varying_frame_rate_gives_even_steps(tmp_path):
    stamps = np.cumsum([1, 1, 1, 3] * 15).tolist()  # every fourth frame comes late
    pictures = scene(count=stamps[-1] + 1, step=1)
    path = write(tmp_path / "uneven.mp4", [pictures[stamp] for stamp in stamps], stamps)
    prepared = prepare(case_of(path), tmp_path / "cache")
    assert np.abs(np.diff(prepared.case.times_s) - 2 / 30).max() < 1.1 / 30
    assert np.ptp(np.array(prepared.case.times_s) - np.arange(prepared.case.frames) * 2 / 30) <= 2.01 / 30
    assert any("the frame rate varies" in note for note in prepared.notes)


@pytest.mark.parametrize(
    ("times", "stride", "frames", "step"),
    [
        ([0, 1, 2, 3, 4, 5], 2, [0, 2, 4], 2 / 30),  # numbers, as nothing is known
        ([k / 25 for k in range(5)], 3, [0, 3], 3 / 25),
        ([0, 0.033, 0.067, 0.1, 0.133], 1, [0, 1, 2, 3, 4], 0.033),
        ([0, 0.1, 0.2, 0.5, 0.6], 1, [0, 1, 2, 2, 3, 3, 4], 0.1),
        ([0.0], 2, [0], 2 / 30),
    ],
)
def test_even_frames(times, stride, frames, step):
    found, step_s, _ = even_frames(times, stride)
    assert found == frames
    assert step_s == pytest.approx(step, abs=1e-3)


def test_a_single_frame_is_no_walk(tmp_path):
    with pytest.raises(DataError, match=r"It has 1 frame\(s\), of which preprocess.stride=2 leaves 1"):
        prepare(case_of(write(tmp_path / "one.mp4", scene(1))), tmp_path / "cache")


def test_nobody_there(tmp_path):
    with pytest.raises(DataError, match="No walking person is found in it"):
        prepare(case_of(write(tmp_path / "empty.mp4", scene(start=1000))), tmp_path / "cache")


def test_a_moving_camera_needs_a_detector(tmp_path):
    with pytest.raises(DataError, match=r"the camera moves.*preprocess\.person=fasterrcnn_resnet50_fpn_v2"):
        prepare(case_of(write(tmp_path / "pan.mp4", scene(camera=5))), tmp_path / "cache")


def test_a_corrupt_file_is_named(tmp_path):
    path = write(tmp_path / "walk.mp4", scene())
    case = case_of(path)
    content = path.read_bytes()
    path.write_bytes(content[:2000] + bytes(1500) + content[3500:])
    with pytest.raises(DataError, match=r"walk\.mp4"):
        prepare(case, tmp_path / "cache")


@needs_videos
@pytest.mark.slow
def test_the_woman_who_walks_not_the_man_who_jumps(tmp_path):
    prepared = prepare(case_of(VIDEOS / "sports2d_demo.mp4"), tmp_path, streams=("video", "person_mask"))
    said = details(prepared)
    boxes = np.array(said["boxes"])
    assert said["frames"][0] <= 50
    assert said["frames"][-1] >= 170
    assert boxes[:, 1].min() > 300, "never the roof"
    assert np.diff((boxes[:, 0] + boxes[:, 2]) / 2).max() < 30, "to the left, all the way"
    masks = read_stream(prepared.case.streams["person_mask"], range(prepared.case.frames)) > 127
    assert 0.08 < np.median(masks.mean((1, 2, 3))) < 0.2


@needs_golden
def test_the_originals_choice_and_crops():
    """To the bit, with and without antialiasing."""
    known = json.loads((GOLDEN / "person_crop.json").read_text())
    tensors = load_file(GOLDEN / "person_crop.safetensors")
    frames, boxes = compat.chosen_boxes({int(k): v for k, v in known["detections"].items()}, 12)
    assert frames == known["kept_frames"]
    assert torch.equal(boxes, torch.tensor(known["kept_boxes"]))
    two = {int(k): v for k, v in known["two_on_first_frame"]["detections"].items()}
    assert compat.chosen_boxes(two, 2)[1].tolist() == known["two_on_first_frame"]["chosen"]
    kept = tensors["video_thwc_u8"].permute(0, 3, 1, 2)[frames]
    for antialias in (False, True):
        for name, cut in (("pad", compat.crop_padded), ("square", compat.crop_square)):
            found = cut(kept, boxes, known["img_size"], antialias).transpose(0, 1)
            assert torch.equal(found, tensors[f"{name}_antialias_{antialias}"]), (name, antialias)


@needs_golden
@pytest.mark.slow
def test_raft_gives_the_originals_flow():
    """The original's wrapper on weights made of a hash; 1e-3 pixels."""
    spec = importlib.util.spec_from_file_location("det", GOLDEN / "det.py")
    det = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(det)
    network = det.fill(torchvision.models.optical_flow.raft_large(weights=None), gain=0.5).eval()
    tensors = load_file(GOLDEN / "raft_wrapper.safetensors")
    videos = tensors["video_u8"].float() / 255  # [B,C,T,H,W]
    found = torch.stack([raft_flow(network, clip.transpose(0, 1)).transpose(0, 1) for clip in videos])
    torch.testing.assert_close(found, tensors["flow"], atol=1e-3, rtol=0)


class Shift(torch.nn.Module):
    """Takes RAFT's place: answers with the shift of a picture's brightest row and column."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = []

    def forward(self, before, after, num_flow_updates):
        self.asked.append((tuple(before.shape), num_flow_updates, float(before.min()), float(before.max())))
        flow = torch.zeros(len(before), 2, *before.shape[-2:])
        flow[:, 0], flow[:, 1] = 8.0, 4.0
        return [flow]


@pytest.mark.parametrize(
    ("size", "fitting"), [((128, 136), (128, 136)), ((112, 112), (128, 128)), ((130, 200), (136, 200))]
)
def test_raft_is_asked_at_a_size_it_takes(size, fitting):
    """Below 128, or no multiple of 8: computed larger, the vectors scaled back."""
    network = Shift()
    flow = raft_flow(network, torch.rand(4, 3, *size))
    assert network.asked[0][:2] == ((3, 3, *fitting), 12)
    assert -1 <= network.asked[0][2] < -0.8
    assert 0.8 < network.asked[0][3] <= 1
    assert flow.shape == (3, 2, *size)
    expected = torch.tensor([8.0 * size[1] / fitting[1], 4.0 * size[0] / fitting[0]])
    torch.testing.assert_close(flow.mean((0, 2, 3)), expected)


@pytest.fixture
def no_cache(monkeypatch, tmp_path) -> Path:
    """PyTorch's cache, empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(
    ("key", "name", "file", "entry", "free"),
    [
        ("person", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
         "torchvision.models.detection.faster_rcnn.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1", "background"),
        ("mask", "lraspp_mobilenet_v3_large", "lraspp_mobilenet_v3_large-d234d4ea.pth",
         "torchvision.models.segmentation.lraspp.LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1",
         "background"),
        ("flow", "raft_large", "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
         "torchvision.models.optical_flow.raft.Raft_Large_Weights.C_T_SKHT_V2", "dis"),
    ],
)  # fmt: skip
def test_absent_weights_are_asked_for_by_name(no_cache, key, name, file, entry, free):
    """Which file, what it is in torchvision, where to put it, and what needs none."""
    chosen = wanted(stages(GaitConfig(**{**FREE, key: name})), STREAMS)
    with pytest.raises(ConfigError) as error:
        [made_ready(stage) for stage in chosen]
    text = str(error.value)
    assert text.startswith(f"preprocess.{key}={name} needs its published weights, the file {file} ({entry})")
    assert "Nothing is downloaded here" in text
    assert f"put it into {no_cache}" in text
    assert "preprocess.weights=FOLDER" in text
    assert f"Without weights: preprocess.{key}={free}" in text


def test_weights_are_found_and_belong_to_the_key(no_cache, tmp_path):
    published = Published("flow", "raft_small", str(tmp_path), ("dis",))
    network = torchvision.models.optical_flow.raft_small(weights=None)
    torch.save(network.state_dict(), no_cache / published.file)
    here = published.settings()
    assert published.find() == no_cache / published.file
    torch.save({key: value + 1 for key, value in network.state_dict().items()}, tmp_path / published.file)
    assert published.find() == tmp_path / published.file, "the user's folder comes first"
    assert published.settings() != here
    loaded = Published("flow", "raft_small", str(no_cache), ("dis",)).network(CPU)
    assert not loaded.training
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_weights_of_another_network_are_refused(no_cache):
    torch.save({"a": torch.zeros(1)}, no_cache / "raft_small_C_T_V2-01064c6d.pth")
    with pytest.raises(CheckpointError, match="do not fit raft_small"):
        Published("flow", "raft_small", "", ("dis",)).network(CPU)


def test_every_detector_loads_a_file_of_its_layout(no_cache):
    """The light ones, from files that the test writes; never at random."""
    for key, name, more in (
        ("person", "fasterrcnn_mobilenet_v3_large_fpn", {"weights_backbone": None}),
        ("mask", "lraspp_mobilenet_v3_large", {"weights_backbone": None}),
        ("mask", "deeplabv3_mobilenet_v3_large", {"weights_backbone": None, "aux_loss": True}),
    ):
        published = Published(key, name, "", ("background",))
        state = torchvision.models.get_model(name, weights=None, **more).state_dict()
        torch.save(state, no_cache / published.file)
        found = published.network(CPU)
        assert found.state_dict().keys() == state.keys()
        assert published.class_number("person") > 0


def test_a_detector_that_sees_nobody_leaves_the_case_out(no_cache, tmp_path):
    """Through the whole stage, with a network from a file the test writes."""
    published = Published("person", "fasterrcnn_mobilenet_v3_large_fpn", "", ("background",))
    torch.manual_seed(0)
    network = torchvision.models.get_model(published.name, weights=None, weights_backbone=None)
    torch.save(network.state_dict(), no_cache / published.file)
    path = write(tmp_path / "walk.mp4", scene(count=8))
    with pytest.raises(DataError, match="No walking person is found"):
        prepare(case_of(path), tmp_path / "cache", streams=("video",), person=published.name, score=1.0)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("person", "yolo", "preprocess.person='yolo' cannot be used"),
        ("flow", "raft_larg", "Did you mean 'raft_large'?"),
        ("size", 8, "at least 16"),
        ("stride", 0, "at least 1"),
        ("score", 1.5, "from 0 to 1"),
        ("who", "doctor", "Known: walker, shorter"),
    ],
)
def test_settings_out_of_range(key, value, text):
    with pytest.raises(ConfigError) as error:
        GaitConfig(**{key: value})
    assert text in str(error.value)


def walk(x: float, height=100.0, frames=20, speed=10.0) -> list[np.ndarray]:
    return [np.array([x + speed * k, 50.0, x + speed * k + 40, 50.0 + height]) for k in range(frames)]


def test_two_people_who_cross_are_kept_apart():
    there, back = walk(0), walk(250, height=130, speed=-10)
    tracks = link([np.array([a, b]) for a, b in zip(there, back, strict=True)], 5)
    assert sorted(len(track.frames) for track in tracks) == [20, 20]
    assert all(np.ptp(track.heights) == 0 for track in tracks)


def test_a_gap_is_bridged_and_a_long_one_cuts():
    boxes = walk(0, frames=40)
    seen = [np.array([box]) if k not in (5, 6, *range(14, 25)) else np.zeros((0, 4)) for k, box in enumerate(boxes)]
    tracks = link(seen, 20)
    assert len(tracks) == 1, "one who was gone for so long is still known"
    frames, filled = fill(tracks[0], 4)
    assert frames == list(range(25, 40)), "the longest stretch"
    frames, filled = fill(tracks[0], 12)
    assert frames == list(range(40))
    np.testing.assert_allclose(filled, boxes)


def test_the_walker_and_the_shorter():
    patient, doctor = Track(list(range(20)), walk(0)), Track(list(range(20)), walk(60, height=130))
    passer_by = Track(list(range(3)), walk(0, frames=3))
    standing = Track(list(range(20)), walk(300, speed=0.0, height=80))
    every = [passer_by, standing, doctor, patient]
    assert choose(every, "walker", 20, 640) is doctor
    assert choose(every, "shorter", 20, 640) is patient
    with pytest.raises(DataError, match="nobody can be followed through 4 of the 20 frames"):
        choose([passer_by], "walker", 20, 640)


def test_who_stays_on_the_spot_gets_one_box():
    leg = [np.array([100.0 + 30 * (k % 2), 150, 130 + 30 * (k % 2), 260]) for k in range(20)]
    head = np.array([90.0, 40, 170, 150])
    found = [np.array([box, head]) for box in leg]
    still = on_the_spot(Track(list(range(20)), leg), found)
    assert len({tuple(box) for box in still.boxes}) == 1
    assert still.boxes[0] == pytest.approx([90, 40, 170, 260])
    walker = Track(list(range(20)), walk(0))
    assert on_the_spot(walker, [np.array([box]) for box in walker.boxes]) is walker


def test_squares_do_not_tremble_nor_lag():
    rng = np.random.default_rng(0)
    boxes = np.array(walk(0, frames=60, speed=6.0)) + rng.normal(0, 3, (60, 4))
    boxes[30] += 40  # one wrong box
    squares = smooth_squares(boxes, 1 / 15)
    centres = (squares[:, 0] + squares[:, 2]) / 2
    expected = 20 + 6.0 * np.arange(60)
    assert np.abs(centres - expected).max() < 6, "no delay, and steady to the ends"
    assert np.diff(centres).std() < 1
    assert np.ptp(squares[:, 2] - squares[:, 0]) < 8
    np.testing.assert_allclose(squares[:, 2] - squares[:, 0], squares[:, 3] - squares[:, 1])
    assert smooth_squares(boxes[:1], 1 / 15).shape == (1, 4)


def test_a_crop_follows_fractions_of_a_pixel():
    image = np.tile(2 * np.arange(100, dtype=np.uint8), (50, 1))
    found = [crop(image, np.array([20 + shift, 10, 40 + shift, 30]), 20).astype(float).mean() for shift in (0, 0.5, 1)]
    assert np.diff(found) == pytest.approx(1.0, abs=0.1)
    beyond = crop(np.full((20, 20, 3), 200, np.uint8), np.array([-10.0, 0, 10, 20]), 20)
    assert not beyond[:, :9].any()
    assert (beyond[:, 11:] == 200).all()


def test_ends_that_the_picture_cuts_off_are_left_out():
    boxes = np.array([[0, 10, 20, 90], [0, 10, 30, 90], *walk(5, frames=6), [160, 10, 200, 90]], float)
    frames, kept = whole(list(range(9)), boxes, 200)
    assert frames == [2, 3, 4, 5, 6, 7]
    assert len(kept) == 6
    assert whole([0, 1], boxes[:2], 200)[0] == [0, 1], "where nothing would be left, all stays"


def test_settings_are_part_of_what_is_kept(tmp_path):
    path = write(tmp_path / "walk.mp4", scene())
    first = prepare(case_of(path), tmp_path / "cache")
    assert first.computed == 3
    assert prepare(replace(case_of(path), case_id="other"), tmp_path / "cache").computed == 0
    assert prepare(case_of(path), tmp_path / "cache", flow="farneback").computed == 1
    assert prepare(case_of(path), tmp_path / "cache", size=48).computed == 3
    assert math.isclose(first.case.fps, 15, abs_tol=1e-3)
