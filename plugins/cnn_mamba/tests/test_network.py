"""CNN-Mamba and the baselines that share its network: shapes, causality, streaming, padding, heads that learn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

from medvid_cnn_mamba.config import CNNConfig, CNNGRUConfig, CNNMambaConfig, CNNTransformerConfig
from medvid_cnn_mamba.network import build_cnn, build_cnn_gru, build_cnn_mamba, build_cnn_transformer
from medvid_cnn_mamba.network.encoder import FrameEncoder, MotionBranch
from medvid_cnn_mamba.network.heads import Ordinal, Pool, Regression
from medvid_core.errors import ConfigError, DataError
from medvid_core.losses.config import ByTaskConfig
from medvid_core.losses.tasks import build_by_task
from medvid_core.specs import OutputSpec

TASKS = (
    OutputSpec(name="view", task="classification", classes=("a", "b", "c")),
    OutputSpec(name="signs", task="multilabel", classes=("a", "b")),
    OutputSpec(name="phase", task="frame_classification", classes=("a", "b", "c")),
    OutputSpec(name="volumes.ml", task="regression", classes=("ed", "es"), center=(120.0, 50.0), scale=(30.0, 20.0)),
    OutputSpec(name="grade", task="ordinal", classes=("0", "1", "2", "3")),
    OutputSpec(name="odd", task="anomaly", classes=("odd",)),
)
ODD = TASKS[-1:]
OF_FRAMES = ("phase", "odd")
SHAPES = {"view": (3,), "signs": (2,), "phase": (5, 3), "volumes.ml": (2,), "grade": (3,), "odd": (5,)}

SMALLEST = {"encoder": "test_resnet", "width": 16, "layers": 2, "motion_width": 8}
EVERYTHING = {"motion": True, "time_gaps": True, "pooling": "attention"}
BUILD = {
    CNNMambaConfig: build_cnn_mamba,
    CNNConfig: build_cnn,
    CNNGRUConfig: build_cnn_gru,
    CNNTransformerConfig: build_cnn_transformer,
}


def network(config=CNNMambaConfig, outputs=TASKS, **settings_):
    torch.manual_seed(0)
    model = BUILD[config](config(**{**SMALLEST, **settings_}), outputs)
    if model.frames.motion is not None:  # what is seen begins at zero then: go on as after some training
        nn.init.normal_(model.frames.project[1].weight, std=0.1)
    return model


def forecaster(**settings_):
    return network(CNNMambaConfig, ODD, anomaly="forecast", **settings_)


CAUSAL = {
    "cnn-mamba": lambda: network(**EVERYTHING),
    "cnn-mamba, plain": lambda: network(state_size=4),
    "cnn-mamba, forecast": lambda: forecaster(motion=True, time_gaps=True),
    "cnn": lambda: network(CNNConfig, **EVERYTHING),
    "cnn-gru": lambda: network(CNNGRUConfig, **EVERYTHING),
}
ALL = {
    **CAUSAL,
    "cnn-mamba, bidirectional": lambda: network(bidirectional=True, **EVERYTHING),
    "cnn-transformer": lambda: network(CNNTransformerConfig, **EVERYTHING),
}
causal = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in CAUSAL.items()])
every = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in ALL.items()])


def batch_of(clips=2, frames=5, size=32, seed=1):
    g = torch.Generator().manual_seed(seed)
    return {
        "video": torch.randn(clips, frames, 3, size, size, generator=g),
        "frame_real": torch.ones(clips, frames, dtype=torch.bool),
        "time_s": torch.rand(clips, frames, generator=g).cumsum(1),
    }


def cut(batch, start, stop):
    return {name: x[:, start:stop] for name, x in batch.items()}


def same(a, b, atol=1e-5):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=atol)


@every
def test_shapes_of_every_task(make):
    found = {name: tuple(value.shape) for name, value in make()(batch_of()).items()}
    assert found == {name: (2, *shape) for name, shape in SHAPES.items() if name in found}
    assert set(found) in (set(SHAPES), {"odd"})


@every
def test_one_frame(make):
    assert all(torch.isfinite(value).all() for value in make().eval()(batch_of(frames=1)).values())


@every
def test_meta_device(make):
    with torch.device("meta"):
        model = make()
        batch = {
            "video": torch.empty(1, 6, 3, 48, 32),
            "frame_real": torch.ones(1, 6, dtype=torch.bool),
            "time_s": torch.zeros(1, 6),
        }
        assert model(batch)["odd"].shape == (1, 6)


@every
def test_every_parameter_gets_a_gradient(make):
    model = make()
    batch = batch_of(frames=6)
    batch["frame_real"][1, 4:] = False
    for parameter in model.parameters():
        if not parameter.any():  # residual branches of timm begin at nothing, and hide what is in front of them
            torch.nn.init.normal_(parameter.data, std=0.1)
    sum(value.square().sum() for value in model(batch).values()).backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, name
        # a shift of all scores of a softmax changes nothing
        assert name == "pool.score.bias" or parameter.grad.abs().sum() > 0, name


@causal
def test_a_frame_changes_none_before_it(make):
    model = make().eval()
    batch = batch_of()
    before = model(batch)
    for t in range(5):
        batch["video"][:, t] += torch.randn(2, 3, 32, 32)
        after = model(batch)
        for name in set(OF_FRAMES) & set(after):
            # other values may take another path through a matrix product, nothing more
            torch.testing.assert_close(before[name][:, :t], after[name][:, :t], rtol=0, atol=1e-6)
            if (make, t) != (CAUSAL["cnn-mamba, forecast"], 0):  # which has nothing to foresee the first frame by
                assert (before[name][:, t] - after[name][:, t]).abs().max() > 1e-4
        before = after


@pytest.mark.parametrize("name", ["cnn-mamba, bidirectional", "cnn-transformer"])
def test_those_that_look_ahead_do(name):
    model = ALL[name]().eval()
    batch = batch_of()
    before = model(batch)
    batch["video"][:, 4] += 1
    assert (model(batch)["phase"][:, 0] - before["phase"][:, 0]).abs().max() > 1e-5
    with pytest.raises(ConfigError, match="looks ahead in time, so it cannot stream"):
        model.initial_state(1)


@causal
@settings(max_examples=6, deadline=None)
@given(pieces=st.lists(st.integers(1, 6), min_size=1, max_size=5), clips=st.integers(1, 2), seed=st.integers(0, 99))
def test_a_stream_in_pieces_is_the_whole(make, pieces, clips, seed):
    model = make().eval()
    batch = batch_of(clips, sum(pieces), seed=seed)
    with torch.no_grad():
        whole, state, found, start = model(batch), model.initial_state(clips), [], 0
        for piece in pieces:
            outputs, state = model.step(cut(batch, start, start + piece), state)
            found.append(outputs)
            start += piece
    streamed = {
        name: torch.cat([outputs[name] for outputs in found], 1) if name in OF_FRAMES else found[-1][name]
        for name in whole
    }
    same(streamed, whole, atol=1e-4)


@causal
def test_every_step_tells_what_the_frames_so_far_tell(make):
    model = make().eval()
    batch, state = batch_of(), make().initial_state(2)
    for t in range(5):
        outputs, state = model.step(cut(batch, t, t + 1), state)
        clip = model(cut(batch, 0, t + 1))
        same({n: x for n, x in outputs.items() if n not in OF_FRAMES}, {n: clip[n] for n in clip if n not in OF_FRAMES})


@causal
def test_a_stream_s_memory_does_not_grow(make):
    model = make().eval()
    _, one = model.step(batch_of(frames=1), model.initial_state(2))
    _, many = model.step(batch_of(frames=12), one)
    assert [x.shape for x in tree_leaves(one)] == [x.shape for x in tree_leaves(many)]


@causal
def test_streams_do_not_know_of_one_another(make):
    model = make().eval()
    first, _ = model.step(batch_of(seed=1), model.initial_state(2))
    model.step(batch_of(seed=2), model.initial_state(2))
    again, _ = model.step(batch_of(seed=1), model.initial_state(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@every
def test_what_is_no_frame_changes_nothing(make):
    model = make().eval()
    batch = batch_of(frames=7)
    batch["frame_real"][0, 3:] = False
    clean = model(batch)
    batch["video"][0, 3:] = 1e3 * torch.randn(4, 3, 32, 32)
    batch["time_s"][0, 3:] = torch.nan
    alone = model({name: x[:1, :3] for name, x in batch.items()})
    for name, value in model(batch).items():
        assert torch.isfinite(value[:, :3]).all()
        of_frames = name in OF_FRAMES
        same({name: value[0, :3] if of_frames else value[0]}, {name: alone[name][0]}, atol=1e-4)
        same({name: value[1]}, {name: clean[name][1]})


def test_backwards_begins_at_each_clip_s_own_last_frame():
    model = network(bidirectional=True, width=8).eval()
    tokens, real = torch.randn(2, 6, 8), torch.arange(6) < torch.tensor([[6], [4]])
    together = model.sequence(tokens, real)
    alone = model.sequence(tokens[1:, :4], real[1:, :4])
    torch.testing.assert_close(together[1, :4], alone[0], rtol=1e-4, atol=1e-5)
    # and it is no plain flip of the padded batch
    assert (model.sequence(tokens, torch.ones_like(real))[1, :4] - together[1, :4]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_pool_is_a_weighted_mean(kind):
    torch.manual_seed(0)
    pool, features, real = Pool(4, kind), 3 * torch.randn(3, 7, 4), torch.rand(3, 7) < 0.6
    real[0], real[2, 1:] = True, False
    real[2, 0] = True
    scores = torch.zeros(3, 7) if kind == "mean" else pool.score(features)[..., 0] * 50
    if kind == "attention":
        with torch.no_grad():
            pool.score.weight *= 50
            pool.score.bias *= 50
    weights = scores.masked_fill(~real, -torch.inf).softmax(1)
    torch.testing.assert_close(pool(features, real), torch.einsum("bt,btd->bd", weights, features))


def test_pool_of_nothing_is_zero():
    for kind in ("mean", "attention"):
        pooled = Pool(4, kind)(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
        assert torch.equal(pooled, torch.zeros(2, 4))


def test_cnn_does_not_know_the_order_and_the_others_do():
    batch = batch_of()
    shuffled = {**batch, "video": batch["video"][:, [3, 1, 4, 0, 2]]}
    for config, knows in ((CNNConfig, False), *((other, True) for other in BUILD if other is not CNNConfig)):
        model = network(config).eval()
        difference = (model(batch)["view"] - model(shuffled)["view"]).abs().max()
        assert (difference > 1e-4).item() is knows, config


def test_motion_of_a_still_video_is_none():
    torch.manual_seed(0)
    branch, picture = MotionBranch(3, 16).eval(), torch.randn(2, 1, 3, 24, 24)
    still = branch(picture.expand(2, 4, 3, 24, 24))
    nothing = branch(torch.zeros(1, 1, 3, 24, 24))
    torch.testing.assert_close(still, nothing.expand_as(still))
    moved = branch(torch.cat([picture, picture.roll(2, 4)], 1))
    torch.testing.assert_close(moved[:, 0], still[:, 0])
    assert (moved[:, 1] - still[:, 1]).abs().max() > 1e-3
    assert branch(torch.randn(1, 2, 3, 1, 1)).shape == (1, 2, branch.width)


def test_time_gaps_take_effect_and_must_be_known():
    model = network(time_gaps=True).eval()
    batch = batch_of()
    other = {**batch, "time_s": 3 * batch["time_s"]}
    assert (model(batch)["view"] - model(other)["view"]).abs().max() > 1e-5
    later = {**batch, "time_s": batch["time_s"] + 1e3}
    same(model(batch), model(later), atol=1e-3)  # of a clock only differences count
    batch["time_s"][1] = torch.nan
    with pytest.raises(DataError, match=r"model\.time_gaps=true needs to know when frames were taken"):
        model(batch)


def test_forecast_scores():
    model = forecaster().eval()
    score = model(batch_of(frames=9))["odd"]
    assert torch.equal(score[:, 0], torch.zeros(2)) or score[:, 0].abs().max() < 1e-6
    assert (score >= -1e-6).all()
    assert (score <= 2 + 1e-6).all()
    assert score[:, 1:].min() > 1e-3


def test_forecast_leaves_its_encoder_alone():
    model = forecaster().train()
    assert not any(module.training for module in model.frames.encoder.modules())
    assert not any(parameter.requires_grad for parameter in model.frames.encoder.parameters())
    before = {name: x.clone() for name, x in model.frames.encoder.state_dict().items()}
    model(batch_of())["odd"].sum().backward()
    assert all(torch.equal(x, before[name]) for name, x in model.frames.encoder.state_dict().items())


def test_forecast_learns_what_is_usual():
    """A pattern that alternates: the frame that breaks it scores higher than any other."""
    model = forecaster(motion=False)
    torch.manual_seed(0)
    patterns = torch.randn(2, 3, 32, 32)
    video = patterns[torch.arange(8) % 2][None].repeat(2, 1, 1, 1, 1)
    batch = {"video": video, "frame_real": torch.ones(2, 8, dtype=torch.bool)}
    optimizer = torch.optim.Adam([x for x in model.parameters() if x.requires_grad], 1e-2)
    for _ in range(120):
        loss = model(batch)["odd"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    video[1, 5] = torch.randn(3, 32, 32)
    score = model.eval()(batch)["odd"]
    assert score[1].argmax() == 5
    assert score[1, 5] > 3 * score[0].max()


@pytest.mark.parametrize("outputs", [TASKS, TASKS[:1], (*ODD, OutputSpec(name="b", task="anomaly", classes=("b",)))])
def test_forecast_gives_one_score(outputs):
    """model.anomaly=forecast gives one anomaly score and nothing else."""
    with pytest.raises(ConfigError, match=test_forecast_gives_one_score.__doc__):
        network(outputs=outputs, anomaly="forecast")


def test_regression_and_ordinal_start_where_they_should():
    volumes = Regression(4, TASKS[3])
    torch.nn.init.zeros_(volumes.linear.weight)
    torch.nn.init.zeros_(volumes.linear.bias)
    assert volumes(torch.randn(1, 4)).tolist() == [[120.0, 50.0]]
    grade = Ordinal(4, 4)
    above = grade(torch.randn(50, 4))
    assert (above.diff(dim=1) < 0).all()  # no higher grade is more likely to be exceeded than a lower one
    assert grade.thresholds.tolist() == [1.0, 0.0, -1.0]


@pytest.mark.parametrize("name", ["cnn-mamba", "cnn-transformer"])
def test_heads_learn_eight_clips(name):
    model = ALL[name]()
    g = torch.Generator().manual_seed(3)
    batch = batch_of(clips=8, frames=4, size=16)
    targets = {
        "view": torch.arange(8) % 3,
        "signs": (torch.rand(8, 2, generator=g) < 0.5).float(),
        "volumes.ml": torch.tensor([120.0, 50.0]) + torch.randn(8, 2, generator=g) * torch.tensor([30.0, 20.0]),
        "grade": torch.arange(8) % 4,
    }
    frames = {
        "phase": torch.randint(0, 3, (8, 4), generator=g).float(),
        "odd": (torch.rand(8, 4, generator=g) < 0.4).float(),
    }
    batch |= {
        "targets": targets,
        "targets_present": {name: torch.ones(8, dtype=torch.bool) for name in targets},
        "frame_targets": frames,
        "frame_targets_present": {name: torch.ones(8, 4, dtype=torch.bool) for name in frames},
    }
    loss = build_by_task(ByTaskConfig(), TASKS)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        sums, counts = loss(model(batch), batch), loss.counts(batch)
        total = sum(sums[name] / counts[name].clamp(min=1) for name in sums)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    found = model(batch)
    assert (found["view"].argmax(1) == targets["view"]).all()
    assert ((found["signs"] > 0) == targets["signs"].bool()).all()
    assert ((found["volumes.ml"] - targets["volumes.ml"]).abs() < torch.tensor([15.0, 10.0])).all()
    assert ((found["grade"] > 0).sum(1) == targets["grade"]).float().mean() >= 0.75
    assert (found["phase"].argmax(2) == frames["phase"]).float().mean() > 0.9
    assert ((found["odd"] > 0) == frames["odd"].bool()).float().mean() > 0.9


def test_frozen_norm_keeps_its_statistics():
    for frozen in (True, False):
        encoder = FrameEncoder("test_resnet", frozen_norm=frozen).train()
        before = {name: x.clone() for name, x in encoder.named_buffers()}
        encoder(torch.randn(2, 3, 3, 32, 32))
        assert all(torch.equal(x, before[name]) for name, x in encoder.named_buffers()) is frozen
        assert encoder.net.training


def test_transformer_beyond_its_positions_and_with_padding_alone():
    model = network(CNNTransformerConfig, longest=4).eval()
    batch = batch_of(frames=9)
    assert model(batch)["phase"].shape == (2, 9, 3)
    batch["frame_real"][1] = False
    assert torch.isfinite(model(batch)["view"]).all()


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"])
def test_encoders_know_their_width(name):
    encoder = FrameEncoder(name).eval()
    assert encoder(torch.randn(1, 2, 3, 64, 48)).shape == (1, 2, encoder.width)


def test_unknown_encoder():
    """model.encoder='resnet19': timm has no such model."""
    with pytest.raises(ConfigError) as error:
        network(encoder="resnet19")
    assert str(error.value).startswith(test_unknown_encoder.__doc__)
    with pytest.raises(ConfigError, match=r"Near it: .*test_convnext"):
        network(encoder="test_resnet9")


@pytest.mark.parametrize(
    ("config", "settings_", "text"),
    [
        (CNNConfig, {"pooling": "max"}, "model.pooling='max' cannot be used: it must be mean or attention."),
        (CNNConfig, {"width": 0}, "model.width=0 cannot be used: it must be at least 1."),
        (CNNConfig, {"dropout": 1.0}, "model.dropout=1.0 cannot be used: it must be from 0 to below 1."),
        (CNNMambaConfig, {"anomaly": "x"}, "model.anomaly='x' cannot be used: it must be head or forecast."),
        (CNNMambaConfig, {"state_size": 0}, "model.state_size=0 cannot be used: it must be at least 1."),
        (
            CNNMambaConfig,
            {"anomaly": "forecast", "bidirectional": True},
            "model.anomaly=forecast foresees the next frame, so model.bidirectional must be false.",
        ),
        (CNNTransformerConfig, {"heads": 7}, "model.heads=7 cannot be used: it must divide model.width=256."),
    ],
)
def test_settings_that_cannot_be_used(config, settings_, text):
    with pytest.raises(ConfigError) as error:
        config(**settings_)
    assert str(error.value) == text


def test_outputs_may_have_any_name():
    """Also those of attributes of PyTorch's modules, and two that differ in a dot only."""
    names = ("type", "half", "training", "values", "a.b", "a_b")
    outputs = tuple(OutputSpec(name=name, task="regression", classes=("x",) * n) for n, name in enumerate(names, 1))
    found = network(CNNConfig, outputs)(batch_of(1, 2))
    assert {name: tuple(value.shape) for name, value in found.items()} == {n: (1, i) for i, n in enumerate(names, 1)}


