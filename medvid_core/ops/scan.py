"""The selective scan of Mamba (Gu and Dao, 2023, algorithm 2), with the semantics of mamba-ssm's ``selective_scan_fn``.

For every batch entry, channel d and state n, with h_0 the initial state (zero unless given):

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t          y_t = sum_n C_t h_t  (+ D u_t)  (* silu(z_t))

`selective_scan` is for users, `grouped_scan` for layers that run several scans at once. Half-precision inputs are
computed in float32, also under autocast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medvid_core.errors import ConfigError
from medvid_core.ops import scan_op
from medvid_core.ops.backends import choose_backend, refuse_tangents
from medvid_core.ops.scan_op import Scan
from medvid_core.ops.scan_torch import chunked_scan

Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""u, delta [B,D,L], A [D,N], B, C [B,G,N,L], initial_state [B,D,N] -> y [B,D,L], last_state [B,D,N]."""


def reference_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition: one step after the other, gradients by autograd. Shapes as in `Recurrence`."""
    per_group = u.shape[1] // B.shape[1]
    B = B.repeat_interleave(per_group, dim=1)  # [B,D,N,L]
    C = C.repeat_interleave(per_group, dim=1)
    state = initial_state
    outputs = []
    # unbind, not indexing: the backward of L indexings would be quadratic in L
    steps = zip(u.unbind(-1), delta.unbind(-1), B.unbind(-1), C.unbind(-1), strict=True)
    for u_t, delta_t, B_t, C_t in steps:
        state = torch.exp(delta_t[..., None] * A) * state + (delta_t * u_t)[..., None] * B_t
        outputs.append((state * C_t).sum(-1))
    return torch.stack(outputs, dim=-1), state


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the recurrence above along the last axis.

    Args:
        u: input [B,D,L], L at least 1.
        delta: step sizes [B,D,L], before bias and softplus.
        A: real transition [D,N], negative where states should decay.
        B: input weights [B,N,L], or [B,G,N,L] where D/G successive channels share a group.
        C: output weights, shaped as B.
        D: skip weights [D].
        z: gate [B,D,L]; the output is multiplied by silu(z).
        delta_bias: [D], added to delta before softplus.
        delta_softplus: whether delta passes through softplus (threshold 20).
        return_last_state: return ``(y, h_L)`` instead of y.
        initial_state: h_0 [B,D,N].
        backend: ``auto`` or a key of `BACKENDS`.

    Returns:
        y [B,D,L] in u's type; with return_last_state also h_L [B,D,N] in the type of the computation, which is float64
        if u is and float32 otherwise.

    Raises:
        ValueError: a shape, type or device that does not fit, naming the argument.
        ConfigError: a backend that is unknown, absent, or does not take such tensors.
    """
    B, C = (x[:, None] if x.dim() == 3 else x for x in (B, C))
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    groups = B.shape[1]

    def by_group(x: Tensor | None, axis: int) -> Any:
        return None if x is None else torch.unflatten(x, axis, (groups, -1))

    y, last = grouped_scan(
        by_group(u, 1),
        by_group(delta, 1),
        by_group(A, 0),
        B,
        C,
        by_group(D, 0),
        by_group(z, 1),
        by_group(delta_bias, 0),
        delta_softplus,
        by_group(initial_state, 1),
        backend=backend,
    )
    y = y.flatten(1, 2)
    return (y, last.flatten(1, 2)) if return_last_state else y


