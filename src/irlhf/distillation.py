"""Turning a reward into a policy, as a problem: ``max_pi E_pi[log w]``, ``log w = R/T + log mu - log pi``.

The maximum is log Z (with stochastic dynamics the soft value of the start), and the maximizer is ``P = mu exp(R/T)/Z``
itself (the soft-optimal policy). The Kullback-Leibler divergence to mu enters once, inside log w: added to a loss as
one of its estimators it would change the maximizer, or do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from irlhf.errors import ConfigError, NonFiniteError
from irlhf.functional.weights import log_z
from irlhf.protocols import Draws
from irlhf.randomness import Key
from irlhf.weights import Weights

FEW = 25  # draws of a context, below which the tail of their weights has no shape to be estimated


@dataclass(frozen=True, eq=False)
class Worth:
    """What draws are worth, one number for each: reward, ``log pi/mu`` (discounted as the reward), and log w."""

    reward: Float[Tensor, "items"]
    log_ratio: Float[Tensor, "items"]
    log_w: Float[Tensor, "items"]


class Distillation:
    """``max over policies of E_pi[log w]`` in a world, from given contexts: what learners climb.

    Args:
        policy: a module with ``log_prob(batch) -> ["steps"]``; learned in place.
        reward: fixed meanwhile.
        world: one with ``draw``.
        contexts: where trajectories start, as the world's ``draw`` takes them; all count alike.
        temperature: T, in units of the reward.
        at_once: draws in one backward pass; None: all.
        batch: contexts that one step draws from, picked by chance; None: all.
    """

    def __init__(
        self,
        policy: nn.Module,
        reward: Any,
        world: Any,
        contexts: Sequence[Any],
        *,
        temperature: float = 1.0,
        at_once: int | None = None,
        batch: int | None = None,
    ):
        self.policy, self.reward, self.world, self.contexts = policy, reward, world, list(contexts)
        self.temperature, self.at_once, self.batch = float(temperature), at_once, batch
        self.last: tuple[Draws, Worth] | None = None  # what the last step saw
        self.played: Draws | None = None  # the same, of a world that is played step by step
        self.weights = Weights(policy)
        if not len(self.weights):
            raise ConfigError(f"{type(policy).__name__} has no parameters to learn")
        if not self.contexts:
            raise ConfigError("no contexts to draw from; give at least one")
        for name, number in (("at_once", at_once), ("batch", batch)):
            if number is not None and number < 1:
                raise ConfigError(f"{name} is {number}; give at least 1")
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature}; it must be positive")

    def theta(self) -> Float[Tensor, "parameters"]:
        """The policy's parameters as one vector."""
        return self.weights.vector()

    def assign(self, theta: Float[Tensor, "parameters"]) -> None:
        """Writes a vector into the policy. Refuses one that is not finite."""
        self.weights.assign(theta, "the policy's parameter vector")

    def draw(self, n: int, key: Key) -> Draws:
        """``n`` trajectories of the policy from each context, or from each of a batch of them."""
        if self.batch is None or self.batch >= len(self.contexts):
            return self.world.draw(self.policy, self.contexts, n, key=key)
        some = np.sort(key.at("contexts").numpy().choice(len(self.contexts), self.batch, replace=False))
        draws = self.world.draw(self.policy, [self.contexts[k] for k in some], n, key=key)
        return replace(draws, request=torch.from_numpy(some)[draws.request])

    def worth(self, draws: Draws, log_prob: Float[Tensor, "steps"]) -> Worth:
        """What draws are worth. No gradient flows into it but through ``log_prob``, the policy's.

        Raises:
            NonFiniteError: a reward or a log-probability is not finite; names contexts.
        """
        batch = draws.batch
        with torch.no_grad():
            reward = self.reward(batch).double()
        log_ratio = batch.sum(log_prob.double() - self.world.log_base_step(batch))
        self.require_finite("reward", reward, draws.request)
        self.require_finite("log-probability", log_ratio.detach(), draws.request)
        return Worth(reward, log_ratio, reward / self.temperature - log_ratio)

    def log_prob(self, draws: Draws) -> Float[Tensor, "steps"]:
        """The policy's, of every step; differentiable.

        Raises:
            NonFiniteError: names contexts.
        """
        log_prob = self.policy.log_prob(draws.batch)  # type: ignore[operator]
        self.require_finite("log-probability", log_prob.detach(), draws.request[draws.batch.item])
        return log_prob

    def parts(self, draws: Draws) -> list[tuple[Draws, Int[Tensor, "items"]]]:
        """Draws in parts for one backward pass each, and which they are; one part unless the problem says otherwise."""
        items = torch.arange(draws.batch.n_items)
        if self.at_once is None:
            return [(draws, items)]
        return [(draws.take(some), some) for some in items.split(self.at_once)]

    def require_finite(self, what: str, values: Float[Tensor, "n"], request: Int[Tensor, "n"]) -> None:
        """Raises NonFiniteError that names the contexts which the bad ones among some values were drawn from."""
        bad = ~torch.isfinite(values)
        if bad.any():
            raise NonFiniteError(self.not_finite(f"the {what} of draws", request[bad].unique().tolist()))

    def not_finite(self, what: str, contexts: Sequence[int]) -> str:
        """A sentence that names up to five of the contexts with these numbers."""
        named = ", ".join(str(self.contexts[k]) for k in contexts[:5])
        more = f" and {len(contexts) - 5} more" if len(contexts) > 5 else ""
        return f"{what} is not finite from {named}{more}; no parameter was changed"

    def divergence(self, worth: Worth, draws: Draws) -> Float[Tensor, "items"]:
        """``log pi/mu`` of draws with mu normalized in every state, so that its mean is a divergence, not negative."""
        if getattr(self.world, "base_is_normalized", True):
            return worth.log_ratio.detach()
        batch = draws.batch
        with torch.no_grad():
            return batch.sum(draws.log_q - self.world.base_policy().log_prob(batch))

    @property
    def comparable(self) -> bool:
        """Whether log w is a constant at the maximum: the world draws nothing itself, and nothing is discounted."""
        return bool(self.world.deterministic and getattr(self.world, "discount", 1.0) == 1)

    @cached_property
    def every(self) -> Draws:
        """All trajectories from each context, where they can be listed."""
        if not hasattr(self.world, "every"):
            raise ConfigError(f"{type(self.world).__name__} cannot list its trajectories; use a learner that draws")
        return self.world.every(self.contexts)

    @cached_property
    def critic(self) -> nn.Module:
        """State values for a learner that wants them, made by the world."""
        if not hasattr(self.world, "critic"):
            raise ConfigError(f"{type(self.world).__name__} has no critic; use a learner of whole trajectories")
        return self.world.critic(self.policy)

    def info(self, worth: Worth, draws: Draws, n: int) -> dict[str, float]:
        """What a step tells of itself, averaged over contexts; in nats, the reward in its own units.

        ``k_hat`` is the median over contexts. ``gap`` (log-mean-exp minus mean of log w) estimates ``KL(pi || P)`` from
        below. It, ``log_z`` and the effective sample size are NaN where nature's luck is in log w. ``entropy`` is the
        mean of ``-log q`` of whole trajectories, ``spread`` the standard deviation of log w within a context. What the
        world has to say of its draws comes last (``world.describe(draws)``).
        """
        assert draws.log_q is not None
        self.last = draws, worth
        shape = draws.batch.n_items // n, n
        log_w, ratio = worth.log_w.detach().reshape(shape), self.divergence(worth, draws).reshape(shape)
        found = log_z(log_w)
        mean = float(log_w.mean())
        told = {
            "objective": mean,
            "reward": float(worth.reward.mean()),
            "kl": float(ratio.mean()),
            "kl_error": float(ratio.std() / ratio.numel() ** 0.5) if ratio.numel() > 1 else float("nan"),
            "log_z": float(found.log_z.mean()),
            "log_z_error": float(found.standard_error.square().mean().sqrt() / shape[0] ** 0.5),
            "effective_share": float(found.effective_sample_size.mean() / n),
            "k_hat": float(found.k_hat.median()) if n >= FEW else float("nan"),
            "gap": float(found.log_z.mean()) - mean,
            "entropy": float(-draws.log_q.sum() / draws.batch.n_items),
            "spread": float(log_w.std(1).mean()) if n > 1 else float("nan"),
            "alike": float((log_w.amax(1) - log_w.amin(1) < 1e-12).double().mean()) if n > 1 else float("nan"),
            "cut": float(1 - draws.whole.double().mean()),
        }
        if getattr(self.world, "discount", 1.0) < 1:  # what was cut there hardly counts
            told["cut"] = float("nan")
        if not self.comparable:
            told |= dict.fromkeys(("log_z", "log_z_error", "effective_share", "k_hat", "gap"), float("nan"))
        describe = getattr(self.world, "describe", None)
        return told | (describe(draws) if describe else {})
