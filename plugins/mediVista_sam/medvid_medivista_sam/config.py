"""MediViSTA-SAM's settings. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from medvid_core.errors import ConfigError, did_you_mean

WIRINGS = ("released", "paper", "fusion")
UP_PATHS = ("mhca", "sam")

PATCH = 16
"""Side of a token's patch in pixels; height and width of frames are multiples of it."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Sizes of a SAM image encoder and of the decoder behind it.

    Attributes:
        dim: channels D of a token.
        depth: blocks.
        heads: attention heads.
        global_blocks: blocks whose attention spans the frame; that of the others stays in windows.
        window: side of a window, in tokens.
        grid: side of the table of positions, in tokens; other grids are interpolated from it.
        decoder_mlp: hidden width of the mask decoder's feed-forward layers.
    """

    dim: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    grid: int = 64
    decoder_mlp: int = 2048


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "vit_b": Variant(dim=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
        "vit_l": Variant(dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
        "vit_h": Variant(dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
        "small": Variant(dim=96, depth=4, heads=4, global_blocks=(1, 3), window=7, grid=16, decoder_mlp=256),
        "tiny": Variant(dim=32, depth=2, heads=4, global_blocks=(1,), window=3, grid=8, decoder_mlp=64),
    }
)
"""SAM's sizes (Kirillov et al., ICCV 2023), and two of our own without published weights."""


@dataclass
class MediViSTAConfig:
    """MediViSTA-SAM: SAM's encoder and decoder, made to look across the frames of a clip.

    Attributes:
        wiring: ``paper`` follows abstract and figure of the first version, ``released`` its published code exactly
            (only the last encoder block counts there, and no frame knows which one came before it), ``fusion`` the
            second version, which keeps SAM's encoder whole.
        variant: ``vit_b``, ``vit_l`` or ``vit_h`` (SAM's), ``small`` or ``tiny``.
        grid: side of the stored table of positions, in patches of 16 pixels; None: the variant's, 64 for SAM's.
            Frames may have any size. Set it to that of a checkpoint trained at another size, to keep its table.
        temporal: attention over the frames of the clip; with ``fusion``, temporal-fusion attention.
        cross_frame: attention to the frame before (``paper`` only).
        adapter: a bottleneck beside each block's feed-forward layer (``paper`` only).
        mlp_residual: a skip connection around the feed-forward layer; figure and code have none (``paper`` only).
        sam_positions: keep SAM's patch embedding, positions and windows, beside the convolutional stem (``paper``
            only). Trained from nothing, networks without are no worse (benchmarks/results/wirings.md).
        up_path: from tokens back to pixels: ``mhca``, attention that joins the stem's features, or ``sam``, transposed
            convolutions (``paper`` only; ``released`` has the first, ``fusion`` the second).
        cross_branch: attention of the global blocks to a convolutional branch that sees the frame's wavelet detail
            (``fusion`` only).
        low_rank: rank of the factors added to queries and values; 0: none (``fusion`` only).
        prompt_rate: share of training clips for which a prompt is drawn from the target, a point inside or a box
            around one class in one labelled frame, so that the network learns to follow prompts.
        checkpointing: compute activations again in the backward pass rather than keep them: a third more time for a
            fraction of the memory.
    """

    wiring: str = "paper"
    variant: str = "vit_b"
    grid: int | None = None
    temporal: bool = True
    cross_frame: bool = True
    adapter: bool = True
    mlp_residual: bool = False
    sam_positions: bool = False
    up_path: str = "mhca"
    cross_branch: bool = True
    low_rank: int = 32
    prompt_rate: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, known in (("wiring", WIRINGS), ("variant", tuple(VARIANTS)), ("up_path", UP_PATHS)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    f"model.{name}={value!r} is unknown.{did_you_mean(value, known)} Known: {', '.join(known)}."
                )
        if self.grid is not None and self.grid < 1:
            raise ConfigError(f"model.grid={self.grid} must be at least 1.")
        if self.low_rank < 0:
            raise ConfigError(f"model.low_rank={self.low_rank} must be 0 (none) or more.")
        if not 0 <= self.prompt_rate <= 1:
            raise ConfigError(f"model.prompt_rate={self.prompt_rate} must be a share from 0 to 1.")
        self._check_switches()

    def _check_switches(self) -> None:
        """Refuse a switch that the wiring does not have, unless it is left at its default."""
        defaults = {field.name: field.default for field in fields(self)}
        for name, wirings in SWITCHES.items():
            if self.wiring not in wirings and getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"model.{name}={getattr(self, name)!r} has no effect with model.wiring={self.wiring}: "
                    f"it belongs to {' and '.join(wirings)}."
                )

    @property
    def shape(self) -> Variant:
        """Sizes of the encoder."""
        return VARIANTS[self.variant]

    @property
    def stored_grid(self) -> int:
        """Side of the table of positions, in tokens."""
        return self.shape.grid if self.grid is None else self.grid


SWITCHES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "temporal": ("paper", "fusion"),
        "cross_frame": ("paper",),
        "adapter": ("paper",),
        "mlp_residual": ("paper",),
        "sam_positions": ("paper",),
        "up_path": ("paper",),
        "cross_branch": ("fusion",),
        "low_rank": ("fusion",),
    }
)
"""Ablation switches and the wirings that have them."""
