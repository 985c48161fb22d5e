"""Fitting large rewards a few rows at a time: the optimizer of language models.

A step looks at some rows of all terms, in an order that every epoch shuffles anew; each row is seen exactly once in an
epoch. The rows of a step are read in shards, whose gradients are summed in an order of their own, so that neither the
number of processes nor a resumed run changes what is learned, and the size of shards nothing but the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf import distributed
from irlhf.errors import ConfigError, NonFiniteError
from irlhf.likelihood import Term
from irlhf.loop import State, under, within
from irlhf.objective import Joined, Normal
from irlhf.optimize import torch_step
from irlhf.protocols import finite_or_raise
from irlhf.randomness import Key
from irlhf.weights import Weights, all_finite, norm_of

ORDER = Key(0).at("minibatches")
LOOKED_AT = 64  # rows that are read together where no gradient is wanted


def _adamw(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)


@dataclass(frozen=True)
class Minibatches:
    """Steps of a ``torch.optim`` optimizer up the mean log-likelihood of some rows at a time.

    Under ``torchrun`` the parts of a step are dealt to its processes, and the result is the same to the bit, given that
    each has as many threads (``OMP_NUM_THREADS``); see :mod:`irlhf.distributed`.

    Args:
        make: ``lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, fused=True)``. The rate falls to zero over all
            steps (a constant one keeps swinging), after rising over the first of twenty.
        rows: of feedback, in each step, of all terms together.
        at_once: rows that are read together; the memory of a step grows with it, and nothing else. Up to 8 processes
            share a step, but never more than ``rows / at_once``.
        epochs: how often every row is seen.
        max_steps: steps in all; None: as many as ``epochs`` take.
        clip: largest norm of the gradient; None: any.
        key: of the order of rows.
    """

    make: Callable[[list[Tensor]], torch.optim.Optimizer] = _adamw
    rows: int = 32
    at_once: int = 8
    epochs: float | int = 1.0
    max_steps: int | None = None
    clip: float | int | None = 1.0
    key: Key = ORDER

    def __post_init__(self):
        for name in ("rows", "at_once", "epochs"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"minibatches with {name} = {getattr(self, name)}; give a positive number")

    def steps(self, problem: Pieces) -> int:
        """How many steps a fit of this problem takes."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, math.ceil(self.epochs * problem.n_rows / self.rows))

    def rate(self, number: int, steps: int) -> float:
        """What the learning rate is multiplied with in step ``number``, from 1: up in a line, then down to zero."""
        warm = max(1, steps // 20)
        return min(1.0, number / warm) * (1 - (number - 1) / steps)

    def rows_of(self, number: int, n: int) -> np.ndarray:
        """The rows of step ``number``, from 1: of an endless sequence of shuffled epochs, the next ones."""
        first = (number - 1) * self.rows
        wanted = np.arange(first, first + self.rows)
        order = {int(e): self.key.at("epoch", int(e)).numpy().permutation(n) for e in np.unique(wanted // n)}
        return np.array([order[int(k // n)][k % n] for k in wanted], np.int64)

    def init(self, problem: Pieces) -> tuple[State, dict[str, Any]]:
        return {"theta": problem.weights.vector()}, {}

    def step(
        self, problem: Pieces, state: State, number: int, spare: State | None = None
    ) -> tuple[State, dict[str, Any]]:
        """One step from the parameters that the modules hold, which it does not change.

        ``spare``: the state that a step before the last one gave, where nobody needs it any more: overwritten.

        Raises:
            NonFiniteError: a log-likelihood, the gradient or a moment is not finite; names rows or parameters.
        """
        rows = self.rows_of(number, problem.n_rows)
        gradient, value = problem.gradient(rows, self.at_once, problem.room)
        norm = norm_of(gradient)
        if not math.isfinite(norm) and not all_finite(gradient):  # a norm that is finite has none that is not
            raise NonFiniteError(problem.blame(rows))
        downhill = gradient.mul_(-1.0 if self.clip is None or norm <= self.clip else -self.clip / norm)
        rate = self.rate(number, self.steps(problem))
        moments = within(state, "moment.")
        room = None if spare is None else {"theta": spare["theta"], **within(spare, "moment.")}
        theta, moments = torch_step(self.make, state["theta"], downhill, moments, slower=rate, spare=room)
        for name, moment in moments.items():
            if moment.shape == theta.shape:
                problem.weights.require_finite(moment, f"{name} of the optimizer")
        return {"theta": theta, **under("moment.", moments)}, {"objective": value, "gradient_norm": norm}


class Pieces:
    """A fit as a sum over rows that can be looked at a few at a time.

    Args:
        reward, terms: as in :func:`irlhf.fit_reward`; the terms' likelihoods must be sums over rows.
        prior: on the reward's parameters.
    """

    def __init__(self, reward: nn.Module, terms: Sequence[Term], *, prior: Normal | None = None):
        self.reward, self.terms, self.prior = reward, list(terms), prior
        self.weights = Weights(Joined(reward, self.terms))
        self.first = np.cumsum([0, *(len(term.feedback) for term in self.terms)])
        self.n_rows = int(self.first[-1])
        self.total_weight = float(sum(term.row_weight.sum() for term in self.terms))
        if not self.total_weight > 0:
            raise ConfigError("all feedback has weight zero; give some of it a positive weight")

    @property
    def names(self) -> list[str]:
        return self.weights.names

    @cached_property
    def _reward_weights(self) -> Weights:
        return Weights(self.reward)

    def shards(self, rows: np.ndarray, at_once: int) -> list[tuple[int, Tensor]]:
        """(term, its rows) of the rows of a step, ``at_once`` of them at most in each."""
        found = []
        for k in range(len(self.terms)):
            own = rows[(rows >= self.first[k]) & (rows < self.first[k + 1])] - self.first[k]
            found += [
                (k, torch.from_numpy(part)) for part in np.split(own, range(at_once, len(own), at_once)) if len(part)
            ]
        return found

    @cached_property
    def room(self) -> Tensor:
        """For the gradient of one step after the other: memory of this size takes as long to get as to fill."""
        return torch.empty(len(self.weights) + 1, dtype=self.weights.dtype)

    def gradient(
        self, rows: np.ndarray, at_once: int, room: Tensor | None = None
    ) -> tuple[Float[Tensor, "parameters"], float]:
        """The gradient and the value of the mean over these rows, each of the terms' weight, and the prior's share.

        ``room``: written over, and the gradient may be a part of it.

        Raises:
            NonFiniteError: a log-likelihood is not finite; names rows.
        """
        scale = self.n_rows / (len(rows) * self.total_weight)

        def add(shard: tuple[int, Tensor], total: Tensor) -> None:
            value = self._of_shard(shard) * scale
            self.weights.add_gradient(value, total[:-1])
            total[-1] += value.detach()

        length, dtype = len(self.weights) + 1, self.weights.dtype
        total = distributed.sum_in_lanes(add, self.shards(rows, at_once), length, dtype, room)
        gradient, value = total[:-1], float(total[-1])
        if self.prior is not None:
            theta = self._reward_weights.vector().requires_grad_()
            density = self.prior.log_density(theta) / self.total_weight
            gradient[: len(theta)] += torch.autograd.grad(density, theta)[0]
            value += float(density.detach())
        return gradient, value

    def _of_shard(self, shard: tuple[int, Tensor]) -> Float[Tensor, ""]:
        """The weighted log-likelihood of some rows of a term. Raises NonFiniteError that names rows."""
        number, own = shard
        term = self.terms[number].take(own)
        each = term.log_prob(self.reward)
        finite_or_raise(f"the log-likelihood of {term.name!r}", each.detach(), list(term.feedback.id))
        return (each * term.row_weight).sum()

    def blame(self, rows: np.ndarray) -> str:
        """A sentence that names the rows with a gradient that is not finite."""
        guilty = []
        for number, own in self.shards(rows, 1):
            term = self.terms[number].take(own)
            if not torch.isfinite(self.weights.gradient(term.log_prob(self.reward).sum())).all():
                guilty.append(str(term.feedback.id[0]))
        named = ", ".join(guilty[:5]) or "the prior"
        return f"the gradient is not finite for rows {named}; no parameter was changed"

    # What a Fit asks of its problem. The modules hold theta already.

    def unit_log_probs(self, theta: Tensor) -> list[Tensor]:
        return [term.unit_log_prob(self.reward) for term in self.terms]

    def unit_weights(self) -> list[Tensor]:
        return [term.row_weight[term.unit_row] for term in self.terms]

    def value(self) -> float:
        """The sum of the weighted log-likelihoods of all rows, and the log prior, in nats.

        Raises:
            NonFiniteError: a log-likelihood is not finite; names rows.
        """

        def add(shard: tuple[int, Tensor], total: Tensor) -> None:
            total += self._of_shard(shard)

        with torch.no_grad():
            shards = self.shards(np.arange(self.n_rows), LOOKED_AT)
            total = float(distributed.sum_in_lanes(add, shards, 1, torch.float64))
            return total + (0.0 if self.prior is None else float(self.prior.log_density(self._reward_weights.vector())))
