"""From uint8 frames to the normalised tensors a model sees, and back to source pixels.

Random changes are drawn once a clip (torchvision's v2 transforms on ``tv_tensors``), so that frames stay consistent
and the mask, and every other stream by its kind, follows the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from medvid_core.config import AugmentConfig
from medvid_core.data.clip import UNLABELLED, Array
from medvid_core.specs import ClipSpec

X = TypeVar("X", Tensor, Array)

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


class Box(NamedTuple):
    """A rectangle of whole source pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: X) -> X:
        """Return what lies inside of pictures [...,H,W], a tensor of any kind or an array."""
        part = x[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return part.as_subclass(type(x)) if isinstance(x, Tensor) else part


class Coverage(tv_tensors.TVTensor):  # type: ignore[misc]
    """How much of each pixel something covers, float [T,1,H,W] from 0 to 1: moves like a picture, has no colour."""


class Vectors(tv_tensors.TVTensor):  # type: ignore[misc]
    """Vectors in pixels, float [T,2,H,W], dx and dy: they move with the picture, and turn and grow with it."""


def to_stream(stream: Array, kind: str) -> tv_tensors.TVTensor:
    """Return what `read_stream` read as the tensor that changes as its kind does."""
    tensor = torch.from_numpy(stream)
    if kind == "image":
        return tv_tensors.Video(tensor)
    return (tensor.float() / 255).as_subclass(Coverage) if kind == "mask" else tensor.as_subclass(Vectors)


def _register(operation: Any, kind: type) -> Any:
    return VF.register_kernel(functional=operation, tv_tensor_cls=kind)


@_register(VF.horizontal_flip, Coverage)  # type: ignore[untyped-decorator]
def _mirror_coverage(x: Tensor) -> Tensor:
    return _flipped(x, -1).as_subclass(Coverage)


@_register(VF.horizontal_flip, Vectors)  # type: ignore[untyped-decorator]
def _mirror_vectors(x: Tensor) -> Tensor:
    return _scaled(_flipped(x, -1), -1, 1)


@_register(VF.vertical_flip, Coverage)  # type: ignore[untyped-decorator]
def _turn_over_coverage(x: Tensor) -> Tensor:
    return _flipped(x, -2).as_subclass(Coverage)


@_register(VF.vertical_flip, Vectors)  # type: ignore[untyped-decorator]
def _turn_over_vectors(x: Tensor) -> Tensor:
    return _scaled(_flipped(x, -2), 1, -1)


@_register(VF.resize, Coverage)  # type: ignore[untyped-decorator]
def _resize_coverage(x: Tensor, size: list[int], **_: Any) -> Tensor:
    resized: Tensor = VF.resize_image(x.as_subclass(Tensor), size, antialias=True)
    return resized.as_subclass(Coverage)


@_register(VF.resize, Vectors)  # type: ignore[untyped-decorator]
def _resize_vectors(x: Tensor, size: list[int], **_: Any) -> Tensor:
    resized = VF.resize_image(x.as_subclass(Tensor), size, antialias=True)
    return _scaled(resized, size[1] / x.shape[-1], size[0] / x.shape[-2])


@_register(VF.affine, Coverage)  # type: ignore[untyped-decorator]
def _affine_coverage(x: Tensor, **how: Any) -> Tensor:
    moved: Tensor = VF.affine_image(x.as_subclass(Tensor), **how)
    return moved.as_subclass(Coverage)


@_register(VF.affine, Vectors)  # type: ignore[untyped-decorator]
def _affine_vectors(x: Tensor, angle: float, scale: float, **how: Any) -> Tensor:
    """Move the vectors with the picture, and turn (clockwise by ``angle`` degrees, y pointing down) and scale each."""
    moved = VF.affine_image(x.as_subclass(Tensor), angle=angle, scale=scale, **how)
    cos, sin = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    dx, dy = moved.unbind(-3)
    return torch.stack([cos * dx - sin * dy, sin * dx + cos * dy], -3).as_subclass(Vectors)


def _flipped(x: Tensor, axis: int) -> Tensor:
    return x.as_subclass(Tensor).flip(axis)


def _scaled(vectors: Tensor, x: float, y: float) -> Tensor:
    return (vectors * vectors.new_tensor([x, y]).view(2, 1, 1)).as_subclass(Vectors)


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


def resize_stream(stream: tv_tensors.TVTensor, size: Sequence[int]) -> tv_tensors.TVTensor:
    """Resize a stream, bilinear with antialiasing; vectors are scaled too."""
    resized: tv_tensors.TVTensor = v2.Resize(list(size), antialias=True)(stream)
    return resized


def resize_affine(source: tuple[int, int], size: Sequence[int]) -> Tensor:
    """Return the [3,3] map from source to resized pixel coordinates (x, y, 1), pixel centres at integers."""
    return crop_affine(Box(0, 0, *source), size)


def crop_affine(box: Box, size: Sequence[int]) -> Tensor:
    """Return the [3,3] map from source to model pixel coordinates (x, y, 1) where a crop is resized to ``size``."""
    sy, sx = size[0] / box.height, size[1] / box.width
    return torch.tensor(
        [[sx, 0, (sx - 1) / 2 - sx * box.left], [0, sy, (sy - 1) / 2 - sy * box.top], [0, 0, 1]], dtype=torch.float32
    )


def crop_box(affine: Tensor, size: Sequence[int], source_size: tuple[int, int]) -> Box | None:
    """Return the crop that `crop_affine` made the map of, in a source of (H, W); None where it is no such map."""
    (sx, _, tx), (_, sy, ty), _ = affine.double().tolist()
    if sx <= 0 or sy <= 0:
        return None
    height, width = round(size[0] / sy), round(size[1] / sx)
    top, left = round(((sy - 1) / 2 - ty) / sy), round(((sx - 1) / 2 - tx) / sx)
    inside = min(top, left) >= 0 and top + height <= source_size[0] and left + width <= source_size[1]
    if not inside or height < 1 or width < 1:
        return None
    box = Box(top, left, height, width)
    return box if torch.allclose(affine.cpu(), crop_affine(box, size)) else None


class CropAndResize(torch.nn.Module):
    """Cut the same part out of all frames and streams of a clip, with some probability, and resize it to the clip.

    Args:
        probability: of doing so.
        side: shortest and longest side of the part, as a fraction of the clip's; the aspect ratio is kept.
    """

    def __init__(self, probability: float, side: tuple[float, float]) -> None:
        super().__init__()
        self.probability, self.side = probability, side

    def forward(self, video: tv_tensors.Video, mask: tv_tensors.Mask, *others: tv_tensors.TVTensor) -> tuple[Any, ...]:
        """Return video, mask and streams; the mask is resized as `resize` does."""
        if torch.rand(()) >= self.probability:
            return video, mask, *others
        size = tuple(video.shape[-2:])
        side = _uniform(*self.side)
        height, width = (max(1, round(side * length)) for length in size)
        top, left = (int(torch.randint(most + 1, ())) for most in (size[0] - height, size[1] - width))
        box = Box(top, left, height, width)
        video, mask = resize(box.cut(video), box.cut(mask), size)
        return video, mask, *(resize_stream(box.cut(stream), size) for stream in others)


class Photometric(torch.nn.Module):
    """Change pictures, and nothing else, by a factor drawn for the clip, with some probability.

    Args:
        change: ``(pictures, factor) -> pictures``.
        factor: smallest and largest.
        probability: of doing so.
    """

    def __init__(
        self, change: Callable[[Any, float], Any], factor: tuple[float, float], probability: float = 1
    ) -> None:
        super().__init__()
        self.change, self.factor, self.probability = change, factor, probability

    def forward(self, *inputs: tv_tensors.TVTensor) -> tuple[Any, ...]:
        """Return what was put in, pictures changed."""
        if torch.rand(()) >= self.probability:
            return inputs
        factor = _uniform(*self.factor)
        return tuple(self.change(x, factor) if isinstance(x, tv_tensors.Video) else x for x in inputs)


class EveryFrame(torch.nn.Module):
    """Draw a change of pictures anew for every frame.

    Args:
        change: of a clip's pictures.
    """

    def __init__(self, change: torch.nn.Module) -> None:
        super().__init__()
        self.change = change

    def forward(self, *inputs: tv_tensors.TVTensor) -> tuple[Any, ...]:
        """Return what was put in, pictures changed."""
        pictures = [x for x in inputs if isinstance(x, tv_tensors.Video)]
        frames = [self._changed(*(tv_tensors.Video(x[t : t + 1]) for x in pictures)) for t in range(len(pictures[0]))]
        changed = iter([tv_tensors.Video(torch.cat(parts)) for parts in zip(*frames, strict=True)])
        return tuple(next(changed) if isinstance(x, tv_tensors.Video) else x for x in inputs)

    def _changed(self, *pictures: tv_tensors.Video) -> tuple[Any, ...]:
        found = self.change(*pictures)
        return found if isinstance(found, tuple) else (found,)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def augmentation(config: AugmentConfig) -> v2.Compose | None:
    """Return the random changes of a clip, or None when all are off."""
    steps: list[torch.nn.Module] = []
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(config.horizontal_flip))
    if config.vertical_flip:
        steps.append(v2.RandomVerticalFlip(config.vertical_flip))
    if config.crop:
        steps.append(CropAndResize(config.crop, config.crop_side))
    if config.affine and (config.rotation_deg or config.scale or config.translate):
        affine = v2.RandomAffine(
            degrees=config.rotation_deg,
            scale=(1 - config.scale, 1 + config.scale) if config.scale else None,
            translate=(config.translate, config.translate) if config.translate else None,
            interpolation=v2.InterpolationMode.BILINEAR,
            # what lies outside the picture is unknown: black to see, and not scored
            fill={tv_tensors.Video: 0, tv_tensors.Mask: UNLABELLED, Coverage: 0, Vectors: 0},
        )
        steps.append(affine if config.affine == 1 else v2.RandomApply([affine], config.affine))
    steps += [EveryFrame(step) if config.colour_per_frame else step for step in _colours(config)]
    if config.gamma:
        steps.append(Photometric(VF.adjust_gamma, config.gamma_range, config.gamma))
    if config.blur:
        width = 2 * math.ceil(3 * config.blur_sigma[1]) + 1
        steps.append(v2.RandomApply([v2.GaussianBlur(width, config.blur_sigma)], config.blur))
    if config.noise:
        steps += [
            v2.ToDtype({tv_tensors.Video: torch.float32, "others": None}, scale=True),
            v2.GaussianNoise(sigma=config.noise),
        ]
    return v2.Compose(steps) if steps else None


