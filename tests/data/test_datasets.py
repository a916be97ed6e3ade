"""Adapters: what they find in each layout, and the error for each way a data set can be wrong."""

from __future__ import annotations

import contextlib
import csv
import pickle
import random
import re
import string
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from medvid_core.data.clip import UNLABELLED
from medvid_core.data.datasets import echo_phantom, manifest, videos, vos, vtus
from medvid_core.data.datasets.folders import natural_key, pair
from medvid_core.data.datasets.manifest import ManifestConfig
from medvid_core.data.datasets.masks import MaskConfig, plan
from medvid_core.data.datasets.videos import VideosConfig
from medvid_core.data.datasets.vos import VOSConfig
from medvid_core.data.datasets.vtus import VTUSConfig
from medvid_core.data.phantoms.echo import EchoPhantomConfig
from medvid_core.data.readers import image_size, read_images, read_masks
from medvid_core.errors import ConfigError, DataError, MedvidError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the test data ../shared/data is not on this machine")
FOLDER_LAYOUTS = [(vtus, VTUSConfig()), (vos, VOSConfig()), (videos, VideosConfig())]


def image(path: Path, value: int = 0, size: tuple[int, int] = (8, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def drawn(path: Path, *values: int) -> Path:
    """A mask 8x10 whose first pixels hold these values."""
    array = np.zeros((8, 10), np.uint8)
    array.flat[: len(values)] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def clip(path: Path, frames: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=20)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        for number in range(frames):
            picture = np.full((16, 16, 3), number * 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def table(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# --- natural order and pairing -------------------------------------------------------------------------------------


def test_natural_order():
    names = ["f10", "f2", "F1", "f01", "a", "f2b", "10", "9"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "F1", "f01", "f2", "f2b", "f10"]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=8))
def test_natural_order_is_total_and_stable(names):
    ordered = sorted(names, key=natural_key)
    assert sorted(reversed(ordered), key=natural_key) == ordered


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), unique=True), st.text(string.ascii_letters + "_-. ", max_size=5))
def test_numbers_are_sorted_by_value(values, prefix):
    names = [f"{prefix}{value}.png" for value in values]
    assert sorted(names, key=natural_key) == [f"{prefix}{value}.png" for value in sorted(values)]


def test_pairing_by_name_and_by_number():
    frames = [Path(f"img_{n}.jpg") for n in (1, 2, 10)]
    assert pair(frames, [Path("img_10.png"), Path("img_1.png")], "x", sparse=True) == ("img_1.png", "", "img_10.png")
    by_number = pair(frames, [Path("0010_gt.png"), Path("0001_gt.png"), Path("0002_gt.png")], "x", sparse=False)
    assert by_number == ("0001_gt.png", "0002_gt.png", "0010_gt.png")


def test_files_that_differ_in_their_ending_alone():
    with pytest.raises(DataError, match=r"a\.jpg and a\.png differ in their ending alone\. Remove one"):
        pair([Path("a.jpg"), Path("a.png")], [Path("a.png")], "x", sparse=True)


# --- masks and classes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "classes", "values"),
    [
        ({}, ("foreground",), (0, 255)),
        ({"mask_ignore": 255}, ("foreground",), (0, 1)),
        ({"classes": ("background", "lv", "la")}, ("background", "lv", "la"), (0, 1, 2)),
        ({"mask_values": (0, 85, 170)}, ("background", "class1", "class2"), (0, 85, 170)),
        ({"classes": ("polyp",), "mask_nonzero": True}, ("polyp",), ()),
    ],
)
def test_classes_and_values(config, classes, values):
    settled = plan(MaskConfig(**config))
    assert (settled.classes, settled.values) == (classes, values)
    assert settled.output().task == "segmentation"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"classes": ("a", "b"), "mask_nonzero": True}, "mask_nonzero=true makes one class"),
        ({"classes": ("a", "b", "c"), "mask_values": (0, 1)}, r"mask_values=\[0, 1\] must hold 3 values"),
        ({"classes": ("a",), "mask_values": (0, 1, 2)}, "must hold 2 values"),
        ({"classes": ("a", "a")}, "must not repeat themselves"),
        ({"mask_values": (0, -7)}, "must lie in 0 to 65534"),
    ],
)
def test_classes_and_values_that_do_not_fit(config, message):
    with pytest.raises(ConfigError, match=message):
        plan(MaskConfig(**config))


@pytest.mark.parametrize("config", [VTUSConfig, VOSConfig, VideosConfig, ManifestConfig])
def test_configs_are_made_for_omegaconf(config):
    node = OmegaConf.structured(config)
    assert node.mask_resize is False
    assert list(node.classes) == list(config().classes)


# --- all folder layouts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "config"), FOLDER_LAYOUTS)
def test_missing_empty_and_useless_folders(tmp_path, module, config):
    with pytest.raises(DataError, match=r"The folder .*nowhere does not exist\. Name with --data a folder that holds"):
        module.index(tmp_path / "nowhere", config)
    with pytest.raises(DataError, match=r"The folder .* is empty\. Put the data there: it must hold"):
        module.index(tmp_path, config)
    with pytest.raises(DataError, match=r"No folder was given\. Name one with --data PATH"):
        module.index(None, config)
    with pytest.raises(DataError, match=r"is a file\. Name with --data a folder"):
        module.index(image(tmp_path / "notes.png"), config)
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        module.index(tmp_path, config)
    assert not module.can_read(tmp_path)
    assert not module.can_read(tmp_path / "notes.png")


