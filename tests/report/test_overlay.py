import json
import sys
import types
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from medvid_core.config import ClipConfig, EvaluateConfig
from medvid_core.data.clip import Source
from medvid_core.engine.evaluate import Scorer
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import Run
from medvid_core.engine.scoring import CaseRow
from medvid_core.errors import DataError
from medvid_core.metrics.segmentation import Dice
from medvid_core.report.draw import contour, draw, fitted_size
from medvid_core.report.overlay import OverlayWriter, safe_name, shown_frames, still_frames, write_case, write_overlays
from medvid_core.report.palette import foreground, palette, to_hex
from medvid_core.report.video import shown_fps
from medvid_core.specs import ClipSpec, OutputSpec

from . import conftest
from .conftest import EVIL, make_blocks, make_case

THREE = OutputSpec(name="mask", task="segmentation", classes=("background", "lv", "wall"))
ONE = OutputSpec(name="mask", task="segmentation", classes=("lesion",))


@pytest.fixture(autouse=True)
def readers(monkeypatch):
    """The readers of the clip are found by module name, whatever name pytest gave this folder."""
    module = types.ModuleType(conftest.__name__)
    module.read_video, module.read_mask = conftest.read_video, conftest.read_mask
    monkeypatch.setitem(sys.modules, conftest.__name__, module)


def decoded(path):
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], rate


# --- drawing


@pytest.mark.parametrize("classes", [1, 2, 3, 8, 30])
def test_palette_is_distinct(classes):
    colours = palette(classes)
    assert colours.shape == (max(2, classes), 3)
    assert len({tuple(colour) for colour in colours}) == len(colours)
    assert not colours[0].any()


def test_foreground_of_binary_and_of_many():
    assert foreground(["lesion"]) == {1: "lesion"}
    assert foreground(["background", "lv", "wall"]) == {1: "lv", 2: "wall"}
    assert to_hex(palette(1)[1]) == "#56b4e9"


def test_contour_is_inside_and_skips_unlabelled():
    mask = np.zeros((6, 6), np.uint8)
    mask[1:5, 1:5] = 1
    expected = mask.astype(bool)
    expected[2:4, 2:4] = False
    assert (contour(mask) == expected).all()
    assert not contour(np.full((6, 6), 255, np.uint8)).any()


def test_draw_leaves_the_background_and_its_input_alone():
    image = np.full((20, 20, 3), 100, np.uint8)
    predicted, truth = np.zeros((20, 20), np.uint8), np.full((20, 20), 255, np.uint8)
    predicted[5:15, 5:15] = 1
    out = draw(image, predicted, truth, palette(1))
    assert (image == 100).all()
    assert (out[predicted == 0] == 100).all()
    assert (out[predicted == 1] != 100).any(-1).all()
    assert (out[5, 5:15] == palette(1)[1]).all()
    truth[:] = 0
    truth[3:17, 3:17] = 1
    drawn = draw(image, predicted, truth, palette(1))[3, 3:17]
    assert {tuple(pixel) for pixel in drawn.tolist()} == {(0, 0, 0), (255, 255, 255)}


def test_sizes():
    assert fitted_size(112, 112, 256) == (336, 336)
    assert fitted_size(300, 500, 256) == (300, 500)
    assert fitted_size(1080, 1920, 256, longest=512) == (288, 512)
    assert fitted_size(10, 1000, 256, longest=512) == (5, 512)


# --- video


def test_video_has_every_frame_and_even_sides(tmp_path):
    path = tmp_path / "new" / "a.webm"
    image = np.zeros((31, 45, 3), np.uint8)
    mask = np.ones((31, 45), np.uint8)
    with OverlayWriter(path, 1, fps=25, shortest=31) as writer:
        for level in range(7):
            writer.write(image + np.uint8(30 * level), 0 * mask, None)
        assert not path.exists()
    frames, rate = decoded(path)
    assert len(frames) == writer.frames == 7
    assert frames[0].shape == (32, 46, 3)
    assert rate == Fraction(25)
    assert [int(frame.mean()) for frame in frames] == pytest.approx([30 * level for level in range(7)], abs=4)
    assert [file.name for file in path.parent.iterdir()] == ["a.webm"]


def test_failed_video_leaves_nothing(tmp_path):
    def write():
        with OverlayWriter(tmp_path / "a.webm", 1) as writer:
            writer.write(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8))
            writer.write(np.zeros((32, 34, 3), np.uint8), np.zeros((32, 34), np.uint8))

    with pytest.raises(DataError, match=r"frame 1 is \(32, 34\), those before are \(32, 32\)"):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fps", "shown"), [(None, 12), (float("nan"), 12), (0, 12), (1, 5), (29.97, 29.97), (4000, 60)]
)
def test_fps(fps, shown):
    assert shown_fps(fps) == shown


