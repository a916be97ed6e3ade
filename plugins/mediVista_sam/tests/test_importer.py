"""Published weights: every key is accounted for, or the file is refused in words and the model left as it was."""

from __future__ import annotations

import fnmatch
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from medvid_core.errors import CheckpointError
from medvid_core.specs import OutputSpec
from medvid_core.weights import read_state
from medvid_medivista_sam.config import PATCH, MediViSTAConfig
from medvid_medivista_sam.importer import (
    EARLIER_BLOCKS,
    FIRST_VERSION,
    _renamed,
    grey_patch_embedding,
    import_hf,
    import_meta,
    import_timm,
    import_v1,
    import_v2,
)
from medvid_medivista_sam.network import build
from medvid_medivista_sam.network.attention import Clip
from medvid_medivista_sam.network.encoder import SAM_MEAN, SAM_STD
from medvid_medivista_sam.network.layers import resized_positions
from medvid_medivista_sam.plugin import PROMPT_ONLY, TRAINABLE

_SPEC = importlib.util.spec_from_file_location("medivista_layouts", Path(__file__).with_name("layouts.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
layouts = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(layouts)
meta_file, plain_sam = layouts.meta_file, layouts.plain_sam

TABLES = Path(__file__).resolve().parents[3].parent / "shared" / "reference" / "medivista_sam"
pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # of counters, into shapes
needs_tables = pytest.mark.skipif(
    not TABLES.is_dir(), reason="the key lists (shared/reference/medivista_sam beside the repository) are absent"
)
WIRING = pytest.mark.parametrize("wiring", ["released", "paper", "fusion"])


def medivista(wiring="paper", classes=4, variant="tiny", **config):
    names = tuple(f"class {k}" for k in range(classes))
    outputs = (OutputSpec(name="mask", task="segmentation", classes=names),)
    settings = {"sam_positions": True, **config} if wiring == "paper" else config  # all of SAM alive
    return build(MediViSTAConfig(wiring=wiring, variant=variant, **settings), outputs)


def table(name):
    """Key, shape and further columns of a list of keys; tensors on the meta device."""
    lines = (TABLES / name).read_text().splitlines()
    rows = [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]
    key = next(iter(rows[0]))
    shapes = {r[key]: [int(n) for n in r["shape"].split("x")] if r["shape"] not in ("", "scalar") else [] for r in rows}
    return rows, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def on_meta(*args, **config):
    with torch.device("meta"):
        return medivista(*args, **config)


def values(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@needs_tables
@WIRING
def test_every_key_of_sam_vit_b(wiring):
    rows, state = table("sam_vit_b_key_map.tsv")
    assert len(rows) == 314
    model = on_meta(wiring, variant="vit_b")
    report = import_meta(state, model)
    dropped = dict(report.dropped)
    assert len(report.loaded) + len(dropped) == 314
    assert set(report.loaded) | set(report.initialised) == set(model.state_dict())
    assert sum("SAM's own masks" in why for why in dropped.values()) == 25
    assert sum("quality" in why for why in dropped.values()) == 6
    if wiring == "fusion":
        assert len(dropped) == 31
        assert not any(name.endswith(("bias", "weight")) and "norm" in name for name in report.initialised)
    if wiring == "paper":  # the published loading code also has no place for relative positions
        assert {why for key, why in dropped.items() if "neck" in key} == {
            "the encoder ends in a convolution of its own"
        }
        assert len(dropped) == 31 + 6 + 6  # neck, and the way up
        assert [name for name, *_ in report.resized] == ["image_encoder.patch_embed.proj.weight"]
    if wiring == "released":
        assert len(dropped) == 314 - len(report.loaded)
        assert "image_encoder.blocks.11.attn.rel_pos_h" in dropped


@needs_tables
@pytest.mark.parametrize("wiring", ["released", "paper"])
def test_every_key_of_the_first_version(wiring):
    rows, state = table("state_dict.tsv")
    assert (
        len(rows),
        sum(x.numel() for row, x in zip(rows, state.values(), strict=True) if row["kind"] == "param"),
    ) == (
        728,
        157_862_644,
    )
    model = on_meta(wiring, variant="vit_b", grid=8)
    report = import_v1(state, model)
    dropped = dict(report.dropped)
    assert len(report.loaded) + len(dropped) == 728
    assert report.resized == ()
    dead = {row["key"] for row in rows if row["gets_gradient_in_released_forward"] == "DEAD"}
    prompts = {key for key in dead if any(fnmatch.fnmatch(key, pattern) for pattern in PROMPT_ONLY)}
    if wiring == "released":
        parameters = {row["key"] for row in rows if row["kind"] == "param"}
        assert {key for key in dropped if key in parameters} == dead - prompts
        assert sum(state[key].numel() for key in dead) == 136_130_400
        assert report.initialised == ()
        assert sum(x.numel() for x in model.parameters()) == 157_862_644 - 136_130_400 + sum(
            state[key].numel() for key in prompts
        )
    else:
        assert not any(key.startswith("image_encoder.blocks.") for key in dropped)
        assert {name.split(".")[3] for name in report.initialised} == {"cross_norm", "attn"}


@needs_tables
def test_the_figures_choice_of_what_is_trained():
    """As the first version's figure has it, key by key."""
    rows, _ = table("state_dict.tsv")
    own = set(on_meta("paper", variant="vit_b").state_dict())
    compared = 0
    for row in rows:
        name = _renamed(row["key"], FIRST_VERSION)
        if name in own and row["figure_rule"] != "-":
            patterns = TRAINABLE["figure"]
            trained = any(f"{name}.".startswith(f"{p}.") or fnmatch.fnmatchcase(name, p) for p in patterns)
            assert trained == (row["figure_rule"] == "trained"), name
            compared += 1
    assert compared > 400


@needs_tables
def test_every_key_of_the_second_version():
    rows, state = table("state_dict_v2_SekeunKim_MediViSTA.tsv")
    assert len(rows) == 604
    model = on_meta("fusion", variant="vit_b", grid=16)
    report = import_v2(state, model)
    dropped = dict(report.dropped)
    assert len(report.loaded) + len(dropped) == 604
    assert report.resized == ()
    assert {name.split(".")[-3 if "cores" in name else 1] for name in report.initialised} == {
        "branch",
        "cores",
        "factors",
    }
    new = sum(model.get_parameter(name).numel() for name in report.initialised)
    dead = sum(state[key].numel() for key in dropped)
    assert sum(x.numel() for x in model.parameters()) - new + dead == 216_351_880


@WIRING
def test_sam_fills_what_it_has(wiring, tmp_path):
    state = meta_file()
    torch.save(state, tmp_path / "sam_vit_b_01ec64.pth")
    model = medivista(wiring)
    before = values(model)
    report = import_meta(read_state(tmp_path / "sam_vit_b_01ec64.pth"), model)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in report.initialised)
    last = "image_encoder.blocks.0" if wiring == "released" else "image_encoder.blocks.1"
    assert torch.equal(after[f"{last}.mlp.fc1.weight"], state["image_encoder.blocks.1.mlp.lin1.weight"])
    assert torch.equal(after["mask_decoder.iou_token.weight"], state["mask_decoder.iou_token.weight"])
    assert not torch.equal(after["mask_decoder.mask_tokens.weight"], state["mask_decoder.mask_tokens.weight"])
    assert "  dropped, belongs to SAM's own masks, which are not the classes here: mask_decoder.mask_" in report.text()
    assert "left as initialised: " in report.text()
    assert "image_encoder.stem.levels.0.0.weight" in report.initialised or wiring == "fusion"


def test_embeddings_are_those_of_sam():
    """Of the whole network that the second version starts from."""
    state, fusion, plain = meta_file(), medivista("fusion"), plain_sam()
    import_meta(state, fusion)
    import_meta(state, plain)
    frames = torch.rand(2, 1, 48, 64)
    torch.testing.assert_close(fusion.image_encoder(frames, Clip(1, 2)), plain.image_encoder(frames, Clip(1, 2)))


def test_grey_frames_are_embedded_as_sam_does():
    state, model = meta_file(), medivista()
    report = import_meta(state, model)
    weight, bias = (state[f"image_encoder.patch_embed.proj.{part}"] for part in ("weight", "bias"))
    frames = torch.rand(2, 1, 32, 32)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (SAM_MEAN, SAM_STD))
    wanted = F.conv2d((255 * frames.double() - mean) / std, weight.double(), bias.double(), stride=PATCH)
    got = model.image_encoder.patch_embed(frames).permute(0, 3, 1, 2)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-3)
    assert report.resized == (("image_encoder.patch_embed.proj.weight", (32, 3, 16, 16), (32, 1, 16, 16)),)
    assert grey_patch_embedding(weight, bias)[0].shape == (32, 1, 16, 16)


