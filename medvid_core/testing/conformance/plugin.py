"""Promises of every plugin: it is light, legal, complete and described."""

from __future__ import annotations

import dataclasses
import importlib
import re

import pytest

from medvid_core.config import compose
from medvid_core.plugins import Provided
from medvid_core.specs import PLUGIN_API, TASKS, ModelSpec, resolve
from medvid_core.testing.subject import Subject, heavy_after_import, references, required_references, subject_of

PRESETS = ("tiny", "small", "full")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try every check on all that the distribution offers."""
    subject = subject_of(metafunc)
    everything = subject.provided
    ids = [f"{kind}-{entry.spec.name}" for kind, entry in everything]
    if "subject" in metafunc.fixturenames:
        metafunc.parametrize("subject", [subject], ids=[subject.distribution])
    if "module_name" in metafunc.fixturenames:
        metafunc.parametrize("module_name", subject.modules)
    if "provided" in metafunc.fixturenames:
        metafunc.parametrize("provided", [entry for _, entry in everything], ids=ids)
    if "configured" in metafunc.fixturenames:
        with_config = {id_: e for id_, (_, e) in zip(ids, everything, strict=True) if hasattr(e.spec, "config")}
        metafunc.parametrize("configured", list(with_config.values()), ids=list(with_config))
    if "preset" in metafunc.fixturenames:
        pairs = [(entry, preset) for entry in subject.of_kind("model") for preset in PRESETS]
        metafunc.parametrize(
            ("subject_", "model", "preset"),
            [(subject, *pair) for pair in pairs],
            ids=[f"{entry.spec.name}-{preset}" for entry, preset in pairs],
        )


def test_import_is_light(module_name: str) -> None:
    """Importing the plugin module imports no torch, nor anything else that takes seconds."""
    heavy = heavy_after_import((module_name,))
    assert not heavy, f"importing {module_name} imports {', '.join(heavy)}: name heavy parts as 'module:attribute'"


def test_speaks_the_plugin_api(module_name: str) -> None:
    """The plugin module says which plugin API it was written for, and this core speaks it."""
    api = getattr(importlib.import_module(module_name), "MEDVID_PLUGIN_API", None)
    assert api is not None, f"{module_name} has no MEDVID_PLUGIN_API"
    assert api[0] == PLUGIN_API[0], f"{module_name} is written for plugin API {api}, this core speaks {PLUGIN_API}"
    assert api <= PLUGIN_API, f"{module_name} is written for plugin API {api}, this core speaks {PLUGIN_API}"


def test_loads_without_problems(subject: Subject) -> None:
    """Every hook returns what it should."""
    assert not subject.problems, "\n".join(str(problem) for problem in subject.problems)


def test_offers_something(subject: Subject) -> None:
    """The plugin offers a model, a data set, a loss, a metric or a preprocessor."""
    assert subject.provided, f"{subject.distribution} offers nothing"


def test_name_is_legal(provided: Provided) -> None:
    """Names hold lower-case letters, digits and single dashes between them."""
    name = provided.spec.name
    assert _NAME.fullmatch(name), f"{name!r} must be lower case: letters and digits, joined by '-'"


def test_tasks_are_known(provided: Provided) -> None:
    """Tasks are those that medvid knows, and at least one where the kind of thing has tasks."""
    tasks = getattr(provided.spec, "tasks", None)
    if tasks is None:
        pytest.skip("preprocessors have no tasks")
    assert tasks, f"{provided.spec.name} names no task"
    assert set(tasks) <= set(TASKS), f"{sorted(set(tasks) - set(TASKS))} are no tasks; those are {', '.join(TASKS)}"


def test_references_resolve(provided: Provided) -> None:
    """Every 'module:attribute' of the spec can be imported, and is callable."""
    found = dict(references(provided.spec))
    missing = [name for name in required_references(provided.spec) if name not in found]
    assert not missing, f"{provided.spec.name} leaves {', '.join(missing)} empty"
    for name, reference in found.items():
        assert callable(resolve(reference)), f"{name}: {reference} is not callable"


def test_config_has_defaults(configured: Provided) -> None:
    """The configuration is a described dataclass whose every field has a default."""
    config = resolve(dict(references(configured.spec))["config"])
    assert isinstance(config, type), f"{config} is not a class"
    assert dataclasses.is_dataclass(config), f"{config.__name__} is not a dataclass"
    assert config.__doc__, f"{config.__name__} has no docstring"
    assert not config.__doc__.startswith(f"{config.__name__}("), f"{config.__name__} has no docstring of its own"
    for field in dataclasses.fields(config):
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        assert not missing, f"{config.__name__}.{field.name} has no default"
    config()


def test_config_is_torch_free(configured: Provided) -> None:
    """Importing the configuration (and what judges a folder by its file names) imports no torch."""
    modules = _light_modules(configured)
    heavy = [name for name in heavy_after_import(modules) if name not in ("av", "cv2")]
    assert not heavy, f"importing {', '.join(modules)} imports {', '.join(heavy)}"


def _light_modules(entry: Provided) -> tuple[str, ...]:
    light = {name: text for name, text in references(entry.spec) if name in ("config", "can_read")}
    return tuple(sorted({reference.partition(":")[0] for reference in light.values()}))


def test_card_is_filled(provided: Provided) -> None:
    """The card says in a line what it is, and on what terms its code may be used."""
    card = provided.spec.card
    assert card.summary, f"the card of {provided.spec.name} has no summary"
    assert card.code_license, f"the card of {provided.spec.name} has no code_license"


def test_preset_composes(subject_: Subject, model: Provided, preset: str) -> None:
    """The presets tiny, small and full exist and make a valid configuration."""
    assert isinstance(model.spec, ModelSpec)
    assert preset in model.spec.presets, f"{model.spec.name} has no preset {preset!r}"
    composed = compose(subject_.registry, model.full_name, overrides=[f"preset={preset}"])
    multiple, size = model.spec.clip.multiple, composed.config.clip.size
    assert not any(side % multiple for side in size), f"clip.size={size} is not a multiple of {multiple}"
