"""Whatever is wrong with a plugin costs that plugin alone, and is said: distribution, stage, cause."""

import pickle
import re
import warnings

import pytest

from medvid_core import plugins
from medvid_core.errors import MedvidError, PluginError
from medvid_core.plugins import Observers, Problem, load_registry, normalise, require_healthy
from medvid_core.specs import ModelSpec, resolve

FAULTS = {
    "syntax-error": ("def (", "import", "SyntaxError: invalid syntax (syntax_error.py, line 1)"),
    "import-error": ("raise RuntimeError('no licence file')", "import", "RuntimeError: no licence file"),
    "missing-dependency": (
        "import no_such_library",
        "import",
        "ModuleNotFoundError: No module named 'no_such_library'",
    ),
    "exit-at-import": ("import sys; sys.exit('goodbye')", "import", "SystemExit: goodbye"),
    "newer-minor": (
        "MEDVID_PLUGIN_API = (1, 99)",
        "api",
        "PluginError: it needs plugin API (1, 99), this core speaks (1, 0). Upgrade medvid-core.",
    ),
    "newer-major": (
        "MEDVID_PLUGIN_API = (2, 0)",
        "api",
        "PluginError: it needs plugin API (2, 0), this core speaks (1, 0). Upgrade medvid-core.",
    ),
    "older-major": (
        "MEDVID_PLUGIN_API = (0, 9)",
        "api",
        "PluginError: it was written for plugin API (0, 9), this core speaks (1, 0). Upgrade the plugin.",
    ),
    "without-api": (
        "x = 1",
        "api",
        "PluginError: MEDVID_PLUGIN_API is None; it must be a pair of integers such as (1, 0).",
    ),
    "text-api": (
        "MEDVID_PLUGIN_API = '1.0'",
        "api",
        "PluginError: MEDVID_PLUGIN_API is '1.0'; it must be a pair of integers such as (1, 0).",
    ),
    "misspelt-hook": (
        "{head}@hookimpl\ndef medvid_modells():\n    return [model('a')]",
        "hooks",
        "PluginError: there is no hook 'medvid_modells'. Did you mean 'medvid_models'?",
    ),
    "misspelt-prefix": (
        "{head}@hookimpl\ndef medvd_models():\n    return [model('a')]",
        "hooks",
        "PluginError: there is no hook 'medvd_models'. Did you mean 'medvid_models'?",
    ),
    "unknown-argument": (
        "{head}@hookimpl\ndef medvid_run_started(run, colour):\n    pass",
        "register",
        "PluginValidationError: Plugin 'unknown-argument:plugin' for hook 'medvid_run_started'",
    ),
    "raising-hook": (
        "{head}@hookimpl\ndef medvid_models():\n    raise KeyError('weights')",
        "medvid_models",
        "KeyError: 'weights'",
    ),
    "exiting-hook": (
        "{head}@hookimpl\ndef medvid_models():\n    raise SystemExit(3)",
        "medvid_models",
        "SystemExit: 3",
    ),
    "half-way-hook": (
        "{head}@hookimpl\ndef medvid_models():\n    yield model('a')\n    raise ValueError('no more')",
        "medvid_models",
        "ValueError: no more",
    ),
    "wrong-type": (
        "{head}@hookimpl\ndef medvid_models():\n    return [{{'name': 'a'}}]",
        "medvid_models",
        "TypeError: returned a dict, expected ModelSpec",
    ),
    "wrong-spec": (
        "{head}@hookimpl\ndef medvid_losses():\n    return [model('a')]",
        "medvid_losses",
        "TypeError: returned a ModelSpec, expected LossSpec",
    ),
    "none-hook": (
        "{head}@hookimpl\ndef medvid_models():\n    pass",
        "medvid_models",
        "TypeError: returned None, expected a list of ModelSpec",
    ),
    "bare-spec": (
        "{head}@hookimpl\ndef medvid_models():\n    return model('a')",
        "medvid_models",
        "TypeError: returned a ModelSpec, expected a list of ModelSpec",
    ),
    "wrong-argument": (
        "{head}@hookimpl\ndef medvid_models():\n    return [ModelSpec(phase_of_moon='a')]",
        "medvid_models",
        "TypeError: ModelSpec.__init__() got an unexpected keyword argument 'phase_of_moon'",
    ),
    "same-name-twice": (
        "{head}@hookimpl\ndef medvid_models():\n    return [model('a-b'), model('A_b')]",
        "medvid_models",
        "PluginError: offers the model 'A_b' twice",
    ),
    "text-card": (
        "{head}@hookimpl\ndef medvid_metrics():\n    return [MetricSpec(name='a', tasks=(), build='m:b', card='text')]",
        "medvid_metrics",
        "TypeError: card='text' of 'a'; it must be a Card",
    ),
    "number-name": (
        "{head}@hookimpl\ndef medvid_models():\n    return [model(3)]",
        "medvid_models",
        "TypeError: name=3 of a ModelSpec; it must be text",
    ),
    "text-tasks": (
        "{head}@hookimpl\ndef medvid_metrics():\n    return [MetricSpec(name='a', tasks='segmentation', build='m:b')]",
        "medvid_metrics",
        "TypeError: tasks='segmentation' of 'a'; it must be a tuple of names",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_reported_and_the_rest_stays_usable(site, good, head, name):
    text, stage, cause = FAULTS[name]
    site.add(name, text.format(head=head))
    site.add("a-good-one", good("first"))
    site.add("z-good-one", good("last"))
    registry = site.load()
    assert registry.problems == [Problem(name, stage, cause)]
    assert str(registry.problems[0]) == f"Plugin {name} failed at stage '{stage}': {cause}"
    assert [spec.name for spec in registry.specs(ModelSpec)] == ["first", "last"]
    assert registry.find("model", "first").full_name == "a-good-one/first"


def test_all_faults_at_once(site, good, head):
    for name, (text, _, _) in FAULTS.items():
        site.add(name, text.format(head=head))
    site.add("good-one", good("fine"))
    registry = site.load()
    assert {(p.distribution, p.stage, p.cause) for p in registry.problems} == {(n, *f[1:]) for n, f in FAULTS.items()}
    assert [spec.name for spec in registry.specs(ModelSpec)] == ["fine"]


def test_one_bad_hook_leaves_the_others_of_its_plugin(site, head):
    models = "@hookimpl\ndef medvid_models():\n    return [model('kept')]\n"
    losses = "@hookimpl\ndef medvid_losses():\n    return None\n"
    site.add("half-good", head + models + losses)
    registry = site.load()
    assert [p.stage for p in registry.problems] == ["medvid_losses"]
    assert registry.find("model", "kept").distribution == "half-good"


def test_faulty_plugin_observes_nothing(site, head):
    site.add("watcher", head + "@hookimpl\ndef medvid_run_started(run):\n    raise AssertionError\nsys.exit()")
    registry = site.load()
    Observers(registry).notify("medvid_run_started", run=None)


def test_a_plugin_that_fails_to_register_observes_nothing(site, head):
    """Its sound hooks go with the bad one, whichever comes first."""
    site.add(
        "watcher",
        head + "@hookimpl\ndef medvid_evaluated(run):\n    pass\n"
        "@hookimpl\ndef medvid_run_started(run, colour):\n    pass\n"
        "@hookimpl\ndef medvid_step_ended(run):\n    pass\n",
    )
    registry = site.load()
    assert [problem.stage for problem in registry.problems] == ["register"]
    assert registry.manager.get_plugins() == set()
    for hook in ("medvid_evaluated", "medvid_run_started", "medvid_step_ended"):
        assert getattr(registry.manager.hook, hook).get_hookimpls() == []


@pytest.mark.parametrize("error", ["RuntimeError", "SystemExit", "ImportError"])
def test_a_part_that_cannot_be_imported_is_a_plugin_error(site, error):
    """Whatever a heavy module raises as it is imported: the text names the reference and the cause."""
    site.add("heavy", f"raise {error}('no licence')")
    with pytest.raises(PluginError, match=f"^Cannot import 'heavy:build': {error}: no licence\\.$"):
        resolve("heavy:build")


def test_the_same_name_in_two_plugins(site, good):
    site.add("one", good("vessel-net"))
    site.add("two", good("vessel_net"))
    registry = site.load()
    message = "The model 'vessel-net' is offered by several plugins. Say which: one/vessel-net or two/vessel_net."
    with pytest.raises(PluginError, match=f"^{re.escape(message)}$"):
        registry.find("model", "vessel-net")
    assert registry.find("model", "one/vessel-net").distribution == "one"
    assert registry.find("model", "Two/Vessel_Net").distribution == "two"
    assert registry.problems == []


def test_names_compare_without_case_and_with_either_dash(site, good):
    site.add("good-one", good("vessel-net"))
    registry = site.load()
    for name in ("vessel-net", "vessel_net", "Vessel_Net", "good_one/vessel-net"):
        assert registry.find("model", name).spec.name == "vessel-net"
    assert normalise("A_b-C") == "a-b-c"


def test_unknown_name_gets_the_closest_and_the_problems(site, good, head):
    site.add("good-one", good("two-stream"))
    site.add("broken-one", "import no_such_library")
    message = (
        "No model is called 'two-streem'. Did you mean 'two-stream'? Known: two-stream.\n"
        "Plugin broken-one failed at stage 'import': ModuleNotFoundError: No module named 'no_such_library'"
    )
    with pytest.raises(PluginError, match=f"^{re.escape(message)}$"):
        site.load().find("model", "two-streem")


def test_unknown_name_with_nothing_installed():
    with pytest.raises(PluginError, match=r"^No loss is called 'x'\. Known: none\.$"):
        load_registry([]).find("loss", "x")


def test_strict_plugins(site, good):
    site.add("good-one", good("fine"))
    require_healthy(site.load())
    site.add("broken-one", "import no_such_library")
    message = "Plugin broken-one failed at stage 'import': ModuleNotFoundError: No module named 'no_such_library'"
    with pytest.raises(PluginError, match=f"^{re.escape(message)}$"):
        require_healthy(site.load())


def test_discovery_is_repeatable(site, good):
    site.add("one", good("a"))
    site.add("two", "import no_such_library")
    first, second = site.load(), site.load()
    assert first.provided == second.provided
    assert first.problems == second.problems


def test_a_plugin_may_ask_for_the_plugins_as_it_is_imported(site, good, monkeypatch):
    site.add("curious", "from medvid_core import plugins\nplugins.registry()\n" + good("own"))
    site.add("good-one", good("other"))
    plugins.registry.cache_clear()
    try:
        registry = plugins.registry()
        assert {"curious/own", "good-one/other"} <= {entry.full_name for entry in registry.provided["model"]}
        assert registry.problems == []
        assert plugins.registry() is registry
    finally:
        plugins.registry.cache_clear()


def test_order_does_not_depend_on_where_plugins_lie(site, good):
    for name in ("b", "c", "a"):
        site.add(name, good(f"model-{name}"))
    assert [entry.full_name for entry in site.load().provided["model"]] == ["a/model-a", "b/model-b", "c/model-c"]


def test_specs_survive_pickling():
    for entries in plugins.registry().provided.values():
        assert pickle.loads(pickle.dumps(entries)) == entries


OBSERVER = """
calls = []
@hookimpl
def medvid_step_ended(step):
    calls.append(step)
@hookimpl
def medvid_run_started():
    calls.append("started")
"""

FAILING = """
calls = []
@hookimpl
def medvid_step_ended(step):
    calls.append(step)
    raise {error}
@hookimpl
def medvid_run_started(run):
    calls.append(run)
"""


def observe(site, **options):
    registry = site.load()
    assert registry.problems == []
    return Observers(registry, **options)


def test_observers_get_only_what_they_declare(site, head):
    site.add("watcher", head + OBSERVER)
    observers = observe(site)
    observers.notify("medvid_run_started", run="run")
    observers.notify("medvid_step_ended", run="run", step=7, values={"loss": 1.0})
    import watcher

    assert watcher.calls == ["started", 7]


@pytest.mark.parametrize("error", ["ValueError('disc full')", "SystemExit('disc full')"])
def test_observer_that_raises_is_dropped_after_one_report(site, head, error):
    site.add("failing", head + FAILING.format(error=error))
    site.add("watcher", head + OBSERVER)
    observers = observe(site)
    kind = error.partition("(")[0]
    message = f"Plugin failing:plugin: the observer medvid_step_ended raised {kind}: disc full; it is not called again."
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        observers.notify("medvid_step_ended", run="run", step=1, values={})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observers.notify("medvid_step_ended", run="run", step=2, values={})
        observers.notify("medvid_run_started", run="run")
    import failing
    import watcher

    assert failing.calls == [1, "run"]
    assert watcher.calls == [1, 2, "started"]


def test_observers_are_silent_on_other_processes(site, head):
    site.add("watcher", head + OBSERVER)
    observe(site, enabled=False).notify("medvid_step_ended", run="run", step=1, values={})
    import watcher

    assert watcher.calls == []


def test_problems_are_medvid_errors():
    assert issubclass(PluginError, MedvidError)
