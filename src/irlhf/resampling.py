"""How sure a fit is, by doing it again: on resampled feedback, without each datum, with other rivals.

The bootstrap and leave-one-out need no formula for an error, and so hold where those of :mod:`irlhf.inference` are not
to be had or not to be believed: in small samples, with a prior, for what was fitted by drawing rivals.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf import inference
from irlhf.errors import ConfigError, InfeasibleError, NonFiniteError
from irlhf.fit import Fit
from irlhf.functional.weights import k_hat_threshold, pareto_smoothed
from irlhf.likelihood import Term
from irlhf.objective import Objective
from irlhf.optimize import LBFGS
from irlhf.proposals import as_proposal
from irlhf.randomness import Key

TAILS = 8  # degrees of freedom of the t that parameters are drawn from
QUICK_STEPS = 30  # with the curvature of the whole fit, before L-BFGS has to do it
Progress = Callable[[dict[str, Any]], None]


# --------------------------------------------------------------------------------------------------- the bootstrap


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Estimates from resampled feedback. ``draws`` has one row for each resample and a column for each parameter."""

    draws: pd.DataFrame
    estimate: pd.Series
    by: str
    failed: int
    """Resamples that have no maximum (separation, divergence): they are left out, and say that others came close."""

    @property
    def standard_errors(self) -> pd.Series:
        return self.draws.std(ddof=1).rename(f"bootstrap by {self.by}, {len(self.draws)} resamples")

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """Estimate, bias, standard error and the percentile interval of each parameter (Efron 1979, 1981)."""
        percent = f"{100 * level:g}%"
        return pd.DataFrame(
            {
                "estimate": self.estimate,
                "bias": self.draws.mean() - self.estimate,
                "std. error": self.standard_errors,
                f"lower {percent}": self.draws.quantile(0.5 - level / 2),
                f"upper {percent}": self.draws.quantile(0.5 + level / 2),
            }
        )


def bootstrap(
    fit: Fit, n: int = 200, *, by: str = "datum", seed: int = 0, progress: Progress | None = None
) -> Bootstrap:
    """Fits ``n`` resamples of the feedback, each drawn with replacement by whole groups, from the estimate on.

    Args:
        by: "datum" (a row, path or ranking), "context" or "person": what is drawn. Persons and contexts are the same in
            all terms, so that what one of them said of two kinds stays together.
        progress: called after every resample with ``{"resample": k, "of": n}``.

    Raises:
        ConfigError: a fit by minibatches or a variational one; fewer than two groups.
    """
    problem = _problem(fit)
    rows, n_groups = inference.clusters(fit.terms, by)
    if n_groups < 2:
        raise ConfigError(f"there is one {by} only; a bootstrap draws from many")
    rng, found, failed = np.random.default_rng(seed), [], 0
    curvature = curvature_of(fit)
    for k in range(n):
        times = torch.from_numpy(np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)).double()
        terms = [_reweighted(term, times[row]) for term, row in zip(fit.terms, rows, strict=True)]
        theta = refitted(fit, terms, curvature)
        failed += theta is None
        found += [] if theta is None else [theta.numpy()]
        if progress is not None:
            progress({"resample": k + 1, "of": n})
    if len(found) < 2:
        raise ConfigError("no resample has a maximum: the feedback is too little; give a prior")
    return Bootstrap(pd.DataFrame(np.stack(found), columns=problem.names), fit.params, by, failed)


# ------------------------------------------------------------------------------------------------- leaving one out


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """How well each group of feedback is predicted by a fit to all others.

    ``each`` has one row for a group: ``elpd`` (expected log predictive density, nats), ``k_hat`` of its weights, and
    the ``effective_share`` of the draws.
    """

    each: pd.DataFrame
    by: str
    draws: int
    """Of the parameters."""
    effective_parameters: float
    """The log-likelihood of the fit less ``elpd``: what it gained by having seen what it predicts."""

    @property
    def elpd(self) -> float:
        return float(self.each["elpd"].to_numpy().sum())

    @property
    def error(self) -> float:
        """The standard error of ``elpd`` over groups (Vehtari, Gelman and Gabry 2017, eq. 23)."""
        return float(np.sqrt(len(self.each)) * self.each["elpd"].std(ddof=0))

    @property
    def unreliable(self) -> int:
        """Groups whose k-hat is above the threshold for so many draws."""
        return int((self.each["k_hat"].to_numpy() > k_hat_threshold(self.draws)).sum())

    @property
    def verdict(self) -> str:
        if not self.unreliable:
            return f"Reliable: no weights have a tail with k-hat above {k_hat_threshold(self.draws):.2f}."
        return (
            f"Not reliable for {self.unreliable} of {len(self.each)} groups, whose k-hat is above "
            f"{k_hat_threshold(self.draws):.2f}: each decides much of the fit by itself. Hold them out and fit again."
        )

    def __str__(self) -> str:
        return (
            f"leave-one-out by {self.by}: elpd {self.elpd:.3f} (std. error {self.error:.3f}), effective parameters "
            f"{self.effective_parameters:.2f}. {self.verdict}"
        )

    def gain_over(self, other: LeaveOneOut) -> tuple[float, float]:
        """The difference of ``elpd`` and its standard error over the same groups (eq. 24). Raises ConfigError."""
        if len(self.each) != len(other.each) or self.by != other.by:
            raise ConfigError("the two were not made from the same groups of feedback")
        gain = (self.each["elpd"] - other.each["elpd"]).to_numpy()
        return float(gain.sum()), float(np.sqrt(len(gain)) * gain.std())


