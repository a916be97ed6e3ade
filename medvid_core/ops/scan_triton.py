# Kernels build tuples up in loops; Triton knows no starred expressions.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment,misc"
"""Backend ``triton`` of the selective scan: float32 kernels for GPUs, forward and backward written out.

**Tiles.** A program is one warp. It holds `CHUNK` visited positions of a few channels as `STEPS` tensors
[ROWS, SEGMENTS]. A thread owns `STEPS` successive positions (a segment), within which the recurrence is plain
arithmetic; `SEGMENTS` of them lie side by side in the warp, and only what passes from segment to segment takes
shuffles: 4 rounds for 8 positions. The sums over channels in dB and dC take 2 rounds for every position. A loop runs
over the states; what has a state index (decays, states, adjoints) lives in registers for one turn of it.

**Chunks.** One program per chunk, not per channel, so that one clip fills a GPU: its 384 channels of 20480 positions
make 7680 programs. This takes three kernels:

1. what every chunk ends with when it starts from zero, and the sum of its step sizes, which gives its decay;
2. the state entering every chunk, one after the other, in place ([B,G,K,N,R], 1/64 of the work);
3. the outputs, every chunk from its entering state.

The backward pass does the same from the other end: the adjoint from zero, the adjoint entering every chunk, and the
gradients, for which the states of the chunk are computed again:

    g_t = C_t dy_t + e_{t+1}         e_t = exp(delta_t A) g_t, what flows on to h_{t-1}
    dx_t = sum_n g_t B_t             with x_t = delta_t u_t
    ddelta_t = sum_n e_t h_{t-1} A + dx_t u_t
    dB_t = sum_d g_t x_t             dC_t = sum_d h_t dy_t             dA = sum_t e_t h_{t-1} delta_t

The price of chunks is a second exponential for every element and state. With one batch entry of 3 groups of 128
channels, 16 states and 20480 positions (126 million elements times states) the forward pass moves 0.2 GB in float32,
40 microseconds on an H200, and takes 250 million exponentials, 70 microseconds, or all in all 24 instructions for 32
elements times states, 100 microseconds (51 in the backward pass): it is bound by arithmetic. These are counts from the
machine code and the GPU's data sheet, not measurements.

For dB and dC a program adds up its blocks of channels in memory, one after the other; then the sums of the programs
are added. There are no atomics and every sum has a fixed order: results are equal to the bit from run to run.

Whatever is read or written is found through `order`. The kernels are quickest where the channels of a position lie
side by side; any strides will do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from medvid_core.ops.scan_op import CHUNK, Gradients, Scan

jit: Callable[[Callable[..., Any]], Any] = triton.jit

LENGTH = tl.constexpr(CHUNK)
STEPS = tl.constexpr(8)
"""Successive visited positions of one thread."""
SEGMENTS = tl.constexpr(CHUNK // 8)
"""Such runs of positions side by side in a warp."""
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
HUGE = tl.constexpr(3.4028234663852886e38)
"""The largest float32."""
LOG1P = tl.constexpr(
    (
        1.0,
        -0.499998927,
        0.333297104,
        -0.249516159,
        0.196632743,
        -0.152696669,
        0.105436236,
        -0.0563736148,
        0.0195425283,
        -0.00317605701,
    )
)
"""Coefficients of log(1 + w) / w on [0, 1], interpolated at Chebyshev's points: within 6e-9."""

NARROW = 8
"""Channels of a program of the kernels that hold much: 32 threads are 4 channels x 8 segments."""
WIDE = 16
"""Channels of a program of the others; as many as `scan_op.LANES`, so that padded channels are theirs too."""
PROGRAMS = 3072
"""Enough to fill a GPU: only above it does one program of the backward pass take several blocks of channels."""


# -- Tiles -----------------------------------------------------------------------------------------------------------


@jit
def times_of(chunk: tl.tensor, chunks: tl.tensor, length: tl.tensor, s: tl.constexpr) -> tl.tensor:
    """The s-th time of every segment, [1, SEGMENTS].

    Chunks end where the sequence ends, so that times before 0 fill up the first one. What happens there, steps of zero
    between the initial state and time 0, is nothing; or NaN, where A is, and then time 0 has it too.
    """
    return (chunk - chunks) * LENGTH + length + tl.arange(0, SEGMENTS)[None, :] * STEPS + s


@jit
def positions_of(
    order: tl.tensor, group: tl.tensor, chunk: tl.tensor, chunks: tl.tensor, length: tl.tensor
) -> tl.tuple:
    """Where the positions of a chunk are, STEPS x int64 [1, SEGMENTS]; that of time 0 before it."""
    found = ()
    for s in tl.static_range(STEPS):
        t = tl.maximum(times_of(chunk, chunks, length, s), 0)
        if order is not None:
            t = tl.load(order + group.to(tl.int64) * length + t)
        found = found + (t.to(tl.int64),)
    return found


