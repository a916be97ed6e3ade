"""Backend ``triton`` of the causal convolution: every group reads the one sequence along its order.

A program computes a tile [TIME, ROWS] of visited positions and channels. The backward pass takes two kernels: one
leaves the gradient before silu, in the order of the visit, and sums for the kernel and bias; the other adds up at every
position what came of it in all groups. Sums have a fixed order: results are equal to the bit from run to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

jit: Callable[[Callable[..., Any]], Any] = triton.jit

TIME = 32
"""Positions of a program."""
WIDEST = 64
"""Most channels of a program."""


@jit
def places_of(order: tl.tensor, group: tl.tensor, t: tl.tensor, length: tl.tensor) -> tl.tensor:
    """Positions that a group visits at times t; any for times that do not exist."""
    t = tl.minimum(tl.maximum(t, 0), length - 1)
    if order is not None:
        t = tl.load(order + group.to(tl.int64) * length + t)
    return t.to(tl.int64)


@jit
def tap(
    x: tl.tensor,
    strides: tl.tuple,
    order: tl.tensor,
    batch: tl.tensor,
    group: tl.tensor,
    t: tl.tensor,
    rows: tl.tensor,
    length: tl.tensor,
    channels: tl.tensor,
) -> tl.tensor:
    """The sequence x [B,R,L] at times t of a group, [TIME, ROWS]; zero outside."""
    x += batch.to(tl.int64) * strides[0]
    place = places_of(order, group, t, length)[:, None] * strides[2] + rows.to(tl.int64)[None, :] * strides[1]
    exists = ((t >= 0) & (t < length))[:, None] & (rows < channels)[None, :]
    return tl.load(x + place, mask=exists, other=0.0).to(tl.float32)


@jit
def before_silu(
    x: tl.tensor,
    strides: tl.tuple,
    weight: tl.tensor,
    bias: tl.tensor,
    order: tl.tensor,
    batch: tl.tensor,
    group: tl.tensor,
    t: tl.tensor,
    rows: tl.tensor,
    length: tl.tensor,
    channels: tl.tensor,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """The convolution at times t, [TIME, ROWS]."""
    here = rows < channels
    own = group * channels + rows
    total = tl.load(bias + own, mask=here, other=0.0)[None, :] + tl.zeros([t.shape[0], 1], tl.float32)
    for j in tl.static_range(WIDTH):
        w = tl.load(weight + own * WIDTH + j, mask=here, other=0.0)[None, :]
        value = tap(x, strides, order, batch, group, t - (WIDTH - 1) + j, rows, length, channels)
        total = tl.fma(w + tl.zeros(value.shape, tl.float32), value, total)
    return total


@jit
def parts(program: tl.tensor, groups: tl.tensor, spans: tl.tensor, blocks: tl.tensor) -> tl.tuple:
    """A program's batch entry, group, span of times and block of channels."""
    block = program % blocks
    program = program // blocks
    span = program % spans
    program = program // spans
    return program // groups, program % groups, span, block


