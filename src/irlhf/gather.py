"""Feedback from columns, by what people gave: demonstrations, comparisons, rankings, ratings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from irlhf.feedback import DEMONSTRATION, Choice, Feedback, Interner, Rating, objects


def _each(value: Any, n: int) -> Any:
    """A column from one value for all rows or one for each."""
    if value is None or isinstance(value, (str, int, float)):
        return [value] * n
    if len(value) != n:
        raise ValueError(f"{len(value)} values for {n} rows; give one for each row, or a single one")
    return value


def demonstrations(
    contexts: Sequence[Any] | None,
    trajectories: Sequence[Any],
    *,
    persons: Sequence[str | None] | str | None = None,
    weights: Sequence[float] | np.ndarray | float = 1.0,
    source: str = "demonstrations",
    ids: Sequence[str] | None = None,
) -> Feedback:
    """Each trajectory was taken at its context (None: all at one), out of everything possible.

    The sequence of trajectories is not copied: a columnar one stays columnar.
    """
    n = len(trajectories)
    contexts = [None] * n if contexts is None else contexts
    if len(contexts) != n:
        raise ValueError(f"{len(contexts)} contexts for {n} trajectories; give one for each")
    number = Interner()
    name = objects([str(i) for i in range(n)] if ids is None else list(ids))
    return Feedback(
        contexts=number.values,
        trajectories=trajectories,
        kind=np.full(n, DEMONSTRATION, np.int8),
        context=np.array([number(x) for x in contexts], np.int64),
        first_item=np.arange(n + 1),
        trajectory=np.arange(n),
        offset=np.zeros(n),
        chosen=np.zeros(n, np.int64),
        level=np.zeros(n, np.int64),
        levels=np.zeros(n, np.int64),
        weight=np.array(_each(weights, n), np.float64),
        source=objects([source] * n),
        person=objects(list(_each(persons, n))),
        datum=name,
        id=name,
    )


def comparisons(
    contexts: Sequence[Any],
    first: Sequence[Any],
    second: Sequence[Any],
    preferred: Sequence[Any],
    *,
    persons: Sequence[str | None] | str | None = None,
    weights: Sequence[float] | np.ndarray | float = 1.0,
    source: str = "comparisons",
    ids: Sequence[str] | None = None,
) -> Feedback:
    """Of ``first`` and ``second``, number ``preferred`` (0, 1 or ``TIE``) was preferred."""
    n = len(first)
    names = [str(i) for i in range(n)] if ids is None else ids
    columns = (contexts, first, second, preferred, _each(persons, n), _each(weights, n), names)
    return Feedback.of(
        Choice(x, (a, b), p, person=who, weight=w, source=source, id=name)
        for x, a, b, p, who, w, name in zip(*columns, strict=True)
    )


def rankings(
    contexts: Sequence[Any],
    ordered: Sequence[Sequence[Any]],
    *,
    persons: Sequence[str | None] | str | None = None,
    weights: Sequence[float] | np.ndarray | float = 1.0,
    source: str = "rankings",
    ids: Sequence[str] | None = None,
) -> Feedback:
    """Each entry of ``ordered`` lists trajectories, best first; it unfolds into choices from shrinking sets.

    Plackett-Luce (Plackett 1975; Luce 1959): n trajectories give n - 1 choices that share a datum.
    """
    n = len(ordered)
    names = [str(i) for i in range(n)] if ids is None else ids
    columns = (contexts, ordered, _each(persons, n), _each(weights, n), names)
    return Feedback.of(
        choice
        for x, order, who, w, name in zip(*columns, strict=True)
        for choice in unfold(x, tuple(order), person=who, weight=w, source=source, id=name)
    )


def unfold(context: Any, ordered: tuple[Any, ...], *, id: str, **common: Any) -> Iterable[Choice]:
    """The choices that one ranking, best first, stands for."""
    if len(ordered) < 2:
        raise ValueError(f"ranking {id!r} lists {len(ordered)} trajectories; a ranking needs at least two")
    if len(ordered) == 2:
        return [Choice(context, ordered, 0, datum=id, id=id, **common)]
    return [Choice(context, ordered[k:], 0, datum=id, id=f"{id}/{k}", **common) for k in range(len(ordered) - 1)]


def ratings(
    contexts: Sequence[Any],
    trajectories: Sequence[Any],
    level: Sequence[int] | np.ndarray,
    *,
    levels: int = 2,
    persons: Sequence[str | None] | str | None = None,
    weights: Sequence[float] | np.ndarray | float = 1.0,
    source: str = "ratings",
    ids: Sequence[str] | None = None,
) -> Feedback:
    """Each trajectory was given a ``level`` from 0 (worst) to ``levels - 1``."""
    n = len(trajectories)
    names = [str(i) for i in range(n)] if ids is None else ids
    columns = (contexts, trajectories, level, _each(persons, n), _each(weights, n), names)
    return Feedback.of(
        Rating(x, y, int(k), levels, person=who, weight=w, source=source, id=name)
        for x, y, k, who, w, name in zip(*columns, strict=True)
    )
