"""Mamba mixers over token sequences, under the parameter names of mamba-ssm (and, for three orders, of Vivim)."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.errors import ConfigError
from medvid_core.ops.conv import causal_conv1d
from medvid_core.ops.scan import selective_scan


class MambaMixer(nn.Module):
    """The Mamba block's mixer (Gu and Dao, 2023, section 3.4): [B,L,C] -> [B,L,C].

    in_proj gives x and a gate z; u = silu(causal conv of x); x_proj(u) splits into the low-rank step size, B and C;
    the scan's output, gated by silu(z), goes through out_proj. A = -exp(A_log).

    Attributes:
        branches: suffixes of the parameters that each scan order owns (``conv1d``, ``x_proj``, ``dt_proj``, ``A_log``,
            ``D``); one, without suffix, here.
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
        self.dt_rank = dt_rank if dt_rank is not None else math.ceil(d_model / 16)
        self.scan_backend = scan_backend
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        for suffix in self.branches:
            self._add_branch(suffix, d_conv)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def _add_branch(self, suffix: str, d_conv: int) -> None:
        inner, low = self.d_inner, self.dt_rank
        # convolution and projections hold parameters; `_scan` applies those of all branches in one go
        self.add_module(f"conv1d{suffix}", nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1))
        self.add_module(f"x_proj{suffix}", nn.Linear(inner, low + 2 * self.d_state, bias=False))
        dt_proj = nn.Linear(low, inner)
        _init_step_size(dt_proj)
        self.add_module(f"dt_proj{suffix}", dt_proj)
        A_log = torch.arange(1, self.d_state + 1, dtype=torch.float32).log().repeat(inner, 1)
        self.register_parameter(f"A{suffix}_log", nn.Parameter(A_log))
        self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(inner)))

    def _stacked(self, template: str) -> Tensor:
        """One parameter of every branch, [K, ...]; ``{}`` in the name stands for the suffix."""
        return torch.stack([self.get_parameter(template.format(suffix)) for suffix in self.branches])

    def _scan(self, x: Tensor) -> Tensor:
        """Convolve and scan the K sequences of all branches at once: [B,K,E,L] -> [B,K,E,L], without the gate."""
        batch, count, inner, length = x.shape
        flat = (batch, count * inner, length)
        weight = self._stacked("conv1d{}.weight").flatten(0, 1).squeeze(1)
        bias = self._stacked("conv1d{}.bias").flatten()
        u = F.silu(causal_conv1d(x.reshape(flat), weight, bias))
        # per branch: [low + 2N, E] @ [E, L]
        projected = self._stacked("x_proj{}.weight") @ u.view(x.shape)
        low, B, C = torch.split(projected, [self.dt_rank, self.d_state, self.d_state], dim=2)
        delta = self._stacked("dt_proj{}.weight") @ low
        y = selective_scan(
            u,
            delta.reshape(flat),
            -torch.exp(self._stacked("A{}_log").float()).flatten(0, 1),
            B,
            C,
            D=self._stacked("D{}").float().flatten(),
            delta_bias=self._stacked("dt_proj{}.bias").float().flatten(),
            delta_softplus=True,
            backend=self.scan_backend,
        )
        return cast(Tensor, y).view(x.shape)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B,L,C] -> [B,L,C]."""
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        y = self._scan(x[:, None])[:, 0] * F.silu(z)
        return cast(Tensor, self.out_proj(y.transpose(1, 2)))


class SpatioTemporalMixer(MambaMixer):
    """Vivim's mixer (Yang et al., 2024): three scan orders over a clip's tokens, averaged.

    Tokens come in the order (t, row, column), column fastest. The orders, each with its own convolution, projections,
    A and D, all sharing in_proj and out_proj:

    - forward (no suffix): as they come;
    - backward (``_b``): reversed in time, rows and columns;
    - spatial first (``_s``): the sequence cut in equal chunks that are interleaved, so that with one chunk a frame the
      scan follows one pixel through time, then the next pixel.

    The gate is applied once, after averaging: it is moved through the orders together with x, so each branch would
    multiply by the same number.

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
        """x [B,E,L] -> outputs of the three orders [B,3,E,L], each in the order in which it was scanned, ungated."""
        batch, inner, length = x.shape
        interleaved = x.reshape(batch, inner, chunks, length // chunks).transpose(2, 3).flatten(2)
        return self._scan(torch.stack([x, x.flip(-1), interleaved], dim=1))

    def forward(self, tokens: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        """Tokens [B,L,C] of a clip of `frames` frames -> [B,L,C]."""
        chunks = self.frames if self.frames is not None else frames
        batch, length, _ = tokens.shape
        if length % chunks:
            raise ConfigError(
                f"The spatial-first scan cuts {length} tokens in {chunks} equal chunks, which cannot be done. "
                "Set model.frames=null to follow the clip, or choose a clip length that is a multiple."
            )
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        forward, backward, interleaved = self.scan_orders(x, chunks).unbind(1)
        spatial = interleaved.view(batch, self.d_inner, length // chunks, chunks).transpose(2, 3).flatten(2)
        y = (forward + backward.flip(-1) + spatial) / 3 * F.silu(z)
        return cast(Tensor, self.out_proj(y.transpose(1, 2)))


def _init_step_size(dt_proj: nn.Linear, shortest: float = 1e-3, longest: float = 0.1, floor: float = 1e-4) -> None:
    """Mamba's own start: step sizes softplus(bias) spread log-uniformly over [shortest, longest]."""
    bound = dt_proj.in_features**-0.5
    nn.init.uniform_(dt_proj.weight, -bound, bound)
    spread = torch.rand(dt_proj.out_features) * math.log(longest / shortest) + math.log(shortest)
    step = spread.exp().clamp(min=floor)
    with torch.no_grad():
        dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
