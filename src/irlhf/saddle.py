"""The reward's half of a saddle point, where a world is played step by step, from single steps of people and policy.

``max_R min_pi  sum_demonstrations [R(y)/T + log mu] - E_pi[R/T - log pi/mu]`` is the ``variational`` likelihood. Its
gradient by the reward is estimated here from some steps at a time, and that of other feedback from some rows:

    E_people[r] - E_played[r] - magnitude E[r^2] - roughness E[|grad r|^2] + (rows of listed terms)

in units of the reward, all divided by what the demonstrations weigh together (their steps over T, in nats for each unit
of reward). Played is the policy now and, so that the two do not run in circles, as it was before: the reward answers
the average of the policies so far (fictitious play; Brown 1951).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from irlhf.errors import NonFiniteError
from irlhf.functional.adam import adam_step
from irlhf.likelihood import Term
from irlhf.loop import State, under, within
from irlhf.objective import Joined
from irlhf.protocols import Draws
from irlhf.randomness import Key
from irlhf.simulated import Simulated
from irlhf.weights import Weights

FIRST = 16  # episodes at random with which the past begins
SLOW = 0.9  # share of the old length of episodes in the new one


@dataclass(frozen=True)
class Saddle:
    """How the reward of a saddle point moves in a round.

    Args:
        steps: of Adam (Kingma and Ba 2015, with 0.5 and 0.99).
        rows: steps of demonstrations in each, and as many of what was played.
        ends: of episodes, whose time after the end is looked at in each.
        listed: rows of other feedback in each.
        rate: learning rate, falling to zero over the rounds in which the reward moves.
        decay: of weights, decoupled (Loshchilov and Hutter 2019).
        magnitude: of the mean square of the reward; it sets the reward's scale.
        roughness: of the mean squared gradient by what the reward reads.
        fresh: share of what is played now among what was ever played.
        memory: steps of the past that are kept.
    """

    steps: int = 4
    rows: int = 512
    ends: int = 128
    listed: int = 8
    rate: float = 1e-3
    decay: float | int = 1e-4
    magnitude: float | int = 0.05
    roughness: float | int = 1.0
    fresh: float = 0.25
    memory: int = 50_000


class Contrast:
    """What people do more often than the policy, as steps of the reward's parameters.

    Args:
        reward: with ``step(batch)``, and ``roughness(some, others, mix)`` if it is to be smooth.
        terms: at least one ``variational``; all others ``listed``.
        world: one that is played step by step.
        how: the sizes of it all.
    """

    def __init__(self, reward: nn.Module, terms: Sequence[Term], world: Any, how: Saddle):
        self.reward, self.how, self.world = reward, how, world
        self.weights = Weights(Joined(reward, terms))
        self.people = [_People(term) for term in terms if isinstance(term.prepared, Simulated)]
        self.listed = [term for term in terms if not isinstance(term.prepared, Simulated)]
        self.total = sum(people.nats for people in self.people)
        self.length = sum(p.steps for p in self.people) / sum(p.episodes for p in self.people)

    def init(self, key: Key) -> State:
        """Where the reward starts; the past begins with what is done at random."""
        draws = self.world.draw(self.world.base_policy(), [None], FIRST, key=key)
        length = float(draws.batch.sum(draws.batch.decided.double(), discounted=False).mean())
        past = {"over": _number(_over(draws.batch)), "rounds": _number(1.0), "length": _number(length)}
        past |= _some(draws.batch.columns(), self.how.memory // 10, key.at("kept").numpy())
        past |= under("end.", draws.batch.ends())
        return {"theta": self.weights.vector(), **under("past.", past)}

    def step(
        self, state: State, draws: Draws, length: float | None, key: Key, slower: float
    ) -> tuple[State, dict[str, float]]:
        """A round: some steps of the optimizer, and what was played joins the past.

        Args:
            draws: what was played in this round.
            length: of the episodes that ended in it, on average; None: none did.
            slower: what the learning rate is multiplied with.

        Raises:
            NonFiniteError: the gradient is not finite; no parameter was changed.
        """
        how, rng = self.how, key.numpy()
        theta, moments, past = state["theta"], within(state, "moment."), within(state, "past.")
        if length is not None:
            past["length"] = SLOW * past["length"] + (1 - SLOW) * length
        batch, over = draws.batch, _over(draws.batch)
        now, ends = batch.columns(), batch.ends()
        told: dict[str, float] = {}
        for _ in range(how.steps):
            fresh = max(1, round(how.fresh * how.rows))
            picked = [_some(now, fresh, rng), _some({name: past[name] for name in now}, how.rows - fresh, rng)]
            played = type(batch).of_columns({name: torch.cat([part[name] for part in picked]) for name in now})
            share = how.fresh * over + (1 - how.fresh) * float(past["over"])
            ended = torch.cat([_ended(ends, how.ends // 4, rng), _ended(within(past, "end."), how.ends, rng)])
            value, told = self._value(played, ended, share, float(past["length"]), rng)
            gradient = self.weights.gradient(value)
            if not bool(torch.isfinite(gradient).all()):
                raise NonFiniteError("the gradient of the reward is not finite; no parameter was changed")
            rate = how.rate * slower
            theta, moments = adam_step(theta * (1 - rate * how.decay), -gradient, moments, rate, betas=(0.5, 0.99))
            self.weights.assign(theta, "the reward's parameter vector after a step")
        joining = _some(now, min(how.rows, len(now["terminated"])), rng)
        rounds = float(past["rounds"])
        past |= {name: torch.cat([past[name], joining[name]])[-how.memory :] for name in now}
        past |= {f"end.{name}": torch.cat([past[f"end.{name}"], ends[name]])[-how.memory :] for name in ends}
        past |= {"over": (past["over"] * rounds + over) / (rounds + 1), "rounds": _number(rounds + 1)}
        return {"theta": theta, **under("moment.", moments), **under("past.", past)}, told

    def _value(
        self, played: Any, ended: Tensor, over: float, length: float, rng: Any
    ) -> tuple[Tensor, dict[str, float]]:
        """What is climbed, estimated from some steps.

        Args:
            played: steps of the policy, as often as they weigh.
            ended: [ends, d] where its episodes ended, as long as they were over.
            over: the share of that time in all of it.
            length: of its episodes.
        """
        how = self.how
        # Without an absorbing state the policy's episodes may last longer than people's, and then their sum has more.
        longer = 1.0 if self.world.absorbing else length / self.length
        value: Any = 0.0
        told: dict[str, float] = {}
        for people in self.people:
            own = people.some(how.rows, rng)
            worth, of_played = self.reward.step(own), self.reward.step(played)  # type: ignore[operator]
            ours, theirs = worth.mean(), of_played.mean()
            size = (worth.square().mean() + of_played.square().mean()) / 2
            rough = self._roughness(own, played, rng)
            at_end = people.at_end(how.ends, rng), type(played).of_ends(played, ended)
            if len(at_end[0].obs):
                after = self.reward.step(at_end[0])  # type: ignore[operator]
                ours = (1 - people.over) * ours + people.over * after.mean()
                size = size + after.square().mean() / 2
            if len(at_end[1].obs):
                after = self.reward.step(at_end[1])  # type: ignore[operator]
                theirs = (1 - over) * theirs + over * after.mean()
                size = size + after.square().mean() / 2
            if len(at_end[0].obs) and len(at_end[1].obs):
                rough = rough + self._roughness(*at_end, rng)
            part = ours - longer * theirs - how.magnitude * size - how.roughness * rough
            value = value + people.nats / self.total * part
            told = {"people": float(ours.detach()), "played": float(theirs.detach())}
        for term in self.listed:
            n = len(term.feedback)
            some = term.take(torch.from_numpy(rng.choice(n, min(how.listed, n), replace=False)))
            each = some.log_prob(self.reward) * some.row_weight
            value = value + each.mean() * (n / self.total)
            told["listed"] = float(each.detach().mean())
        return value, told

    def _roughness(self, some: Any, others: Any, rng: Any) -> Any:
        if not self.how.roughness or not hasattr(self.reward, "roughness"):
            return 0.0
        n = min(len(some.obs), len(others.obs))
        rows, mix = torch.arange(n), torch.from_numpy(rng.random((n, 1)).astype(np.float32))
        return self.reward.roughness(some.rows(rows), others.rows(rows), mix).mean()  # type: ignore[operator]


class _People:
    """The steps of the demonstrations of a term, to be picked as often as they weigh."""

    def __init__(self, term: Term):
        self.batch = term.prepared.batch
        weight = self.batch.step_weight * term.row_weight[self.batch.item]
        self.steps, self.episodes = float(weight.sum()), float(term.row_weight.sum())
        self.nats = self.steps / float(term.source.temperature.detach())
        self.over = float(weight[self.batch.absorbing].sum()) / self.steps  # share of the time after an end
        self.own = self.batch.decided.nonzero()[:, 0]
        self.ends = self.batch.absorbing.nonzero()[:, 0]
        self.weight = weight

    def some(self, n: int, rng: Any) -> Any:
        """Steps."""
        return self.batch.rows(self.own[_by_weight(self.weight[self.own], n, rng)])

    def at_end(self, n: int, rng: Any) -> Any:
        """Time after an end, if there is any."""
        return self.batch.rows(self.ends[_by_weight(self.weight[self.ends], n, rng)])


def _by_weight(weight: Tensor, n: int, rng: Any) -> Int[Tensor, "drawn"]:
    """Numbers drawn as often as they weigh; none where there is nothing to draw."""
    if not len(weight):
        return torch.empty(0, dtype=torch.int64)
    until = torch.cumsum(weight.double(), 0)
    drawn = torch.searchsorted(until, torch.from_numpy(rng.random(n)) * until[-1], right=True)
    return drawn.clamp(max=len(weight) - 1)


def _ended(ends: State, n: int, rng: Any) -> Tensor:
    """Where episodes ended, as often as they are over."""
    return ends["obs"][_by_weight(ends["span"].clamp(max=1e9), n, rng)]


def _some(columns: State, n: int, rng: Any) -> State:
    rows: Int[Tensor, "n"] = torch.from_numpy(rng.integers(0, len(columns["terminated"]), n))
    return {name: values[rows] for name, values in columns.items()}


def _over(batch: Any) -> float:
    """The share of the time after an end in a batch."""
    span = batch.span.double().clamp(max=1e9)
    return float(span[batch.absorbing].sum() / span.sum())


def _number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)
