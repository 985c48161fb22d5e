"""Trajectories of the tabular world: what was done in which state, many of them as three columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Path(NamedTuple):
    """One trajectory: at step t, ``actions[t]`` was taken in ``states[t]``. All are labels, as in the user's files.

    ``states`` may hold one state more than there are actions: where the path ended.
    """

    states: tuple[Any, ...]
    actions: tuple[Any, ...]


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()
"""Where a step led, if nobody wrote it down."""


@dataclass(frozen=True, eq=False)
class Paths(Sequence):
    """Many paths as columns; path i is steps ``first_step[i] : first_step[i + 1]``. A sequence of :class:`Path`.

    ``next_state`` is ``UNKNOWN`` where it was not observed: at the end of a path, or where a panel has a gap.
    """

    state: NDArray[np.object_]  # [steps] labels
    action: NDArray[np.object_]  # [steps] labels
    next_state: NDArray[np.object_]  # [steps] labels or UNKNOWN
    first_step: NDArray[np.int64]  # [paths + 1]

    def __len__(self) -> int:
        return len(self.first_step) - 1

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        i = range(len(self))[i]
        steps = slice(self.first_step[i], self.first_step[i + 1])
        states = tuple(self.state[steps])
        if len(states) and self.next_state[steps][-1] is not UNKNOWN:
            states += (self.next_state[steps][-1],)
        return Path(states, tuple(self.action[steps]))

    @staticmethod
    def of(paths: Sequence[Path]) -> Paths:
        """Columns from single paths."""
        if isinstance(paths, Paths):
            return paths
        state: list[Any] = []
        action: list[Any] = []
        following: list[Any] = []
        first = [0]
        for number, path in enumerate(paths):
            states, actions = path
            extra = len(states) - len(actions)
            if extra not in (0, 1):
                raise ValueError(
                    f"path {number} has {len(states)} states and {len(actions)} actions; "
                    "give one action for each state, and, if you know it, the state where it ended"
                )
            state.extend(states[: len(actions)])
            action.extend(actions)
            following.extend(states[1:])
            if not extra and len(states):
                following.append(UNKNOWN)
            first.append(len(state))
        return Paths(objects(state), objects(action), objects(following), np.array(first, np.int64))


def objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """A column of labels, whatever they are (numpy would turn tuples into a matrix)."""
    column = np.empty(len(values), object)
    column[:] = values
    return column
