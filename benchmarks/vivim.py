"""Time the whole of Vivim, ours beside the network as published with its reference scan, and print Markdown.

Run from the repository: ``python benchmarks/vivim.py > benchmarks/results/vivim.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import forget_peak, in_child, machine, peak, table, verdict
from plain import Meter, PlainVivim, Scan, no_scan, step_by_step
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from medvid_core import create_model
from medvid_core.ops.backends import absence, choose_backend
from medvid_core.ops.scan_op import scan_flops
from medvid_core.specs import OutputSpec
from medvid_vivim.config import VivimConfig
from medvid_vivim.network import build
from medvid_vivim.plugin import medvid_models

VARIANTS = {"plain": "as published", "ours": "ours"}
MODES = {"forward": "evaluation, forward", "step": "training step"}
BASELINE = "unet"
"""What Vivim's speed is put beside: our U-Net, which takes each frame by itself."""

ROUNDS = {"plain": 1, "ours": 3, BASELINE: 3}

NOTES = """
*As published* is Vivim rebuilt in this benchmark from its description: three scans a mixer, each with its sequence laid
out in memory and computed step by step (`selective_scan_ref`), explicit attention, and a decoder that fuses all stages
at full resolution. Both have the same parameters and input, drop path and dropout are off. With gradients the steps of
its scan are unbound at once: as published, with an index at each step, the backward pass is quadratic in the length and
does not finish. A training step is forward, cross-entropy, backward; no optimiser.

Frames per second are those of one clip at a time in evaluation, from memory, in float32; on a GPU the clock is read
when it has finished. Where every frame of a clip is used (`clip.blend=mean`) there are as many as the clip has; where
the centre alone is (`clip.blend=centre`, as the original evaluates), one. The U-Net takes each frame by itself.

Each row is a process of its own, warmed up on a small clip; of ours, the median of three. CPU seconds are those of all
threads; on a busy machine they include threads that wait for each other. Peak memory is that of the whole process, with
Python, PyTorch, weights and their gradients.
"""


def settings(preset: str) -> tuple[VivimConfig, tuple[int, int, int]]:
    """Configuration of a preset without any randomness, and frames, height and width of its clip."""
    chosen = medvid_models()[0].presets[preset]
    model = {key.removeprefix("model."): value for key, value in chosen.items() if key.startswith("model.")}
    config = VivimConfig(**{**model, "encoder_drop_path": 0.0, "mamba_drop_path": 0.0, "decoder_dropout": 0.0})
    return config, (chosen["clip.frames"], *chosen["clip.size"])


def network(variant: str, config: VivimConfig, meter: Meter, scan: Scan) -> nn.Module:
    """One of `VARIANTS`, with the same weights, or the `BASELINE`, on the default device.

    `meter` gets the parts of each forward pass; `scan` is that of the network as published.
    """
    torch.manual_seed(0)
    output = OutputSpec(name="mask", task="segmentation", classes=("object",))
    if variant == BASELINE:
        return create_model(BASELINE, outputs=(output,), preset="full")
    ours = build(config, (output,))
    if variant == "plain":
        return PlainVivim(ours, scan, meter)
    for name, module in parts(ours):
        meter.watch(name, module)
    return ours


def published_scan(device: torch.device) -> Scan:
    """mamba-ssm's kernel where it runs, its reference elsewhere."""
    if device.type == "cuda" and absence("mamba_ssm") is None:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        return selective_scan_fn
    return step_by_step


def parts(ours: Any) -> list[tuple[str, nn.Module]]:
    """The modules of each part, under the names that `PlainVivim` gives them."""
    found: list[tuple[str, nn.Module]] = []
    segformer = ours.encoder.downsample_layers
    for index, layers in enumerate(ours.encoder.stages):
        stage = f"stage {index + 1}"
        frame_wise = (segformer.patch_embeddings[index], *segformer.block[index])
        found += [(f"SegFormer, {stage}", module) for module in frame_wise]
        for (layer,) in layers:
            found += [(f"mixers, {stage}", module) for module in (layer.norm1, layer.mamba)]
            found += [(f"detail FFN, {stage}", module) for module in (layer.norm2, layer.mlp)]
    return [*found, ("decoder and head", ours.decoder), ("decoder and head", ours.out)]


def clip(frames: int, height: int, width: int) -> tuple[dict[str, Tensor], Tensor]:
    """A random clip and mask on the default device."""
    make = torch.Generator().manual_seed(1)
    device = torch.get_default_device()
    video = torch.randn(1, frames, 3, height, width, generator=make, device="cpu")
    mask = torch.rand(1, frames, 1, height, width, generator=make, device="cpu") > 0.5
    return {"video": video.to(device)}, mask.float().to(device)


