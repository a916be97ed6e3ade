"""Published weights: every key loaded or accounted for, stems fitted, and the original's checkpoints."""

from __future__ import annotations

import argparse

import pytest
import torch
import torchvision

from medvid_core import create_model
from medvid_core.errors import CheckpointError
from medvid_core.specs import OutputSpec
from medvid_core.weights import read_state
from medvid_two_stream.config import AttentionBranchConfig, CNNLSTMConfig, TwoStreamConfig, from_upstream
from medvid_two_stream.importer import fitted_stem, import_slow, import_torchvision, import_upstream
from medvid_two_stream.network import build_attention_branch, build_cnn_lstm, build_two_stream
from medvid_two_stream.network.slow import SlowResNet
from medvid_two_stream.network.stream import Head

ASD = (OutputSpec(name="asd", task="classification", classes=("ASD", "non-ASD")),)
NARROW = {"width": 2, "blocks": (1, 1, 1, 1)}


def two_stream(seed=0, **config):
    torch.manual_seed(seed)
    return build_two_stream(TwoStreamConfig(**{**NARROW, **config}), ASD).eval()


def slow_state(seed=1):
    """As PyTorchVideo's files name things: a stream of RGB with a classifier of 400 actions."""
    torch.manual_seed(seed)
    return SlowResNet(3, Head(64, 400), (1, 1, 1, 1), 2).state_dict()


def clip(size=32):
    torch.manual_seed(2)
    video, flow = torch.rand(1, 4, 3, size, size), torch.rand(1, 4, 2, size, size)
    real = torch.ones(1, 4, dtype=torch.bool)
    return {"video": video, "flow": flow, "person_mask": torch.ones(1, 4, 1, size, size), "frame_real": real}


def test_a_stem_for_flow():
    """The mean over RGB, repeated, times 3/2: of a grey change, what the published stem makes of it."""
    weight = torch.randn(4, 3, 1, 7, 7)
    flow = fitted_stem(weight, "flow")
    assert flow.shape == (4, 2, 1, 7, 7)
    torch.testing.assert_close(flow[:, 0], weight.mean(1) * 3 / 2)
    assert torch.equal(flow[:, 0], flow[:, 1])
    torch.testing.assert_close(flow.sum(1), weight.sum(1))
    torch.testing.assert_close(fitted_stem(weight, "mask").sum(1), weight.sum(1))


@pytest.mark.parametrize(("name", "place"), [("rgb", 0), ("masked-rgb", 0), ("flow+rgb+mask", 2)])
def test_a_stem_keeps_rgb_and_joined_cues_start_at_nothing(name, place):
    weight = torch.randn(4, 3, 1, 7, 7)
    fitted = fitted_stem(weight, name)
    assert torch.equal(fitted[:, place : place + 3], weight)
    assert not torch.cat([fitted[:, :place], fitted[:, place + 3 :]], 1).any()


def test_kinetics_weights_go_into_every_stream():
    net, state = two_stream(), slow_state()
    report = import_slow(state, net)
    heads = {f"streams.{name}.blocks.5.proj.{entry}" for name in ("rgb", "flow") for entry in ("weight", "bias")}
    assert set(report.initialised) == heads
    assert {key for key, _ in report.dropped} == {"blocks.5.proj.weight", "blocks.5.proj.bias"}
    assert len(report.loaded) == len(net.state_dict()) - len(heads)
    maps = {}
    theirs = SlowResNet(3, Head(64, 400), (1, 1, 1, 1), 2).eval()
    theirs.load_state_dict(state)
    for name, seen in net.seen(clip()).items():
        maps[name] = net.stream(name).maps(seen)
    assert torch.equal(maps["rgb"], theirs.maps(clip()["video"].transpose(1, 2)))
    grey = clip()["video"][:, :, :1].expand(-1, -1, 3, -1, -1).transpose(1, 2)
    torch.testing.assert_close(net.stream("flow").maps(grey[:, :2]), theirs.maps(grey))


