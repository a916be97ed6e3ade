"""Small clips with known content, made through the loader itself, and what the checks do with them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medvid_core.config import ClipConfig, Composed, compose
from medvid_core.data.clip import UNLABELLED, Array, Batch, Case, Sample, Source, Target
from medvid_core.data.loader import collate, load_sample
from medvid_core.data.preprocess import Step, plan_steps
from medvid_core.data.sampling import window
from medvid_core.losses.base import Loss
from medvid_core.models import create_model, input_of
from medvid_core.plugins import Provided, Registry
from medvid_core.specs import ClipSpec, LossSpec, ModelSpec, OutputSpec, resolve

TINY = ("preset=tiny",)


@dataclass(frozen=True)
class Scene:
    """A bright disc that moves over a dim noisy ground; a brighter one in it where there are three classes."""

    number: int
    size: tuple[int, int]
    classes: int

    def draw(self, frame: int) -> tuple[Array, Array]:
        """Return picture and classes of one frame, uint8 [H,W]."""
        height, width = self.size
        rng = np.random.default_rng([self.number, frame])
        y, x = np.mgrid[:height, :width]
        centre_y = height * (0.4 + 0.08 * self.number + 0.02 * frame)
        centre_x = width * (0.6 - 0.08 * self.number - 0.02 * frame)
        distance = np.hypot((y - centre_y) / height, (x - centre_x) / width)
        mask = (distance < 0.3).astype(np.uint8)
        if self.classes > 2:
            mask += distance < 0.15
        picture = 40 + 90 * mask + rng.integers(0, 30, self.size)
        return picture.astype(np.uint8), mask


def read_video(source: Source, frames: Sequence[int]) -> Array:
    """Draw the pictures, uint8 [T,H,W]."""
    return np.stack([source.options.draw(frame)[0] for frame in frames])


def read_mask(source: Source, frames: Sequence[int]) -> Array:
    """Draw the masks, uint8 [T,H,W]."""
    return np.stack([source.options.draw(frame)[1] for frame in frames])


def read_person_mask(source: Source, frames: Sequence[int]) -> Array:
    """Draw where the disc is, uint8 [T,H,W], 0 and 255."""
    return 255 * (read_mask(source, frames) > 0).astype(np.uint8)


def read_flow(source: Source, frames: Sequence[int]) -> Array:
    """Draw how the disc moves, float32 [T,2,H,W], in pixels."""
    height, width = source.options.size
    step = np.array([-0.02 * width, 0.02 * height], np.float32)
    inside = (read_mask(source, frames) > 0).astype(np.float32)
    return inside[:, None] * step[:, None, None]


DRAWN_STREAMS = ("person_mask", "flow")
"""Streams beside video and annotation that drawn cases have, so that models which read them can be tried."""


def read_walk(source: Source, frames: Sequence[int]) -> Array:
    """Draw a bright figure that crosses a still, uneven ground by two pixels a frame, uint8 [T,96,160]."""
    ground = np.random.default_rng(0).integers(40, 90, (96, 160)).astype(np.uint8)
    pictures = np.repeat(ground[None], len(frames), 0)
    for picture, frame in zip(pictures, frames, strict=True):
        picture[24:84, 8 + 2 * frame : 28 + 2 * frame] = 220
    return pictures


def make_walk() -> Case:
    """Return a drawn video of somebody who walks, for preprocessors of whole videos."""
    source = Source(reader=f"{__name__}:read_walk")
    return Case(case_id="walk", group_id="walk", frames=48, fps=30.0, streams={"video": source})


def make_case(number: int, frames: int, size: tuple[int, int], output: OutputSpec) -> Case:
    """Return a drawn video."""
    classes = max(2, len(output.classes)) if output.task == "segmentation" else 2
    scene = Scene(number, size, classes)
    targets, frame_targets = make_targets(output, number, frames)
    return Case(
        case_id=f"case {number}",
        group_id=f"patient {number}",
        frames=frames,
        fps=20.0,
        spacing=(0.5, 0.5),
        streams={
            "video": Source(reader=f"{__name__}:read_video", options=scene),
            "mask": Source(reader=f"{__name__}:read_mask", options=scene, values=tuple(range(classes))),
            "person_mask": Source(reader=f"{__name__}:read_person_mask", options=scene, kind="mask"),
            "flow": Source(reader=f"{__name__}:read_flow", options=scene, kind="vector"),
        },
        targets=targets,
        frame_targets=frame_targets,
    )


def make_targets(
    output: OutputSpec, number: int, frames: int
) -> tuple[dict[str, Target], dict[str, tuple[float, ...]]]:
    """Return what is known of a case, and of its frames.

    Of anomalies, even cases have a label for every frame, abnormal in their second half, and odd ones, which are
    normal, one for the whole video.
    """
    classes, name = len(output.classes), output.name
    if output.task == "segmentation":
        return {}, {}
    if output.task == "multilabel":
        return {name: tuple(float((number + k) % 2) for k in range(classes))}, {}
    if output.task == "regression":
        return {name: tuple(0.5 + number for _ in range(classes))}, {}
    if output.task == "frame_classification":
        return {}, {name: tuple(float((2 * frame // frames + number) % classes) for frame in range(frames))}
    if output.task == "anomaly":
        labels = tuple(float(2 * frame >= frames) for frame in range(frames))
        return ({name: 0}, {}) if number % 2 else ({}, {name: labels})
    return {name: number % classes}, {}


def make_sample(
    number: int,
    output: OutputSpec,
    frames: int,
    size: tuple[int, int],
    spec: ClipSpec | None = None,
    steps: Sequence[Step] = (),
    present: int | None = None,
) -> Sample:
    """Make one sample through the loader.

    Args:
        number: which scene.
        output: what is to be predicted.
        frames: clip length T.
        size: height and width.
        spec: the input that the model is made for.
        steps: preprocessors that add streams.
        present: how many frames the video has; the rest of the clip is padding. None: all.
    """
    spec = spec or ClipSpec()
    case = make_case(number, frames if present is None else present, size, output)
    clip = ClipConfig(frames=frames, size=size)
    indices, real = window(0, case.frames, clip)
    return load_sample(case, indices, real, clip, spec, steps)


def output_shape(output: OutputSpec, batch: Batch) -> tuple[int, ...]:
    """Return the shape that the contract gives an output of this task."""
    b, t, _, h, w = batch["video"].shape
    k = len(output.classes)
    return {
        "segmentation": (b, t, k, h, w),
        "classification": (b, k),
        "multilabel": (b, k),
        "frame_classification": (b, t, k),
        "regression": (b, k),
        "ordinal": (b, k - 1),
        "anomaly": (b, t),
    }[output.task]


def random_outputs(output: OutputSpec, batch: Batch, seed: int = 0, scale: float = 2.0) -> dict[str, Tensor]:
    """Return made-up predictions that gradients can be asked of; anomaly scores, which may be errors, are positive."""
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(output_shape(output, batch), generator=generator)
    if output.task == "anomaly":
        values = values.abs()
    return {output.name: values.requires_grad_()}


def without_labels(batch: Batch) -> Batch:
    """Return the batch as if nobody had annotated anything."""
    bare = copy.deepcopy(batch)
    bare["mask"] = torch.full_like(bare["mask"], UNLABELLED)
    bare["mask_labelled"] = torch.zeros_like(bare["mask_labelled"])
    for key in ("targets_present", "frame_targets_present"):
        bare[key] = {name: torch.zeros_like(known) for name, known in bare[key].items()}
    return bare


def with_other_padding(batch: Batch) -> Batch:
    """Return the batch with another picture and another mask in the frames that only fill a clip up."""
    changed = copy.deepcopy(batch)
    padding = ~changed["frame_real"]
    changed["video"][padding] = 1 - changed["video"][padding]
    changed["mask"][padding] = 1 - changed["mask"][padding].clamp(0, 1)
    return changed


def all_labelled(batch: Batch) -> Batch:
    """Return the batch with every frame marked as annotated, padding too: a loss has to look at both marks."""
    return {**batch, "mask_labelled": torch.ones_like(batch["mask_labelled"])}


def total(loss: Loss, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return the loss as the engine computes it, ``Σ sum / count``."""
    counts = loss.counts(batch)
    parts = [value / counts[name].clamp(min=1) for name, value in loss(outputs, batch).items()]
    return torch.stack(parts).sum()