def grouped_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    order: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`selective_scan` for G groups of R channels, each of which may visit the positions in an order of its own.

    Args:
        u: [B,G,R,L], of any strides; y gets the same. So have delta and z.
        delta: [B,G,R,L].
        A: [G,R,N].
        B: [B,G,N,L]; quickest on a CPU where the states of a position lie side by side.
        C: as B.
        D: [G,R].
        z: [B,G,R,L].
        delta_bias: [G,R].
        delta_softplus: as in `selective_scan`.
        initial_state: [B,G,R,N].
        order: int32 [G,L], a permutation of 0 … L-1 for each group: the positions as its scan visits them. Inputs and
            outputs stay at their positions. None is their own order.
        backend: as in `selective_scan`.

    Returns:
        y [B,G,R,L] in u's type, and the state after the last visited position [B,G,R,N].

    Raises:
        ValueError: a shape or device that does not fit, naming the argument; or an order that is no permutation (seen
            by backend ``cpu`` only). ConfigError: as `selective_scan`.
    """
    _check_groups(Scan(u, delta, A, B, C, D, z, delta_bias, initial_state, order, delta_softplus))
    dtype = u.dtype
    name = choose_backend(backend, u.device, dtype).name
    if name != "reference":
        refuse_tangents(u, delta, A, B, C, D, z, delta_bias, initial_state)
    compute = torch.float64 if dtype == torch.float64 else torch.float32

    def cast(x: Any) -> Any:
        return None if x is None else x.to(compute)

    if name != "triton":  # whose kernels read half precision as it is
        u, delta, B, C, z = (cast(x) for x in (u, delta, B, C, z))
    A, D, delta_bias, initial_state = (cast(x) for x in (A, D, delta_bias, initial_state))
    given = Scan(u, delta, A, B, C, D, z, delta_bias, initial_state, order, delta_softplus)
    if name in scan_op.MODULES:
        tensors = (x for x in given if isinstance(x, Tensor))
        keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        y, last, _ = scan_op.scan(*given, name, keep)
    else:
        run = _by_mamba_ssm if name == "mamba_ssm" else functools.partial(_by_recurrence, RECURRENCES[name])
        y, last = _in_order(run, given)
    return y.to(dtype), last


RECURRENCES: dict[str, Recurrence] = {"reference": reference_scan, "torch": chunked_scan}


def _by_recurrence(recurrence: Recurrence, given: Scan) -> tuple[Tensor, Tensor]:
    """Everything around the recurrence in plain PyTorch."""
    u, delta, A, B, C, D, z, delta_bias, initial_state, _, softplus = given
    if delta_bias is not None:
        delta = delta + delta_bias[..., None]
    if softplus:
        delta = F.softplus(delta)  # PyTorch's default threshold is 20, as wanted
    if initial_state is None:
        initial_state = u.new_zeros(*u.shape[:3], A.shape[-1])
    y, last = recurrence(u.flatten(1, 2), delta.flatten(1, 2), A.flatten(0, 1), B, C, initial_state.flatten(1, 2))
    y, last = y.view(u.shape), last.view(initial_state.shape)
    if D is not None:
        y = torch.addcmul(y, u, D[..., None])
    return (y if z is None else y * F.silu(z)), last


def _by_mamba_ssm(given: Scan) -> tuple[Tensor, Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    if given.initial_state is not None:
        raise ConfigError("Scan backend 'mamba_ssm' cannot start from a state. Choose triton or torch.")
    u, delta, z = (None if x is None else x.flatten(1, 2).contiguous() for x in (given.u, given.delta, given.z))
    A, D, bias = (None if x is None else x.flatten(0, 1).contiguous() for x in (given.A, given.D, given.delta_bias))
    B, C = given.B.contiguous(), given.C.contiguous()
    y, last = selective_scan_fn(u, delta, A, B, C, D, z, bias, given.softplus, return_last_state=True)
    return y.view(given.u.shape), _NoGradient.apply(last.view(*given.u.shape[:3], -1))


class _NoGradient(torch.autograd.Function):
    """mamba-ssm's backward pass takes no notice of the last state; better no gradient than a wrong one."""

    @staticmethod
    def forward(ctx: Any, last: Tensor) -> Tensor:
        return last.view_as(last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise ConfigError("Scan backend 'mamba_ssm' gives no gradient through the last state. Choose triton or torch.")


def _in_order(run: Callable[[Scan], tuple[Tensor, Tensor]], given: Scan) -> tuple[Tensor, Tensor]:
    """Lay the sequences out as they are visited, and the output back: for backends that know one order only."""
    if given.order is None:
        return run(given)
    visited = given.order.long()[None, :, None]  # [1,G,1,L]

    def moved(x: Any) -> Any:
        return None if x is None else torch.take_along_dim(x, visited, -1)

    u, delta, B, C, z = (moved(x) for x in (given.u, given.delta, given.B, given.C, given.z))
    y, last = run(given._replace(u=u, delta=delta, B=B, C=C, z=z, order=None))
    return torch.take_along_dim(y, visited.argsort(-1), -1), last


def _check_groups(given: Scan) -> None:
    """Refuse what does not fit together: kernels go by the sizes of u and A alone."""
    batch, groups, channels, length = given.u.shape
    states = given.A.shape[-1]
    sequence, weights, state = given.u.shape, (batch, groups, states, length), (batch, groups, channels, states)
    own, rates = (groups, channels), (groups, channels, states)
    shapes = (sequence, sequence, rates, weights, weights, own, sequence, own, state, (groups, length))
    if given.order is not None and tuple(given.order.shape) != (groups, length):
        raise ValueError(f"order must hold a permutation of 0 … {length - 1} for each of {groups} groups, as int32.")
    for name, x, shape in zip(Scan._fields[:-1], given[:-1], shapes, strict=True):
        _require(name, x, shape, given.u.device)


def _require(name: str, x: Tensor | None, shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse a tensor, where it is given, of another shape or on another device."""
    if x is None:
        return
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}; got {tuple(x.shape)}.")
    if x.device != device:
        raise ValueError(f"{name} must be on {device}, as u is; got {x.device}.")


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    """Refuse what does not fit together; B and C already have their group axis."""
    if u.dim() != 3 or u.shape[-1] < 1:
        raise ValueError(f"u must have shape [B,D,L] with L at least 1; got {tuple(u.shape)}.")
    batch, channels, length = u.shape
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A must have shape [D,N] with D = {channels}; got {tuple(A.shape)}.")
    states = A.shape[1]
    if states < 1:
        raise ValueError(f"A must have shape [D,N] with N at least 1; got {tuple(A.shape)}.")
    if B.dim() != 4 or B.shape[1] < 1 or channels % B.shape[1] != 0:
        raise ValueError(f"B must be [B,N,L], or [B,G,N,L] with G dividing D = {channels}; got {tuple(B.shape)}.")
    wanted: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("u", u, (batch, channels, length)),
        ("delta", delta, (batch, channels, length)),
        ("A", A, (channels, states)),
        ("B", B, (batch, B.shape[1], states, length)),
        ("C", C, (batch, B.shape[1], states, length)),
        ("D", D, (channels,)),
        ("z", z, (batch, channels, length)),
        ("delta_bias", delta_bias, (channels,)),
        ("initial_state", initial_state, (batch, channels, states)),
    ]
    for name, tensor, shape in wanted:
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} must be real, of a floating type; got {tensor.dtype}.")
        _require(name, tensor, shape, u.device)
