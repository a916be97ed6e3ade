"""Backend ``triton``: on a GPU where there is one; elsewhere in Triton's interpreter, in a process of its own.

The interpreter is chosen by an environment variable before Triton is imported, so that it cannot be switched on here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from medvid_core.ops import conv_triton, scan_triton, selective_scan
from medvid_core.ops.backends import interpreted
from medvid_core.ops.conv import grouped_causal_conv
from medvid_core.ops.scan import grouped_scan
from medvid_core.ops.scan_op import Gradients, Scan

DEVICE = "cpu" if interpreted() else "cuda"
AXES = {"u": "BGRL", "delta": "BGRL", "A": "GRN", "B": "BGNL", "C": "BGNL"}
OPTIONAL = {"D": "GR", "z": "BGRL", "delta_bias": "GR", "initial_state": "BGRN"}


@pytest.fixture
def device() -> str:
    if not interpreted() and not torch.cuda.is_available():
        pytest.skip("needs a GPU; without one test_in_the_interpreter runs it")
    return DEVICE


def problem(
    batch: int = 1, groups: int = 1, channels: int = 3, states: int = 2, length: int = 70, seed: int = 0, without=()
) -> dict[str, Tensor]:
    """Inputs of `grouped_scan` in float64."""
    sizes = {"B": batch, "G": groups, "R": channels, "N": states, "L": length}
    random = torch.Generator().manual_seed(seed)
    inputs = {
        name: torch.randn(*(sizes[axis] for axis in axes), generator=random, dtype=torch.float64)
        for name, axes in (AXES | OPTIONAL).items()
    }
    inputs["A"] = -2 * inputs["A"].abs()
    return {name: x for name, x in inputs.items() if name not in without}


def shuffled(groups: int, length: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(length, generator=random) for _ in range(groups)]).int()


def run(
    inputs: dict[str, Tensor],
    backend: str = "triton",
    order: Tensor | None = None,
    softplus: bool = True,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Outputs and gradients of a fixed random functional, in float64 on the CPU."""
    place, dtype = (DEVICE, dtype or torch.float32) if backend == "triton" else ("cpu", torch.float64)
    leaves = {name: x.to(place, dtype).requires_grad_() for name, x in inputs.items()}
    order = None if order is None else order.to(place)
    y, last = grouped_scan(**leaves, delta_softplus=softplus, order=order, backend=backend)
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=random, dtype=torch.float64).to(x) for x in (y, last)]
    grads = torch.autograd.grad((y * weights[0]).sum() + (last * weights[1]).sum(), list(leaves.values()))
    assert all(grad.dtype == dtype for grad in grads)
    found = {"y": y, "last": last} | {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {name: x.detach().cpu().double() for name, x in found.items()}


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for name, b in wanted.items():
        assert got[name].shape == b.shape, name
        assert (got[name] - b).abs().max() <= tolerance * (1 + b.abs().max()), name


def assert_agrees(inputs: dict[str, Tensor], order: Tensor | None = None, softplus: bool = True) -> None:
    assert_close(run(inputs, order=order, softplus=softplus), run(inputs, "reference", order, softplus))


# -- What the kernels compute ----------------------------------------------------------------------------------------


def test_agrees_with_the_definition_along_orders(device: str) -> None:
    assert_agrees(problem(groups=2), shuffled(2, 70))


@pytest.mark.parametrize("sizes", [(2, 1, 1, 1, 1), (1, 1, 9, 1, 65), (1, 2, 17, 1, 3), (1, 1, 1, 3, 64)])
def test_awkward_sizes(device: str, sizes: tuple[int, ...]) -> None:
    assert_agrees(problem(*sizes))


@pytest.mark.parametrize("absent", [tuple(OPTIONAL), ("z",), ("initial_state", "D")])
def test_optional_inputs(device: str, absent: tuple[str, ...]) -> None:
    assert_agrees(problem(length=9, without=absent), softplus="delta_bias" not in absent)


def test_a_program_may_take_several_blocks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = problem(channels=17, states=1, length=5)
    alone = run(inputs)
    monkeypatch.setattr(scan_triton, "PROGRAMS", 1)
    assert_close(run(inputs), alone, 1e-6)


@pytest.mark.parametrize("shape", ["channels last, backwards", "neither"])
def test_any_strides(device: str, shape: str) -> None:
    inputs = problem(channels=9, states=2, length=10)
    wanted = run(inputs, "reference")
    for name in ("u", "delta", "B", "C", "z"):
        x = inputs[name]
        if shape == "neither":
            inputs[name] = torch.stack([x, x], -1).flatten(-2)[..., ::2]
        else:
            inputs[name] = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if "backwards" in shape:
        order = torch.arange(9, -1, -1).int()[None]
        assert_close(run(inputs, order=order), run(inputs, "reference", order))
    else:
        assert_close(run(inputs), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(device: str, dtype: torch.dtype) -> None:
    inputs = {name: x.to(dtype).double() for name, x in problem(length=9).items()}
    assert_close(run(inputs, dtype=dtype), run(inputs, "reference"), 2 * torch.finfo(dtype).eps)


def test_types_may_differ(device: str) -> None:
    u = torch.randn(1, 2, 5, device=device).bfloat16()
    B = torch.randn(1, 2, 5, device=device)
    y = selective_scan(u, u.float().abs(), -torch.ones(2, 2, device=device), B, B.half(), backend="triton")
    wanted = selective_scan(
        *(x.cpu().double() for x in (u, u.abs(), -torch.ones(2, 2), B, B.half())), backend="reference"
    )
    assert y.dtype == torch.bfloat16
    assert (y.cpu() - wanted).abs().max() <= 8e-3 * (1 + wanted.abs().max())


def test_the_same_bits_every_time(device: str) -> None:
    inputs, order = problem(channels=9, states=1, length=66), shuffled(1, 66)
    first, second = run(inputs, order=order), run(inputs, order=order)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["u", "delta", "A", "C"])
def test_nan_stays_where_it_is(device: str, name: str) -> None:
    inputs = problem(channels=2, states=1)
    inputs[name].view(-1)[inputs[name].numel() // 3] = torch.nan
    got, wanted = run(inputs), run(inputs, "reference")
    assert 0 < wanted["y"].isnan().sum() < wanted["y"].numel()
    for key in ("y", "last", "grad u", "grad delta", "grad B", "grad C"):
        assert torch.equal(got[key].isnan(), wanted[key].isnan()), key


def test_piecewise_with_state_equals_whole(device: str) -> None:
    inputs = {name: x.to(device, torch.float32) for name, x in problem(states=1).items()}
    whole, last = grouped_scan(**inputs, backend="triton")
    state, pieces = inputs["initial_state"], []
    for begin, end in [(0, 1), (1, 67), (67, 70)]:
        piece = {k: x[..., begin:end] if k in ("u", "delta", "B", "C", "z") else x for k, x in inputs.items()}
        y, state = grouped_scan(**piece | {"initial_state": state}, backend="triton")
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, -1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e6])
def test_extreme_step_sizes(device: str, scale: float) -> None:
    inputs = problem(channels=1, length=20, without=OPTIONAL)
    inputs["delta"] = inputs["delta"].abs() * scale
    got, wanted = run(inputs, softplus=False), run(inputs, "reference", softplus=False)
    for name, b in wanted.items():
        assert got[name].isfinite().all()
        assert (got[name] - b).abs().max() <= 2e-5 * b.abs().max() + 1e-30, name


