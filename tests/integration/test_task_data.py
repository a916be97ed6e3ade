"""Data of tasks beside segmentation, from a folder to an evaluated model, by the command; and data that cannot be."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import av
import nibabel
import numpy as np
import pytest
from PIL import Image

from medvid_core.data.datasets import motion_phantom
from medvid_core.engine.compare import compare
from medvid_core.engine.finished import read_finished, read_scored
from medvid_core.metrics.anomaly import alarms_of
from medvid_core.specs import OutputSpec

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the test data ../shared/data is not on this machine")

TINY = ("preset=tiny", "train.max_steps=2", "evaluate.overlays=0")


def rows(folder: Path, name: str = "cases.csv") -> list[dict[str, str]]:
    with open(folder / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def record_of(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def frames(folder: Path, count: int, brightness: int = 0) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(str(folder)))
    for number in range(count):
        picture = rng.integers(0, 100, (36, 40)) + brightness
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


# --- EchoNet-Dynamic -----------------------------------------------------------------------------------------------

CHORDS = [(16, 4, 16, 26), (12, 6, 20, 6), (8, 12, 24, 12), (10, 18, 22, 18), (14, 24, 18, 24)]
CLIPS = ("augment.pad=2",)
"""In place of the 12 pixels that come with the data set; its 32 frames of 112 x 112 give way to those of the preset."""


@pytest.fixture(scope="module")
def echonet(tmp_path_factory) -> Path:
    """Seven videos; the third is shorter than a clip of four frames at every second one."""
    root = tmp_path_factory.mktemp("echonet")
    (root / "Videos").mkdir()
    files = ["FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"]
    tracings = ["FileName,X1,Y1,X2,Y2,Frame"]
    for number in range(7):
        name, count = f"0X{number}", 5 if number == 2 else 20
        with av.open(str(root / "Videos" / f"{name}.avi"), "w") as container:
            stream = container.add_stream("mjpeg", rate=50)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
            for frame in range(count):
                picture = np.full((32, 32, 3), (9 * frame + 20 * number) % 250, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        split = "TRAIN" if number < 4 else "VAL" if number < 5 else "TEST"
        files.append(f"{name},{40 + 5 * number},50,110,32,32,50,{count},{split}")
        tracings += [",".join([f"{name}.avi", *map(str, chord), str(frame)]) for frame in (4, 1) for chord in CHORDS]
    (root / "FileList.csv").write_text("\n".join(files))
    (root / "VolumeTracings.csv").write_text("\n".join(tracings))
    return root


def test_the_ejection_fraction_of_echonet(medvid, echonet, tmp_path, capsys):
    """Its splits, its clips; averaged over every clip of a video on demand."""
    run = tmp_path / "run"
    medvid("--model", "cnn-mamba", "--data", echonet, *TINY, *CLIPS, "--out", run)
    assert "\npredicts ejection_fraction: regression\n" in capsys.readouterr().err
    record = record_of(run)
    assert record["dataset"]["cases"] == {"train": 4, "val": 1, "test": 2}
    assert [row["true/ejection_fraction"] for row in rows(run)] == ["65.0", "70.0"]
    assert record["baselines"]["constant"]["mae"] == pytest.approx(67.5 - 47.5)
    medvid("evaluate", run, "clip.overlap=3", "--out", tmp_path / "all")
    one, every = (rows(at)[0]["predicted/ejection_fraction"] for at in (run, tmp_path / "all"))
    assert float(one) != float(every)
    assert math.isfinite(float(every))


def test_the_ventricle_of_the_same_folder(medvid, echonet, tmp_path):
    """A model of masks takes the tracings, in the two frames that have them."""
    run = tmp_path / "run"
    medvid("--model", "unet", "--data", echonet, *TINY, *CLIPS, "--out", run)
    assert record_of(run)["dataset"]["classes"] == ["lv"]
    assert [row["scored_frames"] for row in rows(run)] == ["2", "2"]


# --- CardiacUDC ----------------------------------------------------------------------------------------------------


def save(path: Path, volume: np.ndarray) -> None:
    """Write [T,H,W] with axes (x, y, t)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.transpose(volume, (2, 1, 0)), np.eye(4)), path)


