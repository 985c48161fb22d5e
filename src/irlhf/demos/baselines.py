"""The policy gradient of distillation: what each baseline does to its mean and its variance, by enumeration.

``mean over n draws of A(y_i) grad log pi(y_i)``, y_i ~ pi, with the advantage A made of the n returns by a function of
:mod:`irlhf.functional.policy_gradient`. All multisets of n draws are listed, so nothing here is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from rich.console import Console
from torch import Tensor

from irlhf.demos.gradients import Multisets
from irlhf.demos.screen import say, table
from irlhf.demos.town import Town
from irlhf.functional.policy_gradient import group_mean, leave_one_out, standardized

ADVANTAGES = {
    "none": lambda returns: returns,
    "batch mean": group_mean,  # one context: its draws are the batch
    "leave one out": leave_one_out,
    "standardized (GRPO)": standardized,
}


def score(town: Town, theta: Tensor) -> tuple[Tensor, Tensor]:
    """log pi [13 paths] of the soft policy of theta, and its gradient [13 paths, streets] in the streets' logits."""
    at = town.policy(theta).solution.log_policy[0].detach().requires_grad_()
    rows = [torch.autograd.grad(value, at, retain_graph=True)[0] for value in town.listing.log_pi(at)]
    return town.log_p(theta), torch.stack(rows)


def estimate(sets: Multisets, log_pi: Tensor, returns: Tensor, gradient: Tensor, advantage) -> tuple[Tensor, Tensor]:
    """Mean [streets] and covariance of the estimate over all multisets of draws."""
    members = sets.members
    a = advantage(returns[members]) / sets.n
    of_path = torch.zeros(len(members), len(log_pi)).double().scatter_add(1, members, a)
    chance = sets.probability(log_pi)
    mean = chance @ of_path
    square = (of_path * chance[:, None]).T @ of_path - torch.outer(mean, mean)
    return mean @ gradient, gradient.T @ square @ gradient


def measure(town: Town, theta: Tensor, draws: Sequence[int] = (2, 4, 8)) -> dict[str, float]:
    """Every number of table 9; theta is the reward that is distilled."""
    numbers: dict[str, float] = {}
    reward = town.listing.features @ theta
    for where, share in (("mu", 0.0), ("half", 0.5)):
        log_pi, gradient = score(town, share * theta)
        returns = reward + town.log_mu - log_pi  # log w
        exact = (log_pi.exp() * returns) @ gradient
        for n, (name, advantage) in product(draws, ADVANTAGES.items()):
            mean, covariance = estimate(Multisets.of(len(log_pi), n), log_pi, returns, gradient, advantage)
            along = float(mean @ exact / exact.square().sum())
            cosine = float(mean @ exact / (mean.norm() * exact.norm()))
            numbers |= {
                f"{where}.{name}.{n}.along": along,
                f"{where}.{name}.{n}.angle": math.degrees(math.acos(min(cosine, 1.0))),
                f"{where}.{name}.{n}.sd": float(covariance.trace().sqrt() / exact.norm()) / abs(along),
            }
    return numbers


def show(to: Console, numbers: dict[str, float]) -> None:
    rows = table(
        "9. The policy gradient and its baselines: expectation and luck",
        *("baseline", "n", "pi = mu:\nexpected", "angle", "sd", "pi half-trained:\nexpected", "angle", "sd"),
    )
    draws = sorted({int(key.split(".")[2]) for key in numbers})
    for name, n in product(ADVANTAGES, draws):
        cells: list[str] = []
        for where in ("mu", "half"):
            a, b, c = (numbers[f"{where}.{name}.{n}.{x}"] for x in ("along", "angle", "sd"))
            cells += [f"{a:.3f}", f"{b:.1f}", f"{c:.2f}"]
        rows.add_row(name if n == draws[0] else "", str(n), *cells)
        if n == draws[-1]:
            rows.add_section()
    to.print(rows)
    say(
        to,
        """
        The return is log w; "expected" is the component of the expected estimate along the true gradient, in units of
        the latter, "angle" between the two in degrees, "sd" the root of the trace of the covariance, in units of the
        component. The mean of the batch, own draw included, shortens the step by one part in n and changes nothing
        else; leave-one-out repairs that. Division by the standard deviation turns the gradient.
        """,
    )
