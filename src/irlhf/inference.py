"""How sure a fit is: three kinds of standard errors, what is not identified, Wald tables.

Published standard errors are of three kinds, and papers do not always say which; every result here is labeled.
With scores ``g_i`` (the gradient of the log-likelihood of factor i), ``H`` the Hessian of the objective and
``B = sum g_i g_i'``:

* **hessian**: ``(-H)^-1`` (Fisher 1925);
* **opg**: ``B^-1``, the outer product of gradients (Berndt, Hall, Hall and Hausman 1974); a prior is not in it;
* **sandwich**: ``(-H)^-1 B (-H)^-1`` (Huber 1967; White 1982): right even where the model is wrong.

Without a cluster, the factor is one choice: a row, or one step of a demonstration under the causal likelihood. With
``cluster="person"`` (or "context", "datum": the trajectory or ranking) scores are added up within a cluster first
(Liang and Zeger 1986). No small-sample correction is applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from irlhf.errors import ConfigError
from irlhf.likelihood import Term
from irlhf.objective import Objective

KINDS = ("hessian", "opg", "sandwich")
NEGLIGIBLE = 1e-3  # share of a parameter in a direction, in scaled units, below which the direction spares it


@dataclass(frozen=True, eq=False)
class Information:
    """What the data say around an estimate, in parameters multiplied by their scale: comparable across units.

    ``flat`` [directions, parameters] is an orthonormal basis of the directions in which the objective has no
    curvature: the first ``unidentified`` of them never had any; along the others it faded on the way to infinity, along
    ``ray`` (separation).
    """

    problem: Objective
    theta: Tensor
    curvature: Float[Tensor, "parameters parameters"]
    flat: Float[Tensor, "directions parameters"]
    unidentified: int
    ray: Float[Tensor, "parameters"] | None
    scores: list[Float[Tensor, "_ parameters"]]  # of every factor, unweighted, one matrix for each term


def information(problem: Objective, theta: Tensor) -> Information:
    """Curvature at a point and what it leaves undetermined."""
    hessian, scores = problem.derivatives(theta)
    curvature = -hessian / problem.scale[:, None] / problem.scale
    flat, n_unidentified, ray = _flat_directions(problem, theta, curvature)
    scaled = [g / problem.scale for g in scores]
    return Information(problem, theta, curvature, flat, n_unidentified, ray, scaled)


def _flat_directions(problem: Objective, theta: Tensor, curvature: Tensor) -> tuple[Tensor, int, Tensor | None]:
    """(directions without curvature, how many of them had none at the start either, the way to infinity if any)."""
    n = len(theta)
    nothing = torch.zeros(0, n, dtype=torch.float64)
    free = _inner(problem, theta).nonzero()[:, 0]
    if not len(free):
        return nothing, 0, None
    here = curvature[free][:, free]
    values = torch.linalg.eigvalsh(here)
    # One unit of a scaled parameter is about one nat a step: information below this is a standard error above 100.
    if float(values[0]) > 1e-4 and float(values[0]) > 1e-6 * float(values[-1]):
        return nothing, 0, None
    at_start = outer([g / problem.scale for g in problem.derivatives(problem.start)[1]], problem.unit_weights(), n)
    both = here + at_start[free][:, free]
    size, basis = torch.linalg.eigh(both)
    seen = size > 1e-10 * max(float(size[-1]), 1e-300)
    never = _spread(basis[:, ~seen].T, free, n)
    whitened = basis[:, seen] / size[seen].sqrt()
    share, vectors = torch.linalg.eigh(whitened.T @ here @ whitened)
    # Faded: against the start, or to a standard error above 300 where the start already saw little.
    least, axes = torch.linalg.eigh(basis[:, seen].T @ here @ basis[:, seen])
    suspect = torch.cat([whitened @ vectors[:, share < 1e-5], basis[:, seen] @ axes[:, least < 1e-5]], 1)
    left, strength, _ = torch.linalg.svd(suspect / suspect.norm(dim=0), full_matrices=False)
    faded = _spread(left[:, strength > 1e-6].T, free, n)
    # The way the search went, as far as curvature has faded there, is the first suspect; then each direction alone.
    went = ((theta - problem.start) * problem.scale @ faded.T) @ faded
    suspects = [went / went.norm(), *faded] if len(faded) and float(went.norm()) > 0 else list(faded)
    rays = (v for v in suspects if _rises_forever(problem, theta, v))
    ray = next(rays, None)
    # On the way to infinity, whatever else has faded says no more than the ray itself.
    return (never if ray is None else torch.cat([never, faded])), len(never), ray


def _inner(problem: Objective, theta: Tensor) -> Tensor:
    """[parameters] Free, and not at a bound: what an interval can be given for."""
    return problem.free & (theta > problem.lower) & (theta < problem.upper)


def _spread(directions: Tensor, free: Tensor, n: int) -> Tensor:
    """Directions of the free parameters as directions of all."""
    full = torch.zeros(len(directions), n, dtype=torch.float64)
    full[:, free] = directions
    return full


def _rises_forever(problem: Objective, theta: Tensor, direction: Tensor) -> bool:
    """Whether going on along a direction, as far again as one has come, costs nothing."""
    moved = float((theta - problem.start) * problem.scale @ direction)
    step = direction / problem.scale * (np.sign(moved) or 1.0) * max(abs(moved), 1.0)
    here, _, _ = problem.trial(theta)
    there, _, _ = problem.trial((theta + step).clamp(problem.lower, problem.upper))
    return there >= here - 1e-6


def named_direction(info: Information, direction: Tensor) -> dict[str, float]:
    """A direction in the user's parameters, largest component 1."""
    direction = torch.where(direction.abs() > NEGLIGIBLE, direction, 0.0)
    own = direction / info.problem.scale
    own = own / own[own.abs().argmax()]
    return {name: float(c) for name, c in zip(info.problem.names, own, strict=True) if abs(float(c)) > 1e-3}


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
        return outer(info.scores, weights, n)
    cluster_of_row, n_clusters = clusters(info.problem.terms, cluster)
    summed = torch.zeros(n_clusters, n, dtype=torch.float64)
    for term, row, scores, weight in zip(info.problem.terms, cluster_of_row, info.scores, weights, strict=True):
        summed.index_add_(0, row[term.unit_row], scores * weight[:, None])
    return summed.T @ summed


