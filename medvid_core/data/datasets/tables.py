"""Reading CSV tables: separators are found, empty lines passed over, and lines keep their number for error texts."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from medvid_core.errors import DataError, did_you_mean


def read_lines(table: Path) -> list[tuple[int, list[str]]]:
    """Return the lines that are not empty: number of the last line of the file each covers, and its cells, stripped.

    Columns are separated by comma, semicolon or tab, whichever the first line has most of.

    Raises:
        DataError: if the file is missing or no CSV table in UTF-8.
    """
    try:
        text = table.read_bytes().decode("utf-8-sig")
        first = text.lstrip().partition("\n")[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except FileNotFoundError as error:
        raise DataError(f"The table {table} does not exist.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a CSV table ({error}). Save it as CSV in UTF-8.") from error
    return [(number, cells) for number, cells in lines if any(cells)]


def fill(table: Path, header: list[str], number: int, cells: list[str]) -> dict[str, str]:
    """Return the cells of a line by column; a short line is filled with empty cells.

    Raises:
        DataError: if there are more cells than columns.
    """
    if len(cells) > len(header) and any(cells[len(header) :]):
        raise DataError(
            f"{table}, row {number}: {len(cells)} cells for {len(header)} columns. "
            "Put cells that hold the separator in double quotes."
        )
    return dict(zip(header, cells + [""] * len(header), strict=False))


def read_table(table: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a table with their line numbers, by column name in lower case.

    Args:
        table: the CSV file.
        columns: names, in lower case, that must be there.

    Raises:
        DataError: if the file is missing, no table, or lacks a column.
    """
    lines = read_lines(table)
    header = [name.lower() for name in lines[0][1]] if lines else []
    for column in columns:
        if column not in header:
            raise DataError(
                f"{table} has no column {column!r}.{did_you_mean(column, header)} It must have: {', '.join(columns)}."
            )
    return [(number, fill(table, header, number, cells)) for number, cells in lines[1:]]


def number_in(row: Mapping[str, str], column: str, where: str) -> float | None:
    """Return the number in a cell, None where it is empty or not there.

    Raises:
        DataError: if it holds anything else.
    """
    text = row.get(column, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}, column {column}: {text!r} is not a number.")
    return value
