"""The end of a run: the model is kept and scored, whatever the state of the test cases."""

import csv
import json

import pytest

from medvid_core.engine.finished import has_finished


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


@pytest.mark.parametrize("place", ["medvid_core.engine.train.write_tables", "medvid_core.report.html.write_report"])
def test_a_run_is_done_only_when_all_is_written(medvid, monkeypatch, tmp_path, place):
    """Killed before its tables, or its report, a run must go on: one called done without them could not be compared."""
    run = tmp_path / "run"
    words = ("preset=tiny", "dataset.cases=5", "dataset.frames=5", "train.max_steps=1", "evaluate.overlays=0")
    statuses = []

    def killed(*_):
        statuses.append(json.loads((run / "run.json").read_text())["status"])
        raise SystemExit(9)

    with monkeypatch.context() as patched:
        patched.setattr(place, killed)
        with pytest.raises(SystemExit):
            medvid("--model", "unet", *words, "--out", run)
    assert statuses == ["running"]
    assert not has_finished(run)
    assert (run / "cases.csv").exists() == place.endswith("report")
    medvid("train", "--resume", run)
    assert has_finished(run)
    assert (run / "report.html").exists()
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["split"]) == ("done", "test")


def test_no_step_scores_the_weights_as_they_are(medvid, tmp_path):
    """The table is that of the untrained baseline."""
    words = ("preset=tiny", "dataset.cases=5", "dataset.frames=5", "train.max_steps=0", "evaluate.overlays=0")
    medvid("--model", "unet", *words, "--out", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "done"
    assert record["results"] == record["baselines"]["untrained"]
