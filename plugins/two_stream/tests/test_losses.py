"""The loss takes what a network says is trained."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec
from medvid_two_stream.config import TwoStreamLossConfig
from medvid_two_stream.losses import build_two_stream_loss

OUTPUTS = (OutputSpec(name="gait", task="classification", classes=("a", "b", "c")),)


def batch(known=(True, True, True), real=None):
    return {
        "frame_real": torch.ones(3, 4, dtype=torch.bool) if real is None else real,
        "targets": {"gait": torch.tensor([0, 2, 1])},
        "targets_present": {"gait": torch.tensor(known)},
    }


def value(outputs, of, **config):
    loss = build_two_stream_loss(TwoStreamLossConfig(**config), OUTPUTS)
    return loss(outputs, of)["gait"] / loss.counts(of)["gait"]


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_streams_are_added_and_the_decision_is_not_trained():
    outputs = {"gait": logits(3, 3), "gait/rgb": logits(3, 3, seed=1), "gait/flow": logits(3, 3, seed=2)}
    target = batch()["targets"]["gait"]
    parts = [F.cross_entropy(outputs[f"gait/{name}"], target) for name in ("rgb", "flow")]
    torch.testing.assert_close(value(outputs, batch()), sum(parts))
    torch.testing.assert_close(value(outputs, batch(), average=True), sum(parts) / 2)


def test_without_streams_the_decision_is_trained():
    outputs = {"gait": logits(3, 3), "other": logits(3, 3, seed=1), "gaits/rgb": logits(3, 3, seed=1)}
    torch.testing.assert_close(value(outputs, batch()), F.cross_entropy(outputs["gait"], batch()["targets"]["gait"]))


@pytest.mark.parametrize("steps", [4, 3])
def test_frames_have_the_label_of_their_clip(steps):
    """And a clip counts as much as another, whatever its real frames; of pairs, those with two real frames."""
    real = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    outputs = {"gait": logits(3, 3), "gait/fused": logits(3, steps, 3)}
    target = batch()["targets"]["gait"]
    frames = [steps, 2 if steps == 4 else 1, steps]
    clips = [F.cross_entropy(outputs["gait/fused"][b, :n], target[b].expand(n)) for b, n in enumerate(frames)]
    torch.testing.assert_close(value(outputs, batch(real=real)), torch.stack(clips).mean())
    with_nan = outputs["gait/fused"].clone()
    with_nan[1, -1] = torch.nan
    assert value({**outputs, "gait/fused": with_nan}, batch(real=real)).isfinite()


def test_clips_without_a_label_do_not_count():
    outputs = {"gait": logits(3, 3), "gait/rgb": logits(3, 3, seed=1)}
    some = value(outputs, batch(known=(True, False, True)))
    each = F.cross_entropy(outputs["gait/rgb"], batch()["targets"]["gait"], reduction="none")
    torch.testing.assert_close(some, (each[0] + each[2]) / 2)
    nothing = {**batch(), "targets": {}, "targets_present": {}}
    loss = build_two_stream_loss(TwoStreamLossConfig(), OUTPUTS)
    assert loss(outputs, nothing)["gait"] == loss.counts(nothing)["gait"] == 0


def test_weights_of_classes():
    outputs = {"gait": logits(3, 3)}
    each = F.cross_entropy(outputs["gait"], batch()["targets"]["gait"], reduction="none")
    weighted = value(outputs, batch(), class_weights=(1.0, 3.0, 0.0))
    torch.testing.assert_close(weighted, (each[0] + 0 * each[1] + 3 * each[2]) / 3)
    with pytest.raises(ConfigError, match=r"loss.class_weights has 2 values for the 3 classes of 'gait'"):
        build_two_stream_loss(TwoStreamLossConfig(class_weights=(1.0, 2.0)), OUTPUTS)
