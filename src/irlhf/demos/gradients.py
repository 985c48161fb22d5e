"""Estimators of the gradient of a demonstration's log-likelihood, without a single random number.

The gradient is ``grad R(y) - E_P[grad R]``, and the expectation is estimated from n rivals drawn from a proposal q. In
a town of 13 ways there are (20 choose 8) = 125,970 multisets of 8 rivals, so the mean and the variance of any estimator
are sums, weighted by the multinomial probability of each multiset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import numpy as np
import torch
from rich.console import Console
from scipy.optimize import root
from torch import Tensor

from irlhf.demos.screen import say, table
from irlhf.demos.town import Town

# Proposals are policies that were trained towards the reward at hand, so far: a share of it. None: half mu, half wrong.
SHARES: dict[str, float | None] = {
    "mu, the base measure": 0.0,
    "half-trained policy": 0.5,
    "converged policy": 1.0,
    "wrong-signed policy": -1.0,
    "half mu, half wrong": None,
}
ESTIMATORS = ("unweighted", "weighted", "ranking")
NAMES = {
    "unweighted": "the note's: unweighted",
    "weighted": "self-normalized weights",
    "ranking": "ranking NCE",
    "exact": "exact",
}
LOST = 50.0  # times the true reward, beyond which a root is none


def log_proposal(town: Town, name: str, theta: Tensor) -> Tensor:
    """[13 paths] log q of a proposal, given the reward that it was trained towards."""
    share = SHARES[name]
    if share is None:
        return torch.logaddexp(town.log_p(0 * theta), town.log_p(-theta)) - math.log(2)
    return town.log_p(share * theta)


@dataclass(frozen=True)
class Multisets:
    """All multisets of ``n`` out of ``k`` things."""

    n: int
    members: Tensor  # [multisets, n]
    counts: Tensor  # [multisets, k]
    log_orders: Tensor  # [multisets] in how many orders each can be drawn

    @classmethod
    def of(cls, k: int, n: int) -> Multisets:
        members = np.fromiter(
            (i for chosen in combinations_with_replacement(range(k), n) for i in chosen), np.int64
        ).reshape(-1, n)
        number = np.arange(len(members))[:, None] * k + members
        counts = torch.from_numpy(np.bincount(number.ravel(), minlength=len(members) * k).reshape(-1, k)).double()
        return cls(n, torch.from_numpy(members), counts, math.lgamma(n + 1) - torch.lgamma(counts + 1).sum(1))

    def probability(self, log_q: Tensor) -> Tensor:
        """[multisets] Of each, if its members are drawn independently."""
        return (self.log_orders + self.counts @ log_q).exp()


def covariance(values: Tensor, weight: Tensor) -> Tensor:
    """[..., d] and weights that sum to one -> [d, d]."""
    centered = values - weight @ values
    return (centered * weight[:, None]).T @ centered


@dataclass(frozen=True)
class Problem:
    """One demonstration y ~ P of the true reward, n rivals ~ q; features in units of their spread."""

    town: Town
    sets: Multisets

    @property
    def spread(self) -> Tensor:
        f, p = self.town.listing.features, self.town.log_p(self.town.theta).exp()
        return (p @ f.square() - (p @ f).square()).sqrt()

    @property
    def scaled(self) -> Tensor:
        return self.town.listing.features / self.spread

    def rivals(self, proposal: str, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For each multiset its probability, and the sums of w and of w grad R over its members; w of each path."""
        log_q = log_proposal(self.town, proposal, theta)
        log_w = self.town.log_p(theta) - log_q
        w = (log_w - log_w.max()).exp()
        sums = self.sets.counts @ torch.cat([w[:, None], w[:, None] * self.scaled], 1)
        return self.sets.probability(log_q), sums[:, 0], sums[:, 1:], w

    def mean(self, estimator: str, proposal: str, theta: Tensor) -> Tensor:
        """[features] The expected estimate of the gradient at theta, over demonstrations and rivals."""
        f, p = self.scaled, self.town.log_p(self.town.theta).exp()
        if estimator == "exact":
            return p @ f - self.town.log_p(theta).exp() @ f
        if estimator == "unweighted":  # grad R(y) - mean of grad R(y_i)
            return p @ f - log_proposal(self.town, proposal, theta).exp() @ f
        chance, total, sums, w = self.rivals(proposal, theta)
        if estimator == "weighted":  # grad R(y) - sum w_i grad R(y_i) / sum w_i
            return p @ f - (chance / total) @ sums
        mean = p @ f  # ranking NCE: the same with y among its rivals, with a weight of its own
        for k in range(len(p)):
            share = chance / (total + w[k])
            mean = mean - p[k] * (share @ sums + share.sum() * w[k] * f[k])
        return mean

    def covariance(self, estimator: str, proposal: str, theta: Tensor) -> Tensor:
        """[features, features] Of an estimate of the gradient at theta, over demonstrations and rivals."""
        f, p = self.scaled, self.town.log_p(self.town.theta).exp()
        luck = covariance(f, p)  # of the demonstration
        if estimator == "exact":
            return luck
        if estimator == "unweighted":
            return luck + covariance(f, log_proposal(self.town, proposal, theta).exp()) / self.sets.n
        chance, total, sums, w = self.rivals(proposal, theta)
        if estimator == "weighted":
            return luck + covariance(sums / total[:, None], chance)
        mean, square = self.mean(estimator, proposal, theta), torch.zeros_like(luck)
        for k in range(len(p)):
            g = f[k] - (sums + w[k] * f[k]) / (total + w[k])[:, None] - mean
            square += (g * (chance * p[k])[:, None]).T @ g
        return square

    def vanishes(self, estimator: str, proposal: str) -> Tensor | None:
        """The theta at which the expected gradient is zero, searched for from half-way; None if nowhere near."""
        unit = self.spread.numpy()

        def mean(x: np.ndarray) -> np.ndarray:
            return self.mean(estimator, proposal, torch.from_numpy(x / unit)).numpy()

        start = self.town.theta.numpy() / 2 * unit
        found = root(mean, start, tol=1e-10)
        lost = not found.success or np.abs(found.fun).max() > 1e-8 or np.abs(found.x).max() > LOST * np.abs(start).max()
        return None if lost else torch.from_numpy(found.x / unit)

    def demonstrations_for_one(self, estimator: str, proposal: str) -> float:
        """How many demonstrations tell as much as one under the exact likelihood, where the truth is the zero.

        By how much the variance of the zero, the sandwich ``J^-1 V J^-1``, exceeds the inverse information of the exact
        likelihood, averaged over directions.
        """
        h, unit, true = 1e-4, self.spread, self.town.theta
        slope = torch.stack(
            [
                (self.mean(estimator, proposal, true + e) - self.mean(estimator, proposal, true - e)) / (2 * h)
                for e in torch.diag(h / unit)
            ],
            1,
        )
        variance = slope.inverse() @ self.covariance(estimator, proposal, true) @ slope.inverse().T
        return float((variance @ self.covariance("exact", proposal, true)).trace()) / len(unit)


