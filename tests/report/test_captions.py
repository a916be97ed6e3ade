import json

import numpy as np
import pytest
import torch
from PIL import Image

from medvid_core.config import ClipConfig, EvaluateConfig
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import Run
from medvid_core.engine.scoring import CaseRow, Scorer, build_metrics
from medvid_core.plugins import registry
from medvid_core.report.captionbox import Captions, cut, wrapped
from medvid_core.report.captions import Panel, lines, still, tracks, write_captioned
from medvid_core.report.draw import font
from medvid_core.report.html import write_report
from medvid_core.report.overlay import write_overlays
from medvid_core.report.palette import palette
from medvid_core.specs import ClipSpec

from .conftest import EVIL, make_case
from .tasks import case, output, write_run
from .test_html import checked
from .test_overlay import decoded, readers  # noqa: F401  the readers of the clip

BLUE, ORANGE = (tuple(int(part) for part in colour) for colour in palette(3)[1:])


def colours(image):
    return {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()}


@pytest.mark.parametrize(
    ("spec", "found", "said"),
    [
        (output("classification"), case(0, [0.3, 0.7], 0), ["state: severe (0.70), truly mild"]),
        (output("classification"), case(0, [0.3, 0.7]), ["state: severe (0.70)"]),
        (output("ordinal"), case(0, [0.3], 1), ["state: mild, truly severe"]),
        (output("multilabel"), case(0, [0.3, 0.7], [1, 0]), ["state: mild 0.30, severe 0.70; truly mild"]),
        (output("regression", ("ef",)), case(0, [38.397], [42.42]), ["state: 38.4, truly 42.4"]),
        (
            output("regression", ("edv", "esv")),
            case(0, [0.5, 120], [np.nan, 90]),
            ["state/edv: 0.5", "state/esv: 120.0, truly 90.0"],
        ),
        (output("anomaly", ("stall",)), case(0, [0.1, 0.7], 0), ["state: score 0.7, truly normal"]),
        (
            output("frame_classification"),
            case(0, [[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]], frames=[0, 0, np.nan]),
            ["state: 50% of 2 frames right"],
        ),
    ],
)
def test_words(spec, found, said):
    assert lines(found, [spec]) == said


def test_text_is_wrapped_to_the_width():
    text = "order: physiologic (0.55), truly " + "x" * 90 + "\n\tend"
    rows = wrapped(text, 150)
    assert len(rows) > 2
    assert all(font(12).getlength(row) <= 150 for row in rows)
    assert rows[0].startswith("order:")
    assert rows[-1] == "end"
    assert cut("é Ω Я" * 99, 60).endswith("…")


def test_letters_beyond_ascii_are_drawn():
    missing = font(12).getmask("\uffff")
    shapes = {bytes(font(12).getmask(letter)) for letter in "éüßΩЯ–≥…"}
    assert len(shapes) == 8
    assert bytes(missing) not in shapes


def test_bands_show_prediction_over_truth():
    predicted = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    found = case(0, predicted, frames=[0, 1, 1, np.nan])
    (track,) = tracks(found, [output("frame_classification")])
    drawn = np.asarray(Captions([], [track], 300).image)
    rows = [row for row in drawn if (row == ORANGE).all(1).sum() > 60]  # those of the legend hold less
    above, below = rows[2], rows[-3]  # inside the frames
    assert [tuple(above[x].tolist()) for x in (60, 120, 190, 260)] == [BLUE, BLUE, ORANGE, ORANGE]
    assert [tuple(below[x].tolist()) for x in (60, 120, 190)] == [BLUE, ORANGE, ORANGE]
    assert tuple(below[260].tolist()) == (0, 0, 0)  # unknown


def test_a_cursor_goes_with_the_frame_and_nothing_else_moves():
    found = case(0, [0.1, 0.5, 0.2, 0.9], frames=[0, 0, 1, 1])
    panel = Panel(found, [output("anomaly", ("stall",))], (90, 260))
    image = np.full((30, 80, 3), 60, np.uint8)
    first, last = panel.draw(image, 0).astype(int), panel.draw(image, 3).astype(int)
    assert first.shape[1] == 260
    assert (first[-90:] == 60).all()  # the picture comes last
    moved = np.unique(np.nonzero((first != last).any(2))[1])
    assert 1 <= len(moved) <= 4
    assert moved[0] > 46  # right of the gutter
    assert moved[-1] > 200


