"""Operation counts: by hand, for layers that see spikes and layers that do not, whatever computes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medvid_core.engine.operations import ENERGY_CAVEAT, Operations, estimated_energy_j, operations
from medvid_core.ops import BidirectionalMixer, MambaMixer
from medvid_core.ops.backends import BACKENDS, absence


class Model(nn.Module):
    """One layer, or a function of the batch's x."""

    def __init__(self, layer, call=None):
        super().__init__()
        self.layer = layer
        self.call = call or layer

    def forward(self, batch):
        return {"y": self.call(batch["x"])}


def count(layer, x, call=None):
    return operations(Model(layer, call), {"x": x})


def spikes(*shape, rate=0.3):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < rate).float()


def test_layers_that_see_numbers():
    linear = count(nn.Linear(5, 7), torch.randn(2, 3, 5))
    assert linear == Operations(2 * 3 * 5 * 7, 0, {})
    conv = count(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), torch.randn(2, 4, 8, 8))
    assert conv == Operations(2 * 4 * 4 * 6 * 2 * 9, 0, {})
    assert conv.flops == 2 * conv.macs


def test_spikes_into_a_linear_layer_cost_one_addition_for_each_neuron_they_reach():
    x = spikes(4, 5)
    assert count(nn.Linear(5, 7), x) == Operations(0, 7 * int(x.sum()), {"layer": pytest.approx(x.mean().item())})


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.ConvTranspose2d(4, 6, 2, stride=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, padding_mode="circular"),
    ],
)
def test_spikes_into_a_convolution_cost_what_they_reach(layer):
    """Those at the border reach less: the gradient of an input tells its fan-out where all weights are 1."""
    before = {name: x.clone() for name, x in layer.state_dict().items()}
    x = spikes(2, 4, 7, 7)
    found = count(layer, x)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    nn.init.ones_(layer.weight)
    x.requires_grad_()
    (fan_out,) = torch.autograd.grad(layer(x).sum(), x)
    assert found == Operations(0, int((fan_out * x).sum()), {"layer": pytest.approx(x.mean().item())})


def test_one_addition_for_each_spike_and_output_without_borders():
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1
    assert count(nn.Conv2d(1, 8, 3), x).acs == 9 * 8


@pytest.mark.parametrize(
    "spoil", [lambda x: nn.functional.avg_pool2d(x, 2), lambda x: x + x, lambda x: 2 * x, lambda x: x - 0.1]
)
def test_what_is_not_binary_is_multiplied(spoil):
    layer, x = nn.Conv2d(2, 3, 1), spikes(1, 2, 8, 8)
    kept = count(layer, x, lambda x: layer(nn.functional.max_pool2d(x, 2)))
    assert (kept.macs, kept.acs > 0) == (0, True)
    found = count(layer, x, lambda x: layer(spoil(x)))
    assert (found.acs, found.spike_rates) == (0, {})
    assert found.macs == spoil(x).shape[-1] ** 2 * 2 * 3


def test_a_layer_is_spiking_only_if_all_its_calls_are():
    layer, x = nn.Linear(4, 4), spikes(1, 4, rate=0.6)
    both = count(layer, x, lambda x: layer(x) + layer(0 * x))  # a recurrent layer sees nothing at first
    assert both == Operations(0, 4 * int(x.sum()), {"layer": pytest.approx(x.mean().item() / 2)})
    assert count(layer, x, lambda x: layer(layer(x))) == Operations(2 * 16, 0, {})


