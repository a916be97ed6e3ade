"""MediViSTA-SAM: clips in, masks of every frame out, by itself or as pointed out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec
from medvid_medivista_sam.config import PATCH, MediViSTAConfig
from medvid_medivista_sam.network.attention import Clip
from medvid_medivista_sam.network.decoder import MaskDecoder
from medvid_medivista_sam.network.encoder import EMBEDDING, SamEncoder, VideoEncoder
from medvid_medivista_sam.network.layers import stored_statistics
from medvid_medivista_sam.network.prompt_encoder import PromptEncoder
from medvid_medivista_sam.network.prompting import (
    Prompt,
    carried_order,
    carried_prompt,
    check_prompts,
    drawn_prompts,
    log_odds,
    mask_odds,
)
from medvid_medivista_sam.network.stem import Skips
from medvid_medivista_sam.network.up_path import UpPath, transposed_convs

UP_STAGES = 4
"""Transposed convolutions from tokens to pixels, each of which doubles the resolution."""


class Features(NamedTuple):
    """What the decoder reads.

    Attributes:
        image: embedding [M,256,H/16,W/16].
        skips: the stem's finer features, where there is one.
    """

    image: Tensor
    skips: Skips | None

    def frame(self, index: int) -> Features:
        """Return one frame's, as a batch of one."""
        one = slice(index, index + 1)
        return Features(self.image[one], None if self.skips is None else Skips(*(x[one] for x in self.skips)))


def min_max(video: Tensor, real: Tensor | None = None) -> Tensor:
    """Stretch each clip [B,T,1,H,W] to 0..1, by its real frames [B,T] alone; a constant clip becomes 0.

    The first version's code takes the least and largest value of the whole batch, so that a clip's result depends on
    its company, and divides 0 by 0 on a constant one. For a batch of one clip both are the same.
    """
    low = high = video
    if real is not None:
        hidden = ~(real | ~real.any(1, keepdim=True))[:, :, None, None, None]
        low, high = video.masked_fill(hidden, torch.inf), video.masked_fill(hidden, -torch.inf)
    low, high = low.amin((1, 2, 3, 4), keepdim=True), high.amax((1, 2, 3, 4), keepdim=True)
    span = high - low
    return (video - low) / torch.where(span > 0, span, 1)


