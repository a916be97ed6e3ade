"""CardiacUDC: people, sites and views by name, labels in some frames, and nothing that leaks."""

from __future__ import annotations

import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medvid_core.data.datasets import cardiac_udc
from medvid_core.data.datasets.cardiac_udc import CardiacUDCConfig, fill_contours
from medvid_core.data.readers import read_images, read_masks
from medvid_core.errors import ConfigError, DataError

SIZE = (6, 8)
FRAMES = 4


def save(path: Path, frames: np.ndarray) -> Path:
    """Write [T,H,W] with axes (x, y, t)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.transpose(frames, (2, 1, 0)), np.eye(4)), path)
    return path


def labels(drawn=(1,), value: int = 1, frames: int = FRAMES) -> np.ndarray:
    masks = np.zeros((frames, *SIZE), np.uint8)
    for frame in drawn:
        masks[frame, 1:4, 2:5] = value
    return masks


def clip(root: Path, name: str, masks: np.ndarray | None = None, kind=np.uint8) -> None:
    """Write ``name_image`` with grey that tells frame, row and column apart, and ``name_label``."""
    t, y, x = np.mgrid[:FRAMES, : SIZE[0], : SIZE[1]]
    save(root / f"{name}_image.nii.gz", (50 * t + 8 * y + x).astype(kind))
    if masks is not None:
        save(root / f"{name}_label.nii.gz", masks)


@pytest.fixture
def root(tmp_path) -> Path:
    clip(tmp_path, "Site_G_20/patient-1-4", labels())
    clip(tmp_path, "Site_G_20/patient-1-2", labels())
    clip(tmp_path, "Site_R_52/patient-2-4", labels((0, 2), 3))
    clip(tmp_path, "Site_R_52/patient-10-4", labels((3,)))
    clip(tmp_path, "label_all_frame/patient-2-4", labels(range(FRAMES)))
    clip(tmp_path, "label_all_frame/normal-1-4", labels(range(FRAMES)))
    return tmp_path


def index(root: Path, **config):
    return cardiac_udc.index(root, CardiacUDCConfig(**config))


def test_people_sites_and_views(root):
    assert cardiac_udc.can_read(root)
    found = index(root)
    table = {case.case_id: (case.group_id, case.metadata["site"], case.view, case.labelled) for case in found.cases}
    assert table == {
        "label_all_frame/normal-1-4": ("normal-1", "label_all_frame", "4", None),
        "label_all_frame/patient-2-4": ("patient-2", "Site_R_52", "4", None),
        "Site_G_20/patient-1-4": ("patient-1", "Site_G_20", "4", (1,)),
        "Site_R_52/patient-10-4": ("patient-10", "Site_R_52", "4", (3,)),
    }
    assert dict(found.skipped) == {
        "Site_R_52/patient-2-4": "the same clip is in label_all_frame, with as many labelled frames or more"
    }
    assert [(output.name, output.task, output.classes) for output in found.outputs] == [
        ("mask", "segmentation", ("background", "lv", "la", "ra", "rv")),
        ("diagnosis", "classification", ("normal", "patient")),
    ]
    assert [case.targets["diagnosis"] for case in found.cases] == [
        int(case.group_id.startswith("patient")) for case in found.cases
    ]
    assert pickle.loads(pickle.dumps(found)) == found


def used(found) -> set[str]:
    return {case.case_id for case in found.cases}


def test_a_labelled_clip_is_not_given_up_for_one_that_is_not(root):
    """Whether the other one lacks its label, cannot be read, or has fewer labelled frames."""
    label = root / "label_all_frame/patient-2-4_label.nii.gz"
    for spoil in (label.unlink, lambda: label.write_bytes(b"nothing"), lambda: save(label, labels((1,)))):
        spoil()
        for masks in (True, False):
            found = index(root, masks=masks)
            assert ("Site_R_52/patient-2-4" in used(found)) == masks
            assert ("label_all_frame/patient-2-4" in used(found)) == (not masks)
        assert "label_all_frame/patient-2-4" in index(root).skipped


def test_an_id_of_two_sites_may_be_two_clips(root):
    """Which of them stands in label_all_frame too, nobody can say: all are used, as one patient."""
    clip(root, "Site_G_20/patient-2-4", labels())
    found = index(root)
    assert not found.skipped
    assert {case.case_id for case in found.cases if case.group_id == "patient-2"} == {
        "label_all_frame/patient-2-4",
        "Site_G_20/patient-2-4",
        "Site_R_52/patient-2-4",
    }


def test_frames_stand_upright(root):
    case = next(case for case in index(root).cases if case.case_id == "Site_G_20/patient-1-4")
    t, y, x = np.mgrid[:FRAMES, : SIZE[0], : SIZE[1]]
    np.testing.assert_array_equal(read_images(case.streams["video"], [2, 0])[..., 0], (50 * t + 8 * y + x)[[2, 0]])
    masks = read_masks(case.streams["mask"], [1, 0], size=SIZE)
    np.testing.assert_array_equal(masks, labels()[[1, 0]])


def test_grey_does_not_depend_on_the_labels(root):
    """Pictures of other types are scaled by the picture file alone."""
    clip(root, "Site_G_20/patient-7-4", labels((1,), 4), kind=np.float32)
    case = next(case for case in index(root).cases if case.group_id == "patient-7")
    images = read_images(case.streams["video"], range(FRAMES))
    assert (images.min(), images.max()) == (0, 255)


def test_other_views(root):
    with pytest.raises(ConfigError, match=r"dataset\.views=\[2, 4\]: label values mean .* in view 4 only\. Name what"):
        index(root, views=(2, 4))
    found = index(root, views=(2,), classes=("background", "lv", "la"))
    assert [case.case_id for case in found.cases] == ["Site_G_20/patient-1-2"]
    assert [output.name for output in found.outputs] == ["mask"]
    found = index(root, views=(2, 4), masks=False)
    assert [output.name for output in found.outputs] == ["diagnosis"]
    assert {case.group_id for case in found.cases if case.case_id.startswith("Site_G_20")} == {"patient-1"}
    assert not any("mask" in case.streams for case in found.cases)


@pytest.mark.parametrize("name", ["Site_R_52", "r_52"])
def test_a_site_held_out(root, name):
    """The test set is that site, wherever its people's clips lie; nobody of it is in training."""
    clip(root, "Site_G_20/patient-10-4", labels())
    found = index(root, held_out_site=name)
    assert {case.case_id: case.split for case in found.cases} == {
        "label_all_frame/normal-1-4": "train",
        "label_all_frame/patient-2-4": "test",
        "Site_G_20/patient-1-4": "train",
        "Site_R_52/patient-10-4": "test",
    }
    assert found.skipped["Site_G_20/patient-10-4"] == "the patient is also in the held-out site Site_R_52"
    assert {case.split for case in index(root).cases} == {None}