@jit
def inside_of(chunk: tl.tensor, chunks: tl.tensor, length: tl.tensor, here: tl.tensor) -> tl.tuple:
    """Which elements exist, STEPS x [ROWS, SEGMENTS]; `here` [ROWS] says which channels do."""
    found = ()
    for s in tl.static_range(STEPS):
        found = found + (here[:, None] & (times_of(chunk, chunks, length, s) >= 0),)
    return found


@jit
def place_of(x: tl.tensor, row: tl.tensor, position: tl.tensor, stride: tl.tensor) -> tl.tensor:
    """Addresses of elements, [ROWS, SEGMENTS].

    The compiler is told to take them for far apart. Else it lays tiles out for wide loads, and rearranges every one of
    them, for every state, into what the scan wants.
    """
    return tl.max_contiguous(x + row[:, None] + position * stride, (1, 1))


@jit
def read(
    x: tl.tensor,
    strides: tl.tuple,
    batch: tl.tensor,
    group: tl.tensor,
    rows: tl.tensor,
    positions: tl.tuple,
    inside: tl.tuple,
) -> tl.tuple:
    """A tile of x [B,G,R,L], STEPS x float32 [ROWS, SEGMENTS]; zero where there is none."""
    x += batch.to(tl.int64) * strides[0] + group.to(tl.int64) * strides[1]
    row = rows.to(tl.int64) * strides[2]
    tile = ()
    for s in tl.static_range(STEPS):
        place = place_of(x, row, positions[s], strides[3])
        tile = tile + (tl.load(place, mask=inside[s], other=0.0).to(tl.float32),)
    return tile


@jit
def write(
    x: tl.tensor,
    strides: tl.tuple,
    batch: tl.tensor,
    group: tl.tensor,
    rows: tl.tensor,
    positions: tl.tuple,
    inside: tl.tuple,
    tile: tl.tuple,
) -> None:
    """The opposite of `read`."""
    x += batch.to(tl.int64) * strides[0] + group.to(tl.int64) * strides[1]
    row = rows.to(tl.int64) * strides[2]
    for s in tl.static_range(STEPS):
        place = place_of(x, row, positions[s], strides[3])
        tl.store(place, tile[s].to(x.dtype.element_ty), mask=inside[s])


@jit
def weights_of(
    x: tl.tensor, strides: tl.tuple, batch: tl.tensor, group: tl.tensor, n: tl.tensor, positions: tl.tuple
) -> tl.tuple:
    """State n of B or C [B,G,N,L], STEPS x float32 [1, SEGMENTS]."""
    x += batch.to(tl.int64) * strides[0] + group.to(tl.int64) * strides[1] + tl.cast(n, tl.int64) * strides[2]
    tile = ()
    for s in tl.static_range(STEPS):
        tile = tile + (tl.load(x + positions[s] * strides[3]).to(tl.float32),)
    return tile


@jit
def zeros(ROWS: tl.constexpr) -> tl.tuple:
    """A tile of zeros."""
    tile = ()
    for _ in tl.static_range(STEPS):
        tile = tile + (tl.zeros([ROWS, SEGMENTS], tl.float32),)
    return tile


@jit
def sum_of(tile: tl.tuple) -> tl.tensor:
    """The sum over each segment [ROWS, SEGMENTS]."""
    total = tile[0]
    for s in tl.static_range(1, STEPS):
        total += tile[s]
    return total


# -- Arithmetic ------------------------------------------------------------------------------------------------------


@jit
def softplus_of(x: tl.tensor) -> tl.tensor:
    """log(1 + e^x), and x above 20 as PyTorch has it.

    log(1 + w) with w = e^-|x| is w times a polynomial: the logarithm itself is inexact near 1, where small steps are.
    """
    w = tl.exp(-tl.abs(x))
    series = tl.full(x.shape, LOG1P[9], tl.float32)
    for i in tl.static_range(8, -1, -1):
        series = tl.fma(series, w, LOG1P[i])
    # w is NaN where x is, whatever x > 0 says
    return tl.where(x > 20.0, x, tl.fma(series, w, tl.where(x > 0.0, x, 0.0)))


@jit
def sigmoid_of(x: tl.tensor) -> tl.tensor:
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp(-x))


