"""Choices as JSON Lines: one object a line, which of four shapes it is follows from its fields.

    {"context": X, "trajectory": Y}                                     a demonstration
    {"context": X, "shown": [Y, ...], "chosen": 0 or "tie"}             a choice; "offset": [number, ...] if you like
    {"context": X, "shown": [Y, ...], "ranks": [1, 2, 3]}               a ranking, 1 is the best
    {"context": X, "trajectory": Y, "level": 1, "levels": 3}            a rating; or "level": true for a thumbs-up

Every one may have ``id``, ``person``, ``source``, ``weight`` and ``datum``. X and Y are any JSON; the world says
what they mean.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from irlhf.errors import DataError, Problem
from irlhf.feedback import CHOICE, DEMONSTRATION, EVERYTHING, TIE, Choice, Feedback, Rating
from irlhf.gather import unfold
from irlhf.io.records import Wrong, collect, finite, is_whole, json_line, numbered, parse_object, rejected_path
from irlhf.io.wording import nearest, shown
from irlhf.storage.files import atomic_write

_COMMON = ("context", "id", "person", "source", "weight", "datum")
_SHAPES = {  # what tells a shape from the others, and what else it has
    "ranking": ("ranks", ("shown", "ranks")),
    "choice": ("chosen", ("shown", "chosen", "offset")),
    "rating": ("level", ("trajectory", "level", "levels")),
    "demonstration": ("trajectory", ("trajectory",)),
}
_SOURCES = {
    "ranking": "rankings",
    "choice": "comparisons",
    "rating": "ratings",
    "demonstration": "demonstrations",
}  # as the functions of irlhf.feedback name them
_KNOWN = sorted({*_COMMON, *itertools.chain.from_iterable(own for _, own in _SHAPES.values())})
_MOST_LEVELS = 1000
MOST_RANKED = 1000  # by one person: n of them unfold into n^2/2 entries


def _identity(value: Any) -> Any:
    return value


def read_jsonl(
    path: str | os.PathLike[str],
    *,
    parse_trajectory: Callable[[Any], Any] = _identity,
    parse_context: Callable[[Any], Any] = _identity,
    ties: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
) -> Feedback:
    """Feedback from JSON Lines (``.jsonl`` or ``.jsonl.gz``). The whole file is read, or none of it.

    A line without an id is named by its number. Rankings are unfolded into choices that share a datum.

    Args:
        parse_trajectory: the trajectory from its JSON value; raises ValueError(reason) if it cannot.
        parse_context: the same for the context; it gets None where the line has none.
        ties: whether ties are modeled: then two equal ranks at the end of a ranking are a tie, otherwise an error.
        on_error: ``"skip"`` keeps the good lines, writes the others with number and reason into
            ``<name>.rejected.jsonl`` beside the file, and warns with the counts.

    Raises:
        DataError: lists every bad line with the field, what was found and what to do.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "pairs.jsonl"
        >>> _ = path.write_text('{"context": "2+2", "shown": ["4", "5"], "chosen": 0, "person": "ann"}\\n')
        >>> read_jsonl(path)[0].shown
        ('4', '5')
    """
    reader = Reader(parse_trajectory, parse_context, ties)
    rows = collect(
        os.fspath(path),
        numbered(path),
        lambda number, raw: reader.rows(number, parse_object(raw)),
        on_error=on_error,
        beside=rejected_path(path),
    )
    return Feedback.of(rows)


class Reader:
    """Turns records into rows; remembers the ids and contexts it has seen."""

    unit = "line"  # what a record is in an error

    def __init__(self, parse_trajectory: Callable, parse_context: Callable, ties: bool):
        self.ties = ties
        self.parse_trajectory, self.parse_context = parse_trajectory, parse_context
        self._ids: dict[str, int] = {}
        self._contexts: dict[str, Any] = {}

    def rows(self, number: int, fields: dict[str, Any]) -> list[Choice | Rating]:
        """The rows of one record. Raises :class:`Wrong`."""
        shape = _shape(fields)
        common = common_fields(fields)
        common.setdefault("source", _SOURCES[shape])
        name = common.pop("id", None)
        named = name is not None
        name = name if named else str(number)
        context = self._context(fields.get("context"))
        rows = getattr(self, f"_{shape}")(fields, context, name, common)
        for row in rows:
            if row.id in self._ids:
                unit, line = self.unit, self._ids[row.id]
                if named:
                    raise Wrong("id", f"{shown(row.id)} is the id of {unit} {line} already; ids must differ")
                raise Wrong(
                    "id", f"a {unit} without an id is named by its number, but {unit} {line} has the id {row.id}"
                )
        self._ids |= {row.id: number for row in rows}
        return rows

    def _context(self, value: Any) -> Any:
        # Equal contexts are one object, so that those that cannot be hashed are one context of the feedback, too.
        key = json.dumps(value, sort_keys=True)
        if key not in self._contexts:
            self._contexts[key] = _parsed(self.parse_context, value, "context")
        return self._contexts[key]

    def _demonstration(self, fields: dict[str, Any], context: Any, name: str, common: dict[str, Any]) -> list[Choice]:
        chosen = _parsed(self.parse_trajectory, fields["trajectory"], "trajectory")
        return [Choice(context, EVERYTHING, chosen, id=name, **common)]

    def _choice(self, fields: dict[str, Any], context: Any, name: str, common: dict[str, Any]) -> list[Choice]:
        items = self._shown(fields)
        chosen = fields["chosen"]
        if chosen == "tie":
            if len(items) != 2:
                raise Wrong("chosen", f"a tie is between two trajectories, but {len(items)} were shown")
            chosen = TIE
        elif not is_whole(chosen) or not 0 <= chosen < len(items):
            reason = f'{shown(chosen)} is not a position in shown: write 0 to {len(items) - 1}, or "tie"'
            raise Wrong("chosen", reason)
        return [Choice(context, items, chosen, _offset(fields.get("offset"), len(items)), id=name, **common)]

    def _ranking(self, fields: dict[str, Any], context: Any, name: str, common: dict[str, Any]) -> list[Choice]:
        items, ranks = self._shown(fields), fields["ranks"]
        if len(items) > MOST_RANKED:
            raise Wrong("shown", f"there are {len(items):,} in a ranking; {MOST_RANKED:,} are possible")
        if not isinstance(ranks, list) or len(ranks) != len(items):
            raise Wrong("ranks", f"found {shown(ranks)}; give one rank for each of the {len(items)} shown")
        if not all(is_whole(rank) and rank >= 1 for rank in ranks):
            raise Wrong("ranks", f"found {shown(ranks)}; ranks are whole numbers from 1, the best")
        order = sorted(range(len(items)), key=ranks.__getitem__)
        equal = [k for k in range(1, len(order)) if ranks[order[k]] == ranks[order[k - 1]]]
        if equal and not self.ties:
            reason = f"{shown(ranks)} has equal ranks, but ties are not modeled; model ties, or drop the row"
            raise Wrong("ranks", reason)
        if equal and equal != [len(order) - 1]:
            # Were a tie not last, it would be one of two among three or more: no model of ties here says what that is.
            reason = f"{shown(ranks)} has a tie that is not between the last two; ties are modeled for pairs"
            raise Wrong("ranks", reason)
        datum = common.pop("datum", name)
        rows = list(unfold(context, tuple(items[k] for k in order), id=name, **common))
        if equal:
            rows[-1] = replace(rows[-1], chosen=TIE)
        return [replace(row, datum=datum) for row in rows]

    def _rating(self, fields: dict[str, Any], context: Any, name: str, common: dict[str, Any]) -> list[Rating]:
        level, levels = fields["level"], fields.get("levels")
        if isinstance(level, bool):
            if levels not in (None, 2):
                raise Wrong("levels", f"level is a thumbs-up or -down, which has 2 levels; found {shown(levels)}")
            level, levels = int(level), 2
        if levels is None:
            raise Wrong("levels", "the field is missing; say how many levels there are, the lowest is level 0")
        if not is_whole(levels) or not 2 <= levels <= _MOST_LEVELS:
            raise Wrong("levels", f"found {shown(levels)}; write a whole number from 2 to {_MOST_LEVELS}")
        if not is_whole(level) or not 0 <= level < levels:
            raise Wrong("level", f"found {shown(level)}; write a whole number from 0 to {levels - 1}")
        trajectory = _parsed(self.parse_trajectory, fields["trajectory"], "trajectory")
        return [Rating(context, trajectory, level, levels, id=name, **common)]

    def _shown(self, fields: dict[str, Any]) -> tuple[Any, ...]:
        values = fields["shown"]
        if not isinstance(values, list) or len(values) < 2:
            raise Wrong("shown", f"found {shown(values)}; give a list of at least two trajectories")
        return tuple(_parsed(self.parse_trajectory, value, f"shown[{k}]") for k, value in enumerate(values))


def _shape(fields: dict[str, Any]) -> str:
    for name in fields:
        if name not in _KNOWN:
            raise Wrong(name[:100], f"unknown field; {nearest(name, _KNOWN)}")
    shape = next((shape for shape, (mark, _) in _SHAPES.items() if mark in fields), None)
    if shape is None:
        if "shown" in fields:
            raise Wrong("shown", "nothing says what was preferred; add 'chosen' (a position from 0) or 'ranks'")
        raise Wrong(None, "there is no feedback in it; write 'trajectory', or 'shown' with 'chosen' or 'ranks'")
    own = _SHAPES[shape][1]
    for name in fields:
        if name not in own and name not in _COMMON:
            raise Wrong(name, f"a {shape} has no such field; it has {', '.join((*own, *_COMMON))}")
    for name in own:
        if name not in fields and name not in ("offset", "levels"):
            raise Wrong(name, f"the field is missing in a {shape}; add it")
    return shape


def common_fields(fields: dict[str, Any]) -> dict[str, Any]:
    common: dict[str, Any] = {}
    for name in ("id", "person", "source", "datum"):
        value = fields.get(name)
        if value is None:
            continue  # null says the same as nothing
        if is_whole(value):
            value = str(value)
        if not isinstance(value, str) or not value:
            raise Wrong(name, f"found {shown(value)}; write text that is not empty, or a whole number")
        common[name] = value
    if fields.get("weight") is not None:
        weight = finite(fields["weight"])
        if weight is None or weight < 0:
            raise Wrong("weight", f"found {shown(fields['weight'])}; write a finite number that is not negative")
        common["weight"] = weight
    return common


def _offset(value: Any, n: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    numbers = [finite(x) for x in value] if isinstance(value, list) else []
    if len(numbers) != n or None in numbers:
        raise Wrong("offset", f"found {shown(value)}; give one finite number for each of the {n} shown")
    return tuple(x for x in numbers if x is not None)


def _parsed(parse: Callable[[Any], Any], value: Any, field: str) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise Wrong(field, str(error)) from None


# ------------------------------------------------------------------------------------------------------- writing


def write_jsonl(
    feedback: Feedback,
    path: str | os.PathLike[str],
    *,
    trajectory_json: Callable[[Any], Any] = _identity,
    context_json: Callable[[Any], Any] = _identity,
) -> None:
    """Write feedback so that :func:`read_jsonl` gives it back; the file is old or new at every moment, never half.

    Args:
        trajectory_json: the JSON value of a trajectory, what ``parse_trajectory`` reads.
        context_json: the same for a context.

    Raises:
        DataError: two rows have one id, or a value is not JSON; names the row.
        OSError: the disk is full or the place cannot be written to; the file is as it was.
    """
    name = os.fspath(path)
    lines: list[bytes] = []
    ids: dict[str, int] = {}
    for r, row in enumerate(feedback):
        first = ids.setdefault(str(row.id), r)
        if first != r:
            reason = f"rows {first} and {r} have one id, {shown(row.id)}; give each row its own"
            raise DataError(Problem(name, None, "id", reason))
        try:
            lines.append(json_line(_fields(row, int(feedback.kind[r]), trajectory_json, context_json)))
        except (TypeError, ValueError, RecursionError) as error:
            reason = f"row {r} (id {shown(row.id)}) cannot be written as JSON: {error}"
            raise DataError(Problem(name, None, None, reason)) from None
    data = b"".join(lines)
    atomic_write(path, gzip.compress(data, mtime=0) if Path(path).suffix == ".gz" else data)


def _fields(row: Choice | Rating, kind: int, trajectory_json: Callable, context_json: Callable) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": str(row.id), "context": context_json(row.context)}
    if isinstance(row, Rating):
        fields |= {"trajectory": trajectory_json(row.trajectory), "level": row.level, "levels": row.levels}
    elif kind == DEMONSTRATION:
        fields["trajectory"] = trajectory_json(row.chosen)
    elif kind == CHOICE and isinstance(row.shown, tuple):
        fields["shown"] = [trajectory_json(item) for item in row.shown]
        fields["chosen"] = "tie" if row.chosen is TIE else row.chosen
        if row.offset is not None:
            fields["offset"] = list(row.offset)
    fields["source"] = row.source
    if row.person is not None:
        fields["person"] = str(row.person)
    if row.datum != row.id:
        fields["datum"] = str(row.datum)
    if row.weight != 1.0:
        fields["weight"] = row.weight
    return fields
