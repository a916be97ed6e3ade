"""Frame by frame: equal to the whole clip, from a file, a growing folder and a device, in bounded memory."""

import csv
import json
import threading
import time
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from medvid_core import ConfigError, DataError, OutputSpec, create_model, save_model
from medvid_core.cli.main import main
from medvid_core.data.readers.live import LiveFrame, live_frames
from medvid_core.engine.stream import Latency, Streamer, stream

OUTPUTS = (
    OutputSpec(name="view", task="classification", classes=("a", "b", "c")),
    OutputSpec(name="odd", task="anomaly", classes=("odd",)),
)
FRAMES = 9


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("cnn-mamba", outputs=OUTPUTS, preset="tiny", motion=True).eval()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (FRAMES, 40, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(model, path)
    return path


@pytest.fixture(scope="module")
def video(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream_ = container.add_stream("ffv1", rate=25)
        stream_.width, stream_.height, stream_.pix_fmt = 48, 40, "bgr0"
        for image in images:
            container.mux(stream_.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream_.encode(None))
    return path


def rows(folder):
    with open(folder / "stream.csv", newline="") as file:
        return list(csv.DictReader(file))


def command(*words):
    main(["predict", *map(str, words)])


def frames_of(images):
    return (LiveFrame(number, image, number / 25) for number, image in enumerate(images))


def test_the_stream_says_what_the_whole_clip_says(model, images):
    """Scores of every frame, and the class after the last, as `predict` computes them from the clip."""
    from torchvision import tv_tensors

    from medvid_core.config import ClipConfig
    from medvid_core.data import transforms

    streamer = Streamer(model, torch.device("cpu"))
    found = [streamer.push(image, number / 25) for number, image in enumerate(images)]
    clip = ClipConfig(frames=FRAMES, size=streamer.clip.size)
    mask = tv_tensors.Mask(torch.zeros(FRAMES, 40, 48, dtype=torch.uint8))
    resized, _ = transforms.resize(transforms.to_video(images), mask, clip.size)
    whole = {
        "video": transforms.normalise(resized, model.medvid.clip)[None],
        "frame_real": torch.ones(1, FRAMES, dtype=torch.bool),
    }
    with torch.inference_mode():
        want = model(whole)
    scores = torch.stack([one["odd"] for one in found])
    torch.testing.assert_close(scores, want["odd"][0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[-1]["view"], want["view"][0].softmax(-1), rtol=0, atol=1e-4)


def test_a_later_frame_changes_nothing_before_it(model, images):
    changed = images.copy()
    changed[5] = 255 - changed[5]
    streamer = Streamer(model, torch.device("cpu"))
    before = [streamer.push(image)["odd"] for image in images]
    streamer.reset()
    after = [streamer.push(image)["odd"] for image in changed]
    assert all(torch.equal(a, b) for a, b in zip(before[:5], after[:5], strict=True))
    assert not torch.equal(before[5], after[5])


def test_what_is_remembered_does_not_grow(model, images):
    def size(state):
        if isinstance(state, torch.Tensor):
            return state.numel()
        return sum(map(size, state)) if isinstance(state, tuple) else 0

    streamer = Streamer(model, torch.device("cpu"))
    sizes = set()
    for image in images:
        streamer.push(image)
        sizes.add(size(streamer.state))
    assert len(sizes) == 1


def test_file_through_the_command(model_file, video, tmp_path, capsys):
    command(model_file, video, "--stream", "--out", tmp_path)
    found = rows(tmp_path)
    assert [int(row["frame"]) for row in found] == list(range(FRAMES))
    assert float(found[1]["time_s"]) == pytest.approx(0.04)
    assert sum(float(found[-1][f"view/{name}"]) for name in "abc") == pytest.approx(1, abs=1e-5)
    figures = json.loads((tmp_path / "latency.json").read_text())
    assert figures["predicted"] == FRAMES
    assert 0 < figures["work_ms_median"] <= figures["work_ms_max"]
    text = capsys.readouterr().err
    assert "latency  median" in text
    assert "█" in text
    with pytest.raises(SystemExit):
        command(model_file, video, "--stream", "--out", tmp_path)  # nothing is written over


def test_predict_says_of_every_frame_what_the_stream_says(model, model_file, video, tmp_path):
    """Of a video of several clips' length: what is known of earlier clips is not forgotten in between."""
    assert model.medvid.frames < FRAMES / 2
    command(model_file, video, "--out", tmp_path / "whole", "--no-video")
    command(model_file, video, "--stream", "--out", tmp_path / "live")
    with open(tmp_path / "whole" / "clip" / "frames.csv", newline="") as file:
        whole = [float(row["score/odd"]) for row in csv.DictReader(file)]
    live = [float(row["odd"]) for row in rows(tmp_path / "live")]
    assert whole == pytest.approx(live, abs=1e-4)


def test_a_device_through_ffmpeg(model_file, tmp_path):
    """FFmpeg's own test picture never ends: --frames ends it."""
    source = "testsrc=size=64x48:rate=30"
    command(model_file, source, "--stream", "--device-format", "lavfi", "--frames", 5, "--out", tmp_path)
    assert len(rows(tmp_path)) == 5


def test_a_folder_that_is_being_written(model, images, tmp_path):
    """Frames are taken as they appear, each whole; the last one waits until nothing more comes."""
    folder = tmp_path / "frames"
    folder.mkdir()

    def write():
        for number, image in enumerate(images):
            path = folder / f"{number}.png"
            with open(path, "wb") as file:
                Image.fromarray(image).save(file, "PNG")
            time.sleep(0.02)

    writer = threading.Thread(target=write)
    writer.start()
    found = list(live_frames(str(folder), idle_s=0.6))
    writer.join()
    assert [frame.number for frame in found] == list(range(FRAMES))
    assert all(np.array_equal(frame.image, image) for frame, image in zip(found, images, strict=True))


def test_a_half_written_frame_is_waited_for_and_then_refused(images, tmp_path):
    Image.fromarray(images[0]).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    found = live_frames(str(tmp_path), idle_s=0.2)
    next(found)
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        next(found)


def test_an_empty_folder_and_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        list(live_frames(str(tmp_path), idle_s=0.1))
    with pytest.raises(DataError, match=r"none\.mp4 cannot be opened"):
        list(live_frames(str(tmp_path / "none.mp4")))
    with pytest.raises(DataError, match="cannot be opened"):
        list(live_frames("nothing", "no-such-device"))


class Slow:
    """A model that takes its time, and one frame's brightness as its answer."""

    def __init__(self, streamer):
        self.info, self.clip = streamer.info, streamer.clip

    def push(self, image, time_s=None):
        time.sleep(0.03)
        return {"view": torch.tensor([float(image.mean()), 0.0, 0.0]), "odd": torch.tensor(0.0)}


def test_back_pressure_keeps_every_frame_or_drops_the_oldest(model, tmp_path):
    slow = Slow(Streamer(model, torch.device("cpu")))
    dark = np.zeros((30, 4, 4, 3), np.uint8)
    kept = stream(slow, frames_of(dark), tmp_path / "kept.csv", waiting=2)
    assert (kept.frames, kept.predicted, kept.dropped) == (30, 30, 0)
    dropped = stream(slow, frames_of(dark), tmp_path / "dropped.csv", waiting=2, drop=True)
    assert dropped.dropped > 0
    assert dropped.predicted + dropped.dropped == dropped.frames == 30
    with open(tmp_path / "dropped.csv", newline="") as file:
        numbers = [int(row["frame"]) for row in csv.DictReader(file)]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 29  # the newest is never the one that is dropped


def test_a_broken_source_keeps_what_came_before(model, images, tmp_path):
    def broken():
        yield from frames_of(images[:3])
        raise DataError("the cable was pulled")

    with pytest.raises(DataError, match="the cable was pulled"):
        stream(Streamer(model, torch.device("cpu")), broken(), tmp_path / "part.csv")
    with open(tmp_path / "part.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


def test_models_that_cannot_stream_say_so():
    whole = create_model("cnn-transformer", outputs=OUTPUTS, preset="tiny")
    with pytest.raises(ConfigError, match="needs whole clips and cannot stream"):
        Streamer(whole, torch.device("cpu"))
    both_ways = create_model("cnn-mamba", outputs=OUTPUTS, preset="tiny", bidirectional=True)
    with pytest.raises(ConfigError, match="looks ahead in time"):
        Streamer(both_ways, torch.device("cpu"))


def test_models_of_cropped_clips_cannot_stream(model):
    cropped = create_model("cnn-mamba", outputs=OUTPUTS, preset="tiny")
    cropped.medvid = replace(cropped.medvid, fan_crop="estimate")
    with pytest.raises(
        ConfigError, match="trained on clips cropped to their sector, which is found by looking at whole"
    ):
        Streamer(cropped, torch.device("cpu"))


def test_the_histogram_holds_its_quantiles():
    latency = Latency()
    for number in range(1, 1001):
        latency.add(number / 1000)
    assert latency.quantile_s(0.5) == pytest.approx(0.5, rel=0.06)
    assert latency.quantile_s(0.95) == pytest.approx(0.95, rel=0.06)
    assert latency.quantile_s(1.0) == 1.0
    assert sum(int(line.split()[-1]) for line in latency.bars()) == 1000
    assert len(latency.counts) < 200


def test_a_failed_start_leaves_nothing_that_blocks_a_retry(model_file, video, tmp_path, capsys):
    """The same words once more, with the name put right."""
    words = ("--stream", "--frames", 2, "--out", tmp_path / "live")
    with pytest.raises(SystemExit):
        command(model_file, tmp_path / "clip.mvk", *words)
    assert "clip.mvk cannot be opened" in capsys.readouterr().err
    assert not (tmp_path / "live").exists()
    command(model_file, video, *words)
    assert len(rows(tmp_path / "live")) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        command(model_file, video, "--stream", "--out", tmp_path / "file")
    assert "file is a file; it must be a folder. Choose another --out." in capsys.readouterr().err


def test_a_stream_that_breaks_off_has_its_figures(model_file, images, tmp_path, capsys):
    """What was predicted before is in the table, and how long it took in latency.json."""
    folder, out = tmp_path / "frames", tmp_path / "live"
    folder.mkdir()
    for number, image in enumerate(images[:4]):
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        command(model_file, folder, "--stream", "--idle", 0.2, "--out", out)
    assert len(rows(out)) == 2
    assert json.loads((out / "latency.json").read_text())["predicted"] == 2
    text = capsys.readouterr().err
    assert text.index("latency  median") < text.index("2.png cannot be read")
