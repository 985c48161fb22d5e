"""Transitions estimated from what a panel says about where each step led."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from irlhf.errors import DataError, Problem
from irlhf.io.wording import shown
from irlhf.worlds.tabular.paths import UNKNOWN, Paths, objects

LISTED = 1000  # pairs never seen that are named


@dataclass(frozen=True, eq=False)
class TransitionEstimate:
    """Estimated transitions and what they are worth."""

    table: pd.DataFrame
    """``state, action, next_state, probability, count``: count is how often the panel has the outcome, weighted."""
    pooling: str
    """``"frequencies"`` (of each pair) or ``"increments"`` (one distribution for all pairs)."""
    log_likelihood: float
    """Of all observed transitions at the estimate, weighted, in nats: the transition part, apart from the choices."""
    n_parameters: int
    """Free parameters of the estimate: outcomes minus one, for each distribution."""
    n_observed: int
    """Transitions that count: steps whose next state is known, of paths whose weight is not 0."""
    n_unseen: int
    """Pairs (state, action) that these never show; with ``"increments"`` the table has them all the same."""
    unseen: tuple[tuple[Any, Any], ...]
    """The first thousand of them."""
    increments: Mapping[int, float] | None = None
    """The pooled distribution: increment -> probability."""
    n_set_aside: int = 0
    """Transitions not used for the pooled distribution, because the ends may have cut them."""


def estimate_transitions(
    paths: Paths,
    *,
    weights: NDArray[np.float64] | Sequence[float] | None = None,
    pooling: Literal["frequencies", "increments"] = "frequencies",
    states: Sequence[Any] | None = None,
    actions: Sequence[Any] | None = None,
    reset: Mapping[Any, int] | None = None,
    name: str = "the panel",
) -> TransitionEstimate:
    """Transition probabilities by maximum likelihood from the steps of a panel whose next state is known.

    ``"frequencies"``: the frequencies of the next states of each (state, action).

    ``"increments"``: states are consecutive integers, and ``next_state - base`` has one distribution for all pairs,
    where base is the state, or ``reset[action]`` for the actions named there (Rust 1987: replacing an engine puts the
    odometer to 0, then it runs as any other). What leads beyond the first or last state ends there. So an observed
    increment that could have been cut is ambiguous: transitions from a base so near an end that some observed
    increment would pass it are set aside whole, with their uncut neighbors, because using only those that stayed
    inside would favor small increments. The estimate is the plain frequency of each increment among the others;
    ``n_set_aside`` counts, and the log-likelihood still covers, those set aside.

    Args:
        weights: how often each path counts (default: once). With weight 0 it does not count at all.
        states: all states (default: those of the panel); needed for ``"increments"``.
        actions: all actions (default: those of the panel).
        name: how to name the panel in errors.

    Raises:
        DataError: no transition is known, states or actions outside the lists, states that are not consecutive
            integers, or too few states for the increments.

    Example:
        >>> from irlhf.worlds.tabular.paths import Path
        >>> paths = Paths.of([Path((0, 1, 1, 2), ("go", "go", "go"))])
        >>> estimate_transitions(paths).table.probability.tolist()
        [1.0, 0.5, 0.5]
    """
    if pooling not in ("frequencies", "increments"):
        raise ValueError(f"pooling is {pooling!r}; choose 'frequencies' or 'increments'")
    weight = np.ones(len(paths)) if weights is None else np.asarray(weights, float)
    if weight.shape != (len(paths),) or not (np.isfinite(weight) & (weight >= 0)).all():
        raise ValueError(f"weights must be {len(paths)} finite numbers, none negative: one for each path")
    weight = np.repeat(weight, np.diff(paths.first_step))
    known = np.array([label is not UNKNOWN for label in paths.next_state], bool)
    if not known.any():
        raise DataError(
            Problem(name, None, "next_state", "no step says where it led; give transitions, or next states")
        )
    if not (weight[known] > 0).any():
        raise DataError(Problem(name, None, "weight", "every step that says where it led has weight 0; give weights"))
    known &= weight > 0
    weight = weight[known]
    state, action, following = paths.state[known], paths.action[known], paths.next_state[known]
    all_states = _states(paths) if states is None else list(states)
    all_actions = _ordered(paths.action) if actions is None else list(actions)
    s, a, f = (
        _codes(all_states, state, "state", name),
        _codes(all_actions, action, "action", name),
        _codes(all_states, following, "next_state", name),
    )
    if pooling == "increments":
        if states is None:
            raise ValueError(
                "pooling 'increments' needs states=, the list of all states, to know the first and the last"
            )
        return _increments(s, a, f, weight, all_states, all_actions, dict(reset or {}), name)
    if reset:
        raise ValueError(
            "reset belongs to pooling 'increments'; with 'frequencies' every action has its own frequencies"
        )
    return _pairs(s, a, f, weight, all_states, all_actions)


def _states(paths: Paths) -> list[Any]:
    return _ordered(objects([*paths.state, *(label for label in paths.next_state if label is not UNKNOWN)]))


def _ordered(labels: NDArray[np.object_]) -> list[Any]:
    return sorted(set(labels.tolist()), key=lambda x: (isinstance(x, str), x))


def _codes(labels: list[Any], values: NDArray[np.object_], field: str, name: str) -> NDArray[np.int64]:
    index = pd.Index(objects(labels), dtype=object)
    if not index.is_unique:
        twice = shown(labels[int(np.argmax(index.duplicated()))])
        raise DataError(Problem(name, None, field, f"{twice} is listed twice; list each once"))
    code = index.get_indexer(pd.Index(values, dtype=object))
    if (code < 0).any():
        found = shown(values[int(np.argmax(code < 0))])
        reason = f"{found} is not among the {len(labels)} that are listed; add it to the list, or correct the panel"
        raise DataError(Problem(name, None, field, reason))
    return code.astype(np.int64)


def _counted(
    s: NDArray[np.int64],
    a: NDArray[np.int64],
    f: NDArray[np.int64],
    weight: NDArray[np.float64],
    n_states: int,
    n_actions: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(pair, next state, weighted count) of the distinct outcomes, sorted."""
    outcome, which = np.unique((s * n_actions + a) * n_states + f, return_inverse=True)
    return outcome // n_states, outcome % n_states, np.bincount(which.ravel(), weight).astype(float)