class MediViSTA(nn.Module):
    """The network (Kim et al., arXiv 2309.13539, and IEEE JBHI 2025), in the wiring of its configuration.

    `build` makes its parts.
    """

    def __init__(
        self,
        config: MediViSTAConfig,
        output: OutputSpec,
        image_encoder: VideoEncoder | SamEncoder,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
    ) -> None:
        super().__init__()
        self.config = config
        self.output_name = output.name
        self.classes = len(output.classes)
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Segment clips.

        Args:
            batch: ``video`` [B,T,1,H,W], grey in 0..1, H and W multiples of 16; ``frame_real`` [B,T], False for
                padding; ``prompts``, for each clip a list of `Prompt`. In training with ``model.prompt_rate`` also
                ``mask`` [B,T,H,W] and ``mask_labelled`` [B,T].

        Returns:
            Logits [B,T,K,H,W].

        Raises:
            ConfigError: the video has another shape.
            DataError: a prompt cannot be used.
        """
        video: Tensor = batch["video"]
        self._check_video(video)
        real: Tensor | None = batch.get("frame_real")
        if self.config.wiring != "fusion":  # whose encoder expects frames as SAM does
            video = min_max(video, real)
        clip = Clip(len(video), video.shape[1], real)
        features = self.encode(video, clip)
        logits = torch.unflatten(self.decode(features), 0, video.shape[:2])
        prompts = self._prompts(batch)
        if any(prompts):
            logits = self._follow(logits, features, prompts, clip)
        return {self.output_name: logits}

    def encode(self, video: Tensor, clip: Clip) -> Features:
        """Frames [B,T,1,H,W] in 0..1 to what the decoder reads."""
        frames = video.flatten(0, 1)
        if isinstance(self.image_encoder, SamEncoder):
            return Features(self.image_encoder(frames, clip, self.config.checkpointing), None)
        return Features(*self.image_encoder(frames, clip, self.config.checkpointing))

    def decode(self, features: Features, sparse: Tensor | None = None, dense: Tensor | None = None) -> Tensor:
        """Masks of all classes, after a prompt or by itself.

        Args:
            features: of M frames.
            sparse: tokens of each frame's prompt, or of all frames' [M or 1,n,256]; None: none.
            dense: maps of each frame's prompt, or of all frames' [M or 1,256,H/16,W/16]; None: none.

        Returns:
            Logits [M,K,H,W].
        """
        height, width = features.image.shape[2:]
        return cast(
            Tensor,
            self.mask_decoder(
                features.image,
                self.prompt_encoder.positions(height, width),
                self.prompt_encoder.sparse((PATCH * height, PATCH * width)) if sparse is None else sparse,
                self.prompt_encoder.dense((height, width)) if dense is None else dense,
                features.skips,
                # a prompt's pass is one frame, and its batch norms do not behave in it as later, in the backward pass
                self.config.checkpointing and sparse is None and dense is None,
            ),
        )

    def _check_video(self, video: Tensor) -> None:
        channels, height, width = video.shape[2:]
        if channels != 1:
            raise ConfigError(f"The video has {channels} channels; MediViSTA-SAM takes grey frames (clip.channels=1).")
        if height % PATCH or width % PATCH:
            raise ConfigError(
                f"Frames of {height}x{width} pixels do not fit: height and width must be multiples of {PATCH} "
                "(clip.size)."
            )

    def _prompts(self, batch: Mapping[str, Any]) -> Sequence[Sequence[Prompt]]:
        """Return those of the batch, or in training those drawn from its target."""
        video: Tensor = batch["video"]
        given: Sequence[Sequence[Prompt]] = batch.get("prompts") or ()
        for prompts in given:
            check_prompts(prompts, self.classes, range(video.shape[1]), video.shape[-2:])
        if any(given) or not (self.training and self.config.prompt_rate and "mask" in batch):
            return given
        usable = torch.ones(video.shape[:2], dtype=torch.bool, device=video.device)
        for name in ("frame_real", "mask_labelled"):
            if name in batch:
                usable = usable & batch[name]
        return drawn_prompts(batch["mask"], usable, self.classes, self.config.prompt_rate)

    def _follow(self, logits: Tensor, features: Features, prompts: Sequence[Sequence[Prompt]], clip: Clip) -> Tensor:
        """Replace the logits [B,T,K,H,W] of prompted classes, in the prompted frames and then in all others.

        Each further frame is given what was found of the class in the one before, as a mask and the box around it.
        """
        logits = logits.clone()
        with stored_statistics(self.mask_decoder):  # those of one frame are no statistics
            for number, given in enumerate(prompts):
                frames = list(range(clip.frames)) if clip.real is None else clip.real[number].nonzero()[:, 0].tolist()
                for value in sorted({prompt["class"] for prompt in given}):
                    channel = value if self.classes > 1 else 0
                    prompted = {prompt["frame"]: prompt for prompt in given if prompt["class"] == value}
                    for frame, prompt in prompted.items():
                        one = features.frame(number * clip.frames + frame)
                        logits[number, frame, channel] = self._pointed_out(one, prompt)[channel]
                    for frame, source in carried_order(list(prompted), frames):
                        one = features.frame(number * clip.frames + frame)
                        prompt = carried_prompt(log_odds(logits[number, source].detach(), channel))
                        logits[number, frame, channel] = self._pointed_out(one, prompt)[channel]
        return logits

    def _pointed_out(self, one: Features, prompt: Prompt) -> Tensor:
        """Logits [K,H,W] of one frame after a prompt."""
        image = one.image
        height, width = image.shape[2:]

        def batched(key: str, dtype: torch.dtype) -> Tensor | None:
            value = prompt.get(key)
            return None if value is None else torch.as_tensor(value, device=image.device).to(dtype)[None]

        sparse = self.prompt_encoder.sparse(
            (PATCH * height, PATCH * width),
            batched("points", torch.float32),
            batched("labels", torch.long),
            batched("box", torch.float32),
        )
        odds = mask_odds(prompt, (4 * height, 4 * width), image.device)
        return self.decode(one, sparse, self.prompt_encoder.dense((height, width), odds))[0]


def build(config: MediViSTAConfig, outputs: tuple[OutputSpec, ...]) -> MediViSTA:
    """Make the network for one segmentation output.

    Raises:
        ConfigError: other tasks, or several outputs.
    """
    if len(outputs) != 1 or outputs[0].task != "segmentation":
        asked = ", ".join(f"{output.name} ({output.task})" for output in outputs) or "none"
        raise ConfigError(f"MediViSTA-SAM predicts exactly one segmentation; asked for: {asked}.")
    shape, fusion = config.shape, config.wiring == "fusion"
    encoder: VideoEncoder | SamEncoder
    if fusion:
        encoder = SamEncoder(
            shape,
            config.stored_grid,
            temporal=config.temporal,
            cross_branch=config.cross_branch,
            low_rank=config.low_rank,
        )
    else:
        encoder = VideoEncoder(config)
    sam_up = fusion or config.up_path == "sam"
    up = transposed_convs(EMBEDDING, UP_STAGES) if sam_up else UpPath(EMBEDDING)
    channels = EMBEDDING >> (UP_STAGES + 1) if sam_up else UpPath.channels
    decoder = MaskDecoder(len(outputs[0].classes), EMBEDDING, shape.decoder_mlp, up, channels)
    return MediViSTA(config, outputs[0], encoder, PromptEncoder(EMBEDDING), decoder)