def recovered(town: Town, theta: Tensor) -> float:
    """The slope of the recovered reward of all paths on the true one."""
    true, found = (x - x.mean() for x in (town.listing.features @ town.theta, town.listing.features @ theta))
    return float(true @ found / (true @ true))


def measure(town: Town, n: int) -> dict[str, float]:
    """Every number of tables 4 and 5."""
    problem = Problem(town, Multisets.of(len(town.listing.paths), n))
    numbers: dict[str, float] = {"rivals": float(n), "multisets": float(len(problem.sets.counts))}
    places = {"half": town.theta / 2, "true": town.theta}
    unit = float(problem.mean("exact", "", places["half"]).norm())
    for where, theta in places.items():
        exact = problem.mean("exact", "", theta)
        numbers[f"exact.{where}.sd"] = float(problem.covariance("exact", "", theta).trace().sqrt()) / unit
        for estimator, proposal in product(ESTIMATORS, SHARES):
            key = f"{estimator}.{proposal}.{where}"
            numbers[f"{key}.bias"] = float((problem.mean(estimator, proposal, theta) - exact).norm()) / unit
            numbers[f"{key}.sd"] = float(problem.covariance(estimator, proposal, theta).trace().sqrt()) / unit
    for estimator, proposal in product(ESTIMATORS, SHARES):
        found = problem.vanishes(estimator, proposal)
        numbers[f"{estimator}.{proposal}.share"] = math.nan if found is None else recovered(town, found)
    for proposal in SHARES:
        numbers[f"ranking.{proposal}.demos"] = problem.demonstrations_for_one("ranking", proposal)
    numbers["unweighted.converged policy.demos"] = problem.demonstrations_for_one("unweighted", "converged policy")
    return numbers


