import base64
import json
import math
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from medvid_core.errors import DataError
from medvid_core.report.html import write_report
from medvid_core.report.overlay import OverlayWriter
from medvid_core.report.rundata import interval, read_run
from medvid_core.report.text import duration, number

from .conftest import EVIL, rows

VOID = {"meta", "img", "br", "path", "use", "rect", "link"}


class Page(HTMLParser):
    """Checks that tags close in order, and notes elements and addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.ids, self.words = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "poster", "action")]
        self.ids += [value for name, value in attrs if name == "id"]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def report(run_files):
    return checked(write_report(run_files.write()))


def checked(path):
    """Return a report's text, its words and its elements, having checked what holds of all."""
    text = path.read_text()
    page = Page(text)
    assert path.name == "report.html"
    assert not re.search(r"https?://", text)
    assert "script" not in page.tags
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert len(set(page.ids)) == len(page.ids)
    assert not [file for file in path.parent.iterdir() if file.name.startswith(".")]
    return text, " ".join(" ".join(page.words).split()), page


def add_overlay(run_files, case_id="case-7", kind="best", noise=False, name="one"):
    folder = run_files.directory / "overlays"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(len(run_files.overlays))
    with OverlayWriter(folder / f"{name}.webm", 3, 20, shortest=64 if not noise else 512) as writer:
        for _ in range(3 if not noise else 64):
            image = rng.integers(0, 255, (64, 64, 3), np.uint8)
            writer.write(image, np.zeros((64, 64), np.uint8))
    Image.fromarray(rng.integers(0, 255, (60, 200, 3), np.uint8)).save(folder / f"{name}.png")
    shown = {"frames": 90, "frames_shown": 3, "first_frame": 0, "fps": None, "fps_shown": 12.0}
    entry = {"case_id": case_id, "kind": kind, "value": 0.95, "metric": "dice"}
    run_files.overlays.append({**entry, "video": f"{name}.webm", "still": f"{name}.png", **shown})


def test_full_report(run_files):
    add_overlay(run_files)
    text, words, page = report(run_files)
    assert "toy on clips" in words
    assert "The model beats both trivial predictors" in words
    assert "untrained network (0.100)" in words
    assert "n is small (8 cases)." in words
    assert words.index("case-0") < words.index("case-6")  # worst first
    assert page.tags.count("video") == 1
    assert page.tags.count("svg") == 4
    assert "frames 0 to 2 of 90 frames; frame rate unknown, shown at 12 frames a second" in words
    assert "lv, predicted" in words
    assert "Left out case-99: the mask has value 7" in words
    assert "medvid-run --model toy" in words
    assert len(text) < 1_000_000
    source = next(address for address in page.addresses if address.startswith("data:video"))
    assert base64.b64decode(source.split(",")[1]) == (run_files.directory / "overlays" / "one.webm").read_bytes()


def test_every_text_is_escaped(run_files):
    add_overlay(run_files, EVIL)
    record = run_files.record
    run_files.rows[0]["case_id"] = run_files.rows[0]["group_id"] = EVIL
    record["dataset"]["classes"][1] = "lv"
    record["dataset"] |= {"name": EVIL, "skipped": {EVIL: EVIL}, "root": EVIL}
    record |= {
        "plugin_problems": [EVIL],
        "notes": [EVIL],
        "command": [EVIL],
        "preset": EVIL,
        "origins": {EVIL: EVIL},
        "seed": EVIL,
    }
    for line in run_files.log:
        line[EVIL] = 1.0
    text, words, _ = report(run_files)
    assert "<script" not in text
    assert words.count("<script>alert") > 8


def test_class_names_are_escaped_in_pictures_too(run_files):
    evil = "<script>$x$"
    run_files.record["dataset"]["classes"] = ["background", evil, "wall"]
    run_files.record["results"][f"dice/{evil}"] = run_files.record["results"].pop("dice/lv")
    for row in [*run_files.rows, *run_files.log]:
        if "dice/lv" in row:
            row[f"dice/{evil}"] = row.pop("dice/lv")
    text, _, _ = report(run_files)
    assert "<script" not in text


def test_only_run_json(tmp_path, record):
    (tmp_path / "run.json").write_text(json.dumps({"metrics": {}}))
    assert "No result" in write_report(tmp_path).read_text()
    record["results"] = {}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert "No result" in write_report(tmp_path).read_text()


