"""What ``medvid-run doctor`` finds out: whether every backend on this machine computes the scan as it is defined."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from medvid_core.ops import conv
from medvid_core.ops.backends import BACKENDS, absence, interpreted, misfit
from medvid_core.ops.depthwise import depthwise_conv
from medvid_core.ops.scan import grouped_scan

LIMITS: Mapping[torch.dtype, float] = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
"""Largest relative error by type of u; in half precision one unit in the last place of the result."""

LIBRARIES = ("medvid-core", "torch", "numba", "triton", "mamba-ssm")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem to compare on.

    Attributes:
        length: positions L.
        states: N.
        batch: B.
        groups: G.
        channels: R of each group.
        softplus: whether delta passes through softplus, after a bias; else it is positive as it is.
        gate: whether there are z and D.
        start: whether there is an initial state.
        through_last: whether the gradient comes through the last state too.
        order: whether every group visits the positions in a random order of its own.
        by_position: whether the channels of a position lie side by side in memory, as in the mixers.
    """

    length: int
    states: int
    batch: int = 1
    groups: int = 1
    channels: int = 1
    softplus: bool = False
    gate: bool = False
    start: bool = False
    through_last: bool = True
    order: bool = False
    by_position: bool = False


CASES = (
    Case(length=1, states=5, channels=3),
    Case(length=63, states=1, groups=2, channels=3, softplus=True, start=True),
    Case(length=65, states=16, batch=2, channels=17, softplus=True, gate=True, start=True, by_position=True),
    Case(length=257, states=5, groups=3, channels=5, gate=True, order=True),
    Case(
        length=257,
        states=16,
        groups=3,
        channels=18,
        softplus=True,
        gate=True,
        start=True,
        order=True,
        by_position=True,
    ),
)
"""Sizes at which kernels go wrong: a single step, just under and over a chunk of 64, no multiple of a vector."""

SPEED = Case(length=1024, states=16, channels=128, softplus=True, gate=True)
"""What speed is measured on."""

ENOUGH_S = 0.5
"""No further round of timing is begun after so many seconds."""


@dataclass(frozen=True)
class Problem:
    """Inputs by name, the order of each group, and the gradients that come back to y and the last state."""

    inputs: Mapping[str, Tensor]
    order: Tensor | None
    grads: tuple[Tensor, ...]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Problem:
        """Return it on another device, and of one type."""
        return Problem(
            {name: x.to(device, dtype) for name, x in self.inputs.items()},
            None if self.order is None else self.order.to(device),
            tuple(grad.to(device, dtype) for grad in self.grads),
        )


@dataclass(frozen=True)
class Agreement:
    """The worst relative error of a backend in one type of number, where it was found, and its limit."""

    error: float
    limit: float
    where: str

    @property
    def ok(self) -> bool:
        """Whether the error is a number within the limit."""
        return self.error <= self.limit


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found about a backend on a device.

    Attributes:
        backend: its name.
        device: on which device.
        agreements: by the name of u's type.
        problem: what is wrong, in a line; empty if nothing is.
        speed: how many times as fast as backend ``torch`` forward and backward take; None where not measured.
    """

    backend: str
    device: str
    agreements: Mapping[str, Agreement] = field(default_factory=dict)
    problem: str = ""
    speed: float | None = None


def versions() -> dict[str, str]:
    """Return the version of everything that matters to the scan."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def devices() -> dict[str, str]:
    """Return the devices that PyTorch can use here, and what they are."""
    capability = torch.backends.cpu.get_cpu_capability()
    found = {"cpu": f"{platform.machine()}, {capability}"}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    return found


def pairs() -> list[tuple[str, str]]:
    """Return every backend present with every device it runs on."""
    return [
        (name, device)
        for name in BACKENDS
        if absence(name) is None
        for device in devices()
        if misfit(name, torch.device(device), torch.float32) is None
    ]


def check(backend: str, device: str) -> Check:
    """Compare a backend with the definition on `CASES`, in every type it takes, and time it.

    Triton's interpreter gets fewer and smaller cases, in float32 only, and is not timed.
    """
    agreements: dict[str, Agreement] = {}
    try:
        for dtype in [torch.float32] if _simulated(backend) else LIMITS:
            if misfit(backend, torch.device(device), dtype) is None:
                agreements[_name(dtype)] = _agreement(backend, device, dtype)
        wrong = [
            f"{name}: relative error {found.error:.1e} in {found.where}, the limit is {found.limit:.0e}"
            for name, found in agreements.items()
            if not found.ok
        ]
        speed = None if wrong or _simulated(backend) else _speed(backend, device)
    except Exception as error:  # whatever it is, saying so is what this is for
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Check(backend=backend, device=device, agreements=agreements, problem=problem)
    return Check(backend=backend, device=device, agreements=agreements, problem="; ".join(wrong), speed=speed)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _problem(case: Case, dtype: torch.dtype) -> Problem:
    """A random problem, with what a layer keeps in float32 in float32."""
    g = torch.Generator().manual_seed(0)
    sequence = (case.batch, case.groups, case.channels, case.length)
    weights = (case.batch, case.groups, case.states, case.length)
    state = (case.batch, case.groups, case.channels, case.states)
    parameter = sequence[1:3]

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        x = torch.randn(shape, generator=g).to(dtype)
        by_position = case.by_position and shape[-1] == case.length
        return x.transpose(-1, -2).contiguous().transpose(-1, -2) if by_position else x

    delta = normal(*sequence, dtype=dtype)
    inputs = {
        "u": normal(*sequence, dtype=dtype),
        "delta": delta if case.softplus else delta.abs() / 2,
        "A": -2 * torch.rand(state[1:], generator=g),  # some states decay slowly: they cross the chunks
        "B": normal(*weights, dtype=dtype),
        "C": normal(*weights, dtype=dtype),
    }
    if case.gate:
        inputs |= {"D": normal(*parameter), "z": normal(*sequence, dtype=dtype)}
    if case.softplus:
        inputs["delta_bias"] = normal(*parameter)
    if case.start:
        inputs["initial_state"] = normal(*state)
    order = torch.stack([torch.randperm(case.length, generator=g) for _ in range(case.groups)]).int()
    grads = (normal(*sequence, dtype=dtype), normal(*state))
    return Problem(inputs, order if case.order else None, grads[: 1 + case.through_last])


