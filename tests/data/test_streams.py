"""Streams beside the video: every change of the picture acts on them as it should."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as VF

from medvid_core.config import AugmentConfig, ClipConfig
from medvid_core.data import transforms
from medvid_core.data.clip import Case, Source
from medvid_core.data.loader import Augmentation, load_sample
from medvid_core.data.sampling import window
from medvid_core.data.transforms import Coverage, Vectors
from medvid_core.errors import DataError
from medvid_core.specs import ClipSpec

SIZE = (48, 64)
SPEC = ClipSpec(streams=("video", "person_mask", "flow"), mean=(0, 0, 0), std=(1, 1, 1))


def field(matrix, shift, size=SIZE) -> torch.Tensor:
    """The flow [1,2,H,W] of a picture whose points p move to matrix p + shift, origin at the picture's middle."""
    y, x = torch.meshgrid(torch.arange(size[0]).double(), torch.arange(size[1]).double(), indexing="ij")
    points = torch.stack([x - (size[1] - 1) / 2, y - (size[0] - 1) / 2])
    moved = torch.einsum("ij,jhw->ihw", torch.as_tensor(matrix, dtype=torch.float64), points)
    return (moved + torch.tensor(shift, dtype=torch.float64)[:, None, None] - points)[None].float()


def turned(degrees: float, scale: float = 1.0) -> np.ndarray:
    """Clockwise, y pointing down."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return scale * np.array([[cos, -sin], [sin, cos]])


MOTIONS = st.tuples(st.floats(-8, 8), st.floats(-0.05, 0.05), st.tuples(st.floats(-4, 4), st.floats(-4, 4)))


def motion(drawn) -> tuple[np.ndarray, np.ndarray]:
    degrees, growth, shift = drawn
    return turned(degrees, 1 + growth), np.array(shift)


@settings(max_examples=25, deadline=None)
@given(MOTIONS)
def test_mirrored_flow_is_the_flow_of_mirrored_frames(drawn):
    """Horizontally dx changes its sign, vertically dy."""
    matrix, shift = motion(drawn)
    flow = field(matrix, shift).as_subclass(Vectors)
    for flip, mirror in ((VF.horizontal_flip, np.diag([-1, 1])), (VF.vertical_flip, np.diag([1, -1]))):
        expected = field(mirror @ matrix @ mirror, mirror @ shift)
        torch.testing.assert_close(flip(flow).as_subclass(torch.Tensor), expected, atol=1e-4, rtol=0)


@settings(max_examples=25, deadline=None)
@given(MOTIONS, st.floats(-40, 40), st.floats(0.7, 1.4), st.tuples(st.integers(-5, 5), st.integers(-5, 5)))
def test_turned_flow_is_the_flow_of_turned_frames(drawn, degrees, scale, by):
    matrix, shift = motion(drawn)
    flow = field(matrix, shift).as_subclass(Vectors)
    change, moved = turned(degrees, scale), np.array(by, float)
    found = VF.affine(
        flow, angle=degrees, translate=list(by), scale=scale, shear=[0.0, 0.0],
        interpolation=VF.InterpolationMode.BILINEAR, fill=0,
    )  # fmt: skip
    within = change @ matrix @ np.linalg.inv(change)  # p' -> change (matrix (change^-1 (p' - moved)) + shift) + moved
    expected = field(within, change @ shift + moved - within @ moved)
    covered = VF.affine(
        torch.ones(1, 1, *SIZE).as_subclass(Coverage), angle=degrees, translate=list(by), scale=scale,
        shear=[0.0, 0.0], interpolation=VF.InterpolationMode.BILINEAR, fill=0,
    )  # fmt: skip
    inside = (covered.as_subclass(torch.Tensor) > 0.999).expand(-1, 2, -1, -1)
    assert inside.any()
    torch.testing.assert_close(
        found.as_subclass(torch.Tensor)[inside], expected[inside], atol=1e-2, rtol=0
    )  # pixels; a filter of few taps has its own rounding


@settings(max_examples=25, deadline=None)
@given(MOTIONS, st.sampled_from([(24, 32), (96, 128), (24, 128), (31, 45)]))
def test_resized_flow_is_the_flow_of_resized_frames(drawn, size):
    matrix, shift = motion(drawn)
    found = transforms.resize_stream(field(matrix, shift).as_subclass(Vectors), size).as_subclass(torch.Tensor)
    scale = np.diag([size[1] / SIZE[1], size[0] / SIZE[0]])
    expected = field(scale @ matrix @ np.linalg.inv(scale), scale @ shift, size)
    border = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(
        found[border], expected[border], atol=1e-2, rtol=0
    )  # pixels; a filter of few taps has its own rounding


def read(source: Source, frames) -> np.ndarray:
    """A bar that moves right by two pixels a frame, its mask, and its flow."""
    out = []
    for frame in frames:
        bar = np.zeros(SIZE, bool)
        bar[10:38, 10 + 2 * frame : 20 + 2 * frame] = True
        if source.options == "flow":
            out.append(np.stack([2.0 * bar, np.zeros(SIZE)]).astype(np.float32))
        else:
            out.append((200 if source.options == "video" else 255) * bar.astype(np.uint8))
    return np.stack(out)


def made(frames=8, **more) -> Case:
    kinds = {"video": "image", "person_mask": "mask", "flow": "vector"}
    streams = {name: Source(reader=f"{__name__}:read", options=name, kind=kind) for name, kind in kinds.items()}
    return Case(case_id="bar", group_id="bar", frames=frames, fps=10.0, streams=streams, **more)


def sample(case=None, start=0, clip=None, augment=None, spec=SPEC):
    case, clip = case or made(), clip or ClipConfig(frames=4, size=SIZE)
    drawn = None if augment is None else (Augmentation(transforms.augmentation(augment), augment.pad), 3)
    return load_sample(case, *window(start, case.frames, clip), clip, spec, augment=drawn)


def test_streams_come_beside_the_video():
    found = sample()
    assert found["person_mask"].shape == (4, 1, *SIZE)
    assert found["flow"].shape == (4, 2, *SIZE)
    assert found["flow"].dtype == found["person_mask"].dtype == torch.float32
    bar = found["video"][:, :1] > 0.5
    assert torch.equal(found["person_mask"], bar.float())
    assert torch.equal(found["flow"][:-1, 0], 2.0 * bar[:-1, 0])
    assert not found["flow"][-1].any(), "the last frame has no next one"


def test_streams_nobody_asks_for_are_not_read():
    assert "flow" not in sample(spec=ClipSpec(streams=("video",)))


def test_flow_ends_where_frames_are_repeated():
    found = sample(start=6)
    assert found["frame_real"].tolist() == [True, True, False, False]
    assert found["flow"].flatten(1).any(1).tolist() == [True, False, False, False]
    found = sample(start=-2)
    assert found["flow"].flatten(1).any(1).tolist() == [False, False, True, False]


def test_padding_with_zeros_is_for_all_streams():
    found = sample(start=6, clip=ClipConfig(frames=4, size=SIZE, padding="zero"))
    assert not found["person_mask"][2:].any()


def test_all_streams_change_alike():
    strong = AugmentConfig(horizontal_flip=1.0, rotation_deg=20, scale=0.2, translate=0.1, brightness=0.5, noise=0.1)
    found, pad = sample(augment=strong), sample(augment=AugmentConfig(pad=6))
    for changed in (found, pad):
        bar = changed["video"].mean(1) > 0.25
        covered = changed["person_mask"][:, 0] > 0.5
        assert (bar & covered).sum() > 0.85 * (bar | covered).sum()
    assert (pad["flow"][:-1, 0] > 0).sum() == (pad["person_mask"][:-1] > 0).sum()
    assert set(pad["person_mask"].unique().tolist()) == {0.0, 1.0}, "no photometric change of a mask"
    inside = (found["person_mask"][:-1] > 0.999).expand(-1, 2, -1, -1)
    vectors = found["flow"][:-1][inside].view(-1)
    assert vectors.abs().max() > 1, "it still moves"
    still, mirrored = sample(), sample(augment=AugmentConfig(horizontal_flip=1.0))
    assert torch.equal(mirrored["flow"][:, 0], -still["flow"][:, 0].flip(-1))


def test_a_flow_to_the_next_frame_needs_every_frame():
    with pytest.raises(DataError, match=r"clip\.stride=2 leaves frames out. Set clip\.stride=1"):
        sample(clip=ClipConfig(frames=3, size=SIZE, stride=2))


def test_frame_numbers_are_those_of_the_recording():
    case = made(source_frames=tuple(range(100, 116, 2)), times_s=tuple(0.2 * k for k in range(8)))
    assert sample(case, start=2)["frame_index"].tolist() == [104, 106, 108, 110]
    assert sample(case, start=2)["time_s"].tolist() == pytest.approx([0.4, 0.6, 0.8, 1.0])


def test_a_part_of_a_case_keeps_what_is_known():
    case = made(labelled=(2, 4, 5), frame_targets={"phase": tuple(map(float, range(8)))}, spacing=(1.0, 1.0))
    part = case.taken([2, 4, 6], [0.2, 0.4, 0.6], {})
    assert (part.frames, part.labelled, part.fps, part.source_frames) == (3, (0, 1), 5.0, (2, 4, 6))
    assert part.frame_targets["phase"] == (2, 4, 6)
    assert (part.times_s, part.spacing) == ((0.2, 0.4, 0.6), None)
    assert part.taken([0, 2], [0.2, 0.6], {}).source_frames == (2, 6)
