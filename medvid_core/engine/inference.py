"""Run a model over a video of any length: windows that overlap and are blended in time, or one for every frame.

Masks come in fixed memory, as they are finished (`segment_case`); everything else is small, and comes at the end
(`predict_case`). Evaluation and prediction both run through these, so they cannot disagree.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from medvid_core.config import ClipConfig
from medvid_core.data.clip import Case, Sample
from medvid_core.data.loader import collate, load_sample, to_device
from medvid_core.data.preprocess import Step
from medvid_core.data.prompts import ModelPrompt, Prompt
from medvid_core.data.sampling import centred_starts, covering_starts, window
from medvid_core.engine.ensemble import Ensemble
from medvid_core.engine.sliding import Sliding, slides
from medvid_core.errors import ConfigError
from medvid_core.losses.segmentation import probabilities
from medvid_core.metrics.base import to_classes
from medvid_core.models import ModelInfo, model_spec
from medvid_core.specs import FRAME_TASKS, ClipSpec, OutputSpec


@dataclass(frozen=True)
class Windows:
    """How a video is cut into windows and read for a model.

    Attributes:
        clip: length, stride and size of a window, how many frames neighbours share, and how they are blended.
        spec: channels and normalisation.
        steps: preprocessors that add streams.
        batch_size: windows computed together, whatever the number of processes.
        device: where.
    """

    clip: ClipConfig
    spec: ClipSpec
    steps: Sequence[Step]
    batch_size: int
    device: torch.device

    def starts(self, frames: int) -> list[int]:
        """Return the first frames, rising, of the windows of a video with so many frames."""
        if self.clip.blend == "centre":
            return centred_starts(frames, self.clip)
        return covering_starts(frames, self.clip, self.clip.overlap)

    @property
    def weights(self) -> Tensor:
        """How much each frame of a window counts, [T]: 0 where it is not used."""
        if self.clip.blend == "centre":
            return (torch.arange(self.clip.frames) == (self.clip.frames - 1) // 2).float()
        return blend_weights(self.clip.frames)

    def batches(self, case: Case) -> Iterator[tuple[list[int], list[Sample]]]:
        """Yield first frames and samples of the windows that are computed together, in order.

        Of a video that is read for the network alone, windows of neighbouring frames read no frame twice.
        """
        starts = self.starts(case.frames)
        chunks = [starts[first : first + self.batch_size] for first in range(0, len(starts), self.batch_size)]
        sliding = Sliding(case, self.clip, self.spec) if slides(self.clip, self.spec, self.steps) else None
        for chunk in chunks:
            yield chunk, [self.read(case, start) for start in chunk] if sliding is None else sliding.read(chunk)

    def read(self, case: Case, start: int, real_only: bool = False) -> Sample:
        """Return the window that begins at a frame, without annotation; ``real_only``: cut off where the video ends."""
        indices, real = window(start, case.frames, self.clip)
        if real_only:
            indices, real = indices[real], real[real]
        return load_sample(case, indices, real, self.clip, self.spec, self.steps, masks=False)


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


def blend_weights(frames: int) -> Tensor:
    """Return the triangular weights [T] with which overlapping windows are blended: their ends know less context."""
    rising = torch.arange(1, frames + 1, dtype=torch.float32)
    return torch.minimum(rising, rising.flip(0))


class Blend:
    """Weighted sums of the frames that later windows may still add to."""

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}
        self.weights: dict[int, float] = {}

    def add(self, frame: int, value: Tensor, weight: float) -> None:
        """Add the value of a frame."""
        self.sums[frame] = self.sums[frame] + weight * value if frame in self.sums else weight * value
        self.weights[frame] = self.weights.get(frame, 0.0) + weight

    def add_window(self, start: int, values: Tensor, weights: Tensor, frames: int, stride: int) -> None:
        """Add the values [T,...] of a window; what lies outside the video is dropped."""
        for value, weight, frame in zip(values, weights.tolist(), itertools.count(start, stride), strict=False):
            if weight and 0 <= frame < frames:
                self.add(frame, value, weight)

    def pop_before(self, frame: int) -> tuple[list[int], Tensor | None]:
        """Remove and return the finished frames, those before ``frame``."""
        done = sorted(number for number in self.sums if number < frame)
        if not done:
            return [], None
        values = torch.stack([self.sums.pop(number) / self.weights.pop(number) for number in done])
        return done, values


def segment_case(
    model: nn.Module, output: OutputSpec, case: Case, windows: Windows, prompts: Sequence[Prompt] = ()
) -> Iterator[FrameBlock]:
    """Yield the class probabilities of every frame of a case, in order; of an `Ensemble` the mean over its models.

    Memory does not grow with the length of the video; with prompts, it does with the part before the first.

    Raises:
        ConfigError: the output is not a segmentation.
        DataError: a frame cannot be read.
    """
    if output.task != "segmentation":
        raise ConfigError(f"Output {output.name!r} is a {output.task}; this is for segmentation.")
    if isinstance(model, Ensemble):
        for blocks in zip(*(segment_case(one, output, case, windows, prompts) for one in model), strict=True):
            yield replace(blocks[0], probabilities=torch.stack([block.probabilities for block in blocks]).mean(0))
        return
    weights, stride = windows.weights, windows.clip.stride
    blend = Blend()
    for batch in _prompted(model, output, case, windows, prompts) if prompts else _batches(model, case, windows):
        values = probabilities(batch.outputs[output.name].float()).cpu()
        for start, value in zip(batch.starts, values, strict=True):
            blend.add_window(start, value, weights, case.frames, stride)
        frames, done = blend.pop_before(batch.following)
        if done is not None:
            height, width = batch.samples[0]["source_size"].tolist()
            yield FrameBlock(frames, done, batch.samples[0]["affine"], (height, width))


def predict_case(model: nn.Module, outputs: Sequence[OutputSpec], case: Case, windows: Windows) -> dict[str, Tensor]:
    """Return what is predicted of a case beside masks, on the CPU, in the shapes of `ScoredCase.predicted`.

    What is predicted for a clip is averaged over the windows (with ``clip.overlap`` one less than ``clip.frames``:
    over every clip of the video, as EchoNet-Dynamic does). What is predicted for frames is that of one pass through the
    whole video where the model is causal, as a stream gives it; else it is blended over the windows, as it is wherever
    ``clip.overlap`` or ``clip.blend`` asks for that. Of an `Ensemble` it is the mean over its models.

    Raises:
        DataError: a frame cannot be read.
    """
    if isinstance(model, Ensemble):
        each = [predict_case(one, outputs, case, windows) for one in model]
        return {name: torch.stack([found[name] for found in each]).mean(0) for name in each[0]}
    of_frames = [output for output in outputs if output.task in FRAME_TASKS]
    windowed = windows.clip.overlap > 0 or windows.clip.blend == "centre"
    state = _initial_state(model) if of_frames and not windowed else None
    if state is None:
        return _windowed(model, outputs, case, windows)
    rest = [output for output in outputs if output not in of_frames]
    found = _windowed(model, rest, case, windows) if rest else {}
    return found | _streamed(model, of_frames, case, windows)


def _initial_state(model: nn.Module) -> Any:
    """Return what a stream starts from; None for a model that needs whole clips."""
    info = getattr(model, "medvid", None)  # the constant predictor has none
    if not isinstance(info, ModelInfo) or not model_spec(info.name).streaming:
        return None
    try:
        return cast(Any, model).initial_state(1)
    except ConfigError:  # set up to look ahead
        return None


def _windowed(model: nn.Module, outputs: Sequence[OutputSpec], case: Case, windows: Windows) -> dict[str, Tensor]:
    """Clip values averaged, and frame values blended, over the windows."""
    weights = windows.weights
    blends = {output.name: Blend() for output in outputs if output.task in FRAME_TASKS}
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in _batches(model, case, windows):
        count += len(batch.starts)
        for output in outputs:
            values = activated(output, batch.outputs[output.name].float()).cpu()
            if output.name not in blends:
                sums[output.name] = sums.get(output.name, torch.zeros_like(values[0])) + values.sum(0)
                continue
            for start, value in zip(batch.starts, values, strict=True):
                blends[output.name].add_window(start, value, weights, case.frames, windows.clip.stride)
    found = {name: total / count for name, total in sums.items()}
    for name, blend in blends.items():
        _, values_of_all = blend.pop_before(case.frames)
        assert values_of_all is not None  # a case has a frame
        found[name] = values_of_all
    return found


def _streamed(model: nn.Module, outputs: Sequence[OutputSpec], case: Case, windows: Windows) -> dict[str, Tensor]:
    """Frame values of one causal pass, window after window; with a stride, of one for each phase of it."""
    clip = windows.clip
    found: dict[str, Tensor] = {}
    for phase in range(min(clip.stride, case.frames)):
        state = _initial_state(model)
        for start in range(phase, case.frames, clip.stride * clip.frames):
            sample = windows.read(case, start, real_only=True)
            with torch.inference_mode():
                raw, state = cast(Any, model).step(to_device(collate([sample]), windows.device), state)
            for output in outputs:
                values = activated(output, raw[output.name].float()).cpu()[0]
                every = found.setdefault(output.name, values.new_zeros(case.frames, *values.shape[1:]))
                indices, real = window(start, case.frames, clip)
                every[torch.from_numpy(indices[real])] = values
    return found


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


def _batches(model: nn.Module, case: Case, windows: Windows) -> Iterator[_WindowBatch]:
    """Run the model over the windows of a case."""
    starts = windows.starts(case.frames)
    done = 0
    for chunk, samples in windows.batches(case):
        with torch.inference_mode():
            outputs = model(to_device(collate(samples), windows.device))
        done += len(chunk)
        yield _WindowBatch(chunk, samples, outputs, starts[done] if done < len(starts) else case.frames)


def _prompted(
    model: nn.Module, output: OutputSpec, case: Case, windows: Windows, prompts: Sequence[Prompt]
) -> Iterator[_WindowBatch]:
    """Run the model over the windows of a case, one by one, beginning where the first prompt is.

    Every other window is given, beside prompts of its own, what was found of each prompted class in the frame nearest
    to it of the window before: first back to the beginning of the video, then on to its end.
    """
    starts = windows.starts(case.frames)
    first = min(prompt.frame for prompt in prompts)
    home = next(place for place, start in enumerate(starts) if first in _frames(start, case, windows.clip))
    labels: set[int] = set()  # what the windows so far were pointed at
    found: dict[int, Tensor] = {}
    for place in (*range(home, -1, -1), *range(home + 1, len(starts))):
        start = starts[place]
        sample = windows.read(case, start)
        frames = _frames(start, case, windows.clip)
        size = sample["video"].shape[-2:]
        for prompt in prompts if place == home else ():
            prompt.check(*sample["source_size"].tolist())
        own = [p.to_model(frames.index(p.frame), sample["affine"], size) for p in prompts if p.frame in frames]
        neighbour = place + 1 if place < home else place - 1
        if place != home:
            carried = _carried(found[neighbour], _frames(starts[neighbour], case, windows.clip), frames, labels)
            here = {(prompt["class"], prompt["frame"]) for prompt in own}
            own += [prompt for prompt in carried if (prompt["class"], prompt["frame"]) not in here]
        labels |= {prompt["class"] for prompt in own}
        with torch.inference_mode():
            outputs = model(to_device(collate([{**sample, "prompts": own}]), windows.device))
        found[place] = to_classes(probabilities(outputs[output.name].float())[0]).cpu()
        if place != home:
            found = {key: value for key, value in found.items() if key in (home, place)}
        going_back = place <= home and place > 0
        following = 0 if going_back else (starts[max(place, home) + 1 :] or [case.frames])[0]
        yield _WindowBatch([start], [sample], outputs, following)


def _frames(start: int, case: Case, clip: ClipConfig) -> list[int]:
    """Source frames of a window; those it only repeats are -1."""
    indices, real = window(start, case.frames, clip)
    return [int(index) if is_real else -1 for index, is_real in zip(indices, real, strict=True)]


def _carried(found: Tensor, there: Sequence[int], here: Sequence[int], labels: Set[int]) -> list[ModelPrompt]:
    """Return as prompts what a neighbouring window found of each class, at the frames of both that are nearest.

    Args:
        found: classes the neighbour found, long [T,h,w].
        there: its source frames.
        here: those of the window that is prompted.
        labels: the classes.
    """
    pairs = [(abs(a - b), i, j) for i, a in enumerate(here) for j, b in enumerate(there) if a >= 0 and b >= 0]
    _, frame, nearest = min(pairs)
    return [{"class": label, "frame": frame, "mask": (found[nearest] == label).float()} for label in sorted(labels)]