@jit
def convolve(
    x: tl.tensor,
    x_strides: tl.tuple,
    weight: tl.tensor,
    bias: tl.tensor,
    order: tl.tensor,
    y: tl.tensor,
    y_strides: tl.tuple,
    groups: tl.tensor,
    channels: tl.tensor,
    length: tl.tensor,
    spans: tl.tensor,
    blocks: tl.tensor,
    WIDTH: tl.constexpr,
    TIME: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """y [B,G,R,L]."""
    batch, group, span, block = parts(tl.program_id(0), groups, spans, blocks)
    t = span * TIME + tl.arange(0, TIME)
    rows = block * ROWS + tl.arange(0, ROWS)
    s = before_silu(x, x_strides, weight, bias, order, batch, group, t, rows, length, channels, WIDTH)
    y += batch.to(tl.int64) * y_strides[0] + group.to(tl.int64) * y_strides[1]
    place = places_of(order, group, t, length)[:, None] * y_strides[3] + rows.to(tl.int64)[None, :] * y_strides[2]
    exists = (t < length)[:, None] & (rows < channels)[None, :]
    tl.store(y + place, (s / (1.0 + tl.exp(-s))).to(y.dtype.element_ty), mask=exists)


@jit
def through_silu(
    grad: tl.tensor,
    grad_strides: tl.tuple,
    x: tl.tensor,
    x_strides: tl.tuple,
    weight: tl.tensor,
    bias: tl.tensor,
    order: tl.tensor,
    inner: tl.tensor,
    sums: tl.tensor,
    visited: tl.tensor,
    groups: tl.tensor,
    channels: tl.tensor,
    length: tl.tensor,
    spans: tl.tensor,
    blocks: tl.tensor,
    WIDTH: tl.constexpr,
    TIME: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """The gradient before silu, `inner` [B,G,L,R] in the order of the visit; what dweight and dbias get from it.

    `sums` is [B,G,spans,WIDTH+1,R], dbias last. `visited` [G,L] is the inverse of `order`.
    """
    batch, group, span, block = parts(tl.program_id(0), groups, spans, blocks)
    t = span * TIME + tl.arange(0, TIME)
    rows = block * ROWS + tl.arange(0, ROWS)
    here = rows < channels
    exists = (t < length)[:, None] & here[None, :]
    home = places_of(order, group, t, length)
    if order is not None:  # known when compiling  # noqa: SIM102
        if batch + block == 0:
            tl.store(visited + group.to(tl.int64) * length + home, t, mask=t < length)
    s = before_silu(x, x_strides, weight, bias, order, batch, group, t, rows, length, channels, WIDTH)
    grad += batch.to(tl.int64) * grad_strides[0] + group.to(tl.int64) * grad_strides[1]
    place = home[:, None] * grad_strides[3] + rows.to(tl.int64)[None, :] * grad_strides[2]
    sigmoid = 1.0 / (1.0 + tl.exp(-s))
    g = tl.load(grad + place, mask=exists, other=0.0).to(tl.float32) * sigmoid * tl.fma(s, 1.0 - sigmoid, 1.0)
    g = tl.where(exists, g, 0.0)
    index = batch.to(tl.int64) * groups + group
    tl.store(inner + (index * length + t[:, None]) * channels + rows[None, :], g, mask=exists)
    sums += (index * spans + span) * (WIDTH + 1) * channels + rows
    for j in tl.static_range(WIDTH):
        value = tap(x, x_strides, order, batch, group, t - (WIDTH - 1) + j, rows, length, channels)
        tl.store(sums + j * channels, tl.sum(g * value, 0), mask=here)
    tl.store(sums + WIDTH * channels, tl.sum(g, 0), mask=here)


@jit
def gather_inputs(
    inner: tl.tensor,
    weight: tl.tensor,
    visited: tl.tensor,
    dx: tl.tensor,
    dx_strides: tl.tuple,
    groups: tl.tensor,
    channels: tl.tensor,
    length: tl.tensor,
    spans: tl.tensor,
    blocks: tl.tensor,
    WIDTH: tl.constexpr,
    TIME: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """dx [B,R,L], the sum over the groups, from `inner` [B,G,L,R]."""
    batch, _, span, block = parts(tl.program_id(0), 1, spans, blocks)
    position = span * TIME + tl.arange(0, TIME)
    rows = block * ROWS + tl.arange(0, ROWS)
    here = rows < channels
    exists = (position < length)[:, None] & here[None, :]
    total = tl.zeros([TIME, ROWS], tl.float32)
    for group in range(groups):
        index = batch.to(tl.int64) * groups + group
        t = places_of(visited, tl.cast(group, tl.int32), position, length)
        for j in tl.static_range(WIDTH):
            later = t + (WIDTH - 1) - j
            place = inner + (index * length + later[:, None]) * channels + rows[None, :]
            w = tl.load(weight + (group * channels + rows) * WIDTH + j, mask=here, other=0.0)[None, :]
            value = tl.load(place, mask=exists & (later < length)[:, None], other=0.0)
            total = tl.fma(w + tl.zeros(value.shape, tl.float32), value, total)
    dx += batch.to(tl.int64) * dx_strides[0]
    place = position.to(tl.int64)[:, None] * dx_strides[2] + rows.to(tl.int64)[None, :] * dx_strides[1]
    tl.store(dx + place, total.to(dx.dtype.element_ty), mask=exists)


def forward(x: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None, y: Tensor) -> None:
    """Fill y; see `conv.grouped_causal_conv`."""
    batch, groups, sizes, options = _sizes(x, weight)
    *_, spans, blocks = sizes
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        convolve[(batch * groups * spans * blocks,)](
            x, x.stride(), weight.contiguous(), bias.contiguous(), _packed(order), y, y.stride(), *sizes, **options
        )


def backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    order: Tensor | None,
    dx: Tensor,
    dweight: Tensor,
    dbias: Tensor,
) -> None:
    """Fill dx, dweight and dbias."""
    batch, groups, sizes, options = _sizes(x, weight)
    _, channels, length, spans, blocks = sizes
    weight, order = weight.contiguous(), _packed(order)
    inner = weight.new_empty(batch, groups, length, channels)
    sums = weight.new_empty(batch, groups, spans, weight.shape[-1] + 1, channels)
    visited = None if order is None else torch.empty_like(order)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        through_silu[(batch * groups * spans * blocks,)](
            *(grad_y, grad_y.stride(), x, x.stride(), weight, bias.contiguous(), order),
            *(inner, sums, visited),
            *sizes,
            **options,
        )
        gather_inputs[(batch * spans * blocks,)](inner, weight, visited, dx, dx.stride(), *sizes, **options)
    total = sums.sum((0, 2))
    dweight.copy_(total[:, :-1].transpose(1, 2))
    dbias.copy_(total[:, -1])


def _sizes(x: Tensor, weight: Tensor) -> tuple[int, int, tuple[int, ...], dict[str, Any]]:
    """Batch, groups, what all kernels take at the end, and its constants."""
    batch, channels, length = x.shape
    groups, _, width = weight.shape
    rows = min(WIDEST, triton.next_power_of_2(channels))
    sizes = (groups, channels, length, -(-length // TIME), -(-channels // rows))
    return batch, groups, sizes, {"WIDTH": width, "TIME": TIME, "ROWS": rows, "enable_fp_fusion": True}


def _packed(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
