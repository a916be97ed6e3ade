"""Focal, Tversky, their sum, recall, cross-entropy on outlines: right by hand, exact over any division of the batch."""

import math

import pytest
import torch
import torch.nn.functional as F

from medvid_core import OutputSpec, create_loss
from medvid_core.errors import ConfigError

NAMES = ("focal", "tversky", "focal-tversky", "recall", "boundary-ce")
BINARY = OutputSpec(name="mask", task="segmentation", classes=("lesion",))
MULTI = OutputSpec(name="mask", task="segmentation", classes=("background", "solid", "non-solid"))


def batch(output, b=4, t=3, h=6, w=5, seed=0):
    """Random logits and masks with everything messy: unlabelled pixels and frames, padding, a clip without labels."""
    g = torch.Generator().manual_seed(seed)
    k = len(output.classes)
    mask = torch.randint(0, max(2, k), (b, t, h, w), generator=g)
    mask[torch.rand(mask.shape, generator=g) < 0.2] = 255
    real = torch.ones(b, t, dtype=torch.bool)
    real[0, 2:] = False
    labelled = torch.ones(b, t, dtype=torch.bool)
    labelled[1, 1] = False
    labelled[3] = False
    logits = torch.randn(b, t, k, h, w, generator=g)
    return {"mask": logits}, {"mask": mask, "frame_real": real, "mask_labelled": labelled}


def pixels(logits, mask):
    """A batch of one frame with one row of pixels; logits by pixel."""
    data = {"mask": torch.tensor(mask).view(1, 1, 1, -1), "frame_real": torch.ones(1, 1, dtype=torch.bool)}
    x = torch.tensor(logits).T.reshape(1, 1, -1, 1, len(mask))
    return {"mask": x}, {**data, "mask_labelled": data["frame_real"]}


def value(loss, outputs, data) -> float:
    counts = loss.counts(data)
    return float(sum(total / counts[name].clamp(min=1) for name, total in loss(outputs, data).items()))


def test_focal_by_hand():
    """Two pixels of class 0 and 1, probabilities (3/4, 1/4) and (1/2, 1/2); weights 0.05 and 0.95."""
    outputs, data = pixels([[math.log(3), 0.0], [0.0, 0.0]], [0, 1])
    first, second = 0.25**2 * -math.log(0.75), 0.5**2 * -math.log(0.5)
    wanted = (0.05 * (first + second) + 0.95 * (first + second)) / 2
    output = OutputSpec(name="mask", task="segmentation", classes=("background", "lesion"))
    assert value(create_loss("focal", [output]), outputs, data) == pytest.approx(wanted, rel=1e-5)


def test_focal_without_focus_is_weighted_binary_cross_entropy():
    outputs, data = batch(MULTI)
    data["frame_real"][:], data["mask_labelled"][:] = True, True
    data["mask"][data["mask"] == 255] = 0
    p, t = outputs["mask"].softmax(2), F.one_hot(data["mask"], 3).movedim(-1, 2).float()
    weights = torch.tensor([1.0, 2.0, 3.0])
    wanted = (F.binary_cross_entropy(p, t, reduction="none").mean((0, 1, 3, 4)) * weights).sum()
    loss = create_loss("focal", [MULTI], gamma=0.0, alpha=tuple(weights.tolist()))
    assert value(loss, outputs, data) == pytest.approx(float(wanted), rel=1e-4)


def test_weights_by_frequency_are_those_of_each_clip():
    """A clip with 3, 2 and 1 pixels of the classes: weights in proportion to 1/3, 1/2 and 1."""
    outputs, data = pixels(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).tolist(), [0, 0, 0, 1, 1, 2])
    alpha = tuple(x / (1 / 3 + 1 / 2 + 1) for x in (1 / 3, 1 / 2, 1.0))
    by_frequency = create_loss("focal", [MULTI], balance="frequency")
    wanted = value(create_loss("focal", [MULTI], alpha=alpha), outputs, data)
    assert value(by_frequency, outputs, data) == pytest.approx(wanted, rel=1e-5)
    other_outputs, other = pixels([[0.0, 1.0, 2.0]] * 6, [0, 1, 1, 1, 2, 2])
    both = {name: torch.cat([x, other[name]]) for name, x in data.items()}
    together = by_frequency({"mask": torch.cat([outputs["mask"], other_outputs["mask"]])}, both)["focal"]
    parts = by_frequency(outputs, data)["focal"] + by_frequency(other_outputs, other)["focal"]
    torch.testing.assert_close(together, parts)


