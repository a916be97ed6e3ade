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
from medvid_core.data.preprocess import Step
from medvid_core.data.readers import read_images, read_masks
from medvid_core.data.sampling import ClipItem, ClipKey, RankBatches, random_start, sample_rng, window
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
        clip: the size to resize to.
        spec: channels and normalisation the model wants.
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
    video, mask = transforms.resize(
        transforms.to_video(images), tv_tensors.Mask(torch.from_numpy(annotation)), clip.size
    )
    if augment is not None and augment[0].changes is not None:
        video, mask = transforms.augment(video, mask, augment[0].changes, augment[1])
    pixels, classes = transforms.normalise(video, spec), mask.as_subclass(Tensor).long()
    if augment is not None and augment[0].pad:
        # as EchoNet-Dynamic draws it: the corner of the window in [0, 2 pad)
        dy, dx = augment[0].pad - np.random.default_rng(augment[1]).integers(2 * augment[0].pad, size=2)
        pixels, classes = transforms.shift(pixels, dy, dx, 0), transforms.shift(classes, dy, dx, UNLABELLED)
    if clip.padding == "zero":
        pixels[~torch.from_numpy(real)] = 0
    spacing = case.spacing or (math.nan, math.nan)
    frame_targets = {name: frame_values(values, indices, real) for name, values in case.frame_targets.items()}
    sample: Sample = {
        "video": pixels,
        "frame_real": torch.from_numpy(real),
        "mask": classes,
        "mask_labelled": torch.from_numpy(labelled & real),
        "targets": {name: torch.as_tensor(value) for name, value in case.targets.items()},
        "targets_present": {name: torch.tensor(True) for name in case.targets},
        "frame_targets": {name: values.nan_to_num(0) for name, values in frame_targets.items()},
        "frame_targets_present": {name: ~values.isnan() for name, values in frame_targets.items()},
        "affine": transforms.resize_affine(source_size, clip.size),
        "source_size": torch.tensor(source_size),
        "frame_index": torch.from_numpy(indices),
        "case_id": case.case_id,
        "group_id": case.group_id,
        "fps": torch.tensor(case.fps if case.fps is not None else math.nan, dtype=torch.float32),
        "time_s": frame_times(case, indices),
        "spacing": torch.tensor(spacing, dtype=torch.float32),
    }
    for step in steps:
        sample = step(sample)
    return sample


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
