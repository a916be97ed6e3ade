"""Time the selective scan, ours beside what people use today, and print Markdown.

Run from the repository: ``python benchmarks/scan.py > benchmarks/results/scan.md``. mambapy and mamba-ssm are compared
with where they are installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

import torch
from measuring import MIB, forget_peak, in_child, interleaved, machine, peak, seconds, table, verdict
from plain import plain_mixer, step_by_step
from torch import Tensor

from medvid_core.ops import SpatioTemporalMixer
from medvid_core.ops.backends import BACKENDS, absence, choose_backend, misfit
from medvid_core.ops.scan import selective_scan

Key = TypeVar("Key", bound=Hashable)

REF = "mamba-ssm `selective_scan_ref`"
MAMBAPY = "mambapy `pscan`"
KERNEL = "mamba-ssm CUDA kernel"
FLOOR = "one `exp`, into a given tensor"
FRESH = "one `exp`, into a new tensor"

TOLERANCE = 1e-3
"""Largest error, relative to the largest value, at which a row still counts as the same function."""

NOTES = """
Every row computes the same: step sizes with bias and softplus, the recurrence, skip, gate; gradients are those of all
eight inputs. Error: the largest absolute error over the largest value, worst over outputs (all gradients), against the
step-by-step definition in float64. Calls of all rows take turns (A, B, C, A, B, C, …); slow rows have fewer of them.
Ratios are of medians. Forward runs without gradients.

`selective_scan_ref` is rebuilt here from its description. Its backward pass as published is quadratic in the length
(every step indexes the whole tensor) and does not finish here; forward + backward is that of a repaired form, which
takes the steps apart at once. *channels last*: u, delta, z, B and C come as [batch, length, channels] in memory, as a
layer's matrix products leave them (mambapy takes them so, too). transformers' slow path is left out: it is the same
loop as `selective_scan_ref`, inseparable from the projections and the convolution of its layer.

Extra memory: growth of the peak resident set (on a GPU: of the allocated memory) over one forward + backward, in a
process of its own that has run the same on a small problem before; one unit is batch·d·length float32 numbers. The
gradients of u, delta and z and the output are four units.
"""


class Problem(NamedTuple):
    """Sizes of a scan."""

    batch: int
    channels: int
    length: int
    states: int

    def __str__(self) -> str:
        return f"batch {self.batch}, d={self.channels}, length {self.length}, state {self.states}"


PROBLEMS = (Problem(1, 128, 20480, 16), Problem(1, 640, 1280, 16))
"""Stage one of Vivim on a 5x256x256 clip, and stage three."""

QUICK = (Problem(2, 16, 96, 4),)

TOO_SMALL = "The targets are for real sizes: nothing is said of them here."


class Inputs(NamedTuple):
    """What a scan reads; every one has a gradient."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor
    delta_bias: Tensor

    def changed(self, **to: object) -> Inputs:
        """Copies of another type or device."""
        return Inputs(*(x.detach().to(**to).requires_grad_() for x in self))

    def channels_last(self) -> Inputs:
        """The same values with the channels of a position side by side."""
        return Inputs(*(_swapped(x).detach().requires_grad_() for x in self))


def _swapped(x: Tensor) -> Tensor:
    """A sequence [B,D,L] laid out as [B,L,D]; its shape is still [B,D,L]."""
    return x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() == 3 else x


def draw(problem: Problem, seed: int = 0) -> Inputs:
    """Random inputs in float64 with realistic step sizes, around softplus(-3) = 0.05."""
    make = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    batch, channels, length, states = problem
    A = -torch.arange(1, states + 1, dtype=torch.float64).repeat(channels, 1)
    return Inputs(
        normal(batch, channels, length),
        0.5 * normal(batch, channels, length),
        A,
        normal(batch, states, length),
        normal(batch, states, length),
        normal(channels),
        normal(batch, channels, length),
        normal(channels) - 3,
    ).changed(dtype=torch.float32)


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to compute the scan."""

    run: Callable[[Inputs], Tensor]
    channels_last: bool = False

    def inputs(self, given: Inputs) -> Inputs:
        """The inputs in the layout this way likes."""
        return given.channels_last() if self.channels_last else given

    def gradients(self, given: Inputs, grad: Tensor) -> tuple[Tensor, ...]:
        """Forward and backward."""
        return torch.autograd.grad(self.run(given), given, grad)


def ours(backend: str) -> Way:
    """One of our backends."""

    def run(x: Inputs) -> Tensor:
        y = selective_scan(*x[:5], D=x.D, z=x.z, delta_bias=x.delta_bias, delta_softplus=True, backend=backend)
        assert isinstance(y, Tensor)
        return y

    return Way(run)


def by_mambapy(x: Inputs) -> Tensor:
    """The same around mambapy's parallel scan, as in its own layer: [B,L,D,N]."""
    from mambapy.pscan import pscan

    u, B, C = x.u.transpose(1, 2), x.B.transpose(1, 2), x.C.transpose(1, 2)
    delta = torch.nn.functional.softplus(x.delta.transpose(1, 2) + x.delta_bias)
    decay = torch.exp(delta[..., None] * x.A)
    drive = delta[..., None] * B[:, :, None] * u[..., None]
    y = (pscan(decay, drive) @ C[..., None]).squeeze(3) + x.D * u
    return (y * torch.nn.functional.silu(x.z.transpose(1, 2))).transpose(1, 2)