def test_tversky_by_hand():
    """p of the lesion 0.8, 0.4, 0.2, true at the first two: TP 1.2, FP 0.2, FN 0.8; the background TP 0.8, FP 0.8."""
    outputs, data = pixels([[math.log(p / (1 - p))] for p in (0.8, 0.4, 0.2)], [1, 1, 0])
    lesion, background = 1.2 / (1.2 + 0.3 * 0.2 + 0.7 * 0.8), 0.8 / (0.8 + 0.3 * 0.8 + 0.7 * 0.2)
    wanted = 1 - (lesion + background) / 2
    assert value(create_loss("tversky", [BINARY]), outputs, data) == pytest.approx(wanted, rel=1e-5)


def test_tversky_of_an_absent_class():
    """With the published smoothing a little of it costs nearly 1; with 1, little."""
    outputs, data = pixels([[5.0, 0.0, 0.0]] * 8, [0] * 8)
    p = 8 / (math.exp(5) + 2)  # of each absent class, summed over the pixels
    background = (8 - 2 * p) / (8 - 2 * p + 0.7 * 2 * p)
    for smooth, absent in ((1e-6, 1e-6 / (0.3 * p + 1e-6)), (1.0, 1 / (0.3 * p + 1))):
        shown = background if smooth < 1 else (8 - 2 * p + 1) / (8 - 2 * p + 0.7 * 2 * p + 1)
        loss = create_loss("tversky", [MULTI], smooth=smooth)
        assert value(loss, outputs, data) == pytest.approx(1 - (shown + 2 * absent) / 3, rel=1e-4)
    some, _ = pixels([[0.0, 0.0, 0.0]] * 8, [0] * 8)
    loss = create_loss("tversky", [MULTI], false_positive=0.0, false_negative=0.5)
    assert value(loss, some, data) == pytest.approx((1 - (8 / 3) / (8 / 3 + 0.5 * 16 / 3)) / 3, rel=1e-4)


def test_sum_is_weighted():
    outputs, data = batch(MULTI)
    parts = [value(create_loss(name, [MULTI]), outputs, data) for name in ("focal", "tversky")]
    found = value(create_loss("focal-tversky", [MULTI]), outputs, data)
    assert found == pytest.approx(0.4 * parts[0] + 0.6 * parts[1], rel=1e-6)


def test_recall_by_hand():
    """Of two pixels of class 0 one is missed, of four of class 1 three, of one of class 2 none: 1/2, 3/4 and 0."""
    likeliest, others = math.log(2), 0.0  # probabilities 1/2, 1/4, 1/4
    logits = [[likeliest if k == called else others for k in range(3)] for called in (0, 1, 1, 0, 0, 2, 2)]
    outputs, data = pixels(logits, [0, 0, 1, 1, 1, 1, 2])
    found, missed = -math.log(1 / 2), -math.log(1 / 4)
    wanted = (1 / 2 * (found + missed) + 3 / 4 * (found + 3 * missed)) / 7
    loss = create_loss("recall", [MULTI])
    assert value(loss, outputs, data) == pytest.approx(wanted, rel=1e-6)
    data["mask"][..., 1] = 255  # then class 0 is found whole, and costs nothing
    assert value(loss, outputs, data) == pytest.approx(3 / 4 * (found + 3 * missed) / 6, rel=1e-6)
    data["mask"][..., 2:6] = 255  # then no pixel of class 1 is left, and none is missed
    assert value(loss, outputs, data) == 0


def test_recall_is_held_fixed_and_one_of_each_clip():
    """The gradient is that of weighted cross-entropy, its weights those of the clip."""
    outputs, data = pixels([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [2.0, 0.0]], [0, 0, 1, 1])
    other_outputs, other = pixels([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 2.0]], [0, 0, 0, 1])
    both = {name: torch.cat([x, other[name]]) for name, x in data.items()}
    logits = torch.cat([outputs["mask"], other_outputs["mask"]]).requires_grad_()
    output = OutputSpec(name="mask", task="segmentation", classes=("background", "lesion"))
    create_loss("recall", [output])({"mask": logits}, both)["recall"].backward()
    weights = torch.tensor([[1 / 2, 1 / 2, 1 / 2, 1 / 2], [2 / 3, 2 / 3, 2 / 3, 0]]).view(2, 1, 1, 1, 4)
    truth = F.one_hot(both["mask"], 2).movedim(-1, 2)
    torch.testing.assert_close(logits.grad, weights * (logits.detach().softmax(2) - truth))


