"""The network in its three wirings: shapes, what it may depend on, switches, memory, refusals."""

from __future__ import annotations

import copy
import fnmatch
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer_sam import Attention, VisionTransformerSAM
from torch import nn

from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec
from medvid_medivista_sam.config import VARIANTS, WIRINGS, MediViSTAConfig, Variant
from medvid_medivista_sam.network import build
from medvid_medivista_sam.network.attention import Clip, CrossFrameAttention, FrameAttention, temporal_kernel
from medvid_medivista_sam.network.encoder import SamEncoder
from medvid_medivista_sam.network.fusion import DetailGate, stretched, wavelet_detail
from medvid_medivista_sam.network.layers import resized_positions
from medvid_medivista_sam.network.model import min_max
from medvid_medivista_sam.plugin import PROMPT_ONLY, TRAINABLE

WIRING = pytest.mark.parametrize("wiring", WIRINGS)


def output(classes=3, task="segmentation"):
    return (OutputSpec(name="mask", task=task, classes=tuple(f"class {k}" for k in range(classes))),)


def medivista(wiring="paper", classes=3, **config):
    """A tiny network in which nothing is silent, as much of a new one is, in evaluation mode."""
    torch.manual_seed(0)
    settings = {"sam_positions": True, **config} if wiring == "paper" else config  # all of SAM alive
    model = build(MediViSTAConfig(wiring=wiring, variant="tiny", **settings), output(classes))
    for name, x in model.named_parameters():
        if not x.any() and not name.endswith("bias"):
            nn.init.normal_(x, std=0.1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    logits(model, clips(2, 3, seed=7))  # so that batch norms know the range of their inputs
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def clips(clips=2, frames=3, size=(32, 48), seed=1):
    return torch.rand(clips, frames, 1, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, video, **more):
    return model({"video": video, **more})["mask"]


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(WIRINGS),
    st.integers(1, 2),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_any_clip_size_and_number_of_classes(wiring, count, frames, rows, columns, classes):
    model = medivista(wiring, classes)
    size = (16 * rows, 16 * columns)
    assert logits(model, clips(count, frames, size)).shape == (count, frames, classes, *size)


COUNTS = {"vit_b": (157_862_644, 136_130_400), "vit_h": (1_099_293_684, 1_048_434_656)}
"""Parameters of the published code, all of them and those that never reach its output; with four classes."""


@pytest.mark.parametrize("variant", COUNTS)
def test_released_holds_what_reaches_the_output(variant):
    """And the prompt encoder, which the published code holds but never gives a prompt."""
    with torch.device("meta"):
        model = build(MediViSTAConfig(wiring="released", variant=variant), output(4))
    held = sum(x.numel() for x in model.parameters())
    without_prompts = sum(
        x.numel() for name, x in model.named_parameters() if any(fnmatch.fnmatch(name, p) for p in PROMPT_ONLY)
    )
    total, dead = COUNTS[variant]
    assert held - without_prompts == total - dead
    assert without_prompts == 5_964


@WIRING
@pytest.mark.parametrize("variant", VARIANTS)
def test_meta_device(wiring, variant):
    with torch.device("meta"):
        model = build(MediViSTAConfig(wiring=wiring, variant=variant), output(2))
    video = torch.empty(1, 2, 1, 32, 48, device="meta")
    real = torch.ones(1, 2, dtype=torch.bool, device="meta")
    assert model({"video": video, "frame_real": real})["mask"].shape == (1, 2, 2, 32, 48)


@WIRING
def test_every_parameter_gets_a_gradient(wiring):
    model = medivista(wiring).train()
    model({"video": clips()})["mask"].square().sum().backward()
    for name, x in model.named_parameters():
        assert (x.grad is None) == any(fnmatch.fnmatch(name, pattern) for pattern in PROMPT_ONLY), name
        # shifting all keys shifts all scores of a query alike; so does what the norm after a convolution takes away
        if x.grad is not None and not name.endswith("bias"):
            assert x.grad.abs().sum() > 0, name


@WIRING
def test_prompts_reach_the_rest(wiring):
    model = medivista(wiring)
    prompt = {"class": 1, "frame": 0, "points": [[5.0, 6.0], [1.0, 2.0]], "labels": [1, 0]}
    other = {"class": 2, "frame": 0, "box": [3, 4, 20, 30], "mask": torch.ones(32, 48)}
    model({"video": clips(1), "prompts": [[prompt, other]]})["mask"].square().sum().backward()
    for name, x in model.prompt_encoder.named_parameters():
        assert x.grad is not None, name
        assert x.grad.abs().sum() > 0, name


@WIRING
def test_clips_of_a_batch_do_not_mix(wiring):
    """Unlike in the published code, whose first step stretches the whole batch."""
    model, video = medivista(wiring), clips(3) * torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1, 1, 1)
    together = logits(model, video)
    for index in range(3):
        torch.testing.assert_close(together[index : index + 1], logits(model, video[index : index + 1]))


