"""From SAM's weights to masks by the command: what was trained alone is kept, and prompts are followed."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from medvid_core import CheckpointError, OutputSpec, create_model, load_model, save_model
from medvid_core.cli.main import main
from medvid_core.engine import checkpoint

_SPEC = importlib.util.spec_from_file_location("medivista_layouts", Path(__file__).with_name("layouts.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
layouts = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(layouts)

TINY = ("preset=tiny", "dataset.cases=5", "dataset.frames=4", "evaluate.overlays=0")
FRAMES = 7


def run(*words):
    main([str(word) for word in words])


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    path = tmp_path_factory.mktemp("sam") / "sam_tiny.pth"
    torch.save(layouts.meta_file(), path)
    return path


@pytest.fixture(scope="module")
def adapted(sam, tmp_path_factory):
    """A run that trained what SAM has not, and keeps that alone."""
    out = tmp_path_factory.mktemp("adapted") / "run"
    words = ("train.trainable=adapters", "train.save=trained", "train.max_steps=2", "model.wiring=fusion")
    run("--model", "medivista-sam", *TINY, *words, "--weights", sam, "--source", "meta", "--out", out)
    return out


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mkv"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "bgr0"
        for _ in range(FRAMES):
            image = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_what_was_trained_alone_is_kept(adapted, sam):
    """The file lacks what SAM's holds, names it, and gives the whole network back."""
    tensors, header = checkpoint.read(adapted / "model.safetensors")
    model = load_model(adapted)
    state = model.state_dict()
    absent = state.keys() - tensors.keys()
    assert {"image_encoder.blocks.0.attn.qkv.weight", "image_encoder.blocks.1.mlp.fc1.weight"} <= absent
    assert header["base"]["file"] == sam.name
    assert str(sam.parent) not in json.dumps(header)  # a file to be passed on says nothing of the machine
    published = torch.load(sam, weights_only=True)
    assert torch.equal(
        state["image_encoder.blocks.0.attn.qkv.weight"], published["image_encoder.blocks.0.attn.qkv.weight"]
    )
    best, _ = checkpoint.read(adapted / "checkpoints" / "best.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in best.items())


def test_the_published_file_must_be_at_hand(adapted, sam, tmp_path):
    """Beside the model file it is found; without it, or with another one, it is asked for."""
    shutil.copy(adapted / "model.safetensors", tmp_path)
    with pytest.raises(
        CheckpointError, match=r"takes the rest from sam_tiny\.pth \(sha256 [0-9a-f]{64}\); it was not found"
    ):
        load_model(tmp_path / "model.safetensors")
    torch.save(layouts.meta_file(grid=12), tmp_path / sam.name)
    with pytest.raises(CheckpointError, match="has another content"):
        load_model(tmp_path / "model.safetensors")
    shutil.copy(sam, tmp_path)
    whole = load_model(adapted).state_dict()
    assert all(
        torch.equal(x, whole[name]) for name, x in load_model(tmp_path / "model.safetensors").state_dict().items()
    )


def test_a_stopped_run_goes_on_with_the_same_file(adapted, sam, tmp_path):
    words = ("train.trainable=adapters", "train.save=trained", "model.wiring=fusion", "train.max_steps=2")
    run("--model", "medivista-sam", *TINY, *words, "--weights", sam, "--source", "meta", "--out", tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    run("train", "--resume", tmp_path / "run")
    ours, theirs = (load_model(folder).state_dict() for folder in (tmp_path / "run", adapted))
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ("train.trainable=adapters",),
            "train.save=trained leaves out what is frozen and can be had again: start from",
        ),
        (("--weights", "SAM", "--source", "meta"), "freeze a part of the model"),
    ],
)
def test_nothing_is_left_out_that_cannot_be_had_again(sam, tmp_path, capsys, words, text):
    words = [str(sam) if word == "SAM" else word for word in words]
    with pytest.raises(SystemExit):
        run(
            "--model",
            "medivista-sam",
            *TINY,
            "train.save=trained",
            "train.max_steps=1",
            *words,
            "--out",
            tmp_path / "r",
        )
    assert text in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_prompts_are_followed_through_a_video(adapted, video, tmp_path, capsys):
    """Longer than a clip: what is pointed at in one frame changes masks in all windows."""
    Image.fromarray(np.full((40, 48), 255, np.uint8)).save(tmp_path / "all.png")
    prompts = [
        {"frame": 5, "class": "lv", "box": [4, 4, 30, 30]},
        {"frame": 5, "class": "myocardium", "mask": "all.png"},
    ]
    (tmp_path / "p.json").write_text(json.dumps({"prompts": prompts}))
    run("predict", adapted, video, "--out", tmp_path / "pointed", "--no-video", "--prompts", tmp_path / "p.json")
    run("predict", adapted, video, "--out", tmp_path / "alone", "--no-video")
    folders = [tmp_path / name / "clip" / "masks" for name in ("pointed", "alone")]
    assert [len(list(folder.iterdir())) for folder in folders] == [FRAMES, FRAMES]
    (tmp_path / "p.json").write_text(json.dumps({"prompts": [{"frame": 70, "class": "lv", "box": [4, 4, 30, 30]}]}))
    with pytest.raises(SystemExit):
        run("predict", adapted, video, "--out", tmp_path / "wrong", "--prompts", tmp_path / "p.json")
    assert "frame=70 must be from 0 to 6" in capsys.readouterr().err


def test_models_without_prompts_refuse_them(video, tmp_path, capsys):
    output = OutputSpec(name="mask", task="segmentation", classes=("lv",))
    save_model(create_model("unet", outputs=(output,), preset="tiny"), tmp_path / "unet.safetensors")
    with pytest.raises(SystemExit):
        run(
            "predict", tmp_path / "unet.safetensors", video, "--out", tmp_path / "out", "--prompts", tmp_path / "p.json"
        )
    assert "takes no prompts" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["point", "box", "mask"])
def test_annotations_point_and_their_frame_is_not_scored(kind, tmp_path):
    out = tmp_path / "run"
    run("--model", "sam2-video", *TINY, f"evaluate.prompt={kind}", "train.max_steps=0", "--out", out)
    with open(out / "cases.csv", newline="") as file:
        assert {row["scored_frames"] for row in csv.DictReader(file)} == {"3"}
    run(
        "evaluate",
        out,
        "--data",
        "echo-phantom",
        "dataset.cases=2",
        "--split",
        "all",
        "--by",
        "vendor",
        "--out",
        tmp_path / "by",
    )
    assert (tmp_path / "by" / "by_vendor.csv").is_file()


def test_what_stays_as_drawn_at_random_is_said(tmp_path, capsys):
    """Adapters around a SAM that was never loaded learn little: the record says so."""
    words = ("train.trainable=adapters", "train.max_steps=1")
    run("--model", "medivista-sam", *TINY, *words, "--out", tmp_path / "run")
    (note,) = json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    assert note.endswith("stay as drawn at random: give them weights with --weights and --source.")
    assert note in capsys.readouterr().err
