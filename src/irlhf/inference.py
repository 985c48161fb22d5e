"""How sure a fit is: three kinds of standard errors, what is not identified, Wald tables.

Published standard errors are of three kinds, and papers do not always say which; every result here is labeled.
With scores ``g_i`` (the gradient of the log-likelihood of factor i), ``H`` the Hessian of the objective and
``B = sum g_i g_i'``:

* **hessian**: ``(-H)^-1`` (Fisher 1925);
* **opg**: ``B^-1``, the outer product of gradients (Berndt, Hall, Hall and Hausman 1974);
* **sandwich**: ``(-H)^-1 B (-H)^-1`` (Huber 1967; White 1982): right even where the model is wrong.

Without a cluster, the factor is one choice: a row, or one step of a demonstration under the causal likelihood. With
``cluster="person"`` (or "context", "datum": the trajectory or ranking) scores are added up within a cluster first
(Liang and Zeger 1986). No small-sample correction is applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from irlhf.errors import ConfigError
from irlhf.objective import Objective

KINDS = ("hessian", "opg", "sandwich")


@dataclass(frozen=True, eq=False)
class Information:
    """What the data say around an estimate. ``scores`` are per factor and unweighted, one matrix for each term."""

    problem: Objective
    theta: Tensor
    hessian: Float[Tensor, "parameters parameters"]
    scores: list[Tensor]

    def scaled_hessian(self) -> Tensor:
        """``-H`` in parameters multiplied by their scale: comparable across units."""
        scale = self.problem.scale
        return -self.hessian / scale[:, None] / scale

    def null_directions(self, tolerance: float = 1e-9) -> list[Tensor]:
        """Directions of the free parameters (in scaled units) in which the objective has no curvature."""
        free = self.problem.free.nonzero()[:, 0]
        matrix = self.scaled_hessian()[free][:, free]
        if not len(free):
            return []
        values, vectors = torch.linalg.eigh(matrix)
        flat = values <= tolerance * max(float(values.abs().max()), 1e-300)
        directions = []
        for v in vectors[:, flat].T:
            full = torch.zeros(len(self.theta), dtype=torch.float64)
            full[free] = v
            directions.append(full)
        return directions


def information(problem: Objective, theta: Tensor) -> Information:
    """Hessian and scores at a point."""
    return Information(problem, theta, problem.hessian(theta), problem.scores(theta))


def score_information(problem: Objective, theta: Tensor) -> Float[Tensor, "parameters parameters"]:
    """``B = sum w_i g_i g_i'``: the information as the scores see it."""
    return _outer(problem.scores(theta), problem.unit_weights(), len(theta))


def label(kind: str, cluster: str | None) -> str:
    """The name of a kind of standard error, as printed."""
    names = {"hessian": "inverse Hessian", "opg": "outer product of scores", "sandwich": "sandwich"}
    if kind not in names:
        raise ConfigError(f"standard errors of kind {kind!r}; choose one of {', '.join(KINDS)}")
    return names[kind] + (f", clustered by {cluster}" if cluster else "")


def outer_product(info: Information, cluster: str | None) -> Float[Tensor, "parameters parameters"]:
    """``B``: scores added up within clusters, then their outer products. A row's weight is how often it counts."""
    n = len(info.theta)
    weights = info.problem.unit_weights()
    if cluster is None:
        return _outer(info.scores, weights, n)
    groups: dict[object, int] = {}
    total: list[tuple[Tensor, Tensor]] = []
    for term, scores, weight in zip(info.problem.terms, info.scores, weights, strict=True):
        code = term.feedback.groups(cluster)
        names = _cluster_names(term, cluster, code)
        number = np.array([groups.setdefault(names[c], len(groups)) for c in range(code.max() + 1)])
        row = torch.from_numpy(number[code])
        total.append((row[term.unit_row], scores * weight[:, None]))
    summed = torch.zeros(len(groups), n, dtype=torch.float64)
    for cluster_of_unit, weighted in total:
        summed.index_add_(0, cluster_of_unit, weighted)
    return summed.T @ summed


