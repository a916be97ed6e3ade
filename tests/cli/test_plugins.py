"""The command with broken plugins installed: quick, light, and it says what is broken."""

import json
import os
import subprocess
import sys

import pytest

from medvid_core.testing.installed import install

HEAVY = ("torch", "torchvision", "monai", "timm", "av")
GOOD = """
from medvid_core.hookspecs import hookimpl
from medvid_core.specs import Card, ModelSpec
MEDVID_PLUGIN_API = (1, 0)
@hookimpl
def medvid_models():
    card = Card(summary="Finds vessels.")
    return [ModelSpec(name="vessel-net", tasks=("segmentation",), build="absent:build", config="absent:C", presets={},
                      card=card)]
"""
RAISING = """
from medvid_core.hookspecs import hookimpl
MEDVID_PLUGIN_API = (1, 0)
@hookimpl
def medvid_losses():
    raise RuntimeError("no licence file")
"""
PLUGINS = {
    "good-plugin": GOOD,
    "exits": "import sys; sys.exit(1)",
    "lacks": "import no_such_library",
    "newer": "MEDVID_PLUGIN_API = (9, 0)",
    "raising": RAISING,
}
PROBLEMS = [
    {"distribution": "exits", "stage": "import", "cause": "SystemExit: 1"},
    {"distribution": "lacks", "stage": "import", "cause": "ModuleNotFoundError: No module named 'no_such_library'"},
    {
        "distribution": "newer",
        "stage": "api",
        "cause": "PluginError: it needs plugin API (9, 0), this core speaks (1, 0). Upgrade medvid-core.",
    },
    {"distribution": "raising", "stage": "medvid_losses", "cause": "RuntimeError: no licence file"},
]
LINES = [f"Plugin {p['distribution']} failed at stage '{p['stage']}': {p['cause']}" for p in PROBLEMS]

# what the console script does, and then which heavy modules were imported
RUN = f"""
import sys
from medvid_core.cli.main import main
code = 0
try:
    main(sys.argv[1:])
except SystemExit as error:
    code = error.code or 0
loaded = [name for name in {HEAVY!r} if name in sys.modules]
if loaded:
    print("LOADED", *loaded)
sys.exit(code)
"""


@pytest.fixture
def run(tmp_path):
    for name, text in PLUGINS.items():
        install(tmp_path / "site", name, {f"{name.replace('-', '_')}.py": text}, {"plugin": name.replace("-", "_")})
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])

    def call(*words):
        return subprocess.run(
            [sys.executable, "-c", RUN, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )

    return call


def test_help_is_light(run):
    done = run("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "LOADED" not in done.stdout
    assert done.stdout.startswith("usage: medvid-run [-h] [--version] COMMAND ...")


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "import", "plugins"])
def test_help_of_every_command_is_light(run, command):
    done = run(command, "--help")
    assert done.returncode == 0
    assert "LOADED" not in done.stdout
    assert done.stdout.startswith(f"usage: medvid-run {command}")


def test_version_is_light(run):
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("medvid-core ")
    assert "LOADED" not in done.stdout


def test_list(run):
    done = run("plugins", "list")
    assert done.returncode == 0
    assert "LOADED" not in done.stdout
    assert done.stderr.splitlines() == LINES
    listed = done.stdout.splitlines()
    assert "  vessel-net       good-plugin          Finds vessels." in listed
    assert any(line.startswith("  unet ") for line in listed)


def test_list_is_what_plugins_alone_does(run):
    assert run("plugins").stdout == run("plugins", "list").stdout


def test_list_as_json(run):
    done = run("plugins", "list", "--json")
    assert done.returncode == 0
    listing = json.loads(done.stdout)
    assert listing["problems"] == PROBLEMS
    assert listing["plugins"]["good-plugin"] == "1.0"
    ours = [model for model in listing["models"] if model["full_name"] == "good-plugin/vessel-net"]
    assert ours == [
        {
            "name": "vessel-net",
            "full_name": "good-plugin/vessel-net",
            "version": "1.0",
            "tasks": ["segmentation"],
            "summary": "Finds vessels.",
        }
    ]


def test_strict_plugins(run):
    done = run("plugins", "--strict-plugins")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "medvid-run: error: " + "\n".join(LINES) + "\n"


def test_unknown_model_shows_the_problems(run):
    done = run("--model", "vesel-net")
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith("medvid-run: error: No model is called 'vesel-net'. Did you mean 'vessel-net'? Known: ")
    assert rest == LINES
    assert "LOADED" not in done.stdout


def test_reference_to_what_is_absent(run):
    done = run("--model", "vessel-net", "preset=full")
    assert done.returncode == 2
    assert done.stderr == "medvid-run: error: Model 'vessel-net' has no preset 'full'. Known: .\n"


def test_output_that_nobody_reads_on(tmp_path):
    """``medvid-run plugins | head -1`` ends as other commands do, without a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "medvid_core", "plugins"]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == ""
