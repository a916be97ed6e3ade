"""The same numbers as the original and its family, for the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medvid_core.errors import ConfigError
from medvid_core.testing.parity import load_module, rows_of
from medvid_two_stream.config import TwoStreamConfig
from medvid_two_stream.network import build_two_stream

golden = load_module(Path(__file__).with_name("golden.py"))

pytestmark = pytest.mark.skipif(
    not golden.FOLDER.is_dir(),
    reason="the fixtures of the original (shared/golden/two_stream beside the repository) are absent",
)


SLOW = ("slow_r50_streams", "baselines, multicue_concat")  # of full width, on pictures of 224 pixels


@pytest.mark.parametrize(
    "fixture", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in golden.FIXTURES]
)
def test_fixture(fixture):
    assert [row for row in rows_of(golden.FIXTURES, fixture) if not row.holds] == []


def test_every_file_of_the_networks_is_compared():
    """The rest is of preprocessing and of the protocol of evaluation."""
    elsewhere = {"raft_wrapper", "person_crop", "cv_and_metrics"}
    named = {name.split(",")[0] for name in golden.FIXTURES}
    files = {path.stem for path in golden.FOLDER.iterdir() if path.suffix in (".json", ".safetensors")}
    assert files - elsewhere == named


def test_every_combination_of_the_original_is_compared():
    rows = {row.what.split(":")[0] for row in golden.fusion_rows()}
    fusions = ("different_loss", "sum_loss")
    assert rows == {f"{model}, {fusion}" for model in ("multi", "single", "multi_single") for fusion in fusions}


def narrow(frames, size):
    """A narrow network of the original's arithmetic, and a clip."""
    torch.manual_seed(0)
    config = TwoStreamConfig(width=2, blocks=(1, 1, 1, 1), inputs=("rgb",), compat=True)
    batch = {"video": torch.rand(1, frames, 3, size, size), "frame_real": torch.ones(1, frames, dtype=torch.bool)}
    return build_two_stream(config, golden.ASD).eval(), batch


@pytest.mark.parametrize(("frames", "size"), [(4, 224), (7, 224), (8, 192)])
def test_too_small_for_the_original(frames, size):
    """Where the original fails, we do, and say what to do."""
    assert f"T={frames}" in golden.read_json("slow_r50_streams")["errors"] or size == 192
    net, batch = narrow(frames, size)
    with pytest.raises(ConfigError, match=r"pools features over 8 frames and 7x7 places.*at least 193 pixels"):
        net(batch)


@pytest.mark.parametrize("size", [193, 200, 256])
def test_large_enough_for_the_original(size):
    assert golden.read_json("slow_r50_streams")["sizes"][str(size)] == "ok"
    net, batch = narrow(8, size)
    assert net(batch)["asd"].isfinite().all()


@pytest.mark.parametrize("frames", [16, 17])
def test_the_originals_head_weighs_frames_as_a_trapezoid(frames):
    """Of a feature that is there in one frame alone, the logit is that frame's share: 1, 2, …, 8, 8, …, 2, 1."""
    head = golden.Head(1, 2, window=(8, 7, 7), one_logit=True)
    torch.nn.init.ones_(head.proj.weight)
    torch.nn.init.zeros_(head.proj.bias)
    maps = torch.eye(frames)[:, None, :, None, None].expand(-1, -1, -1, 7, 7)
    shares = head(maps)[:, 1]
    rising = torch.arange(1.0, frames + 1).clamp(max=8)
    weights = torch.minimum(rising, rising.flip(0))
    torch.testing.assert_close(shares, weights / weights.sum())
    assert weights.sum() == {16: 72, 17: 80}[frames]
    even = golden.Head(1, 2)
    torch.nn.init.ones_(even.proj.weight)
    torch.testing.assert_close(even(maps)[:, 1], torch.full((frames,), 1 / frames))


def test_with_eight_frames_both_heads_agree():
    """The mean over all places is the original's head where it has one window."""
    torch.manual_seed(0)
    windows, mean = golden.Head(6, 2, window=(8, 7, 7)), golden.Head(6, 2)
    mean.load_state_dict(windows.state_dict())
    maps = torch.rand(2, 6, 8, 7, 7)
    torch.testing.assert_close(windows(maps), mean(maps))
    longer = torch.rand(2, 6, 12, 7, 7)
    assert (windows(longer) - mean(longer)).abs().max() > 1e-4


def test_explaining_the_wrong_class_shows_nothing():
    """The clip is one of ASD: for the other class Grad-CAM is 0 everywhere, which is no explanation of the answer."""
    maps, gradient = golden.explained()
    cams = [(sign * gradient.mean((2, 3, 4), keepdim=True) * maps).sum(1).relu().max() for sign in (1, -1)]
    assert cams[0] == 0
    assert cams[1] > 0.01


def test_monai_gives_the_fixture_s_map():
    """`out` is the module to explain; MONAI turns maps round unless told not to."""
    visualize = pytest.importorskip("monai.visualize")
    net, tensors = golden.narrow()
    cam = visualize.GradCAM(nn_module=net, target_layers="out", postprocessing=lambda x: x, upsampler=lambda x, _: x)
    found = cam.compute_map(tensors["x"], class_idx=1)
    torch.testing.assert_close(torch.as_tensor(found), golden.read("attribution")["gradcam_pos"])
    with torch.no_grad():
        net.classifier.proj.weight.neg_()
    found = cam.compute_map(tensors["x"], class_idx=1)
    torch.testing.assert_close(torch.as_tensor(found), golden.read("attribution")["gradcam_neg"], rtol=1e-4, atol=1e-6)
