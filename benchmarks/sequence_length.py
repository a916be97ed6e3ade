"""Time a sequence of frame features takes, against its length: Mamba beside a GRU and a Transformer.

Run from the repository: ``python benchmarks/sequence_length.py > benchmarks/results/sequence_length.md``. Beside the
table it draws ``sequence_length.svg`` into the same folder.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measuring import interleaved, machine, table, verdict
from torch import Tensor, nn

from medvid_cnn_mamba.network.temporal import GRUStack, MambaStack, TransformerStack
from medvid_core.engine.operations import operations

WIDTH, LAYERS = 256, 4
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
QUICK = (8, 16)
CROSSING = 512
"""From so many frames on Mamba has to be quicker than the Transformer."""

NOTES = """
Features of frames [1,T,256] through 4 layers, causal Mamba (state 16), GRU of 256, Transformer of 8 heads and a
feed-forward of 512 that sees all frames; float32, batch 1. *forward* is without gradients, *training* is forward and
backward. Calls take turns; medians. The image network in front of it is left out: it is the same for all, linear in the
number of frames, and most of the work (11 GFLOP for 32 frames of 112x112 with convnextv2_atto).
"""


def networks() -> dict[str, nn.Module]:
    """The three, freshly initialised."""
    torch.manual_seed(0)
    return {
        "Mamba": MambaStack(WIDTH, LAYERS),
        "GRU": GRUStack(WIDTH, LAYERS),
        "Transformer": TransformerStack(WIDTH, LAYERS),
    }


def _forward(network: nn.Module, x: Tensor, real: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            network.eval()(x, real)

    return run


def _training(network: nn.Module, x: Tensor, real: Tensor) -> Callable[[], None]:
    def run() -> None:
        network.train()(x, real).sum().backward()
        network.zero_grad(set_to_none=True)

    return run


def measure(length: int, device: torch.device, repeats: int) -> dict[tuple[str, str], float]:
    """Median seconds by network and kind."""
    x = torch.randn(1, length, WIDTH, device=device)
    real = torch.ones(1, length, dtype=torch.bool, device=device)
    runs = {}
    for name, network in networks().items():
        network.to(device)
        runs[name, "forward"] = _forward(network, x, real)
        runs[name, "training"] = _training(network, x, real)
    for run in runs.values():
        run()
        run()
    times = interleaved(runs, dict.fromkeys(runs, repeats), device)
    return {key: statistics.median(found) for key, found in times.items()}


class _Alone(nn.Module):
    """A sequence network that takes a batch, as `operations` gives it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": self.network(batch["x"], batch["real"])}


def gflops(length: int) -> dict[str, float]:
    """Operations of one forward pass."""
    batch = {"x": torch.randn(1, length, WIDTH), "real": torch.ones(1, length, dtype=torch.bool)}
    return {name: operations(_Alone(network).eval(), batch).flops / 1e9 for name, network in networks().items()}


def draw(lengths: Sequence[int], found: dict[int, dict[tuple[str, str], float]], path: Path) -> None:
    """Draw time against length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for place, kind in enumerate(("forward", "training")):
        axes = figure.add_subplot(1, 2, place + 1)
        for name, marker in zip(("Mamba", "GRU", "Transformer"), "o^s", strict=True):
            axes.plot(lengths, [1e3 * found[length][name, kind] for length in lengths], marker=marker, label=name)
        axes.set(xscale="log", yscale="log", xlabel="frames", ylabel="ms", title=kind)
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="toy lengths, for the tests")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plot", type=Path, default=Path(__file__).with_name("results") / "sequence_length.svg")
    arguments = parser.parse_args(words)
    device = torch.device(arguments.device)
    lengths = QUICK if arguments.quick else LENGTHS
    print(f"# Cost against length\n\n{machine(device)}\n")
    found = {length: measure(length, device, 3 if arguments.quick else 9) for length in lengths}
    for kind in ("forward", "training"):
        print(f"## {kind}\n")
        head = ["frames", "Mamba, ms", "GRU, ms", "Transformer, ms", "GRU / Mamba", "Transformer / Mamba"]
        rows = []
        for length in lengths:
            ours, gru, attention = (found[length][name, kind] for name in ("Mamba", "GRU", "Transformer"))
            rows.append(
                [
                    str(length),
                    *(f"{1e3 * x:.2f}" for x in (ours, gru, attention)),
                    *(f"{x / ours:.2f}" for x in (gru, attention)),
                ]
            )
        print(table(head, rows), "\n")
    print("## Operations, forward\n")
    counted = {length: gflops(length) for length in lengths if length <= 1024}
    rows = [[str(length), *(f"{value:.3f}" for value in row.values())] for length, row in counted.items()]
    print(table(["frames", "Mamba, GFLOP", "GRU, GFLOP", "Transformer, GFLOP"], rows), "\n")
    for length in lengths:
        if length >= CROSSING:
            for kind in ("forward", "training"):
                ratio = found[length]["Transformer", kind] / found[length]["Mamba", kind]
                print(verdict(f"{kind} of {length} frames quicker than the Transformer", ratio > 1, f"{ratio:.2f} ×"))
    print(NOTES)
    if not arguments.quick:
        draw(lengths, found, arguments.plot)


if __name__ == "__main__":
    main()
