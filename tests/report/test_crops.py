"""What clips are cropped to stands in the run before anything is learnt, as numbers and as a picture."""

import csv
import json

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


def test_a_case_that_cannot_be_read_has_no_box_but_the_reason(tmp_path):
    cases = [write_case(tmp_path / "data" / name) for name in "ab"]
    for image in (tmp_path / "data" / "a").glob("?.png"):
        image.write_bytes(b"no picture")
    write_crops(tmp_path / "out", cases, "estimate", Progress(enabled=False))
    broken, sound = rows(tmp_path / "out")
    assert (broken["case_id"], broken["how"], broken["top"]) == ("a", "", "")
    assert str(tmp_path / "data" / "a") in broken["problem"]
    assert (sound["case_id"], sound["how"], sound["problem"]) == ("b", "estimate", "")
    assert Image.open(tmp_path / "out" / "crops.png").size == (244, 204)  # the one that can be read
    write_crops(tmp_path / "none", cases[:1], "estimate", Progress(enabled=False))
    assert [row["case_id"] for row in rows(tmp_path / "none")] == ["a"]
    assert not (tmp_path / "none" / "crops.png").exists()


def test_a_corrupt_test_video_costs_its_case_alone(medvid, vtus, tmp_path):
    """Neither the run nor its evaluation ends by it."""
    data = vtus((("Train", "a"), ("Train", "b"), ("Train", "c"), ("Test", "d"), ("Test", "e")))
    for image in (data / "Test" / "d").iterdir():
        image.write_bytes(image.read_bytes()[:200])
    words = ("preset=tiny", "train.max_steps=1", "evaluate.overlays=0", "clip.fan_crop=estimate")
    medvid("--model", "unet", "--data", data, *words, "--out", tmp_path / "run")
    medvid("evaluate", tmp_path / "run", "--out", tmp_path / "scored")
    for folder in (tmp_path / "run", tmp_path / "scored"):
        assert [row["case_id"] for row in rows(folder) if row["problem"]] == ["d"]
    assert (tmp_path / "scored" / "evaluation.html").is_file()


def test_an_ill_sized_fan_mask_is_refused_before_training(refused, vtus, tmp_path):
    data = vtus()
    mask = data / "Test" / "d" / "fan.png"
    Image.new("L", (40, 30), 255).save(mask)
    words = ("--model", "unet", "--data", data, "preset=tiny", "clip.fan_crop=auto", "--out", tmp_path / "run")
    assert f"The fan mask {mask} is 40x30 pixels while the frames are 40x36." in refused(*words)
    assert not (tmp_path / "run").exists()


def test_a_run_shows_its_first_cases_once(medvid, vtus, tmp_path, monkeypatch):
    """Other processes wait meanwhile, so that neither a large data set nor going on may take long."""
    monkeypatch.setattr("medvid_core.report.crops.SHOWN", 2)
    run = tmp_path / "run"
    words = ("preset=tiny", "train.max_steps=0", "evaluate.overlays=0", "clip.fan_crop=estimate")
    medvid("--model", "unet", "--data", vtus(), *words, "--out", run)
    before = rows(run)
    assert len(before) == 2
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
    monkeypatch.setattr("medvid_core.report.crops.fan_box", None)  # calling it would fail
    medvid("--resume", run)
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    assert rows(run) == before


def test_a_run_and_its_evaluation_show_their_crops(medvid, vtus, tmp_path):
    """Of cases of the run, whatever their part; of an evaluation those that were scored."""
    data = vtus()
    words = ("preset=tiny", "train.max_steps=0", "evaluate.overlays=0", "clip.fan_crop=estimate")
    medvid("--model", "unet", "--data", data, *words, "--out", tmp_path / "run")
    assert sorted(row["case_id"] for row in rows(tmp_path / "run")) == ["a", "b", "c", "d"]
    medvid("evaluate", tmp_path / "run", "--out", tmp_path / "scored")
    assert [row["case_id"] for row in rows(tmp_path / "scored")] == ["d"]
