"""Mamba mixers over token sequences, under the parameter names of mamba-ssm (and, for three orders, of Vivim)."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.errors import ConfigError
from medvid_core.ops.conv import grouped_causal_conv
from medvid_core.ops.scan import grouped_scan


class MixerState(NamedTuple):
    """What a causal mixer remembers of the tokens it has seen; its size does not depend on their number.

    Attributes:
        recent: the last inputs of the convolution [B,E,W-1].
        hidden: the state of the scan [B,E,N].
    """

    recent: Tensor
    hidden: Tensor


class ScanMixer(nn.Module):
    """What the mixers here have in common: [B,L,C] -> [B,L,C].

    in_proj gives x and a gate z; u = silu(causal conv of x); x_proj(u) splits into the low-rank step size, B and C;
    the scan's output, gated by silu(z), goes through out_proj. A = -exp(A_log). Convolution, projections and scan exist
    once for every order in which the tokens are visited.

    Attributes:
        branches: suffixes of the parameters that each scan order owns (``conv1d``, ``x_proj``, ``dt_proj``, ``A_log``,
            ``D``).
    """

    branches: tuple[str, ...] = ("",)

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.d_inner = expand * d_model
        self.d_state = d_state
        self.d_conv = d_conv
        self.dt_rank = dt_rank if dt_rank is not None else math.ceil(d_model / 16)
        self.scan_backend = scan_backend
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        for suffix in self.branches:
            self._add_branch(suffix)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def _add_branch(self, suffix: str) -> None:
        inner, low = self.d_inner, self.dt_rank
        # convolution and projections hold parameters; `_scan` applies those of all branches in one go
        self.add_module(f"conv1d{suffix}", nn.Conv1d(inner, inner, self.d_conv, groups=inner, padding=self.d_conv - 1))
        self.add_module(f"x_proj{suffix}", nn.Linear(inner, low + 2 * self.d_state, bias=False))
        dt_proj = nn.Linear(low, inner)
        _init_step_size(dt_proj)
        _undecayed(dt_proj.bias)
        self.add_module(f"dt_proj{suffix}", dt_proj)
        A_log = torch.arange(1, self.d_state + 1, dtype=torch.float32).log().repeat(inner, 1)
        self.register_parameter(f"A{suffix}_log", _undecayed(nn.Parameter(A_log)))
        self.register_parameter(f"D{suffix}", _undecayed(nn.Parameter(torch.ones(inner))))

    def _stacked(self, template: str) -> Tensor:
        """One parameter of every branch, [K, ...]; ``{}`` in the name stands for the suffix."""
        return torch.stack([self.get_parameter(template.format(suffix)) for suffix in self.branches])

    def _convolve(self, x: Tensor, order: Tensor | None = None) -> Tensor:
        """x [B,E,L] -> u [B,K,E,L], for each branch along its order."""
        weight, bias = self._stacked("conv1d{}.weight").squeeze(2), self._stacked("conv1d{}.bias")
        return grouped_causal_conv(x, weight, bias, order, self.scan_backend)

    def _scan(
        self,
        u: Tensor,
        order: Tensor | None = None,
        real: Tensor | None = None,
        gate: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scan the sequences of all branches at once, each along its order.

        Args:
            u: [B,K,E,L], in memory [K,B,L,E], as all matrix products here are of tokens with features side by side.
            order: int32 [K,L].
            real: bool [B,L]; False for padding, which leaves the states as they are.
            gate: [B,K,E,L].
            hidden: initial state [B,K,E,N].

        Returns:
            [B,K,E,L] and the last state [B,K,E,N].
        """
        batch, count, inner, length = u.shape
        tokens = u.permute(1, 0, 3, 2).flatten(1, 2)  # [K,B*L,E]
        projected = tokens @ self._stacked("x_proj{}.weight").transpose(1, 2)
        low, B, C = torch.split(projected, [self.dt_rank, self.d_state, self.d_state], dim=2)
        delta = (low @ self._stacked("dt_proj{}.weight").transpose(1, 2)).view(count, batch, length, inner)
        if real is not None:
            delta = delta.masked_fill(~real[None, ..., None], -math.inf)  # softplus makes it 0
        B, C = (torch.unflatten(x, 1, (batch, length)).permute(1, 0, 3, 2) for x in (B, C))
        return grouped_scan(
            u,
            delta.permute(1, 0, 3, 2),
            -torch.exp(_exact(self._stacked("A{}_log"))),
            B,
            C,
            D=self._stacked("D{}"),
            z=gate,
            delta_bias=self._stacked("dt_proj{}.bias"),
            delta_softplus=True,
            initial_state=hidden,
            order=order,
            backend=self.scan_backend,
        )

    def _split(self, tokens: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens [B,L,C] -> x [B,E,L], zero where padded, and the gate z [B,E,L]."""
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        return (x if real is None else x.masked_fill(~real[:, None], 0)), z


class MambaMixer(ScanMixer):
    """The Mamba block's mixer (Gu and Dao, 2023, section 3.4): one causal scan, whole or as a stream."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B,L,C] -> [B,L,C]."""
        x, z = self._split(tokens)
        y, _ = self._scan(self._convolve(x), gate=z[:, None])
        return cast(Tensor, self.out_proj(y[:, 0].transpose(1, 2)))

    def initial_state(self, batch: int) -> MixerState:
        """What a stream of `batch` sequences starts from."""
        like = self.in_proj.weight
        return MixerState(
            like.new_zeros(batch, self.d_inner, self.d_conv - 1),
            _exact(like).new_zeros(batch, self.d_inner, self.d_state),
        )

    def step(self, tokens: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Go on with a stream by one or more tokens: equal to `forward` of the whole, piece by piece.

        Args:
            tokens: [B,L,C].
            state: what the step before returned, or `initial_state`.

        Returns:
            [B,L,C] and the state after it.

        Raises:
            ValueError: a state of another mixer or batch.
        """
        for name, got, wanted in zip(state._fields, state, self.initial_state(tokens.shape[0]), strict=True):
            if got.shape != wanted.shape:
                raise ValueError(f"state.{name} must have shape {tuple(wanted.shape)}; got {tuple(got.shape)}.")
        x, z = self._split(tokens)
        x = torch.cat([state.recent.to(x.dtype), x], dim=2)
        u = self._convolve(x)[..., self.d_conv - 1 :]
        y, hidden = self._scan(u, gate=z[:, None], hidden=state.hidden[:, None])
        recent = x[..., x.shape[2] - (self.d_conv - 1) :]
        return cast(Tensor, self.out_proj(y[:, 0].transpose(1, 2))), MixerState(recent, hidden[:, 0])


class BidirectionalMixer(ScanMixer):
    """Vision Mamba's mixer (Zhu et al., ICML 2024): one scan forward, one backward (``_b``), averaged.

    Both share in_proj, out_proj and the gate. Where sequences of several lengths are padded at their ends, the backward
    scan of each begins at its own last token.
    """

    branches = ("", "_b")

    def forward(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        """Tokens [B,L,C], of which `real` [B,L] (bool) are no padding -> [B,L,C], meaningless where padded."""
        x, z = self._split(tokens, real)
        ahead = torch.arange(x.shape[2], dtype=torch.int32, device=x.device)
        order = torch.stack([ahead, ahead.flip(0)])
        y, _ = self._scan(self._convolve(x, order), order, real)
        return cast(Tensor, self.out_proj((y.mean(1) * F.silu(z)).transpose(1, 2)))


def spatio_temporal_orders(length: int, chunks: int, device: torch.device | str = "cpu") -> Tensor:
    """The three orders of Vivim's scans over `length` tokens in (t, row, column) order, column fastest: int32 [3,L].

    As they come; reversed; and cut in `chunks` equal pieces that are interleaved, so that with one piece a frame the
    scan follows one pixel through time, then the next pixel.
    """
    ahead = torch.arange(length, dtype=torch.int32, device=device)
    return torch.stack([ahead, ahead.flip(0), ahead.view(chunks, -1).t().flatten()])


class SpatioTemporalMixer(ScanMixer):
    """Vivim's mixer (Yang et al., 2024): three scans over a clip's tokens, averaged.

    Each follows one of `spatio_temporal_orders` with its own convolution, projections, A and D (suffixes: none, ``_b``,
    ``_s``); all share in_proj and out_proj. The tokens stay where they are, the scans walk over them. The gate is
    applied once, after averaging: each branch would multiply by the same number.

    Args:
        frames: fixed number of chunks of the third order; None follows the clip. The original always uses 5, which
            equals the clip length only for clips of 5.
    """

    branches = ("", "_b", "_s")

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        frames: int | None = None,
        scan_backend: str = "auto",
    ) -> None:
        super().__init__(d_model, d_state, d_conv, expand, dt_rank, scan_backend)
        self.frames = frames

    def scan_orders(self, x: Tensor, chunks: int) -> Tensor:
        """x [B,E,L] -> outputs of the three scans [B,3,E,L], each token's at its place, ungated."""
        order = spatio_temporal_orders(x.shape[2], chunks, x.device)
        return self._scan(self._convolve(x, order), order)[0]

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        """Tokens [B,L,C] of a clip of `frames` frames -> [B,L,C]."""
        chunks = self.frames if self.frames is not None else frames
        length = tokens.shape[1]
        if length % chunks:
            raise ConfigError(
                f"The spatial-first scan cuts {length} tokens in {chunks} equal chunks, which cannot be done. "
                "Set model.frames=null to follow the clip, or choose a clip length that is a multiple."
            )
        x, z = self._split(tokens)
        ahead, backward, spatial = self.scan_orders(x, chunks).unbind(1)
        y = (ahead + backward + spatial) / 3 * F.silu(z)
        return cast(Tensor, self.out_proj(y.transpose(1, 2)))


def _exact(x: Tensor) -> Tensor:
    """Float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _undecayed(parameter: nn.Parameter) -> nn.Parameter:
    """Mark a parameter, as mamba-ssm does, as one that ``optimizer.decay=weights`` leaves alone whatever its shape."""
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter


def _init_step_size(dt_proj: nn.Linear, shortest: float = 1e-3, longest: float = 0.1, floor: float = 1e-4) -> None:
    """Mamba's own start: step sizes softplus(bias) spread log-uniformly over [shortest, longest]."""
    bound = dt_proj.in_features**-0.5
    nn.init.uniform_(dt_proj.weight, -bound, bound)
    spread = torch.rand(dt_proj.out_features) * math.log(longest / shortest) + math.log(shortest)
    step = spread.exp().clamp(min=floor)
    with torch.no_grad():
        dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
