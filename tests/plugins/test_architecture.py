"""Arrows point one way, and a plugin leans on core's public names only."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "medvid_core"
PLUGINS = {
    path.parent.name: path.parent for path in sorted((ROOT / "plugins").glob("*/*/plugin.py"))
}  # import name → package folder

PUBLIC = (
    "medvid_core",
    "medvid_core.specs",
    "medvid_core.hookspecs",
    "medvid_core.errors",
    "medvid_core.ops",
    "medvid_core.losses",
    "medvid_core.metrics",
    "medvid_core.weights",
    "medvid_core.data.clip",
    "medvid_core.data.stages",
)
"""What plugins may import: the contract, and the parts to build from."""

LIGHT = ("medvid_core.specs", "medvid_core.hookspecs")
"""All that a plugin.py may import, besides the standard library."""

FORBIDDEN = {
    "specs.py": ("ops", "losses", "metrics", "networks", "data", "engine", "report", "cli", "testing"),
    "errors.py": ("specs", "ops", "losses", "metrics", "networks", "data", "engine", "report", "cli", "testing"),
    "plugins.py": ("ops", "losses", "metrics", "networks", "data", "engine", "report", "cli", "testing"),
    "config.py": ("ops", "losses", "metrics", "networks", "data", "engine", "report", "cli", "testing"),
    "ops": ("losses", "metrics", "networks", "data", "engine", "report", "cli", "testing"),
    "losses": ("metrics", "networks", "engine", "report", "cli", "testing"),
    "metrics": ("losses", "networks", "engine", "report", "cli", "testing"),
    "networks": ("metrics", "engine", "report", "cli", "testing"),
    "data": ("ops", "losses", "metrics", "networks", "engine", "report", "cli", "testing"),
    "report": ("cli", "testing"),
    "engine": ("cli", "testing"),
    "cli": ("testing",),
}
"""Part of core → parts it may not import: cli → engine → (data, losses, metrics, ops) → specs."""


def imports(path):
    """Yield (module, name) of every import in a file, those inside functions too; name is "" for whole modules."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno} imports relatively"
            yield from ((node.module, alias.name) for alias in node.names)


def files(folder):
    return sorted(path for path in folder.rglob("*.py"))


def where(path):
    return str(path.relative_to(ROOT))


def under(module, package):
    return module == package or module.startswith(f"{package}.")


def imported_parts(path):
    """Yield the parts of core (``data``, ``engine``, …) that a file imports."""
    for module, name in imports(path):
        if module == "medvid_core" and name:
            yield name
        elif under(module, "medvid_core") and "." in module:
            yield module.split(".")[1]


def test_plugins_are_found():
    assert "medvid_vivim" in PLUGINS


@pytest.mark.parametrize("path", files(CORE), ids=where)
def test_core_imports_no_plugin(path):
    modules = [module for module, _ in imports(path) if module.startswith("medvid_")]
    assert [module for module in modules if not under(module, "medvid_core")] == []


def test_core_names_no_plugin_of_this_workspace():
    for path in files(CORE):
        text = path.read_text("utf-8")
        assert [name for name in PLUGINS if name in text] == [], where(path)


@pytest.mark.parametrize("part", FORBIDDEN)
def test_arrows_in_core_point_one_way(part):
    paths = files(CORE / part) if (CORE / part).is_dir() else [CORE / part]
    wrong = [
        f"{where(path)} imports {name}" for path in paths for name in imported_parts(path) if name in FORBIDDEN[part]
    ]
    assert wrong == []


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_do_not_import_one_another(plugin):
    others = [name for name in PLUGINS if name != plugin]
    for path in files(PLUGINS[plugin].parent):
        assert [m for m, _ in imports(path) if any(under(m, other) for other in others)] == [], where(path)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_import_public_names_of_core_only(plugin):
    wrong = []
    for path in files(PLUGINS[plugin]):
        for module, name in imports(path):
            if under(module, "medvid_core") and (module not in PUBLIC or name.startswith("_")):
                wrong.append(f"{where(path)} imports {module} {name}")
    assert wrong == []


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugin_module_declares_and_does_nothing_else(plugin):
    path = PLUGINS[plugin] / "plugin.py"
    modules = {module for module, _ in imports(path)} - {"__future__"}
    assert modules <= set(LIGHT), f"{where(path)} imports {sorted(modules - set(LIGHT))}"


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugin_holds_the_files_that_all_hold(plugin):
    names = {path.stem for path in PLUGINS[plugin].iterdir()}
    assert {"__init__", "plugin", "config", "network", "importer", "py"} <= names  # py: py.typed


@pytest.mark.parametrize("plugin", PLUGINS)
def test_distribution_is_declared_like_the_others(plugin):
    project = tomllib.loads((PLUGINS[plugin].parent / "pyproject.toml").read_text("utf-8"))
    name = project["project"]["name"]
    assert name.replace("-", "_") == plugin
    assert f"{plugin}.plugin" in project["project"]["entry-points"]["medvid.plugins"].values()
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [plugin]
    assert any(requirement.startswith("medvid-core") for requirement in project["project"]["dependencies"])


def test_wheel_of_core_holds_no_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["medvid_core"]


def test_public_modules_hide_nothing_a_plugin_needs():
    """The plugin that a stranger wrote keeps to the rule too."""
    for path in files(Path(__file__).parent / "acme_video"):
        assert [m for m, _ in imports(path) if under(m, "medvid_core") and m not in PUBLIC] == [], where(path)