@WIRING
def test_padding_does_not_count(wiring):
    """Nothing that it shows reaches other frames, which are what they are in the shorter clip."""
    model, video = medivista(wiring), clips(2, 5)
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    wanted = logits(model, video, frame_real=real)
    changed = video.clone()
    changed[1, 3:] = torch.tensor([7.0, -3.0]).view(2, 1, 1, 1)
    again = logits(model, changed, frame_real=real)
    torch.testing.assert_close(again[real], wanted[real])
    torch.testing.assert_close(logits(model, video[1:, :3]), wanted[1:, :3])
    assert not torch.allclose(logits(model, video)[1, :3], wanted[1, :3], rtol=0, atol=1e-5)


@WIRING
def test_padding_in_front(wiring):
    model, video = medivista(wiring), clips(1, 4)
    real = torch.tensor([[False, True, True, True]])
    torch.testing.assert_close(logits(model, video, frame_real=real)[:, 1:], logits(model, video[:, 1:]))


@WIRING
def test_nothing_but_padding_is_finite(wiring):
    assert logits(medivista(wiring), clips(1), frame_real=torch.zeros(1, 3, dtype=torch.bool)).isfinite().all()


@WIRING
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_clip_is_finite(wiring, value):
    model = medivista(wiring).train()
    video = torch.full((1, 2, 1, 32, 32), value)
    y = model({"video": video})["mask"]
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(x.grad is None or x.grad.isfinite().all() for x in model.parameters())


