"""Cropping to the sector: where it is found, and that every result lands where it belongs in the whole frame."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from medvid_core.config import ClipConfig, compose
from medvid_core.data import fan
from medvid_core.data.clip import Case, Source
from medvid_core.data.datasets.unlabelled import find_cases
from medvid_core.data.fan import estimate, fan_box
from medvid_core.data.loader import load_sample
from medvid_core.data.prompts import from_mask
from medvid_core.data.sampling import window
from medvid_core.data.transforms import Box, crop_affine
from medvid_core.engine.inference import FrameBlock
from medvid_core.engine.scoring import block_masks, seen
from medvid_core.errors import ConfigError, DataError
from medvid_core.plugins import registry
from medvid_core.specs import ClipSpec

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the test data ../shared/data is not on this machine")


def sector(size=(240, 320), apex=(20, 150), radius=170, half_angle=0.6) -> np.ndarray:
    """A sector that opens downwards, bool [H,W]."""
    y, x = np.mgrid[: size[0], : size[1]]
    dy, dx = y - apex[0], x - apex[1]
    return (np.hypot(dy, dx) < radius) & (np.abs(np.arctan2(dx, dy)) < half_angle)


def scanned(inside: np.ndarray, frames=6, letters=True, still=False, logo=True, seed=0) -> np.ndarray:
    """Speckle in a sector, with letters, a logo and a grey scale around and on it, uint8 [T,H,W,3]."""
    rng = np.random.default_rng(seed)
    count = 1 if still else frames
    grey = np.where(inside, rng.rayleigh(45, (count, *inside.shape)), 0).clip(0, 255).astype(np.uint8)
    found = []
    for one in np.repeat(grey, frames // count, 0):
        image = Image.fromarray(one)
        draw = ImageDraw.Draw(image)
        if letters:
            for place in ((4, 4), (4, 16), (230, 200), (100, 226), (140, 120)):
                draw.text(place, "Freq. 3.5 MHz", fill=255)
            draw.line((0, 236, 319, 236), fill=200, width=2)
        if logo:
            draw.rectangle((290, 4, 312, 26), fill=255)
            draw.rectangle((305, 60, 312, 180), fill=128)
        found.append(np.asarray(image))
    return np.repeat(np.stack(found)[..., None], 3, -1)


def close(found: Box, true: np.ndarray, within=6) -> bool:
    """Whether a rectangle holds a sector, all but a pixel or two of its tips, and little else."""
    box = fan.around(true)
    ends = [(found.top, box.top), (found.left, box.left)]
    ends += [(found.top + found.height, box.top + box.height), (found.left + found.width, box.left + box.width)]
    return all(abs(one - other) <= within for one, other in ends)


@pytest.mark.parametrize("still", [False, True])
def test_a_sector_is_found_among_letters_logos_and_scales(still):
    """The tip, thinner than a letter, may be missed: some 20 pixels of 240."""
    inside = sector()
    assert close(estimate(scanned(inside, still=still)), inside, within=20)


def test_a_linear_array_fills_its_rectangle():
    inside = np.zeros((240, 320), bool)
    inside[30:190, 60:260] = True
    assert close(estimate(scanned(inside)), inside, within=3)
    inside[:] = True
    assert estimate(scanned(inside, letters=False, logo=False)) == (0, 0, 240, 320)


def test_a_trace_that_runs_below_is_left_out():
    """An ECG changes, but is thin."""
    inside = sector()
    images = scanned(inside)
    for t, image in enumerate(images):
        x = np.arange(40 + 30 * t, 60 + 30 * t)
        image[222 + (3 * np.sin(x)).astype(int), x] = (0, 255, 0)
    assert close(estimate(images), inside, within=20)


@pytest.mark.parametrize("still", [False, True])
def test_a_shadow_does_not_part_the_sector(still):
    """Dark in the middle, bright above and below."""
    inside = sector()
    images = scanned(inside, letters=False, still=still)
    images[:, 90:130] = 0
    assert close(estimate(images), inside, within=20)


@pytest.mark.parametrize("grey", [0, 40])
def test_where_nothing_can_be_told_the_whole_frame_is_kept(grey):
    assert estimate(np.full((4, 50, 70, 3), grey, np.uint8)) == (0, 0, 50, 70)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_estimate_lies_in_the_frame_whatever_is_shown(height, width, frames, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    images *= (rng.random((height, width, 1)) < rng.random()).astype(np.uint8)
    box = estimate(images)
    assert box.top >= 0
    assert box.left >= 0
    assert 1 <= box.height <= height - box.top
    assert 1 <= box.width <= width - box.left


REAL = {
    "dicom_cine/examples_ybr_color.dcm": (21, 83, 182, 167),
    "dicom_cine/I_000001.dcm": (0, 108, 358, 332),
    "dicom_cine/I_000003.dcm": (0, 108, 358, 330),
    "cls_pocus_lung/pneumonia/Pneu_northumbria_0409_set1_vid1.avi": (0, 20, 516, 496),
    "cls_pocus_lung/regular/Reg_pat2Image_134441.mpeg": (0, 0, 364, 370),
    "cls_stress_echo_dicom/I_000009.dcm": (0, 0, 288, 384),
    "seg_vtus_thyroid/Test/0004": (0, 0, 256, 256),
}


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_sectors_of_real_clips_are_where_they_were_seen_to_be(name):
    """Looked at in pictures: letters, colour bar and ECG are left out, shadows and dark depths are not."""
    [case], _ = find_cases(SHARED / name)
    found = fan_box(case, "estimate")
    assert max(abs(one - other) for one, other in zip(found, REAL[name], strict=True)) <= 18


def folder(tmp_path, size=(60, 80), box=(10, 20, 33, 41), mask="fan.png", frames=4, name="a") -> Path:
    """A folder of frames whose sector is a rectangle that changes, with its mask."""
    path = tmp_path / name
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for t in range(frames):
        image = np.zeros(size, np.uint8)
        Box(*box).cut(image)[:] = rng.integers(40, 255, box[2:])
        Image.fromarray(image).save(path / f"{t}.png")
    if mask:
        inside = np.zeros(size, np.uint8)
        Box(*box).cut(inside)[:] = 255
        Image.fromarray(inside).save(path / mask)
    return path


def only(path: Path) -> Case:
    [case], skipped = find_cases(path)
    assert not skipped
    return case


@pytest.mark.parametrize("mask", ["fan.png", "../a_fan.png"])
@pytest.mark.parametrize("how", ["mask", "auto"])
def test_a_fan_mask_beside_the_clip_says_where_the_sector_is(tmp_path, mask, how):
    """In the folder or beside it; it is no frame of the clip."""
    case = only(folder(tmp_path, mask=mask))
    assert case.frames == 4
    assert fan_box(case, how) == (10, 20, 33, 41)
    assert fan_box(case, "none") is None


def test_without_a_mask_the_sector_is_estimated(tmp_path):
    case = only(folder(tmp_path, mask=""))
    assert fan_box(case, "auto") == fan_box(case, "estimate")
    assert close(fan_box(case, "auto"), np.pad(np.ones((33, 41), bool), ((10, 17), (20, 19))), within=2)


def test_a_stream_of_the_case_goes_before_files_beside_it(tmp_path):
    other = tmp_path / "other.png"
    inside = np.zeros((60, 80), np.uint8)
    inside[0:7, 79:80] = 1
    Image.fromarray(inside).save(other)
    case = only(folder(tmp_path))
    streams = {**case.streams, "fan": Source(reader="frames", paths=(str(other),), kind="mask")}
    given_one = Case(case_id="a", group_id="a", frames=4, streams=streams)
    assert fan_box(given_one, "mask") == (0, 79, 7, 1)


def refusal(case, how="mask") -> str:
    with pytest.raises(DataError) as info:
        fan_box(case, how)
    return str(info.value)


def test_a_missing_empty_or_ill_sized_fan_mask_is_refused(tmp_path):
    path = folder(tmp_path, mask="")
    assert refusal(only(path)) == (
        f"Case 'a' has no fan mask, which clip.fan_crop=mask asks for: there is no {path / 'fan.png'} and no "
        f"{tmp_path / 'a_fan.png'}. Add it, or set clip.fan_crop=auto, which estimates the sector where there is no "
        "mask."
    )
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(path / "fan.png")
    assert refusal(only(path), "auto") == (
        f"The fan mask {path / 'fan.png'} is empty: no pixel is above 0. Draw it anew, or remove it."
    )
    wrong = folder(tmp_path, mask="", name="b")
    Image.fromarray(np.ones((80, 60), np.uint8)).save(wrong / "fan.png")
    assert refusal(only(wrong)) == (
        f"The fan mask {wrong / 'fan.png'} is 60x80 pixels while the frames are 80x60. Draw it on a frame of the clip, "
        "or set clip.fan_crop=estimate."
    )


def sample(case, size, fan_crop="mask", **more):
    clip = ClipConfig(frames=2, size=size, fan_crop=fan_crop)
    return load_sample(case, *window(0, case.frames, clip), clip, ClipSpec(**more))


def test_a_sample_is_that_of_the_cropped_video_and_its_map_leads_back(tmp_path):
    """At its own size every pixel is the source's; resized it is what a video of the crop alone would give."""
    whole, box = only(folder(tmp_path)), Box(10, 20, 33, 41)
    alone = only(folder(tmp_path / "cut", size=(33, 41), box=(0, 0, 33, 41), mask=""))
    for size in ((33, 41), (32, 48)):
        found, expected = sample(whole, size), sample(alone, size, "none")
        assert torch.equal(found["video"], expected["video"])
        assert torch.equal(found["affine"], crop_affine(box, size))
        assert found["source_size"].tolist() == [60, 80]
    raw = np.asarray(Image.open(tmp_path / "a/0.png"))
    plain = sample(whole, (33, 41), mean=(0.0,) * 3, std=(1.0,) * 3)["video"][0, 0]
    assert torch.equal((plain * 255).round().byte(), torch.from_numpy(box.cut(raw).copy()))


