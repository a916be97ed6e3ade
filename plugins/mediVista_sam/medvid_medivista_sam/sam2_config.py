"""Settings of SAM 2 for video. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from medvid_core.errors import ConfigError

RANDOM = "random"
"""The value of ``model.weights`` that asks for a tiny untrained network."""

PROMPTS = ("mask", "box", "point")


@dataclass
class SAM2Config:
    """SAM 2 or 2.1 for video, as the transformers library holds it.

    Attributes:
        weights: folder with ``config.json`` and ``model.safetensors`` of a checkpoint for transformers, e.g. those of
            ``facebook/sam2.1-hiera-tiny``; the size of the network is the one that is written there. ``random`` is a
            tiny untrained network, for tests. There is no default: without weights this model is of no use.
        prompt_from: what is pointed out of the annotation where a batch brings no prompts. ``mask`` gives all of it
            away, as the semi-supervised protocol of video object segmentation does; ``box`` its bounding box;
            ``point`` the pixel furthest from its edge. See `medvid_medivista_sam.sam2.SAM2Video`.
    """

    weights: str = ""
    prompt_from: str = "mask"

    def __post_init__(self) -> None:
        if self.prompt_from not in PROMPTS:
            raise ConfigError(
                f"model.prompt_from={self.prompt_from!r} cannot be used: it must be {', '.join(PROMPTS[:-1])} "
                f"or {PROMPTS[-1]}."
            )
