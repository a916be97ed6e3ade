"""Experiment trackers as observers of a run: TensorBoard, Weights & Biases and trackio, through Accelerate.

They are given losses, learning rate, the results of evaluations, and the settings that name neither a patient nor a
place. Rows of cases, notes, console output and the command line, where ids and paths stand, are never given to them.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medvid_core.config import CHOSEN, MAPPINGS, RunConfig
from medvid_core.engine.run import Run
from medvid_core.errors import ConfigError
from medvid_core.hookspecs import hookimpl

PROJECT = "medvid"
"""What runs are collected under, where a tracker knows projects."""

Setting = bool | int | float | str

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")
_OF_DATA = ("dataset.", "preprocess.", "split.")


def hyperparameters(config: RunConfig) -> dict[str, Setting]:
    """Return the settings that may leave the machine, by dotted key; lists and mappings as JSON text.

    These are the names of components, all numbers and switches and, but for data, their division and preparation,
    texts that are one word and no file or folder at hand. Texts about data may name patients, columns and places.
    """
    flat: dict[str, Any] = {}
    for section, values in config.to_dict().items():
        flat |= {f"{section}.{key}": value for key, value in values.items()} if isinstance(values, dict) else {}
        flat |= {} if isinstance(values, dict) else {section: values}
    named = [f"{section}.name" for section in CHOSEN]
    kept = {key: value for key, value in flat.items() if key in named or _may_be_sent(key, value)}
    return {key: value if isinstance(value, Setting) else json.dumps(value) for key, value in kept.items()}


def _may_be_sent(key: str, value: Any) -> bool:
    if isinstance(value, bool | int | float):
        return True
    if key.startswith(_OF_DATA) or key == "cache":
        return False
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None and not Path(value).exists()
    if isinstance(value, list):
        return all(_may_be_sent(key, item) for item in value)
    return key in MAPPINGS  # of parameter names; any other mapping may have anything for keys


class Tracker:
    """One tracker, as an observer of one run.

    Args:
        settings: the hyper-parameters it is given.
    """

    def __init__(self, settings: Mapping[str, Setting]) -> None:
        self.settings = dict(settings)
        self._tracker: Any = None
        self._training = False
        self._result: tuple[int, Mapping[str, float]] | None = None

    def open(self, run: Run) -> Any:
        """Return Accelerate's tracker, started; that of a run that goes on continues the earlier one."""
        raise NotImplementedError

    def close(self, status: str, result: Mapping[str, float]) -> None:
        """Write out what is left; ``result`` holds what was logged of the final evaluation."""
        self._tracker.finish()

    @hookimpl
    def medvid_run_started(self, run: Run) -> None:
        """Open the tracker."""
        self._tracker = self.open(run)

    @hookimpl
    def medvid_step_ended(self, step: int, values: Mapping[str, float]) -> None:
        """Log the loss, its parts and the learning rate."""
        self._training = True
        self._log("train", step, values)

    @hookimpl
    def medvid_evaluated(self, step: int, summary: Mapping[str, float]) -> None:
        """Log a validation; keep the final evaluation, whose part of the data is on record once the run has ended."""
        if self._training:
            self._log("val", step, summary)
        else:
            self._result = step, summary

    @hookimpl
    def medvid_checkpoint_saved(self) -> None:
        """Note that whatever is evaluated before the next step is the final evaluation: validations come before."""
        self._training = False

    @hookimpl
    def medvid_run_ended(self, run: Run, status: Literal["done", "stopped", "failed"]) -> None:
        """Log the final evaluation and close the tracker."""
        if self._tracker is None:  # it never opened, which has been reported
            return
        sent: dict[str, float] = {}
        if status == "done" and self._result is not None:
            part = run.record["split"]
            sent = self._log("test" if part == "test" else f"final-{part}", *self._result)
        self.close(status, sent)

    def _log(self, group: str, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Log numbers as ``group/name``; one that is undefined is left out."""
        numbers = {f"{group}/{name}": float(value) for name, value in values.items() if math.isfinite(value)}
        if self._tracker is not None and numbers:
            self._tracker.log(numbers, step=step)
        return numbers


class TensorBoard(Tracker):
    """Event files in ``tensorboard/``. Of steps that are done again, TensorBoard drops the earlier points."""

    def open(self, run: Run) -> Any:
        """Return the tracker, with the settings in the same event file."""
        from accelerate.tracking import TensorBoardTracker
        from torch.utils.tensorboard.summary import hparams

        tracker = TensorBoardTracker("tensorboard", run.directory, purge_step=last_step(run) + 1)
        tracker.start()
        if not has_begun(run):
            # Accelerate's own way makes a folder named after the time, which TensorBoard takes for another run
            for summary in hparams(self.settings, {}):  # type: ignore[no-untyped-call]
                tracker.tracker.file_writer.add_summary(summary)
        return tracker


class WandB(Tracker):
    """Weights & Biases in ``wandb/``, offline unless ``WANDB_MODE`` says otherwise.

    A run that goes on has the same id. Online, W&B ignores steps that are done again.
    """

    def open(self, run: Run) -> Any:
        """Return the tracker, which collects nothing by itself but the load of the machine."""
        import wandb
        from accelerate.tracking import WandBTracker

        mode = os.environ.get("WANDB_MODE", "offline")
        wandb.setup(wandb.Settings(mode=mode))  # before a run is opened it counts as online, and calls home
        earlier = sorted(path.name for path in (run.directory / "wandb").glob("*run-*-*"))
        tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.directory.name,
            id=earlier[-1].rpartition("-")[2] if earlier else None,
            resume="allow",
            dir=str(run.directory.resolve()),
            mode=mode,
            config=self.settings,
            settings=wandb.Settings(
                console="off",  # notes name cases, the header names the data's folder
                x_disable_meta=True,  # so does the command line
                x_save_requirements=False,
                disable_git=True,
                disable_code=True,
                save_code=False,
                quiet=True,
            ),
        )
        tracker.start()
        return tracker

    def close(self, status: str, result: Mapping[str, float]) -> None:
        """End the run as what it is."""
        # where only the end is done again, its steps are over and would be ignored
        self._tracker.tracker.summary.update(result)
        self._tracker.tracker.finish(exit_code=0 if status == "done" else 1)


class Trackio(Tracker):
    """trackio's data base in ``trackio/``, or where ``TRACKIO_DIR`` says. Steps that are done again stand twice."""

    def open(self, run: Run) -> Any:
        """Return the tracker."""
        from accelerate.tracking import TrackioTracker

        if "TRACKIO_DIR" not in os.environ:
            _import_trackio(run.directory.resolve() / "trackio")
        resume = "allow" if has_begun(run) else "never"
        tracker = TrackioTracker(PROJECT, name=run.directory.name, config=self.settings, resume=resume)
        tracker.start()
        return tracker


def _import_trackio(folder: Path) -> None:
    """Import trackio for a folder, which it reads as it is imported; an earlier run of this process had another."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        del sys.modules[name]
    os.environ["TRACKIO_DIR"] = str(folder)
    try:
        importlib.import_module("trackio")
    finally:
        del os.environ["TRACKIO_DIR"]


KINDS: Mapping[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}
"""Name of a tracker, its package and the extra of medvid-core that installs it → its observer."""


def require_installed(names: Sequence[str]) -> None:
    """Refuse trackers whose package is absent, before anything is trained.

    Raises:
        ConfigError: naming them, and the command that installs them.
    """
    absent = [name for name in dict.fromkeys(names) if not _installed(name)]
    if absent:
        raise ConfigError(
            f"train.trackers: {' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed. "
            f"Install with: pip install 'medvid-core[{','.join(absent)}]'; or leave it out of train.trackers."
        )


def _installed(package: str) -> bool:
    """Whether a package is there; a mere folder of that name, such as ``wandb/`` of an earlier run, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def build_trackers(config: RunConfig) -> dict[str, Tracker]:
    """Return the trackers that are asked for, by the names under which their failures are reported."""
    names = config.train.trackers
    return {f"medvid-core:{name}": KINDS[name](hyperparameters(config)) for name in names}


def has_begun(run: Run) -> bool:
    """Whether the run goes on, rather than begins."""
    return (run.directory / "metrics.jsonl").exists()


def last_step(run: Run) -> int:
    """Return the step a run goes on from, whose later log lines are gone already; 0 of one that begins."""
    if not has_begun(run):
        return 0
    lines = (run.directory / "metrics.jsonl").read_text("utf-8").splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else 0