def clusters(terms: Sequence[Term], by: str) -> tuple[list[Int[Tensor, "_"]], int]:
    """(the cluster of each row of each term, how many there are): persons and contexts are the same in all terms."""
    groups: dict[object, int] = {}
    rows = []
    for term in terms:
        code = term.feedback.groups(by)
        names = _cluster_names(term, by, code)
        number = np.array([groups.setdefault(names[c], len(groups)) for c in range(code.max() + 1)])
        rows.append(torch.from_numpy(number[code]))
    return rows, len(groups)


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


def outer(scores: list[Tensor], weights: list[Tensor], n: int) -> Tensor:
    """The weighted sum of outer products of scores over all terms."""
    zero = torch.zeros(n, n, dtype=torch.float64)
    return sum((g.T @ (g * w[:, None]) for g, w in zip(scores, weights, strict=True)), zero)


def covariance(
    info: Information, *, kind: str = "hessian", cluster: str | None = None
) -> Float[Tensor, "parameters parameters"]:
    """The covariance of the estimates.

    Fixed parameters have variance 0, unidentified ones an infinite one, those at a bound none (NaN: normal theory does
    not hold there, and the others' variances are given that they stay).

    Args:
        kind: "hessian", "opg" or "sandwich".
        cluster: None, "person", "context", "datum" or "source"; not for "hessian", which knows no clusters.
    """
    inverse, free = _identified(info, kind, cluster)
    lost = (info.flat[:, free].abs() > NEGLIGIBLE).any(0)
    inverse[lost, lost] = torch.inf
    result = torch.zeros(len(info.theta), len(info.theta), dtype=torch.float64)
    result[free[:, None], free] = inverse
    bounded = (info.problem.free & ~_inner(info.problem, info.theta)).nonzero()[:, 0]
    result[bounded, bounded] = torch.nan
    return result / info.problem.scale[:, None] / info.problem.scale


