"""Backend ``cpu`` of the causal convolution: one pass over 16 channels at a time, for all groups and their orders."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from medvid_core.ops.lanes import fma, get, get_int, kernel, load, put, scratch, share, sigmoid, splat, store
from medvid_core.ops.scan_op import CHUNK, LANES
from medvid_core.ops.tiles import Strided, address, columns, gather, require_order, scatter, strided, visit

ZERO, ONE = np.float32(0), np.float32(1)


def forward(x: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None, y: Tensor) -> None:
    """Fill y; see `conv.grouped_causal_conv`."""
    require_order(order, weight.shape[0], x.shape[2])
    sizes, tensors, kept = _arguments(x, weight, bias, order)
    batch, groups, channels, length, width = sizes

    def run(first: int, end: int) -> None:
        memory = scratch(_scratch(length, width))
        _forward(first, end, sizes, *tensors, strided(y), address(memory))

    share(run, batch * -(-channels // LANES), batch * groups * channels * length // LANES)
    del kept


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
    sizes, tensors, kept = _arguments(x, weight, bias, order)
    batch, groups, channels, length, width = sizes
    own = scratch(batch, groups, channels, width + 1)  # dweight and dbias of each batch entry

    def run(first: int, end: int) -> None:
        memory = scratch(_scratch(length, width))
        outputs = (strided(dx[:, None]), address(own))
        _backward(first, end, sizes, *tensors, strided(grad_y), *outputs, address(memory))

    share(run, batch * -(-channels // LANES), 3 * batch * groups * channels * length // LANES)
    del kept
    summed = own.sum(0)
    dweight.copy_(summed[..., :width])
    dbias.copy_(summed[..., width])


def _scratch(length: int, width: int) -> int:
    return (2 * (length + width) + CHUNK + 3 * width + 2) * LANES + CHUNK


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None
) -> tuple[tuple[int, int, int, int, int], tuple[Strided, int, int, int], tuple[Tensor | None, ...]]:
    """Sizes B, G, R, L, W; the inputs as the kernels take them; and the tensors that must live meanwhile."""
    batch, channels, length = x.shape
    groups, _, width = weight.shape
    weight, bias = weight.contiguous(), bias.contiguous()
    order = None if order is None else order.contiguous()
    tensors = (strided(x[:, None]), address(weight), address(bias), address(order))
    return (batch, groups, channels, length, width), tensors, (weight, bias, order)


@kernel
def _collect(x: Strided, batch: int, channel: int, real: int, length: int, positions: int, out: int) -> None:
    """All positions of 16 channels in their own order: out [L,16]."""
    for first in range(0, length, CHUNK):
        steps = min(CHUNK, length - first)
        visit(0, 0, length, first, steps, positions)
        gather(x, batch, 0, channel, real, 0, positions, steps, out + 4 * first * LANES)


@kernel
def _at(order: int, group: int, length: int, s: int) -> int:
    """Where visit s of a group lies; the row after the last, which holds zeros, for those before the first."""
    if s < 0:
        return length
    return get_int(order, group * length + s) if order else s


@kernel
def _convolved(order: int, group: int, length: int, visit: int, width: int, w: int, offset: int, xs: int) -> Any:
    """The convolution, before silu, at one visit of a group."""
    result = load(offset, 0)
    for j in range(width):
        row = _at(order, group, length, visit - width + 1 + j)
        result = fma(load(w, j * LANES), load(xs, row * LANES), result)
    return result


@kernel
def _forward(
    first: int,
    end: int,
    sizes: tuple[int, int, int, int, int],
    x: Strided,
    weight: int,
    bias: int,
    order: int,
    y: Strided,
    scratch: int,
) -> None:
    _, groups, channels, length, width = sizes
    tiles = -(-channels // LANES)
    xs = scratch  # [L+1,16], the last row zeros
    w = xs + 4 * (length + 1) * LANES
    offset = w + 4 * width * LANES
    out = offset + 4 * LANES
    positions = out + 4 * CHUNK * LANES
    for task in range(first, end):
        batch, channel = task // tiles, task % tiles * LANES
        real = min(LANES, channels - channel)
        _collect(x, batch, channel, real, length, positions, xs)
        store(xs, length * LANES, splat(ZERO))
        for group in range(groups):
            columns(weight, group * channels + channel, real, width, w)
            columns(bias, group * channels + channel, real, 1, offset)
            for begin in range(0, length, CHUNK):
                steps = min(CHUNK, length - begin)
                visit(order, group, length, begin, steps, positions)
                for s in range(steps):
                    sum_ = _convolved(order, group, length, begin + s, width, w, offset, xs)
                    store(out, s * LANES, sum_ * sigmoid(sum_))
                scatter(y, batch, group, channel, real, order, positions, steps, out)


@kernel
def _backward(
    first: int,
    end: int,
    sizes: tuple[int, int, int, int, int],
    x: Strided,
    weight: int,
    bias: int,
    order: int,
    grad_y: Strided,
    dx: Strided,
    own: int,
    scratch: int,
) -> None:
    _, groups, channels, length, width = sizes
    tiles = -(-channels // LANES)
    rows = 4 * (length + 1) * LANES
    xs, dxs = scratch, scratch + rows  # [L+1,16], the last row zeros, or for what falls before the start
    w = dxs + rows
    dw = w + 4 * width * LANES
    dw_chunk = dw + 4 * width * LANES
    offset = dw_chunk + 4 * width * LANES
    dy = offset + 4 * LANES
    positions = dy + 4 * CHUNK * LANES
    for task in range(first, end):
        batch, channel = task // tiles, task % tiles * LANES
        real = min(LANES, channels - channel)
        _collect(x, batch, channel, real, length, positions, xs)
        store(xs, length * LANES, splat(ZERO))
        for row in range(length + 1):
            store(dxs, row * LANES, splat(ZERO))
        for group in range(groups):
            columns(weight, group * channels + channel, real, width, w)
            columns(bias, group * channels + channel, real, 1, offset)
            columns(0, 0, 0, width, dw)
            doffset = splat(ZERO)
            for begin in range(0, length, CHUNK):
                # sums go chunk by chunk: one number after the other would lose digits
                columns(0, 0, 0, width, dw_chunk)
                doffset_chunk = splat(ZERO)
                steps = min(CHUNK, length - begin)
                visit(order, group, length, begin, steps, positions)
                gather(grad_y, batch, group, channel, real, order, positions, steps, dy)
                for s in range(steps):
                    sum_ = _convolved(order, group, length, begin + s, width, w, offset, xs)
                    slope = sigmoid(sum_)
                    # silu' = sigmoid + silu (1 - sigmoid)
                    grad = load(dy, s * LANES) * fma(sum_ * slope, splat(ONE) - slope, slope)
                    doffset_chunk = doffset_chunk + grad
                    for j in range(width):
                        row = _at(order, group, length, begin + s - width + 1 + j)
                        store(dw_chunk, j * LANES, fma(grad, load(xs, row * LANES), load(dw_chunk, j * LANES)))
                        store(dxs, row * LANES, fma(grad, load(w, j * LANES), load(dxs, row * LANES)))
                for j in range(width):
                    store(dw, j * LANES, load(dw, j * LANES) + load(dw_chunk, j * LANES))
                doffset = doffset + doffset_chunk
            store(offset, 0, doffset)
            for j in range(real):
                line = ((batch * groups + group) * channels + channel + j) * (width + 1)
                for k in range(width):
                    put(own, line + k, get(dw, k * LANES + j))
                put(own, line + width, get(offset, j))
        for begin in range(0, length, CHUNK):
            steps = min(CHUNK, length - begin)
            visit(0, 0, length, begin, steps, positions)
            scatter(dx, batch, 0, channel, real, 0, positions, steps, dxs + 4 * begin * LANES)
