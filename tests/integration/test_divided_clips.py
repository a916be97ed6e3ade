"""Clips of one patient on both sides of a split, where the user asks for it: said, and counted as patients."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from medvid_core.data.splits import STRADDLING

PATIENTS, CLIPS = 2, 5


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Ten clips with masks, five of each patient."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["file,mask,group_id"]
    for number in range(PATIENTS * CLIPS):
        for kind in ("clip", "mask"):
            (root / f"{kind}{number}").mkdir()
        for t in range(4):
            mask = np.zeros((48, 48), np.uint8)
            mask[8 + t : 30 + t, 10:34] = 255
            image = (rng.integers(0, 60, mask.shape) + 0.6 * mask).astype(np.uint8)
            Image.fromarray(image).save(root / f"clip{number}" / f"{t}.png")
            Image.fromarray(mask).save(root / f"mask{number}" / f"{t}.png")
        lines.append(f"clip{number},mask{number},person{number % PATIENTS}")
    (root / "manifest.csv").write_text("\n".join(lines))
    return root / "manifest.csv"


def rows(folder):
    with open(folder / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_divided_clips_are_told_and_counted_as_patients(medvid, table, tmp_path, capsys):
    words = ("--model", "unet", "--data", table, "preset=tiny", "train.max_steps=2", "evaluate.overlays=0")
    runs = [tmp_path / "a", tmp_path / "b"]
    for number, run in enumerate(runs):
        medvid(*words, "split.group=none", "split.test=0.5", f"optimizer.lr={0.001 * (number + 1)}", "--out", run)
    assert f"note     {STRADDLING}\n" in capsys.readouterr().err

    record = json.loads((runs[0] / "run.json").read_text())
    assert record["notes"].count(STRADDLING) == 1
    tested = rows(runs[0])
    assert len(tested) == PATIENTS * CLIPS // 2
    assert {row["group_id"] for row in tested} == {"person0", "person1"}
    assert STRADDLING[1:] in (runs[0] / "report.html").read_text()

    medvid("compare", *runs, "--out", tmp_path / "c", "--no-cost")
    compared = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert any(STRADDLING[1:] in note for note in compared["notes"])
    assert (compared["data"]["cases"], compared["data"]["patients"]) == (5, 2)
    for ending in ("md", "html"):
        assert STRADDLING[1:] in (tmp_path / "c" / f"comparison.{ending}").read_text()

    medvid("evaluate", runs[0], "--out", tmp_path / "e")
    assert (tmp_path / "e" / "cases.csv").read_bytes() == (runs[0] / "cases.csv").read_bytes()


def test_nothing_is_told_where_patients_are_whole(medvid, table, tmp_path):
    words = ("--model", "unet", "--data", table, "preset=tiny", "train.max_steps=1", "evaluate.overlays=0")
    medvid(*words, "split.val=0", "split.test=0.5", "--out", tmp_path / "run")
    assert STRADDLING not in json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