@jit
def steps_of(
    delta: tl.tensor,
    strides: tl.tuple,
    bias: tl.tensor,
    batch: tl.tensor,
    group: tl.tensor,
    channels: tl.tensor,
    rows: tl.tensor,
    positions: tl.tuple,
    inside: tl.tuple,
    SOFTPLUS: tl.constexpr,
) -> tl.tuple:
    """Step sizes, after bias and softplus, and their slopes with respect to delta; zero where there are none."""
    raw = read(delta, strides, batch, group, rows, positions, inside)
    shift = tl.zeros(rows.shape, tl.float32)
    if bias is not None:
        shift = tl.load(bias + group * channels + rows, mask=rows < channels, other=0.0)
    steps, slopes = (), ()
    for s in tl.static_range(STEPS):
        x = raw[s] + shift[:, None]
        slope = tl.full(x.shape, 1.0, tl.float32)
        if SOFTPLUS:
            slope = tl.where(x > 20.0, 1.0, sigmoid_of(x))
            x = softplus_of(x)
        steps = steps + (tl.where(inside[s], x, 0.0),)  # a step of zero leaves a state as it is
        slopes = slopes + (slope,)
    return steps, slopes


@jit
def gated(
    grad: tl.tensor,
    grad_strides: tl.tuple,
    z: tl.tensor,
    z_strides: tl.tuple,
    batch: tl.tensor,
    group: tl.tensor,
    rows: tl.tensor,
    positions: tl.tuple,
    inside: tl.tuple,
) -> tl.tuple:
    """The gradient of the output before the gate."""
    tile = read(grad, grad_strides, batch, group, rows, positions, inside)
    if z is not None:
        gates = read(z, z_strides, batch, group, rows, positions, inside)
        product = ()
        for s in tl.static_range(STEPS):
            product = product + (tile[s] * gates[s] * sigmoid_of(gates[s]),)
        tile = product
    return tile


@jit
def entering(decay: tl.tensor, end: tl.tensor, first: tl.tensor, ROWS: tl.constexpr, BACK: tl.constexpr) -> tl.tensor:
    """The state entering each segment [ROWS, SEGMENTS], by doubling.

    `decay` is what a segment multiplies its entering state by, `end` what it ends with when it starts from zero (both
    [ROWS, SEGMENTS]), `first` [ROWS] enters the first segment, or the last where BACK.
    """
    place = tl.arange(0, SEGMENTS)[None, :] + tl.zeros([ROWS, SEGMENTS], tl.int32)
    if BACK:
        place = SEGMENTS - 1 - place
    # one segment further on: element j is now what happens before segment j
    source = neighbour(place, 1, BACK)
    decay = tl.gather(finite(decay), source, 1)
    state = tl.where(place == 0, first[:, None], tl.gather(end, source, 1))
    # now for 1, then for 2, 4, 8 segments up to its own
    for i in tl.static_range(3):
        source = neighbour(place, 2**i, BACK)
        state = tl.where(place < 2**i, state, tl.fma(decay, tl.gather(state, source, 1), state))
        decay = finite(decay * tl.gather(decay, source, 1))
    return state


@jit
def finite(decay: tl.tensor) -> tl.tensor:
    """Where A is positive, decays over many positions may be infinite, but states that are zero stay so."""
    return tl.minimum(decay, HUGE, propagate_nan=tl.PropagateNan.ALL)


@jit
def neighbour(place: tl.tensor, stride: tl.constexpr, BACK: tl.constexpr) -> tl.tensor:
    """The column that comes `stride` before, or any where there is none; `place` counts columns in their direction."""
    before = tl.maximum(place - stride, 0)
    return SEGMENTS - 1 - before if BACK else before


@jit
def parts(program: tl.tensor, groups: tl.tensor, chunks: tl.tensor, blocks: tl.tensor) -> tl.tuple:
    """A program's batch entry, group, chunk and block; those of one chunk are neighbours and share what they read."""
    block = program % blocks
    program = program // blocks
    chunk = program % chunks
    program = program // chunks
    return program // groups, program % groups, chunk, block


@jit
def kept(batch: tl.tensor, group: tl.tensor, chunk: tl.tensor, groups: tl.tensor, chunks: tl.tensor) -> tl.tensor:
    """Index of a chunk in [B,G,K,...]."""
    return (batch.to(tl.int64) * groups + group) * chunks + chunk


# -- Kernels ---------------------------------------------------------------------------------------------------------


