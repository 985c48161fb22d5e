"""The one likelihood: every piece of feedback is a Luce choice built from the same reward.

    log P(y | x, C) = u(y) - log sum_{y' in C} exp u(y'),      u(y) = R(x, y)/T_s + log mu_s(y|x) + o(y)

A :class:`irlhf.sources.Source` holds what one kind of person adds (T_s, ties, thresholds, noise). A likelihood closes
the choice set C: :class:`listed` where C is given, :class:`exact` where C is everything a solvable world allows; those
that draw from C are in :mod:`irlhf.simulated`. A :class:`Term` is feedback, a likelihood and a source; its
``log_prob(reward)`` is one number for each row.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from irlhf.errors import ConfigError, TrajectoryError
from irlhf.feedback import CHOICE, DEMONSTRATION, KINDS, RATING, Feedback, picked
from irlhf.functional.choice import (
    FIRST,
    SECOND,
    TIED,
    choice_log_prob,
    rating_log_prob,
)
from irlhf.protocols import Factors, SolvableWorld, World
from irlhf.sources import Source


@dataclass(frozen=True, eq=False)
class listed:
    """The choice set is what was shown: comparisons, rankings, ratings. Exact.

    Utilities are ``R/T_s + offset``: what was shown was equally at hand, so no base measure enters.

    Args:
        world: of the trajectories.
        model: what of a trajectory is compared: None, the reward summed over its steps (partial return), or a model
            such as :class:`irlhf.worlds.tabular.regret`.
    """

    world: World
    model: Any = None

    def prepare(self, feedback: Feedback, source: Source) -> Prepared:
        refuse(feedback, DEMONSTRATION, "its choice set is everything, not a list: use exact(world) or sampled(world)")
        ties = (feedback.kind == CHOICE) & (feedback.chosen < 0)
        if ties.any() and source.ties is None:
            raise ConfigError(
                f"row {feedback.id[np.argmax(ties)]!r} is a tie, but its source models none; "
                "give the source ties=davidson() or ties=rao_kupper()"
            )
        is_rating = feedback.kind == RATING
        if is_rating.any():
            levels = np.unique(feedback.levels[is_rating])
            if len(levels) > 1:
                raise ConfigError(
                    f"ratings with {levels.tolist()} levels in one source; give each scale its own source"
                )
            source.require_levels(int(levels[0]))
        context_of_item = np.repeat(feedback.context, feedback.sizes)
        # One return for each (context, trajectory), however often it was shown.
        pairs = np.stack([context_of_item, feedback.trajectory])
        distinct, item = np.unique(pairs, axis=1, return_inverse=True)
        rows = np.repeat(np.arange(len(feedback)), feedback.sizes)
        with _rows_named(feedback, lambda k: rows[np.argmax(item.reshape(-1) == k)]):
            batch = self.world.collate(
                [feedback.contexts[x] for x in distinct[0]], picked(feedback.trajectories, distinct[1])
            )
        pairwise = (feedback.kind == CHOICE) & (feedback.sizes == 2) & (source.ties is not None)
        if source.position is not None:
            _require_order(feedback)
        return Prepared(
            feedback,
            batch,
            unit_row=torch.arange(len(feedback)),
            item=torch.from_numpy(item.reshape(-1)),
            pairwise=torch.from_numpy(pairwise),
        )

    def log_prob(self, prepared: Prepared, reward: Any, source: Source) -> Float[Tensor, "units"]:
        return self.given(prepared, self.compared(prepared, reward), source)

    def compared(self, prepared: Prepared, reward: Any) -> Float[Tensor, "distinct"]:
        """What is compared, of each distinct (context, trajectory), in units of the reward."""
        if self.model is None:
            return reward(prepared.batch).double()
        return self.model(self.world, reward, prepared.batch, prepared.memory).double()

    def given(self, prepared: Prepared, compared: Float[Tensor, "distinct"], source: Source) -> Float[Tensor, "units"]:
        """The log-probability of each answer, given what is compared."""
        feedback = prepared.feedback
        returns = compared / source.temperature
        utility = returns.index_select(0, prepared.item) + torch.from_numpy(feedback.offset)
        if source.position is not None:
            shown_first = torch.from_numpy(feedback.first_item[:-1][feedback.kind == CHOICE])
            utility = utility.index_add(0, shown_first, source.position.expand(len(shown_first)))
        first = torch.from_numpy(feedback.first_item)
        chosen = torch.from_numpy(feedback.chosen)
        is_rating = torch.from_numpy(feedback.kind == RATING)
        result = utility.new_zeros(len(feedback))
        luce = ~is_rating & ~prepared.pairwise
        if luce.any():
            rows = luce.nonzero()[:, 0]
            size = torch.from_numpy(feedback.sizes)[rows]
            set_of = torch.repeat_interleave(torch.arange(len(rows)), size)
            start = torch.cumsum(size, 0) - size
            items = first[rows][set_of] + torch.arange(len(set_of)) - start[set_of]
            result = result.index_put((rows,), choice_log_prob(utility[items], set_of, start + chosen[rows]))
        if prepared.pairwise.any():
            rows = prepared.pairwise.nonzero()[:, 0]
            outcome = torch.where(chosen[rows] < 0, TIED, torch.where(chosen[rows] == 0, FIRST, SECOND))
            assert source.ties is not None
            value = source.ties(utility[first[rows]], utility[first[rows] + 1], outcome)
            result = result.index_put((rows,), value)
        if is_rating.any():
            rows = is_rating.nonzero()[:, 0]
            assert source.thresholds is not None
            thresholds = torch.cat([source.thresholds.new_zeros(1), source.thresholds])
            level = torch.from_numpy(feedback.level)[rows]
            result = result.index_put((rows,), rating_log_prob(utility[first[rows]], level, thresholds))
        answers = torch.where(is_rating, torch.from_numpy(feedback.levels), torch.from_numpy(feedback.sizes))
        return source.with_noise(result, answers + prepared.pairwise)


@dataclass(frozen=True, eq=False)
class exact:
    """The choice set is everything the world allows, and its sum is computed: demonstrations in a solvable world.

    Args:
        world: one with ``solve``; any, for an implicit reward, whose sum is one.
        kind: "causal", "weighted" or "anticipative": three likelihoods that carry one name; see
            :mod:`irlhf.worlds.tabular.solution`. A fit prints which one it used. Default: the first of the world's
            ``kinds``, causal where it has none; where nothing is random or discounted (text) all three are one.
    """

    world: World
    kind: str = ""

    def __post_init__(self):
        if not self.kind:
            object.__setattr__(self, "kind", getattr(self.world, "kinds", ("causal",))[0])

    def prepare(self, feedback: Feedback, source: Source) -> Prepared:
        refuse(feedback, CHOICE, "what was shown is a list: use listed(world)")
        refuse(feedback, RATING, "it is one trajectory judged, not chosen: use listed(world)")
        if source.log_odds_of_noise is not None or source.position is not None:
            raise ConfigError(
                f"row {feedback.id[0]!r} is a demonstration, but its source answers by chance or likes what is shown "
                "first, which is about answers; give demonstrations a source of their own"
            )
        batch = collated(self.world, feedback)
        # The causal likelihood is a product over steps, each a choice of its own given the state.
        rows = torch.arange(len(feedback))
        return Prepared(feedback, batch, unit_row=batch.item if self.kind == "causal" else rows)

    def log_prob(self, prepared: Prepared, reward: Any, source: Source) -> Float[Tensor, "units"]:
        batch = prepared.batch
        if self._is_policy(reward, source):  # R = T log pi/mu at its own temperature: u(y) = log pi(y), and Z = 1
            steps = reward.step(batch) / source.temperature + self.world.log_base_step(batch)
            return steps if self.kind == "causal" else batch.sum(steps)
        solution = self._solution(prepared, reward, source)
        return solution.step_log_prob(batch) if self.kind == "causal" else solution.log_prob(batch)

    def total(
        self, prepared: Prepared, reward: Any, source: Source, weight: Float[Tensor, "rows"]
    ) -> Float[Tensor, ""]:
        """The weighted sum of all log-likelihoods, from counts that are made once: much less work than every factor."""
        if self._is_policy(reward, source):
            return (self.log_prob(prepared, reward, source) * weight[prepared.unit_row]).sum()
        solution = self._solution(prepared, reward, source)
        if not hasattr(solution, "total"):
            return (solution.log_prob(prepared.batch) * weight).sum()
        return solution.total(self._counts(prepared, solution, weight))

    def factors(self, prepared: Prepared, reward: Any, source: Source, weight: Float[Tensor, "rows"]) -> Factors | None:
        """The likelihood as a function of the world's utilities, or None where these do not matter."""
        solution = None if self._is_policy(reward, source) else self._solution(prepared, reward, source)
        if solution is None or not solution.values.requires_grad or not hasattr(solution, "factors"):
            return None
        return solution.factors(prepared.batch, self._counts(prepared, solution, weight))

    def _counts(self, prepared: Prepared, solution: Any, weight: Tensor) -> Any:
        layout = solution.utility.shape, solution.values.shape
        if layout not in prepared.counts:
            prepared.counts[layout] = solution.counts(prepared.batch, weight)
        return prepared.counts[layout]

    def _is_policy(self, reward: Any, source: Source) -> bool:
        own = getattr(reward, "temperature", None)
        at_home = own == float(source.temperature.detach()) and not source.log_temperature.requires_grad
        one_kind = hasattr(self.world, "kinds") or self.kind == "causal"
        return getattr(reward, "normalized", False) and one_kind and at_home

    def _solution(self, prepared: Prepared, reward: Any, source: Source) -> Any:
        if not hasattr(self.world, "solve"):
            raise ConfigError(
                f"{type(self.world).__name__} cannot be solved: use sampled, or variational in a joint fit; exact is "
                "for implicit rewards there"
            )
        solution = cast(SolvableWorld, self.world).solve(
            reward,
            prepared.batch.contexts,
            temperature=source.temperature,
            kind=self.kind,
            warm_start=prepared.memory.get("values"),
        )
        prepared.memory["values"] = solution.values.detach()
        return solution


