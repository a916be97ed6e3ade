"""Vivim's settings. Nothing here imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from medvid_core.errors import ConfigError, did_you_mean

STAGES = 4

VARIANTS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], int]] = MappingProxyType(
    {
        "mit_b0": ((2, 2, 2, 2), (32, 64, 160, 256), 256),
        "mit_b1": ((2, 2, 2, 2), (64, 128, 320, 512), 256),
        "mit_b2": ((3, 4, 6, 3), (64, 128, 320, 512), 768),
        "mit_b3": ((3, 4, 18, 3), (64, 128, 320, 512), 768),
        "mit_b4": ((3, 8, 27, 3), (64, 128, 320, 512), 768),
        "mit_b5": ((3, 6, 40, 3), (64, 128, 320, 512), 768),
    }
)
"""SegFormer's sizes (Xie et al., NeurIPS 2021, table 6): depths, widths, decoder width."""


@dataclass
class VivimConfig:
    """Vivim: a SegFormer encoder whose every stage ends with Mamba layers over the whole clip, and an MLP decoder.

    The defaults are the original's network.

    Attributes:
        variant: SegFormer encoder, ``mit_b0`` to ``mit_b5``; it gives depths, widths and decoder width.
        in_channels: image channels.
        depths: SegFormer blocks of each of the four stages; empty: the variant's.
        widths: channels of each stage; empty: the variant's.
        heads: attention heads of each stage; each must divide the stage's width.
        reductions: attention's keys and values come from a grid reduced by this factor, per stage.
        decoder_width: channels in the decoder; None: the variant's (256 for b0 and b1, 768 for the others).
        mamba_depths: Mamba layers at the end of each stage.
        state_size: states N of the selective scan.
        conv_width: taps of the causal convolution before the scan.
        expansion: inner width of the mixer, in multiples of the stage's width.
        encoder_drop_path: probability that the last SegFormer block is skipped for a frame in training; it rises
            linearly from 0 over the blocks of all stages.
        mamba_drop_path: the same for the Mamba layers, per clip. (The original has such an argument, without effect.)
        mamba_drop_path_by: ``layer``: it rises over all Mamba layers; ``stage``: both layers of stage i have the
            rate of layer i, so that most of the rise is never reached, as in the original's ovarian extension.
        map_dropout: dropout, in training, of each stage's map before they are fused; a coin decides for each map and
            batch whether it happens. The ovarian extension has 0.15.
        decoder_dropout: dropout of the fused decoder features in training. (The ovarian extension's 0.1 twice is 0.19.)
        channel_dropout: probability that a whole channel of them is dropped, after that. The ovarian extension has 0.3.
        edge: also predict object edges from the first stage, as output ``edge`` [B,T,C,H,W].
        edge_head: ``released``: one 1x1 convolution to one channel, as the original's code; ``paper``: three
            convolutions to two channels, no edge and edge.
        frames: number of chunks of the spatial-first scan. None follows the clip, as the paper describes; the
            original's code always uses 5, which differs for clips of any other length.
        scan_backend: how the selective scan is computed; ``auto`` chooses.
    """

    variant: str = "mit_b3"
    in_channels: int = 3
    depths: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    decoder_width: int | None = None
    mamba_depths: tuple[int, ...] = (2, 2, 2, 2)
    state_size: int = 16
    conv_width: int = 4
    expansion: int = 2
    encoder_drop_path: float = 0.1
    mamba_drop_path: float = 0.0
    mamba_drop_path_by: str = "layer"
    map_dropout: float = 0.0
    decoder_dropout: float = 0.1
    channel_dropout: float = 0.0
    edge: bool = False
    edge_head: str = "released"
    frames: int | None = None
    scan_backend: str = "auto"

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ConfigError(
                f"model.variant={self.variant!r} is not a SegFormer encoder.{did_you_mean(self.variant, VARIANTS)} "
                f"Known: {', '.join(VARIANTS)}."
            )
        for name in ("depths", "widths", "heads", "reductions", "mamba_depths"):
            self._check_stages(name, getattr(self, name), least=0 if name in ("depths", "mamba_depths") else 1)
        for width, heads in zip(self.stage_widths, self.heads, strict=True):
            if width % heads:
                raise ConfigError(
                    f"model.heads={self.heads} must divide model.widths={self.stage_widths} stage by stage."
                )
        for name in ("in_channels", "decoder_width", "state_size", "conv_width", "expansion", "frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"model.{name}={value} must be at least 1.")
        for name, allowed in (("mamba_drop_path_by", ("layer", "stage")), ("edge_head", ("released", "paper"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"model.{name}={getattr(self, name)!r} must be {' or '.join(allowed)}.")
        for name in ("encoder_drop_path", "mamba_drop_path", "map_dropout", "decoder_dropout", "channel_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} must be a probability from 0 to below 1.")

    def _check_stages(self, name: str, values: tuple[int, ...], least: int) -> None:
        optional = name in ("depths", "widths")
        if optional and not values:
            return
        if len(values) != STAGES or min(values) < least:
            raise ConfigError(
                f"model.{name}={tuple(values)} must hold {STAGES} numbers of at least {least}, one a stage"
                + (", or be empty to follow model.variant." if optional else ".")
            )

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """SegFormer blocks of each stage."""
        return tuple(self.depths) or VARIANTS[self.variant][0]

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.widths) or VARIANTS[self.variant][1]

    @property
    def fused_width(self) -> int:
        """Channels in the decoder."""
        return self.decoder_width if self.decoder_width is not None else VARIANTS[self.variant][2]


@dataclass
class StructureLossConfig:
    """Structure loss: cross-entropy plus a region-weighted intersection over union; with it, that of the edge branch.

    Attributes:
        frames: ``centre`` supervises the middle frame of each clip, number (T - 1) // 2 counted from zero, as the
            original does for odd T; ``all`` every labelled one.
        form: ``released``: the cross-entropy is not weighted, as the original's code has it; ``intended``: it is, as in
            the loss's paper; ``ovarian``: as in the original's ovarian extension, for several classes.
        edge: what teaches the edge branch (model.edge): ``none``, or further terms, ``released`` as in the original's
            code (one class; its affine term has no gradient), ``paper`` as in its paper (model.edge_head=paper).
        regressor: file of InverseForm's pretrained regressor (distance_measures_regressor.pth), for the affine term of
            ``edge``, or a checkpoint that holds it; None: without that term.
    """

    frames: str = "centre"
    form: str = "released"
    edge: str = "none"
    regressor: str | None = None

    def __post_init__(self) -> None:
        if self.frames not in ("centre", "all"):
            raise ConfigError(f"loss.frames={self.frames!r} must be 'centre' or 'all'.")
        if self.form not in ("released", "intended", "ovarian"):
            raise ConfigError(f"loss.form={self.form!r} must be released, intended or ovarian.")
        if self.edge not in ("none", "released", "paper"):
            raise ConfigError(f"loss.edge={self.edge!r} must be none, released or paper.")
        if self.regressor and self.edge == "none":
            raise ConfigError("loss.regressor has no effect with loss.edge=none. Set loss.edge=paper or leave it out.")


UPSTREAM_INERT: Mapping[str, Any] = MappingProxyType(
    {
        "in_chans": 3,
        "depths": (2, 2, 2, 2),
        "drop_path_rate": 0,
        "layer_scale_init_value": 1e-6,
        "hidden_size": 768,
        "norm_name": None,
        "conv_block": None,
        "res_block": None,
        "spatial_dims": None,
    }
)
"""Arguments that the original's constructor takes and that change nothing, with defaults where they are known."""


def from_upstream(arguments: Mapping[str, Any]) -> VivimConfig:
    """Translate the original's constructor arguments, so that the network is the one the original would have built.

    `out_chans` becomes the number of classes of the output, which is not part of this configuration. Arguments
    without effect in the original are accepted and named in a warning when they differ from their default.

    Raises:
        ConfigError: an argument that the original does not have.
    """
    known = ("out_chans", "feat_size", "with_edge", *UPSTREAM_INERT)
    for name in arguments:
        if name not in known:
            raise ConfigError(
                f"The original Vivim has no argument {name!r}.{did_you_mean(name, known)} It has: {', '.join(known)}."
            )
    inert = [name for name, default in UPSTREAM_INERT.items() if _differs(arguments.get(name, default), default)]
    if inert:
        warnings.warn(f"Without effect in the original Vivim, so ignored: {', '.join(inert)}.", stacklevel=2)
    widths = tuple(int(width) for width in arguments.get("feat_size", ()))
    return VivimConfig(
        widths=() if widths == VARIANTS["mit_b3"][1] else widths, edge=bool(arguments.get("with_edge", False)), frames=5
    )


def _differs(value: Any, default: Any) -> bool:
    value = tuple(value) if isinstance(value, list) else value
    return default is not None and bool(value != default)
