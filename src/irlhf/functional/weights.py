"""Importance weights of sampled trajectories, and how far an estimate of log Z that is made of them can be trusted.

For y ~ q the one number is ``log w = R/T + log mu - log q``. Its mean is ``log Z - KL(q || P)``, its log-mean-exp
estimates ``log Z = log sum_y mu(y) exp(R(y)/T)``, and its spread says how well. Self-normalized weights are
``log_w.softmax(-1)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def log_weight(
    reward: Float[Tensor, "*items"],
    log_mu: Float[Tensor, "*items"],
    log_q: Float[Tensor, "*items"],
    temperature: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, "*items"]:
    """``log w(y) = R(y)/T + log mu(y) - log q(y)``, in nats, of trajectories drawn from q.

    Args:
        reward: R.
        log_mu: of the base measure; -inf for a trajectory outside the space, whose weight is zero.
        log_q: of the proposal *that the trajectory was drawn from*: of a mixture, the mixture's, whichever part drew.
        temperature: T > 0, in units of the reward.
    """
    return reward / temperature + log_mu - log_q


@dataclass(frozen=True, eq=False)
class LogZ:
    """An estimate of log Z for each context, and the diagnostics that say whether to believe it."""

    log_z: Float[Tensor, "*contexts"]
    """Log-mean-exp of log w. exp(log_z) has no bias; log_z is too low by about half its squared standard error."""
    standard_error: Float[Tensor, "*contexts"]
    """Of log_z, in nats, by the delta method; means nothing where k_hat is above its threshold."""
    effective_sample_size: Float[Tensor, "*contexts"]
    """``(sum w)^2 / sum w^2``, in draws: 1 .. n, or 0 where every weight is zero (Kong 1992)."""
    k_hat: Float[Tensor, "*contexts"]
    """The shape of the tail of w, to be compared with :func:`k_hat_threshold`; never NaN, inf where it is not known."""
    mean: Float[Tensor, "*contexts"]
    """Of log w: estimates ``log Z - KL(q || P)``, what distillation maximizes; -inf as soon as one weight is zero."""


def log_z(log_w: Float[Tensor, "*contexts draws"]) -> LogZ:
    """Log Z by importance sampling, with its standard error, effective sample size, Pareto k-hat and lower bound.

    With the sample mean m and the sample variance s^2 of w (over n - 1), the standard error of log m is
    ``s / (m sqrt(n)) = sqrt((mean(w^2) / m^2 - 1) / (n - 1))``: the delta method.

    To *report* log Z. As a training loss, one context a datum, it diverges at small n.

    Args:
        log_w: see :func:`log_weight`; finite, or -inf for a zero weight.

    Returns:
        Fields of shape [*contexts]. Equal weights have standard error 0, effective sample size n and k_hat -inf (inf
        below 25 draws); one draw has standard error inf; with zero weights only, log_z is -inf and its error inf.
        Gradients flow through ``log_z`` and ``mean`` only.

    Raises:
        ValueError: no draws, or a weight that is NaN or infinite.
    """
    n = log_w.shape[-1]
    if n == 0:
        raise ValueError("log Z needs at least one draw for each context; log_w has none")
    if bool((torch.isnan(log_w) | (log_w == torch.inf)).any()):
        raise ValueError(
            "log weights must be finite, or -inf for a trajectory outside the space; some are NaN or inf: "
            "look for a draw whose own proposal gives it log q = -inf"
        )
    wide = log_w.double()
    top = wide.detach().amax(-1, keepdim=True)
    # The shift only guards against overflow, so it is a constant to the gradient; 0 keeps -inf - -inf away.
    shift = torch.where(torch.isfinite(top), top, 0.0)
    total = (wide - shift).exp().mean(-1)
    nothing = total == 0
    estimate = torch.where(nothing, -torch.inf, torch.where(nothing, 1.0, total).log() + shift[..., 0])
    # w/m - 1 without cancellation, however close to one another the weights are; at most n - 1.
    relative = torch.expm1(wide.detach() - torch.where(nothing, 0.0, estimate.detach())[..., None])
    variance = relative.square().mean(-1)
    error = (variance / (n - 1)).sqrt() if n > 1 else torch.full_like(variance, torch.inf)
    dtype = log_w.dtype
    return LogZ(
        log_z=estimate.to(dtype),
        standard_error=torch.where(nothing, torch.inf, error).to(dtype),
        effective_sample_size=torch.where(nothing, 0.0, n / (1 + variance)).to(dtype),
        k_hat=pareto_smoothed(log_w)[1],
        mean=wide.mean(-1).to(dtype),
    )


def k_hat_threshold(n: int) -> float:
    """``min(1 - 1/log10(n), 0.7)``: below it, n draws are enough to rely on the estimate and its standard error.

    Vehtari, Simpson, Gelman, Yao & Gabry 2024, section 3.2.4, eq. 13. It reaches 0.7 at 2155 draws and is negative
    below ten.
    """
    if n < 1:
        raise ValueError(f"the number of draws must be positive; it is {n}")
    return min(1 - 1 / math.log10(n), 0.7) if n > 1 else -math.inf


def pareto_smoothed(
    log_w: Float[Tensor, "*contexts draws"],
) -> tuple[Float[Tensor, "*contexts draws"], Float[Tensor, "*contexts"]]:
    """The log weights with the largest replaced by quantiles of a fitted generalized Pareto tail, and its shape k-hat.

    Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance
    sampling", algorithm 1): the largest ``min(n/5, 3 sqrt(n))`` draws, rounded down as in ArviZ (the paper rounds up),
    exceed the next largest by amounts to which a generalized Pareto distribution is fitted; moments of order above
    1/k are infinite.

    Where a fit means nothing the weights come back as they are, and k_hat (which ArviZ refuses, or makes NaN) is

    * -inf where all weights of the tail are equal: there is no tail;
    * inf, not known and not to be trusted: below 25 draws, where positive weights do not fill the tail, and where a
      quarter of the tail ties with the cutoff or vanishes beside the largest weight.

    Returns:
        Log weights on the scale of ``log_w`` (not normalized), and k_hat of shape [*contexts]. Neither has a gradient.
    """
    n = log_w.shape[-1]
    length = math.floor(3 * n**0.5) if n > 225 else n // 5
    unknown = log_w.new_full(log_w.shape[:-1], torch.inf)
    if length < 5:
        return log_w.detach(), unknown
    descending, order = log_w.detach().double().topk(length + 1)
    top = descending[..., :1]
    ascending = (descending - torch.where(torch.isfinite(top), top, 0.0)).flip(-1)
    cutoff, tail = ascending[..., :1].exp(), ascending[..., 1:]
    k_hat, scale = _generalized_pareto(tail.exp() - cutoff)

    filled, constant = tail[..., 0] > -torch.inf, tail[..., 0] == tail[..., -1]
    fitted = filled & ~constant & torch.isfinite(k_hat) & (scale > 0)
    probability = (torch.arange(length, dtype=torch.float64, device=log_w.device) + 0.5) / length
    # A quantile is never above the largest weight seen (Vehtari et al. 2024, algorithm 1).
    quantile = (cutoff + _quantile(probability, k_hat[..., None], scale[..., None])).log().clamp(max=0) + top
    replaced = torch.where(fitted[..., None], quantile, descending[..., :-1].flip(-1))
    smoothed = log_w.detach().double().scatter(-1, order[..., :-1].flip(-1), replaced)
    k_hat = torch.where(fitted, k_hat, torch.where(filled & constant, -torch.inf, torch.inf))
    return smoothed.to(log_w.dtype), k_hat.to(log_w.dtype)


def _generalized_pareto(
    excess: Float[Tensor, "*contexts tail"],
) -> tuple[Float[Tensor, "*contexts"], Float[Tensor, "*contexts"]]:
    """Shape k and scale of ascending excesses: the posterior mean of theta = -k/scale on a grid, by profile likelihood.

    Zhang & Stephens 2009, section 4, with its sign of k reversed; k is then shrunk to 1/2 as if ten more draws had said
    so, the weakly informative prior of Vehtari et al. 2024. Where it cannot be done, NaN.
    """
    n = excess.shape[-1]
    points = 30 + math.floor(n**0.5)
    rank = torch.arange(1, points + 1, dtype=excess.dtype, device=excess.device)
    quartile = excess[..., math.floor(n / 4 + 0.5) - 1, None]
    theta = 1 / excess[..., -1:] + (1 - (points / (rank - 0.5)).sqrt()) / (3 * quartile)
    # One grid point at a time: the whole grid at once would need some forty times the memory of the tail.
    shape = torch.stack([torch.log1p(-t[..., None] * excess).mean(-1) for t in theta.unbind(-1)], -1)
    weight = (n * ((-theta / shape).log() - shape - 1)).softmax(-1)
    weight = torch.where(weight >= 10 * torch.finfo(excess.dtype).eps, weight, 0.0)
    mean = (theta * weight).sum(-1) / weight.sum(-1)
    k = torch.log1p(-mean[..., None] * excess).mean(-1)
    return (n * k + 5) / (n + 10), -k / mean


def _quantile(
    probability: Float[Tensor, "tail"], k: Float[Tensor, "*contexts 1"], scale: Float[Tensor, "*contexts 1"]
) -> Float[Tensor, "*contexts tail"]:
    """``scale ((1 - p)^{-k} - 1) / k``, and its limit ``-scale log(1 - p)`` at k = 0."""
    rest = torch.log1p(-probability)
    return scale * torch.where(k == 0, -rest, torch.expm1(-k * rest) / torch.where(k == 0, 1.0, k))
