"""One mask file a class, or one of class numbers, in a folder a clinical case."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvid_core.config import compose
from medvid_core.data.clip import UNLABELLED
from medvid_core.data.datasets import ovarian
from medvid_core.data.datasets.ovarian import OvarianConfig
from medvid_core.data.fan import fan_box
from medvid_core.data.readers import read_masks
from medvid_core.errors import DataError
from medvid_core.plugins import registry

SIZE = (8, 10)
CLASSES = ("background", "solid", "non-solid")


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.astype(np.uint8)).save(path)


def scan(root: Path, name: str, classes: np.ndarray, names=CLASSES, suffix=".png") -> None:
    """A case of [T,H,W] class numbers as one file a class; a class that a frame lacks has no file there."""
    for number, one in enumerate(classes):
        save(root / name / f"{number:04d}_frame{suffix}", np.full(one.shape, 60))
        for value, kind in enumerate(names):
            if value == 0 or (one == value).any():
                save(root / name / f"{number:04d}_{kind}.png", 255 * (one == value))


def drawn(frames=3, seed=0, classes=3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, (frames, *SIZE))


def index(root: Path, **config):
    return ovarian.index(root, OvarianConfig(**config))


def test_one_file_a_class(tmp_path):
    classes = drawn(4)
    classes[2][classes[2] == 1] = 0  # no solid part there, and no file of it
    scan(tmp_path, "case7", classes)
    scan(tmp_path, "case8", drawn(2, 1))
    assert ovarian.can_read(tmp_path)
    found = index(tmp_path)
    assert found.outputs[0].classes == CLASSES
    assert [(case.case_id, case.group_id, case.frames, case.labelled) for case in found.cases] == [
        ("case7", "case7", 4, None),
        ("case8", "case8", 2, None),
    ]
    assert np.array_equal(read_masks(found.cases[0].streams["mask"], range(4), SIZE), classes)
    assert np.array_equal(read_masks(found.cases[0].streams["mask"], [3, 1, 1], SIZE), classes[[3, 1, 1]])


def test_any_number_of_classes_and_names(tmp_path):
    names = ("other", "cyst", "solid_part", "septum", "papilla")
    classes = drawn(3, classes=5)
    scan(tmp_path, "a", classes, names)
    found = index(tmp_path, classes=names)
    assert found.outputs[0].classes == names
    assert np.array_equal(read_masks(found.cases[0].streams["mask"], range(3), SIZE), classes)
    binary = drawn(2, classes=2)
    scan(tmp_path / "two", "a", binary, ("background", "lesion"))
    found = index(tmp_path / "two", classes=("lesion",))
    assert np.array_equal(read_masks(found.cases[0].streams["mask"], range(2), SIZE), binary)


def test_overlaps_and_gaps(tmp_path):
    """The brightest file wins; of equals the first; a pixel that none claims is background."""
    layers = {"background": [0, 255, 0, 100, 0], "solid": [255, 255, 0, 90, 200], "non-solid": [255, 0, 0, 0, 210]}
    save(tmp_path / "a/1_frame.png", np.zeros((1, 5)))
    for name, row in layers.items():
        save(tmp_path / f"a/1_{name}.png", np.array([row]))
    source = index(tmp_path).cases[0].streams["mask"]
    assert read_masks(source, [0], (1, 5)).tolist() == [[[1, 0, 0, 0, 2]]]


def test_one_file_of_class_numbers(tmp_path):
    classes = drawn(3)
    for number, one in enumerate(classes):
        save(tmp_path / f"a/{number}_frame.jpg", np.full(SIZE, 60))
        save(tmp_path / f"a/{number}_mask.png", one)
    found = index(tmp_path)
    assert np.array_equal(read_masks(found.cases[0].streams["mask"], range(3), SIZE), classes)
    shades = index(tmp_path, mask_values=(0, 1, 2), classes=("nothing", "a", "b"))
    assert shades.outputs[0].classes == ("nothing", "a", "b")


def test_frames_without_any_mask_are_unlabelled_and_the_fan_is_no_frame(tmp_path):
    scan(tmp_path, "a", drawn(3))
    for path in (tmp_path / "a").glob("0001_*"):
        if "frame" not in path.name:
            path.unlink()
    inside = np.zeros(SIZE)
    inside[1:6, 2:9] = 255
    save(tmp_path / "a/fan.png", inside)
    [case] = index(tmp_path).cases
    assert case.frames == 3
    assert case.labelled == (0, 2)
    assert not case.is_labelled(1)
    assert fan_box(case, "mask") == (1, 2, 5, 7)


def test_a_table_says_whose_the_cases_are(tmp_path):
    """Two clinical cases of a patient are one group; other columns are kept."""
    for name in ("a", "b", "c"):
        scan(tmp_path, name, drawn(1))
    (tmp_path / "cases.csv").write_text("case_id,group_id,stratum,age\na,p1,serous,50\nb,p1,,\n")
    cases = {case.case_id: case for case in index(tmp_path).cases}
    assert [cases[name].group_id for name in "abc"] == ["p1", "p1", "c"]
    assert cases["a"].stratum == "serous"
    assert cases["a"].metadata == {"age": "50"}
    (tmp_path / "cases.csv").write_text("case_id,group_id\nd,p1\n")
    with pytest.raises(DataError, match=r"row 2: there is no case 'd'\."):
        index(tmp_path)


def test_it_is_recognised_and_cut_into_windows_as_the_fork_does(tmp_path):
    for name in ("a", "b"):
        scan(tmp_path, name, drawn(2))
    found = compose(registry(), "unet", str(tmp_path))
    assert found.dataset.name == "ovarian"
    assert found.config.clip.sampling == "all"


def refusal(root: Path, **config) -> str:
    with pytest.raises(DataError) as info:
        index(root, **config)
    return str(info.value)


def test_names_that_do_not_fit_are_refused(tmp_path):
    scan(tmp_path, "a", drawn(2))
    assert refusal(tmp_path, classes=("background", "solid")) == (
        f"{tmp_path / 'a'} holds masks of 'non-solid', which is no class. Did you mean 'solid'? Name all classes, "
        "background first: dataset.classes=[background,solid,non-solid]."
    )
    assert refusal(tmp_path, classes=(*CLASSES, "septum")) == (
        f"No case in {tmp_path} has a mask of 'septum' (<number>_septum.png). Found: background, non-solid, solid. "
        "Correct dataset.classes."
    )
    save(tmp_path / "a/0007_solid.png", np.zeros(SIZE))
    assert "the mask 0007_solid.png belongs to no frame: there is no 0007_frame image" in refusal(tmp_path)


def test_both_kinds_of_mask_in_one_case_are_refused(tmp_path):
    scan(tmp_path, "a", drawn(1))
    save(tmp_path / "a/0000_mask.png", np.zeros(SIZE))
    assert refusal(tmp_path) == (
        "Case 'a' has masks of class numbers (…_mask) and of one class (…_background). Keep one kind."
    )


def test_masks_of_different_sizes_are_refused(tmp_path):
    scan(tmp_path, "a", drawn(2))
    source = index(tmp_path).cases[0].streams["mask"]
    with pytest.raises(DataError, match=r"is 10x8 pixels while frame 0 of its video is 12x9"):
        read_masks(source, [0], (9, 12))
    save(tmp_path / "a/0000_solid.png", np.zeros((9, 10)))
    with pytest.raises(DataError, match=r"0000_solid\.png is 10x9 pixels while .*0000_background\.png is 10x8"):
        read_masks(source, [0], SIZE)


def test_unlabelled_frames_read_as_such(tmp_path):
    from medvid_core.data.loader import read_case_masks

    scan(tmp_path, "a", drawn(2))
    for kind in CLASSES:
        (tmp_path / f"a/0001_{kind}.png").unlink()
    masks, labelled = read_case_masks(index(tmp_path).cases[0], [0, 1], SIZE)
    assert labelled.tolist() == [True, False]
    assert (masks[1] == UNLABELLED).all()
