"""The end of a run: the model is kept and scored, whatever the state of the test cases."""

import csv
import json

import pytest


def test_an_unreadable_test_case_costs_that_case(medvid, vtus, tmp_path):
    """The run ends well, with its model; the case is named in the record and in the table, not scored."""
    root = vtus((("Train", "a"), ("Train", "b"), ("Test", "c"), ("Test", "d")))
    torn = root / "Test" / "d" / "003.jpg"
    torn.write_bytes(torn.read_bytes()[:200])
    run = tmp_path / "run"
    medvid("--model", "unet", "--data", root, "preset=tiny", "train.max_steps=2", "--out", run)
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done"
    (note,) = [note for note in record["notes"] if note.startswith("left out d: ")]
    assert str(torn) in note
    rows = {row["case_id"]: row for row in csv.DictReader((run / "cases.csv").open())}
    assert (rows["d"]["scored_frames"], rows["d"]["dice"]) == ("0", "")
    assert rows["c"]["problem"] == ""
    assert float(rows["c"]["dice"]) == pytest.approx(record["results"]["dice"])
    assert (run / "model.safetensors").exists()


def test_no_readable_test_case_leaves_the_model(refused, vtus, tmp_path):
    root = vtus((("Train", "a"), ("Train", "b"), ("Test", "c")))
    (root / "Test" / "c" / "001.jpg").write_bytes(b"no picture")
    run = tmp_path / "run"
    text = refused("--model", "unet", "--data", root, "preset=tiny", "train.max_steps=1", "--out", run)
    assert "None of the 1 cases to evaluate has an annotated frame. First problem: " in text
    assert (run / "model.safetensors").exists()


def test_scores_are_float32_whatever_the_precision_of_training(medvid, tmp_path):
    """The score at the end of a bfloat16 run is what ``evaluate`` finds for its model."""
    run = tmp_path / "run"
    words = ("preset=tiny", "dataset.cases=5", "dataset.frames=5", "train.max_steps=2", "train.precision=bf16")
    medvid("--model", "unet", *words, "--out", run)
    medvid("evaluate", run, "--out", tmp_path / "again")
    assert (run / "cases.csv").read_bytes() == (tmp_path / "again" / "cases.csv").read_bytes()
