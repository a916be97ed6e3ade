"""A network over frames: encoder, change, sequence, pool, heads. CNN-Mamba and its baselines are this one network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from medvid_cnn_mamba.config import VideoNetConfig
from medvid_cnn_mamba.network.encoder import FrameEncoder, MotionBranch
from medvid_cnn_mamba.network.heads import Heads, Pool, PoolState
from medvid_cnn_mamba.network.temporal import State
from medvid_core.errors import ConfigError, DataError
from medvid_core.specs import FRAME_TASKS, OutputSpec


class Frames(nn.Module):
    """From pictures to the tokens of a sequence.

    The sum of what is seen in each frame, what changed since the one before, and how long ago that was, each projected.
    """

    def __init__(self, config: VideoNetConfig, channels: int) -> None:
        super().__init__()
        self.encoder = FrameEncoder(config.encoder, channels, config.drop_path, config.frozen_norm)
        self.motion = MotionBranch(channels, config.motion_width, config.frozen_norm) if config.motion else None
        self.gap = nn.Linear(1, config.width) if config.time_gaps else None
        self.project = nn.Sequential(nn.LayerNorm(self.encoder.width), nn.Linear(self.encoder.width, config.width))
        self.project_motion: nn.Linear | None = None
        if self.motion is not None:
            self.project_motion = nn.Linear(self.motion.width, config.width)
            # a clip's frames are nearly the same: what is seen begins at nothing, or it would drown what changes
            nn.init.zeros_(cast(nn.Linear, self.project[1]).weight)

    def forward(self, batch: Mapping[str, Any], before: FramesState | None = None) -> tuple[Tensor, Tensor]:
        """Return tokens [B,T,D] of ``video`` [B,T,C,H,W], and the encoder's features [B,T,E] they are made of.

        Args:
            batch: the clip.
            before: what came before it in a stream.
        """
        video: Tensor = batch["video"]
        seen = self.encoder(video)
        tokens = cast(Tensor, self.project(seen))
        if self.motion is not None and self.project_motion is not None:
            tokens = tokens + self.project_motion(self.motion(video, None if before is None else before.frame))
        if self.gap is not None:
            tokens = tokens + self.gap(self._gaps(batch["time_s"], before).to(tokens))
        return tokens, seen

    def _gaps(self, times: Tensor, before: FramesState | None) -> Tensor:
        """Return log(1 + seconds since the frame before), [B,T,1]; 0 where unknown.

        Raises:
            DataError: of a whole clip nothing is known.
        """
        looked_at = not times.is_meta and not torch.compiler.is_compiling()
        if looked_at and times.isnan().all(1).any():
            raise DataError(
                "model.time_gaps=true needs to know when frames were taken, and a video has neither times nor a frame "
                "rate. Train without it, or give times."
            )
        previous = torch.cat([(times[:, 0] if before is None else before.time)[:, None], times[:, :-1]], 1)
        return (times - previous).nan_to_num(0).clamp(min=0).log1p()[..., None]

    def remember(self, batch: Mapping[str, Any]) -> FramesState:
        """Return what the frames after this clip need to know of it."""
        video = batch["video"]
        times = batch["time_s"] if self.gap is not None else video.new_zeros(video.shape[:2]).double()
        return FramesState(video[:, -1], times[:, -1])


class FramesState(NamedTuple):
    """The last frame [B,C,H,W] and when it was taken [B], in seconds."""

    frame: Tensor
    time: Tensor


class NetState(NamedTuple):
    """What a stream remembers: its size does not depend on the number of frames."""

    frames: FramesState | None
    sequence: State
    pool: PoolState


class VideoNet(nn.Module):
    """Frames -> sequence -> pool -> heads.

    Args:
        config: sizes.
        channels: of the frames.
        outputs: what is asked for.
        sequence: the temporal network, [B,T,D] and which frames are real [B,T] -> [B,T,D].
    """

    def __init__(
        self, config: VideoNetConfig, channels: int, outputs: tuple[OutputSpec, ...], sequence: nn.Module
    ) -> None:
        super().__init__()
        self.frames = Frames(config, channels)
        self.sequence = sequence
        # where only frames are asked for, nothing would train what is learnt of pooling
        clips = any(output.task not in FRAME_TASKS for output in outputs)
        self.pool = Pool(config.width, config.pooling if clips else "mean")
        self.heads = Heads(config.width, outputs, config.dropout)

    @property
    def attribution_layer(self) -> str:
        """The module whose output [B*T,C,h,w] Grad-CAM explains; empty where the encoder is not convolutional."""
        stage = self.frames.encoder.last_stage
        return f"frames.encoder.net.{stage}" if stage else ""

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return every output of a batch with ``video`` [B,T,C,H,W] and ``frame_real`` [B,T]."""
        real = batch["frame_real"]
        features = self.sequence(self.frames(batch)[0], real)
        return cast(dict[str, Tensor], self.heads(features, self.pool(features, real)))

    def initial_state(self, batch: int) -> NetState:
        """Return what ``batch`` streams start from.

        Raises:
            ConfigError: this network looks ahead.
        """
        if not hasattr(self.sequence, "initial_state") or getattr(self.sequence, "bidirectional", False):
            raise ConfigError("This network looks ahead in time, so it cannot stream. Use a causal one.")
        like = next(self.frames.project.parameters())
        sequence = cast(Any, self.sequence).initial_state(batch)
        return NetState(None, sequence, self.pool.initial_state(batch, like))

    def step(self, frames: Mapping[str, Any], state: NetState) -> tuple[dict[str, Tensor], NetState]:
        """Go on with a stream by one or more frames: equal to `forward` of the whole, piece by piece.

        Args:
            frames: a batch with the new frames, all of them real.
            state: what the step before returned, or `initial_state`.

        Returns:
            Outputs of the new frames, and of all frames so far; and the state after them.
        """
        video = frames["video"]
        real = torch.ones(video.shape[:2], dtype=torch.bool, device=video.device)
        features, sequence = cast(Any, self.sequence).step(self.frames(frames, state.frames)[0], state.sequence)
        pooled, pool = self.pool.step(features, real, state.pool)
        return self.heads(features, pooled), NetState(self.frames.remember(frames), sequence, pool)


