"""Records people bring, one after the other: JSON objects from lines, and what becomes of those that are no use."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from irlhf.errors import DataError, Problem
from irlhf.io.lines import MOST_PROBLEMS, blocks, decode
from irlhf.io.wording import shown
from irlhf.storage.files import atomic_write

Record = TypeVar("Record")
Row = TypeVar("Row")

_DEPTH = 64  # of nested brackets; deeper ones are refused before they are parsed
_KEPT_TEXT = 10_000  # bytes of a rejected record that are written beside the file


class Wrong(Exception):
    """One field of one record is wrong."""

    def __init__(self, field: str | None, reason: str):
        self.field, self.reason = field, reason


def collect(
    name: str,
    records: Iterable[tuple[int, Record]],
    rows: Callable[[int, Record], Iterable[Row]],
    *,
    on_error: Literal["raise", "skip"],
    beside: Path | None,
    unit: Literal["line", "row"] = "line",
) -> list[Row]:
    """The rows of all records, or an error that lists every bad one.

    Args:
        name: of the file, or of what else they come from.
        records: with their numbers.
        rows: what one record stands for; raises :class:`Wrong` if it cannot be used.
        on_error: ``"skip"`` keeps the good records and warns with the counts.
        beside: where the others are written then, with number and reason; None: nowhere, the warning has the reasons.

    Raises:
        DataError: there are bad records, or none at all.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; choose 'raise' or 'skip'")
    good: list[Row] = []
    rejected: list[tuple[int, Wrong, str | None]] = []
    n = 0
    for number, record in records:
        n += 1
        try:
            good.extend(rows(number, record))
        except Wrong as wrong:
            rejected.append((number, wrong, _kept(record) if on_error == "skip" and beside else None))
            if on_error == "raise" and len(rejected) >= MOST_PROBLEMS:
                break  # the file is something else; its remaining lines would only fill the memory
    problems = [
        Problem(name, number, wrong.field, wrong.reason)
        if unit == "line"
        else Problem(f"{name}, row {number}", None, wrong.field, wrong.reason)
        for number, wrong, _ in rejected
    ]
    if rejected and on_error == "raise":
        raise DataError(problems)
    if not n:
        needed = "the file is empty; it needs one JSON object on each line" if unit == "line" else "there are no rows"
        raise DataError(Problem(name, None, None, needed))
    if rejected:
        why = f"\n{DataError(problems)}"
        if beside:
            entries = [
                {unit: number, "field": wrong.field, "reason": wrong.reason, "text": text}
                for number, wrong, text in rejected
            ]
            atomic_write(beside, b"".join(json_line(entry) for entry in entries))
            why = f"; see {beside.name} for the reasons"
        warnings.warn(f"{name}: {len(rejected)} of {n} {unit}s were rejected{why}", stacklevel=3)
    return good


def rejected_path(path: str | os.PathLike[str]) -> Path:
    """Where the bad records of a file are written."""
    name = Path(path).name.removesuffix(".gz")
    for suffix in (".jsonl", ".json", ".parquet", ".pq"):
        name = name.removesuffix(suffix)
    return Path(path).with_name(f"{name}.rejected.jsonl")


def _kept(record: Any) -> str | None:
    if record is None or isinstance(record, bytes):
        return None if record is None else record[:_KEPT_TEXT].decode("utf-8", "backslashreplace").removesuffix("\r")
    return json.dumps(record, default=repr)[:_KEPT_TEXT]


def numbered(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers, None for one over the cap; empty ones at the end of the file are not lines."""
    empty: list[tuple[int, bytes | None]] = []
    for first, lines in blocks(path):
        for number, raw in enumerate(lines, first):
            if raw is not None and not raw.strip():
                empty.append((number, raw))
                if len(empty) < MOST_PROBLEMS:
                    continue
                number, raw = empty.pop()  # so many are no end of a file
            yield from empty
            empty.clear()
            yield number, raw


# ---------------------------------------------------------------------------------------------------- JSON objects


def parse_object(raw: bytes | None) -> dict[str, Any]:
    """The JSON object of one line. Raises :class:`Wrong`."""
    try:
        text = decode(raw)
        if not text.strip():
            raise ValueError("the line is empty; remove it")
        _refuse_depth(text)
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_float)
    except json.JSONDecodeError as error:
        raise Wrong(None, f"not JSON: {error.msg} at character {error.pos + 1}; write one object on a line") from None
    except ValueError as error:
        reason = str(error)
        if "integer string conversion" in reason:
            reason = "a number has thousands of digits; write it shorter, or as text"
        raise Wrong(None, reason) from None
    if not isinstance(value, dict):
        raise Wrong(None, f"found {shown(value)}; write one JSON object {{...}} on a line")
    return value


_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def _refuse_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= _DEPTH:
        return
    symbols = np.frombuffer(_STRINGS.sub("", text).encode("utf-8", "replace"), np.uint8)
    opened = np.isin(symbols, np.frombuffer(b"[{", np.uint8)).astype(np.int64)
    closed = np.isin(symbols, np.frombuffer(b"]}", np.uint8))
    if (opened - closed).cumsum().max(initial=0) > _DEPTH:
        raise ValueError(f"brackets are nested more than {_DEPTH} deep; write it flatter")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {shown(twice)} is there twice; keep one")
    return fields


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{shown(text)} is too large for a number; write a smaller one, or text")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number in JSON; write a finite number, or leave the field out")


_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}  # for readers that split lines there


def json_line(fields: dict[str, Any]) -> bytes:
    """One JSON object on one line, for whatever reads it."""
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can write
        return json.dumps(fields, allow_nan=False).encode() + b"\n"


# --------------------------------------------------------------------------------------------------------- numbers


def finite(value: Any) -> float | None:
    """A finite number, else None. Whole numbers too large for a float and ``1e999`` are not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        real = float(value)
    except OverflowError:
        return None
    return real if math.isfinite(real) else None


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