def show(to: Console, numbers: dict[str, float]) -> None:
    n, sets = f"{numbers['rivals']:.0f}", f"{numbers['multisets']:,.0f}"
    rows = table(
        "4. Four estimators of the gradient of one demonstration's log-likelihood",
        *("estimator", "rivals are drawn from", "bias\nhalf-way", "sd\nhalf-way", "bias\nat the truth", "sd\n"),
        left=2,
    )
    for estimator in ESTIMATORS:
        for k, proposal in enumerate(SHARES):
            cells = [numbers[f"{estimator}.{proposal}.{w}.{x}"] for w in ("half", "true") for x in ("bias", "sd")]
            rows.add_row(NAMES[estimator] if k == 0 else "", proposal, *(f"{x:.3f}" for x in cells))
        rows.add_section()
    cells = [0.0, numbers["exact.half.sd"], 0.0, numbers["exact.true.sd"]]
    rows.add_row(NAMES["exact"], "all paths are summed", *(f"{x:.3f}" for x in cells))
    to.print(rows)
    say(
        to,
        f"""
        y ~ P of the true reward and {n} rivals from a policy that was trained towards the reward at hand: half of the
        true one, or the true one. Mean and covariance are sums over all {sets} multisets of rivals. Bias is the length
        of (expected estimate - expected exact gradient), sd the root of the trace of the covariance, the luck of y
        included, both in units of the expected exact gradient half-way; features are scaled to spread 1. Ranking NCE
        is the gradient of another objective, which needs more demonstrations (table 5) but has its zero at the truth.
        """,
    )
    rows = table(
        "5. Where the expected gradient vanishes: the share of the reward found there",
        *("rivals are drawn from", "the note's:\nunweighted", "self-normalized\nweights", "ranking\nNCE"),
        "demonstrations\nfor one exact",
    )
    for proposal in SHARES:
        shares = [numbers[f"{estimator}.{proposal}.share"] for estimator in ESTIMATORS]
        cells = ["nowhere" if math.isnan(x) else f"{x:.3f}" for x in shares]
        rows.add_row(proposal, *cells, f"{numbers[f'ranking.{proposal}.demos']:.2f}")
    to.print(rows)
    say(
        to,
        f"""
        The share is the slope of the recovered reward of all paths on the true one: 1 is right. The policy follows the
        reward that is fitted, as far as it was trained, and {n} rivals are drawn anew at every step. Without weights
        only a converged policy finds the reward; a half-trained one finds twice of it, a wrong-signed one its
        opposite, and mu, which does not follow, nothing. Weights help as far as {n} rivals can carry them. Ranking NCE
        is right for every proposal and every number of rivals, and what a bad proposal costs is demonstrations: the
        last column is by how much its variance exceeds that of the exact likelihood.
        """,
    )