def _scan(problem: Problem, softplus: bool, backend: str) -> dict[str, Tensor]:
    """Return y, the last state and the gradient of every input."""
    inputs = {name: x.detach().requires_grad_() for name, x in problem.inputs.items()}
    y, last = grouped_scan(**inputs, delta_softplus=softplus, order=problem.order, backend=backend)
    outputs = (y, last)[: len(problem.grads)]
    grads = torch.autograd.grad(outputs, [*inputs.values()], problem.grads)
    return {"y": y.detach(), "last state": last.detach()} | _gradients(inputs, grads)


def _convolve(problem: Problem, backend: str) -> dict[str, Tensor]:
    """Return y and the gradient of every input of the convolution in front of the scan."""
    inputs = {name: x.detach().requires_grad_() for name, x in problem.inputs.items()}
    y = conv.grouped_causal_conv(**inputs, order=problem.order, backend=backend)
    return {"y": y.detach()} | _gradients(inputs, torch.autograd.grad(y, [*inputs.values()], problem.grads))


def _gradients(inputs: Mapping[str, Tensor], grads: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f"the gradient of {name}": grad for name, grad in zip(inputs, grads, strict=True)}


@functools.cache
def _wanted(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    return _scan(_problem(case, dtype).to("cpu", torch.float64), case.softplus, "reference")


@functools.cache
def _conv_problem(case: Case, dtype: torch.dtype) -> Problem:
    """The convolution of u, along the orders and through the gradients of the scan's problem."""
    scan = _problem(case, dtype)
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(case.groups, case.channels, 4, generator=g)
    inputs = {"x": scan.inputs["u"][:, 0], "weight": weight, "bias": weight.mean(-1)}
    return Problem(inputs, scan.order, scan.grads[:1])


@functools.cache
def _conv_wanted(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    return _convolve(_conv_problem(case, dtype).to("cpu", torch.float64), "reference")


def _depthwise(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return y and the gradients of the convolution of tokens: PyTorch's in float64, the kernel's in float32."""
    g = torch.Generator().manual_seed(2)
    shapes = {"x": (2, 3, 7, 5, 17), "weight": (17, 3, 3, 3), "bias": (17,)}
    inputs = {name: torch.randn(shape, generator=g).to(dtype).requires_grad_() for name, shape in shapes.items()}
    y = depthwise_conv(**inputs)
    grads = torch.autograd.grad(y, [*inputs.values()], torch.randn(y.shape, generator=g).to(dtype))
    return {"y": y.detach()} | _gradients(inputs, grads)


def _agreement(backend: str, device: str, dtype: torch.dtype) -> Agreement:
    """Compare on all cases."""
    found = []
    for case in _cases(backend):
        got = _scan(_problem(case, dtype).to(device), case.softplus, backend)
        found.append(_worst(got, _wanted(case, dtype), f"at length {case.length}"))
        if backend in conv.MODULES:
            got = _convolve(_conv_problem(case, dtype).to(device), backend)
            found.append(_worst(got, _conv_wanted(case, dtype), f"of the convolution at length {case.length}"))
    if backend == "cpu" and dtype == torch.float32:  # the one type it is computed here in
        wanted = _depthwise(torch.float64)
        found.append(_worst(_depthwise(torch.float32), wanted, "of the depth-wise convolution"))
    error, where = max(found)
    return Agreement(error, LIMITS[dtype], where)


def _cases(backend: str) -> list[Case]:
    """Return the cases a backend is compared on."""
    if backend == "mamba_ssm":  # it takes no initial state, and passes no gradient through the last one
        return [replace(case, start=False, through_last=False) for case in CASES]
    if _simulated(backend):  # a thousand times slower
        return [replace(case, batch=1, states=min(case.states, 2)) for case in CASES[:-1]]
    return [*CASES]


def _simulated(backend: str) -> bool:
    return backend == "triton" and interpreted()


def _worst(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], when: str) -> tuple[float, str]:
    """Return the largest error, relative to the largest number that is wanted, and where it is."""
    errors = []
    for name, want in wanted.items():
        got = found[name]
        if got.shape != want.shape:
            raise ValueError(f"{name} {when} has shape {tuple(got.shape)}, not {tuple(want.shape)}.")
        scale = want.abs().max().clamp(min=torch.finfo(want.dtype).tiny)
        error = float((got.cpu().double() - want).abs().max() / scale)
        errors.append((math.inf if math.isnan(error) else error, f"{name} {when}"))
    return max(errors)


def _speed(backend: str, device: str) -> float:
    """Return how many times as fast as backend ``torch`` it is, both timed in turn; the best of each counts."""
    problem = _problem(SPEED, torch.float32).to(device)
    best = {"torch": math.inf, backend: math.inf}
    started = time.perf_counter()
    for _ in range(5):
        for name in best:
            best[name] = min(best[name], _seconds(problem, name, device))
        if time.perf_counter() - started > ENOUGH_S:
            break
    return best["torch"] / best[backend]


def _seconds(problem: Problem, backend: str, device: str) -> float:
    started = _now(device)
    _scan(problem, SPEED.softplus, backend)
    return _now(device) - started


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