def test_nothing_is_learnt_of_pooling_where_nothing_is_pooled():
    """Parameters without a gradient stop a run in two processes."""
    model = network(CNNMambaConfig, ODD, pooling="attention")
    model(batch_of(1, 3))["odd"].sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("encoder", ["test_resnet", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("config", BUILD)
def test_the_layer_for_attribution_gives_a_map_of_each_frame(config, encoder):
    """A mean over its places and the head behind it decide: its gradients are those of what is seen."""
    model = network(config, TASKS[:1], encoder=encoder).eval()
    seen = []
    model.get_submodule(model.attribution_layer).register_forward_hook(lambda _module, _input, out: seen.append(out))
    video = torch.randn(2, 3, 3, 64, 64, requires_grad=True)
    found = model({"video": video, "frame_real": torch.ones(2, 3, dtype=torch.bool)})
    (maps,) = seen
    assert maps.shape[:1] == (6,)
    assert maps.dim() == 4
    (gradients,) = torch.autograd.grad(found["view"][:, 0].sum(), maps)
    assert gradients.flatten(1).abs().amax(1).min() > 0


def test_encoders_without_feature_maps_have_no_layer_for_attribution():
    assert network(encoder="test_vit").attribution_layer == ""
    assert FrameEncoder("swin_tiny_patch4_window7_224").last_stage == ""
