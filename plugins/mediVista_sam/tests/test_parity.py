"""The same numbers as the originals, forward and backward, for the same weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

from medvid_core.testing.parity import load_module, rows_of
from medvid_core.weights import read_state

golden = load_module(Path(__file__).with_name("golden.py"))

pytestmark = pytest.mark.skipif(
    not golden.FOLDER.is_dir(),
    reason="the fixtures of the originals (shared/golden/medivista_sam beside the repository) are absent",
)


@functools.cache
def rows(fixture):
    return rows_of(golden.FIXTURES, fixture)


@pytest.mark.parametrize("fixture", list(golden.FIXTURES))
def test_fixture(fixture):
    """All rows are within the fixture's own tolerance; gradients within 1e-4 of their norm."""
    assert [row for row in rows(fixture) if not row.holds] == []


def test_a_file_in_metas_layout_gives_metas_embeddings(tmp_path):
    """Written as Meta's files are, read and imported as any; embeddings are the fixture's."""
    data = golden.read("meta_sam_tiny")
    torch.save(data.weights, tmp_path / "sam_vit_b_01ec64.pth")
    model = golden.new_sam()
    report = golden.import_meta(read_state(tmp_path / "sam_vit_b_01ec64.pth"), model)
    assert set(report.initialised) == {name for name in model.state_dict() if "mask_tokens" in name or "mlps" in name}
    embeddings = model.eval().image_encoder.encode(data.outputs["preprocessed"], golden.Clip(2, 1))
    assert data.row("image_embeddings", embeddings).holds


def test_nothing_in_the_fixtures_is_left_out():
    compared = {row.what for fixture in golden.FIXTURES for row in rows(fixture)}
    compared.add("rel_pos_for_q4_k8")  # a table that another output is read from
    for file in golden.FOLDER.glob("*.json"):
        outputs = json.loads(file.read_text()).get("outputs", {})
        assert set(outputs) <= compared, file.name


def test_what_the_plausible_mistakes_would_change_is_above_the_tolerance():
    """Of the mistakes tried on the original, these alone stay below it; other rows catch them."""
    listed = golden.read_json("discrimination")["mutations_full_model_max_abs_change_of_masks"]
    tolerance = golden.read("medivista_tiny_full").about["suggested_tolerance"]
    small = {name for name, change in listed.items() if change < tolerance["atol"] and "control" not in name}
    assert small == {"encoder LayerNorm eps 1e-6 (see block fixture small.* for a sharper test)"}
    assert {"small.y", "small.temporal_norm1_bhwTc"} <= {row.what for row in rows("medivista_block_4x4")}
