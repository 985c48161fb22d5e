"""Policy gradients: a learner is a pair (advantage, surrogate); and estimators of KL(pi || mu) from draws of pi.

With draws y ~ pi of return f(y), everything here estimates ``grad E_pi[f] = E_pi[(f(y) - b) grad log pi(y)]``
(Williams 1992). A baseline b that does not depend on y changes nothing but the variance; one that does, bends the
expectation, and the docstrings say how. In a KL-regularized problem the return is ``log w`` of
:mod:`irlhf.functional.weights`, with ``log q = log pi`` a number and not a path for
gradients. Returns are finite: an infinite one makes NaN of its whole group.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def batch_mean(returns: Float[Tensor, "contexts draws"]) -> Float[Tensor, "contexts draws"]:
    """``f - mean of the whole batch``, own sample included: expects exactly (1 - 1/N) of the true gradient.

    N is the number of all draws in the batch. Contexts of different levels do not share a baseline well:
    :func:`leave_one_out` has less variance there.
    """
    return returns - returns.mean()


def group_mean(returns: Float[Tensor, "contexts draws"]) -> Float[Tensor, "contexts draws"]:
    """``f - mean of the context's draws``, own sample included: expects exactly (1 - 1/K) of the true gradient.

    K draws a context. GRPO without the division by the standard deviation (Liu et al. 2025, "Dr. GRPO"): the right
    direction, in expectation, and a step that is too short by one part in K.
    """
    return returns - returns.mean(1, keepdim=True)


def leave_one_out(returns: Float[Tensor, "contexts draws"]) -> Float[Tensor, "contexts draws"]:
    """``f - mean of the context's *other* draws``: unbiased.

    Kool, van Hoof & Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024 (RLOO).

    Raises:
        ValueError: fewer than two draws a context.
    """
    draws = _at_least_two(returns, "leave_one_out")
    # f_i - (sum_j f_j - f_i)/(K - 1), with less cancellation
    return group_mean(returns) * (draws / (draws - 1))


def standardized(returns: Float[Tensor, "contexts draws"], *, eps: float = 1e-4) -> Float[Tensor, "contexts draws"]:
    """``(f - group mean) / (group standard deviation + eps)`` (GRPO; Shao et al. 2024, section 4.1.2): *biased*.

    Groups whose returns happen to be alike weigh more than others, within a context too, so the expected gradient
    points elsewhere than that of E[f]: the division is no rescaling. The standard deviation is the sample's
    (over K - 1), as in the common implementations. Equal returns have advantage 0.

    Raises:
        ValueError: fewer than two draws a context.
    """
    _at_least_two(returns, "standardized")
    # equal, and not "deviation 0": the mean of equal floats may be off by a bit, which eps = 0 would blow up to one
    equal = returns.amax(1, keepdim=True) == returns.amin(1, keepdim=True)
    deviation = torch.where(equal, 1.0, returns.std(1, keepdim=True))
    return torch.where(equal, 0.0, group_mean(returns) / (deviation + eps))


def generalized_advantage(
    reward: Float[Tensor, "steps"],
    value: Float[Tensor, "steps"],
    next_value: Float[Tensor, "steps"],
    terminated: Bool[Tensor, "steps"],
    last: Bool[Tensor, "steps"],
    discount: float,
    lambda_: float,
) -> Float[Tensor, "steps"]:
    """``A_t = delta_t + discount lambda A_{t+1}``, ``delta_t = r_t + discount V(s_{t+1}) - V(s_t)`` (GAE).

    Schulman, Moritz, Levine, Jordan & Abbeel 2016, eq. 16. With lambda = 1 and values of 0: the discounted
    reward-to-go. Advantage plus value is the critic's target.

    Args:
        reward: of steps of whole episodes laid end to end, each in order.
        value: V of the state of each step.
        next_value: V of the state each step led to, also where the episode was cut: not the next row's value.
        terminated: the world ended here: nothing follows and next_value is not read.
        last: the last step of its episode, terminated or cut off (truncated). A cut step bootstraps from next_value.
        discount: in [0, 1].
        lambda_: in [0, 1].

    Returns:
        One advantage a step, without gradient.

    Raises:
        ValueError: discount or lambda outside [0, 1], or steps that end in the middle of an episode.
    """
    for name, number in (("discount", discount), ("lambda_", lambda_)):
        if not 0.0 <= number <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1]; it is {number}")
    ends = last | terminated
    if len(ends) and not ends[-1]:
        raise ValueError(
            "the steps end in the middle of an episode: mark the final step as last, and give its next_value"
        )
    follows = torch.where(terminated, 0.0, next_value.detach())
    advantage = reward.detach() + discount * follows - value.detach()
    # A scan by doubling: after k rounds each entry has summed the 2^k steps from its own on, or to the end of its
    # episode, where the decay is 0. log2(longest episode) rounds over all steps, whatever the number of episodes.
    decay = torch.where(ends, 0.0, torch.full_like(advantage, discount * lambda_))
    span = 1
    while bool(decay.any()):
        ahead = torch.where(decay[:-span] > 0, decay[:-span] * advantage[span:], 0.0)
        advantage = torch.cat([advantage[:-span] + ahead, advantage[-span:]])
        decay = torch.cat([decay[:-span] * decay[span:], torch.zeros_like(decay[-span:])])
        span *= 2
    return advantage


def reinforce(log_prob: Float[Tensor, "*items"], advantage: Float[Tensor, "*items"]) -> Float[Tensor, "*items"]:
    """``A log pi(y)``, to be maximized (Williams 1992). The advantage is a number here: no gradient flows into it."""
    return log_prob * advantage.detach()


def clipped_ratio(
    log_prob: Float[Tensor, "*items"],
    old_log_prob: Float[Tensor, "*items"],
    advantage: Float[Tensor, "*items"],
    clip: float,
) -> Float[Tensor, "*items"]:
    """``min(rho A, clamp(rho, 1 - clip, 1 + clip) A)``, ``rho = pi(y)/pi_old(y)``, to be maximized (PPO).

    Schulman et al. 2017, eq. 7. At ``pi = pi_old`` its gradient is that of :func:`reinforce`; after that the gradient
    is zero where rho has already gone beyond the clip *in the direction of A*, and only there. No gradient flows into
    ``old_log_prob`` or ``advantage``.

    Args:
        log_prob: of the policy now: of steps or of whole trajectories, like the other two.
        old_log_prob: of the policy that drew.
        clip: between 0 and 1.
    """
    if not 0.0 < clip < 1.0:
        raise ValueError(f"clip must lie between 0 and 1; it is {clip}")
    advantage = advantage.detach()
    log_ratio = log_prob - old_log_prob.detach()
    # The minimum is the ratio clipped from above where A > 0 and from below where A < 0. Clipping the logarithm keeps
    # a ratio that overflows from making a NaN gradient where it is clipped anyway.
    above, below = log_ratio.clamp(max=math.log1p(clip)), log_ratio.clamp(min=math.log1p(-clip))
    return torch.where(advantage < 0, below, above).exp() * advantage


def kl_k1_unbiased_value_no_gradient(log_ratio: Float[Tensor, "*items"]) -> Float[Tensor, "*items"]:
    """``l = log pi(y) - log mu(y)``, y ~ pi: KL(pi || mu) without bias; as a loss it does *nothing*.

    Its gradient as a loss is ``E_pi[grad log pi] = 0``. Its place is inside the return, as log mu - log pi.
    k1 of Schulman 2020, "Approximating KL divergence".
    """
    return log_ratio


def kl_k2_biased_value_true_gradient(log_ratio: Float[Tensor, "*items"]) -> Float[Tensor, "*items"]:
    """``l^2 / 2``, y ~ pi: a *biased* value whose gradient as a loss, ``E_pi[l grad log pi]``, is that of KL(pi || mu).

    The value is right to second order in l only. k2 of Schulman 2020, "Approximating KL divergence".
    """
    return log_ratio.square() / 2


def kl_k3_unbiased_value_reverse_gradient(log_ratio: Float[Tensor, "*items"]) -> Float[Tensor, "*items"]:
    """``exp(-l) - 1 + l``, y ~ pi: KL(pi || mu) without bias and never negative; as a loss *another* divergence.

    Its gradient as a loss, ``E_pi[(1 - mu/pi) grad log pi] = -E_mu[grad log pi]``, is that of KL(mu || pi): a policy
    trained with it converges elsewhere. k3 of Schulman 2020, "Approximating KL divergence".
    """
    return torch.expm1(-log_ratio) + log_ratio


def _at_least_two(returns: Float[Tensor, "contexts draws"], name: str) -> int:
    draws = returns.shape[1]
    if draws < 2:
        raise ValueError(f"{name} compares the draws of a context with each other: it needs two at least, not {draws}")
    return draws
