"""R(2+1)D-18: torchvision's network, for whole clips."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.video import r2plus1d_18

from medvid_cnn_mamba.config import R2Plus1DConfig
from medvid_cnn_mamba.network import build_r2plus1d
from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec

TINY = {"width": 4, "blocks": (1, 1, 1, 1)}
TASKS = (
    OutputSpec(name="view", task="classification", classes=("a", "b", "c")),
    OutputSpec(name="signs", task="multilabel", classes=("a", "b")),
    OutputSpec(name="ef", task="regression", classes=("ef",), center=(55.6,), scale=(12.2,)),
    OutputSpec(name="grade", task="ordinal", classes=("0", "1", "2", "3")),
)


def network(outputs=TASKS, **config):
    torch.manual_seed(0)
    return build_r2plus1d(R2Plus1DConfig(**{**TINY, **config}), outputs)


@pytest.mark.parametrize(("frames", "size"), [(1, (32, 32)), (5, (40, 33)), (8, (16, 16))])
def test_shapes_of_every_task(frames, size):
    found = network().eval()({"video": torch.randn(2, frames, 3, *size)})
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "view": (2, 3),
        "signs": (2, 2),
        "ef": (2, 1),
        "grade": (2, 3),
    }


def test_names_and_shapes_are_torchvision_s():
    with torch.device("meta"):
        ours, theirs = build_r2plus1d(R2Plus1DConfig(), TASKS[2:3]), r2plus1d_18(weights=None, num_classes=1)
        assert ours({"video": torch.empty(1, 8, 3, 112, 112)})["ef"].shape == (1, 1)
    mine = {name: x.shape for name, x in ours.state_dict().items() if not name.startswith("heads.")}
    assert mine == {name: x.shape for name, x in theirs.state_dict().items() if not name.startswith("fc.")}
    # EchoNet-Dynamic's network, with one number
    assert sum(x.numel() for x in ours.parameters()) == 31_300_638


def test_start_is_torchvision_s():
    torch.manual_seed(0)
    weight = build_r2plus1d(R2Plus1DConfig(), TASKS).layer4[1].conv2[0][0].weight
    torch.manual_seed(0)
    theirs = r2plus1d_18(weights=None).layer4[1].conv2[0][0].weight
    assert weight.std().item() == pytest.approx(theirs.std().item(), rel=0.01)


def test_regression_starts_at_the_training_mean():
    model = network().eval()
    torch.nn.init.zeros_(model.heads.heads[2].linear.weight)
    torch.nn.init.zeros_(model.heads.heads[2].linear.bias)
    assert model({"video": torch.randn(2, 4, 3, 16, 16)})["ef"].flatten().tolist() == pytest.approx([55.6, 55.6])


def test_every_parameter_gets_a_gradient():
    model = network()
    sum(value.square().sum() for value in model({"video": torch.randn(2, 8, 3, 32, 32)}).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_sees_what_moves():
    model = network().eval()
    video = torch.randn(1, 8, 3, 32, 32)
    forward, backward = (model.features(clip) for clip in (video, video.flip(1)))
    assert (forward - backward).abs().max() > 1e-3 * forward.abs().max()


@pytest.mark.parametrize("task", ["frame_classification", "anomaly"])
def test_values_of_frames_are_refused(task):
    """R(2+1)D gives no value for single frames"""
    with pytest.raises(ConfigError) as error:
        network((*TASKS, OutputSpec(name="phase", task=task, classes=("a", "b"))))
    assert str(error.value).startswith(test_values_of_frames_are_refused.__doc__)
    assert f"output 'phase' ({task})" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"width": 0}, "model.width=0 cannot be used: it must be at least 1."),
        ({"blocks": (2, 2)}, "model.blocks=(2, 2) cannot be used: it must be four numbers of at least 1."),
        ({"blocks": (2, 2, 0, 2)}, "model.blocks=(2, 2, 0, 2) cannot be used: it must be four numbers of at least 1."),
        ({"dropout": -0.1}, "model.dropout=-0.1 cannot be used: it must be from 0 to below 1."),
    ],
)
def test_settings_that_cannot_be_used(settings, text):
    with pytest.raises(ConfigError) as error:
        R2Plus1DConfig(**settings)
    assert str(error.value) == text


def test_learns_eight_clips():
    torch.manual_seed(0)
    model, video = network(TASKS[:1]), torch.randn(8, 2, 3, 16, 16)
    classes = torch.arange(8) % 3
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(model({"video": video})["view"], classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_the_layer_for_attribution_gives_maps_over_time_and_space():
    model, seen = network().eval(), []
    model.get_submodule(model.attribution_layer).register_forward_hook(lambda _module, _input, out: seen.append(out))
    video = torch.randn(1, 16, 3, 32, 32, requires_grad=True)
    found = model({"video": video})
    (maps,) = seen
    assert maps.shape == (1, 32, 2, 2, 2)
    torch.testing.assert_close(model.heads(None, maps.mean((2, 3, 4)))["ef"], found["ef"])
