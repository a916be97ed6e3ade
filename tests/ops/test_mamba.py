"""Mamba mixers against step-by-step constructions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medvid_core.errors import ConfigError
from medvid_core.ops import BidirectionalMixer, MambaMixer, SpatioTemporalMixer, causal_conv1d, selective_scan
from medvid_core.ops.scan import grouped_scan


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


def test_mixed_precision_keeps_the_scan_s_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under bf16 autocast products are bf16, but A, D and the bias of the step size enter the scan as they are."""
    seen: dict[str, Tensor] = {}

    def spy(u: Tensor, delta: Tensor, A: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        seen.update(u=u, A=A, D=kwargs["D"], bias=kwargs["delta_bias"])
        return grouped_scan(u, delta, A, *args, **kwargs)

    monkeypatch.setattr("medvid_core.ops.mamba.grouped_scan", spy)
    torch.manual_seed(0)
    mixer = MambaMixer(8)
    with torch.no_grad():
        mixer.A_log.add_(1e-4)  # what bf16 could not hold
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(torch.randn(1, 6, 8))
    assert (seen["u"].dtype, y.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(seen["A"][0], -mixer.A_log.exp())
    assert torch.equal(seen["D"][0], mixer.D)
    assert torch.equal(seen["bias"][0], mixer.dt_proj.bias)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in mixer.parameters())


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


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("pieces", [[1] * 7, [3, 4], [5, 1, 1], [7]])
def test_streaming_equals_the_whole(backend: str, pieces: list[int]) -> None:
    """One token at a time or several: outputs, last state and gradients are those of the whole sequence."""
    torch.manual_seed(0)
    mixer = MambaMixer(5, d_state=3, scan_backend=backend)
    tokens = torch.randn(2, 7, 5, requires_grad=True)
    state, outputs = mixer.initial_state(2), []
    for piece in tokens.split(pieces, dim=1):
        output, state = mixer.step(piece, state)
        outputs.append(output)
    streamed, whole = torch.cat(outputs, 1), mixer(tokens)
    torch.testing.assert_close(streamed, whole, rtol=1e-5, atol=1e-6)
    for y in (streamed, whole):
        y.square().sum().backward(retain_graph=True)
    gradient = tokens.grad
    assert gradient is not None
    tokens.grad = None
    whole.square().sum().backward()
    torch.testing.assert_close(gradient / 2, tokens.grad, rtol=1e-4, atol=1e-6)


def test_streams_are_rows_of_a_batch() -> None:
    mixer = MambaMixer(5)
    tokens = torch.randn(3, 4, 5)
    together, _ = mixer.step(tokens, mixer.initial_state(3))
    for sample, wanted in zip(tokens, together, strict=True):
        alone, state = mixer.step(sample[None], mixer.initial_state(1))
        torch.testing.assert_close(alone[0], wanted)
        assert [x.shape for x in state] == [(1, 10, 3), (1, 10, 16)]


def test_a_stream_s_state_must_fit() -> None:
    mixer = MambaMixer(8)
    state = mixer.initial_state(1)
    with pytest.raises(ValueError, match=r"^state.hidden must have shape \(1, 16, 16\); got \(1, 16, 2\)"):
        mixer.step(torch.randn(1, 2, 8), state._replace(hidden=state.hidden[..., :2]))
    with pytest.raises(ValueError, match=r"^state.recent must have shape \(4, 16, 3\)"):
        mixer.step(torch.randn(4, 2, 8), state)
    assert not hasattr(BidirectionalMixer, "step")  # it cannot know the end


def test_bidirectional_mixer() -> None:
    torch.manual_seed(0)
    mixer = BidirectionalMixer(6, d_state=5)
    tokens = torch.randn(2, 9, 6)
    for sample, got in zip(tokens, mixer(tokens), strict=True):
        x, z = (sample @ mixer.in_proj.weight.T).T.chunk(2)
        both = (branch(mixer, x, "") + branch(mixer, x.flip(-1), "_b").flip(-1)) / 2
        torch.testing.assert_close(got, (both * F.silu(z)).T @ mixer.out_proj.weight.T)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_padding_changes_nothing(backend: str) -> None:
    """A padded sequence gives what it gives alone, whatever the padding holds, and gradients too."""
    torch.manual_seed(0)
    mixer = BidirectionalMixer(6, d_state=5, scan_backend=backend)
    tokens = torch.randn(2, 9, 6)
    real = torch.arange(9) < torch.tensor([[6], [9]])
    tokens[0, 6:] = 1e3
    tokens.requires_grad_()
    got = mixer(tokens, real)
    assert got.isfinite().all()
    alone = mixer(tokens[:1, :6])
    torch.testing.assert_close(got[:1, :6], alone)
    torch.testing.assert_close(got[1:], mixer(tokens[1:]))
    (padded,) = torch.autograd.grad(got[0, :6].sum(), tokens)
    (wanted,) = torch.autograd.grad(alone.sum(), tokens)
    torch.testing.assert_close(padded, wanted)


def test_autocast() -> None:
    """Matrix products in bfloat16, the scan in float32."""
    torch.manual_seed(0)
    mixer, tokens = SpatioTemporalMixer(16), torch.randn(1, 12, 16)
    with torch.autocast("cpu", torch.bfloat16):
        got = mixer(tokens, 3)
    wanted = mixer(tokens, 3)
    assert got.dtype == torch.bfloat16
    assert (got - wanted).abs().max() <= 0.03 * wanted.abs().max()


@pytest.mark.parametrize("mixer", [MambaMixer(8), BidirectionalMixer(8), SpatioTemporalMixer(8)])
def test_backends_agree(mixer: MambaMixer) -> None:
    tokens = torch.randn(2, 12, 8)
    words = (3,) if isinstance(mixer, SpatioTemporalMixer) else ()
    found = []
    for backend in ("reference", "torch", "cpu"):
        mixer.scan_backend = backend
        found.append(mixer(tokens, *words))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def test_compile_and_export() -> None:
    mixer, tokens = SpatioTemporalMixer(8), torch.randn(1, 12, 8)
    wanted = mixer(tokens, 3)
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens, 3), wanted)
    exported = torch.export.export(mixer, (tokens, 3)).module()
    torch.testing.assert_close(exported(tokens, 3), wanted)


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
