"""medvid: publish, train, compare and use medical video models.

Everything a user imports comes from here; it is loaded when first used, so that ``import medvid_core`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "MedvidError": "medvid_core.errors",
    "ConfigError": "medvid_core.errors",
    "DataError": "medvid_core.errors",
    "PluginError": "medvid_core.errors",
    "CheckpointError": "medvid_core.errors",
    "ModelSpec": "medvid_core.specs",
    "DatasetSpec": "medvid_core.specs",
    "LossSpec": "medvid_core.specs",
    "MetricSpec": "medvid_core.specs",
    "PreprocessorSpec": "medvid_core.specs",
    "OutputSpec": "medvid_core.specs",
    "ClipSpec": "medvid_core.specs",
    "Card": "medvid_core.specs",
    "hookimpl": "medvid_core.hookspecs",
    "Case": "medvid_core.data.clip",
    "Index": "medvid_core.data.clip",
    "Source": "medvid_core.data.clip",
    "Loss": "medvid_core.losses.base",
    "Metric": "medvid_core.metrics.base",
    "CaseMetric": "medvid_core.metrics.base",
    "ScoredCase": "medvid_core.metrics.base",
    "ScoredFrames": "medvid_core.metrics.base",
    "list_models": "medvid_core.models",
    "create_model": "medvid_core.models",
    "load_model": "medvid_core.models",
    "save_model": "medvid_core.models",
    "import_weights": "medvid_core.models",
    "config_from_upstream": "medvid_core.models",
    "list_datasets": "medvid_core.components",
    "open_dataset": "medvid_core.components",
    "list_losses": "medvid_core.components",
    "create_loss": "medvid_core.components",
    "list_metrics": "medvid_core.components",
    "create_metric": "medvid_core.components",
    "predict": "medvid_core.engine.predict",
}

__all__ = [*_PUBLIC]

if TYPE_CHECKING:
    from medvid_core.components import (
        create_loss,
        create_metric,
        list_datasets,
        list_losses,
        list_metrics,
        open_dataset,
    )
    from medvid_core.data.clip import Case, Index, Source
    from medvid_core.engine.predict import predict
    from medvid_core.errors import CheckpointError, ConfigError, DataError, MedvidError, PluginError
    from medvid_core.hookspecs import hookimpl
    from medvid_core.losses.base import Loss
    from medvid_core.metrics.base import CaseMetric, Metric, ScoredCase, ScoredFrames
    from medvid_core.models import (
        config_from_upstream,
        create_model,
        import_weights,
        list_models,
        load_model,
        save_model,
    )
    from medvid_core.specs import (
        Card,
        ClipSpec,
        DatasetSpec,
        LossSpec,
        MetricSpec,
        ModelSpec,
        OutputSpec,
        PreprocessorSpec,
    )


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'medvid_core' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
