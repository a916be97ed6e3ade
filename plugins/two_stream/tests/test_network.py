"""The two-stream networks and their baselines: what they see, what they give, and how streams are fused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from medvid_core.errors import ConfigError, DataError
from medvid_core.specs import OutputSpec
from medvid_two_stream.config import (
    SLOW_BLOCKS,
    TORCHVISION_VIDEO,
    AttentionBranchConfig,
    CNNLSTMConfig,
    CrossAttentionConfig,
    TwoStreamConfig,
)
from medvid_two_stream.network import (
    build_attention_branch,
    build_cnn_lstm,
    build_cross_attention,
    build_two_stream,
)
from medvid_two_stream.network.attention import CrossAttentionFusion
from medvid_two_stream.network.decision import log_probability
from medvid_two_stream.network.inputs import as_pictures, look, real_steps, shuffled
from medvid_two_stream.network.slow import SlowResNet
from medvid_two_stream.network.stream import Head

GAIT = (OutputSpec(name="gait", task="classification", classes=("ASD", "DHS", "other")),)
TWO = (OutputSpec(name="gait", task="classification", classes=("ASD", "non-ASD")),)
NARROW = {"width": 2, "blocks": (1, 1, 1, 1)}


def clips(number=2, frames=5, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(number, frames, 3, size, size, generator=generator)
    flow = torch.randn(number, frames, 2, size, size, generator=generator)
    flow[:, -1] = 0
    mask = (torch.rand(number, frames, 1, size, size, generator=generator) > 0.5).float()
    real = torch.ones(number, frames, dtype=torch.bool)
    return {"video": video, "flow": flow, "person_mask": mask, "frame_real": real}


def two_stream(outputs=GAIT, **config):
    torch.manual_seed(0)
    return build_two_stream(TwoStreamConfig(**{**NARROW, **config}), outputs).eval()


def images(outputs=GAIT, **config):
    """Networks of single frames."""
    torch.manual_seed(0)
    return build_two_stream(TwoStreamConfig(trunk="resnet18", **config), outputs).eval()


NETWORKS = {
    "separate": two_stream,
    "sum": lambda: two_stream(fusion="sum"),
    "learnt": lambda: two_stream(fusion="learnt"),
    "concat": lambda: two_stream(fusion="concat"),
    "rgb": lambda: two_stream(inputs=("rgb",)),
    "flow": lambda: two_stream(inputs=("flow",)),
    "masked, flow": lambda: two_stream(inputs=("masked-rgb", "flow")),
    "early": lambda: two_stream(inputs=("rgb+flow+mask",)),
    "three streams": lambda: two_stream(inputs=("rgb", "flow", "mask"), fusion="learnt"),
    "scratch": lambda: two_stream(scratch=True),
    "2D": images,
    "2D, sum": lambda: images(fusion="sum"),
    "2D, concat": lambda: images(fusion="concat"),
    "3D and 2D": lambda: two_stream(flow_trunk="resnet18", fusion="sum"),
    "cnn-lstm": lambda: build_cnn_lstm(CNNLSTMConfig(trunk="resnet18", features=8, hidden=8), GAIT).eval(),
    "attention-branch": lambda: build_attention_branch(AttentionBranchConfig(**NARROW), GAIT).eval(),
    "cross-attention": lambda: build_cross_attention(CrossAttentionConfig(**NARROW), GAIT).eval(),
    "cross-attention, flow": lambda: build_cross_attention(CrossAttentionConfig(context="flow", **NARROW), GAIT).eval(),
}


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_any_number_of_frames(name, frames):
    outputs = NETWORKS[name]()(clips(frames=frames))
    assert outputs["gait"].shape == (2, 3)
    assert all(value.isfinite().all() for value in outputs.values())
    assert all(key == "gait" or key.startswith("gait/") for key in outputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter(name):
    """Of what is trained; and of the decision, which another loss may be of."""
    net = NETWORKS[name]()
    outputs = net(clips())
    trained = [value for key, value in outputs.items() if key != "gait"] or [outputs["gait"]]
    torch.stack([value.square().sum() for value in trained]).sum().backward(retain_graph=True)
    assert [key for key, parameter in net.named_parameters() if parameter.grad is None] == []
    net.zero_grad()
    outputs["gait"][:, 0].sum().backward()
    unreached = {key for key, parameter in net.named_parameters() if parameter.grad is None}
    assert unreached == ({"att_conv2.weight"} if name == "attention-branch" else set())


@pytest.mark.parametrize("name", NETWORKS)
def test_attribution_layers_are_maps_of_features(name):
    """Every network says, for every input, which module gives [B,D,T',H',W']; what it gives decides the output."""
    net, kept = NETWORKS[name](), {}
    assert net.attribution_layer
    for key, layer in net.attribution_layer.items():
        net.get_submodule(layer).register_forward_hook(lambda _, __, maps, key=key: kept.update({key: maps}))
    outputs = net(clips())
    for maps in kept.values():
        assert maps.dim() == 5
        assert len(maps) == 2
        (gradient,) = torch.autograd.grad(outputs["gait"][:, 0].sum(), maps, retain_graph=True)
        assert gradient.abs().sum() > 0
    assert kept.keys() == net.attribution_layer.keys()


@pytest.mark.parametrize("trunk", [*SLOW_BLOCKS, *TORCHVISION_VIDEO, "resnet50"])
def test_builds_without_memory(trunk):
    with torch.device("meta"):
        net = build_two_stream(TwoStreamConfig(trunk=trunk), TWO)
    assert {value.device.type for value in net.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("trunk", TORCHVISION_VIDEO)
@pytest.mark.parametrize(("frames", "size"), [(1, 40), (5, 64)])
@torch.no_grad()
def test_trunks_of_torchvision(trunk, frames, size):
    """Clips of any length, and of sizes that they were not trained on."""
    torch.manual_seed(0)
    net = build_two_stream(TwoStreamConfig(trunk=trunk, inputs=("flow",)), TWO).eval()
    batch = clips(frames=frames, size=size)
    outputs = net(batch)
    assert outputs["gait"].shape == (2, 2)
    alone = net({key: value[1:] for key, value in batch.items()})
    torch.testing.assert_close(alone["gait"], outputs["gait"][1:], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("trunk", TORCHVISION_VIDEO)
@torch.no_grad()
def test_trunks_give_torchvision_s_features(trunk):
    """The same features as torchvision's own forward pass, of a clip of the size it is made for."""
    import torchvision.models.video as video

    torch.manual_seed(0)
    theirs = getattr(video, trunk)(weights=None).eval()
    stream = build_two_stream(TwoStreamConfig(trunk=trunk, inputs=("rgb",)), TWO).stream("rgb").eval()
    state = theirs.state_dict()
    stream.body.load_state_dict({key: state[key] for key in stream.body.state_dict()})
    x = torch.randn(1, 3, 16, 224, 224) if trunk == "mvit_v2_s" else torch.randn(1, 3, 8, 64, 64)
    kept = []
    last = {"mvit_v2_s": "norm", "swin3d_t": "norm"}.get(trunk, "layer4")
    theirs.get_submodule(last).register_forward_hook(lambda _, __, found: kept.append(found))
    theirs(x)
    maps = kept[0]
    if trunk == "mvit_v2_s":
        maps = maps[:, 1:].transpose(1, 2).unflatten(2, (8, 7, 7))
    elif trunk == "swin3d_t":
        maps = maps.permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(stream.maps(x), maps)


# what is seen ------------------------------------------------------------------------------------------------------


def test_flow_is_between_frames():
    """The last frame's flow, which goes nowhere, is left out; a single frame has the flow it has."""
    batch = clips(frames=5)
    seen = look(batch, "flow")
    assert torch.equal(seen, batch["flow"][:, :4].transpose(1, 2))
    assert torch.equal(look(clips(frames=1), "flow"), torch.zeros(2, 2, 1, 32, 32))


def test_joined_cues():
    """Flow joined to pictures has a field for every frame: the last one is repeated."""
    batch = clips(frames=3)
    joined = look(batch, "rgb+flow+mask").transpose(1, 2)
    assert torch.equal(joined[:, :, :3], batch["video"])
    assert torch.equal(joined[:, :2, 3:5], batch["flow"][:, :2])
    assert torch.equal(joined[:, 2, 3:5], batch["flow"][:, 1])
    assert torch.equal(joined[:, :, 5:], batch["person_mask"])
    assert look(clips(frames=1), "rgb+flow").shape == (2, 5, 1, 32, 32)


def test_the_background_is_taken_away():
    """The masked stream does not see it, the other one does."""
    batch, changed = clips(), clips()
    changed["video"] = torch.where(batch["person_mask"].bool(), batch["video"], 7.0)
    masked, plain = two_stream(inputs=("masked-rgb",)), two_stream(inputs=("rgb",))
    assert torch.equal(masked(batch)["gait"], masked(changed)["gait"])
    assert not torch.equal(plain(batch)["gait"], plain(changed)["gait"])


def test_each_stream_sees_its_own_input():
    batch, other = clips(), clips(seed=1)
    net = two_stream()
    before = net(batch)
    after = net({**batch, "flow": other["flow"]})
    assert torch.equal(before["gait/rgb"], after["gait/rgb"])
    assert not torch.equal(before["gait/flow"], after["gait/flow"])


def test_shuffled_frames_are_the_same_frames():
    """Real ones in front; flow fields too; the same order whenever it is not training."""
    batch = {
        **clips(number=3, frames=6),
        "frame_real": torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] * 6]),
    }
    found = shuffled(batch, torch.Generator().manual_seed(0))
    assert found["frame_real"].tolist() == batch["frame_real"].tolist()
    moved = False
    for clip, (here, there) in enumerate(zip(found["video"], batch["video"], strict=True)):
        places = [next(t for t in range(6) if torch.equal(frame, there[t])) for frame in here]
        assert sorted(places) == list(range(6))
        moved |= places != list(range(6))
        assert clip != 1 or sorted(places[:4]) == list(range(4))
    assert moved
    fields = [
        [next(t for t in range(6) if torch.equal(x, old[t])) for x in new]
        for new, old in zip(found["flow"], batch["flow"], strict=True)
    ]
    assert all(sorted(each) == list(range(6)) and each[-1] == 5 for each in fields)
    assert sorted(fields[1][:3]) == list(range(3))
    torch.manual_seed(0)
    model = two_stream(shuffled=True)
    one, two = (model(batch)["gait"] for _ in range(2))
    assert torch.equal(one, two)
    model.config.shuffled = False
    assert not torch.equal(one, model(batch)["gait"])