def test_the_original_throws_the_stem_away():
    """With compat the stem of both streams stays as initialised, and the report says so."""
    net = two_stream(compat=True)
    before = {name: net.stream(name).blocks[0].conv.weight.clone() for name in net.streams}
    report = import_slow(slow_state(), net)
    for name, weight in before.items():
        assert torch.equal(net.stream(name).blocks[0].conv.weight, weight)
        assert f"streams.{name}.blocks.0.conv.weight" in report.initialised
    assert "the original throws the published stem away" in report.text()


def test_kinetics_weights_of_another_depth_change_nothing():
    net = two_stream(blocks=(1, 1, 2, 1))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"(?s)missing from the file.*model.trunk must name the depth"):
        import_slow(slow_state(), net)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_kinetics_weights_for_other_networks():
    branch = build_attention_branch(AttentionBranchConfig(**NARROW), ASD)
    report = import_slow(slow_state(), branch)
    assert {name.split(".")[0] for name in report.initialised} >= {"att_conv", "bn_att", "streams"}
    with pytest.raises(CheckpointError, match=r"no slow network. Set model.trunk=slow_r50"):
        import_slow(slow_state(), build_two_stream(TwoStreamConfig(trunk="resnet18"), ASD))


@pytest.mark.parametrize("trunk", ["r3d_18", "r2plus1d_18", "mvit_v2_s", "swin3d_t"])
def test_torchvision_s_video_networks(trunk):
    """Loaded for flow, whose stem is inflated; every other entry is the file's."""
    with torch.device("meta"):
        published = getattr(torchvision.models.video, trunk)(weights=None).state_dict()
        net = build_two_stream(TwoStreamConfig(trunk=trunk, inputs=("flow",)), ASD)
    net.to_empty(device="cpu")
    state = {
        key: torch.ones(value.shape, dtype=value.dtype) * number
        for number, (key, value) in enumerate(published.items())
    }
    report = import_torchvision(state, net)
    stream = net.stream("flow")
    stem = stream.published.stem
    assert all(key.startswith(("fc.", "head.")) for key, _ in report.dropped)
    assert set(report.initialised) == {"streams.flow.head.proj.weight", "streams.flow.head.proj.bias"}
    for key, value in stream.body.state_dict().items():
        assert torch.equal(value, fitted_stem(state[key], "flow") if key == stem else state[key])