@jit
def chunk_ends(
    u: tl.tensor,
    u_strides: tl.tuple,
    delta: tl.tensor,
    delta_strides: tl.tuple,
    A: tl.tensor,
    B: tl.tensor,
    B_strides: tl.tuple,
    bias: tl.tensor,
    order: tl.tensor,
    sums: tl.tensor,
    ends: tl.tensor,
    groups: tl.tensor,
    channels: tl.tensor,
    states: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    blocks: tl.tensor,
    padded: tl.tensor,
    SOFTPLUS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """What chunks end with when they start from zero, [B,G,K,N,padded], and their sums of steps [B,G,K,padded]."""
    batch, group, chunk, block = parts(tl.program_id(0), groups, chunks, blocks)
    rows = block * ROWS + tl.arange(0, ROWS)
    here = rows < channels
    positions = positions_of(order, group, chunk, chunks, length)
    inside = inside_of(chunk, chunks, length, here)
    steps, _ = steps_of(delta, delta_strides, bias, batch, group, channels, rows, positions, inside, SOFTPLUS)
    x = read(u, u_strides, batch, group, rows, positions, inside)
    drive = ()
    for s in tl.static_range(STEPS):
        drive = drive + (steps[s] * x[s],)
    total = sum_of(steps)
    index = kept(batch, group, chunk, groups, chunks)
    tl.store(sums + index * padded + rows, tl.sum(total, 1), mask=rows < padded)
    is_last = tl.arange(0, SEGMENTS)[None, :] == SEGMENTS - 1
    for n in range(states):
        rate = LOG2_E * tl.load(A + (group * channels + rows) * states + n, mask=here, other=0.0)[:, None]
        weights = weights_of(B, B_strides, batch, group, n, positions)
        h = drive[0] * weights[0]
        for s in tl.static_range(1, STEPS):
            h = tl.fma(tl.exp2(steps[s] * rate), h, drive[s] * weights[s])
        decay = tl.exp2(total * rate)
        before = entering(decay, h, tl.zeros([ROWS], tl.float32), ROWS, False)
        place = ends + (index * states + n) * padded + rows
        tl.store(place[:, None] + tl.zeros([1, SEGMENTS], tl.int32), tl.fma(finite(decay), before, h), mask=is_last)


@jit
def chunk_starts(
    grad: tl.tensor,
    grad_strides: tl.tuple,
    delta: tl.tensor,
    delta_strides: tl.tuple,
    z: tl.tensor,
    z_strides: tl.tuple,
    A: tl.tensor,
    C: tl.tensor,
    C_strides: tl.tuple,
    bias: tl.tensor,
    order: tl.tensor,
    sums: tl.tensor,
    starts: tl.tensor,
    groups: tl.tensor,
    channels: tl.tensor,
    states: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    blocks: tl.tensor,
    padded: tl.tensor,
    SOFTPLUS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """`chunk_ends` for the adjoint, which comes from behind."""
    batch, group, chunk, block = parts(tl.program_id(0), groups, chunks, blocks)
    rows = block * ROWS + tl.arange(0, ROWS)
    here = rows < channels
    positions = positions_of(order, group, chunk, chunks, length)
    inside = inside_of(chunk, chunks, length, here)
    steps, _ = steps_of(delta, delta_strides, bias, batch, group, channels, rows, positions, inside, SOFTPLUS)
    dy = gated(grad, grad_strides, z, z_strides, batch, group, rows, positions, inside)
    total = sum_of(steps)
    index = kept(batch, group, chunk, groups, chunks)
    tl.store(sums + index * padded + rows, tl.sum(total, 1), mask=rows < padded)
    is_first = tl.arange(0, SEGMENTS)[None, :] == 0
    for n in range(states):
        rate = LOG2_E * tl.load(A + (group * channels + rows) * states + n, mask=here, other=0.0)[:, None]
        weights = weights_of(C, C_strides, batch, group, n, positions)
        e = tl.zeros([ROWS, SEGMENTS], tl.float32)
        for s in tl.static_range(STEPS - 1, -1, -1):
            e = tl.exp2(steps[s] * rate) * tl.fma(weights[s], dy[s], e)
        decay = tl.exp2(total * rate)
        behind = entering(decay, e, tl.zeros([ROWS], tl.float32), ROWS, True)
        place = starts + (index * states + n) * padded + rows
        tl.store(place[:, None] + tl.zeros([1, SEGMENTS], tl.int32), tl.fma(finite(decay), behind, e), mask=is_first)


@jit
def across_chunks(
    A: tl.tensor,
    sums: tl.tensor,
    states: tl.tensor,
    first: tl.tensor,
    first_strides: tl.tuple,
    last: tl.tensor,
    last_strides: tl.tuple,
    groups: tl.tensor,
    channels: tl.tensor,
    count: tl.tensor,
    chunks: tl.tensor,
    blocks: tl.tensor,
    padded: tl.tensor,
    BACK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Replace, in `states` [B,G,K,N,padded], what chunks end with from zero by what enters them; give `last` too.

    One program follows a few channels of one state through all chunks, LENGTH at a time; where BACK, from the last
    chunk to the first.
    """
    batch, group, n, block = parts(tl.program_id(0), groups, count, blocks)
    rows = block * ROWS + tl.arange(0, ROWS)
    here = rows < channels
    rate = LOG2_E * tl.load(A + (group * channels + rows) * count + n, mask=here, other=0.0)[:, None]
    row = rows.to(tl.int64)
    carry = tl.zeros([ROWS], tl.float32)
    if first is not None:
        first += batch.to(tl.int64) * first_strides[0] + group.to(tl.int64) * first_strides[1] + n * first_strides[3]
        carry = tl.load(first + row * first_strides[2], mask=here, other=0.0)
    is_last = tl.arange(0, SEGMENTS)[None, :] == SEGMENTS - 1
    for begin in range(0, chunks, LENGTH):
        places, inside, decay, end = (), (), (), ()
        total = tl.zeros([ROWS, SEGMENTS], tl.float32)
        h = tl.zeros([ROWS, SEGMENTS], tl.float32)
        for s in tl.static_range(STEPS):
            k = begin + tl.arange(0, SEGMENTS) * STEPS + s
            exists = here[:, None] & (k < chunks)[None, :]
            k = chunks - 1 - k if BACK else k
            index = kept(batch, group, k, groups, chunks)[None, :]
            place = states + (index * count + n) * padded + rows[:, None]
            step = tl.load(sums + index * padded + rows[:, None], mask=exists, other=0.0)
            x = tl.load(place, mask=exists, other=0.0)
            a = finite(tl.exp2(step * rate))
            total += step
            h = tl.fma(a, h, x)
            places, inside, decay, end = places + (place,), inside + (exists,), decay + (a,), end + (x,)
        h = entering(tl.exp2(total * rate), h, carry, ROWS, False)
        for s in tl.static_range(STEPS):
            tl.store(places[s], h, mask=inside[s])
            h = tl.fma(decay[s], h, end[s])
        carry = tl.sum(tl.where(is_last, h, 0.0), 1)
    if last is not None:
        last += batch.to(tl.int64) * last_strides[0] + group.to(tl.int64) * last_strides[1] + n * last_strides[3]
        tl.store(last + row * last_strides[2], carry, mask=here)


@jit
def outputs(
    u: tl.tensor,
    u_strides: tl.tuple,
    delta: tl.tensor,
    delta_strides: tl.tuple,
    z: tl.tensor,
    z_strides: tl.tuple,
    y: tl.tensor,
    y_strides: tl.tuple,
    A: tl.tensor,
    B: tl.tensor,
    B_strides: tl.tuple,
    C: tl.tensor,
    C_strides: tl.tuple,
    D: tl.tensor,
    bias: tl.tensor,
    order: tl.tensor,
    enter: tl.tensor,
    groups: tl.tensor,
    channels: tl.tensor,
    states: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    blocks: tl.tensor,
    padded: tl.tensor,
    SOFTPLUS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """The outputs of every chunk, from the states entering it, `enter` [B,G,K,N,padded]."""
    batch, group, chunk, block = parts(tl.program_id(0), groups, chunks, blocks)
    rows = block * ROWS + tl.arange(0, ROWS)
    here = rows < channels
    positions = positions_of(order, group, chunk, chunks, length)
    inside = inside_of(chunk, chunks, length, here)
    steps, _ = steps_of(delta, delta_strides, bias, batch, group, channels, rows, positions, inside, SOFTPLUS)
    x = read(u, u_strides, batch, group, rows, positions, inside)
    skip = tl.zeros([ROWS], tl.float32)
    if D is not None:
        skip = tl.load(D + group * channels + rows, mask=here, other=0.0)
    drive, out = (), ()
    for s in tl.static_range(STEPS):
        drive = drive + (steps[s] * x[s],)
        out = out + (skip[:, None] * x[s],)
    total = sum_of(steps)
    index = kept(batch, group, chunk, groups, chunks)
    for n in range(states):
        rate = LOG2_E * tl.load(A + (group * channels + rows) * states + n, mask=here, other=0.0)[:, None]
        first = tl.load(enter + (index * states + n) * padded + rows, mask=here, other=0.0)
        B_n = weights_of(B, B_strides, batch, group, n, positions)
        C_n = weights_of(C, C_strides, batch, group, n, positions)
        decay, push = (), ()
        h = tl.zeros([ROWS, SEGMENTS], tl.float32)
        for s in tl.static_range(STEPS):
            decay = decay + (tl.exp2(steps[s] * rate),)
            push = push + (drive[s] * B_n[s],)
            h = tl.fma(decay[s], h, push[s])
        h = entering(tl.exp2(total * rate), h, first, ROWS, False)
        sums = ()
        for s in tl.static_range(STEPS):
            h = tl.fma(decay[s], h, push[s])
            sums = sums + (tl.fma(C_n[s], h, out[s]),)
        out = sums
    if z is not None:
        gates = read(z, z_strides, batch, group, rows, positions, inside)
        product = ()
        for s in tl.static_range(STEPS):
            product = product + (out[s] * gates[s] * sigmoid_of(gates[s]),)
        out = product
    write(y, y_strides, batch, group, rows, positions, inside, out)


@jit
def gradients(
    grad: tl.tensor,
    grad_strides: tl.tuple,
    u: tl.tensor,
    u_strides: tl.tuple,
    delta: tl.tensor,
    delta_strides: tl.tuple,
    z: tl.tensor,
    z_strides: tl.tuple,
    du: tl.tensor,
    du_strides: tl.tuple,
    ddelta: tl.tensor,
    ddelta_strides: tl.tuple,
    dz: tl.tensor,
    dz_strides: tl.tuple,
    A: tl.tensor,
    B: tl.tensor,
    B_strides: tl.tuple,
    C: tl.tensor,
    C_strides: tl.tuple,
    D: tl.tensor,
    bias: tl.tensor,
    order: tl.tensor,
    enter: tl.tensor,
    adjoint: tl.tensor,
    dA: tl.tensor,
    dB: tl.tensor,
    dC: tl.tensor,
    dD: tl.tensor,
    dbias: tl.tensor,
    groups: tl.tensor,
    channels: tl.tensor,
    states: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    blocks: tl.tensor,
    per_program: tl.tensor,
    shares: tl.tensor,
    padded: tl.tensor,
    SOFTPLUS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """All gradients of every chunk, from the states entering it and the adjoints entering it from behind.

    Each program takes `per_program` of the `blocks` of channels, and so its share of the sums over channels, dB and dC
    [B,G,K,shares,N,STEPS,SEGMENTS]. dA [B,G,K,N,padded], dD and dbias [B,G,K,padded] are sums over the chunk.
    """
    batch, group, chunk, share = parts(tl.program_id(0), groups, chunks, shares)
    positions = positions_of(order, group, chunk, chunks, length)
    index = kept(batch, group, chunk, groups, chunks)
    columns = tl.arange(0, SEGMENTS)[None, :]
    first_block = share * per_program
    for block in range(first_block, tl.minimum(first_block + per_program, blocks)):
        rows = block * ROWS + tl.arange(0, ROWS)
        here = rows < channels
        inside = inside_of(chunk, chunks, length, here)
        steps, _ = steps_of(delta, delta_strides, bias, batch, group, channels, rows, positions, inside, SOFTPLUS)
        dy = gated(grad, grad_strides, z, z_strides, batch, group, rows, positions, inside)
        x = read(u, u_strides, batch, group, rows, positions, inside)
        drive = ()
        for s in tl.static_range(STEPS):
            drive = drive + (steps[s] * x[s],)
        total = sum_of(steps)
        grad_drive, grad_step, out = zeros(ROWS), zeros(ROWS), zeros(ROWS)
        for n in range(states):
            rate = LOG2_E * tl.load(A + (group * channels + rows) * states + n, mask=here, other=0.0)[:, None]
            own = (index * states + n) * padded + rows
            B_n = weights_of(B, B_strides, batch, group, n, positions)
            C_n = weights_of(C, C_strides, batch, group, n, positions)
            shared = (((index * shares + share) * states + n) * STEPS) * SEGMENTS + columns
            more = tl.full([1, SEGMENTS], block, tl.int32) > first_block

            # the states again
            decay = ()
            h = tl.zeros([ROWS, SEGMENTS], tl.float32)
            for s in tl.static_range(STEPS):
                decay = decay + (tl.exp2(steps[s] * rate),)
                h = tl.fma(decay[s], h, drive[s] * B_n[s])
            whole = tl.exp2(total * rate)
            h = entering(whole, h, tl.load(enter + own, mask=here, other=0.0), ROWS, False)
            before, sums = (), ()
            for s in tl.static_range(STEPS):
                before = before + (h,)
                h = tl.fma(decay[s], h, drive[s] * B_n[s])
                place = dC + shared + s * SEGMENTS
                tl.store(place, tl.load(place, mask=more, other=0.0) + tl.sum(h * dy[s], 0, keep_dims=True))
                if z is not None:
                    sums = sums + (tl.fma(C_n[s], h, out[s]),)
            if z is not None:
                out = sums

            # the adjoint, from the end of the chunk to its beginning
            e = tl.zeros([ROWS, SEGMENTS], tl.float32)
            for s in tl.static_range(STEPS - 1, -1, -1):
                e = decay[s] * tl.fma(C_n[s], dy[s], e)
            e = entering(whole, e, tl.load(adjoint + own, mask=here, other=0.0), ROWS, True)
            grad_rate = tl.zeros([ROWS, SEGMENTS], tl.float32)
            drives, slopes = (), ()
            for s in tl.static_range(STEPS - 1, -1, -1):
                g = tl.fma(C_n[s], dy[s], e)
                place = dB + shared + s * SEGMENTS
                tl.store(place, tl.load(place, mask=more, other=0.0) + tl.sum(g * drive[s], 0, keep_dims=True))
                e = decay[s] * g
                flow = e * before[s]
                grad_rate = tl.fma(flow, steps[s], grad_rate)
                drives = (tl.fma(g, B_n[s], grad_drive[s]),) + drives
                slopes = (tl.fma(flow, rate, grad_step[s]),) + slopes
            grad_drive, grad_step = drives, slopes
            tl.store(dA + own, tl.sum(grad_rate, 1), mask=rows < padded)

        # what depends on no state; inputs are read once more rather than held
        _, slope = steps_of(delta, delta_strides, bias, batch, group, channels, rows, positions, inside, SOFTPLUS)
        x = read(u, u_strides, batch, group, rows, positions, inside)
        skip = tl.zeros([ROWS], tl.float32)
        if D is not None:
            skip = tl.load(D + group * channels + rows, mask=here, other=0.0)
        du_tile, ddelta_tile = (), ()
        grad_skip = tl.zeros([ROWS, SEGMENTS], tl.float32)
        for s in tl.static_range(STEPS):
            du_tile = du_tile + (tl.fma(grad_drive[s], steps[s], skip[:, None] * dy[s]),)
            d = tl.fma(grad_drive[s], x[s], grad_step[s] * LN_2) * slope[s]
            ddelta_tile = ddelta_tile + (tl.where(inside[s], d, 0.0),)
            grad_skip = tl.fma(dy[s], x[s], grad_skip)
        write(du, du_strides, batch, group, rows, positions, inside, du_tile)
        write(ddelta, ddelta_strides, batch, group, rows, positions, inside, ddelta_tile)
        tl.store(dD + index * padded + rows, tl.sum(grad_skip, 1), mask=rows < padded)
        tl.store(dbias + index * padded + rows, tl.sum(sum_of(ddelta_tile), 1), mask=rows < padded)
        if z is not None:
            grads = read(grad, grad_strides, batch, group, rows, positions, inside)
            gates = read(z, z_strides, batch, group, rows, positions, inside)
            dz_tile = ()
            for s in tl.static_range(STEPS):
                sigmoid = sigmoid_of(gates[s])
                slope_of_gate = sigmoid * tl.fma(gates[s], 1.0 - sigmoid, 1.0)
                dz_tile = dz_tile + (grads[s] * tl.fma(skip[:, None], x[s], out[s]) * slope_of_gate,)
            write(dz, dz_strides, batch, group, rows, positions, inside, dz_tile)
        tl.debug_barrier()  # the next block adds to what other threads of this program have just stored


@jit
def put_home(
    shares_of: tl.tensor,
    grad: tl.tensor,
    strides: tl.tuple,
    order: tl.tensor,
    groups: tl.tensor,
    states: tl.tensor,
    length: tl.tensor,
    chunks: tl.tensor,
    shares: tl.tensor,
) -> None:
    """Add up the shares of dB or dC [B,G,K,shares,N,STEPS,SEGMENTS] and put the sums in their places [B,G,N,L]."""
    batch, group, chunk, n = parts(tl.program_id(0), groups, chunks, states)
    index = kept(batch, group, chunk, groups, chunks)
    place = tl.arange(0, LENGTH)
    total = tl.zeros([LENGTH], tl.float32)
    for share in range(shares):
        total += tl.load(shares_of + ((index * shares + share) * states + n) * LENGTH + place)
    t = (chunk - chunks) * LENGTH + length + place % SEGMENTS * STEPS + place // SEGMENTS  # as in `times_of`
    exists = t >= 0
    if order is not None:
        t = tl.load(order + group.to(tl.int64) * length + t, mask=exists, other=0)
    grad += batch.to(tl.int64) * strides[0] + group.to(tl.int64) * strides[1] + tl.cast(n, tl.int64) * strides[2]
    tl.store(grad + t.to(tl.int64) * strides[3], total.to(grad.dtype.element_ty), mask=exists)


# -- Calls -----------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"num_warps": 1, "enable_fp_fusion": True}


def forward(given: Scan, y: Tensor, last: Tensor, states: Tensor) -> None:
    """Fill y, last and, where it has room for them, states; see `scan_op.scan`."""
    u, delta, A, B, C, D, z, delta_bias, initial_state, order, softplus = given
    batch, groups, channels, length = u.shape
    count = A.shape[-1]
    chunks = -(-length // CHUNK)
    if states.shape[2] == 0:
        states = states.new_empty(batch, groups, chunks, *states.shape[3:])
    padded = states.shape[-1]
    sums = states.new_empty(batch, groups, chunks, padded)
    A, D, bias, order = _packed(A), _packed(D), _packed(delta_bias), _packed(order)
    blocks = -(-channels // WIDE)
    sizes = (groups, channels, count, length, chunks, blocks, padded, softplus, WIDE)
    grid = (batch * groups * chunks * blocks,)
    with torch.cuda.device_of(u):  # type: ignore[no-untyped-call]
        chunk_ends[grid](*_strided(u, delta), A, *_strided(B), bias, order, sums, states, *sizes, **OPTIONS)
        _across_chunks(A, sums, states, initial_state, last, channels, back=False)
        outputs[grid](*_strided(u, delta, z, y), A, *_strided(B, C), D, bias, order, states, *sizes, **OPTIONS)


def backward(grad_y: Tensor, grad_last: Tensor | None, states: Tensor, given: Scan, grads: Gradients) -> None:
    """Fill the gradients; see `scan_op.scan_backward`."""
    u, delta, A, B, C, D, z, delta_bias, _, order, softplus = given
    batch, groups, channels, length = u.shape
    count = A.shape[-1]
    chunks, padded = states.shape[2], states.shape[-1]
    sums = states.new_empty(batch, groups, chunks, padded)
    adjoint = torch.empty_like(states)
    A, D, bias, order = _packed(A), _packed(D), _packed(delta_bias), _packed(order)
    blocks = -(-channels // NARROW)
    tiles = batch * groups * chunks
    per_program = max(1, min(16, tiles * blocks // PROGRAMS))
    shares = -(-blocks // per_program)
    of_rates = torch.empty_like(states)
    of_skips, of_biases = torch.empty_like(sums), torch.empty_like(sums)
    of_B, of_C = (states.new_empty(tiles, shares, count, CHUNK) for _ in range(2))
    wide = -(-channels // WIDE)
    with torch.cuda.device_of(u):  # type: ignore[no-untyped-call]
        chunk_starts[(tiles * wide,)](
            *_strided(grad_y, delta, z),
            A,
            *_strided(C),
            bias,
            order,
            sums,
            adjoint,
            *(groups, channels, count, length, chunks, wide, padded, softplus, WIDE),
            **OPTIONS,
        )
        _across_chunks(
            A,
            sums,
            adjoint,
            grad_last,
            grads.initial_state if grads.initial_state.numel() else None,
            channels,
            back=True,
        )
        gradients[(tiles * shares,)](
            *_strided(grad_y, u, delta, z, grads.u, grads.delta, None if z is None else grads.z),
            A,
            *_strided(B, C),
            D,
            bias,
            order,
            states,
            adjoint,
            *(of_rates, of_B, of_C, of_skips, of_biases),
            *(groups, channels, count, length, chunks, blocks, per_program, shares, padded, softplus, NARROW),
            **OPTIONS,
        )
        for share, grad in ((of_B, grads.B), (of_C, grads.C)):
            put_home[(tiles * count,)](share, *_strided(grad), order, groups, count, length, chunks, shares, **OPTIONS)
    grads.A.copy_(of_rates.sum((0, 2))[..., :channels].transpose(-1, -2))
    for grad, own in ((grads.D, of_skips), (grads.delta_bias, of_biases)):
        if grad.numel():
            grad.copy_(own.sum((0, 2))[..., :channels])


def _across_chunks(
    A: Tensor, sums: Tensor, states: Tensor, first: Tensor | None, last: Tensor | None, channels: int, back: bool
) -> None:
    batch, groups, chunks, count, padded = states.shape
    blocks = -(-channels // NARROW)
    across_chunks[(batch * groups * count * blocks,)](
        A,
        sums,
        states,
        *_strided(first, last),
        *(groups, channels, count, chunks, blocks, padded, back, NARROW),
        **OPTIONS,
    )


def _packed(x: Tensor | None) -> Any:
    return None if x is None else x.contiguous()


def _strided(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Each tensor followed by its strides."""
    return tuple(part for x in tensors for part in (x, (0,) * 4 if x is None else x.stride()))
