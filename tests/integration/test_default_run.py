"""The main job: ``medvid-run --model vivim`` with nothing else."""

import csv
import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(medvid, tmp_path_factory):
    """The run directory of the default run."""
    out = tmp_path_factory.mktemp("default") / "run"
    medvid("--model", "vivim", "--out", out)
    return out


def test_it_beats_what_a_trivial_predictor_can_reach(run):
    record = json.loads((run / "run.json").read_text())
    assert record["preset"] == "small"
    assert record["dataset"]["cases"] == {"train": 26, "val": 6, "test": 8}
    assert record["results"]["dice"] >= 0.85
    for baseline in ("untrained", "constant"):
        assert record["baselines"][baseline]["dice"] < record["results"]["dice"] - 0.1
    assert "preset=full" in " ".join(record["notes"])


def test_the_run_directory_is_whole(run):
    for name in ("config.yaml", "metrics.jsonl", "splits.json", "model.safetensors", "report.html"):
        assert (run / name).stat().st_size > 0, name
    assert {path.suffix for path in (run / "overlays").iterdir()} == {".webm", ".png", ".json"}
    rows = list(csv.DictReader((run / "cases.csv").open()))
    assert len(rows) == 8
    assert all(0.7 < float(row["dice"]) <= 1 for row in rows)


@pytest.fixture(scope="module")
def order(medvid, tmp_path_factory):
    """The default run of CNN-Mamba: in which order were these frames taken?"""
    out = tmp_path_factory.mktemp("order") / "run"
    medvid("--model", "cnn-mamba", "--out", out)
    return out


def test_cnn_mamba_tells_orders_of_the_same_frames_apart(order):
    record = json.loads((order / "run.json").read_text())
    assert record["dataset"]["name"] == "motion-phantom"
    assert record["results"]["accuracy"] >= 0.95
    for baseline in ("untrained", "constant"):
        assert record["baselines"][baseline]["accuracy"] < 0.5


def test_a_network_without_time_cannot(medvid, tmp_path):
    """The mean over frames does not know their order: whatever is trained, a third of the cases is right."""
    medvid("--model", "cnn", "dataset.patients=20", "train.epochs=1", "evaluate.overlays=0", "--out", tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "cases.csv").open()))
    assert sum(row["true/order"] == row["predicted/order"] for row in rows) * 3 == len(rows)
