"""Tabular worlds from what people have: tables, arrays, graphs, Gymnasium's toy-text environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from irlhf.errors import ConfigError
from irlhf.functional.transitions import Transitions
from irlhf.worlds.tabular.paths import objects
from irlhf.worlds.tabular.world import TabularWorld, _label_order


def from_table(
    table: pd.DataFrame, *, states: Sequence[Any] | None = None, log_base: pd.DataFrame | None = None, **options: Any
) -> TabularWorld:
    """A world from rows ``state, action, next_state[, probability]`` (probability 1 where the column is missing).

    Args:
        table: one row for each outcome; rows of the same outcome add up, rows of probability 0 are left out.
        states: labels of all states, in order; default: those of the table, sorted.
        log_base: rows ``state, action, log_base``; default: every action counts once.
        options: discount, horizon, destinations; see :class:`TabularWorld`.
    """
    missing = {"state", "action", "next_state"} - set(table.columns)
    if missing:
        raise ConfigError(f"the transitions need the columns state, action, next_state; {sorted(missing)} is missing")
    labels = list(states) if states is not None else _labels(table["state"], table["next_state"])
    actions = _labels(table["action"])
    state = _codes(table["state"], labels, "state")
    action = _codes(table["action"], actions, "action")
    following = _codes(table["next_state"], labels, "next_state")
    probability = table["probability"].to_numpy(float) if "probability" in table else np.ones(len(table))
    world = _assemble(state, action, following, probability, labels, actions, **options)
    if log_base is not None:
        number = world.pair_numbers(_numbers(log_base["state"], labels), _numbers(log_base["action"], actions))
        if (number < 0).any():
            row = log_base.iloc[int(np.argmax(number < 0))]
            raise ConfigError(
                f"the base measure names action {row['action']!r} in state {row['state']!r}, which the world does not "
                "have; correct or remove the row"
            )
        base = np.zeros(world.transitions.n_pairs)
        base[number] = log_base["log_base"].to_numpy(float)
        world = _assemble(state, action, following, probability, labels, actions, log_base=base, **options)
    return world


def from_arrays(
    transitions: np.ndarray | Sequence[Any],
    *,
    allowed: np.ndarray | None = None,
    states: Sequence[Any] | None = None,
    actions: Sequence[Any] | None = None,
    terminal: Sequence[int] = (),
    **options: Any,
) -> TabularWorld:
    """A world from an array [states, actions, states] or, sparse, from one matrix [states, states] for each action.

    Args:
        transitions: probabilities; kept sparse.
        allowed: [states, actions] which actions are possible; default: those whose probabilities do not sum to zero.
        terminal: numbers of states whose actions are taken away.
    """
    if isinstance(transitions, np.ndarray):
        state, action, following = np.nonzero(transitions)
        probability = transitions[state, action, following].astype(float)
        n_states, n_actions = transitions.shape[:2]
    else:
        matrices: list[Any] = [sp.coo_array(m) for m in transitions]
        n_states, n_actions = matrices[0].shape[0], len(matrices)
        state = np.concatenate([m.row for m in matrices]).astype(np.int64)
        following = np.concatenate([m.col for m in matrices]).astype(np.int64)
        action = np.repeat(np.arange(n_actions), [m.nnz for m in matrices])
        probability = np.concatenate([m.data for m in matrices]).astype(float)
    keep = np.ones(len(state), bool) if allowed is None else np.asarray(allowed, bool)[state, action]
    keep &= ~np.isin(state, np.asarray(terminal, int))
    labels = list(range(n_states)) if states is None else list(states)
    names = list(range(n_actions)) if actions is None else list(actions)
    state, action, following, probability = _only(keep, state, action, following, probability)
    return _assemble(state, action, following, probability, labels, names, **options)


def from_networkx(graph: Any, *, destinations: bool = True, **options: Any) -> TabularWorld:
    """A deterministic world from a networkx graph: states are nodes, an action is the neighbor one goes to.

    Undirected graphs are walked both ways. Features of edges: see :func:`edge_table`.
    """
    return from_table(edge_table(graph), states=list(graph.nodes), destinations=destinations, **options)


def edge_table(graph: Any, features: Sequence[str] = ()) -> pd.DataFrame:
    """``state, action`` (the neighbor), ``next_state`` and the named edge attributes of a networkx graph."""
    directed = graph if graph.is_directed() else graph.to_directed()
    edges = list(directed.edges(data=True))
    for u, v, data in edges:
        for name in features:
            if name not in data:
                raise ConfigError(f"edge {u!r} -> {v!r} has no attribute {name!r}; it has {', '.join(map(str, data))}")
    ends = [v for _, v, _ in edges]
    columns = {"state": objects([u for u, _, _ in edges]), "action": objects(ends), "next_state": objects(ends)}
    return pd.DataFrame(columns | {name: [data[name] for *_, data in edges] for name in features})


def from_gymnasium(env: Any, **options: Any) -> TabularWorld:
    """A world from a Gymnasium toy-text environment (or its ``P[state][action]`` lists).

    A state that is only ever reached with ``terminated=True`` loses its actions: episodes end there. Where a state is
    reached both ways, its terminated version is a state of its own, labeled ``("terminated", state)``. Truncation is
    no property of the dynamics: give a horizon.
    """
    dynamics: Mapping[int, Any] = getattr(getattr(env, "unwrapped", env), "P", env)
    rows = [
        (s, a, following, float(p), bool(terminated))
        for s, by_action in dynamics.items()
        for a, outcomes in by_action.items()
        for p, following, _, terminated in outcomes
        if p > 0
    ]
    flagged = {f for s, _, f, _, done in rows if s != f and done}
    unflagged = {f for s, _, f, _, done in rows if s != f and not done}
    # A finished state may loop on itself, flagged or not; a flagged loop of a state that goes on elsewhere is an end.
    goes_on = {s for s, _, f, _, _ in rows if s != f}
    loops = {s for s, _, f, _, done in rows if s == f and done and s in goes_on}
    both = (flagged & unflagged) | (loops - flagged)
    final = flagged - both
    table = [(s, a, ("terminated", f) if done and f in both else f, p) for s, a, f, p, done in rows if s not in final]
    labels = [*dynamics, *(("terminated", s) for s in sorted(both))]
    columns = {name: objects([row[k] for row in table]) for k, name in enumerate(("state", "action", "next_state"))}
    return from_table(pd.DataFrame(columns).assign(probability=[row[3] for row in table]), states=labels, **options)


def _labels(*columns: Any) -> list[Any]:
    distinct = {label: None for column in columns for label in column.unique()}
    return sorted(distinct, key=_label_order)


def _codes(column: Any, labels: list[Any], name: str) -> np.ndarray:
    code = _numbers(column, labels)
    if (code < 0).any():
        raise ConfigError(f"{name} {column.iloc[int(np.argmax(code < 0))]!r} is not among the given labels")
    return code


def _numbers(column: Any, labels: list[Any]) -> np.ndarray:
    """The position of each label; -1 for one that is not among them."""
    index = pd.Index(objects(labels), dtype=object)
    return index.get_indexer(pd.Index(objects(column.tolist()), dtype=object))


def _only(keep: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """The kept rows; the columns themselves, not copies, where all are kept: they can be large."""
    return columns if keep.all() else tuple(column[keep] for column in columns)


def _assemble(
    state: np.ndarray,
    action: np.ndarray,
    following: np.ndarray,
    probability: np.ndarray,
    states: list[Any],
    actions: list[Any],
    **options: Any,
) -> TabularWorld:
    """Sorts outcomes by (state, action label, next state), adds up repeated ones, and builds the world."""
    rank = np.empty(len(actions), np.int64)
    rank[sorted(range(len(actions)), key=lambda k: _label_order(actions[k]))] = np.arange(len(actions))
    pair_key = state * len(actions) + rank[action]
    order = np.lexsort((following, pair_key))
    pair_key, following, probability = pair_key[order], following[order], probability[order]
    del order
    new = np.ones(len(pair_key), bool)
    new[1:] = (pair_key[1:] != pair_key[:-1]) | (following[1:] != following[:-1])
    total = probability if new.all() else np.add.reduceat(probability, np.flatnonzero(new))
    pair_key, following = _only(new, pair_key, following)
    if (total < 0).any() or not np.isfinite(total).all():
        raise ConfigError("transition probabilities must be finite and not negative")
    pair_key, following, total = _only(total > 0, pair_key, following, total)
    starts = np.ones(len(pair_key), bool)
    starts[1:] = pair_key[1:] != pair_key[:-1]
    first = np.flatnonzero(starts)
    pairs = pair_key[first]
    transitions = Transitions(
        n_states=len(states),
        state=pairs // len(actions),
        first_outcome=np.append(first, len(total)).astype(np.int64),
        next_state=following,
        probability=total,
    )
    label = objects(sorted(actions, key=_label_order))
    return TabularWorld(transitions, states=states, actions=list(label[pairs % len(actions)]), **options)
