"""Breast ultrasound videos, by diagnosis."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvid_core.config import compose
from medvid_core.data.datasets import buv
from medvid_core.data.datasets.buv import BUVConfig
from medvid_core.data.readers import read_masks
from medvid_core.errors import DataError
from medvid_core.plugins import registry


def lesion(root: Path, name: str, frames: int = 3, masks: int | None = None) -> None:
    for kind, count in (("rawframes", frames), ("masks", frames if masks is None else masks)):
        folder = root / kind / name
        folder.mkdir(parents=True)
        for number in range(count):
            picture = np.full((8, 10), 50, np.uint8) if kind == "rawframes" else np.zeros((8, 10), np.uint8)
            picture[2:5, 3:7] = 200
            Image.fromarray(picture).save(folder / f"{number:06d}.png")


def index(root: Path):
    return buv.index(root, BUVConfig())


def test_cases_masks_and_diagnoses(tmp_path):
    lesion(tmp_path, "benign/a1")
    lesion(tmp_path, "malignant/b2", frames=4, masks=2)
    (tmp_path / "train.txt").write_text("malignant/b2\n")
    (tmp_path / "test.txt").write_text("benign/a1\n")
    found = index(tmp_path)
    assert [(output.name, output.task, output.classes) for output in found.outputs] == [
        ("mask", "segmentation", ("lesion",)),
        ("diagnosis", "classification", ("benign", "malignant")),
    ]
    assert [(case.case_id, case.split, case.targets, case.stratum, case.labelled) for case in found.cases] == [
        ("benign/a1", "test", {"diagnosis": 0}, "benign", None),
        ("malignant/b2", "train", {"diagnosis": 1}, "malignant", (0, 1)),
    ]
    assert read_masks(found.cases[0].streams["mask"], [2]).sum() == 12


def test_without_diagnoses_there_are_masks_alone(tmp_path):
    lesion(tmp_path, "a1")
    lesion(tmp_path, "a2")
    found = index(tmp_path)
    assert [output.name for output in found.outputs] == ["mask"]
    assert [(case.case_id, case.split) for case in found.cases] == [("a1", None), ("a2", None)]


def test_it_is_recognised_by_its_folders(tmp_path):
    for name in ("benign/a", "benign/b", "malignant/c"):
        lesion(tmp_path, name)
    assert compose(registry(), "unet", str(tmp_path)).dataset.name == "buv"


def test_what_does_not_fit_is_refused(tmp_path):
    lesion(tmp_path, "benign/a1")
    (tmp_path / "rawframes/benign/a2").mkdir()
    assert index(tmp_path).skipped == {"benign/a2": "the folder holds no images"}
    (tmp_path / "train.txt").write_text("benign/a3\n")
    with pytest.raises(DataError, match=r"names the case 'benign/a3', which is not in .*rawframes"):
        index(tmp_path)
    (tmp_path / "train.txt").unlink()
    for path in (tmp_path / "masks/benign/a1").iterdir():
        path.unlink()
    (tmp_path / "masks/benign/a1").rmdir()
    with pytest.raises(DataError) as info:
        index(tmp_path)
    assert str(info.value) == (
        f"The masks of benign/a1 are missing: there is no folder {tmp_path / 'masks/benign/a1'}. Add it, or remove "
        "the case."
    )
    with pytest.raises(DataError, match="has no folders rawframes and masks"):
        index(tmp_path / "masks")