@pytest.mark.parametrize("scores", [[np.nan, 0.2, np.inf], [np.nan] * 3, [0.5] * 3, [0.4], np.linspace(0, 1, 3000)])
def test_any_curve_can_be_drawn(scores):
    (track,) = tracks(case(0, scores, frames=np.zeros(len(scores))), [output("anomaly", ("stall",))])
    assert Captions(["words"], [track], 256).image.size[0] == 256


def test_unknown_truth_has_no_band():
    known, unknown = ([case(0, [0.1, 0.9], frames=truth)] for truth in ([0, 1], None))
    spec = [output("anomaly", ("stall",))]
    heights = [Captions([], tracks(found, spec), 300).image.height for (found,) in (known, unknown)]
    assert heights[0] > heights[1]
    assert ORANGE not in colours(Captions([], tracks(unknown[0], spec), 300).image)


def test_many_classes_have_a_legend_of_several_rows():
    names = [f"class number {i}" for i in range(9)]
    (track,) = tracks(case(0, np.eye(9), frames=range(9)), [output("frame_classification", names)])
    narrow, wide = (Captions([], [track], width).image for width in (256, 1200))
    assert narrow.height > wide.height + 40
    assert len(colours(wide) & {tuple(map(int, c)) for c in palette(10)[1:]}) == 9


@pytest.mark.parametrize("size", [(1000, 12), (12, 1000), (40, 40)])
def test_narrow_videos_have_room_for_words(size):
    found, spec = case(0, [0.3, 0.7], 0), [output("classification")]
    panel = Panel(found, spec, size)
    drawn = panel.draw(np.zeros((*size, 3), np.uint8), 0)
    assert drawn.shape[1] >= 256
    assert still([np.zeros((*size, 3), np.uint8)] * 2, [0, 1], found, spec).width >= 256


@pytest.mark.usefixtures("readers")
def test_captioned_video(tmp_path):
    clip, found = make_case(frames=9), case(0, np.linspace(0, 1, 9), frames=np.arange(9) > 5)
    picture, fps = write_captioned(tmp_path / "a.webm", clip, found, [output("anomaly", ("stall",))], range(9))
    frames, rate = decoded(tmp_path / "a.webm")
    assert len(frames) == 9
    assert rate == fps == 20
    assert picture.shape[1] == 5 * 287 + 4 * 4  # five frames, seven times as large as they are
    assert picture.dtype == np.uint8


@pytest.mark.usefixtures("readers")
def test_captions_of_a_run(tmp_path, record):
    spec = output("classification")
    cases = [case(i, [0.2 + 0.2 * i, 0.8 - 0.2 * i], 0, case_id=name) for i, name in enumerate((EVIL, "b", "c"))]
    metrics = build_metrics(registry(), ("auto",), (spec,))
    size = {"frames": 4, "size": (32, 32)}
    scorer = Scorer(
        (spec,), metrics, ClipConfig(**size), ClipSpec(**size), (), EvaluateConfig(overlays=1), torch.device("cpu")
    )
    rows = []
    for found in cases:
        rows.append(CaseRow(case_id=found.case_id, scored_frames=9))
        rows[-1].scored = found
    run = Run(tmp_path, {"metrics": {metrics[0].name: True}})
    clips = [make_case(found.case_id, frames=9) for found in cases]
    write_overlays(run, torch.nn.Identity(), clips, rows, scorer, Progress(enabled=False))
    index = json.loads((tmp_path / "overlays" / "index.json").read_text())
    best, worst = index
    assert (best["case_id"], worst["case_id"]) == ("c", EVIL)
    assert best["shows"] == "captions"
    assert best["words"] == ["state: mild (0.60), truly mild"]
    with Image.open(tmp_path / "overlays" / worst["still"]) as picture:
        assert picture.width > 5 * 200
    write_run(tmp_path, record, [spec], cases)
    text, words, page = checked(write_report(tmp_path))
    assert "<script" not in text
    assert "state: severe (0.80), truly mild" in words
    assert "Chosen by the probability given to the true class from 3 cases." in words
    assert "annotation, dashed contour" not in words
    assert "overlay below" not in text
    assert "Frames of c: what is predicted of them below" in text
    assert "Video, with what is predicted above it, of c" in text
    assert page.tags.count("video") == page.tags.count("img") == 2
