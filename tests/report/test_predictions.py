import csv
import re

import numpy as np
import pytest

from medvid_core.metrics.curves import auroc
from medvid_core.metrics.regression import BlandAltman
from medvid_core.report.figures import agreement, few, roc_points, shares_of
from medvid_core.report.html import write_report
from medvid_core.report.rundata import interval, read_run
from medvid_core.report.tables import metric_lines
from medvid_core.report.text import metric_name
from medvid_core.specs import TASKS

from .conftest import EVIL
from .tasks import case, output, write_run
from .test_html import checked

THREE = ("forward", "backward", "shuffled")


def three_classes(right=(0.9, 0.8, 0.4, 0.7, 0.1, 0.6)):
    """Six cases, two a class, with this probability of the true class; the rest falls to the class after it."""
    cases = []
    for number, sure in enumerate(right):
        true = number % 3
        predicted = np.zeros(3)
        predicted[true], predicted[(true + 1) % 3] = sure, 1 - sure
        cases.append(case(number, predicted, true))
    return cases


def numbers(true=(30, 40, 50, 60), predicted=(32, 41, 49, 58), **values):
    return [case(i, [p], [t], **values) for i, (t, p) in enumerate(zip(true, predicted, strict=True))]


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


# --- classes


def test_classification(tmp_path, record):
    outputs = [output("classification", THREE, name="order")]
    cases = [case(c.case_id[5:], c.predicted["state"], c.true["state"], name="order") for c in three_classes()]
    constant = [case(i, [1, 0, 0], i % 3, name="order") for i in range(6)]
    write_run(tmp_path, record, outputs, cases, constant=constant)
    _, words, _ = checked(write_report(tmp_path))
    assert read_csv(tmp_path / "confusion.csv") == [
        [r"true \ predicted", *THREE],
        ["forward", "2", "0", "0"],
        ["backward", "0", "1", "1"],
        ["shuffled", "1", "0", "1"],
    ]
    assert [row[1:] for row in read_csv(tmp_path / "confusion_normalised.csv")[1:]] == [
        ["1.0", "0.0", "0.0"],
        ["0.0", "0.5", "0.5"],
        ["0.5", "0.0", "0.5"],
    ]
    assert "Positive in each ROC curve: the class named, against all others." in words
    for number, label in enumerate(THREE):
        scores = np.array([c.predicted["order"][number] for c in cases])
        area = auroc(scores, np.arange(6) % 3 == number)
        assert f"{label} (AUROC {area:.3f})" in words
    assert "constant prediction" in words
    assert "map" not in words
    assert "±" not in words
    assert "Balanced accuracy is one value of all cases together" in words
    assert "frames scored" not in words
    assert "dashed contour" not in words
    table = words[words.index("Worst first") :]
    assert "Worst first, by the probability given to the true class." in table
    assert "2 cases marked ▾ are wrong." in table
    # wrong and sure first
    shown = re.findall(r"case-(\d)(?: ▾)? patient-\d (\w+) (\w+) \((0\.\d+)\)", table)
    assert shown[:3] == [
        ("4", "backward", "shuffled", "0.90"),
        ("2", "shuffled", "forward", "0.60"),
        ("5", "shuffled", "shuffled", "0.60"),
    ]
    assert [number for number, *_ in shown] == list("425310")
    assert "order: classification" in words


def test_names_of_classes_stay_text(tmp_path, record):
    outputs = [output("classification", ("1", "nan"))]
    cases = [case(0, [0.9, 0.1], 0), case(1, [0.2, 0.8], 1), case(2, [0.6, 0.4], 1)]
    write_run(tmp_path, record, outputs, cases)
    rows = read_run(tmp_path).rows
    assert [(row["true/state"], row["predicted/state"]) for row in rows] == [("1", "1"), ("nan", "nan"), ("nan", "1")]
    assert rows[0]["p/state/1"] == 0.9
    _, words, _ = checked(write_report(tmp_path))
    assert "Positive in the ROC curve: nan." in words
    assert "nan 1 (0.60)" in words


def test_class_that_never_occurs(tmp_path, record):
    outputs = [output("classification", THREE)]
    write_run(tmp_path, record, outputs, [case(i, [0.5, 0.3, 0.2], i % 2) for i in range(4)])
    _, words, _ = checked(write_report(tmp_path))
    assert "No curve for shuffled: all of these cases have it, or none." in words
    assert read_csv(tmp_path / "confusion_normalised.csv")[3] == ["shuffled", "", "", ""]


