"""Parity with an original: what is within tolerance, and how that is told."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from medvid_core.errors import CheckpointError, DataError
from medvid_core.testing import parity
from medvid_core.testing.parity import Row, compare, relative

NAN, INF = math.nan, math.inf


def test_largest_error_and_share_may_lie_in_different_places():
    row = compare("y", torch.tensor([1.5, 102.0]), [1.0, 100.0], atol=0.5, rtol=0.05)
    assert (row.what, row.error) == ("y", 2.0)
    assert row.share == pytest.approx(0.5 / 0.55)
    assert row.holds


def test_each_value_has_its_own_tolerance():
    assert not compare("y", [1.0, 100.0], [0.0, 100.0], atol=0.0, rtol=0.05).holds


@pytest.mark.parametrize(("tolerance", "holds"), [(0.5, True), (0.499, False)])
def test_the_tolerance_is_the_last_that_holds(tolerance, holds):
    assert compare("y", [1.5], [1.0], tolerance).holds is holds
    assert relative("y", [1.5], [1.0], tolerance).holds is holds


def test_numbers_are_compared_in_double_precision():
    assert compare("y", 0.1 + 1e-12, 0.1, 0.0) == Row("y", pytest.approx(1e-12, rel=1e-3), INF)


@pytest.mark.parametrize("how", [compare, relative])
def test_a_tolerance_of_0_means_exactly_equal(how):
    assert how("y", [0.0, 2.0], [0.0, 2.0], 0.0) == Row("y", 0.0, 0.0)
    row = how("y", [0.0, 2.0], [0.0, 2.0 + 1e-15], 0.0)
    assert row.share == INF
    assert not row.holds


@pytest.mark.parametrize("how", [compare, relative])
@pytest.mark.parametrize(("got", "wanted"), [(NAN, 1.0), (1.0, NAN), (NAN, NAN), (INF, 1.0), (1.0, INF)])
def test_what_is_not_finite_never_holds(how, got, wanted):
    row = how("y", [0.0, got], [0.0, wanted], 1e9)
    assert (row.error, row.share) == (INF, INF)


def test_infinity_is_within_no_relative_tolerance():
    assert not compare("y", [1.0], [INF], atol=1.0, rtol=1.0).holds


def test_a_gradient_is_compared_with_its_norm():
    row = relative("grad", torch.tensor([[3.0, 4.5]]), torch.tensor([[3.0, 4.0]]), 0.2)
    assert (row.error, row.share) == (pytest.approx(0.1), pytest.approx(0.5))


def test_a_gradient_of_zero_has_to_be_zero():
    assert relative("grad", [0.0, 0.0], [0.0, 0.0], 0.1) == Row("grad", 0.0, 0.0)
    assert relative("grad", [0.0, 1e-30], [0.0, 0.0], 0.1) == Row("grad", INF, INF)


@pytest.mark.parametrize("how", [compare, relative])
def test_nothing_but_a_shape(how):
    assert how("y", torch.zeros(2, 0), torch.zeros(2, 0), 0.0) == Row("y", 0.0, 0.0)


@pytest.mark.parametrize("how", [compare, relative])
def test_values_that_would_broadcast_are_refused(how):
    with pytest.raises(DataError, match=r"y has the shape \[1, 3\], and the original's \[3\]\."):
        how("y", torch.ones(1, 3), torch.ones(3), 1.0)


def test_values_that_carry_gradients_and_flags():
    assert compare("y", torch.ones(2, requires_grad=True), [True, True], 0.0).holds


def test_a_fixture_without_rows_is_an_error():
    fixtures = {"empty": lambda: iter(())}
    message = "The fixture 'empty' yields no row, so that nothing is compared. Give it one, or remove it."
    with pytest.raises(DataError, match=message):
        parity.rows_of(fixtures, "empty")
    with pytest.raises(DataError, match=message):
        parity.print_table("A", "b", fixtures)


def test_the_table_shows_the_worst_of_each_fixture(capsys):
    fixtures = {
        "encoder": lambda: [Row("wide", 0.5, 0.1), Row("close", 0.002, 0.95)],
        "decoder": lambda: iter([Row("off", 0.1, 1.5), Row("far off", 0.2, INF), Row("good", 0.0, 0.0)]),
    }
    parity.print_table("Mine against theirs", "Fixtures were computed.", fixtures, "First note.", "Second note.")
    head, *table, first, second = capsys.readouterr().out.strip().split("\n\n")
    assert head == "# Mine against theirs"
    assert table[0] == "Fixtures were computed."
    assert table[1].startswith(f"torch {torch.__version__}, ")
    assert table[2].splitlines() == [
        "| fixture | values | largest error | largest share of its tolerance | where | all within |",
        "| --- | --- | --- | --- | --- | --- |",
        "| encoder | 2 | 5.0e-01 | 0.950 | close | yes |",
        "| decoder | 3 | 2.0e-01 | inf | far off | **NO**, 2 are not |",
    ]
    assert (first, second) == ("First note.", "Second note.")


def test_fixtures_are_read(tmp_path):
    save_file({"w.a": torch.ones(1), "w.b.w.": torch.zeros(1), "out": torch.ones(2)}, tmp_path / "net.safetensors")
    (tmp_path / "net.json").write_text(json.dumps({"rate": 0.1}), "utf-8")
    tensors = parity.read_tensors(tmp_path, "net")
    assert parity.part(tensors, "w.") == {"a": torch.ones(1), "b.w.": torch.zeros(1)}
    assert parity.read_values(tmp_path, "net") == {"rate": 0.1}


def test_absent_and_damaged_fixtures_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"net\.safetensors does not exist"):
        parity.read_tensors(tmp_path, "net")
    with pytest.raises(DataError, match=r"The fixture .*net\.json cannot be read: .*\. Fetch or make it again\."):
        parity.read_values(tmp_path, "net")
    (tmp_path / "net.json").write_text("{", "utf-8")
    with pytest.raises(DataError, match=r"net\.json cannot be read: Expecting"):
        parity.read_values(tmp_path, "net")


MODULE = """
from __future__ import annotations
from dataclasses import KW_ONLY, dataclass

@dataclass
class Settings:
    _: KW_ONLY
    size: int = 3
"""


def test_modules_of_one_name_are_loaded_from_where_they_lie(tmp_path):
    for folder, size in (("a", 3), ("b", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "golden.py").write_text(MODULE.replace("3", str(size)), "utf-8")
    a, b = (parity.load_module(tmp_path / folder / "golden.py") for folder in "ab")
    assert (a.Settings().size, b.Settings().size) == (3, 5)


@pytest.mark.parametrize("name", ["absent.py", "text.txt"])
def test_what_is_no_module_is_named(tmp_path, name):
    (tmp_path / "text.txt").write_text("x = 1", "utf-8")
    with pytest.raises(DataError, match=rf"{name} is no Python file that could be loaded\."):
        parity.load_module(tmp_path / name)