def test_a_stream_that_is_missing():
    batch = clips()
    del batch["flow"]
    with pytest.raises(DataError, match=r"reads the stream 'flow', and the batch holds none.*preprocess=gait"):
        two_stream()(batch)


def test_one_question_only():
    with pytest.raises(ConfigError, match=r"answers one question, and there are: gait, gait.*outputs="):
        build_two_stream(TwoStreamConfig(**NARROW), GAIT + GAIT)


def test_pictures_of_frames():
    """In order by default; the original's are planes of several frames or channels, clip by clip all the same."""
    clip = torch.arange(2 * 3 * 4).view(2, 3, 4, 1, 1)
    right, scrambled = as_pictures(clip)[:, :, 0, 0], as_pictures(clip, scrambled=True)[:, :, 0, 0]
    assert right[:2].tolist() == [[0, 4, 8], [1, 5, 9]]
    assert scrambled[:2].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert right[4:].sum() == scrambled[4:].sum() == clip[1].sum()


def test_2d_streams_see_frames_that_a_flow_begins_at():
    net = images()
    seen = net.seen(clips(frames=5))
    assert seen["rgb"].shape[2] == seen["flow"].shape[2] == 4
    assert images(inputs=("rgb",)).seen(clips(frames=5))["rgb"].shape[2] == 5


