"""One window a frame, its centre kept: what is predicted, what is read, and that every command does the same."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medvid_core import OutputSpec, create_model, load_model, save_model
from medvid_core.config import ClipConfig
from medvid_core.data.clip import Case, Source
from medvid_core.data.loader import collate
from medvid_core.data.sampling import centred_starts, window
from medvid_core.engine import sliding
from medvid_core.engine.inference import Windows, predict_case, segment_case
from medvid_core.errors import ConfigError
from medvid_core.specs import ClipSpec

MASK = OutputSpec(name="mask", task="segmentation", classes=("lv",))
PHASE = OutputSpec(name="phase", task="frame_classification", classes=("a", "b"))
SPEC = ClipSpec(channels=3, mean=(0.0,), std=(1.0,))
CPU = torch.device("cpu")


class Placed(nn.Module):
    """Logits that depend on every frame of the window and on the place in it: no two windows agree on a frame."""

    def forward(self, batch):
        video = batch["video"]
        places = torch.arange(video.shape[1], dtype=torch.float32)
        whole = (video.mean((2, 3, 4)) * (1 + places)).mean(1)[:, None] + places
        return {
            "mask": (video.mean(2, keepdim=True) + whole[..., None, None, None]).sin(),
            "phase": torch.stack([whole.sin(), whole.cos()], -1),
        }


def moving(source, frames):
    """Frames that differ in every pixel."""
    return np.stack([np.random.default_rng(frame).integers(0, 255, (8, 8), np.uint8) for frame in frames])


def video(frames=9, **more) -> Case:
    return Case(
        case_id="a", group_id="a", frames=frames, streams={"video": Source(reader=f"{__name__}:moving")}, **more
    )


def windows(frames=5, stride=1, batch_size=4, **more) -> Windows:
    clip = ClipConfig(frames=frames, stride=stride, size=(8, 8), blend="centre", **more)
    return Windows(clip, SPEC, (), batch_size, CPU)


@pytest.mark.parametrize(("frames", "stride"), [(5, 1), (4, 1), (3, 2), (1, 1), (5, 3)])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_each_frame_is_the_centre_of_its_own_window(frames, stride, length):
    """At the borders frames are repeated, as the original of Vivim does: the window is not moved inside."""
    case, how, model = video(length), windows(frames, stride), Placed()
    blocks = list(segment_case(model, MASK, case, how))
    assert [frame for block in blocks for frame in block.frames] == list(range(length))
    found = torch.cat([block.probabilities for block in blocks])
    phases = predict_case(model, [PHASE], case, how)["phase"]
    middle = (frames - 1) // 2
    for frame in range(length):
        start = frame - stride * middle
        indices, _ = window(start, length, how.clip)
        assert indices.tolist() == [min(max(start + stride * i, 0), length - 1) for i in range(frames)]
        logits = model(collate([how.read(case, start)]))
        torch.testing.assert_close(found[frame], logits["mask"][0, middle].sigmoid(), rtol=0, atol=1e-6)
        torch.testing.assert_close(phases[frame], logits["phase"][0, middle].softmax(-1), rtol=0, atol=1e-6)


def test_the_mean_of_windows_is_something_else():
    case, how = video(), windows()
    centre = predict_case(Placed(), [PHASE], case, how)["phase"]
    mean = predict_case(Placed(), [PHASE], case, replace(how, clip=replace(how.clip, blend="mean")))["phase"]
    assert (centre - mean).abs().max() > 0.05


def equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, other[key], rtol=0, atol=0, equal_nan=True)
        elif isinstance(value, dict):
            equal(value, other[key])
        else:
            assert value == other[key]


@pytest.mark.parametrize("padding", ["repeat", "zero"])
@pytest.mark.parametrize(("frames", "stride", "batch_size"), [(5, 1, 4), (5, 1, 1), (3, 2, 4), (4, 3, 50), (1, 1, 2)])
def test_frames_are_read_once_and_windows_are_what_they_were(monkeypatch, frames, stride, batch_size, padding):
    """Windows that share what they read equal those read one by one; each frame is read once, but for repeated ones."""
    case = video(11, fps=20.0, frame_targets={"phase": (*[0.0] * 10, float("nan"))})
    how = windows(frames, stride, batch_size, padding=padding)
    read = []
    load = sliding.load_sample
    monkeypatch.setattr(
        sliding, "load_sample", lambda c, i, r, *x, **k: read.extend(i[r].tolist()) or load(c, i, r, *x, **k)
    )
    found = [
        (start, sample) for starts, samples in how.batches(case) for start, sample in zip(starts, samples, strict=True)
    ]
    assert [start for start, _ in found] == centred_starts(11, how.clip)
    assert read == list(range(11))
    for start, sample in found:
        equal(sample, how.read(case, start))


def test_a_model_with_streams_of_its_own_reads_each_window_by_itself():
    """What a step adds to a window, such as flow between its frames, cannot be cut out of a longer one."""
    case, how = video(6), windows(3)
    added = replace(how, steps=(lambda sample: {**sample, "first": sample["video"][0]},))
    for starts, samples in added.batches(case):
        for start, sample in zip(starts, samples, strict=True):
            assert torch.equal(sample["first"], how.read(case, start)["video"][0])


def test_windows_that_share_frames_have_nothing_to_blend():
    with pytest.raises(ConfigError) as info:
        ClipConfig(blend="centre", overlap=2)
    assert str(info.value) == (
        "clip.overlap=2 cannot be used: it must be 0 with clip.blend=centre, where every frame has a window of its own."
    )
    with pytest.raises(ConfigError, match=r"clip.blend='center' cannot be used: .*Did you mean 'centre'\?"):
        ClipConfig(blend="center")


def write_video(path, frames=12):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for t in range(frames):
            picture = np.full((40, 48, 3), 15 * t, np.uint8)
            picture[10:30, 10 + t : 30] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


def masks(folder):
    return [np.asarray(Image.open(path)) for path in sorted((folder / "masks").iterdir())]


def test_a_model_file_remembers(medvid, refused, tmp_path):
    """It predicts as it was trained, from a video file too; overlap says nothing to it."""
    model = create_model("unet", outputs=(MASK,), preset="tiny")
    model.medvid = replace(model.medvid, blend="centre")
    save_model(model, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").medvid.blend == "centre"
    path = write_video(tmp_path / "v.mp4")
    medvid("predict", tmp_path / "m.safetensors", path, "--out", tmp_path / "p", "--no-video")
    assert len(masks(tmp_path / "p" / "v")) == 12
    assert refused("predict", tmp_path / "m.safetensors", path, "--out", tmp_path / "q", "--overlap", 1) == (
        "clip.overlap=1 cannot be used: it must be 0 with clip.blend=centre, where every frame has a window of its own."
    )
