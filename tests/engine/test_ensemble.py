"""The mean of several models is the mean of what each predicts by itself, for every task."""

import dataclasses

import pytest
import torch
from torch import nn

from medvid_core import create_model, open_dataset, save_model
from medvid_core.config import ClipConfig
from medvid_core.engine.ensemble import Ensemble, load, runs_of
from medvid_core.engine.inference import Windows, predict_case, segment_case
from medvid_core.engine.run import write_json
from medvid_core.errors import CheckpointError
from medvid_core.models import ModelInfo
from medvid_core.specs import ClipSpec, OutputSpec

MASK = OutputSpec(name="mask", task="segmentation", classes=("background", "lv", "myocardium"))
OTHERS = (
    OutputSpec(name="view", task="classification", classes=("a", "b", "c")),
    OutputSpec(name="signs", task="multilabel", classes=("x", "y")),
    OutputSpec(name="ef", task="regression", classes=("ef",)),
    OutputSpec(name="grade", task="ordinal", classes=("low", "middle", "high")),
    OutputSpec(name="phase", task="frame_classification", classes=("s", "d")),
    OutputSpec(name="stall", task="anomaly", classes=("stall",)),
)


class Anything(nn.Module):
    """Predicts for every task something that depends on the video and on the seed."""

    def __init__(self, seed):
        super().__init__()
        self.weights = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))
        self.medvid = ModelInfo("medvid-core/unet", "1", {}, OTHERS, ClipSpec(frames=3), 3, (16, 16))

    def forward(self, batch):
        frames = batch["video"].mean((2, 3, 4))[..., None]
        found, at = {}, 0
        for output in OTHERS:
            width = len(output.classes) - (output.task == "ordinal")
            value = torch.sin(frames * self.weights[at : at + width, 0] * 9 + self.weights[at : at + width, 1])
            at += width
            of_frames = output.task in ("frame_classification", "anomaly")
            found[output.name] = value if of_frames else value.mean(1)
        found["stall"] = found["stall"][..., 0]
        return found


@pytest.fixture(scope="module")
def case():
    return open_dataset("echo-phantom", cases=1, frames=7, size=(32, 32)).cases[0]


def windows(model, overlap=1):
    info = model.medvid
    return Windows(
        ClipConfig(frames=info.frames, size=info.size, overlap=overlap), info.clip, (), 2, torch.device("cpu")
    )


def test_every_task_is_averaged(case):
    models = [Anything(seed) for seed in range(3)]
    together = predict_case(Ensemble(models), OTHERS, case, windows(models[0]))
    alone = [predict_case(model, OTHERS, case, windows(model)) for model in models]
    assert together.keys() == {output.name for output in OTHERS}
    for name, value in together.items():
        torch.testing.assert_close(value, torch.stack([each[name] for each in alone]).mean(0), rtol=0, atol=1e-7)
        assert not torch.allclose(value, alone[0][name])


def unets(count=2, **changes):
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append(create_model("unet", outputs=(MASK,), preset="tiny").eval())
    for name, value in changes.items():
        found[-1].medvid = dataclasses.replace(found[-1].medvid, **{name: value})
    return found


def test_masks_are_averaged_block_by_block(case):
    models = unets(3)
    together = list(segment_case(Ensemble(models), MASK, case, windows(models[0])))
    alone = [list(segment_case(model, MASK, case, windows(model))) for model in models]
    assert len(together) > 1
    assert [frame for block in together for frame in block.frames] == list(range(7))
    for number, block in enumerate(together):
        expected = torch.stack([blocks[number].probabilities for blocks in alone]).mean(0)
        torch.testing.assert_close(block.probabilities, expected, rtol=0, atol=1e-7)


def test_models_that_differ_are_not_averaged():
    with pytest.raises(CheckpointError, match=r"cannot be averaged: they differ in frames \(3 and 4\)"):
        Ensemble(unets(frames=4))
    other = OutputSpec(name="mask", task="segmentation", classes=("background", "rv"))
    with pytest.raises(CheckpointError, match="they differ in outputs"):
        Ensemble(unets(outputs=(other,)))
    mean = dataclasses.replace(MASK, center=(1.0,))  # of the training cases: differs between folds
    assert len(Ensemble(unets(outputs=(mean,)))) == 2


def test_a_folder_of_folds_is_loaded_as_one(tmp_path):
    for number, model in enumerate(unets()):
        save_model(model, tmp_path / f"fold{number}" / "model.safetensors")
    write_json(tmp_path / "splits.json", {"folds": [{"test": ["a"], "val": []}, {"test": ["b"], "val": []}]})
    with pytest.raises(
        CheckpointError, match=r"has not finished: it holds no cv.json. Go on with the same medvid-run cv"
    ):
        load(tmp_path)
    write_json(tmp_path / "cv.json", {"runs": ["fold0", "fold1"]})
    loaded = load(tmp_path)
    assert isinstance(loaded.model, Ensemble)
    assert not loaded.model.training
    assert loaded.runs == (tmp_path / "fold0", tmp_path / "fold1")
    assert loaded.home == tmp_path
    assert runs_of(tmp_path / "fold0") == ()
    assert load(tmp_path / "fold0").home == tmp_path / "fold0"