def leave_one_out(
    fit: Fit, *, by: str = "datum", draws: int = 1000, seed: int = 0, progress: Progress | None = None
) -> LeaveOneOut:
    """Leave-one-out cross-validation by Pareto-smoothed importance sampling (Vehtari, Gelman and Gabry 2017).

    Parameters are drawn from Student's t around the estimate, with the curvature there (Laplace's approximation with
    heavier tails, so that no weight is without bounds; Geweke 1989), and reweighted to the posterior
    without each group, ``p(theta | y) / (q(theta) p(y_i | theta))`` (Magnusson et al. 2019, eq. 7); flat priors are
    meant where the fit has none.

    Args:
        by: "datum", "context" or "person": what is left out. Leave out whole persons where a person answered often.

    Raises:
        ConfigError: parameters that are not identified have no posterior; a fit by minibatches or a variational one.
    """
    problem = _problem(fit)
    covariance = inference.covariance(fit.information)
    if not torch.isfinite(covariance).all():
        raise ConfigError("some parameters are not identified, so there is nothing to draw from; fix them, or a prior")
    free = problem.free.nonzero()[:, 0]
    root = torch.linalg.cholesky(covariance[free][:, free])
    rng, k = np.random.default_rng(seed), len(free)
    heavier = np.sqrt(TAILS / rng.chisquare(TAILS, size=(draws, 1)))
    noise = torch.from_numpy(rng.standard_normal((draws, k)) * heavier)
    log_q = -0.5 * (TAILS + k) * torch.log1p(noise.square().sum(1) / TAILS)
    rows, n_groups = inference.clusters(fit.terms, by)
    log_lik = torch.full((draws, n_groups), -torch.inf, dtype=torch.float64)
    log_ratio = torch.full((draws,), -torch.inf, dtype=torch.float64)
    with torch.no_grad():
        for number, z in enumerate(noise):
            theta = fit.theta.clone()
            theta[free] += root @ z
            try:
                units = problem.unit_log_probs(theta)
            except (InfeasibleError, NonFiniteError):
                continue  # of no posterior weight
            own = torch.zeros(n_groups, dtype=torch.float64)
            for term, row, values, weight in zip(fit.terms, rows, units, problem.unit_weights(), strict=True):
                own.index_add_(0, row[term.unit_row], values * weight)
            log_lik[number] = own
            log_ratio[number] = own.sum() + problem.log_prior(theta) - log_q[number]
            if progress is not None:
                progress({"draw": number + 1, "of": draws})
    without = (log_ratio[:, None] - torch.where(torch.isfinite(log_lik), log_lik, 0.0)).T
    smoothed, k_hat = pareto_smoothed(without - without.amax(1, keepdim=True))
    weight = smoothed.log_softmax(1)
    elpd = torch.logsumexp(weight + log_lik.T, 1)
    share = (-torch.logsumexp(2 * weight, 1)).exp() / draws
    each = pd.DataFrame({"elpd": elpd.numpy(), "k_hat": k_hat.numpy(), "effective_share": share.numpy()})
    return LeaveOneOut(each, by, draws, float(fit.log_likelihood.sum()) - float(elpd.sum()))


# --------------------------------------------------------------------------------------------------- drawing again


