"""The terms of the edge branch: what they teach, what they refuse, where they are off. Parity is in test_parity."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from medvid_core.errors import CheckpointError, ConfigError
from medvid_core.specs import OutputSpec
from medvid_vivim.config import StructureLossConfig, VivimConfig
from medvid_vivim.losses import build_structure
from medvid_vivim.losses.edges import edges_by_distance, edges_by_sobel
from medvid_vivim.losses.joint import PaperEdgeLoss, ReleasedEdgeLoss
from medvid_vivim.losses.regressor import SHAPES, Regressor
from medvid_vivim.losses.structure import StructureLoss
from medvid_vivim.network import build

SIZE = 24


def masks(classes=1):
    return (OutputSpec(name="mask", task="segmentation", classes=tuple(f"class {k}" for k in range(classes))),)


@pytest.fixture(scope="module")
def regressor():
    """Random weights: the term is tried, not what it says."""
    g = torch.Generator().manual_seed(0)
    scaled = {name: torch.randn(shape, generator=g) * (shape[-1] ** -0.5) for name, shape in SHAPES.items()}
    return Regressor(scaled)


def edge_loss(form, regressor, classes=1, frames="all"):
    structure = build_structure(StructureLossConfig(frames=frames), masks(classes))
    assert isinstance(structure, StructureLoss)
    return (ReleasedEdgeLoss if form == "released" else PaperEdgeLoss)(structure, regressor)


def example(channels, classes=1, clips=2, frames=2, seed=0):
    """A square that moves down the picture frame by frame, with a hole of unlabelled pixels."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(clips, frames, SIZE, SIZE).long()
    for clip in range(clips):
        for frame in range(frames):
            mask[clip, frame, 3 + 4 * frame : 10 + 4 * frame, 4 + clip : 13] = max(1, classes - 1)
    mask[:, :, :3, 18:] = 255
    marks = torch.ones(clips, frames, dtype=torch.bool)
    outputs = {
        "mask": torch.randn(clips, frames, classes, SIZE, SIZE, generator=g),
        "edge": torch.randn(clips, frames, channels, SIZE, SIZE, generator=g),
    }
    return outputs, {"mask": mask, "frame_real": marks, "mask_labelled": marks.clone()}


def gradients(loss, outputs, batch, part):
    leaves = {name: value.clone().requires_grad_() for name, value in outputs.items()}
    total = loss(leaves, batch)[part]
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def test_edges_by_distance_by_hand():
    """One pixel of the object: its disc of radius 2 is edge, and the border of the picture two pixels wide."""
    mask = torch.zeros(1, 11, 11).long()
    mask[0, 5, 5] = 1
    edges, known = edges_by_distance(mask, 2)
    y, x = torch.meshgrid(torch.arange(11), torch.arange(11), indexing="ij")
    disc = (y - 5) ** 2 + (x - 5) ** 2 <= 4
    border = (torch.minimum(y, 10 - y) < 2) | (torch.minimum(x, 10 - x) < 2)
    assert torch.equal(edges[0], disc | border)
    assert known.all()


def test_edges_by_sobel_by_hand():
    """Two pixels along a straight outline, one on each side; the border of the picture is none."""
    mask = torch.zeros(1, 8, 8).long()
    mask[0, :, 4:] = 1
    edges, known = edges_by_sobel(mask, 2)
    assert torch.equal(edges[0], torch.arange(8).repeat(8, 1).ge(3) & torch.arange(8).repeat(8, 1).le(4))
    assert known.all()
    assert not edges_by_sobel(torch.ones_like(mask), 2)[0].any()


@pytest.mark.parametrize(("draw", "reach"), [(edges_by_distance, 2), (edges_by_sobel, 1)])
def test_nothing_is_known_beside_unlabelled_pixels(draw, reach):
    mask = torch.zeros(1, 12, 12).long()
    mask[0, :, 6] = 255
    known = draw(mask, 2)[1][0]
    assert (~known).any(0).nonzero().flatten().tolist() == list(range(6 - reach, 7 + reach))


def test_edges_of_all_classes():
    mask = torch.zeros(1, 9, 9).long()
    mask[0, :, 3:6], mask[0, :, 6:] = 1, 2
    assert edges_by_sobel(mask, 3)[0].any(1)[0].nonzero().flatten().tolist() == [2, 3, 5, 6]


def test_the_released_affine_term_has_no_gradient(regressor):
    outputs, batch = example(1)
    loss = edge_loss("released", regressor)
    found = gradients(loss, outputs, batch, "affine")
    assert not any(gradient.any() for gradient in found.values())
    other = {**outputs, "edge": outputs["edge"] * 3 - 1}
    assert torch.equal(loss(outputs, batch)["affine"], loss(other, batch)["affine"])
    notes = loss.check_training(build(VivimConfig(edge=True, **TINY), masks()), ())
    assert notes == [
        "loss.edge=released: the affine term is a constant, it teaches nothing. loss.edge=paper has one that does."
    ]


