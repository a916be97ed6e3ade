"""The same numbers as the original, forward and backward, for the same weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("vivim_golden", Path(__file__).with_name("golden.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
golden = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = golden  # dataclasses look their module up
_SPEC.loader.exec_module(golden)

pytestmark = pytest.mark.skipif(
    not golden.FOLDER.is_dir(),
    reason="the fixtures of the original (shared/golden/vivim beside the repository) are absent",
)


@pytest.mark.parametrize("fixture", list(golden.FIXTURES))
def test_fixture(fixture):
    rows = list(golden.FIXTURES[fixture]())
    assert rows
    assert [row for row in rows if not row.holds] == []
