"""Between tensors and the compiled kernels: 16 channels of a sequence gathered in scratch memory, and put back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medvid_core.ops.lanes import get, get_int, kernel, load, put, put_int, splat, store, transpose
from medvid_core.ops.scan_op import LANES

ZERO = np.float32(0)


class Strided(NamedTuple):
    """A [B,G,R,L] tensor for a kernel: address, and steps in elements."""

    address: int
    batch: int
    group: int
    channel: int
    time: int


def strided(x: Tensor | None) -> Strided:
    """Describe a float32 tensor [B,G,R,L]; one that is absent has address 0."""
    return Strided(0, 0, 0, 0, 0) if x is None else Strided(x.data_ptr(), *x.stride())


def address(x: Tensor | None) -> int:
    """The address of a contiguous tensor; 0 for none."""
    return 0 if x is None else x.data_ptr()


def require_order(order: Tensor | None, groups: int, length: int) -> None:
    """Refuse an order that the kernels must not follow: they check nothing.

    Raises:
        ValueError: not a permutation for each group.
    """
    if order is None:
        return
    right = order.shape == (groups, length) and order.dtype == torch.int32
    if right and bool(((order >= 0) & (order < length)).all()):
        met = torch.zeros(groups, length, dtype=torch.bool).scatter_(1, order.long(), True)
        right = bool(met.all())
    else:
        right = False
    if not right:
        raise ValueError(f"order must hold a permutation of 0 … {length - 1} for each of {groups} groups, as int32.")


@kernel
def visit(order: int, group: int, length: int, first: int, steps: int, positions: int) -> None:
    """Write where the visits `first` … of a group lie."""
    for s in range(steps):
        put_int(positions, s, get_int(order, group * length + first + s) if order else first + s)


@kernel
def gather(
    x: Strided, batch: int, group: int, channel: int, count: int, order: int, positions: int, steps: int, out: int
) -> None:
    """Collect 16 channels, of which `count` exist, at the given positions: out [CHUNK,16]."""
    start = x.address + 4 * (batch * x.batch + group * x.group + channel * x.channel)
    done = 0
    if count == LANES and x.channel == 1:
        for s in range(steps):
            store(out, s * LANES, load(start, get_int(positions, s) * x.time))
        done = steps
    elif count == LANES and x.time == 1 and not order:
        base = start + 4 * get_int(positions, 0)
        while done + LANES <= steps:
            transpose(base + 4 * done, x.channel, out + 4 * done * LANES, LANES)
            done += LANES
    for s in range(done, steps):
        at = get_int(positions, s) * x.time
        store(out, s * LANES, splat(ZERO))
        for j in range(count):
            put(out, s * LANES + j, get(start, j * x.channel + at))


@kernel
def scatter(
    x: Strided, batch: int, group: int, channel: int, count: int, order: int, positions: int, steps: int, source: int
) -> None:
    """The inverse of `gather`."""
    start = x.address + 4 * (batch * x.batch + group * x.group + channel * x.channel)
    done = 0
    if count == LANES and x.channel == 1:
        for s in range(steps):
            store(start, get_int(positions, s) * x.time, load(source, s * LANES))
        done = steps
    elif count == LANES and x.time == 1 and not order:
        base = start + 4 * get_int(positions, 0)
        while done + LANES <= steps:
            transpose(source + 4 * done * LANES, LANES, base + 4 * done, x.channel)
            done += LANES
    for s in range(done, steps):
        at = get_int(positions, s) * x.time
        for j in range(count):
            put(start, j * x.channel + at, get(source, s * LANES + j))


@kernel
def columns(source: int, first: int, count: int, width: int, out: int) -> None:
    """Rows `first` … of a [.., width] matrix as `width` vectors; absent rows, or an absent matrix, are zero."""
    for n in range(width):
        store(out, n * LANES, splat(ZERO))
        if source:
            for j in range(count):
                put(out, n * LANES + j, get(source, (first + j) * width + n))
