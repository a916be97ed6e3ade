"""Models by name: what Python users and the commands share."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import medvid_core
from medvid_core import (
    CheckpointError,
    ConfigError,
    OutputSpec,
    PluginError,
    config_from_upstream,
    create_loss,
    create_metric,
    create_model,
    import_weights,
    list_datasets,
    list_losses,
    list_metrics,
    list_models,
    load_model,
    open_dataset,
    plugins,
    save_model,
)
from medvid_core.models import ModelInfo, check_tasks, describe, model_spec, usable_outputs
from medvid_core.plugins import Provided

BINARY = OutputSpec(name="mask", task="segmentation", classes=("lesion",))
MULTI = OutputSpec(name="anatomy", task="segmentation", classes=("background", "lv", "myocardium"))


def test_what_is_installed_is_listed():
    assert "unet" in list_models()
    assert {"echo-phantom", "vtus", "vos", "manifest"} <= set(list_datasets())
    assert {"cross-entropy", "dice", "dice-ce"} <= set(list_losses())
    assert {"dice", "jaccard", "precision", "recall", "specificity", "f-measure", "mae"} <= set(list_metrics())


def test_every_public_name_can_be_imported_and_no_other():
    for name in medvid_core.__all__:
        assert getattr(medvid_core, name) is not None
    with pytest.raises(AttributeError) as info:
        medvid_core.surprise  # noqa: B018
    assert str(info.value) == "module 'medvid_core' has no attribute 'surprise'"


@pytest.mark.parametrize("output", [BINARY, MULTI])
@pytest.mark.parametrize("frames", [1, 4])
def test_the_baseline_keeps_the_shapes_of_the_contract(output, frames):
    """[B,T,C,H,W] → [B,T,K,H,W] under the output's name; frame by frame, clip by clip."""
    torch.manual_seed(0)
    model = create_model("unet", outputs=(output,), preset="tiny").eval()
    video = torch.randn(2, frames, 3, 32, 48)
    found = model({"video": video})
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        output.name: (2, frames, len(output.classes), 32, 48)
    }
    alone = model({"video": video[1:, :1]})[output.name]
    assert torch.allclose(alone[0, 0], found[output.name][1, 0], atol=1e-6)


def test_settings_win_over_the_preset():
    model = create_model("UNet", outputs=(BINARY,), preset="tiny", channels=(4, 4, 4))
    info = describe(model)
    assert info.name == "medvid-core/unet"
    assert (info.config["channels"], info.frames, info.size) == ((4, 4, 4), 3, (32, 32))
    assert isinstance(create_model("medvid-core/unet", outputs=(BINARY,), preset="tiny"), nn.Module)


def test_requests_that_cannot_be_met():
    def text(error, *arguments, **options):
        with pytest.raises(error) as info:
            create_model(*arguments, **options)
        return str(info.value)

    assert text(PluginError, "vit", outputs=(BINARY,)).startswith("No model is called 'vit'. ")
    assert text(ConfigError, "unet", outputs=(BINARY,), preset="huge") == (
        "Model 'unet' has no preset 'huge'. Known: tiny, small, full."
    )
    assert text(ConfigError, "unet", outputs=(BINARY,), chanels=(4,)) == (
        "Unknown setting model.chanels. Did you mean 'channels'? Known: in_channels, channels, residual_units, dropout."
    )
    assert text(ConfigError, "unet", outputs=(BINARY,), dropout="much").startswith(
        "model.dropout='much' (given) cannot be used: "
    )
    score = OutputSpec(name="ef", task="regression", classes=("ef",))
    assert text(ConfigError, "unet", outputs=(score,)) == (
        "Model 'unet' does segmentation, and the data ask for regression (output 'ef'). "
        "Choose another model or data set."
    )
    assert text(ConfigError, "unet", outputs=(BINARY,), channels=(4,)).startswith(
        "Model 'unet' cannot be built with these settings: "
    )