def forward(model: nn.Module, size: tuple[int, int, int]) -> dict[str, Tensor]:
    """Logits in evaluation."""
    with torch.no_grad():
        return {"logits": model.eval()(clip(*size)[0])["mask"]}


def step(model: nn.Module, size: tuple[int, int, int]) -> dict[str, Tensor]:
    """Loss and gradients of a training step."""
    batch, mask = clip(*size)
    model.train().zero_grad()
    loss = F.binary_cross_entropy_with_logits(model(batch)["mask"], mask)
    loss.backward()
    gradients = {name.removeprefix("network."): p.grad for name, p in model.named_parameters()}
    return {"loss": loss.detach(), **{name: grad for name, grad in gradients.items() if grad is not None}}


RUNS = {"forward": forward, "step": step}


def measure(variant: str, mode: str, preset: str, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Seconds, peak memory in MiB and CPU seconds of each part; and what was computed."""
    config, size = settings(preset)
    meter = Meter(time.process_time)
    with device:
        model = network(variant, config, meter, published_scan(device))
        run = RUNS[mode]
        run(model, (2, min(64, size[1]), min(64, size[2])))
        meter.found.clear()
        forget_peak(device)
        cpu, wall = [], []
        for _ in range(ROUNDS[variant]):
            wait_for(device)
            result: dict[str, Tensor] = {}  # that of the round before must not count
            before = time.process_time(), time.perf_counter()
            result = run(model, size)
            wait_for(device)
            cpu.append(time.process_time() - before[0])
            wall.append(time.perf_counter() - before[1])
    shares = {name: value / ROUNDS[variant] for name, value in meter.found.items()}
    found = {"cpu": statistics.median(cpu), "wall": statistics.median(wall), "peak": peak(device), "parts": shares}
    return found, {name: x.cpu() for name, x in result.items()}


def wait_for(device: torch.device) -> None:
    """Let a GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measured_in_child(
    variant: str, mode: str, preset: str, device: torch.device
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """`measure` in a process of its own; None where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.pt"
        words = ("--preset", preset, "--device", str(device), "--measure", f"{variant},{mode}", "--save", str(path))
        found = in_child(__file__, *words)
        return None if found is None else (found, torch.load(path))


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """L2 norm of the difference of two results, all tensors together, over that of `wanted`."""
    difference = sum(float((found[name].double() - x).square().sum()) for name, x in wanted.items())
    return (difference / sum(float(x.double().square().sum()) for x in wanted.values())) ** 0.5


def difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """How far two results are apart, in words."""
    if "logits" in wanted:
        largest = (found["logits"] - wanted["logits"]).abs().max()
        return f"logits differ by at most {largest:.1e}, the largest is {wanted['logits'].abs().max():.2g}"
    loss = (found["loss"] - wanted.pop("loss")).abs()
    return f"loss differs by {loss:.1e}, all gradients together by {apart(found, wanted):.1e} of their norm"


def flops(variant: str, preset: str) -> dict[str, float]:
    """Operations of each part of a forward pass outside the scans, 2 for a multiply-add."""
    counter = FlopCounterMode(display=False)

    def counted() -> float:
        found = counter.get_flop_counts().get("Global", {})
        return sum(n for operator, n in found.items() if "selective_scan" not in str(operator))

    config, size = settings(preset)
    meter = Meter(counted)
    model = network(variant, config, meter, no_scan)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:  # shapes alone
        forward(model, size)
    return {**meter.found, "whole network": counted()}


def in_scans(preset: str) -> int:
    """Operations of the scans, the same for both variants."""
    config, (frames, height, width) = settings(preset)
    total = 0
    for stage, (channels, depth) in enumerate(zip(config.stage_widths, config.mamba_depths, strict=True)):
        tokens = frames * -(-height // 2 ** (stage + 2)) * -(-width // 2 ** (stage + 2))
        total += 3 * depth * scan_flops((config.expansion * channels, tokens), config.state_size)
    return total


def report_parts(preset: str, seconds: dict[str, dict[str, float]]) -> str:
    """Table of operations and CPU seconds of each part of the forward pass in evaluation."""
    counts = {variant: flops(variant, preset) for variant in VARIANTS}
    lines = []
    for name in counts["plain"]:
        cells = [f"{counts[variant].get(name, 0) / 1e9:.2f}" for variant in VARIANTS]
        times = [seconds.get(variant, {}).get(name) for variant in VARIANTS]
        lines.append([name, *cells, *("–" if s is None else f"{s:.2f}" for s in times)])
    head = ["part", *(f"GFLOP, {v}" for v in VARIANTS.values()), *(f"CPU s, {v}" for v in VARIANTS.values())]
    return (
        f"Operations outside the scans (2 for a multiply-add); the scans, in the time but not in the count, are "
        f"{in_scans(preset) / 1e9:.2f} GFLOP in both.\n\n{table(head, lines)}"
    )


def report_rates(seconds: dict[str, float], frames: int) -> str:
    """Table of frames per second, from the seconds of one clip of so many frames."""
    lines = []
    for name, wall in seconds.items():
        centre = "–" if name == BASELINE else f"{1 / wall:.2f}"
        lines.append([name, f"{frames / wall:.2f}", centre])
    return table(["", "frames/s, all of a clip", "frames/s, its centre alone"], lines)


def ratio(found: dict[tuple[str, str], dict[str, Any]], mode: str, key: str) -> float | None:
    """As published over ours."""
    pair = [found.get((variant, mode)) for variant in VARIANTS]
    return None if None in pair else pair[0][key] / pair[1][key]


def verdicts(found: dict[tuple[str, str], dict[str, Any]], device: torch.device, memory: bool) -> list[str]:
    """The targets."""
    if device.type == "cuda":
        wanted = [(f"{title} faster than as published", mode, "wall", 1) for mode, title in MODES.items()]
    else:
        wanted = [
            ("forward in at most 1/6 of the CPU seconds", "forward", "cpu", 6),
            ("training step in at most 1/8 of the CPU seconds", "step", "cpu", 8),
            *([("training step in at most 1/3 of the peak memory", "step", "peak", 3)] if memory else []),
        ]
    lines = []
    for what, mode, key, least in wanted:
        value = ratio(found, mode, key)
        lines.append(verdict(what, None, "–") if value is None else verdict(what, value >= least, f"1/{value:.2f}"))
    return lines


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options.add_argument("--preset", choices=tuple(medvid_models()[0].presets), default="full")
    options.add_argument("--no-memory", action="store_true", help="measure in this process and leave peak memory out")
    options.add_argument("--measure", metavar="VARIANT,MODE", help="print one measurement as JSON and end")
    options.add_argument("--save", type=Path, metavar="FILE", help="with --measure: where the results go")
    return options


def main(words: list[str] | None = None) -> int:
    args = parser().parse_args(words)
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser().error("there is no GPU that PyTorch can use")
    if args.measure:
        found, result = measure(*args.measure.split(","), args.preset, args.device)
        torch.save(result, args.save)
        print(json.dumps(found))
        return 0
    config, size = settings(args.preset)
    backend = choose_backend(config.scan_backend, args.device).name
    print(f"# Vivim, preset {args.preset}, {'x'.join(map(str, size))}, batch 1\n")
    print(f"{machine(args.device)} float32. Our scans are computed by backend `{backend}`.\n", flush=True)
    take = measure if args.no_memory else measured_in_child
    found, differences, lines = {}, [], []
    for mode, title in MODES.items():
        results = {}
        for variant, name in VARIANTS.items():
            taken = take(variant, mode, args.preset, args.device)
            if taken is None:
                lines.append([f"{title}, {name}", "failed", "–", "–"])
                continue
            row, results[variant] = taken
            found[variant, mode] = row
            memory = "–" if args.no_memory else f"{row['peak']:.0f}"
            lines.append([f"{title}, {name}", f"{row['cpu']:.2f}", f"{row['wall']:.2f}", memory])
        values = [ratio(found, mode, key) for key in ("cpu", "wall", "peak")]
        shown = ["–" if value is None else f"{value:.1f}" for value in values]
        lines.append([f"{title}, as published / ours", *shown[:2], "–" if args.no_memory else shown[2]])
        if len(results) == 2:
            differences.append(f"- {title}: {difference(results['ours'], results['plain'])}")
    print(table(["", "CPU s", "wall s", "peak memory, MiB"], lines))
    print("\nThe same is computed:\n\n" + "\n".join(differences) + "\n")
    if args.preset == "full":
        print("\n".join(verdicts(found, args.device, not args.no_memory)))
    else:
        print("The targets are for the full preset: nothing is said of them here.")
    walls = {name: found[key, "forward"]["wall"] for key, name in VARIANTS.items() if (key, "forward") in found}
    if baseline := take(BASELINE, "forward", args.preset, args.device):
        walls[BASELINE] = baseline[0]["wall"]
    print(f"\n## Frames per second\n\nEvaluation, batch 1.\n\n{report_rates(walls, size[0])}")
    seconds = {variant: found[variant, "forward"]["parts"] for variant in VARIANTS if (variant, "forward") in found}
    print(f"\n## Parts of the forward pass\n\n{report_parts(args.preset, seconds)}")
    print(NOTES, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