@WIRING
def test_tables_of_another_grid_are_resized(wiring):
    state, model = meta_file(grid=12), medivista(wiring)
    report = import_meta(state, model)
    names = {name for name, *_ in report.resized} - {"image_encoder.patch_embed.proj.weight"}
    if wiring == "released":
        assert names == set()
        return
    tables = {f"image_encoder.blocks.1.attn.rel_pos_{axis}" for axis in "hw"}  # of the global block
    assert names == tables | {"image_encoder.pos_embed"}
    wanted = resized_positions(state["image_encoder.pos_embed"], (8, 8))
    torch.testing.assert_close(model.image_encoder.pos_embed.detach(), wanted)
    assert "  resized, image_encoder.pos_embed: (1, 12, 12, 32) in the file, (1, 8, 8, 32) here" in report.text()
    same = medivista(wiring, grid=12)
    assert not {n for n, *_ in import_meta(state, same).resized} & names
    assert torch.equal(same.image_encoder.pos_embed, state["image_encoder.pos_embed"])


def timm_network():
    torch.manual_seed(3)
    net = VisionTransformerSAM(
        img_size=128, num_classes=0, embed_dim=32, depth=2, num_heads=4, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1,), norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    for x in net.parameters():
        nn.init.normal_(x, std=0.2)
    return net.eval()


