"""Settings: refusals, what a configuration reads, and the translation of the original's."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medvid_core.errors import ConfigError
from medvid_two_stream.config import (
    CNNLSTMConfig,
    CrossAttentionConfig,
    TwoStreamConfig,
    channels_of,
    cross_attention_needs,
    from_upstream,
    single_needs,
    two_stream_needs,
)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"trunk": "slow_r5"}, "model.trunk='slow_r5' cannot be used. Did you mean 'slow_r50'?"),
        ({"inputs": ()}, "model.inputs=() cannot be used: name one or more different inputs."),
        ({"inputs": ("rgb", "rgb")}, "name one or more different inputs."),
        ({"inputs": ("rbg",)}, "model.inputs: 'rbg' is nothing to look at. Did you mean 'rgb'?"),
        ({"inputs": ("rgb+masked-rgb",)}, "'rgb+masked-rgb' holds the same thing twice."),
        ({"inputs": ("flow+flow",)}, "'flow+flow' holds the same thing twice."),
        ({"fusion": "sums"}, "model.fusion='sums' cannot be used. Did you mean 'sum'?"),
        ({"inputs": ("rgb",), "flow_trunk": "resnet50"}, "model.flow_trunk is set and model.inputs has no 'flow'."),
        ({"width": 0}, "model.width=0 cannot be used: it must be at least 1."),
        ({"blocks": (1, 2)}, "model.blocks=(1, 2) cannot be used: it must be four numbers of at least 1."),
        ({"dropout": 1.0}, "model.dropout=1.0 cannot be used: it must be from 0 to below 1."),
        ({"trunk": "r3d_18", "width": 8}, "model.width, model.blocks and model.scratch are of the slow networks"),
        ({"compat": True, "trunk": "r3d_18"}, "model.compat=true is for what the original has: slow_r50, resnet50"),
        ({"compat": True, "fusion": "concat"}, "model.fusion=concat does not exist in the original."),
    ],
)
def test_refusals(settings, text):
    with pytest.raises(ConfigError) as error:
        TwoStreamConfig(**settings)
    assert text in str(error.value)


def test_refusals_of_the_baselines():
    with pytest.raises(ConfigError, match=r"model.trunk='slow_r50' cannot be used"):
        CNNLSTMConfig(trunk="slow_r50")
    with pytest.raises(ConfigError, match=r"model.hidden=0 cannot be used: it must be at least 1"):
        CNNLSTMConfig(hidden=0)
    with pytest.raises(ConfigError, match=r"model.trunk='resnet50' cannot be used"):
        CrossAttentionConfig(trunk="resnet50")
    with pytest.raises(ConfigError, match=r"model.context='rgb' cannot be used. Known: mask, flow"):
        CrossAttentionConfig(context="rgb")


@pytest.mark.parametrize(
    ("inputs", "streams", "channels"),
    [
        (("rgb",), ("video",), [3]),
        (("flow",), ("video", "flow"), [2]),
        (("rgb", "flow"), ("video", "flow"), [3, 2]),
        (("masked-rgb", "flow"), ("video", "person_mask", "flow"), [3, 2]),
        (("rgb+flow+mask",), ("video", "flow", "person_mask"), [6]),
    ],
)
def test_only_what_is_read_is_asked_for(inputs, streams, channels):
    assert two_stream_needs(TwoStreamConfig(inputs=inputs)) == streams
    assert [channels_of(name) for name in inputs] == channels


def test_what_the_baselines_read():
    assert single_needs(CNNLSTMConfig()) == ("video",)
    assert cross_attention_needs(CrossAttentionConfig()) == ("video", "person_mask")
    assert cross_attention_needs(CrossAttentionConfig(input="masked-rgb", context="flow")) == (
        "video",
        "person_mask",
        "flow",
    )


@pytest.mark.parametrize(
    ("arguments", "trunk", "flow_trunk", "fusion", "scratch"),
    [
        ({}, "slow_r50", "", "separate", False),
        ({"model": "multi", "fusion": "sum_loss"}, "slow_r50", "", "sum", False),
        ({"model": "single", "transfor_learning": False}, "resnet50", "", "separate", False),
        ({"model": "multi_single", "transfor_learning": False}, "slow_r50", "resnet50", "separate", True),
    ],
)
def test_the_original_s_arguments(arguments, trunk, flow_trunk, fusion, scratch):
    config = from_upstream(arguments)
    assert (config.trunk, config.flow_trunk, config.fusion, config.scratch) == (trunk, flow_trunk, fusion, scratch)
    assert config.compat
    assert config.inputs == ("rgb", "flow")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"fusion": "concat"}, "fusion='concat' is none of the original's: different_loss, sum_loss."),
        ({"models": "multi"}, "'models' decides nothing of the original's network. Did you mean 'model'?"),
    ],
)
def test_what_the_original_does_not_have(arguments, text):
    with pytest.raises(ConfigError) as error:
        from_upstream(arguments)
    assert text in str(error.value)


def test_settings_need_no_torch():
    code = "import sys, medvid_two_stream.plugin, medvid_two_stream.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
