"""Vivim's network: shapes, options that take effect, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec
from medvid_vivim.config import VivimConfig
from medvid_vivim.network import build
from medvid_vivim.network.segformer import DropPath, SegformerLayer, drop_path_rates
from medvid_vivim.plugin import medvid_models

SMALLEST = {
    "depths": (1, 1, 1, 1),
    "widths": (4, 4, 8, 8),
    "heads": (1, 1, 2, 2),
    "decoder_width": 8,
    "mamba_depths": (1, 1, 1, 1),
    "state_size": 2,
}


def output(classes=1, name="mask", task="segmentation"):
    return (OutputSpec(name=name, task=task, classes=tuple(f"class {k}" for k in range(classes))),)


def vivim(classes=1, **config):
    torch.manual_seed(0)
    return build(VivimConfig(**{**SMALLEST, **config}), output(classes))


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 2), st.integers(1, 7), st.integers(32, 80), st.integers(32, 80), st.integers(1, 4))
def test_any_clip_length_and_size(clips, frames, height, width, classes):
    model = vivim(classes).eval()
    logits = model({"video": torch.randn(clips, frames, 3, height, width)})["mask"]
    assert logits.shape == (clips, frames, classes, height, width)


@pytest.mark.parametrize("size", [60, 72])
def test_sizes_that_are_no_multiples_of_32(size):
    assert vivim()({"video": torch.randn(1, 2, 3, size, size)})["mask"].shape[-2:] == (size, size)


def test_edge_output_and_grey_video():
    outputs = vivim(3, edge=True, in_channels=1)({"video": torch.randn(2, 3, 1, 32, 48)})
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "mask": (2, 3, 3, 32, 48),
        "edge": (2, 3, 1, 32, 48),
    }


@pytest.mark.parametrize("variant", ["mit_b0", "mit_b3", "mit_b5"])
def test_meta_device_and_sizes_of_the_variants(variant):
    with torch.device("meta"):
        model = build(VivimConfig(variant=variant), output())
        assert model({"video": torch.empty(1, 5, 3, 64, 64)})["mask"].shape == (1, 5, 1, 64, 64)
    parameters = sum(x.numel() for x in model.parameters())
    if variant == "mit_b3":  # the original's number, less what it never uses
        assert parameters == 59_620_439 - 117_398


def test_every_parameter_gets_a_gradient():
    model = vivim(2, edge=True)
    sum(y.square().sum() for y in model({"video": torch.randn(2, 3, 3, 32, 32)}).values()).backward()
    # keys: shifting them all shifts all scores of a query alike, and the last grid's single token has no choice
    idle = ("key.bias", "key.weight", "query.weight", "query.bias")
    for name, x in model.named_parameters():
        assert x.grad is not None, name
        assert name.endswith(idle) or x.grad.abs().sum() > 0, name


def test_clips_of_a_batch_do_not_mix():
    model = vivim().eval()
    video = torch.randn(3, 2, 3, 32, 32)
    together = model({"video": video})["mask"]
    alone = torch.cat([model({"video": clip[None]})["mask"] for clip in video])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_depths_take_effect():
    model = vivim(depths=(1, 2, 1, 3), mamba_depths=(2, 0, 1, 1))
    assert [len(blocks) for blocks in model.encoder.downsample_layers.block] == [1, 2, 1, 3]
    assert [len(layers) for layers in model.encoder.stages] == [2, 0, 1, 1]
    assert model({"video": torch.randn(1, 2, 3, 32, 32)})["mask"].shape == (1, 2, 1, 32, 32)


def test_drop_path_rises_over_all_stages():
    model = vivim(depths=(1, 2, 1, 1), encoder_drop_path=0.4, mamba_drop_path=0.3)
    segformer = [m.drop_path.probability for m in model.modules() if isinstance(m, SegformerLayer)]
    assert segformer == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    mamba = [layer[0].drop_path.probability for stage in model.encoder.stages for layer in stage]
    assert mamba == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.1, 1) == [0.0]


def test_drop_path_by_stage_is_the_ovarian_extension_s():
    """0.2 over eight layers: both layers of stage i have the rate of layer i."""
    model = vivim(mamba_depths=(2, 2, 2, 2), mamba_drop_path=0.2, mamba_drop_path_by="stage")
    mamba = [[layer[0].drop_path.probability for layer in stage] for stage in model.encoder.stages]
    assert [rate for rate, _ in mamba] == [rate for _, rate in mamba]
    assert [rate for rate, _ in mamba] == pytest.approx([0, 0.2 / 7, 0.4 / 7, 0.6 / 7])


DROPOUTS = ("encoder_drop_path", "mamba_drop_path", "map_dropout", "decoder_dropout", "channel_dropout")


@pytest.mark.parametrize("name", DROPOUTS)
def test_each_dropout_makes_training_random_and_evaluation_not(name):
    off = dict.fromkeys(DROPOUTS, 0.0)
    batch = {"video": torch.randn(1, 4, 3, 32, 32)}
    for config, random in (({**off, name: 0.5}, True), (off, False)):
        model = vivim(**config)
        model.decoder.batch_norm.momentum = 0.0
        seen = [model(batch)["mask"] for _ in range(6)]
        assert any(not torch.equal(seen[0], other) for other in seen[1:]) is random
        model.eval()
        assert torch.equal(model(batch)["mask"], model(batch)["mask"])


def test_maps_are_dropped_by_a_coin_each():
    """Scaled by 1 / (1 - p) where the coin fell so; with none dropped, the maps are fused to what they always are."""
    decoder = vivim(map_dropout=0.5).train().decoder
    stages = [torch.rand(2, width, 8 // 2**n, 8 // 2**n) + 1 for n, width in enumerate((4, 4, 8, 8))]
    seen: list[torch.Tensor] = []
    decoder.linear_fuse.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    for _ in range(32):
        decoder(stages)
    whole = [not (maps == 0).any() for x in seen for maps in x.chunk(4, 1)]
    assert 40 < sum(whole) < 88  # half of 128
    assert any(len(set(whole[4 * n : 4 * n + 4])) == 2 for n in range(32))
    decoder.map_dropout = 0.0
    torch.testing.assert_close(decoder._with_dropped_maps(stages), decoder._fused_first(stages))
    dropped = [maps for x in seen for maps in x.chunk(4, 1) if (maps == 0).any()]
    assert sum(float((maps == 0).float().mean()) for maps in dropped) / len(dropped) == pytest.approx(0.5, abs=0.05)


def test_whole_channels_are_dropped():
    model = vivim(channel_dropout=0.5, decoder_dropout=0.0).train()
    features = model.decoder([torch.rand(4, width, 8, 8) for width in (4, 4, 8, 8)])
    dropped = (features == 0).flatten(2).all(2)
    assert dropped.any()
    assert not dropped.all()


def test_drop_path_keeps_the_mean():
    torch.manual_seed(0)
    dropped = DropPath(0.25)(torch.ones(4000, 2))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)


def test_start_is_the_original_s():
    mixer = vivim().encoder.stages[0][0][0].mamba
    for suffix in ("", "_b", "_s"):
        assert torch.equal(mixer.get_parameter(f"dt_proj{suffix}.bias"), torch.zeros(8))
        assert torch.equal(mixer.get_parameter(f"A{suffix}_log"), torch.tensor([[1.0, 2.0]]).log().repeat(8, 1))
        assert torch.equal(mixer.get_parameter(f"D{suffix}"), torch.ones(8))
    wide = vivim(widths=(64, 4, 8, 8)).encoder.stages[0][0][0].mamba.in_proj.weight
    assert wide.std().item() == pytest.approx(0.02, rel=0.05)


def test_fixed_chunks_refuse_other_lengths():
    """The spatial-first scan cuts 192 tokens in 5 equal chunks, which cannot be done."""
    with pytest.raises(ConfigError, match=test_fixed_chunks_refuse_other_lengths.__doc__):
        vivim(frames=5)({"video": torch.randn(1, 3, 3, 32, 32)})


def test_frames_too_small():
    """Frames are too small: a grid of 4x4 cannot be reduced by 8 (model.reductions)."""
    with pytest.raises(ConfigError) as error:
        vivim()({"video": torch.randn(1, 1, 3, 16, 16)})
    assert str(error.value).startswith(test_frames_too_small.__doc__)
    assert "at least 32x32" in str(error.value)


def test_wrong_channels():
    """The video has 1 channels, the model is made for 3 (model.in_channels)."""
    with pytest.raises(ConfigError) as error:
        vivim()({"video": torch.randn(1, 1, 1, 32, 32)})
    assert str(error.value) == test_wrong_channels.__doc__


@pytest.mark.parametrize(
    ("outputs", "asked"),
    [
        ((), "none"),
        (output(task="classification"), "mask (classification)"),
        (output() + output(name="other"), "mask (segmentation), other (segmentation)"),
    ],
)
def test_one_segmentation_only(outputs, asked):
    with pytest.raises(ConfigError) as error:
        build(VivimConfig(**SMALLEST), outputs)
    assert str(error.value) == f"Vivim predicts exactly one segmentation; asked for: {asked}."


def test_output_may_not_take_the_edge_s_name():
    with pytest.raises(ConfigError, match="is Vivim's own"):
        build(VivimConfig(**SMALLEST, edge=True), output(name="edge"))


@pytest.mark.parametrize("preset", ["tiny", "small", "full"])
def test_presets_build(preset):
    settings_ = medvid_models()[0].presets[preset]
    config = VivimConfig(**{k.removeprefix("model."): v for k, v in settings_.items() if k.startswith("model.")})
    with torch.device("meta"):
        model = build(config, output(3))
        video = torch.empty(1, settings_["clip.frames"], 3, *settings_["clip.size"])
        assert model({"video": video})["mask"].shape[2] == 3
    parameters = sum(x.numel() for x in model.parameters())
    assert parameters < {"tiny": 20_000, "small": 1_000_000, "full": 60_000_000}[preset]


def test_learns_two_clips():
    model = vivim(2)
    video = torch.randn(2, 2, 3, 32, 32)
    mask = torch.zeros(2, 2, 32, 32, dtype=torch.long)
    mask[:, :, 8:24, 8:24] = 1
    video += mask[:, :, None]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model({"video": video})["mask"].flatten(0, 1), mask.flatten(0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