# --- vtus ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def thyroid(tmp_path) -> Path:
    for split, case, count in (("Train", "0002", 3), ("Test", "0004", 2)):
        for number in range(1, count + 1):
            image(tmp_path / split / case / f"{number:04d}.jpg", 50 * number)
            drawn(tmp_path / f"{split}_GT" / case / f"{number:04d}.png", 255)
    return tmp_path


def test_vtus(thyroid):
    assert vtus.can_read(thyroid)
    found = vtus.index(thyroid, VTUSConfig())
    assert [(case.case_id, case.group_id, case.split, case.frames) for case in found.cases] == [
        ("0002", "0002", "train", 3),
        ("0004", "0004", "test", 2),
    ]
    assert found.outputs[0].classes == ("nodule",)
    case = found.cases[0]
    assert case.labelled is None
    assert read_masks(case.streams["mask"], range(3), size=(8, 10)).sum() == 3
    assert len({int(frame.mean()) // 10 for frame in read_images(case.streams["video"], range(3))}) == 3


def test_vtus_frame_without_mask(thyroid):
    (thyroid / "Train_GT/0002/0002.png").unlink()
    with pytest.raises(DataError, match=r"Train_GT.0002: 1 of 3 frames have no mask, first 0002\.jpg\. Add the masks"):
        vtus.index(thyroid, VTUSConfig())


def test_vtus_mask_without_frame(thyroid):
    drawn(thyroid / "Train_GT/0002/0009.png")
    with pytest.raises(
        DataError, match=r"1 of 4 masks match none of the 3 frames, first 0009\.png\. Give mask and frame"
    ):
        vtus.index(thyroid, VTUSConfig())


def test_vtus_without_mask_folder(thyroid):
    (thyroid / "Train_GT/0002").rename(thyroid / "Train_GT/0003")
    with pytest.raises(DataError, match=r"The masks of .*0002 are missing: there is no folder .*0002\. Add it"):
        vtus.index(thyroid, VTUSConfig())


def test_vtus_same_name_twice(thyroid):
    (thyroid / "Test/0004").rename(thyroid / "Test/0002")
    (thyroid / "Test_GT/0004").rename(thyroid / "Test_GT/0002")
    with pytest.raises(DataError, match=r"the case name '0002' stands for more than one clip\..*must be unique"):
        vtus.index(thyroid, VTUSConfig())


def test_vtus_empty_case_is_skipped_and_none_left_is_an_error(thyroid):
    for path in (thyroid / "Train/0002").iterdir():
        path.unlink()
    found = vtus.index(thyroid, VTUSConfig())
    assert dict(found.skipped) == {"Train/0002": "the folder holds no images"}
    for path in (thyroid / "Test/0004").iterdir():
        path.unlink()
    with pytest.raises(
        DataError, match=r"No usable clip in .*Train/0002: the folder holds no images.*Expected: Train/"
    ):
        vtus.index(thyroid, VTUSConfig())


def test_hidden_files_are_no_frames(thyroid):
    (thyroid / "Train/0002/._0001.jpg").write_bytes(b"resource fork")
    (thyroid / "Train/.DS_Store").write_bytes(b"")
    assert vtus.index(thyroid, VTUSConfig()).cases[0].frames == 3


@needs_shared
def test_vtus_as_published():
    root = SHARED / "seg_vtus_thyroid"
    assert vtus.can_read(root)
    train, test = vtus.index(root, VTUSConfig()).cases
    assert (train.frames, train.split, test.frames, test.split) == (91, "train", 93, "test")
    masks = read_masks(train.streams["mask"], range(91), size=image_size(train.streams["video"]))
    assert masks.shape == (91, 256, 256)
    assert masks.reshape(91, -1).max(1).tolist() == [1] * 91


# --- vos -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def objects(tmp_path) -> Path:
    for case, values in (("bear", (1, 2)), ("cat", (2,))):
        for number in range(4):
            image(tmp_path / "JPEGImages" / case / f"{number:05d}.jpg")
        for number in (0, 3):
            drawn(tmp_path / "Annotations" / case / f"{number:05d}.png", *values, 255)
    return tmp_path


def test_vos_finds_classes_and_labelled_frames(objects):
    assert vos.can_read(objects)
    found = vos.index(objects, VOSConfig())
    assert [case.case_id for case in found.cases] == ["bear", "cat"]
    assert found.outputs[0].classes == ("background", "class1", "class2")
    bear = found.cases[0]
    assert (bear.frames, bear.labelled, bear.split) == (4, (0, 3), None)
    assert [bear.is_labelled(frame) for frame in range(4)] == [True, False, False, True]
    masks = read_masks(bear.streams["mask"], [0, 1])
    assert masks[0].flat[:4].tolist() == [1, 2, UNLABELLED, 0]
    assert (masks[1] == UNLABELLED).all()


def test_vos_named_classes(objects):
    found = vos.index(objects, VOSConfig(classes=("background", "bear", "cat", "dog")))
    assert found.cases[0].streams["mask"].values == (0, 1, 2, 3)
    with pytest.raises(DataError, match=r"hold the values 0, 1, 2, which do not fit dataset\.classes=\['bear'\]"):
        vos.index(objects, VOSConfig(classes=("bear",)))


def test_vos_declared_values_are_not_looked_for(objects, monkeypatch):
    monkeypatch.setattr(vos, "read_raw_mask", lambda path: pytest.fail("opened a file"))
    assert vos.index(objects, VOSConfig(mask_values=(0, 1, 2))).outputs[0].classes[1:] == ("class1", "class2")


@pytest.mark.parametrize("config", [VOSConfig(classes=("polyp",)), VOSConfig(), VOSConfig(mask_nonzero=True)])
def test_vos_255_alone_is_foreground(tmp_path, config):
    for number in range(2):
        image(tmp_path / "JPEGImages/a" / f"{number}.jpg")
        drawn(tmp_path / "Annotations/a" / f"{number}.png", 255)
    found = vos.index(tmp_path, config)
    assert len(found.outputs[0].classes) == 1
    assert read_masks(found.cases[0].streams["mask"], [0, 1]).sum() == 2


def test_vos_splits(objects):
    table(objects / "ImageSets/train.txt", "bear", "")
    table(objects / "ImageSets/val.txt", "cat")
    assert [case.split for case in vos.index(objects, VOSConfig()).cases] == ["train", "val"]
    table(objects / "ImageSets/val.txt", "bear")
    with pytest.raises(DataError, match=r"val\.txt names the case 'bear', which is also in train\.txt"):
        vos.index(objects, VOSConfig())
    table(objects / "ImageSets/val.txt", "catt")
    with pytest.raises(DataError, match=r"names the case 'catt', which is not in .*Did you mean 'cat'\?"):
        vos.index(objects, VOSConfig())


def test_vos_damaged_annotation_costs_one_case(objects):
    path = objects / "Annotations/cat/00003.png"
    path.write_bytes(path.read_bytes()[:40])
    found = vos.index(objects, VOSConfig())
    assert [case.case_id for case in found.cases] == ["bear"]
    assert "00003.png cannot be read" in found.skipped["cat"]


def test_vos_bad_annotations(objects):
    drawn(objects / "Annotations/cat/00099.png")
    with pytest.raises(DataError, match=r"1 of 3 masks match none of the 4 frames, first 00099\.png"):
        vos.index(objects, VOSConfig())


def test_vos_all_background(tmp_path):
    image(tmp_path / "JPEGImages/a/0.jpg")
    drawn(tmp_path / "Annotations/a/0.png")
    with pytest.raises(DataError, match=r"Annotations are all background\. Check that they are the masks"):
        vos.index(tmp_path, VOSConfig())


def test_vos_case_without_annotations_is_skipped(objects):
    image(objects / "JPEGImages/dog/0.jpg")
    assert "no annotations in" in vos.index(objects, VOSConfig()).skipped["dog"]


# --- videos --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["_mask", "_masks", "-mask", ".mask"])
def test_videos_with_mask_folders(tmp_path, mark):
    clip(tmp_path / "deep/a+(1).avi")
    for number in (1, 2, 10, 11):
        image(tmp_path / f"deep/a+(1){mark}/{number}.png", 255 if number == 10 else 0, (16, 16))
    assert videos.can_read(tmp_path)
    found = videos.index(tmp_path, VideosConfig(classes=("polyp",)))
    case = found.cases[0]
    assert (case.case_id, case.frames, case.fps, case.labelled) == ("deep/a+(1)", 4, 20.0, None)
    assert read_masks(case.streams["mask"], range(4)).max((1, 2)).tolist() == [0, 0, 1, 0]


def test_videos_with_mask_videos(tmp_path):
    clip(tmp_path / "a.avi")
    clip(tmp_path / "a_mask.avi")
    found = videos.index(tmp_path, VideosConfig())
    assert [case.case_id for case in found.cases] == ["a"]
    assert found.cases[0].streams["mask"].reader == "video"


def test_videos_too_few_masks(tmp_path):
    clip(tmp_path / "a.avi")
    image(tmp_path / "a_mask/1.png")
    with pytest.raises(
        DataError, match=r"1\.png: 1 masks do not match the 4 frames of .*a\.avi\. Give one mask a frame"
    ):
        videos.index(tmp_path, VideosConfig())


def test_videos_damaged_and_maskless_are_skipped(tmp_path):
    for name in "abc":
        clip(tmp_path / f"{name}.avi")
    for name in "ab":
        for number in range(4):
            image(tmp_path / f"{name}_mask/{number}.png")
    (tmp_path / "b.avi").write_bytes(b"RIFF")
    found = videos.index(tmp_path, VideosConfig())
    assert [case.case_id for case in found.cases] == ["a"]
    assert "b.avi cannot be decoded" in found.skipped["b"]
    assert found.skipped["c"] == "no mask beside c.avi"


def test_a_manifest_goes_before_the_videos_beside_it(tmp_path):
    clip(tmp_path / "a.avi")
    clip(tmp_path / "a_mask.avi")
    table(tmp_path / "manifest.csv", "file,mask", "a.avi,a_mask.avi")
    assert manifest.can_read(tmp_path)
    assert not videos.can_read(tmp_path)


# --- manifest ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path) -> Path:
    for name in ("a.avi", "b.avi", "in/c.avi"):
        clip(tmp_path / name)
    for number in range(3):
        image(tmp_path / f"frames/{number}.jpg")
        drawn(tmp_path / f"drawn/{number}.png", 255)
    return tmp_path


def read_table(root: Path, *lines: str, **config):
    return manifest.index(table(root / "manifest.csv", *lines), ManifestConfig(**config))


def test_manifest_for_classification(clips):
    lines = (
        "File;Label;group_id;split;fps;spacing_mm;view;Ward",
        "a.avi;sick;p1;train;;0.2;A4C;north",
        ";;;;;;;",
        "in/c.avi;healthy;p2;test;12.5;0.2x0.3",
        "b.avi;;p1;train;;;;",
    )
    found = read_table(clips, *lines)
    assert manifest.index(clips, ManifestConfig()) == found
    assert [(o.name, o.task, o.classes) for o in found.outputs] == [("label", "classification", ("healthy", "sick"))]
    a, c, b = found.cases
    assert (a.case_id, a.group_id, a.split, a.frames, a.fps, a.spacing, a.view) == (
        *("a", "p1", "train", 4, 20.0, (0.2, 0.2), "A4C"),
    )
    assert (dict(a.metadata), dict(a.targets), a.stratum) == ({"Ward": "north"}, {"label": 1}, "sick")
    assert (c.case_id, c.fps, c.spacing, dict(c.targets)) == ("in/c", 12.5, (0.2, 0.3), {"label": 0})
    assert dict(b.targets) == {}


def test_manifest_label_order_and_columns(clips):
    lines = ("file,label,diagnosis,patient", "a.avi,x,sick,1", "b.avi,x,healthy,2")
    found = read_table(clips, *lines, classes=("sick", "healthy"), label_column="diagnosis", group_column="patient")
    assert found.outputs[0].classes == ("sick", "healthy")
    assert [case.group_id for case in found.cases] == ["1", "2"]
    assert dict(found.cases[0].metadata) == {"table_label": "x"}
    with pytest.raises(
        DataError, match=r"no column 'diagnosi', which dataset\.label_column names\. Did you mean 'diagnosis'"
    ):
        read_table(clips, *lines, label_column="diagnosi")


def test_manifest_for_segmentation_and_labels(clips):
    found = read_table(clips, "file,mask,label", "frames,drawn,x", "a.avi,,y", classes=("polyp",))
    assert [(output.name, output.classes) for output in found.outputs] == [("mask", ("polyp",)), ("label", ("x", "y"))]
    assert [sorted(case.streams) for case in found.cases] == [["mask", "video"], ["video"]]
    masks = read_masks(found.cases[0].streams["mask"], [0, 2], size=(8, 10))
    assert masks[:, 0, :2].tolist() == [[1, 0], [1, 0]]


def test_manifest_of_globs_and_sparse_masks(clips):
    (clips / "drawn/1.png").unlink()
    lines = ("file,mask,case_id", "frames/*.jpg,drawn/*.png,one")
    with pytest.raises(DataError, match=r"row 2: .*first 1\.jpg\. Add the masks, .* or set dataset\.mask_sparse=true"):
        read_table(clips, *lines)
    case = read_table(clips, *lines, mask_sparse=True).cases[0]
    assert (case.case_id, case.frames, case.labelled) == ("one", 3, (0, 2))


def test_manifest_default_names_and_rows_without_mask(clips):
    found = read_table(clips, "file,mask", f"{clips}/frames,drawn", "frames/*.jpg,")
    assert [case.case_id for case in found.cases] == ["frames"]
    assert dict(found.skipped) == {"frames": "row 3 has no mask"}


def test_manifest_damaged_video_is_skipped(clips):
    (clips / "b.avi").write_bytes(b"nothing")
    found = read_table(clips, "file,label", "a.avi,x", "b.avi,y", "in/c.avi,y")
    assert [case.case_id for case in found.cases] == ["a", "in/c"]
    assert "b.avi cannot be decoded" in found.skipped["b"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("files,label", "a.avi,x"), r"no column 'file'\. Did you mean 'files'\? Columns found: files, label\. Rename"),
        (("path,label", "a.avi,x"), r"no column 'file'\. Columns found: path, label"),
        (
            ("file,label", "a.avi,x", "z.avi,y"),
            r"row 3, column file: there is no file or folder .*z\.avi\. Correct the path",
        ),
        (("file,mask", "a.avi,none"), r"row 2, column mask: there is no file or folder .*none"),
        (("file,label", "*.jpg,x", "a.avi,y"), r"row 2, column file: no file matches .*\*\.jpg"),
        (("file,label", "*.avi,x", "a.avi,y"), r"row 2, column file: 2 files are named, which are not all images"),
        (("file,label", "in,x", "a.avi,y"), r"row 2, column file: the folder .*in holds no images"),
        (("file,label", "manifest.csv,x", "a.avi,y"), r"manifest\.csv is of no known kind \(known endings: \.mp4"),
        (("file,label", ",x"), r"row 2: the column file is empty"),
        (("file,label", "a.avi,x", "b.avi,x"), r"every label is 'x'\. There must be two at least"),
        (
            ("file,label", "a.avi,x,y"),
            r"row 2: 3 cells for 2 columns\. Put cells that hold the separator in double quotes",
        ),
        (("file,note", "a.avi,x"), r"has no mask and no label in any row.*columns found: file, note"),
        (("file,label,split", "a.avi,x,tran", "b.avi,y,"), r"row 2: the split 'tran' .* Did you mean 'train'\?"),
        (("file,label,fps", "a.avi,x,fast", "b.avi,y,"), r"row 2, column fps: 'fast' is not one number above 0"),
        (
            ("file,label,spacing_mm", "a.avi,x,0", "b.avi,y,"),
            r"column spacing_mm: '0' is not one or two numbers above 0",
        ),
        (("file,label,case_id", "a.avi,x,1", "b.avi,y,1"), r"the case name '1' stands for more than one clip"),
        (
            ("file,label,group_id,split", "a.avi,x,p,train", "b.avi,y,p,test"),
            r"the patient \(group_id\) 'p' is in both train and test\. Put all clips of a patient on one side",
        ),
        (("file,file,label", "a.avi,a.avi,x"), r"has the column 'file' more than once"),
        (("file,label",), r"has a header and no rows"),
        (("",), r"manifest\.csv is empty"),
        (('file,label\n"a.avi,x',), r"cannot be read as a CSV table"),
        (("file,mask", "a.avi,drawn"), r"row 2: .*drawn: 3 masks do not match the 4 frames of .*a\.avi"),
    ],
)
def test_manifest_errors_name_the_row(clips, lines, message):
    with pytest.raises(DataError, match=message) as caught:
        read_table(clips, *lines)
    assert "manifest.csv" in str(caught.value)


