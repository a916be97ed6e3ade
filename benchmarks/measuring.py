"""What the benchmarks share: time, memory in a process of its own, tables."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)

MIB = 2**20


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call; on a GPU between two CUDA events."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def interleaved(
    runs: Mapping[Key, Callable[[], Any]], repeats: Mapping[Key, int], device: torch.device
) -> dict[Key, list[float]]:
    """Seconds of every call, in rounds A, B, C, A, B, C, …; one with fewer repeats is spread evenly over the rounds."""
    rounds = max(repeats.values())
    times: dict[Key, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            if (number + 1) * repeats[name] // rounds > number * repeats[name] // rounds:
                times[name].append(seconds(run, device))
    return times


def forget_peak(device: torch.device) -> float:
    """Start measuring peak memory anew; return what is in use, in MiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / MIB
    with contextlib.suppress(OSError):  # elsewhere than on Linux, the peak so far is the least that can be told from
        Path("/proc/self/clear_refs").write_text("5")
    return peak(device)


def peak(device: torch.device) -> float:
    """Peak memory since `forget_peak`, in MiB: resident set of this process, or allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:  # not ru_maxrss first: on Linux, a child's starts from its parent's
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1024
    except (OSError, TypeError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def in_child(script: str, *words: str, **environment: str) -> Any:
    """Run a script of this folder with these arguments in a fresh process; the last line it prints is JSON.

    Returns None, after showing why on stderr, when the child fails (for want of memory, say).
    """
    done = subprocess.run(
        [sys.executable, script, *words],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    if done.returncode != 0:
        print(f"{Path(script).name} {' '.join(words)}: exit status {done.returncode}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean, ± the standard deviation where there are several."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def say(line: str) -> None:
    """Show a line of progress, apart from the result."""
    print(line, file=sys.stderr)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(what: str, reached: bool | None, found: str) -> str:
    """One line about a target."""
    word = "not measured" if reached is None else "yes" if reached else "NO"
    return f"- {what}: **{word}** ({found})"


def machine(device: torch.device) -> str:
    """Versions, hardware and how busy it was, in a line, without names of hosts."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    load = f"load average at the start {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return f"torch {torch.__version__}, {where}, {torch.get_num_threads()} threads, {load},"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} CPU"
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{platform.machine()}, {model}"
