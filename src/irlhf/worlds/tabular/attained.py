"""What a policy attains, exactly: ``E_pi[sum_t g^t (r_t/T + log mu_t - log pi_t)]``, by solving for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from scipy.sparse.csgraph import breadth_first_order
from scipy.sparse.linalg import spsolve
from torch import Tensor

from irlhf.worlds.tabular.draws import policy_table, starts_of
from irlhf.worlds.tabular.solution import pair_reward

if TYPE_CHECKING:
    from irlhf.worlds.tabular.world import TabularWorld


def attained(
    world: TabularWorld, policy: Any, reward: Any, contexts: Sequence[Any], *, temperature: float
) -> Float[Tensor, "contexts"]:
    """See :meth:`irlhf.worlds.tabular.world.TabularWorld.attained`."""
    starts = starts_of(world, contexts)
    goals = [s.destination for s in starts] if world.destinations else [None] * len(starts)
    labels = list(dict.fromkeys(goals))
    start = world.state_numbers([s.state for s in starts], "start")
    log_pi = policy_table(world, policy, labels)
    with torch.no_grad():
        utility = pair_reward(world, reward, labels) / temperature + world.log_base_of_pair - log_pi
        gain = torch.where(torch.isneginf(log_pi), 0.0, log_pi.exp() * utility)
    shape = (len(labels), log_pi.shape[1] if world.horizon is None else world.horizon, world.transitions.n_pairs)
    chance, gains = log_pi.exp().expand(shape).numpy(), gain.expand(shape).numpy()
    result = np.empty(len(starts))
    for k, goal in enumerate(labels):
        own = np.array([x == goal for x in goals])
        ends = world.transitions.terminal.copy()
        if world.destinations:
            number = world.state_numbers([goal], "destination")[0]
            ends = ends & (world.horizon is not None)  # without a horizon a dead end is no end
            ends[number] = True
        solved = _backward if world.horizon is not None else _forever
        result[own] = solved(world, chance[k], gains[k], ends, start[own])
    return torch.from_numpy(result)


def _matrices(world: TabularWorld, chance: Any, gain: Any, ends: Any) -> tuple[Any, Any]:
    """([states, states] where the policy leads, [states] what a step of it is worth), nothing where it has ended."""
    t = world.transitions
    going = np.where(ends[t.state], 0.0, chance)
    choose = sp.csr_array((going, np.arange(t.n_pairs), t.first_pair), shape=(t.n_states, t.n_pairs))
    worth = np.bincount(t.state, np.where(ends[t.state], 0.0, gain), minlength=t.n_states)
    return choose @ t.matrix, worth


def _backward(world: TabularWorld, chance: Any, gain: Any, ends: Any, start: Any) -> Any:
    values = np.zeros(world.transitions.n_states)
    for time in reversed(range(len(chance))):
        leads, worth = _matrices(world, chance[time], gain[time], ends)
        values = worth + world.discount * (leads @ values)
    return values[start]


def _forever(world: TabularWorld, chance: Any, gain: Any, ends: Any, start: Any) -> Any:
    """Minus infinity from where the policy may come to where no end can be reached."""
    leads, worth = _matrices(world, chance[0], gain[0], ends)
    n = len(worth)
    solvable = np.ones(n, bool)
    if world.discount == 1:
        solvable = ~_leading_to(leads, ~_leading_to(leads, ends))
    kept = np.flatnonzero(solvable)
    values = np.full(n, -np.inf)
    system = sp.eye_array(len(kept), format="csc") - world.discount * leads[kept][:, kept].tocsc()
    values[kept] = spsolve(system, worth[kept]) if len(kept) else 0.0
    return values[start]


def _leading_to(leads: Any, states: Any) -> Any:
    """From which states the policy may come to some of these."""
    arrows = leads.tocoo()
    going = arrows.data > 0
    n, some = len(states), np.flatnonzero(states)
    origin = np.concatenate([arrows.col[going], np.full(len(some), n)])  # backward, and a node before all of them
    goal = np.concatenate([arrows.row[going], some])
    found = np.zeros(n + 1, bool)
    found[breadth_first_order(sp.csr_array((np.ones(len(goal)), (origin, goal)), shape=(n + 1, n + 1)), n)[0]] = True
    return found[:n]
