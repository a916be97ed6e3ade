"""The plugin on the page 'write your own plugin' is taken from the page and trained with."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = "write-a-plugin.md"


@pytest.fixture(scope="module")
def installed(docs, tmp_path_factory) -> Path:
    """A folder on the search path that holds the plugin as an installer would leave it."""
    site = tmp_path_factory.mktemp("site")
    files = docs.files_on(PAGE)
    for name, text in files.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    points = project["entry-points"]["medvid.plugins"]
    lines = ["[medvid.plugins]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return site


def python(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


def test_page_shows_every_file_of_its_tree(docs):
    tree = docs.source(PAGE).partition("```text")[2].partition("```")[0]
    for name in docs.files_on(PAGE):
        assert Path(name).name in tree


def test_everything_it_offers_is_listed_without_torch(installed, tmp_path):
    code = (
        "import json, sys; from medvid_core.cli.main import main; main(['plugins', 'list', '--json']); "
        "assert 'torch' not in sys.modules"
    )
    listing = json.loads(python(installed, "-c", code, cwd=tmp_path).stdout)
    assert [problem for problem in listing["problems"] if problem["distribution"] == "medvid-pulse"] == []
    offered = {
        kind: [entry["name"] for entry in entries if entry["full_name"].startswith("medvid-pulse/")]
        for kind, entries in listing.items()
        if kind not in ("plugins", "problems")
    }
    assert offered == {
        "models": ["pulse-net"],
        "datasets": ["pulses"],
        "losses": ["pulse-focal"],
        "metrics": ["area-error"],
        "preprocessors": ["frame-difference"],
    }


def test_it_trains_two_steps_with_all_of_its_parts(installed, tmp_path):
    settings = ["preset=tiny", "dataset.cases=6", "train.max_steps=2", "evaluate.overlays=1"]
    python(installed, "-m", "medvid_core", "--model", "pulse-net", "--data", "pulses", "--out", "run", *settings,
           cwd=tmp_path)  # fmt: skip
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "done"
    assert record["model"]["name"] == "medvid-pulse/pulse-net"
    assert {"dice", "area-error", "area-error/worst"} <= record["results"].keys()
    with open(tmp_path / "run" / "cases.csv", newline="") as file:
        assert all("area-error" in row for row in csv.DictReader(file))


@pytest.mark.slow
def test_the_baseline_composes_with_its_data_loss_and_metric(installed, tmp_path):
    """As the page's last command says."""
    settings = ["preset=tiny", "loss=pulse-focal", "metrics=[dice,area-error]", "dataset.cases=4", "train.max_steps=1"]
    python(installed, "-m", "medvid_core", "--model", "unet", "--data", "pulses", "--out", "run", *settings,
           cwd=tmp_path)  # fmt: skip
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_it_keeps_the_contract(installed, tmp_path):
    """The page's own last step: the conformance suite."""
    python(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--medvid-plugin", "medvid-pulse", cwd=tmp_path)