def test_a_module_of_unknown_origin_is_refused(tmp_path):
    for call in (describe, lambda module: save_model(module, tmp_path / "m.safetensors")):
        with pytest.raises(CheckpointError) as info:
            call(nn.Linear(1, 1))
        assert str(info.value) == "This module was not made by medvid_core.create_model or load_model."
    assert not list(tmp_path.iterdir())


def test_a_description_survives_json():
    info = describe(create_model("unet", outputs=(MULTI,), preset="tiny"))
    again = ModelInfo.from_dict(json.loads(json.dumps(info.to_dict())))
    assert dataclasses.replace(again, config={}) == dataclasses.replace(info, config={})
    assert {
        key: tuple(value) if isinstance(value, list) else value for key, value in again.config.items()
    } == info.config


def test_a_run_directory_loads_as_its_model(tiny_run):
    """From the directory or the file; in evaluation mode; with everything needed to use it."""
    model, same = load_model(tiny_run), load_model(str(tiny_run / "model.safetensors"))
    assert not model.training
    info = describe(model)
    assert (info.frames, info.size, info.outputs[0].classes) == (3, (32, 32), ("background", "lv", "myocardium"))
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)


def test_imports_the_model_does_not_know():
    model = create_model("unet", outputs=(BINARY,), preset="tiny")
    with pytest.raises(ConfigError) as info:
        import_weights(model, "x.pth")
    assert str(info.value) == "Model 'unet' imports no weights of the kind 'upstream'. Known: none."
    with pytest.raises(ConfigError) as info:
        config_from_upstream("unet", {})
    assert str(info.value) == "Model 'unet' has no upstream configuration to translate."


def test_data_sets_and_metrics_by_name(vtus, tmp_path):
    assert len(open_dataset("echo-phantom", cases=3).cases) == 3
    assert [case.case_id for case in open_dataset(vtus()).cases] == ["a", "b", "c", "d"]
    with pytest.raises(PluginError) as info:
        open_dataset(tmp_path / "absent")
    assert str(info.value).startswith(f"No dataset is called '{tmp_path / 'absent'}'. Known: ")
    with pytest.raises(PluginError) as info:
        create_metric("dise", (BINARY,))
    assert str(info.value).startswith("No metric is called 'dise'. Did you mean 'dice'? Known: ")


LABEL = OutputSpec(name="label", task="classification", classes=("benign", "malignant"))


def test_losses_and_metrics_refuse_tasks_they_do_not_do():
    for call, kind, name in ((create_loss, "Loss", "dice"), (create_metric, "Metric", "jaccard")):
        assert call(name, [BINARY])
        with pytest.raises(ConfigError) as info:
            call(name, [BINARY, LABEL])
        assert str(info.value) == (
            f"{kind} {name!r} does segmentation, and the data ask for classification (output 'label'). "
            f"Choose another {kind.lower()} or data set."
        )


def test_the_outputs_a_model_can_use():
    """Data with masks and labels serve a model of either; data with labels alone do not serve U-Net."""
    spec = model_spec("unet")
    assert usable_outputs(spec, (LABEL, BINARY)) == (BINARY,)
    for none in ((LABEL,), ()):
        with pytest.raises(ConfigError):
            usable_outputs(spec, none)
    check_tasks(spec, [BINARY])


def test_clip_settings_come_from_the_recipe_and_then_the_preset(monkeypatch):
    """As in training: frames, size and stride; the model's own settings as well."""
    recipe = {"clip.stride": 3, "clip.frames": 7, "clip.size": [64, 48], "model.dropout": 0.25, "train.epochs": 2}
    spec = dataclasses.replace(
        model_spec("unet"), name="recipe-net", recipe=recipe, presets={"full": {}, "long": {"clip.frames": 9}}
    )
    registry = plugins.registry()
    monkeypatch.setitem(registry.provided, "model", [*registry.provided["model"], Provided("acme", "1", spec)])
    full, long = (
        describe(create_model("recipe-net", outputs=(BINARY,), preset=name, channels=(4, 4, 4)))
        for name in ("full", "long")
    )
    assert (full.stride, full.frames, full.size, full.config["dropout"]) == (3, 7, (64, 48), 0.25)
    assert (long.stride, long.frames) == (3, 9)
