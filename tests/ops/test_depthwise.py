"""The depth-wise convolution of tokens against PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medvid_core.ops import depthwise_conv


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padding = tuple(size // 2 for size in weight.shape[1:])
    y = F.conv3d(x.permute(0, 4, 1, 2, 3), weight[:, None], bias, padding=padding, groups=weight.shape[0])
    return y.permute(0, 2, 3, 4, 1)


def assert_same(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Output and gradients, against float64."""
    mine = [t.detach().requires_grad_() for t in (x, weight, bias)]
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    got, wanted = depthwise_conv(*mine), plain(*exact)
    downstream = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((got * downstream.float()).sum(), mine)
    wanted_grads = torch.autograd.grad((wanted * downstream).sum(), exact)
    for a, b in zip((got, *grads), (wanted, *wanted_grads), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 2e-6 * (1 + b.abs().max())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 4),
    st.integers(1, 7),
    st.integers(1, 9),
    st.integers(1, 35),
    st.sampled_from([(3, 3, 3), (1, 3, 3), (1, 1, 1), (3, 1, 5)]),
    st.integers(0, 99),
)
def test_any_size(b: int, t: int, h: int, w: int, c: int, taps: tuple[int, int, int], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(b, t, h, w, c, generator=g)
    assert_same(x, torch.randn(c, *taps, generator=g), torch.randn(c, generator=g))


@pytest.mark.parametrize("layout", ["channels first", "sliced", "expanded"])
def test_any_strides(layout: str) -> None:
    x = {
        "channels first": torch.randn(2, 20, 3, 5, 6).permute(0, 2, 3, 4, 1),
        "sliced": torch.randn(2, 3, 5, 6, 40)[..., 7:27],
        "expanded": torch.randn(1, 3, 5, 6, 20).expand(2, -1, -1, -1, -1),
    }[layout]
    assert_same(x, torch.randn(20, 3, 3, 3), torch.randn(20))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_pytorch(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(*shape, dtype=dtype) for shape in ((1, 2, 4, 4, 3), (3, 3, 3, 3), (3,)))
    assert torch.equal(depthwise_conv(x, weight, bias), plain(x, weight, bias))


def test_same_bits_from_run_to_run() -> None:
    x, weight, bias = torch.randn(2, 3, 8, 8, 70, requires_grad=True), torch.randn(70, 3, 3, 3), torch.randn(70)
    first, second = (torch.autograd.grad(depthwise_conv(x, weight, bias).square().sum(), x)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_operations_are_counted_as_pytorch_s() -> None:
    counts = []
    for run in (depthwise_conv, plain):
        x, weight, bias = torch.randn(1, 2, 4, 4, 3), torch.randn(3, 3, 3, 3), torch.randn(3)
        with FlopCounterMode(display=False) as counter:
            run(x, weight, bias)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_operator_keeps_its_promises() -> None:
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((1, 2, 4, 4, 5), (5, 3, 3, 3), (5,)))
    torch.library.opcheck(torch.ops.medvid.depthwise_conv.default, (x, weight, bias))