def test_no_run(tmp_path):
    with pytest.raises(DataError, match=r"is no run directory: it holds no run\.json"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json cannot be read"):
        write_report(tmp_path)


def test_damaged_files_cost_only_themselves(run_files):
    directory = run_files.write()
    (directory / "splits.json").write_text("[1, 2")
    with open(directory / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    (directory / "overlays").mkdir()
    (directory / "overlays" / "index.json").write_text('{"no": "list"}')
    assert "The model beats" in write_report(directory).read_text()


def test_one_case_without_validation(run_files):
    run_files.rows, run_files.log = rows(1), [line for line in run_files.log if line["kind"] == "train"]
    _, words, page = report(run_files)
    assert "n is small (1 case). One case says nothing of how the model does on others." in words
    assert "There were no validation cases: the last weights were kept." in words
    assert page.tags.count("svg") == 2


@pytest.mark.parametrize(("split", "said"), [("val", "Optimistic: there were no test cases"), ("train", "Not a test:")])
def test_cases_that_were_not_held_out(run_files, split, said):
    run_files.record["split"] = split
    assert said in report(run_files)[1]


def test_model_that_does_not_beat_the_constant(run_files):
    run_files.record["baselines"]["constant"]["dice"] = 0.81
    _, words, _ = report(run_files)
    assert "The model does not beat the best constant map (0.810). It does beat the untrained network (0.100)." in words
    assert "4 cases marked ▾" in words


def test_lower_is_better(run_files):
    run_files.record["metrics"] = {"mae": False, "dice": True}
    run_files.record["baselines"] = {"untrained": {"mae": 0.4}, "constant": {"mae": 0.01}}
    _, words, _ = report(run_files)
    assert "The model does not beat the best constant map (0.010). It does beat the untrained network (0.400)." in words
    assert words.index("case-0") < words.index("case-6")


def test_undefined_values_are_dashes(run_files):
    run_files.rows[2] |= {"dice": "", "dice/lv": "", "mae": ""}
    run_files.rows[3]["scored_frames"] = 0
    run_files.record["results"]["dice/wall"] = math.nan
    _, words, _ = report(run_files)
    assert "nan" not in words
    assert "–" in words
    assert "1 case without any annotated frame: not scored." in words
    assert words.index("case-2") > words.index("case-7")  # undefined last


def test_binary(run_files):
    run_files.record["dataset"]["classes"] = ["lesion"]
    run_files.record["results"] = {"dice": 0.8, "mae": 0.1}
    run_files.rows = [{k: v for k, v in row.items() if "/" not in k} for row in run_files.rows]
    add_overlay(run_files)
    assert "lesion, predicted" in report(run_files)[1]


def test_many_cases_and_steps_stay_small(run_files):
    run_files.rows = rows(1500)
    run_files.log = [{"kind": "train", "step": s, "lr": 1e-3, "loss": 1 + 1 / s} for s in range(1, 20_000)]
    text, words, _ = report(run_files)
    assert "The 200 worst of 1500 are listed." in words
    assert "n is small" not in words
    assert len(text) < 1_500_000


def test_videos_beyond_the_budget_are_left_out(run_files):
    for i in range(3):
        add_overlay(run_files, noise=True, name=f"clip{i}")
    text, _, page = report(run_files)
    assert len(text) < 5_000_000
    assert page.tags.count("img") == 3
    assert page.tags.count("video") < 3


def test_overlay_outside_the_folder_is_not_read(run_files):
    add_overlay(run_files)
    (run_files.directory / "secret.webm").write_bytes(b"secret")
    run_files.overlays[0] |= {"video": "../secret.webm", "still": "../../x.png"}
    text, words, _ = report(run_files)
    assert base64.b64encode(b"secret").decode() not in text
    assert "Not shown: its files are missing" in words


def test_failed_run_and_lost_overlay_are_said(run_files):
    run_files.record["status"] = "failed"
    run_files.overlays = [{"case_id": "c", "kind": "best", "value": 1.0, "metric": "dice", "problem": "file gone"}]
    _, words, _ = report(run_files)
    assert "The run failed before its end" in words
    assert "No overlay of c: file gone" in words


def test_interval_is_over_groups():
    values = [{"case_id": str(i), "group_id": str(i // 2), "dice": 0.5 + 0.1 * (i // 2)} for i in range(6)]
    low, high = interval(values, "dice")
    # means 0.5, 0.6, 0.7: 0.6 ± 4.3027 · 0.1 / √3
    assert low == pytest.approx(0.6 - 0.2484, abs=1e-3)
    assert high == pytest.approx(0.6 + 0.2484, abs=1e-3)
    assert interval(values[:4], "dice") is None


def test_rows_are_typed(run_files):
    row = read_run(run_files.write()).rows[0]
    assert row["case_id"] == "case-0"
    assert isinstance(row["frames"], int)
    assert isinstance(row["dice"], float)


def test_numbers_and_durations():
    assert [number(v) for v in (math.nan, 0.0, 0.12345, 0.00001, 123.456, -1.5)] == [
        "–", "0.000", "0.123", "1e-05", "123.5", "-1.500",
    ]  # fmt: skip
    assert [duration(v) for v in (math.nan, 3.21, 93.2, 7290)] == ["–", "3.2 s", "1 min 33 s", "2 h 1 min"]


def test_matplotlib_is_only_loaded_when_drawing():
    import subprocess

    code = "import medvid_core.report.html, sys; assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_logarithmic_axis_has_plain_numbers(run_files):
    run_files.log = [{"kind": "train", "step": s, "loss": 10.0 ** (-s / 5)} for s in range(1, 31)]
    text, _, _ = report(run_files)
    assert "mathdefault" not in text
    assert ">0.001<" in text


def test_untrained_network_alone_is_not_beaten(run_files):
    run_files.record["baselines"] = {"untrained": {"dice": 0.9}, "constant": {"dice": 0.2}}
    _, words, _ = report(run_files)
    assert "The model does not beat the untrained network (0.900). It does beat the best constant map (0.200)." in words
    assert "Training has not helped: this result is of no use yet." in words
