"""How far a learned reward can be optimized before the people behind it would stop agreeing.

A policy that climbs a learned reward soon goes where the reward is wrong in its favor: its own value rises and the
true one falls (Gao, Schulman and Hilton 2023). The true one is not to be had, but the comparisons are. Rewards fitted
without a part of the comparisons score that part (cross-fitting), and one more choice model asks what a score is worth:

    u(y) = b_1 z + b_2 (z^2 - 1),     z = the reward, centered per context and standardized over draws of mu         (1)

Since policies ``mu exp(R/T)`` look at a context's trajectories through z alone, what is expected of the true utility
at such a policy is ``E[u]``, with two parameters and their errors, however large the reward model is. Where people
agree less and less with higher scores b_2 is negative, ``E[u]`` has a peak, and beyond it an alarm is due.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import hessian

from irlhf import inference
from irlhf.errors import ConfigError
from irlhf.fit import Fit
from irlhf.likelihood import Term, listed
from irlhf.objective import Objective
from irlhf.protocols import Draws
from irlhf.resampling import curvature_of, refitted

FOLDS = 5
CLEAR = 1.645  # standard errors by which the expected utility must fall after its peak: one-sided 5 %
FEWEST = 20.0  # effective draws a context: beyond, the tilted policy is not seen by draws of mu any more
RIDGE = 1e-2  # on b: keeps separated answers finite


@dataclass(frozen=True, eq=False)
class Frontier:
    """What optimizing a reward brings, by how far the policy goes from the base measure.

    ``table`` has one row for each policy ``mu exp(R/T)``, the mildest first: ``kl`` (nats), ``temperature``, ``reward``
    (gain over mu, in its own units), ``utility`` (what people are expected to think of it, in nats of equation 1) with
    ``utility_error``, ``spread`` (standard deviation of the standardized gain over rewards fitted to parts of the
    feedback), and ``gold`` with ``gold_error`` where a true reward was given.
    """

    table: pd.DataFrame
    slope: float
    slope_error: float
    curvature: float
    curvature_error: float
    best_of: pd.DataFrame
    """The same for the best of n draws of mu: ``n, kl`` (at most), ``reward, utility, gold``."""
    falls: float
    """By how many standard errors the expected utility falls from its peak to the end."""

    @property
    def peak(self) -> float:
        """The KL at which the expected utility is highest."""
        return float(self.table["kl"].iloc[int(self.table["utility"].argmax())])

    @property
    def alarm(self) -> float | None:
        """The KL beyond which the reward is over-optimized; None: the comparisons do not show that it is so far."""
        return self.peak if self.falls > CLEAR else None

    def __str__(self) -> str:
        reach = float(self.table["kl"].iloc[-1])
        if self.alarm is None:
            return (
                f"No alarm up to a KL of {reach:.2f} nats, as far as draws of the base measure can see: people go on "
                "agreeing with higher rewards."
            )
        return (
            f"Stop at a KL of about {self.alarm:.2f} nats: beyond it higher rewards are expected to please people less "
            f"(by {self.falls:.1f} standard errors at {reach:.2f} nats)."
        )

    def watch(self, then: Callable[[dict[str, Any]], None] | None = None) -> Callable[[dict[str, Any]], None]:
        """A ``progress`` for ``fit_policy`` that warns once when the policy has gone beyond the alarm."""
        heard: list[bool] = []

        def progress(step: dict[str, Any]) -> None:
            if self.alarm is not None and not heard and step.get("kl", 0.0) > self.alarm:
                heard.append(True)
                warnings.warn(f"step {step.get('step')}: KL {step['kl']:.2f}. {self}", stacklevel=2)
            if then is not None:
                then(step)

        return progress


def frontier(
    fit: Fit,
    draws: Draws,
    *,
    gold: Any = None,
    folds: int = FOLDS,
    by: str = "datum",
    points: int = 40,
    refit: Callable[[Sequence[Term]], Any] | None = None,
    seed: int = 0,
) -> Frontier:
    """Where optimizing a fitted reward stops to pay, from the comparisons it was fitted to.

    Args:
        fit: to comparisons, rankings or ratings, perhaps with demonstrations beside them.
        draws: of the base measure, many for each context, or all that there are with ``world.every``.
        gold: a true reward, where there is one, to look at beside.
        folds, by: into how many parts the feedback is cut, and what is never cut ("datum", "person", "context").
        points: policies on the frontier.
        refit: from terms to a reward fitted to them; default: as the fit was, from its estimate on. Rewards that were
            fitted by minibatches need one.

    Raises:
        ConfigError: no term of listed choices, fewer groups than folds, or a fit that cannot be repeated.
    """
    judged = [k for k, term in enumerate(fit.terms) if isinstance(term.likelihood, listed)]
    if not judged:
        raise ConfigError(
            "there are no comparisons, rankings or ratings in this fit, and only they say what people prefer"
        )
    groups, n_groups = inference.clusters(fit.terms, by)
    if n_groups < folds:
        raise ConfigError(f"{n_groups} groups by {by} are fewer than {folds} folds; give fewer folds")
    again = refit or _refit(fit)
    fold = torch.from_numpy(np.random.default_rng(seed).permutation(n_groups) % folds)
    request, batch = draws.request, draws.batch
    n = int(request.max()) + 1
    parts: list[tuple[Term, Tensor]] = []  # a term's rows of one fold, and z of all that they show
    gains = []
    for number in range(folds):
        kept = [_part(t, (fold[row] != number).nonzero()[:, 0]) for t, row in zip(fit.terms, groups, strict=True)]
        reward = again([t for t in kept if t is not None])
        with torch.no_grad():
            of_draws = reward(batch).double()
            center, scale = _units(of_draws, request, n)
            gains.append((of_draws - center[request]) / scale)
            level = dict(zip(map(repr, _contexts_of(draws, n)), center.tolist(), strict=True))
            for k in judged:
                own = _part(fit.terms[k], (fold[groups[k]] == number).nonzero()[:, 0])
                if own is not None:
                    asked = own.prepared.batch
                    mean = torch.tensor([level.get(repr(x), float(center.mean())) for x in asked.contexts])
                    z = (own.likelihood.compared(own.prepared, reward) - mean.double()[asked.context]) / scale
                    parts.append((own, z))
    b, covariance = _calibrated(parts)
    with torch.no_grad():
        of_draws = fit.reward(batch).double()
        center, scale = _units(of_draws, request, n)
        z = (of_draws - center[request]) / scale
        true = None if gold is None else gold(batch).double()
    table, basis = _tilted(z, scale, request, n, torch.stack(gains), true, points)
    utility = basis @ b
    table["utility"], table["utility_error"] = utility.numpy(), _errors(basis, covariance).numpy()
    best, end = int(utility.argmax()), len(utility) - 1
    difference = basis[best] - basis[end]
    error = float(_errors(difference[None], covariance)[0])
    falls = float(difference @ b) / error if best < end and error > 0 else 0.0
    order = ["kl", "temperature", "reward", "utility", "utility_error", "spread"]
    columns = order + [c for c in table.columns if c not in order]
    errors = covariance.diagonal().sqrt()
    chosen = _best_of(z, scale, request, n, b, true)
    return Frontier(
        pd.DataFrame(table[columns]), float(b[0]), float(errors[0]), float(b[1]), float(errors[1]), chosen, falls
    )


def _refit(fit: Fit) -> Callable[[Sequence[Term]], Any]:
    if not isinstance(fit.problem, Objective):
        raise ConfigError("a reward that was fitted by minibatches is not fitted again from here; give refit")
    curvature = curvature_of(fit)

    def again(terms: Sequence[Term]) -> Any:
        theta = refitted(fit, terms, curvature)
        if theta is None:
            raise ConfigError("without a part of the feedback the fit has no maximum; give it a prior")
        return fit.problem.copied_reward(theta)

    return again


def _part(term: Term, rows: Tensor) -> Term | None:
    return term.take(rows) if len(rows) else None


def _contexts_of(draws: Draws, n: int) -> list[Any]:
    """The context of each request."""
    first = torch.searchsorted(draws.request, torch.arange(n))
    return [draws.batch.contexts[int(draws.batch.context[k])] for k in first]


def _units(values: Tensor, request: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(mean of each context [n], standard deviation within contexts)."""
    count = torch.bincount(request, minlength=n)
    mean = torch.zeros(n, dtype=torch.float64).index_add(0, request, values) / count
    scale = (values - mean[request]).square().mean().sqrt()
    if not float(scale) > 0:
        raise ConfigError("the reward is the same for all draws of each context: there is nothing to optimize")
    return mean, scale


