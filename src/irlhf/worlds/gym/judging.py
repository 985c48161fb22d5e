"""Judging a policy without the true reward: by held-out demonstrations, and by where it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from irlhf.feedback import Feedback
from irlhf.functional.weights import log_z
from irlhf.randomness import Key
from irlhf.worlds.gym.episodes import Episodes

if TYPE_CHECKING:
    from irlhf.worlds.gym.batch import GymBatch
    from irlhf.worlds.gym.world import GymWorld

AT_MOST = 2000  # steps of each side that are compared with each other


def returns(
    world: GymWorld, policy: Any, n: int = 20, *, key: Key | None = None, greedy: bool = True
) -> Float[np.ndarray, " n"]:
    """What the environment pays a policy for each of ``n`` episodes, undiscounted.

    ``greedy``: the likeliest action each time, as policies are compared by custom.
    """
    draws = world.draw(policy, [None], n, key=Key(0).at("returns") if key is None else key, greedy=greedy)
    return draws.batch.sum(draws.batch.paid.double(), discounted=False).numpy()


def log_likelihood(world: GymWorld, policy: Any, demonstrations: Feedback | Episodes) -> Float[np.ndarray, " episodes"]:
    """``sum_t log pi(a_t|s_t)`` of each demonstration, in nats: how well a policy predicts people."""
    batch = _laid_out(world, demonstrations)
    with torch.no_grad():
        return batch.sum(policy.log_prob(batch).double(), discounted=False).numpy()


def energy_distance(
    world: GymWorld, one: GymBatch, other: GymBatch, *, key: Key | None = None, actions: bool = True
) -> tuple[float, float]:
    """How far apart what is seen and done in two batches is, and its value for two halves of the first.

    ``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` (Szekely and Rizzo 2013, eq. 1.1), at least 0 and 0 only for equal
    distributions; X, Y are standardized observations and actions of single steps, absorbing time left out. The second
    number says what chance alone makes of it.
    """
    rng = (Key(0).at("distance") if key is None else key).numpy()
    x, y = (_points(world, batch, rng, actions) for batch in (one, other))
    half = len(x) // 2
    return _energy(x, y), _energy(x[:half], x[half:])


def _points(world: GymWorld, batch: GymBatch, rng: np.random.Generator, actions: bool) -> Tensor:
    own = batch.decided.nonzero()[:, 0]
    own = own[torch.from_numpy(rng.permutation(len(own))[:AT_MOST])]
    mean, sd = world.moments
    seen = (batch.obs[own] - mean) / sd
    return torch.cat([seen, world.spaces.to_unit(batch.action[own])], 1) if actions else seen


def _energy(x: Tensor, y: Tensor) -> float:
    def between(a: Tensor) -> float:  # of two different ones
        return float(torch.cdist(a, a).sum() / (len(a) * (len(a) - 1)))

    return float(2 * torch.cdist(x, y).mean()) - between(x) - between(y)


def gap_from_below(
    world: GymWorld, policy: Any, reward: Any, *, temperature: float, n: int = 16, key: Key | None = None
) -> tuple[float, float]:
    """A lower bound (in expectation) of how far a policy is from the reward's own, in nats, and its standard error.

    The bound of log Z by K episodes at once minus that by one: ``E log mean_k w_k - E log w`` (Burda, Grosse and
    Salakhutdinov 2016, eq. 8). Nature's luck is in w, so it is not 0 for a perfect policy of a stochastic environment.
    """
    draws = world.draw(policy, [None], n, key=Key(0).at("gap") if key is None else key)
    batch = draws.batch
    with torch.no_grad():
        log_w = reward(batch).double() / temperature
    assert draws.log_q is not None
    log_w = log_w - batch.sum(draws.log_q - world.log_base_step(batch))
    log_w = torch.where(draws.whole, log_w, -torch.inf)[draws.whole]
    error = float(log_w.std() / len(log_w) ** 0.5)
    return float(log_z(log_w).log_z - log_w.mean()), error


def judged(
    world: GymWorld, policies: dict[str, Any], held_out: Feedback | Episodes | None = None, *, n: int = 20
) -> pd.DataFrame:
    """Policies beside each other: one row for each.

    ``log_likelihood`` of held-out demonstrations, per step; ``distance`` from them (:func:`energy_distance`, of draws)
    and ``chance``, the distance of two halves of them; ``return`` as the environment pays for the likeliest actions,
    and its standard error.
    """
    rows = {}
    batch = None if held_out is None else _laid_out(world, held_out)
    for name, policy in policies.items():
        row: dict[str, float] = {}
        if batch is not None and bool((batch.action[batch.decided] == batch.action[batch.decided]).all()):
            with torch.no_grad():
                row["log_likelihood"] = float(policy.log_prob(batch).double().sum() / batch.decided.sum())
            drawn = world.draw(policy, [None], n, key=Key(0).at("judged")).batch
            row["distance"], row["chance"] = energy_distance(world, batch, drawn)
        paid = returns(world, policy, n)
        rows[name] = {**row, "return": float(paid.mean()), "return_error": float(paid.std(ddof=1) / n**0.5)}
    return pd.DataFrame.from_dict(rows, orient="index")


def _laid_out(world: GymWorld, given: Feedback | Episodes) -> GymBatch:
    episodes = given.trajectories if isinstance(given, Feedback) else given
    return world.collate([None] * len(episodes), Episodes.of(episodes))
