"""Prediction reads a data set's layout as training does, and never takes its masks for frames."""

import csv
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from medvid_core import OutputSpec, create_model, save_model
from medvid_core.data.datasets import manifest
from medvid_core.data.datasets.manifest import ManifestConfig
from medvid_core.data.datasets.unlabelled import find_cases

CLASSES = ("background", "solid", "non-solid")


def save(path, value=100, size=(40, 36)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def write_video(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for t in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((40, 48, 3), 20 * t, np.uint8), "rgb24")))
        container.mux(stream.encode())


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


def test_a_table_without_annotation(predicted, tmp_path):
    """Every row is a case, with its patient and rate; no mask or label is looked at, nor the run's column of labels."""
    for t in range(2):
        save(tmp_path / "data" / "x" / f"{t}.png", 20 * t)
        save(tmp_path / "data" / "y" / f"{t}.png", 20 * t)
    table = tmp_path / "data" / "manifest.csv"
    table.write_text("file,group_id,fps\nx,p1,12.5\ny,p1,\n")
    assert predicted(table.parent) == {"x": 2, "y": 2}
    config = ManifestConfig(label_column="diagnosis", targets=("age",))
    found = [(case.case_id, case.group_id, case.fps) for case in manifest.unlabelled(table, config).cases]
    assert found == [("x", "p1", 12.5), ("y", "p1", None)]
    table.write_text("file,mask\nx,gone.mp4\ny,\n")
    assert predicted(table) == {"x": 2, "y": 2}


def test_a_table_of_visits_is_read_as_in_training(tmp_path):
    for name in "xyz":
        save(tmp_path / name / "0.png")
    (tmp_path / "manifest.csv").write_text("file,group_id,visit_time,ef\nx,p,0,50\ny,p,30,45\nz,p,60,40\n")
    config = ManifestConfig(progression="ef")
    assert manifest.unlabelled(tmp_path, config) == manifest.index(tmp_path, config)


def test_videos_in_folders(predicted, tmp_path):
    """With masks beside some of them, in whatever folder; pictures that lie about are no video of their own."""
    data = tmp_path / "data"
    for place in ("a.mp4", "sub/a.mp4", "sub/deep/b.mp4", "sub/deep/b_mask.mp4", "c.mp4"):
        (data / place).parent.mkdir(parents=True, exist_ok=True)
        write_video(data / place, frames=4)
    for t in range(4):
        save(data / "sub" / "a_mask" / f"{t}.png")
        save(data / "frames" / f"{t}.png")
    save(data / "a_mask.png")
    save(data / "sub" / "cover.png")
    found = predicted(data)
    assert {name.partition("-")[0]: count for name, count in found.items()} == {
        "a": 4,
        "c": 4,
        "frames": 4,
        "sub_a": 4,
        "sub_deep_b": 4,
    }
    assert predicted(data, "dataset=videos") == found
    cases, skipped = find_cases(data, nested=True)
    assert [case.case_id for case in cases] == ["a", "c", "frames", "sub/a", "sub/deep/b"]
    assert not skipped


def test_explain_reads_them_likewise(medvid, refused, tmp_path):
    """In the layout of a data set, as the words or the run say."""

    def explained(out):
        return sorted(folder.name.partition("-")[0] for folder in out.iterdir())

    for name in ("p/a", "p/b", "q/a"):
        for t in range(3):
            save(tmp_path / "data" / name / f"{t}.png", 20 * t)
    words = ("preset=tiny", "model.motion=false", "train.max_steps=0", "evaluate.overlays=0", "dataset.classes=[q,p]")
    more = ("split.val=0", "split.test=0.5", "--out", tmp_path / "run")
    medvid("--model", "cnn", "--data", tmp_path / "data", *words, *more)
    shutil.copytree(tmp_path / "data" / "p", tmp_path / "data" / "other")
    medvid("explain", tmp_path / "run", tmp_path / "data", "--out", tmp_path / "e")
    assert explained(tmp_path / "e") == ["p_a", "p_b", "q_a"]
    words = ("dataset=class-folders", "dataset.classes=[other,q]")
    medvid("explain", tmp_path / "run", tmp_path / "data", *words, "--out", tmp_path / "f")
    assert explained(tmp_path / "f") == ["other_a", "other_b", "q_a"]
    assert refused("explain", tmp_path / "run", tmp_path / "data", "clip.overlap=2").startswith(
        "clip.overlap cannot be set here."
    )


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
