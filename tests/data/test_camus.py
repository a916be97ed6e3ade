"""CAMUS: half sequences by view, which frames are drawn, the lists of the split, and what is missing."""

from __future__ import annotations

import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medvid_core.config import detect_dataset
from medvid_core.data.datasets import camus, class_folders
from medvid_core.data.datasets.camus import CAMUSConfig, read_info
from medvid_core.data.readers import read_images, read_masks
from medvid_core.errors import ConfigError, DataError
from medvid_core.plugins import registry

SIZE = (9, 7)
FRAMES = 5
INFO = "ED: 1\nES: 4\nNbFrame: 5\nSex: F\nAge: 56\nImageQuality: Good\nEF: 53\nFrameRate: 48.5\n"


def save(path: Path, frames: np.ndarray) -> None:
    """Write [T,H,W] as CAMUS does: axes (x, y, t), or (x, y) for one frame; 0.3 mm wide, 0.15 mm high, no unit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = np.transpose(frames, (2, 1, 0))
    volume = volume[..., 0] if len(frames) == 1 else volume
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([0.3, 0.15, 1, 1])), path)


def masks(frames=range(FRAMES)) -> np.ndarray:
    """The ventricle at a place that tells the frame, the wall below, the atrium in the last row."""
    found = np.zeros((len(frames), *SIZE), np.uint8)
    for place, frame in enumerate(frames):
        found[place, 1 + frame % 3, 2] = 1
        found[place, 6, 1:5] = 2
        found[place, 8, 3] = 3
    return found


def view(root: Path, patient: str, name: str, *, drawn: str = "all", info: str | None = INFO, end=".nii.gz") -> None:
    """Write one view: ``drawn`` all, ends, or none of its frames."""
    stem = root / patient / f"{patient}_{name}"
    t, y, x = np.mgrid[:FRAMES, : SIZE[0], : SIZE[1]]
    video = (40 * t + 4 * y + x).astype(np.uint8)
    save(Path(f"{stem}_half_sequence{end}"), video)
    for frame, phase in ((0, "ED"), (3, "ES")):
        save(Path(f"{stem}_{phase}{end}"), video[frame : frame + 1])
        if drawn != "none":
            save(Path(f"{stem}_{phase}_gt{end}"), masks([frame]))
    if drawn == "all":
        save(Path(f"{stem}_half_sequence_gt{end}"), masks())
    if info is not None:
        (root / patient / f"Info_{name}.cfg").write_text(info)


@pytest.fixture
def root(tmp_path) -> Path:
    """Three patients: all frames drawn, two frames drawn, one view alone in files that are not compressed."""
    view(tmp_path, "patient0001", "2CH")
    view(tmp_path, "patient0001", "4CH")
    view(tmp_path, "patient0002", "2CH", drawn="ends")
    view(tmp_path, "patient0002", "4CH", drawn="ends")
    view(tmp_path, "patient0010", "4CH", end=".nii")
    return tmp_path


def index(root: Path, **config):
    return camus.index(root, CAMUSConfig(**config))


def test_views_patients_and_what_is_known_of_them(root):
    assert camus.can_read(root)
    found = index(root)
    assert {case.case_id: (case.group_id, case.study_id, case.view, case.labelled) for case in found.cases} == {
        "patient0001/2CH": ("patient0001", "patient0001", "2CH", None),
        "patient0001/4CH": ("patient0001", "patient0001", "4CH", None),
        "patient0002/2CH": ("patient0002", "patient0002", "2CH", (0, 3)),
        "patient0002/4CH": ("patient0002", "patient0002", "4CH", (0, 3)),
        "patient0010/4CH": ("patient0010", "patient0010", "4CH", None),
    }
    assert [(output.name, output.task, output.classes) for output in found.outputs] == [
        ("mask", "segmentation", ("background", "lv", "myo", "la")),
        ("ejection_fraction", "regression", ("ejection_fraction",)),
    ]
    case = found.cases[0]
    assert (case.frames, case.fps, case.split) == (FRAMES, 48.5, None)
    assert case.spacing == pytest.approx((0.15, 0.3))  # row, column
    assert case.targets == {"ejection_fraction": 53.0}
    assert case.metadata == {
        "sex": "F",
        "age": "56",
        "image_quality": "Good",
        "ed_frame": "0",
        "es_frame": "3",
    }
    assert found.skipped == {}
    assert pickle.loads(pickle.dumps(found)) == found


def test_pictures_and_masks_of_the_frames_that_are_drawn(root):
    """Columns are x and rows y; the two files of end diastole and end systole stand for their frames."""
    cases = {case.case_id: case for case in index(root).cases}
    images = read_images(cases["patient0002/4CH"].streams["video"], [4, 1])
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    assert (images[..., 0] == np.stack([160 + 4 * y + x, 40 + 4 * y + x])).all()
    for name, frames in (("patient0001/2CH", [4, 0, 2]), ("patient0002/4CH", [3, 0]), ("patient0010/4CH", [1])):
        found = read_masks(cases[name].streams["mask"], frames, SIZE)
        assert (found == masks(frames)).all(), name


def test_a_view_alone_can_be_chosen(root):
    assert {case.view for case in index(root, views=("4CH",)).cases} == {"4CH"}
    with pytest.raises(ConfigError) as error:
        index(root, views=("4CH", "3CH"))
    assert str(error.value).startswith("dataset.views=['4CH', '3CH']: CAMUS has the views 2CH and 4CH, not '3CH'.")


@pytest.mark.parametrize("lists", ["database_split", "."])
def test_the_published_folders_and_lists(root, tmp_path_factory, lists):
    """Patients in database_nifti, lists beside it or at the top; a patient in no list is left out."""
    top = tmp_path_factory.mktemp("camus")
    root.rename(top / "database_nifti")
    (top / lists).mkdir(exist_ok=True)
    (top / lists / "subgroup_training.txt").write_text("patient0001\npatient0500\n")
    (top / lists / "subgroup_validation.txt").write_text("")
    (top / lists / "subgroup_testing.txt").write_text("patient0010\n")
    assert camus.can_read(top)
    found = index(top)
    assert {case.group_id: case.split for case in found.cases} == {"patient0001": "train", "patient0010": "test"}
    reason = "the patient is in none of the lists subgroup_*.txt"
    assert found.skipped == {"patient0002/2CH": reason, "patient0002/4CH": reason}
    if lists != ".":
        assert {case.split for case in index(top / "database_nifti").cases} == {"train", "test"}
    (top / lists / "subgroup_validation.txt").write_text("patient0010")
    with pytest.raises(DataError, match=r"subgroup_testing\.txt: patient0010 is in the list for val too"):
        index(top)


def test_a_sequence_from_end_systole_to_end_diastole_in_the_older_words(root):
    """Frames are those that the file says, whichever comes first; ``key = value`` is read as well."""
    text = "ED = 5\nES=2\nLVedv: 110.5\nLVesv: 50\nLVef: 54.8\n"
    (root / "patient0001" / "Info_4CH.cfg").write_text(text)
    case = next(case for case in index(root).cases if case.case_id == "patient0001/4CH")
    assert case.metadata == {"ed_frame": "4", "es_frame": "1", "edv_ml": "110.5", "esv_ml": "50"}
    assert case.targets == {"ejection_fraction": 54.8}
    assert case.fps is None


def test_two_drawn_frames_in_reverse_order(tmp_path):
    """The file of end diastole belongs to its frame, though that is the later one."""
    view(tmp_path, "patient0003", "2CH", drawn="ends", info="ED: 4\nES: 1\nEF: 40")
    (case,) = index(tmp_path).cases
    assert case.labelled == (0, 3)
    es, ed = read_masks(case.streams["mask"], [0, 3], SIZE)
    assert (ed == masks([0])[0]).all()
    assert (es == masks([3])[0]).all()


def test_masks_without_a_fraction_and_a_fraction_without_masks(tmp_path):
    view(tmp_path, "patient0001", "4CH", info="ED: 1\nES: 5")
    assert [output.name for output in index(tmp_path).outputs] == ["mask"]
    view(tmp_path / "other", "patient0001", "4CH", drawn="none")
    found = index(tmp_path / "other")
    assert [output.name for output in found.outputs] == ["ejection_fraction"]
    assert not found.cases[0].is_labelled(0)


def remove(name):
    return lambda folder: (folder / name).unlink()


def rewrite(text):
    return lambda folder: (folder / "Info_4CH.cfg").write_text(text)


def replace(name, volume):
    return lambda folder: save(folder / name, volume)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove("patient0002_4CH_half_sequence.nii.gz"), "there is no patient0002_4CH_half_sequence.nii.gz"),
        (remove("Info_4CH.cfg"), "there is no Info_4CH.cfg, which says what the frames are"),
        (
            remove("patient0002_4CH_ES_gt.nii.gz"),
            "there is patient0002_4CH_ED_gt.nii.gz, but no patient0002_4CH_ES_gt.nii.gz",
        ),
        (rewrite("ED: 1\n"), "ES is ''; it must be a frame of the clip, 1 to 5"),
        (rewrite("ED: 0\nES: 3"), "ED is '0'; it must be a frame of the clip, 1 to 5"),
        (rewrite("ED: 1\nES: 6"), "ES is '6'; it must be a frame of the clip, 1 to 5"),
        (rewrite("ED: 2\nES: 2"), "ED and ES are the same frame, 2"),
        (rewrite("ED: 1\nES: 3\nEF: high"), "column EF: 'high' is not a number."),
        (
            replace("patient0002_4CH_ED_gt.nii.gz", masks([0])[:, :4]),
            "patient0002_4CH_ED_gt.nii.gz has (rows, columns, frames) (4, 7, 1), its clip calls for (9, 7, 1): they do "
            "not belong together",
        ),
        (
            replace("patient0002_4CH_half_sequence_gt.nii.gz", masks(range(4))),
            "patient0002_4CH_half_sequence_gt.nii.gz has (rows, columns, frames) (9, 7, 4), its clip calls for "
            "(9, 7, 5): they do not belong together",
        ),
    ],
)
def test_a_view_with_a_missing_or_wrong_piece_is_left_out_and_said(root, damage, reason):
    damage(root / "patient0002")
    found = index(root)
    assert list(found.skipped) == ["patient0002/4CH"]
    assert found.skipped["patient0002/4CH"].endswith(reason)
    assert len(found.cases) == 4


def test_nothing_known_of_a_view(root):
    for path in (root / "patient0002").glob("*4CH*_gt*"):
        path.unlink()
    rewrite("ED: 1\nES: 3")(root / "patient0002")
    assert index(root).skipped == {
        "patient0002/4CH": "there are no masks patient0002_4CH_…_gt.nii.gz, and Info_4CH.cfg holds no EF"
    }


def test_a_truncated_sequence_costs_its_view(root):
    path = root / "patient0001" / "patient0001_2CH_half_sequence.nii.gz"
    path.write_bytes(path.read_bytes()[:40])
    found = index(root)
    assert list(found.skipped) == ["patient0001/2CH"]
    assert "cannot be read" in found.skipped["patient0001/2CH"]


def test_the_layout_is_recognised_and_taken_for_no_other(root, tmp_path_factory):
    """Folders of patients are no classes."""
    assert detect_dataset(registry(), root).name == "camus"
    assert not class_folders.can_read(root)
    other = tmp_path_factory.mktemp("other")
    assert not camus.can_read(other)
    save(other / "patient0001" / "clip.nii.gz", masks())
    assert not camus.can_read(other)
    with pytest.raises(DataError, match="No usable clip in"):
        index(other)


def test_info_files(tmp_path):
    """Keys in any case, either separator, values with either in them; other lines are passed over."""
    path = tmp_path / "Info_2CH.cfg"
    path.write_text("ED: 1\r\n\nFrameRate = 48\nNote: a=b: c\nno value\n")
    assert read_info(path) == {"ed": "1", "framerate": "48", "note": "a=b: c"}