def _colours(config: AugmentConfig) -> list[torch.nn.Module]:
    """Brightness, contrast and saturation, in random order, then sharpness."""
    steps: list[torch.nn.Module] = []
    if config.brightness or config.contrast or config.saturation:
        steps.append(v2.ColorJitter(config.brightness, config.contrast, config.saturation))
    if config.sharpness:
        steps.append(Photometric(VF.adjust_sharpness, (max(0.0, 1 - config.sharpness), 1 + config.sharpness)))
    return steps


def augment(
    video: tv_tensors.Video, mask: tv_tensors.Mask, transform: v2.Compose, seed: int, *others: tv_tensors.TVTensor
) -> tuple[Any, ...]:
    """Apply random changes drawn from ``seed`` alone; the global generators are left as they were.

    Returns:
        The video, the mask and the other streams (`to_stream`), changed alike.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # that of the CPU; torch.manual_seed would seed the GPU's as well
        changed: tuple[Any, ...] = transform(video, mask, *others)
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

    Where only a crop was seen, what lies outside it is background: 0, and 1 in the first of several maps.

    Args:
        maps: values in model pixel coordinates.
        affine: [3,3], source → model pixel coordinates.
        source_size: (H, W).
    """
    height, width = source_size
    box = crop_box(affine, maps.shape[-2:], source_size)
    if box is not None:
        inside = F.interpolate(maps, size=(box.height, box.width), mode="bilinear", align_corners=False)
        if box == (0, 0, height, width):
            return inside
        whole = maps.new_zeros(*maps.shape[:2], height, width)
        whole[:, 0] = float(maps.shape[1] > 1)
        box.cut(whole)[:] = inside
        return whole
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], -1).to(maps) @ affine.to(maps).T
    extent = maps.new_tensor([maps.shape[-1], maps.shape[-2]])
    grid = (2 * points[..., :2] + 1) / extent - 1
    return F.grid_sample(
        maps, grid.expand(len(maps), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False
    )
