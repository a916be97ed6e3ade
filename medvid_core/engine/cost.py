"""What a trained model costs: parameters, operations, time, memory and energy, on a clip of its own data.

Everything is measured on a clip as the model sees it in evaluation, already in memory: reading and decoding are the
data's cost, not the model's. A clip is one window of the model's clip length.

Operations are counted as the field counts them, a multiplication and an addition as two (2 x MAC): convolutions, matrix
products, attention, recurrent layers and the selective scan. Element-wise work is not counted.
"""

from __future__ import annotations

import contextlib
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medvid_core.config import compose
from medvid_core.data.clip import Batch, Sample
from medvid_core.data.loader import collate, load_sample, to_device
from medvid_core.data.preprocess import plan_preparation, plan_steps, streams_at_hand
from medvid_core.data.sampling import window
from medvid_core.engine.energy import Energy, measure, probe
from medvid_core.engine.operations import Operations, estimated_energy_j, operations
from medvid_core.engine.prepare import prepare
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import read_json
from medvid_core.engine.scoring import annotated_prompts
from medvid_core.engine.setup import accelerator, input_spec, open_dataset, scan_choice
from medvid_core.models import describe, load_model
from medvid_core.plugins import registry

MIB = 2**20
SLOWER = 0.9
"""Larger batches are no longer tried once one reaches only this share of the best throughput."""


@dataclass(frozen=True)
class CostSettings:
    """How long to measure.

    Attributes:
        warmup: calls before the first that counts.
        runs: timed calls.
        seconds: time after which fewer calls are enough; also that over which energy is measured.
        idle_seconds: time over which the idle device's energy is measured.
        batch_sizes: clips at once, for throughput; those that do not fit the memory are left out.
    """

    warmup: int = 10
    runs: int = 100
    seconds: float = 10.0
    idle_seconds: float = 10.0
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Memory:
    """Memory of a model at work on one clip, in MiB; None where it could not be measured.

    Attributes:
        model_and_clip: what the model and its computation take: on a GPU the most that was allocated at once; on a CPU
            the peak of a fresh process above what it held before the model was loaded.
        process: the peak of that whole process, libraries included; on a CPU only.
        note: why there is no figure.
    """

    model_and_clip: float | None
    process: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Estimate:
    """What a model would cost on hardware that gains from spikes: a model's number, not a measurement.

    `medvid_core.engine.operations.ENERGY_CAVEAT` belongs beside it.

    Attributes:
        macs: multiplications with addition of one clip.
        acs: additions caused by spikes.
        spike_rates: layer that sees spikes → share of its inputs that are 1.
        energy_j: joules.
    """

    macs: int
    acs: int
    spike_rates: dict[str, float]
    energy_j: float


@dataclass(frozen=True)
class Cost:
    """What a model costs, and under which circumstances that was found.

    Attributes:
        parameters: all of them.
        trained_parameters: those that training changed.
        gflop_per_clip: operations of one clip in 10⁹, two for a multiplication with an addition.
        gflop_per_frame: the same by frame that is predicted from it: all, or with ``clip.blend=centre`` one.
        latency_s: median seconds of one clip by itself.
        latency_p95_s: 95th percentile.
        latency_min_s: the fastest call: what a busy machine disturbs least.
        timed_calls: over so many.
        clips_per_s: throughput at the best batch size.
        best_batch: that batch size.
        memory: of one clip by itself.
        energy: measured, of one clip by itself.
        estimate: by published energies of single operations; apart from all that is measured.
        frames: frames of a clip.
        size: height and width of a frame in pixels.
        device: what computed, in words.
        threads: PyTorch's threads.
        precision: of the parameters.
        scan: how selective scans were computed; empty where there is none.
        versions: of Python and PyTorch.
        load_average: processes that wanted to run in the minute before anything of ours ran; None where unknown.
    """

    parameters: int
    trained_parameters: int
    gflop_per_clip: float
    gflop_per_frame: float
    latency_s: float
    latency_p95_s: float
    latency_min_s: float
    timed_calls: int
    clips_per_s: float
    best_batch: int
    memory: Memory
    energy: Energy
    estimate: Estimate
    frames: int
    size: tuple[int, int]
    device: str
    threads: int
    precision: str
    scan: str
    versions: dict[str, str]
    load_average: float | None


