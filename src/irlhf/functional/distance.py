"""Distances between rewards that shaping and scaling do not change: EPIC, STARC, Pearson's.

Two rewards that differ by potential shaping and a positive factor ask for the same policies. A distance first brings
each into a canonical form that shaping cannot reach, then takes out the scale. All lie in [0, 1]: 0 for rewards that
are equal in this sense, 1 for a reward and its negation.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from irlhf.functional.differentiable import apply, apply_transposed, solve
from irlhf.functional.stationary import PolicyChain
from irlhf.functional.transitions import Transitions

NOTHING = 1e-12  # of the reward's own size: variation below this is rounding


def pearson_distance(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], weight: Float[Tensor, "*shape"] | None = None
) -> Float[Tensor, ""]:
    """``sqrt((1 - correlation) / 2)`` (Gleave et al. 2021, definition 4.1).

    ``weight`` need not sum to 1; None: all alike. A constant is correlated with nothing (0.707), two are alike (0).
    """
    a, b = a.double().reshape(-1), b.double().reshape(-1)
    w = torch.ones_like(a) if weight is None else weight.double().reshape(-1)
    w = w / w.sum()
    size = [(w * x.square()).sum().sqrt() for x in (a, b)]
    a, b = (x - (w * x).sum() for x in (a, b))
    spread = [(w * x.square()).sum().sqrt() for x in (a, b)]
    flat = [bool(s <= NOTHING * z) for s, z in zip(spread, size, strict=True)]
    if any(flat):
        return torch.tensor(0.0 if all(flat) else 0.5, dtype=torch.float64).sqrt()
    # From the difference of the two, not from the correlation, whose last digits the root would magnify.
    return 0.5 * (w * (a / spread[0] - b / spread[1]).square()).sum().sqrt().clamp(max=2.0)


def epic_canonical(
    reward: Float[Tensor, "states actions states"],
    discount: float | int,
    state_weight: Float[Tensor, "states"] | None = None,
    action_weight: Float[Tensor, "states actions"] | None = None,
) -> Float[Tensor, "states actions states"]:
    """``R(s,a,s') + E[g R(s',A,S') - R(s,A,S') - g R(S,A,S')]`` (Gleave et al. 2021, definition 4.2).

    S and S' are drawn independently with ``state_weight``, A with ``action_weight`` (which may depend on the state;
    0 where an action is not possible); None: all alike.
    """
    n = len(reward)
    of_state = torch.ones(n).double() if state_weight is None else state_weight.double()
    of_state = of_state / of_state.sum()
    of_action = torch.ones(reward.shape[:2]).double() if action_weight is None else action_weight.double()
    of_action = of_action / of_action.sum(1, keepdim=True).clamp(min=1e-300)
    mean = torch.einsum("sat,sa,t->s", reward.double(), of_action, of_state)  # E[R(s, A, S')]
    return reward.double() + discount * mean[None, None] - mean[:, None, None] - discount * (of_state @ mean)


def epic_distance(
    a: Float[Tensor, "states actions states"],
    b: Float[Tensor, "states actions states"],
    discount: float | int,
    *,
    state_weight: Float[Tensor, "states"] | None = None,
    action_weight: Float[Tensor, "states actions"] | None = None,
    coverage: Float[Tensor, "states actions states"] | None = None,
) -> Float[Tensor, ""]:
    """Equivalent-Policy Invariant Comparison (Gleave et al. 2021, definition 4.3): Pearson's of canonical rewards.

    Args:
        a, b: ``R(s, a, s')`` everywhere, also for transitions that the world never makes.
        discount: of the shaping that is to be ignored.
        state_weight, action_weight: see :func:`epic_canonical`.
        coverage: how much each transition counts; None: the product of state, action and state weights.
    """
    n, k = a.shape[:2]
    of_state = torch.ones(n).double() if state_weight is None else state_weight.double()
    of_action = torch.ones(n, k).double() if action_weight is None else action_weight.double()
    if coverage is None:
        share = of_action / of_action.sum(1, keepdim=True).clamp(min=1e-300)
        coverage = torch.einsum("s,sa,t->sat", of_state, share, of_state)
    canonical = [epic_canonical(r, discount, of_state, of_action) for r in (a, b)]
    return pearson_distance(canonical[0], canonical[1], coverage)


def value_canonical(
    reward: Float[Tensor, "*contexts pairs"],
    transitions: Transitions,
    discount: float | int,
    policy: Float[Tensor, "*contexts pairs"],
) -> Float[Tensor, "*contexts pairs"]:
    """``R(s,a) + g E[V(S')] - V(s)`` with V the value of a fixed policy: advantages (Skalse et al. 2024, section 3).

    Args:
        reward: expected reward of each pair.
        policy: probabilities that sum to 1 in each state, or to 0 where trajectories end: there V = 0.

    Raises:
        DivergesError: discount is 1 and the policy does not end.
    """
    fixed = policy.detach().double()
    chain = PolicyChain(transitions, float(discount), fixed.numpy())
    gain = apply_transposed(chain.at_state, fixed * reward.double())
    values = solve(fixed, gain, chain)
    return reward.double() + apply(chain.ahead, values) - apply(chain.at_state, values)


def starc_distance(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Half the distance of canonical rewards of length 1 (Skalse et al. 2024, definition 2, with the L2 norm).

    Args:
        a, b: canonical rewards, such as :func:`value_canonical` of each. One that is zero stays zero: it is 1/2 from
            every other.
    """
    unit = [x.double() / x.double().norm().clamp(min=1e-300) for x in (a, b)]
    return 0.5 * (unit[0] - unit[1]).norm()