@dataclass(frozen=True)
class ModelUnderTest:
    """A model on its tiny preset, for one output."""

    registry: Registry
    provided: Provided
    output: OutputSpec

    @property
    def spec(self) -> ModelSpec:
        """What its plugin declares."""
        assert isinstance(self.provided.spec, ModelSpec)
        return self.provided.spec

    @cached_property
    def composed(self) -> Composed:
        """The configuration of a run on the tiny preset."""
        return compose(self.registry, self.provided.full_name, overrides=TINY)

    @property
    def frames(self) -> int:
        """Clip length of the tiny preset."""
        return self.composed.config.clip.frames

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the tiny preset."""
        return self.composed.config.clip.size

    def build(self, seed: int = 0) -> nn.Module:
        """Build the network from a seed, in evaluation mode."""
        torch.manual_seed(seed)
        return create_model(self.provided.full_name, outputs=(self.output,), preset="tiny").eval()

    def batch(
        self,
        clips: int = 2,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        present: int | None = None,
    ) -> Batch:
        """Make a batch of different clips."""
        spec = input_of(self.spec, self.composed.config.model.config)
        steps = plan_steps(self.registry, spec.streams, DRAWN_STREAMS)
        frames, size = frames or self.frames, size or self.size
        return collate([make_sample(n, self.output, frames, size, spec, steps, present) for n in range(clips)])

    def loss_spec(self) -> LossSpec | None:
        """Return its recipe's loss, or None where that is not made for this output's task."""
        spec = self.composed.loss
        return spec if self.output.task in spec.tasks else None

    def loss(self, spec: LossSpec) -> Loss:
        """Build its recipe's loss."""
        loss: Loss = resolve(spec.build)(self.composed.config.loss.config, (self.output,))
        return loss


def run(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Compute the outputs without gradients."""
    with torch.no_grad():
        outputs: dict[str, Tensor] = network(batch)
    return outputs


def pick(batch: Batch, clips: Sequence[int]) -> Batch:
    """Return some clips of a batch, in the given order."""
    picked: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, dict):
            picked[key] = pick(value, clips)
        else:
            picked[key] = value[list(clips)] if isinstance(value, Tensor) else [value[i] for i in clips]
    return picked


def cut_labels(batch: Batch) -> Batch:
    """Return the batch with a quarter of the pixels unlabelled, spread over the picture."""
    cut = dict(batch)
    mask = cut["mask"].clone()
    mask[..., ::2, ::2] = UNLABELLED
    return {**cut, "mask": mask}


def shortened(case: Case, frames: int) -> Case:
    """Return a case without the frames after the first few."""
    labelled = None if case.labelled is None else tuple(frame for frame in case.labelled if frame < frames)
    short = {name: values[:frames] for name, values in case.frame_targets.items()}
    return replace(case, frames=min(frames, case.frames), labelled=labelled, frame_targets=short)