@pytest.fixture(scope="module")
def cardiac_udc(tmp_path_factory) -> Path:
    """Two sites with sick and healthy people; a clip is there twice, and those of the healthy have no labels."""
    root = tmp_path_factory.mktemp("udc")
    rng = np.random.default_rng(0)
    people = [("Site_G_20", number) for number in range(4)] + [("Site_R_52", number) for number in (4, 5)]
    clips = [(f"{site}/{kind}-{number}-4", kind) for site, number in people for kind in ("patient", "normal")]
    for name, kind in [*clips, ("label_all_frame/patient-2-4", "all")]:
        save(root / f"{name}_image.nii.gz", rng.integers(0, 255, (6, 36, 40)).astype(np.uint8))
        masks = np.zeros((6, 36, 40), np.uint8)
        masks[slice(None) if kind == "all" else slice(1, 2), 4:14, 5:20] = 1
        if kind != "normal":
            save(root / f"{name}_label.nii.gz", masks)
    return root


def test_the_diagnosis_of_cardiac_udc_with_a_site_held_out(medvid, cardiac_udc, tmp_path):
    run = tmp_path / "run"
    words = ("dataset.held_out_site=R_52", *TINY)
    medvid("--model", "cnn-mamba", "--data", cardiac_udc, *words, "--out", run)
    record = record_of(run)
    assert record["dataset"]["skipped"] == {
        "Site_G_20/patient-2-4": "the same clip is in label_all_frame, with as many labelled frames or more"
    }
    assert {row["case_id"].split("/")[0] for row in rows(run)} == {"Site_R_52"}
    assert {(row["group_id"].split("-")[0], row["true/diagnosis"]) for row in rows(run)} == {
        ("normal", "normal"),
        ("patient", "patient"),
    }
    assert record["results"]["auroc"] is not None
    medvid("evaluate", run, "--out", tmp_path / "e")
    assert (tmp_path / "e" / "cases.csv").read_bytes() == (run / "cases.csv").read_bytes()


def test_the_chambers_of_cardiac_udc(medvid, cardiac_udc, tmp_path):
    """Healthy people are without labels: they are no training clips, and score nothing."""
    run = tmp_path / "run"
    medvid("--model", "unet", "--data", cardiac_udc, "dataset.classes=[background,lv]", *TINY, "--out", run)
    found = {row["group_id"]: int(row["scored_frames"]) for row in rows(run)}
    assert {person.split("-")[0] for person, count in found.items() if count} == {"patient"}


# --- tables and folders --------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.slow
def test_lung_ultrasound_by_patient(medvid, tmp_path):
    """The clips of the table, of fifteen patients: none stands on both sides."""
    table, run = SHARED / "cls_pocus_lung" / "labels.csv", tmp_path / "run"
    medvid("--model", "cnn", "--data", table, "dataset.group_column=subject_id", *TINY, "--out", run)
    patients = {row["file"].rpartition(".")[0]: row["subject_id"] for row in csv.DictReader(table.open())}
    splits = json.loads((run / "splits.json").read_text())
    parts = [{patients[case] for case in splits[part]} for part in ("train", "val", "test")]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(set(patients.values()))
    assert not record_of(run)["notes"]
    assert {row["true/label"] for row in rows(run)} <= {"covid", "pneumonia", "regular"}
    medvid("evaluate", run, "--out", tmp_path / "e")
    assert (tmp_path / "e" / "cases.csv").read_bytes() == (run / "cases.csv").read_bytes()