def by_mamba_ssm(x: Inputs) -> Tensor:
    """mamba-ssm's function for users."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(*x[:5], x.D, x.z, x.delta_bias, True)


def ways(device: torch.device) -> dict[str, Way]:
    """Everything that runs on this device."""
    names = [n for n in BACKENDS if n != "mamba_ssm" and not (absence(n) or misfit(n, device, torch.float32))]
    found = {f"`{name}`": ours(name) for name in names}
    for name in ("cpu", "triton"):
        if name in names:
            found[f"`{name}`, channels last"] = Way(ours(name).run, channels_last=True)
    found[REF] = Way(lambda x: step_by_step(*x))
    if importlib.util.find_spec("mambapy") is not None:
        found[MAMBAPY] = Way(by_mambapy, channels_last=True)
    if device.type == "cuda" and absence("mamba_ssm") is None:
        found[KERNEL] = Way(by_mamba_ssm)
    return found


def absent(device: torch.device) -> dict[str, str]:
    """Rows that cannot be measured here, and why."""
    missing = {} if importlib.util.find_spec("mambapy") is not None else {MAMBAPY: "not installed"}
    for name in BACKENDS:
        why = absence(name)
        if why and not misfit(name, device, torch.float32):
            missing[KERNEL if name == "mamba_ssm" else f"`{name}`"] = why
    return missing


@dataclasses.dataclass
class Row:
    """What was found about one way."""

    errors: tuple[float, float]
    forward: list[float]
    both: list[float]
    memory: float | None = None


def error(found: Tensor, wanted: Tensor) -> float:
    """Largest absolute error over the largest value."""
    return float((found.detach() - wanted).abs().max() / wanted.abs().max())


def errors(way: Way, given: Inputs, grad: Tensor, y: Tensor, gradients: tuple[Tensor, ...]) -> tuple[float, float]:
    """Error of the output and the worst of the gradients."""
    with torch.no_grad():
        forward = error(way.run(given), y)
    return forward, max(map(error, way.gradients(given, grad), gradients))


def repeats(runs: Mapping[Key, Callable[[], object]], rounds: int, device: torch.device) -> dict[Key, int]:
    """How often to time each: about ten seconds' worth, at least twice and at most `rounds` times."""
    return {name: min(rounds, max(2, int(10 / seconds(run, device)))) for name, run in runs.items()}


def measure(problem: Problem, device: torch.device, rounds: int) -> tuple[dict[str, Row], dict[str, list[float]]]:
    """Check and time every way on one problem; also the seconds of the exponentials."""
    base = draw(problem)
    grad = torch.randn(base.u.shape, generator=torch.Generator().manual_seed(1))
    exact = ours("reference")
    double = base.changed(dtype=torch.float64)
    y = exact.run(double).detach()
    gradients = tuple(g.to(device) for g in exact.gradients(double, grad.double()))
    y, grad, base = y.to(device), grad.to(device), base.changed(device=device)
    del double

    found = ways(device)
    given = {name: way.inputs(base) for name, way in found.items()}
    rows = {name: Row(errors(way, given[name], grad, y, gradients), [], []) for name, way in found.items()}

    exponents = -torch.rand(problem.batch, problem.channels, problem.length, problem.states, device=device)
    kept = torch.empty_like(exponents)
    runs: dict[tuple[str, str], Callable[[], object]] = {
        (FLOOR, "forward"): lambda: torch.exp(exponents, out=kept),
        (FRESH, "forward"): lambda: torch.exp(exponents),
    }
    for name, way in found.items():
        runs[name, "forward"] = functools.partial(torch.no_grad()(way.run), given[name])
        runs[name, "both"] = functools.partial(way.gradients, given[name], grad)
    runs[FLOOR, "forward"]()  # the others were called by the check
    times = interleaved(runs, repeats(runs, rounds, device), device)
    for name, row in rows.items():
        row.forward, row.both = times[name, "forward"], times[name, "both"]
    return rows, {name: times[name, "forward"] for name in (FLOOR, FRESH)}


