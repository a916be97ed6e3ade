"""Samples and batches from cases."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from medvid_core.config import AugmentConfig, ClipConfig
from medvid_core.data import transforms
from medvid_core.data.clip import UNLABELLED, Array, Batch, Case, Sample
from medvid_core.data.fan import fan_box
from medvid_core.data.preprocess import Step
from medvid_core.data.readers import read_images, read_masks, read_stream
from medvid_core.data.sampling import ClipItem, ClipKey, RankBatches, random_start, sample_rng, window
from medvid_core.data.transforms import Box
from medvid_core.errors import DataError
from medvid_core.specs import ClipSpec


@dataclass(frozen=True)
class Augmentation:
    """The random changes of a clip.

    Attributes:
        changes: those of the pixels as they are read; None for none.
        pad: see `AugmentConfig`.
    """

    changes: v2.Compose | None
    pad: int


def read_case_masks(case: Case, indices: Sequence[int], size: tuple[int, int]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return masks uint8 [T,H,W] (255 where nothing is annotated) and which frames are annotated [T]."""
    labelled = np.array([case.is_labelled(frame) for frame in indices], dtype=bool)
    masks = np.full((len(indices), *size), UNLABELLED, dtype=np.uint8)
    if labelled.any():
        frames = [frame for frame, known in zip(indices, labelled, strict=True) if known]
        masks[labelled] = read_masks(case.streams["mask"], frames, size)
    return masks, labelled


def load_sample(
    case: Case,
    indices: npt.NDArray[np.int64],
    real: npt.NDArray[np.bool_],
    clip: ClipConfig,
    spec: ClipSpec,
    steps: Sequence[Step] = (),
    augment: tuple[Augmentation, int] | None = None,
    masks: bool = True,
) -> Sample:
    """Read one clip as a sample (see `medvid_core.data.clip`).

    Args:
        case: the video.
        indices: source frame of each clip frame, [T].
        real: false where a clip frame only fills up, [T].
        clip: the size to resize to, and whether to crop to the sector first.
        spec: channels and normalisation the model wants, and the streams it reads: those the case has are read too.
        steps: preprocessors that add streams.
        augment: the random changes and the seed to draw them from.
        masks: whether to read the annotation; without it every pixel is unlabelled.

    Raises:
        DataError: a file cannot be read; the text names it.
    """
    frames = [int(index) for index in indices]
    images = read_images(case.streams["video"], frames)
    source_size = (images.shape[1], images.shape[2])
    annotation, labelled = read_case_masks(case if masks else replace(case, labelled=()), frames, source_size)
    box = fan_box(case, clip.fan_crop) or Box(0, 0, *source_size)
    video, mask = transforms.resize(
        box.cut(transforms.to_video(images)), tv_tensors.Mask(box.cut(torch.from_numpy(annotation))), clip.size
    )
    others = read_others(case, indices, clip, spec, box, source_size)
    if augment is not None and augment[0].changes is not None:
        video, mask, *changed = transforms.augment(video, mask, augment[0].changes, augment[1], *others.values())
        others = dict(zip(others, changed, strict=True))
    pixels, classes = transforms.normalise(video, spec), mask.as_subclass(Tensor).long()
    streams = {name: finished_stream(stream) for name, stream in others.items()}
    if augment is not None and augment[0].pad:
        # as EchoNet-Dynamic draws it: the corner of the window in [0, 2 pad)
        dy, dx = augment[0].pad - np.random.default_rng(augment[1]).integers(2 * augment[0].pad, size=2)
        pixels, classes = transforms.shift(pixels, dy, dx, 0), transforms.shift(classes, dy, dx, UNLABELLED)
        streams = {name: transforms.shift(stream, dy, dx, 0) for name, stream in streams.items()}
    if clip.padding == "zero":
        for tensor in (pixels, *streams.values()):
            tensor[~torch.from_numpy(real)] = 0
    spacing = case.spacing or (math.nan, math.nan)
    frame_targets = {name: frame_values(values, indices, real) for name, values in case.frame_targets.items()}
    sample: Sample = {
        "video": pixels,
        **streams,
        "frame_real": torch.from_numpy(real),
        "mask": classes,
        "mask_labelled": torch.from_numpy(labelled & real),
        "targets": {name: torch.as_tensor(value) for name, value in case.targets.items()},
        "targets_present": {name: torch.tensor(True) for name in case.targets},
        "frame_targets": {name: values.nan_to_num(0) for name, values in frame_targets.items()},
        "frame_targets_present": {name: ~values.isnan() for name, values in frame_targets.items()},
        "affine": transforms.crop_affine(box, clip.size),
        "source_size": torch.tensor(source_size),
        "frame_index": torch.from_numpy(np.asarray(case.source_frames)[indices] if case.source_frames else indices),
        "case_id": case.case_id,
        "group_id": case.group_id,
        "fps": torch.tensor(case.fps if case.fps is not None else math.nan, dtype=torch.float32),
        "time_s": frame_times(case, indices),
        "spacing": torch.tensor(spacing, dtype=torch.float32),
    }
    for step in steps:
        sample = step(sample)
    return sample


