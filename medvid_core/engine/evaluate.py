"""Score a trained model on a data set, apart from its training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from medvid_core.config import Composed, compose, read_config_file
from medvid_core.data.preprocess import plan_steps
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import environment, fingerprint, now, write_json
from medvid_core.engine.scoring import CaseRow, Scorer, build_metrics, score_cases, summarise, write_rows
from medvid_core.engine.setup import accelerator, open_data, select
from medvid_core.errors import ConfigError
from medvid_core.models import describe, load_model, model_file
from medvid_core.plugins import registry


def evaluate(
    run_or_file: Path, data: str | None, split: str, out: Path | None, settings: Sequence[str]
) -> tuple[list[CaseRow], dict[str, float]]:
    """Score a model and write ``cases.csv`` and ``summary.json``.

    Args:
        run_or_file: a run directory or a model file.
        data: a data set by name or path; None for the one of the run.
        split: ``train``, ``val``, ``test`` or ``all``.
        out: where to write; None for a folder beside the model.
        settings: ``key=value`` words over those of the run.

    Returns:
        The rows and their summary.

    Raises:
        ConfigError: a model file without its run needs ``data``; or the data's classes are not the model's.
    """
    front = accelerator()
    model = load_model(run_or_file)
    info = describe(model)
    file = model_file(run_or_file)
    config_file = file.parent / "config.yaml"
    if not config_file.is_file() and data is None:
        raise ConfigError(f"{file} stands without its run, so its data are unknown. Say what to score with --data.")
    composed = compose(registry(), info.name, data, settings, config_file if config_file.is_file() else None)
    config = composed.config
    opened = open_data(composed, training=False, recorded=_recorded_splits(composed, config_file))
    if opened.index.outputs != info.outputs:
        raise ConfigError(
            f"The model predicts {_classes(info.outputs[0].classes)}, the data hold "
            f"{_classes(opened.output.classes)}. Evaluate on data with the same classes in the same order."
        )
    clip = dataclasses.replace(config.clip, frames=info.frames, size=info.size, stride=info.stride)
    scorer = Scorer(
        info.outputs,
        build_metrics(registry(), config.metrics, info.outputs),
        clip,
        info.clip,
        plan_steps(registry(), info.clip.streams),
        config.evaluate,
        front.device,
    )
    progress = Progress(front.is_main_process)
    cases = select(opened.splits, split)
    with progress:
        rows = score_cases(
            model.to(front.device),
            cases,
            scorer,
            front.process_index,
            front.num_processes,
            lambda mine: progress.track(mine, "evaluating"),
        )
    summary = summarise(rows, scorer.metrics)
    if front.is_main_process:
        folder = out or file.parent / f"evaluation-{config.dataset.name}-{split}"
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "cases.csv", rows)
        record = {
            "model": info.to_dict(),
            "dataset": {"name": config.dataset.name, "fingerprint": fingerprint(opened.index), "split": split},
            "results": summary,
            "finished": now(),
            **environment(registry(), front.device, front.num_processes),
        }
        write_json(folder / "summary.json", record)
        for name, value in summary.items():
            print(f"{name:<28} {value:.4f}")
        progress.say(f"wrote    {folder}")
    return rows, summary


def _recorded_splits(composed: Composed, config_file: Path) -> dict[str, list[str]] | None:
    """Return how the run divided its data, if these are its data; None for other data, which are divided here."""
    record = config_file.with_name("splits.json")
    if not config_file.is_file() or not record.is_file():
        return None
    own, config = read_config_file(config_file), composed.config
    if (own.get("dataset.name"), own.get("dataset.root")) != (config.dataset.name, config.data_root):
        return None
    splits: dict[str, list[str]] = json.loads(record.read_text("utf-8"))
    return splits


def _classes(names: Sequence[str]) -> str:
    return ", ".join(names)
