"""Backend ``cpu`` of the selective scan: float32 kernels for Numba, forward and backward written out.

The 16 numbers of a vector are 16 channels, so the sum over the states needs no exchange between them and B_t and C_t
are the same for all. One task scans 16 channels of one group and batch entry from beginning to end, `CHUNK` positions
at a time: gather them from wherever `order` says, scan, put the results back. Only the states entering each chunk are
kept; the backward pass takes the chunks in reverse, computes the states of one chunk again, and walks it backwards:

    g_t = C_t dy_t + e_{t+1}         e_t = exp(delta_t A) g_t, what flows on to h_{t-1}
    dx_t = sum_n g_t B_t             with x_t = delta_t u_t
    ddelta_t = sum_n e_t h_{t-1} A + dx_t u_t
    dB_t = sum_d g_t x_t             dC_t = sum_d h_t dy_t             dA = sum_t e_t h_{t-1} delta_t

dB and dC are summed over the channels of a task, and then over tasks, always in the same order: results are equal to
the bit from run to run and for any number of threads.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from medvid_core.ops.lanes import (
    LN_2,
    LOG2_E,
    exp2,
    fma,
    get,
    get_int,
    kernel,
    load,
    put,
    scratch,
    share,
    sigmoid,
    softplus,
    splat,
    store,
    totals,
)
from medvid_core.ops.scan_op import CHUNK, LANES, Gradients, Scan
from medvid_core.ops.tiles import Strided, address, columns, gather, require_order, scatter, strided, visit

ZERO, ONE, LN_2_SINGLE = np.float32(0), np.float32(1), np.float32(LN_2)
WIDE = CHUNK * LANES
"""Elements of one sequence of one task's chunk."""


def forward(given: Scan, y: Tensor, last: Tensor, states: Tensor) -> None:
    """Fill y, last and, where it has room for them, states; see `scan_op.scan`."""
    require_order(given.order, given.u.shape[1], given.u.shape[3])
    problem = _Problem(given)
    outputs = (strided(y), address(last), address(states) if states.numel() else 0)

    def run(first: int, end: int) -> None:
        memory = scratch(problem.states * 2 * LANES + 3 * WIDE + 3 * LANES + CHUNK)
        _forward(first, end, *problem.arguments, *outputs, address(memory))

    share(run, problem.tiles, problem.work)


