"""What metrics of masks are given: which frames, at what spacing, and the rows of all cases at the end."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from medvid_core import Case, ClipSpec, OutputSpec, Source
from medvid_core.config import ClipConfig, EvaluateConfig
from medvid_core.engine.curves import read_curves
from medvid_core.engine.scoring import (
    Scorer,
    build_metrics,
    metric_names,
    read_holding,
    score_cases,
    summarise,
    write_tables,
)
from medvid_core.errors import ConfigError, DataError
from medvid_core.metrics.base import Metric
from medvid_core.plugins import registry

OUTPUT = OutputSpec(name="mask", task="segmentation", classes=("lv",))
HEIGHT, WIDTH = 24, 32


def read_video(source, frames):
    """Frame t is a bright rectangle of t + 4 rows."""
    pictures = np.zeros((len(frames), HEIGHT, WIDTH), np.uint8)
    for picture, frame in zip(pictures, frames, strict=True):
        picture[4 : 8 + frame, 8:16] = 255
    return pictures


def read_mask(source, frames):
    """The annotation: the same, four columns wider where the source says so."""
    drawn = (read_video(source, frames) > 0).astype(np.uint8)
    drawn[:, :, 16 : 16 + source.options] = drawn[:, :, 8:9]
    return drawn


class Bright(nn.Module):
    """Says that what is bright is the ventricle."""

    def forward(self, batch):
        return {"mask": 40 * (batch["video"].mean(2, keepdim=True) - 0.5)}


def case(name="a", wider=0, labelled=(1, 6), **values) -> Case:
    here = f"{__name__}:"
    streams = {
        "video": Source(reader=here + "read_video"),
        "mask": Source(reader=here + "read_mask", values=(0, 1), options=wider),
    }
    return Case(
        case_id=name, group_id=values.pop("group_id", name), frames=9, labelled=labelled, streams=streams, **values
    )


class Spy(Metric):
    """Remembers what it is given."""

    name = "spy"

    def __init__(self, outputs, every_frame):
        super().__init__(outputs)
        self.every_frame, self.seen, self.rows = every_frame, [], []

    def per_frame(self, frames):
        self.seen.append(frames)
        return {self.name: torch.ones(len(frames.mask)), f"{self.name}/pair": torch.zeros(len(frames.mask), 2)}

    def per_case(self, values):
        return {self.name: float(values[self.name].sum()), f"{self.name}/kept": values[f"{self.name}/pair"]}

    def across(self, rows, cases):
        self.rows.append(
            [
                (row["case_id"], case.case_id, row[f"{self.name}/kept"].shape)
                for row, case in zip(rows, cases, strict=True)
            ]
        )
        rows[-1][f"{self.name}/last"] = 7.0


def score(cases, metrics, at="source", size=(48, 32)):
    spec = ClipSpec(frames=4, mean=(0.0,) * 3, std=(1.0,) * 3)
    clip = ClipConfig(frames=4, size=size)
    settings = EvaluateConfig(at=at)
    scorer = Scorer((OUTPUT,), tuple(metrics), clip, spec, (), settings, torch.device("cpu"))
    return score_cases(Bright(), cases, scorer), scorer


@pytest.mark.parametrize(("every_frame", "wanted"), [(False, [1, 6]), (True, list(range(9)))])
def test_a_metric_gets_annotated_frames_or_all(every_frame, wanted):
    """In order, each once, with the case and the number of each frame; only annotated ones are counted as scored."""
    spy = Spy((OUTPUT,), every_frame)
    one = case(spacing=(0.5, 0.25))
    rows, _ = score([one], [spy])
    assert [index for frames in spy.seen for index in frames.indices] == wanted
    assert [bool(known) for frames in spy.seen for known in frames.labelled] == [index in (1, 6) for index in wanted]
    assert all(frames.case is one for frames in spy.seen)
    assert (rows[0]["spy"], rows[0]["scored_frames"]) == (len(wanted), 2)
    drawn = {index: frames.mask[k] for frames in spy.seen for k, index in enumerate(frames.indices)}
    assert {index for index, mask in drawn.items() if (mask != 255).any()} == {1, 6}


@pytest.mark.parametrize(
    ("at", "spacing", "expected"),
    [
        ("source", (0.5, 0.25), (0.5, 0.25)),
        ("model", (0.5, 0.25), (0.25, 0.125)),  # 48x64 pixels of a picture of 24x32
        ("model", None, None),
    ],
)
def test_spacing_is_that_of_the_scored_pixels(at, spacing, expected):
    spy = Spy((OUTPUT,), False)
    score([case(spacing=spacing)], [spy], at, (48, 64))
    assert {frames.spacing for frames in spy.seen} == {expected}


def test_distances_in_mm_are_the_same_in_source_and_model_pixels():
    """Nearly: outlines move by less than a pixel."""
    metrics = build_metrics(registry(), ["hausdorff", "assd"], (OUTPUT,))
    cases = [case(wider=4, spacing=(2.0, 1.0))]
    (source,), (model,) = (score(cases, metrics, at, (96, 128))[0] for at in ("source", "model"))
    assert source["hausdorff"] == source["hausdorff/mm"] == pytest.approx(4, abs=1e-6)
    assert model["hausdorff"] == pytest.approx(4, abs=0.5)


def test_all_rows_are_completed_once_and_arrays_go():
    """Rows and cases come in one order; what was kept for this is in no row afterwards."""
    spy = Spy((OUTPUT,), False)
    rows, scorer = score([case("b"), case("a")], [spy])
    assert spy.rows == [[("b", "b", (2, 2)), ("a", "a", (2, 2))]]
    assert [sorted(set(row) & {"spy", "spy/kept", "spy/last"}) for row in rows] == [["spy"], ["spy", "spy/last"]]
    assert summarise(rows, scorer.metrics) == {"spy": 2.0, "spy/last": 7.0}


def test_what_lies_beside_the_table_of_cases(tmp_path):
    """Curves as they were, by case; frames that hold each class; and nothing where there is nothing to write."""
    rows, _ = score([case("a"), case("b", wider=4)], build_metrics(registry(), ["threshold-max-dice"], (OUTPUT,)))
    assert [sorted(row.curves) for row in rows] == [["threshold-max-dice/curve"]] * 2
    write_tables(tmp_path, rows, (OUTPUT,))
    found = read_curves(tmp_path)
    for row in rows:
        curve = found[row["case_id"]]["threshold-max-dice/curve"]
        np.testing.assert_array_equal(curve, row.curves["threshold-max-dice/curve"])
        assert len(curve) == 256
    assert "curve" not in (tmp_path / "cases.csv").read_text()
    assert read_holding(tmp_path, OUTPUT).tolist() == [4, 4]  # two frames of each case hold background and ventricle
    (tmp_path / "none").mkdir()
    rows, _ = score([case("a")], build_metrics(registry(), ["dice"], (OUTPUT,)))
    write_tables(tmp_path / "none", rows, (OUTPUT,))
    with pytest.raises(DataError, match=r"There is no file .*curves\.csv\. Score the model anew\."):
        read_curves(tmp_path / "none")
    (tmp_path / "curves.csv").write_text("case_id,curve,0\na,x,high\n")
    with pytest.raises(DataError, match=r"curves\.csv is damaged: could not convert"):
        read_curves(tmp_path)


def test_defaults_of_a_model_of_masks_and_classes():
    """Names that mean two things are left out; asked for by name they are refused."""
    view = OutputSpec(name="view", task="classification", classes=("2CH", "4CH"))
    names = metric_names(("auto",), (OUTPUT, view))
    assert {"dice", "f1", "specificity"} <= set(names)
    assert not {"precision", "recall", "mae"} & set(names)
    assert {"precision", "recall", "mae"} <= set(metric_names(("auto",), (OUTPUT,)))
    with pytest.raises(ConfigError, match="'recall' means one thing for a segmentation and another for a classificat"):
        build_metrics(registry(), ["recall"], (OUTPUT, view))


def test_metrics_of_the_heart_through_a_whole_evaluation():
    """Of two views and a case of another patient: distances, EF by one view and two, and consistency of all frames."""
    names = ["hd95", "ejection-fraction", "temporal-consistency"]
    views = [
        case("2", labelled=(0, 8), group_id="p", study_id="p", view="2CH", spacing=(1.0, 1.0)),
        case("4", labelled=(8, 0), group_id="p", study_id="p", view="4CH", spacing=(1.0, 1.0)),
        case("q", labelled=(0, 8), wider=4),
    ]
    rows, scorer = score(views, build_metrics(registry(), names, (OUTPUT,)))
    assert [math.isnan(row["hd95"]) for row in rows] == [False, False, True]  # in pixels, beside others in mm
    assert rows[2]["hd95/pixels"] > 0
    assert [math.isnan(row["ejection-fraction/biplane"]) for row in rows] == [False, True, True]
    assert rows[0]["ejection-fraction/biplane/true"] == pytest.approx(rows[0]["ejection-fraction/true"])
    assert rows[0]["ejection-fraction/true"] > 30
    assert rows[0]["temporal-consistency"] == pytest.approx(0, abs=1e-9)  # it grows by a row a frame
    found = summarise(rows, scorer.metrics)
    assert found["hd95"] == 0
    assert found["ejection-fraction/biplane/edv/bias"] == 0
    assert found["temporal-consistency/inconsistent"] == 0
    assert not [name for row in rows for name, value in row.items() if isinstance(value, np.ndarray)]
