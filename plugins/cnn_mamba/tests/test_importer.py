"""Published weights: files as timm, torchvision and EchoNet-Dynamic write them; strict."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models.video import r2plus1d_18

from medvid_cnn_mamba.config import CNNConfig, CNNMambaConfig, R2Plus1DConfig
from medvid_cnn_mamba.importer import import_echonet, import_kinetics, import_timm
from medvid_cnn_mamba.network import build_cnn, build_cnn_mamba, build_r2plus1d
from medvid_core import create_model
from medvid_core.errors import CheckpointError
from medvid_core.specs import OutputSpec
from medvid_core.weights import read_state

VIEW = (OutputSpec(name="view", task="classification", classes=("a", "b")),)
ODD = (OutputSpec(name="odd", task="anomaly", classes=("odd",)),)
EF = (OutputSpec(name="ef.percent", task="regression", classes=("ef",), center=(55.6,), scale=(12.2,)),)


def timm_state(name="test_resnet", **options):
    torch.manual_seed(7)
    net = timm.create_model(name, pretrained=False, **options)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.num_batches_tracked.fill_(3)
    return net, net.state_dict()


def values(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "test_byobnet"])
def test_timm_fills_the_encoder_and_nothing_else(tmp_path, name):
    net, state = timm_state(name)
    save_file(state, tmp_path / "model.safetensors")
    model = build_cnn_mamba(CNNMambaConfig(encoder=name, width=8, layers=1, motion=True), VIEW)
    before = values(model)
    report = import_timm(read_state(tmp_path / "model.safetensors"), model)
    inside = {key for key in model.state_dict() if key.startswith("frames.encoder.net.")}
    assert set(report.loaded) == inside
    assert set(report.initialised) == set(model.state_dict()) - inside
    assert {why for _, why in report.dropped} == {"timm's classifier"}
    assert len(report.dropped) == 2
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items() if key not in inside)
    pictures = torch.randn(2, 3, 64, 64)
    net.eval().reset_classifier(0)
    torch.testing.assert_close(model.eval().frames.encoder(pictures[None])[0], net(pictures))


def test_timm_for_a_forecasting_network():
    net, state = timm_state()
    model = build_cnn_mamba(CNNMambaConfig(encoder="test_resnet", width=8, layers=1, anomaly="forecast"), ODD)
    import_timm(state, model)
    assert torch.equal(model.frames.encoder.net.conv1[0].weight, net.conv1[0].weight)


def test_timm_without_counters_of_batches():
    _, state = timm_state()
    report = import_timm(
        {key: x for key, x in state.items() if "num_batches" not in key},
        build_cnn(CNNConfig(encoder="test_resnet"), VIEW),
    )
    assert report.missing == ()


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (lambda: timm_state("test_efficientnet")[1], "missing from the file: frames.encoder.net.conv1.0.weight"),
        (lambda: timm_state(in_chans=1)[1], "frames.encoder.net.conv1.0.weight: shape"),
        (lambda: {k: x for k, x in timm_state()[1].items() if k != "bn1.bias"}, "missing from the file: frames.enc"),
    ],
)
def test_timm_of_another_network_is_refused(state, text):
    model = build_cnn(CNNConfig(encoder="test_resnet"), VIEW)
    before = values(model)
    with pytest.raises(CheckpointError) as error:
        import_timm(state(), model)
    assert text in str(error.value)
    assert "model.encoder must name the network of the file" in str(error.value)
    assert unchanged(model, before)


def test_timm_needs_an_encoder():
    """R2Plus1D has no timm encoder to load."""
    model = build_r2plus1d(R2Plus1DConfig(width=4), VIEW)
    with pytest.raises(CheckpointError) as error:
        import_timm({}, model)
    assert str(error.value).startswith(test_timm_needs_an_encoder.__doc__)


@functools.cache
def torchvision_network(classes):
    torch.manual_seed(3)
    net = r2plus1d_18(weights=None, num_classes=classes).eval()
    for name, x in net.named_buffers():
        if name.endswith("running_var"):
            x.uniform_(0.5, 2)
    torch.nn.init.normal_(net.fc.weight)
    return net


@functools.cache
def clip():
    return torch.randn(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def r2plus1d(outputs):
    torch.manual_seed(5)
    return build_r2plus1d(R2Plus1DConfig(), outputs).eval()


def test_kinetics(tmp_path):
    theirs, ours = torchvision_network(400), r2plus1d(VIEW)
    torch.save(theirs.state_dict(), tmp_path / "r2plus1d_18-91a641e6.pth")
    report = import_kinetics(read_state(tmp_path / "r2plus1d_18-91a641e6.pth"), ours)
    assert [key for key, _ in report.dropped] == ["fc.weight", "fc.bias"]
    assert set(report.initialised) == {"heads.heads.0.weight", "heads.heads.0.bias"}
    wanted = {}
    theirs.avgpool.register_forward_hook(lambda layer, inputs, output: wanted.update(x=output.flatten(1)))
    theirs(clip().transpose(1, 2))
    torch.testing.assert_close(ours.features(clip()), wanted["x"])


def test_echonet_gives_the_original_s_numbers(tmp_path):
    theirs, ours = torchvision_network(1), r2plus1d(EF)
    torch.nn.init.constant_(theirs.fc.bias, 55.6)
    torch.save(
        {
            "epoch": 44,
            "state_dict": {f"module.{key}": x for key, x in theirs.state_dict().items()},
            "period": 2,
            "frames": 32,
            "best_loss": np.float64(30.9),
            "loss": np.float64(31.0),
            "r2": 0.8,
            "opt_dict": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]},
            "scheduler_dict": {"step_size": 15, "gamma": 0.1},
        },
        tmp_path / "r2plus1d_18_32_2_pretrained.pt",
    )
    report = import_echonet(read_state(tmp_path / "r2plus1d_18_32_2_pretrained.pt"), ours)
    assert (report.dropped, report.initialised, report.missing) == ((), (), ())
    torch.testing.assert_close(ours({"video": clip()})["ef.percent"], theirs(clip().transpose(1, 2)))


def test_echonet_without_prefix_and_without_scale():
    theirs, ours = torchvision_network(1), r2plus1d((OutputSpec(name="ef", task="regression", classes=("ef",)),))
    import_echonet(theirs.state_dict(), ours)
    assert torch.equal(ours.heads.heads[0].linear.weight, theirs.fc.weight)


@pytest.mark.parametrize(
    "outputs", [VIEW, EF + VIEW, (OutputSpec(name="volumes", task="regression", classes=("ed", "es")),)]
)
def test_echonet_has_one_number(outputs):
    """EchoNet-Dynamic's network gives one number"""
    model = build_r2plus1d(R2Plus1DConfig(width=4), outputs)
    with pytest.raises(CheckpointError, match=test_echonet_has_one_number.__doc__):
        import_echonet({}, model)


