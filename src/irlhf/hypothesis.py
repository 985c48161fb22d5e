"""Testing what a fit says: Wald, likelihood-ratio and score tests, Vuong's, information criteria, derived quantities.

Every test is a :class:`Test` with a statistic, its degrees of freedom, a p-value and a sentence. Tests that compare
likelihoods ask for maximum-likelihood fits: with a prior the distributions below do not hold, and that is said.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from irlhf import inference
from irlhf.errors import ConfigError
from irlhf.fit import Fit, fit_reward
from irlhf.identification import information_of
from irlhf.likelihood import Term
from irlhf.objective import Objective

RANK = 1e-8  # of the largest eigenvalue: information below this share is none
SLACK = 1e-6  # nats that a larger model may lack to a smaller one by rounding


@dataclass(frozen=True)
class Test:
    """A test of a hypothesis: under it the statistic is chi-squared with ``df``, or normal where ``df`` is None."""

    __test__ = False  # of pytest

    name: str
    statistic: float
    df: int | None
    p: float
    sentence: str

    def __str__(self) -> str:
        of = "z" if self.df is None else f"chi2({self.df})"
        return f"{self.name}: {of} = {self.statistic:.3f}, p = {self.p:.3g}. {self.sentence}"


def _chi2(name: str, statistic: float, df: int, accepted: str, rejected: str) -> Test:
    p = float(stats.chi2.sf(max(statistic, 0.0), df))
    return Test(name, statistic, df, p, rejected if p < 0.05 else accepted)


# ------------------------------------------------------------------------------------------------ one fit


def wald(
    fit: Fit,
    hypothesis: Mapping[str, float | int] | Callable[[dict[str, Tensor]], Tensor],
    *,
    kind: str = "hessian",
    cluster: str | None = None,
) -> Test:
    """Wald's test: ``g' (G V G')^-1 g`` for restrictions g = 0 with derivatives G and the covariance V (Wald 1943).

    Args:
        hypothesis: values of parameters by name, or a function of all parameters (a dict of numbers by name) that is 0
            under the hypothesis: a number or a vector. Wald's test of a nonlinear one depends on how it is written.
        kind, cluster: of the covariance, as in :meth:`Fit.standard_errors`.

    Raises:
        ConfigError: unknown parameters; restrictions that repeat each other, or that the feedback says nothing about.
    """
    if isinstance(hypothesis, Mapping):
        values = {name: float(value) for name, value in hypothesis.items()}
        for name in values:
            _number(fit.problem.names, name)

        restriction: Callable[[dict[str, Tensor]], Tensor] = lambda p: torch.stack(  # noqa: E731
            [p[name] - value for name, value in values.items()]
        )
    else:
        restriction = hypothesis
    g, jacobian = _derivative(fit, restriction)
    variance = inference.covariance_of(fit.information, jacobian, kind=kind, cluster=cluster)
    if not torch.isfinite(variance).all():
        raise ConfigError("the hypothesis is about a direction that the feedback does not identify; test another one")
    size = torch.linalg.eigvalsh(variance)
    if float(size[0]) <= RANK * float(size[-1]):
        raise ConfigError("the restrictions repeat each other, or are about fixed parameters; leave some out")
    statistic = float(g @ torch.linalg.solve(variance, g))
    name = f"Wald test ({inference.label(kind, cluster)})"
    return _chi2(name, statistic, len(g), "The feedback is compatible with it.", "The feedback speaks against it.")


def derived(
    fit: Fit,
    quantity: Callable[[dict[str, Tensor]], Tensor],
    *,
    kind: str = "hessian",
    cluster: str | None = None,
    level: float = 0.95,
    draws: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Any function of the parameters with its standard error and interval.

    By the delta method, ``G V G'``; or with ``draws`` by simulation: the function at so many draws of
    ``N(estimate, V)``, whose standard deviation and quantiles are given (Krinsky and Robb 1986).

    Args:
        quantity: from parameters by name (a dict of numbers, as tensors) to a number or a vector.

    Raises:
        ConfigError: the function depends on a direction that the feedback does not identify, and ``draws`` is given.
    """
    value, jacobian = _derivative(fit, quantity)
    if draws is None:
        variance = inference.covariance_of(fit.information, jacobian, kind=kind, cluster=cluster, diagonal=True)
        errors = variance.sqrt().numpy()
        half = stats.norm.ppf(0.5 + level / 2) * errors
        low, high = value.numpy() - half, value.numpy() + half
    else:
        matrix = fit.covariance(kind, cluster=cluster).to_numpy()
        if not np.isfinite(matrix).all():
            raise ConfigError("some parameters are not identified, so they cannot be simulated; use the delta method")
        at = np.random.default_rng(seed).multivariate_normal(fit.theta.numpy(), matrix, size=draws)
        names = fit.problem.names
        with torch.no_grad():
            found = [quantity(dict(zip(names, torch.from_numpy(row), strict=True))).reshape(-1) for row in at]
        simulated = torch.stack(found).numpy()
        errors = simulated.std(0, ddof=1)
        low, high = np.quantile(simulated, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    percent = f"{100 * level:g}%"
    return pd.DataFrame(
        {"estimate": value.numpy(), "std. error": errors, f"lower {percent}": low, f"upper {percent}": high}
    )


def score_test(fit: Fit, release: Sequence[str], *, kind: str = "hessian") -> Test:
    """Rao's score test of what a fit kept fixed: ``g' V g``, at the restricted estimate; nothing is fitted again.

    Args:
        release: fixed parameters of the fit, by name, that might be free.
        kind: "hessian" or "opg": of the information.

    Raises:
        ConfigError: parameters that are not fixed in this fit, or are not identified when released; a prior.
    """
    problem = _plain(fit)
    numbers = [_number(problem.names, name) for name in release]
    if free := [name for name, k in zip(release, numbers, strict=True) if problem.free[k]]:
        raise ConfigError(f"{free[0]!r} is free in this fit already; a score test is about fixed parameters")
    if kind not in ("hessian", "opg"):
        raise ConfigError(f"a score test with kind {kind!r}; choose 'hessian' or 'opg'")
    hessian, scores = problem.derivatives(fit.theta)
    weights = problem.unit_weights()
    gradient = sum(
        ((s * w[:, None]).sum(0) for s, w in zip(scores, weights, strict=True)), torch.zeros(len(fit.theta)).double()
    )
    information = -hessian if kind == "hessian" else inference.outer(scores, weights, len(fit.theta))
    keep = torch.cat([problem.free.nonzero()[:, 0], torch.tensor(numbers)])
    inner = information[keep][:, keep]
    if float(torch.linalg.eigvalsh(inner)[0]) <= RANK * float(torch.linalg.eigvalsh(inner)[-1]):
        raise ConfigError(f"with {', '.join(release)} released, the feedback does not identify all parameters")
    statistic = float(gradient[keep] @ torch.linalg.solve(inner, gradient[keep]))
    name = f"score test ({'observed information' if kind == 'hessian' else 'outer product of scores'})"
    kept = "The feedback is compatible with keeping them fixed."
    return _chi2(name, statistic, len(numbers), kept, "The feedback asks for releasing them.")


def criteria(fit: Fit) -> pd.Series:
    """Log-likelihood, free parameters k, rows n, AIC and BIC (Akaike 1974; Schwarz 1978); smaller is better.

    Raises:
        ConfigError: a prior, or a saddle point: then there is no maximized likelihood.
    """
    problem = _plain(fit)
    value, k = float(fit.log_likelihood.sum()), int(problem.free.sum())
    n = float(sum(term.row_weight.sum() for term in fit.terms))
    found = {"log_likelihood": value, "k": k, "n": n, "aic": 2 * k - 2 * value, "bic": k * np.log(n) - 2 * value}
    return pd.Series(found, name="criteria")


# ------------------------------------------------------------------------------------------------ two fits


def likelihood_ratio(restricted: Fit, full: Fit) -> Test:
    """Twice the difference of log-likelihoods of nested fits to the same feedback (Wilks 1938).

    Raises:
        ConfigError: other feedback, as many parameters, a prior, or a smaller model that fits better.
    """
    small, large = _plain(restricted), _plain(full)
    _require_same_rows(restricted, full)
    df = int(large.free.sum()) - int(small.free.sum())
    gain = float(full.log_likelihood.sum()) - float(restricted.log_likelihood.sum())
    if df < 1:
        raise ConfigError(f"the full model has {df} parameters more than the restricted one; swap them, or use vuong")
    if gain < -SLACK * (1 + abs(float(full.log_likelihood.sum()))):
        raise ConfigError(
            f"the restricted model fits better by {-gain:.3g} nats: they are not nested (use vuong), or the full one "
            "was not fitted to its maximum"
        )
    kept = "The feedback is compatible with the restricted model."
    return _chi2("likelihood-ratio test", 2 * max(gain, 0.0), df, kept, "The feedback asks for the full model.")


def vuong(first: Fit, second: Fit, *, correction: str | None = "bic", cluster: str | None = None) -> Test:
    """Vuong's test of models that are not nested: the mean difference of row log-likelihoods over its error (1989).

    Args:
        correction: "bic", "aic" or None: what the larger model pays for its parameters.
        cluster: rows of one "person", "context" or "datum" are added up first.

    Raises:
        ConfigError: other feedback, models that say the same of every row, or a prior.
    """
    a, b = _plain(first), _plain(second)
    _require_same_rows(first, second)
    if correction not in ("bic", "aic", None):
        raise ConfigError(f"correction is {correction!r}; choose 'bic', 'aic' or None")
    each = []
    for one, other in zip(first.terms, second.terms, strict=True):
        with torch.no_grad():
            each.append(((one.log_prob(first.reward) - other.log_prob(second.reward)) * one.row_weight).numpy())
    summed = np.concatenate(each)
    if cluster:
        summed = np.bincount(torch.cat(inference.clusters(first.terms, cluster)[0]).numpy(), summed)
    n, k = len(summed), int(a.free.sum()) - int(b.free.sum())
    paid = {"bic": k * np.log(n) / 2, "aic": float(k), None: 0.0}[correction]
    spread = float(summed.std())
    if spread <= 1e-10 * (1 + float(np.abs(summed).mean())):
        raise ConfigError("the two models say the same of every row; there is nothing to compare")
    z = (float(summed.sum()) - paid) / (np.sqrt(n) * spread)
    p = float(2 * stats.norm.sf(abs(z)))
    better = "The first explains the feedback better." if z > 0 else "The second explains the feedback better."
    sentence = better if p < 0.05 else "The feedback does not tell them apart."
    return Test("Vuong's test" + (f" ({correction.upper()})" if correction else ""), z, None, p, sentence)


# ----------------------------------------------------------------------------------------- several sources


def added_information(fit: Fit) -> pd.DataFrame:
    """What each source says of each parameter: its share of the information, and the error without all others.

    For each term the diagonal of its own information, as a share of the sum over terms, and the standard error that
    parameter would have if this term were the only one (infinite where the term is blind to it).
    """
    problem = _plain(fit)
    columns: dict[str, Any] = {}
    total = torch.zeros(len(fit.theta)).double()
    own: dict[str, Tensor] = {}
    for term in fit.terms:
        own[term.name] = _information_of(fit, [term])
        total += own[term.name].diagonal().clamp(min=0)
    for name, information in own.items():
        share = information.diagonal().clamp(min=0) / total.clamp(min=1e-300)
        columns[f"{name}: share"] = share.numpy()
        columns[f"{name}: alone"] = _alone(information, problem.free).numpy()
    return pd.DataFrame(columns, index=problem.names)


def sources_agree(fit: Fit) -> Test:
    """Whether the terms of a joint fit agree on one reward: a likelihood-ratio test against a reward for each.

    Degrees of freedom are the directions that more than one source sees, one less for every temperature that the joint
    fit was free to choose: in a separate fit a temperature cannot be told from the reward's scale.

    Raises:
        ConfigError: a single term, a prior, or nothing that two sources both see.
    """
    problem = _plain(fit)
    if len(fit.terms) < 2:
        raise ConfigError("there is one source only; agreement is between two or more")
    reward = torch.from_numpy(problem.is_reward)
    seen = [_rank(_information_of(fit, [term])[reward][:, reward]) for term in fit.terms]
    together = _rank(_information_of(fit, fit.terms)[reward][:, reward])
    named = list(zip(problem.names, problem.free.tolist(), strict=True))
    temperatures = sum(free and name.endswith(".log_temperature") for name, free in named)
    df = sum(seen) - together - temperatures
    if df < 1:
        raise ConfigError(
            "the sources see no direction of the reward in common (but for its scale), so they can neither agree nor "
            "disagree; add feedback of one source on what the other one saw"
        )
    alone = 0.0
    for term in fit.terms:
        apart = copy.copy(term)
        apart.source = copy.deepcopy(term.source)
        if apart.source.log_temperature.requires_grad:  # alone it is the scale of the reward, at any value
            with torch.no_grad():
                apart.source.log_temperature.zero_().requires_grad_(False)
        apart.prepared = term.likelihood.prepare(term.feedback, apart.source)
        alone += float(fit_reward(copy.deepcopy(fit.reward), apart).log_likelihood.sum())
    gain = alone - float(fit.log_likelihood.sum())
    return _chi2(
        "agreement of sources", 2 * max(gain, 0.0), df,
        "The sources are compatible with one reward.", "The sources do not agree on one reward: fit them apart.",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- helpers


def _plain(fit: Fit) -> Objective:
    """The problem of a maximum-likelihood fit. Raises ConfigError for any other."""
    if fit.saddle or not isinstance(fit.problem, Objective):
        raise ConfigError(
            "this fit has no maximized likelihood (it is variational, or by minibatches), and so no tests"
        )
    if fit.problem.prior is not None:
        raise ConfigError("this fit has a prior, under which likelihood tests do not have their distribution; drop it")
    return fit.problem


def _number(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise ConfigError(f"there is no parameter {name!r}; the parameters are {', '.join(names[:20])}")
    return list(names).index(name)


def _derivative(fit: Fit, f: Callable[[dict[str, Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
    """(value as a vector, its derivative by all parameters) at the estimate."""
    theta = fit.theta.clone().requires_grad_()
    value = f(dict(zip(fit.problem.names, theta, strict=True))).reshape(-1)
    rows = [torch.autograd.grad(v, theta, retain_graph=True, materialize_grads=True)[0] for v in value]
    return value.detach(), torch.stack(rows)


def _require_same_rows(first: Fit, second: Fit) -> None:
    one = [str(name) for term in first.terms for name in term.feedback.id]
    other = [str(name) for term in second.terms for name in term.feedback.id]
    if one != other:
        raise ConfigError(
            f"the fits are of {len(one)} and {len(other)} rows that are not the same; fit both to one data"
        )


def _information_of(fit: Fit, terms: Sequence[Term]) -> Tensor:
    """The observed information of some terms alone, in all parameters of the fit."""
    problem = cast(Objective, fit.problem)
    return information_of(problem, terms, fit.theta) * problem.scale[:, None] * problem.scale


def _rank(information: Tensor) -> int:
    size = torch.linalg.eigvalsh(information)
    return int((size > RANK * max(float(size[-1]), 1e-300)).sum())


def _alone(information: Tensor, free: Tensor) -> Tensor:
    """Standard errors from one matrix of information; infinite where it is blind."""
    result = torch.zeros(len(information), dtype=torch.float64)
    numbers = free.nonzero()[:, 0]
    size, vectors = torch.linalg.eigh(information[numbers][:, numbers])
    seen = size > RANK * max(float(size[-1]), 1e-300)
    variance = (vectors[:, seen].square() / size[seen]).sum(1)
    blind = (vectors[:, ~seen].abs() > inference.NEGLIGIBLE).any(1)
    result[numbers] = torch.where(blind, torch.inf, variance.sqrt())
    return result
