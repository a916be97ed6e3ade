"""Samples and batches: the contract, the same for any number of workers, errors that name the case."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from medvid_core.cli.main import message_of
from medvid_core.config import AugmentConfig, ClipConfig
from medvid_core.data.clip import UNLABELLED, Case, Source
from medvid_core.data.datasets.echo_phantom import index
from medvid_core.data.loader import Augmentation, TrainingClips, collate, load_sample, to_device, training_loader
from medvid_core.data.phantoms.echo import EchoPhantomConfig
from medvid_core.data.sampling import ClipKey, RankBatches, training_items, window
from medvid_core.data.transforms import shift
from medvid_core.errors import DataError
from medvid_core.specs import ClipSpec, OutputSpec

AUGMENT = AugmentConfig(horizontal_flip=0.5, rotation_deg=20, brightness=0.2, noise=0.02)
CLIP = ClipConfig(frames=3, size=(24, 32))
OUTPUTS = (
    OutputSpec(name="mask", task="segmentation", classes=("background", "lv", "myocardium")),
    OutputSpec(name="sick", task="classification", classes=("no", "yes")),
)


@pytest.fixture(scope="module")
def cases():
    return index(None, EchoPhantomConfig(cases=4, frames=6, size=(40, 40))).cases


def picture(frame: int) -> np.ndarray:
    return np.full((20, 30), 10 * frame, np.uint8)


def read_frames(source: Source, frames) -> np.ndarray:
    """A reader that pickles by name: frame t is grey 10 t; masks are all class 1."""
    if source.options == "mask":
        return np.ones((len(frames), 20, 30), np.uint8)
    return np.stack([picture(frame) for frame in frames])


def broken(source: Source, frames) -> np.ndarray:
    if source.options == "data error":
        raise DataError("The file x.png is damaged. DataError: is a word that may stand in a text.")
    raise RuntimeError("the sky fell")


def made(frames=5, labelled=None, reader="read_frames", options="video", **more) -> Case:
    return Case(
        case_id="made",
        group_id="p1",
        frames=frames,
        labelled=labelled,
        streams={
            "video": Source(reader=f"{__name__}:{reader}", options=options),
            "mask": Source(reader=f"{__name__}:read_frames", options="mask", values=(0, 1)),
        },
        **more,
    )


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Tests are imported under a name of importlib's choosing: let readers be found under it."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or __import__(__name__))


def sample(case, start=0, clip=CLIP, **more):
    return load_sample(case, *window(start, case.frames, clip), clip, ClipSpec(), **more)


def test_a_sample_holds_what_the_contract_says(cases):
    """Keys, shapes and dtypes as `medvid_core.data.clip` lists them."""
    found = sample(cases[0], 2)
    shapes = {key: (value.dtype, tuple(value.shape)) for key, value in found.items() if isinstance(value, torch.Tensor)}
    assert shapes == {
        "video": (torch.float32, (3, 3, 24, 32)),
        "frame_real": (torch.bool, (3,)),
        "mask": (torch.int64, (3, 24, 32)),
        "mask_labelled": (torch.bool, (3,)),
        "affine": (torch.float32, (3, 3)),
        "source_size": (torch.int64, (2,)),
        "frame_index": (torch.int64, (3,)),
        "fps": (torch.float32, ()),
        "time_s": (torch.float64, (3,)),
        "spacing": (torch.float32, (2,)),
    }
    assert all(type(value) is torch.Tensor for value in found.values() if isinstance(value, torch.Tensor))
    assert {"targets", "targets_present", "frame_targets", "frame_targets_present", "case_id", "group_id"} == set(
        found
    ) - set(shapes)
    assert found["frame_index"].tolist() == [2, 3, 4]
    assert set(found["mask"].unique().tolist()) <= {0, 1, 2}
    assert found["targets"]["ejection_fraction"].dtype == torch.float32
    assert bool(found["targets_present"]["wall_motion"])


def test_a_short_clip_is_filled_up_and_says_so():
    """Padding repeats the last frame, is not real and not labelled, so that nothing is learnt or scored there."""
    found = sample(made(frames=2))
    assert found["frame_real"].tolist() == [True, True, False]
    assert found["mask_labelled"].tolist() == [True, True, False]
    assert found["frame_index"].tolist() == [0, 1, 1]
    assert torch.equal(found["video"][1], found["video"][2])


def test_frames_nobody_annotated_are_unlabelled_throughout():
    found = sample(made(labelled=(1,)))
    assert found["mask_labelled"].tolist() == [False, True, False]
    assert (found["mask"][[0, 2]] == UNLABELLED).all()
    assert (found["mask"][1] == 1).all()
    without = sample(made(), masks=False)
    assert not without["mask_labelled"].any()
    assert (without["mask"] == UNLABELLED).all()


def test_unknown_fps_and_spacing_are_nan_and_whole_numbers_are_floats():
    found = sample(made())
    assert math.isnan(found["fps"])
    assert found["spacing"].isnan().all()
    both = collate([found, sample(made(fps=25, spacing=(1, 2)))])
    assert both["fps"].dtype == torch.float32
    assert both["fps"][1] == 25
    assert both["spacing"][1].tolist() == [1, 2]


def test_a_batch_adds_an_axis_and_marks_absent_targets():
    batch = collate([sample(made(targets={"ef": 60.0, "view": 2})), sample(made(targets={"view": 1}))])
    assert batch["video"].shape == (2, 3, 3, 24, 32)
    assert batch["case_id"] == ["made", "made"]
    assert batch["targets"]["ef"].tolist() == [60.0, 0.0]
    assert batch["targets_present"]["ef"].tolist() == [True, False]
    assert batch["targets"]["view"].tolist() == [2, 1]
    assert batch["targets"]["view"].dtype == torch.int64
    moved = to_device(batch, torch.device("cpu"))
    assert moved.keys() == batch.keys()
    assert moved["targets"].keys() == batch["targets"].keys()


def clips(cases, augment=AUGMENT) -> TrainingClips:
    return TrainingClips(cases, training_items(cases, CLIP, OUTPUTS), CLIP, ClipSpec(), (), augment, 5)


def batches(dataset, workers, first=0):
    return list(training_loader(dataset, RankBatches(5, len(dataset.items), 2, 1, 0, 1, first, 4), workers, False))


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(
                value.nan_to_num(-1.0) if value.is_floating_point() else value,
                (other[key].nan_to_num(-1.0) if value.is_floating_point() else other[key]),
            ), key
        elif not isinstance(value, dict):
            assert value == other[key]


@pytest.mark.slow
def test_spawned_workers_make_the_same_samples_and_no_global_number_is_drawn(cases):
    """Augmented, to the bit; from any step on."""
    dataset = clips(cases)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    alone, together, tail = batches(dataset, 0), batches(dataset, 2), batches(dataset, 0, first=2)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()
    assert len(alone) == len(together) == 4
    for one, other in zip(alone, together, strict=True):
        assert_equal(one, other)
    for one, other in zip(alone[2:], tail, strict=True):
        assert_equal(one, other)


def test_an_epoch_differs_from_the_next(cases):
    """The same item is drawn and changed anew."""
    dataset = clips(cases)
    first, again, later = (dataset[ClipKey(epoch, 0, 0)] for epoch in (0, 0, 1))
    assert_equal(first, again)
    assert not torch.equal(first["video"], later["video"])


def test_an_unforeseen_error_names_the_case():
    dataset = clips([made(reader="broken")], AugmentConfig())
    with pytest.raises(DataError) as info:
        dataset[ClipKey(0, 0, 0)]
    assert str(info.value).startswith("Case 'made', frames ")
    assert str(info.value).endswith("could not be loaded: RuntimeError: the sky fell")


def test_an_error_in_a_worker_is_as_clean_as_one_without(tmp_path):
    """The text of a truncated JPEG read in a spawned worker: no traceback in it, a DataError."""
    for t in range(3):
        Image.fromarray(np.random.default_rng(t).integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / f"{t}.jpg")
    bad = tmp_path / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    paths = tuple(str(tmp_path / f"{t}.jpg") for t in range(3))
    case = Case(
        case_id="c",
        group_id="c",
        frames=3,
        streams={"video": Source(reader="frames", paths=paths)},
        targets={"sick": 1},
    )
    texts = []
    for workers in (0, 1):
        with pytest.raises(DataError) as info:
            batches(clips([case]), workers)
        texts.append(message_of(info.value))
    assert texts[0] == texts[1]
    assert texts[0].startswith(f"The image {bad} cannot be read (")
    assert texts[0].endswith("Copy it again from its source, or remove its case from the data.")
    assert "Traceback" not in texts[1]


def test_a_window_is_cut_from_a_border_of_zeros():
    """augment.pad: the picture moves by whole pixels, 0 and unlabelled come in, and all frames move alike."""
    still = sample(made())
    moved = sample(made(), augment=(Augmentation(None, 4), 1))
    found = {
        (dy, dx)
        for dy in range(-4, 5)
        for dx in range(-4, 5)
        if torch.equal(shift(still["video"], dy, dx, 0), moved["video"])
        and torch.equal(shift(still["mask"], dy, dx, UNLABELLED), moved["mask"])
    }
    assert len(found) == 1
    assert found != {(0, 0)}
    assert (moved["mask"] == UNLABELLED).any()