def test_sixteen_frames_beside_a_2d_stream_in_the_original_alone():
    batch = clips(number=1, frames=31)
    assert two_stream(flow_trunk="resnet18").seen(batch)["rgb"].shape[2] == 31
    with torch.device("meta"):
        net = build_two_stream(TwoStreamConfig(flow_trunk="resnet50", compat=True), TWO)
    assert torch.equal(net.seen(batch)["rgb"][:, :, [0, 1, 15]], batch["video"][:, [0, 1, 29]].transpose(1, 2))
    assert net.seen(batch)["rgb"].shape[2] == 16


# fusion ------------------------------------------------------------------------------------------------------------


def test_separate_decides_by_the_mean_probability():
    outputs = two_stream()(clips())
    mean = (outputs["gait/rgb"].softmax(1) + outputs["gait/flow"].softmax(1)) / 2
    torch.testing.assert_close(outputs["gait"].softmax(1), mean)
    torch.testing.assert_close(outputs["gait"].exp(), mean)


def test_sum_decides_by_the_mean_logit():
    separate, summed = two_stream()(clips()), two_stream(fusion="sum")(clips())
    mean = (separate["gait/rgb"] + separate["gait/flow"]) / 2
    torch.testing.assert_close(summed["gait/fused"], mean)
    torch.testing.assert_close(summed["gait"].softmax(1), mean.softmax(1))