@dataclass(frozen=True, eq=False)
class Prepared:
    """Feedback laid out once for a likelihood.

    ``unit_row`` says which row each independent factor of the likelihood belongs to: a row is one factor, but the
    causal likelihood of a path has one for every step. ``memory`` keeps warm starts: they change the time a solution
    takes, not the answer. ``counts`` sum the weighted steps up, by the layout of the solution.
    """

    feedback: Feedback
    batch: Any
    unit_row: Tensor  # [units] -> rows
    item: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # [items of the feedback] -> batch
    pairwise: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))  # [rows] ties are possible
    memory: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[Any, Any] = field(default_factory=dict)

    def take(self, rows: Int[Tensor, "taken"]) -> Prepared:
        """The part of these rows, laid out in the same way."""
        feedback = cast(Feedback, self.feedback[rows.numpy()])
        if not len(self.item):  # demonstrations: one item a row
            batch = self.batch.take(rows)
            by_step = self.unit_row is self.batch.item
            return Prepared(feedback, batch, unit_row=batch.item if by_step else torch.arange(len(rows)))
        first = torch.from_numpy(self.feedback.first_item)
        size = torch.from_numpy(feedback.sizes)
        shift = torch.repeat_interleave(first[rows] - (torch.cumsum(size, 0) - size), size)
        items, item = self.item[shift + torch.arange(len(shift))].unique(return_inverse=True)
        pairwise = self.pairwise[rows]
        return Prepared(feedback, self.batch.take(items), torch.arange(len(rows)), item, pairwise)


