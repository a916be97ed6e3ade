"""The selective scan in plain torch: exact, quick on CPU, lean in memory.

The sequence of length L is cut into K chunks of S steps. A Python loop walks the S positions of a chunk, for all chunks
at once: first with a zero state to learn what each chunk adds, then, once the state entering each chunk is known, for
good. Tensors have the position first and the chunks last, ``[S, N, Q, R, K]``, so that every elementary operation runs
over contiguous memory: N states, Q batch-times-group, R channels of the group.

Work is done in tiles over (Q, R) small enough to stay in the processor's cache. Nothing of size B*D*L*N is kept for the
backward pass, only the state entering each chunk (1/S of it); the rest of a tile is computed again.

There is no division and no cumulative product over a chunk, so nothing is lost when exp(delta A) underflows. The order
of every sum depends on the shapes alone: results are the same from run to run and for any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from medvid_core.ops.scan_op import scan_flops

MAX_STEPS = 64
"""Longest chunk S. Longer chunks would push a tile out of the cache."""

MIN_CHUNKS = 32
"""Where L is long enough, at least so many chunks K: the innermost loops run over them."""

CPU_TILE = 1 << 17
"""State elements a tile holds per position: with two threads, each gets two of PyTorch's 32768-element pieces."""

DEVICE_TILE = 1 << 23
"""The same on an accelerator, where launches cost more than memory traffic."""


def chunked_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """Backend ``torch``: u, delta [B,D,L], A [D,N], B, C [B,G,N,L], initial_state [B,D,N] -> y, last_state."""
    y, last, _ = _scan(u, delta, A, B, C, initial_state)
    return y, last


