"""The causal convolution, by its definition and along orders."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medvid_core.ops import causal_conv1d
from medvid_core.ops.conv import grouped_causal_conv

BACKENDS = {"reference": torch.float64, "cpu": torch.float32}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 12), st.integers(1, 5))
def test_causal_convolution_by_definition(batch: int, channels: int, length: int, width: int) -> None:
    x, w, b = torch.randn(batch, channels, length), torch.randn(channels, width), torch.randn(channels)
    wanted = b[:, None].repeat(batch, 1, length)
    for t in range(length):
        for j in range(width):
            past = t - width + 1 + j
            if past >= 0:
                wanted[..., t] += w[:, j] * x[..., past]
    torch.testing.assert_close(causal_conv1d(x, w, b), wanted)


def by_definition(x: Tensor, weight: Tensor, bias: Tensor, order: Tensor) -> Tensor:
    """[B,G,R,L], one visited position after the other."""
    groups, _, width = weight.shape
    y = x.new_empty(x.shape[0], groups, *x.shape[1:])
    for g in range(groups):
        for s, at in enumerate(order[g].tolist()):
            total = bias[g].expand(x.shape[0], -1)
            for j in range(width):
                if s - width + 1 + j >= 0:
                    total = total + weight[g, :, j] * x[..., order[g, s - width + 1 + j]]
            y[:, g, :, at] = torch.nn.functional.silu(total)
    return y


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 35),
    st.integers(1, 90),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 99),
)
def test_groups_and_orders(
    backend: str, batch: int, groups: int, channels: int, length: int, width: int, shuffled: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, channels, generator=g, dtype=torch.float64).transpose(1, 2)
    weight = torch.randn(groups, channels, width, generator=g, dtype=torch.float64)
    bias = torch.randn(groups, channels, generator=g, dtype=torch.float64)
    order = torch.stack([torch.randperm(length, generator=g) if shuffled else torch.arange(length)] * groups)
    downstream = torch.randn(batch, groups, channels, length, generator=g, dtype=torch.float64)

    def outcome(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        return [y, *torch.autograd.grad((y * downstream).sum(), inputs)]

    exact = [t.clone().requires_grad_() for t in (x, weight, bias)]
    wanted = outcome(by_definition(*exact, order), exact)
    mine = [t.detach().to(BACKENDS[backend]).requires_grad_() for t in (x, weight, bias)]
    got = outcome(grouped_causal_conv(*mine, order.int() if shuffled else None, backend), mine)
    assert got[0].permute(1, 0, 3, 2).is_contiguous() or backend != "cpu"
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-5 * (1 + b.abs().max())


@pytest.mark.parametrize("layout", ["channels first", "sliced"])
def test_any_strides(layout: str) -> None:
    x = torch.randn(2, 20, 70)
    weight, bias = torch.randn(2, 20, 4), torch.randn(2, 20)
    other = x if layout == "channels first" else torch.randn(2, 70, 40)[..., :20].transpose(1, 2).copy_(x)
    wanted = grouped_causal_conv(x.double(), weight.double(), bias.double(), backend="reference")
    torch.testing.assert_close(grouped_causal_conv(other, weight, bias).double(), wanted, rtol=1e-5, atol=1e-5)


def test_half_precision() -> None:
    x, weight, bias = torch.randn(1, 16, 30), torch.randn(1, 16, 4), torch.randn(1, 16)
    y = grouped_causal_conv(x.bfloat16(), weight, bias)
    assert y.dtype == torch.bfloat16
    wanted = grouped_causal_conv(x.bfloat16().double(), weight.double(), bias.double(), backend="reference")
    assert (y - wanted).abs().max() <= 1e-2 * wanted.abs().max()


def test_operator_keeps_its_promises() -> None:
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((2, 5, 30), (2, 5, 3), (2, 5)))
    order = torch.arange(30, dtype=torch.int32).flip(0).repeat(2, 1)
    torch.library.opcheck(torch.ops.medvid.causal_conv.default, (x, weight, bias, order, "cpu"))
