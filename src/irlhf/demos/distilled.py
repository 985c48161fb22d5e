"""The policy that RLHF trains is the distribution that IRL fits: by every learner, and not with the KL elsewhere.

Policies start as the base measure and are trained towards the reward that maximum-entropy IRL found in the
demonstrations. What each is at the end is computed over all 13 paths: only the training draws.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.console import Console
from torch import Tensor

from irlhf import expected, fit_policy, grpo, ppo, reinforce, rloo
from irlhf.demos.screen import say, table
from irlhf.demos.town import HOME, Town, kl
from irlhf.functional.policy_gradient import (
    kl_k1_unbiased_value_no_gradient,
    kl_k2_biased_value_true_gradient,
    kl_k3_unbiased_value_reverse_gradient,
)
from irlhf.randomness import Key
from irlhf.worlds.tabular import SoftmaxPolicy

RATE = 0.2  # of Adam, falling to zero
LEARNERS = {
    "exact expectation": lambda steps: expected(),
    "reinforce, n = 8": lambda steps: reinforce(8, rate=RATE, max_steps=steps),
    "rloo, n = 8": lambda steps: rloo(8, rate=RATE, max_steps=steps),
    "grpo, n = 8": lambda steps: grpo(8, rate=RATE, max_steps=steps),
    "ppo, n = 8": lambda steps: ppo(8, rate=RATE, max_steps=steps),
}
Surrogate = Callable[[Town, Tensor, Tensor], Tensor]  # town, R of the paths, log pi of the streets -> to be climbed


def _in_the_loss(estimate: Callable[[Tensor], Tensor]) -> Surrogate:
    """``E_pi[R log pi - estimate of KL(pi, mu)]``, draws held fixed: the estimate is a term of the loss."""

    def surrogate(town: Town, reward: Tensor, street: Tensor) -> Tensor:
        log_pi = town.listing.streets @ street
        return (log_pi.detach().exp() * (reward * log_pi - estimate(log_pi - town.log_mu))).sum()

    return surrogate


def _by_the_step(town: Town, reward: Tensor, street: Tensor) -> Tensor:
    """The same with k3 of each street times the ratio pi/pi_old of that street, as common implementations have it."""
    log_pi = town.listing.streets @ street
    visits = town.listing.streets.T @ log_pi.detach().exp()
    ratio = (street - street.detach()).exp()
    k3 = kl_k3_unbiased_value_reverse_gradient(street - town.listing.log_mu)
    return (log_pi.detach().exp() * reward * log_pi).sum() - (visits * ratio * k3).sum()


PLACES: dict[str, Surrogate] = {
    "k2 in the loss": _in_the_loss(kl_k2_biased_value_true_gradient),
    "k3 in the loss": _in_the_loss(kl_k3_unbiased_value_reverse_gradient),
    "k3 x ratio, by the step": _by_the_step,
    "k1 in the loss": _in_the_loss(kl_k1_unbiased_value_no_gradient),
}


def climb(town: Town, reward: Tensor, surrogate: Surrogate, steps: int) -> Tensor:
    """[13 paths] log pi after so many steps of Adam along exact expected gradients, at a falling rate."""
    logits = torch.zeros(len(town.listing.corner), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=RATE)
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - k / steps)
        optimizer.zero_grad()
        (-surrogate(town, reward, town.listing.log_street(logits))).backward()
        optimizer.step()
    with torch.no_grad():
        return town.listing.log_pi(logits)


def measure(town: Town, theta: Tensor, key: Key, steps: int) -> dict[str, float]:
    """Every number of table 8; theta is what IRL found."""
    reward = town.listing.features @ theta
    log_p = town.log_p(theta)
    numbers = {"log_z": float((reward + town.log_mu).logsumexp(0))}
    reached: dict[str, Tensor] = {}
    for name, learner in LEARNERS.items():
        policy = SoftmaxPolicy(town.world)
        fit_policy(policy, town.reward(theta), town.world, [HOME], learner=learner(steps), key=key.at(name))
        with torch.no_grad():
            reached[name] = town.listing.streets @ policy.log_policy()
    reached |= {name: climb(town, reward, surrogate, 3 * steps) for name, surrogate in PLACES.items()}
    for name, log_pi in reached.items():
        pi, log_w = log_pi.exp(), reward + town.log_mu - log_pi
        numbers |= {
            f"{name}.kl": max(kl(log_pi, log_p), 0.0),
            f"{name}.kl_to_mu": kl(log_pi, town.log_mu),
            f"{name}.reward": float(pi @ reward),
            f"{name}.objective": float(pi @ log_w),
            f"{name}.effective": float((pi @ log_w.exp()) ** 2 / (pi @ (2 * log_w).exp())),
            f"{name}.spread": float((pi @ (log_w - pi @ log_w).square()).sqrt()),
        }
    return numbers


def show(to: Console, numbers: dict[str, float]) -> None:
    rows = table(
        f"8. RLHF's policy is IRL's distribution: T log Z is {numbers['log_z']:.6f}",
        *("trained by", "E_pi R -\nT KL(pi, mu)", "E_pi R", "KL(pi, mu)", "KL(pi, P)"),
        *("effective\nshare", "sd of\nlog w"),
    )
    for group in (LEARNERS, PLACES):
        for name in group:
            o, r, m, d, e, s = (
                numbers[f"{name}.{x}"] for x in ("objective", "reward", "kl_to_mu", "kl", "effective", "spread")
            )
            rows.add_row(name, f"{o:.6f}", f"{r:.4f}", f"{m:.4f}", f"{d:.1e}", f"{e:.3f}", f"{s:.4f}")
        rows.add_section()
    to.print(rows)
    say(
        to,
        """
        R is what maximum-entropy IRL found in the demonstrations of table 1, P = mu exp(R/T)/Z, and pi starts at mu.
        Above the line fit_policy: the KL enters once, as log mu - log pi in the return of every draw, and all learners
        end at P up to the luck of their draws, where log w is constant and every draw is effective. Below it, by exact
        expected gradients, the KL as a term of the loss: k2 has the right gradient; k3 has that of KL(mu, pi) and ends
        elsewhere, by the step and times the ratio again elsewhere; k1 has none, so that only R counts and pi ends on
        the best path.
        """,
    )
