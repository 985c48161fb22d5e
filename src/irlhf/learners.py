"""Learners of policies: what turns draws and their worth into a better policy.

A learner climbs a :class:`irlhf.distillation.Distillation`. It is ``init(problem) -> (State, info)`` and
``step(problem, state, key) -> (State, info)`` with a flat dict of tensors as state, as the optimizers of rewards are;
what it remembers (moments, a critic, later a replay buffer) is in there. Learners of whole sequences are rows of one
table, (advantage, surrogate): :func:`reinforce`, :func:`rloo`, :func:`grpo`, :func:`ppo`. :func:`actor_critic` has a
critic and credits single steps. :func:`expected` draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf.distillation import Distillation
from irlhf.errors import ConfigError, NonFiniteError
from irlhf.functional import policy_gradient
from irlhf.functional.adam import adam_step
from irlhf.loop import State, under, within
from irlhf.optimize import LBFGS
from irlhf.protocols import Draws
from irlhf.randomness import Key
from irlhf.weights import Weights, all_finite

REACH = 1.0  # by which an exact step may change a parameter (a logit) at most


@runtime_checkable
class Learner(Protocol):
    """What learns a policy: see the module."""

    @property
    def max_steps(self) -> int: ...

    def init(self, problem: Distillation) -> tuple[State, dict[str, Any]]: ...

    def step(self, problem: Distillation, state: State, key: Key) -> tuple[State, dict[str, Any]]: ...


# ------------------------------------------------------------------------------------------- learners of sequences

Advantage = Callable[[Float[Tensor, "contexts draws"]], Float[Tensor, "contexts draws"]]
Surrogate = Callable[[Tensor, Tensor, Tensor], Tensor]  # (log pi, log pi when drawn, advantage) of steps -> of steps


@dataclass(frozen=True)
class Sequences:
    """A learner of whole trajectories: an advantage for each, and a surrogate that is climbed.

    Args:
        advantage: of log w [contexts, draws], see :mod:`irlhf.functional.policy_gradient`.
        surrogate: of steps: (log pi now, log pi when drawn, advantage of the trajectory).
        n: draws of each context and step.
        epochs: gradient steps on the same draws.
        rate: learning rate of Adam, falling to zero over all steps (a constant one keeps swinging).
        max_steps: how often to draw.
    """

    advantage: Advantage
    surrogate: Surrogate
    n: int = 8
    epochs: int = 1
    rate: float = 0.1
    max_steps: int = 300

    def init(self, problem: Distillation) -> tuple[State, dict[str, Any]]:
        return {"theta": problem.theta(), "count": torch.zeros((), dtype=torch.float64)}, {}

    def step(self, problem: Distillation, state: State, key: Key) -> tuple[State, dict[str, Any]]:
        problem.assign(state["theta"])
        draws = problem.draw(self.n, key)
        assert draws.log_q is not None
        worth = problem.worth(draws, draws.log_q)
        advantage = self.advantage(worth.log_w.reshape(-1, self.n)).reshape(-1)
        info = problem.info(worth, draws, self.n)
        for _ in range(self.epochs):
            state = climb(problem, state, self._gradient(problem, draws, advantage), self)
        if self.epochs > 1:
            with torch.no_grad():
                ratio = (problem.log_prob(draws) - draws.log_q).exp()
            info["moved"] = float((ratio - 1).abs().mean())
        return {**state, "count": state["count"] + 1}, info

    def _gradient(self, problem: Distillation, draws: Draws, advantage: Float[Tensor, "items"]) -> Tensor:
        """Of the mean surrogate of all draws, a part of them at a time."""
        total: Tensor | None = None
        for part, items in problem.parts(draws):
            batch, drawn = part.batch, part.log_q
            assert drawn is not None
            surrogate = self.surrogate(problem.log_prob(part), drawn, advantage[items][batch.item])
            each = batch.sum(surrogate, discounted=False) / draws.batch.n_items
            gradient = finite_gradient(problem, problem.policy, each, part.request, "policy")
            total = gradient if total is None else total + gradient
        assert total is not None
        return total


def climb(problem: Distillation, state: State, gradient: Tensor, learner: Any, prefix: str = "") -> State:
    """One step of Adam up a gradient that is finite, checked before any parameter changes: state -> state.

    ``prefix`` "critic." climbs with the critic's parameters.

    Raises:
        NonFiniteError: what the step leads to is not finite. No parameter was changed.
    """
    weights = Weights(problem.critic if prefix else problem.policy)
    left = 1 - float(state["count"]) / learner.max_steps
    rate = max(left, 0.0) * learner.rate
    theta, moments = adam_step(state[f"{prefix}theta"], -gradient, within(state, f"{prefix}adam."), rate)
    weights.assign(theta, "the parameter vector after a step")
    return {**state, f"{prefix}theta": theta, **under(f"{prefix}adam.", moments)}


def finite_gradient(problem: Distillation, module: nn.Module, each: Tensor, request: Tensor, whose: str) -> Tensor:
    """The gradient of ``each.sum()`` as one vector. Raises NonFiniteError that names parameters and contexts."""
    weights = Weights(module)
    gradient = weights.gradient(each.sum(), keep=True)
    if not all_finite(gradient):
        bad = [name for name, g in weights.split(gradient).items() if not torch.isfinite(g).all()]
        guilty = [
            k
            for k in request.unique().tolist()
            if not torch.isfinite(weights.gradient(each[request == k].sum(), keep=True)).all()
        ]
        what = f"the gradient of the {whose} ({', '.join(bad)})"
        raise NonFiniteError(problem.not_finite(what, guilty or list(range(len(problem.contexts)))))
    return gradient


def _plain(log_prob: Tensor, drawn: Tensor, advantage: Tensor) -> Tensor:
    return policy_gradient.reinforce(log_prob, advantage)


def _clipped(clip: float, log_prob: Tensor, drawn: Tensor, advantage: Tensor) -> Tensor:
    return policy_gradient.clipped_ratio(log_prob, drawn, advantage, clip)


def reinforce(n: int = 8, *, rate: float = 0.1, max_steps: int = 300) -> Sequences:
    """(mean of the batch, log pi): Williams 1992 with the simplest baseline."""
    return Sequences(policy_gradient.batch_mean, _plain, n, rate=rate, max_steps=max_steps)


def rloo(n: int = 8, *, rate: float = 0.1, max_steps: int = 300) -> Sequences:
    """(leave-one-out, log pi): the default; unbiased (Kool, van Hoof and Welling 2019; Ahmadian et al. 2024)."""
    return Sequences(policy_gradient.leave_one_out, _plain, n, rate=rate, max_steps=max_steps)


def grpo(n: int = 8, *, epochs: int = 1, clip: float = 0.2, rate: float = 0.1, max_steps: int = 300) -> Sequences:
    """(standardized, clipped ratio): Shao et al. 2024, with the divergence in the return and not in the loss."""
    return Sequences(policy_gradient.standardized, partial(_clipped, clip), n, epochs, rate, max_steps)


def ppo(n: int = 8, *, epochs: int = 4, clip: float = 0.2, rate: float = 0.1, max_steps: int = 300) -> Sequences:
    """(leave-one-out, clipped ratio), several steps on the same draws: Schulman et al. 2017 without a critic."""
    return Sequences(policy_gradient.leave_one_out, partial(_clipped, clip), n, epochs, rate, max_steps)


# ----------------------------------------------------------------------------- learners with a memory, or without luck


@dataclass(frozen=True)
class ActorCritic:
    """A critic learns the soft value of states, and steps are credited with what they add to it (GAE).

    For steps ``r/T + log mu - log pi``; the surrogate is the clipped ratio (Schulman et al. 2016, 2017).
    """

    n: int = 8
    epochs: int = 4
    clip: float = 0.2
    lambda_: float = 0.95
    rate: float = 0.1
    max_steps: int = 300

    def init(self, problem: Distillation) -> tuple[State, dict[str, Any]]:
        critic = Weights(problem.critic).vector()
        return {"theta": problem.theta(), "critic.theta": critic, "count": torch.zeros((), dtype=torch.float64)}, {}

    def step(self, problem: Distillation, state: State, key: Key) -> tuple[State, dict[str, Any]]:
        problem.assign(state["theta"])
        Weights(problem.critic).assign(state["critic.theta"])
        draws = problem.draw(self.n, key)
        batch, critic = draws.batch, problem.critic
        assert draws.log_q is not None
        info = problem.info(problem.worth(draws, draws.log_q), draws, self.n)
        last = torch.ones_like(batch.item, dtype=torch.bool)
        last[:-1] = batch.item[1:] != batch.item[:-1]
        with torch.no_grad():
            gain = problem.reward.step(batch).double() / problem.temperature
            gain = gain + problem.world.log_base_step(batch) - draws.log_q
            value = critic.now(batch)  # type: ignore[operator]
            advantage = policy_gradient.generalized_advantage(
                gain, value, critic.after(batch), last & draws.whole[batch.item], last,  # type: ignore[operator]
                getattr(problem.world, "discount", 1.0), self.lambda_,
            )  # fmt: skip
        problem.require_finite("advantage", advantage, draws.request[batch.item])
        # The gradient of a discounted objective counts a step for what the discount leaves of it.
        weight = batch.step_weight / batch.n_items
        for _ in range(self.epochs):
            surrogate = policy_gradient.clipped_ratio(problem.log_prob(draws), draws.log_q, advantage, self.clip)
            each = batch.sum(surrogate * weight, discounted=False)
            state = climb(problem, state, finite_gradient(problem, problem.policy, each, draws.request, "policy"), self)
            error = critic.now(batch) - (value + advantage)  # type: ignore[operator]
            each = -batch.sum(error.square() * weight, discounted=False)
            state = climb(
                problem, state, finite_gradient(problem, critic, each, draws.request, "critic"), self, "critic."
            )
        info["critic_error"] = float((advantage.square() * weight).sum() ** 0.5)
        return {**state, "count": state["count"] + 1}, info


def actor_critic(
    n: int = 8, *, epochs: int = 4, clip: float = 0.2, lambda_: float = 0.95, rate: float = 0.1, max_steps: int = 300
) -> ActorCritic:
    """Generalized advantages from a learned critic, clipped ratio: PPO as it is known from control."""
    return ActorCritic(n, epochs, clip, lambda_, rate, max_steps)


@dataclass(frozen=True)
class Expected:
    """Nothing is drawn: the expectation is a sum over all trajectories, climbed by L-BFGS to the last digit."""

    max_steps: int = 1000
    tolerance: float = 1e-11

    @property
    def _optimizer(self) -> LBFGS:
        return LBFGS(tolerance=self.tolerance, newton=0, max_steps=self.max_steps)

    def init(self, problem: Distillation) -> tuple[State, dict[str, Any]]:
        state = self._optimizer.init(_Listed(problem))
        return state, {"objective": float(state["value"])}

    def step(self, problem: Distillation, state: State, key: Key) -> tuple[State, dict[str, Any]]:
        state, info = self._optimizer.step(_Listed(problem), state)
        problem.assign(state["theta"])
        return state, info


def expected(*, max_steps: int = 1000) -> Expected:
    """The exact expectation, in worlds whose trajectories can be listed."""
    return Expected(max_steps)


class _Listed:
    """The expectation of log w over all trajectories, as an objective of the policy's parameters."""

    def __init__(self, problem: Distillation):
        self.problem = problem
        self.start = problem.theta()
        self.scale = torch.ones_like(self.start)
        self.free = torch.ones(len(self.start), dtype=torch.bool)
        self.upper = torch.full_like(self.start, torch.inf)
        self.lower = -self.upper

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        problem, every = self.problem, self.problem.every
        problem.assign(theta)
        log_prob = problem.log_prob(every)
        log_p = every.batch.sum(log_prob, discounted=False)
        if not problem.world.deterministic:
            log_p = log_p + problem.world.log_dynamics(every.batch)
        lost = 1 - float(log_p.detach().exp().sum()) / len(problem.contexts)
        if abs(lost) > 1e-6:
            raise ConfigError(
                f"{lost:.1%} of what the policy does comes to no end, and so is no trajectory of this world; give a "
                "policy that ends: in a network SoftmaxPolicy(world, contexts=destinations)"
            )
        each = log_p.exp() * problem.worth(every, log_prob).log_w / len(problem.contexts)
        gradient = finite_gradient(problem, problem.policy, each, every.request, "policy")
        return float(each.detach().sum()), gradient

    def trial(self, theta: Tensor) -> tuple[float, Tensor, Exception | None]:
        # A policy that is thrown where it is all but certain has no slope left to come back on.
        if float((theta - self.start).abs().max()) > REACH:
            return -math.inf, torch.zeros_like(theta), ConfigError("further than one step may go")
        return (*self.value_and_gradient(theta), None)
