"""Tables people bring (CSV, Parquet, a pandas or polars frame) as columns of distinct texts and their codes.

Whatever a table comes from, a cell is the text it would have in a CSV file, so the same data means the same
everywhere. Each distinct text is checked and converted once; the rest is integer arithmetic on codes.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from irlhf.errors import ConfigError, DataError, Problem
from irlhf.io.lines import MOST_PROBLEMS, blocks, decode
from irlhf.io.wording import nearest, shown

_LONGEST_CELL = 1000  # characters
_CANONICAL = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def label(value: Any) -> int | str:
    """The label a cell or a JSON value stands for: a canonical integer is an int, other text stays text.

    Raises:
        ValueError: empty, longer than 1000 characters, or neither text nor a number.

    Example:
        >>> label("7"), label("07"), label(7.0), label(" left ")
        (7, '07', 7, 'left')
    """
    text = value if isinstance(value, str) else cell_text(value)
    text = text.strip()
    if not text:
        raise ValueError("the label is empty; give every state and action a name or a whole number")
    if len(text) > _LONGEST_CELL:
        raise ValueError(f"the label has {len(text)} characters; {_LONGEST_CELL} are possible")
    return int(text) if _CANONICAL.fullmatch(text) else text


def number(text: str) -> float:
    """A finite decimal number. Raises ValueError for anything else, ``nan``, ``inf`` and ``1e999`` too."""
    value = float(text) if _NUMBER.fullmatch(text.strip()) else float("inf")
    if not np.isfinite(value):
        raise ValueError(f"found {shown(text)}; write a finite number")
    return value


def whole(text: str) -> int:
    """A whole number of at most 15 digits. Raises ValueError for anything else."""
    if not _CANONICAL.fullmatch(text.strip()) or len(text.strip()) > 15:
        raise ValueError(f"found {shown(text)}; write a whole number")
    return int(text)


def cell_text(value: Any) -> str:
    """The text of a cell of a frame; a whole float is written as an integer, a missing value as nothing.

    Raises:
        ValueError: the cell holds neither text nor a number.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return str(value)
    if isinstance(value, (int, np.integer)):
        if abs(int(value)) >= 10**_LONGEST_CELL:
            raise ValueError(f"the number has more than {_LONGEST_CELL} digits; write it as text")
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        # A column with missing values makes pandas turn integers into floats.
        if np.isnan(value):
            return ""
        return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    raise ValueError(f"found {shown(value)}; write text or a number")


@dataclass(frozen=True)
class Column:
    """``texts[codes[r]]`` is the text of row r."""

    texts: list[str]
    codes: NDArray[np.int64]


@dataclass(eq=False)
class Table:
    """Columns by name, and how to name their rows in an error; ``problems`` collects what is wrong with them."""

    name: str
    columns: dict[str, Column]
    n_rows: int
    has_lines: bool
    problems: list[Problem] = field(default_factory=list)

    def problem(self, row: Any, column: str | None, reason: str) -> None:
        """Note what is wrong in one row (the header of a file is line 1; rows of a frame count from 0)."""
        if self.has_lines:
            self.problems.append(Problem(self.name, int(row) + 2, column, reason))
        else:
            self.problems.append(Problem(f"{self.name}, row {int(row)}", None, column, reason))

    def check(self) -> None:
        """Raise DataError if anything was wrong, in the order of the rows."""
        if self.problems:
            raise DataError(sorted(self.problems, key=lambda problem: problem.line or 0))

    def require(self, needed: Iterable[str], known: Iterable[str] | None = None) -> None:
        """Raises DataError naming missing columns, and, where ``known`` is given, unknown ones."""
        needed, known = list(needed), None if known is None else list(known)
        line = 1 if self.has_lines else None
        has = ", ".join(map(repr, itertools.islice(self.columns, 20)))
        for column in needed:
            if column not in self.columns:
                self.problems.append(Problem(self.name, line, column, f"the column is missing; the table has {has}"))
        unknown = [column for column in self.columns if known is not None and column not in known]
        for column in unknown[: DataError.SHOWN + 1]:
            reason = f"unknown column; {nearest(column, known or [])}"
            self.problems.append(Problem(self.name, line, column[:100], reason))
        self.check()

    def convert(self, column: str, function: Callable[[str], Any]) -> tuple[list[Any], NDArray[np.int64]]:
        """Values of the distinct texts, and the code of each row; ValueErrors become problems of all their rows."""
        texts, codes = self.columns[column].texts, self.columns[column].codes
        values: list[Any] = [None] * len(texts)
        reasons: dict[int, str] = {}
        for code, text in enumerate(texts):
            try:
                values[code] = function(text)
            except ValueError as error:
                reasons[code] = str(error)
        if reasons:
            for row in np.flatnonzero(np.isin(codes, list(reasons)))[:MOST_PROBLEMS]:
                self.problem(row, column, reasons[int(codes[row])])
        return values, codes

    def labels(self, *names: str, empty: Any = None) -> tuple[NDArray[np.object_], list[NDArray[np.int64]]]:
        """Distinct labels of several columns together, and the codes of each column; see :func:`label`.

        An empty cell has the label ``empty``, or, if that is None, is a problem.
        """
        distinct: dict[Any, int] = {}
        result = []
        for name in names:
            values, codes = self.convert(name, label if empty is None else lambda t: label(t) if t.strip() else empty)
            codes_of = np.array([distinct.setdefault(value, len(distinct)) for value in values], np.int64)
            result.append(codes_of[codes] if len(values) else codes)
        array = np.empty(len(distinct), object)
        array[:] = list(distinct)
        return array, result

    def numbers(self, column: str, function: Callable[[str], float] = number) -> NDArray[Any]:
        """[rows] A column of numbers; 0 where there is a problem."""
        values, codes = self.convert(column, function)
        dtype = np.int64 if function is whole else np.float64
        return np.array([0 if value is None else value for value in values], dtype)[codes]


