"""The selective scan as operators of PyTorch, ``medvid::selective_scan`` and its backward.

A compiled backend is a module with two functions, `forward` and `backward`, called through these operators; shapes for
`torch.compile` and `torch.export`, gradients and the FLOP formula are given here once for all of them.

Channels come as G groups of R, with any strides, so that a layer can keep the layout its matrix products like best:

    u, delta, z    [B,G,R,L]                B, C            [B,G,N,L]
    A              [G,R,N] float32          initial_state   [B,G,R,N] float32
    D, delta_bias  [G,R] float32            order           [G,L] int32

`order` holds a permutation for each group: its scan visits position ``order[g, 0]``, then ``order[g, 1]``, and so on;
every tensor, the output too, stays where it is. None is 0, 1, 2, ….

The forward pass may keep the states that enter each chunk of `CHUNK` visited positions; the backward pass starts from
them and computes the rest again, so that nothing of size B*D*L*N is ever held.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

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


_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, Tensor? order, bool softplus, str backend"
)


@torch.library.custom_op(
    "medvid::selective_scan", mutates_args=(), schema=f"({_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor)"
)
def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    order: Tensor | None,
    softplus: bool,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan by one backend.

    Args:
        softplus: whether delta + delta_bias passes through softplus.
        backend: a key of `MODULES`.
        keep: whether to keep states for the backward pass.

    Returns:
        y [B,G,R,L], of the type and strides of u; the last state [B,G,R,N] float32; the states entering each chunk,
        [B, G, ceil(L/CHUNK), N, R padded to a multiple of LANES] float32, or none of them.
    """
    y = torch.empty_like(u)
    last = torch.empty(*u.shape[:3], A.shape[-1], dtype=torch.float32, device=u.device)
    states = torch.empty(_states_shape(u, A, keep), dtype=torch.float32, device=u.device)
    _module(backend).forward(u, delta, A, B, C, D, z, delta_bias, initial_state, order, softplus, y, last, states)
    return y, last, states


@torch.library.register_fake(scan)
def _(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    keep: bool = rest[-1]
    last = u.new_empty(*u.shape[:3], A.shape[-1], dtype=torch.float32)
    return torch.empty_like(u), last, u.new_empty(_states_shape(u, A, keep), dtype=torch.float32)


_GRADIENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


@torch.library.custom_op(
    "medvid::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor? grad_y, Tensor? grad_last, Tensor states, {_INPUTS}) -> Tensor[]",
)
def scan_backward(
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    order: Tensor | None,
    softplus: bool,
    backend: str,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias and initial_state, each of its tensor's type and strides.

    The gradient of an absent input is an empty tensor.
    """
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    if grad_y is None:
        grad_y = torch.zeros_like(u)
    grads = _like(inputs)
    _module(backend).backward(grad_y, grad_last, states, *inputs, order, softplus, *grads)
    return grads


def _like(inputs: tuple[Tensor | None, ...]) -> list[Tensor]:
    first = inputs[0]
    assert first is not None
    return [first.new_empty(0) if x is None else torch.empty_like(x) for x in inputs]


@torch.library.register_fake(scan_backward)
def _(grad_y: Tensor | None, grad_last: Tensor | None, states: Tensor, *inputs: Any) -> list[Tensor]:
    return _like(inputs[: len(_GRADIENTS)])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, ctx.backend, _ = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    states, *tensors = ctx.saved_tensors
    found = scan_backward(grad_y, grad_last, states, *tensors, ctx.softplus, ctx.backend)
    wanted = (
        grad if needed else None for grad, needed in zip(found, ctx.needs_input_grad[: len(_GRADIENTS)], strict=True)
    )
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
