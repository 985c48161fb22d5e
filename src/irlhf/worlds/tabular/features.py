"""Features of states, of pairs (state, action) or of outcomes (state, action, next state), aligned with a world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from irlhf.errors import ConfigError
from irlhf.worlds.tabular.paths import objects
from irlhf.worlds.tabular.world import TabularBatch, TabularWorld

KEYS = {"states": ["state"], "pairs": ["state", "action"], "outcomes": ["state", "action", "next_state"]}


@dataclass(frozen=True, eq=False)
class Features:
    """A table of numbers: one row for each state, pair or outcome of a world, one named column for each feature."""

    values: Float[Tensor, "rows features"]
    names: tuple[str, ...]
    on: str

    def __post_init__(self):
        if self.on not in KEYS:
            raise ConfigError(f"features are on {self.on!r}; choose one of {', '.join(KEYS)}")
        if len(self.names) != self.values.shape[1]:
            raise ConfigError(f"{len(self.names)} names for {self.values.shape[1]} features; give one for each")
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"feature names must differ; got {', '.join(self.names)}")
        if not torch.isfinite(self.values).all():
            column = int((~torch.isfinite(self.values)).any(0).nonzero()[0])
            raise ConfigError(f"feature {self.names[column]!r} has values that are not finite")

    def rows(self, batch: TabularBatch) -> Tensor:
        """[steps] Which row of ``values`` each step of a batch has."""
        rows = {"states": batch.state, "pairs": batch.pair, "outcomes": batch.outcome}[self.on]
        if self.on == "outcomes" and (rows < 0).any():
            raise ConfigError(
                "the reward depends on the next state, but some steps do not say where they led; "
                "give next_state in the panel, or the state where each path ended"
            )
        return rows

    def standardized(self) -> Features:
        """Each feature minus its mean, divided by its standard deviation over the rows (constant ones as they are)."""
        scale = self.values.std(0, correction=0)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return Features((self.values - self.values.mean(0)) / scale, self.names, self.on)


def features(world: TabularWorld, table: Any, *, names: list[str] | None = None) -> Features:
    """Features from a frame with the key columns state[, action][, next_state], or from an array in the world's order.

    Rows for what the world does not have are ignored. States without actions need no row.

    Raises:
        ConfigError: a state, pair or outcome of the world has no row; names it.
    """
    if not isinstance(table, pd.DataFrame):
        values = torch.as_tensor(np.asarray(table), dtype=torch.float64)
        t = world.transitions
        by_size = {t.n_states: "states", t.n_pairs: "pairs", t.n_outcomes: "outcomes"}
        if values.dim() != 2 or len(values) not in by_size:
            raise ConfigError(
                f"features have shape {tuple(values.shape)}; give [{t.n_states} states, features], "
                f"[{t.n_pairs} pairs, features] or [{t.n_outcomes} outcomes, features]"
            )
        return Features(values, tuple(names or (f"x{k}" for k in range(values.shape[1]))), by_size[len(values)])
    on = "outcomes" if "next_state" in table else "pairs" if "action" in table else "states"
    keys = KEYS[on]
    if "state" not in table:
        raise ConfigError(f"features need a column 'state'; got {', '.join(map(str, table.columns))}")
    columns = [str(c) for c in table.columns if c not in keys] if names is None else names
    number = _rows_of(world, table, on)
    known = number >= 0
    n_rows = {"states": world.transitions.n_states, "pairs": world.transitions.n_pairs}.get(
        on, world.transitions.n_outcomes
    )
    if len(np.unique(number[known])) != known.sum():
        raise ConfigError(f"two rows of the features are for the same {' and '.join(keys)}")
    values = np.full((n_rows, len(columns)), np.nan)
    values[number[known]] = table[columns].to_numpy(dtype=float)[known]
    missing = np.isnan(values).all(1) if len(columns) else np.zeros(n_rows, bool)
    if on == "states":
        values[missing & world.transitions.terminal] = 0.0
        missing &= ~world.transitions.terminal
    if missing.any():
        k = int(np.argmax(missing))
        where = {"state": world.states[k]} if on == "states" else _place(world, on, k)
        named = ", ".join(f"{key} {label!r}" for key, label in where.items())
        raise ConfigError(f"{int(missing.sum())} {on} of the world have no features, the first is {named}; add rows")
    return Features(torch.from_numpy(values), tuple(columns), on)


def _place(world: TabularWorld, on: str, row: int) -> dict[str, Any]:
    table = world.pair_table() if on == "pairs" else world.outcome_table()
    return {key: table[key].iloc[row] for key in KEYS[on]}


def _rows_of(world: TabularWorld, table: pd.DataFrame, on: str) -> np.ndarray:
    """The number of the world's state, pair or outcome that each row of the frame is for; -1 if it has none."""
    state = _numbers(world.states, table["state"])
    if on == "states":
        return state
    action = _numbers(world.actions, table["action"])
    pair = np.where(state >= 0, world.pair_numbers(state, action), -1)
    if on == "pairs":
        return pair
    return world.outcome_numbers(pair, _numbers(world.states, table["next_state"]))


def _numbers(index: pd.Index, labels: Any) -> np.ndarray:
    return index.get_indexer(pd.Index(objects(labels.tolist()), dtype=object))