def read_others(
    case: Case,
    indices: npt.NDArray[np.int64],
    clip: ClipConfig,
    spec: ClipSpec,
    box: Box,
    source_size: tuple[int, int],
) -> dict[str, tv_tensors.TVTensor]:
    """Read the streams beside video and annotation that a model reads and the case has, at the size of the clip.

    Args:
        case: the video.
        indices: source frame of each clip frame, [T].
        clip: the size to resize to.
        spec: names the streams.
        box: what is cut out of every frame first.
        source_size: of the video, (H, W).

    Raises:
        DataError: a file cannot be read; vectors are of neighbouring frames and those of the clip are not; or a crop of
            the video does not fit a stream of another size.
    """
    found = {}
    following = np.append(np.diff(indices) == 1, False)
    for name in spec.streams:
        if name in ("video", "mask") or name not in case.streams:
            continue
        source = case.streams[name]
        if source.kind == "vector" and clip.stride != 1:
            raise DataError(
                f"The stream {name!r} goes from each frame to the next, and clip.stride={clip.stride} leaves frames "
                "out. Set clip.stride=1, and the time between frames where the stream is made (preprocess.stride)."
            )
        stream = read_stream(source, [int(index) for index in indices])
        if source.kind == "vector":
            stream = np.where(following[:, None, None, None], stream, np.float32(0))
        if box != (0, 0, *source_size):
            if stream.shape[-2:] != source_size:
                raise DataError(
                    f"The stream {name!r} is {stream.shape[-1]}x{stream.shape[-2]} pixels while the video is "
                    f"{source_size[1]}x{source_size[0]}, so that it cannot be cropped with it. Set clip.fan_crop=none."
                )
            stream = np.ascontiguousarray(box.cut(stream))
        found[name] = transforms.resize_stream(transforms.to_stream(stream, source.kind), clip.size)
    return found


def finished_stream(stream: tv_tensors.TVTensor) -> Tensor:
    """Return a stream as the model sees it, float; pictures scaled to [0, 1]."""
    tensor: Tensor = stream.as_subclass(Tensor)
    return tensor if tensor.is_floating_point() else tensor.float() / 255


def frame_values(values: Sequence[float], indices: npt.NDArray[np.int64], real: npt.NDArray[np.bool_]) -> Tensor:
    """Return what is known of the frames of a clip, float [T]; NaN where unknown or not real."""
    return torch.from_numpy(np.where(real, np.asarray(values, np.float32)[indices], np.float32(math.nan)))


def frame_times(case: Case, indices: npt.NDArray[np.int64]) -> Tensor:
    """Return when the frames of a clip were taken, in seconds, float64 [T] (years have many); NaN where unknown."""
    if case.times_s:
        return torch.from_numpy(np.asarray(case.times_s, np.float64)[indices])
    return torch.from_numpy(indices.astype(np.float64)) / (case.fps if case.fps is not None else math.nan)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples along a leading batch axis; text becomes a list; a target absent in a sample is zero there."""
    batch: Batch = {}
    for key, first in samples[0].items():
        if isinstance(first, Tensor):
            batch[key] = torch.stack([sample[key] for sample in samples])
        elif not isinstance(first, dict):
            batch[key] = [sample[key] for sample in samples]
    for key in ("targets", "targets_present", "frame_targets", "frame_targets_present"):
        found: dict[str, Tensor] = {name: value for sample in samples for name, value in sample[key].items()}
        batch[key] = {
            name: torch.stack([sample[key].get(name, torch.zeros_like(value)) for sample in samples])
            for name, value in found.items()
        }
    return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with every tensor on ``device``, however deep."""
    return {key: _moved(value, device) for key, value in batch.items()}


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return to_device(value, device)
    return [_moved(item, device) for item in value] if isinstance(value, list) else value


class TrainingClips(Dataset[Sample]):
    """Makes the training sample of a `ClipKey`: a pure function of (seed, epoch, position)."""

    def __init__(
        self,
        cases: Sequence[Case],
        items: Sequence[ClipItem],
        clip: ClipConfig,
        spec: ClipSpec,
        steps: Sequence[Step],
        augment: AugmentConfig,
        seed: int,
    ) -> None:
        self.steps = steps
        self.cases, self.items, self.clip, self.spec, self.seed = cases, items, clip, spec, seed
        changes = transforms.augmentation(augment)
        self.augmentation = Augmentation(changes, augment.pad) if changes is not None or augment.pad else None

    def __getitem__(self, key: ClipKey) -> Sample:
        item = self.items[key.item]
        case = self.cases[item.case]
        rng = sample_rng(self.seed, key)
        start = random_start(case, self.clip, rng) if item.start is None else item.start
        indices, real = window(start, case.frames, self.clip)
        drawn = (self.augmentation, int(rng.integers(2**31))) if self.augmentation is not None else None
        try:
            return load_sample(case, indices, real, self.clip, self.spec, self.steps, drawn)
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"Case {case.case_id!r}, frames {indices[0]} to {indices[-1]}, could not be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error


def default_workers(device: torch.device) -> int:
    """Return how many loading processes to use: on a CPU they would only compete with the training."""
    return 0 if device.type == "cpu" else min(4, max(1, (os.cpu_count() or 1) - 1))


def training_loader(dataset: TrainingClips, batches: RankBatches, workers: int, pin: bool) -> DataLoader[Sample]:
    """Return a loader over all micro-batches one process still has to train on.

    Workers are spawned, not forked: decoders and CUDA do not survive a fork.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,  # its keys need not be integers
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
        pin_memory=pin,
        generator=torch.Generator(),  # its own, so that making an iterator leaves the global generator alone
    )
