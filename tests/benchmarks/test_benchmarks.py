"""The benchmarks run, and what they compare computes the same. Nothing here looks at times."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from medvid_core.ops import SpatioTemporalMixer

FOLDER = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def benchmark_named(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_scan(benchmark_named, capsys):
    assert benchmark_named("scan").main(["--quick", "--rounds", "1", "--no-memory"]) == 0
    text = capsys.readouterr().out
    assert "| `reference` |" in text
    assert "selective_scan_ref" in text
    assert "WRONG" not in text


def test_scan_tells_a_wrong_row(benchmark_named, monkeypatch, capsys):
    scan = benchmark_named("scan")
    right = scan.step_by_step
    monkeypatch.setattr(scan, "step_by_step", lambda *inputs: 1.01 * right(*inputs))
    assert scan.main(["--quick", "--rounds", "1", "--no-memory"]) == 1
    assert "**WRONG: mamba-ssm `selective_scan_ref`" in capsys.readouterr().out


def test_extra_memory_grows_with_what_is_held(benchmark_named):
    scan = benchmark_named("scan")
    problem = scan.Problem(1, 256, 512, 16)
    here = torch.ones(10**8)  # a child's count must not begin at what its parent once had
    held = scan.memory_in_child(scan.REF, problem, CPU)
    del here
    assert held > 2 * problem.states * scan.unit(problem)  # decay and drive of every step and state


def test_vivim(benchmark_named, capsys):
    vivim = benchmark_named("vivim")
    results = {}
    for mode in vivim.MODES:
        for variant in vivim.VARIANTS:
            _, results[variant, mode] = vivim.measure(variant, mode, "tiny", CPU)
        plain, ours = results["plain", mode], results["ours", mode]
        assert plain.keys() == ours.keys()
        assert vivim.apart(ours, plain) < 1e-4
    assert vivim.main(["--preset", "tiny", "--no-memory"]) == 0
    text = capsys.readouterr().out
    assert "decoder and head" in text
    rates = text.partition("## Frames per second")[2].partition("## Parts")[0]
    assert [line.split(" | ")[0] for line in rates.splitlines() if line.startswith("| ")][2:] == [
        "| as published",
        "| ours",
        "| unet",
    ]


def test_frames_per_second(benchmark_named):
    """A clip of five frames in half a second; the centre of it alone; a U-Net has no centre."""
    lines = benchmark_named("vivim").report_rates({"ours": 0.5, "unet": 0.25}, 5).splitlines()
    assert lines[2:] == ["| ours | 10.00 | 2.00 |", "| unet | 20.00 | – |"]


def test_operations_of_vivim(benchmark_named):
    vivim = benchmark_named("vivim")
    plain, ours = (vivim.flops(variant, "tiny") for variant in vivim.VARIANTS)
    for counted in (plain, ours):
        whole = counted.pop("whole network")
        assert sum(counted.values()) == pytest.approx(whole, rel=1e-3)
    assert plain.keys() == ours.keys()
    assert ours["decoder and head"] < plain["decoder and head"]


def test_plain_mixer_with_given_chunks(benchmark_named):
    plain = benchmark_named("plain")
    mixer = SpatioTemporalMixer(8, d_state=4, frames=5)
    tokens = torch.randn(2, 30, 8)
    torch.testing.assert_close(plain.plain_mixer(mixer, tokens, 3), mixer(tokens, 3), rtol=1e-4, atol=1e-6)


def test_cost_against_length(benchmark_named, capsys):
    benchmark_named("sequence_length").main(["--quick", "--device", "cpu"])
    text = capsys.readouterr().out
    assert "## training" in text
    assert text.count("| 16 |") == 3  # forward, training, operations


@pytest.mark.slow
def test_the_questions_of_the_motion_phantom(benchmark_named, capsys, tmp_path):
    benchmark_named("questions").main(["--quick", "--questions", "order,progression", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "| order | accuracy |" in text
    assert "(carry-forward)" in text or "(trend)" in text


@pytest.mark.slow
def test_wirings_on_every_vendor(benchmark_named, capsys, tmp_path):
    benchmark_named("wirings").main(["--quick", "--variants", "paper;unet", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "## dice on new patients, trained on aster" in text
    for variant in ("paper", "unet"):
        assert len([line for line in text.splitlines() if line.startswith(f"| {variant} ")]) >= 2, variant


@pytest.mark.slow
def test_gait(benchmark_named, tmp_path, capsys):
    gait = benchmark_named("gait")
    gait.main(["--quick", "--cues", "static", "--out", str(tmp_path)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| {name}" for name in gait.VARIANTS]


def test_interval_of_accuracy_is_over_patients(benchmark_named):
    """A patient who is told right in all videos or in none: as many draws as there are patients, not videos."""
    gait = benchmark_named("gait")
    run = {"a": [1.0] * 50, "b": [0.0] * 50, "c": [1.0] * 50, "d": [0.0] * 50}
    mean, low, high = gait.interval([run, run], np.random.default_rng(0))
    assert (mean, low, high) == (0.5, 0.0, 1.0)


def test_cached_flow(benchmark_named, capsys):
    benchmark_named("cached_flow").main(["--quick", "--rounds", "1"])
    out = capsys.readouterr().out
    assert "| training step |" in out
    assert "| evaluation |" in out