def collated(world: Any, feedback: Feedback) -> Any:
    """Demonstrations laid out, one item a row. Raises ConfigError that names the row which the world refuses."""
    trajectories = feedback.trajectories
    if not np.array_equal(feedback.trajectory, np.arange(len(trajectories))):
        trajectories = picked(trajectories, feedback.trajectory)
    with _rows_named(feedback, lambda k: k):
        return world.collate([feedback.contexts[x] for x in feedback.context], trajectories)


@contextlib.contextmanager
def _rows_named(feedback: Feedback, row_of: Callable[[int], int]) -> Iterator[None]:
    """A trajectory that the world refuses is named as the user named its row."""
    try:
        yield
    except TrajectoryError as error:
        raise ConfigError(
            f"{KINDS[feedback.kind[row_of(error.item)]]} {feedback.id[row_of(error.item)]!r}, {error.reason}"
        ) from None


def _require_order(feedback: Feedback) -> None:
    """Raises ConfigError where it cannot be known which item was shown first."""
    choices = feedback.kind == CHOICE
    ranked = np.bincount(feedback.groups("datum")[choices]) if choices.any() else np.zeros(1)
    if ranked.max(initial=0) > 1:
        raise ConfigError(
            "a source with a position has rankings, and nobody says in which order their items were shown; "
            "leave the position out, or give them another source"
        )
    decided = feedback.chosen[choices & (feedback.chosen >= 0)]
    if len(decided) > 1 and (decided == 0).all():
        raise ConfigError(
            "a source with a position has the chosen item first in every row: that is how rows were written, not how "
            "items were shown; give them as shown, or leave the position out"
        )


