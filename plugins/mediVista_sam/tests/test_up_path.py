"""The way up: attention whose softmax runs over the queries, in memory linear in the tokens."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medvid_medivista_sam.network import up_path
from medvid_medivista_sam.network.stem import Skips
from medvid_medivista_sam.network.up_path import UpPath, query_softmax, transposed_convs


def plain(q, k, v):
    """As written: the whole matrix at once."""
    return torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=1) @ v


def parts(frames, tokens, channels, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(frames, tokens, channels, generator=generator, dtype=dtype) for _ in range(4)]


def with_gradients(function, q, k, v, cotangent):
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    y = function(*inputs)
    y.backward(cotangent)
    return [y.detach(), *(x.grad for x in inputs)]


CHUNKS = pytest.mark.parametrize("chunk", [1, 40, 100, 2**19], ids=lambda chunk: f"chunk{chunk}")


@CHUNKS
@pytest.mark.parametrize("shape", [(1, 1, 4), (3, 7, 8), (2, 35, 32), (5, 12, 16)], ids=str)
def test_equal_to_the_whole_matrix(monkeypatch, chunk, shape):
    monkeypatch.setitem(up_path.CHUNK, "cpu", chunk)
    tensors = parts(*shape, dtype=torch.float64)
    for got, wanted in zip(with_gradients(query_softmax, *tensors), with_gradients(plain, *tensors), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@CHUNKS
def test_gradients(monkeypatch, chunk):
    monkeypatch.setitem(up_path.CHUNK, "cpu", chunk)
    inputs = [x.requires_grad_() for x in parts(2, 9, 3, torch.float64)[:3]]
    assert torch.autograd.gradcheck(query_softmax, inputs)


def test_large_scores_stay_finite():
    q, k, v, cotangent = parts(1, 50, 8)
    for x in with_gradients(query_softmax, 1e3 * q, 1e3 * k, v, cotangent):
        assert x.isfinite().all()


class Largest(TorchDispatchMode):
    """Watches how many elements the largest tensor has."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.size = max(self.size, x.numel())
        return result


def test_no_matrix_of_all_tokens_exists(monkeypatch):
    monkeypatch.setitem(up_path.CHUNK, "cpu", 2**12)
    tensors = parts(2, 1024, 8)
    with Largest() as lean:
        with_gradients(query_softmax, *tensors)
    with Largest() as whole:
        with_gradients(plain, *tensors)
    assert whole.size == 2 * 1024**2
    assert lean.size == 2 * 1024 * 8  # the tokens themselves


def test_under_autocast_it_keeps_full_precision():
    q, k, v, cotangent = parts(2, 33, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = with_gradients(query_softmax, q, k, v, cotangent)
    for got, wanted in zip(low, with_gradients(query_softmax, q, k, v, cotangent), strict=True):
        assert torch.equal(got, wanted)
    half = query_softmax(*(x.bfloat16() for x in (q, k, v)))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain(q, k, v), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("grid", [(2, 3), (1, 1), (5, 2)])
def test_way_up_to_every_pixel(grid):
    height, width = (16 * side for side in grid)
    skips = Skips(*(torch.rand(2, c, height // s, width // s) for c, s in ((8, 2), (16, 4), (32, 8))))
    assert UpPath(24)(torch.rand(2, 24, *grid), skips).shape == (2, 8, height, width)


@pytest.mark.parametrize(("stages", "channels"), [(2, 8), (4, 2)])
def test_transposed_convolutions(stages, channels):
    y = transposed_convs(64, stages)(torch.rand(1, 64, 3, 2))
    assert y.shape == (1, channels, 3 * 2**stages, 2 * 2**stages)
    assert channels == 64 >> (stages + 1)
