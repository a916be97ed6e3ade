"""Polyp videos in the layouts of PNS-Net, Vivim and SUN-SEG."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvid_core.config import compose
from medvid_core.data.datasets import polyps
from medvid_core.data.datasets.polyps import PolypsConfig
from medvid_core.data.readers import read_images, read_masks
from medvid_core.errors import DataError
from medvid_core.plugins import registry


def images(folder: Path, ending: str, *names: str, value: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        picture = np.zeros((8, 10), np.uint8)
        picture[2:5, 3:7] = value
        Image.fromarray(picture).save(folder / f"{name}{ending}")


def nested(root: Path, name: str, *numbers: str) -> None:
    """``<video>/Frame`` and ``<video>/GT``."""
    images(root / name / "Frame", ".jpg", *numbers, value=90)
    images(root / name / "GT", ".png", *numbers, value=255)


def beside(root: Path, name: str, *numbers: str) -> None:
    """``Frame/<video>`` and ``GT/<video>``."""
    images(root / "Frame" / name, ".jpg", *numbers, value=90)
    images(root / "GT" / name, ".png", *numbers, value=255)


def index(root: Path, **config):
    return polyps.index(root, PolypsConfig(**config))


def table(found) -> dict:
    return {case.case_id: (case.group_id, case.split, case.frames) for case in found.cases}


def test_the_layout_of_vivim(tmp_path):
    """Training videos with folders of their own, test sets with all their videos in one; Kvasir is stills."""
    nested(tmp_path / "Train", "7", "1", "2", "10")
    nested(tmp_path / "Train", "Kvasir", "5", "6")
    beside(tmp_path / "CVC-ClinicDB-612-Test", "3", "1", "2")
    beside(tmp_path / "CVC-ColonDB-300", "1", "1")
    assert polyps.can_read(tmp_path)
    found = index(tmp_path)
    assert table(found) == {
        "Train/7": ("Train/7", "train", 3),
        "Train/Kvasir/5": ("Train/Kvasir/5", "train", 1),
        "Train/Kvasir/6": ("Train/Kvasir/6", "train", 1),
        "CVC-ClinicDB-612-Test/3": ("CVC-ClinicDB-612-Test/3", "test", 2),
        "CVC-ColonDB-300/1": ("CVC-ColonDB-300/1", "test", 1),
    }
    assert [(output.name, output.classes) for output in found.outputs] == [("mask", ("polyp",))]
    case = next(case for case in found.cases if case.case_id == "Train/7")
    assert [Path(path).stem for path in case.streams["video"].paths] == ["1", "2", "10"]
    assert read_masks(case.streams["mask"], [1]).sum() == 12
    assert read_images(case.streams["video"], [0]).shape == (1, 8, 10, 3)
    assert {case.metadata["part"] for case in found.cases} == {
        "Train",
        "Train/Kvasir",
        "CVC-ClinicDB-612-Test",
        "CVC-ColonDB-300",
    }


def test_it_is_recognised_by_its_folders(tmp_path):
    nested(tmp_path / "Train", "7", "1", "2")
    nested(tmp_path / "Train", "8", "1", "2")
    beside(tmp_path / "Test", "3", "1", "2")
    assert compose(registry(), "unet", str(tmp_path)).dataset.name == "polyps"


def test_a_test_set_alone_and_a_video_alone(tmp_path):
    """Nothing says what to train on: the split is drawn."""
    beside(tmp_path / "one", "3", "1")
    beside(tmp_path / "one", "4", "1")
    assert table(index(tmp_path / "one")) == {"3": ("3", None, 1), "4": ("4", None, 1)}
    nested(tmp_path, "two", "1", "2")
    assert table(index(tmp_path / "two")) == {"two": ("two", None, 2)}


def sun_seg(root: Path) -> Path:
    beside(root / "TrainDataset", "case1_1", "a-00", "a-01")
    beside(root / "TrainDataset", "case1_3", "a-00")
    beside(root / "TrainDataset", "case2", "a-00")
    for difficulty in ("Easy", "Hard"):
        beside(root / f"Test{difficulty}Dataset/Seen", f"case1_{2 if difficulty == 'Easy' else 4}", "a-00")
        beside(root / f"Test{difficulty}Dataset/Unseen", f"case{7 if difficulty == 'Easy' else 8}_1", "a-00")
    return root


def test_the_layout_of_sun_seg(tmp_path):
    """Clips of a polyp are one group; those of polyps that are trained on are no test."""
    found = index(sun_seg(tmp_path))
    assert table(found) == {
        "TrainDataset/case1_1": ("case1", "train", 2),
        "TrainDataset/case1_3": ("case1", "train", 1),
        "TrainDataset/case2": ("case2", "train", 1),
        "TestEasyDataset/Unseen/case7_1": ("case7", "test", 1),
        "TestHardDataset/Unseen/case8_1": ("case8", "test", 1),
    }
    assert found.skipped == {
        "TestEasyDataset/Seen/case1_2": "left out: shows polyps that are trained on (dataset.seen=true)",
        "TestHardDataset/Seen/case1_4": "left out: shows polyps that are trained on (dataset.seen=true)",
    }


def test_seen_polyps_can_be_tested_on(tmp_path):
    found = index(sun_seg(tmp_path), seen=True)
    tests = [case for case in found.cases if case.split == "test"]
    assert [case.case_id for case in tests] == ["TestEasyDataset/Seen/case1_2", "TestHardDataset/Seen/case1_4"]
    assert {case.group_id for case in found.cases} == {case.case_id for case in found.cases}
    assert len(found.skipped) == 2


def test_frames_without_a_mask_are_unlabelled_and_folders_without_frames_skipped(tmp_path):
    nested(tmp_path, "7", "1", "2", "3")
    (tmp_path / "7/GT/2.png").unlink()
    (tmp_path / "8/Frame").mkdir(parents=True)
    (tmp_path / "8/GT").mkdir()
    found = index(tmp_path)
    assert found.cases[0].labelled == (0, 2)
    assert found.skipped == {"8": f"{tmp_path / '8/Frame'} holds no images"}


def test_what_does_not_fit_is_refused(tmp_path):
    assert not polyps.can_read(tmp_path)
    beside(tmp_path, "3", "1")
    images(tmp_path / "GT/3", ".png", "9")
    with pytest.raises(DataError, match="1 of 2 masks match none of the 1 frames"):
        index(tmp_path)
    images(tmp_path / "Frame/4", ".jpg", "1")
    (tmp_path / "GT/3/9.png").unlink()
    with pytest.raises(DataError) as info:
        index(tmp_path)
    assert str(info.value) == (
        f"The masks of {tmp_path / 'Frame/4'} are missing: there is no folder {tmp_path / 'GT/4'}. Add it."
    )
