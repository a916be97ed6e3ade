"""Vivim, whose loss teaches the centre frame of a clip alone, is scored and used there."""

import json
from dataclasses import replace

import torch

from medvid_core import OutputSpec, create_model, open_dataset, save_model
from medvid_core.config import ClipConfig, compose
from medvid_core.data.loader import collate
from medvid_core.engine.inference import Windows, segment_case
from medvid_core.plugins import registry


def test_vivim_is_scored_where_it_was_taught(medvid, tmp_path):
    """Of the presets those whose loss teaches the centre alone; the evaluation of a run repeats it, or is told."""
    blends = {}
    for preset in ("tiny", "small", "full", "released", "paper", "ovarian"):
        config = compose(registry(), "vivim", None, (f"preset={preset}",)).config
        blends[preset] = config.clip.blend
        centre = getattr(config.loss.config, "frames", "all") == "centre"
        assert blends[preset] == ("centre" if centre else "mean")
    assert sorted(name for name, blend in blends.items() if blend == "centre") == ["full", "paper", "released"]

    words = ("preset=tiny", "loss.frames=centre", "clip.blend=centre", "dataset.cases=6", "dataset.frames=6")
    more = ("dataset.size=[40,40]", "train.max_steps=1", "evaluate.overlays=0", "--out", tmp_path / "run")
    medvid("--model", "vivim", *words, *more)
    medvid("evaluate", tmp_path / "run", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "cases.csv").read_text() == (tmp_path / "run" / "cases.csv").read_text()
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["blend"] == "centre"
    medvid("evaluate", tmp_path / "run", "clip.blend=mean", "clip.overlap=2", "--out", tmp_path / "mean")
    assert json.loads((tmp_path / "mean" / "summary.json").read_text())["blend"] == "mean"
    assert (tmp_path / "mean" / "cases.csv").read_text() != (tmp_path / "run" / "cases.csv").read_text()


def test_overlap_is_judged_against_the_clips_of_the_model(medvid, refused, vtus, tmp_path):
    """Not those of the preset that its data would be trained with: longer clips, of which no centre is taken."""
    output = OutputSpec(name="mask", task="segmentation", classes=("nodule",))
    model = create_model("vivim", outputs=(output,), preset="tiny")
    assert compose(registry(), "vivim", str(vtus())).config.clip.blend == "centre"
    model.medvid = replace(model.medvid, frames=7, blend="mean")
    save_model(model, tmp_path / "m.safetensors")
    words = ("--data", tmp_path / "vtus", "--split", "test", "clip.overlap=6")
    medvid("evaluate", tmp_path / "m.safetensors", *words, "--out", tmp_path / "e")
    record = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert (record["overlap"], record["blend"]) == (6, "mean")
    assert refused("evaluate", tmp_path / "m.safetensors", *words, "clip.blend=centre") == (
        "clip.overlap=6 cannot be used: it must be 0 with clip.blend=centre, where every frame has a window of its own."
    )


def test_a_run_that_began_before_there_was_a_choice_goes_on_with_the_mean(tmp_path):
    """What its preset would give it now is not for it; a file that is no run's leaves it to the preset."""
    file = tmp_path / "config.yaml"
    file.write_text(
        compose(registry(), "vivim", None, ["preset=full"]).config.to_yaml().replace("  blend: centre\n", "")
    )
    assert "blend" not in file.read_text()
    assert compose(registry(), config_file=file).config.clip.blend == "centre"
    (tmp_path / "run.json").write_text("{}")
    assert compose(registry(), config_file=file).config.clip.blend == "mean"


def test_vivim_gives_the_centre_logit():
    """With the real network, on the phantom."""
    case = open_dataset("echo-phantom", cases=1, frames=7, size=(40, 40)).cases[0]
    output = OutputSpec(name="mask", task="segmentation", classes=("background", "lv", "myocardium"))
    torch.manual_seed(0)
    model = create_model("vivim", outputs=(output,), preset="tiny").eval()
    clip = ClipConfig(frames=3, size=(32, 32), blend="centre")
    how = Windows(clip, model.medvid.clip, (), 3, torch.device("cpu"))
    found = torch.cat([block.probabilities for block in segment_case(model, output, case, how)])
    for frame in (0, 3, 6):
        with torch.no_grad():
            logits = model(collate([how.read(case, frame - 1)]))["mask"][0, 1]
        torch.testing.assert_close(found[frame], logits.softmax(0), rtol=0, atol=1e-5)