def test_ordinal(tmp_path, record):
    outputs = [output("ordinal", ("mild", "moderate", "severe"))]
    chances = [[0.1, 0.0], [0.9, 0.2], [0.9, 0.8], [0.7, 0.1]]
    write_run(tmp_path, record, outputs, [case(i, p, min(i, 2)) for i, p in enumerate(chances)])
    _, words, _ = checked(write_report(tmp_path))
    assert read_csv(tmp_path / "confusion.csv")[3] == ["severe", "0", "1", "1"]
    assert "Positive in each ROC curve: the grades above the one named." in words
    assert "above mild (AUROC 1.000)" in words
    assert "0.250 MAE in grades, 4 held-out test cases (lower is better)" in words
    assert words.index("case-3 ▾") < words.index("case-0 patient-0 mild mild")  # the wrong one first


def test_multilabel(tmp_path, record):
    outputs = [output("multilabel", ("leak", "clot"))]
    known = [[1, 0], [0, 1], [0, 0], [1, np.nan]]
    guessed = [[0.9, 0.2], [0.3, 0.7], [0.1, 0.2], [0.8, 0.6]]
    write_run(tmp_path, record, outputs, [case(i, p, t) for i, (p, t) in enumerate(zip(guessed, known, strict=True))])
    _, words, _ = checked(write_report(tmp_path))
    assert "leak (AUROC 1.000)" in words
    assert "Positive in each ROC curve: the cases with the label." in words
    assert "case-2 patient-2 none none" in words
    assert "case-3 patient-3 leak leak and clot" in words
    assert not (tmp_path / "confusion.csv").exists()


def test_frame_classes(tmp_path, record):
    outputs = [output("frame_classification", ("systole", "diastole"), name="phase")]
    true = np.array([0, 0, 1, 1, np.nan, 1])
    cases = []
    for number in range(8):
        predicted = np.tile([0.8, 0.2], (6, 1))
        predicted[: number % 4 + 1] = [0.3, 0.7]
        cases.append(case(number, predicted, frames=true, name="phase"))
    write_run(tmp_path, record, outputs, cases)
    text, words, _ = checked(write_report(tmp_path))
    counts = np.array([[int(cell) for cell in row[1:]] for row in read_csv(tmp_path / "confusion.csv")[1:]])
    assert counts.sum() == 8 * 5
    assert counts[0, 0] == 2  # of the two cases whose first frame alone is called diastole
    assert "Frame by frame: 6 cases from the worst to the best" in words
    bands = re.search(r'aria-label="True and predicted phase of frames".*?</svg>', text, re.DOTALL).group()
    assert bands.count(">true<") == bands.count(">pred.<") == 6


def test_several_outputs(tmp_path, record):
    outputs = [output("classification", name="a/../b"), output("classification", name="view")]
    cases = []
    for number in range(4):
        first = case(number, [0.7, 0.3], number % 2, name="a/../b")
        first.predicted["view"], first.true["view"] = np.array([0.1, 0.9]), np.array(float(number > 1))
        cases.append(first)
    write_run(tmp_path, record, outputs, cases)
    _, words, page = checked(write_report(tmp_path))
    files = sorted(path.name for path in tmp_path.glob("confusion*"))
    assert len(files) == 4
    assert files[1] == "confusion-view.csv"
    assert files[3] == "confusion_normalised-view.csv"
    assert page.tags.count("h3") == 2
    assert "true view predicted view" in words


# --- numbers


def test_regression(tmp_path, record):
    outputs = [output("regression", ("ef",), name="ef", center=(45.0,), scale=(10.0,))]
    constant = numbers(predicted=(46, 46, 46, 46), name="ef")
    write_run(tmp_path, record, outputs, numbers(name="ef"), constant=constant)
    _, words, _ = checked(write_report(tmp_path))
    assert "mean MAE in the unit of ef, 4 held-out test cases (lower is better)" in words
    half = 1.96 * np.std([2, 1, -1, -2], ddof=1)
    limits = f"95 % limits of agreement {-half:.2f} to {half:.2f}"
    assert f"ef: bias (mean of predicted − true) 0.00, {limits} (bias ± 1.96 standard deviations), 4 cases." in words
    assert "predicted = true" in words
    assert "Limits of agreement, lower" in words
    assert "AUROC, true value below 40" in words
    assert "case-0 patient-0 30.000 32.000 2.000" in words
    assert "1.500 ± 0.577" in words
    assert not (tmp_path / "confusion.csv").exists()


def test_single_case_has_no_limits(tmp_path, record):
    write_run(tmp_path, record, [output("regression", ("ef",))], numbers((50,), (47,)))
    _, words, _ = checked(write_report(tmp_path))
    assert "no limits of agreement from a single case" in words


