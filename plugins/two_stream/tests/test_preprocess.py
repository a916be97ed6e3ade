"""A walking person is found, followed, cut out and told from the rest; what cannot be done is said."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
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
from medvid_core.data.stages import all_ready, prepare_case, wanted
from medvid_core.errors import CheckpointError, ConfigError, DataError
from medvid_two_stream.preprocess import compat
from medvid_two_stream.preprocess.boxes import crop, overlaps, smooth_squares
from medvid_two_stream.preprocess.config import GaitConfig
from medvid_two_stream.preprocess.flow import raft_flow
from medvid_two_stream.preprocess.mask import belonging, boxes_within, the_one
from medvid_two_stream.preprocess.person import even_frames, whole
from medvid_two_stream.preprocess.stages import stages
from medvid_two_stream.preprocess.tracks import Track, choose, fill, link, on_the_spot
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
    return prepare_case(case, all_ready(chosen), Cache(folder), CPU)


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


def test_the_patient_is_followed_not_the_assistant(tmp_path):
    """Both walk together, now beside one another, now as one blob; the assistant is taller and a step behind."""
    cases = open_dataset("gait-phantom", patients=6, assistants=1.0, videos_per_patient=[1, 1]).cases
    walks = [case for case in cases if not case.streams["video"].options.assistant.stands]
    assert len(walks) == 5
    for case in walks:
        said = details(prepare(case, tmp_path, streams=("video",)))
        boxes, true = np.array(said["boxes"]), truth(case.streams["video"].options).box[said["frames"]]
        shared = np.array([overlaps(a[None], b[None].astype(float))[0, 0] for a, b in zip(boxes, true, strict=True)])
        assert np.median(shared) > 0.7, case.case_id
        assert (shared < 0.3).mean() < 0.1, "nobody takes over on the way"
        assert len(shared) >= 20


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
    ("times", "stride", "frames", "step", "remark"),
    [
        ([0, 0, 0, 0, 0, 0], 2, [0, 2, 4], 2 / 30, ""),  # stamps that say nothing
        ([k / 25 for k in range(5)], 3, [0, 3], 3 / 25, ""),
        ([0, 1, 2], 1, [0, 1, 2], 1.0, ""),  # one frame a second is no pause
        ([0, 0.033, 0.067, 0.1, 0.133], 1, [0, 1, 2, 3, 4], 0.033, ""),
        ([0, 0.1, 0.2, 0.5, 0.6], 1, [0, 1, 2, 2, 3, 3, 4], 0.1, "the frame rate varies"),
        ([0, 0.1, 0.2, 2.9, 3.0, 3.1, 3.2, 3.3], 2, [3, 5, 7], 0.2, "of it frames 3 to 7, the longest stretch without"),
        ([0.0], 2, [0], 2 / 30, ""),
    ],
)
def test_even_frames(times, stride, frames, step, remark):
    found, step_s, remarks = even_frames(times, stride)
    assert found == frames
    assert step_s == pytest.approx(step, abs=1e-3)
    assert bool(remarks) == bool(remark)
    assert all(remark in each for each in remarks)


def test_a_pause_of_the_recording_is_no_frozen_person(tmp_path):
    """2.7 s without a frame: what is prepared shows only the longer part, and every frame once."""
    stamps = [*range(16), *range(97, 137)]
    pictures = scene(count=56)
    prepared = prepare(case_of(write(tmp_path / "pause.mp4", pictures, stamps)), tmp_path / "cache", streams=("video",))
    frames = prepared.case.source_frames
    assert 16 <= frames[0] < frames[-1] <= 55
    assert len(set(frames)) == len(frames)
    assert any("the recording pauses: of it frames 16 to 55" in note for note in prepared.notes)


def test_the_users_rate_wins_over_the_files(tmp_path):
    """Slow motion: 120 frames a second, played at 30."""
    case = case_of(write(tmp_path / "slow.mp4", scene(step=1)))
    prepared = prepare(replace(case, fps=120.0), tmp_path / "cache", streams=("video",))
    assert prepared.case.fps == pytest.approx(60)
    assert np.diff(prepared.case.times_s) == pytest.approx(2 / 120)


def test_too_few_frames_a_second(tmp_path):
    case = replace(case_of(write(tmp_path / "rare.mp4", scene())), fps=2.0)
    with pytest.raises(DataError, match=r"Its frames are 0.5 s apart, those that preprocess.stride=2 leaves 1 s"):
        prepare(case, tmp_path / "cache", streams=("video",))


def test_an_unknown_rate_is_assumed_and_said(tmp_path):
    (case,) = open_dataset("gait-phantom", patients=1, assistants=0.0, videos_per_patient=[1, 1]).cases
    prepared = prepare(replace(case, fps=None), tmp_path, streams=("video",))
    assert prepared.notes[0].startswith("its frame rate is not known: 30 a second are assumed")


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


def test_masks_are_of_the_person_followed():
    """Of two people a network sees, and of what differs from the scene, what is within the box that followed her."""
    box, other = np.array([10.0, 8, 30, 60]), np.array([38.0, 4, 60, 60])
    masks = torch.zeros(3, 1, 64, 64)
    masks[0, :, 4:60, 38:60], masks[1, :, 8:60, 10:30], masks[2] = 1, 1, 1
    boxes = torch.tensor(np.array([other, box, [0, 0, 64, 64]]))
    answer = {
        "boxes": boxes,
        "labels": torch.tensor([1, 1, 2]),
        "scores": torch.tensor([0.99, 0.6, 0.9]),
        "masks": masks,
    }
    assert torch.equal(the_one(answer, 1, box), masks[1, 0]), "not the surest, not the largest"
    alone = {key: value[[0]] for key, value in answer.items()}
    assert not the_one(alone, 1, box).any(), "better none than somebody else's"
    assert the_one({key: value[:0] for key, value in answer.items()}, 1, box).shape == (64, 64)
    blob = np.zeros((64, 64), np.uint8)
    blob[8:60, 10:30] = blob[4:60, 38:60] = blob[40, 30:38] = 1  # two who touch
    found = belonging(blob, box)
    assert found[8:60, 10:30].all()
    assert not found[:, 35:].any()
    followed = {"boxes": [[110, 58, 130, 98]], "squares": [[100, 50, 150, 100]]}
    assert boxes_within(followed, 100).tolist() == [[20, 16, 60, 96]]


def test_a_network_of_classes_marks_only_the_person_followed(no_cache, tmp_path, monkeypatch):
    """It calls everything a person; the mask is that of the box."""

    class Everywhere(torch.nn.Module):
        def forward(self, video):
            logits = torch.zeros(len(video), 21, *video.shape[-2:])
            logits[:, 15] = 20
            return {"out": logits}

    name = "lraspp_mobilenet_v3_large"
    (no_cache / Published("mask", name, ()).file).write_bytes(b"weights")
    monkeypatch.setattr(Published, "network", lambda published, device: Everywhere())
    prepared = prepare(case_of(write(tmp_path / "walk.mp4", scene())), tmp_path / "cache", mask=name)
    masks = read_stream(prepared.case.streams["person_mask"], range(prepared.case.frames))[:, 0] > 127
    assert 0.15 < masks.mean() < 0.5
    assert not masks[:, :, :8].any()
    assert not masks[:, :, -8:].any()


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
        all_ready(chosen)
    text = str(error.value)
    assert text.startswith(f"preprocess.{key}={name} needs its published weights, the file {file} ({entry})")
    assert "Nothing is downloaded here" in text
    assert f"put it into {no_cache}" in text
    assert "the environment variable TORCH_HOME names" in text
    assert f"Without weights: preprocess.{key}={free}" in text


def test_weights_are_found_and_belong_to_the_key(no_cache):
    published = Published("flow", "raft_small", ("dis",))
    network = torchvision.models.optical_flow.raft_small(weights=None)
    torch.save(network.state_dict(), no_cache / published.file)
    here = published.settings()
    assert published.find() == no_cache / published.file
    loaded = published.network(CPU)
    assert not loaded.training
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    torch.save({key: value + 1 for key, value in network.state_dict().items()}, no_cache / published.file)
    assert published.settings() != here


def test_weights_of_another_network_are_refused(no_cache):
    torch.save({"a": torch.zeros(1)}, no_cache / "raft_small_C_T_V2-01064c6d.pth")
    with pytest.raises(CheckpointError, match="do not fit raft_small"):
        Published("flow", "raft_small", ("dis",)).network(CPU)


def test_every_detector_loads_a_file_of_its_layout(no_cache):
    """The light ones, from files that the test writes; never at random."""
    for key, name, more in (
        ("person", "fasterrcnn_mobilenet_v3_large_fpn", {"weights_backbone": None}),
        ("mask", "lraspp_mobilenet_v3_large", {"weights_backbone": None}),
        ("mask", "deeplabv3_mobilenet_v3_large", {"weights_backbone": None, "aux_loss": True}),
    ):
        published = Published(key, name, ("background",))
        state = torchvision.models.get_model(name, weights=None, **more).state_dict()
        torch.save(state, no_cache / published.file)
        found = published.network(CPU)
        assert found.state_dict().keys() == state.keys()
        assert published.class_number("person") > 0


def test_a_detector_that_sees_nobody_leaves_the_case_out(no_cache, tmp_path):
    """Through the whole stage, with a network from a file the test writes."""
    published = Published("person", "fasterrcnn_mobilenet_v3_large_fpn", ("background",))
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


def test_who_is_seen_with_another_goes_on_alone():
    """Two walk together, and one box holds both for longer than anybody may be missing; sizes alone tell who is who."""
    patient, doctor = walk(0, frames=40), walk(45, height=125, frames=40)
    found = [np.array([a, b]) for a, b in zip(patient, doctor, strict=True)]
    for k in range(12, 26):
        both = np.concatenate([np.minimum(patient[k][:2], doctor[k][:2]), np.maximum(patient[k][2:], doctor[k][2:])])
        found[k] = both[None]
    tracks = link(found, 5)
    assert len(tracks) == 2
    for track, boxes in zip(tracks, (patient, doctor), strict=True):
        assert track.shared == list(range(12, 26))
        frames, filled = fill(track, 5)
        assert frames == list(range(40)), "seen all the time"
        np.testing.assert_allclose(filled, boxes)


def test_two_who_come_in_as_one_are_told_apart_from_then_on():
    patient, doctor = walk(0), walk(45, height=125)
    found = [np.array([a, b]) for a, b in zip(patient, doctor, strict=True)]
    for k in range(6):
        found[k] = np.array([[*patient[k][:2], *doctor[k][2:]]])
    assert sorted(track.frames[0] for track in link(found, 5)) == [0, 6, 6]


def test_two_boxes_of_one_person_are_one_track():
    whole_body = walk(0)
    without_feet = [box - [0, 0, 0, 10] for box in whole_body]
    found = [np.array([a, b][: 1 + k % 2]) for k, (a, b) in enumerate(zip(whole_body, without_feet, strict=True))]
    assert [len(track.frames) for track in link(found, 5)] == [20]


def test_of_those_who_walk_along_the_nearest():
    """Feet lower in the picture, though the other is shorter; with feet as low, the shorter; parts of nobody."""

    def lower(boxes, by):
        return Track(list(range(20)), [box + np.array([0, by, 0, by]) for box in boxes])

    near, far = lower(walk(0, height=110), 20), lower(walk(60, height=100), 0)
    assert choose([near, far], "walker", 20, 640) is near
    assert choose([near, far], "shorter", 20, 640) is far
    taller = lower(walk(60, height=128), 0)
    assert choose([taller, near], "walker", 20, 640) is near, "178 and 180 are the same floor"
    legs = Track(list(range(20)), [box + np.array([0, 60, 0, 25]) for box in walk(0)])
    assert choose([near, legs], "walker", 20, 640) is near


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
    for stage in stages(GaitConfig(**FREE)):
        assert stage.settings["libraries"]["cv2"] == cv2.__version__
    assert stages(GaitConfig())[2].settings["libraries"].keys() == {"torch", "torchvision"}


def test_another_mask_leaves_flow_as_it_is(no_cache, tmp_path, monkeypatch):
    path = write(tmp_path / "walk.mp4", scene())
    first = prepare(case_of(path), tmp_path / "cache")
    monkeypatch.setattr(
        "medvid_two_stream.preprocess.stages._libraries", lambda published, *others: {"x": published.key}
    )
    assert prepare(case_of(path), tmp_path / "cache").computed == 3
    monkeypatch.undo()
    real = stages(GaitConfig(**{**FREE, "size": 64}))
    changed = [replace(stage, version="of tomorrow") if stage.name == "mask" else stage for stage in real]
    again = prepare_case(case_of(path), changed, Cache(tmp_path / "cache"), CPU)
    assert again.computed == 1
    assert again.case.streams["flow"] == first.case.streams["flow"]
    assert math.isclose(first.case.fps, 15, abs_tol=1e-3)
