"""Episodes and segments of episodes: what people did in an environment, and what was played in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode, or a part of one.

    Args:
        obs: [steps + 1, ...] what was seen, the last of it after the last action.
        acts: [steps, ...] what was done; None: not recorded.
        terminated: whether the environment ended it. False: it was cut (truncated), by a limit of time or otherwise.
        rewards: [steps] what the environment paid; None: not recorded.
        length: how many steps it is padded to, in a state where nothing more happens, if it terminated earlier. None:
            for a whole episode, as long as the environment lets any last. Give it for segments.
        id: names the episode in errors.
    """

    obs: NDArray[Any]
    acts: NDArray[Any] | None
    terminated: bool
    rewards: NDArray[Any] | None = None
    length: int | None = None
    id: str = ""

    def __len__(self) -> int:
        return len(self.obs) - 1

    def part(self, start: int, stop: int) -> Episode:
        """The segment of the steps from ``start`` until before ``stop``; shorter if the episode ended earlier.

        What terminated within it is padded to ``stop - start`` steps.
        """
        end = min(stop, len(self))
        return Episode(
            self.obs[start : end + 1],
            None if self.acts is None else self.acts[start:end],
            self.terminated and end == len(self),
            None if self.rewards is None else self.rewards[start:end],
            stop - start,
            f"{self.id}[{start}:{stop}]",
        )


class Episodes(Sequence[Episode]):
    """Many episodes, laid end to end.

    Args:
        obs: [all steps + one an episode, ...].
        acts: [all steps, ...], or None.
        first: [episodes + 1] where each begins among the steps.
        terminated: [episodes].
        rewards: [all steps], NaN where not recorded.
        length: [episodes] as in :class:`Episode`; -1: None.
        ids: [episodes].
    """

    def __init__(
        self,
        obs: NDArray[Any],
        acts: NDArray[Any] | None,
        first: NDArray[np.int64],
        terminated: NDArray[np.bool_],
        rewards: NDArray[Any] | None = None,
        length: NDArray[np.int64] | None = None,
        ids: Sequence[str] | None = None,
    ):
        n = len(terminated)
        self.obs, self.acts, self.first, self.terminated = obs, acts, first, terminated
        self.rewards = np.full(first[-1], np.nan, np.float32) if rewards is None else rewards
        self.length = np.full(n, -1, np.int64) if length is None else length
        self.ids = [str(k) for k in range(n)] if ids is None else list(ids)

    @staticmethod
    def of(episodes: Sequence[Episode]) -> Episodes:
        """Many out of single ones."""
        if isinstance(episodes, Episodes):
            return episodes
        acts = None if any(e.acts is None for e in episodes) else np.concatenate([_array(e.acts) for e in episodes])
        return Episodes(
            np.concatenate([_array(e.obs) for e in episodes]),
            acts,
            np.cumsum([0, *map(len, episodes)]),
            np.array([e.terminated for e in episodes], bool),
            np.concatenate([np.full(len(e), np.nan) if e.rewards is None else _array(e.rewards) for e in episodes]),
            np.array([-1 if e.length is None else e.length for e in episodes], np.int64),
            [e.id or str(k) for k, e in enumerate(episodes)],
        )

    def __len__(self) -> int:
        return len(self.terminated)

    @property
    def steps(self) -> NDArray[np.int64]:
        """[episodes] How many each has."""
        return np.diff(self.first)

    def __getitem__(self, k: Any) -> Any:
        if not isinstance(k, int | np.integer):
            return self.take(np.arange(len(self))[k])
        k = range(len(self))[int(k)]
        a, b = self.first[k], self.first[k + 1]
        rewards = self.rewards[a:b]
        return Episode(
            self.obs[a + k : b + k + 1],
            None if self.acts is None else self.acts[a:b],
            bool(self.terminated[k]),
            None if np.isnan(rewards).any() else rewards,
            None if self.length[k] < 0 else int(self.length[k]),
            self.ids[k],
        )

    def __iter__(self) -> Iterator[Episode]:
        return (self[k] for k in range(len(self)))

    def take(self, indices: Any) -> Episodes:
        """Some of them, in this order; one may be taken more than once."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        size = self.steps[indices]
        first = np.concatenate([[0], np.cumsum(size)])
        step = _ranges(self.first[indices], size)
        seen = _ranges(self.first[indices] + indices, size + 1)
        return Episodes(
            self.obs[seen],
            None if self.acts is None else self.acts[step],
            first,
            self.terminated[indices],
            self.rewards[step],
            self.length[indices],
            [self.ids[k] for k in indices],
        )

    @staticmethod
    def concatenate(parts: Sequence[Episodes]) -> Episodes:
        """All of all parts; actions are dropped if one part has none."""
        acts = None if any(p.acts is None for p in parts) else np.concatenate([_array(p.acts) for p in parts])
        before = np.cumsum([0, *(p.first[-1] for p in parts)])
        return Episodes(
            np.concatenate([p.obs for p in parts]),
            acts,
            np.concatenate([[0], *(p.first[1:] + b for p, b in zip(parts, before, strict=False))]),
            np.concatenate([p.terminated for p in parts]),
            np.concatenate([p.rewards for p in parts]),
            np.concatenate([p.length for p in parts]),
            [name for p in parts for name in p.ids],
        )

    def returns(self) -> NDArray[np.float64]:
        """[episodes] What the environment paid in all, undiscounted; NaN where it was not recorded."""
        total = np.concatenate([[0.0], np.cumsum(self.rewards, dtype=np.float64)])
        return total[self.first[1:]] - total[self.first[:-1]]


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values)


def _ranges(start: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int64]:
    """``start[0], start[0] + 1, ...`` (size[0] of them), then those of the next."""
    before = np.repeat(np.cumsum(size) - size, size)
    return np.repeat(start, size) + np.arange(size.sum()) - before