def _unseen(pair: NDArray[np.int64], states: list[Any], actions: list[Any]) -> dict[str, Any]:
    """How many pairs were never seen, and the first of them: a list of all could be far longer than the panel."""
    seen, total = np.unique(pair), len(states) * len(actions)
    missing = np.setdiff1d(np.arange(min(total, LISTED + len(seen))), seen)[:LISTED]
    named = tuple((states[p // len(actions)], actions[p % len(actions)]) for p in missing)
    return {"n_unseen": total - len(seen), "unseen": named}


def _frame(pair, following, probability, count, states: list[Any], actions: list[Any]) -> pd.DataFrame:
    state, action = objects(states), objects(actions)
    return pd.DataFrame(
        {
            "state": state[pair // len(actions)],
            "action": action[pair % len(actions)],
            "next_state": state[following],
            "probability": probability,
            "count": count,
        }
    )


def _pairs(s, a, f, weight, states: list[Any], actions: list[Any]) -> TransitionEstimate:
    pair, following, count = _counted(s, a, f, weight, len(states), len(actions))
    total = np.bincount(pair, count)
    probability = count / total[pair]
    return TransitionEstimate(
        table=_frame(pair, following, probability, count, states, actions),
        pooling="frequencies",
        log_likelihood=float(count @ np.log(probability)),
        n_parameters=int(len(pair) - np.count_nonzero(total)),
        n_observed=len(s),
        **_unseen(pair, states, actions),
    )


def _increments(
    s, a, f, weight, states: list[Any], actions: list[Any], reset: dict[Any, int], name: str
) -> TransitionEstimate:
    def refuse(field: str, reason: str) -> DataError:
        return DataError(Problem(name, None, field, reason))

    if not all(isinstance(x, (int, np.integer)) and not isinstance(x, bool) for x in states):
        found = next(shown(x) for x in states if not isinstance(x, (int, np.integer)) or isinstance(x, bool))
        raise refuse("state", f"found {found}; pooling by increments needs states that are whole numbers")
    value = np.array(states, np.int64)
    first, last = int(value.min()), int(value.max())
    if len(np.unique(value)) != len(value) or last - first + 1 != len(value):
        raise refuse(
            "state", f"the {len(value)} states are not all the integers from {first} to {last}; list each once"
        )
    for action, target in reset.items():
        if action not in actions:
            raise refuse("action", f"reset names {shown(action)}, but the actions are {shown(actions)}; correct reset")
        if target not in states:
            raise refuse("state", f"reset puts {shown(action)} to {shown(target)}, which is not a state; correct reset")
    number_of = np.empty(len(value), np.int64)  # position in the list, by value - first
    number_of[value - first] = np.arange(len(value))
    base_of_pair = np.repeat(value, len(actions))
    for action, target in reset.items():
        base_of_pair[actions.index(action) :: len(actions)] = target

    base = base_of_pair[s * len(actions) + a]
    increment = value[f] - base
    certain = (base + increment.max() <= last) & (base + increment.min() >= first)
    support, which = np.unique(increment[certain], return_inverse=True)
    count = np.bincount(which.ravel(), weight[certain])
    too_near = refuse(
        "next_state",
        f"increments from {increment.min()} to {increment.max()} were observed, some only so near the first or last of "
        f"the states {first} to {last} that they may be cut; list more states, or use pooling 'frequencies'",
    )
    if not certain.any():
        raise too_near
    probability = count / count.sum()

    # Every pair gets the pooled table; increments that pass an end add up there.
    target = np.clip(base_of_pair[:, None] + support, first, last) - first
    key = (np.arange(len(base_of_pair))[:, None] * len(value) + number_of[target]).ravel()
    outcome, which = np.unique(key, return_inverse=True)
    p = np.bincount(which.ravel(), np.tile(probability, len(base_of_pair)))
    pair, following = outcome // len(value), outcome % len(value)
    observed = (s * len(actions) + a) * len(value) + f
    seen = np.minimum(np.searchsorted(outcome, observed), len(outcome) - 1)
    if (outcome[seen] != observed).any():  # set aside, and impossible under the increments of the others
        raise too_near
    n = np.bincount(seen, weight, minlength=len(outcome))
    return TransitionEstimate(
        table=_frame(pair, following, p, n, states, actions),
        pooling="increments",
        log_likelihood=float(n[n > 0] @ np.log(p[n > 0])),
        n_parameters=len(support) - 1,
        n_observed=len(s),
        **_unseen(s * len(actions) + a, states, actions),
        increments={int(d): float(q) for d, q in zip(support, probability, strict=True)},
        n_set_aside=int((~certain).sum()),
    )