def read_table(source: Any, *, what: str) -> Table:
    """A table from a CSV file (``.csv``, ``.csv.gz``), a Parquet file, or a pandas or polars frame.

    Args:
        source: a path or a frame.
        what: how to name a frame in an error ("the panel").

    Raises:
        DataError: the file cannot be read, is empty, has rows with too many or too few cells, quotes left open,
            bytes that are not UTF-8, or column names that are missing or repeated.
        ConfigError: Parquet, but pyarrow is not installed; or something that is not a table.
    """
    if isinstance(source, (str, os.PathLike)):
        is_parquet = Path(source).suffix.lower() in (".parquet", ".pq")
        table = _read_parquet(source) if is_parquet else _read_csv(source)
    elif isinstance(source, pd.DataFrame):
        table = _frame(what, [str(c) for c in source.columns], [source.iloc[:, k] for k in range(source.shape[1])])
    elif hasattr(source, "get_columns") and hasattr(source, "columns"):  # polars, which need not be installed
        names = [str(c) for c in source.columns]
        table = _frame(what, names, [pd.Series(c.to_list(), dtype=object) for c in source.get_columns()])
    else:
        raise ConfigError(f"{what} is a {type(source).__name__}; give a path, a pandas frame or a polars frame")
    if not table.n_rows:
        raise DataError(Problem(table.name, None, None, "the table has no rows below its header; add at least one"))
    return table


def _names(name: str, names: list[str], line: int | None) -> list[str]:
    names = [column.strip() for column in names]
    before: set[str] = set()
    for k, column in enumerate(names):
        if not column:
            raise DataError(Problem(name, line, None, f"column {k + 1} has no name; name it in the header"))
        if column in before:
            raise DataError(Problem(name, line, column[:100], "two columns have this name; rename or remove one"))
        before.add(column)
    return names


def _encoder() -> defaultdict[str, int]:
    """Numbers texts in the order of their first appearance."""
    return defaultdict(itertools.count().__next__)


# ---------------------------------------------------------------------------------------------------------- CSV


def _read_csv(path: str | os.PathLike[str]) -> Table:
    """A row of the table is a line of the file: line numbers are exact, and an open quote harms only its line."""
    name = os.fspath(path)
    header: list[str] = []
    encoders: list[defaultdict[str, int]] = []
    codes: list[list[NDArray[np.int64]]] = []
    lines = _Lines(name)
    for first, raw in blocks(path):
        if not header:
            header = _header(name, raw[0])
            encoders, codes = [_encoder() for _ in header], [[] for _ in header]
            raw, first = raw[1:], first + 1
        columns = None if lines.blank else _columns(raw, len(header))
        if columns is None:
            columns = lines.columns(first, raw, len(header))
        for column, encoder, parts in zip(columns, encoders, codes, strict=True):
            parts.append(np.fromiter(map(encoder.__getitem__, column), np.int64, len(column)))
        if len(lines.problems) >= MOST_PROBLEMS:
            break
    if not header:
        raise DataError(Problem(name, None, None, "the file is empty; it needs a header and rows"))
    if lines.problems:
        raise DataError(lines.problems)
    columns = {
        column: Column(list(encoder), np.concatenate(parts))
        for column, encoder, parts in zip(header, encoders, codes, strict=True)
    }
    return Table(name, columns, len(columns[header[0]].codes), has_lines=True)


def _header(name: str, raw: bytes | None) -> list[str]:
    try:
        names = _cells(raw)
    except ValueError as error:
        raise DataError(Problem(name, 1, None, str(error))) from None
    if not any(column.strip() for column in names):
        raise DataError(Problem(name, 1, None, "the line is empty; name the columns in the first line"))
    if len(names) == 1 and (other := next((sign for sign in ";\t" if sign in names[0]), None)):
        reason = f"the columns are separated by {shown(other)}; save the file with commas"
        raise DataError(Problem(name, 1, None, reason))
    return _names(name, names, 1)