@needs_shared
def test_stress_echo_of_one_patient_is_refused_unless_clips_are_to_be_divided(refused, medvid, tmp_path):
    """Nothing says whose the clips are but the DICOM files."""
    words = ("--model", "cnn", "--data", SHARED / "cls_stress_echo_dicom" / "labels.csv", *TINY)
    for asked in ("dataset.label_column=stage_name", "dataset.targets=[heart_rate]"):
        text = refused(*words, asked, "--out", tmp_path / "run")
        assert text.startswith("All 18 cases are of one patient (group '")
        assert text.endswith(
            "so that none can be held out for the test. Add other patients, hold none out (split.test=0), or divide "
            "the clips of this one (split.group=none), knowing that the result says nothing of other patients."
        )
    assert not (tmp_path / "run").exists()
    divided = ("dataset.label_column=stage_name", "split.group=none", "evaluate.overlays=1")
    medvid(*words, *divided, "--out", tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 4
    assert len({row["group_id"] for row in rows(tmp_path / "run")}) == 1
    assert any("on both sides of the split" in note for note in record_of(tmp_path / "run")["notes"])


@pytest.mark.parametrize("ordinal", [True, False])
def test_a_folder_a_grade(medvid, tmp_path, ordinal):
    """As Nerthus is: what is in a folder is of that grade."""
    for grade in range(4):
        for number in range(3):
            frames(tmp_path / "data" / str(grade) / f"clip{number}", 4, 30 * grade)
    run = tmp_path / "run"
    medvid("--model", "cnn", "--data", tmp_path / "data", f"dataset.ordinal={ordinal}", *TINY, "--out", run)
    (row, *_) = rows(run)
    assert row["true/label"] == row["case_id"].split("/")[0]
    assert [name for name in row if name.startswith("p/")] == [
        f"p/label/{'>' * ordinal}{k}" for k in range(3 if ordinal else 4)
    ]
    assert ("kappa" in record_of(run)["results"]) == ordinal


@pytest.fixture
def clips(tmp_path) -> Path:
    """Eight folders of six frames, but one, of a single frame."""
    for number in range(8):
        frames(tmp_path / f"v{number}", 1 if number == 5 else 6)
    return tmp_path


def table(clips: Path, head: str, line) -> Path:
    """A table with a line for each clip; four to train with, one to validate and three to test with."""
    parts = ["train"] * 4 + ["val"] + ["test"] * 3
    lines = [f"v{number},{part},{line(number)}" for number, part in enumerate(parts)]
    (clips / "table.csv").write_text("\n".join([f"file,split,{head}", *lines]))
    return clips / "table.csv"


def test_several_outputs_of_which_some_are_unknown(medvid, clips, tmp_path):
    """A class, two numbers and a video of one frame; then outputs=[ef] alone, short clips filled up with zeros."""
    data = table(clips, "label,ef,edv", lambda n: f"{'ab'[n % 2]},{50 + n if n % 3 else ''},{100 + 10 * n}")
    targets = "dataset.targets=[ef,edv]"
    medvid("--model", "cnn-mamba", "--data", data, targets, *TINY, "--out", tmp_path / "all")
    found = {row["case_id"]: row for row in rows(tmp_path / "all")}
    assert found["v6"]["true/ef"] == ""
    assert found["v6"]["predicted/ef"]
    assert found["v6"]["mae/edv"]
    assert found["v5"]["frames"] == "1"
    assert {"mae/ef", "mae/edv", "accuracy"} <= record_of(tmp_path / "all")["results"].keys()
    words = (targets, "outputs=[ef]", "clip.padding=zero", *TINY)
    medvid("--model", "r2plus1d", "--data", data, *words, "--out", tmp_path / "one")
    assert [name for name in rows(tmp_path / "one")[0] if "/" in name][:2] == ["true/ef", "predicted/ef"]
    medvid("predict", tmp_path / "one", clips / "v5", "--out", tmp_path / "p")
    (row,) = rows(tmp_path / "p" / "v5", "prediction.csv")
    assert math.isfinite(float(row["predicted/ef"]))


def test_one_training_case_is_enough_for_a_number(medvid, clips, tmp_path):
    """Without spread there is still a mean."""
    data = table(clips, "ef", lambda n: 50 + n if n in (0, 4, 6, 7) else "")
    medvid("--model", "cnn", "--data", data, "dataset.targets=[ef]", *TINY, "--out", tmp_path / "run")
    header = record_of(tmp_path / "run")["dataset"]["outputs"][0]
    assert (header["center"], header["scale"]) == ([50.0], [1.0])


def test_a_column_that_names_patients_is_pointed_out(medvid, clips, tmp_path, capsys):
    """Clips of one patient on both sides make a result too good; the table knows better."""
    data = table(clips, "label,Patient ID", lambda n: f"{'ab'[n % 2]},{n // 2}")
    data.write_text("\n".join(line.replace("split", "part") for line in data.read_text().splitlines()))
    medvid("--model", "cnn", "--data", data, *TINY, "--out", tmp_path / "run")
    note = (
        "Patient ID names 4 for 8 cases, which are divided one by one: the result may be too good. Keep the clips of "
        "each together with dataset.group_column=Patient ID"
    )
    assert note in record_of(tmp_path / "run")["notes"]
    medvid("--model", "cnn", "--data", data, "dataset.group_column=Patient ID", *TINY, "--out", tmp_path / "by")
    assert not record_of(tmp_path / "by")["notes"]


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_cases_of_which_one_of_two_numbers_is_known_teach_that_one(medvid, monkeypatch, tmp_path, task):
    """NaN in a target of several is unknown: left out of loss, metrics, mean and spread, never taken for zero."""
    real = motion_phantom.index
    two = OutputSpec(name="both", task=task, classes=("first", "second"))

    def index(root, config):
        found = real(root, config)
        cases = [
            dataclasses.replace(case, targets={"both": (float(n % 2), math.nan) if n < 6 else (float(n % 2), 1.0)})
            for n, case in enumerate(found.cases)
        ]
        return dataclasses.replace(found, cases=tuple(cases), outputs=(two,))

    monkeypatch.setattr(motion_phantom, "index", index)
    phantom = ("dataset.question=ejection_fraction", "dataset.patients=10", "dataset.frames=8", "dataset.size=[32,32]")
    medvid("--model", "cnn", *TINY, *phantom, "--out", tmp_path / "run")
    record = record_of(tmp_path / "run")
    if task == "regression":
        header = record["dataset"]["outputs"][0]
        assert (header["center"][1], header["scale"][1]) == (1.0, 1.0)
        assert record["baselines"]["constant"]["mae/second"] in (0.0, None)
    names = [f"true/both/{name}" for name in two.classes]
    known = [[bool(row[name]) for name in names] for row in rows(tmp_path / "run")]
    assert {first for first, _ in known} == {True}
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in losses if line["kind"] == "train")