def test_sum_in_the_original_decides_by_the_mean_probability_all_the_same():
    """It trains the mean logit: two different rules."""
    net = two_stream(TWO, fusion="sum", compat=True, width=1)
    for name in net.streams:
        net.stream(name).classifier.window = None
        nn.init.normal_(net.stream(name).classifier.proj.weight, std=3)
    outputs = net(clips())
    logits = [net.streams[name](clip) for name, clip in net.seen(clips()).items()]
    mean = (logits[0].softmax(1) + logits[1].softmax(1)) / 2
    torch.testing.assert_close(outputs["gait"].softmax(1), mean)
    assert (outputs["gait/fused"].softmax(1) - mean).abs().max() > 1e-4


@pytest.mark.parametrize(("compat", "head", "stem"), [(True, 0.0128, 0.0476), (False, 0.01, 0.0252)])
def test_what_is_new_in_the_original_begins_as_there(compat, head, stem):
    """A linear layer and a stem as torch initialises them: uniform, of deviation 1/sqrt(3 n) for n inputs."""
    torch.manual_seed(0)
    config = TwoStreamConfig(inputs=("rgb",), blocks=(1, 1, 1, 1), compat=compat)
    first = build_two_stream(config, TWO).stream("rgb")
    assert float(first.classifier.proj.weight.detach().std()) == pytest.approx(head, rel=0.05)
    assert float(first.blocks[0].conv.weight.detach().std()) == pytest.approx(stem, rel=0.05)
    assert bool(first.classifier.proj.bias.any()) == compat


def test_learnt_weights_begin_equal_and_can_choose():
    net = two_stream(fusion="learnt")
    torch.testing.assert_close(net(clips())["gait/fused"], two_stream(fusion="sum")(clips())["gait/fused"])
    with torch.no_grad():
        net.weights.copy_(torch.tensor([100.0, -100.0]))
    torch.testing.assert_close(net(clips())["gait/fused"], net.streams["rgb"](look(clips(), "rgb")))


def test_concat_reads_the_features_of_all_streams():
    net = two_stream(fusion="concat")
    batch = clips()
    features = [net.stream(name).features(clip) for name, clip in net.seen(batch).items()]
    assert [each.shape for each in features] == [(2, 64), (2, 64)]
    torch.testing.assert_close(net(batch)["gait"], net.joint[1](torch.cat(features, 1)))
    assert not any("proj" in name for name, _ in net.named_parameters())


def test_frames_that_are_padding_do_not_count():
    """For networks of frames; flow counts where both its frames are real."""
    real = torch.tensor([[True, True, True, False, False]])
    assert real_steps(real, 5).tolist() == [[True, True, True, False, False]]
    assert real_steps(real, 4).tolist() == [[True, True, False, False]]
    assert real_steps(~real & real, 4).all()
    logits = torch.randn(1, 4, 3)
    expected = logits[:, :2].softmax(2).mean(1)
    torch.testing.assert_close(log_probability(logits, real).exp(), expected)
    net, batch = images(), clips(number=1)
    batch["frame_real"] = real
    changed = {**batch, "video": batch["video"].clone(), "flow": batch["flow"].clone()}
    changed["video"][:, 3:], changed["flow"][:, 2:] = 5.0, 5.0
    torch.testing.assert_close(net(batch)["gait"], net(changed)["gait"])


def test_one_logit_for_two_classes_in_the_original_alone():
    assert Head(4, 2, one_logit=True).proj.out_features == 1
    assert Head(4, 3, one_logit=True).proj.out_features == 3
    net = two_stream(TWO, inputs=("rgb",), compat=True)
    net.stream("rgb").classifier.window = None
    logits = net(clips())["gait/rgb"]
    assert torch.equal(logits[:, 0], torch.zeros(2))
    assert two_stream(TWO).stream("rgb").classifier.proj.out_features == 2


