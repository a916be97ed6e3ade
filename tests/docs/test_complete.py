"""Whatever a user can type or implement is in the documentation, and no link leads nowhere."""

from __future__ import annotations

import dataclasses
import posixpath
import re

import pytest
import yaml

import medvid_core
from medvid_core import hookspecs, plugins
from medvid_core.config import CHOSEN, SECTIONS, TOP_LEVEL
from medvid_core.specs import TASKS, resolve

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+?)(?: \{ #(\S+) \})?$", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def configuration(docs) -> dict[str, dict]:
    """mkdocs.yml, whose tags for Python objects are of no interest here."""
    return yaml.safe_load((docs.root / "mkdocs.yml").read_text(encoding="utf-8"))


def nav_pages(entries) -> list[str]:
    pages = []
    for entry in entries:
        for value in entry.values():
            pages += nav_pages(value) if isinstance(value, list) else [value]
    return pages


def anchors(text: str) -> set[str]:
    """The anchors that headings of a page get."""
    found = set()
    for title, given in _HEADING.findall(_FENCED.sub("", text)):
        plain = re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower()
        found.add(given or re.sub(r"[-\s]+", "-", plain))
    return found


def test_navigation_holds_every_page_once(docs):
    assert sorted(nav_pages(configuration(docs)["nav"])) == sorted(docs.pages())


def test_internal_links_resolve(docs):
    for page in docs.pages():
        for target in _LINK.findall(_FENCED.sub("", docs.source(page))):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            linked = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
            assert linked in set(docs.pages()), f"{page} links to {target}"
            assert not anchor or anchor in anchors(docs.source(linked)), f"{page} links to {target}"


def test_every_command_and_option_is_documented(docs):
    page = docs.rendered("reference/cli.md")
    for name, parser in docs.hooks.commands().items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert section, f"no section for the command {name}"
        for action in parser._actions:
            assert action.help, f"{name} {action.dest} has no help text"
            for option in action.option_strings or [action.metavar or action.dest]:
                assert option in section, f"{name} {option} is not documented"


def test_every_key_of_core_is_documented_with_its_meaning(docs):
    page = docs.rendered("reference/configuration.md")
    for section, config_class in SECTIONS.items():
        for key, kind, _default, meaning in docs.hooks.key_rows(section, config_class):
            assert key in page, f"{key} is not documented"
            assert kind
            assert meaning, f"the docstring of {config_class.__name__} does not say what {key} means"
    for key in (*TOP_LEVEL, *CHOSEN, "dataset.root"):
        assert f"| `{key}` |" in page


OURS = ("medvid-core", "medvid-vivim", "medvid-cnn-mamba", "medvid-medivista-sam", "medvid-two-stream")


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        ("model", "reference/models.md"),
        ("dataset", "reference/configuration.md"),
        ("loss", "reference/losses-and-metrics.md"),
    ],
)
def test_every_component_and_setting_is_documented(docs, kind, page):
    text = docs.rendered(page)
    for provided in plugins.registry().provided[kind]:
        if provided.distribution not in OURS:
            continue  # others that happen to be installed document themselves
        assert f"## {provided.spec.name}\n" in text
        config_class = resolve(provided.spec.config)
        for key, _kind, _default, meaning in docs.hooks.key_rows(kind, config_class):
            assert key in text, f"{provided.full_name}: {key} is not documented"
            assert meaning, f"the docstring of {config_class.__name__} does not say what {key} means"


def test_every_metric_of_core_has_its_formula(docs):
    formulas = docs.source("reference/losses-and-metrics.md")
    for provided in plugins.registry().provided["metric"]:
        if provided.distribution == "medvid-core":
            assert f"| `{provided.spec.name}` |" in formulas


def test_every_hook_is_documented(docs):
    page = docs.source("reference/hooks-and-specs.md")
    hooks = [name for name in vars(hookspecs) if name.startswith("medvid_")]
    assert len(hooks) == 10
    for name in hooks:
        assert re.search(rf"\b{name}\b", page), f"the hook {name} is not documented"


def test_every_public_name_is_documented(docs):
    reference = docs.source("reference/python-api.md") + docs.source("reference/hooks-and-specs.md")
    for name in medvid_core.__all__:
        assert re.search(rf"\b{name}\b", reference), f"medvid_core.{name} is not documented"


def test_every_task_and_sample_key_is_documented(docs):
    page = docs.source("reference/data-contract.md")
    for task in TASKS:
        assert f"`{task}`" in page
    index = medvid_core.open_dataset("echo-phantom", cases=1)
    for key in sample_keys(index.cases[0]):
        assert f"`{key}`" in page, f"the key {key} of a sample is not documented"


def sample_keys(case) -> set[str]:
    from medvid_core.config import ClipConfig
    from medvid_core.data.loader import load_sample
    from medvid_core.data.sampling import window
    from medvid_core.specs import ClipSpec

    clip = ClipConfig(frames=2, size=(32, 32))
    return load_sample(case, *window(0, case.frames, clip), clip, ClipSpec()).keys()


def test_fields_said_to_have_no_effect_exist(docs):
    from medvid_core import specs

    text = (
        docs.source("reference/hooks-and-specs.md").partition("core does not act on them yet")[2].partition("\n\n")[0]
    )
    fields = {
        item.name
        for spec in (specs.ModelSpec, specs.PreprocessorSpec, specs.MetricSpec)
        for item in dataclasses.fields(spec)
    }
    named = set(re.findall(r"`(\w+)`", text))
    assert named
    assert named <= fields


def test_pages_name_no_machine_path(docs):
    for page in docs.pages():
        assert not re.search(r"/(work|home|root|tmp|mnt)/", docs.source(page)), page


@pytest.mark.slow
def test_site_builds_without_warning_and_fetches_nothing(docs, tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(docs.root / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    fetched = re.compile(r"<(?:script|img|iframe)[^>]+src=[\"']?(?:https?:)?//|<link[^>]+rel=[\"']?stylesheet[^>]+//")
    for path in tmp_path.rglob("*.html"):
        assert not fetched.search(path.read_text(encoding="utf-8")), path
