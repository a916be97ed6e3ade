"""A folder a class: what counts as a clip, whose it is, and which folders are not taken for classes."""

from __future__ import annotations

from pathlib import Path

import av
import nibabel
import numpy as np
import pytest
from PIL import Image

from medvid_core.data.datasets import class_folders
from medvid_core.data.datasets.class_folders import ClassFoldersConfig
from medvid_core.data.readers import read_images
from medvid_core.data.readers.dicom_header import patient_hash
from medvid_core.errors import DataError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the test data ../shared/data is not on this machine")


def video(path: Path, frames: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=20)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


def images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / f"{name}.png")


def cine(path: Path, frames: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 6, frames), np.uint8), np.eye(4)), path)


def index(root: Path, **config):
    return class_folders.index(root, ClassFoldersConfig(**config))


def test_every_kind_of_clip(tmp_path):
    video(tmp_path / "2/a.avi")
    cine(tmp_path / "2/b.nii.gz")
    images(tmp_path / "10/clip", "0", "1", "2", "10")
    video(tmp_path / "10/p1/a.avi")
    images(tmp_path / "10/p1/walk", "f1", "f2")
    video(tmp_path / "1/p1/b.avi")
    assert class_folders.can_read(tmp_path)
    found = index(tmp_path)
    assert [(output.name, output.task, output.classes) for output in found.outputs] == [
        ("label", "classification", ("1", "2", "10"))
    ]
    table = {case.case_id: (case.group_id, case.frames, case.targets["label"]) for case in found.cases}
    assert table == {
        "1/p1/b": ("p1", 3, 0),
        "2/a": ("2/a", 3, 1),
        "2/b": ("2/b", 2, 1),
        "10/clip": ("10/clip", 4, 2),
        "10/p1/a": ("p1", 3, 2),
        "10/p1/walk": ("p1", 2, 2),
    }
    shown = next(case for case in found.cases if case.case_id == "10/clip")
    assert read_images(shown.streams["video"], range(4))[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_frames_of_several_videos_in_one_folder(tmp_path):
    """As Nerthus has them: all frames of a grade together, the video in the name."""
    images(tmp_path / "0", *(f"bowel_1_score_0-1_{number:04d}" for number in range(3)))
    images(tmp_path / "3", *(f"bowel_{clip}_score_3-1_{number}" for clip in (2, 10) for number in (1, 2)))
    found = index(tmp_path, ordinal=True)
    assert found.outputs[0].task == "ordinal"
    assert {case.case_id: (case.frames, case.targets["label"]) for case in found.cases} == {
        "0/bowel_1_score_0-1": (3, 0),
        "3/bowel_2_score_3-1": (2, 1),
        "3/bowel_10_score_3-1": (2, 1),
    }
    assert len({case.group_id for case in found.cases}) == 3
    assert not class_folders.can_read(tmp_path)  # so stored, each folder might be a case


def test_classes_in_another_order(tmp_path):
    for name in ("mild", "severe", "none", "other"):
        video(tmp_path / name / "a.avi")
    found = index(tmp_path, classes=("none", "mild", "severe"), ordinal=True)
    assert found.outputs[0].classes == ("none", "mild", "severe")
    assert [(case.case_id, case.targets["label"]) for case in found.cases] == [
        ("none/a", 0),
        ("mild/a", 1),
        ("severe/a", 2),
    ]
    with pytest.raises(DataError, match=r"has no folder 'sever', which dataset\.classes names\. Did you mean 'severe'"):
        index(tmp_path, classes=("none", "sever"))


def test_what_cannot_be_used_is_skipped_by_name(tmp_path):
    video(tmp_path / "a/1.avi")
    video(tmp_path / "b/1.avi")
    (tmp_path / "b/2.avi").write_bytes(b"no video")
    images(tmp_path / "b/both", "0", "1")
    video(tmp_path / "b/both/2.avi")
    (tmp_path / "b/nothing").mkdir()
    (tmp_path / "papers").mkdir()
    found = index(tmp_path)
    assert found.outputs[0].classes == ("a", "b")
    assert [case.case_id for case in found.cases] == ["a/1", "b/1"]
    assert "2.avi cannot be decoded" in found.skipped["b/2"]
    assert "holds 2 image(s)" in found.skipped["b/both"]
    assert found.skipped["b/nothing"] == "the folder holds neither frames nor clips"
    assert found.skipped["papers"] == "no clip in this folder can be read: it is not taken for a class"


def test_folders_that_are_wrong(tmp_path):
    with pytest.raises(DataError, match=r"No folder was given"):
        class_folders.index(None, ClassFoldersConfig())
    video(tmp_path / "a/1.avi")
    with pytest.raises(DataError, match=r"every clip is in the folder 'a'\. There must be two classes at least"):
        index(tmp_path)
    (tmp_path / "a/1.avi").unlink()
    with pytest.raises(DataError, match=r"No usable clip in .* Expected: <class>/<clip>"):
        index(tmp_path)
    video(tmp_path / "Train/a/1.avi")
    with pytest.raises(DataError, match=r"holds the folder Train, which is a part of a split and no class"):
        index(tmp_path)


def test_one_patient_in_two_classes_is_one_group(tmp_path):
    for path in ("a/p1/1.avi", "b/p1/1.avi", "b/p2/1.avi"):
        video(tmp_path / path)
    assert [case.group_id for case in index(tmp_path).cases] == ["p1", "p1", "p2"]


@pytest.mark.parametrize(
    "paths",
    [
        ("case1/1.avi", "case2/1.avi"),  # a folder a case
        ("a/1.avi", "a/2.avi"),  # one class
        ("images/1.avi", "images/2.avi", "masks/1.avi", "masks/2.avi"),
        ("train/1.avi", "train/2.avi", "test/1.avi", "test/2.avi"),
        ("Site_A/patient-1-4_image.nii.gz", "Site_B/patient-2-4_image.nii.gz", "Site_B/patient-3-4_image.nii.gz"),
    ],
)
def test_folders_that_are_no_classes(tmp_path, paths):
    for path in paths:
        cine(tmp_path / path) if path.endswith(".gz") else video(tmp_path / path)
    assert not class_folders.can_read(tmp_path)


def test_a_manifest_says_better(tmp_path):
    for path in ("a/1.avi", "a/2.avi", "b/1.avi"):
        video(tmp_path / path)
    assert class_folders.can_read(tmp_path)
    (tmp_path / "manifest.csv").write_text("file,label\n")
    assert not class_folders.can_read(tmp_path)


@needs_shared
def test_lung_folders():
    root = SHARED / "cls_pocus_lung"
    assert class_folders.can_read(root)
    found = index(root)
    assert found.outputs[0].classes == ("covid", "pneumonia", "regular")
    assert (len(found.cases), dict(found.skipped)) == (18, {})
    assert sum(case.frames for case in found.cases) == 2474


@needs_shared
def test_dicom_of_one_patient(tmp_path):
    for number, view in enumerate((7, 8, 13)):
        target = tmp_path / f"view{number % 2}/I_{number}"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((SHARED / f"cls_stress_echo_dicom/I_{view:06d}.dcm").read_bytes())
    assert {case.group_id for case in index(tmp_path).cases} == {patient_hash("Stress00001")}