def test_dropout_is_drawn_for_every_window_in_training():
    """As the original does: with windows, the same features are dropped in one and not in another."""
    torch.manual_seed(0)
    head = Head(1, 3, dropout=0.5, window=(8, 1, 1))
    nn.init.ones_(head.proj.weight)
    shares = head(torch.ones(64, 1, 9, 1, 1))[:, 0]
    assert set(shares.tolist()) == {0.0, 1.0, 2.0}


def test_the_scratch_stem_sees_three_frames():
    """By default no convolution of the stem reaches another frame."""
    x = torch.zeros(1, 3, 5, 32, 32)
    x[:, :, 2] = 1
    for scratch, frames in ((False, [2]), (True, [1, 2, 3])):
        stem = SlowResNet(3, Head(32, 2), (1, 1, 1, 1), 1, scratch).eval().blocks[0]
        nn.init.ones_(stem.conv.weight)
        assert stem(x).amax((0, 1, 3, 4)).nonzero().flatten().tolist() == frames


# attention ---------------------------------------------------------------------------------------------------------


def naive(fusion, x, context):
    """With the matrix of all scores, and keys and values as wide as the features."""
    query, key, value = (
        projection(source).flatten(2)
        for projection, source in ((fusion.query_proj, x), (fusion.key_proj, context), (fusion.value_proj, context))
    )
    scores = query.transpose(1, 2) @ key / math.sqrt(x.shape[1])
    return x + (scores.softmax(2) @ value.transpose(1, 2)).transpose(1, 2).view_as(x)


@pytest.mark.parametrize("channels", [1, 2])
def test_attention_is_exact(channels):
    """Values and gradients equal those of the usual way to compute it."""
    torch.manual_seed(0)
    fusion = CrossAttentionFusion(6, channels).double()
    x = torch.randn(2, 6, 3, 4, 5, dtype=torch.double, requires_grad=True)
    context = torch.randn(2, channels, 3, 4, 5, dtype=torch.double, requires_grad=True)
    leaves = [x, context, *fusion.parameters()]
    found = [fusion(x, context), naive(fusion, x, context)]
    torch.testing.assert_close(*found)
    gradients = [torch.autograd.grad(each.square().sum(), leaves) for each in found]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attention_makes_no_matrix_of_scores():
    """It runs with the plain kernel, which makes one, switched off; and no tensor has N x N elements."""
    fusion, n = CrossAttentionFusion(16, 1), 4 * 16 * 16
    x, context = torch.randn(1, 16, 4, 16, 16, requires_grad=True), torch.rand(1, 1, 4, 16, 16)
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autograd.graph.saved_tensors_hooks(keep, keep):
        fusion(x, context).sum().backward()
    assert max(sizes) == x.numel() < n * n
    assert x.grad is not None


def test_a_map_of_another_size_is_brought_to_the_features():
    fusion = CrossAttentionFusion(4, 1)
    x, context = torch.randn(1, 4, 5, 2, 2), torch.ones(1, 1, 9, 64, 64)
    answer = fusion(x, context) - x
    expected = fusion.value_proj(torch.ones(1, 1, 1, 1, 1)).expand_as(x)
    torch.testing.assert_close(answer, expected)


def test_where_the_branch_looks_counts_more():
    """Features are weighted with 1 + A, from 1 to 2."""
    net = NETWORKS["attention-branch"]()
    maps = torch.rand(2, 64, 3, 2, 2)
    where, branch = net.attend(maps)
    assert where.shape == (2, 1, 3, 2, 2)
    assert branch.shape == (2, 3, 3, 2, 2)
    assert (where > 0).all()
    assert (where < 1).all()
    with torch.no_grad():
        net.bn_att3.bias.fill_(-100)
    outputs = net(clips())
    plain = net.stream(look(clips(), "rgb"))
    torch.testing.assert_close(outputs["gait/main"], plain)
    torch.testing.assert_close(outputs["gait"].exp(), plain.softmax(1))


def test_the_lstm_answers_for_every_frame_what_it_has_seen_so_far():
    net, batch = NETWORKS["cnn-lstm"](), clips()
    outputs = net(batch)
    assert outputs["gait/frames"].shape == (2, 5, 3)
    torch.testing.assert_close(outputs["gait"].exp(), outputs["gait/frames"].softmax(2).mean(1))
    shorter = net({key: value[:, :3] for key, value in batch.items()})
    torch.testing.assert_close(shorter["gait/frames"], outputs["gait/frames"][:, :3])
