"""Parity with an original: how far a model is from what the original's code computed, on fixtures.

A script ``golden.py`` beside the tests holds the fixtures, functions that yield a row for each value compared, and
prints their table. The tests assert that all rows hold::

    FIXTURES = {"encoder": encoder_rows, "decoder": decoder_rows}

    if __name__ == "__main__":
        print_table("Mine against the original", "Fixtures were computed by …", FIXTURES)

    golden = load_module(Path(__file__).with_name("golden.py"))

    @pytest.mark.parametrize("fixture", golden.FIXTURES)
    def test_fixture(fixture):
        assert [row for row in rows_of(golden.FIXTURES, fixture) if not row.holds] == []
"""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from medvid_core.errors import DataError
from medvid_core.weights import read_state


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: name of the value.
        error: its largest error; of `relative`, the norm of the error over that of the value.
        share: the largest error as a share of what is allowed there, where 0 allows no error at all.
    """

    what: str
    error: float
    share: float

    @property
    def holds(self) -> bool:
        """Whether all errors are within their tolerance."""
        return self.share <= 1


Fixtures = Mapping[str, Callable[[], Iterable[Row]]]
"""Name of a fixture to the function that yields its rows."""


def compare(what: str, got: Any, wanted: Any, atol: float, rtol: float = 0.0) -> Row:
    """Compare value by value: each may be off by ``atol + rtol · |wanted|``.

    Args:
        what: name of the value.
        got: a tensor, or numbers that make one.
        wanted: the original's, of the same shape.
        atol: absolute tolerance; 0, with an rtol of 0, means exactly equal.
        rtol: tolerance relative to the value wanted.

    Returns:
        The row. Values that are not finite are infinitely wrong.

    Raises:
        DataError: the shapes differ.
    """
    got, wanted = _alike(what, got, wanted)
    return _row(what, (got - wanted).abs(), atol + rtol * wanted.abs())


def relative(what: str, got: Any, wanted: Any, tolerance: float) -> Row:
    """Compare as a whole, as `compare` does value by value: the error is ``‖got − wanted‖₂ / ‖wanted‖₂``.

    This is how gradients are compared. Where `wanted` is zero, so must be `got`.

    Raises:
        DataError: the shapes differ.
    """
    got, wanted = _alike(what, got, wanted)
    difference = (got - wanted).norm()
    error = difference / wanted.norm() if difference else difference
    return _row(what, error, torch.tensor(tolerance, dtype=torch.float64))


def _alike(what: str, *values: Any) -> tuple[Tensor, Tensor]:
    got, wanted = (torch.as_tensor(value, dtype=torch.float64, device="cpu").detach() for value in values)
    if got.shape != wanted.shape:
        raise DataError(f"{what} has the shape {list(got.shape)}, and the original's {list(wanted.shape)}.")
    return got, wanted


def _row(what: str, error: Tensor, allowed: Tensor) -> Row:
    share = torch.where(error == 0, error, error / allowed)
    # NaN would be lost in a maximum taken later
    largest = (x.nan_to_num(torch.inf, torch.inf).max().item() if x.numel() else 0.0 for x in (error, share))
    return Row(what, *largest)


def rows_of(fixtures: Fixtures, name: str) -> list[Row]:
    """Compute the rows of one fixture.

    Raises:
        DataError: it yields none.
    """
    rows = list(fixtures[name]())
    if not rows:
        raise DataError(f"The fixture {name!r} yields no row, so that nothing is compared. Give it one, or remove it.")
    return rows


def print_table(title: str, about: str, fixtures: Fixtures, *notes: str) -> None:
    """Print, as Markdown, the worst of each fixture.

    Args:
        title: the heading.
        about: what the fixtures are, in a sentence.
        fixtures: the lines of the table.
        notes: paragraphs below it.

    Raises:
        DataError: a fixture yields no row.
    """
    print(f"# {title}\n\n{about}\n")
    print(f"torch {torch.__version__}, {platform.machine()}, CPU, {torch.get_num_threads()} threads.\n")
    print("| fixture | values | largest error | largest share of its tolerance | where | all within |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in fixtures:
        rows = rows_of(fixtures, name)
        error, worst = max(row.error for row in rows), max(rows, key=lambda row: row.share)
        missed = sum(not row.holds for row in rows)
        verdict = f"**NO**, {missed} are not" if missed else "yes"
        print(f"| {name} | {len(rows)} | {error:.1e} | {worst.share:.3f} | {worst.what} | {verdict} |", flush=True)
    for note in notes:
        print(f"\n{note}")


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read ``NAME.safetensors``.

    Raises:
        CheckpointError: it is absent or damaged.
    """
    return read_state(folder / f"{name}.safetensors")


def read_values(folder: Path, name: str) -> Any:
    """Read ``NAME.json``.

    Raises:
        DataError: it is absent or damaged.
    """
    path = folder / f"{name}.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"The fixture {path} cannot be read: {error}. Fetch or make it again.") from error


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, under their names without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load_module(path: Path) -> ModuleType:
    """Import a file that is in no package, such as one beside a test file.

    Raises:
        DataError: there is no such Python file.
    """
    name = str(path.resolve())
    spec = importlib.util.spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise DataError(f"{path} is no Python file that could be loaded.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
