"""The two-stream network by the command, and what its specs promise."""

from __future__ import annotations

import csv
import fnmatch
import json

import pytest
import torch

from medvid_core import config_from_upstream, create_model, load_model
from medvid_core.cli.main import main
from medvid_core.models import input_of, model_spec
from medvid_core.specs import OutputSpec, resolve

ASD = (OutputSpec(name="asd", task="classification", classes=("ASD", "non-ASD")),)
PHANTOM = (
    "preset=tiny",
    "train.max_steps=2",
    "evaluate.overlays=0",
    "dataset.patients=10",
    "dataset.videos_per_patient=[1,1]",
    "dataset.frames=32",
    "dataset.size=[80,120]",
    "dataset.assistants=0",
    "preprocess.size=48",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """What is prepared here stays here, and is there for the next test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def test_the_original_is_not_normalised():
    clip = create_model("two-stream", outputs=ASD, preset="original", width=2, blocks=(1, 1, 1, 1)).medvid.clip
    assert (clip.mean, clip.std) == ((0.0,) * 3, (1.0,) * 3)


def test_both_streams_by_default_and_again_from_the_cache(tmp_path, capsys):
    """With nothing but the model's name: the phantom is prepared without weights, once."""
    for name in ("one", "two"):
        main(["--model", "two-stream", "--out", str(tmp_path / name), *PHANTOM])
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["preprocess"]["computed"] == 0
    one, two = ((tmp_path / name / "cases.csv").read_bytes() for name in ("one", "two"))
    assert one == two


def test_one_stream_from_training_to_a_model_file(tmp_path):
    """Every case gets probabilities that sum to 1, and the network is left in a file that loads."""
    main(["--model", "two-stream", "--out", str(tmp_path / "run"), "model.inputs=[rgb]", *PHANTOM])
    with open(tmp_path / "run" / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        shares = [float(row[f"p/diagnosis/{name}"]) for name in ("control", "deformity")]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    model = load_model(tmp_path / "run" / "model.safetensors")
    assert model.attribution_layer == {"rgb": "streams.rgb.out"}


@pytest.mark.parametrize(
    ("name", "settings", "streams"),
    [
        ("two-stream", {}, ("video", "flow")),
        ("two-stream", {"inputs": ("masked-rgb",)}, ("video", "person_mask")),
        ("cnn-lstm", {}, ("video",)),
        ("attention-branch", {"input": "flow"}, ("video", "flow")),
        ("cross-attention", {}, ("video", "person_mask")),
    ],
)
def test_what_a_model_reads_follows_its_settings(name, settings, streams):
    spec = model_spec(name)
    assert input_of(spec, resolve(spec.config)(**settings)).streams == streams


def test_heads_alone_can_be_trained():
    """The named choice takes the classifiers, and nothing of the trunks."""
    patterns = model_spec("two-stream").trainable["heads"]
    for settings in ({}, {"flow_trunk": "resnet18"}, {"fusion": "concat"}, {"fusion": "learnt"}):
        net = create_model("two-stream", outputs=ASD, preset="tiny", **settings)
        names = [name for name, _ in net.named_parameters()]
        chosen = {name for name in names if any(name.startswith(p) or fnmatch.fnmatchcase(name, p) for p in patterns)}
        assert chosen == {name for name in names if "proj" in name or name.startswith(("joint", "weights"))}
        assert chosen


def test_the_original_s_arguments_by_name():
    config = config_from_upstream("two-stream", {"model": "single", "fusion": "sum_loss"})
    assert (config.trunk, config.fusion, config.compat) == ("resnet50", "sum", True)


@pytest.mark.slow
@torch.no_grad()
def test_the_full_network():
    """slow-R50, twice, on a clip of 17 frames of 224 pixels."""
    net = create_model("two-stream", outputs=ASD).eval()
    assert sum(parameter.numel() for parameter in net.parameters()) == 31_636_545 + 31_633_409 + 2 * 2049
    frames = torch.ones(1, 17, dtype=torch.bool)
    outputs = net(
        {"video": torch.rand(1, 17, 3, 224, 224), "flow": torch.rand(1, 17, 2, 224, 224), "frame_real": frames}
    )
    torch.testing.assert_close(outputs["asd"].exp().sum(1), torch.ones(1))


LABORATORY = (
    "preset=small",
    "preprocess.size=96",
    "dataset.setting=laboratory",
    "dataset.assistants=0",
    "dataset.patients=120",
    "dataset.videos_per_patient=[2,2]",
    "split.test=0.35",
    "train.epochs=10",
    "train.evaluate_every=5",
    "evaluate.overlays=0",
)
CHANCE = 0.5 - 0.2, 0.5 + 0.2
"""Where the accuracy of a guess on 42 patients lies in 99 of 100 draws, if a patient's two videos agree."""


@pytest.mark.slow
@pytest.mark.parametrize("cue", ["static", "dynamic"])
def test_flow_sees_dynamics_alone_and_shuffled_pictures_posture_alone(cue, tmp_path):
    """The paper's claim, where the classes differ in one cue only, on patients who were not trained on."""
    accuracy = {}
    for stream, settings in (
        ("pictures", ["model.inputs=[rgb]", "model.shuffled=true"]),
        ("flow", ["model.inputs=[flow]"]),
    ):
        out = tmp_path / stream
        main(["--model", "two-stream", "--out", str(out), *LABORATORY, f"dataset.cue={cue}", *settings])
        with open(out / "cases.csv", newline="") as file:
            right = [row["predicted/diagnosis"] == row["true/diagnosis"] for row in csv.DictReader(file)]
        assert len(right) == 84
        accuracy[stream] = sum(right) / len(right)
    seeing, blind = ("pictures", "flow") if cue == "static" else ("flow", "pictures")
    assert accuracy[seeing] > 0.72
    assert CHANCE[0] < accuracy[blind] < CHANCE[1]
