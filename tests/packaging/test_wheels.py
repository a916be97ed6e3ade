"""The wheels hold what they should, install in an empty environment, and run there."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = {
    "medvid_core": ROOT,
    "medvid_vivim": ROOT / "plugins" / "vivim",
    "medvid_cnn_mamba": ROOT / "plugins" / "cnn_mamba",
    "medvid_medivista_sam": ROOT / "plugins" / "mediVista_sam",
    "medvid_two_stream": ROOT / "plugins" / "two_stream",
}

IMPORT_ALL = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
names = [name for name in names if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(json.dumps([package.__file__, names]))
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Build every distribution's wheel."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in PROJECTS.values():
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
        subprocess.run(build, cwd=project, check=True, capture_output=True, text=True)
    return folder


@pytest.mark.parametrize("package", PROJECTS)
def test_a_wheel_holds_its_package_whole_and_nothing_else(wheels, package):
    (wheel,) = wheels.glob(f"{package}-*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = PROJECTS[package]
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", package],
        cwd=source,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert inside == set(tracked)


@pytest.mark.slow
def test_the_plugin_pulls_core_and_runs_in_an_empty_environment(wheels, tmp_path):
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv is not installed beside this Python; install medvid-core[dev]")
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    python = environment / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command):
        return subprocess.run(
            [str(word) for word in command], cwd=empty, env=clean, check=True, capture_output=True, text=True
        ).stdout

    run(uv, "venv", "--python", sys.executable, environment)
    install = (uv, "pip", "install", "--python", python, "--find-links", wheels, "-c", ROOT / "constraints.txt")
    run(*install, "medvid-vivim")
    run(environment / "bin" / "medvid-run", "--model", "vivim", "preset=tiny", "dataset.cases=4", "train.max_steps=2")
    (report,) = empty.glob("runs/vivim-echo-phantom-*/report.html")
    assert report.stat().st_size > 10_000

    # the conformance suite is for plugin authors, who have pytest
    run(*install, "medvid-core[test]", "medvid-cnn-mamba", "medvid-medivista-sam", "medvid-two-stream")
    for package in PROJECTS:
        place, modules = json.loads(run(python, "-c", IMPORT_ALL, package))
        assert Path(place).is_relative_to(environment)
        assert modules
