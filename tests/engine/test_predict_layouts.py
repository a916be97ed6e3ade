"""Prediction reads a data set's layout as training does, and never takes its masks for frames."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from medvid_core import OutputSpec, create_model, save_model
from medvid_core.data.datasets.unlabelled import find_cases

CLASSES = ("background", "solid", "non-solid")


def save(path, value=100, size=(40, 36)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def scan(folder, frames=3, masks=CLASSES):
    for t in range(frames):
        save(folder / f"{t:04d}_frame.png", 30 * t)
        for kind in masks:
            save(folder / f"{t:04d}_{kind}.png", 255)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    output = OutputSpec(name="mask", task="segmentation", classes=CLASSES)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(create_model("unet", outputs=(output,), preset="tiny"), path)
    return path


@pytest.fixture
def predicted(medvid, model, tmp_path):
    """Predict on a path; the number of masks of each case."""

    def run(path, *words):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        medvid("predict", model, path, "--out", out, "--no-video", *words)
        return {case.name: len(list((case / "masks").iterdir())) for case in sorted(out.iterdir())}

    return run


def test_frames_and_masks_in_one_folder(predicted, tmp_path):
    """With masks, without any, and one case by itself."""
    scan(tmp_path / "data" / "a")
    scan(tmp_path / "data" / "b", frames=2)
    assert predicted(tmp_path / "data") == {"a": 3, "b": 2}
    assert predicted(tmp_path / "data", "dataset=ovarian") == {"a": 3, "b": 2}
    assert predicted(tmp_path / "data" / "a") == {"a": 3}
    scan(tmp_path / "new" / "c", masks=())
    assert predicted(tmp_path / "new") == {"c": 3}


def test_masks_of_other_names_need_a_word(predicted, medvid, refused, model, tmp_path):
    scan(tmp_path / "data" / "a", masks=("background", "cyst"))
    assert "is no class" in refused("predict", model, tmp_path / "data", "--out", tmp_path / "x")
    assert predicted(tmp_path / "data", "dataset.classes=[background,cyst]") == {"a": 3}


def test_layouts_with_folders_of_their_own(predicted, vtus):
    """Of a VTUS folder the frames of all parts, and no mask; the annotation is not even looked at."""
    root = vtus()
    (root / "Test_GT" / "d" / "000.png").write_bytes(b"damaged")
    assert predicted(root) == {"a": 5, "b": 5, "c": 5, "d": 5}


def test_a_table(predicted, medvid, refused, model, tmp_path):
    """What it names as masks, whatever their names, is not predicted on; nor is the truth shown."""
    for t in range(3):
        save(tmp_path / "data" / "x" / f"{t}.png", 20 * t)
        save(tmp_path / "data" / "truth" / f"{t}.png", 255)
    (tmp_path / "data" / "manifest.csv").write_text("file,mask\nx,truth\n")
    assert predicted(tmp_path / "data") == {"x": 3}
    assert predicted(tmp_path / "data" / "manifest.csv") == {"x": 3}


def test_names_of_masks_beside_videos(tmp_path):
    """`a_mask` and `a_gt` are masks of `a`, and videos where there is no `a`. A video without masks is one too."""
    for name in ("a", "a_mask", "b", "c_gt", "d", "d_gt"):
        for t in range(2):
            save(tmp_path / name / f"{t}.png")
    cases, skipped = find_cases(tmp_path)
    assert [case.case_id for case in cases] == ["a", "b", "c_gt", "d"]
    assert not skipped


def test_several_layouts_and_other_settings(refused, model, vtus):
    root = vtus()
    (root / "manifest.csv").write_text("file\nTrain/a\n")
    text = refused("predict", model, root)
    assert text.startswith(f"--data {root} can be read as ")
    assert text.endswith("Say which: dataset=vtus.")
    assert refused("predict", model, root, "clip.overlap=2") == (
        "clip.overlap cannot be set here. Settings that can: dataset=NAME and dataset.KEY=VALUE, which say how PATH is "
        "read."
    )
    assert refused("predict", model, root, "--stream", "dataset=vtus") == (
        "With --stream, which predicts frame by frame and writes a table, dataset=vtus would do nothing. Leave out one "
        "or the other."
    )


def test_the_settings_of_the_run_count(medvid, tmp_path):
    """Trained on classes of its own, a model finds them again without being told."""
    for name in "abcd":
        scan(tmp_path / "data" / name, masks=("background", "cyst"))
    words = ("preset=tiny", "train.max_steps=0", "evaluate.overlays=0", "dataset.classes=[background,cyst]")
    medvid("--model", "unet", "--data", tmp_path / "data", *words, "--out", tmp_path / "run")
    medvid("predict", tmp_path / "run", tmp_path / "data", "--out", tmp_path / "p", "--no-video")
    assert len(list(tmp_path.glob("p/*/masks/*.png"))) == 12


def test_values_that_are_known_do_not_stand_beside_those_predicted(medvid, tmp_path):
    for name in ("p/a", "p/b", "q/a"):
        for t in range(3):
            save(tmp_path / "data" / name / f"{t}.png")
    view = OutputSpec(name="label", task="classification", classes=("p", "q"))
    save_model(create_model("cnn", outputs=(view,), preset="tiny"), tmp_path / "m.safetensors")
    medvid("predict", tmp_path / "m.safetensors", tmp_path / "data", "--out", tmp_path / "out", "--no-video")
    tables = sorted(tmp_path.glob("out/*/prediction.csv"))
    assert len(tables) == 3
    with open(tables[0], encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    assert row["predicted/label"] in ("p", "q")
    assert not row.get("true/label")
