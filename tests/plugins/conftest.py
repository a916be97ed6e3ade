"""Plugins made on the fly, installed as pip would."""

import importlib
import sys
from importlib.metadata import Distribution

import pytest

from medvid_core.plugins import GROUP, load_registry
from medvid_core.testing.installed import install

HEAD = """
from medvid_core.hookspecs import hookimpl
from medvid_core.specs import Card, LossSpec, MetricSpec, ModelSpec
MEDVID_PLUGIN_API = (1, 0)
def model(name):
    return ModelSpec(name=name, tasks=("segmentation",), build="m:build", config="m:C", presets={})
"""

GOOD = HEAD + "@hookimpl\ndef medvid_models():\n    return [model('NAME')]\n"


class Site:
    """A folder of installed plugins."""

    def __init__(self, folder):
        self.folder = folder
        self.names = []

    def add(self, distribution, text, version="1.0", modules=None):
        """Install a plugin that is one module of this text."""
        module = distribution.replace("-", "_")
        install(self.folder, distribution, {f"{module}.py": text}, modules or {"plugin": module}, version)
        self.names.append(module)
        importlib.invalidate_caches()

    def load(self):
        """Load these plugins alone."""
        found = [e for d in Distribution.discover(path=[str(self.folder)]) for e in d.entry_points.select(group=GROUP)]
        return load_registry(found)


@pytest.fixture
def site(tmp_path, monkeypatch):
    made = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(made.folder))
    yield made
    for name in made.names:
        sys.modules.pop(name, None)


@pytest.fixture
def good():
    """Source of a plugin with one model."""
    return lambda name: GOOD.replace("NAME", name)


@pytest.fixture
def head():
    """Imports and version with which a plugin starts."""
    return HEAD