def annotated(tmp_path) -> Case:
    """The folder with a mask of which half lies in the sector, and half outside."""
    mask = np.zeros((60, 80), np.uint8)
    mask[20:30, 0:50] = 1
    path = tmp_path / "mask.png"
    case = only(folder(tmp_path))
    Image.fromarray(mask).save(path)
    streams = {**case.streams, "mask": Source(reader="frames", paths=(str(path),) * 4, values=(0, 1))}
    return Case(case_id="a", group_id="a", frames=4, streams=streams)


def test_masks_and_streams_are_cropped_with_the_video(tmp_path):
    case, box = annotated(tmp_path), Box(10, 20, 33, 41)
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert torch.equal(sample(case, (33, 41))["mask"][0].byte(), torch.from_numpy(box.cut(mask).copy()))
    cover = Source(reader="frames", paths=case.streams["mask"].paths, kind="mask")
    case = Case(case_id="a", group_id="a", frames=4, streams={**case.streams, "cover": cover})
    found = sample(case, (33, 41), streams=("video", "cover"))["cover"][0, 0]
    assert torch.equal((found * 255).round().byte(), torch.from_numpy(box.cut(mask).copy()))


def test_a_stream_of_another_size_is_not_cropped_at_a_guess(tmp_path):
    case = annotated(tmp_path)
    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(small)
    cover = Source(reader="frames", paths=(str(small),) * 4, kind="mask")
    case = Case(case_id="a", group_id="a", frames=4, streams={**case.streams, "cover": cover})
    with pytest.raises(DataError) as info:
        sample(case, (33, 41), streams=("video", "cover"))
    assert str(info.value) == (
        "The stream 'cover' is 40x30 pixels while the video is 80x60, so that it cannot be cropped with it. Set "
        "clip.fan_crop=none."
    )


