"""Score a trained model on a data set, apart from its training."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medvid_core.config import Composed, compose, parse_overrides, read_config_file
from medvid_core.data.clip import Case
from medvid_core.data.preprocess import plan_steps, streams_at_hand
from medvid_core.data.splits import PARTS, recorded_splits, split_cases
from medvid_core.engine.breakdown import break_down, values_by
from medvid_core.engine.ensemble import Loaded, described, load, parts_of
from medvid_core.engine.prepare import plan_for, prepare
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import environment, fingerprint, now, prepare_lines, read_json, scan_lines, write_json
from medvid_core.engine.scoring import (
    CaseRow,
    Scorer,
    build_metrics,
    check_prompt,
    metric_names,
    own_alarms,
    score_cases,
    set_alarms,
    summarise,
    write_tables,
)
from medvid_core.engine.setup import accelerator, open_dataset, scan_choice
from medvid_core.errors import ConfigError, DataError
from medvid_core.metrics.base import CaseMetric, Metric
from medvid_core.models import describe
from medvid_core.plugins import registry
from medvid_core.specs import MetricSpec, OutputSpec

SETTABLE = ("clip.overlap", "clip.blend", "evaluate.", "metrics", "dataset.", "split.", "cache")
"""Settings, or beginnings of such, that an evaluation takes; all others belong to the trained model."""


@dataclass(frozen=True)
class Chosen:
    """The cases to score.

    Attributes:
        part: ``train``, ``val``, ``test`` or ``all``.
        cases: the cases.
        parts: case id → part of those that the run divided.
        learnt: ids of those among them that the run trained or validated on.
        notes: what a reader of the result should know.
    """

    part: str
    cases: list[Case]
    parts: dict[str, str] = field(default_factory=dict)
    learnt: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def evaluate(
    run_or_file: Path,
    data: str | None,
    split: str | None,
    out: Path | None,
    settings: Sequence[str],
    by: Sequence[str] = (),
) -> tuple[list[CaseRow], dict[str, float]]:
    """Score a model and write ``cases.csv``, ``summary.json`` and ``evaluation.html``.

    Args:
        run_or_file: a run directory, a model file, or the folder of a cross-validation, of whose models the mean is
            taken.
        data: a data set by name or path; None for the one of the run.
        split: ``train``, ``val``, ``test`` or ``all``; None for ``test`` where the run or the data say which cases
            these are, else ``all``.
        out: where to write; None for a folder beside the model.
        settings: ``key=value`` words over those of the run, of the kinds in `SETTABLE`.
        by: columns by whose values the result is also shown, and written as ``by_<column>.csv``.

    Returns:
        The rows and their summary.

    Raises:
        ConfigError: a model file without its run needs ``data``; or the data's classes are not the model's; or a
            setting that cannot be changed after training; or a column of ``by`` that no case has. DataError: the
            folder to write to is not empty; or there is no case to score.
    """
    from medvid_core.report.breakdown import in_lines, write_breakdowns
    from medvid_core.report.crops import write_crops
    from medvid_core.report.evaluation import write_evaluation

    _check_settings(settings)
    front = accelerator()
    loaded = load(run_or_file)
    model = loaded.model
    info = describe(model)
    scan = scan_choice(model, front.device, trained=True)
    file = loaded.file
    config_file = file.parent / "config.yaml"
    if not config_file.is_file() and data is None:
        raise ConfigError(f"{file} stands without its run, so its data are unknown. Say what to score with --data.")
    # what is asked of overlaps is judged against the model's clips, not those of a preset
    own = (f"clip.frames={info.frames}", f"clip.blend={info.blend}")
    composed = compose(registry(), info.name, data, (*own, *settings), config_file if config_file.is_file() else None)
    config = composed.config
    index = open_dataset(composed)
    _require_same(info.outputs, index.outputs)
    chosen = _choose(composed, config_file, index.cases, split, settings, loaded)
    divided = {column: values_by(column, chosen.cases, chosen.parts) for column in by}
    folder = _free_folder(out or loaded.home / _default_name(composed, chosen.part))
    clip = dataclasses.replace(
        config.clip,
        size=info.size,
        stride=info.stride,
        padding=info.padding,
        fan_crop=info.fan_crop,
    )
    check_prompt(composed.model, config.evaluate)
    progress = Progress(front.is_main_process)
    preparation, prepared = plan_for(info, registry()), None
    cases = [case.only(info.outputs) for case in chosen.cases]
    if preparation is not None:
        prepared = prepare(cases, preparation, config.cache, front, progress)
        kept = [case.case_id in prepared.cases for case in cases]
        cases = prepared.of(cases)
        divided = {column: list(itertools.compress(values, kept)) for column, values in divided.items()}
        chosen.notes.extend(f"left out {name}: {reason}" for name, reason in prepared.skipped.items())
    scorer = Scorer(
        info.outputs,
        build_metrics(registry(), config.metrics, info.outputs),
        clip,
        info.clip,
        plan_steps(registry(), info.clip.streams, streams_at_hand(preparation, cases)),
        config.evaluate,
        front.device,
    )
    alarms = read_json(loaded.home / "run.json").get("alarm_thresholds") or {}
    if remark := own_alarms(scorer.metrics, scorer.others, alarms, chosen.part):
        chosen.notes.append(remark)
    progress.say(f"scoring  {len(cases)} of {len(index.cases)} case(s), split {chosen.part}")
    for line in (*scan_lines(scan), *prepare_lines(prepared.record if prepared else None)):
        progress.say(line)
    for note in chosen.notes:
        progress.say(f"note     {note}")
    with progress:
        rows = score_cases(
            model.to(front.device),
            cases,
            scorer,
            front.process_index,
            front.num_processes,
            lambda mine: progress.track(mine, "evaluating"),
        )
    set_alarms(rows, alarms)
    summary = summarise(rows, scorer.metrics)
    if front.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_tables(folder, rows, scorer.outputs)
        record = {
            "model": described(info, loaded),
            "scan": scan,
            "preprocess": prepared.record if prepared else {},
            "dataset": {
                "name": config.dataset.name,
                "root": config.data_root,
                "settings": dataclasses.asdict(config.dataset.config),
                "fingerprint": fingerprint(index),
                "split": chosen.part,
                "cases": len(chosen.cases),
                "learnt_by_the_run": chosen.learnt,
            },
            "evaluate": dataclasses.asdict(config.evaluate),
            "overlap": clip.overlap,
            "blend": clip.blend,
            "metrics": list(metric_names(config.metrics, info.outputs)),
            "results": summary,
            "alarm_thresholds": alarms,
            "notes": chosen.notes,
            "finished": now(),
            **environment(registry(), front.device, front.num_processes),
        }
        write_json(folder / "summary.json", record)
        higher_is_better = _directions(scorer.metrics, record["metrics"])
        breakdowns = [
            break_down(column, values, rows, scorer.metrics, higher_is_better) for column, values in divided.items()
        ]
        write_breakdowns(folder, breakdowns)
        write_evaluation(folder, record, higher_is_better, breakdowns)
        write_crops(folder, cases, clip.fan_crop, progress)
        width = max(28, *map(len, summary))
        for name, value in summary.items():
            print(f"{name:<{width}} {value:.4f}")
        for breakdown in breakdowns:
            print("", *in_lines(breakdown), sep="\n")
        progress.say(f"wrote    {folder}")
    return rows, summary


def _directions(metrics: Sequence[Metric | CaseMetric], names: Sequence[str]) -> dict[str, bool]:
    """Return of each metric whether higher is better, from the names they were asked for by."""
    found = {}
    for metric, name in zip(metrics, names, strict=True):
        spec = registry().find("metric", name).spec
        assert isinstance(spec, MetricSpec)
        found[metric.name] = spec.higher_is_better
    return found


def _check_settings(settings: Sequence[str]) -> None:
    """Refuse settings that the trained model has fixed: they would be passed over in silence."""
    for key in parse_overrides(settings):
        if not any(key.startswith(known) if known.endswith(".") else key == known for known in SETTABLE):
            kinds = ", ".join(f"{known}*" if known.endswith(".") else known for known in SETTABLE)
            raise ConfigError(f"{key} was fixed when the model was trained. evaluate takes {kinds}, not {key}.")


def _default_name(composed: Composed, part: str) -> str:
    """A folder name that tells data sets, and folders of one layout, apart."""
    config = composed.config
    root = Path(config.data_root) if config.data_root else None
    place = "" if root is None else f"-{root.parent.name}-{root.stem}" if root.is_file() else f"-{root.name}"
    return f"evaluation-{config.dataset.name.replace('/', '-')}{place}-{part}"


def _free_folder(folder: Path) -> Path:
    """Return the folder to write to.

    Raises:
        DataError: something is there already.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; it must be a folder to make. Choose another --out.")
    if (folder / "summary.json").exists() or (folder / "cases.csv").exists():
        raise DataError(f"{folder} already holds an evaluation. Choose another --out.")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty. Choose another --out.")
    return folder