def test_imagenet_weights_go_into_networks_of_frames_alone():
    torch.manual_seed(1)
    state = torchvision.models.resnet18(weights=None).state_dict()
    net = two_stream(flow_trunk="resnet18")
    slow = {key: value.clone() for key, value in net.stream("rgb").state_dict().items()}
    report = import_torchvision(state, net)
    assert torch.equal(net.stream("flow").body.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert all(torch.equal(slow[key], value) for key, value in net.stream("rgb").state_dict().items())
    assert {name.split(".")[1] for name in report.initialised if "proj" not in name} == {"rgb"}
    lstm = build_cnn_lstm(CNNLSTMConfig(trunk="resnet18"), ASD)
    report = import_torchvision(state, lstm)
    assert torch.equal(lstm.cnn.conv1.weight, state["conv1.weight"])
    assert {name.split(".")[0] for name in report.initialised if not name.startswith("cnn.fc")} == {"lstm", "fc"}
    with pytest.raises(CheckpointError, match=r"none of torchvision's networks"):
        import_torchvision(state, two_stream())


def test_normalisation_follows_the_weights():
    """Where nobody asked for another; with compat pictures stay as the original's."""
    state = torchvision.models.video.r3d_18(weights=None).state_dict()
    net = create_model("two-stream", outputs=ASD, trunk="r3d_18", inputs=("rgb",))
    assert net.medvid.clip.mean == (0.45, 0.45, 0.45)
    import_torchvision(state, net)
    assert net.medvid.clip.mean == (0.43216, 0.394666, 0.37645)
    assert net.medvid.clip.std == (0.22803, 0.22145, 0.216989)


# the original's checkpoints ----------------------------------------------------------------------------------------


def original_state(net):
    """As the original's Lightning module saves it: both streams under its names, and RAFT."""
    state = {"optical_flow_model.model.feature_encoder.conv.weight": torch.ones(2, 2)}
    for name in net.streams:
        for key, value in net.stream(name).state_dict().items():
            theirs = key.replace("body.", "").replace("head.proj", "fc")
            state[f"model_{name}.{theirs}"] = value
    return state


def original_file(path, net):
    loops = {"epoch": 3, "global_step": 7, "hyper_parameters": {"hparams": argparse.Namespace(model="multi")}}
    torch.save({"state_dict": original_state(net), "optimizer_states": [], **loops}, path)
    return read_state(path)


@pytest.mark.parametrize("settings", [{}, {"flow_trunk": "resnet50"}])
def test_checkpoints_of_the_original(tmp_path, settings):
    """Nothing but RAFT is left out, and the outputs are those of the network that was saved."""
    theirs, ours = two_stream(seed=1, compat=True, **settings), two_stream(seed=2, compat=True, **settings)
    report = import_upstream(original_file(tmp_path / "epoch=3.ckpt", theirs), ours)
    assert [key for key, _ in report.dropped] == ["optical_flow_model.model.feature_encoder.conv.weight"]
    assert (report.initialised, report.missing, report.unexpected) == ((), (), ())
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in theirs.state_dict().items())


def test_one_logit_becomes_two():
    """A network with two logits gives the same probabilities."""
    theirs, ours = two_stream(seed=1, compat=True), two_stream(seed=2)
    for name in theirs.streams:
        theirs.stream(name).classifier.window = None
    import_upstream(original_state(theirs), ours)
    torch.testing.assert_close(ours(clip())["asd"], theirs(clip())["asd"])
    assert torch.equal(ours(clip())["asd/flow"][:, 0], torch.zeros(1))


def test_one_stream_of_a_checkpoint():
    theirs, ours = two_stream(seed=1, compat=True), two_stream(seed=2, compat=True, inputs=("masked-rgb",))
    report = import_upstream(original_state(theirs), ours)
    assert torch.equal(ours.stream("masked-rgb").blocks[0].conv.weight, theirs.stream("rgb").blocks[0].conv.weight)
    assert "the model has no such stream" in report.text()


def test_checkpoints_that_do_not_fit():
    state = original_state(two_stream(compat=True))
    with pytest.raises(CheckpointError, match=r"two classes and model.fusion=separate, sum or learnt"):
        import_upstream(state, two_stream(fusion="concat"))
    with pytest.raises(CheckpointError, match=r"one stream beside flow, and the model has rgb, mask"):
        import_upstream(state, two_stream(inputs=("rgb", "mask")))
    with pytest.raises(CheckpointError, match=r"(?s)shape.*model.scratch=true where"):
        import_upstream(state, two_stream(scratch=True))
    with pytest.raises(CheckpointError, match=r"no place in the model: streams.rgb.extra"):
        import_upstream({**state, "model_rgb.extra": torch.ones(1)}, two_stream(compat=True))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["multi", "single", "multi_single"])
def test_a_checkpoint_with_all_809_keys(model):
    """Two streams and RAFT, at full width."""
    from torchvision.models.optical_flow import raft_large

    net = build_two_stream(from_upstream({"model": model}), ASD)
    state = original_state(net)
    state.pop("optical_flow_model.model.feature_encoder.conv.weight")
    state |= {f"optical_flow_model.model.{key}": value for key, value in raft_large(weights=None).state_dict().items()}
    assert len(state) == 809
    report = import_upstream(state, net)
    assert (len(report.loaded), len(report.dropped)) == (640, 169)
