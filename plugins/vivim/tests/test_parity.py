"""The same numbers as the original, forward and backward, for the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvid_core.testing.parity import load_module, rows_of

golden = load_module(Path(__file__).with_name("golden.py"))

pytestmark = pytest.mark.skipif(
    not golden.FOLDER.is_dir(),
    reason="the fixtures of the original (shared/golden/vivim beside the repository) are absent",
)

SLOW = ("edge terms",)  # a regressor of 100 M weights
MISSED = "full network (B3), 5x64x64"  # by its gradients, and no other fixture; `golden.NOTES` says why


@pytest.mark.parametrize(
    "fixture", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in golden.FIXTURES]
)
def test_fixture(fixture):
    rows = rows_of(golden.FIXTURES, fixture)
    if fixture == MISSED:
        gradients = [row for row in rows if "grad" in row.what]
        assert len(gradients) == 872  # the input's, and norms of the parameters'
        assert [row for row in gradients if row.share > 5] == []
        rows = [row for row in rows if "grad" not in row.what]
    assert [row for row in rows if not row.holds] == []


def test_specificity_without_negatives_differs_from_the_original():
    """Why one row is left out: the original says 0."""
    data = golden.read("metrics")
    mask = (data["full_gt.gt"] > 0.5).long()[None]
    frames = golden.ScoredFrames(data["full_gt.pred"][None, None], mask, mask.new_ones(1).bool())
    output = (golden.OutputSpec(name="mask", task="segmentation", classes=("lesion",)),)
    assert golden.Specificity(output).per_frame(frames)["specificity"].item() == 1
    assert golden.read_json("metrics")["full_gt"]["at_0.5"]["specificity"] == 0
