"""What people told us: every kind of feedback is a choice out of a set, kept as columns.

A :class:`Choice` or a :class:`Rating` is how one piece of feedback is written and read; :class:`Feedback` is how many
are kept. Trajectories and contexts are whatever the world says they are (a path in a graph, a string, an episode).
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray


class _Token(Enum):
    EVERYTHING = "EVERYTHING"
    TIE = "TIE"

    def __repr__(self) -> str:
        return self.name


EVERYTHING: Final = _Token.EVERYTHING
"""The choice set of a demonstration: all that the world allows."""
TIE: Final = _Token.TIE
"""Neither of two was preferred."""

DEMONSTRATION, CHOICE, RATING = 0, 1, 2
KINDS = ("demonstration", "choice", "rating")
_TIE_POSITION = -1


@dataclass(frozen=True, kw_only=True)
class _Common:
    weight: float = 1.0
    source: str = "default"
    person: str | None = None
    datum: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Choice(_Common):
    """At ``context``, out of ``shown``, somebody took ``chosen``.

    Args:
        context: where the choice was made (a start state, a destination, a prompt).
        shown: the trajectories offered, or ``EVERYTHING``: then this is a demonstration.
        chosen: the position in ``shown`` (from 0), ``TIE``, or, out of ``EVERYTHING``, the trajectory itself.
        offset: a known number added to the utility of each shown item (margin, proposal correction), in nats.
        weight: how often this row counts.
        source: which kind of person answered; sources have their own temperature.
        person: who answered: the cluster of clustered standard errors.
        datum: what the row is a part of: the choices that unfold from one ranking share it.
        id: names the row in every error and result.
    """

    context: Any
    shown: tuple[Any, ...] | _Token
    chosen: Any
    offset: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Rating(_Common):
    """At ``context``, somebody gave ``trajectory`` the ``level`` (0 is the worst) of ``levels`` possible ones."""

    context: Any
    trajectory: Any
    level: int
    levels: int = 2


@dataclass(frozen=True, eq=False)
class Feedback:
    """Rows of feedback as columns: row -> set -> item -> trajectory.

    The items of row r are ``first_item[r] : first_item[r + 1]``; a demonstration and a rating have one item.
    ``chosen`` is a position within the row's set, -1 for a tie. ``level`` and ``levels`` are 0 where not a rating.
    Build one with :meth:`of` or with the functions of :mod:`irlhf.gather`;
    ``feedback[3]`` is a Choice or a Rating; ``feedback[mask]`` and ``feedback[indices]`` are Feedback;
    ``a + b`` joins two.
    """

    contexts: Sequence[Any]
    trajectories: Sequence[Any]
    kind: NDArray[np.int8]  # [rows]
    context: NDArray[np.int64]  # [rows] -> contexts
    first_item: NDArray[np.int64]  # [rows + 1]
    trajectory: NDArray[np.int64]  # [items] -> trajectories
    offset: NDArray[np.float64]  # [items]
    chosen: NDArray[np.int64]  # [rows]
    level: NDArray[np.int64]  # [rows]
    levels: NDArray[np.int64]  # [rows]
    weight: NDArray[np.float64]  # [rows]
    source: NDArray[np.object_]  # [rows] str
    person: NDArray[np.object_]  # [rows] str or None
    datum: NDArray[np.object_]  # [rows] str
    id: NDArray[np.object_]  # [rows] str

    def __post_init__(self):
        n = len(self.kind)
        for field in fields(self):
            if field.name in ("contexts", "trajectories", "first_item", "trajectory", "offset"):
                continue
            if len(getattr(self, field.name)) != n:
                raise ValueError(f"column {field.name!r} has {len(getattr(self, field.name))} rows, others have {n}")
        if len(self.first_item) != n + 1 or (np.diff(self.first_item) < 1).any():
            raise ValueError("first_item needs rows + 1 increasing entries: every row has at least one item")
        size = np.diff(self.first_item)
        for wrong, reason in (
            ((self.kind != CHOICE) & (size != 1), "a demonstration or rating has exactly one trajectory"),
            ((self.kind == CHOICE) & (size < 2), "a choice needs at least two trajectories to choose from"),
            ((self.chosen >= size) | (self.chosen < _TIE_POSITION), "chosen must be a position in shown, from 0"),
            ((self.chosen == _TIE_POSITION) & (size != 2), "a tie is between exactly two trajectories"),
            ((self.kind == RATING) & ((self.level < 0) | (self.level >= self.levels)), "level must be in 0..levels-1"),
            ((self.kind == RATING) & (self.levels < 2), "a rating needs at least two levels"),
            (~(np.isfinite(self.weight) & (self.weight >= 0)), "weight must be finite and not negative"),
        ):
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                raise ValueError(f"row {row} (id {self.id[row]!r}): {reason}")
        if not np.isfinite(self.offset).all():
            row = int(np.searchsorted(self.first_item, np.flatnonzero(~np.isfinite(self.offset))[0], side="right") - 1)
            raise ValueError(f"row {row} (id {self.id[row]!r}): offset must be finite")

    def __len__(self) -> int:
        return len(self.kind)

    def __repr__(self) -> str:
        counts = ", ".join(f"{int((self.kind == k).sum())} {KINDS[k]}s" for k in range(3) if (self.kind == k).any())
        people = len({p for p in self.person if p is not None})
        return f"Feedback({counts or 'empty'}; {len(self.trajectories)} trajectories, {people} persons)"

    def __getitem__(self, key):
        if isinstance(key, (int, np.integer)):
            return self._row(range(len(self))[key])
        return self._select(np.arange(len(self))[key])

    def __iter__(self):
        return (self._row(r) for r in range(len(self)))

    def __add__(self, other: Feedback) -> Feedback:
        return concatenate([self, other])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """[rows] How many trajectories each row lists."""
        return np.diff(self.first_item)

    def _row(self, r: int) -> Choice | Rating:
        items = slice(self.first_item[r], self.first_item[r + 1])
        shown = tuple(self.trajectories[i] for i in self.trajectory[items])
        common = {
            "weight": float(self.weight[r]),
            "source": self.source[r],
            "person": self.person[r],
            "datum": self.datum[r],
            "id": self.id[r],
        }
        context = self.contexts[self.context[r]]
        if self.kind[r] == RATING:
            return Rating(context, shown[0], int(self.level[r]), int(self.levels[r]), **common)
        if self.kind[r] == DEMONSTRATION:
            return Choice(context, EVERYTHING, shown[0], **common)
        chosen = TIE if self.chosen[r] == _TIE_POSITION else int(self.chosen[r])
        offset = tuple(float(o) for o in self.offset[items])
        return Choice(context, shown, chosen, offset if any(offset) else None, **common)

    def _select(self, rows: NDArray[np.int64]) -> Feedback:
        size = self.sizes[rows]
        first = np.concatenate([[0], np.cumsum(size)])
        items = np.repeat(self.first_item[rows], size) + np.arange(first[-1]) - np.repeat(first[:-1], size)
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("kind", "context", "chosen", "level", "levels", "weight", "source", "person", "datum", "id"):
            columns[name] = columns[name][rows]
        return Feedback(
            **columns | {"first_item": first, "trajectory": self.trajectory[items], "offset": self.offset[items]}
        )

    def where(self, *, kind: int | None = None, source: str | None = None) -> Feedback:
        """The rows of one kind (DEMONSTRATION, CHOICE, RATING) and of one source."""
        keep = np.ones(len(self), bool)
        if kind is not None:
            keep &= self.kind == kind
        if source is not None:
            keep &= self.source == source
        return self._select(np.flatnonzero(keep))

    def by_person(self) -> Feedback:
        """The same rows, each person a source of its own, so that everybody has a temperature."""
        names = [s if p is None else f"{s}: {p}" for s, p in zip(self.source, self.person, strict=True)]
        source = np.empty(len(self), object)
        source[:] = names
        return replace(self, source=source)

    def groups(self, by: str) -> NDArray[np.int64]:
        """[rows] The number of the group each row belongs to; ``by`` is context, person, datum, source or id.

        A row without a person is a group of its own.
        """
        if by == "context":
            return np.unique(self.context, return_inverse=True)[1]
        if by not in ("person", "datum", "source", "id"):
            raise ValueError(f"cannot group by {by!r}: use 'context', 'person', 'datum', 'source' or 'id'")
        names = getattr(self, by)
        codes: dict[Hashable, int] = {}
        return np.array(
            [codes.setdefault(("", r) if name is None else name, len(codes)) for r, name in enumerate(names)],
            dtype=np.int64,
        )

    def split(self, fraction: float, *, by: str = "datum", seed: int = 0) -> tuple[Feedback, Feedback]:
        """(kept, held out): whole groups are held out until ``fraction`` of the groups are; see :meth:`groups`."""
        group = self.groups(by)
        n = int(group.max(initial=-1)) + 1
        held_out = np.isin(group, np.random.default_rng(seed).permutation(n)[: round(fraction * n)])
        return self._select(np.flatnonzero(~held_out)), self._select(np.flatnonzero(held_out))

    @staticmethod
    def of(rows: Iterable[Choice | Rating]) -> Feedback:
        """Columns from rows. Rows without an id are named by their number; equal hashable trajectories are shared."""
        builder = _Builder()
        for row in rows:
            builder.add(row)
        return builder.build()


class Interner:
    """Numbers distinct values: equal ones if hashable, else identical ones."""

    def __init__(self):
        self.values: list[Any] = []
        self._number: dict[Any, int] = {}

    def __call__(self, value: Any) -> int:
        key: Any = value
        try:
            hash(key)
        except TypeError:
            key = ("id", id(value))
        # 1 == 1.0 == True in Python; in data they are different things.
        key = (type(value), key)
        number = self._number.setdefault(key, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


class _Builder:
    def __init__(self):
        self.contexts, self.trajectories = Interner(), Interner()
        self.rows: list[tuple] = []
        self.first = [0]
        self.trajectory: list[int] = []
        self.offset: list[float] = []

    def add(self, row: Choice | Rating) -> None:
        name = row.id if row.id is not None else str(len(self.rows))
        level = levels = chosen = 0
        if isinstance(row, Rating):
            kind, items, level, levels = RATING, (row.trajectory,), row.level, row.levels
        elif isinstance(row.shown, _Token):
            kind, items = DEMONSTRATION, (row.chosen,)
        else:
            kind, items = CHOICE, row.shown
            chosen = _TIE_POSITION if row.chosen is TIE else row.chosen
            if not isinstance(chosen, (int, np.integer)) or isinstance(chosen, bool):
                raise ValueError(f"row {name!r}: chosen is {row.chosen!r}; give a position in shown (from 0) or TIE")
            if row.chosen is not TIE and chosen < 0:
                raise ValueError(f"row {name!r}: chosen is {row.chosen}; positions count from 0")
        offset = getattr(row, "offset", None) or (0.0,) * len(items)
        if len(offset) != len(items):
            raise ValueError(f"row {name!r}: {len(offset)} offsets for {len(items)} trajectories; give one for each")
        self.trajectory.extend(self.trajectories(y) for y in items)
        self.offset.extend(offset)
        self.first.append(len(self.trajectory))
        datum = row.datum if row.datum is not None else name
        self.rows.append(
            (kind, self.contexts(row.context), chosen, level, levels, row.weight, row.source, row.person, datum, name)
        )

    def build(self) -> Feedback:
        columns = list(zip(*self.rows, strict=True)) or [()] * 10
        kind, context, chosen, level, levels, weight, source, person, datum, name = columns
        return Feedback(
            contexts=self.contexts.values,
            trajectories=self.trajectories.values,
            kind=np.array(kind, np.int8),
            context=np.array(context, np.int64),
            first_item=np.array(self.first, np.int64),
            trajectory=np.array(self.trajectory, np.int64),
            offset=np.array(self.offset, np.float64),
            chosen=np.array(chosen, np.int64),
            level=np.array(level, np.int64),
            levels=np.array(levels, np.int64),
            weight=np.array(weight, np.float64),
            source=objects(source),
            person=objects(person),
            datum=objects(datum),
            id=objects(name),
        )


def objects(values: Sequence[Any]) -> NDArray[np.object_]:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def picked(trajectories: Sequence[Any], indices: Any) -> Sequence[Any]:
    """The trajectories of these numbers, in this order; columnar ones stay columnar."""
    if _is_columnar(trajectories):
        return trajectories.take(indices)  # type: ignore[attr-defined]
    return [trajectories[int(k)] for k in indices]


def _is_columnar(trajectories: Sequence[Any]) -> bool:
    """Whether these are columns that are taken from and joined as such: they have ``take`` and ``concatenate``."""
    return hasattr(type(trajectories), "take") and hasattr(type(trajectories), "concatenate")


def concatenate(parts: Sequence[Feedback]) -> Feedback:
    """All rows of all parts, in order. Trajectories and contexts are kept apart, not compared.

    A part with a name that an earlier part has (unnamed rows are all called "0", "1", ...) gets "~1" or a higher
    number appended to its ids and data, so that an id names one row and unrelated rows do not share a datum.
    """
    if len(parts) == 1:
        return parts[0]
    parts = _told_apart(parts)
    contexts: list[Any] = []
    n_trajectories = 0
    shifted = []
    for part in parts:
        shifted.append((part.context + len(contexts), part.trajectory + n_trajectories))
        contexts.extend(part.contexts)
        n_trajectories += len(part.trajectories)
    kinds = {type(part.trajectories) for part in parts}
    if len(kinds) == 1 and _is_columnar(parts[0].trajectories):
        trajectories = kinds.pop().concatenate([part.trajectories for part in parts])  # type: ignore[attr-defined]
    else:
        trajectories = [trajectory for part in parts for trajectory in part.trajectories]
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("kind", "offset", "chosen", "level", "levels", "weight", "source", "person", "datum", "id")
    }
    return Feedback(
        contexts=contexts,
        trajectories=trajectories,
        context=np.concatenate([context for context, _ in shifted]),
        trajectory=np.concatenate([trajectory for _, trajectory in shifted]),
        first_item=np.concatenate([[0], np.cumsum(np.concatenate([part.sizes for part in parts]))]),
        **joined,
    )


def _told_apart(parts: Sequence[Feedback]) -> list[Feedback]:
    ids: set[str] = set()
    data: set[str] = set()
    result = []
    for part in parts:
        own_ids, own_data, suffix = set(part.id), set(part.datum), ""
        # A datum may be in two parts (half a ranking in each), but it is not the id of an unrelated row.
        for k in itertools.count(1):
            if ids.isdisjoint(own_ids) and ids.isdisjoint(own_data) and data.isdisjoint(own_ids):
                break
            suffix = f"~{k}"
            own_ids, own_data = ({f"{name}{suffix}" for name in set(column)} for column in (part.id, part.datum))
        if suffix:
            renamed = {"id": [f"{x}{suffix}" for x in part.id], "datum": [f"{x}{suffix}" for x in part.datum]}
            part = replace(part, **{name: objects(column) for name, column in renamed.items()})
        result.append(part)
        ids |= own_ids
        data |= own_data
    return result
