"""Segment a video of any length in fixed memory: overlapping windows, blended in time, written as they come.

Evaluation and prediction both run through `segment_case`, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medvid_core.config import ClipConfig
from medvid_core.data.clip import Case, Sample
from medvid_core.data.loader import collate, load_sample, to_device
from medvid_core.data.preprocess import Step
from medvid_core.data.sampling import covering_starts, window
from medvid_core.errors import ConfigError
from medvid_core.losses.segmentation import probabilities
from medvid_core.specs import ClipSpec, OutputSpec


@dataclass(frozen=True)
class FrameBlock:
    """Some finished frames of a case.

    Attributes:
        frames: source frame indices, rising.
        probabilities: float [n,K,h,w] in model pixels, on the CPU.
        affine: [3,3], source → model pixel coordinates.
        source_size: height and width of the source in pixels.
    """

    frames: list[int]
    probabilities: Tensor
    affine: Tensor
    source_size: tuple[int, int]


def _weights(frames: int) -> Tensor:
    """Return the triangular weights [T] with which overlapping windows are blended: their ends know less context."""
    rising = torch.arange(1, frames + 1, dtype=torch.float32)
    return torch.minimum(rising, rising.flip(0))


class _Blend:
    """Weighted sums of the frames that later windows may still add to."""

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}
        self.weights: dict[int, float] = {}

    def add(self, frame: int, value: Tensor, weight: float) -> None:
        self.sums[frame] = self.sums[frame] + weight * value if frame in self.sums else weight * value
        self.weights[frame] = self.weights.get(frame, 0.0) + weight

    def pop_before(self, frame: int) -> tuple[list[int], Tensor | None]:
        """Remove and return the finished frames, those before ``frame``."""
        done = sorted(number for number in self.sums if number < frame)
        if not done:
            return [], None
        values = torch.stack([self.sums.pop(number) / self.weights.pop(number) for number in done])
        return done, values


def segment_case(
    model: nn.Module,
    output: OutputSpec,
    case: Case,
    clip: ClipConfig,
    spec: ClipSpec,
    steps: Sequence[Step],
    batch_size: int,
    device: torch.device,
) -> Iterator[FrameBlock]:
    """Yield the class probabilities of every frame of a case, in order.

    Windows are computed ``batch_size`` at a time whatever the number of processes, so the result does not depend on
    it. Memory does not grow with the length of the video.

    Raises:
        ConfigError: the output is not a segmentation.
        DataError: a frame cannot be read.
    """
    if output.task != "segmentation":
        raise ConfigError(f"Output {output.name!r} is a {output.task}; evaluation and prediction do segmentation.")
    starts = covering_starts(case.frames, clip, clip.overlap)
    weights = _weights(clip.frames)
    blend = _Blend()
    for first in range(0, len(starts), batch_size):
        chunk = starts[first : first + batch_size]
        samples = [_read(case, start, clip, spec, steps) for start in chunk]
        with torch.inference_mode():
            logits = model(to_device(collate(samples), device))[output.name]
            values = probabilities(logits.float()).cpu()
        for start, value in zip(chunk, values, strict=True):
            for t, frame in enumerate(range(start, start + clip.stride * clip.frames, clip.stride)):
                if frame < case.frames:
                    blend.add(frame, value[t], float(weights[t]))
        following = starts[first + batch_size :]
        frames, done = blend.pop_before(following[0] if following else case.frames)
        if done is not None:
            height, width = samples[0]["source_size"].tolist()
            yield FrameBlock(frames, done, samples[0]["affine"], (height, width))


def _read(case: Case, start: int, clip: ClipConfig, spec: ClipSpec, steps: Sequence[Step]) -> Sample:
    indices, real = window(start, case.frames, clip)
    return load_sample(case, indices, real, clip, spec, steps, masks=False)
