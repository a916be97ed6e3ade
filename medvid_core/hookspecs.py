"""The hooks a plugin may implement: five providers, which return specs, and five observers, which look on.

Providers are called one plugin at a time, so that every spec has an owner and one failure costs one plugin.
Observers are called on the main process only; they may look and must not change; one that raises is reported
once and dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from medvid_core.specs import DatasetSpec, LossSpec, MetricSpec, ModelSpec, PreprocessorSpec

if TYPE_CHECKING:
    from medvid_core.engine.run import Run

PROJECT = "medvid"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def medvid_models() -> Iterable[ModelSpec]:
    """Return the models this plugin offers."""
    raise NotImplementedError


@hookspec
def medvid_datasets() -> Iterable[DatasetSpec]:
    """Return the data sets this plugin can read."""
    raise NotImplementedError


@hookspec
def medvid_losses() -> Iterable[LossSpec]:
    """Return the losses this plugin offers."""
    raise NotImplementedError


@hookspec
def medvid_metrics() -> Iterable[MetricSpec]:
    """Return the metrics this plugin offers."""
    raise NotImplementedError


@hookspec
def medvid_preprocessors() -> Iterable[PreprocessorSpec]:
    """Return the preprocessors this plugin offers."""
    raise NotImplementedError


@hookspec
def medvid_run_started(run: Run) -> None:
    """Look on as a run starts, its directory already made."""


@hookspec
def medvid_step_ended(run: Run, step: int, values: Mapping[str, float]) -> None:
    """Look on after an optimiser step; ``values`` holds the loss, its parts and the learning rate."""


@hookspec
def medvid_evaluated(run: Run, step: int, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float]) -> None:
    """Look on after an evaluation; ``rows`` has one row a case."""


@hookspec
def medvid_checkpoint_saved(run: Run, path: Path) -> None:
    """Look on after a checkpoint was written whole."""


@hookspec
def medvid_run_ended(run: Run, status: Literal["done", "stopped", "failed"]) -> None:
    """Look on as a run ends, its report already written when ``status`` is ``done``."""
