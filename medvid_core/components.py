"""Data sets, losses and metrics by name, for use from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvid_core import plugins
from medvid_core.config import build_section, detect_dataset
from medvid_core.data.clip import Index
from medvid_core.losses.base import Loss
from medvid_core.metrics.base import Metric
from medvid_core.models import check_tasks
from medvid_core.specs import DatasetSpec, LossSpec, MetricSpec, OutputSpec, resolve


def list_datasets() -> list[str]:
    """Return the names of all data sets that can be read."""
    registry = plugins.registry()
    return sorted(registry.name_of("dataset", spec) for spec in registry.specs(DatasetSpec))


def list_losses() -> list[str]:
    """Return the names of all losses."""
    registry = plugins.registry()
    return sorted(registry.name_of("loss", spec) for spec in registry.specs(LossSpec))


def list_metrics() -> list[str]:
    """Return the names of all metrics."""
    registry = plugins.registry()
    return sorted(registry.name_of("metric", spec) for spec in registry.specs(MetricSpec))


def open_dataset(name_or_path: str | Path, **config: Any) -> Index:
    """Index a data set by name (generated data) or by path (its layout is recognised).

    Raises:
        ConfigError: no data set can read the path, or a setting is unknown. DataError: nothing usable is in it.
    """
    registry = plugins.registry()
    path = Path(name_or_path)
    root = path if path.exists() else None
    spec = detect_dataset(registry, path) if root else registry.find("dataset", str(name_or_path)).spec
    assert isinstance(spec, DatasetSpec)
    index: Index = resolve(spec.index)(root, build_section(spec.config, "dataset", config))
    return index


def create_loss(name: str, outputs: Sequence[OutputSpec], **config: Any) -> Loss:
    """Build a loss by name. Raises PluginError; or ConfigError for a bad setting, or a task it does not do."""
    spec = plugins.registry().find("loss", name).spec
    assert isinstance(spec, LossSpec)
    check_tasks(spec, outputs)
    loss: Loss = resolve(spec.build)(build_section(spec.config, "loss", config), tuple(outputs))
    return loss


def create_metric(name: str, outputs: Sequence[OutputSpec]) -> Metric:
    """Build a metric by name. Raises PluginError; or ConfigError for a task it does not do."""
    spec = plugins.registry().find("metric", name).spec
    assert isinstance(spec, MetricSpec)
    check_tasks(spec, outputs)
    metric: Metric = resolve(spec.build)(tuple(outputs))
    return metric
