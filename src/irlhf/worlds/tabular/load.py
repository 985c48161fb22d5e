"""A world, its features and what was observed in it, from files or frames: ``load("panel.csv", "features.csv")``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from irlhf.errors import ConfigError, DataError, Problem
from irlhf.feedback import DEMONSTRATION, Feedback, picked
from irlhf.worlds.tabular.build import from_table
from irlhf.worlds.tabular.estimate import TransitionEstimate, estimate_transitions
from irlhf.worlds.tabular.features import Features
from irlhf.worlds.tabular.features import features as align
from irlhf.worlds.tabular.panel import read_features, read_panel, read_transitions
from irlhf.worlds.tabular.paths import UNKNOWN, Paths
from irlhf.worlds.tabular.world import TabularWorld

Pooling = Literal["frequencies", "increments"]


def load(
    panel: Any,
    features: Any,
    transitions: Any = None,
    *,
    pooling: Pooling = "frequencies",
    reset: Mapping[Any, int] | None = None,
    **options: Any,
) -> tuple[TabularWorld, Features, Feedback]:
    """(world, features, demonstrations) from CSV or Parquet files, or from frames.

    Args:
        panel: rows ``trajectory, step, state, action[, next_state][, context][, person]``.
        features: rows ``state[, action][, next_state]`` and a column for each feature.
        transitions: rows ``state, action, next_state, probability``; None estimates them from the panel.
        pooling, reset: how; see :func:`irlhf.worlds.tabular.estimate.estimate_transitions`. With "frequencies", a pair
            (state, action) that the panel never saw is impossible in the world: give transitions, or pool increments,
            where that is not what you mean.
        options: discount, horizon, destinations; see :class:`irlhf.worlds.tabular.TabularWorld`.

    Raises:
        DataError: a file that cannot be read; names file, line, field, and what to do.
        ConfigError: files that do not fit each other.
    """
    feedback, table = read_panel(panel), read_features(features)
    if transitions is not None:
        dynamics = read_transitions(transitions)
    else:
        paths, weights = observed_paths([feedback])
        dynamics, estimate = observed_transitions(paths, table, weights=weights, pooling=pooling, reset=reset)
        if estimate is not None and estimate.n_unseen and pooling == "frequencies":
            warnings.warn(
                f"{estimate.n_unseen} pairs (state, action) were never seen and are impossible in this world, for "
                f"example {estimate.unseen[0]}; give transitions, or pool increments, if that is not so",
                stacklevel=2,
            )
    world = from_table(dynamics, **options)
    return world, align(world, table), feedback


def observed_transitions(
    paths: Paths,
    table: pd.DataFrame | None,
    *,
    weights: NDArray[np.float64] | None = None,
    pooling: Pooling = "frequencies",
    reset: Mapping[Any, int] | None = None,
    name: str = "the panel",
) -> tuple[pd.DataFrame, TransitionEstimate | None]:
    """The table of transitions that paths and the keys of features imply, and how it was estimated.

    A network, where every action is the state it leads to, needs no estimate: then that is None.
    """
    if pooling == "increments":
        states = _range_of_states(paths, table)
        estimate = estimate_transitions(
            paths, weights=weights, pooling="increments", states=states, reset=reset, name=name
        )
    elif (network := _network(paths, table)) is not None:
        return network, None
    else:
        estimate = estimate_transitions(paths, weights=weights, name=name)
        led_somewhere = set(zip(estimate.table["state"], estimate.table["action"], strict=True))
        nowhere = [pair for pair in zip(paths.state, paths.action, strict=True) if pair not in led_somewhere]
        if nowhere:
            state, action = nowhere[0]
            reason = (
                f"action {action!r} was taken in state {state!r}, but no step says where it led (it is the last of its "
                f"path; {len(set(nowhere))} such pairs); give next_state, or transitions, or pool increments"
            )
            raise DataError(Problem(name, None, "next_state", reason))
    return estimate.table, estimate


def observed_paths(parts: Sequence[Feedback]) -> tuple[Paths, NDArray[np.float64]]:
    """The path and the weight of each demonstration; if there are none, every trajectory that was shown, once."""
    demonstrated = [part for part in (part.where(kind=DEMONSTRATION) for part in parts) if len(part)]
    columns, weights = [], []
    for part in demonstrated or parts:
        number = part.trajectory if demonstrated else np.unique(part.trajectory)
        own: Any = part.trajectories
        if not np.array_equal(number, np.arange(len(own))):
            own = picked(own, number)
        columns.append(Paths.of(own))
        weights.append(part.weight if demonstrated else np.ones(len(number)))
    return columns[0] if len(columns) == 1 else Paths.concatenate(columns), np.concatenate(weights)


def _network(paths: Paths, table: pd.DataFrame | None) -> pd.DataFrame | None:
    """The links of a network, where every known next state is the action; None where it is not one.

    Links that features are given for exist, whether or not anybody took them.
    """
    known = np.array([following is not UNKNOWN for following in paths.next_state], bool)
    if not known.any() or (paths.action[known] != paths.next_state[known]).any():
        return None
    links = pd.DataFrame({"state": paths.state, "action": paths.action}, dtype=object)
    if table is not None and "action" in table:
        links = pd.concat([table[["state", "action"]].astype(object), links])
    links = links.drop_duplicates(ignore_index=True)
    return links.assign(next_state=links["action"])


def _range_of_states(paths: Paths, table: pd.DataFrame | None) -> list[Any]:
    """All states, for increments: those with features, or all whole numbers between the first and last seen."""
    seen = {*paths.state.tolist(), *(x for x in paths.next_state.tolist() if x is not UNKNOWN)}
    if table is not None:
        return sorted({*table["state"].tolist()}, key=lambda x: (isinstance(x, str), x))
    if any(isinstance(x, str) for x in seen):
        text = next(x for x in seen if isinstance(x, str))
        raise ConfigError(f"pooling by increments needs states that are whole numbers, found {text!r}")
    if max(seen) - min(seen) > 10_000_000:
        raise ConfigError(f"states run from {min(seen)} to {max(seen)}: too many for increments; use frequencies")
    return list(range(min(seen), max(seen) + 1))
