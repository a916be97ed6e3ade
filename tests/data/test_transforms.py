"""Geometry of resizing, consistent augmentation, normalisation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from medvid_core.config import AugmentConfig
from medvid_core.data import transforms
from medvid_core.specs import ClipSpec

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))


def plane(height, width) -> torch.Tensor:
    """Each pixel's own coordinates, [1,2,H,W]: x and y."""
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return torch.stack([x, y])[None]


def video(frames=3, height=24, width=20, seed=0) -> tv_tensors.Video:
    rng = np.random.default_rng(seed)
    still = rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    return transforms.to_video(np.repeat(still, frames, 0))


def mask_of(clip) -> tv_tensors.Mask:
    return tv_tensors.Mask((clip[:, 0] > 127).as_subclass(torch.Tensor).to(torch.uint8))


@given(SIZES, SIZES)
def test_the_affine_maps_source_pixels_to_model_pixels(source, size):
    """Outer edges fall on outer edges, pixel centres are at integers."""
    affine = transforms.resize_affine(source, size).double()
    for corner, expected in (
        ((-0.5, -0.5), (-0.5, -0.5)),
        ((source[1] - 0.5, source[0] - 0.5), (size[1] - 0.5, size[0] - 0.5)),
    ):
        found = affine @ torch.tensor([*corner, 1.0], dtype=torch.float64)
        assert torch.allclose(found[:2], torch.tensor(expected, dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize(("source", "size"), [((64, 48), (32, 16)), ((96, 96), (24, 32)), ((30, 20), (60, 80))])
def test_the_resized_video_lies_where_the_affine_says(source, size):
    """Coordinates painted into a picture come out where they should, the border apart."""
    ramp = plane(*source) * (200 / max(source))
    resized, _ = transforms.resize(
        tv_tensors.Video(torch.cat([ramp, ramp[:, :1]], 1)),
        tv_tensors.Mask(torch.zeros(1, *source, dtype=torch.uint8)),
        size,
    )
    inverse = torch.linalg.inv(transforms.resize_affine(source, size))
    points = torch.cat([plane(*size)[0], torch.ones(1, *size)]).flatten(1)
    expected = (inverse @ points)[:2].reshape(2, *size) * (200 / max(source))
    inner = (slice(None), slice(3, -3), slice(3, -3))
    assert torch.allclose(resized[0, :2][inner], expected[inner], atol=0.05)


@pytest.mark.parametrize(("source", "size"), [((64, 64), (16, 16)), ((60, 90), (20, 30)), ((1024, 768), (256, 256))])
def test_the_mask_lies_on_the_resized_video(source, size):
    """The centre of a blob is the same in both: the mask is not shifted by the choice of the nearest pixel."""
    y, x = torch.meshgrid(torch.arange(source[0]), torch.arange(source[1]), indexing="ij")
    blob = (y - source[0] / 2).pow(2) / source[0] ** 2 + (x - source[1] / 2).pow(2) / source[1] ** 2 < 0.06
    clip = tv_tensors.Video(blob.to(torch.uint8).mul(255).expand(1, 3, -1, -1).contiguous())
    small, mask = transforms.resize(clip, tv_tensors.Mask(blob[None].to(torch.uint8)), size)

    def centre(weights):
        weights = weights.as_subclass(torch.Tensor).double()
        return (plane(*size)[0].double() * weights).flatten(1).sum(1) / weights.sum()

    # between two pixels the nearest one is half a source pixel off, which is at most 1/8 model pixel here
    assert (centre(small[0, 0]) - centre(mask[0])).abs().max() < 0.13


def test_unlabelled_pixels_are_not_mixed_with_classes():
    mask = tv_tensors.Mask(torch.randint(0, 3, (2, 37, 41), dtype=torch.uint8))
    mask[:, ::2] = 255
    _, small = transforms.resize(video(2, 37, 41), mask, (16, 24))
    assert small.shape == (2, 16, 24)
    assert small.dtype == torch.uint8
    assert set(small.unique().tolist()) <= {0, 1, 2, 255}


@settings(deadline=None)
@given(SIZES, SIZES)
def test_to_source_by_the_general_path_equals_interpolation(source, size):
    """The inverse of any affine agrees with plain resizing where the affine is that of a resize."""
    maps = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    affine = transforms.resize_affine(source, size)
    expected = F.interpolate(maps, size=source, mode="bilinear", align_corners=False)
    assert torch.equal(transforms.to_source(maps, affine, source), expected)
    nudge = 1e-4 * torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, 0]])  # enough to leave the quick path
    general = transforms.to_source(maps, affine + nudge, source)
    assert torch.allclose(general, expected, atol=1e-3)


def test_to_source_inverts_a_shift():
    """A crop's offset is undone."""
    maps = plane(20, 20)
    affine = torch.tensor([[1.0, 0, -4], [0, 1, 3], [0, 0, 1]])
    back = transforms.to_source(maps, affine, (12, 16))
    inner = (slice(None), slice(None), slice(0, 12), slice(4, 16))
    expected = plane(12, 16) + torch.tensor([-4.0, 3]).view(1, 2, 1, 1)
    assert torch.allclose(back[inner], expected[inner], atol=1e-4)


