"""Trajectories of the tabular world: what was done in which state, many of them as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Path(NamedTuple):
    """One trajectory: at step t, ``actions[t]`` was taken in ``states[t]``. All are labels, as in the user's files.

    ``states`` may hold one state more than there are actions: where the path ended. The other fields are for paths
    with gaps: ``next_states`` says where each step led, or ``UNKNOWN``, where that is not simply the next state, and
    ``times`` when each step was, where that is not simply one after the other (and one missing at each gap).
    """

    states: tuple[Any, ...]
    actions: tuple[Any, ...]
    next_states: tuple[Any, ...] | None = None
    times: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items() if value is not None)
        return f"Path({given})"


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()
"""Where a step led, if nobody wrote it down."""


@dataclass(frozen=True, eq=False)
class Paths(Sequence):
    """Many paths as columns; path i is steps ``first_step[i] : first_step[i + 1]``. A sequence of :class:`Path`.

    ``next_state`` is ``UNKNOWN`` where it was not observed: at the end of a path, or where a panel has a gap.
    ``time`` increases along a path. If it is not given, steps follow each other from 0, with one missing wherever a
    step is not known to have led to the state of the next.

    Raises:
        ValueError: times that are negative or do not increase.
    """

    state: NDArray[np.object_]  # [steps] labels
    action: NDArray[np.object_]  # [steps] labels
    next_state: NDArray[np.object_]  # [steps] labels or UNKNOWN
    first_step: NDArray[np.int64]  # [paths + 1]
    time: NDArray[np.int64] = None  # type: ignore[assignment]  # [steps]

    def __post_init__(self):
        if self.time is None:
            object.__setattr__(self, "time", self._usual_time)
            return
        object.__setattr__(self, "time", np.asarray(self.time, np.int64))
        if len(self.time) != len(self.state):
            raise ValueError(f"{len(self.time)} times for {len(self.state)} steps; give one for each")
        back = np.append(False, self._inside & (np.diff(self.time) <= 0))[: len(self.time)]
        wrong = (self.time < 0) | back
        if wrong.any():
            k = int(np.argmax(wrong))
            path = int(np.searchsorted(self.first_step, k, side="right")) - 1
            raise ValueError(f"path {path}: time {self.time[k]}; times are not negative and increase along a path")

    def __len__(self) -> int:
        return len(self.first_step) - 1

    @cached_property
    def _inside(self) -> NDArray[np.bool_]:
        """[steps - 1] Whether the next step is of the same path."""
        inside = np.ones(max(len(self.state) - 1, 0), bool)
        ends = self.first_step[1:-1]
        inside[ends[(ends > 0) & (ends < len(self.state))] - 1] = False
        return inside

    @cached_property
    def _gap(self) -> NDArray[np.bool_]:
        """[steps - 1] Whether the next step is of the same path, but not known to be where this one led."""
        return self._inside & (self.next_state[:-1] != self.state[1:]).astype(bool)

    @cached_property
    def _usual_time(self) -> NDArray[np.int64]:
        """[steps] Times where none are given."""
        passed = np.arange(len(self.state) + 1)
        passed[1:-1] += np.cumsum(self._gap)
        return passed[:-1] - np.repeat(passed[self.first_step[:-1]], np.diff(self.first_step))

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        i = range(len(self))[i]
        first, last = self.first_step[i : i + 2].tolist()
        steps = slice(first, last)
        states, following = tuple(self.state[steps]), tuple(self.next_state[steps])
        if states and following[-1] is not UNKNOWN:
            states += (following[-1],)
        has_gap = self._gap[first : max(last - 1, first)].any()
        is_usual = np.array_equal(self.time[steps], self._usual_time[steps])
        return Path(
            states,
            tuple(self.action[steps]),
            following if has_gap else None,
            None if is_usual else tuple(self.time[steps].tolist()),
        )

    def take(self, indices: Any) -> Paths:
        """The paths of these numbers, in this order, as columns."""
        chosen = np.arange(len(self))[np.asarray(indices, np.int64)]
        length = np.diff(self.first_step)[chosen]
        first = _first(length)
        steps = np.repeat(self.first_step[chosen] - first[:-1], length) + np.arange(first[-1])
        return Paths(self.state[steps], self.action[steps], self.next_state[steps], first, self.time[steps])

    @staticmethod
    def concatenate(parts: Sequence[Paths]) -> Paths:
        """All paths of all parts, in order, as columns."""
        return Paths(
            np.concatenate([part.state for part in parts]),
            np.concatenate([part.action for part in parts]),
            np.concatenate([part.next_state for part in parts]),
            _first(np.concatenate([np.diff(part.first_step) for part in parts])),
            np.concatenate([part.time for part in parts]),
        )

    @staticmethod
    def of(paths: Sequence[Path]) -> Paths:
        """Columns from single paths."""
        if isinstance(paths, Paths):
            return paths
        state: list[Any] = []
        action: list[Any] = []
        following: list[Any] = []
        first = [0]
        paths = [Path(*path) for path in paths]
        for number, (states, actions, given, _) in enumerate(paths):
            extra = len(states) - len(actions)
            if extra not in (0, 1):
                raise ValueError(
                    f"path {number} has {len(states)} states and {len(actions)} actions; "
                    "give one action for each state, and, if you know it, the state where it ended"
                )
            end = [] if extra or not len(states) else [UNKNOWN]
            if given is not None and (len(given) != len(actions) or list(given[-1:]) != (end or list(states[-1:]))):
                raise ValueError(
                    f"path {number} has next states {given!r} beside states {states!r} and {len(actions)} actions; "
                    "give one next state for each action, and the last one is where the path ended"
                )
            state.extend(states[: len(actions)])
            action.extend(actions)
            following.extend([*states[1:], *end] if given is None else given)
            first.append(len(state))
        columns = Paths(objects(state), objects(action), objects(following), np.array(first, np.int64))
        if all(path.times is None for path in paths):
            return columns
        time = columns.time.copy()
        for number, path in enumerate(paths):
            if path.times is not None:
                if len(path.times) != len(path.actions):
                    raise ValueError(f"path {number} has {len(path.times)} times and {len(path.actions)} actions")
                time[first[number] : first[number + 1]] = path.times
        return Paths(columns.state, columns.action, columns.next_state, columns.first_step, time)


def _first(length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each path starts, and where the last ends."""
    return np.concatenate([[0], np.cumsum(length)]).astype(np.int64)


def objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """A column of labels, whatever they are (numpy would turn tuples into a matrix)."""
    column = np.empty(len(values), object)
    column[:] = values
    return column
