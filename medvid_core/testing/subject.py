"""The distribution under test: what it offers, and which checks that calls for. Imports no torch."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from medvid_core import plugins
from medvid_core.errors import PluginError, did_you_mean
from medvid_core.plugins import GROUP, KINDS, Problem, Provided, Registry, normalise
from medvid_core.specs import DatasetSpec, LossSpec, MetricSpec, ModelSpec, OutputSpec, PreprocessorSpec, Spec
from medvid_core.testing.pytest_plugin import SUBJECT

HEAVY = ("torch", "torchvision", "monai", "timm", "transformers", "av", "cv2")
"""Modules that take seconds to import, so that listing plugins must not."""

CHECKS = Path(__file__).with_name("conformance")

_OUTPUTS = {
    "segmentation": (("foreground",), ("background", "chamber", "wall")),
    "classification": (("normal", "mild", "severe"),),
    "multilabel": (("stenosis", "regurgitation", "effusion"),),
    "frame_classification": (("diastole", "systole", "neither"),),
    "regression": (("ejection_fraction",),),
    "ordinal": (("none", "mild", "moderate", "severe"),),
    "anomaly": (("anomaly",),),
}


def outputs_of(task: str) -> list[OutputSpec]:
    """Return the outputs a component of this task is tried with: one and three classes for segmentation."""
    return [OutputSpec(name="answer", task=task, classes=classes) for classes in _OUTPUTS.get(task, ())]


@dataclass(frozen=True)
class Subject:
    """An installed plugin distribution, its offers and its problems."""

    registry: Registry
    distribution: str

    @property
    def provided(self) -> list[tuple[str, Provided]]:
        """Kind and entry of everything it offers."""
        return [(kind, entry) for kind in KINDS for entry in self.of_kind(kind)]

    def of_kind(self, kind: str) -> list[Provided]:
        """Return its models, data sets, …"""
        return [entry for entry in self.registry.provided[kind] if entry.distribution == self.distribution]

    @property
    def problems(self) -> list[Problem]:
        """What went wrong as it was loaded."""
        return [problem for problem in self.registry.problems if problem.distribution == self.distribution]

    @property
    def modules(self) -> list[str]:
        """Names of its plugin modules."""
        entry_points = importlib.metadata.distribution(self.distribution).entry_points.select(group=GROUP)
        return [entry_point.module for entry_point in entry_points]

    def checks(self) -> list[Path]:
        """Return the files of checks for what it offers."""
        offered = [kind for kind in KINDS if self.of_kind(kind)]
        return [CHECKS / "plugin.py", *(CHECKS / f"{kind}.py" for kind in offered)]

    def describe(self) -> str:
        """Return one line for the head of the test report."""
        offers = ", ".join(f"{kind} {entry.spec.name}" for kind, entry in self.provided) or "nothing"
        return f"medvid plugin: {self.distribution} {self.registry.distributions[self.distribution]} ({offers})"


def find(distribution: str) -> Subject:
    """Return the installed plugin distribution of this name.

    Raises:
        PluginError: there is none, or it failed to load; the text lists those that there are, and all problems.
    """
    registry = plugins.registry()
    wanted = normalise(distribution)
    for name in registry.distributions:
        if normalise(name) == wanted:
            return Subject(registry, name)
    known = sorted(registry.distributions)
    failed = any(normalise(problem.distribution) == wanted for problem in registry.problems)
    what = "did not load" if failed else "is not installed"
    hint = "" if failed else did_you_mean(distribution, known)
    lines = [f"--medvid-plugin: the plugin {distribution!r} {what}.{hint} Loaded: {', '.join(known)}."]
    raise PluginError("\n".join([*lines, *(str(problem) for problem in registry.problems)]))


def subject_of(metafunc: pytest.Metafunc) -> Subject:
    """Return what is under test."""
    if SUBJECT not in metafunc.config.stash:
        raise pytest.UsageError("These checks need --medvid-plugin DISTRIBUTION.")
    return metafunc.config.stash[SUBJECT]


def references(spec: Spec) -> Iterator[tuple[str, str]]:
    """Yield field and ``module:attribute`` of every reference a spec holds."""
    fields = ["config", "build", "index", "can_read", "hint", "unlabelled", "run", "stages", "upstream_config"]
    for name in fields:
        value = getattr(spec, name, "")
        if value:
            yield name, value
    if isinstance(spec, ModelSpec):
        for source, reference in spec.importers.items():
            yield f"importers[{source!r}]", reference


def required_references(spec: Spec) -> tuple[str, ...]:
    """Return the fields of a spec that must name something."""
    work = "stages" if isinstance(spec, PreprocessorSpec) and spec.stages else "run"
    return {
        ModelSpec: ("build", "config"),
        DatasetSpec: ("index", "config"),
        LossSpec: ("build", "config"),
        MetricSpec: ("build",),
        PreprocessorSpec: (work, "config"),
    }[type(spec)]


@functools.cache
def heavy_after_import(modules: tuple[str, ...]) -> list[str]:
    """Import modules in a fresh interpreter and return which heavy ones came along.

    Raises:
        PluginError: a module cannot be imported; the text holds the traceback.
    """
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1].split(','): importlib.import_module(name)\n"
        "print('\\n'.join(name for name in sys.argv[2].split(',') if name in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code, ",".join(modules), ",".join(HEAVY)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise PluginError(f"Importing {', '.join(modules)} failed:\n{done.stderr}")
    return done.stdout.split()