def extra_memory(name: str, problem: Problem, device: torch.device) -> float:
    """Extra peak memory of one forward + backward in this process, in MiB."""
    way = ways(device)[name]
    given = way.inputs(draw(problem).changed(device=device))
    small = way.inputs(draw(problem._replace(length=min(64, problem.length))).changed(device=device))
    grad = torch.ones(given.u.shape, device=device)
    way.gradients(small, torch.ones(small.u.shape, device=device))
    before = forget_peak(device)
    held = way.gradients(given, grad)
    after = peak(device)
    del held
    return after - before


def memory_in_child(name: str, problem: Problem, device: torch.device) -> float | None:
    """`extra_memory` in a process of its own; None where that fails."""
    sizes = ",".join(map(str, problem))
    # glibc then returns freed tensors to the system at once, so that the peak shows all that was held together
    threshold = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
    return in_child(__file__, "--device", str(device), "--memory-of", name, "--problem", sizes, **threshold)


def unit(problem: Problem) -> float:
    """MiB of batch*d*length float32 numbers."""
    return 4 * problem.batch * problem.channels * problem.length / MIB


def chosen(device: torch.device) -> str:
    """The row of the backend that users get."""
    return f"`{choose_backend('auto', device).name}`"


def _ms(times: list[float]) -> str:
    return f"{_short(1000 * min(times))} / {_short(1000 * statistics.median(times))}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def _ratio(slow: list[float] | None, fast: list[float]) -> str:
    return "–" if slow is None else _short(statistics.median(slow) / statistics.median(fast))


def report(problem: Problem, rows: dict[str, Row], floors: dict[str, list[float]], missing: dict[str, str]) -> str:
    """Two tables, forward and forward + backward."""
    parts = [f"## {str(problem).capitalize()}"]
    for title in ("forward", "forward + backward"):
        both = title != "forward"
        times = {name: row.both if both else row.forward for name, row in rows.items()}
        head = [title, "error", "ms, best / median", "× faster than ref", "× faster than mambapy", "time over exp"]
        lines = [
            [
                name,
                f"{row.errors[both]:.1e}",
                _ms(times[name]),
                _ratio(times[REF], times[name]),
                _ratio(times.get(MAMBAPY), times[name]),
                _ratio(times[name], floors[FLOOR]),
            ]
            for name, row in rows.items()
        ]
        if both:
            head.append("extra memory, MiB (units)")
            for line, row in zip(lines, rows.values(), strict=True):
                line.append("–" if row.memory is None else f"{row.memory:.0f} ({row.memory / unit(problem):.1f})")
        else:
            lines += [[name, "", _ms(times), "", "", _ratio(times, floors[FLOOR])] for name, times in floors.items()]
        lines += [[name, why, *[""] * (len(head) - 2)] for name, why in missing.items()]
        parts.append(table(head, lines))
    return "\n\n".join(parts)


def verdicts(rows: dict[str, Row], floors: dict[str, list[float]], name: str) -> list[str]:
    """The targets on a CPU, for the backend `name` in its better layout."""
    alike = [row for key, row in rows.items() if key.startswith(name)]
    forward = min((row.forward for row in alike), key=statistics.median)
    both = min((row.both for row in alike), key=statistics.median)
    lines = [
        _faster("forward at least 80 × faster than `selective_scan_ref`", rows[REF].forward, forward, 80),
        _faster("forward at least 80 × faster than mambapy", _of(rows, "forward"), forward, 80),
    ]
    over = statistics.median(forward) / statistics.median(floors[FLOOR])
    best = min(forward) / min(floors[FLOOR])
    lines.append(verdict("forward within 1.0 × one `exp`", over <= 1, f"{over:.2f} ×; best over best {best:.2f} ×"))
    lines.append(_faster("forward + backward at least 30 × faster than mambapy", _of(rows, "both"), both, 30))
    return lines


def _of(rows: dict[str, Row], times: str) -> list[float] | None:
    return getattr(rows[MAMBAPY], times) if MAMBAPY in rows else None


def _faster(what: str, slow: list[float] | None, fast: list[float], least: float) -> str:
    if slow is None:
        return verdict(what, None, "not installed")
    ratio = statistics.median(slow) / statistics.median(fast)
    return verdict(what, ratio >= least, f"{ratio:.0f} ×; best over best {min(slow) / min(fast):.0f} ×")