def test_softplus_tails(device: str) -> None:
    """Relative error of delta's own size, also where softplus is nearly nothing."""
    delta = torch.tensor([[[-80.0, -30.0, -10.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 10.0, 19.9, 20.1, 80.0]]], device=device)
    ones = torch.ones_like(delta)
    sums = selective_scan(ones, delta, ones[:, :, 0] * 0, ones, ones, delta_softplus=True, backend="triton")
    wanted = torch.nn.functional.softplus(delta.double()).cumsum(-1)
    torch.testing.assert_close(sums.double(), wanted, rtol=5e-6, atol=0)


def test_growing_states(device: str) -> None:
    """A positive A is no error: states grow, to infinity where float32 ends."""
    ones = torch.ones(1, 1, 70, device=device)
    y, last = selective_scan(ones, ones * 60, ones[:, :, 0], ones, ones, return_last_state=True, backend="triton")
    assert y[0, 0, 1].item() == pytest.approx(60 * (1 + 1.1420073898156842e26), rel=1e-5)
    assert y[0, 0, 2:].isinf().all()
    assert last.isinf().all()


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 2, 20, 16, 80), (1, 1, 9, 64, 66), (1, 1, 1, 1, 4200)])
def test_larger(device: str, sizes: tuple[int, ...]) -> None:
    assert_agrees(problem(*sizes), shuffled(sizes[1], sizes[-1]))


