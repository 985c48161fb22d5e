"""Behavioral cloning: the policy under which demonstrations are likeliest, without any environment or reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from irlhf.errors import ConfigError
from irlhf.feedback import Feedback
from irlhf.functional.adam import adam_step
from irlhf.randomness import Key
from irlhf.weights import Weights
from irlhf.worlds.gym.episodes import Episodes
from irlhf.worlds.gym.policies import GymPolicy

if TYPE_CHECKING:
    from irlhf.worlds.gym.world import GymWorld

STEPS, ROWS, HELD_OUT = 1000, 256, 0.1


def clone(
    world: GymWorld, demonstrations: Feedback | Episodes, *, policy: GymPolicy | None = None, key: Key | None = None
) -> GymPolicy:
    """A policy fitted to demonstrations alone: the maximum of ``sum log pi(a|s)`` (Pomerleau 1991).

    It is ``fit_reward(Implicit(policy, world), Term(demonstrations, exact(world)))``, climbed by 1,000 steps of Adam on
    256 actions each, and kept where a tenth of the actions, held out, were likeliest.

    Args:
        policy: fitted in place; None: a new one.

    Raises:
        ConfigError: actions were not recorded.
    """
    episodes = Episodes.of(demonstrations.trajectories if isinstance(demonstrations, Feedback) else demonstrations)
    if episodes.acts is None:
        raise ConfigError("these demonstrations have no actions, so there is nothing to imitate step by step")
    key = Key(0).at("clone") if key is None else key
    policy = GymPolicy(world) if policy is None else policy
    batch = world.collate([None] * len(episodes), episodes)
    own = batch.decided.nonzero()[:, 0]
    own = own[torch.from_numpy(key.at("held").numpy().permutation(len(own)))]
    n_held = max(1, int(HELD_OUT * len(own)))
    held, train = own[:n_held], own[n_held:] if len(own) > n_held else own
    weights, rng = Weights(policy), key.at("rows").numpy()
    theta, moments = weights.vector(), {}
    best, best_value = theta, -np.inf
    for step in range(STEPS):
        rows = train[torch.from_numpy(rng.integers(0, len(train), ROWS))]
        value = policy.log_density(batch.obs[rows], batch.action[rows]).mean()
        rate = 3e-3 * (1 - step / STEPS)
        theta, moments = adam_step(theta, -weights.gradient(value), moments, rate)
        weights.assign(theta, "the policy's parameter vector after a step")
        if step % 20 == 19:
            with torch.no_grad():
                found = float(policy.log_density(batch.obs[held], batch.action[held]).mean())
            if found > best_value:
                best, best_value = theta, found
    weights.assign(best)
    return policy
