"""Estimators of the gradient of a demonstration's log-likelihood, without a single random number.

The gradient is ``grad R(y) - E_P[grad R]``, and the expectation is estimated from n rivals drawn from a proposal q. In
a town of 13 ways there are (20 choose 8) = 125,970 multisets of 8 rivals, so the mean and the variance of any estimator
are sums, weighted by the multinomial probability of each multiset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement

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
    counts: Tensor  # [multisets, k]
    log_orders: Tensor  # [multisets] in how many orders each can be drawn

    @classmethod
    def of(cls, k: int, n: int) -> Multisets:
        members = np.fromiter(
            (i for chosen in combinations_with_replacement(range(k), n) for i in chosen), np.int64
        ).reshape(-1, n)
        number = np.arange(len(members))[:, None] * k + members
        counts = torch.from_numpy(np.bincount(number.ravel(), minlength=len(members) * k).reshape(-1, k)).double()
        return cls(n, counts, math.lgamma(n + 1) - torch.lgamma(counts + 1).sum(1))

    def probability(self, log_q: Tensor) -> Tensor:
        """[multisets] Of each, if its members are drawn independently."""
        return (self.log_orders + self.counts @ log_q).exp()


def moments(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """[..., d] and weights that sum to one -> mean [d], covariance [d, d]."""
    mean = weight @ values
    return mean, (values * weight[:, None]).T @ values - torch.outer(mean, mean)


@dataclass(frozen=True)
class Problem:
    """One demonstration y ~ P of the true reward, n rivals ~ q; features in units of their spread."""

    town: Town
    sets: Multisets

    @property
    def spread(self) -> Tensor:
        f, p = self.town.listing.features, self.town.log_p(self.town.theta).exp()
        return (p @ f.square() - (p @ f).square()).sqrt()

    def gradient(self, estimator: str, proposal: str, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [features] and covariance of an estimator of the gradient at theta, over demonstrations and rivals."""
        town, sets = self.town, self.sets
        f = town.listing.features / self.spread
        p = town.log_p(town.theta).exp()
        wanted, luck = moments(f, p)  # of the demonstration
        if estimator == "exact":
            return wanted - town.log_p(theta).exp() @ f, luck
        log_q = log_proposal(town, proposal, theta)
        if estimator == "unweighted":  # grad R(y) - mean of grad R(y_i)
            mean, covariance = moments(f, log_q.exp())
            return wanted - mean, luck + covariance / sets.n
        log_w = town.log_p(theta) - log_q
        w = (log_w - log_w.max()).exp()
        total, sums = sets.counts @ w, sets.counts @ (w[:, None] * f)
        of_set = sets.probability(log_q)
        if estimator == "weighted":  # grad R(y) - sum w_i grad R(y_i) / sum w_i
            mean, covariance = moments(sums / total[:, None], of_set)
            return wanted - mean, luck + covariance
        mean, square = torch.zeros(f.shape[1]).double(), torch.zeros(f.shape[1], f.shape[1]).double()
        for k in range(len(p)):  # the same with y among its rivals, which have its offset too
            g = f[k] - (sums + w[k] * f[k]) / (total + w[k])[:, None]
            weighted = g * (of_set * p[k])[:, None]
            mean, square = mean + weighted.sum(0), square + weighted.T @ g
        return mean, square - torch.outer(mean, mean)

    def vanishes(self, estimator: str, proposal: str) -> tuple[Tensor, float] | None:
        """Where the expected gradient is zero, and what that costs; None if nowhere near.

        The cost is that of a demonstration in exact ones: by how much the variance of the root exceeds that of maximum
        likelihood, averaged over directions: the sandwich ``J^-1 V J^-1'`` times the information.
        """
        unit = self.spread

        def mean(x: np.ndarray) -> np.ndarray:
            return self.gradient(estimator, proposal, torch.from_numpy(x) / unit)[0].numpy()

        start = (self.town.theta * unit).numpy()
        found = root(mean, start, tol=1e-10)
        if not found.success or np.abs(found.x).max() > LOST * np.abs(start).max() or np.abs(found.fun).max() > 1e-8:
            return None
        h, eye = 1e-4, np.eye(len(start))
        slope = np.stack([(mean(found.x + h * e) - mean(found.x - h * e)) / (2 * h) for e in eye], 1)
        theta = torch.from_numpy(found.x) / unit
        _, luck = self.gradient(estimator, proposal, theta)
        inverse = np.linalg.inv(slope)
        variance = inverse @ luck.numpy() @ inverse.T
        _, information = self.gradient("exact", proposal, self.town.theta)
        return theta, float(np.trace(variance @ information.numpy()) / len(start))


def recovered(town: Town, theta: Tensor) -> float:
    """The slope of the recovered reward of all paths on the true one."""
    true, found = (x - x.mean() for x in (town.listing.features @ town.theta, town.listing.features @ theta))
    return float(true @ found / (true @ true))


def measure(town: Town, n: int) -> dict[str, float]:
    """Every number of tables 4 and 5."""
    problem = Problem(town, Multisets.of(len(town.listing.paths), n))
    numbers: dict[str, float] = {"rivals": n, "multisets": len(problem.sets.counts)}
    half = town.theta / 2
    exact = {"half": problem.gradient("exact", "", half)[0], "true": problem.gradient("exact", "", town.theta)[0]}
    unit = float(exact["half"].norm())
    for where, theta in (("half", half), ("true", town.theta)):
        numbers[f"exact.{where}.sd"] = float(problem.gradient("exact", "", theta)[1].trace().sqrt()) / unit
        for estimator in ESTIMATORS:
            for proposal in SHARES:
                mean, covariance = problem.gradient(estimator, proposal, theta)
                key = f"{estimator}.{proposal}.{where}"
                numbers[f"{key}.bias"] = float((mean - exact[where]).norm()) / unit
                numbers[f"{key}.sd"] = float(covariance.trace().sqrt()) / unit
    for estimator in ESTIMATORS:
        for proposal in SHARES:
            found = problem.vanishes(estimator, proposal)
            slope, cost = (math.nan, math.nan) if found is None else (recovered(town, found[0]), found[1])
            numbers |= {f"{estimator}.{proposal}.slope": slope, f"{estimator}.{proposal}.cost": cost}
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
        "5. Where the expected gradient vanishes: share of the true reward, and demonstrations for one exact",
        *("rivals are drawn from", "unweighted", "demos", "weighted", "demos", "ranking NCE", "demos"),
    )
    for proposal in SHARES:
        cells = []
        for estimator in ESTIMATORS:
            slope, cost = (numbers[f"{estimator}.{proposal}.{x}"] for x in ("slope", "cost"))
            cells += ["nowhere", "-"] if math.isnan(slope) else [f"{slope:.3f}", f"{cost:.2f}"]
        rows.add_row(proposal, *cells)
    to.print(rows)
    say(
        to,
        f"""
        The share is the slope of the recovered reward of all paths on the true one: 1 is right. The policy follows the
        reward that is fitted, as far as it was trained, and {n} rivals are drawn anew at every step. "demos": how many
        demonstrations have the error of one under the exact likelihood (sandwich variance at the zero). Without
        weights only a converged policy finds the reward, a half-trained one finds twice of it, a wrong-signed one its
        opposite, and mu none. Weights help as far as n is large; ranking NCE is right for every proposal and every n.
        """,
    )
