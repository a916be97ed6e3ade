"""Mamba mixers against step-by-step constructions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medvid_core.errors import ConfigError
from medvid_core.ops import MambaMixer, SpatioTemporalMixer, causal_conv1d, selective_scan


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


def branch(mixer: MambaMixer, x: Tensor, suffix: str) -> Tensor:
    """One branch written out, [E,L] -> [E,L]."""
    p = dict(mixer.named_parameters())
    u = F.silu(causal_conv1d(x[None], p[f"conv1d{suffix}.weight"][:, 0], p[f"conv1d{suffix}.bias"]))
    low, B, C = (p[f"x_proj{suffix}.weight"] @ u).split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=1)
    delta = p[f"dt_proj{suffix}.weight"] @ low
    y = selective_scan(
        u, delta, -p[f"A{suffix}_log"].exp(), B, C, p[f"D{suffix}"], None, p[f"dt_proj{suffix}.bias"], True
    )
    assert isinstance(y, Tensor)
    return y[0]


def test_mamba_mixer() -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(6, d_state=5)
    tokens = torch.randn(2, 9, 6)
    for sample, got in zip(tokens, mixer(tokens), strict=True):
        x, z = (sample @ mixer.in_proj.weight.T).T.chunk(2)
        wanted = (branch(mixer, x, "") * F.silu(z)).T @ mixer.out_proj.weight.T
        torch.testing.assert_close(got, wanted)


def test_mamba_mixer_is_causal() -> None:
    mixer = MambaMixer(4)
    tokens = torch.randn(1, 20, 4)
    changed = tokens.clone()
    changed[:, 12:] += 1
    torch.testing.assert_close(mixer(tokens)[:, :12], mixer(changed)[:, :12])


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 2, 3), (3, 2, 2), (4, 1, 5)])
def test_three_orders_by_index(frames: int, height: int, width: int) -> None:
    """Each order visits the tokens in the sequence its definition gives, and results return to their places."""
    torch.manual_seed(0)
    mixer = SpatioTemporalMixer(4, d_state=3)
    pixels = height * width
    tokens = torch.randn(1, frames * pixels, 4)
    x, z = (tokens[0] @ mixer.in_proj.weight.T).T.chunk(2)
    orders = {
        "": list(range(frames * pixels)),
        "_b": list(reversed(range(frames * pixels))),
        "_s": [t * pixels + p for p in range(pixels) for t in range(frames)],
    }
    total = torch.zeros_like(x)
    for suffix, order in orders.items():
        y = branch(mixer, x[:, order], suffix) * F.silu(z[:, order])
        total[:, order] += y
    torch.testing.assert_close(mixer(tokens, frames)[0], (total / 3).T @ mixer.out_proj.weight.T)


def test_fixed_chunks_differ_from_following_the_clip() -> None:
    torch.manual_seed(0)
    follow, fixed = SpatioTemporalMixer(4), SpatioTemporalMixer(4, frames=5)
    fixed.load_state_dict(follow.state_dict())
    for frames, same in [(5, True), (10, False)]:
        tokens = torch.randn(1, frames * 4, 4)
        assert torch.allclose(follow(tokens, frames), fixed(tokens, frames)) is same


def test_unequal_chunks() -> None:
    """The spatial-first scan cuts 12 tokens in 5 equal chunks, which cannot be done."""
    with pytest.raises(ConfigError, match=test_unequal_chunks.__doc__) as error:
        SpatioTemporalMixer(4, frames=5)(torch.randn(1, 12, 4), 3)
    assert "model.frames=null" in str(error.value)


def test_parameter_names_are_upstream_s() -> None:
    names = {name for name, _ in SpatioTemporalMixer(16).named_parameters()}
    per_branch = ("conv1d{}.weight", "conv1d{}.bias", "x_proj{}.weight", "dt_proj{}.weight", "dt_proj{}.bias")
    wanted = {name.format(k) for name in (*per_branch, "A{}_log", "D{}") for k in ("", "_b", "_s")}
    assert names == wanted | {"in_proj.weight", "out_proj.weight"}


def test_step_sizes_at_start() -> None:
    steps = F.softplus(MambaMixer(32).get_parameter("dt_proj.bias"))
    assert steps.min() >= 0.99e-3
    assert steps.max() <= 0.101


def test_meta_device() -> None:
    with torch.device("meta"):
        mixer = SpatioTemporalMixer(8)
        assert mixer(torch.empty(2, 12, 8), 3).shape == (2, 12, 8)