def test_echonet_is_for_r2plus1d():
    with pytest.raises(CheckpointError, match="the model must be r2plus1d with one regression output"):
        import_echonet({}, build_cnn(CNNConfig(encoder="test_resnet"), EF))


def test_strictness_changes_nothing():
    ours = build_r2plus1d(R2Plus1DConfig(width=4), EF)
    before, state = values(ours), torchvision_network(1).state_dict()
    for load in (import_kinetics, import_echonet):
        with pytest.raises(CheckpointError) as error:
            load(state, ours)
        assert "stem.0.weight: shape (45, 3, 1, 7, 7) in the file, (2, 3, 1, 7, 7) in the model" in str(error.value)
        assert "model.width=64" in str(error.value)
    with pytest.raises(CheckpointError, match=r"missing from the file: .*heads\.heads\.0\.linear\.weight"):
        import_echonet({key: x for key, x in state.items() if not key.startswith("fc.")}, ours)
    with pytest.raises(CheckpointError, match=r"with and without the prefix 'module\.'"):
        import_echonet({**state, "module.stem.0.weight": state["stem.0.weight"]}, ours)
    assert unchanged(ours, before)


def test_pictures_are_normalised_as_the_weights_are_used_to(tmp_path):
    """Black and white of a video, as EchoNet-Dynamic's network saw them; where a user says otherwise, as he says."""
    from medvid_core.data.transforms import normalise

    output = OutputSpec(name="ef", task="regression", classes=("ef",))
    model = create_model("r2plus1d", outputs=(output,))
    import_echonet(torchvision_network(1).state_dict(), model)
    pixels = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2)
    seen = normalise(pixels, model.medvid.clip)[0, :, 0]
    wanted = (torch.tensor([0.0, 255.0]) - torch.tensor([[32.76], [32.94], [33.28]])) / torch.tensor(
        [[49.92], [50.05], [50.40]]
    )
    torch.testing.assert_close(seen, wanted, atol=1e-3, rtol=1e-3)
    kinetics = create_model("r2plus1d", outputs=VIEW)
    import_kinetics(torchvision_network(400).state_dict(), kinetics)
    assert kinetics.medvid.clip.mean == (0.43216, 0.394666, 0.37645)
    other = create_model("r2plus1d", outputs=VIEW)
    other.medvid = replace(other.medvid, clip=replace(other.medvid.clip, mean=(0.5,), std=(0.25,)))
    import_kinetics(torchvision_network(400).state_dict(), other)
    assert other.medvid.clip.mean == (0.5,)


def test_training_goes_on_with_the_normalisation_of_a_model_file(tmp_path):
    """Weights imported first and trained on from medvid's own file see the same pictures."""
    from medvid_core import save_model
    from medvid_core.engine.session import _start_from

    output = OutputSpec(name="ef", task="regression", classes=("ef",))
    imported = create_model("r2plus1d", outputs=(output,))
    import_echonet(torchvision_network(1).state_dict(), imported)
    save_model(imported, tmp_path / "echonet.safetensors")
    model = create_model("r2plus1d", outputs=(output,))
    _start_from(model, tmp_path / "echonet.safetensors", None)
    assert model.medvid.clip == imported.medvid.clip
