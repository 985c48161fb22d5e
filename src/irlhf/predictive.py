"""How sure the probabilities are that a fit gives to answers; for networks by their last layer, or by an ensemble."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from irlhf.errors import ConfigError
from irlhf.evaluation import answer_log_prob, answers
from irlhf.fit import Fit, Status
from irlhf.functional.derivatives import jacobian
from irlhf.likelihood import Term, listed
from irlhf.objective import Normal, Objective
from irlhf.rewards import Ensemble

SURE = 1e-12  # a probability nearer to 0 or 1 has no odds worth an interval


def last_layer(fit: Fit, *, prior: Normal | float | int = 1.0) -> Fit:
    """Laplace's approximation in the last linear layer of a network: all before it is taken as given.

    (MacKay 1992; Snoek et al. 2015, section 3; Daxberger et al. 2021.) The reward is linear in that layer's weights, so
    that everything that holds for a linear reward holds for it: standard errors, tests, intervals. They say what more
    feedback would change in the last layer, not what another network would have seen.

    Args:
        fit: of a reward with an ``nn.Linear`` as its last layer, by any optimizer.
        prior: standard deviation of a Gaussian around 0 on the weights; there are many, and little feedback.

    Returns:
        A fit at the same estimate whose parameters are these weights (of the sources none); no step is taken.

    Raises:
        ConfigError: a reward without a linear layer, or a variational fit.
    """
    if fit.saddle:
        raise ConfigError("a variational fit has no likelihood around whose maximum to approximate; use an Ensemble")
    layers = [layer for layer in fit.reward.modules() if isinstance(layer, nn.Linear) and layer.out_features == 1]
    if not layers:
        raise ConfigError(f"{type(fit.reward).__name__} has no linear layer with one output; use an Ensemble")
    normal = prior if isinstance(prior, Normal) else Normal(sd=float(prior))
    modules: list[nn.Module] = [fit.reward, *(term.source for term in fit.terms)]
    with _only(modules, layers[-1].weight):
        problem = Objective(fit.reward, fit.terms, prior=normal)
        theta = problem.current()
        with torch.no_grad():
            value = float(problem.value(theta))
        found = Fit(fit.reward, fit.terms, value, Status.DONE, pd.DataFrame(), problem, theta)
        _ = found.information  # while nothing but the layer asks for gradients
    return found


@contextlib.contextmanager
def _only(modules: Sequence[nn.Module], weight: Tensor) -> Iterator[None]:
    """Nothing asks for a gradient but one tensor."""
    every = [p for module in modules for p in module.parameters()]
    asked = [p.requires_grad for p in every]
    try:
        for p in every:
            p.requires_grad_(p is weight)
        yield
    finally:
        for p, before in zip(every, asked, strict=True):
            p.requires_grad_(before)


def choice_probabilities(
    fit: Fit | Ensemble,
    term: Term | None = None,
    *,
    kind: str = "hessian",
    cluster: str | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """The probability of every answer that could have been given to each row, with an interval.

    Of a fit by the delta method on log odds, which keeps intervals within 0 and 1; of an ensemble from the spread of
    its members' log odds (with few members, Student's t).

    Args:
        fit: with a likelihood (a network's: :func:`last_layer` of it), or an Ensemble of rewards.
        term: of comparisons, rankings or ratings; default: the fit's first of them.

    Returns:
        One row for each answer: ``id, answer`` (a position, "tie", or a level), ``given`` (whether it was),
        ``probability, std. error, lower, upper``.

    Raises:
        ConfigError: a term whose choice set is not a list.
    """
    if term is None:
        own = [] if isinstance(fit, Ensemble) else [t for t in fit.terms if isinstance(t.likelihood, listed)]
        if not own:
            raise ConfigError("give a term of comparisons, rankings or ratings")
        term = own[0]
    if not isinstance(term.likelihood, listed):
        raise ConfigError("the answers to a demonstration are no list; use whatif, or world.solve for its policy")
    row, answer = answers(term)
    if isinstance(fit, Ensemble):
        with torch.no_grad():
            each = torch.stack([_log_odds(answer_log_prob(member, term, row, answer)) for member in fit.members])
        if len(each) < 2:
            raise ConfigError("an ensemble of one has no spread; give at least two rewards")
        log_odds, errors = each.mean(0), each.std(0)
        half = float(stats.t.ppf(0.5 + level / 2, len(each) - 1)) * errors
    else:
        theta = fit.theta.clone().requires_grad_()
        found = _log_odds(fit.problem.evaluated(theta, lambda reward: answer_log_prob(reward, term, row, answer)))
        errors = fit.errors_of(jacobian(found, theta), kind, cluster=cluster).to_numpy().copy()
        log_odds, errors = found.detach(), torch.from_numpy(errors)
        half = float(stats.norm.ppf(0.5 + level / 2)) * errors
    p = log_odds.sigmoid()
    chosen = np.where(term.feedback.levels > 0, term.feedback.level, term.feedback.chosen)[row]
    return pd.DataFrame(
        {
            "id": np.asarray(term.feedback.id, object)[row],
            "answer": ["tie" if a < 0 else int(a) for a in answer],
            "given": chosen == answer,
            "probability": p.numpy(),
            "std. error": (p * (1 - p) * errors).numpy(),
            "lower": (log_odds - half).sigmoid().numpy(),
            "upper": (log_odds + half).sigmoid().numpy(),
        }
    )


def _log_odds(log_prob: Tensor) -> Tensor:
    p = log_prob.exp().clamp(SURE, 1 - SURE)
    return p.log() - torch.log1p(-p)
