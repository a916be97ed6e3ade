"""What a model costs is counted by formulas one can check, and measured on a clip of its own data."""

import math
import subprocess
import types

import pytest
import torch
from torch import nn

from medvid_core import load_model
from medvid_core.engine import cost
from medvid_core.engine.cost import (
    CostSettings,
    measure_cost,
    memory_of_child,
    own_sample,
    throughput,
    timed,
)
from medvid_core.engine.operations import operations
from medvid_core.errors import ConfigError
from medvid_core.ops import MambaMixer

QUICK = CostSettings(warmup=1, runs=2, seconds=0.05, idle_seconds=0.0, batch_sizes=(1, 2))
CPU = torch.device("cpu")
B, T, D = 2, 7, 16


class OfVideo(nn.Module):
    """Applies a module to ``video``."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        return {"y": self.module(batch["video"])}


def flops(module, shape=(B, T, D)):
    return operations(OfVideo(module).eval(), {"video": torch.randn(shape)}).executed


def test_convolutions_and_matrix_products_are_counted():
    """2 x out pixels x out channels x in channels x kernel."""
    assert flops(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 12)) == 2 * 10 * 12 * 8 * 3 * 9
    assert flops(nn.Linear(D, 5)) == 2 * B * T * D * 5


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
@pytest.mark.parametrize("extra", [{}, {"bidirectional": True, "num_layers": 2}])
def test_recurrent_layers_are_counted_once(kind, gates, extra):
    """PyTorch's counter sees all, some or nothing of them; the formula is that of the weights."""
    hidden = 8
    one = 2 * B * T * gates * (D * hidden + hidden * hidden)
    second = 2 * B * T * gates * (2 * hidden * hidden + hidden * hidden)
    expected = 2 * one + 2 * second if extra else one
    module = nn.Sequential(kind(D, hidden, batch_first=True, **extra), _First(), nn.Linear(16 if extra else 8, 3))
    assert flops(module) == expected + 2 * B * T * (16 if extra else 8) * 3


class _First(nn.Module):
    def forward(self, pair):
        return pair[0]


def test_packed_sequences_count_what_they_hold():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(D, 8, batch_first=True)

        def forward(self, video):
            return self.gru(nn.utils.rnn.pack_padded_sequence(video, torch.tensor([7, 3]), batch_first=True))[1]

    assert flops(Packed()) == 2 * (7 + 3) * 3 * (D * 8 + 8 * 8)


def test_transformers_are_counted_though_their_kernel_is_fused():
    """Projections, attention and feed-forward of one layer; the fused path is open again afterwards."""
    layer = nn.TransformerEncoderLayer(D, 2, 32, batch_first=True)
    tokens = B * T
    projections, attention, forward = 2 * tokens * D * 4 * D, 2 * 2 * B * T * T * D, 2 * 2 * tokens * D * 32
    assert flops(layer) == projections + attention + forward
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(AssertionError):  # PyTorch's own
        flops(layer, (B, T, D + 1))
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_scan_is_counted():
    """A Mamba mixer costs more than its matrix products: the counter knows our operator."""
    mixer = MambaMixer(D)
    tokens = B * T
    products = sum(2 * tokens * m.weight.numel() for m in mixer.modules() if isinstance(m, nn.Linear))
    assert flops(mixer) > products


def test_calls_are_bounded_by_number_or_time():
    """As many as asked for, or as begin within the time; never none."""
    calls = []
    assert len(timed(lambda: calls.append(1), warmup=3, runs=5, seconds=60)) == 5
    assert len(calls) == 8
    assert len(timed(lambda: calls.append(1), warmup=3, runs=5, seconds=0)) == 1


def pauses(batch_seconds, out_of_memory_at=math.inf):
    """A model whose clock says how long a batch takes."""

    def forward(batch):
        size = len(batch["video"])
        if size >= out_of_memory_at:
            raise torch.OutOfMemoryError
        forward.now += batch_seconds[size]
        forward.sizes.append(size)

    forward.now, forward.sizes = 0.0, []
    return forward


@pytest.fixture
def sample():
    empty = {"targets": {}, "targets_present": {}, "frame_targets": {}, "frame_targets_present": {}}
    return {"video": torch.zeros(1, 1, 2, 2), **empty}


def best_of(model, sample, monkeypatch, clip_mib=1.0, free=100.0):
    monkeypatch.setattr(cost, "time", types.SimpleNamespace(perf_counter=lambda: model.now))
    monkeypatch.setattr(cost, "_free_mib", lambda device: free)
    settings = CostSettings(runs=3, seconds=1e9, batch_sizes=(1, 2, 4, 8))
    return throughput(model, sample, CPU, settings, clip_mib)


def test_throughput_is_that_of_the_best_batch(sample, monkeypatch):
    """Two clips in 1.5 s are the best; after four in 4 s no larger batch is tried."""
    model = pauses({1: 1.0, 2: 1.5, 4: 4.0, 8: 1.0})
    assert best_of(model, sample, monkeypatch) == (2, pytest.approx(4 / 3))
    assert 8 not in model.sizes


def test_batches_that_do_not_fit_are_not_tried(sample, monkeypatch):
    """More than half of the free memory, or unknown memory, or a card that says no."""
    each = dict.fromkeys((1, 2, 4, 8), 1.0)
    assert best_of(pauses(each), sample, monkeypatch)[0] == 8
    assert best_of(pauses(each), sample, monkeypatch, clip_mib=20.0)[0] == 2
    assert best_of(pauses(each), sample, monkeypatch, clip_mib=None)[0] == 1
    assert best_of(pauses(each, out_of_memory_at=4), sample, monkeypatch)[0] == 2


def test_cost_of_a_run_on_its_own_data(tiny_run):
    """Everything the table shows, from the run directory alone."""
    found = measure_cost(tiny_run, CPU, QUICK, load_average=0.3)
    model = load_model(tiny_run)
    assert found.parameters == sum(p.numel() for p in model.parameters()) == found.trained_parameters
    assert (found.frames, found.size) == (3, (32, 32))
    batch = {"video": torch.zeros(1, 3, 3, 32, 32)}
    assert found.gflop_per_clip * 1e9 == pytest.approx(operations(model, batch).executed)
    assert found.gflop_per_frame == pytest.approx(found.gflop_per_clip / 3)
    assert 0 < found.latency_min_s <= found.latency_s <= found.latency_p95_s
    assert found.best_batch in QUICK.batch_sizes
    assert found.clips_per_s > 0
    assert found.precision == "float32"
    assert found.versions["torch"] == torch.__version__
    assert found.load_average == 0.3
    assert found.memory.process > found.memory.model_and_clip
    assert (found.energy.joules_per_call is None) == found.energy.source.startswith("n/a on this machine: ")


def test_a_process_that_fails_leaves_no_figure(tmp_path, monkeypatch):
    """The reason takes the figure's place."""
    done = subprocess.CompletedProcess([], -9, stdout="", stderr="…\nKilled\n")
    monkeypatch.setattr(cost.subprocess, "run", lambda words, **options: done)
    assert memory_of_child(tmp_path) == cost.Memory(None, note="the process that measured it ended with -9: Killed")


def test_a_run_whose_configuration_is_gone_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.yaml does not exist"):
        own_sample(tmp_path)