def simulation_variance(fit: Fit, n: int = 5, *, seed: int = 0) -> pd.DataFrame:
    """What drawing other rivals changes: the part of the uncertainty of a sampled fit that its Hessian does not see.

    Fits again with ``n`` fresh sets of rivals. Returns for each parameter the standard error of the fit (``sampling``,
    inverse Hessian), the standard deviation over draws of rivals (``simulation``), both ``together`` (the root of the
    sum of squares), and ``share``, the simulation's part of that variance.

    Raises:
        ConfigError: no term of the fit draws rivals.
    """
    _problem(fit)
    if not any(hasattr(term.likelihood, "proposal") for term in fit.terms):
        raise ConfigError("no term of this fit draws rivals, so there is no simulation variance")
    found, curvature = [], curvature_of(fit)
    for k in range(n):
        key = Key(seed).at("redraw", k)
        terms = [_redrawn(term, key.at(term.name)) for term in fit.terms]
        theta = refitted(fit, terms, curvature)
        if theta is not None:
            found.append(theta.numpy())
    if len(found) < 2:
        raise ConfigError("with other rivals the fit has no maximum; draw more of them")
    sampling = fit.standard_errors()
    simulation = pd.Series(np.stack(found).std(0, ddof=1), index=sampling.index)
    together = (sampling**2 + simulation**2) ** 0.5
    share = simulation**2 / together.where(together > 0) ** 2
    return pd.DataFrame({"sampling": sampling, "simulation": simulation, "together": together, "share": share})


# ---------------------------------------------------------------------------------------------------------- helpers


def _problem(fit: Fit) -> Objective:
    if fit.saddle or not isinstance(fit.problem, Objective):
        raise ConfigError("this fit is variational or by minibatches; fit an Ensemble on resampled feedback instead")
    return fit.problem


def _redrawn(term: Term, key: Key) -> Term:
    proposal = getattr(term.likelihood, "proposal", term)
    return term if proposal is term else term.redrawn(as_proposal(proposal), key)


def _reweighted(term: Term, times: Float[Tensor, "rows"]) -> Term:
    """The term with each row counted so many times; nothing is laid out anew."""
    other = copy.copy(term)
    other.row_weight = term.row_weight * times
    other.prepared = copy.copy(term.prepared)
    object.__setattr__(other.prepared, "counts", {})
    object.__setattr__(other.prepared, "memory", dict(term.prepared.memory))
    return other


def curvature_of(fit: Fit) -> Tensor:
    """[parameters, parameters] That of the fit, made invertible: a metric, not a result."""
    matrix = fit.information.curvature * fit.problem.scale[:, None] * fit.problem.scale
    return matrix + 1e-9 * max(float(matrix.diagonal().abs().max()), 1e-9) * torch.eye(len(matrix)).double()


def refitted(fit: Fit, terms: Sequence[Term], curvature: Tensor) -> Tensor | None:
    """The maximum for other terms, from the estimate of the fit on; None where there is none."""
    old = cast(Objective, fit.problem)
    problem = Objective(cast(nn.Module, copy.deepcopy(fit.reward)), terms, prior=old.prior, fixed=_fixed(old, fit))
    problem.start, problem.lower, problem.upper = fit.theta.clone(), old.lower, old.upper
    free = old.free.nonzero()[:, 0]
    theta, (value, gradient, error) = fit.theta.clone(), problem.trial(fit.theta)
    if error is None and not torch.isfinite(problem.lower).any() and not torch.isfinite(problem.upper).any():
        root = torch.linalg.cholesky_ex(curvature[free][:, free])[0]
        for _ in range(QUICK_STEPS):
            step = torch.zeros_like(theta)
            step[free] = torch.cholesky_solve(gradient[free, None], root)[:, 0]
            gain = float(gradient @ step)
            if gain / 2 < 1e-11:
                return theta
            size = 1.0
            while size > 1e-3:
                there, slope, error = problem.trial(theta + size * step)
                if error is None and there > value + 1e-4 * size * gain:
                    break
                size /= 2
            else:
                break
            theta, value, gradient = theta + size * step, there, slope
        problem.start = theta
    optimizer = LBFGS()
    state = optimizer.init(problem)
    for _ in range(optimizer.max_steps):
        state, info = optimizer.step(problem, state)
        if info["why"] in ("converged", "stalled"):
            moved = (state["theta"] - fit.theta) * old.scale
            wild = moved.abs().max() > 1e3 * (1 + (fit.theta * old.scale).abs().max())
            return None if info["why"] == "stalled" or bool(wild) else state["theta"]
    return None


def _fixed(old: Objective, fit: Fit) -> dict[str, float]:
    return {
        name: float(value) for name, value, is_free in zip(old.names, fit.theta, old.free, strict=True) if not is_free
    }
