"""Cross-validation: train on all folds but one, test on that one, and put the results together.

Every fold is an ordinary run. Its checkpoint is chosen on validation cases taken from the other folds, never on the
cases it is tested on; settings, where several are tried, are chosen by those validation cases too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvid_core.config import Composed, compose, read_config_file
from medvid_core.engine.cv_folds import Divided, agree_on_folds, check_trained
from medvid_core.engine.ensemble import FOLDS
from medvid_core.engine.finished import FinishedRun, has_finished, read_finished
from medvid_core.engine.grid import Point, check_alike, points_of
from medvid_core.engine.pooled import CrossValidation, Final, GridPoint, as_float, best_epoch, pool
from medvid_core.engine.progress import Progress
from medvid_core.engine.setup import accelerator
from medvid_core.engine.train import start_of
from medvid_core.engine.train_many import check_data, check_settings, train_or_resume
from medvid_core.errors import ConfigError, DataError, MedvidError
from medvid_core.metrics.statistics import RESAMPLES
from medvid_core.plugins import Registry

FINAL = "final"
"""Folder of the model that is trained on all cases."""
_PLACE = ("split.file",)
"""What may differ between a run and the settings it is gone on with: the folder may have moved."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class CvOptions:
    """What a cross-validation does.

    Attributes:
        folds: how many; None for those of the file, else 5.
        max_folds: train only the first so many of them.
        final: train on all cases afterwards, with the settings that were chosen.
        final_epochs: epochs of that; None for the mean best epoch of the folds.
        resamples: of patients, for intervals.
        config_file: settings below ``key=value``.
        weights: a model file that every run starts from.
        source: what kind of file that is, where it was published elsewhere.
    """

    folds: int | None = None
    max_folds: int | None = None
    final: bool = False
    final_epochs: int | None = None
    resamples: int = RESAMPLES
    config_file: Path | None = None
    weights: Path | None = None
    source: str | None = None


@dataclass(frozen=True)
class _Plan:
    """A run to train."""

    directory: Path
    composed: Composed
    point: Point
    fold: int


@dataclass(frozen=True)
class _Job:
    """What all runs of a cross-validation share."""

    model: str | None
    data: str | None
    out: Path
    plugins: Registry
    options: CvOptions
    say: Say
    divided: Divided
    begun_from: Mapping[str, Any] | None

    @property
    def place(self) -> list[str]:
        """Where the folds are, as words."""
        return [f"split.file={json.dumps(str((self.out / FOLDS).resolve()))}"]

    def compose(self, words: Sequence[str]) -> Composed:
        """Return the configuration of a run."""
        return compose(self.plugins, self.model, self.data, [*words, *self.place], self.options.config_file)


def cross_validate(
    model: str | None,
    data: str | None,
    settings: Sequence[str],
    out: Path | None,
    plugins: Registry,
    options: CvOptions,
    progress: Progress,
) -> tuple[Path, CrossValidation | None]:
    """Train and test on every fold, or go on where that was stopped, and write the results.

    Args:
        model: its name; None where a setting or the file names it.
        data: a data set's name or a path; None for the phantom of the model's recipe.
        settings: ``key=value`` words; a value of several, ``optimizer.lr=1e-3,1e-4``, is searched over.
        out: folder of the runs and results; None for ``runs/cv-<model>-<data set>``.
        plugins: the installed plugins.
        options: what to do.
        progress: shows lines of progress.

    Returns:
        The folder, and the results; these on the main process alone.

    Raises:
        ConfigError: settings that cannot be used; or runs that were made with others. DataError: the cases cannot be
            divided, or the file of folds does not divide them.
    """
    same, points = points_of(settings)
    bases = [compose(plugins, model, data, [*same, *point.words], options.config_file) for point in points]
    first = bases[0]
    _check_options(options, first)
    check_alike(points, bases)
    out = out or Path("runs") / f"cv-{first.model.name}-{first.dataset.name}"
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; it must be a folder. Choose another --out.")
    divided = agree_on_folds(out, first, options.folds, plugins, progress)
    folds = divided.folds
    used = range(len(folds.test) if options.max_folds is None else min(options.max_folds, len(folds.test)))
    if len(points) > 1 and any(not folds.val[fold] for fold in used):
        raise ConfigError(
            "Settings are chosen by validation cases, and a fold has none. Give it some (split.val), or give one value "
            "each."
        )
    job = _Job(model, data, out, plugins, options, progress.say, divided, start_of(options.weights, options.source))
    plans = _plans(job, same, points, used)
    for number, plan in enumerate(plans, 1):
        name = f"{number} of {len(plans)}, {plan.point.name + ', ' if plan.point.name else ''}fold {plan.fold}"
        _train(job, plan.directory, plan.composed, name, plan.fold)
    finished = {point.name: [read_finished(p.directory) for p in plans if p.point == point] for point in points}
    grid = [_grid_point(point, finished[point.name]) for point in points]
    best = _best(grid)
    if len(points) > 1:
        progress.say(f"chosen   {best.name}: validation {best.metric} {best.validation:.4f}")
    chosen = next(point for point in points if point.name == best.name)
    final = _final(job, [*same, *chosen.words], finished[best.name])
    if not accelerator().is_main_process:
        return out, None
    progress.say("pooling  the test cases of all folds")
    found = pool(finished[best.name], divided, out, options.resamples)
    searched = tuple(grid) if len(points) > 1 else ()
    return out, dataclasses.replace(found, grid=searched, chosen=best.name, final=final)