def _basis(z: Tensor) -> Tensor:
    return torch.stack([z, z.square() - 1], -1)


def _calibrated(parts: Sequence[tuple[Term, Tensor]]) -> tuple[Tensor, Tensor]:
    """b of equation (1) by Newton's method, and its covariance."""

    def objective(b: Tensor) -> Tensor:
        total = -0.5 * RIDGE * b.square().sum()
        for term, z in parts:
            found = term.likelihood.given(term.prepared, (_basis(z) @ b) * term.source.temperature, term.source)
            total = total + (found * term.row_weight).sum()
        return total

    second = hessian(objective)
    b = torch.zeros(2, dtype=torch.float64)
    for _ in range(50):
        b = b.detach().requires_grad_()
        value = objective(b)
        gradient = torch.autograd.grad(value, b)[0]
        curvature = -second(b.detach()).detach()  # the sources' own parameters are constants here
        step = torch.linalg.solve(curvature + 1e-9 * torch.eye(2).double(), gradient)
        size, new = 1.0, b.detach() + step
        while float(objective(new).detach()) < float(value.detach()) - 1e-12 and size > 1e-4:
            size /= 2
            new = b.detach() + size * step
        b = new
        if float(step.abs().max()) < 1e-9:
            break
    return b.detach(), torch.linalg.inv(-second(b.detach()).detach())