def test_manifest_grades_numbers_and_metadata(clips):
    lines = ("file,label,EF,age", "a.avi,2,55.5,40", "b.avi,10,,", "in/c.avi,1,30,50")
    found = read_table(clips, *lines, ordinal=True, targets=("EF", "age"))
    assert [(o.name, o.task, o.classes) for o in found.outputs] == [
        ("label", "ordinal", ("1", "2", "10")),
        ("EF", "regression", ("EF",)),
        ("age", "regression", ("age",)),
    ]
    assert [dict(case.targets) for case in found.cases] == [
        {"label": 1, "EF": 55.5, "age": 40.0},
        {"label": 2},
        {"label": 0, "EF": 30.0, "age": 50.0},
    ]
    assert dict(found.cases[0].metadata) == {"EF": "55.5", "age": "40"}
    only = read_table(clips, *lines[:1], "a.avi,,55.5,", "b.avi,,,", targets=("EF",))
    assert [output.name for output in only.outputs] == ["EF"]


def test_manifest_of_several_labels(clips):
    lines = ("file,label", "a.avi,effusion | b-lines", "b.avi,|", "in/c.avi,effusion", "frames,")
    found = read_table(clips, *lines, multilabel=True)
    assert [(o.name, o.task, o.classes) for o in found.outputs] == [("label", "multilabel", ("b-lines", "effusion"))]
    assert [case.targets.get("label") for case in found.cases] == [(1, 1), (0, 0), (0, 1), None]