def backward(grad_y: Tensor, grad_last: Tensor | None, states: Tensor, given: Scan, grads: Gradients) -> None:
    """Fill the gradients; see `scan_op.scan_backward`."""
    problem = _Problem(given)
    batch, groups, channels, length = given.u.shape
    count = problem.states
    # what tasks that share a group add up, apart for each: together about as much as u at most
    wide = -(-count // LANES) * LANES
    blocks = max(1, min(-(-channels // LANES), channels // (2 * wide)))
    shared = scratch(2, batch, groups, blocks, length, wide)
    own = scratch(batch, groups, channels, count + 2)  # dA, dD, ddelta_bias of each batch entry
    start = scratch(batch, groups, channels, count)
    last = None if grad_last is None else grad_last.contiguous()
    incoming = (strided(grad_y), address(last), address(states))
    outgoing = (strided(grads.u), strided(grads.delta), strided(None if given.z is None else grads.z))
    sums = (address(shared), address(own), address(start))

    def run(first: int, end: int) -> None:
        size = count * LANES * (5 + 2 * CHUNK) + 7 * WIDE + 2 * LANES + CHUNK + 2 * wide * LANES
        memory = scratch(size)
        _backward(first, end, blocks, *problem.arguments, *incoming, *outgoing, *sums, address(memory))

    share(run, batch * groups * blocks, 3 * problem.work)
    for grad, parts in ((grads.B, shared[0]), (grads.C, shared[1])):
        grad.copy_(parts.sum(2)[..., :count].transpose(-1, -2))
    summed = own.sum(0)
    grads.A.copy_(summed[..., :count])
    for grad, column in ((grads.D, count), (grads.delta_bias, count + 1)):
        if grad.numel():
            grad.copy_(summed[..., column])
    if grads.initial_state.numel():
        grads.initial_state.copy_(start)


class _Problem:
    """The inputs as the kernels take them. Holds on to the tensors whose addresses it gives away."""

    def __init__(self, given: Scan) -> None:
        batch, groups, channels, length = given.u.shape
        self.states = given.A.shape[-1]
        self.tiles = batch * groups * -(-channels // LANES)
        self.work = self.tiles * length * self.states
        B, C = (x if x.stride(2) == 1 else x.transpose(2, 3).contiguous().transpose(2, 3) for x in (given.B, given.C))
        # exp(delta A) = 2^(delta A log2 e)
        A = (given.A.double() * LOG2_E).float().contiguous()
        D, delta_bias, initial_state, order = (
            None if x is None else x.contiguous() for x in (given.D, given.delta_bias, given.initial_state, given.order)
        )
        self._kept = (given, A, B, C, D, delta_bias, initial_state, order)
        self.arguments = (
            (batch, groups, channels, length, self.states),
            strided(given.u),
            strided(given.delta),
            address(A),
            strided(B),
            strided(C),
            address(D),
            strided(given.z),
            address(delta_bias),
            address(initial_state),
            address(order),
            int(given.softplus),
        )


@kernel
def _steps(delta: int, bias: int, softplus_on: int, steps: int, out: int) -> None:
    """delta, gathered, with bias and softplus."""
    extra = load(bias, 0)
    for s in range(steps):
        value = load(delta, s * LANES) + extra
        store(out, s * LANES, softplus(value) if softplus_on else value)


@kernel
def _forward(
    first: int,
    end: int,
    sizes: tuple[int, int, int, int, int],
    u: Strided,
    delta: Strided,
    A: int,
    B: Strided,
    C: Strided,
    D: int,
    z: Strided,
    delta_bias: int,
    initial_state: int,
    order: int,
    softplus_on: int,
    y: Strided,
    last: int,
    states: int,
    scratch: int,
) -> None:
    _, groups, channels, length, count = sizes
    tiles = -(-channels // LANES)
    chunks = -(-length // CHUNK)
    a, h = scratch, scratch + 4 * count * LANES
    x = h + 4 * count * LANES
    d, out, bias, skip = x + 4 * WIDE, x + 8 * WIDE, x + 12 * WIDE, x + 12 * WIDE + 4 * LANES
    positions = skip + 4 * LANES
    for task in range(first, end):
        batch, group, tile = task // (groups * tiles), task // tiles % groups, task % tiles
        channel = tile * LANES
        real = min(LANES, channels - channel)
        row = group * channels + channel
        columns(A, row, real, count, a)
        columns(initial_state, batch * groups * channels + row, real, count, h)
        columns(delta_bias, row, real, 1, bias)
        columns(D, row, real, 1, skip)
        B_start = B.address + 4 * (batch * B.batch + group * B.group)
        C_start = C.address + 4 * (batch * C.batch + group * C.group)
        for chunk in range(chunks):
            steps = min(CHUNK, length - chunk * CHUNK)
            if states:
                kept = states + 4 * (((batch * groups + group) * chunks + chunk) * count * tiles + tile) * LANES
                for n in range(count):
                    store(kept, n * tiles * LANES, load(h, n * LANES))
            visit(order, group, length, chunk * CHUNK, steps, positions)
            gather(delta, batch, group, channel, real, order, positions, steps, x)
            _steps(x, bias, softplus_on, steps, d)
            gather(u, batch, group, channel, real, order, positions, steps, x)
            for s in range(steps):
                at = get_int(positions, s)
                B_t, C_t = B_start + 4 * at * B.time, C_start + 4 * at * C.time
                step, value = load(d, s * LANES), load(x, s * LANES)
                drive = step * value
                result = load(skip, 0) * value
                for n in range(count):
                    state = fma(exp2(step * load(a, n * LANES)), load(h, n * LANES), drive * splat(get(B_t, n)))
                    store(h, n * LANES, state)
                    result = fma(state, splat(get(C_t, n)), result)
                store(out, s * LANES, result)
            if z.address:
                gather(z, batch, group, channel, real, order, positions, steps, x)
                for s in range(steps):
                    gate = load(x, s * LANES)
                    store(out, s * LANES, load(out, s * LANES) * gate * sigmoid(gate))
            scatter(y, batch, group, channel, real, order, positions, steps, out)
        for n in range(count):
            for j in range(real):
                put(last, (batch * groups * channels + row + j) * count + n, get(h, n * LANES + j))


@kernel
def _replay(
    steps: int,
    count: int,
    a: int,
    B: int,
    B_time: int,
    C: int,
    C_time: int,
    positions: int,
    d: int,
    x: int,
    skip: int,
    decays: int,
    hs: int,
    out: int,
) -> None:
    """Scan one chunk again from the state in hs[0]: decays [CHUNK,N,16], states hs [CHUNK+1,N,16], ungated out."""
    size = 4 * count * LANES
    for s in range(steps):
        at = get_int(positions, s)
        step, value = load(d, s * LANES), load(x, s * LANES)
        drive = step * value
        result = load(skip, 0) * value
        for n in range(count):
            decay = exp2(step * load(a, n * LANES))
            store(decays + s * size, n * LANES, decay)
            state = fma(decay, load(hs + s * size, n * LANES), drive * splat(get(B, at * B_time + n)))
            store(hs + (s + 1) * size, n * LANES, state)
            result = fma(state, splat(get(C, at * C_time + n)), result)
        store(out, s * LANES, result)


@kernel
def _walk_back(
    steps: int,
    count: int,
    a: int,
    B: int,
    B_time: int,
    C: int,
    C_time: int,
    positions: int,
    d: int,
    x: int,
    skip: int,
    decays: int,
    hs: int,
    dy: int,
    adjoint: int,
    da: int,
    dB: int,
    dC: int,
    add: int,
    products: int,
    du: int,
    dd: int,
) -> None:
    """Gradients of one chunk, in the module's formulas; `adjoint` [N,16] is e of the step after it, then of its first.

    dB and dC are rows [L,wide], wide being N rounded up to whole vectors, as is `products` [2,wide,16]; where `add`,
    what dB and dC hold is added to.
    """
    size = 4 * count * LANES
    wide = -(-count // LANES) * LANES
    for n in range(count, wide):
        store(products, n * LANES, splat(ZERO))
        store(products, (wide + n) * LANES, splat(ZERO))
    for s in range(steps - 1, -1, -1):
        at = get_int(positions, s)
        step, value, grad = load(d, s * LANES), load(x, s * LANES), load(dy, s * LANES)
        drive = step * value
        dx, dstep = splat(ZERO), splat(ZERO)
        for n in range(count):
            g = fma(grad, splat(get(C, at * C_time + n)), load(adjoint, n * LANES))
            store(products, n * LANES, g * drive)
            store(products, (wide + n) * LANES, grad * load(hs + (s + 1) * size, n * LANES))
            dx = fma(g, splat(get(B, at * B_time + n)), dx)
            e = g * load(decays + s * size, n * LANES)
            store(adjoint, n * LANES, e)
            weight = e * load(hs + s * size, n * LANES)
            store(da, n * LANES, fma(weight, step, load(da, n * LANES)))
            dstep = fma(weight, load(a, n * LANES), dstep)
        for n in range(0, wide, LANES):
            dB_n, dC_n = totals(products + 4 * n * LANES), totals(products + 4 * (wide + n) * LANES)
            if add:
                dB_n, dC_n = dB_n + load(dB, at * wide + n), dC_n + load(dC, at * wide + n)
            store(dB, at * wide + n, dB_n)
            store(dC, at * wide + n, dC_n)
        store(du, s * LANES, fma(dx, step, load(skip, 0) * grad))
        store(dd, s * LANES, fma(dx, value, dstep * splat(LN_2_SINGLE)))  # a is A log2 e


@kernel
def _backward(
    first: int,
    end: int,
    blocks: int,
    sizes: tuple[int, int, int, int, int],
    u: Strided,
    delta: Strided,
    A: int,
    B: Strided,
    C: Strided,
    D: int,
    z: Strided,
    delta_bias: int,
    initial_state: int,
    order: int,
    softplus_on: int,
    grad_y: Strided,
    grad_last: int,
    states: int,
    du: Strided,
    ddelta: Strided,
    dz: Strided,
    shared: int,
    own: int,
    start: int,
    scratch: int,
) -> None:
    batches, groups, channels, length, count = sizes
    tiles = -(-channels // LANES)
    chunks = -(-length // CHUNK)
    size = 4 * count * LANES
    a, da, da_chunk, adjoint = scratch, scratch + size, scratch + 2 * size, scratch + 3 * size
    decays, hs = scratch + 4 * size, scratch + (4 + CHUNK) * size
    x = hs + (CHUNK + 1) * size
    raw, d, dy = x + 4 * WIDE, x + 8 * WIDE, x + 12 * WIDE
    gate, out, dd = x + 16 * WIDE, x + 20 * WIDE, x + 24 * WIDE
    wide = -(-count // LANES) * LANES
    bias, skip = x + 28 * WIDE, x + 28 * WIDE + 4 * LANES
    products = skip + 4 * LANES
    positions = products + 8 * wide * LANES
    for task in range(first, end):
        batch, group, block = task // (groups * blocks), task // blocks % groups, task % blocks
        B_start = B.address + 4 * (batch * B.batch + group * B.group)
        C_start = C.address + 4 * (batch * C.batch + group * C.group)
        dB = shared + 4 * task * length * wide
        dC = dB + 4 * batches * groups * blocks * length * wide
        first_tile = tiles * block // blocks
        for tile in range(first_tile, tiles * (block + 1) // blocks):
            channel = tile * LANES
            real = min(LANES, channels - channel)
            row = group * channels + channel
            batch_row = batch * groups * channels + row
            columns(A, row, real, count, a)
            columns(D, row, real, 1, skip)
            columns(delta_bias, row, real, 1, bias)
            columns(grad_last, batch_row, real, count, adjoint)
            columns(0, 0, 0, count, da)
            dbias, dskip = splat(ZERO), splat(ZERO)
            for chunk in range(chunks - 1, -1, -1):
                # sums over time go chunk by chunk: one number after the other would lose digits
                columns(0, 0, 0, count, da_chunk)
                dbias_chunk, dskip_chunk = splat(ZERO), splat(ZERO)
                steps = min(CHUNK, length - chunk * CHUNK)
                kept = states + 4 * (((batch * groups + group) * chunks + chunk) * count * tiles + tile) * LANES
                for n in range(count):
                    store(hs, n * LANES, load(kept, n * tiles * LANES))
                visit(order, group, length, chunk * CHUNK, steps, positions)
                gather(u, batch, group, channel, real, order, positions, steps, x)
                gather(delta, batch, group, channel, real, order, positions, steps, raw)
                gather(grad_y, batch, group, channel, real, order, positions, steps, dy)
                _steps(raw, bias, softplus_on, steps, d)
                _replay(steps, count, a, B_start, B.time, C_start, C.time, positions, d, x, skip, decays, hs, out)
                if z.address:
                    gather(z, batch, group, channel, real, order, positions, steps, gate)
                    for s in range(steps):
                        value, grad = load(gate, s * LANES), load(dy, s * LANES)
                        slope = sigmoid(value)
                        silu = value * slope
                        store(dy, s * LANES, grad * silu)
                        # silu' = sigmoid + silu (1 - sigmoid)
                        store(gate, s * LANES, grad * load(out, s * LANES) * fma(silu, splat(ONE) - slope, slope))
                    scatter(dz, batch, group, channel, real, order, positions, steps, gate)
                for s in range(steps):
                    dskip_chunk = fma(load(dy, s * LANES), load(x, s * LANES), dskip_chunk)
                _walk_back(
                    steps, count, a, B_start, B.time, C_start, C.time, positions, d, x, skip, decays, hs, dy, adjoint,
                    da_chunk, dB, dC, tile - first_tile, products, out, dd,
                )  # fmt: skip
                for s in range(steps):
                    grad = load(dd, s * LANES)
                    if softplus_on:
                        grad = grad * sigmoid(load(raw, s * LANES) + load(bias, 0))
                        store(dd, s * LANES, grad)
                    dbias_chunk = dbias_chunk + grad
                for n in range(count):
                    store(da, n * LANES, load(da, n * LANES) + load(da_chunk, n * LANES))
                dbias, dskip = dbias + dbias_chunk, dskip + dskip_chunk
                scatter(du, batch, group, channel, real, order, positions, steps, out)
                scatter(ddelta, batch, group, channel, real, order, positions, steps, dd)
            store(skip, 0, dskip)
            store(bias, 0, dbias)
            for j in range(real):
                for n in range(count):
                    put(own, (batch_row + j) * (count + 2) + n, get(da, n * LANES + j))
                    put(start, (batch_row + j) * count + n, get(adjoint, n * LANES + j))
                put(own, (batch_row + j) * (count + 2) + count, get(skip, j))
                put(own, (batch_row + j) * (count + 2) + count + 1, get(bias, j))
