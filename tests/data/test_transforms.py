"""Geometry of resizing, consistent augmentation, normalisation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from medvid_core.config import AUGMENT_PRESETS, AugmentConfig
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


ONE_BY_ONE = {
    "horizontal_flip": 1.0,
    "vertical_flip": 1.0,
    "crop": 1.0,
    "rotation_deg": 30.0,
    "scale": 0.3,
    "translate": 0.3,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "sharpness": 0.3,
    "gamma": 1.0,
    "blur": 1.0,
    "noise": 0.1,
}
OF_ANOTHER = {
    "affine": ({"rotation_deg": 30.0}, 0.0),
    "crop_side": ({"crop": 1.0}, (0.3, 0.4)),
    "colour_per_frame": ({"brightness": 0.3}, True),
    "gamma_range": ({"gamma": 1.0}, (2.0, 3.0)),
    "blur_sigma": ({"blur": 1.0}, (2.0, 3.0)),
}


def coloured(frames=3, height=24, width=20) -> tv_tensors.Video:
    rng = np.random.default_rng(0)
    return transforms.to_video(np.repeat(rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8), frames, 0))


def changed(clip, seed=0, **settings) -> torch.Tensor:
    change = transforms.augmentation(AugmentConfig(**settings))
    return clip if change is None else transforms.augment(clip, mask_of(clip), change, seed)[0]


def test_every_setting_is_tried():
    assert {*ONE_BY_ONE, *OF_ANOTHER, "preset", "pad"} == {*vars(AugmentConfig())}  # pad is the loader's


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_each_setting_changes_the_clip(name):
    """None of the settings is decoration."""
    clip = coloured()
    found = [changed(clip, seed, **{name: ONE_BY_ONE[name]}) for seed in range(3)]
    assert any(one.dtype != clip.dtype or not torch.equal(one, clip) for one in found)


@pytest.mark.parametrize("name", OF_ANOTHER)
def test_each_setting_of_a_change_changes_it(name):
    clip, (base, value) = coloured(), OF_ANOTHER[name]
    found = [
        torch.equal(changed(clip, seed, **base), changed(clip, seed, **base, **{name: value})) for seed in range(3)
    ]
    assert not all(found)


PRESETS = [name for name in AUGMENT_PRESETS if name != "none"]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("seed", range(4))
def test_presets_are_consistent_through_the_clip_and_keep_kinds_and_shapes(name, seed):
    """One draw for all frames, for video, mask, pictures, covers and vectors alike; pictures move together."""
    clip = coloured()
    change = transforms.augmentation(AugmentConfig(**AUGMENT_PRESETS[name]))
    cover = torch.rand(1, 1, 24, 20).expand(3, -1, -1, -1).clone().as_subclass(transforms.Coverage)
    flow = torch.rand(1, 2, 24, 20).expand(3, -1, -1, -1).clone().as_subclass(transforms.Vectors)
    inputs = (clip, mask_of(clip), cover, flow, clip.clone().as_subclass(tv_tensors.Video))
    found = transforms.augment(*inputs[:2], change, seed, *inputs[2:])
    assert [(type(one), one.shape, one.dtype) for one in found] == [(type(x), x.shape, x.dtype) for x in inputs]
    for one in found:
        assert torch.equal(one[0].as_subclass(torch.Tensor), one[2].as_subclass(torch.Tensor))
    assert torch.equal(found[0], found[4])
    again = transforms.augment(*inputs[:2], change, seed, *inputs[2:])
    assert torch.equal(again[0], found[0])


def test_heavier_presets_change_more():
    """The mean change of a grey clip over some seeds rises from light to heavy."""
    clip = tv_tensors.Video(F.interpolate(torch.rand(1, 3, 6, 5), (24, 20)).mul(255).to(torch.uint8).repeat(2, 1, 1, 1))
    means = []
    for name in PRESETS:
        settings = {**AUGMENT_PRESETS[name], "horizontal_flip": 0.0}
        one = [(changed(clip, seed, **settings).float() - clip.float()).abs().mean() for seed in range(60)]
        means.append(float(torch.stack(one).mean()))
    assert means == sorted(means)


def test_colour_is_drawn_for_every_frame_where_asked():
    """Of a still clip: alike in all frames, or another in each; the mask stays as it is."""
    clip = coloured(frames=4)
    settings = {"brightness": 0.5, "contrast": 0.5, "saturation": 1.0, "sharpness": 2.0}
    together = changed(clip, 3, **settings)
    assert all(torch.equal(together[0], one) for one in together)
    apart = changed(clip, 3, **settings, colour_per_frame=True)
    assert len({one.as_subclass(torch.Tensor).numpy().tobytes() for one in apart}) == 4
    change = transforms.augmentation(AugmentConfig(**settings, colour_per_frame=True))
    assert torch.equal(transforms.augment(clip, mask_of(clip), change, 3)[1], mask_of(clip))


@pytest.mark.parametrize("seed", range(5))
def test_a_random_crop_moves_video_and_mask_alike(seed):
    """A mask drawn by a threshold of a smooth picture is that of the cropped picture, but for pixels on the edge."""
    y, x = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    picture = (2 * x + y).to(torch.uint8)
    clip = tv_tensors.Video(picture.expand(2, 3, 60, 80).contiguous())
    mask = tv_tensors.Mask((clip[:, 0] > 100).as_subclass(torch.Tensor).to(torch.uint8))
    change = transforms.augmentation(AugmentConfig(crop=1.0, crop_side=(0.5, 0.9)))
    cut, moved = transforms.augment(clip, mask, change, seed)
    assert cut.shape == clip.shape
    certain = (cut[:, 0].float() - 100.5).abs() > 3
    assert torch.equal(moved.bool()[certain], (cut[:, 0] > 100)[certain])
    assert float(cut.float().std()) < float(clip.float().std())  # less of the ramp is seen


def test_vectors_grow_with_a_random_crop():
    """A part blown up by 1 / side moves so much faster."""
    flow = torch.ones(2, 2, 40, 40).as_subclass(transforms.Vectors)
    clip = tv_tensors.Video(torch.zeros(2, 3, 40, 40, dtype=torch.uint8))
    change = transforms.augmentation(AugmentConfig(crop=1.0, crop_side=(0.5, 0.5)))
    found = transforms.augment(clip, tv_tensors.Mask(torch.zeros(2, 40, 40, dtype=torch.uint8)), change, 0, flow)[2]
    assert torch.allclose(found.as_subclass(torch.Tensor), torch.full((2, 2, 40, 40), 2.0))


def boxes(height, width):
    """Rectangles within a picture, from a pixel to the whole."""

    def box(top, left):
        sizes = st.tuples(st.integers(1, height - top), st.integers(1, width - left))
        return sizes.map(lambda size: transforms.Box(top, left, *size))

    return st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)).flatmap(lambda corner: box(*corner))


@settings(deadline=None)
@given(st.data(), SIZES, SIZES)
def test_a_crop_is_told_by_its_map(data, source, size):
    """Odd sizes, crops at the border, of one pixel, of all: the affine alone says what was cut out."""
    box = data.draw(boxes(*source))
    assert transforms.crop_box(transforms.crop_affine(box, size), size, source) == box


def test_a_crop_is_told_by_its_map_in_large_pictures():
    for box in ((0, 0, 2160, 3840), (1077, 1919, 1083, 1921), (3, 3001, 777, 601)):
        affine = transforms.crop_affine(transforms.Box(*box), (256, 224))
        assert transforms.crop_box(affine, (256, 224), (2160, 3840)) == box


@settings(deadline=None)
@given(st.data(), SIZES)
def test_a_crop_comes_back_to_its_place_exact_to_the_pixel(data, source):
    """Cut out and not resized, every pixel lands where it was; outside there is background."""
    box = data.draw(boxes(*source))
    classes = torch.randint(0, 3, source, generator=torch.Generator().manual_seed(0))
    seen = F.one_hot(box.cut(classes), 3).permute(2, 0, 1)[None].float()
    size = (box.height, box.width)
    back = transforms.to_source(seen, transforms.crop_affine(box, size), source)
    expected = torch.zeros_like(classes)
    box.cut(expected)[:] = box.cut(classes)
    assert torch.equal(back.argmax(1)[0], expected)
    assert torch.equal(back.sum(1), torch.ones(1, *source))
    one = transforms.to_source(torch.ones(1, 1, *size), transforms.crop_affine(box, size), source)
    assert int(one.sum()) == box.height * box.width


@settings(deadline=None)
@given(st.data(), SIZES, SIZES)
def test_a_resized_crop_comes_back_as_from_a_video_of_the_crop(data, source, size):
    """To crop first, or to be given the cropped video: the same inside."""
    box = data.draw(boxes(*source))
    maps = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    back = transforms.to_source(maps, transforms.crop_affine(box, size), source)
    alone = (box.height, box.width)
    assert torch.equal(box.cut(back), transforms.to_source(maps, transforms.resize_affine(alone, size), alone))


@given(st.data(), SIZES, SIZES)
def test_the_affine_of_a_crop_maps_its_corners_to_the_corners_of_the_clip(data, source, size):
    box = data.draw(boxes(*source))
    affine = transforms.crop_affine(box, size).double()
    corners = [(box.left - 0.5, box.top - 0.5), (box.left + box.width - 0.5, box.top + box.height - 0.5)]
    for (x, y), expected in zip(corners, ((-0.5, -0.5), (size[1] - 0.5, size[0] - 0.5)), strict=True):
        found = affine @ torch.tensor([x, y, 1.0], dtype=torch.float64)
        assert found[:2].tolist() == pytest.approx(expected, abs=1e-3)


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
