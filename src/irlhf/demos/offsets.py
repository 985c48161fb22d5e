"""A demonstration is preferred to one draw of a policy: what a pairwise loss makes of that, with and without offsets.

With infinitely many pairs, y ~ P and y' ~ q, the loss is a sum over 13 x 13 pairs, each with weight P(y) q(y').
"""

from __future__ import annotations

import math

import torch
from rich.console import Console
from torch import Tensor

from irlhf import Choice, Feedback, Term, fit_reward, listed
from irlhf.demos.gradients import recovered
from irlhf.demos.screen import say, table
from irlhf.demos.town import Town, maximum

SHARES: dict[str, float | None] = {
    "mu, the base measure": 0.0,
    "quarter-trained policy": 0.25,
    "half-trained policy": 0.5,
    "converged policy": 1.0,
    "wrong-signed policy": -1.0,
    "half mu, half converged": None,
}


def log_proposal(town: Town, share: float | None) -> Tensor:
    """[13 paths] log q."""
    if share is None:
        return torch.logaddexp(town.log_mu, town.log_p(town.theta)) - math.log(2)
    return town.log_p(share * town.theta)


def without_offsets(town: Town, log_q: Tensor) -> Tensor:
    """theta that maximizes ``sum P(y) q(y') log sigmoid(R(y) - R(y'))``: the field's objective, by hand."""
    weight = torch.outer(town.log_p(town.theta).exp(), log_q.exp())

    def objective(theta: Tensor) -> Tensor:
        reward = town.listing.features @ theta
        return (weight * torch.nn.functional.logsigmoid(reward[:, None] - reward)).sum()

    return maximum(objective, len(town.theta))[1]


def with_offsets(town: Town, log_q: Tensor) -> Tensor:
    """The same pairs with ``log mu - log q`` added to each utility: the choice of the library, with its offsets."""
    weight = torch.outer(town.log_p(town.theta).exp(), log_q.exp())
    offset, paths = (town.log_mu - log_q).tolist(), town.listing.paths
    pairs = Feedback.of(
        Choice("home", (y, z), 0, offset=(offset[i], offset[j]), weight=float(weight[i, j]), id=f"{i} {j}")
        for i, y in enumerate(paths)
        for j, z in enumerate(paths)
        if i != j
    )
    return fit_reward(town.reward(), Term(pairs, listed(town.world))).theta


def measure(town: Town) -> dict[str, float]:
    """Every number of table 7."""
    numbers = {}
    true = town.listing.features @ town.theta
    for name, share in SHARES.items():
        log_q = log_proposal(town, share)
        for column, found in (("without", without_offsets(town, log_q)), ("with", with_offsets(town, log_q))):
            reward = town.listing.features @ found
            flat = float(reward.std()) < 1e-4
            numbers[f"{name}.{column}.share"] = recovered(town, found)
            numbers[f"{name}.{column}.correlation"] = (
                math.nan if flat else float(torch.corrcoef(torch.stack([reward, true]))[0, 1])
            )
            numbers[f"{name}.{column}.error"] = float((found - town.theta).abs().max())
    return numbers


def show(to: Console, numbers: dict[str, float]) -> None:
    rows = table(
        '7. "The demonstration beats a draw": share of the reward recovered',
        *("drawn from", "without offsets:\nshare", "correlation", "with offsets:\nshare", "correlation"),
    )
    for name in SHARES:
        cells = []
        for column in ("without", "with"):
            share, correlation = (numbers[f"{name}.{column}.{x}"] for x in ("share", "correlation"))
            cells += [f"{share + 0.0:.3f}", "-" if math.isnan(correlation) else f"{correlation:.3f}"]
        rows.add_row(name, *cells)
    to.print(rows)
    say(
        to,
        """
        Infinitely many pairs, y ~ P and y' ~ q, and log sigmoid(R(y) - R(y')) is maximized, with and without log mu -
        log q in each utility. Without, what is found is log P/q, of which the policy has taken its share: the better it
        is, the less reward is left, and a converged one leaves nothing. With the offset all of the reward is found,
        whatever the policy.
        """,
    )