@pytest.mark.parametrize("classes", [1, 3])
def test_the_papers_affine_term_has_one(regressor, classes):
    """It reaches the edge branch in every frame, is that of finite differences, and following it downhill lowers it."""
    outputs, batch = example(2, classes, clips=1)
    loss = edge_loss("paper", regressor, classes)
    gradient = gradients(loss, outputs, batch, "affine")["edge"]
    assert gradient.isfinite().all()
    assert (gradient.flatten(2).norm(dim=2) > 0).all()
    before = loss(outputs, batch)["affine"]
    step = 1e-2 * gradient / gradient.norm()
    up, down = (loss({**outputs, "edge": outputs["edge"] + sign * step}, batch)["affine"] for sign in (1, -1))
    assert down < before < up
    torch.testing.assert_close((up - down) / 2, (gradient * step).sum(), rtol=2e-2, atol=0)


def test_the_papers_affine_term_by_its_parts(regressor):
    """0.3 times d(t, t) - 0.01 d(t, 1) of each frame t; the first one has its own distance alone."""
    outputs, batch = example(2, clips=1, frames=3)
    edges, known = edges_by_sobel(batch["mask"][0], 2)
    predicted = outputs["edge"][0].log_softmax(1)

    def distance(frame, other):
        seen = (known[frame] & known[other])[None, None].float()
        true = torch.stack([~edges[other], edges[other]])[None].float()
        return regressor.distance(predicted[frame : frame + 1] * seen, true * seen)

    own = sum(distance(frame, frame) for frame in range(3))
    first = sum(distance(frame, 0) for frame in (1, 2))
    got = edge_loss("paper", regressor)(outputs, batch)["affine"]
    torch.testing.assert_close(got, 0.3 * (own - 0.01 * first)[0])
    centre = edge_loss("paper", regressor, frames="centre")(outputs, batch)["affine"]
    torch.testing.assert_close(centre, 0.3 * (distance(1, 1) - 0.01 * distance(1, 0))[0])


def test_the_cross_entropy_of_edges_is_balanced_within_a_clip():
    """Logits 0 everywhere: log 2, once for what is on edges and once for the rest, times the product of the shares."""
    outputs, batch = example(2, clips=1)
    outputs["edge"].zero_()
    loss = edge_loss("paper", None)
    edges, known = edges_by_sobel(batch["mask"][0], 2)
    share = (edges & known).sum() / known.sum()
    wanted = 0.3 * torch.tensor(2.0).log() * 2 * share * (1 - share)
    torch.testing.assert_close(loss(outputs, batch)["edge"] / loss.counts(batch)["edge"], wanted)


def test_attention_pulls_to_foreground_away_from_predicted_edges():
    """As released: labels count only where the edge branch says edge, everything else is to be foreground."""
    outputs, batch = example(1)
    loss = edge_loss("released", None)
    batch["mask"].zero_()
    everywhere = {**outputs, "edge": torch.full_like(outputs["edge"], 0.81)}
    nowhere = {**outputs, "edge": torch.full_like(outputs["edge"], 0.79)}
    assert (gradients(loss, everywhere, batch, "attention/bce")["mask"] >= 0).all()
    assert (gradients(loss, nowhere, batch, "attention/bce")["mask"] <= 0).all()
    assert not gradients(loss, outputs, batch, "attention/bce")["edge"].any()


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("frames", ["centre", "all"])
def test_any_division_of_the_batch_gives_the_same(form, frames, regressor):
    outputs, batch = example(1 if form == "released" else 2)
    batch["mask_labelled"][1, 0] = False
    loss = edge_loss(form, regressor, frames=frames)
    whole = loss.counts(batch), loss(outputs, batch)
    halves = [(slice(n, n + 1)) for n in range(2)]
    for name in whole[1]:
        counts = [loss.counts({k: v[half] for k, v in batch.items()})[name] for half in halves]
        sums = [
            loss({k: v[half] for k, v in outputs.items()}, {k: v[half] for k, v in batch.items()})[name]
            for half in halves
        ]
        assert whole[0][name] == sum(counts)
        torch.testing.assert_close(whole[1][name], sum(sums))


@pytest.mark.parametrize("form", ["released", "paper"])
def test_what_is_not_annotated_changes_nothing(form, regressor):
    outputs, batch = example(1 if form == "released" else 2)
    batch["mask_labelled"][0, 1] = False
    batch["frame_real"][1, 1] = False
    loss = edge_loss(form, regressor)
    frames = batch["frame_real"] & batch["mask_labelled"]
    unknown = (batch["mask"] == 255)[:, :, None] | ~frames[:, :, None, None, None]
    other = {name: torch.where(unknown, value - 5, value) for name, value in outputs.items()}
    for name, total in loss(outputs, batch).items():
        torch.testing.assert_close(loss(other, batch)[name], total)
    batch["mask_labelled"][:] = False
    assert all(not count for count in loss.counts(batch).values())
    assert all(total == 0 for total in loss(outputs, batch).values())


