"""From uint8 frames to the normalised tensors a model sees, and back to source pixels.

Random changes are drawn once a clip (torchvision's v2 transforms on ``tv_tensors``), so that frames stay consistent
and the mask follows the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from medvid_core.config import AugmentConfig
from medvid_core.data.clip import UNLABELLED, Array
from medvid_core.specs import ClipSpec

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def to_video(frames: Array) -> tv_tensors.Video:
    """Return uint8 frames [T,H,W,3] as a video tensor [T,3,H,W]."""
    return tv_tensors.Video(torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous())


def resize(
    video: tv_tensors.Video, mask: tv_tensors.Mask, size: Sequence[int]
) -> tuple[tv_tensors.Video, tv_tensors.Mask]:
    """Resize to ``size``, aspect ratio not kept: the video bilinear with antialiasing, the mask nearest.

    The mask takes the source pixel nearest to each pixel's centre. (torchvision resizes masks by ``nearest``, which
    takes the one nearest to its corner: made 4 times smaller, a mask would lie 1.5 source pixels off its video.)
    """
    smaller = F.interpolate(mask.as_subclass(Tensor)[:, None], size=list(size), mode="nearest-exact")[:, 0]
    resized: tv_tensors.Video = v2.Resize(list(size), antialias=True)(video)
    return resized, tv_tensors.Mask(smaller)


def resize_affine(source: tuple[int, int], size: Sequence[int]) -> Tensor:
    """Return the [3,3] map from source to resized pixel coordinates (x, y, 1), pixel centres at integers."""
    sy, sx = size[0] / source[0], size[1] / source[1]
    return torch.tensor([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]], dtype=torch.float32)


def augmentation(config: AugmentConfig) -> v2.Compose | None:
    """Return the random changes of a clip, or None when all are off."""
    steps: list[torch.nn.Module] = []
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(config.horizontal_flip))
    if config.vertical_flip:
        steps.append(v2.RandomVerticalFlip(config.vertical_flip))
    if config.rotation_deg or config.scale or config.translate:
        steps.append(
            v2.RandomAffine(
                degrees=config.rotation_deg,
                scale=(1 - config.scale, 1 + config.scale) if config.scale else None,
                translate=(config.translate, config.translate) if config.translate else None,
                interpolation=v2.InterpolationMode.BILINEAR,
                # what lies outside the picture is unknown: black to see, and not scored
                fill={tv_tensors.Video: 0, tv_tensors.Mask: UNLABELLED},
            )
        )
    if config.brightness or config.contrast:
        steps.append(v2.ColorJitter(brightness=config.brightness, contrast=config.contrast))
    if config.noise:
        steps += [
            v2.ToDtype({tv_tensors.Video: torch.float32, "others": None}, scale=True),
            v2.GaussianNoise(sigma=config.noise),
        ]
    return v2.Compose(steps) if steps else None


def augment(
    video: tv_tensors.Video, mask: tv_tensors.Mask, transform: v2.Compose, seed: int
) -> tuple[tv_tensors.Video, tv_tensors.Mask]:
    """Apply random changes drawn from ``seed`` alone; the global generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # that of the CPU; torch.manual_seed would seed the GPU's as well
        changed: tuple[tv_tensors.Video, tv_tensors.Mask] = transform(video, mask)
    return changed


def normalise(video: Tensor, spec: ClipSpec) -> Tensor:
    """Return a float video [T,C,H,W] scaled to [0, 1], then shifted and divided by the model's mean and std."""
    scaled = video.as_subclass(Tensor)
    if not scaled.is_floating_point():
        scaled = scaled.float() / 255
    if spec.channels == 1:
        scaled = (scaled * scaled.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    mean = scaled.new_tensor(spec.mean).view(1, -1, 1, 1)
    std = scaled.new_tensor(spec.std).view(1, -1, 1, 1)
    return (scaled - mean) / std


def shift(x: Tensor, dy: int, dx: int, fill: float) -> Tensor:
    """Return the picture [...,H,W] moved by whole pixels down and to the right, ``fill`` where it leaves a gap."""
    height, width = x.shape[-2:]
    moved = torch.full_like(x, fill)
    if abs(dy) >= height or abs(dx) >= width:
        return moved
    ys, xs = slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx))
    yt, xt = slice(max(0, dy), height - max(0, -dy)), slice(max(0, dx), width - max(0, -dx))
    moved[..., yt, xt] = x[..., ys, xs]
    return moved


def to_source(maps: Tensor, affine: Tensor, source_size: tuple[int, int]) -> Tensor:
    """Resample maps [T,K,h,w] in model pixels to source pixels [T,K,H,W], bilinear, by inverting the geometry.

    Args:
        maps: values in model pixel coordinates.
        affine: [3,3], source → model pixel coordinates.
        source_size: (H, W).
    """
    height, width = source_size
    if torch.allclose(affine.cpu(), resize_affine(source_size, maps.shape[-2:])):
        return F.interpolate(maps, size=source_size, mode="bilinear", align_corners=False)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], -1).to(maps) @ affine.to(maps).T
    extent = maps.new_tensor([maps.shape[-1], maps.shape[-2]])
    grid = (2 * points[..., :2] + 1) / extent - 1
    return F.grid_sample(
        maps, grid.expand(len(maps), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False
    )