def refuse(feedback: Feedback, kind: int, reason: str) -> None:
    wrong = feedback.kind == kind
    if wrong.any():
        raise ConfigError(f"row {feedback.id[np.argmax(wrong)]!r} is a {KINDS[kind]}: {reason}")


class Term:
    """Feedback, the likelihood that explains it, and the source it came from.

    ``Term(demonstrations, exact(world))``, ``Term(comparisons, listed(world), Source(fit_temperature=True))``.
    The contribution to a fit is ``weight * sum_rows feedback.weight * log_prob``.
    """

    def __init__(
        self, feedback: Any, likelihood: Any, source: Source | None = None, *, weight: float = 1.0, name: str = ""
    ):
        if not isinstance(feedback, Feedback) or not hasattr(likelihood, "prepare"):
            given = f"{type(feedback).__name__} and {type(likelihood).__name__}"
            raise ConfigError(
                f"a term takes feedback and a likelihood, got {given}; write Term(feedback, exact(world))"
            )
        if not len(feedback):
            raise ConfigError("a term without feedback; leave it out")
        if not (np.isfinite(weight) and weight >= 0):
            raise ConfigError(f"the weight of a term is {weight}; it must be finite and not negative")
        self.feedback, self.likelihood, self.weight = feedback, likelihood, weight
        self.source = Source() if source is None else source
        names = sorted(set(feedback.source))
        self.name = name or (names[0] if len(names) == 1 else "+".join(names))
        self.prepared = likelihood.prepare(feedback, self.source)
        self.row_weight = torch.from_numpy(feedback.weight) * weight

    def __repr__(self) -> str:
        return f"Term({self.name}: {self.feedback!r}, {type(self.likelihood).__name__})"

    @property
    def unit_row(self) -> Int[Tensor, "units"]:
        """The row that each factor of the likelihood belongs to; see :class:`Prepared`."""
        return self.prepared.unit_row

    def unit_log_prob(self, reward: Any) -> Float[Tensor, "units"]:
        """The log-likelihood of each factor, unweighted, in nats: rows, or steps for the causal kind of exact.

        Raises:
            InfeasibleError: the partition function diverges at these parameters.
        """
        return self.likelihood.log_prob(self.prepared, reward, self.source)

    def total(self, reward: Any) -> Float[Tensor, ""]:
        """The weighted sum of all log-likelihoods, in nats: what a fit adds up. Raises as :meth:`unit_log_prob`."""
        if hasattr(self.likelihood, "total"):
            return self.likelihood.total(self.prepared, reward, self.source, self.row_weight)
        return (self.unit_log_prob(reward) * self.row_weight[self.unit_row]).sum()

    def factors(self, reward: Any) -> Factors:
        """The likelihood for second derivatives: of the units themselves, unless it knows better."""
        if hasattr(self.likelihood, "factors"):
            found = self.likelihood.factors(self.prepared, reward, self.source, self.row_weight)
            if found is not None:
                return found
        units = self.unit_log_prob(reward)
        return Factors(units, self.row_weight[self.unit_row], lambda scores: (scores.T, torch.zeros(())))

    def log_prob(self, reward: Any) -> Float[Tensor, "rows"]:
        """The log-likelihood of each row, unweighted, in nats. Raises as :meth:`unit_log_prob`."""
        units = self.unit_log_prob(reward)
        return units.new_zeros(len(self.feedback)).index_add(0, self.unit_row, units)

    def redrawn(self, by: Any, key: Any) -> Term:
        """The same term with other draws (by another policy or proposal), where its likelihood draws."""
        other = copy.copy(self)
        other.prepared = self.likelihood.redraw(self.prepared, by, key)
        return other

    def take(self, rows: Int[Tensor, "taken"]) -> Term:
        """The same term with these rows only; nothing is laid out or drawn anew."""
        other = copy.copy(self)
        other.prepared = self.prepared.take(rows)
        other.feedback, other.row_weight = other.prepared.feedback, self.row_weight[rows]
        return other

    def on(self, feedback: Feedback) -> Term:
        """The same likelihood and source for other feedback: how held-out feedback is scored."""
        return Term(feedback, self.likelihood, self.source, weight=self.weight, name=self.name)
