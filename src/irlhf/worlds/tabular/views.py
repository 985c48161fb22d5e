"""A fitted reward as numbers on a tabular world, and what kind of thing the world's states are: a grid, a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from irlhf.errors import ConfigError, IrlhfError
from irlhf.worlds.tabular.solution import world_reward
from irlhf.worlds.tabular.world import TabularWorld

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """A fitted reward as numbers on a world. ``policy`` is None where this reward has no solution."""

    world: TabularWorld
    context: Any
    on: str
    pair_reward: Floats  # [pairs]
    policy: Floats | None  # [pairs]
    visits: Floats  # [states] steps of the feedback

    @property
    def state_reward(self) -> Floats:
        """[states] The reward of a step from each state, averaged over the policy; NaN where no step is possible."""
        t = self.world.transitions
        weight = np.ones(t.n_pairs) if self.policy is None else self.policy
        total = np.bincount(t.state, weight, minlength=t.n_states)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.bincount(t.state, weight * self.pair_reward, minlength=t.n_states) / total

    @property
    def meaning(self) -> str:
        if self.on == "states":
            return "Reward of being in each state."
        how = "all its actions alike" if self.policy is None else "the fitted policy"
        return f"Expected reward of a step from each state, under {how}."


@torch.no_grad()
def look(fit: Any) -> View:
    """Evaluates reward and policy on the world of a fit: of its first demonstrations, or else of its first term."""
    terms = [t for t in fit.terms if isinstance(getattr(t.likelihood, "world", None), TabularWorld)]
    if not terms:
        raise ConfigError("these pictures are of tabular worlds, and no term of the fit has one")
    term = next((t for t in terms if hasattr(t.likelihood, "kind")), terms[0])
    world, kind = term.likelihood.world, getattr(term.likelihood, "kind", "causal")
    used, times = np.unique(term.feedback.context, return_counts=True)
    context = term.feedback.contexts[used[times.argmax()]]
    t, on = world.transitions, getattr(fit.reward, "on", "outcomes")
    reward = world_reward(world, fit.reward, [context], on)[0, 0].numpy()  # at the first step
    if len(reward) != t.n_pairs:
        reward = np.bincount(t.pair_of_outcome, t.probability * reward, minlength=t.n_pairs)
    try:
        solution = world.solve(fit.reward, [context], temperature=term.source.temperature, kind=kind)
        policy = solution.log_policy[0].exp().numpy()
        policy = policy[0] if solution.timed else policy
        if len(policy) != t.n_pairs:  # nature's draw was part of the choice
            policy = np.bincount(t.pair_of_outcome, policy, minlength=t.n_pairs)
    except (IrlhfError, ArithmeticError):
        policy = None
    same = [s for s in terms if s.likelihood.world is world]
    visits = sum(np.bincount(s.prepared.batch.state.numpy(), minlength=t.n_states) for s in same)
    values = None if policy is None else np.asarray(policy, float)
    return View(world, context, on, np.asarray(reward, float), values, np.asarray(visits, float))


def _integers(labels: Sequence[Any]) -> NDArray[np.int64] | None:
    if len(labels) and all(isinstance(x, (int, np.integer)) and not isinstance(x, bool) for x in labels):
        return np.array(labels, np.int64)
    return None


def grid_of(world: TabularWorld) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """(row, column) of each state, -1 for states beside the grid; None if the states are no grid."""
    labels = list(world.states)
    pairs = [k for k, x in enumerate(labels) if isinstance(x, tuple) and len(x) == 2 and _integers(x) is not None]
    if len(pairs) >= max(4, 0.8 * len(labels)):
        place = np.full((len(labels), 2), -1)
        place[pairs] = np.array([labels[k] for k in pairs]) - np.array([labels[k] for k in pairs]).min(0)
        return (place[:, 0], place[:, 1]) if np.prod(place.max(0) + 1) <= 4 * len(pairs) else None
    number = _integers(labels)
    if number is None or len(number) < 6 or number.max() - number.min() != len(number) - 1:
        return None
    number = number - number.min()
    t = world.transitions
    origin, target = number[t.state[t.pair_of_outcome]], number[t.next_state]
    jump = np.abs(target - origin)
    far = np.bincount(jump[jump > 2])
    if not len(far):
        return None
    width = int(far.argmax())
    # One state to the right, but not around the corner; or one row up or down.
    neighbor = ((jump <= 1) & (origin // width == target // width)) | (jump == width)
    if len(number) % width or neighbor.mean() < 0.9 or (jump == width).mean() < 0.1:
        return None
    return number // width, number % width


def line_of(world: TabularWorld) -> NDArray[np.int64] | None:
    """The integers that the states are, if the shortest steps from them are short: numbers alone may be mere names."""
    number = _integers(list(world.states))
    t = world.transitions
    if number is None or len(number) < 3 or not t.n_pairs:
        return None
    distance = np.abs(number[t.next_state] - number[t.state[t.pair_of_outcome]])
    by_pair = np.bincount(t.pair_of_outcome, t.probability * distance, minlength=t.n_pairs)
    shortest = np.minimum.reduceat(by_pair, t.first_pair[:-1][~t.terminal])
    return number if np.median(shortest) <= max(3.0, len(number) / 10) else None