ALL = AugmentConfig(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotation_deg=40,
    scale=0.2,
    translate=0.2,
    brightness=0.3,
    contrast=0.3,
    noise=0.0,
)


@pytest.mark.parametrize("seed", range(6))
def test_one_draw_a_clip(seed):
    """Frames of a still clip stay equal to one another, and so do their masks."""
    clip = video()
    changed, mask = transforms.augment(clip, mask_of(clip), transforms.augmentation(ALL), seed)
    assert changed.shape == clip.shape
    assert changed.dtype == torch.uint8
    assert not torch.equal(changed, clip)
    assert all(torch.equal(changed[0], frame) for frame in changed)
    assert all(torch.equal(mask[0], frame) for frame in mask)


@pytest.mark.parametrize("seed", range(6))
def test_the_mask_follows_the_video(seed):
    """A mask drawn on the picture still fits it after flips, rotation, zoom and shift."""
    config = AugmentConfig(horizontal_flip=0.5, vertical_flip=0.5, rotation_deg=40, scale=0.2, translate=0.2)
    still = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    still[:, :, 12:40, 20:52] = 255
    still[:, :, 12:20, 20:26] = 0  # so that no flip or turn maps it to itself
    clip = tv_tensors.Video(still)
    changed, mask = transforms.augment(clip, mask_of(clip), transforms.augmentation(config), seed)
    known = mask != 255
    agree = ((changed[:, 0] > 127) == (mask == 1))[known].float().mean()
    assert agree > 0.99
    assert (mask == 1).sum() > 200


def test_what_comes_in_from_outside_is_unlabelled():
    """Rotation brings in corners nobody saw: black in the video, 255 in the mask, never class 0."""
    clip = tv_tensors.Video(torch.full((2, 3, 32, 32), 200, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.ones(2, 32, 32, dtype=torch.uint8))
    changed, mask = transforms.augment(clip, mask, transforms.augmentation(AugmentConfig(rotation_deg=45)), 1)
    outside = mask == 255
    assert outside.any()
    assert set(mask.unique().tolist()) == {1, 255}
    assert changed[:, 0][outside].float().mean() < 60


def test_augmentation_is_a_function_of_its_seed_and_leaves_the_global_generator_alone():
    clip = video()
    change = transforms.augmentation(AugmentConfig(**{**vars(ALL), "noise": 0.1}))
    state = torch.get_rng_state()
    first, first_mask = transforms.augment(clip, mask_of(clip), change, 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, again_mask = transforms.augment(clip, mask_of(clip), change, 7)
    assert torch.equal(first, again)
    assert torch.equal(first_mask, again_mask)
    other, _ = transforms.augment(clip, mask_of(clip), change, 8)
    assert not torch.equal(first, other)


def test_noise_differs_from_frame_to_frame_and_spares_the_mask():
    clip = video()
    changed, mask = transforms.augment(clip, mask_of(clip), transforms.augmentation(AugmentConfig(noise=0.05)), 0)
    assert changed.is_floating_point()
    assert not torch.equal(changed[0], changed[1])
    assert (changed - clip.float() / 255).std() == pytest.approx(0.05, rel=0.2)
    assert torch.equal(mask, mask_of(clip))


def test_no_augmentation_is_none():
    assert transforms.augmentation(AugmentConfig()) is None


@pytest.mark.parametrize("name", sorted({*vars(AugmentConfig())} - {"pad"}))  # that is the loader's
def test_each_setting_changes_the_clip(name):
    """None of the settings is decoration."""
    clip = video()
    value = {"rotation_deg": 30.0, "noise": 0.1, "horizontal_flip": 1.0, "vertical_flip": 1.0}.get(name, 0.3)
    change = transforms.augmentation(AugmentConfig(**{name: value}))
    found = [transforms.augment(clip, mask_of(clip), change, seed)[0] for seed in range(3)]
    assert any(one.dtype != clip.dtype or not torch.equal(one, clip) for one in found)


def test_normalise_is_zero_mean_and_unit_deviation_of_the_specs_numbers():
    spec = ClipSpec(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    clip = tv_tensors.Video(torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1))
    found = transforms.normalise(clip, spec)
    assert found.flatten().tolist() == pytest.approx([1.0, -1.0, 0.1])
    assert type(found) is torch.Tensor
    grey = transforms.normalise(clip, ClipSpec(channels=1, mean=(0.0,), std=(1.0,)))
    assert grey.shape == (1, 1, 1, 1)
    assert float(grey) == pytest.approx(0.299 + 0.114 * 0.2)
    wide = transforms.normalise(tv_tensors.Video(clip.float() / 255), spec)
    assert torch.allclose(wide, found)
    assert not math.isnan(float(grey))