def covariance_of(
    info: Information,
    jacobian: Float[Tensor, "outputs parameters"],
    *,
    kind: str = "hessian",
    cluster: str | None = None,
    diagonal: bool = False,
) -> Tensor:
    """The covariance ``G V G'`` of functions of the parameters with derivatives G, by the delta method.

    What the feedback identifies has a finite variance, also where it depends on parameters that are not identified one
    by one: a policy does not change along a direction of shaping. What moves along a blind direction has an infinite
    one. Returns [outputs, outputs], or with ``diagonal`` the variances [outputs] alone.
    """
    inverse, free = _identified(info, kind, cluster)
    slope = (jacobian / info.problem.scale)[:, free]
    if not torch.isfinite(inverse).all():  # nothing can be said, but of what depends on nothing
        variance = torch.where(slope.abs().sum(1) > 0, torch.inf, 0.0)
        return variance if diagonal else torch.diag(variance)
    blind = ((slope @ info.flat[:, free].T).abs() > NEGLIGIBLE * slope.norm(dim=1, keepdim=True)).any(1)
    if diagonal:
        return torch.where(blind, torch.inf, ((slope @ inverse) * slope).sum(1))
    result = slope @ inverse @ slope.T
    result[blind, blind] = torch.inf
    return result


def _identified(info: Information, kind: str, cluster: str | None) -> tuple[Tensor, Tensor]:
    """(covariance of the free parameters, scaled, as far as they are identified; which parameters these are)."""
    label(kind, cluster)
    if kind == "hessian" and cluster is not None:
        raise ConfigError("the inverse Hessian knows no clusters; use kind='sandwich' (or 'opg') with a cluster")
    free = _inner(info.problem, info.theta).nonzero()[:, 0]
    grid, flat = (free[:, None], free), info.flat[:, free]
    if kind == "hessian":
        return _inverse(info.curvature[grid], flat), free
    meat = outer_product(info, cluster)[grid]
    if kind == "opg":
        return _inverse(meat, flat), free
    bread = _inverse(info.curvature[grid], flat)
    return bread @ meat @ bread, free


def _inverse(matrix: Tensor, flat: Tensor) -> Tensor:
    """The inverse on what is orthogonal to the flat directions. Infinite where the matrix is singular even there.

    An outer product of fewer clusters than parameters is singular: then nothing can be said, and nothing is.
    """
    rest = torch.eye(len(matrix), dtype=torch.float64)
    if len(flat):
        rest = torch.linalg.svd(flat, full_matrices=True).Vh[len(flat) :].T
    values, vectors = torch.linalg.eigh(rest.T @ matrix @ rest)
    if len(values) and float(values[0]) <= 1e-13 * float(values[-1]):
        return torch.full_like(matrix, torch.inf)
    return rest @ ((vectors / values) @ vectors.T) @ rest.T


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


def direction_in_words(direction: Mapping[str, float], meaning: str | None = None) -> str:
    """A direction of parameters as a sum and what it means: "+1.00 length -0.50 left, which is shaping"."""
    ordered = sorted(direction.items(), key=lambda pair: -abs(pair[1]))
    ordered = [pair for pair in ordered if abs(pair[1]) >= 0.005]
    shown = " ".join(f"{c:+.2f} {name}" for name, c in ordered[:8])
    shown += f" and {len(ordered) - 8} more" if len(ordered) > 8 else ""
    return shown + (f", which {meaning}" if meaning else "")