def measure_cost(
    directory: Path, device: torch.device, settings: CostSettings | None = None, load_average: float | None = None
) -> Cost:
    """Measure the model of a finished run on its own data.

    Args:
        directory: the run directory.
        device: where to run the model.
        settings: how long to measure; None for the usual.
        load_average: of the machine before anything of ours ran on it, which is not to be told from here.

    Raises:
        MedvidError: the model or its data cannot be loaded.
    """
    settings = settings or CostSettings()
    model = load_model(directory).to(device)
    info = describe(model)
    scan = scan_choice(model, device, trained=True)
    sample = own_sample(directory)
    batch = to_device(collate([sample]), device)
    run = caller(model, batch, device)
    counted = operations(model, batch)
    memory = _memory(directory, run, device)
    times = timed(run, settings.warmup, settings.runs, settings.seconds)
    best, rate = throughput(model, sample, device, settings, memory.model_and_clip)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    record = read_json(directory / "run.json")
    return Cost(
        parameters=parameters,
        trained_parameters=record.get("model", {}).get("trained_parameters", parameters),
        gflop_per_clip=counted.executed / 1e9,
        gflop_per_frame=counted.executed / 1e9 / (1 if info.blend == "centre" else info.frames),
        latency_s=statistics.median(times),
        latency_p95_s=float(np.percentile(times, 95)),
        latency_min_s=min(times),
        timed_calls=len(times),
        clips_per_s=rate,
        best_batch=best,
        memory=memory,
        energy=measure(run, probe(device), settings.seconds, settings.idle_seconds),
        estimate=_estimate(counted),
        frames=info.frames,
        size=info.size,
        device=device_name(device),
        threads=torch.get_num_threads(),
        precision=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})),
        scan=scan["backend"] if scan else "",
        versions={"python": platform.python_version(), "torch": torch.__version__},
        load_average=load_average,
    )


def own_sample(directory: Path) -> Sample:
    """Return the first clip of the first case a run was scored on, as the model sees it.

    Raises:
        MedvidError: the run's data are gone, or cannot be read.
    """
    composed = compose(registry(), config_file=directory / "config.yaml")
    clip, spec, evaluate = composed.config.clip, input_spec(composed), composed.config.evaluate
    cases = open_dataset(composed).cases
    part = read_json(directory / "run.json").get("split", "test")
    scored = read_json(directory / "splits.json").get(part) or [cases[0].case_id]
    case = next((case for case in cases if case.case_id == scored[0]), cases[0])
    preparation = plan_preparation(registry(), composed.config.preprocess, spec.streams)
    steps = plan_steps(registry(), spec.streams, streams_at_hand(preparation, cases))
    if preparation is not None:
        config = composed.config
        prepared = prepare([case.only(())], preparation, config.cache, accelerator(), Progress(enabled=False))
        case = prepared.cases[case.case_id]
    indices, real = window(0, case.frames, clip)
    sample = load_sample(case, indices, real, clip, spec, steps, masks=False)
    if evaluate.prompt != "none":
        frame = int(indices[0])  # wherever the case is annotated: what is pointed at costs the same
        sample["prompts"] = [
            replace(prompt, frame=frame).to_model(0, sample["affine"], clip.size)
            for prompt in annotated_prompts(case, evaluate.prompt)
        ]
    return sample


