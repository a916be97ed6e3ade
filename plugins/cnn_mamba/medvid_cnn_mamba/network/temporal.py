"""What is done with the sequence of frames: Mamba, GRU, Transformer, or nothing."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from medvid_core.ops import BidirectionalMixer, MambaMixer, MixerState

State = tuple[Any, ...]
"""What a temporal network remembers; its size does not depend on the number of frames."""


class MambaLayer(nn.Module):
    """``x + mixer(RMSNorm(x))`` (Gu & Dao, 2023), causal or in both directions."""

    def __init__(self, width: int, state: int, bidirectional: bool, dropout: float, scan_backend: str) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        mixer = BidirectionalMixer if bidirectional else MambaMixer
        self.mixer = mixer(width, d_state=state, scan_backend=scan_backend)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]; frames that are not ``real`` [B,T] end the clip, and touch no frame before them."""
        tokens = self.norm(x)
        y = self.mixer(tokens, real) if isinstance(self.mixer, BidirectionalMixer) else self.mixer(tokens)
        return x + cast(Tensor, self.dropout(y))

    def initial_state(self, batch: int) -> MixerState:
        """Return what a stream starts from."""
        assert isinstance(self.mixer, MambaMixer)
        return self.mixer.initial_state(batch)

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Go on with a stream."""
        assert isinstance(self.mixer, MambaMixer)
        y, after = self.mixer.step(self.norm(x), state)
        return x + y, after


class MambaStack(nn.Module):
    """Mamba layers and a last norm.

    Args:
        width: features D.
        layers: how many.
        state: states N of each channel.
        bidirectional: look ahead as well; such a network cannot stream.
        dropout: probability behind each mixer.
        scan_backend: see `medvid_core.ops`.
    """

    def __init__(
        self,
        width: int,
        layers: int = 4,
        state: int = 16,
        bidirectional: bool = False,
        dropout: float = 0.0,
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MambaLayer(width, state, bidirectional, dropout, scan_backend) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.bidirectional = bidirectional

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        for layer in self.layers:
            x = layer(x, real)
        return cast(Tensor, self.norm(x))

    def initial_state(self, batch: int) -> State:
        """Return the state before the first frame."""
        return tuple(cast(MambaLayer, layer).initial_state(batch) for layer in self.layers)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Go on with a stream by frames [B,T,D]."""
        after = []
        for layer, before in zip(self.layers, state, strict=True):
            x, found = cast(MambaLayer, layer).step(x, before)
            after.append(found)
        return cast(Tensor, self.norm(x)), tuple(after)


class GRUStack(nn.Module):
    """Gated recurrent units (Cho et al., EMNLP 2014), causal."""

    def __init__(self, width: int, layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        return cast(Tensor, self.gru(x)[0])

    def initial_state(self, batch: int) -> State:
        """Return the state before the first frame."""
        like = cast(Tensor, self.gru.weight_hh_l0)
        return (like.new_zeros(self.gru.num_layers, batch, self.gru.hidden_size),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Go on with a stream by frames [B,T,D]."""
        y, hidden = self.gru(x, state[0])
        return y, (hidden,)


class TransformerStack(nn.Module):
    """Transformer encoder (Vaswani et al., 2017) with learnt positions; every frame sees every other.

    Positions of clips longer than ``longest`` are interpolated.
    """

    def __init__(self, width: int, layers: int = 4, heads: int = 8, longest: int = 128, dropout: float = 0.0) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, longest, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        # the nested-tensor path returns clips of another length where the last frames of all are padding
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]; no frame looks at those that are not ``real`` [B,T]."""
        length = x.shape[1]
        positions = self.positions[:, :length]
        if length > self.positions.shape[1]:
            positions = nn.functional.interpolate(
                self.positions.transpose(1, 2), size=length, mode="linear", align_corners=True
            ).transpose(1, 2)
        seen = real | ~real.any(1, keepdim=True)  # a clip of nothing but padding would give NaN
        return cast(Tensor, self.encoder(x + positions, src_key_padding_mask=~seen))


class NoStack(nn.Module):
    """Leaves the frames to themselves: the baseline without time."""

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """[B,T,D], unchanged."""
        return x

    def initial_state(self, batch: int) -> State:
        """Return nothing, as there is nothing to remember."""
        return ()

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Go on with a stream."""
        return x, ()
