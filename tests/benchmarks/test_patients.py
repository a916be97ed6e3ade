"""The simulation of patients runs, and tells where its shortcuts and the library differ."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def patients(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("patients")


def test_runs(patients, capsys):
    assert patients.main(["--quick", "--processes", "1"]) == 0
    text = capsys.readouterr().out
    assert "| AUROC | BCa bootstrap |" in text
    assert "**WRONG" not in text


def test_shortcuts_are_checked_against_the_library(patients, monkeypatch):
    setting = patients.Setting(patients=12, resamples=99)
    assert list(patients.disagreements(setting)) == []
    right = patients.over_clips
    monkeypatch.setattr(patients, "over_clips", lambda parts: {k: v**2 for k, v in right(parts).items()})
    assert len(list(patients.disagreements(setting))) > 4


def test_no_script_hides_a_module_of_python():
    """Scripts of the folder find each other before the library: one called statistics.py would break the rest."""
    import sys

    assert not {path.stem for path in FOLDER.glob("*.py")} & set(sys.stdlib_module_names)