def test_several_numbers(tmp_path, record):
    outputs = [output("regression", ("edv", "esv"), name="volume")]
    cases = [case(i, [100 + i, 50 - i], [90 + 2 * i, np.nan if i == 1 else 50], name="volume") for i in range(4)]
    write_run(tmp_path, record, outputs, cases)
    _, words, _ = checked(write_report(tmp_path))
    assert "volume, edv: bias" in words
    assert "volume, esv: bias" in words
    assert "edv, true edv, predicted esv, true esv, predicted" in words
    lines = metric_lines(read_run(tmp_path))
    assert lines["mae"] == {"": "mae", "edv": "mae/edv", "esv": "mae/esv"}
    assert lines["bland-altman/bias"] == {"edv": "bland-altman/edv/bias", "esv": "bland-altman/esv/bias"}


def test_undefined_baseline_is_no_defeat(tmp_path, record):
    outputs = [output("regression", ("ef",))]
    constant = numbers(predicted=(46, 46, 46, 46))
    write_run(tmp_path, record, outputs, numbers(), metrics=("squared-correlation",), constant=constant)
    _, words, _ = checked(write_report(tmp_path))
    assert "The model beats the untrained network (0.250)." in words
    assert "Squared correlation is undefined (–) for the constant prediction: there it compares with nothing." in words
    assert "of no use" not in words


def test_negative_values_are_drawn_left_of_zero(tmp_path, record):
    constant = numbers(predicted=(46, 46, 46, 46))
    write_run(tmp_path, record, [output("regression", ("ef",))], numbers(), metrics=("r2",), constant=constant)
    text, _, _ = checked(write_report(tmp_path))
    bars = [tuple(map(float, found)) for found in re.findall(r"margin-left:([\d.]+)%;width:([\d.]+)%", text)]
    own, untrained, worst = bars
    assert worst[0] == 0
    assert worst[1] == pytest.approx(own[0], abs=0.1)  # from the lowest value to zero
    assert own[0] + own[1] < 100  # 1 is the best there is
    assert untrained[1] < own[1]


def test_bars_of_errors_fill_the_scale(tmp_path, record):
    write_run(tmp_path, record, [output("regression", ("ef",))], numbers(), constant=numbers(predicted=(46,) * 4))
    text, _, _ = checked(write_report(tmp_path))
    assert max(float(width) for width in re.findall(r"margin-left:0.0%;width:([\d.]+)%", text)) == 100


def test_predictors_from_earlier_visits_are_named(tmp_path, record):
    write_run(tmp_path, record, [output("regression", ("ef",))], numbers(), constant=numbers(predicted=(46,) * 4))
    found = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(found.replace('"untrained"', '"carry-forward"', 1))
    _, words, _ = checked(write_report(tmp_path))
    assert "The model does not beat the last value carried forward (0.250)." in words
    assert "A predictor that never looks at the video does as well" in words


def test_many_cases_stay_small(tmp_path, record):
    true = np.linspace(20, 80, 4000)
    write_run(tmp_path, record, [output("regression", ("ef",))], numbers(true, true + 3 * np.sin(np.arange(4000))))
    text, words, _ = checked(write_report(tmp_path))
    assert len(text) < 2_000_000
    assert "2000 of 4000 cases are drawn." in words


# --- anomalies


def test_anomaly_of_frames(tmp_path, record):
    outputs = [output("anomaly", ("stall",), name="stall")]
    scores = np.array([0.1, 0.2, 0.3, 0.9, 0.8])
    abnormal = np.array([0, 0, 0, 1, 1])
    cases = [
        case(0, scores, 1, abnormal, name="stall"),
        case(1, scores[:3] + 0.01, 0, abnormal[:3], name="stall"),
        case(2, scores[::-1] - 0.75, 1, np.full(5, np.nan), name="stall"),
    ]
    write_run(tmp_path, record, outputs, cases)
    _, words, _ = checked(write_report(tmp_path))
    assert "Positive is what is abnormal: stall." in words
    assert "normal (n = 6)" in words
    assert "abnormal (n = 2)" in words
    assert "frames (AUROC 1.000)" in words
    assert "videos (AUROC 0.500)" in words
    assert "Anomaly AUROC, 3 held-out test cases (higher is better)" in words
    assert "5 abnormal 0.150" in words


def test_anomaly_of_videos_alone(tmp_path, record):
    outputs = [output("anomaly", ("stall",))]
    write_run(tmp_path, record, outputs, [case(i, [0.1 * i, 0.2 * i], 1) for i in range(3)])
    _, words, _ = checked(write_report(tmp_path))
    assert "No result: Anomaly AUROC is undefined on 3 cases" in words
    assert "No curve for videos: all of these cases have it, or none." in words
    assert "AUROC nan" not in words


# --- any task