def test_manifest_of_frame_labels(clips):
    """Ranges hold both ends, frames count from 0, and what nobody labelled is unknown."""
    table(clips / "phases.csv", "Frame,Label", "0,systole", "2,diastole")
    lines = ("file,frame_labels", "a.avi,0-1:systole; 3:diastole", "b.avi,phases.csv", "in/c.avi,")
    found = read_table(clips, *lines)
    assert [(o.name, o.task, o.classes) for o in found.outputs] == [
        ("frame_label", "frame_classification", ("diastole", "systole"))
    ]
    nan = pytest.approx(float("nan"), nan_ok=True)
    a, b, c = found.cases
    assert a.frame_targets["frame_label"] == (1, 1, nan, 0)
    assert b.frame_targets["frame_label"] == (1, nan, 0, nan)
    assert (dict(c.frame_targets), dict(a.targets)) == ({}, {})
    ordered = read_table(clips, *lines, frame_classes=("systole", "diastole"))
    assert ordered.cases[0].frame_targets["frame_label"] == (0, 0, nan, 1)
    assert pickle.loads(pickle.dumps(found.outputs)) == found.outputs


def test_manifest_of_anomalies(clips):
    found = read_table(clips, "file,anomaly", "a.avi,0", "b.avi,1", "in/c.avi,")
    assert [(o.name, o.task, o.classes) for o in found.outputs] == [("anomaly", "anomaly", ("anomaly",))]
    assert [(dict(case.targets), dict(case.frame_targets)) for case in found.cases] == [
        ({"anomaly": 0}, {}),
        ({"anomaly": 1}, {}),
        ({}, {}),
    ]
    # where the table says frames, 0 says it of every one
    found = read_table(clips, "file,anomaly", "a.avi,0", "b.avi,1-2", "in/c.avi,1")
    assert [case.targets["anomaly"] for case in found.cases] == [0, 1, 1]
    assert [case.frame_targets.get("anomaly") for case in found.cases] == [(0,) * 4, (0, 1, 1, 0), None]