@dataclass(frozen=True)
class _Plan:
    """How a problem is cut. Sizes: batch, groups, per_group channels, states, length; S steps, K chunks."""

    batch: int
    groups: int
    per_group: int
    states: int
    length: int
    steps: int
    chunks: int
    tile: int

    @classmethod
    def of(cls, u: Tensor, B: Tensor) -> _Plan:
        batch, groups, states, length = B.shape
        steps = length if length <= MAX_STEPS else min(MAX_STEPS, -(-length // MIN_CHUNKS))
        chunks = -(-length // steps)
        tile = CPU_TILE if u.device.type == "cpu" else DEVICE_TILE
        return cls(batch, groups, u.shape[1] // groups, states, length, steps, chunks, tile)

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Slices over Q = batch*groups and R = per_group that cover both."""
        rows = max(1, self.tile // (self.states * self.chunks))
        q_step, r_step = max(1, rows // self.per_group), min(rows, self.per_group)
        for q in range(0, self.batch * self.groups, q_step):
            for r in range(0, self.per_group, r_step):
                yield slice(q, q + q_step), slice(r, r + r_step)

    def pack(self, x: Tensor, rows: int) -> Tensor:
        """[B, ..., L] with `rows` entries between batch*groups and L -> position first [S, Q, rows, K].

        The tail is filled with zeros: delta = 0 leaves a state as it is.
        """
        x = x.reshape(self.batch * self.groups, rows, self.length)
        x = F.pad(x, (0, self.steps * self.chunks - self.length))
        return x.view(-1, rows, self.chunks, self.steps).permute(3, 0, 1, 2).contiguous()

    def pack_weights(self, x: Tensor) -> Tensor:
        """B or C [B,G,N,L] -> [S, N, Q, 1, K]."""
        return self.pack(x, self.states).transpose(1, 2).contiguous().unsqueeze(3)

    def unpack(self, x: Tensor, rows: int) -> Tensor:
        """Undo `pack`: [S, Q, rows, K] -> [B, groups*rows, L]."""
        x = x.permute(1, 2, 3, 0).reshape(self.batch, self.groups * rows, self.steps * self.chunks)
        return x[..., : self.length]

    def rows_first(self, A: Tensor) -> Tensor:
        """[B,D,N] -> [N, Q, R, 1]."""
        return (
            A.reshape(self.batch * self.groups, self.per_group, self.states).permute(2, 0, 1).unsqueeze(-1).contiguous()
        )


class _Buffer:
    """Memory used again by tile after tile: fresh pages would cost more than the arithmetic."""

    def __init__(self, like: Tensor) -> None:
        self._flat = like.new_empty(0)

    def shaped(self, *shape: int) -> Tensor:
        size = 1
        for length in shape:
            size *= length
        if self._flat.numel() < size:
            self._flat = self._flat.new_empty(size)
        return self._flat[:size].view(shape)


def _entering(decay: Tensor, end: Tensor, start: Tensor) -> Tensor:
    """The state entering each chunk.

    Args:
        decay: what a chunk multiplies its entering state by [..., K].
        end: what it ends with when it starts from zero [..., K].
        start: the state entering the first chunk [..., 1].

    Returns:
        h [..., K] with h_0 = start, h_k = decay_{k-1} h_{k-1} + end_{k-1}, by doubling: after the round with stride s,
        every entry accounts for the 2s chunks up to it.
    """
    decay = torch.cat([torch.ones_like(start), decay[..., :-1]], dim=-1)
    state = torch.cat([start, end[..., :-1]], dim=-1)
    stride = 1
    while stride < state.shape[-1]:
        # right-hand sides are complete before the writes: source and target overlap
        state[..., stride:] += decay[..., stride:] * state[..., :-stride]
        decay[..., stride:] = decay[..., stride:] * decay[..., :-stride]
        stride *= 2
    return state


def _advance(decay: Tensor, x: Tensor, entering: Tensor) -> None:
    """In place, x_s becomes h_s = decay_s h_{s-1} + x_s, with h_{-1} = entering; x, decay [S, ...]."""
    state = entering
    for decay_s, x_s in zip(decay.unbind(0), x.unbind(0), strict=True):
        state = torch.addcmul(x_s, decay_s, state, out=x_s)


def _chunk_ends(decay: Tensor, x: Tensor) -> Tensor:
    """What `_advance` would end with from a zero state, leaving x as it is."""
    state = x[0].clone()
    for decay_s, x_s in zip(decay.unbind(0)[1:], x.unbind(0)[1:], strict=True):
        torch.addcmul(x_s, decay_s, state, out=state)
    return state


@torch.library.custom_op(
    "medvid::chunked_scan",
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor start) -> (Tensor, Tensor, Tensor)",
)
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B,D,L], the last state [B,D,N], and the states entering the chunks [N,Q,R,K]."""
    plan = _Plan.of(u, B)
    step = plan.pack(delta, plan.per_group)
    drive = plan.pack(delta * u, plan.per_group)
    B_, C_ = plan.pack_weights(B), plan.pack_weights(C)
    A_, start = plan.rows_first(A.expand(plan.batch, -1, -1)), plan.rows_first(initial_state)

    y = torch.empty_like(step)
    last = torch.empty_like(start)
    entering = start.new_empty(*start.shape[:-1], plan.chunks)
    decay_buffer, state_buffer = _Buffer(u), _Buffer(u)
    for q, r in plan.tiles():
        decay, x = _tile(step[:, q, r], drive[:, q, r], A_[:, q, r], B_[:, :, q], decay_buffer, state_buffer)
        if plan.chunks == 1:
            h = start[:, q, r]
        else:
            whole = torch.exp(A_[:, q, r] * step[:, q, r].sum(0))
            h = _entering(whole, _chunk_ends(decay, x), start[:, q, r])
        entering[:, q, r] = h
        _advance(decay, x, h)
        last[:, q, r] = x[-1, ..., -1:]
        y[:, q, r] = x.mul_(C_[:, :, q]).sum(1)

    last = last.squeeze(-1).permute(1, 2, 0).reshape(initial_state.shape)
    return plan.unpack(y, plan.per_group).contiguous(), last.contiguous(), entering


@torch.library.register_fake(_scan)
def _(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _Plan.of(u, B)
    entering = u.new_empty(plan.states, plan.batch * plan.groups, plan.per_group, plan.chunks)
    return u.new_empty(u.shape), initial_state.new_empty(initial_state.shape), entering


@torch.library.custom_op(
    "medvid::chunked_scan_backward",
    mutates_args=(),
    schema="(Tensor grad_y, Tensor grad_last, Tensor entering, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C) "
    "-> Tensor[]",
)
def _scan_backward(
    grad_y: Tensor, grad_last: Tensor, entering: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C and the initial state."""
    plan = _Plan.of(u, B)
    step = plan.pack(delta, plan.per_group)
    drive = plan.pack(delta * u, plan.per_group)
    grad_out = plan.pack(grad_y, plan.per_group)
    B_, C_ = plan.pack_weights(B), plan.pack_weights(C)
    A_, grad_end = plan.rows_first(A.expand(plan.batch, -1, -1)), plan.rows_first(grad_last)

    grads = _Gradients(step, A_, B_)
    buffers = (_Buffer(u), _Buffer(u), _Buffer(u))
    for q, r in plan.tiles():
        decay, x = _tile(step[:, q, r], drive[:, q, r], A_[:, q, r], B_[:, :, q], *buffers[:2])
        _advance(decay, x, entering[:, q, r])
        if plan.chunks == 1:
            adjoint = grad_end[:, q, r].clone()
        else:
            whole = torch.exp(A_[:, q, r] * step[:, q, r].sum(0)).flip(-1)
            first = _adjoint_starts(decay, C_[:, :, q], grad_out[:, q, r]).flip(-1)
            adjoint = _entering(whole, first, grad_end[:, q, r]).flip(-1)
        tile = (step[:, q, r], drive[:, q, r], A_[:, q, r], B_[:, :, q], C_[:, :, q], grad_out[:, q, r])
        grads.accumulate(q, r, tile, decay, x, entering[:, q, r], adjoint, buffers[2])

    grad_drive = plan.unpack(grads.drive, plan.per_group)
    grad_delta = plan.unpack(grads.step, plan.per_group) + grad_drive * u
    grad_A, grad_start = (g.permute(1, 2, 0).reshape(plan.batch, -1, plan.states) for g in (grads.A, grads.start))
    grad_B, grad_C = (plan.unpack(g.transpose(1, 2), plan.states).reshape(B.shape) for g in (grads.B, grads.C))
    results = (grad_drive * delta, grad_delta, grad_A.sum(0), grad_B, grad_C, grad_start)
    return [x.contiguous() for x in results]


@torch.library.register_fake(_scan_backward)
def _(
    grad_y: Tensor, grad_last: Tensor, entering: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (u, delta, A, B, C, grad_last)]


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[2], *inputs[:5])


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return tuple(_scan_backward(grad_y, grad_last, *ctx.saved_tensors))


torch.library.register_autograd(_scan, _backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.medvid.chunked_scan)
def _(u_shape: tuple[int, ...], delta_shape: Any, A_shape: tuple[int, ...], *rest: Any, **options: Any) -> int:
    return scan_flops(u_shape, A_shape[-1])


@register_flop_formula(torch.ops.medvid.chunked_scan_backward)
def _(
    grad_y: Any, last: Any, entering: Any, u: tuple[int, ...], delta: Any, A: tuple[int, ...], *rest: Any, **_: Any
) -> int:
    return 2 * scan_flops(u, A[-1])


def _tile(
    step: Tensor, drive: Tensor, A: Tensor, B: Tensor, decay_buffer: _Buffer, state_buffer: _Buffer
) -> tuple[Tensor, Tensor]:
    """exp(delta A) and delta u B of one tile, both [S,N,Q,R,K].

    step = delta and drive = delta u are [S,Q,R,K], A [N,Q,R,1], B [S,N,Q,1,K].
    """
    shape = (step.shape[0], A.shape[0], *step.shape[1:])
    decay = torch.mul(step.unsqueeze(1), A, out=decay_buffer.shaped(*shape)).exp_()
    return decay, torch.mul(drive.unsqueeze(1), B, out=state_buffer.shaped(*shape))


def _adjoint_starts(decay: Tensor, C: Tensor, grad_out: Tensor) -> Tensor:
    """Gradient with respect to the state entering each chunk, when nothing comes back from later chunks."""
    adjoint = C[-1] * grad_out[-1] * decay[-1]
    for s in range(decay.shape[0] - 2, -1, -1):
        torch.addcmul(adjoint, C[s], grad_out[s], out=adjoint).mul_(decay[s])
    return adjoint


class _Gradients:
    """Where the backward pass gathers its results, laid out as in the tiles.

    With g_t the gradient of h_t, e_t = exp(delta_t A) g_t what flows on to h_{t-1}, and x_t = delta_t u_t:

        g_t = C_t dy_t + e_{t+1}                dx_t = sum_n g_t B_t       ddelta_t = sum_n e_t h_{t-1} A
        dB_t = sum_d g_t x_t                    dC_t = sum_d h_t dy_t      dA = sum_t e_t h_{t-1} delta_t
    """

    def __init__(self, step: Tensor, A: Tensor, B: Tensor) -> None:
        self.drive = torch.empty_like(step)
        self.step = torch.empty_like(step)
        self.B = torch.zeros_like(B).squeeze(3)  # [S,N,Q,K], summed over the tiles of a group
        self.C = torch.zeros_like(B).squeeze(3)
        self.A = torch.empty_like(A).squeeze(-1)
        self.start = torch.empty_like(A).squeeze(-1)

    def accumulate(
        self,
        q: slice,
        r: slice,
        tile: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
        decay: Tensor,
        states: Tensor,
        entering: Tensor,
        adjoint: Tensor,
        buffer: _Buffer,
    ) -> None:
        """Walk one tile backwards; `adjoint` [N,Q,R,K] is e of the first step after each chunk, and is used up."""
        step, drive, A, B, C, grad_out = tile
        scratch, grad_A = buffer.shaped(2, *adjoint.shape).unbind(0)
        grad_A.zero_()
        for s in range(step.shape[0] - 1, -1, -1):
            previous = states[s - 1] if s > 0 else entering
            torch.mul(states[s], grad_out[s], out=scratch)
            self.C[s, :, q] += scratch.sum(2)
            g = torch.addcmul(adjoint, C[s], grad_out[s], out=adjoint)
            torch.mul(g, drive[s], out=scratch)
            self.B[s, :, q] += scratch.sum(2)
            torch.mul(g, B[s], out=scratch)
            self.drive[s, q, r] = scratch.sum(0)
            e = g.mul_(decay[s])
            torch.mul(e, previous, out=scratch)
            grad_A.addcmul_(scratch, step[s])
            self.step[s, q, r] = scratch.mul_(A).sum(0)
        self.A[:, q, r] = grad_A.sum(-1)
        self.start[:, q, r] = adjoint[..., 0]