def test_timm_gives_the_encoder():
    net, model = timm_network(), medivista("fusion").eval()
    before = values(model)
    report = import_timm(net.state_dict(), model)
    assert report.dropped == ()
    outside = [name for name in model.state_dict() if not name.startswith("image_encoder.")]
    assert set(outside) <= set(report.initialised)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in outside)
    frames = torch.rand(2, 1, 128, 128)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (SAM_MEAN, SAM_STD))
    wanted = net.forward_features((255 * frames - mean) / std)
    torch.testing.assert_close(model.image_encoder(frames, Clip(1, 2)), wanted, rtol=1e-4, atol=1e-4)


def test_timm_classifiers_are_dropped():
    state = {**timm_network().state_dict(), "head.fc.weight": torch.zeros(5, 256), "head.fc.bias": torch.zeros(5)}
    assert {why for _, why in import_timm(state, medivista("fusion")).dropped} == {"timm's classifier"}


def transformers_network():
    pytest.importorskip("transformers")
    # which imports torchaudio wherever it is there, be it of another CUDA version and unusable
    audio = types.ModuleType("torchaudio")
    audio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    # not mock.patch.dict, which would forget every module that is imported meanwhile, and have it made a second time
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchaudio", audio)
        library = importlib.import_module("transformers.models.sam.modeling_sam")
        config = importlib.import_module("transformers.models.sam.configuration_sam")
    torch.manual_seed(3)
    vision = config.SamVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=128, mlp_dim=128, window_size=3,
        global_attn_indexes=[1], output_channels=256, num_pos_feats=128,
    )  # fmt: skip
    prompts = config.SamPromptEncoderConfig(image_size=128)
    decoder = config.SamMaskDecoderConfig(mlp_dim=64, layer_norm_eps=1e-5)
    parts = {"vision_config": vision, "prompt_encoder_config": prompts, "mask_decoder_config": decoder}
    net = library.SamModel(config.SamConfig(**parts))
    for x in net.parameters():
        nn.init.normal_(x, std=0.2)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize("left_out", [None, "prompt_encoder.shared_embedding.positional_embedding"])
def test_transformers_gives_all_of_sam(left_out):
    """The table of Fourier features is there twice, or once where a file stores no tensor twice."""
    net = transformers_network()
    state = {key: x for key, x in net.state_dict().items() if key != left_out}
    plain = plain_sam().eval()
    import_hf(state, plain)
    image = torch.randn(1, 3, 128, 128)
    embedding = plain.image_encoder.encode(image, Clip(1, 1))
    torch.testing.assert_close(embedding, net.get_image_embeddings(image), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.prompt_encoder.positions(8, 8), net.get_image_wide_positional_embeddings())
    model = medivista("fusion")
    report = import_hf(state, model)
    assert len(report.dropped) == 1 + 24 + 6
    assert torch.equal(model.mask_decoder.output_upscaling[3].weight, net.mask_decoder.upscale_conv2.weight)
    assert torch.equal(model.prompt_encoder.mask_downscaling[6].bias, net.prompt_encoder.mask_embed.conv3.bias)
    assert torch.equal(
        model.mask_decoder.transformer.layers[1].norm4.weight, net.mask_decoder.transformer.layers[1].layer_norm4.weight
    )


@torch.no_grad()
def test_transformers_decodes_the_same():
    net, plain = transformers_network(), plain_sam().eval()
    state = net.state_dict()
    import_hf(state, plain)
    decoder = plain.mask_decoder
    decoder.mask_tokens.load_state_dict(net.mask_decoder.mask_tokens.state_dict())
    for ours, theirs in zip(decoder.output_hypernetworks_mlps, net.mask_decoder.output_hypernetworks_mlps, strict=True):
        for layer, source in zip(ours.layers, (theirs.proj_in, theirs.layers[0], theirs.proj_out), strict=True):
            layer.load_state_dict(source.state_dict())
    embedding = torch.randn(1, 256, 8, 8)
    points, labels = torch.tensor([[[30.0, 40.0], [100.0, 7.0]]]), torch.tensor([[1, 0]])
    prompts = plain.prompt_encoder
    masks = decoder(
        embedding, prompts.positions(8, 8), prompts.sparse((128, 128), points, labels), prompts.dense((8, 8))
    )
    wanted = net(image_embeddings=embedding, input_points=points[None], input_labels=labels[None]).pred_masks[0]
    torch.testing.assert_close(masks[:, 1:], wanted, rtol=1e-3, atol=1e-3)


