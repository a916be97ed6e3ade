"""Fill the reference pages from the code while the site is built, so that they cannot rot.

A line ``<!-- medvid: KIND ARGUMENTS -->`` in a page is replaced by what ``RENDERERS[KIND]`` makes of the arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

from griffe import Docstring, DocstringSectionAttributes

from medvid_core import plugins
from medvid_core.cli.main import build_parser
from medvid_core.config import SECTIONS
from medvid_core.specs import ModelSpec, Spec, resolve

MARKER = re.compile(r"^<!-- medvid: (\S+)(.*?) -->$", re.MULTILINE)
_ADDRESS = re.compile(r"https://\S+")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every marker of a page (called by MkDocs)."""
    return MARKER.sub(lambda match: RENDERERS[match[1]](*match[2].split()), markdown)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), ["---" for _ in head], *map(list, rows)]
    return "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)


def _escape(cell: str) -> str:
    """Escape what would end a cell; within code it does not."""
    parts = cell.split("`")
    return "`".join(part if number % 2 else part.replace("|", r"\|") for number, part in enumerate(parts))


def code(value: object) -> str:
    """Return a value as it is typed in a configuration."""
    if isinstance(value, bool) or value is None:
        return f"`{'null' if value is None else str(value).lower()}`"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if value != "" else "empty"


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each sub-command."""
    found = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def options(command: str) -> str:
    """Return the options of a sub-command."""
    rows = []
    for action in commands()[command]._actions:
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.option_strings and action.nargs != 0:
            name += f" {action.metavar or '{' + ','.join(action.choices or ()) + '}'}"
        rows.append((f"`{name}`", action.help or ""))
    return table(("argument", "meaning"), rows)


def meanings(config_class: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of each attribute."""
    found: dict[str, str] = {}
    for cls in reversed(config_class.__mro__[:-1]):
        for section in Docstring(cls.__doc__ or "").parse("google", warnings=False):
            if isinstance(section, DocstringSectionAttributes):
                found |= {item.name: " ".join(item.description.split()) for item in section.value}
    return found


def key_rows(prefix: str, config_class: type) -> list[tuple[str, str, str, str]]:
    """Return key, type, default and meaning of every field of a configuration class."""
    about = meanings(config_class)
    rows = []
    for item in dataclasses.fields(config_class):
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        kind = item.type.__name__ if type(item.type) is type else str(item.type)  # tuple[int, …] keeps its parts
        kind = kind.replace(" | ", " or ").replace("None", "null").replace(", ...", ", …")
        rows.append((f"`{prefix}.{item.name}`", kind, code(default), about.get(item.name, "")))
    return rows


def keys(section: str) -> str:
    """Return every key of one of core's sections."""
    return table(("key", "type", "default", "meaning"), key_rows(section, SECTIONS[section]))


def find(kind: str, name: str) -> Spec:
    """Return an installed spec."""
    return plugins.registry().find(kind, name).spec


def settings(kind: str, name: str) -> str:
    """Return the settings of an installed component."""
    spec = find(kind, name)
    config = getattr(spec, "config", "")
    section = "preprocess" if kind == "preprocessor" else kind
    rows = key_rows(section, resolve(config)) if config else []
    return table(("key", "type", "default", "meaning"), rows) if rows else "No settings."


def card(kind: str, name: str) -> str:
    """Return where a component comes from, and on what terms."""
    spec = find(kind, name)
    rows = [(item.name.replace("_", " "), getattr(spec.card, item.name)) for item in dataclasses.fields(spec.card)]
    return table(("", name), [(f"**{label}**", _ADDRESS.sub(r"<\g<0>>", text)) for label, text in rows if text])


def presets(name: str) -> str:
    """Return what each preset of a model sets, beside the recipe."""
    spec = find("model", name)
    assert isinstance(spec, ModelSpec)
    columns = {"recipe": spec.recipe, **spec.presets}
    rows = [
        (f"`{key}`", *(code(values[key]) if key in values else "" for values in columns.values()))
        for key in dict.fromkeys(key for values in columns.values() for key in values)
    ]
    return table(("key", *columns), rows)


def listing(kind: str) -> str:
    """Return everything of a kind that core and the plugins of this repository offer."""
    entries = plugins.registry().provided[kind]
    return table(
        ("name", "from", "what it is"), [(f"`{e.spec.name}`", e.distribution, _summary(e.spec)) for e in entries]
    )


def scan_backends() -> str:
    """Return every backend of the scan."""
    from medvid_core.ops import BACKENDS

    rows = [
        (
            f"`{name}`",
            backend.summary,
            ", ".join(kind for kind in backend.devices if kind != "meta") or "any",
            ", ".join(str(dtype).removeprefix("torch.") for dtype in backend.dtypes) or "any",
            f"`{backend.install}`" if backend.install else "with PyTorch",
        )
        for name, backend in BACKENDS.items()
    ]
    return table(("backend", "what it is", "devices", "types", "install"), rows)


def _summary(spec: Spec) -> str:
    if spec.card.summary or not hasattr(spec, "build"):
        return spec.card.summary
    return (resolve(spec.build).__doc__ or "").partition("\n")[0]


RENDERERS: dict[str, Callable[..., str]] = {
    "options": options,
    "keys": keys,
    "settings": settings,
    "card": card,
    "presets": presets,
    "list": listing,
    "scan-backends": scan_backends,
}
