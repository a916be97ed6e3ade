"""The selective scan: what it computes, and that every backend computes the same."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medvid_core.errors import ConfigError
from medvid_core.ops import choose_backend, scan, scan_torch, selective_scan
from medvid_core.ops.backends import Choice
from medvid_core.ops.scan import grouped_scan

HERE = ["reference", "torch", "cpu"]
FAST = ["torch", "cpu"]
PRECISION = {"reference": torch.float64, "torch": torch.float64, "cpu": torch.float32}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

SIZES = (
    st.integers(1, 3),  # batch
    st.integers(1, 3),  # groups
    st.integers(1, 35),  # channels of a group
    st.integers(1, 64),  # states
    st.integers(1, 200),  # length
    st.integers(0, 99),
)


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


def grouped(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same, for `grouped_scan`."""
    groups = inputs["B"].shape[1]
    axis = {"u": 1, "delta": 1, "z": 1, "initial_state": 1, "A": 0, "D": 0, "delta_bias": 0}
    return {
        name: (x.detach().unflatten(axis[name], (groups, -1)) if name in axis else x.detach()).requires_grad_()
        for name, x in inputs.items()
    }


def results(y: Tensor, last: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs and gradients of a fixed random functional, by name."""
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype) for x in (y, last)]
    names = [name for name, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad]
    loss = (y * weights[0]).sum() + (last * weights[1]).sum()
    grads = torch.autograd.grad(loss, [inputs[name] for name in names])
    return {"y": y, "last": last} | {f"grad {name}": grad for name, grad in zip(names, grads, strict=True)}


def run(inputs: dict[str, Any], backend: str) -> dict[str, Tensor]:
    y, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend=backend)
    return results(y, last, inputs)


def exact(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.detach().double().requires_grad_() for name, x in inputs.items()}


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name, b in wanted.items():
        a = got[name]
        assert a.shape == b.shape, name
        assert (a - b).abs().max() <= tolerance * (1 + b.abs().max()), name


def assert_agrees(inputs: dict[str, Any], backend: str) -> None:
    """`backend`, in its precision, against the reference in float64 on the same numbers."""
    mine = {name: x.detach().to(PRECISION[backend]).requires_grad_() for name, x in inputs.items()}
    assert_same(run(mine, backend), run(exact(mine), "reference"), TOLERANCE[PRECISION[backend]])


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=25, deadline=None)
@given(*SIZES)
def test_backend_agrees_with_reference(backend: str, b: int, g: int, d: int, n: int, length: int, seed: int) -> None:
    assert_agrees(problem(b, g, d, n, length, seed=seed), backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("initial_state",), ("D", "z", "delta_bias")])
def test_optional_inputs(backend: str, absent: tuple[str, ...]) -> None:
    inputs = problem(2, 2, 17, 3, 70)
    assert_agrees({name: x for name, x in inputs.items() if name not in absent}, backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 97, 333, 2100])
def test_lengths_around_the_chunks(backend: str, length: int) -> None:
    assert_agrees(problem(2, 1, 2, 3, length), backend)


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 40, 129])
@pytest.mark.parametrize("states", [1, 16, 64])
def test_channels_around_the_vectors(channels: int, states: int) -> None:
    assert_agrees(problem(1, 2, channels, states, 70), "cpu")


@pytest.mark.parametrize("tile", [1, 100, 1000])
def test_tiles_of_any_size_agree(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_torch, "CPU_TILE", tile)
    assert_agrees(problem(3, 2, 5, 4, 130), "torch")


@pytest.mark.parametrize("backend", HERE)
@settings(max_examples=15, deadline=None)
@given(*SIZES)
def test_orders(backend: str, b: int, g: int, d: int, n: int, length: int, seed: int) -> None:
    """Walking an order equals laying the sequences out in it, scanning, and putting the results back."""
    inputs = grouped(problem(b, g, d, n, length, PRECISION[backend], seed))
    random = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(length, generator=random) for _ in range(g)])
    got = results(*grouped_scan(**inputs, delta_softplus=True, order=order.int(), backend=backend), inputs)

    doubled = exact(inputs)
    moved = {
        name: torch.take_along_dim(x, order[None, :, None], -1) if name in ("u", "delta", "B", "C", "z") else x
        for name, x in doubled.items()
    }
    y, last = grouped_scan(**moved, delta_softplus=True, backend="reference")
    wanted = results(torch.take_along_dim(y, order.argsort(-1)[None, :, None], -1), last, doubled)
    assert_same(got, wanted, TOLERANCE[PRECISION[backend]])


@pytest.mark.parametrize("wrong", ["short", "twice", "beyond", "negative", "type"])
def test_an_order_must_be_a_permutation(wrong: str) -> None:
    """order must hold a permutation of 0 … 4 for each of 2 groups, as int32."""
    order = torch.arange(5, dtype=torch.int32).repeat(2, 1)
    if wrong == "short":
        order = order[:, :4]
    elif wrong == "type":
        order = order.long()
    else:
        order[1, 2] = {"twice": 1, "beyond": 5, "negative": -1}[wrong]
    inputs = grouped(problem(1, 2, 3, 2, 5, torch.float32))
    with pytest.raises(ValueError, match="permutation") as error:
        grouped_scan(**inputs, order=order, backend="cpu")
    assert str(error.value) == test_an_order_must_be_a_permutation.__doc__


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"])
def test_groups_that_do_not_fit_name_the_argument(name: str) -> None:
    inputs = grouped(problem(2, 2, 3, 4, 9, torch.float32))
    inputs[name] = inputs[name].detach()[..., :-1]
    with pytest.raises(ValueError, match=r"^[a-zA-Z_]+ must have shape"):
        grouped_scan(**inputs, backend="cpu")


@pytest.mark.parametrize("layout", ["channels side by side", "times side by side", "neither", "expanded"])
@pytest.mark.parametrize("backend", FAST)
def test_any_strides(backend: str, layout: str) -> None:
    inputs = problem(2, 1, 33, 5, 90, PRECISION[backend])
    wanted = run(inputs, backend)
    for name in ("u", "delta", "B", "C", "z"):
        x = inputs[name].detach()
        if layout == "channels side by side":
            x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
        elif layout == "neither":
            x = torch.stack([x, x], -1).flatten(-2)[..., ::2]
        elif layout == "expanded":
            x = x[:1].expand_as(x)
        inputs[name] = x.requires_grad_()
    if layout == "expanded":
        wanted = run({name: x.detach().contiguous().requires_grad_() for name, x in inputs.items()}, backend)
    assert_same(run(inputs, backend), wanted, 1e-6)


def test_gradcheck() -> None:
    inputs = problem(2, 2, 2, 2, 70)
    names = list(inputs)

    def function(*tensors: Tensor) -> Any:
        return selective_scan(
            **dict(zip(names, tensors, strict=True)), delta_softplus=True, return_last_state=True, backend="torch"
        )

    assert torch.autograd.gradcheck(function, tuple(inputs.values()), nondet_tol=0.0)


@pytest.mark.parametrize("backend", HERE)
def test_piecewise_with_state_equals_whole(backend: str) -> None:
    inputs = problem(2, 1, 4, 5, 150, PRECISION[backend])
    whole, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend=backend)
    state, pieces = inputs["initial_state"], []
    for begin, end in [(0, 1), (1, 70), (70, 150)]:
        piece = {k: x[..., begin:end] if k in ("u", "delta", "B", "C", "z") else x for k, x in inputs.items()}
        piece["initial_state"] = state
        y, state = selective_scan(**piece, delta_softplus=True, return_last_state=True, backend=backend)
        pieces.append(y)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}[PRECISION[backend]]
    torch.testing.assert_close(torch.cat(pieces, -1), whole, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state, last, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", HERE)
def test_by_hand(backend: str) -> None:
    """Two steps, one state: h = 0.5 * 3 + 1 * 2 * 5 = 11.5, then 0.25 * 11.5 + 2 * 1 * 7."""
    dtype = PRECISION[backend]
    log_half = float(torch.log(torch.tensor(0.5, dtype=torch.float64)))
    t = lambda *x: torch.tensor([[x]], dtype=dtype)  # noqa: E731
    y, last = selective_scan(
        t(2.0, 1.0),
        t(1.0, 2.0),
        torch.tensor([[log_half]], dtype=dtype),
        t(5.0, 7.0),
        t(1.0, 10.0),
        return_last_state=True,
        initial_state=t(3.0),
        backend=backend,
    )
    torch.testing.assert_close(y, t(11.5, 10 * (0.25 * 11.5 + 14)))
    torch.testing.assert_close(last, t(0.25 * 11.5 + 14))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 100.0, 1e6])
def test_extreme_step_sizes(backend: str, scale: float) -> None:
    """Decays of exactly 1 and of exactly 0 give finite, exact results and gradients."""
    inputs = problem(1, 1, 2, 4, 200, dtype=torch.float32)
    inputs["delta"] = (inputs["delta"].detach().abs() * scale).requires_grad_()
    for name in ("z", "D", "delta_bias"):
        inputs.pop(name)

    def outcome(x: dict[str, Any], backend: str) -> list[Tensor]:
        y = selective_scan(**x, backend=backend)
        return [y, *torch.autograd.grad(y.sum(), list(x.values()))]

    for a, b in zip(outcome(inputs, backend), outcome(exact(inputs), "reference"), strict=True):
        assert a.isfinite().all()
        assert (a - b).abs().max() <= 2e-5 * b.abs().max() + 1e-30


@pytest.mark.parametrize("backend", HERE)
def test_softplus_tails(backend: str) -> None:
    """From steps of nearly nothing to the straight part; relative error of delta's own size."""
    delta = torch.tensor([[[-80.0, -30.0, -10.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 10.0, 19.9, 20.1, 80.0]]])
    ones = torch.ones_like(delta)
    # y_t = delta_t: no memory is left of what was before
    y = selective_scan(ones, delta, torch.full((1, 1), -1e4), ones, ones, delta_softplus=True, backend=backend)
    got = selective_scan(ones, delta, torch.zeros(1, 1), ones, ones, delta_softplus=True, backend=backend)
    wanted = torch.nn.functional.softplus(delta.double())
    torch.testing.assert_close(y[..., 5:].double(), wanted[..., 5:], rtol=1e-6, atol=0)
    torch.testing.assert_close(got.double(), wanted.cumsum(-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", HERE)
def test_growing_states(backend: str) -> None:
    """A positive A is no error: states grow, to infinity where float32 ends."""
    ones = torch.ones(1, 1, 5)
    y = selective_scan(ones, ones * 60, torch.ones(1, 1), ones, ones, backend=backend)
    assert y[0, 0, :2].isfinite().all()
    assert y[0, 0, 1] == pytest.approx(60 * (1 + 1.1420073898156842e26), rel=1e-5)
    assert y[0, 0, 2:].isinf().all()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"])
def test_nan_stays_where_it_is(backend: str, name: str) -> None:
    """NaN in the same places of outputs and gradients as by the reference."""
    inputs = problem(2, 2, 20, 3, 90, torch.float32)
    poisoned = inputs[name].detach().clone()
    poisoned.view(-1)[poisoned.numel() // 3] = torch.nan
    inputs[name] = poisoned.requires_grad_()
    got, wanted = run(inputs, backend), run(inputs, "reference")
    assert wanted["y"].isnan().any()
    assert not wanted["y"].isnan().all()
    for key in ("y", "last", "grad u", "grad delta", "grad B", "grad C"):
        assert torch.equal(got[key].isnan(), wanted[key].isnan()), key


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types(dtype: torch.dtype, backend: str) -> None:
    """Output in u's type; the state in float32, or float64 for float64."""
    if backend == "cpu" and dtype == torch.float64:
        pytest.skip("the backend computes in float32")
    inputs = problem(1, 1, 3, 4, 80, dtype=dtype)
    got = run(inputs, backend)
    assert got["y"].dtype == dtype
    assert got["last"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(got[f"grad {name}"].dtype == x.dtype for name, x in inputs.items())
    wanted = run(exact(inputs), "reference")
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    assert (got["y"] - wanted["y"]).abs().max() <= tolerance * wanted["y"].abs().max()


@pytest.mark.parametrize("backend", HERE)
def test_autocast_changes_nothing(backend: str) -> None:
    inputs = problem(1, 2, 3, 4, 80, torch.float32)
    plain = run(inputs, backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(inputs, backend)
    assert all(torch.equal(got[name], x) and got[name].dtype == x.dtype for name, x in plain.items())


def test_mixed_types() -> None:
    """Whatever autocast made of some of them: computed in float32, given back in u's type."""
    inputs = problem(1, 1, 3, 4, 80, torch.float32)
    for name in ("delta", "B", "z"):
        inputs[name] = inputs[name].detach().bfloat16().requires_grad_()
    for backend in FAST:
        got = run(inputs, backend)
        assert got["y"].dtype == torch.float32
        assert got["grad delta"].dtype == torch.bfloat16
        wanted = run(exact(inputs), "reference")
        assert (got["y"] - wanted["y"]).abs().max() <= 1e-5 * wanted["y"].abs().max()


@pytest.mark.parametrize("backend", HERE)
def test_softplus_threshold_is_20(backend: str) -> None:
    inputs = problem(1, 1, 1, 1, 3, dtype=torch.float32)
    inputs["delta"] = torch.tensor([[[19.9, 20.5, 30.0]]])
    plain = {**inputs, "delta": torch.nn.functional.softplus(inputs["delta"], threshold=20.0)}
    plain["delta_bias"] = inputs["delta_bias"] = torch.zeros(1)
    got, wanted = (
        selective_scan(**x, delta_softplus=on, backend=backend) for x, on in ((inputs, True), (plain, False))
    )
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", HERE)
def test_three_dimensional_b_and_c(backend: str) -> None:
    inputs = problem(2, 1, 3, 4, 40, PRECISION[backend])
    flat = {**inputs, "B": inputs["B"][:, 0], "C": inputs["C"][:, 0]}
    assert torch.equal(selective_scan(**flat, backend=backend), selective_scan(**inputs, backend=backend))


@pytest.mark.parametrize("backend", FAST)
def test_backward_is_deterministic(backend: str) -> None:
    inputs = problem(1, 3, 40, 16, 500, dtype=torch.float32)
    first, second = run(inputs, backend), run(inputs, backend)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    inputs = problem(2, 1, 200, 16, 300, dtype=torch.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(run(inputs, "cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


@pytest.mark.parametrize("backend", FAST)
def test_little_is_kept_for_the_backward_pass(backend: str) -> None:
    """Between forward and backward no more than inputs and one state per chunk of each channel is held."""
    inputs = problem(1, 1, 16, 16, 4096, dtype=torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        selective_scan(*(inputs[k] for k in ("u", "delta", "A", "B", "C")), backend=backend)
    assert len(kept) >= 6
    assert max(x.numel() for x in kept) == inputs["B"].numel() == inputs["u"].numel()


def test_operations_are_counted_alike() -> None:
    """9 per element of u and state, twice that backwards (the count of the VMamba paper)."""
    counts = []
    for backend in FAST:
        inputs = problem(1, 2, 3, 4, 50, torch.float32)
        with FlopCounterMode(display=False) as counter:
            run(inputs, backend)
        counts.append(counter.get_total_flops())
    assert counts == [27 * 6 * 4 * 50] * 2


@pytest.mark.parametrize("backend", FAST)
def test_compile_and_export(backend: str) -> None:
    class Scan(torch.nn.Module):
        def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
            y = selective_scan(u * 2, delta, A, B, C, delta_softplus=True, backend=backend)
            assert isinstance(y, Tensor)
            return y + 1

    inputs = problem(1, 2, 3, 4, 30, torch.float32)
    tensors = tuple(inputs[name] for name in ("u", "delta", "A", "B", "C"))
    wanted = Scan()(*tensors)
    wanted_grads = torch.autograd.grad(wanted.sum(), tensors)
    compiled = torch.compile(Scan(), backend="aot_eager", fullgraph=True)(*tensors)
    torch.testing.assert_close(compiled, wanted)
    torch.testing.assert_close(torch.autograd.grad(compiled.sum(), tensors), wanted_grads)
    length = torch.export.Dim("length", min=2, max=4096)
    shapes = ({2: length}, {2: length}, None, {3: length}, {3: length})
    with torch.no_grad():
        exported = torch.export.export(Scan(), tensors, dynamic_shapes=shapes if backend == "cpu" else None).module()
    torch.testing.assert_close(exported(*tensors), wanted)
    if backend == "cpu":
        longer = problem(1, 2, 3, 4, 77, torch.float32)
        tensors = tuple(longer[name] for name in ("u", "delta", "A", "B", "C"))
        torch.testing.assert_close(exported(*tensors), Scan()(*tensors))


@pytest.mark.parametrize("operator", ["selective_scan", "chunked_scan"])
def test_operators_keep_their_promises(operator: str) -> None:
    """PyTorch's own check of schema, fake shapes and autograd registration."""
    inputs = problem(2, 2, 3, 4, 70, torch.float32)
    if operator == "chunked_scan":
        names = ("u", "delta", "A", "B", "C", "initial_state")
        torch.library.opcheck(torch.ops.medvid.chunked_scan.default, tuple(inputs[name] for name in names))
        return
    tensors = tuple(grouped(inputs).values())
    order = torch.arange(70, dtype=torch.int32).flip(0).repeat(2, 1)
    torch.library.opcheck(torch.ops.medvid.selective_scan.default, (*tensors, order, True, "cpu", True))


def second_derivative(function: Any, u: Tensor) -> None:
    (first,) = torch.autograd.grad(function(u).square().sum(), u, create_graph=True)
    torch.autograd.grad(first.sum(), u)


@pytest.mark.parametrize("backend", FAST)
def test_derivatives_there_are_none_of_are_refused(backend: str) -> None:
    """Forward-mode and second derivatives would be zero, or a part of the truth."""
    inputs = problem(1, 1, 2, 3, 9, torch.float32)
    u = inputs.pop("u")

    def run(u: Tensor) -> Tensor:
        return selective_scan(u, **inputs, backend=backend)

    with pytest.raises(NotImplementedError, match="forward-mode derivative"):
        torch.func.jvp(run, (u.detach(),), (torch.ones_like(u),))
    with pytest.raises((RuntimeError, NotImplementedError)):
        second_derivative(run, u)


def test_the_definition_has_every_derivative() -> None:
    inputs = problem(1, 1, 2, 3, 9)
    u = inputs.pop("u")
    weight = torch.linspace(-1, 1, u.numel(), dtype=u.dtype).view(u.shape)

    def run(u: Tensor) -> Tensor:
        return selective_scan(u, **inputs, delta_softplus=True, backend="reference")

    _, along = torch.func.jvp(run, (u.detach(),), (weight,))
    step = 1e-6 * weight
    torch.testing.assert_close(along, (run(u + step) - run(u - step)) / 2e-6, rtol=1e-6, atol=1e-6)
    second_derivative(run, u)


def test_unknown_backend() -> None:
    """No scan backend 'troch'; known: auto, reference, torch, cpu, triton, mamba_ssm. Did you mean 'torch'?"""
    with pytest.raises(ConfigError) as error:
        selective_scan(**problem(1, 1, 1, 1, 1), backend="troch")
    assert str(error.value) == test_unknown_backend.__doc__


def test_backend_that_does_not_fit() -> None:
    """Scan backend 'cpu' cannot be used here: it does not compute in float64. Choose auto."""
    with pytest.raises(ConfigError) as error:
        selective_scan(**problem(1, 1, 1, 1, 1), backend="cpu")
    assert str(error.value) == test_backend_that_does_not_fit.__doc__


def test_automatic_choice() -> None:
    assert choose_backend("auto", "cpu").name == "cpu"
    assert choose_backend("auto", "cpu", torch.bfloat16).name == "cpu"
    choice = choose_backend("auto", "cpu", torch.float64)
    assert choice.name == "torch"
    assert choice.reason == "first choice for cpu tensors; not cpu: it does not compute in float64"
    assert choose_backend("reference", "cpu").reason == "asked for by name"


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"])
@pytest.mark.parametrize("wrong", ["shape", "type", "device"])
def test_wrong_tensor_names_the_argument(name: str, wrong: str) -> None:
    inputs = problem(2, 1, 3, 4, 5)
    x = inputs[name].detach()
    inputs[name] = {
        "shape": torch.zeros(x.shape[0] + 1, 9, dtype=torch.float64),
        "type": x.to(torch.complex64),
        "device": x.to("meta"),
    }[wrong]
    # on another device than u is, everything else is the odd one
    with pytest.raises(
        ValueError, match="^delta must be on meta" if (name, wrong) == ("u", "device") else f"^{name} must"
    ):
        selective_scan(**inputs)


def test_empty_sequence_and_groups_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"^u must .* L at least 1"):
        selective_scan(torch.zeros(1, 2, 0), torch.zeros(1, 2, 0), -torch.ones(2, 1), *[torch.zeros(1, 1, 0)] * 2)
    with pytest.raises(ValueError, match=r"^B must .* G dividing D = 3"):
        selective_scan(*[torch.zeros(1, 3, 4)] * 2, -torch.ones(3, 1), *[torch.zeros(1, 2, 1, 4)] * 2)


@pytest.fixture
def mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the CUDA package, by the reference."""

    def selective_scan_fn(
        u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, softplus: bool, return_last_state: bool
    ) -> Any:
        assert all(x is None or x.is_contiguous() for x in (u, delta, A, B, C, D, z, bias))
        assert return_last_state
        return selective_scan(u, delta, A, B, C, D, z, bias, softplus, True, backend="reference")

    interface = SimpleNamespace(selective_scan_fn=selective_scan_fn)
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
    monkeypatch.setattr(scan, "choose_backend", lambda name, *_: Choice(name, ""))


@pytest.mark.usefixtures("mamba_ssm")
def test_mamba_ssm_is_called_as_it_wants() -> None:
    inputs = problem(2, 2, 3, 4, 20)
    del inputs["initial_state"]
    got, wanted = (selective_scan(**inputs, delta_softplus=True, backend=name) for name in ("mamba_ssm", "reference"))
    assert isinstance(got, Tensor)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), inputs["B"]), torch.autograd.grad(wanted.sum(), inputs["B"])
    )


@pytest.mark.usefixtures("mamba_ssm")
def test_what_mamba_ssm_cannot_do_is_refused() -> None:
    inputs = problem(1, 1, 3, 4, 20)
    with pytest.raises(ConfigError, match="'mamba_ssm' cannot start from a state"):
        selective_scan(**inputs, backend="mamba_ssm")
    del inputs["initial_state"]
    _, last = selective_scan(**inputs, return_last_state=True, backend="mamba_ssm")
    with pytest.raises(ConfigError, match="'mamba_ssm' gives no gradient through the last state"):
        last.sum().backward()
