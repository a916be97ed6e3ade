"""``medvid-run explain``: windows blended, everything written, everything else refused."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from medvid_core import OutputSpec, create_model, load_model, save_model
from medvid_core.config import ClipConfig
from medvid_core.engine.attribution import Asked, Attribution, Question
from medvid_core.engine.ensemble import Ensemble
from medvid_core.engine.explain import doubts, explain, explain_case, write_explanation
from medvid_core.engine.inference import Windows
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import write_json
from medvid_core.errors import CheckpointError, ConfigError
from medvid_core.specs import ClipSpec
from medvid_core.testing.samples import make_case

VIEW = OutputSpec(name="view", task="classification", classes=("a4c", "psax"))
GRADE = OutputSpec(name="grade", task="ordinal", classes=("0", "1", "2"))
EF = OutputSpec(name="ef", task="regression", classes=("ef",), center=(55.0,), scale=(10.0,))


def write_video(path, frames=7, height=40, width=52):
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            picture = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
            picture[10:30, 8 + 3 * t : 20 + 3 * t] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


def model_file(folder, name, *outputs, **config):
    torch.manual_seed(0)
    model = create_model(name, outputs=outputs, preset="tiny", **config)
    save_model(model, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def shape_of_video(path):
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return len(pictures), pictures[0].shape


def maps_of(folder):
    with safe_open(folder / "explanation.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_grad_cam_from_the_command(medvid, refused, tmp_path, capsys):
    """An image network: of the predicted class, over windows of four frames of a video of seven."""
    file, video = model_file(tmp_path, "cnn", VIEW, motion=False), write_video(tmp_path / "v.mp4")
    medvid("explain", file, video, "--out", tmp_path / "out")
    folder = tmp_path / "out" / "v"
    record = json.loads((folder / "explanation.json").read_text())
    name = record["class"]
    assert name in VIEW.classes
    assert record["is_predicted"]
    assert record["probability"] > 0.5
    said = capsys.readouterr().err
    line = f"v: view: {name}, probability {record['probability']:.2f} (predicted), maps 4x1x1 (frames x height x width)"
    assert f"{line}\n" in said
    assert record["notes"] == [
        "maps of 1x1 places (height x width) are too coarse to say where. Train with a larger clip.size, or use "
        "--method integrated-gradients"
    ]
    assert record["notes"][0] in " ".join(said.split())
    assert record["frame_index"] == list(range(7))
    assert record["time_s"] == pytest.approx([t / 12 for t in range(7)], abs=1e-6)
    assert {path.name for path in folder.iterdir()} == {
        "explanation.json",
        "explanation.safetensors",
        f"{name}-grad-cam.webm",
        f"{name}-grad-cam.png",
    }
    assert record["method"] == "grad-cam"
    assert record["settings"] == {"layers": {"video": "frames.encoder.net.layer4"}}
    assert record["windows"] == 2
    assert "completeness" not in record
    maps, metadata = maps_of(folder)
    stream = record["streams"]["video"]
    assert stream["map_size"] == [4, 1, 1]
    assert maps["video"].shape == (7, 32, 32)
    assert maps["video"].dtype == torch.float16
    assert float(metadata["video/unit"]) == stream["unit"] > 0
    assert maps["video"].max() == 1
    assert maps["video"].min() >= 0
    largest = maps["video"].flatten(1).amax(1) * stream["unit"]
    np.testing.assert_allclose(stream["frame_maximum"], largest.tolist(), rtol=1e-3)
    assert shape_of_video(folder / stream["video"])[0] == 7
    assert Image.open(folder / stream["stills"]).width > 200
    assert refused("explain", file, video, "--out", tmp_path / "out") == (
        f"{folder} already holds an explanation. Choose another --out."
    )


def test_integrated_gradients_of_a_number(medvid, tmp_path):
    """A network over clips, which names the number itself; the maps add up to what the video adds to it."""
    pytest.importorskip("captum")
    file, video = model_file(tmp_path, "r2plus1d", EF), write_video(tmp_path / "v.mp4")
    words = ("--method", "integrated-gradients", "--overlap", "2")
    medvid("explain", file, video, *words, "--out", tmp_path / "out")
    folder = tmp_path / "out" / "v"
    record = json.loads((folder / "explanation.json").read_text())
    assert (record["class"], record["explains"], record["overlap"]) == ("ef", "ef", 2)
    assert "probability" not in record
    assert record["windows"] == 3
    complete = record["completeness"]
    assert abs(complete["expected"]) > 0.1
    assert complete["sum"] == pytest.approx(complete["expected"], abs=0.05 * abs(complete["expected"]))
    assert complete["largest_gap"] >= abs(complete["sum"] - complete["expected"])
    maps, _ = maps_of(folder)
    assert maps["video"].min() < 0 < maps["video"].max()
    assert (folder / "ef-integrated-gradients.webm").is_file()


def test_a_class_by_name(medvid, tmp_path):
    """Of grades what is asked is lying above one; with ``not``, below."""
    file, video = model_file(tmp_path, "r2plus1d", VIEW, GRADE), write_video(tmp_path / "v.mp4")
    asked = ("explain", file, video, "--output", "grade", "--class")
    medvid(*asked, "1", "--out", tmp_path / "up")
    medvid(*asked, "not above 1", "--out", tmp_path / "down")
    up, down = (json.loads((tmp_path / name / "v" / "explanation.json").read_text()) for name in ("up", "down"))
    assert (up["class"], down["class"]) == ("above 1", "not above 1")
    assert up["probability"] + down["probability"] == pytest.approx(1)
    assert not up["is_predicted"]
    assert (tmp_path / "down" / "v" / "not-above-1-grad-cam.webm").is_file()


def test_the_second_video_is_predicted_as_the_first(medvid, tmp_path):
    """Explaining leaves the model as it was loaded: with no dropout, and its own statistics for normalisation."""
    file, videos = model_file(tmp_path, "r2plus1d", EF), tmp_path / "videos"
    videos.mkdir()
    for name in "ab":
        write_video(videos / f"{name}.mp4")
    medvid("explain", file, videos, "--out", tmp_path / "out")
    first, second = (json.loads((tmp_path / "out" / name / "explanation.json").read_text()) for name in "ab")
    assert first["number"] == second["number"]
    assert first["streams"] == second["streams"]


def test_one_damaged_video_costs_itself(refused, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "good.mp4")
    (videos / "bad.mp4").write_bytes(b"no video")
    text = refused("explain", model_file(tmp_path, "r2plus1d", VIEW), videos, "--out", tmp_path / "out")
    assert text.splitlines()[0].endswith("1 case(s) could not be read and are left out:")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good"]


class Numbered(nn.Module):
    """Attributes to every place the first frame of the window it stands in."""

    title, signed = "Numbered", True

    def settings(self):
        return {}

    def attribute(self, batch):
        maps = torch.full((*batch["video"].shape[1:2], 8, 8), float(batch["frame_index"][0, 0]))
        return Attribution({"video": maps, "flow": -maps}, 1.0 + float(batch["frame_index"][0, 0]), 1.0)


@pytest.fixture
def numbered():
    """A drawn video of seven frames, explained in windows of four that share two."""
    case = make_case(0, 7, (24, 20), VIEW)
    windows = Windows(ClipConfig(frames=4, size=(8, 8), overlap=2), ClipSpec(), (), 1, torch.device("cpu"))
    asked = Asked(nn.Identity())
    asked.question = Question(VIEW, 1)
    found = explain_case(asked, Numbered(), case, windows, torch.tensor([0.25, 0.75]), True, Progress(False))
    return case, found


def test_windows_are_blended_as_predictions_are(numbered):
    """Windows begin at frames 0, 2 and 3; their frames weigh 1, 2, 2, 1."""
    _, found = numbered
    assert found.windows == 3
    expected = [0, 0, (2 * 0 + 1 * 2) / 3, (1 * 0 + 2 * 2 + 1 * 3) / 4, (2 * 2 + 2 * 3) / 4, (1 * 2 + 2 * 3) / 3, 3]
    assert found.maps["video"].shape == (7, 8, 8)
    np.testing.assert_allclose(found.maps["video"][:, 3, 5], expected, rtol=1e-6)
    assert (found.attributed, found.difference, found.gap) == (pytest.approx(8 / 3), 1.0, 3.0)
    assert found.answer == 0.75


def test_what_should_be_known_before_maps_are_believed(numbered):
    _, found = numbered
    assert doubts(found) == [
        "the maps of a window add up to 3 more or less than they should (the mean is 1): gradients vary too much "
        "between baseline and clip to be relied upon"
    ]
    assert doubts(replace(found, gap=0.01)) == doubts(replace(found, gap=None)) == []
    assert doubts(replace(found, map_sizes={"video": (4, 4, 5)}, gap=None)) == []
    coarse = replace(found, map_sizes={"video": (4, 2, 3), "flow": (3, 4, 4)})
    assert [line.split(" ", 6)[:4] for line in doubts(coarse)] == [
        ["maps", "of", "2x3", "places"],
        ["the", "maps", "of", "a"],
    ]
    empty = replace(found, maps={"video": torch.zeros(7, 8, 8)}, gap=None)
    assert doubts(empty) == ["nothing speaks for psax; ask what speaks against it with --class 'not psax'"]


def test_a_video_for_each_stream(numbered, tmp_path):
    case, found = numbered
    case = replace(case, source_frames=tuple(range(20, 34, 2)), times_s=tuple(2 + t / 10 for t in range(7)))
    write_explanation(tmp_path / "case", case, found, Numbered(), "numbered", {"model": "m"})
    record = json.loads((tmp_path / "case" / "explanation.json").read_text())
    assert list(record["streams"]) == ["video", "flow"]
    assert record["model"] == "m"
    assert (record["frame_index"], record["time_s"][:2]) == ([20, 22, 24, 26, 28, 30, 32], [2.0, 2.1])
    for name, stream in record["streams"].items():
        assert stream["video"] == f"psax-numbered-{name}.webm"
        frames, shape = shape_of_video(tmp_path / "case" / stream["video"])
        assert frames == 7
        assert shape[0] > 256  # words above the picture
        assert (tmp_path / "case" / stream["stills"]).is_file()
    maps, metadata = maps_of(tmp_path / "case")
    assert (maps["video"].max(), maps["flow"].min()) == (1, -1)
    assert metadata["flow/unit"] == "3.0"


def test_a_model_in_memory_is_left_as_it_is(tmp_path):
    torch.manual_seed(0)
    model = create_model("r2plus1d", outputs=(VIEW,), preset="tiny")
    explain(model, write_video(tmp_path / "v.mp4", frames=4), tmp_path / "out")
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_models_of_masks_are_refused(refused, tiny_run, tmp_path):
    text = refused("explain", tiny_run, write_video(tmp_path / "v.mp4"), "--out", tmp_path / "out")
    assert text.startswith("Output 'mask' (segmentation) cannot be explained: ")
    assert not (tmp_path / "out").exists()


def test_several_models_are_refused(refused, tmp_path):
    file = model_file(tmp_path, "r2plus1d", VIEW)
    run = tmp_path / "cv" / "fold-1"
    run.mkdir(parents=True)
    (run / "model.safetensors").write_bytes(file.read_bytes())
    write_json(tmp_path / "cv" / "cv.json", {"runs": ["fold-1"]})
    text = refused("explain", tmp_path / "cv", write_video(tmp_path / "v.mp4"))
    assert text == f"One model is explained, not the mean of several. Name one run: {run}."
    with pytest.raises(ConfigError, match="One model is explained, not the mean of several"):
        explain(Ensemble([load_model(file)]), tmp_path / "v.mp4")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--method", "gradcam"),
            "--method gradcam: there is no such method. Did you mean 'grad-cam'? "
            "Known: grad-cam, integrated-gradients.",
        ),
        (("--class", "plax"), "--class plax: output 'view' has no such class. Did you mean 'psax'? It has: a4c, psax."),
        (("--overlap", "4"), "overlap=4 cannot be used: it must be from 0 to 3."),
    ],
)
def test_bad_words(refused, tmp_path, words, message):
    file, video = model_file(tmp_path, "r2plus1d", VIEW), write_video(tmp_path / "v.mp4")
    assert refused("explain", file, video, "--out", tmp_path / "out", *words) == message


def test_several_numbers_and_no_name(refused, tmp_path):
    numbers = OutputSpec(name="volumes", task="regression", classes=("edv", "esv"))
    file = model_file(tmp_path, "r2plus1d", numbers)
    assert refused("explain", file, write_video(tmp_path / "v.mp4")) == (
        "Output 'volumes' has several numbers: say which with --class (edv, esv)."
    )


def test_modules_of_others_are_refused():
    with pytest.raises(CheckpointError, match="was not made by"):
        explain(nn.Identity(), "v.mp4")
