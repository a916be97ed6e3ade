"""Losses as sums and counts: right values, unlabelled pixels left out, exact over any division of the batch."""

import math

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from medvid_core import OutputSpec, create_loss
from medvid_core.errors import ConfigError

NAMES = ("cross-entropy", "dice", "dice-ce")
BINARY = OutputSpec(name="mask", task="segmentation", classes=("lesion",))
MULTI = OutputSpec(name="mask", task="segmentation", classes=("background", "lv", "myocardium"))


def batch(output, b=4, t=3, h=6, w=5, seed=0):
    """Random logits and masks with everything messy: unlabelled pixels and frames, padding, a clip without labels."""
    g = torch.Generator().manual_seed(seed)
    k = len(output.classes)
    mask = torch.randint(0, max(2, k), (b, t, h, w), generator=g)
    mask[torch.rand(mask.shape, generator=g) < 0.2] = 255
    real = torch.ones(b, t, dtype=torch.bool)
    real[0, 2:] = False
    labelled = real.clone()
    labelled[1, 1] = False
    labelled[3] = False
    logits = torch.randn(b, t, k, h, w, generator=g)
    return {"mask": logits}, {"mask": mask, "frame_real": real, "mask_labelled": labelled}


def part_of(data, chosen):
    return {key: value[chosen] for key, value in data.items()}


def value(loss, outputs, data) -> float:
    counts = loss.counts(data)
    return float(sum(total / counts[name].clamp(min=1) for name, total in loss(outputs, data).items()))


def counted(data) -> torch.Tensor:
    return (data["mask"] != 255) & (data["frame_real"] & data["mask_labelled"])[:, :, None, None]


def test_cross_entropy_of_classes_is_torchs():
    outputs, data = batch(MULTI)
    target = torch.where(counted(data), data["mask"], -100)
    expected = F.cross_entropy(outputs["mask"].transpose(1, 2), target)
    assert value(create_loss("cross-entropy", [MULTI]), outputs, data) == pytest.approx(float(expected), rel=1e-6)
    weights = (0.5, 2.0, 3.0)
    found = create_loss("cross-entropy", [MULTI], class_weights=weights)(outputs, data)["cross_entropy"]
    expected = F.cross_entropy(outputs["mask"].transpose(1, 2), target, torch.tensor(weights), reduction="sum")
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_cross_entropy_of_one_class_is_torchs():
    outputs, data = batch(BINARY)
    valid = counted(data)
    logits, target = outputs["mask"][:, :, 0][valid], (data["mask"][valid] == 1).float()
    expected = F.binary_cross_entropy_with_logits(logits, target)
    assert value(create_loss("cross-entropy", [BINARY]), outputs, data) == pytest.approx(float(expected), rel=1e-6)
    expected = F.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(3.0))
    weighted = create_loss("cross-entropy", [BINARY], class_weights=(3.0,))
    assert value(weighted, outputs, data) == pytest.approx(float(expected), rel=1e-6)


def test_dice_by_hand():
    """Probabilities 0.5 on four pixels, two of them foreground: (2·1 + 1) / (2 + 2 + 1)."""
    outputs = {"mask": torch.zeros(1, 1, 1, 2, 2)}
    ones = torch.ones(1, 1, dtype=torch.bool)
    data = {"mask": torch.tensor([[[[1, 1], [0, 0]]]]), "frame_real": ones, "mask_labelled": ones}
    assert value(create_loss("dice", [BINARY]), outputs, data) == pytest.approx(1 - 3 / 5)
    assert value(create_loss("dice", [BINARY], smooth=0.0), outputs, data) == pytest.approx(1 - 2 / 4)


@pytest.mark.parametrize("output", [BINARY, MULTI])
def test_dice_of_whole_clips_is_monais(output):
    """On clips without gaps: MONAI's DiceLoss, background left out, its smoothing set alike."""
    outputs, data = batch(output)
    data["mask"][data["mask"] == 255] = 0
    data["frame_real"][:], data["mask_labelled"][:] = True, True
    k = len(output.classes)
    logits = outputs["mask"].transpose(1, 2)
    target = F.one_hot(data["mask"], max(2, k)).movedim(-1, 1).float()
    target = target[:, 1:] if k == 1 else target
    monai = DiceLoss(include_background=k == 1, sigmoid=k == 1, softmax=k > 1, smooth_nr=1.0, smooth_dr=1.0)
    assert value(create_loss("dice", [output]), outputs, data) == pytest.approx(float(monai(logits, target)), rel=1e-5)


def test_dice_ce_is_the_weighted_sum():
    outputs, data = batch(MULTI)
    loss = create_loss("dice-ce", [MULTI], dice_weight=2.0, cross_entropy_weight=0.5, smooth=0.1)
    parts = loss(outputs, data)
    assert set(parts) == {"dice", "cross_entropy"} == set(loss.counts(data))
    dice = create_loss("dice", [MULTI], smooth=0.1)(outputs, data)["dice"]
    entropy = create_loss("cross-entropy", [MULTI])(outputs, data)["cross_entropy"]
    assert float(parts["dice"]) == pytest.approx(2 * float(dice))
    assert float(parts["cross_entropy"]) == pytest.approx(0.5 * float(entropy))


