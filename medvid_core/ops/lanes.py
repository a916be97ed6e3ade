"""What the compiled CPU kernels are written in: 16 float32 numbers as one Numba value, and work shared by threads.

Numba turns loops into vector instructions when LLVM happens to see how. Here a value of type `lanes` is an LLVM vector
from the start, so that every processor gets its own widest instructions (AVX-512, AVX2, NEON, …) for certain.

Memory is addressed as in C: by the address of a tensor, ``tensor.data_ptr()``, and a number of elements. Kernels are
called with addresses that stay valid during the call, and check nothing.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import math
import operator
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model
from torch import Tensor

from medvid_core.ops.scan_op import LANES

LOG2_E = math.log2(math.e)
LN_2 = math.log(2)

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def kernel(function: Kernel) -> Kernel:
    """Compile when first called, without Python's lock; keep the machine code on disk for the next process.

    The folder is named after the kernels' sources: Numba itself would not see that a function used by another file has
    changed. Where no folder can be written, each process compiles anew.
    """
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    if not _can_keep():  # Numba would turn to the package's own folder
        return numba.njit(**options)(function)  # type: ignore[no-any-return]
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder())
    try:
        return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = before


@functools.cache
def _can_keep() -> bool:
    """Whether machine code can be written to disk."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except (OSError, RuntimeError):
        return False


@functools.cache
def cache_folder() -> Path:
    """Where the machine code is kept; raises RuntimeError where there is no home."""
    content = hashlib.sha256()
    here = Path(__file__)
    for source in (here, here.with_name("tiles.py"), *sorted(here.parent.glob("*_cpu.py"))):
        content.update(source.read_bytes())
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "medvid" / content.hexdigest()[:16]


_forked = False


def _after_fork() -> None:
    """Threads do not survive a fork, and what OpenMP knows of them would be wrong."""
    global _forked
    _forked = True
    _pool.cache_clear()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="medvid-ops")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _openmp() -> Any:
    """``GOMP_parallel`` of the GNU OpenMP that PyTorch has loaded; None where it uses another.

    Its threads go on spinning for milliseconds after each of PyTorch's operations. Work of our own in other threads
    would compete with them for the cores; they are as good as any.
    """
    try:
        return ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
    except (AttributeError, OSError):
        return None


def scratch(*shape: int) -> Tensor:
    """Memory for a kernel, whatever PyTorch's default type and device are."""
    return torch.empty(*shape, dtype=torch.float32, device="cpu")


def share(run: Callable[[int, int], None], items: int, work: int) -> None:
    """Call ``run(first, last)`` for parts of ``range(items)``, in as many threads as PyTorch uses.

    Args:
        run: calls a kernel; parts must not touch what others write.
        items: how many there are.
        work: about how many vector operations in all; little work is not worth a thread.
    """
    if items == 0:
        return
    threads = min(torch.get_num_threads(), items, 1 + work // 50_000)
    parts = 1 if threads == 1 else min(items, 4 * threads)  # more than threads: a core may be busy with something else
    edges = [items * part // parts for part in range(parts + 1)]
    try:
        _in_threads(run, edges, threads)
    except (pickle.UnpicklingError, EOFError):  # machine code that was cut short on disk, by a full one for example
        for file in cache_folder().rglob("*.nb?"):
            file.unlink(missing_ok=True)
        _in_threads(run, edges, threads)


def _in_threads(run: Callable[[int, int], None], edges: list[int], threads: int) -> None:
    parts = itertools.pairwise(edges)
    errors: list[BaseException] = []

    def work(_: object = None) -> None:
        try:
            for first, last in parts:  # whoever is free takes the next
                run(first, last)
        except BaseException as error:
            errors.append(error)

    if threads == 1:
        work()
    elif _openmp() is not None and not _forked:
        _openmp()(_Body(work), None, threads, 0)
    else:
        _wait([_pool(threads).submit(work) for _ in range(threads)], parts)
    if errors:
        raise errors[0]


def _wait(futures: list[Future[None]], parts: Iterator[tuple[int, int]]) -> None:
    """Wait for all, also when interrupted: what they write to may be gone after this returns."""
    try:
        wait(futures)
    except BaseException:
        for _ in parts:  # hand out no more
            pass
        wait(futures)
        raise


# -- the type -------------------------------------------------------------------------------------------------------

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"lanes{LANES}")


lanes = _Lanes()


@register_model(_Lanes)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, _VECTOR)