def _choose(
    composed: Composed,
    config_file: Path,
    cases: Sequence[Case],
    split: str | None,
    settings: Sequence[str],
    loaded: Loaded,
) -> Chosen:
    """Choose the cases to score: divided as the run recorded it if they are the run's, wherever they lie.

    Raises:
        ConfigError: a setting of a division that is not made here. DataError: no such case, or a damaged record.
    """
    config = composed.config
    written = read_config_file(config_file) if config_file.is_file() else {}
    if not config.data_root and written.get("dataset.seed") != getattr(config.dataset.config, "seed", None):
        written = {}  # drawn anew: other cases under the same names
    recorded = {}
    if written:
        recorded = parts_of(loaded) if loaded.runs else _read_splits(config_file.with_name("splits.json"))
    ids = {case.case_id for case in cases}
    known = {name for names in recorded.values() for name in names}
    same_place = (written.get("dataset.name"), written.get("dataset.root")) == (config.dataset.name, config.data_root)
    notes = [f"the mean of {len(loaded.runs)} models: {', '.join(map(str, loaded.runs))}"] if loaded.runs else []
    if recorded and (same_place or (written.get("dataset.name") == config.dataset.name and known & ids)):
        if any(key.startswith("split.") for key in parse_overrides(settings)):
            raise ConfigError("split.* cannot be set here: the cases are divided as when the model was trained.")
        part = split or "test"
        found = list(cases) if part == "all" else recorded_splits(cases, recorded)[part]
        gone = [name for key in (PARTS if part == "all" else (part,)) for name in recorded[key] if name not in ids]
        if gone:
            notes.append(f"{len(gone)} {part} case(s) of the run are no longer there: {_few(gone)}")
        new = [case.case_id for case in cases if case.case_id not in known]
        if new and part != "all":
            notes.append(f"{len(new)} case(s) are in no part of the run and left out (not by --split all): {_few(new)}")
    else:
        part = split or ("test" if same_place or any(case.split == "test" for case in cases) else "all")
        asked = any(key in parse_overrides(settings) for key in ("split.file", "split.fold"))
        division = config.split if asked else dataclasses.replace(config.split, file=None, fold=None)  # of other data
        found = list(cases) if part == "all" else split_cases(cases, division, training=False)[part]
        if same_place and not recorded:
            notes.append("the run holds no splits.json, so its data are divided anew, rightly only if none was changed")
    if not found and loaded.runs and part == "test":
        raise DataError(
            f"Every case of these data has been learnt from by one of the models of {loaded.home}. Their results on "
            "cases they had not seen are in cv.md there. Score one (name its run), or other data (--data)."
        )
    if not found:
        raise DataError("\n".join([f"The data set has no {part} cases. Choose another --split.", *notes]))
    trained = {*recorded.get("train", ()), *recorded.get("val", ())}
    groups = {case.group_id for case in cases if case.case_id in trained}
    learnt = [case.case_id for case in found if case.case_id in trained or case.group_id in groups]
    if learnt:
        notes.append(f"the run trained or validated on {len(learnt)} of them, or their groups: {_few(learnt)}")
    parts = {name: key for key, names in recorded.items() for name in names}
    return Chosen(part, found, parts, learnt, notes)


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _read_splits(path: Path) -> dict[str, list[str]]:
    """Return the case ids of each part as the run recorded them; nothing where there is no record.

    Raises:
        DataError: the record is damaged.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError:
        found = None
    sound = isinstance(found, dict) and all(
        isinstance(found.get(part, []), list) and all(isinstance(name, str) for name in found.get(part, []))
        for part in PARTS
    )
    if not sound:
        raise DataError(f"{path} is damaged: without it nobody knows which cases the model was trained on. Restore it.")
    return {part: list(found.get(part, [])) for part in PARTS}


def _require_same(outputs: Sequence[OutputSpec], offered: Sequence[OutputSpec]) -> None:
    """Refuse data that do not know what the model predicts.

    Raises:
        ConfigError: an output is missing, or has other classes.
    """
    for output in outputs:
        found = next((other for other in offered if (other.name, other.task) == (output.name, output.task)), None)
        if found is None or found.classes != output.classes:
            theirs = " and ".join(_described(other) for other in (offered if found is None else [found]))
            raise ConfigError(
                f"The model predicts {_described(output)}, the data hold {theirs}. Evaluate on data with the same "
                "classes in the same order."
            )


def _described(output: OutputSpec) -> str:
    return f"{output.name} ({output.task}: {', '.join(output.classes)})"