def memory_verdict(name: str, problem: Problem, device: torch.device, found: float | None) -> str:
    """Whether four times the states leave the extra memory about as it was."""
    more = None if found is None else memory_in_child(name, problem._replace(states=4 * problem.states), device)
    what = "extra memory O(batch·d·length), not times the state"
    if found is None or more is None or found < unit(problem):  # gradients alone are more than a unit
        return verdict(what, None, "–")
    grown = f"{found:.0f} MiB; {more:.0f} MiB with four times the states"
    return verdict(what, more < 2 * found, grown)


def measure_mixers(device: torch.device, rounds: int, quick: bool) -> str:
    """On a GPU: Vivim's three orders in one grouped scan against three calls of mamba-ssm, on stage one of Vivim."""
    frames, tokens, width = (2, 64, 16) if quick else (5, 20480, 64)
    mixer = SpatioTemporalMixer(width).to(device)
    x = torch.randn(1, tokens, width, device=device, requires_grad=True)
    leaves = [x, *mixer.parameters()]
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def three(x: Tensor) -> Tensor:
        return plain_mixer(mixer, x, frames, selective_scan_fn)

    def one(x: Tensor) -> Tensor:
        return mixer(x, frames)

    lines = []
    for title in ("forward", "forward + backward"):

        def call(run: Callable[[Tensor], Tensor], both: bool = title != "forward") -> Callable[[], object]:
            if both:
                return lambda: torch.autograd.grad(run(x).square().sum(), leaves)
            return lambda: torch.no_grad()(run)(x)

        runs = {"three": call(three), "one": call(one)}
        for run in runs.values():
            run()
        times = interleaved(runs, dict.fromkeys(runs, rounds), device)
        ratio = _ratio(times["three"], times["one"])
        lines.append([title, _ms(times["three"]), _ms(times["one"]), ratio, f"{error(one(x), three(x)):.1e}"])
    head = ["three-order mixer", "three calls of mamba-ssm, ms", "ours, ms", "× faster", "difference"]
    return f"## Mixer, {tokens} tokens of width {width}\n\n" + table(head, lines)


def gpu_verdicts(rows: dict[str, Row], name: str) -> list[str]:
    """The targets on a GPU."""
    lines = []
    for title in ("forward", "both"):
        kernel = getattr(rows[KERNEL], title) if KERNEL in rows else None
        what = f"{'forward + backward' if title == 'both' else title} at least as fast as mamba-ssm's kernel"
        if kernel is None:
            lines.append(verdict(what, None, "mamba-ssm is not installed"))
        else:
            ratio = statistics.median(kernel) / statistics.median(getattr(rows[name], title))
            lines.append(verdict(what, ratio >= 1, f"{ratio:.2f} ×"))
    return lines


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options.add_argument("--quick", action="store_true", help="a tiny problem, to see that everything runs")
    options.add_argument("--rounds", type=int, default=25, help="calls of each fast row")
    options.add_argument("--no-memory", action="store_true", help="leave peak memory out, which takes new processes")
    options.add_argument("--memory-of", metavar="ROW", help="print one row's extra memory in MiB and end")
    options.add_argument("--problem", metavar="B,D,L,N", help="one problem of these sizes")
    return options


def main(words: list[str] | None = None) -> int:
    args = parser().parse_args(words)
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser().error("there is no GPU that PyTorch can use")
    problems = QUICK if args.quick else PROBLEMS
    if args.problem:
        problems = (Problem(*map(int, args.problem.split(","))),)
    if args.memory_of:
        print(json.dumps(extra_memory(args.memory_of, problems[0], args.device)))
        return 0
    print(f"# Selective scan\n\n{machine(args.device)} float32. `auto` chooses {chosen(args.device)} here.")
    wrong = []
    for problem in problems:
        rows, floors = measure(problem, args.device, args.rounds)
        for name, row in rows.items():
            if not args.no_memory:
                row.memory = memory_in_child(name, problem, args.device)
            wrong += [f"{name} at {problem}"] if not max(row.errors) < TOLERANCE else []
        print(f"\n{report(problem, rows, floors, absent(args.device))}\n")
        name = chosen(args.device)
        lines = verdicts(rows, floors, name) if args.device.type == "cpu" else gpu_verdicts(rows, name)
        if not args.no_memory:
            lines.append(memory_verdict(name, problem, args.device, rows[name].memory))
        print(TOO_SMALL if args.quick else "\n".join(lines), flush=True)
    if args.device.type == "cuda" and absence("mamba_ssm") is None:
        print(f"\n{measure_mixers(args.device, args.rounds, args.quick)}")
    print(NOTES, end="")
    for name in wrong:
        print(f"\n**WRONG: {name}**")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