def explain(
    model: str | None, data: str | None, settings: Sequence[str], plugins: Registry, config_file: Path | None
) -> str:
    """Return every setting with its origin, one a line; of a grid those of each point under its name.

    Raises:
        ConfigError: settings that cannot be used.
    """
    same, points = points_of(settings)
    bases = [compose(plugins, model, data, [*same, *point.words], config_file) for point in points]
    check_alike(points, bases)
    heads = [f"# {point.name}\n" if point.name else "" for point in points]
    return "\n".join(head + composed.explain() for head, composed in zip(heads, bases, strict=True))


def _check_options(options: CvOptions, composed: Composed) -> None:
    """Refuse what would be passed over.

    Raises:
        ConfigError: naming it.
    """
    if options.max_folds is not None and options.max_folds < 1:
        raise ConfigError(f"--max-folds {options.max_folds} cannot be used: it must be at least 1.")
    if options.final_epochs is not None and (options.final_epochs < 1 or not options.final):
        raise ConfigError("--final-epochs takes the number of epochs, at least 1, that --final trains; give both.")
    if composed.origins.get("split.test") == "command line":
        raise ConfigError(
            "split.test has no meaning here: every fold is the test part once. Say how many with --folds."
        )
    if composed.config.split.fold is not None:
        raise ConfigError("split.fold has no meaning here: every fold is tested once. Leave it out.")


def _plans(job: _Job, same: Sequence[str], points: Sequence[Point], used: Sequence[int]) -> list[_Plan]:
    """Return all runs, point by point and fold by fold; what can be refused is refused before the first begins."""
    plans = []
    for point in points:
        folder = job.out / "grid" / point.name if point.name else job.out
        for fold in used:
            composed = job.compose([*same, *point.words, f"split.fold={fold}"])
            plan = _Plan(folder / f"fold{fold}", composed, point, fold)
            check_settings(plan.directory, composed, _PLACE, job.begun_from)
            check_trained(plan.directory, job.divided, fold)
            plans.append(plan)
        check_data(composed, job.plugins)
    if job.options.final:
        check_trained(job.out / FINAL, job.divided, None)
        check_data(job.compose([*same, *points[0].words]), job.plugins)
    return plans


def _train(job: _Job, directory: Path, composed: Composed, name: str, fold: int | None) -> None:
    """Train a run or go on with it.

    Raises:
        MedvidError: it was stopped. DataError: none of its test cases could be scored.
    """
    weights, source = job.options.weights, job.options.source
    try:
        train_or_resume(directory, composed, name, job.plugins, job.say, weights, source, job.place)
    except MedvidError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise MedvidError(
                f"Stopped in {directory}. Go on with the same medvid-run cv: what is finished is kept."
            ) from error
        raise
    accelerator().wait_for_everyone()  # the record is written by the main process
    check_trained(directory, job.divided, fold)


def _grid_point(point: Point, runs: Sequence[FinishedRun]) -> GridPoint:
    """Return what a point reached on the validation cases of its folds."""
    metric = next(iter(runs[0].record["metrics"]))
    each = tuple(as_float((run.record.get("best") or {}).get("value")) for run in runs)
    return GridPoint(
        name=point.name,
        settings=point.words,
        metric=metric,
        higher_is_better=bool(runs[0].record["metrics"][metric]),
        of_folds=each,
        validation=statistics.fmean(each),
    )


def _best(grid: Sequence[GridPoint]) -> GridPoint:
    """Return the point with the best mean over folds; of equal ones the first.

    Raises:
        DataError: of several none has a value.
    """
    if len(grid) == 1:
        return grid[0]
    known = [point for point in grid if not math.isnan(point.validation)]
    if not known:
        raise DataError(
            f"No point of the grid has a validation {grid[0].metric} in every fold, so none can be chosen. Choose "
            "another first metric (metrics=[…]), or more validation cases (split.val)."
        )
    return max(known, key=lambda point: point.validation if point.higher_is_better else -point.validation)


def _final(job: _Job, words: Sequence[str], runs: Sequence[FinishedRun]) -> Final | None:
    """Train on all cases that are not held out, with no validation: the last weights are kept.

    Without ``--final`` one that was trained before is told of, if it is what would be trained now.
    """
    directory, options = job.out / FINAL, job.options
    there = has_finished(directory)
    if not there and not options.final:
        return None
    epochs, reason = _epochs(runs, options.final_epochs)
    if not options.final and (before := read_config_file(directory / "config.yaml")["train.epochs"]) != epochs:
        epochs, reason = before, "as --final-epochs said"
    composed = job.compose([*words, "train.patience=0", f"train.epochs={epochs}"])
    try:
        check_settings(directory, composed, _PLACE, job.begun_from)
        check_trained(directory, job.divided, None)
    except MedvidError as error:
        if options.final:
            raise
        job.say(f"note     the final model is left out of the report: {error}")
        return None
    if options.final:
        job.say(f"final    on all cases, {epochs} epochs: {reason}")
        _train(job, directory, composed, "on all cases", None)
    return Final(FINAL, epochs, reason)


def _epochs(runs: Sequence[FinishedRun], wanted: int | None) -> tuple[int, str]:
    """Return for how many epochs the final model is trained, and why."""
    best = [epoch for run in runs if (epoch := best_epoch(run)) is not None]
    if wanted is not None:
        return wanted, "as --final-epochs says"
    if not best:
        return int(runs[0].settings["train.epochs"]), "as in the folds, of which none has a best epoch"
    of = "" if len(best) == len(runs) else f"; {len(runs) - len(best)} fold(s) have none"
    reason = f"the mean of the best epochs of the folds ({', '.join(map(str, best))}{of})"
    return math.floor(statistics.fmean(best) + 0.5), reason  # epochs count from 1
