"""The selective scan of Mamba (Gu and Dao, 2023, algorithm 2), with the semantics of mamba-ssm's ``selective_scan_fn``.

For every batch entry, channel d and state n, with h_0 the initial state (zero unless given):

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t          y_t = sum_n C_t h_t  (+ D u_t)  (* silu(z_t))

Everything around the recurrence (checks, precision, softplus, skip, gate) is here and shared. A backend computes the
recurrence alone: ``(u, delta, A, B, C, initial_state) -> (y, last_state)``, all tensors in one floating type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from medvid_core.errors import ConfigError, did_you_mean
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


BACKENDS: Mapping[str, Recurrence] = MappingProxyType({"reference": reference_scan, "torch": chunked_scan})
"""Every way to compute the recurrence, by name. ``reference`` defines it; the others must agree with it."""


def choose_backend(name: str) -> str:
    """The backend that ``name`` stands for; ``auto`` is the portable, exact one.

    Raises:
        ConfigError: if there is no such backend.
    """
    if name == "auto":
        return "torch"
    if name not in BACKENDS:
        known = ("auto", *BACKENDS)
        raise ConfigError(f"No scan backend {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}")
    return name


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
        ValueError: a shape that does not fit, naming the argument.
        ConfigError: an unknown backend.
    """
    recurrence = BACKENDS[choose_backend(backend)]
    B, C = (x[:, None] if x.dim() == 3 else x for x in (B, C))
    _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state)

    compute = torch.float64 if u.dtype == torch.float64 else torch.float32
    x = u.to(compute)
    step = delta.to(compute)
    if delta_bias is not None:
        step = step + delta_bias.to(compute)[:, None]
    if delta_softplus:
        step = F.softplus(step)  # PyTorch's default threshold is 20, as wanted
    if initial_state is None:
        initial_state = x.new_zeros(u.shape[0], u.shape[1], A.shape[1])

    y, last = recurrence(x, step, A.to(compute), B.to(compute), C.to(compute), initial_state.to(compute))
    if D is not None:
        y = torch.addcmul(y, x, D.to(compute)[:, None])
    if z is not None:
        y = y * F.silu(z.to(compute))
    y = y.to(u.dtype)
    return (y, last) if return_last_state else y


def _check_shapes(
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
    if u.dim() != 3 or u.shape[-1] < 1 or not u.is_floating_point():
        raise ValueError(f"u must be real, of shape [B,D,L] with L at least 1; got {tuple(u.shape)}, {u.dtype}.")
    batch, channels, length = u.shape
    if A.dim() != 2 or A.shape[0] != channels or not A.is_floating_point():
        raise ValueError(f"A must be real, of shape [D,N] with D = {channels}; got {tuple(A.shape)}, {A.dtype}.")
    states = A.shape[1]
    if B.dim() != 4 or B.shape[1] < 1 or channels % B.shape[1] != 0:
        raise ValueError(f"B must be [B,N,L], or [B,G,N,L] with G dividing D = {channels}; got {tuple(B.shape)}.")
    wanted: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("delta", delta, (batch, channels, length)),
        ("B", B, (batch, B.shape[1], states, length)),
        ("C", C, (batch, B.shape[1], states, length)),
        ("D", D, (channels,)),
        ("z", z, (batch, channels, length)),
        ("delta_bias", delta_bias, (channels,)),
        ("initial_state", initial_state, (batch, channels, states)),
    ]
    for name, tensor, shape in wanted:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}.")