@pytest.mark.parametrize("task", [task for task in TASKS if task != "segmentation"])
def test_evil_names(tmp_path, record, task):
    classes = [EVIL] if task == "anomaly" else [EVIL, "$x$\n&amp;", "c" * 90]
    outputs = [output(task, classes, name=f"{EVIL}{task}")]
    frames, width = 4, 2 if task == "ordinal" else 3
    cases = []
    for number in range(3):
        sure = np.roll(np.linspace(0.1, 0.9, width), number)
        values = {"name": outputs[0].name, "case_id": f"{EVIL}{number}", "group_id": EVIL}
        if task in ("frame_classification", "anomaly"):
            shape = (frames, width) if task[0] == "f" else (frames,)
            cases.append(case(number, np.resize(sure, shape), frames=np.arange(frames) % 2, **values))
        else:
            true = np.roll([0, 1, 1], number) if task in ("multilabel", "regression") else number
            cases.append(case(number, sure, true, **values))
    write_run(tmp_path, record, outputs, cases)
    before = set(tmp_path.parent.iterdir())
    text, words, _ = checked(write_report(tmp_path))
    assert "<script" not in text
    assert "&amp;amp;" in text or task == "anomaly"
    assert "<script>alert('1')" in words
    assert set(tmp_path.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text.replace("p/state/mild", "q"), "lack the column"),
        (lambda text: text.replace(",mild,", ",vague,", 1), "'vague' is none of the classes"),
        (lambda text: text.replace("0.75", "?"), "are damaged"),
    ],
)
def test_damaged_tables_cost_the_section(tmp_path, record, damage, said):
    write_run(tmp_path, record, [output("classification")], [case(i, [0.75, 0.25], i % 2) for i in range(3)])
    path = tmp_path / "cases.csv"
    path.write_text(damage(path.read_text()))
    _, words, _ = checked(write_report(tmp_path))
    assert "Not shown: " in words
    assert said in words
    assert not (tmp_path / "confusion.csv").exists()


def test_lost_frames_cost_the_section(tmp_path, record):
    outputs = [output("frame_classification")]
    write_run(tmp_path, record, outputs, [case(0, np.full((3, 2), 0.5), frames=[0, 1, 1])])
    (tmp_path / "frames.csv").unlink()
    assert "Not shown: There is no file" in checked(write_report(tmp_path))[1]


def test_lone_surrogates_are_no_reason_to_fail(tmp_path, record):
    record["notes"] = ["\udc80"]
    write_run(tmp_path, record, [output("classification")], [case(i, [0.75, 0.25], i % 2) for i in range(3)])
    assert "?" in checked(write_report(tmp_path))[1]


def test_small_groups_are_counted(tmp_path, record):
    cases = [case(i, [0.75, 0.25], i % 2, group_id=str(i % 3)) for i in range(12)]
    write_run(tmp_path, record, [output("classification")], cases)
    assert "n is small (12 cases of 3 groups). So few cases give no useful" in checked(write_report(tmp_path))[1]


# --- what the pictures draw


def test_roc_points_enclose_the_area():
    rng = np.random.default_rng(3)
    scores, positive = rng.integers(0, 9, 200).astype(float), rng.random(200) < 0.3
    x, y = roc_points(scores, positive)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(auroc(scores, positive), abs=1e-12)


def test_few_are_evenly_spaced():
    assert few(3, 5).tolist() == [0, 1, 2]
    assert few(101, 5).tolist() == [0, 25, 50, 75, 100]


def test_shares_of_rows():
    assert shares_of(np.array([[1, 3], [0, 0]]))[0].tolist() == [0.25, 0.75]
    assert np.isnan(shares_of(np.array([[1, 3], [0, 0]]))[1]).all()


def test_agreement_is_that_of_the_metric():
    true, predicted = np.array([30.0, 40, 50, 60]), np.array([33.0, 41, 49, 62])
    (spec,) = [output("regression", ("ef",))]
    found = BlandAltman((spec,)).of_number(predicted, true, spec, 0)
    assert agreement(true, predicted) == pytest.approx((found["bias"], found["lower"], found["upper"]))


def test_names_of_metrics():
    assert [metric_name(name) for name in ("anomaly-auroc", "frame-f1/systole", "r2", "segmental-f1/10")] == [
        "Anomaly AUROC",
        "Frame F1, systole",
        "R²",
        "Segmental F1, 10 % overlap",
    ]
    assert metric_name("average-precision/prevalence") == "Average precision, prevalence"
    assert metric_name("acme-volume") == "Acme volume"


def test_intervals_keep_to_what_is_possible():
    rows = [{"case_id": str(i), "mae": value} for i, value in enumerate((0.1, 0.2, 0.9))]
    assert interval(rows, "mae", share=False)[0] == 0
    assert interval(rows, "mae", share=False)[1] > 1
    assert interval(rows, "mae")[1] == 1
    assert interval([{"case_id": str(i), "mae": 1.0} for i in range(5)], "mae") is None