def caller(model: nn.Module, batch: Batch, device: torch.device) -> Callable[[], None]:
    """Return a call of the model that returns when the device has finished."""

    def run() -> None:
        with torch.inference_mode():
            model(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _estimate(found: Operations) -> Estimate:
    return Estimate(found.macs, found.acs, dict(found.spike_rates), estimated_energy_j(found))


def timed(run: Callable[[], None], warmup: int, runs: int, seconds: float) -> list[float]:
    """Return the seconds of ``runs`` calls, or of as many as begin within ``seconds``; at least of one.

    Calls that warm up come before, likewise bounded.
    """
    _seconds_of(run, warmup, seconds)
    return _seconds_of(run, max(1, runs), seconds)


def _seconds_of(run: Callable[[], None], calls: int, seconds: float) -> list[float]:
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < calls and (not times or time.perf_counter() - began < seconds):
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return times


def throughput(
    model: nn.Module, sample: Sample, device: torch.device, settings: CostSettings, clip_mib: float | None
) -> tuple[int, float]:
    """Return the batch size with the most clips a second, and how many these are.

    Args:
        model: the model, on its device.
        sample: the clip that is repeated.
        device: where it runs.
        settings: batch sizes, and for how long to measure.
        clip_mib: memory of one clip. A batch that would take more than half of what is free is not tried; where either
            is unknown, only the smallest is.
    """
    best, best_rate = 0, 0.0
    room = _free_mib(device) / 2
    for size in sorted(settings.batch_sizes):
        if best and (clip_mib is None or size * clip_mib > room):
            break
        try:
            run = caller(model, to_device(collate([sample] * size), device), device)
            times = timed(run, 1, settings.runs, settings.seconds / len(settings.batch_sizes))
        except torch.OutOfMemoryError:
            break
        rate = size / statistics.median(times)
        if rate > best_rate:
            best, best_rate = size, rate
        elif rate < SLOWER * best_rate:
            break
    return best, best_rate


# memory


def _free_mib(device: torch.device) -> float:
    """Return the memory that is free; 0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / MIB
    found = [_kib("/proc/meminfo", "MemAvailable") / 1024]
    with contextlib.suppress(OSError, ValueError):  # of a container
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
        found.append((limit - used) / MIB)
    return min(found)


def _kib(path: str, field: str) -> float:
    """Return a field of one of Linux's tables; 0 elsewhere."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path(path).read_text("ascii", errors="replace"), re.MULTILINE)
    except OSError:
        return 0.0
    return float(found[1]) if found else 0.0


def _memory(directory: Path, run: Callable[[], None], device: torch.device) -> Memory:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return Memory(torch.cuda.max_memory_allocated(device) / MIB)
    return memory_of_child(directory)


def memory_of_child(directory: Path) -> Memory:
    """Return the memory that a run's model takes on the CPU, measured in a fresh process."""
    code = "import sys; from medvid_core.engine import cost; cost.print_memory(*sys.argv[1:])"
    words = [sys.executable, "-c", code, str(directory), str(torch.get_num_threads())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return Memory(None, note=f"the process that measured it ended with {done.returncode}: {(lines or [''])[-1]}")
    base, peak = json.loads(done.stdout.strip().splitlines()[-1])
    return Memory(peak - base, peak)


def print_memory(directory: str, threads: str) -> None:
    """Print what this process held before the model of a run was loaded, and its peak with it, in MiB, as JSON."""
    device = torch.device("cpu")
    torch.set_num_threads(int(threads))
    batch = collate([own_sample(Path(directory))])
    base = _kib("/proc/self/status", "VmRSS") / 1024 or _highest_mib()
    model = load_model(Path(directory))
    scan_choice(model, device, trained=True)
    run = caller(model, batch, device)
    with contextlib.suppress(OSError):  # what it took to read the file is not the model's
        Path("/proc/self/clear_refs").write_text("5")
    run()
    run()
    print(json.dumps([base, _kib("/proc/self/status", "VmHWM") / 1024 or _highest_mib()]))


def _highest_mib() -> float:
    """Return this process's peak; on Linux only where its own table is hidden, for it starts from the parent's."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def device_name(device: torch.device) -> str:
    """Return what computes, in words: the card, or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines: Sequence[str] = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = ()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{platform.machine()}, {name}"
