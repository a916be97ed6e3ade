"""Distances of outlines: hand-computed, against brute force and MONAI, and their conventions on what is empty."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from medvid_core import Case, OutputSpec, create_metric
from medvid_core.metrics.base import ScoredFrames
from medvid_core.metrics.surface import surface_distances

BINARY = OutputSpec(name="mask", task="segmentation", classes=("lesion",))
MULTI = OutputSpec(name="mask", task="segmentation", classes=("background", "lv", "myocardium"))
NAMES = ("hausdorff", "hd95", "asd", "assd")


def scored(predicted, annotated, spacing=None) -> ScoredFrames:
    """Frames from predicted and annotated classes [T,H,W] of `MULTI`, or of `BINARY` where they are bool."""
    predicted, annotated = torch.as_tensor(np.array(predicted)), torch.as_tensor(np.array(annotated))
    binary = predicted.dtype == torch.bool
    values = predicted[:, None] if binary else F.one_hot(predicted.long(), 3).movedim(-1, 1)
    return ScoredFrames(values.float(), annotated.long(), torch.ones(len(values), dtype=torch.bool), spacing)


def columns(name, frames, output=BINARY) -> dict[str, list[float]]:
    return {key: value.tolist() for key, value in create_metric(name, [output]).per_frame(frames).items()}


def outline(mask) -> list[tuple[int, int]]:
    """The pixels that have a neighbour above, below, left or right outside the mask; outside the picture is outside."""
    padded = np.pad(mask, 1)
    inner = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return [tuple(pixel) for pixel in np.argwhere(mask & ~inner)]


def nearest(here, there, spacing) -> list[float]:
    return [min(math.hypot((y - b) * spacing[0], (x - a) * spacing[1]) for b, a in there) for y, x in here]


MASKS = arrays(bool, (7, 6))
SPACINGS = st.tuples(st.floats(0.1, 3), st.floats(0.1, 3))


@settings(deadline=None)
@given(MASKS, MASKS, SPACINGS)
def test_against_brute_force(predicted, annotated, spacing):
    """Every pixel of either outline against every pixel of the other."""
    assume(predicted.any() and annotated.any())
    one, other = outline(predicted), outline(annotated)
    to_annotated, to_predicted = nearest(one, other, spacing), nearest(other, one, spacing)
    found = surface_distances(predicted, annotated, spacing)
    assert sorted(found[0]) == pytest.approx(sorted(to_annotated), rel=1e-5)
    assert sorted(found[1]) == pytest.approx(sorted(to_predicted), rel=1e-5)
    frames = scored([predicted], [annotated], spacing)
    expected = {
        "hausdorff": max(to_annotated + to_predicted),
        "hd95": max(np.percentile(to_annotated, 95), np.percentile(to_predicted, 95)),
        "asd": np.mean(to_annotated),
        "assd": np.mean(to_annotated + to_predicted),
    }
    assert {name: columns(name, frames)[name][0] for name in NAMES} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.3, 0.7)])
def test_agrees_with_monai(spacing):
    """Per frame and class, of random blobs."""
    rng = np.random.default_rng(3)
    smooth = F.avg_pool2d(torch.from_numpy(rng.normal(size=(12, 3, 40, 50))), 9, 1, 4)
    classes = smooth.argmax(1)
    predicted, annotated = classes[:6], classes[6:]
    frames = scored(predicted, annotated, spacing)
    one, other = (F.one_hot(each, 3).movedim(-1, 1) for each in (predicted, annotated))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's, of itself
        theirs = {
            "hausdorff": compute_hausdorff_distance(one, other, spacing=spacing),
            "hd95": compute_hausdorff_distance(one, other, spacing=spacing, percentile=95),
            "asd": compute_average_surface_distance(one, other, spacing=spacing),
            "assd": compute_average_surface_distance(one, other, spacing=spacing, symmetric=True),
        }
    for name, expected in theirs.items():
        found = columns(name, frames, MULTI)
        for number, label in enumerate(("lv", "myocardium")):
            assert found[f"{name}/{label}"] == pytest.approx(expected[:, number].tolist(), rel=1e-5)
        assert found[name] == pytest.approx(expected.mean(1).tolist(), rel=1e-5)


def square(top, left, side=4, size=(20, 24)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_by_hand():
    """A square moved by three rows of 2 mm: no point of one is farther than 6 mm from the other."""
    frames = scored([square(5, 5)], [square(8, 5)], (2.0, 0.5))
    assert columns("hausdorff", frames)["hausdorff"] == [6.0]
    dot = scored([square(2, 2, 1)], [square(5, 6, 1)])
    assert {name: columns(name, dot)[name] for name in NAMES} == {name: [5.0] for name in NAMES}


def test_each_is_what_its_name_says():
    """A prediction that misses half of a long annotation: asd does not see it, the others do."""
    long = np.zeros((9, 120), bool)
    long[4] = True
    half = long.copy()
    half[:, 60:] = False
    frames = scored([half], [long])
    found = {name: columns(name, frames)[name][0] for name in NAMES}
    missed = np.arange(1, 61)
    assert found["asd"] == 0
    assert found["assd"] == pytest.approx(missed.sum() / 180)
    assert found["hausdorff"] == 60
    assert found["hd95"] == pytest.approx(np.percentile(np.r_[np.zeros(60), missed], 95))


@pytest.mark.parametrize("name", NAMES)
def test_where_one_or_both_are_empty_there_is_no_distance(name):
    """NaN, and counted; means are over what is defined."""
    full, empty = square(4, 4), np.zeros((20, 24), bool)
    frames = scored([full, full, empty, empty], [full, empty, full, empty])
    found = columns(name, frames)
    assert found[name][0] == 0
    assert all(math.isnan(value) for value in found[name][1:])
    assert found[f"{name}/undefined"] == [0, 1, 1, 1]
    metric = create_metric(name, [BINARY])
    row = metric.per_case({key: np.array(value) for key, value in found.items()})
    assert (row[name], row[f"{name}/undefined"]) == (0, 0.75)
    classes = full.astype(int)
    both = classes.copy()
    both[15:18, 15:18] = 2
    found = columns(name, scored([both], [classes]), MULTI)
    assert (found[name], found[f"{name}/lv"], found[f"{name}/undefined"]) == ([0], [0], [0.5])
    assert math.isnan(found[f"{name}/myocardium"][0])


def test_predictions_at_unlabelled_pixels_do_not_count():
    annotated = square(4, 4).astype(int)
    annotated[:, 12:] = 255
    plain, wild = square(5, 4), square(5, 4) | square(2, 14)
    for name in NAMES:
        one, other = (columns(name, scored([mask], [annotated])) for mask in (plain, wild))
        assert one == other


def test_a_mask_at_the_edge_of_the_picture_ends_there():
    whole = np.ones((6, 8), bool)
    assert surface_distances(whole, whole)[0].tolist() == [0] * 24
    assert surface_distances(whole, square(2, 3, 2, (6, 8)))[0].max() == pytest.approx(math.hypot(2, 3))


def test_the_unit_is_said():
    """The part of this name repeats the value."""
    one, other = [square(2, 2, 1)], [square(2, 6, 1)]
    assert columns("hd95", scored(one, other)) == {"hd95": [4], "hd95/pixels": [4], "hd95/undefined": [0]}
    assert columns("hd95", scored(one, other, (1.0, 0.5))) == {"hd95": [2], "hd95/mm": [2], "hd95/undefined": [0]}


def rows_of(spacings) -> list[dict]:
    metric = create_metric("asd", [MULTI])
    rows = []
    for spacing in spacings:
        frames = scored([square(2, 2, 1).astype(int)], [square(2, 6, 1).astype(int)], spacing)
        found = metric.per_frame(frames)
        rows.append(dict(metric.per_case({name: column.numpy() for name, column in found.items()})))
    rows.append({})  # could not be read
    cases = [Case(case_id=str(number), group_id="", frames=1, streams={}) for number in range(len(rows))]
    metric.across(rows, cases)
    return rows


def test_units_are_never_mixed():
    """Cases in pixels keep that part alone where others are in mm; by themselves they are the metric."""
    metric = create_metric("asd", [MULTI])
    mixed = rows_of([(0.5, 0.5), None, (0.25, 0.25)])
    assert [row.get("asd", "none") for row in mixed] == pytest.approx([2, math.nan, 1, "none"], nan_ok=True)
    found = metric.summarise(mixed)
    assert (found["asd"], found["asd/lv"], found["asd/mm"], found["asd/pixels"]) == (1.5, 1.5, 1.5, 4)
    alike = metric.summarise(rows_of([None, None]))
    assert (alike["asd"], alike["asd/lv"], alike["asd/pixels"]) == (4, 4, 4)
    assert "asd/mm" not in alike