@pytest.mark.parametrize("at", ["source", "model"])
def test_scores_are_those_of_whole_frames_or_of_what_the_model_saw(tmp_path, at):
    """A prediction that is right inside the sector misses what was annotated outside; at=model does not know it."""
    case, box = annotated(tmp_path), Box(10, 20, 33, 41)
    mask = torch.from_numpy(np.asarray(Image.open(tmp_path / "mask.png")).copy())
    block = FrameBlock([0], box.cut(mask)[None, None].float(), crop_affine(box, (33, 41)), (60, 80))
    values, masks, labelled = block_masks(case, block, at)
    assert labelled.all()
    assert seen(block) == box
    if at == "model":
        assert torch.equal(values[0, 0].long(), masks[0])
        assert int(masks.sum()) == 10 * 30
    else:
        assert torch.equal(masks[0], mask.long())
        assert int(values.sum()) == 10 * 30
        assert int((values[0, 0].long() * masks[0]).sum()) == 10 * 30


def test_a_mask_that_points_is_cropped_too():
    mask = np.zeros((60, 80), np.uint8)
    mask[20:30, 20:50] = 1
    [prompt] = from_mask(mask, 0, "mask")
    box = Box(10, 20, 33, 41)
    found = prompt.to_model(0, crop_affine(box, (33, 41)), (33, 41))["mask"]
    assert torch.equal(found, torch.from_numpy(box.cut(mask).astype(np.float32)))