@pytest.mark.parametrize("output", [BINARY, MULTI])
@pytest.mark.parametrize("name", NAMES)
def test_what_nobody_annotated_has_no_say(name, output):
    """Logits of unlabelled pixels, unlabelled frames and padding change neither the loss nor get a gradient."""
    outputs, data = batch(output)
    loss = create_loss(name, [output])
    logits = outputs["mask"].clone().requires_grad_()
    sum(loss({"mask": logits}, data).values()).backward()
    outside = (~counted(data)).unsqueeze(2).expand_as(logits)
    assert (logits.grad[outside] == 0).all()
    assert logits.grad[~outside].abs().sum() > 0
    noisy = torch.where(outside, 1e4 * torch.randn_like(logits), outputs["mask"])
    assert value(loss, {"mask": noisy}, data) == pytest.approx(value(loss, outputs, data), rel=1e-6)


@pytest.mark.parametrize("output", [BINARY, MULTI])
@pytest.mark.parametrize("name", NAMES)
def test_sums_and_counts_are_exact_over_any_division(name, output):
    """Parts of a batch, however uneven their labels, add up to the whole: accumulation and processes change nothing."""
    outputs, data = batch(output)
    loss = create_loss(name, [output])
    whole, counts = loss(outputs, data), loss.counts(data)
    for cuts in (((0,), (1,), (2,), (3,)), ((0, 1), (2, 3)), ((3,), (0, 1, 2))):
        pieces = [(part_of(outputs, list(cut)), part_of(data, list(cut))) for cut in cuts]
        for key, total in whole.items():
            assert float(sum(loss(*piece)[key] for piece in pieces)) == pytest.approx(float(total), rel=1e-6)
            assert int(sum(loss.counts(piece[1])[key] for piece in pieces)) == int(counts[key])


@pytest.mark.parametrize("output", [BINARY, MULTI])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_labelled_costs_nothing(name, output):
    """Zero, and zero gradient: not NaN."""
    outputs, data = batch(output)
    data["mask_labelled"][:] = False
    loss = create_loss(name, [output])
    assert all(int(count) == 0 for count in loss.counts(data).values())
    logits = outputs["mask"].clone().requires_grad_()
    total = sum(part / loss.counts(data)[key].clamp(min=1) for key, part in loss({"mask": logits}, data).items())
    total.backward()
    assert total.item() == 0.0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("output", [BINARY, MULTI])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_values(name, output):
    """In double precision, against finite differences."""
    outputs, data = batch(output, h=2, w=2)
    loss = create_loss(name, [output])
    logits = outputs["mask"].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sum(loss({"mask": x}, data).values()), (logits,))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_summed_in_float32(name):
    """A large clip of bfloat16 logits: no overflow, float32 result."""
    outputs, data = batch(BINARY, h=96, w=96)
    loss = create_loss(name, [BINARY])
    half = {"mask": outputs["mask"].bfloat16()}
    found = loss(half, data)
    assert all(part.dtype == torch.float32 for part in found.values())
    exact = loss({"mask": half["mask"].float()}, data)
    assert all(float(found[key]) == float(exact[key]) for key in found)


@pytest.mark.parametrize("output", [BINARY, MULTI])
@pytest.mark.parametrize("name", NAMES)
def test_certain_and_right_is_free_and_extremes_stay_finite(name, output):
    _, data = batch(output)
    data["mask"][data["mask"] == 255] = 0
    k = len(output.classes)
    right = F.one_hot(data["mask"], max(2, k)).movedim(-1, 2).float() * 2 - 1
    right = (right[:, :, 1:] if k == 1 else right) * 200
    loss = create_loss(name, [output])
    assert value(loss, {"mask": right}, data) == pytest.approx(0, abs=1e-4)
    assert math.isfinite(value(loss, {"mask": -right}, data))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError) as info:
        create_loss("cross-entropy", [MULTI], class_weights=(1.0, 2.0))
    assert str(info.value) == "loss.class_weights has 2 values for 3 classes."
    with pytest.raises(ConfigError) as info:
        create_loss("dice", [OutputSpec(name="ef", task="regression", classes=("ef",))])
    assert str(info.value) == (
        "Loss 'dice' does segmentation, and the data ask for regression (output 'ef'). Choose another loss or data set."
    )
    with pytest.raises(ConfigError) as info:
        create_loss("dice", [MULTI, OutputSpec(name="other", task="segmentation", classes=("a",))])
    assert str(info.value) == "This loss needs one segmentation output; the data set has 2."
    with pytest.raises(ConfigError) as info:
        create_loss("dice", [MULTI], smoth=1)
    assert str(info.value) == "Unknown setting loss.smoth. Did you mean 'smooth'? Known: smooth."