def test_a_network_that_never_fires_does_not_look_frugal():
    found = count(nn.Linear(4, 5), torch.zeros(3, 4))
    assert found == Operations(3 * 4 * 5, 0, {"layer": 0.0})


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in ("reference", "torch", "cpu")])
@pytest.mark.parametrize("mixer", [MambaMixer, BidirectionalMixer])
def test_scans_are_counted_whatever_computes_them(backend, mixer):
    if absence(backend) is not None:
        pytest.skip(f"scan backend {backend} is not here: {absence(backend)}")
    width, inner, states, rank, kernel = 32, 64, 16, 2, 4
    layer = mixer(width, d_state=states, scan_backend=backend)
    branches = len(mixer.branches)
    # reference/cnn_mamba.md 4.3: 2 d (2 di) + 2 k di + 2 di (r + 2N) + 2 r di + 9 di N + 2 di d a token
    branch = 2 * kernel * inner + 2 * inner * (rank + 2 * states) + 2 * rank * inner + 9 * inner * states
    token = 2 * width * 2 * inner + branches * branch + 2 * inner * width
    assert count(layer, torch.randn(2, 50, width)).flops == pytest.approx(100 * token, rel=0.01)


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("both", [False, True])
def test_recurrent_layers_by_formula(layer, both):
    gates = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[layer]
    net = layer(5, 7, 2, batch_first=True, bidirectional=both)
    ways = 1 + both
    weights = ways * gates * 7 * (5 + 7) + ways * gates * 7 * (7 * ways + 7)
    x = torch.randn(2, 9, 5)
    assert count(net, x).macs == 18 * weights
    packed = nn.utils.rnn.pack_padded_sequence(x, [9, 4], batch_first=True)
    assert count(net, x, lambda x: net(packed)).macs == 13 * weights


@pytest.mark.parametrize("training", [False, True])
def test_fused_attention_is_counted(training):
    width, tokens = 16, 9
    layer = nn.TransformerEncoderLayer(width, 4, 32, batch_first=True)
    net = Model(nn.TransformerEncoder(layer, 2)).train(training)
    each = tokens * (4 * width**2 + 2 * 32 * width) + 2 * tokens**2 * width
    before = torch.backends.mha.get_fastpath_enabled()
    assert operations(net, {"x": torch.randn(3, tokens, width)}).macs == 3 * 2 * each
    assert torch.backends.mha.get_fastpath_enabled() == before
    query = torch.randn(1, 2, tokens, 8)
    free = count(nn.Identity(), query, lambda q: nn.functional.scaled_dot_product_attention(q, q, q))
    assert free.macs == 2 * 2 * tokens**2 * 8


def test_input_given_by_name():
    layer = nn.Linear(4, 5)
    assert count(layer, torch.randn(3, 4), lambda x: layer(input=x)).macs == 60


def test_layers_that_hand_out_views_of_their_weights():
    """Such a view seems to have a gradient, though none is computed: the prompt encoder of SAM 2 gives its table so."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((1, 4), 0.5))

        def forward(self, x):
            return self.weight.expand(len(x), -1)

    table, linear = Table(), nn.Linear(4, 2)
    both = nn.ModuleList([table, linear])
    assert count(both, torch.ones(3, 1), lambda x: linear(table(x))).macs == 3 * 4 * 2
    assert all(parameter.requires_grad for parameter in both.parameters())


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model = Model(net).train()
    net[1].eval()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    assert operations(model, {"x": torch.randn(3, 4)}).macs == 48
    assert [module.training for module in (model, net, *net)] == [True, True, True, False, True]
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(RuntimeError):
        operations(model, {"x": torch.randn(3, 5)})
    assert net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_energy_is_an_estimate_and_says_so():
    # reference/cnn_mamba.md 4.4, the worked example: 64.2 M MAC and 0.52 M AC are 295.8 µJ
    assert estimated_energy_j(Operations(64_200_000, 520_000, {})) == pytest.approx(295.8e-6, rel=1e-3)
    assert estimated_energy_j(Operations(7_600_000, 12_600_000, {})) == pytest.approx(46.2e-6, rel=5e-3)
    for words in ("not measured", "45 nm", "Memory traffic", "about 6 %", "2409.08290", "save nothing"):
        assert words in ENERGY_CAVEAT
