"""A plugin that a stranger wrote, in a wheel of its own, installed beside core: one of each kind, trained together."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "plugins" / "acme_video"
COMMAND = "from medvid_core.cli.main import main; main()"

pytestmark = pytest.mark.slow


def call(words, folder, **environment):
    return subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the stranger's wheel outside the repository."""
    folder = tmp_path_factory.mktemp("stranger") / "acme"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = call([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], folder)
    assert done.returncode == 0, done.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """Install it into a folder of its own, with pip where there is one."""
    target = tmp_path_factory.mktemp("installed")
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
        done = call(pip, target)
        assert done.returncode == 0, done.stderr
    else:  # what pip does with a wheel of pure Python
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return str(target)


@pytest.fixture(scope="module")
def trained(site, tmp_path_factory):
    """Train the stranger's model on the stranger's data with the stranger's loss and metric."""
    folder = tmp_path_factory.mktemp("run")
    words = ["--model", "acme-net", "--data", "acme-blobs", "--out", "run", "preset=tiny", "loss=acme-focal"]
    words += ["metrics=[acme-volume,dice]", "train.epochs=2"]
    done = call([sys.executable, "-c", COMMAND, *words], folder, PYTHONPATH=site)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def test_wheel_holds_the_plugin_and_says_so(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read("acme_video-1.0.dist-info/entry_points.txt").decode()
    assert "acme_video/plugin.py" in names
    assert all(name.startswith(("acme_video/", "acme_video-1.0.dist-info/")) for name in names)
    assert entry_points.strip() == "[medvid.plugins]\nacme = acme_video.plugin"


def test_everything_it_offers_is_listed(site, tmp_path):
    done = call([sys.executable, "-c", COMMAND, "plugins", "list", "--json"], tmp_path, PYTHONPATH=site)
    assert done.returncode == 0, done.stderr
    listing = json.loads(done.stdout)
    offers = {
        kind: [entry["name"] for entry in entries if entry["full_name"].startswith("acme-video/")]
        for kind, entries in listing.items()
        if kind not in ("plugins", "problems")
    }
    assert offers == {
        "models": ["acme-net"],
        "datasets": ["acme-blobs"],
        "losses": ["acme-focal"],
        "metrics": ["acme-volume", "acme-hits"],
        "preprocessors": ["acme-difference"],
    }
    assert listing["plugins"]["acme-video"] == "1.0"
    assert listing["problems"] == []


def test_run_directory_is_complete(trained):
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "cases.csv",
        "splits.json",
        "model.safetensors",
        "report.html",
        "checkpoints/best.safetensors",
        "checkpoints/last.safetensors",
    } <= files


def test_run_record_names_the_plugin(trained):
    record = json.loads((trained / "run.json").read_text("utf-8"))
    assert record["status"] == "done"
    assert record["model"]["name"] == "acme-video/acme-net"
    assert record["dataset"]["name"] == "acme-blobs"
    assert record["plugins"]["acme-video"] == "1.0"
    assert record["metrics"] == {"acme-volume": True, "dice": True}
    assert set(record["results"]) == {"acme-volume", "dice"}


def test_training_used_its_loss(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len({line["epoch"] for line in lines if line["kind"] == "train"}) == 2
    assert losses[-1] < losses[0]


def test_cases_have_its_metric(trained):
    splits = json.loads((trained / "splits.json").read_text("utf-8"))
    with open(trained / "cases.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case_id"] for row in rows] == splits["test"]
    for row in rows:
        assert 0 <= float(row["acme-volume"]) <= 1
        assert 0 <= float(row["dice"]) <= 1


def test_report_shows_its_metric(trained):
    assert "acme-volume" in (trained / "report.html").read_text("utf-8")


def test_trained_model_is_evaluated_again(trained, site):
    before = (trained / "cases.csv").read_bytes()
    done = call([sys.executable, "-c", COMMAND, "evaluate", "run", "--out", "again"], trained.parent, PYTHONPATH=site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (trained.parent / "again" / "cases.csv").read_bytes() == before


def test_without_the_plugin_the_model_says_what_is_missing(trained, tmp_path):
    done = call([sys.executable, "-c", COMMAND, "evaluate", str(trained)], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("medvid-run: error: No ")
    assert "acme" in done.stderr
    assert "Traceback" not in done.stderr