def test_prepared_videos_are_not_cropped():
    names = registry().names("preprocessor")
    if "gait" not in names:
        pytest.skip("no plugin that prepares videos is installed")
    with pytest.raises(ConfigError) as info:
        compose(registry(), "unet", None, ["preprocess=gait", "clip.fan_crop=estimate"])
    assert str(info.value) == (
        "clip.fan_crop=estimate crops videos as they were recorded, and preprocess=gait makes others of them. Leave "
        "one of the two out."
    )


def test_training_evaluation_and_prediction_crop_alike(vtus, medvid, refused, tmp_path, capsys):
    """The model file knows; masks come out at the size of the frames, and what was cut out is written beside them."""
    root = vtus()
    inside = np.zeros((36, 40), np.uint8)
    inside[4:33, 6:31] = 255
    for part, name in (("Train", "a"), ("Train", "b"), ("Train", "c"), ("Test", "d")):
        Image.fromarray(inside).save(root / part / name / "fan.png")
    run = tmp_path / "run"
    words = ("preset=tiny", "train.max_steps=2", "evaluate.overlays=1", "clip.fan_crop=mask")
    medvid("--model", "unet", "--data", root, *words, "--out", run)
    scored = (run / "cases.csv").read_text()
    medvid("evaluate", run, "--out", tmp_path / "again")
    assert (tmp_path / "again/cases.csv").read_text().split("\n")[0] == scored.split("\n")[0]
    assert (tmp_path / "again/cases.csv").read_text() == scored
    medvid("predict", run, root / "Test/d", "--out", tmp_path / "out")
    told = json.loads((tmp_path / "out/d/crop.json").read_text())
    assert told == {
        "fan_crop": "mask",
        "top": 4,
        "left": 6,
        "height": 29,
        "width": 25,
        "source_height": 36,
        "source_width": 40,
    }
    drawn = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "out/d/masks").iterdir())])
    assert drawn.shape == (5, 36, 40)
    assert not drawn[:, inside == 0].any()
    (root / "Test/d/fan.png").unlink()
    assert "Case 'd' has no fan mask" in refused("predict", run, root / "Test/d", "--out", tmp_path / "none")
