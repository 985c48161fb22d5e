"""Optimal values of stationary problems by policy iteration (Howard 1960): the limit of soft values at temperature 0.

V(s) = max_a r(s, a) + discount * sum_s' p(s' | s, a) V(s')                                                      (1)

As a function of the reward it is convex and piecewise linear: its derivative is that of the best policy's value, by one
linear solve, and its second derivative is zero; at a kink, where two actions are equally good, it is that of one.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from irlhf.functional.differentiable import Array, apply_transposed, solve
from irlhf.functional.linear import EPS, DivergesError
from irlhf.functional.stationary import PolicyChain, policy_matrix, possible, state_maps
from irlhf.functional.transitions import Transitions

STEPS = 1000  # of policy iteration; ten are many
BETTER = 64 * EPS  # of the largest value: what another action must promise to be more than rounding


def optimal_values(
    reward: Float[Tensor, "... pairs"],
    transitions: Transitions,
    discount: float,
    *,
    absorbing: Bool[Tensor, "... states"] | None = None,
) -> Float[Tensor, "... states"]:
    """The fixed point of equation (1), with V = 0 at terminal and at absorbing states.

    Args:
        reward: of each pair; -inf where the action is not allowed.
        transitions: the world.
        discount: in [0, 1]. At 1 every path must end, and walking in circles must not pay.
        absorbing: where trajectories end besides the terminal states.

    Returns:
        V, in units of the reward; -inf where no trajectory is allowed. Differentiable, see above; in float64.

    Raises:
        DivergesError: discount is 1 and a circle pays.
    """
    batch = reward.shape[:-1] if absorbing is None else np.broadcast_shapes(reward.shape[:-1], absorbing.shape[:-1])
    given = reward.double().expand(*batch, transitions.n_pairs)
    ends = np.broadcast_to(transitions.terminal if absorbing is None else absorbing.numpy() | transitions.terminal,
                           (*batch, transitions.n_states)).reshape(-1, transitions.n_states)  # fmt: skip
    rows = given.detach().numpy().reshape(-1, transitions.n_pairs)
    found = [_best_policy(row, end, transitions, float(discount)) for row, end in zip(rows, ends, strict=True)]
    policy = np.stack([one for one, _ in found]).reshape(given.shape)
    alive = torch.from_numpy(np.stack([one for _, one in found]).reshape(*batch, -1))
    chain = PolicyChain(transitions, float(discount), policy)
    chosen = torch.from_numpy(policy)
    gain = apply_transposed(chain.at_state, torch.where(chosen > 0, given, 0.0) * chosen)
    return torch.where(alive, solve(chosen, gain, chain), -torch.inf)


def _best_policy(
    reward: Array, exits: NDArray[np.bool_], transitions: Transitions, discount: float
) -> tuple[Array, NDArray[np.bool_]]:
    """(policy [pairs], from which states an end or endless life is possible) of one context."""
    t = transitions
    ahead, _ = state_maps(t, discount)
    alive, allowed, exit_pair = possible(reward, exits, t, discount)
    free = np.flatnonzero(alive & ~exits)
    policy = np.zeros(t.n_pairs)
    if not len(free):
        return policy, alive
    reward = np.where(allowed, reward, 0.0)
    first = t.first_pair[:-1][~t.terminal]

    def best_of(value: Array) -> NDArray[np.int64]:
        """[states] The pair of highest value, the first of equal ones."""
        value = np.where(allowed, value, -np.inf)
        top = np.full(t.n_states, -np.inf)
        top[~t.terminal] = np.maximum.reduceat(value, first)
        is_top = np.flatnonzero(value >= top[t.state])
        found = np.zeros(t.n_states, np.int64)
        found[t.state[is_top][::-1]] = is_top[::-1]
        return found

    # Undiscounted, the first policy must end; improving one that does keeps it so.
    pair = exit_pair.copy() if discount == 1 and exit_pair is not None else best_of(reward)
    for _ in range(STEPS):
        policy[:] = 0.0
        policy[pair[free]] = 1.0
        gain = np.zeros(t.n_states)
        gain[free] = reward[pair[free]]
        try:
            values = policy_matrix(t, discount, policy).solve(gain)
        except DivergesError:
            raise DivergesError("walking in circles pays, and never ends") from None
        promised = reward + ahead.forward(values)
        better = best_of(promised)
        more = promised[better] > promised[pair] + BETTER * max(1.0, float(np.abs(values).max()))
        more[~(alive & ~exits)] = False
        if not more.any():
            return policy, alive
        pair = np.where(more, better, pair)
    raise DivergesError(f"no best policy within {STEPS} steps: walking in circles may pay")
