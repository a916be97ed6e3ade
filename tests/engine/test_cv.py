"""Cross-validation through the command: folds, resume, pooled results, grid, final model, the mean of the models."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from medvid_core.config import read_config_file
from medvid_core.data.folds import read_folds
from medvid_core.engine.ensemble import load
from medvid_core.engine.finished import has_finished
from medvid_core.engine.pooled import as_float

TINY = (
    "--model",
    "unet",
    "--resamples",
    "100",
    "preset=tiny",
    "dataset.cases=6",
    "dataset.frames=4",
    "dataset.size=[32,32]",
    "evaluate.overlays=0",
    "train.batch_size=4",
)
SHORT = ("train.epochs=2", "train.max_steps=2")


def record(path):
    return json.loads(path.read_text())


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def validated(medvid, command, tmp_path_factory):
    """Three folds, killed in the second and given again."""
    out = tmp_path_factory.mktemp("cv") / "out"
    words = ["cv", *TINY, *SHORT, "--folds", "3", "--out", str(out)]
    process = subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not (out / "fold1" / "metrics.jsonl").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    assert has_finished(out / "fold0")
    assert not has_finished(out / "fold1")
    assert not (out / "cv.json").exists()
    first = (out / "fold0" / "run.json").read_bytes()
    medvid(*words)
    assert (out / "fold0" / "run.json").read_bytes() == first  # kept
    return out


def test_what_was_killed_goes_on(validated):
    """Every fold is a finished run, divided as the file says; no patient on two sides."""
    folds = read_folds(validated / "splits.json")
    everything = {name for test in folds.test for name in test}
    assert len(everything) == 6
    for number, (test, val) in enumerate(zip(folds.test, folds.val, strict=True)):
        run = validated / f"fold{number}"
        assert has_finished(run)
        parts = {part: set(names) for part, names in record(run / "splits.json").items()}
        assert parts == {"test": set(test), "val": set(val), "train": everything - {*test, *val}}
        assert parts["val"]
        assert parts["train"]
        assert record(run / "run.json")["split"] == "test"


def test_results_are_pooled_over_folds(validated):
    """The mean over all cases, not over folds; the confusion counts every annotated pixel once."""
    rows = table(validated / "cases.csv")
    assert len({row["case_id"] for row in rows}) == len(rows) == 6
    of_folds = [table(validated / f"fold{k}" / "cases.csv") for k in range(3)]
    assert [row["dice"] for row in rows] == [row["dice"] for fold in of_folds for row in fold]
    found = record(validated / "cv.json")
    assert found["pooled"]["dice"]["value"] == pytest.approx(np.mean([float(row["dice"]) for row in rows]))
    assert found["pooled"]["dice"]["low"] < found["pooled"]["dice"]["value"] < found["pooled"]["dice"]["high"]
    each = [np.mean([float(row["dice"]) for row in fold]) for fold in of_folds]
    assert found["over_folds"]["dice"]["mean"] == pytest.approx(np.mean(each))
    assert found["over_folds"]["dice"]["deviation"] == pytest.approx(np.std(each, ddof=1))
    assert [fold["best_epoch"] for fold in found["folds"]] == [
        record(validated / f"fold{k}" / "run.json")["best"]["step"]
        for k in range(3)  # one step an epoch
    ]
    counts = np.array([[int(cell) for cell in list(row.values())[1:]] for row in table(validated / "confusion.csv")])
    assert counts.sum() == 6 * 4 * 32 * 32
    assert counts.tolist() == found["classes"][0]["confusion"]
    shares = [[float(cell) for cell in list(row.values())[1:]] for row in table(validated / "confusion_normalised.csv")]
    np.testing.assert_allclose(shares, counts / counts.sum(1, keepdims=True))
    result = found["classes"][0]["results"][1]
    assert result["name"] == "lv"
    assert result["f1"] == pytest.approx(2 * counts[1, 1] / (counts[1].sum() + counts[:, 1].sum()))


def test_the_report_says_what_it_shows(validated):
    text = (validated / "cv.md").read_text()
    assert text.startswith("# unet on echo-phantom: 3-fold cross-validation")
    assert "positive is each class in turn, against all others" in text
    assert "Every patient has one case" in text
    html = (validated / "cv.html").read_text()
    assert "Confusion matrix of mask: pixels" in html
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert (validated / "confusion.svg").read_text().startswith("<?xml")
    lines = {row["of"]: row for row in table(validated / "cv.csv")}
    assert [*lines] == ["fold 0", "fold 1", "fold 2", "pooled", "mean over folds", "deviation over folds"]
    assert float(lines["pooled"]["dice"]) == pytest.approx(record(validated / "cv.json")["pooled"]["dice"]["value"])


def test_the_folder_predicts_and_evaluates_as_one(medvid, refused, validated, tmp_path):
    """On data nobody saw; on its own data, of which all was learnt by some model, it is refused."""
    drawn = ("dataset.cases=6", "dataset.frames=4", "dataset.size=[32,32]")
    medvid("evaluate", validated, "--data", "echo-phantom", *drawn, "dataset.seed=5", "--out", tmp_path / "out")
    summary = record(tmp_path / "out" / "summary.json")
    assert summary["model"]["mean_of"] == [str(validated / f"fold{k}") for k in range(3)]
    assert len(table(tmp_path / "out" / "cases.csv")) == 6
    assert len(load(validated).model) == 3
    assert "Every case of these data has been learnt from by one of the models" in refused("evaluate", validated)
    assert "A stream is predicted by one model" in refused("predict", "--stream", validated, tmp_path)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--folds", "4"], "splits.json holds 3 folds, not 4. Choose another --out, or remove it."),
        (["split.seed=3"], "splits.json was made with split.seed=0, not 3. Choose another --out, or remove it."),
        (["split.test=0.5"], "split.test has no meaning here: every fold is the test part once."),
        (["split.file=x.json", "split.fold=1"], "split.fold has no meaning here: every fold is tested once."),
        (["train.batch_size=3"], "was trained with train.batch_size=4, not 3."),
        (["--max-folds", "0"], "--max-folds 0 cannot be used: it must be at least 1."),
        (["--final-epochs", "3"], "--final-epochs takes the number of epochs, at least 1, that --final trains"),
    ],
)
def test_what_does_not_fit_is_refused(refused, validated, words, text):
    before = sorted(path.name for path in validated.iterdir())
    assert text in refused("cv", *TINY, *SHORT, "--out", validated, *words)
    assert sorted(path.name for path in validated.iterdir()) == before


def test_an_edited_file_is_verified(medvid, refused, validated, tmp_path):
    """In another place nothing is trained anew; a case in two folds, or moved to another, is refused."""
    out = shutil.copytree(validated, tmp_path / "copy")
    (out / "cv.json").unlink()
    medvid("cv", *TINY, *SHORT, "--out", out)
    for name in ("cv.json", "fold1/run.json"):
        assert (out / name).read_text() == (validated / name).read_text()
    data = record(out / "splits.json")
    first, second = data["folds"][0], data["folds"][1]
    moved = first["test"][0]
    second["test"].append(moved)
    (out / "splits.json").write_text(json.dumps(data))
    message = refused("cv", *TINY, *SHORT, "--out", out)
    assert f"case {moved!r} is in the test part of fold 0 and in the test part of fold 1" in message
    first["test"].remove(moved)
    second["val"] = [name for name in second["val"] if name != moved]
    (out / "splits.json").write_text(json.dumps(data))
    message = refused("cv", *TINY, *SHORT, "--out", out)
    assert "fold0 was trained before the folds were changed: its train part was another" in message


def edit(path, change):
    """Change a JSON file."""
    data = record(path)
    change(data)
    path.write_text(json.dumps(data))


def hold_out_what_fold_1_tests(out):
    def change(data):
        name = data["folds"][1]["test"].pop()
        data["held_out"].append(name)
        for fold in data["folds"]:
            fold["val"] = [other for other in fold["val"] if other != name]

    edit(out / "splits.json", change)


def draw_a_mask_anew(out):
    edit(out / "contents.json", lambda data: next(iter(data.values())).update(key="of before", digest="of before"))


def start_from(out):
    edit(out / "fold1" / "run.json", lambda data: data.update(begun_from={"file": "w", "sha256": "ab", "source": None}))


def change_the_data(out):
    edit(out / "fold2" / "run.json", lambda data: data["dataset"].update(fingerprint="ab"))


def lose_the_test_cases(out):
    """As a run records it whose test cases cannot be prepared: it is scored on its validation cases."""

    def change(data):
        data["split"] = "val"
        data["dataset"]["skipped"] = dict.fromkeys(record(out / "splits.json")["folds"][0]["test"], "no person is seen")

    edit(out / "fold0" / "run.json", change)
    edit(out / "fold0" / "splits.json", lambda data: data.update(test=[]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (hold_out_what_fold_1_tests, "fold0 was trained before the folds were changed: its train part was another."),
        (draw_a_mask_anew, "The masks of 1 case(s), e.g. 'echo-00000', were changed after "),
        (start_from, "fold1 was trained from w of SHA-256 ab…, not from random weights. Choose another --out"),
        (change_the_data, "fold2 was trained on other data than there are now"),
        (lose_the_test_cases, "Fold 0 has no result: not one of its 2 test cases can be used"),
    ],
)
def test_folds_that_cannot_be_pooled_are_refused(refused, validated, tmp_path, change, text):
    """A case that was learnt from, masks drawn anew, other weights or data, validation cases for test cases."""
    out = shutil.copytree(validated, tmp_path / "copy")
    change(out)
    before = (out / "contents.json").read_text()
    assert text in refused("cv", *TINY, *SHORT, "--out", out)
    assert (out / "contents.json").read_text() == before


def test_other_weights_are_refused(refused, validated):
    message = refused("cv", *TINY, *SHORT, "--out", validated, "--weights", validated / "fold0" / "model.safetensors")
    assert "fold0 was trained from random weights, not from model.safetensors of SHA-256 " in message
    assert "There is no model file x." in refused("cv", *TINY, *SHORT, "--out", validated, "--weights", "x")


def test_masks_are_looked_at_once(medvid, validated, tmp_path, monkeypatch):
    out = shutil.copytree(validated, tmp_path / "copy")
    monkeypatch.setattr("medvid_core.engine.cv_folds.content_of", None)  # calling it would fail
    medvid("cv", *TINY, *SHORT, "--out", out)
    assert (out / "contents.json").read_text() == (validated / "contents.json").read_text()


def test_fan_masks_are_checked_before_anything_is_trained(refused, vtus, tmp_path):
    root = vtus()
    for part, name in (("Train", "a"), ("Train", "b"), ("Train", "c"), ("Test", "d")):
        Image.new("L", (40, 36 if name != "d" else 30), 255).save(root / part / name / "fan.png")
    words = ("cv", "--model", "unet", "--data", root, "preset=tiny", "clip.fan_crop=auto", "--folds", 3)
    message = refused(*words, "--final", "--out", tmp_path / "out")
    assert f"The fan mask {root / 'Test' / 'd' / 'fan.png'} is 40x30 pixels while the frames are 40x36." in message
    assert not (tmp_path / "out" / "fold0").exists()


def test_folds_that_are_refused_can_be_edited(refused, vtus, tmp_path):
    """One patient alone holds the class, so that the fold that tests it could not learn it."""
    root = vtus()
    for path in [*(root / "Train_GT" / "b").iterdir(), *(root / "Train_GT" / "c").iterdir()]:
        Image.new("L", (40, 36)).save(path)
    words = ("cv", "--model", "unet", "--data", root, "preset=tiny", "split.val=0", "--folds", 3)
    message = refused(*words, "--out", tmp_path / "out")
    path = tmp_path / "out" / "splits.json"
    assert message.startswith(f"{path}: no training case of fold ")
    assert "(cases that do: Train/a)" in message or "(cases that do: a)" in message
    folds = read_folds(path)
    assert sorted(map(len, folds.test)) == [1, 1, 1]
    assert refused(*words, "--out", tmp_path / "out") == message


def test_the_settings_can_be_shown(medvid, capsys, tmp_path):
    """Of every point; nothing is written."""
    medvid("cv", *TINY, "optimizer.lr=1e-3,1e-4", "--print-config", "--out", tmp_path / "out")
    text = capsys.readouterr().out
    assert text.index("# lr=1e-3") < text.index("optimizer.lr=0.001 ") < text.index("# lr=1e-4")
    assert "optimizer.lr=0.0001" in text[text.index("# lr=1e-4") :]
    assert not (tmp_path / "out").exists()


def test_a_grid_is_chosen_by_validation_and_the_final_model_trained(medvid, capsys, tmp_path):
    """Two points on the first two of three folds given by a file; then all cases, for the mean best epoch."""
    names = [f"echo-{number:05d}" for number in range(6)]
    folds = [{"test": names[k : k + 2], "val": [names[(k + 2) % 6]]} for k in (0, 2, 4)]
    (tmp_path / "mine.json").write_text(json.dumps({"folds": folds}))
    out = tmp_path / "out"
    words = ["cv", *TINY, "train.epochs=1", "optimizer.lr=1e-1,1e-9", f"split.file={tmp_path / 'mine.json'}"]
    medvid(*words, "--max-folds", 2, "--final", "--out", out)
    found = record(out / "cv.json")
    assert sorted(path.name for path in (out / "grid").iterdir()) == ["lr=1e-1", "lr=1e-9"]
    tried = {point["name"]: point for point in found["grid"]}
    for name, point in tried.items():
        best = [as_float(record(out / "grid" / name / f"fold{k}" / "run.json")["best"]["value"]) for k in range(2)]
        assert point["of_folds"] == pytest.approx(best)
        assert point["validation"] == pytest.approx(np.mean(best))
    assert found["chosen"] == max(tried, key=lambda name: tried[name]["validation"])
    assert found["runs"] == [f"grid/{found['chosen']}/fold{k}" for k in range(2)]
    assert len(load(out).model) == 2
    assert len(found["folds"]) == 2
    assert found["data"]["cases"] == 4
    text = (out / "cv.md").read_text()
    assert "2 of 3 folds were trained" in text
    assert "The test cases of the folds had no part in the choice" in text
    final = record(out / "final" / "run.json")
    assert final["dataset"]["cases"] == {"train": 6, "val": 0, "test": 0}
    assert final["status"] == "done"
    settings = read_config_file(out / "final" / "config.yaml")
    assert settings["optimizer.lr"] == float(found["chosen"].removeprefix("lr="))
    assert settings["train.epochs"] == 1
    assert found["final"]["reason"] == "the mean of the best epochs of the folds (1, 1)"
    medvid(*words, "--max-folds", 2, "--out", out)  # what is there is told of
    assert record(out / "cv.json")["final"] == found["final"]
    edit(out / "final" / "run.json", lambda data: data.update(begun_from={"file": "w", "sha256": "ab"}))
    medvid(*words, "--max-folds", 2, "--out", out)
    assert record(out / "cv.json")["final"] is None
    assert "the final model is left out of the report: " in capsys.readouterr().err
    assert read_folds(out / "splits.json").test == tuple(tuple(fold["test"]) for fold in folds)


def test_a_test_part_that_the_data_fix_is_held_out(medvid, vtus, tmp_path):
    """Training cases are folded; the test case is in no fold, and scores the final model and the mean of all."""
    out = tmp_path / "out"
    words = ("cv", "--model", "unet", "--data", vtus(frames=3), *TINY[2:5], "evaluate.overlays=0", "train.max_steps=1")
    medvid(*words, "--folds", 3, "--max-folds", 2, "--final", "--out", out, "split.val=0")
    folds = read_folds(out / "splits.json")
    assert len(folds.held_out) == 1
    assert not {*folds.held_out} & {name for test in folds.test for name in test}
    final = record(out / "final" / "run.json")
    assert final["dataset"]["cases"] == {"train": 3, "val": 0, "test": 1}
    assert final["split"] == "test"
    assert "1 case(s) are held out: they are in no fold" in (out / "cv.md").read_text()
    medvid("evaluate", out, "--out", tmp_path / "score")
    assert [row["case_id"] for row in table(tmp_path / "score" / "cases.csv")] == list(folds.held_out)


def test_patients_with_several_cases_have_results_of_their_own(medvid, tmp_path):
    """Three orders of the same frames a patient: the class differs within, so that a patient has none."""
    out = tmp_path / "out"
    words = ("--model", "cnn", "preset=tiny", "dataset.patients=4", "train.max_steps=1", "evaluate.overlays=0")
    medvid("cv", *words, "--resamples", 100, "--folds", 2, "--max-folds", 1, "--out", out)
    text = (out / "cv.md").read_text()
    assert "order has no result per patient: cases of one patient differ in it" in text
    assert "order: positive is each class in turn, against all others." in text
    rows = table(out / "cases.csv")
    assert len(rows) == 6
    assert len({row["group_id"] for row in rows}) == 2


@pytest.mark.slow
def test_two_processes_validate_as_one(validated, tmp_path):
    """The same folds, and the same results but for rounding."""
    out = tmp_path / "out"
    words = ["cv", *TINY, *SHORT, "--folds", "3", "--out", str(out)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            "-m",
            "medvid_core",
            *words,
        ],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("# unet on echo-phantom") == 1  # by one process
    assert record(out / "splits.json") == record(validated / "splits.json")
    one, two = record(validated / "cv.json"), record(out / "cv.json")
    assert two["pooled"]["dice"]["value"] == pytest.approx(one["pooled"]["dice"]["value"], abs=1e-3)