TINY = {
    "depths": (1, 1, 1, 1),
    "widths": (4, 4, 8, 8),
    "heads": (1, 1, 2, 2),
    "decoder_width": 8,
    "reductions": (1, 1, 1, 1),
    "mamba_depths": (1, 1, 1, 1),
    "state_size": 2,
}


@pytest.mark.parametrize("form", ["released", "paper"])
def test_the_whole_edge_head_learns(form):
    model = build(VivimConfig(edge=True, edge_head=form, **TINY), masks())
    batch = example(1)[1]
    outputs = model({"video": torch.rand(2, 2, 3, SIZE, SIZE)})
    assert outputs["edge"].shape == (2, 2, model.edge_channels, SIZE, SIZE)
    sum(edge_loss(form, None)(outputs, batch).values()).backward()
    head = [p for name, p in model.named_parameters() if name.startswith("edgeocr_cls_head.")]
    assert len(head) == (2 if form == "released" else 6)
    assert all(p.grad is not None and p.grad.any() for p in head)


def test_the_term_is_off_without_regressor_and_says_so():
    outputs, batch = example(2)
    loss = build_structure(StructureLossConfig(edge="paper"), masks())
    assert set(loss.counts(batch)) == set(loss(outputs, batch)) == {"bce", "iou", "edge"}
    model = build(VivimConfig(edge=True, edge_head="paper", **TINY), masks())
    assert loss.check_training(model, ()) == [
        "loss.edge=paper without loss.regressor: its affine term is switched off, the others stay. It needs the "
        "pretrained regressor of InverseForm (distance_measures_regressor.pth)."
    ]


def test_the_wrong_edge_head_is_refused():
    """loss.edge=paper teaches an edge head of 2 channel(s), and the network has 1. Set model.edge=true and model.edge_head=paper."""  # noqa: E501
    loss = build_structure(StructureLossConfig(edge="paper"), masks())
    with pytest.raises(ConfigError) as error:
        loss.check_training(build(VivimConfig(edge=True, **TINY), masks()), ())
    assert str(error.value) == test_the_wrong_edge_head_is_refused.__doc__
    with pytest.raises(ConfigError, match="the network has none"):
        loss.check_training(build(VivimConfig(**TINY), masks()), ())


def test_an_edge_head_that_learns_nothing_is_told():
    loss = build_structure(StructureLossConfig(), masks())
    notes = ["model.edge=true, but the edge head learns nothing: set loss.edge=released or loss.edge=paper."]
    assert loss.check_training(build(VivimConfig(edge=True, **TINY), masks()), ()) == notes
    assert loss.check_training(build(VivimConfig(**TINY), masks()), ()) == []


def test_several_classes_as_released_are_refused():
    """loss.edge=released is for one class, as the released code; the data have 3. Use loss.edge=paper."""
    with pytest.raises(ConfigError) as error:
        build_structure(StructureLossConfig(edge="released"), masks(3))
    assert str(error.value) == test_several_classes_as_released_are_refused.__doc__


@pytest.mark.parametrize("prefix", ["", "criterion.inverse_distance.inversenet."])
def test_the_regressor_is_read_from_its_file(tmp_path, regressor, prefix):
    """From its own, or from a checkpoint in which it is one part."""
    path = tmp_path / "weights.safetensors"
    save_file({f"{prefix}{name}": value for name, value in regressor.weights.items()} | {"a": torch.zeros(1)}, path)
    loss = build_structure(StructureLossConfig(edge="paper", regressor=str(path)), masks())
    assert isinstance(loss, PaperEdgeLoss)
    assert loss.regressor is not None
    assert all(torch.equal(loss.regressor.weights[name], regressor.weights[name]) for name in SHAPES)


def test_a_file_without_regressor_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"fc.0.weight": torch.zeros(3, 4)}, path)
    with pytest.raises(CheckpointError) as error:
        build_structure(StructureLossConfig(edge="paper", regressor=str(path)), masks())
    assert str(error.value) == (
        f"{path} (loss.regressor) does not hold InverseForm's regressor: fc.0, fc.2 and fc.4 with weights of "
        "(1000, 100352), (32, 1000), (4, 32). Give distance_measures_regressor.pth of its release, or leave "
        "loss.regressor out."
    )
    with pytest.raises(CheckpointError, match="does not exist"):
        build_structure(StructureLossConfig(edge="paper", regressor=str(tmp_path / "absent.pth")), masks())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "plain"}, "loss.form='plain' must be released, intended or ovarian."),
        ({"edge": "sobel"}, "loss.edge='sobel' must be none, released or paper."),
        (
            {"regressor": "weights.pth"},
            "loss.regressor has no effect with loss.edge=none. Set loss.edge=paper or leave it out.",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        StructureLossConfig(**settings)
    assert str(error.value) == message
