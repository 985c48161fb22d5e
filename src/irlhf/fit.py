"""Fitting a reward to everything people told us: ``fit_reward(reward, [Term, ...]) -> Fit``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from irlhf import distributed, inference
from irlhf.errors import ConfigError, IrlhfError
from irlhf.identification import meaning
from irlhf.likelihood import Term, exact
from irlhf.loop import Loop, State, iterate
from irlhf.minibatches import Minibatches, Pieces
from irlhf.objective import Normal, Objective, start_warm, warm_starts
from irlhf.optimize import LBFGS, Newton, TorchOptimizer
from irlhf.sources import Source
from irlhf.storage.rundir import RunDir

LISTED = 200  # parameters, that a summary has a line for each of


class Status(Enum):
    """How a fit ended, as a sentence that says what to do."""

    CONVERGED = "Converged: no direction promises a gain."
    BUDGET = "Stopped at the given number of steps; the objective may still rise. Raise the number of steps to go on."
    SEPARATED = (
        "No finite maximum: the feedback is explained ever better as some parameters grow without end (separation). "
        "The estimates below are where the search stopped and mean nothing by themselves. Give a prior, or more "
        "feedback."
    )
    STALLED = (
        "The search found no better point although the slope is not zero: a kink, or values that are not exact to "
        "rounding. The estimates may not be a maximum."
    )
    UNIDENTIFIED = (
        "Converged, but the feedback says nothing about some directions of the parameters; they are named "
        "below, and their intervals are infinite. You can drop or fix a parameter, give a prior, or add a source that "
        "sees them."
    )
    DONE = "Done: all steps that were asked for were taken."
    INTERRUPTED = "Interrupted: the parameters are those of the last complete step. Resume the run to go on."

    def __str__(self) -> str:
        return self.value

    @staticmethod
    def of(loop: Loop) -> Status:
        """How a loop ended."""
        if loop.interrupted:
            return Status.INTERRUPTED
        return {"converged": Status.CONVERGED, "stalled": Status.STALLED}.get(loop.why, Status.BUDGET)


@dataclass(eq=False)
class Fit:
    """A fitted reward and how far it can be trusted.

    ``params`` is a labeled series, ``summary()`` a table with standard errors, ``reward`` the module itself.
    """

    reward: nn.Module
    terms: list[Term]
    objective: float
    status: Status
    trace: pd.DataFrame
    problem: Any = field(repr=False)  # an Objective, or Pieces of a fit by minibatches
    theta: Tensor = field(repr=False)
    unidentified: list[dict[str, float]] = field(default_factory=list)

    @property
    def params(self) -> pd.Series:
        """The estimate of every parameter, by name."""
        return pd.Series(self.theta.numpy().copy(), index=self.problem.names, name="estimate")

    @property
    def sources(self) -> dict[str, Source]:
        return {term.name: term.source for term in self.terms}

    @cached_property
    def log_likelihood(self) -> pd.Series:
        """The weighted log-likelihood of each term, in nats."""
        with torch.no_grad():
            values = self.problem.unit_log_probs(self.theta)
        weights = self.problem.unit_weights()
        totals = [float((v * w).sum()) for v, w in zip(values, weights, strict=True)]
        return pd.Series(totals, index=[t.name for t in self.terms], name="log_likelihood")

    @property
    def cautions(self) -> list[str]:
        """What its worlds say that a user should be careful about, as sentences."""
        return cautions(self.terms)

    @property
    def saddle(self) -> bool:
        """Whether a term is variational: then there is no likelihood whose curvature could give standard errors."""
        return any(getattr(term.likelihood, "saddle", False) for term in self.terms)

    @property
    def by_minibatches(self) -> bool:
        """Whether it was fitted some rows at a time: then it ends near a maximum, without standard errors."""
        return isinstance(self.problem, Pieces)

    @cached_property
    def information(self) -> inference.Information:
        """Hessian and scores at the estimate, computed once.

        Raises:
            ConfigError: a term is variational, or the fit was by minibatches.
        """
        if self.saddle:
            raise ConfigError(
                "a variational fit has no standard errors: its objective bounds a likelihood, whose curvature is "
                "another one; use sampled or exact, or the bootstrap"
            )
        if isinstance(self.problem, Pieces):
            raise ConfigError(
                "a fit by minibatches has no standard errors: it stops near a maximum, and its Hessian is too large; "
                "fit a LinearReward on frozen features, or use an Ensemble"
            )
        return inference.information(self.problem, self.theta)

    def covariance(self, kind: str = "hessian", *, cluster: str | None = None) -> pd.DataFrame:
        """The covariance of the estimates; see :func:`irlhf.inference.covariance`."""
        matrix = inference.covariance(self.information, kind=kind, cluster=cluster)
        return pd.DataFrame(matrix.numpy(), index=self.problem.names, columns=self.problem.names)

    def standard_errors(self, kind: str = "hessian", *, cluster: str | None = None) -> pd.Series:
        """Standard errors: "hessian", "opg" or "sandwich", clustered by "person", "context" or "datum" if asked.

        Infinite for a parameter that the feedback does not identify, 0 for a fixed one.
        """
        errors = np.sqrt(np.diag(self.covariance(kind, cluster=cluster)))
        return pd.Series(errors, index=self.problem.names, name=inference.label(kind, cluster))

    def errors_of(self, jacobian: Tensor, kind: str = "hessian", *, cluster: str | None = None) -> pd.Series:
        """Standard errors of functions of the parameters, from their derivatives [outputs, parameters] (delta method).

        Finite for what the feedback identifies, also where parameters that it depends on are not identified by
        themselves; see :func:`irlhf.inference.covariance_of`. The series is named after the kind.
        """
        variance = inference.covariance_of(self.information, jacobian, kind=kind, cluster=cluster, diagonal=True)
        return pd.Series(variance.sqrt().numpy(), name=inference.label(kind, cluster))

    def table(self, kind: str = "hessian", *, cluster: str | None = None, level: float = 0.95) -> pd.DataFrame:
        """Estimate, standard error, z, p and confidence interval of every parameter."""
        return inference.wald_table(self.params, self.standard_errors(kind, cluster=cluster), level)

    def derived(self, kind: str = "hessian", *, cluster: str | None = None, level: float = 0.95) -> pd.DataFrame:
        """The quantities behind transformed parameters: temperatures, nu and theta of ties.

        Standard errors by the delta method; the bounds are those of the parameter, transformed.
        """
        table, columns = self.table(kind, cluster=cluster, level=level), ["estimate", "std. error"]
        columns += [str(name) for name in table.columns if str(name).startswith(("lower", "upper"))]
        first: dict[int, Term] = {}
        for term in self.terms:
            first.setdefault(id(term.source), term)  # whose name its parameters have
        rows: dict[str, list[float]] = {}
        for term in first.values():
            for name, (plain, transform) in term.source.derived().items():
                if (full := f"{term.name}.{name}") in table.index:
                    at, error, *bounds = torch.tensor(table.loc[full, columns].to_numpy(float))
                    slope = torch.func.grad(transform)(at)
                    rows[f"{term.name}.{plain}"] = [float(x) for x in (transform(at), slope * error)]
                    rows[f"{term.name}.{plain}"] += [float(transform(bound)) for bound in bounds]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns)

    def summary(self, kind: str = "hessian", *, cluster: str | None = None, level: float = 0.95) -> str:
        """What was fitted, to what, how it ended, and the table of parameters, as text."""
        lines = [str(self.status), ""]
        for term in self.terms:
            how = getattr(term.likelihood, "kind", None)
            closed = type(term.likelihood).__name__ + (f", {how} likelihood" if how else "")
            total = self.log_likelihood.iloc[self.terms.index(term)]
            what = "bound" if getattr(term.likelihood, "saddle", False) else "log-likelihood"
            lines.append(f"{term.name}: {term.feedback!r}; {closed}; {what} {total:.4f}")
        lines += [f"careful: {sentence}" for sentence in self.cautions]
        if isinstance(self.problem, Pieces):
            own = {f"{t.name}.temperature": float(t.source.temperature.detach()) for t in self.terms}
            lines += [f"{len(self.theta):,} parameters, fitted by minibatches: no standard errors", ""]
            return "\n".join([*lines, pd.Series(own).round(4).to_string()])
        if self.saddle:
            lines += ["no standard errors: a variational objective bounds a likelihood, and is none", ""]
            if len(self.theta) > LISTED:
                return "\n".join([*lines, f"{len(self.theta):,} parameters"])
            return "\n".join([*lines, self.params.round(4).to_string()])
        lines.append(f"standard errors: {inference.label(kind, cluster)}")
        table = self.table(kind, cluster=cluster, level=level)
        lines += ["", table.to_string(float_format=lambda x: f"{x:.4f}")]
        derived = self.derived(kind, cluster=cluster, level=level)
        if len(derived):
            lines += ["", derived.to_string(float_format=lambda x: f"{x:.4f}")]
        for direction in self.unidentified:
            lines.append("not identified: " + self.in_words(direction))
        return "\n".join(lines)

    def in_words(self, direction: Mapping[str, float]) -> str:
        """A direction of the parameters as a sum and, where it has a name, what it is: shaping, a constant."""
        means = meaning(self.problem, direction) if isinstance(self.problem, Objective) else None
        return inference.direction_in_words(direction, means)

    def score(self, term_or_feedback: Any) -> pd.Series:
        """Held-out log-likelihood of each row: of a Term, or of Feedback under this fit's only term."""
        term = term_or_feedback
        if not isinstance(term, Term):
            term = self.terms[0].on(term_or_feedback)
        with torch.no_grad():
            values = term.log_prob(self.reward)
        return pd.Series(values.numpy(), index=list(term.feedback.id), name="log_likelihood")