def test_released_does_not_know_the_order_of_frames():
    model, video = medivista("released"), clips(1, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(logits(model, video[:, order]), logits(model, video)[:, order])


@pytest.mark.parametrize("wiring", ["paper", "fusion"])
def test_the_others_know_the_order_of_frames(wiring):
    model, video = medivista(wiring), clips(1, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert not torch.allclose(logits(model, video[:, order]), logits(model, video)[:, order], rtol=0, atol=1e-5)


def test_through_cross_frame_attention_alone_nothing_looks_ahead():
    model, video = medivista(temporal=False), clips(1, 6)
    video[0, 0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # so that stretching changes nothing
    before = logits(model, video)
    changed = video.clone()
    changed[:, 2] = clips(1, 1, seed=9)
    difference = (logits(model, changed) - before).abs().amax((0, 2, 3, 4))
    assert torch.equal(difference[:2], torch.zeros(2))
    assert (difference[2:5] > 0).all()  # itself, and one frame on with each of the two blocks
    assert difference[5] == 0


def test_the_frame_before():
    real = torch.tensor([[True, True, True, True], [False, True, False, True], [False, False, False, False]])
    assert Clip(3, 4, real).previous(real.device).tolist() == [[0, 0, 1, 2], [0, 1, 1, 1], [0, 1, 2, 3]]
    assert Clip(1, 3).previous(real.device).tolist() == [[0, 0, 1]]


def test_cross_frame_attention_of_each_frame_by_itself():
    torch.manual_seed(0)
    attention, x = CrossFrameAttention(16, 2), torch.randn(6, 5, 16)
    previous = torch.tensor([[0, 0, 1], [0, 0, 1]])
    y = attention(x, previous)
    for clip, frame in ((0, 0), (0, 2), (1, 1)):
        q = attention.qkv(x[3 * clip + frame])[:, :16].view(5, 2, 8)
        before = attention.qkv(x[3 * clip + max(0, frame - 1)])
        k, v = before[:, 16:32].view(5, 2, 8), before[:, 32:].view(5, 2, 8)
        weights = (torch.einsum("ihc,jhc->hij", q, k) / 8**0.5).softmax(-1)
        wanted = torch.einsum("hij,jhc->ihc", weights, v).flatten(1)
        torch.testing.assert_close(y[3 * clip + frame], wanted)


def test_weights_of_frames_in_frames():
    clip = Clip(2, 3, torch.tensor([[True, True, True], [True, True, False]]))
    kernel = temporal_kernel(clip, torch.zeros(()))
    torch.testing.assert_close(kernel.sum(2), torch.ones(2, 3))
    assert (kernel[1, :, 2] == 0).all()
    e = torch.tensor([0.0, -1 / 3, -2 / 3]).exp()
    torch.testing.assert_close(kernel[0, 0], e / e.sum())
    torch.testing.assert_close(temporal_kernel(Clip(1, 3), e, normalised=False)[0, 0], e)


@pytest.mark.parametrize("real", [None, torch.tensor([[True, True], [True, False]])])
def test_stretching(real):
    video = torch.tensor([[1.0, 3.0], [0.5, 9.0]]).view(2, 2, 1, 1, 1).repeat(1, 1, 1, 2, 2)
    video[:, 0, 0, 0, 0] = 0.25
    got = min_max(video, real)
    for clip in range(2):
        frames = 2 if real is None else int(real[clip].sum())
        assert got[clip, :frames].min() == 0
        assert got[clip, :frames].max() == 1
    alone = min_max(video[:1], None if real is None else real[:1])
    torch.testing.assert_close(got[:1], alone)


def same_but_for(first, second):
    """Names of parameters that one network has and the other has not."""
    return {n.split(".")[3] for n in set(dict(first.named_parameters())) ^ set(dict(second.named_parameters()))}


@pytest.mark.parametrize(
    ("wiring", "switch", "parts"),
    [
        ("paper", {"temporal": False}, {"temporal_norm", "temporal_attn", "temporal_fc"}),
        ("paper", {"cross_frame": False}, {"cross_norm", "cross_attn"}),
        ("paper", {"adapter": False}, {"adapter"}),
        ("fusion", {"temporal": False}, {"temporal"}),
    ],
)
def test_switches_take_parts_away(wiring, switch, parts):
    assert same_but_for(medivista(wiring), medivista(wiring, **switch)) == parts


@pytest.mark.parametrize(
    ("switch", "prefixes"),
    [
        ({"cross_branch": False}, ("image_encoder.branch.", "image_encoder.blocks.1.cross.")),
        ({"low_rank": 0}, ("image_encoder.factors.", "image_encoder.blocks.0.cores.", "image_encoder.blocks.1.cores.")),
    ],
)
def test_switches_of_the_second_version(switch, prefixes):
    whole, less = (dict(medivista("fusion", **s).named_parameters()) for s in ({}, switch))
    assert set(less) < set(whole)
    assert all(name.startswith(prefixes) for name in set(whole) - set(less))


@pytest.mark.parametrize("switch", [{"mlp_residual": True}, {"cross_frame": False}, {"temporal": False}])
def test_switches_change_the_result(switch):
    whole, other = medivista(), medivista(**switch)
    other.load_state_dict(whole.state_dict(), strict=False)
    assert not torch.allclose(logits(whole, clips()), logits(other, clips()), atol=1e-3)


def test_positions_of_sam_are_alive():
    model = medivista()
    for name in ("image_encoder.pos_embed", "image_encoder.patch_embed.proj.weight", "attn.rel_pos_h"):
        changed = copy.deepcopy(model)
        for own, x in changed.named_parameters():
            if own.endswith(name):
                nn.init.normal_(x)
        assert not torch.allclose(logits(model, clips()), logits(changed, clips()), rtol=0, atol=1e-5), name


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_attention_is_that_of_timm(size):
    torch.manual_seed(0)
    theirs = Attention(32, 4, use_rel_pos=True, input_size=(8, 8))
    nn.init.normal_(theirs.rel_pos_h)
    nn.init.normal_(theirs.rel_pos_w)
    ours = FrameAttention(32, 4, use_rel_pos=True, input_size=(8, 8))
    ours.load_state_dict(theirs.state_dict())
    ours, theirs = ours.double(), theirs.double()
    x = torch.randn(3, *size, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


SHAPE = Variant(dim=32, depth=3, heads=4, global_blocks=(1, 2), window=3, grid=8)


def sam_like(**more):
    torch.manual_seed(0)
    encoder = SamEncoder(SHAPE, 8, **more)
    for name, x in encoder.named_parameters():
        if "rel_pos" in name or name == "pos_embed":
            nn.init.normal_(x, std=0.2)
    return encoder.eval()


def test_encoder_is_that_of_timm():
    theirs = VisionTransformerSAM(
        img_size=128, num_classes=0, embed_dim=32, depth=3, num_heads=4, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1, 2), norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()  # fmt: skip
    ours = sam_like()
    theirs.load_state_dict(ours.state_dict())
    frames = torch.rand(2, 3, 128, 128)
    torch.testing.assert_close(ours.encode(frames, Clip(1, 2)), theirs.forward_features(frames), rtol=1e-4, atol=1e-5)


def test_the_second_version_starts_as_sam():
    plain, fusion = sam_like(), sam_like(temporal=True, cross_branch=True, low_rank=4)
    fusion.load_state_dict(plain.state_dict(), strict=False)
    frames, clip = torch.rand(4, 1, 48, 64), Clip(2, 2)
    torch.testing.assert_close(fusion(frames, clip), plain(frames, clip))
    nn.init.normal_(fusion.factors.v.weight)
    assert not torch.allclose(fusion(frames, clip), plain(frames, clip), atol=1e-3)


def test_positions_of_another_grid_keep_their_corners_mean():
    table = torch.arange(16.0).view(1, 4, 4, 1).expand(1, 4, 4, 2)
    assert resized_positions(table, (4, 4)) is table
    half = resized_positions(table, (2, 2))[0, ..., 0]
    torch.testing.assert_close(half, torch.tensor([[2.5, 4.5], [10.5, 12.5]]))


def test_wavelet_detail():
    frames = torch.zeros(2, 1, 8, 12)
    assert (wavelet_detail(frames) == 0).all()
    frames[0, 0, 3, 5] = 1  # one bright pixel: detail there, none elsewhere
    frames[1] = torch.rand(1, 8, 12)
    detail = wavelet_detail(frames)
    assert detail.shape == frames.shape
    assert (detail.amin((1, 2, 3)) == 0).all()
    assert (detail.amax((1, 2, 3)) == 1).all()
    darkest = detail[0].flatten().mode().values
    assert (detail[0] - darkest).abs().flatten().argmax() // 12 in (2, 3)
    torch.testing.assert_close(wavelet_detail(0.1 + 0.5 * frames), detail)  # brightness and contrast do not matter
    assert stretched(torch.full((1, 1, 2, 2), 3.0)).tolist() == [[[[0, 0], [0, 0]]]]


def test_detail_passes_a_gate():
    gate = DetailGate()
    image, detail = torch.rand(1, 3, 4, 4), torch.rand(1, 1, 4, 4)
    nn.init.zeros_(gate.gate.weight)
    nn.init.constant_(gate.gate.bias, -50.0)
    torch.testing.assert_close(gate(image, detail), image)
    nn.init.constant_(gate.gate.bias, 50.0)
    torch.testing.assert_close(gate(image, detail), image + detail)


@WIRING
def test_checkpointing_changes_nothing_but_memory(wiring):
    """Also not the statistics of batch norms, which see every batch twice."""
    models = [medivista(wiring, checkpointing=on).train() for on in (False, True)]
    for module in [m for model in models for m in model.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    results = []
    for model in models:
        y = model({"video": clips()})["mask"]
        y.square().mean().backward()
        results.append(y)
    torch.testing.assert_close(results[1], results[0])
    for (name, x), (_, other) in zip(*(m.named_parameters() for m in models), strict=True):
        assert (x.grad is None) == (other.grad is None), name
        if x.grad is not None:
            torch.testing.assert_close(other.grad, x.grad, rtol=1e-4, atol=1e-6, msg=name)
    for (name, x), (_, other) in zip(*(m.named_buffers() for m in models), strict=True):
        assert torch.equal(x, other), name


def saved_elements(model, video):
    """Elements of the activations that the backward pass needs."""
    count = 0

    def pack(x):
        nonlocal count
        count += 0 if isinstance(x, nn.Parameter) else x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model({"video": video})["mask"].sum().backward()
    return count


@WIRING
def test_checkpointing_keeps_less(wiring):
    with_it, without = (saved_elements(medivista(wiring, checkpointing=on).train(), clips()) for on in (True, False))
    assert with_it < 0.75 * without


@WIRING
def test_autocast(wiring):
    model, video = medivista(wiring), clips()
    exact = logits(model, video)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model({"video": video})["mask"]
        y.float().square().mean().backward()
    assert y.isfinite().all()
    # batch norms that divide by the little that varies in a random network enlarge what rounding does
    assert torch.corrcoef(torch.stack([y.float().flatten(), exact.flatten()]))[0, 1] > 0.95
    assert all(x.grad is None or x.grad.isfinite().all() for x in model.parameters())


SAM_STEPS = ("norm1", "attn", "norm2", "mlp")
SAM_ENDS = ("image_encoder.pos_embed", "image_encoder.patch_embed.", "image_encoder.neck.")


@pytest.mark.parametrize("choice", TRAINABLE)
@WIRING
def test_what_stays_frozen(wiring, choice):
    """SAM's part of the blocks; with ``adapters`` the ends of its encoder, too."""

    def trained(name):
        return any(name == p or name.startswith(f"{p}.") or fnmatch.fnmatchcase(name, p) for p in TRAINABLE[choice])

    def of_sam(name):
        step = name.startswith("image_encoder.blocks.") and name.split(".")[3] in SAM_STEPS
        return step or (choice == "adapters" and name.startswith(SAM_ENDS))

    names = [name for name, _ in medivista(wiring).named_parameters()]
    assert {name for name in names if not trained(name)} == {name for name in names if of_sam(name)}


@pytest.mark.parametrize(
    ("video", "text"),
    [
        (torch.rand(1, 2, 3, 32, 32), "The video has 3 channels; MediViSTA-SAM takes grey frames (clip.channels=1)."),
        (torch.rand(1, 2, 1, 40, 32), "Frames of 40x32 pixels do not fit: height and width must be multiples of 16"),
    ],
)
def test_refused_videos(video, text):
    with pytest.raises(ConfigError) as error:
        medivista()({"video": video})
    assert text in str(error.value)


@pytest.mark.parametrize("outputs", [(), output(task="classification"), (*output(), *output())])
def test_refused_outputs(outputs):
    with pytest.raises(ConfigError, match="predicts exactly one segmentation; asked for: "):
        build(MediViSTAConfig(variant="tiny"), outputs)