@pytest.mark.parametrize(
    ("lines", "config", "message"),
    [
        (("file,EF", "a.avi,high"), {"targets": ("EF",)}, r"row 2, column EF: 'high' is not a number"),
        (("file,EF", "a.avi,nan"), {"targets": ("EF",)}, r"row 2, column EF: 'nan' is not a number"),
        (
            ("file,EF", "a.avi,5"),
            {"targets": ("EFF",)},
            r"no column 'EFF', which dataset\.targets names\. Did you mean 'EF'",
        ),
        (
            ("file,EF", "a.avi,"),
            {"targets": ("EF",)},
            r"column 'EF', which dataset\.targets names, is empty in every row",
        ),
        (("file,label", "a.avi,|"), {"multilabel": True}, r"no row names a label\. There must be one at least"),
        (
            ("file,frame_labels", "a.avi,2-1:x;0:y"),
            {},
            r"row 2, column frame_labels: '2-1:x' is not frames and a label",
        ),
        (
            ("file,frame_labels", "a.avi,0:x;4:y"),
            {},
            r"row 2: frame 4 is labelled, but the clip has 4 frames \(0 to 3\)",
        ),
        (("file,frame_labels", "a.avi,0:x"), {}, r"every label is 'x'\. There must be two"),
        (("file,frame_labels", "a.avi,gone.csv"), {}, r"The table .*gone\.csv does not exist"),
        (
            ("file,frame_labels", "a.avi,0:x;1:z"),
            {"frame_classes": ("x", "y")},
            r"'z' is not in dataset\.frame_classes",
        ),
        (("file,anomaly", "a.avi,maybe"), {}, r"row 2, column anomaly: 'maybe' is not 0, 1, or frames such as 10-20"),
        (("file,anomaly", "a.avi,2-9"), {}, r"row 2: frame 9 is labelled, but the clip has 4 frames"),
        (
            ("file,anomaly", "a.avi,2"),
            {},
            r"row 2, column anomaly: '2' is neither 0 nor 1, which are said of the whole clip\. If frame 2 is meant, "
            r"write 2-2; likewise 0-0 and 1-1 for the frames 0 and 1\.",
        ),
        (("file,anomaly", f"a.avi,{'1' * 5000}"), {}, r"column anomaly: '1{60}' is not 0, 1, or frames such as 10-20"),
        (("file,frame_labels", f"a.avi,0-{'1' * 5000}:x"), {}, r"column frame_labels: '0-1{58}' is not frames and a"),
    ],
)
def test_manifest_errors_of_labels(clips, lines, config, message):
    with pytest.raises(DataError, match=message):
        read_table(clips, *lines, **config)


