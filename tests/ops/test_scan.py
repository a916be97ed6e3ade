"""The selective scan: what it computes, and that every backend computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medvid_core.errors import ConfigError
from medvid_core.ops import BACKENDS, scan_torch, selective_scan

FAST = [name for name in BACKENDS if name != "reference"]


def problem(
    batch: int, groups: int, per_group: int, states: int, length: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    channels = groups * per_group
    return {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": (-torch.rand(channels, states, generator=g, dtype=torch.float64) * 4).to(dtype).requires_grad_(),
        "B": normal(batch, groups, states, length),
        "C": normal(batch, groups, states, length),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
        "initial_state": normal(batch, channels, states),
    }


def run(inputs: dict[str, Any], backend: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    y, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend=backend)
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype) for x in (y, last)]
    names = [name for name, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad]
    loss = (y * weights[0]).sum() + (last * weights[1]).sum()
    grads = torch.autograd.grad(loss, [inputs[name] for name in names])
    return [y, last], dict(zip(names, grads, strict=True))


def assert_same(inputs: dict[str, Any], backend: str, tolerance: float = 1e-10) -> None:
    wanted, wanted_grads = run(inputs, "reference")
    got, got_grads = run(inputs, backend)
    for name, a, b in [
        ("y", got[0], wanted[0]),
        ("last", got[1], wanted[1]),
        *((name, got_grads[name], grad) for name, grad in wanted_grads.items()),
    ]:
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert (a - b).abs().max() <= tolerance * (1 + b.abs().max()), name


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 64), st.integers(1, 200), st.integers(0, 99)
)
def test_backend_agrees_with_reference(backend: str, b: int, g: int, d: int, n: int, length: int, seed: int) -> None:
    assert_same(problem(b, g, d, n, length, seed=seed), backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 97, 333, 2100])
def test_lengths_around_the_chunks(backend: str, length: int) -> None:
    assert_same(problem(2, 1, 2, 3, length), backend)


@pytest.mark.parametrize("tile", [1, 100, 1000])
def test_tiles_of_any_size_agree(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_torch, "CPU_TILE", tile)
    assert_same(problem(3, 2, 5, 4, 130), "torch")


def test_gradcheck() -> None:
    inputs = problem(2, 2, 2, 2, 70)
    names = list(inputs)

    def function(*tensors: Tensor) -> Any:
        return selective_scan(
            **dict(zip(names, tensors, strict=True)), delta_softplus=True, return_last_state=True, backend="torch"
        )

    assert torch.autograd.gradcheck(function, tuple(inputs.values()), nondet_tol=0.0)


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_piecewise_with_state_equals_whole(backend: str) -> None:
    inputs = problem(2, 1, 4, 5, 150)
    whole, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend=backend)
    state, pieces = inputs["initial_state"], []
    for begin, end in [(0, 1), (1, 70), (70, 150)]:
        piece = {k: x[..., begin:end] if k in ("u", "delta", "B", "C", "z") else x for k, x in inputs.items()}
        piece["initial_state"] = state
        y, state = selective_scan(**piece, delta_softplus=True, return_last_state=True, backend=backend)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, -1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_by_hand(backend: str) -> None:
    """Two steps, one state: h = 0.5 * 3 + 1 * 2 * 5 = 11.5, then 0.25 * 11.5 + 2 * 1 * 7."""
    log_half = float(torch.log(torch.tensor(0.5, dtype=torch.float64)))
    t = lambda *x: torch.tensor([[x]], dtype=torch.float64)  # noqa: E731
    y, last = selective_scan(
        t(2.0, 1.0),
        t(1.0, 2.0),
        torch.tensor([[log_half]], dtype=torch.float64),
        t(5.0, 7.0),
        t(1.0, 10.0),
        return_last_state=True,
        initial_state=t(3.0),
        backend=backend,
    )
    torch.testing.assert_close(y, t(11.5, 10 * (0.25 * 11.5 + 14)))
    torch.testing.assert_close(last, t(0.25 * 11.5 + 14))


@pytest.mark.parametrize("backend", list(BACKENDS))
@pytest.mark.parametrize("scale", [0.0, 1e-30, 100.0, 1e6])
def test_extreme_step_sizes(backend: str, scale: float) -> None:
    """Decays of exactly 1 and of exactly 0 give finite, exact results and gradients."""
    inputs = problem(1, 1, 2, 4, 200, dtype=torch.float32)
    inputs["delta"] = (inputs["delta"].detach().abs() * scale).requires_grad_()
    for name in ("z", "D", "delta_bias"):
        inputs.pop(name)
    exact = {k: x.detach().double().requires_grad_() for k, x in inputs.items()}

    def outcome(x: dict[str, Any], backend: str) -> list[Tensor]:
        y = selective_scan(**x, backend=backend)
        return [y, *torch.autograd.grad(y.sum(), list(x.values()))]

    for a, b in zip(outcome(inputs, backend), outcome(exact, "reference"), strict=True):
        assert a.isfinite().all()
        assert (a - b).abs().max() <= 2e-5 * b.abs().max() + 1e-30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    """Output in u's type; the state in float32, or float64 for float64."""
    inputs = problem(1, 1, 3, 4, 80, dtype=dtype)
    got, grads = run(inputs, "torch")
    assert got[0].dtype == dtype
    assert got[1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(grads[name].dtype == x.dtype for name, x in inputs.items())
    exact, _ = run({k: x.detach().double().requires_grad_() for k, x in inputs.items()}, "reference")
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    assert (got[0] - exact[0]).abs().max() <= tolerance * exact[0].abs().max()


def test_softplus_threshold_is_20() -> None:
    inputs = problem(1, 1, 1, 1, 3, dtype=torch.float32)
    inputs["delta"] = torch.tensor([[[19.9, 20.5, 30.0]]])
    plain = {**inputs, "delta": torch.nn.functional.softplus(inputs["delta"], threshold=20.0)}
    plain["delta_bias"] = inputs["delta_bias"] = torch.zeros(1)
    assert torch.equal(selective_scan(**inputs, delta_softplus=True), selective_scan(**plain))


def test_three_dimensional_b_and_c() -> None:
    inputs = problem(2, 1, 3, 4, 40)
    flat = {**inputs, "B": inputs["B"][:, 0], "C": inputs["C"][:, 0]}
    assert torch.equal(selective_scan(**flat), selective_scan(**inputs))


def test_backward_is_deterministic() -> None:
    inputs = problem(2, 3, 8, 16, 500, dtype=torch.float32)
    first, second = run(inputs, "torch")[1], run(inputs, "torch")[1]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_states_between_chunks_are_kept() -> None:
    """Between forward and backward no more than inputs and one state per chunk of each channel is held."""
    inputs = problem(1, 1, 8, 16, 4096, dtype=torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        selective_scan(*(inputs[k] for k in ("u", "delta", "A", "B", "C")))
    assert max(x.numel() for x in kept) == inputs["B"].numel() < inputs["u"].numel() * 16


def test_unknown_backend() -> None:
    """No scan backend 'troch'; known: auto, reference, torch. Did you mean 'torch'?"""
    with pytest.raises(ConfigError) as error:
        selective_scan(**problem(1, 1, 1, 1, 1), backend="troch")
    assert str(error.value) == test_unknown_backend.__doc__


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"])
def test_wrong_shape_names_the_argument(name: str) -> None:
    inputs = problem(2, 1, 3, 4, 5)
    inputs[name] = torch.zeros(inputs[name].shape[0] + 1, 9, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"^{name} must"):
        selective_scan(**inputs)


def test_empty_sequence_and_groups_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"^u must .* L at least 1"):
        selective_scan(torch.zeros(1, 2, 0), torch.zeros(1, 2, 0), -torch.ones(2, 1), *[torch.zeros(1, 1, 0)] * 2)
    with pytest.raises(ValueError, match=r"^B must .* G dividing D = 3"):
        selective_scan(*[torch.zeros(1, 3, 4)] * 2, -torch.ones(3, 1), *[torch.zeros(1, 2, 1, 4)] * 2)