def cautions(terms: Sequence[Term]) -> list[str]:
    """What the worlds of terms say that a user should be careful about, as sentences."""
    worlds = {id(world): world for term in terms if hasattr(world := term.likelihood.world, "cautions")}
    return list(dict.fromkeys(sentence for world in worlds.values() for sentence in world.cautions()))


def warn_of(terms: Sequence[Term]) -> None:
    """Warns of what :func:`cautions` says."""
    for sentence in cautions(terms):
        warnings.warn(sentence, stacklevel=3)


def fit_reward(
    reward: nn.Module,
    terms: Sequence[Term] | Term,
    *,
    optimizer: Newton | LBFGS | TorchOptimizer | Minibatches | None = None,
    prior: Normal | None = None,
    fixed: Mapping[str, float] | None = None,
    bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
    start: Mapping[str, float] | None = None,
    run: RunDir | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Fit:
    """The maximum of the sum of all terms' log-likelihoods (and log prior), each source with its own temperature.

    Args:
        reward: any module that the terms' worlds can evaluate; fitted in place.
        terms: one, or several that are fitted together.
        optimizer: default L-BFGS, finished by Newton steps where there are few parameters. ``Minibatches()`` for
            rewards that are too large to look at all rows at once; it knows no fixed parameters, bounds or starts.
        prior: a Gaussian on the reward's parameters; None is maximum likelihood.
        fixed, bounds, start: by parameter name, as ``fit.params`` shows them. The search starts from the reward's own
            values, or, where the partition function diverges there and the world knows better, from what it proposes.
        run: a run directory: the fit saves every step there (where that takes long, as many as it has a twentieth of
            the time for), and goes on from the last one it finds. Ctrl-C then ends with a Fit whose status says so;
            without a run it ends the program as usual.
        progress: called after every step with its number, objective and largest gradient.

    Raises:
        ConfigError: parameters that do not exist, bounds that contradict each other.
        NonFiniteError: a log-likelihood that is not finite at the start, naming its rows.
        InfeasibleError: the partition function diverges at the start.
    """
    terms = [terms] if isinstance(terms, Term) else list(terms)
    for term in terms:
        if not isinstance(term, Term):
            raise ConfigError(
                f"fit_reward takes terms, got a {type(term).__name__}; write Term(feedback, exact(world)) or "
                "Term(feedback, listed(world))"
            )
    if saddle := [term.name for term in terms if getattr(term.likelihood, "saddle", False)]:
        raise ConfigError(
            f"the term {saddle[0]!r} is variational: a saddle point that has no maximum while the policy stands still; "
            "use fit_jointly(reward, policy, terms, world)"
        )
    warn_of(terms)
    if isinstance(optimizer, Minibatches):
        if fixed or bounds or start:
            raise ConfigError("minibatches know no fixed parameters, bounds or starts; set them in the reward itself")
        return _by_minibatches(reward, terms, optimizer, prior, run, progress)
    start = {**_feasible_start(reward, terms, fixed or {}, bounds or {}), **(start or {})}
    problem = Objective(reward, terms, prior=prior, fixed=fixed, bounds=bounds, start=start)
    for term in terms:
        term.prepared.memory.clear()  # a warm start from an earlier fit would show in the last digits
    optimizer = optimizer or LBFGS()

    def init() -> tuple[State, dict[str, Any]]:
        state = optimizer.init(problem)
        return state, {"objective": float(state["value"]), "evaluations": problem.evaluations}

    def step(state: State, _: int) -> tuple[State, dict[str, Any]]:
        state, info = optimizer.step(problem, state)
        return state, {**info, "evaluations": problem.evaluations}

    def restore(tensors: State, trace: list[dict[str, Any]]) -> State:
        state = start_warm(terms, tensors)
        _require_alike(state, len(problem.start))
        problem.evaluations = trace[-1]["evaluations"]
        return state

    loop = iterate(
        init,
        step,
        put=lambda state: problem.assign(state["theta"]),
        max_steps=optimizer.max_steps,
        run=run,
        restore=restore,
        extra=lambda: warm_starts(terms),
        about={"parameters": problem.names},
        progress=progress,
    )
    state, status = loop.state, Status.of(loop)
    theta, value = state.get("best", state["theta"]), state.get("best_value", state["value"])
    problem.assign(theta)
    fit = Fit(reward, terms, float(value), status, pd.DataFrame(loop.trace), problem, theta)
    if status is Status.CONVERGED and len(fit.theta) <= 200:
        diagnose(fit)
    return fit


def _by_minibatches(
    reward: nn.Module,
    terms: list[Term],
    optimizer: Minibatches,
    prior: Normal | None,
    run: RunDir | None,
    progress: Callable[[dict[str, Any]], None] | None,
) -> Fit:
    problem = Pieces(reward, terms, prior=prior)

    def restore(tensors: State, trace: list[dict[str, Any]]) -> State:
        _require_alike(tensors, len(problem.weights))
        return tensors

    given: list[State] = []  # by the last two steps; of them the loop only keeps the last

    def step(state: State, number: int) -> tuple[State, dict[str, Any]]:
        new, info = optimizer.step(problem, state, number, given.pop(0) if len(given) > 1 else None)
        given.append(new)
        return new, info

    with distributed.together():
        loop = iterate(
            lambda: optimizer.init(problem),
            step,
            put=lambda state: problem.weights.assign(state["theta"], "the parameter vector after a step"),
            max_steps=optimizer.steps(problem),
            run=run,
            restore=restore,
            progress=progress,
        )
        value = math.nan if loop.interrupted else problem.value()  # who is in a hurry does not wait for all rows
    status = Status.of(loop)
    if status is Status.BUDGET and optimizer.max_steps is None:  # it took the epochs it was to take
        status = Status.DONE
    return Fit(reward, terms, value, status, pd.DataFrame(loop.trace), problem, loop.state["theta"])


def _require_alike(state: State, parameters: int) -> None:
    if len(state.get("theta", ())) != parameters:
        raise IrlhfError("the checkpoint is of a fit with other parameters; start a new run directory")


def _feasible_start(reward: Any, terms: Sequence[Term], fixed: Any, bounds: Any) -> dict[str, float]:
    """Where the worlds of the terms propose to start; empty where the reward's own values will do.

    With several terms, the proposal of the highest temperature: what is costly enough there is so everywhere.
    """
    proposals: list[tuple[float, dict[str, float]]] = []
    for term in terms:
        propose = getattr(getattr(term.likelihood, "world", None), "feasible_start", None)
        how: dict[str, Any] = {}  # a finite sum of rivals never diverges, nor does what is summed over a path
        if isinstance(term.likelihood, exact):
            how = {"temperature": float(term.source.temperature.detach()), "kind": term.likelihood.kind}
        elif temperature := getattr(getattr(term.likelihood, "model", None), "temperature", 0.0):  # of soft regret
            how = {"temperature": float(temperature), "kind": "causal"}
        if propose and how:
            found = propose(reward, term.prepared.batch.contexts, fixed=fixed, bounds=bounds, **how)
            if found:
                proposals.append((how["temperature"], found))
    return max(proposals, key=lambda p: p[0])[1] if proposals else {}


def diagnose(fit: Fit) -> None:
    """Says so where the feedback leaves directions of the parameters open."""
    info = fit.information
    if info.ray is not None:
        fit.status = Status.SEPARATED
    elif info.unidentified or torch.isinf(inference.covariance(info)).any():
        fit.status = Status.UNIDENTIFIED
    directions = [*info.flat[: info.unidentified], *([] if info.ray is None else [info.ray])]
    fit.unidentified = [inference.named_direction(info, v) for v in directions]