def _cluster_names(term, cluster: str, code: np.ndarray) -> list[object]:
    """One name for each group, so that one person is one cluster across terms; what has no name stays alone."""
    first = np.zeros(code.max() + 1, np.int64)
    first[code[::-1]] = np.arange(len(code))[::-1]
    if cluster == "context":
        return [("context", repr(term.feedback.contexts[term.feedback.context[r]])) for r in first]
    names = getattr(term.feedback, cluster)
    if cluster == "person":
        return [names[r] if names[r] is not None else (term.name, r) for r in first]
    return [(term.name, names[r]) for r in first]


def _outer(scores: list[Tensor], weights: list[Tensor], n: int) -> Tensor:
    zero = torch.zeros(n, n, dtype=torch.float64)
    return sum((g.T @ (g * w[:, None]) for g, w in zip(scores, weights, strict=True)), zero)


def covariance(
    info: Information, *, kind: str = "hessian", cluster: str | None = None
) -> Float[Tensor, "parameters parameters"]:
    """The covariance of the estimates. Fixed parameters have 0; unidentified ones an infinite variance.

    Args:
        kind: "hessian", "opg" or "sandwich".
        cluster: None, "person", "context", "datum" or "source"; not for "hessian", which knows no clusters.
    """
    label(kind, cluster)
    if kind == "hessian" and cluster is not None:
        raise ConfigError("the inverse Hessian knows no clusters; use kind='sandwich' (or 'opg') with a cluster")
    scale = info.problem.scale
    free = info.problem.free.nonzero()[:, 0]
    grid = (free[:, None], free)
    bread = info.scaled_hessian()[grid]
    if kind != "hessian":
        meat = (outer_product(info, cluster) / scale[:, None] / scale)[grid]
    if kind == "opg":
        inverse, lost = _inverse(meat)
    else:
        inverse, lost = _inverse(bread)
        if kind == "sandwich":
            inverse = inverse @ meat @ inverse
    inverse[lost, lost] = torch.inf
    result = torch.zeros(len(info.theta), len(info.theta), dtype=torch.float64)
    result[grid] = inverse
    return result / scale[:, None] / scale


def _inverse(matrix: Tensor, tolerance: float = 1e-9) -> tuple[Tensor, Tensor]:
    """(pseudo-inverse, which parameters take part in a direction without curvature)."""
    values, vectors = torch.linalg.eigh(matrix)
    good = values > tolerance * max(float(values.abs().max()) if len(values) else 0.0, 1e-300)
    inverse = (vectors[:, good] / values[good]) @ vectors[:, good].T
    lost = (vectors[:, ~good].abs() > 1e-6).any(1)
    return inverse, lost.nonzero()[:, 0]


def wald_table(estimates: pd.Series, errors: pd.Series, level: float) -> pd.DataFrame:
    """Estimate, standard error, z, two-sided p and interval (normal approximation) of each parameter."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(errors > 0, estimates / errors, np.nan)
    half = stats.norm.ppf(0.5 + level / 2) * errors
    percent = f"{100 * level:g}%"
    return pd.DataFrame(
        {
            "estimate": estimates,
            "std. error": errors,
            "z": z,
            "p": 2 * stats.norm.sf(np.abs(z)),
            f"lower {percent}": estimates - half,
            f"upper {percent}": estimates + half,
        }
    )


def direction_in_words(direction: Mapping[str, float]) -> str:
    """A direction of parameters as a sum: "+1.00 length -0.50 left"."""
    ordered = sorted(direction.items(), key=lambda pair: -abs(pair[1]))
    shown = " ".join(f"{c:+.2f} {name}" for name, c in ordered[:8])
    return shown + (f" and {len(ordered) - 8} more" if len(ordered) > 8 else "")