def _arithmetic(function: Any, instruction: str) -> None:
    @infer_global(function)
    class Template(ConcreteTemplate):  # type: ignore[misc]
        cases = [signature(lanes, lanes, lanes)]  # noqa: RUF012

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)

    lower_builtin(function, lanes, lanes)(emit)


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_function, _instruction)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [float(np.float32(value))] * LANES)


def _undefined(kind: Any) -> ir.Constant:
    return ir.Constant(kind, ir.Undefined)


def _pointer(builder: Any, start: Any, index: Any, kind: Any) -> Any:
    element = builder.gep(builder.inttoptr(start, _FLOAT.as_pointer()), [index])
    return builder.bitcast(element, kind.as_pointer())


def _pick(builder: Any, a: Any, b: Any, which: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(which)), which))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """max(a, b); NaN where b is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    """min(a, b); NaN where b is NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32"), (a, b, c))


def _polynomial(builder: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    """Horner's rule; the constant term comes first."""
    result = _constant(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = _fma(builder, result, x, _constant(coefficient))
    return result


# -- memory -----------------------------------------------------------------------------------------------------------


@intrinsic
def load(typing: Any, start: Any, index: Any) -> Any:
    """16 successive numbers at address `start` + `index` elements."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], args[1], _VECTOR), align=4)

    return lanes(types.int64, types.int64), emit


@intrinsic
def store(typing: Any, start: Any, index: Any, value: Any) -> Any:
    """Write 16 successive numbers."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(builder, args[0], args[1], _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, lanes), emit


@intrinsic
def get(typing: Any, start: Any, index: Any) -> Any:
    """One number at address `start` + `index` elements."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], args[1], _FLOAT), align=4)

    return types.float32(types.int64, types.int64), emit


@intrinsic
def put(typing: Any, start: Any, index: Any, value: Any) -> Any:
    """Write one number."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(builder, args[0], args[1], _FLOAT), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), emit


@intrinsic
def get_int(typing: Any, start: Any, index: Any) -> Any:
    """One 32-bit integer at address `start` + `index` elements."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = builder.load(_pointer(builder, args[0], args[1], _INT), align=4)
        return builder.sext(value, ir.IntType(64))

    return types.int64(types.int64, types.int64), emit


@intrinsic
def put_int(typing: Any, start: Any, index: Any, value: Any) -> Any:
    """Write one 32-bit integer."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[2], _INT), _pointer(builder, args[0], args[1], _INT), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """16 times the same number."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = builder.insert_element(_undefined(_VECTOR), args[0], ir.Constant(_INT, 0))
        return _pick(builder, first, _undefined(_VECTOR), [0] * LANES)

    return lanes(types.float32), emit


@intrinsic
def transpose(typing: Any, source: Any, source_step: Any, target: Any, target_step: Any) -> Any:
    """Turn 16 rows of 16 numbers into columns.

    Row i starts at ``source + i * source_step``; ``target`` likewise; addresses in bytes, steps in elements.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start, step, target, target_step = args
        index = [ir.Constant(ir.IntType(64), i) for i in range(LANES)]
        rows = [builder.load(_pointer(builder, start, builder.mul(i, step), _VECTOR), align=4) for i in index]
        half = LANES // 2
        while half:  # swap the off-diagonal blocks of ever smaller squares
            for i in range(LANES):
                if i & half:
                    continue
                upper, lower = rows[i], rows[i + half]
                rows[i] = _pick(builder, upper, lower, [j if not j & half else LANES + j - half for j in range(LANES)])
                rows[i + half] = _pick(
                    builder, upper, lower, [j + half if not j & half else LANES + j for j in range(LANES)]
                )
            half //= 2
        for i, row in zip(index, rows, strict=True):
            builder.store(row, _pointer(builder, target, builder.mul(i, target_step), _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


# -- arithmetic -------------------------------------------------------------------------------------------------------


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the processor can."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _fma(builder, *args)

    return lanes(lanes, lanes, lanes), emit


@intrinsic
def totals(typing: Any, start: Any) -> Any:
    """Number j is the sum of the 16 numbers of vector j, of 16 successive vectors at address `start`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        index = [ir.Constant(ir.IntType(64), LANES * i) for i in range(LANES)]
        rows = [builder.load(_pointer(builder, args[0], i, _VECTOR), align=4) for i in index]
        half = LANES // 2
        while half:  # two vectors become one that holds, block by block, the halves of the first and of the second
            lower = [j if not j & half else LANES + j - half for j in range(LANES)]
            upper = [j + half if not j & half else LANES + j for j in range(LANES)]
            rows = [
                builder.fadd(_pick(builder, a, b, lower), _pick(builder, a, b, upper))
                for a, b in zip(rows[:half], rows[half:], strict=True)
            ]
            half //= 2
        return rows[0]

    return lanes(types.int64), emit


_ROUND = 1.5 * 2**23
"""Added to a small number, leaves the nearest integer in its low bits."""


def _power(builder: Any, fraction: Any, shifted: Any) -> Any:
    """2^n 2^f: f in [-1/2, 1/2] by a polynomial (largest relative error 8e-8), whose exponent is raised by n."""
    power = _polynomial(
        builder,
        fraction,
        (1.0, 0.693147202855519, 0.240226479138371, 0.05550332470857802, 0.009618437329005677, 0.001339887442330829,
         0.00015353370028024449),
    )  # fmt: skip
    exponent = builder.shl(builder.bitcast(shifted, _INTS), ir.Constant(_INTS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(power, _INTS), exponent), _VECTOR)


@intrinsic
def exp2(typing: Any, x: Any) -> Any:
    """2^x; 0 from 2^-127 down, infinity from 2^128 up, NaN for NaN."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        # at the limits f is 0, its power 1, and the exponent that of 0 or of infinity
        x = _smaller(builder, _constant(128.0), _larger(builder, _constant(-127.0), args[0]))
        shifted = builder.fadd(x, _constant(_ROUND))
        return _power(builder, builder.fsub(x, builder.fsub(shifted, _constant(_ROUND))), shifted)

    return lanes(lanes), emit


def _decay(builder: Any, x: Any) -> Any:
    """exp(-|x|), not below 1e-38, to full precision where |x| is large."""
    x = _smaller(builder, builder.fsub(_constant(0.0), x), x)
    x = _larger(builder, _constant(-87.0), x)
    shifted = _fma(builder, x, _constant(LOG2_E), _constant(_ROUND))
    n = builder.fsub(shifted, _constant(_ROUND))
    rest = _fma(builder, n, _constant(-0.693359375), x)  # ln 2 in two parts, the first of few bits (Cody and Waite)
    rest = _fma(builder, n, _constant(0.693359375 - LN_2), rest)
    return _power(builder, builder.fmul(rest, _constant(LOG2_E)), shifted)


@intrinsic
def softplus(typing: Any, x: Any) -> Any:
    """log(1 + e^x) = max(x, 0) + log1p(w), w = e^-|x|, and log1p(w) = 2 atanh(w / (2 + w)) by a polynomial."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (x,) = args
        w = _decay(builder, x)
        s = builder.fdiv(w, builder.fadd(w, _constant(2.0)))
        series = _polynomial(
            builder,
            builder.fmul(s, s),
            (
                1.0,
                0.333333377501663,
                0.19999444178303494,
                0.14308298352281054,
                0.10715370533506517,
                0.12144778528249825,
            ),
        )
        return _fma(builder, builder.fadd(s, s), series, _larger(builder, _constant(0.0), x))

    return lanes(lanes), emit


@intrinsic
def sigmoid(typing: Any, x: Any) -> Any:
    """1 / (1 + e^-x)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (x,) = args
        w = _decay(builder, x)
        positive = builder.fdiv(_constant(1.0), builder.fadd(_constant(1.0), w))
        return builder.select(builder.fcmp_ordered("<", x, _constant(0.0)), builder.fmul(w, positive), positive)

    return lanes(lanes), emit
