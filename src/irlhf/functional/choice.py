"""Probabilities of choices out of sets, as functions of utilities: Luce, ties, ratings.

Sets are ragged and flat: item i belongs to set ``set_of[i]``. Everything is in log space and differentiable.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def set_logsumexp(utility: Float[Tensor, "items"], set_of: Int[Tensor, "items"], n_sets: int) -> Float[Tensor, "sets"]:
    """``log sum_{i in set} exp(utility_i)`` for every set; -inf for an empty set or one of -inf only."""
    top = utility.new_full((n_sets,), -torch.inf).scatter_reduce(0, set_of, utility.detach(), "amax")
    # The shift only guards against overflow, so it is a constant to the gradient; 0 keeps -inf - -inf away.
    shift = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    total = utility.new_zeros(n_sets).index_add(0, set_of, (utility - shift.index_select(0, set_of)).exp())
    empty = total == 0
    return torch.where(empty, -torch.inf, torch.where(empty, 1.0, total).log() + shift)


def choice_log_prob(
    utility: Float[Tensor, "items"], set_of: Int[Tensor, "items"], chosen: Int[Tensor, "sets"]
) -> Float[Tensor, "sets"]:
    """``u(chosen) - log sum_{y in C} exp u(y)`` (Luce 1959; McFadden 1974, eq. 12).

    Args:
        utility: in nats: ``R/T + log mu + offset``.
        set_of: which choice set each item belongs to, 0 .. sets - 1.
        chosen: for each set, the number of the chosen *item* (not its position within the set).
    """
    return utility.index_select(0, chosen) - set_logsumexp(utility, set_of, len(chosen))


FIRST, SECOND, TIED = 0, 1, 2


def davidson_log_prob(
    first: Float[Tensor, "rows"],
    second: Float[Tensor, "rows"],
    outcome: Int[Tensor, "rows"],
    log_nu: Float[Tensor, ""],
) -> Float[Tensor, "rows"]:
    """Pairs with ties: utilities ``u_a, u_b`` and ``log nu + (u_a + u_b)/2`` for a tie (Davidson 1970, eq. 2.4).

    Args:
        outcome: 0 the first was preferred, 1 the second, 2 a tie.
        log_nu: nu = exp(log_nu) is the propensity to tie; nu -> 0 is Bradley-Terry.
    """
    utilities = torch.stack([first, second, log_nu + (first + second) / 2])
    return utilities.log_softmax(0).gather(0, outcome[None])[0]


def rao_kupper_log_prob(
    first: Float[Tensor, "rows"],
    second: Float[Tensor, "rows"],
    outcome: Int[Tensor, "rows"],
    log_theta: Float[Tensor, ""],
) -> Float[Tensor, "rows"]:
    """Pairs with ties by a threshold of just noticeable difference (Rao and Kupper 1967, eqs. 2.8-2.10).

    ``P(a) = e^a / (e^a + theta e^b)``, ``P(b)`` alike, and
    ``P(tie) = (theta^2 - 1) e^{a+b} / ((e^a + theta e^b)(e^b + theta e^a))`` with ``theta = exp(log_theta) >= 1``;
    theta = 1 is Bradley-Terry.

    Args:
        outcome: 0 the first was preferred, 1 the second, 2 a tie.
    """
    a = F.logsigmoid(first - second - log_theta)
    b = F.logsigmoid(second - first - log_theta)
    # theta = 1 leaves no ties: log 0 must be -inf without a NaN in its gradient.
    positive = torch.where(log_theta > 0, log_theta, torch.ones_like(log_theta))
    excess = torch.where(log_theta > 0, torch.expm1(2 * positive).log(), -torch.inf)
    return torch.stack([a, b, excess + a + b]).gather(0, outcome[None])[0]


def rating_log_prob(
    utility: Float[Tensor, "rows"], level: Int[Tensor, "rows"], thresholds: Float[Tensor, "levels"]
) -> Float[Tensor, "rows"]:
    """Adjacent-category logit: level k has utility ``k u - c_k`` (Agresti 2010, section 4.1); two levels: Bernoulli.

    Args:
        utility: ``R/T`` of the rated trajectory.
        level: 0 .. levels - 1.
        thresholds: ``c_k`` with ``c_0 = 0``.
    """
    k = torch.arange(len(thresholds), dtype=utility.dtype, device=utility.device)
    return (k * utility[:, None] - thresholds).log_softmax(1).gather(1, level[:, None])[:, 0]
