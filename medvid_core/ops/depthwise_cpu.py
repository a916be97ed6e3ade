"""Kernels of the depth-wise convolution: 16 channels of a volume at a time, copied to where zeros surround them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from medvid_core.ops.lanes import fma, get, kernel, load, put, scratch, share, splat, store
from medvid_core.ops.scan_op import LANES
from medvid_core.ops.tiles import address, columns

ZERO = np.float32(0)

Sizes = tuple[int, int, int, int, int, int, int, int]
"""B, T, H, W, C and kT, kH, kW."""


def forward(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> None:
    """Fill y; see `depthwise.depthwise_conv`. y is contiguous."""
    _convolve(x, weight, bias.contiguous(), y)


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, dx: Tensor, dweight: Tensor, dbias: Tensor) -> None:
    """Fill dx (contiguous), dweight and dbias."""
    _convolve(grad_y, weight.flip(1, 2, 3), None, dx)
    sizes = (*x.shape, *weight.shape[1:])
    taps = weight[0].numel()
    x, grad_y = _side_by_side(x), _side_by_side(grad_y)
    own = scratch(x.shape[0], weight.shape[0], taps + 1)  # dweight and dbias of each batch entry

    def run(first: int, end: int) -> None:
        memory = scratch(2 * _padded(sizes) + (taps + 1) * LANES).zero_()
        _products(first, end, sizes, x.data_ptr(), x.stride()[:4], grad_y.data_ptr(), grad_y.stride()[:4],
                  own.data_ptr(), _padded(sizes), memory.data_ptr())  # fmt: skip

    share(run, *_tasks(sizes))
    summed = own.sum(0)
    dweight.copy_(summed[:, :taps].view(weight.shape))
    dbias.copy_(summed[:, taps])


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
    sizes = (*x.shape, *weight.shape[1:])
    x, weight = _side_by_side(x), weight.contiguous()

    def run(first: int, end: int) -> None:
        memory = scratch(_padded(sizes) + (weight[0].numel() + 5) * LANES).zero_()
        _forward(first, end, sizes, x.data_ptr(), x.stride()[:4], weight.data_ptr(), address(bias), y.data_ptr(),
                 _padded(sizes), memory.data_ptr())  # fmt: skip

    share(run, *_tasks(sizes))


def _side_by_side(x: Tensor) -> Tensor:
    return x if x.stride(4) == 1 else x.contiguous()


def _padded(sizes: Sizes) -> int:
    """Elements of 16 channels of one volume with zeros around."""
    _, frames, height, width, _, taps_t, taps_h, taps_w = sizes
    # rows are worked on four positions at a time
    return (frames + taps_t - 1) * (height + taps_h - 1) * (width + taps_w - 1 + 3) * LANES


def _tasks(sizes: Sizes) -> tuple[int, int]:
    batch, frames, height, width, channels, *taps = sizes
    tasks = batch * -(-channels // LANES)
    return tasks, tasks * frames * height * width * taps[0] * taps[1] * taps[2]


@kernel
def _collect(x: int, strides: tuple[int, ...], sizes: Sizes, batch: int, channel: int, out: int) -> None:
    """16 channels of a volume into the middle of `out`, which holds zeros."""
    _, frames, height, width, channels, taps_t, taps_h, taps_w = sizes
    real = min(LANES, channels - channel)
    wide, high = width + taps_w - 1 + 3, height + taps_h - 1
    for t in range(frames):
        for row in range(height):
            source = x + 4 * (batch * strides[0] + t * strides[1] + row * strides[2] + channel)
            target = out + 4 * LANES * (((t + taps_t // 2) * high + row + taps_h // 2) * wide + taps_w // 2)
            if real == LANES:
                for column in range(width):
                    store(target, column * LANES, load(source, column * strides[3]))
            else:
                for column in range(width):
                    for j in range(real):
                        put(target, column * LANES + j, get(source, column * strides[3] + j))


@kernel
def _forward(
    first: int,
    end: int,
    sizes: Sizes,
    x: int,
    strides: tuple[int, ...],
    weight: int,
    bias: int,
    y: int,
    padded: int,
    scratch: int,
) -> None:
    _, frames, height, width, channels, taps_t, taps_h, taps_w = sizes
    tiles = -(-channels // LANES)
    taps = taps_t * taps_h * taps_w
    wide, high = width + taps_w - 1 + 3, height + taps_h - 1
    w = scratch + 4 * padded
    for task in range(first, end):
        batch, channel = task // tiles, task % tiles * LANES
        real = min(LANES, channels - channel)
        _collect(x, strides, sizes, batch, channel, scratch)
        columns(weight, channel, real, taps, w)
        columns(bias, channel, real, 1, w + 4 * taps * LANES)
        offset = load(w, taps * LANES)
        for t in range(frames):
            for row in range(height):
                out = y + 4 * ((((batch * frames + t) * height + row) * width) * channels + channel)
                for column in range(0, width, 4):
                    a, b, c, d = offset, offset, offset, offset
                    tap = w
                    for i in range(taps_t):
                        for j in range(taps_h):
                            line = scratch + 4 * LANES * (((t + i) * high + row + j) * wide + column)
                            for k in range(taps_w):
                                value = load(tap, k * LANES)
                                a = fma(value, load(line, k * LANES), a)
                                b = fma(value, load(line, (k + 1) * LANES), b)
                                c = fma(value, load(line, (k + 2) * LANES), c)
                                d = fma(value, load(line, (k + 3) * LANES), d)
                            tap += 4 * taps_w * LANES
                    if real == LANES and column + 4 <= width:
                        store(out, column * channels, a)
                        store(out, (column + 1) * channels, b)
                        store(out, (column + 2) * channels, c)
                        store(out, (column + 3) * channels, d)
                    else:
                        spare = w + 4 * (taps + 1) * LANES
                        store(spare, 0, a)
                        store(spare, LANES, b)
                        store(spare, 2 * LANES, c)
                        store(spare, 3 * LANES, d)
                        for s in range(min(4, width - column)):
                            for j in range(real):
                                put(out, (column + s) * channels + j, get(spare, s * LANES + j))


@kernel
def _products(
    first: int,
    end: int,
    sizes: Sizes,
    x: int,
    x_strides: tuple[int, ...],
    grad_y: int,
    grad_strides: tuple[int, ...],
    own: int,
    padded: int,
    scratch: int,
) -> None:
    """dweight = sum over positions of dy times the x that the tap saw; dbias the sum of dy."""
    _, frames, height, width, channels, taps_t, taps_h, taps_w = sizes
    tiles = -(-channels // LANES)
    taps = taps_t * taps_h * taps_w
    wide, high = width + taps_w - 1 + 3, height + taps_h - 1
    dy, dw = scratch + 4 * padded, scratch + 8 * padded
    for task in range(first, end):
        batch, channel = task // tiles, task % tiles * LANES
        real = min(LANES, channels - channel)
        _collect(x, x_strides, sizes, batch, channel, scratch)
        _collect(grad_y, grad_strides, sizes, batch, channel, dy)
        for tap in range(taps + 1):
            store(dw, tap * LANES, splat(ZERO))
        for t in range(frames):
            for row in range(height):
                grads = dy + 4 * LANES * (((t + taps_t // 2) * high + row + taps_h // 2) * wide + taps_w // 2)
                # sums go row by row: one number after the other would lose digits
                total = splat(ZERO)
                for column in range(width):
                    total = total + load(grads, column * LANES)
                store(dw, taps * LANES, load(dw, taps * LANES) + total)
                tap = 0
                for i in range(taps_t):
                    for j in range(taps_h):
                        line = scratch + 4 * LANES * (((t + i) * high + row + j) * wide)
                        for k in range(taps_w):
                            # beyond the row dy is zero, so that four at a time may go too far
                            a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
                            for column in range(0, width, 4):
                                g, v = grads + 4 * column * LANES, line + 4 * (column + k) * LANES
                                a = fma(load(g, 0), load(v, 0), a)
                                b = fma(load(g, LANES), load(v, LANES), b)
                                c = fma(load(g, 2 * LANES), load(v, 2 * LANES), c)
                                d = fma(load(g, 3 * LANES), load(v, 3 * LANES), d)
                            store(dw, tap * LANES, load(dw, tap * LANES) + ((a + b) + (c + d)))
                            tap += 1
        for j in range(real):
            for tap in range(taps + 1):
                put(own, ((batch * channels) + channel + j) * (taps + 1) + tap, get(dw, tap * LANES + j))