# --- what `predict` writes


@pytest.mark.parametrize(("output", "values"), [(THREE, {0, 1, 2}), (ONE, {0, 1})])
def test_write_case(tmp_path, output, values):
    case = make_case(frames=9)
    write_case(make_blocks(case, len(output.classes)), case, tmp_path, output)
    files = sorted((tmp_path / "masks").iterdir())
    assert [file.name for file in files] == [f"{i:05d}.png" for i in range(9)]
    with Image.open(files[3]) as image:
        mask = np.asarray(image)
        assert image.mode == "P"
        assert mask.shape == (30, 41)
        assert set(np.unique(mask)) == values
        expected = conftest.read_mask(None, [3])[0] if output is THREE else conftest.read_mask(None, [3])[0] == 1
        assert (mask == expected).mean() > 0.95
        assert tuple(np.asarray(image.convert("RGB"))[12, 15]) == tuple(palette(len(output.classes))[1])
    frames, rate = decoded(tmp_path / "overlay.webm")
    assert (len(frames), frames[0].shape, rate) == (9, (270, 370, 3), 20)


def test_write_case_without_video(tmp_path):
    case = make_case(frames=3, labelled=())
    write_case(make_blocks(case), case, tmp_path, THREE, with_video=False)
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


# --- names and choice of frames


def test_names_are_safe_and_unique():
    assert safe_name("case_01.a-b") == "case_01.a-b"
    ids = ["../../etc/passwd", "a/b", "a_b", "a b", "A_B", "", "..", ".hidden", "con\x00", EVIL, "x" * 300, "é", "è"]
    names: list[str] = []
    for case_id in ids:
        name = safe_name(case_id, names)
        names.append(name)
        assert Path(name).name == name
        assert not name.startswith(".")
        assert len(name) < 100
        assert name.isascii()
    assert len({name.lower() for name in names}) == len(ids)


def test_shown_frames_reach_the_annotation():
    assert shown_frames(make_case(frames=10)) == range(10)
    assert shown_frames(make_case(frames=500)) == range(64)
    assert shown_frames(make_case(frames=500, labelled=(40, 300))) == range(64)
    assert shown_frames(make_case(frames=500, labelled=(300, 400))) == range(268, 332)
    assert shown_frames(make_case(frames=500, labelled=(499,))) == range(436, 500)


def test_stills_hold_the_annotated_frames():
    assert still_frames(make_case(frames=9), range(9)) == [0, 2, 4, 6, 8]
    assert still_frames(make_case(frames=2), range(2)) == [0, 1]
    sparse = still_frames(make_case(frames=64, labelled=(11, 40)), range(64))
    assert {11, 40} <= set(sparse)
    assert len(sparse) == 5


# --- overlays of a run


class Half(torch.nn.Module):
    def forward(self, batch):
        b, t, _, h, w = batch["video"].shape
        logits = torch.zeros(b, t, 3, h, w)
        logits[..., 1, :, : w // 2] = 5
        return {"mask": logits}


def test_write_overlays(tmp_path):
    scorer = Scorer(
        (THREE,),
        (Dice((THREE,)),),
        ClipConfig(frames=4, size=(32, 32)),
        ClipSpec(frames=4, size=(32, 32)),
        (),
        EvaluateConfig(overlays=1),
        torch.device("cpu"),
    )
    cases = [make_case(EVIL, frames=70), make_case("b"), make_case("broken")]
    rows = [CaseRow(case_id=c.case_id, scored_frames=1, dice=v) for c, v in zip(cases, (0.9, 0.5, 0.1), strict=True)]
    model = Half().train()
    run = Run(tmp_path, {"metrics": {"dice": True}})
    gone = Source(reader="frames", paths=("gone.png",) * 9)
    cases[2] = replace(cases[2], streams={**cases[2].streams, "video": gone})
    write_overlays(run, model, cases, rows, scorer, Progress(enabled=False))
    best, worst = json.loads((tmp_path / "overlays" / "index.json").read_text())
    assert (best["case_id"], best["kind"], best["value"], best["metric"]) == (EVIL, "best", 0.9, "dice")
    assert (best["frames"], best["frames_shown"], best["first_frame"]) == (70, 64, 0)
    assert len(decoded(tmp_path / "overlays" / best["video"])[0]) == 64
    with Image.open(tmp_path / "overlays" / best["still"]) as still:
        assert still.width > 5 * 200
    assert worst["kind"] == "worst"
    assert "gone.png" in worst["problem"]
    assert "video" not in worst
    assert model.training
