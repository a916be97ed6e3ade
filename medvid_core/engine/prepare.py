"""Take whole videos through the stages of a preprocessor before anything else: shared by processes, from the cache.

Every process takes its share of the cases, then waits for the others. A case that cannot be prepared is left out with
the reason; the rest goes on. Any other fault, of the disk, the memory or a stage, stops.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed

from medvid_core.config import NO_PREPROCESSOR, Chosen, Composed, NoPreprocessor, build_section, compose
from medvid_core.data.cache import BusyError, Cache, default_root
from medvid_core.data.clip import Case, Index
from medvid_core.data.preprocess import Preparation, plan_preparation
from medvid_core.data.stages import Prepared, prepare_case
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import prepare_lines
from medvid_core.engine.setup import accelerator, check_classes_left, input_spec, open_dataset
from medvid_core.errors import ConfigError, DataError, MedvidError
from medvid_core.models import ModelInfo, usable_outputs
from medvid_core.plugins import Registry, registry
from medvid_core.specs import PreprocessorSpec

_PATIENCE = datetime.timedelta(days=7)
"""How long a process waits for another that is still at its share: long videos take hours."""


@dataclass(frozen=True)
class PreparedCases:
    """What became of cases.

    Attributes:
        cases: those that were prepared, by id.
        skipped: id of those that could not be → the reason.
        record: plain data for the record of a run.
    """

    cases: Mapping[str, Case]
    skipped: Mapping[str, str]
    record: Mapping[str, Any]

    def of(self, cases: Sequence[Case]) -> list[Case]:
        """Return, of some cases, those that were prepared, in order."""
        return [self.cases[case.case_id] for case in cases if case.case_id in self.cases]


def chosen_by(info: ModelInfo, plugins: Registry) -> Chosen:
    """Return the preprocessor that a trained model's videos were taken through.

    Raises:
        PluginError: no installed plugin offers it. ConfigError: a setting is unknown to the one that is installed.
    """
    settings = dict(info.preprocess)
    name = settings.pop("name", NO_PREPROCESSOR)
    if name == NO_PREPROCESSOR:
        return Chosen(NO_PREPROCESSOR, NoPreprocessor())
    spec = plugins.find("preprocessor", name).spec
    assert isinstance(spec, PreprocessorSpec)
    return Chosen(name, build_section(spec.config, "preprocess", settings))


def plan_for(info: ModelInfo, plugins: Registry) -> Preparation | None:
    """Return the preparation of a trained model's videos; None for none.

    Raises:
        MedvidError: as `chosen_by` and `plan_preparation` do.
    """
    return plan_preparation(plugins, chosen_by(info, plugins), info.clip.streams)


def prepare(
    cases: Sequence[Case], preparation: Preparation, cache: str, front: Accelerator, progress: Progress
) -> PreparedCases:
    """Take cases through the stages, every process its share.

    Args:
        cases: as the data set has them; the same on every process.
        preparation: what to do.
        cache: folder of prepared videos; empty: the user's own.
        front: the processes, and the device of each.
        progress: shows a bar.

    Raises:
        DataError: not one could be prepared. CacheError: the cache cannot be written to, or its disk is full.
        Exception: whatever else a stage raises, with a note of the case.
    """
    root = Path(cache) if cache else default_root()
    Cache(root).sweep()
    group = _waiting_group(front.num_processes)
    mine = cases[front.process_index :: front.num_processes]
    # building a network draws at random: what comes later must not depend on what was in the cache
    with progress, torch.random.fork_rng(devices=[]):
        own = _share(mine, preparation, root, front.device, progress)
    found = _gathered(own, front.num_processes, group)
    prepared = {case.case_id: got for case in cases if isinstance(got := found[case.case_id], Prepared)}
    skipped = {case.case_id: got for case in cases if isinstance(got := found[case.case_id], str)}
    if not prepared and cases:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in list(skipped.items())[:5])
        raise DataError(f"Not one of {len(cases)} case(s) could be prepared by {preparation.name}:\n{reasons}")
    record = {
        **preparation.to_dict(),
        "stages": [stage.name for stage in preparation.stages],
        "cache": str(root),
        "cases": len(prepared),
        "from_cache": sum(not each.computed for each in prepared.values()),
        "computed": sum(each.computed > 0 for each in prepared.values()),
        "seconds": round(sum(each.seconds for each in prepared.values()), 2),
        "left_out": len(skipped),
        "remarks": {name: list(each.notes) for name, each in prepared.items() if each.notes},
    }
    return PreparedCases({name: each.case for name, each in prepared.items()}, skipped, record)


def prepare_index(
    index: Index, composed: Composed, preparation: Preparation, front: Accelerator, progress: Progress
) -> tuple[Index, PreparedCases]:
    """Take all cases of a data set through the stages, each with what the model's outputs need.

    Returns:
        The index as it was, but for the cases that could not be prepared, which now stand in ``skipped`` as well; and
        what became of its cases.

    Raises:
        MedvidError: as `prepare` does.
    """
    outputs = usable_outputs(composed.model, index.outputs, composed.config.outputs)
    cases = [case.only(outputs) for case in index.cases]
    found = prepare(cases, preparation, composed.config.cache, front, progress)
    return replace(index, skipped={**index.skipped, **found.skipped}), found


def open_prepared(
    composed: Composed, plugins: Registry, front: Accelerator, progress: Progress
) -> tuple[Index, list[Case]]:
    """Index the data set of a configuration and prepare its videos, so that only what is usable is divided.

    Returns:
        The index, with all cases as the data set has them; and the cases that are at hand: prepared, or all of them
        where videos are taken as they are. ``skipped`` of the index says why the others are not.

    Raises:
        DataError: as `open_dataset` and `prepare` do; or a class has no case left. ConfigError: as `plan_preparation`.
    """
    index = open_dataset(composed)
    preparation = plan_preparation(plugins, composed.config.preprocess, input_spec(composed).streams)
    if preparation is None:
        return index, list(index.cases)
    index, found = prepare_index(index, composed, preparation, front, progress)
    outputs = usable_outputs(composed.model, index.outputs, composed.config.outputs)
    lost = [case for case in index.cases if case.case_id in found.skipped and case.split != "test"]
    check_classes_left(lost, list(found.cases.values()), outputs, found.skipped)
    return index, found.of(index.cases)


def prepare_dataset(model: str, data: str | None, settings: Sequence[str], cache: str = "") -> PreparedCases:
    """Prepare all videos of a data set for a model, and say what became of them (``medvid-run preprocess``).

    Args:
        model: name of the model.
        data: a data set by name or path; None for the one of the model's recipe.
        settings: ``key=value`` words.
        cache: folder to keep them in; empty: as ``settings`` say, else the user's own.

    Raises:
        ConfigError: the model takes videos as they are, or a setting. DataError: not one can be prepared.
    """
    plugins = registry()
    composed = compose(plugins, model, data, settings)
    streams = input_spec(composed).streams
    preparation = plan_preparation(plugins, composed.config.preprocess, streams)
    if preparation is None:
        able = [plugins.name_of("preprocessor", spec) for spec in plugins.specs(PreprocessorSpec) if spec.stages]
        raise ConfigError(
            f"Model {composed.model.name!r} takes videos as they are (preprocess=none): there is nothing to prepare. "
            f"Preprocessors that can be chosen: {', '.join(able) or 'none is installed'}."
        )
    front = accelerator()
    progress = Progress(front.is_main_process)
    composed.config.cache = cache or composed.config.cache
    index, found = prepare_index(open_dataset(composed), composed, preparation, front, progress)
    for line in prepare_lines(found.record, most=None):
        progress.say(line)
    if index.skipped:
        unread, unfit = len(index.skipped) - len(found.skipped), len(found.skipped)
        progress.say(f"left out {unread + unfit} case(s): {unread} could not be read, {unfit} not be prepared")
    for name, reason in index.skipped.items():
        progress.say(f"left out {name}: {reason}")
    progress.say(f"kept in  {found.record['cache']}")
    return found


def _share(
    cases: Sequence[Case], preparation: Preparation, root: Path, device: torch.device, progress: Progress
) -> dict[str, Prepared | str]:
    """Prepare cases; those that another run is at come last, so that two runs share the work."""
    eager, patient = Cache(root, wait=False), Cache(root)
    found: dict[str, Prepared | str] = {}
    left, stuck = list(cases), False
    while left:
        busy = []
        for case in progress.track(left, "waiting for another run" if stuck else "preparing"):
            try:
                found[case.case_id] = _one(case, preparation, patient if stuck else eager, device)
                stuck = False  # wait for one, then look at the others again
            except BusyError:
                busy.append(case)
        left, stuck = busy, len(busy) == len(left)
    return found


def _one(case: Case, preparation: Preparation, cache: Cache, device: torch.device) -> Prepared | str:
    """Prepare one case, or say why it cannot be; what is no fault of this video is raised."""
    try:
        found = prepare_case(case, preparation.stages, cache, device, preparation.version)
    except DataError as error:
        return str(error)
    except (BusyError, MedvidError):
        raise
    except Exception as error:
        error.add_note(f"This happened as {preparation.name} prepared the case {case.case_id!r}.")
        raise
    if "mask" in case.streams and "mask" not in found.case.streams:
        return f"its masks do not fit the video that {preparation.name} cuts out of it; set preprocess=none"
    return found


def _waiting_group(processes: int) -> Any:
    """Return a group of all processes in which one may wait very long for another; None for a single one."""
    return distributed.new_group(backend="gloo", timeout=_PATIENCE) if processes > 1 else None


def _gathered(own: Mapping[str, Prepared | str], processes: int, group: Any) -> dict[str, Prepared | str]:
    """Return what all processes found, on each."""
    if processes == 1:
        return dict(own)
    shares: list[Any] = [None] * processes
    distributed.all_gather_object(shares, dict(own), group=group)
    distributed.destroy_process_group(group)
    return {name: found for share in shares for name, found in share.items()}
