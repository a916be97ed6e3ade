"""Trackers are told how a run goes, and nothing of who is in the data; none of them can end a run."""

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from medvid_core import plugins
from medvid_core.config import TRACKERS, Chosen, RunConfig, compose
from medvid_core.engine import trackers, train
from medvid_core.engine.run import Run
from medvid_core.engine.trackers import KINDS, Tracker, hyperparameters, require_installed
from medvid_core.errors import ConfigError
from medvid_core.hookspecs import hookimpl
from medvid_core.plugins import Observers

WORDS = (
    "--model",
    "unet",
    "preset=tiny",
    "dataset.cases=7",
    "dataset.frames=6",
    "dataset.size=[48,48]",
    "train.max_steps=6",
    "evaluate.overlays=0",
)
"""Three steps an epoch: validation and a checkpoint after steps 3 and 6."""


def log(run, *kinds):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if not kinds or line["kind"] in kinds]


def scalars(run) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: of every tag its steps and values."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def everything_in(folder) -> bytes:
    """All bytes and names of files."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # its own process writes on for a moment after a run is closed
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert files, f"{folder} is empty"
    return b"".join(path.read_bytes() + str(path.relative_to(folder)).encode() for path in files)


def crash_at_second_checkpoint(monkeypatch):
    """Steps 4 to 6 are logged, and lost."""
    whole, saved = train._save, []

    def save(session):
        saved.append(session.state.step)
        if len(saved) == 2:
            raise OSError("disc full")
        whole(session)

    monkeypatch.setattr(train, "_save", save)


def crashed_and_resumed(medvid, monkeypatch, out, *names):
    with monkeypatch.context() as patched:
        crash_at_second_checkpoint(patched)
        with pytest.raises(OSError, match="disc full"):
            medvid(*WORDS, f"train.trackers=[{','.join(names)}]", "--out", out)
    assert [line["step"] for line in log(out, "train")] == [1, 2, 3, 4, 5, 6]
    medvid("train", "--resume", out)


@pytest.fixture(scope="module")
def plain(medvid, tmp_path_factory):
    """The run without trackers."""
    out = tmp_path_factory.mktemp("plain") / "run"
    medvid(*WORDS, "--out", out)
    return out


def test_names_are_those_of_the_configuration():
    assert tuple(KINDS) == TRACKERS


def test_unknown_tracker_is_refused_with_the_close_one():
    with pytest.raises(ConfigError) as info:
        compose(plugins.registry(), "unet", overrides=["train.trackers=[wandbb]"])
    assert str(info.value) == (
        "train.trackers='wandbb' cannot be used: it must be one of tensorboard, wandb, trackio. Did you mean 'wandb'?"
    )


def test_absent_package_is_refused_before_anything_begins(refused, monkeypatch, tmp_path):
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    message = refused(*WORDS, "train.trackers=[wandb,trackio]", "--out", tmp_path / "run")
    assert message == (
        "train.trackers: wandb and trackio are not installed. Install with: pip install 'medvid-core[wandb,trackio]'; "
        "or leave it out of train.trackers."
    )
    assert not (tmp_path / "run").exists()


def test_a_folder_of_that_name_is_no_package(monkeypatch, tmp_path):
    """Such as ``wandb/``, which W&B itself leaves wherever it is used."""
    (tmp_path / "left_behind").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^train.trackers: left_behind is not installed\."):
        require_installed(("left_behind",))


def test_help_listing_and_training_import_none_that_is_not_asked_for():
    code = (
        "import sys, medvid_core.engine.train\n"
        "from medvid_core.cli.main import main\n"
        "main(['plugins', 'list'])\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "assert not {'tensorboard', 'wandb', 'trackio'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@dataclass
class AnyConfig:
    width: int = 4
    bias: bool = True
    kind: str = "deep"
    empty: str = ""
    file: str = "weights.pth"
    folder: str = "/data/ward"
    windows: str = "C:\\ward"
    at_hand: str = "here"
    absent: str | None = None
    sizes: tuple[int, ...] = (1, 2)
    kinds: tuple[str, ...] = ("deep", "wide")
    files: tuple[str, ...] = ("deep", "a/b")
    by_case: dict[str, float] = field(default_factory=lambda: {"Jane": 0.5})


def test_settings_that_may_name_patients_or_places_are_kept_back(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    config = RunConfig(
        preset="full",
        seed=3,
        metrics=("dice", "f-measure"),
        outputs=(),
        data_root="/data/ward",
        cache="prepared",
        **{name: Chosen(f"some-plugin/{name}", AnyConfig()) for name in ("model", "dataset", "loss", "preprocess")},
    )
    config.split.file, config.split.fold = "folds", 1
    config.optimizer.lr_scale = {"frames.encoder": 0.1}
    found = hyperparameters(config)
    of = {name: {k: v for k, v in found.items() if k.startswith(f"{name}.")} for name in ("model", "dataset", "split")}
    assert of["model"] == {
        "model.name": "some-plugin/model",
        "model.width": 4,
        "model.bias": True,
        "model.kind": "deep",
        "model.sizes": "[1, 2]",
        "model.kinds": '["deep", "wide"]',
    }
    assert of["dataset"] == {"dataset.name": "some-plugin/dataset", "dataset.width": 4, "dataset.bias": True}
    assert of["split"] == {"split.val": 0.15, "split.test": 0.2, "split.seed": 0, "split.attempts": 10, "split.fold": 1}
    assert {key for key in found if "." not in key} == {"preset", "seed", "metrics", "outputs"}
    assert found["optimizer.lr_scale"] == '{"frames.encoder": 0.1}'
    assert found["optimizer.lr"] == 1e-4


class Recorder(Tracker):
    """A tracker that only remembers."""

    def __init__(self, fails_in=""):
        super().__init__({})
        self.calls, self.fails_in = [], fails_in

    def open(self, run):
        self._called("open")
        return self

    def log(self, values, step):
        self._called(step, values)

    def finish(self):
        self._called("finish")

    def _called(self, what, *more):
        self.calls.append((what, *more))
        if what == self.fails_in:
            raise OSError("no route to host")


def tell(observers, run, *, validate=True, status="done"):
    """The hooks of a run of two epochs of one step, in the order of the loop."""
    observers.notify("medvid_run_started", run=run)
    for step in (1, 2):
        observers.notify("medvid_step_ended", run=run, step=step, values={"loss": 1.0 / step, "lr": 0.5})
        if validate:
            summary = {"dice": 0.1 * step, "hd95": float("nan")}
            observers.notify("medvid_evaluated", run=run, step=step, rows=[{"case_id": "Jane"}], summary=summary)
        observers.notify("medvid_checkpoint_saved", run=run, path=run.checkpoints / "last.safetensors")
    observers.notify("medvid_evaluated", run=run, step=2, rows=[{"case_id": "Joe"}], summary={"dice": 0.7})
    observers.notify("medvid_run_ended", run=run, status=status)


@pytest.mark.parametrize(("part", "group"), [("test", "test"), ("val", "final-val"), ("train", "final-train")])
@pytest.mark.parametrize("validate", [True, False])
def test_what_is_logged(tmp_path, part, group, validate):
    """Undefined numbers are left out; the final evaluation is never taken for a validation."""
    recorder = Recorder()
    tell(Observers(plugins.registry(), {"recorder": recorder}), Run(tmp_path, {"split": part}), validate=validate)
    wanted = [
        ("open",),
        (1, {"train/loss": 1.0, "train/lr": 0.5}),
        (1, {"val/dice": 0.1}),
        (2, {"train/loss": 0.5, "train/lr": 0.5}),
        (2, {"val/dice": 0.2}),
        (2, {f"{group}/dice": 0.7}),
        ("finish",),
    ]
    assert recorder.calls == [call for call in wanted if validate or "val/dice" not in str(call) or group in str(call)]


def test_a_run_that_failed_is_closed_without_result(tmp_path):
    recorder = Recorder()
    tell(Observers(plugins.registry(), {"recorder": recorder}), Run(tmp_path), status="failed")
    assert recorder.calls[-2:] == [(2, {"val/dice": 0.2}), ("finish",)]


@pytest.mark.parametrize(("fails_in", "hook"), [("open", "medvid_run_started"), ("finish", "medvid_run_ended")])
def test_a_failure_is_reported_once(tmp_path, fails_in, hook):
    recorder = Recorder(fails_in)
    observers = Observers(plugins.registry(), {"medvid-core:recorder": recorder})
    with pytest.warns(UserWarning, match="the observer") as reports:
        tell(observers, Run(tmp_path, {"split": "test"}))
    assert [str(report.message) for report in reports] == [
        f"Plugin medvid-core:recorder: the observer {hook} raised OSError: no route to host; it is not called again."
    ]
    assert len(recorder.calls) == (1 if fails_in == "open" else 7)


def test_observers_of_one_run_are_not_those_of_the_next(tmp_path):
    first, second = Recorder(), Recorder()
    Observers(plugins.registry(), {"recorder": first})
    Observers(plugins.registry(), {"recorder": second}).notify("medvid_run_started", run=Run(tmp_path))
    assert (first.calls, second.calls) == ([], [("open",)])
    Observers(plugins.registry(), {"recorder": first}, enabled=False).notify("medvid_run_started", run=Run(tmp_path))
    assert first.calls == []


def test_a_run_outlives_its_tracker(medvid, monkeypatch, plain, tmp_path):
    class Unreachable(Tracker):
        def open(self, run):
            raise OSError("no route to host")

        @hookimpl
        def medvid_step_ended(self, step):
            raise SystemExit(step)

    monkeypatch.setitem(trackers.KINDS, "tensorboard", Unreachable)
    with pytest.warns(UserWarning, match="medvid-core:tensorboard: the observer ") as reports:
        medvid(*WORDS, "train.trackers=[tensorboard]", "--out", tmp_path / "run")
    assert len([report for report in reports if "the observer" in str(report.message)]) == 2
    assert log(tmp_path / "run") == log(plain)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"


def test_tensorboard_shows_the_run(medvid, plain, tmp_path):
    """Every step, validation and the result; the settings in the same file; nothing in training is changed by it."""
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    medvid(*WORDS, "train.trackers=[tensorboard]", "--out", out)
    assert log(out) == log(plain)
    assert_shown(out)
    assert b"optimizer.lr" in everything_in(out / "tensorboard")
    assert len(list((out / "tensorboard").iterdir())) == 1


def assert_shown(run):
    """Every number of the log once, and no other."""
    shown = scalars(run)
    for kind, group in (("train", "train"), ("evaluation", "val"), ("result", "test")):
        lines = log(run, kind)
        names = {name for line in lines for name in line} - {"kind", "step", "epoch", "split"}
        assert "loss" in names or "dice" in names
        assert {tag for tag in shown if tag.startswith(f"{group}/")} == {f"{group}/{name}" for name in names}
        for name in names:
            points = shown.pop(f"{group}/{name}")
            assert [step for step, _ in points] == [line["step"] for line in lines if line[name] is not None]
            wanted = [line[name] for line in lines if line[name] is not None]
            assert [value for _, value in points] == pytest.approx(wanted, rel=1e-6)
    assert set(shown) <= {"hp_metric"}


def test_tensorboard_shows_steps_done_again_once(medvid, monkeypatch, tmp_path):
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    crashed_and_resumed(medvid, monkeypatch, out, "tensorboard")
    assert len(list((out / "tensorboard").iterdir())) == 2
    assert_shown(out)


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """W&B, with a home of its own and no word of the user."""
    module = pytest.importorskip("wandb", reason="W&B is not installed (medvid-core[wandb])")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return module


def test_wandb_is_offline_and_goes_on_under_the_same_id(wandb, medvid, monkeypatch, plain, tmp_path):
    out = tmp_path / "run"
    crashed_and_resumed(medvid, monkeypatch, out, "wandb")
    assert log(out) == log(plain)
    folders = sorted((out / "wandb").glob("*run-*-*"))
    assert len(folders) == 2
    assert all(folder.name.startswith("offline-run-") for folder in folders)
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1
    for folder, tag in zip(folders, (b"val/dice", b"test/dice"), strict=True):
        assert tag in everything_in(folder)
    assert not (tmp_path / "home" / ".netrc").exists()


def test_the_users_word_on_wandbs_mode_wins(wandb, medvid, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    medvid(*WORDS, "train.trackers=[wandb]", "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "wandb").exists()


def trackio_rows(folder, project="medvid"):
    """Run, step and metrics of every row."""
    with sqlite3.connect(folder / f"{project}.db") as base:
        found = base.execute("select run_name, run_id, step, metrics from metrics order by id").fetchall()
    return [(name, identity, step, json.loads(values)) for name, identity, step, values in found]


def test_trackio_writes_into_each_runs_directory(medvid, monkeypatch, plain, tmp_path):
    """Of two runs in one process, each has its own; one that goes on is the same run."""
    pytest.importorskip("trackio", reason="trackio is not installed (medvid-core[trackio])")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    medvid(*WORDS, "train.trackers=[trackio]", "--out", tmp_path / "one")
    crashed_and_resumed(medvid, monkeypatch, tmp_path / "two", "trackio")
    assert "TRACKIO_DIR" not in os.environ
    assert log(tmp_path / "one") == log(tmp_path / "two") == log(plain)
    one, two = (trackio_rows(tmp_path / name / "trackio") for name in ("one", "two"))
    assert [(name, step) for name, _, step, _ in one] == [("one", step) for step in (1, 2, 3, 3, 4, 5, 6, 6, 6)]
    assert len({identity for _, identity, _, _ in two}) == 1
    again = [values for _, _, step, values in two if step == 5]
    assert len(again) == 2
    assert again[0] == again[1]
    assert "test/dice" in two[-1][3]


def test_nothing_of_patients_or_places_is_written(medvid, vtus, monkeypatch, tmp_path):
    """Neither ids, nor the data's folder, nor what is printed of a case that is left out, nor the command line."""
    names = [name for name in TRACKERS if trackers._installed(name)]
    if not names:
        pytest.skip("no tracker is installed")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    people = ("DOE-JANE", "ROE-RICHARD", "LOE-LAURA", "POE-PETER")
    cases = [("Test" if person == people[-1] else "Train", person) for person in people]
    data = vtus(cases).rename(tmp_path / "ward-of-st-elsewhere")
    (data / "Train" / "MOE-MARY").mkdir()
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["medvid-run", "--data", str(data)])
    keep_best = train._keep_best
    monkeypatch.setattr(train, "_keep_best", lambda session: (print("COE-CHRIS is blurred"), keep_best(session)))
    medvid(
        "--model", "unet", "--data", data, *WORDS[2:3], *WORDS[6:], f"train.trackers=[{','.join(names)}]", "--out", out
    )
    record = (out / "run.json").read_text()
    assert all(word in record for word in ("MOE-MARY", "ward-of-st-elsewhere"))
    for name in names:
        written = everything_in(out / name)
        assert b"val/dice" in written
        for word in (*people, "MOE-MARY", "COE-CHRIS", "ward-of-st-elsewhere"):
            assert word.encode() not in written, f"{name} holds {word}"