def _errors(basis: Tensor, covariance: Tensor) -> Tensor:
    return ((basis @ covariance) * basis).sum(-1).clamp(min=0).sqrt()


def _tilted(
    z: Tensor, scale: Tensor, request: Tensor, n: int, others: Tensor, gold: Tensor | None, points: int
) -> tuple[pd.DataFrame, Tensor]:
    """Policies ``mu exp(s z)`` for s from 0 on, as far as the draws can see; and the mean of the basis at each."""
    count = torch.bincount(request, minlength=n).double()
    rows, bases, basis = [], [], _basis(z)
    flat = 1 / count[request]
    start = _by_context(basis, flat, request, n).mean(0)
    for strength in np.geomspace(0.02, 100, 400):
        log_w = strength * z
        top = torch.full((n,), -torch.inf, dtype=torch.float64).scatter_reduce(0, request, log_w, "amax")
        w = (log_w - top[request]).exp()
        total = torch.zeros(n, dtype=torch.float64).index_add(0, request, w)
        share = w / total[request]
        effective = 1 / torch.zeros(n, dtype=torch.float64).index_add(0, request, share.square())
        if float(effective.mean()) < FEWEST and len(rows) > 1:
            break
        kl = (share * (share.clamp(min=1e-300) * count[request]).log()).sum() / n
        row = {"kl": float(kl), "temperature": float(scale) / strength}
        row["reward"] = float(_by_context(z, share, request, n).mean()) * float(scale)
        row["spread"] = float(torch.stack([_by_context(one, share, request, n).mean() for one in others]).std())
        if gold is not None:
            each = _by_context(gold, share, request, n) - _by_context(gold, flat, request, n)
            row["gold"] = float(each.mean())
            row["gold_error"] = float(each.std() / n**0.5) if n > 1 else np.nan
        rows.append(row)
        bases.append(_by_context(basis, share, request, n).mean(0) - start)
    table, every = pd.DataFrame(rows), torch.stack(bases)
    # As many as asked for, evenly along the KL.
    wanted = np.linspace(table["kl"].iloc[0], table["kl"].iloc[-1], points)
    keep = np.unique(np.abs(table["kl"].to_numpy()[:, None] - wanted[None]).argmin(0))
    return table.iloc[keep].reset_index(drop=True), every[torch.from_numpy(keep)]


def _by_context(values: Tensor, share: Tensor, request: Tensor, n: int) -> Tensor:
    """What each context expects of numbers, or of rows of numbers, under shares that sum to one in it."""
    weighted = share.view(-1, *[1] * (values.dim() - 1)) * values
    return torch.zeros(n, *values.shape[1:], dtype=torch.float64).index_add(0, request, weighted)


def _best_of(z: Tensor, scale: Tensor, request: Tensor, n: int, b: Tensor, gold: Tensor | None) -> pd.DataFrame:
    """The best of 1, 2, 4, ... draws: order statistics of the draws at hand, drawn with replacement."""
    count, rows = torch.bincount(request, minlength=n), []
    fewest = int(count.min())
    for best in [2**k for k in range(1, 12) if 2**k <= fewest // 4]:
        weight = torch.zeros_like(z)
        for x in range(n):
            own = (request == x).nonzero()[:, 0]
            rank = z[own].argsort().argsort().double() + 1
            weight[own] = (rank / len(own)) ** best - ((rank - 1) / len(own)) ** best
        row = {"n": best, "kl": np.log(best) - (best - 1) / best, "reward": float((weight * z).sum() / n * scale)}
        row["utility"] = float((weight[:, None] * _basis(z)).sum(0) @ b / n)
        if gold is not None:
            row["gold"] = float((weight * gold).sum() / n - (gold / count.double()[request]).sum() / n)
        rows.append(row)
    return pd.DataFrame(rows)