def _columns(raw: list[bytes | None], width: int) -> list[list[str]] | None:
    """The columns of a block of lines, or None if anything is unusual: then they are looked at one by one."""
    widths: list[int] = []
    cells: list[str] = []
    try:
        lines = b"\n".join(raw).decode().replace("\r\n", "\n").removesuffix("\r").split("\n")  # type: ignore[arg-type]
        for row in csv.reader(lines, strict=True):
            # No row outlives its turn: the garbage collector would walk a million of them again and again.
            widths.append(len(row))
            cells += row
    except (TypeError, ValueError, csv.Error):
        return None
    if len(widths) != len(lines) or set(widths) != {width} or any("\0" in line for line in lines):
        return None
    return [cells[k::width] for k in range(width)]


def _cells(raw: bytes | None) -> list[str]:
    try:
        return next(csv.reader([decode(raw)], strict=True), [])
    except csv.Error as error:
        reason = f"the quotes or separators are wrong ({error}); close the quotes, keep a row on one line"
        raise ValueError(reason) from None


@dataclass
class _Lines:
    """Lines looked at one by one: those that are no whole row are problems; empty ones at the end are fine."""

    name: str
    problems: list[Problem] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)

    def columns(self, first: int, raw: list[bytes | None], width: int) -> list[list[str]]:
        rows: list[list[str]] = []
        for line, text in enumerate(raw, first):
            if text is not None and not text.strip():
                self.blank.append(line)
                if len(self.blank) < MOST_PROBLEMS:
                    continue
            self.problems.extend(Problem(self.name, k, None, "the line is empty; remove it") for k in self.blank)
            self.blank.clear()
            if len(self.problems) >= MOST_PROBLEMS:
                break
            try:
                row = _cells(text)
                if len(row) != width:
                    raise ValueError(f"the row has {len(row)} cells, the header {width}; quote cells that hold a comma")
                rows.append(row)
            except ValueError as error:
                self.problems.append(Problem(self.name, line, None, str(error)))
        return [[row[k] for row in rows] for k in range(width)]


# ----------------------------------------------------------------------------------------------------- frames


def _frame(name: str, names: list[str], columns: list[pd.Series]) -> Table:
    names = _names(name, names, None)
    table = Table(name, {}, len(columns[0]) if columns else 0, has_lines=False)
    for column, series in zip(names, columns, strict=True):
        if series.dtype == object:
            values, codes = series.tolist(), np.arange(len(series))  # 1, 1.0 and True are equal, but not one text
        else:
            codes, distinct = pd.factorize(series, use_na_sentinel=True)
            values = _with_missing(distinct.tolist(), codes)
        table.columns[column] = _encode(table, column, values, codes.astype(np.int64))
    table.check()
    return table


def _with_missing(values: list[Any], codes: NDArray[np.int64]) -> list[Any]:
    """Code -1 is a missing value: the last one of the list."""
    return [*values, None] if (codes < 0).any() else values


def _encode(table: Table, column: str, values: list[Any], codes: NDArray[np.int64]) -> Column:
    encoder = _encoder()
    code_of = np.zeros(len(values), np.int64)
    wrong: dict[int, str] = {}
    for k, value in enumerate(values):
        try:
            code_of[k] = encoder[cell_text(value)]
        except ValueError as error:
            wrong[k] = str(error)
    if wrong:
        for row in np.flatnonzero(np.isin(codes % max(len(values), 1), list(wrong)))[:MOST_PROBLEMS]:
            table.problem(row, column, wrong[int(codes[row])])
    return Column(list(encoder), code_of[codes] if len(values) else codes)


def _read_parquet(path: str | os.PathLike[str]) -> Table:
    name = os.fspath(path)
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        reason = f"{name} is a Parquet file, which needs pyarrow; pip install 'irlhf[parquet]', or give a CSV file"
        raise ConfigError(reason) from None
    try:
        file = pq.ParquetFile(path).read()
        names = _names(name, [str(column) for column in file.column_names], None)
        table = Table(name, {}, file.num_rows, has_lines=False)
        for column, chunks in zip(names, file.columns, strict=True):
            encoded = chunks.combine_chunks().dictionary_encode()
            codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
            values = _with_missing(encoded.dictionary.to_pylist(), codes)
            table.columns[column] = _encode(table, column, values, codes)
    except FileNotFoundError:
        raise DataError(Problem(name, None, None, "there is no such file; check the path")) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = f"this is not a Parquet file of plain columns ({str(error).splitlines()[0][:200]})"
        raise DataError(Problem(name, None, None, reason)) from None
    table.check()
    return table