class ForecastState(NamedTuple):
    """What a forecasting stream remembers; the forecast of the next frame's features is None before the first."""

    frames: FramesState | None
    sequence: State
    forecast: Tensor | None


class ForecastNet(nn.Module):
    """Anomaly as surprise: a causal network foresees the features of the next frame, and is trained on normal videos.

    score_t = 1 - cos(forecast made at t-1, features of frame t), in [0, 2]; the first frame scores 0. The frame encoder
    is frozen: trained along, it would make all features alike, and nothing a surprise.
    """

    scores_error = True

    def __init__(
        self, config: VideoNetConfig, channels: int, outputs: tuple[OutputSpec, ...], sequence: nn.Module
    ) -> None:
        super().__init__()
        if [output.task for output in outputs] != ["anomaly"]:
            raise ConfigError("model.anomaly=forecast gives one anomaly score and nothing else. Choose outputs=[…].")
        self.output = outputs[0].name
        self.frames = Frames(config, channels)
        self.frames.encoder.requires_grad_(False)
        self.sequence = sequence
        self.foresee = nn.Linear(config.width, self.frames.encoder.width)

    def train(self, mode: bool = True) -> ForecastNet:
        """Set the mode; the frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.frames.encoder.eval()
        return self

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the score [B,T]."""
        tokens, seen = self.frames(batch)
        forecast = self.foresee(self.sequence(tokens, batch["frame_real"]))
        return {self.output: self._score(seen, forecast, None)}

    def _score(self, seen: Tensor, forecast: Tensor, before: Tensor | None) -> Tensor:
        first = seen[:, :1] if before is None else before
        return 1 - torch.cosine_similarity(torch.cat([first, forecast[:, :-1]], 1), seen, dim=2)

    def initial_state(self, batch: int) -> ForecastState:
        """Return what ``batch`` streams start from."""
        return ForecastState(None, cast(Any, self.sequence).initial_state(batch), None)

    def step(self, frames: Mapping[str, Any], state: ForecastState) -> tuple[dict[str, Tensor], ForecastState]:
        """Go on with a stream, as `VideoNet.step`."""
        tokens, seen = self.frames(frames, state.frames)
        features, sequence = cast(Any, self.sequence).step(tokens, state.sequence)
        forecast = self.foresee(features)
        score = self._score(seen, forecast, state.forecast)
        return {self.output: score}, ForecastState(self.frames.remember(frames), sequence, forecast[:, -1:])