def test_alarm_thresholds_are_those_of_the_validation_cases(medvid, tmp_path):
    """The test cases do not choose what they are judged by; evaluation and comparison take what the run recorded."""
    phantom = ("dataset.question=stall", "dataset.patients=16", "dataset.frames=16", "dataset.size=[32,32]")
    run = tmp_path / "run"
    medvid("--model", "cnn-mamba", *TINY, *phantom, "dataset.beats=2", "split.val=0.3", "split.test=0.3", "--out", run)
    record = record_of(run)
    medvid("evaluate", run, "--split", "val", "--out", tmp_path / "val")
    (output,) = read_finished(run).info.outputs
    assert record["alarm_thresholds"] == alarms_of(read_scored(tmp_path / "val", [output]), [output])
    limit = record["alarm_thresholds"]["stall"]["frame"]
    frames = [(float(row["true/stall"]), float(row["score/stall"]) > limit) for row in rows(run, "frames.csv")]
    found = {kind: np.mean([alarm for true, alarm in frames if true == kind]) for kind in (0.0, 1.0)}
    name = "sensitivity-at-95-specificity"
    assert record["results"][name] == pytest.approx(found[1.0])
    assert record["results"][f"{name}/specificity"] == pytest.approx(1 - found[0.0])
    assert not [note for note in record["notes"] if "alarm" in note]
    assert record["baselines"]["constant"][name] == 0  # of its own: a score that never changes raises none
    medvid("evaluate", run, "--out", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert again["results"] == record["results"]
    compared = compare([run], tmp_path / "compared", resamples=100).entries[0].values
    assert compared[name].value == record["results"][name]
    assert compared["detection-delay/missed"].value == record["results"]["detection-delay/missed"]


def test_without_validation_cases_it_is_said_that_the_test_chose_its_thresholds(medvid, tmp_path):
    phantom = ("dataset.question=stall", "dataset.patients=8", "dataset.frames=16", "dataset.size=[32,32]")
    words = (*TINY, *phantom, "dataset.beats=2", "split.val=0", "split.test=0.5")
    medvid("--model", "cnn-mamba", *words, "--out", tmp_path / "run")
    said = (
        "alarm thresholds of stall were chosen on the very cases that are scored (test), not beforehand on normal "
        "validation cases: sensitivity-at-95-specificity and detection-delay look somewhat too good"
    )
    assert said in record_of(tmp_path / "run")["notes"]
    assert record_of(tmp_path / "run")["alarm_thresholds"] == {}
    assert "Alarm thresholds of stall" in (tmp_path / "run" / "report.html").read_text()
    medvid("evaluate", tmp_path / "run", "--out", tmp_path / "again")
    assert said in json.loads((tmp_path / "again" / "summary.json").read_text())["notes"]
    medvid("--model", "cnn-mamba", *words, "metrics=[frame-auroc]", "--out", tmp_path / "other")
    assert not [note for note in record_of(tmp_path / "other")["notes"] if "alarm" in note]


def test_the_number_at_the_next_visit(medvid, tmp_path):
    """Visits that a table lists become histories, beside which stand carrying the last value forward and a trend."""
    lines, parts = ["file,group_id,visit_time,ef,split"], ["train"] * 3 + ["val"] + ["test"] * 3
    for patient, part in enumerate(parts):
        for visit in range(4):
            frames(tmp_path / f"p{patient}v{visit}", 3 + visit)
            fall = visit**2 * (2.0 if patient % 2 else 0.5)
            lines.append(f"p{patient}v{visit},p{patient},2021-0{2 * visit + 1}-01,{60 + patient - fall},{part}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    words = (
        "--data",
        tmp_path / "table.csv",
        "dataset.progression=ef",
        *TINY,
        "clip.frames=12",
        "model.time_gaps=true",
    )
    medvid("--model", "cnn-mamba", *words, "--out", tmp_path / "run")
    record, found = record_of(tmp_path / "run"), rows(tmp_path / "run")
    assert record["dataset"]["cases"] == {"train": 9, "val": 3, "test": 9}
    assert [row["case_id"] for row in found[:3]] == ["p4/visit-2", "p4/visit-3", "p4/visit-4"]
    assert [row["frames"] for row in found[:3]] == ["3", "7", "12"]
    assert [row["true/next_ef"] for row in found[3:6]] == ["63.0", "57.0", "47.0"]
    assert [row["last/next_ef"] for row in found[3:6]] == ["65.0", "63.0", "57.0"]
    results, baselines = record["results"], record["baselines"]
    assert baselines["carry-forward"]["mae"] == pytest.approx((2 + 6 + 10 + 2 * (0.5 + 1.5 + 2.5)) / 9)
    assert baselines["trend"]["mae"] < baselines["carry-forward"]["mae"]
    assert (baselines["carry-forward"]["auroc-worsened"], baselines["trend"]["auroc-worsened"]) == (0.5, 1.0)
    assert (baselines["carry-forward"]["c-index"], baselines["trend"]["c-index"] > 0.5) == (0.5, True)
    assert {"auroc-worsened", "c-index"} <= results.keys()
    medvid("evaluate", tmp_path / "run", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "cases.csv").read_bytes() == (tmp_path / "run" / "cases.csv").read_bytes()
    medvid("compare", tmp_path / "run", "--no-cost", "--resamples", "100", "--out", tmp_path / "table")
    assert "| last value carried forward |" in (tmp_path / "table" / "comparison.md").read_text()


# --- what cannot be ------------------------------------------------------------------------------------------------


def test_outputs_that_no_one_can_give(refused, clips, tmp_path):
    data = table(clips, "label,anomaly", lambda n: f"{'ab'[n % 2]},{n % 2}")
    words = ("--data", data, *TINY, "--out", tmp_path / "run")
    assert refused("--model", "cnn", *words, "outputs=[lable]") == (
        "outputs=['lable']: the data offer no 'lable'. Did you mean 'label'? They offer: label, anomaly."
    )
    assert refused("--model", "r2plus1d", *words, "outputs=[anomaly]") == (
        "Model 'r2plus1d' does classification, multilabel, regression, ordinal, and the data ask for anomaly (output "
        "'anomaly'). Choose another model or data set."
    )
    assert refused("--model", "unet", *words).startswith("Model 'unet' does segmentation, and the data ask for ")
    assert refused("--model", "cnn", *words, "metrics=mae").startswith(
        "Metric 'mae' does segmentation, regression, and"
    )
    assert refused("--model", "cnn", *words, "loss=dice").startswith("Loss 'dice' does segmentation, and the data ask")
    assert not (tmp_path / "run").exists()


def test_a_part_of_which_nothing_is_known_is_refused_before_anything_is_trained(refused, clips, tmp_path):
    data = table(clips, "ef", lambda n: 50 + n if n != 4 else "")
    text = refused("--model", "cnn", "--data", data, "dataset.targets=[ef]", *TINY, "--out", tmp_path / "run")
    assert text == (
        "Nothing is known of ef in all 1 val case(s). Annotate some, or divide the cases otherwise: by their split, or "
        "split.seed, split.val and split.test where they have none."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("question", "targets", "frame_targets", "message"),
    [
        (
            "order",
            {"order": 3},
            {},
            "'order' (classification) is 3; it must be 0 to 2, for physiologic, reversed, shuffled",
        ),
        ("order", {"order": -1}, {}, "'order' (classification) is -1; it must be 0 to 2"),
        (
            "order",
            {"order": math.nan},
            {},
            "'order' (classification) is nan; it must be a number; leave it out where it",
        ),
        (
            "ejection_fraction",
            {"ejection_fraction": math.nan},
            {},
            "is nan; it must be a number; leave it out where it is",
        ),
        ("ejection_fraction", {"ejection_fraction": math.inf}, {}, "is inf; it must be a finite number."),
        ("ejection_fraction", {"ejection_fraction": (50.0, 60.0)}, {}, "is (50.0, 60.0); it must be a number"),
        ("stall", {"stall": 2}, {}, "'stall' (anomaly) is 2; it must be 0 or 1."),
        ("stall", {}, {"stall": (0.0, 0.5) * 8}, "'stall' (anomaly) is 0.5; it must be 0 or 1."),
        (
            "phase",
            {},
            {"phase": (0.0, 2.0) * 8},
            "'phase' (frame_classification) is 2; it must be 0 to 1, for systole,",
        ),
        ("phase", {}, {"phase": (0.0,)}, "is 1 values; it must be one for each of its 16 frames."),
    ],
)
def test_targets_that_are_none_are_refused_by_name(
    refused, monkeypatch, tmp_path, question, targets, frame_targets, message
):
    """Of a data set that is wrong: no index out of range, and no loss of NaN, after hours."""
    real = motion_phantom.index

    def index(root, config):
        found = real(root, config)
        wrong = dataclasses.replace(found.cases[1], targets=targets, frame_targets=frame_targets)
        return dataclasses.replace(found, cases=(found.cases[0], wrong, *found.cases[2:]))

    monkeypatch.setattr(motion_phantom, "index", index)
    phantom = (f"dataset.question={question}", "dataset.patients=4", "dataset.frames=16", "dataset.size=[32,32]")
    text = refused("--model", "cnn", *TINY, *phantom, "dataset.beats=2", "--out", tmp_path / "run")
    assert text.startswith("Case '")
    assert message in text
    assert not (tmp_path / "run").exists()
