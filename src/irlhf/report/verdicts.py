"""What a fit's numbers mean, in words: each check has a value, a verdict and how serious it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from irlhf import inference
from irlhf.errors import IrlhfError
from irlhf.evaluation import Evaluation
from irlhf.fit import Fit, Status
from irlhf.hypothesis import sources_agree
from irlhf.likelihood import listed
from irlhf.resampling import leave_one_out
from irlhf.wording import number, plural

GOOD, NOTE, BAD = "good", "note", "bad"
MOST_PARAMETERS = 200
"""Above so many parameters no Hessian is formed, as in :func:`irlhf.fit.fit_reward`."""


MOST_LEFT_OUT = 200_000
"""Rows times parameters, above which the page leaves nothing out; ``irlhf evaluate --table leave-one-out`` does."""
LEFT_OUT_DRAWS = 400


class Check(NamedTuple):
    name: str
    value: str
    verdict: str
    level: str


def headline(fit: Fit) -> tuple[str, str]:
    """(level, a few words) on how the fit ended."""
    return {
        Status.CONVERGED: (GOOD, str(Status.CONVERGED)),
        Status.BUDGET: (NOTE, "Stopped before the end"),
        Status.SEPARATED: (BAD, "Separated: no finite maximum"),
        Status.STALLED: (NOTE, "Stopped where the search found no better point"),
        Status.UNIDENTIFIED: (NOTE, "Converged, not all identified"),
        Status.INTERRUPTED: (NOTE, "Interrupted"),
        Status.DONE: (NOTE, "Done, some rows at a time"),
    }[fit.status]


def checks(fit: Fit, *, transitions: Mapping[str, Any] | None = None) -> list[Check]:
    """Every diagnostic of a fit, with its verdict."""
    if fit.by_minibatches:
        words = "Fitted some rows at a time: the search ends near a maximum, and there are no standard errors."
        return [Check("Search", plural(len(fit.trace) - 1, "step"), words, NOTE), *_cautions(fit)]
    if fit.saddle:
        words = "A saddle point is approached, not climbed: see how the policy fares, and train one anew on the reward."
        result = [Check("Search", plural(len(fit.trace) - 1, "round"), words, NOTE)]
    else:
        result = [_gradient(fit)]
    result += _cautions(fit)
    if 0 < len(fit.theta) <= MOST_PARAMETERS and not fit.saddle:
        result += [
            _identified(fit),
            _condition(fit),
            *_entangled(fit),
            *_misspecified(fit),
            *_agreement(fit),
            *_left_out(fit),
        ]
    else:
        result.append(
            Check(
                "Identification",
                "–",
                "Not checked: a variational objective bounds a likelihood, whose curvature is another one."
                if fit.saddle
                else f"Not checked: more than {MOST_PARAMETERS} parameters have no Hessian here.",
                NOTE,
            )
        )
    result += _at_bounds(fit)
    if transitions is not None:
        result += unseen(transitions)
    return result


def _cautions(fit: Fit) -> list[Check]:
    return [Check("The world", "–", sentence[:1].upper() + sentence[1:] + ".", BAD) for sentence in fit.cautions]


def _gradient(fit: Fit) -> Check:
    problem, evaluations = fit.problem, fit.problem.evaluations
    _, gradient = problem.value_and_gradient(fit.theta)
    problem.evaluations = evaluations  # looking is not fitting
    at_bound = ((fit.theta <= problem.lower) & (gradient < 0)) | ((fit.theta >= problem.upper) & (gradient > 0))
    size = float((gradient / problem.scale)[problem.free & ~at_bound].abs().max()) if len(gradient) else 0.0
    count = sum(float(w.sum()) for w in problem.unit_weights())
    relative = size / max(count, 1.0)
    if relative < 1e-6:
        words, level = "The search ended where the slope is zero, as it should.", GOOD
    elif relative < 1e-3:
        words, level = "Nearly flat; more steps would change the last digits.", NOTE
    else:
        words, level = "Not at a maximum: raise the number of steps, or look at the learning curve.", BAD
    return Check("Gradient at the end", f"{number(size, 2)} nats", words + " (Largest, per typical feature.)", level)


def _identified(fit: Fit) -> Check:
    info = fit.information
    never, lost = info.flat[: info.unidentified], info.flat[info.unidentified :]
    if not len(info.flat):
        return Check(
            "Identified", "yes", "The feedback bends the likelihood in every direction of the parameters.", GOOD
        )

    def named(directions: torch.Tensor) -> str:
        return "; ".join(fit.in_words(inference.named_direction(info, v)) for v in directions) + "."

    words = []
    if len(never):
        words.append("The feedback says nothing about " + named(never))
    if len(lost):
        words.append("The likelihood rises without end along " + named(lost))
    return Check("Identified", f"no: {plural(len(info.flat), 'direction')}", " ".join(words), BAD)


def _condition(fit: Fit) -> Check:
    free = fit.problem.free.nonzero()[:, 0]
    values = torch.linalg.eigvalsh(fit.information.curvature[free][:, free])
    if not len(values) or float(values[0]) <= 1e-12 * float(values[-1]):
        return Check("Condition of the information", "∞", "Singular; see the unidentified directions.", BAD)
    condition = float(values[-1] / values[0])
    if condition < 1e5:
        words, level = "Well conditioned: every direction is seen about as well as the others.", GOOD
    elif condition < 1e8:
        words, level = "Some directions are seen much less than others; their intervals are wide.", NOTE
    else:
        words, level = "Nearly singular: a prior, or fewer features, would make this fit steadier.", BAD
    return Check("Condition of the information", number(condition, 2), words, level)


def _entangled(fit: Fit) -> list[Check]:
    """The two estimates that are hardest to tell apart."""
    covariance = fit.covariance().to_numpy()
    error = np.sqrt(np.diag(covariance))
    keep = np.flatnonzero(np.isfinite(error) & (error > 0))
    if len(keep) < 2:
        return []
    correlation = covariance[np.ix_(keep, keep)] / np.outer(error[keep], error[keep])
    np.fill_diagonal(correlation, 0)
    i, j = np.unravel_index(np.abs(correlation).argmax(), correlation.shape)
    worst = float(correlation[i, j])
    names = f"“{fit.problem.names[keep[i]]}” and “{fit.problem.names[keep[j]]}”"
    if abs(worst) < 0.95:
        words, level = f"The most entangled estimates are {names}; they can be told apart.", GOOD
    else:
        words, level = f"{names} are hardly told apart: read them together, or drop one.", NOTE
    return [Check("Largest correlation of estimates", number(worst, 3), words, level)]


def robust_cluster(fit: Fit) -> str | None:
    """ "person" if the feedback names at least two, else None."""
    people = {p for term in fit.terms for p in term.feedback.person if p is not None}
    return "person" if len(people) >= 2 else None


def _misspecified(fit: Fit) -> list[Check]:
    """The information-matrix identity (White 1982): where the model is right, sandwich and Hessian agree."""
    plain = fit.standard_errors().to_numpy()
    result = []
    for cluster in dict.fromkeys((None, robust_cluster(fit))):
        robust = fit.standard_errors("sandwich", cluster=cluster).to_numpy()
        keep = np.isfinite(plain) & np.isfinite(robust) & (plain > 0)
        if not keep.any():
            continue
        ratio = robust[keep] / plain[keep]
        name = "Sandwich / Hessian errors" + (f", by {cluster}" if cluster else "")
        low, high = float(ratio.min()), float(ratio.max())
        value = f"{number(low, 3)} to {number(high, 3)}" if len(ratio) > 1 else number(low, 3)
        worst = [n for n, k in zip(fit.problem.names, keep, strict=True) if k][int(np.abs(np.log(ratio)).argmax())]
        # With many parameters some ratios stray by chance; their geometric mean says what the model does.
        typical = float(np.exp(np.log(ratio).mean()))
        people = {p for term in fit.terms for p in term.feedback.person if p is not None}
        if cluster and len(people) < max(30, 2 * len(plain)):
            size = f"{plural(len(people), cluster)} for {plural(len(plain), 'parameter')}"
            words = f"With {size}, clustered errors tend to be too small."
            level = NOTE
        elif 0.85 <= typical <= 1.2 and low >= 0.6 and high <= 1.6:
            words, level = "They agree, as they do where the model is right.", GOOD
        else:
            blame = f"choices of one {cluster} depend on each other" if cluster else "the model may be misspecified"
            words = f"They differ, most for “{worst}”: {blame}; trust the sandwich."
            level = NOTE if low >= 0.5 and high <= 2 else BAD
        result.append(Check(name, value, words, level))
    return result


def _agreement(fit: Fit) -> list[Check]:
    """Whether several sources agree on one reward; nothing where that cannot be asked."""
    if len(fit.terms) < 2 or fit.status is not Status.CONVERGED:
        return []
    try:
        test = sources_agree(fit)
    except IrlhfError:
        return []  # a prior, or nothing that two of them both see
    value = f"χ²({test.df}) = {number(test.statistic, 3)}, p = {number(test.p, 2)}"
    return [Check("Agreement of sources", value, test.sentence, GOOD if test.p >= 0.05 else NOTE)]


def _left_out(fit: Fit) -> list[Check]:
    """Leave-one-out, where all is listed and no draw of the parameters asks for a world to be solved."""
    work = len(fit.theta) * sum(len(term.feedback) for term in fit.terms)
    if fit.status is not Status.CONVERGED or work > MOST_LEFT_OUT:
        return []
    if not all(isinstance(term.likelihood, listed) and term.likelihood.model is None for term in fit.terms):
        return []
    by = robust_cluster(fit) or "datum"
    found = leave_one_out(fit, by=by, draws=LEFT_OUT_DRAWS)
    value = f"{number(found.elpd, 6)} ± {number(found.error, 3)} nats"
    words = (
        f"Each {by} is predicted by a fit to all others (importance sampling); the fit itself has "
        f"{number(fit.log_likelihood.sum(), 6)}, so seeing was worth {number(found.effective_parameters, 2)} "
        f"parameters. {found.verdict}"
    )
    level = NOTE if found.unreliable else GOOD
    return [Check(f"Left out, by {by}", value, words, level)]


def _at_bounds(fit: Fit) -> list[Check]:
    problem = fit.problem
    at = problem.free & ((fit.theta <= problem.lower) | (fit.theta >= problem.upper))
    if not at.any():
        return []
    names = ", ".join(f"“{problem.names[int(k)]}”" for k in at.nonzero()[:, 0])
    return [Check("At a bound", str(int(at.sum())), f"{names}: intervals do not hold there.", NOTE)]


def unseen(transitions: Mapping[str, Any]) -> list[Check]:
    """Pairs (state, action) whose transitions nobody observed."""
    pairs: Sequence[Any] = list(transitions.get("unseen", ()))
    if not pairs:
        return [Check("Transitions never seen", "none", "Every state and action was observed.", GOOD)]
    count = int(transitions.get("n_unseen", len(pairs)))
    named = ", ".join(f"({s}, {a})" for s, a in pairs[:6]) + (f" and {count - 6} more" if count > 6 else "")
    how = (
        "their transitions are those of the other pairs"
        if transitions.get("pooling") == "increments"
        else "the world has no such actions"
    )
    return [Check("Transitions never seen", plural(count, "pair"), f"{named}: {how}.", NOTE)]


def calibration(evaluation: Evaluation) -> tuple[str, str]:
    """(level, sentence) on the calibration of a term."""
    error, noise = evaluation.calibration_error, evaluation.calibration_noise
    gap = f"off by {number(error, 2)} on average ({number(noise, 2)} is expected by chance alone)"
    if error <= 2 * noise:
        return GOOD, f"Well calibrated: {gap}."
    if error <= 0.03:
        return GOOD, f"Calibrated for most purposes: {gap}."
    return NOTE, f"Not calibrated: {gap}."


def gain(evaluation: Evaluation, *, fresh: bool) -> tuple[str, str]:
    """(level, sentence) on the model beside its best baseline. ``fresh``: on feedback that was not fitted."""
    table = evaluation.scores.drop(index="model")
    table = table[np.isfinite(table.per_choice)]
    if table.empty:
        return NOTE, "There is no baseline for this likelihood."
    best = str(table.per_choice.idxmax())
    row = table.loc[best]
    value, error = float(row["gain"]), float(row["gain_error"])
    amount = f"{number(abs(value), 3)} ± {number(error, 2)} nats per {evaluation.what}"
    if value > 2 * error:
        return GOOD, f"Better than the best baseline, {best}, by {amount}."
    if not fresh and best.startswith("cloning"):
        # With a free number for every state it may well fit better what it has seen.
        return NOTE, f"Cloning, with a number for every state, fits no worse ({amount}); held-out feedback has to tell."
    if value < -2 * error:
        return BAD, f"Worse than the best baseline, {best}, by {amount}."
    return NOTE, f"Not distinguishable from the best baseline, {best}: they differ by {amount}."


def standard_errors(fit: Fit) -> pd.DataFrame:
    """Every kind of standard error, side by side: one row for each parameter, one column for each kind."""
    errors = {"inverse Hessian": fit.standard_errors()}
    errors["outer product"] = fit.standard_errors("opg")
    errors["sandwich"] = fit.standard_errors("sandwich")
    cluster = robust_cluster(fit)
    if cluster:
        errors[f"sandwich by {cluster}"] = fit.standard_errors("sandwich", cluster=cluster)
    return pd.DataFrame(errors)
