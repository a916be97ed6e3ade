"""What clips are cropped to stands in the run before anything is learnt, as numbers and as a picture."""

import csv

import numpy as np
from PIL import Image

from medvid_core.data.clip import Case, Source
from medvid_core.engine.progress import Progress
from medvid_core.report.crops import SHOWN, write_crops

BOX = {"top": "10", "left": "20", "height": "30", "width": "40"}


def write_case(folder, mask=True, bright=240):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for t in range(4):
        image = np.zeros((60, 80), np.uint8)
        image[10:40, 20:60] = rng.integers(bright - 40, bright, (30, 40))
        Image.fromarray(image).save(folder / f"{t}.png")
    if mask:
        inside = np.zeros((60, 80), np.uint8)
        inside[10:40, 20:60] = 255
        Image.fromarray(inside).save(folder / "fan.png")
    paths = tuple(str(folder / f"{t}.png") for t in range(4))
    return Case(case_id=folder.name, group_id="p", frames=4, streams={"video": Source(reader="frames", paths=paths)})


def rows(folder):
    with open(folder / "crops.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_and_picture(tmp_path):
    """The source of each box is named; the first cases are drawn, what is left out darkened."""
    cases = [write_case(tmp_path / "data" / f"c{i}", mask=i != 1) for i in range(SHOWN + 1)]
    write_crops(tmp_path / "out", cases, "auto", Progress(enabled=False))
    found = rows(tmp_path / "out")
    assert [row["case_id"] for row in found] == [case.case_id for case in cases]
    assert [row["how"] for row in found[:3]] == ["mask", "estimate", "mask"]
    assert {key: found[0][key] for key in BOX} == BOX
    assert (found[0]["source_height"], found[0]["source_width"]) == ("60", "80")
    sheet = np.asarray(Image.open(tmp_path / "out" / "crops.png"))
    assert sheet.shape == (4 * 204, 6 * 244, 3)  # 24 of the 25
    assert (sheet[20 + 30, 60:178] == (255, 200, 0)).all()  # the upper edge of the first box: 10 pixels, three times


def test_without_a_crop_nothing_is_written(tmp_path):
    write_crops(tmp_path / "out", [write_case(tmp_path / "a")], "none", Progress(enabled=False))
    assert not (tmp_path / "out").exists()


def test_a_run_and_its_evaluation_show_their_crops(medvid, vtus, tmp_path):
    """Of all cases of the run, whatever their part; of an evaluation those that were scored."""
    data = vtus()
    words = ("preset=tiny", "train.max_steps=0", "evaluate.overlays=0", "clip.fan_crop=estimate")
    medvid("--model", "unet", "--data", data, *words, "--out", tmp_path / "run")
    assert sorted(row["case_id"] for row in rows(tmp_path / "run")) == ["a", "b", "c", "d"]
    medvid("evaluate", tmp_path / "run", "--out", tmp_path / "scored")
    assert [row["case_id"] for row in rows(tmp_path / "scored")] == ["d"]