def lossless(path: Path, value: int, frames: int = 3, size: tuple[int, int] = (16, 18), rate: int = 10) -> Path:
    """A grey video that is read back as it was."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "bgr0"
        for number in range(frames):
            picture = np.full((*size, 3), value + number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def visits(tmp_path) -> Path:
    """Recordings of three sizes and lengths."""
    lossless(tmp_path / "a.avi", 10)
    lossless(tmp_path / "b.avi", 50, frames=2, size=(8, 10), rate=20)
    lossless(tmp_path / "c.avi", 90, size=(16, 18))
    lossless(tmp_path / "d.avi", 130)
    lossless(tmp_path / "e.avi", 170)
    return tmp_path


def test_manifest_of_visits(visits):
    """Every visit but the first is foreseen from all before it, in order of time; two clips of a day are one visit."""
    lines = (
        "file,group_id,visit_time,EF,split,view",
        "d.avi,p1,2021-03-02,40.5,train,A4C",
        "a.avi,p1,2021-01-01,60,train,A4C",
        "b.avi,p1,2021-02-01,,train,A2C",
        "c.avi,p1,2021-02-01,55,train,A4C",
        "e.avi,p2,2021-02-01,55,test,A4C",
    )
    found = read_table(visits, *lines, progression="EF")
    assert [(o.name, o.task, o.classes) for o in found.outputs] == [("next_EF", "regression", ("next_EF",))]
    assert dict(found.skipped) == {"p2": "the patient (group_id) has one visit, and no next one"}
    second, third = found.cases
    day = 86_400.0
    assert (second.case_id, second.group_id, second.split, second.frames) == ("p1/visit-2", "p1", "train", 3)
    assert (dict(second.targets), second.visit_time) == ({"next_EF": 55.0}, f"{31 * day:.0f}")
    assert dict(second.history) == {"next_EF": ((0.0, 60.0),)}
    assert (second.fps, second.view, second.metadata["visits"]) == (10.0, "A4C", "1")
    assert (third.case_id, third.frames, dict(third.targets)) == ("p1/visit-3", 8, {"next_EF": 40.5})
    assert dict(third.history) == {"next_EF": ((0.0, 60.0), (31 * day, 55.0))}
    assert (third.fps, third.view, third.visit_time) == (None, "", f"{60 * day:.0f}")
    of_third_visit = [31 * day + offset for offset in (0, 0.05, 0.1, 0.2, 0.3)]
    assert third.times_s == pytest.approx([0, 0.1, 0.2, *of_third_visit])
    source = third.streams["video"]
    assert pickle.loads(pickle.dumps(source)) == source
    assert image_size(source) == (16, 18)
    images = read_images(source, [0, 2, 3, 4, 5, 7, 7, 1])
    assert images.shape == (8, 16, 18, 3)
    assert images[:, 5, 5, 1].tolist() == [10, 12, 50, 51, 90, 92, 92, 11]
    with pytest.raises(DataError, match=r"Frames 0 to 8 were asked of what begins with .*a\.avi"):
        read_images(source, [0, 8])
    with pytest.raises(DataError, match=r"^Frames -1 to 0 were asked"):
        read_images(source, [-1, 0])


def test_manifest_of_visits_in_days_with_gaps(visits):
    """A visit that lacks its number is foreseen by nobody, and one before which nothing was measured foresees none."""
    lines = ("file,group_id,visit_time,EF", "a.avi,p1,0,", "b.avi,p1,30,55", "c.avi,p1,60.5,", "d.avi,p1,90,50")
    found = read_table(visits, *lines, "e.avi,p1,,40", progression="EF")
    assert dict(found.skipped) == {
        "e": "it has no visit_time",
        "p1/visit-2": "no EF is known of any visit before it",
        "p1/visit-3": "the visit has no EF to foresee",
    }
    (case,) = found.cases
    assert (case.case_id, case.frames, case.visit_time) == ("p1/visit-4", 8, f"{90 * 86400}")
    assert case.history["next_EF"] == ((30 * 86400, 55.0),)
    assert case.times_s[5] == 60.5 * 86400


@pytest.mark.parametrize(
    ("lines", "config", "error", "message"),
    [
        (
            ("a.avi,p1,1,55", "b.avi,p1,2,50"),
            {"progression": "FE"},
            DataError,
            r"no column 'FE', .*dataset\.progression",
        ),
        (("a.avi,p1,1,", "b.avi,p1,2,"), {}, DataError, r"'EF', which dataset\.progression names, is empty in every"),
        (
            ("a.avi,p1,,5", "b.avi,p1,,6"),
            {},
            DataError,
            r"no row has a visit_time, without which dataset\.progression=EF",
        ),
        (
            ("a.avi,p1,soon,5", "b.avi,p1,later,6"),
            {},
            DataError,
            r"visit_time 'soon' is neither a date such as 2021-03-04",
        ),
        (
            ("a.avi,p1,3,5", "b.avi,p1,2021-03-04,6"),
            {},
            DataError,
            r"some visit_time are dates and some are numbers of",
        ),
        (
            ("a.avi,p1,1,55", "b.avi,p1,1,50"),
            {},
            DataError,
            r"patient 'p1' at visit_time '1' differ in EF: 50 and 55\. A",
        ),
        (
            ("a.avi,p1,1,55", "b.avi,p2,1,50"),
            {},
            DataError,
            r"No usable clip in .* p1: the patient \(group_id\) has one",
        ),
        (
            ("a.avi,p1,1,55", "b.avi,p1,2,50"),
            {"targets": ("EF",)},
            ConfigError,
            r"progression=EF foresees one number, and",
        ),
    ],
)
def test_manifest_errors_of_visits(visits, lines, config, error, message):
    with pytest.raises(error, match=message):
        read_table(visits, "file,group_id,visit_time,EF", *lines, **{"progression": "EF", **config})


def test_manifest_settings_that_contradict(clips):
    with pytest.raises(ConfigError, match=r"dataset\.ordinal and dataset\.multilabel cannot both be true"):
        read_table(clips, "file,label", "a.avi,x", "b.avi,y", ordinal=True, multilabel=True)
    with pytest.raises(ConfigError, match=r"'anomaly' would be predicted twice"):
        read_table(clips, "file,anomaly", "a.avi,1", "b.avi,0", targets=("anomaly",))


def test_manifest_unknown_label(clips):
    with pytest.raises(DataError, match=r"row 2: the label 'sik' is not in dataset\.labels=.* Did you mean 'sick'\?"):
        read_table(clips, "file,label", "a.avi,sik", "b.avi,ok", labels=("sick", "ok"))


def test_manifest_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"The table .*manifest\.csv does not exist"):
        manifest.index(tmp_path, ManifestConfig())
    with pytest.raises(DataError, match=r"No table was given"):
        manifest.index(None, ManifestConfig())
    (tmp_path / "manifest.csv").write_bytes(b"file,label\n\xff\xfe,x")
    with pytest.raises(DataError, match=r"cannot be read as a CSV table .* Save it as CSV in UTF-8"):
        manifest.index(tmp_path, ManifestConfig())


def test_manifest_of_single_abnormal_frames(clips):
    """The frames 0 and 1 are written as ranges, as 0 and 1 alone are of the clip."""
    found = read_table(clips, "file,anomaly", "a.avi,0-0", "b.avi,1-1", "in/c.avi,0;3")
    assert [case.targets["anomaly"] for case in found.cases] == [1, 1, 1]
    assert [case.frame_targets["anomaly"] for case in found.cases] == [(1, 0, 0, 0), (0, 1, 0, 0), (1, 0, 0, 1)]


def test_manifest_of_labels_that_are_very_long_numbers(clips):
    """Class names are sorted as numbers, however many digits they have."""
    long = "1" * 5000
    found = read_table(clips, "file,label", f"a.avi,{long}", "b.avi,9", "in/c.avi,10")
    assert found.outputs[0].classes == ("9", "10", long)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.text(max_size=120), st.text('file,mask;label\t\n"a.avi*[]/~ ', max_size=60)))
def test_any_text_is_a_table_or_a_clear_error(clips, text):
    path = clips / "manifest.csv"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(MedvidError):
        manifest.index(path, ManifestConfig())


cells = st.text(st.characters(codec="utf-8", exclude_characters="\x00", exclude_categories=["Cs"]), max_size=15)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(cells, min_size=2, max_size=2))
def test_metadata_survives_quoting(clips, notes):
    path = clips / "manifest.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "label", "note"])
        writer.writerows([["a.avi", "x", notes[0]], ["b.avi", "y", notes[1]]])
    found = manifest.index(path, ManifestConfig())
    assert [case.metadata["note"] for case in found.cases] == [note.strip() for note in notes]


@needs_shared
def test_polyp_by_manifest(tmp_path):
    folder = SHARED / "seg_colonoscopy_polyp"
    line = f"{folder}/challenging_7_detectionsignal_480p.mp4,{folder}/challenging-mask"
    config = {"classes": ("polyp",), "mask_nonzero": True}
    case = read_table(tmp_path, "file,mask", line, **config, mask_resize=True).cases[0]
    assert (case.case_id, case.frames, case.fps) == ("challenging_7_detectionsignal_480p", 225, 25.0)
    masks = case.streams["mask"]
    assert [Path(path).name for path in masks.paths] == [f"name{t + 1:05d}_mask.png" for t in range(225)]
    some = list(range(0, 225, 8))
    shown = read_masks(masks, some, size=(480, 640)).max((1, 2)).tolist()
    raw = [int(np.asarray(Image.open(masks.paths[t]).convert("RGB")).any()) for t in some]
    assert shown == raw
    strict = read_table(tmp_path, "file,mask", line, **config).cases[0].streams["mask"]
    with pytest.raises(
        DataError, match=r"name00001_mask\.png is 1920x1080 pixels while frame 0 of its video is 640x480"
    ):
        read_masks(strict, [0], size=(480, 640))
    plain = read_table(tmp_path, "file,mask", line, classes=("polyp",), mask_resize=True).cases[0].streams["mask"]
    with pytest.raises(DataError, match=r"holds the values 33, .*dataset\.mask_nonzero=true"):
        read_masks(plain, some, size=(480, 640))


@pytest.mark.slow
@needs_shared
def test_every_polyp_mask(tmp_path):
    folder = SHARED / "seg_colonoscopy_polyp"
    line = f"{folder}/challenging_7_detectionsignal_480p.mp4,{folder}/challenging-mask"
    case = read_table(tmp_path, "file,mask", line, mask_nonzero=True, mask_resize=True).cases[0]
    masks = read_masks(case.streams["mask"], range(225), size=(480, 640))
    assert int((masks.max((1, 2)) == 1).sum()) == 200


@needs_shared
def test_lung_table_as_published():
    found = manifest.index(SHARED / "cls_pocus_lung/labels.csv", ManifestConfig(group_column="subject_id"))
    assert len(found.cases) == 18
    assert not found.skipped
    assert found.outputs[0].classes == ("covid", "pneumonia", "regular")
    assert len({case.group_id for case in found.cases}) == 16
    assert sum(case.frames for case in found.cases) == 2474


# --- echo phantom --------------------------------------------------------------------------------------------------


def test_echo_phantom():
    config = EchoPhantomConfig(cases=3, frames=6, size=(48, 48), seed=5)
    found = echo_phantom.index(None, config)
    assert found.outputs[0].classes == ("background", "lv", "myocardium")
    assert len({case.case_id for case in found.cases}) == 3
    case = found.cases[0]
    assert (case.frames, case.split, case.group_id) == (6, None, case.case_id)
    assert 0 < case.targets["ejection_fraction"] < 100
    assert case.targets["wall_motion"] in (0, 1)
    video = read_images(case.streams["video"], [4, 0])
    masks = read_masks(case.streams["mask"], [4, 0], size=(48, 48))
    assert (video.shape, masks.shape) == ((2, 48, 48, 3), (2, 48, 48))
    assert set(np.unique(masks)) == {0, 1, 2}
    again = pickle.loads(pickle.dumps(case))
    np.testing.assert_array_equal(read_images(again.streams["video"], [0])[0], video[1])


def test_echo_phantom_has_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"echo-phantom is drawn, not read: it has no use for the folder"):
        echo_phantom.index(tmp_path, EchoPhantomConfig())


# --- in common -----------------------------------------------------------------------------------------------------


def test_index_does_not_depend_on_the_order_of_the_file_system(objects, monkeypatch):
    first = vos.index(objects, VOSConfig())
    real = Path.iterdir

    def shuffled(self):
        found = list(real(self))
        random.shuffle(found)
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", shuffled)
    assert vos.index(objects, VOSConfig()) == first


def test_indexing_imports_no_torch():
    modules = "vtus, vos, videos, manifest, echo_phantom, echonet, cardiac_udc, class_folders, unlabelled"
    code = f"import sys; from medvid_core.data.datasets import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
