"""The same numbers as the original, forward and backward, for the same weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("vivim_golden", Path(__file__).with_name("golden.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
golden = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = golden  # dataclasses look their module up
_SPEC.loader.exec_module(golden)

pytestmark = pytest.mark.skipif(
    not golden.FOLDER.is_dir(),
    reason="the fixtures of the original (shared/golden/vivim beside the repository) are absent",
)


SLOW = ("edge terms",)  # a regressor of 100 M weights


@pytest.mark.parametrize(
    "fixture", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in golden.FIXTURES]
)
def test_fixture(fixture):
    """All rows are within tolerance, except the full network's gradients as they are.

    Those miss the limit of 1e-4: the worst norm of a parameter's gradient is 2.1e-4 off, since the original's float32
    run decided a few inputs of the decoder's ReLU, within rounding of zero, otherwise than float64 does, and so did
    ours. Here they are held to 5e-4. With these decisions inferred from the fixture's input gradient, a row of its
    own, they are within 1e-4; that input gradient is then fitted, the parameters' norms are not.

    The metrics are compared where the original and medvid define them alike: not specificity where no pixel is
    negative (0 in the original, 1 here), prediction and annotation both empty (0 there; 1, or undefined, here), or the
    F-measure (beta 1 there, beta squared 0.3 here).
    """
    rows = list(golden.FIXTURES[fixture]())
    assert rows
    assert [row for row in rows if not row.holds] == []
    wider = [row for row in rows if row.bound is not None]
    assert bool(wider) == (fixture == "full network (B3), 5x64x64")
    assert all(row.gradient and row.bound == 5e-4 for row in wider)


def test_specificity_without_negatives_differs_from_the_original():
    """Why one row is left out: the original says 0."""
    data = golden.read("metrics")
    mask = (data["full_gt.gt"] > 0.5).long()[None]
    frames = golden.ScoredFrames(data["full_gt.pred"][None, None], mask, mask.new_ones(1).bool())
    output = (golden.OutputSpec(name="mask", task="segmentation", classes=("lesion",)),)
    assert golden.Specificity(output).per_frame(frames)["specificity"].item() == 1
    assert golden.read_json("metrics")["full_gt"]["at_0.5"]["specificity"] == 0
