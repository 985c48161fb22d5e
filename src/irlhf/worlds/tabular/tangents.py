"""Scores and curvature of an exact likelihood from one linear solve for each parameter.

With u the utilities, g_k = d log pi / d theta_k = du_k + discount * P dV_k - dV_k, where dV_k = A^-1 sum_a pi du_k, the
second derivative of the values has A d2V = A sum_a pi d2u + sum_a pi g g'. So of ``<n, u> + <b, V>`` it is

    sum_p c_p d2u_p + sum_p y(s_p) pi_p g_p g_p',     y = A'^-1 b,     c = n + pi y[state],

and all that has to be differentiated twice is u as a function of the parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from irlhf.functional import kernels
from irlhf.functional.differentiable import chain_of
from irlhf.protocols import Factors

if TYPE_CHECKING:
    from irlhf.worlds.tabular.solution import Counts, SoftValues
    from irlhf.worlds.tabular.world import TabularBatch


def factors(solution: SoftValues, batch: TabularBatch, counts: Counts) -> Factors:
    """The likelihood of a batch as a function of the utilities: see :class:`irlhf.protocols.Factors`."""
    chain, utility = chain_of(solution.values), solution.utility
    policy = chain.policy()
    balance = np.zeros(solution.values.numel())
    balance[counts.seen] = counts.balance
    visits = chain.solve(balance.reshape(solution.values.shape), True)
    flow = policy * chain.at_state.forward(visits)
    slope = torch.from_numpy(flow).sum_to_size(utility.shape).flatten()
    slope = slope.index_add(0, counts.chosen, counts.times).view_as(utility)

    def finish(slopes: Float[Tensor, "parameters *utility"]) -> tuple[Tensor, Tensor]:
        direct = slopes.numpy()
        mean = np.stack([chain.at_state.backward(policy * one) for one in direct])
        tangents = chain.solve(mean, False)
        number, _, advantage = solution.looks(batch)
        steps = slopes.flatten(1)[:, number] + torch.from_numpy(advantage.forward(tangents.reshape(len(direct), -1)))
        scores = steps if solution.kind == "causal" else torch.stack([solution.sum(batch, step) for step in steps])
        return scores.T, torch.from_numpy(_curvature(solution, direct, tangents, flow))

    return Factors(utility, slope, finish)


def _curvature(solution: SoftValues, slopes: np.ndarray, tangents: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """[parameters, parameters] The sum of flow * g g' over contexts, times and choices."""
    t, k = solution.transitions, len(slopes)
    table = solution.discount, t.first_outcome, t.next_state, t.probability, t.state
    contexts = len(solution.values)
    weight = flow.reshape(contexts, -1, t.n_pairs)
    direct = slopes.reshape(k, slopes.shape[1], -1, t.n_pairs)
    values = tangents.reshape(k, contexts, -1, t.n_states)
    total = np.zeros((k, k))
    for i in range(contexts):
        for h in range(weight.shape[1]):
            slope = direct[:, min(i, direct.shape[1] - 1), min(h, direct.shape[2] - 1)]
            now = np.ascontiguousarray(values[:, i, h].T)
            after = np.ascontiguousarray(values[:, i, h + 1].T) if solution.timed else now
            kernels.add_squares(np.ascontiguousarray(slope), after, now, weight[i, h], *table, total)
    return total + np.tril(total, -1).T
