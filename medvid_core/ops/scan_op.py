"""The selective scan as operators of PyTorch, ``medvid::selective_scan`` and its backward.

A compiled backend is a module with two functions, `forward` and `backward`, called through these operators; shapes for
`torch.compile` and `torch.export`, gradients and the FLOP formula are given here once for all of them.

Channels come as G groups of R, with any strides, so that a layer can keep the layout its matrix products like best:

    u, delta, z    [B,G,R,L]                B, C            [B,G,N,L]
    A              [G,R,N] float32          initial_state   [B,G,R,N] float32
    D, delta_bias  [G,R] float32            order           [G,L] int32

`order` holds a permutation for each group: its scan visits position ``order[g, 0]``, then ``order[g, 1]``, and so on;
every tensor, the output too, stays where it is. None is 0, 1, 2, ….

The forward pass may keep the states that enter each chunk of `CHUNK` visited positions (where L is no multiple, the
backend decides which chunk is short); the backward pass starts from them and computes the rest again, so that nothing
of size B*D*L*N is ever held.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

CHUNK = 64
"""Visited positions between two kept states."""

LANES = 16
"""Channels of the kept states are padded to a multiple of this."""

MODULES = {"cpu": "medvid_core.ops.scan_cpu", "triton": "medvid_core.ops.scan_triton"}


def _module(backend: str) -> ModuleType:
    return importlib.import_module(MODULES[backend])


def _states_shape(u: Tensor, A: Tensor, keep: bool) -> tuple[int, ...]:
    batch, groups, channels, length = u.shape
    chunks = -(-length // CHUNK) if keep else 0
    return (batch, groups, chunks, A.shape[-1], -(-channels // LANES) * LANES)


class Scan(NamedTuple):
    """What a scan reads, in the shapes above; `softplus` says whether delta + delta_bias passes through it."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    order: Tensor | None
    softplus: bool


class Gradients(NamedTuple):
    """Where the gradients go, each of its tensor's type; that of an absent input is empty."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor
    delta_bias: Tensor
    initial_state: Tensor


_SCHEMA = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, Tensor? order, bool softplus, str backend"
)


@torch.library.custom_op(
    "medvid::selective_scan", mutates_args=(), schema=f"({_SCHEMA}, bool keep) -> (Tensor, Tensor, Tensor)"
)
def scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan by one backend.

    Args:
        arguments: the fields of `Scan`; a key of `MODULES`; whether to keep states for the backward pass.

    Returns:
        y [B,G,R,L], of the type and strides of u; the last state [B,G,R,N] float32; the states entering each chunk,
        [B, G, ceil(L/CHUNK), N, R padded to a multiple of LANES] float32, or none of them.
    """
    *inputs, backend, keep = arguments
    given = Scan(*inputs)
    y, last, states = _outputs(given.u, given.A, keep)
    _module(backend).forward(given, y, last, states)
    return y, last, states


def _outputs(u: Tensor, A: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    last = u.new_empty(*u.shape[:3], A.shape[-1], dtype=torch.float32)
    return torch.empty_like(u), last, u.new_empty(_states_shape(u, A, keep), dtype=torch.float32)


@torch.library.register_fake(scan)
def _(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(u, A, rest[-1])


@torch.library.custom_op(
    "medvid::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor? grad_y, Tensor? grad_last, Tensor states, {_SCHEMA}) -> Tensor[]",
)
def scan_backward(grad_y: Tensor | None, grad_last: Tensor | None, states: Tensor, *arguments: Any) -> list[Tensor]:
    """The fields of `Gradients`, for the fields of `Scan` and a key of `MODULES`."""
    *inputs, backend = arguments
    given = Scan(*inputs)
    if grad_y is None:
        grad_y = torch.zeros_like(given.u)
    if states.shape[2] == 0:  # exported without gradients, and now differentiated all the same
        y, last, states = _outputs(given.u, given.A, True)
        _module(backend).forward(given, y, last, states)
    grads = _like(inputs)
    _module(backend).backward(grad_y, grad_last, states, given, Gradients(*grads))
    return grads


def _like(inputs: Sequence[Any]) -> list[Tensor]:
    tensors = inputs[: len(Gradients._fields)]
    return [inputs[0].new_empty(0) if x is None else torch.empty_like(x) for x in tensors]


@torch.library.register_fake(scan_backward)
def _(grad_y: Tensor | None, grad_last: Tensor | None, states: Tensor, *inputs: Any) -> list[Tensor]:
    return _like(inputs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, ctx.backend, _ = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    states, *tensors = ctx.saved_tensors
    found = scan_backward(grad_y, grad_last, states, *tensors, ctx.softplus, ctx.backend)
    wanted = (grad if needed else None for grad, needed in zip(found, ctx.needs_input_grad[: len(found)], strict=True))
    return (*wanted, None, None, None, None)


torch.library.register_autograd(scan, _backward, setup_context=_setup_context)


def scan_flops(u_shape: tuple[int, ...], states: int) -> int:
    """Floating-point operations of the recurrence, 9 for every element of u and state (Liu et al., VMamba, 2024)."""
    count = 9 * states
    for size in u_shape:
        count *= size
    return count


@register_flop_formula(torch.ops.medvid.selective_scan)
def _(u_shape: tuple[int, ...], delta_shape: Any, A_shape: tuple[int, ...], *rest: Any, **options: Any) -> int:
    return scan_flops(u_shape, A_shape[-1])


@register_flop_formula(torch.ops.medvid.selective_scan_backward)
def _(
    grad_y: Any,
    grad_last: Any,
    states: Any,
    u_shape: tuple[int, ...],
    delta: Any,
    A_shape: tuple[int, ...],
    *rest: Any,
    **options: Any,
) -> int:
    return 2 * scan_flops(u_shape, A_shape[-1])  # as for matrix products: the backward pass counts twice