@pytest.mark.slow
def test_more_elements_than_int32_counts(device: str) -> None:
    """A tensor of more than 2^31 elements: its last batch entry alone gives the same."""
    length = 2**20
    u = torch.rand(3, 1, 1024, length, device=device, dtype=torch.bfloat16)
    weights = torch.rand(3, 1, 1, length, device=device, dtype=torch.bfloat16)
    A = -torch.ones(1, 1024, 1, device=device)
    y, last = grouped_scan(u, u, A, weights, weights, backend="triton")
    alone, end = grouped_scan(u[2:], u[2:], A, weights[2:], weights[2:], backend="triton")
    assert torch.equal(y[2:], alone)
    assert torch.equal(last[2:], end)


@pytest.mark.parametrize("along", ["order", "time"])
@pytest.mark.parametrize("sizes", [(2, 2, 5, 35, 4), (1, 1, 66, 3, 1), (1, 2, 1, 1, 8)])
def test_convolution(device: str, sizes: tuple[int, ...], along: str) -> None:
    batch, groups, channels, length, width = sizes
    random = torch.Generator().manual_seed(0)
    shapes = [
        (batch, length, channels),
        (groups, channels, width),
        (groups, channels),
        (batch, groups, channels, length),
    ]
    x, weight, bias, downstream = (torch.randn(*s, generator=random, dtype=torch.float64) for s in shapes)
    inputs = [x.transpose(1, 2) if along == "order" else x.transpose(1, 2).contiguous(), weight, bias]
    order = shuffled(groups, length) if along == "order" else None

    def outcome(backend: str, place: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(place, dtype).requires_grad_() for t in inputs]
        y = grouped_causal_conv(*leaves, None if order is None else order.to(place), backend)
        return [y.detach(), *torch.autograd.grad((y * downstream.to(y)).sum(), leaves)]

    wanted = outcome("reference", "cpu", torch.float64)
    got = outcome("triton", device, torch.float32)
    again = outcome("triton", device, torch.float32)
    for a, b, c in zip(got, wanted, again, strict=True):
        assert a.shape == b.shape
        assert (a.cpu() - b).abs().max() <= 1e-5 * (1 + b.abs().max())
        assert torch.equal(a, c)


def test_convolution_of_half_precision(device: str) -> None:
    x = torch.randn(1, 3, 9).bfloat16()
    weight, bias = torch.randn(2, 3, 4), torch.randn(2, 3)
    y = grouped_causal_conv(x.to(device), weight.to(device), bias.to(device), backend="triton")
    wanted = grouped_causal_conv(x.double(), weight.double(), bias.double(), backend="reference")
    assert y.dtype == torch.bfloat16
    assert (y.cpu() - wanted).abs().max() <= 8e-3 * (1 + wanted.abs().max())


# -- Without a GPU ---------------------------------------------------------------------------------------------------


def interpret(*options: str) -> None:
    """Run the tests above in the interpreter; all pass and none is skipped."""
    these = "not interpreter and not compile and not int32"
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", these, *options, __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "skipped" not in process.stdout, process.stdout


