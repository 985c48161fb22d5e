"""Feedback on texts, and prompts, from the files and datasets that people have; the shapes are in ``shapes``."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from irlhf.errors import ConfigError, DataError, Problem
from irlhf.feedback import Choice, Feedback, Rating
from irlhf.io.jsonl import Reader, common_fields
from irlhf.io.records import Wrong, collect, is_whole, numbered, parse_object, rejected_path
from irlhf.io.wording import nearest, shown
from irlhf.worlds.text import shapes

_PARQUET = (".parquet", ".pq")
_BATCH = 64  # rows of a Parquet file in memory at a time: each may hold a megabyte
_MOST_UNREAD = 1000  # names of fields that are kept in mind


def read(
    data: Any,
    *,
    ties: bool = False,
    levels: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    source: str | None = None,
) -> Feedback:
    """Feedback from any shape in :mod:`irlhf.worlds.text.shapes`; a file may mix them.

    Contexts are None, strings or tuples of messages, trajectories are strings or tuples of one message. Every row may
    have ``id``, ``person``, ``source``, ``weight`` and ``datum``; a null is the same as nothing. Fields that no shape
    has are not read, and a warning names them.

    Args:
        data: the path of a JSON Lines file (``.jsonl``, ``.json``, ``.gz``) or a Parquet file, a
            ``datasets.Dataset``, or any sequence of dictionaries.
        ties: whether ties are modeled; without, equal ranks or scores are an error. See :func:`irlhf.read_jsonl`.
        levels: the scores of ``completions`` are ratings with so many levels, 0 the worst; None: they rank.
        on_error: ``"skip"`` keeps the good rows, writes those of a file that cannot be used into
            ``<name>.rejected.jsonl`` beside it with the reasons, and warns with the counts.
        source: which kind of person all rows are from; None: what each row says, or else its kind.

    Raises:
        DataError: names file, line (or row) and field of each row that cannot be used, with the reason.
        ConfigError: not such data; or Parquet, but pyarrow is not installed.

    Example:
        >>> read([{"prompt": "2+2", "chosen": "4", "rejected": "5", "margin": 0.5}])[0].offset
        (0.0, 0.5)
    """
    if levels is not None and (not is_whole(levels) or not 2 <= levels <= 1000):
        raise ConfigError(f"levels is {shown(levels)}; give a whole number from 2 to 1000, or None")
    rows = _rows(data)
    reader = _Reader(rows.unit, ties, levels, source, rows.unread)
    found = collect(rows.name, rows.records, reader.rows, on_error=on_error, beside=rows.beside, unit=rows.unit)
    if reader.unread:
        warnings.warn(f"{rows.name}: {_list(reader.unread)}", stacklevel=2)
    return Feedback.of(found)


def read_prompts(data: Any) -> list[Any]:
    """The prompts of all rows, in order: None, strings or tuples of messages, as :func:`read` has them.

    Each row has a ``prompt`` (or ``context``); whatever else it has is left alone. Prompts that are part of
    conversations are ``read(data).contexts``.

    Raises:
        DataError, ConfigError: as :func:`read`.

    Example:
        >>> read_prompts([{"prompt": "2+2"}, {"prompt": [{"role": "user", "content": "3+3"}]}])
        ['2+2', (Message(role='user', content='3+3'),)]
    """
    rows = _rows(data)
    return collect(rows.name, rows.records, _prompt, on_error="raise", beside=None, unit=rows.unit)


def _prompt(number: int, record: Any) -> list[Any]:
    fields = _fields(record)
    name = next((name for name in ("prompt", "context") if name in fields), None)
    if name is None:
        raise Wrong("prompt", "the field is missing; add it")
    return [shapes.prompt(fields[name], name)]


class _Reader(Reader):
    """Rows from records in any shape; ``unread`` counts the fields that nothing was made of."""

    def __init__(self, unit: str, ties: bool, levels: int | None, source: str | None, unread: Iterable[str]):
        super().__init__(_same, _same, ties)
        self.unit, self.levels, self.source = unit, levels, source
        self.unread = Counter(dict.fromkeys(unread, 0))  # of columns that were not loaded, nobody counts the rows

    def rows(self, number: int, record: Any) -> list[Choice | Rating]:
        fields = _fields(record)
        told, unread = shapes.translate(fields, self.levels)
        name = common_fields(fields).get("id", str(number))
        found = []
        for k, one in enumerate(told):
            if len(told) > 1:
                one |= {"id": f"{name}/{k}", "datum": one.get("datum", name)}
            if self.source is not None:
                one["source"] = self.source
            try:
                found += super().rows(number, one)
            except Wrong as wrong:
                by_score = wrong.field == "ranks" and fields.get("scores") is not None
                raise Wrong("scores" if by_score else wrong.field, wrong.reason) from None
        for field in unread:
            if field in self.unread or len(self.unread) < _MOST_UNREAD:
                self.unread[field] += 1
        return found

    def _context(self, value: Any) -> Any:
        return value  # hashable


def _same(value: Any) -> Any:
    return value


def _fields(record: Any) -> dict[str, Any]:
    if record is None or isinstance(record, bytes):
        return parse_object(record)
    if not isinstance(record, Mapping):
        raise Wrong(None, f"found {shown(record)}; a row is a dictionary")
    return {str(name): value for name, value in record.items()}


def _list(unread: Counter[str]) -> str:
    names = []
    for name, count in unread.most_common(20):
        hint = nearest(name, shapes.KNOWN)
        notes = [f"{count:,} rows"] * bool(count) + [hint] * hint.startswith("did you mean")
        names.append(shown(name) + (f" ({', '.join(notes)})" if notes else ""))
    more = f" and {len(unread) - 20} more" if len(unread) > 20 else ""
    return f"these fields were not read, as no shape of feedback has them: {', '.join(names)}{more}"


# ---------------------------------------------------------------------------------------------------------- sources


class _Rows(NamedTuple):
    name: str
    records: Iterable[tuple[int, Any]]  # numbered from 1 in lines, from 0 in rows
    unit: Literal["line", "row"]
    beside: Path | None
    unread: list[str]  # columns of a table that are not even looked at


def _rows(data: Any) -> _Rows:
    if isinstance(data, (str, os.PathLike)):
        if Path(data).suffix.lower() in _PARQUET:
            return _parquet(data)
        return _Rows(os.fspath(data), numbered(data), "line", rejected_path(data), [])
    if isinstance(data, Mapping):
        names = ", ".join(repr(str(name)) for name in list(data)[:5])
        raise ConfigError(f"the data are a dictionary of {names}; give one of them: data[...]")
    if not isinstance(data, Iterable):
        raise ConfigError(f"the data are a {type(data).__name__}; give a path, a Dataset or a list of dictionaries")
    columns = getattr(data, "column_names", None)
    if columns is None or not hasattr(data, "select_columns"):
        return _Rows("the data", enumerate(data), "row", None, [])
    known, unread = _columns("the dataset", columns)
    plain: Any = data
    return _Rows("the dataset", enumerate(plain.with_format(None).select_columns(known)), "row", None, unread)


def _columns(name: str, columns: Iterable[str]) -> tuple[list[str], list[str]]:
    """The columns that some shape has, and the others, which may hold anything and are not loaded."""
    columns, wanted = list(columns), {*shapes.KNOWN, *shapes.OWN_FIELDS, *shapes.NOT_HERE}
    known = [column for column in columns if column in wanted]
    if not known or len(set(known)) < len(known):
        reason = "two columns have one name" if known else "no column is one of a shape of feedback or a prompt"
        raise DataError(Problem(name, None, None, f"{reason}; the columns are {shown(columns)}"))
    return known, [column for column in columns if column not in wanted]


def _parquet(path: str | os.PathLike[str]) -> _Rows:
    name = os.fspath(path)
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        reason = f"{name} is a Parquet file, which needs pyarrow; pip install 'irlhf[parquet]', or give JSON Lines"
        raise ConfigError(reason) from None

    def refused(error: Exception) -> DataError:
        first = (str(error).splitlines() or [""])[0][:200]
        return DataError(Problem(name, None, None, f"this is not a Parquet file that can be read ({first})"))

    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(Problem(name, None, None, "there is no such file; check the path")) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise refused(error) from None
    known, unread = _columns(name, file.schema_arrow.names)

    def records() -> Iterator[tuple[int, Any]]:
        number = 0
        try:
            for batch in file.iter_batches(_BATCH, columns=known):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise refused(error) from None

    return _Rows(name, records(), "row", rejected_path(path), unread)