def test_a_site_that_is_not_there(root):
    with pytest.raises(ConfigError, match=r"held_out_site=Site_R_53: there is no such site\. Did you mean 'Site_R_52'"):
        index(root, held_out_site="Site_R_53")


def test_frames_without_a_label(root):
    case = index(root, empty_is_unlabelled=False).cases[2]
    assert (case.case_id, case.labelled) == ("Site_G_20/patient-1-4", None)


def test_outlines_are_filled():
    outline = np.zeros((7, 9), np.uint8)
    outline[1:6, 1:5] = 2
    outline[2:5, 2:4] = 0
    outline[3, 2] = 1  # another structure inside stays
    outline[0, 8] = 4
    filled = np.zeros((7, 9), np.uint8)
    filled[1:6, 1:5] = 2
    filled[3, 2], filled[0, 8] = 1, 4
    np.testing.assert_array_equal(fill_contours(outline), filled)
    np.testing.assert_array_equal(fill_contours(filled), filled)


def test_filling_is_an_option(root):
    ring = labels()
    ring[1, 2, 3] = 0
    clip(root, "Site_G_20/patient-5-4", ring)
    for fill, value in ((True, 1), (False, 0)):
        case = next(case for case in index(root, fill_contours=fill).cases if case.group_id == "patient-5")
        assert read_masks(case.streams["mask"], [1], size=SIZE)[0, 2, 3] == value


def test_a_value_that_is_no_class(root):
    clip(root, "Site_G_20/patient-6-4", labels((1,), 9))
    case = next(case for case in index(root).cases if case.group_id == "patient-6")
    with pytest.raises(DataError, match=r"holds the values 9, which belong to no class"):
        read_masks(case.streams["mask"], [1], size=SIZE)


def test_clips_that_cannot_be_used_are_skipped_by_name(tmp_path):
    clip(tmp_path, "Site_G_20/patient-1-4", labels())
    clip(tmp_path, "Site_G_20/patient-2-4", None)
    clip(tmp_path, "Site_G_20/patient-3-4", labels(()))
    clip(tmp_path, "Site_G_20/patient-4-4", labels(frames=3))
    clip(tmp_path, "Site_G_20/patient-5-4", labels())
    path = tmp_path / "Site_G_20/patient-5-4_label.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "Site_G_20/patient-6-4_image.nii.gz").write_bytes(b"nothing")
    found = index(tmp_path)
    assert [case.case_id for case in found.cases] == ["Site_G_20/patient-1-4"]
    assert [output.name for output in found.outputs] == ["mask"]  # there are no normals to tell apart from
    reasons = {name.removeprefix("Site_G_20/patient-"): reason for name, reason in found.skipped.items()}
    assert reasons["2-4"] == "there is no patient-2-4_label.nii.gz"
    assert reasons["3-4"] == "no frame is labelled"
    assert reasons["4-4"].endswith("(rows, columns, frames) (6, 8, 3), its clip (6, 8, 4): they do not belong together")
    assert "patient-5-4_label.nii.gz cannot be read" in reasons["5-4"]
    assert "patient-6-4_image.nii.gz cannot be read" in reasons["6-4"]


def test_folders_that_are_wrong(tmp_path):
    with pytest.raises(DataError, match=r"No folder was given"):
        cardiac_udc.index(None, CardiacUDCConfig())
    (tmp_path / "Site_G_20").mkdir()
    assert not cardiac_udc.can_read(tmp_path)
    with pytest.raises(DataError, match=r"No usable clip in .* Expected: Site_\*/patient"):
        index(tmp_path)
    clip(tmp_path, "Site_G_20/patient-1-4", labels())
    with pytest.raises(DataError, match=r"holds only patient clips and dataset\.masks is false: there is nothing"):
        index(tmp_path, masks=False)
