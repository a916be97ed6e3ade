"""Metrics: hand-computed values, the conventions on empty masks, agreement with MONAI."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_iou, get_confusion_matrix
from monai.metrics.confusion_matrix import compute_confusion_matrix_metric

from medvid_core import OutputSpec, create_metric
from medvid_core.metrics.base import ScoredFrames, mean, to_classes

BINARY = OutputSpec(name="mask", task="segmentation", classes=("lesion",))
MULTI = OutputSpec(name="mask", task="segmentation", classes=("background", "lv", "myocardium"))
OVERLAPS = ("dice", "jaccard", "precision", "recall", "specificity", "f-measure")


def binary(predicted, actual) -> ScoredFrames:
    """One frame from two lists of pixels."""
    mask = torch.tensor(actual).view(1, 1, -1)
    return ScoredFrames(torch.tensor(predicted).float().view(1, 1, 1, -1), mask, torch.tensor([True]))


def scores(frames, output=BINARY) -> dict[str, float]:
    return {name: float(create_metric(name, [output]).per_frame(frames)[name][0]) for name in (*OVERLAPS, "mae")}


def test_by_hand():
    """TP 2, FP 1, FN 1, TN 4."""
    found = scores(binary([1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]))
    assert found == pytest.approx(
        {
            "dice": 4 / 6,
            "jaccard": 2 / 4,
            "precision": 2 / 3,
            "recall": 2 / 3,
            "specificity": 4 / 5,
            "f-measure": 1.3 * (2 / 3) ** 2 / (0.3 * 2 / 3 + 2 / 3),
            "mae": 2 / 8,
        }
    )


@pytest.mark.parametrize(
    ("predicted", "actual", "expected"),
    [
        ([0, 0], [0, 0], 1.0),  # both empty
        ([1, 0], [0, 0], 0.0),  # only the prediction
        ([0, 0], [1, 0], 0.0),  # only the annotation
    ],
)
def test_empty_masks(predicted, actual, expected):
    """Both empty 1, one empty 0, for every overlap but specificity."""
    found = scores(binary(predicted, actual))
    assert {name: found[name] for name in OVERLAPS if name != "specificity"} == {
        name: expected for name in OVERLAPS if name != "specificity"
    }


def test_specificity_without_negatives_is_one():
    assert scores(binary([1, 1], [1, 1]))["specificity"] == 1.0


def test_unlabelled_pixels_do_not_count():
    """255 is neither right nor wrong, whatever is predicted there."""
    clean = scores(binary([1, 1, 0, 0], [1, 0, 1, 0]))
    for wild in ([1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1]):
        assert scores(binary(wild, [1, 0, 1, 0, 255, 255])) == pytest.approx(clean)


def test_threshold_is_above_a_half():
    assert to_classes(torch.tensor([0.5, 0.5001]).view(1, 1, 1, 2)).flatten().tolist() == [0, 1]
    assert to_classes(torch.tensor([0.3, 0.4, 0.3]).view(1, 3, 1, 1)).item() == 1


def test_classes_are_scored_each_against_all_others():
    """Class 0 is left out; the metric is the mean over the others, named."""
    predicted = torch.tensor([0, 1, 1, 2, 2, 2])
    mask = torch.tensor([0, 1, 2, 2, 1, 0]).view(1, 1, 6)
    frames = ScoredFrames(F.one_hot(predicted, 3).T.float().view(1, 3, 1, 6), mask, torch.tensor([True]))
    found = {key: float(column[0]) for key, column in create_metric("dice", [MULTI]).per_frame(frames).items()}
    assert found == pytest.approx({"dice": (0.5 + 0.4) / 2, "dice/lv": 2 / 4, "dice/myocardium": 2 / 5})
    errors = create_metric("mae", [MULTI]).per_frame(frames)
    assert float(errors["mae/lv"][0]) == pytest.approx(2 / 6)
    assert float(errors["mae/myocardium"][0]) == pytest.approx(3 / 6)


def certain(predicted) -> torch.Tensor:
    """Probabilities [T,3,1,N] of frames [T,N] of classes."""
    return F.one_hot(torch.tensor(predicted), 3).movedim(2, 1).float()[:, :, None]


def test_where_the_class_is_present():
    """Never calling a rare class is no merit: it is 1 in the frames without it, and 0 where it counts."""
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 2, 2]])[:, None]
    frames = ScoredFrames(certain([[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]]), mask, torch.ones(3, dtype=torch.bool))

    def row(name):
        metric = create_metric(name, [MULTI])
        return metric.per_case({key: x.double().numpy() for key, x in metric.per_frame(frames).items()})

    assert row("dice")["dice/myocardium"] == pytest.approx(2 / 3)
    assert row("dice-present") == pytest.approx(
        {
            "dice-present": ((1 + 2 / 3 + 1 / 2) / 3 + 0) / 2,
            "dice-present/lv": (1 + 2 / 3 + 1 / 2) / 3,
            "dice-present/myocardium": 0,
        }
    )
    assert row("recall-present")["recall-present/lv"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert row("precision-present")["precision-present/lv"] == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert row("jaccard-present")["jaccard-present/lv"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_a_class_counts_the_same_however_few_cases_hold_it():
    metric = create_metric("dice-present", [MULTI])
    nan = math.nan
    rows = [
        {"dice-present": 1.0, "dice-present/lv": 1.0, "dice-present/myocardium": nan},
        {"dice-present": 0.5, "dice-present/lv": 0.5, "dice-present/myocardium": nan},
        {"dice-present": 0.5, "dice-present/lv": 0.75, "dice-present/myocardium": 0.25},
    ]
    assert metric.summarise(rows) == {
        "dice-present": 0.5,
        "dice-present/lv": 0.75,
        "dice-present/myocardium": 0.25,
    }
    alone = create_metric("dice-present", [BINARY])
    empty = alone.per_frame(binary([1, 0], [0, 0]))["dice-present"]
    assert math.isnan(empty[0])
    assert alone.summarise([{"dice-present": 0.5}, {"dice-present": nan}]) == {"dice-present": 0.5}


def random_frames(output, seed):
    g = torch.Generator().manual_seed(seed)
    k = len(output.classes)
    logits = 3 * torch.randn(5, k, 8, 7, generator=g)
    mask = torch.randint(0, max(2, k), (5, 8, 7), generator=g)
    mask[0] = 0  # no foreground annotated
    logits[1, 0] = -50 if k == 1 else 50  # none predicted
    mask[2], logits[2] = 0, logits[1]  # neither
    values = logits.sigmoid() if k == 1 else logits.softmax(1)
    return ScoredFrames(values, mask, torch.ones(5, dtype=torch.bool))


@pytest.mark.parametrize("output", [BINARY, MULTI])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_monai(output, seed):
    """Per frame and class, ``ignore_empty=False``."""
    frames = random_frames(output, seed)
    k = max(2, len(output.classes))
    predicted = F.one_hot(frames.predicted, k).movedim(-1, 1)
    actual = F.one_hot(frames.mask, k).movedim(-1, 1)

    def ours(name):
        found = create_metric(name, [output]).per_frame(frames)
        columns = [found[name]] if k == 2 else [found[f"{name}/{label}"] for label in output.classes[1:]]
        return torch.stack(columns, 1)

    dice = compute_dice(predicted, actual, include_background=False, ignore_empty=False)
    iou = compute_iou(predicted, actual, include_background=False, ignore_empty=False)
    assert torch.allclose(ours("dice"), dice.double())
    both_empty = (predicted[:, 1:] + actual[:, 1:]).flatten(2).sum(2) == 0  # MONAI: NaN or 0 there; ours says 1
    assert torch.allclose(ours("jaccard")[~both_empty], iou.double()[~both_empty], atol=1e-6)
    assert (ours("jaccard")[both_empty] == 1).all()
    matrix = get_confusion_matrix(predicted, actual, include_background=False)
    for name in ("precision", "recall", "specificity"):
        theirs = compute_confusion_matrix_metric(name, matrix).double()
        defined = ~theirs.isnan()
        assert torch.allclose(ours(name)[defined], theirs[defined])


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0, 1, 255])), min_size=1, max_size=30))
def test_values_are_bounded_and_related(pixels):
    """0 to 1, never NaN; Dice = 2 J / (1 + J); F between precision and recall."""
    found = scores(binary([int(p) for p, _ in pixels], [a for _, a in pixels]))
    assert all(0 <= value <= 1 for value in found.values())
    assert found["dice"] == pytest.approx(2 * found["jaccard"] / (1 + found["jaccard"]))
    low, high = sorted((found["precision"], found["recall"]))
    assert low - 1e-9 <= found["f-measure"] <= high + 1e-9


def test_a_case_is_the_mean_of_its_frames_and_the_summary_of_its_cases():
    """Each case weighs the same, however many frames it has; undefined values are left out."""
    metric = create_metric("dice", [BINARY])
    rows = [
        metric.per_case({"dice": np.array([1.0, 0.0, math.nan])}),
        metric.per_case({"dice": np.array([1.0])}),
        metric.per_case({"dice": np.array([math.nan])}),
    ]
    assert rows[0] == {"dice": 0.5}
    assert math.isnan(rows[2]["dice"])
    assert metric.summarise(rows) == {"dice": 0.75}
    assert math.isnan(metric.summarise(rows[2:])["dice"])
    assert metric.summarise([]) == {}
    assert math.isnan(mean([]))


def test_a_summary_takes_its_own_columns_only():
    metric = create_metric("dice", [MULTI])
    assert metric.summarise([{"dice": 0.5, "dice/lv": 0.25, "mae": 1.0, "dicey": 9.0}]) == {
        "dice": 0.5,
        "dice/lv": 0.25,
    }


def test_a_summary_covers_parts_that_only_some_cases_have():
    """A part that the first case lacks is not lost, and one that a later case lacks is no error."""
    rows = [{"dice": 0.5, "dice/lv": 0.5}, {"dice": 1.0, "dice/wall": 0.25, "other": 1.0}]
    metric = create_metric("dice", [BINARY])
    assert metric.summarise(rows) == {"dice": 0.75, "dice/lv": 0.5, "dice/wall": 0.25}
    assert metric.summarise([]) == {}
