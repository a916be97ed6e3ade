"""Run a model over a video of any length: overlapping windows, blended in time.

Masks come in fixed memory, as they are finished (`segment_case`); everything else is small, and comes at the end
(`predict_case`). Evaluation and prediction both run through these, so they cannot disagree.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
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

    def add_window(self, start: int, values: Tensor, weights: Tensor, frames: int, stride: int) -> None:
        """Add the values [T,...] of a window; what lies outside the video is dropped."""
        for value, weight, frame in zip(values, weights.tolist(), itertools.count(start, stride), strict=False):
            if 0 <= frame < frames:
                self.add(frame, value, weight)

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

    Memory does not grow with the length of the video.

    Raises:
        ConfigError: the output is not a segmentation.
        DataError: a frame cannot be read.
    """
    if output.task != "segmentation":
        raise ConfigError(f"Output {output.name!r} is a {output.task}; this is for segmentation.")
    weights = _weights(clip.frames)
    blend = _Blend()
    for window_batch in _windows(model, case, clip, spec, steps, batch_size, device):
        values = probabilities(window_batch.outputs[output.name].float()).cpu()
        for start, value in zip(window_batch.starts, values, strict=True):
            blend.add_window(start, value, weights, case.frames, clip.stride)
        frames, done = blend.pop_before(window_batch.following)
        if done is not None:
            height, width = window_batch.samples[0]["source_size"].tolist()
            yield FrameBlock(frames, done, window_batch.samples[0]["affine"], (height, width))


def predict_case(
    model: nn.Module,
    outputs: Sequence[OutputSpec],
    case: Case,
    clip: ClipConfig,
    spec: ClipSpec,
    steps: Sequence[Step],
    batch_size: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return what is predicted of a case beside masks, on the CPU, in the shapes of `ScoredCase.predicted`.

    What is predicted for a clip is averaged over the windows (with ``clip.overlap`` one less than ``clip.frames``:
    over every clip of the video, as EchoNet-Dynamic does); what is predicted for frames is blended.

    Raises:
        DataError: a frame cannot be read.
    """
    weights = _weights(clip.frames)
    blends = {output.name: _Blend() for output in outputs if output.task in FRAME_TASKS}
    sums: dict[str, Tensor] = {}
    count = 0
    for window_batch in _windows(model, case, clip, spec, steps, batch_size, device):
        count += len(window_batch.starts)
        for output in outputs:
            values = activated(output, window_batch.outputs[output.name].float()).cpu()
            if output.name not in blends:
                sums[output.name] = sums.get(output.name, torch.zeros_like(values[0])) + values.sum(0)
                continue
            for start, value in zip(window_batch.starts, values, strict=True):
                blends[output.name].add_window(start, value, weights, case.frames, clip.stride)
    found = {name: total / count for name, total in sums.items()}
    for name, blend in blends.items():
        _, values_of_all = blend.pop_before(case.frames)
        assert values_of_all is not None  # a case has a frame
        found[name] = values_of_all
    return found


FRAME_TASKS = ("frame_classification", "anomaly")
"""Tasks beside segmentation that have a value for every frame."""


def activated(output: OutputSpec, raw: Tensor) -> Tensor:
    """Return probabilities of what a model puts out; numbers and anomaly scores stay as they are."""
    if output.task in ("classification", "frame_classification"):
        return raw.softmax(-1)
    return raw.sigmoid() if output.task in ("multilabel", "ordinal") else raw


@dataclass(frozen=True)
class _WindowBatch:
    """Some windows of a case and what the model makes of them.

    Attributes:
        starts: first frame of each.
        samples: what was read.
        outputs: of the model, first axis the windows.
        following: first frame of the next batch's first window; the number of frames after the last.
    """

    starts: list[int]
    samples: list[Sample]
    outputs: Mapping[str, Tensor]
    following: int


def _windows(
    model: nn.Module,
    case: Case,
    clip: ClipConfig,
    spec: ClipSpec,
    steps: Sequence[Step],
    batch_size: int,
    device: torch.device,
) -> Iterator[_WindowBatch]:
    """Run the model over the windows of a case, ``batch_size`` at a time whatever the number of processes."""
    starts = covering_starts(case.frames, clip, clip.overlap)
    for first in range(0, len(starts), batch_size):
        chunk = starts[first : first + batch_size]
        samples = [_read(case, start, clip, spec, steps) for start in chunk]
        with torch.inference_mode():
            outputs = model(to_device(collate(samples), device))
        following = starts[first + batch_size :]
        yield _WindowBatch(chunk, samples, outputs, following[0] if following else case.frames)


def _read(case: Case, start: int, clip: ClipConfig, spec: ClipSpec, steps: Sequence[Step]) -> Sample:
    indices, real = window(start, case.frames, clip)
    return load_sample(case, indices, real, clip, spec, steps, masks=False)
