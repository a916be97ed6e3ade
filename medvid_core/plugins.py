"""Find plugins, load each in isolation, and look names up.

A plugin that fails costs itself alone: every step (import, API check, registration, each provider call) is guarded,
``SystemExit`` included, and a failure becomes a `Problem` that names the distribution, the stage and the cause.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from medvid_core import hookspecs
from medvid_core.errors import PluginError, did_you_mean
from medvid_core.specs import PLUGIN_API, Card, DatasetSpec, LossSpec, MetricSpec, ModelSpec, PreprocessorSpec, Spec

GROUP = "medvid.plugins"

KINDS: Mapping[str, tuple[str, type[Spec]]] = {
    "model": ("medvid_models", ModelSpec),
    "dataset": ("medvid_datasets", DatasetSpec),
    "loss": ("medvid_losses", LossSpec),
    "metric": ("medvid_metrics", MetricSpec),
    "preprocessor": ("medvid_preprocessors", PreprocessorSpec),
}
"""Kind of thing → the hook that provides it and the type it must return."""

S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Problem:
    """What went wrong with one plugin.

    Attributes:
        distribution: the installed distribution the plugin belongs to.
        stage: ``import``, ``api``, ``register``, ``hooks``, the name of a provider hook, ``can_read`` or ``hint``.
        cause: the error in one line.
    """

    distribution: str
    stage: str
    cause: str

    def __str__(self) -> str:
        return f"Plugin {self.distribution} failed at stage '{self.stage}': {self.cause}"


@dataclass(frozen=True)
class Provided:
    """A spec and the distribution it comes from."""

    distribution: str
    version: str
    spec: Spec

    @property
    def full_name(self) -> str:
        """``distribution/name``: unique whatever else is installed."""
        return f"{self.distribution}/{self.spec.name}"


def normalise(name: str) -> str:
    """Lower case, with ``_`` as ``-``: how names are compared."""
    return name.lower().replace("_", "-")


@dataclass
class Registry:
    """Everything the installed plugins offer, and what went wrong with the rest."""

    manager: pluggy.PluginManager
    provided: dict[str, list[Provided]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    problems: list[Problem] = field(default_factory=list)
    distributions: dict[str, str] = field(default_factory=dict)

    def find(self, kind: str, name: str) -> Provided:
        """Return the one thing of this kind that ``name`` (short or ``distribution/name``) means.

        Raises:
            PluginError: no plugin offers the name, or several do.
        """
        wanted = normalise(name)
        candidates = [p for p in self.provided[kind] if wanted in (normalise(p.spec.name), normalise(p.full_name))]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = " or ".join(sorted(p.full_name for p in candidates))
            raise PluginError(f"The {kind} {name!r} is offered by several plugins. Say which: {names}.")
        known = sorted({p.spec.name for p in self.provided[kind]})
        lines = [f"No {kind} is called {name!r}.{did_you_mean(wanted, known)} Known: {', '.join(known) or 'none'}."]
        lines += [str(problem) for problem in self.problems]
        raise PluginError("\n".join(lines))

    def names(self, kind: str) -> set[str]:
        """Return every name that `find` may take, normalised."""
        return {normalise(name) for p in self.provided[kind] for name in (p.spec.name, p.full_name)}

    def name_of(self, kind: str, spec: Spec) -> str:
        """Return the name that means this spec and no other: short if unique, else ``distribution/name``."""
        same = [p for p in self.provided[kind] if normalise(p.spec.name) == normalise(spec.name)]
        return spec.name if len(same) == 1 else next(p.full_name for p in same if p.spec is spec)

    def note_problem(self, distribution: str, stage: str, error: BaseException) -> Problem:
        """Enter what went wrong with a plugin, once, and return it."""
        problem = Problem(distribution, stage, _first_line(error))
        if problem not in self.problems:
            self.problems.append(problem)
        return problem

    def specs(self, spec_type: type[S]) -> Iterator[S]:
        """Yield every spec of one type, in the order of distributions."""
        for entries in self.provided.values():
            for entry in entries:
                if isinstance(entry.spec, spec_type):
                    yield entry.spec


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _check_api(module: ModuleType) -> None:
    api = getattr(module, "MEDVID_PLUGIN_API", None)
    if not (isinstance(api, tuple) and len(api) == 2 and all(isinstance(number, int) for number in api)):
        raise PluginError(f"MEDVID_PLUGIN_API is {api!r}; it must be a pair of integers such as {PLUGIN_API!r}.")
    if api[0] > PLUGIN_API[0] or (api[0] == PLUGIN_API[0] and api[1] > PLUGIN_API[1]):
        raise PluginError(f"it needs plugin API {api}, this core speaks {PLUGIN_API}. Upgrade medvid-core.")
    if api[0] < PLUGIN_API[0]:
        raise PluginError(f"it was written for plugin API {api}, this core speaks {PLUGIN_API}. Upgrade the plugin.")


def _check_hooks(module: ModuleType) -> None:
    known = [name for name in vars(hookspecs) if name.startswith("medvid_")]
    for name, value in vars(module).items():
        marked = inspect.isroutine(value) and hasattr(value, f"{hookspecs.PROJECT}_impl")
        if marked and name not in known:
            raise PluginError(f"there is no hook {name!r}.{did_you_mean(name, known)}")


def _listed(returned: Any, spec_type: type[Spec]) -> list[Any]:
    if not isinstance(returned, Iterable):
        what = "None" if returned is None else f"a {type(returned).__name__}"
        raise TypeError(f"returned {what}, expected a list of {spec_type.__name__}")
    return list(returned)


def _check_fields(spec: Spec) -> None:
    """Refuse fields of the wrong type that would break a listing, or a look-up, for everyone."""
    if not isinstance(spec.name, str) or not spec.name:
        raise TypeError(f"name={spec.name!r} of a {type(spec).__name__}; it must be text")
    if not isinstance(spec.card, Card):
        raise TypeError(f"card={spec.card!r} of {spec.name!r}; it must be a Card")
    tasks = getattr(spec, "tasks", ())
    if not isinstance(tasks, tuple | list) or not all(isinstance(task, str) for task in tasks):
        raise TypeError(f"tasks={tasks!r} of {spec.name!r}; it must be a tuple of names")


def _provide(registry: Registry, module: ModuleType, distribution: str, version: str) -> None:
    """Call each provider hook of one plugin and keep what it returns."""
    for kind, (hook, spec_type) in KINDS.items():
        function = getattr(module, hook, None)
        if function is None:
            continue
        try:
            specs = _listed(function(), spec_type)
            seen = {normalise(p.spec.name) for p in registry.provided[kind] if p.distribution == distribution}
            for spec in specs:
                if not isinstance(spec, spec_type):
                    raise TypeError(f"returned a {type(spec).__name__}, expected {spec_type.__name__}")
                _check_fields(spec)
                if normalise(spec.name) in seen:
                    raise PluginError(f"offers the {kind} {spec.name!r} twice")
                seen.add(normalise(spec.name))
        except (Exception, SystemExit) as error:
            registry.note_problem(distribution, hook, error)
        else:
            registry.provided[kind] += [Provided(distribution, version, spec) for spec in specs]


def _load_one(registry: Registry, entry_point: importlib.metadata.EntryPoint) -> None:
    """Import, check and register one plugin; a failure becomes a problem."""
    metadata = entry_point.dist
    distribution = metadata.name if metadata else entry_point.value
    version = metadata.version if metadata else "unknown"
    stage = "import"
    try:
        module = entry_point.load()
        stage = "api"
        _check_api(module)
        stage = "hooks"
        _check_hooks(module)
        stage = "register"
        registry.manager.register(module, name=f"{distribution}:{entry_point.name}")
    except (Exception, SystemExit) as error:
        registry.note_problem(distribution, stage, error)
        return
    registry.distributions[distribution] = version
    _provide(registry, module, distribution, version)


def load_registry(entry_points: Sequence[importlib.metadata.EntryPoint] | None = None) -> Registry:
    """Load the given entry points, or all installed ones of the group ``medvid.plugins``."""
    if entry_points is None:
        entry_points = list(importlib.metadata.entry_points(group=GROUP))
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = Registry(manager)
    for entry_point in sorted(entry_points, key=lambda ep: (ep.dist.name if ep.dist else "", ep.name)):
        _load_one(registry, entry_point)
    return registry


@functools.cache
def registry() -> Registry:
    """Return the registry of installed plugins, loaded once in each process."""
    return load_registry()


def require_healthy(loaded: Registry) -> None:
    """Raise the problems of all plugins as one error (``--strict-plugins``)."""
    if loaded.problems:
        raise PluginError("\n".join(str(problem) for problem in loaded.problems))


class Observers:
    """Calls the observer hooks of all plugins; one that raises is reported once and dropped.

    Args:
        loaded: the installed plugins.
        own: observers of this run alone, by name.
        enabled: false on all but the main process.
    """

    def __init__(self, loaded: Registry, own: Mapping[str, object] | None = None, enabled: bool = True) -> None:
        of_run = pluggy.PluginManager(hookspecs.PROJECT)
        of_run.add_hookspecs(hookspecs)
        for name, observer in (own or {}).items():
            of_run.register(observer, name)
        self._managers = (loaded.manager, of_run)
        self._enabled = enabled
        self._dropped: set[tuple[str, str]] = set()

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call every implementation of ``hook`` that has not failed before."""
        if not self._enabled:
            return
        implementations = [getattr(manager.hook, hook).get_hookimpls() for manager in self._managers]
        for implementation in itertools.chain(*implementations):
            key = (implementation.plugin_name, hook)
            if key in self._dropped:
                continue
            try:
                implementation.function(**{name: arguments[name] for name in implementation.argnames})
            except (Exception, SystemExit) as error:
                self._dropped.add(key)
                warnings.warn(
                    f"Plugin {key[0]}: the observer {hook} raised {_first_line(error)}; it is not called again.",
                    stacklevel=2,
                )