REFUSED = {
    "another variant": (
        lambda: meta_file("small"),
        medivista,
        import_meta,
        "The file (Meta SAM) has 4 blocks of width 96, the model 2 of width 32. Set model.variant=small.",
    ),
    "no variant at all": (
        lambda: {f"image_encoder.blocks.{i}.norm1.weight": torch.zeros(8) for i in range(3)},
        medivista,
        import_meta,
        "has 3 blocks of width 8, the model 2 of width 32. No model.variant is of that size.",
    ),
    "another network": (
        lambda: {"conv.weight": torch.zeros(3)},
        medivista,
        import_meta,
        "The file holds no image encoder of the kind Meta SAM: it has no block 0.",
    ),
    "keys missing": (
        lambda: {k: x for k, x in meta_file().items() if "no_mask_embed" not in k},
        partial(medivista, "fusion"),
        import_meta,
        "missing from the file: prompt_encoder.no_mask_embed.weight",
    ),
    "keys too many": (
        lambda: {**meta_file(), "image_encoder.blocks.0.attn.gamma": torch.zeros(3)},
        medivista,
        import_meta,
        "no place in the model: image_encoder.blocks.0.attn.gamma",
    ),
    "another window": (
        lambda: {
            k: torch.zeros(7, 9) if k == "image_encoder.blocks.0.attn.rel_pos_h" else x for k, x in meta_file().items()
        },
        medivista,
        import_meta,
        "image_encoder.blocks.0.attn.rel_pos_h: shape (7, 9) in the file, (5, 8) in the model",
    ),
    "the first version for the second": (
        meta_file,
        partial(medivista, "fusion"),
        import_v1,
        "Weights of the first version need model.wiring=released or model.wiring=paper.",
    ),
    "the second version for the first": (
        meta_file,
        medivista,
        import_v2,
        "Weights of the second version need model.wiring=fusion.",
    ),
    "SAM as the first version": (meta_file, medivista, import_v1, "missing from the file: "),
    "a timm file as Meta's": (
        lambda: timm_network().state_dict(),
        medivista,
        import_meta,
        "The file holds no image encoder of the kind Meta SAM",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_files(case):
    state, model, load, text = REFUSED[case]
    model = model()
    before = values(model)
    with pytest.raises(CheckpointError) as error:
        load(state(), model)
    assert text in str(error.value)
    assert unchanged(model, before)


def test_other_models_are_refused():
    with pytest.raises(CheckpointError, match="These weights are for MediViSTA-SAM; the model is Linear"):
        import_meta({}, nn.Linear(2, 2))


def first_version_file(classes=4):
    """A state dict in the first version's layout, of the tiny network."""
    _, state = table("state_dict.tsv")
    model = medivista("released", classes)
    own = model.state_dict()
    found = {}
    for key in state:
        name = _renamed(key, FIRST_VERSION).replace("image_encoder.blocks.11.", "image_encoder.blocks.0.")
        if name in own and "image_encoder.blocks.0." not in key:
            found[key.replace("blocks.11.", "blocks.1.")] = torch.randn(own[name].shape)
    earlier = {k.replace("blocks.1.", "blocks.0."): x for k, x in found.items() if "image_encoder.blocks.1." in k}
    return {**found, **earlier, "image_encoder.pos_embed": torch.zeros(1, 4, 4, 32)}


@needs_tables
def test_first_version_needs_as_many_classes():
    import_v1(first_version_file(4), medivista("released", 4))
    with pytest.raises(CheckpointError) as error:
        import_v1(first_version_file(4), medivista("released", 3))
    assert "mask_decoder.mask_tokens.weight: shape (4, 256) in the file, (3, 256) in the model" in str(error.value)
    assert "The output must have as many classes as the file (mask_tokens)" in str(error.value)


@needs_tables
def test_first_version_names_what_it_drops():
    report = import_v1(first_version_file(), medivista("released"))
    text = report.text()
    assert f"  dropped, {EARLIER_BLOCKS}: image_encoder.blocks.*" in text
    assert "  dropped, never used by the published code: image_encoder.pos_embed" in text
