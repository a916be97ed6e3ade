"""The documentation as the tests see it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


class Docs:
    """The folder ``docs`` and what is in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "docs"

    def pages(self) -> Iterator[str]:
        """Yield the path of every page, relative to the folder."""
        for path in sorted(self.folder.rglob("*.md")):
            yield path.relative_to(self.folder).as_posix()

    def source(self, page: str) -> str:
        """Return a page as it is written."""
        return (self.folder / page).read_text(encoding="utf-8")

    def rendered(self, page: str) -> str:
        """Return a page with its tables filled in."""
        return self.hooks.on_page_markdown(self.source(page))

    def files_on(self, page: str) -> dict[str, str]:
        """Return path and text of every code block that has a title."""
        return dict(_FENCE.findall(self.source(page)))

    @property
    def hooks(self) -> ModuleType:
        """``docs/hooks.py``, which fills the tables."""
        spec = importlib.util.spec_from_file_location("medvid_docs_hooks", self.folder / "hooks.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@pytest.fixture(scope="session")
def docs() -> Docs:
    return Docs(ROOT)
