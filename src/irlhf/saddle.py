"""The reward's half of a saddle point, where a world is played step by step: a few steps of people and policy at a time.

``max_R min_pi  sum_demonstrations [R(y)/T + log mu] - E_pi[R/T - log pi/mu]`` is the ``variational`` likelihood. Here its
gradient by the reward is estimated from single steps, and other feedback is added a few rows at a time:

    E_people[r] - E_played[r] - magnitude E[r^2] - roughness E[|grad r|^2] + (rows of listed terms)

in units of the reward, divided by what all demonstrations weigh, ``N H / T``. Played is the policy now and, so that it
does not run in circles, as it was before (Ho and Ermon 2016; fictitious play).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from irlhf.errors import NonFiniteError
from irlhf.likelihood import Term
from irlhf.loop import State, under, within
from irlhf.objective import Joined
from irlhf.optimize import adam_step
from irlhf.randomness import Key
from irlhf.simulated import Simulated
from irlhf.weights import Weights

COLUMNS = ("obs", "next_obs", "action", "terminated")


@dataclass(frozen=True)
class Saddle:
    """How the reward of a saddle point moves in a round.

    Args:
        steps: of Adam.
        rows: steps of demonstrations in each, and as many of what was played.
        listed: rows of other feedback in each.
        rate: learning rate, falling to zero over all rounds.
        decay: of weights, decoupled (Loshchilov and Hutter 2019).
        magnitude: of the mean square of the reward; it sets the reward's scale.
        roughness: of the mean squared gradient by what the reward reads.
        fresh: share of what is played now among what was ever played.
        memory: steps of the past that are kept.
    """

    steps: int = 4
    rows: int = 512
    listed: int = 8
    rate: float = 1e-3
    decay: float = 1e-4
    magnitude: float = 0.05
    roughness: float = 1.0
    fresh: float = 0.25
    memory: int = 50_000


class Contrast:
    """What people do more often than the policy, as steps of the reward's parameters.

    Args:
        reward: with ``step(batch)``, and ``roughness(some, others, mix)`` if it is to be smooth.
        terms: at least one ``variational``; all others ``listed``.
        world: one that is played step by step.
    """

    def __init__(self, reward: nn.Module, terms: Sequence[Term], world: Any, how: Saddle):
        self.reward, self.how, self.world = reward, how, world
        self.weights = Weights(Joined(reward, terms))
        people = [term for term in terms if isinstance(term.prepared, Simulated)]
        self.listed = [term for term in terms if not isinstance(term.prepared, Simulated)]
        self.people = [_People(term) for term in people]
        self.total = sum(p.total / float(p.term.source.temperature.detach()) for p in self.people)

    def init(self, key: Key) -> State:
        """Where the reward starts; the past begins with what is done at random."""
        draws = self.world.draw(self.world.base_policy(), [None], 16, key=key)
        past = _Steps.of(draws.batch).some(min(self.how.memory // 4, 4096), key.at("kept").numpy())
        return {"theta": self.weights.vector(), **past}

    def step(self, state: State, draws: Any, key: Key, slower: float) -> tuple[State, dict[str, float]]:
        """A round: some steps, and what was played joins the past."""
        how, rng = self.how, key.numpy()
        theta, moments = state["theta"], within(state, "moment.")
        self.weights.assign(theta)
        now = _Steps.of(draws.batch)
        told: dict[str, float] = {}
        for _ in range(how.steps):
            value, told = self._value(state, now, draws.batch, rng)
            gradient = self.weights.gradient(value)
            if not bool(torch.isfinite(gradient).all()):
                raise NonFiniteError("the gradient of the reward is not finite; no parameter was changed")
            rate = how.rate * slower
            theta = theta * (1 - rate * how.decay)
            theta, moments = adam_step(theta, -gradient, moments, rate, betas=(0.5, 0.99))
            self.weights.assign(theta, "the reward's parameter vector after a step")
        past = now.joining(state, how, rng)
        return {"theta": theta, **under("moment.", moments), **past}, told

    def _value(self, state: State, now: _Steps, template: Any, rng: Any) -> tuple[Tensor, dict[str, float]]:
        how = self.how
        fresh = max(1, round(how.fresh * how.rows))
        played = now.batch(template, now.pick(fresh, rng))
        past = _past(state, template, rng.integers(0, len(state["past.terminated"]), how.rows - fresh))
        share = how.fresh * now.over + (1 - how.fresh) * float(state["past.over"])
        longer = self._longer(state, now)
        value: Any = 0.0
        told = {}
        for people in self.people:
            own = people.batch.rows(people.pick(how.rows, rng))
            rows = _joined(own, played, past)
            worth = self.reward.step(rows)  # type: ignore[operator]
            ours, theirs = worth[: how.rows].mean(), worth[how.rows :].mean()
            over = people.over > 0 or share > 0
            ended = self.reward.step(_ended(template))[0] if over else 0.0  # type: ignore[operator]
            ours = (1 - people.over) * ours + people.over * ended
            theirs = (1 - share) * theirs + share * ended
            part = people.total / float(people.term.source.temperature.detach()) / self.total
            value = value + part * (ours - longer * theirs)
            size = worth.square().mean() + (ended.square() if isinstance(ended, Tensor) else 0.0)
            value = value - part * how.magnitude * size
            if how.roughness and hasattr(self.reward, "roughness"):
                mix = torch.from_numpy(rng.random((how.rows, 1)).astype(np.float32))
                rough = self.reward.roughness(own, rows.rows(torch.arange(how.rows, 2 * how.rows)), mix)  # type: ignore[operator]
                value = value - part * how.roughness * rough.mean()
            told = {"people": float(ours.detach()), "played": float(theirs.detach())}
        for term in self.listed:
            some = torch.from_numpy(rng.choice(len(term.feedback), min(how.listed, len(term.feedback)), replace=False))
            part = term.take(some)
            each = part.log_prob(self.reward) * part.row_weight
            value = value + each.mean() * (len(term.feedback) / self.total)
            told["listed"] = float(each.detach().mean())
        return value, told

    def _longer(self, state: State, now: _Steps) -> float:
        """How much longer episodes of the policy last than those of people, where ends are not padded."""
        if self.world.absorbing:
            return 1.0
        of_people = sum(p.total for p in self.people) / sum(p.items for p in self.people)
        return float(state["past.length"]) / of_people if "past.length" in state else 1.0


class _People:
    """The steps of demonstrations."""

    def __init__(self, term: Term):
        self.term, self.batch = term, term.prepared.batch
        weight = self.batch.step_weight * term.row_weight[self.batch.item]
        self.total = float(weight.sum())
        self.items = float(term.row_weight.sum())
        self.over = float(weight[self.batch.absorbing].sum()) / self.total  # share of the time after an end
        self.own = (~self.batch.absorbing).nonzero()[:, 0]
        self.until = torch.cumsum(weight[self.own], 0)

    def pick(self, n: int, rng: Any) -> Int[Tensor, "n"]:
        """Steps, as often as they weigh."""
        at = torch.searchsorted(self.until, torch.from_numpy(rng.random(n)) * self.until[-1], right=True)
        return self.own[at.clamp(max=len(self.own) - 1)]


class _Steps:
    """What was played in one round."""

    def __init__(self, columns: State, over: float, length: float):
        self.columns, self.over, self.length = columns, over, length

    @staticmethod
    def of(batch: Any) -> _Steps:
        own = (~batch.absorbing).nonzero()[:, 0]
        weight = batch.span.double()
        over = float(weight[batch.absorbing].sum() / weight.sum())
        ends = float(batch.terminated.sum() + (batch.time[own] + 1 >= (batch.time.max() + 1)).sum())
        return _Steps({name: getattr(batch, name)[own] for name in COLUMNS}, over, len(own) / max(ends, 1.0))

    def pick(self, n: int, rng: Any) -> Int[Tensor, "n"]:
        return torch.from_numpy(rng.integers(0, len(self.columns["terminated"]), n))

    def batch(self, template: Any, rows: Tensor) -> Any:
        return _of_columns(template, {name: values[rows] for name, values in self.columns.items()})

    def some(self, n: int, rng: Any) -> State:
        rows = self.pick(n, rng)
        kept = {name: values[rows] for name, values in self.columns.items()}
        number = {"over": torch.tensor(self.over, dtype=torch.float64), "rounds": torch.tensor(1.0)}
        return under("past.", {**kept, **number})

    def joining(self, state: State, how: Saddle, rng: Any) -> State:
        """The past with some of these steps in it; the oldest go."""
        past = within(state, "past.")
        rows = self.pick(min(how.rows, len(self.columns["terminated"])), rng)
        found = {name: torch.cat([past[name], self.columns[name][rows]])[-how.memory :] for name in COLUMNS}
        rounds = float(past["rounds"])
        over = (float(past["over"]) * rounds + self.over) / (rounds + 1)
        number = {"over": torch.tensor(over, dtype=torch.float64), "rounds": torch.tensor(rounds + 1)}
        return under("past.", {**found, **number})


def _past(state: State, template: Any, rows: np.ndarray) -> Any:
    picked = torch.from_numpy(rows)
    return _of_columns(template, {name: state[f"past.{name}"][picked] for name in COLUMNS})


def _of_columns(template: Any, columns: State) -> Any:
    """Steps, each an item of its own."""
    n = len(columns["terminated"])
    no, zero = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.int64)
    return type(template)(
        template.contexts, zero, torch.arange(n), torch.ones(n, dtype=torch.float64), absorbing=no, time=zero,
        span=torch.ones(n), paid=torch.full((n,), torch.nan), **columns,
    )  # fmt: skip


def _ended(template: Any) -> Any:
    """One step of the time after an end."""
    row = template.rows(torch.zeros(1, dtype=torch.int64))
    from dataclasses import replace

    yes = torch.ones(1, dtype=torch.bool)
    return replace(row, absorbing=yes, terminated=~yes)


def _joined(*parts: Any) -> Any:
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS}
    return _of_columns(parts[0], columns)
