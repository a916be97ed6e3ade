"""Vivim's settings and the translation of the original's."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from medvid_core.config import compose
from medvid_core.errors import ConfigError
from medvid_core.plugins import registry
from medvid_vivim.config import VARIANTS, VivimConfig, from_upstream


def test_defaults_are_the_original_s():
    config = VivimConfig()
    assert (config.stage_depths, config.stage_widths) == ((3, 4, 18, 3), (64, 128, 320, 512))
    assert (config.fused_width, config.encoder_drop_path, config.decoder_dropout) == (768, 0.1, 0.1)
    assert config.mamba_depths == (2, 2, 2, 2)
    assert (config.mamba_drop_path, config.map_dropout, config.channel_dropout) == (0, 0, 0)
    assert not config.edge


@pytest.mark.parametrize("preset", ["released", "paper", "ovarian"])
def test_presets_of_the_publications(preset):
    composed = compose(registry(), "vivim", overrides=[f"preset={preset}"])
    config = composed.config
    assert (config.model.config, config.clip.frames, config.clip.size) == (
        {
            "released": VivimConfig(),
            "paper": VivimConfig(edge=True, edge_head="paper"),
            "ovarian": VivimConfig(
                mamba_drop_path=0.2,
                mamba_drop_path_by="stage",
                map_dropout=0.15,
                decoder_dropout=0.19,
                channel_dropout=0.3,
            ),
        }[preset],
        5,
        (256, 256),
    )
    assert (config.optimizer.lr, config.schedule.final_lr, config.schedule.unit) == (1e-4, 1e-6, "epoch")


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant):
    config = VivimConfig(variant=variant)
    assert config.fused_width == (256 if variant in ("mit_b0", "mit_b1") else 768)
    assert VivimConfig(variant=variant, depths=(1, 1, 1, 1), decoder_width=64).stage_depths == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"variant": "mit_b33"}, "Did you mean 'mit_b3'?"),
        ({"depths": (1, 2)}, "model.depths=(1, 2) must hold 4 numbers of at least 0, one a stage, or be empty"),
        ({"widths": (0, 1, 1, 1)}, "model.widths=(0, 1, 1, 1) must hold 4 numbers of at least 1"),
        ({"heads": ()}, "model.heads=() must hold 4 numbers of at least 1, one a stage."),
        ({"heads": (3, 2, 5, 8)}, "model.heads=(3, 2, 5, 8) must divide model.widths=(64, 128, 320, 512)"),
        ({"frames": 0}, "model.frames=0 must be at least 1."),
        ({"edge_head": "none"}, "model.edge_head='none' must be released or paper."),
        ({"mamba_drop_path_by": "block"}, "model.mamba_drop_path_by='block' must be layer or stage."),
        ({"map_dropout": -0.1}, "model.map_dropout=-0.1 must be a probability from 0 to below 1."),
        ({"decoder_dropout": 1.0}, "model.decoder_dropout=1.0 must be a probability from 0 to below 1."),
    ],
)
def test_refusals(settings, text):
    with pytest.raises(ConfigError) as error:
        VivimConfig(**settings)
    assert text in str(error.value)


def test_upstream_arguments():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = from_upstream({"in_chans": 3, "out_chans": 1, "feat_size": [64, 128, 320, 512], "with_edge": True})
    assert config == VivimConfig(edge=True, frames=5)
    assert from_upstream({"feat_size": [64, 32, 40, 64]}).widths == (64, 32, 40, 64)


def test_inert_upstream_arguments_are_named():
    """Without effect in the original Vivim, so ignored: depths, drop_path_rate."""
    with pytest.warns(UserWarning, match="Without effect") as record:
        config = from_upstream({"depths": [1, 1, 1, 1], "drop_path_rate": 0.2})
    assert str(record[0].message) == test_inert_upstream_arguments_are_named.__doc__
    assert config == VivimConfig(frames=5)


def test_unknown_upstream_argument():
    with pytest.raises(ConfigError, match=r"no argument 'withedge'. Did you mean 'with_edge'\?"):
        from_upstream({"withedge": True})


def test_plugin_and_config_import_no_torch():
    code = "import medvid_vivim.plugin, medvid_vivim.config, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
