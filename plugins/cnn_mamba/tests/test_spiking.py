"""Spiking networks: they fire, remember nothing by accident, stream, and see spikes where they should."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

from medvid_cnn_mamba.config import CNNSNNConfig, SNNConfig
from medvid_cnn_mamba.network import build_cnn_snn, build_snn
from medvid_cnn_mamba.network.spiking import LIF, spike_rates
from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec

pytest.importorskip("spikingjelly", reason="spiking networks need the extra medvid-cnn-mamba[snn]")

TINY = {"widths": (8, 16), "width": 16}
TASKS = (
    OutputSpec(name="view", task="classification", classes=("a", "b", "c")),
    OutputSpec(name="signs", task="multilabel", classes=("a", "b")),
    OutputSpec(name="phase", task="frame_classification", classes=("a", "b", "c")),
    OutputSpec(name="ef", task="regression", classes=("ef",), center=(55.6,), scale=(12.2,)),
    OutputSpec(name="grade", task="ordinal", classes=("0", "1", "2", "3")),
    OutputSpec(name="odd", task="anomaly", classes=("odd",)),
)


def snn(outputs=TASKS, seed=0, **config):
    torch.manual_seed(seed)
    return build_snn(SNNConfig(**{**TINY, **config}), outputs)


def cnn_snn(outputs=TASKS, seed=0, **config):
    torch.manual_seed(seed)
    return build_cnn_snn(CNNSNNConfig(**{**TINY, "widths": (8, 16, 16), **config}), outputs)


BOTH = pytest.mark.parametrize("make", [snn, cnn_snn])


def batch_of(clips=2, frames=6, size=32, seed=1, dtype=torch.float32):
    video = torch.randn(clips, frames, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return {"video": video, "frame_real": torch.ones(clips, frames, dtype=torch.bool)}


def same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


@BOTH
def test_shapes_of_every_task(make):
    found = {name: tuple(value.shape) for name, value in make()(batch_of()).items()}
    assert found == {"view": (2, 3), "signs": (2, 2), "phase": (2, 6, 3), "ef": (2, 1), "grade": (2, 3), "odd": (2, 6)}


@BOTH
def test_meta_device(make):
    with torch.device("meta"):
        model = make()
        batch = {"video": torch.empty(1, 4, 3, 64, 48), "frame_real": torch.ones(1, 4, dtype=torch.bool)}
        assert model(batch)["phase"].shape == (1, 4, 3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "model",
    [
        lambda: snn(widths=(32, 64, 128), width=128),
        lambda: snn(widths=(16, 32, 64), width=64, depth=2),
        lambda: snn(widths=(32, 64), width=128, recurrent=False),
        lambda: cnn_snn(widths=(32, 64, 128), width=128),
        lambda: cnn_snn(widths=(16, 32, 64), width=64, depth=2, analog_stages=2),
    ],
)
@pytest.mark.parametrize("moving", [True, False])
def test_it_fires_before_any_training(model, training, moving):
    batch = batch_of(frames=8, size=64)
    if not moving:
        batch["video"] = batch["video"][:, :1].expand_as(batch["video"])
    net = model().train(training)
    rates = spike_rates(net, batch)
    assert set(rates) == {name for name, layer in net.named_modules() if isinstance(layer, LIF)}
    assert all(0.05 < rate < 0.3 for rate in rates.values()), rates


@BOTH
def test_it_fires_after_training_and_has_learnt(make):
    """Which of two patterns comes first: the set of frames is the same."""
    torch.manual_seed(0)
    patterns = torch.randn(2, 3, 16, 16)
    order = torch.tensor([0, 1] * 4)
    video = torch.stack([torch.stack([patterns[k]] * 3 + [patterns[1 - k]] * 3) for k in order])
    batch = {"video": video + 0.1 * torch.randn_like(video), "frame_real": torch.ones(8, 6, dtype=torch.bool)}
    model = make((OutputSpec(name="order", task="classification", classes=("ab", "ba")),))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(batch)["order"], order)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert (model.eval()(batch)["order"].argmax(1) == order).all()
    rates = spike_rates(model, batch)
    assert all(0.02 < rate < 0.5 for rate in rates.values()), rates


@BOTH
def test_nothing_is_remembered_between_batches(make):
    model = make().eval()
    first = model(batch_of())
    model(batch_of(clips=3, frames=2, size=48, seed=5))
    assert all(torch.equal(value, first[name]) for name, value in model(batch_of()).items())
    same(copy.deepcopy(model)(batch_of()), first, rtol=0, atol=0)


@BOTH
def test_every_parameter_gets_a_gradient(make):
    model = make()
    sum(value.square().sum() for value in model(batch_of()).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@BOTH
@settings(max_examples=8, deadline=None)
@given(pieces=st.lists(st.integers(1, 4), min_size=1, max_size=5), clips=st.integers(1, 2))
def test_a_stream_in_pieces_is_the_whole(make, pieces, clips):
    # float64, for a membrane right at its threshold fires or not with the last bit
    model = make().double().eval()
    batch = batch_of(clips, sum(pieces), dtype=torch.float64)
    whole, state, frames = model(batch), model.initial_state(clips), {"phase": [], "odd": []}
    for piece in batch["video"].split(pieces, 1):
        found, state = model.step({"video": piece}, state)
        for name, values in frames.items():
            values.append(found[name])
    same({**found, **{name: torch.cat(values, 1) for name, values in frames.items()}}, whole, rtol=0, atol=1e-9)


@BOTH
def test_a_stream_s_memory_does_not_grow(make):
    def sizes(state):
        return [tuple(x.shape) for x in tree_leaves(state)]

    model = make().eval()
    _, one = model.step(batch_of(frames=1), model.initial_state(2))
    _, many = model.step(batch_of(frames=9), one)
    assert sizes(one) == sizes(many)


@BOTH
def test_a_frame_changes_none_before_it(make):
    model = make().double().eval()
    batch = batch_of(dtype=torch.float64)
    before = model(batch)
    batch["video"][:, 3] += 1
    after = model(batch)
    for name in ("phase", "odd"):
        assert torch.equal(before[name][:, :3], after[name][:, :3])
        assert not torch.equal(before[name][:, 3:], after[name][:, 3:])


@BOTH
def test_what_is_no_frame_changes_nothing(make):
    model = make().double().eval()
    short = batch_of(frames=4, dtype=torch.float64)
    padded = {name: torch.cat([x, x], 1) for name, x in short.items()}
    padded["video"][:, 4:] = 1e3
    padded["frame_real"][:, 4:] = False
    found = {name: value[:, :4] if name in ("phase", "odd") else value for name, value in model(padded).items()}
    same(found, model(short), rtol=0, atol=1e-9)
    assert spike_rates(model, padded) == pytest.approx(spike_rates(model, short))


@BOTH
def test_all_layers_but_the_first_see_spikes(make):
    from medvid_core.engine.operations import operations

    model = make()
    body = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and "stem" not in name]
    found = operations(model, batch_of())
    assert set(found.spike_rates) == {*body[1:], "last.recurrent"}
    assert all(rate > 0.02 for rate in found.spike_rates.values())
    assert found.acs > 0


def test_neurons_are_spikingjelly_s_own():
    from spikingjelly.activation_based import functional, neuron, surrogate

    torch.manual_seed(0)
    ours, x = LIF(tau=3.0), torch.randn(7, 2, 5, requires_grad=True)
    node = neuron.LIFNode(3.0, False, 1.0, 0.0, surrogate.ATan(), detach_reset=True, step_mode="m")
    for _ in range(2):
        functional.reset_net(node)
        theirs = node(x)
    spikes, voltage = ours(x)
    assert torch.equal(spikes, theirs)
    assert torch.equal(voltage, node.v)
    assert 0 < spikes.mean() < 1
    weights = torch.randn_like(spikes)
    (a,), (b,) = (torch.autograd.grad((s * weights).sum(), x, retain_graph=True) for s in (spikes, theirs))
    assert torch.equal(a, b)


def test_the_formula_of_the_neurons():
    x = torch.tensor([0.6, 0.6, 0.6, 0.6, 1.2, -1.0, 1.4])[:, None]
    spikes, voltage = LIF(tau=2.0)(x)
    # h: 0.6, 0.9, 1.05 (fires, reset), 0.6, 1.5 (fires, reset), -1, 0.9
    assert spikes[:, 0].tolist() == [0, 0, 1, 0, 1, 0, 0]
    assert voltage.item() == pytest.approx(0.9)


def test_readout_is_a_running_rate():
    model = snn(readout_tau=1.0)
    spikes = (torch.rand(5, 2, 16) < 0.5).float()
    assert torch.equal(model.readout(spikes, None)[0], spikes)
    model.readout.tau = 2.0
    assert model.readout(torch.ones(3, 1, 1), None)[0].flatten().tolist() == [0.5, 0.75, 0.875]


def test_rates_of_a_network_without_neurons():
    model = nn.Linear(2, 2)
    model.forward = lambda batch: {}
    assert spike_rates(model, batch_of()) == {}


def test_recurrence_and_stem_take_effect():
    assert snn(recurrent=False).last.recurrent is None
    assert len(snn(depth=2).body) == 4
    assert len(cnn_snn(analog_stages=2).body) == 1
    assert [type(layer) for layer in cnn_snn(depth=2).stem] == 2 * [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


def test_without_spikingjelly(monkeypatch):
    """Type: pip install "medvid-cnn-mamba[snn]"."""
    wanted = test_without_spikingjelly.__doc__.rstrip(".")
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based", None)
    with pytest.raises(ConfigError) as error:
        snn()
    assert str(error.value).startswith("Spiking networks need spikingjelly 2.0 or later")
    assert str(error.value).endswith(wanted)
    older = types.ModuleType("spikingjelly.activation_based")
    older.functional, older.surrogate = types.SimpleNamespace(), types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based", older)
    with pytest.raises(ConfigError, match="an older one is here"):
        snn()


@pytest.mark.parametrize(
    ("settings_", "text"),
    [
        ({"widths": ()}, "model.widths=() cannot be used: it must be numbers of at least 1."),
        ({"widths": (8, 0)}, "model.widths=(8, 0) cannot be used: it must be numbers of at least 1."),
        ({"depth": 0}, "model.depth=0 cannot be used: it must be at least 1."),
        ({"width": 0}, "model.width=0 cannot be used: it must be at least 1."),
        ({"tau": 1.0}, "model.tau=1.0 cannot be used: it must be above 1."),
        ({"readout_tau": 0.5}, "model.readout_tau=0.5 cannot be used: it must be at least 1."),
        ({"dropout": 1.0}, "model.dropout=1.0 cannot be used: it must be from 0 to below 1."),
    ],
)
def test_settings_that_cannot_be_used(settings_, text):
    for config in (SNNConfig, CNNSNNConfig):
        with pytest.raises(ConfigError) as error:
            config(**settings_)
        assert str(error.value) == text


@pytest.mark.parametrize("stages", [0, 4])
def test_analog_stages_leave_some_that_spike(stages):
    with pytest.raises(ConfigError, match=r"at least 1 and below the number of stages, 4 \(model\.widths\)"):
        CNNSNNConfig(analog_stages=stages)
