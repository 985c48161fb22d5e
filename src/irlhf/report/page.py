"""One page for a run: what was fitted, how far to trust it, how well it predicts, what it looks like, how it was made.

The page is a single file without scripts or requests to anywhere; a content security policy in its head makes browsers
hold it to that. Whatever came from a user is escaped. The same fit gives the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from irlhf import drawing
from irlhf.drawing import Picture
from irlhf.errors import ConfigError
from irlhf.evaluation import evaluate
from irlhf.fit import Fit, Status
from irlhf.likelihood import Term, exact, listed
from irlhf.report import charts, verdicts
from irlhf.simulated import sampled, variational
from irlhf.storage.files import atomic_write
from irlhf.wording import number, p_value, plural

KINDS = {
    "causal": "the product over steps of the chance of each action out of all that the state allows",
    "weighted": "as the causal likelihood, each step counting as much as the discount leaves of it",
    "anticipative": "the chance of the whole path among all paths, nature's draws included",
}
LISTED = {
    "comparison": ("Bradley-Terry", "the chance that one of the two shown is preferred"),
    "choice": ("Luce", "the chance of the chosen one among those shown; a ranking is a series of such choices"),
    "rating": ("adjacent-category logit", "the chance of the level given"),
}


def write_report(
    fit: Fit,
    path: str | Path,
    *,
    held_out: Sequence[Term] = (),
    pictures: Sequence[Picture] = (),
    config: Mapping[str, Any] | None = None,
    versions: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    transitions: Mapping[str, Any] | None = None,
) -> Path:
    """Writes one self-contained HTML page about a fit, and returns where.

    Args:
        held_out: terms that were not fitted (``term.on(feedback)``): each is scored beside its baselines, which learn
            from the fitted term of the same name.
        pictures: of the reward, as the world draws them; their SVG is put on the page as it is.
        config: how the fit was asked for, seed and sha256 of the data included; may be nested.
        versions: of the software; default: of irlhf, Python, torch, numpy and scipy.
        notes: sentences shown under the verdict.
        transitions: how the dynamics were estimated, as ``vars(TransitionEstimate)``: any of ``pooling``,
            ``log_likelihood``, ``n_parameters``, ``n_observed``, ``n_set_aside`` and ``unseen`` (pairs).

    Raises:
        ConfigError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise ConfigError('a report needs jinja2 and matplotlib: pip install "irlhf[report]"') from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("irlhf.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    for term in (*fit.terms, *held_out):
        term.prepared.memory.clear()  # what a warm start changes in the last digits would show
    drawn = iter(range(10**6))
    environment.filters["num"] = number
    environment.filters["p"] = p_value
    environment.filters["svg"] = lambda picture: Markup(
        drawing.inline(picture.svg, f"p{next(drawn)}", picture.title or picture.caption or "chart")
    )
    page = environment.get_template("report.html.j2").render(
        **_head(fit, notes),
        sources=_sources(fit),
        parameters=_parameters(fit),
        evaluations=_evaluations(fit, held_out),
        curve=charts.learning_curve(fit.trace, noisy=fit.by_minibatches) if len(fit.trace) > 1 else None,
        trace=fit.trace.iloc[-1].to_dict(),
        checks=verdicts.checks(fit, transitions=transitions),
        transitions=transitions,
        pictures=pictures,
        config=list(_flat(config or {})),
        versions={str(k): str(v) for k, v in (versions or _versions()).items()},
    )
    path = Path(path)
    atomic_write(path, page.encode())
    return path


def _head(fit: Fit, notes: Sequence[str]) -> dict[str, Any]:
    level, words = verdicts.headline(fit)
    rows: dict[str, float] = {}
    for term in fit.terms:
        kind = _kind_of(term)
        rows[kind] = rows.get(kind, 0) + len(term.feedback)
    what = ", ".join(plural(n, kind) for kind, n in rows.items())
    what = " and ".join(what.rsplit(", ", 1))
    return {
        "title": f"A reward from {what}",
        "level": level,
        "words": words,
        "status": "" if str(fit.status) == words else str(fit.status),
        "identified": "Every parameter is identified." if level == verdicts.GOOD and _small(fit) else "",
        "directions": [fit.in_words(d) for d in fit.unidentified],
        "separated": fit.status is Status.SEPARATED,
        "facts": [
            (number(len(fit.theta)), "parameter" if len(fit.theta) == 1 else "parameters"),
            (number(sum(float(w.sum()) for w in fit.problem.unit_weights())), "choices explained"),
            (number(fit.log_likelihood.sum(), 7), "log-likelihood, nats"),
            (number(len(fit.trace) - 1), "steps of the search"),
        ],
        "notes": list(notes),
    }


def _kind_of(term: Term) -> str:
    kinds = set(term.feedback.kind.tolist())
    if kinds == {0}:
        return "demonstration"
    if kinds == {2}:
        return "rating"
    return "comparison" if kinds == {1} and (term.feedback.sizes == 2).all() else "choice"


def _sources(fit: Fit) -> list[dict[str, Any]]:
    """One row for each term: what was observed, and which likelihood explains it."""
    result = []
    for k, term in enumerate(fit.terms):
        how = term.likelihood
        if isinstance(how, exact):
            short, kind = f"{how.kind}, exact", KINDS[how.kind]
        elif isinstance(how, listed):
            short, kind = LISTED[_kind_of(term)]
            if term.source.ties is not None:
                short += f" with ties after {type(term.source.ties).__name__}"
            if how.model is not None:
                short += f" of {how.model!r}"
            if term.source.log_odds_of_noise is not None:
                kind += f"; {float(term.source.log_odds_of_noise.detach().sigmoid()):.1%} of answers by chance"
            if term.source.position is not None:
                kind += f"; what is shown first is liked by {float(term.source.position.detach()):+.3f} nats"
        elif isinstance(how, sampled):
            short, kind = (
                f"sampled, {plural(how.n, 'rival')}",
                "the chance of being chosen among drawn rivals",
            )
        elif fit.saddle and isinstance(how, variational):
            short, kind = "variational", "a bound of the likelihood by what a policy attains, and no likelihood"
        else:
            short, kind = type(how).__name__, "its own kind of choice set"
        people = {p for p in term.feedback.person if p is not None}
        result.append(
            {
                "name": term.name,
                "rows": plural(len(term.feedback), _kind_of(term)),
                "persons": len(people),
                "short": short,
                "kind": kind,
                "temperature": float(term.source.temperature.detach()),
                "fitted": term.source.log_temperature.requires_grad,
                "weight": term.weight,
                "log_likelihood": float(fit.log_likelihood.iloc[k]),
            }
        )
    return result


def _parameters(fit: Fit) -> dict[str, Any] | None:
    """Rows of the table and the coefficient plot; None where there are too many for standard errors."""
    if not _small(fit):
        return None
    errors, wald = verdicts.standard_errors(fit), fit.table()
    scale = pd.Series(fit.problem.scale.numpy(), index=errors.index)
    reach = stats.norm.ppf(0.975)
    # Of the reward only: thresholds and log-temperatures of sources have other units.
    drawn = fit.problem.is_reward.nonzero()[0] if fit.problem.is_reward.any() else range(len(scale))
    inner, outer = errors.iloc[:, 0] * reach, errors.iloc[:, -1] * reach
    picture = charts.coefficients(*(values.iloc[drawn] for values in (fit.params, inner, outer, scale)))
    free = fit.problem.free.numpy()
    rows = [
        {
            "name": name,
            "estimate": fit.params.iloc[k],
            "free": bool(free[k]),
            "errors": errors.iloc[k].tolist(),
            "z": wald["z"].iloc[k],
            "p": wald["p"].iloc[k],
            "interval": wald.iloc[k, -2:].tolist(),
        }
        for k, name in enumerate(fit.problem.names)
    ]
    long = max(map(len, fit.problem.names)) > 30
    derived = [{"name": name, "numbers": row.tolist()} for name, row in fit.derived().iterrows()]
    return {"rows": rows, "kinds": list(errors.columns), "picture": picture, "long": long, "derived": derived}


def _small(fit: Fit) -> bool:
    return 0 < len(fit.theta) <= verdicts.MOST_PARAMETERS and not fit.saddle and not fit.by_minibatches


def _evaluations(fit: Fit, held_out: Sequence[Term]) -> list[dict[str, Any]]:
    """Held-out terms first, then what was fitted, each scored beside its baselines and drawn."""
    trained = {term.name: term for term in fit.terms}
    pairs = [(term, trained.get(term.name), True) for term in held_out]
    pairs += [(term, term, False) for term in fit.terms]
    result = []
    for term, training, fresh in pairs:
        if training is None:
            same = [t for t in fit.terms if type(t.likelihood) is type(term.likelihood)]
            training = same[0] if len(same) == 1 else None
        evaluation = evaluate(fit.reward, term, training=training)
        result.append(
            {
                "name": term.name,
                "fresh": fresh,
                "it": evaluation,
                "noun": _kind_of(term),
                "gain": verdicts.gain(evaluation, fresh=fresh),
                "predictors": charts.predictors(evaluation) if len(evaluation.scores) > 1 else None,
                "calibration": None if evaluation.calibration is None else charts.calibration(evaluation),
                "calibrated": None if evaluation.calibration is None else verdicts.calibration(evaluation),
            }
        )
    return result


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and text; what was left out is left out."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, name + ".")
        elif isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
            yield from _flat({str(k): part for k, part in enumerate(value, 1)}, name + ".")
        elif isinstance(value, list | tuple) and value:
            yield name, ", ".join(map(str, value))
        elif value is not None and value != [] and value != ():
            yield name, str(value)


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("irlhf", "torch", "numpy", "scipy")}
    return {"irlhf": found.pop("irlhf"), "python": platform.python_version(), **found}
