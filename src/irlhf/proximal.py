"""Learning to act where a world is played step by step: a critic, generalized advantages and a clipped ratio.

It is proximal policy optimization as control knows it (Schulman et al. 2017), of the objective that every learner here
climbs: ``E_pi[sum r/T + log mu - log pi]``, so that the entropy coefficient is T, fixed. What it draws are stretches of
time and not whole trajectories, from copies of the world that go on from where they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from irlhf.distillation import Distillation
from irlhf.errors import NonFiniteError
from irlhf.functional import policy_gradient
from irlhf.functional.adam import adam_step
from irlhf.loop import State, under, within
from irlhf.randomness import Key
from irlhf.weights import Weights

LONGEST_STEP = 0.5  # norm of a gradient, beyond which it is cut
SLOW = 0.9  # share of the old scale of values in the new one
FASTER = 1.3  # by which the learning rate changes after a round in which the policy moved too little or too much
RANGE = 10.0  # times the first learning rate, or a part of it: further it does not go
LEAST = 0.1  # of the reach, towards the end


@dataclass(frozen=True)
class Control:
    """See :func:`control`."""

    copies: int
    steps: int
    epochs: int
    minibatch: int
    clip: float
    reach: float
    discount: float
    lambda_: float
    rate: float
    max_steps: int

    def init(self, problem: Distillation) -> tuple[State, dict[str, Any]]:
        critic = Weights(problem.critic).vector()
        zero = torch.zeros((), dtype=torch.float64)
        rate = torch.tensor(self.rate, dtype=torch.float64)
        return {"theta": problem.theta(), "critic.theta": critic, "count": zero, "scale": zero, "rate": rate}, {}

    def step(self, problem: Distillation, state: State, key: Key) -> tuple[State, dict[str, Any]]:
        problem.assign(state["theta"])
        Weights(problem.critic).assign(state["critic.theta"], "the critic's parameter vector")
        draws, played, told = problem.world.stretch(
            problem.policy, self.steps, self.copies, within(state, "played."), key.at("play")
        )
        batch = draws.batch
        own = (~batch.absorbing).nonzero()[:, 0]
        gain, known = self._gain(problem, draws, own)
        seen = _Seen(batch.obs[own], batch.next_obs[own], batch.action[own], draws.log_q[own].float())
        scale = float(gain.square().mean().sqrt()) + 1e-8
        if float(state["scale"]) > 0:
            scale = SLOW * float(state["scale"]) + (1 - SLOW) * scale
        unit = scale / (1 - self.discount)
        with torch.no_grad():
            value = problem.critic(seen.obs) * unit
            after = problem.critic(seen.next_obs) * unit
            last = torch.ones(len(own), dtype=torch.bool)
            last[:-1] = batch.item[own][1:] != batch.item[own][:-1]
            advantage = policy_gradient.generalized_advantage(
                gain, value, after, batch.terminated[own], last, self.discount, self.lambda_
            )
        problem.require_finite("advantage", advantage, draws.request[batch.item[own]])
        target = (advantage + value) / unit
        spread = float(advantage.std()) if len(own) > 1 else 0.0
        advantage = (advantage - advantage.mean()) / (spread + 1e-8)
        state = {**state, **under("played.", played), "scale": torch.tensor(scale, dtype=torch.float64)}
        state, moved, epochs = self._climb(problem, state, seen, advantage, target, key.at("order").numpy())
        told = {
            **told,
            **known,
            "moved": moved,
            "rate": float(state["rate"]),
            "epochs": epochs,
            "critic_error": float((target - value / unit).std()),
        }
        problem.last = None
        problem.played = draws
        return {**state, "count": state["count"] + 1}, told

    def _gain(self, problem: Distillation, draws: Any, own: Tensor) -> tuple[Float[Tensor, "own"], dict[str, float]]:
        """[decided steps] What each adds: reward minus T ``log pi/mu``; the last one also what lies beyond the end."""
        batch = draws.batch
        with torch.no_grad():
            worth = problem.reward.step(batch).float()
        problem.require_finite("reward", worth, draws.request[batch.item])
        ratio = (draws.log_q - problem.world.log_base_step(batch)).float()
        gain = worth - problem.temperature * ratio
        beyond = batch.absorbing.nonzero()[:, 0]  # follows the last step of its item
        g = self.discount
        left = torch.where(batch.span == math.inf, 0.0, torch.tensor(g) ** batch.span)
        gain = gain.index_add(0, beyond - 1, (worth * g * (1 - left) / (1 - g))[beyond])[own]
        span = batch.span.clamp(max=1e6)
        told = {
            "objective": float(gain.mean()),
            "reward": float(worth[own].mean()),
            "kl": float(ratio[own].mean()),
            "kl_error": float(ratio[own].std() / len(own) ** 0.5) if len(own) > 1 else float("nan"),
            "absorbed": float(span[beyond].sum() / span.sum()),
        }
        return gain, told

    def _climb(
        self, problem: Distillation, state: State, seen: _Seen, advantage: Tensor, target: Tensor, rng: Any
    ) -> tuple[State, float, int]:
        """Gradient steps on what was seen, until the policy has moved as far as the draws can be trusted."""
        policy, critic = Weights(problem.policy), Weights(problem.critic)
        left = min(1.0, max(2 * (1 - float(state["count"]) / self.max_steps), 0.0))
        rate, reach = float(state["rate"]) * left, self.reach * max(left, LEAST)
        theta, value = state["theta"], state["critic.theta"]
        moments, own_moments = within(state, "adam."), within(state, "critic.adam.")
        n = len(seen.log_q)
        parts = max(1, n // self.minibatch)
        moved, epoch = 0.0, 0
        while epoch < self.epochs and moved <= 2 * reach:
            epoch += 1
            apart = []
            for rows in np.array_split(rng.permutation(n), parts):
                rows = torch.from_numpy(rows)
                log_prob = problem.policy.log_density(seen.obs[rows], seen.action[rows])  # type: ignore[operator]
                ratio = log_prob - seen.log_q[rows]
                surrogate = policy_gradient.clipped_ratio(log_prob, seen.log_q[rows], advantage[rows], self.clip)
                error = (problem.critic(seen.obs[rows]) - target[rows]).square()
                loss = 0.5 * error.mean() - surrogate.mean()
                found = torch.autograd.grad(loss, [*policy.tensors, *critic.tensors], materialize_grads=True)
                gradient = torch.cat([g.reshape(-1) for g in found])
                if not bool(torch.isfinite(gradient).all()):
                    raise NonFiniteError(problem.not_finite("the gradient of policy and critic", [0]))
                theta, moments = adam_step(theta, _shortened(gradient[: len(theta)]), moments, rate)
                value, own_moments = adam_step(value, _shortened(gradient[len(theta) :]), own_moments, rate)
                policy.assign(theta, "the policy's parameter vector after a step")
                critic.assign(value, "the critic's parameter vector after a step")
                apart.append(float((ratio.detach().exp() - 1 - ratio.detach()).mean()))
            moved = float(np.mean(apart))
        pace = 1 / FASTER if moved > 2 * reach else FASTER if moved < reach / 2 else 1.0
        slowest, fastest = self.rate / RANGE, self.rate * RANGE
        kept = torch.tensor(min(max(float(state["rate"]) * pace, slowest), fastest), dtype=torch.float64)
        state = {**state, "theta": theta, "critic.theta": value, "rate": kept}
        return {**state, **under("adam.", moments), **under("critic.adam.", own_moments)}, moved, epoch


@dataclass(frozen=True)
class _Seen:
    obs: Tensor
    next_obs: Tensor
    action: Tensor
    log_q: Tensor


def _shortened(gradient: Tensor) -> Tensor:
    return gradient * min(1.0, LONGEST_STEP / (float(gradient.norm()) + 1e-12))


# Nothing is tuned to an environment: one set for choices among actions, one for numbers.
DISCRETE = {"epochs": 6, "rate": 2e-3, "max_steps": 80}
CONTINUOUS = {"epochs": 10, "rate": 1e-3, "max_steps": 150}


def control(
    *,
    continuous: bool = False,
    copies: int = 32,
    steps: int = 64,
    epochs: int | None = None,
    minibatch: int = 512,
    clip: float = 0.2,
    reach: float = 0.02,
    discount: float = 0.99,
    lambda_: float = 0.95,
    rate: float | None = None,
    max_steps: int | None = None,
) -> Control:
    """Proximal policy optimization with a critic, for worlds that are played step by step (Gymnasium environments).

    Args:
        continuous: whether actions are numbers: then the policy takes longer to find, and more of each step is made.
        copies, steps: of the world that are played side by side, and how long, before the policy learns from it.
        epochs: how often a step is learned from; less often if the policy moves by more than twice ``reach``. None,
            here and below: 6, or 10 for numbers.
        minibatch: steps in one gradient. A few large ones: overhead is most of the time of small ones.
        clip: of the ratio (Schulman et al. 2017, eq. 7).
        reach: how far the policy should move in a round, as a divergence from the one that played, in nats a step. The
            learning rate follows: faster where less comes of it, slower where more does. Falls as that does.
        discount, lambda_: of generalized advantages (Schulman et al. 2016, eq. 16): how far ahead steps are credited.
        rate: learning rate of Adam at first; falls to zero over the second half of all steps.
        max_steps: how often to play: 80, or 150 for numbers.
    """
    given = {"epochs": epochs, "rate": rate, "max_steps": max_steps}
    chosen = (CONTINUOUS if continuous else DISCRETE) | {name: x for name, x in given.items() if x is not None}
    return Control(
        copies=copies,
        steps=steps,
        minibatch=minibatch,
        clip=clip,
        reach=reach,
        discount=discount,
        lambda_=lambda_,
        **chosen,
    )