@pytest.mark.skipif(interpreted(), reason="this is it")
def test_in_the_interpreter() -> None:
    interpret()


@pytest.mark.slow
@pytest.mark.skipif(interpreted(), reason="this is it")
def test_larger_in_the_interpreter() -> None:
    interpret("-m", "slow")


TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}


def specialised(kernel: Any, given: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a launch with these arguments would compile, and how: ones, None and flags become constants."""
    from triton.compiler import ASTSource

    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def describe(value: Any, path: tuple[int, ...], constant: bool) -> Any:
        if isinstance(value, tuple):
            return tuple(describe(x, (*path, i), False) for i, x in enumerate(value))
        if constant or value is None or (isinstance(value, int) and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return TYPES[value.dtype] if isinstance(value, Tensor) else "i32"

    values = dict(zip(kernel.arg_names, given, strict=False)) | options
    signature = {p.name: describe(values.pop(p.name), (i,), p.is_constexpr) for i, p in enumerate(kernel.params)}
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes), values


class Launches:
    """Stands in for a kernel and notes how it is launched."""

    def __init__(self, kernel: Any, log: list[Any]) -> None:
        self.kernel, self.log = kernel, log

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *given, **options: self.log.append((self.kernel, given, options))


def launches(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, full: bool) -> list[Any]:
    """Every launch of a scan and a convolution, forward and backward: 3 groups of 40 channels, 16 states."""
    log: list[Any] = []
    scans = ("chunk_ends", "chunk_starts", "across_chunks", "outputs", "gradients", "put_home")
    for module, names in ((scan_triton, scans), (conv_triton, ("convolve", "through_silu", "gather_inputs"))):
        for name in names:
            monkeypatch.setattr(module, name, Launches(getattr(module, name), log))
    groups, channels, states, length = 3, 40, 16, 80
    u = torch.zeros(1, groups, length, channels, dtype=dtype).transpose(-1, -2)
    B = torch.zeros(1, groups, length, states, dtype=dtype).transpose(-1, -2)
    A, own = torch.zeros(groups, channels, states), torch.zeros(groups, channels)
    start, kept = torch.zeros(1, groups, channels, states), torch.zeros(1, groups, 2, states, 48)
    order = torch.zeros(groups, length, dtype=torch.int32) if full else None
    rest = (own, u, own, start) if full else (None, None, None, None)
    grads = [torch.empty(0) if x is None else x for x in (u, u, A, B, B, *rest)]
    given = Scan(u, u, A, B, B, *rest, order, full)
    scan_triton.forward(given, u, start, kept)
    scan_triton.backward(u, start if full else None, kept, given, Gradients(*grads))
    weight = torch.zeros(groups, channels, 4)
    conv_triton.forward(u[:, 0], weight, own, order, u)
    conv_triton.backward(u, u[:, 0], weight, own, order, u[:, 0], weight, own)
    return log


def compile_all(monkeypatch: pytest.MonkeyPatch, target: tuple[Any, ...], dtype: torch.dtype, full: bool) -> None:
    import triton
    from triton.backends.compiler import GPUTarget

    log = launches(monkeypatch, dtype, full)
    assert len({kernel for kernel, *_ in log}) == 9
    for kernel, given, options in log:
        source, left = specialised(kernel, given, options)
        compiled = triton.compile(source, target=GPUTarget(*target), options=left)
        assert compiled.asm["cubin" if target[0] == "cuda" else "hsaco"], kernel


@pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")
def test_kernels_compile_for_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed to compile."""
    compile_all(monkeypatch, ("cuda", 90, 32), torch.float32, True)


@pytest.mark.slow
@pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("dtype", "full"), [(torch.bfloat16, True), (torch.float16, False)])
@pytest.mark.parametrize("target", [("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64), ("hip", "gfx1100", 32)])
def test_kernels_compile_elsewhere(
    monkeypatch: pytest.MonkeyPatch, target: tuple[Any, ...], dtype: torch.dtype, full: bool
) -> None:
    compile_all(monkeypatch, target, dtype, full)