def test_boundary_by_hand():
    """0 0 1: the second pixel has another right neighbour. p of the class 1/2, so log 2 for each of two classes."""
    outputs, data = pixels([[0.0, 0.0]] * 3, [0, 0, 1])
    output = OutputSpec(name="mask", task="segmentation", classes=("background", "lesion"))
    wanted = math.log(2) + 0.5 * (2 * math.log(2)) / 2 / 3
    assert value(create_loss("boundary-ce", [output]), outputs, data) == pytest.approx(wanted, rel=1e-6)
    data["mask"][..., 2] = 255  # an outline towards the unknown is none
    assert value(create_loss("boundary-ce", [output]), outputs, data) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_one_class_is_two(name):
    outputs, data = batch(BINARY)
    two = OutputSpec(name="mask", task="segmentation", classes=("background", "lesion"))
    both = {"mask": torch.cat([torch.zeros_like(outputs["mask"]), outputs["mask"]], 2)}
    found = value(create_loss(name, [BINARY]), outputs, data)
    assert found == pytest.approx(value(create_loss(name, [two]), both, data), rel=1e-6)


@pytest.mark.parametrize("balance", ["alpha", "frequency"])
@pytest.mark.parametrize("output", [BINARY, MULTI])
@pytest.mark.parametrize("name", NAMES)
def test_any_division_of_the_batch_gives_the_same(name, output, balance):
    outputs, data = batch(output)
    settings = {"balance": balance} if name.startswith("focal") else {}
    loss = create_loss(name, [output], **settings)
    counts, sums = loss.counts(data), loss(outputs, data)
    parts = [torch.tensor([0, 2]), torch.tensor([1]), torch.tensor([3])]
    for key in sums:
        split = [{k: v[part] for k, v in data.items()} for part in parts]
        assert int(counts[key]) == sum(int(loss.counts(piece)[key]) for piece in split)
        pieces = zip(parts, split, strict=True)
        total = sum(loss({"mask": outputs["mask"][part]}, piece)[key] for part, piece in pieces)
        torch.testing.assert_close(sums[key], total)


@pytest.mark.parametrize("output", [BINARY, MULTI])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_annotated_changes_nothing(name, output):
    """Neither value nor gradient, whatever is predicted there, not numbers included."""
    outputs, data = batch(output)
    frames = data["frame_real"] & data["mask_labelled"]
    counted = (data["mask"] != 255) & frames[:, :, None, None]
    loss = create_loss(name, [output])
    logits = outputs["mask"].clone().requires_grad_()
    sum(loss({"mask": logits}, data).values()).backward()
    assert not logits.grad[~counted.unsqueeze(2).expand_as(logits)].any()
    assert logits.grad[counted.unsqueeze(2).expand_as(logits)].any()
    other = torch.where(counted.unsqueeze(2), outputs["mask"], outputs["mask"] + 50)
    other[~frames] = math.nan
    for key, total in loss({"mask": other}, data).items():
        torch.testing.assert_close(total, loss(outputs, data)[key])


@pytest.mark.parametrize("output", [BINARY, MULTI])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_values(name, output):
    """In double precision, against finite differences."""
    outputs, data = batch(output, h=2, w=2)
    loss = create_loss(name, [output])
    logits = outputs["mask"].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sum(loss({"mask": x}, data).values()), (logits,))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "focal",
            {"alpha": (1.0,)},
            "loss.alpha has 1 values for 2 classes, the background included.",
        ),
        ("focal", {"balance": "even"}, "loss.balance='even' cannot be used: it must be alpha or frequency."),
        (
            "focal-tversky",
            {"balance": "frequency", "alpha": (1.0, 1.0)},
            "loss.alpha has no effect with loss.balance=frequency. Leave one of them out.",
        ),
        (
            "focal",
            {"gamma": 0.5},
            "loss.gamma=0.5 must be 0, or 1 or more: between them gradients are infinite.",
        ),
        ("focal", {"alpha": (0.1, -1.0)}, "loss.alpha=(0.1, -1.0) must not hold a number below 0."),
        (
            "tversky",
            {"false_positive": -1.0},
            "loss.false_positive=-1.0 and loss.false_negative=0.7 must not be below 0.",
        ),
        ("focal-tversky", {"smooth": 0.0}, "loss.smooth=0.0 must be above 0: a frame may lack a class."),
    ],
)
def test_settings_that_cannot_be_used_are_refused(name, settings, message):
    with pytest.raises(ConfigError) as info:
        create_loss(name, [BINARY], **settings)
    assert str(info.value) == message
