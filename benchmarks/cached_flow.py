"""What cached flow saves: steps and forward passes of the two-stream network, beside recomputing RAFT in every one.

Run from the repository: ``python benchmarks/cached_flow.py > benchmarks/results/cached_flow.md``. The network is the
paper's: slow-R50 twice, 17 frames of 224 x 224 pixels, one clip a step; flow is torchvision's RAFT (large, 12 updates),
as the original recomputes it in every step although its frames never change. Weights are random: time does not depend
on them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from measuring import interleaved, machine, table
from torch import Tensor
from torchvision.models.optical_flow import raft_large

from medvid_core import OutputSpec, create_model

OUTPUT = OutputSpec(name="diagnosis", task="classification", classes=("control", "deformity"))
TARGETS = {"training step": 1.4, "evaluation": 3.0}
"""On a CPU: how many times as fast as recomputing it shall be at least."""


def recomputed(raft: torch.nn.Module, pictures: Tensor) -> Tensor:
    """Return flow [B,T,2,H,W] between neighbouring frames of pictures [B,T,3,H,W] in -1..1; the last is 0."""
    with torch.no_grad():
        pairs = torch.stack([raft(clip[:-1], clip[1:])[-1] for clip in pictures])
    return F.pad(pairs, (0, 0, 0, 0, 0, 0, 0, 1))


def works(frames: int, side: int, device: torch.device) -> dict[tuple[str, str], Callable[[], Any]]:
    """Return what is timed: (mode, where flow comes from) → one step or pass."""
    torch.manual_seed(0)
    model = create_model("two-stream", outputs=(OUTPUT,), preset="full").to(device)
    raft = raft_large(weights=None).to(device).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    video = torch.rand(1, frames, 3, side, side, device=device) * 2 - 1
    batch = {"video": video, "frame_real": torch.ones(1, frames, dtype=torch.bool, device=device)}
    cached, label = (
        torch.randn(1, frames, 2, side, side, device=device),
        torch.zeros(1, dtype=torch.long, device=device),
    )

    def outputs(fresh: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = model({**batch, "flow": recomputed(raft, video) if fresh else cached})
        return found

    def step(fresh: bool) -> None:
        model.train()
        found = outputs(fresh)
        streams = [F.cross_entropy(value, label) for name, value in found.items() if "/" in name]
        torch.stack(streams).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def evaluate(fresh: bool) -> None:
        model.eval()
        with torch.inference_mode():
            outputs(fresh)

    return {
        (mode, source): lambda run=run, fresh=fresh: run(fresh)
        for mode, run in (("training step", step), ("evaluation", evaluate))
        for source, fresh in (("cached", False), ("recomputed", True))
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few small frames, for the tests")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(words)
    device = torch.device(arguments.device)
    frames, side = (3, 128) if arguments.quick else (17, 224)
    print(f"# Cached flow beside recomputed flow\n\n{machine(device)}\n")
    runs = works(frames, side, device)
    if device.type == "cuda":  # kernels are chosen in the first call
        for run in runs.values():
            run()
    times = interleaved(runs, dict.fromkeys(runs, arguments.rounds), device)
    rows = []
    for mode, target in TARGETS.items():
        cached, fresh = (statistics.median(times[mode, source]) for source in ("cached", "recomputed"))
        ratio = fresh / cached
        rows.append(
            [mode, f"{cached:.2f}", f"{fresh:.2f}", f"{ratio:.2f}", "yes" if ratio >= target else f"NO ({target})"]
        )
    print(table(["", "flow cached, s", "flow recomputed, s", "ratio", "as expected"], rows))
    print(f"\nMedian of {arguments.rounds} rounds, taking turns; one clip of {frames} frames, {side} x {side}.")


if __name__ == "__main__":
    main()
