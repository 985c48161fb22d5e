"""How far apart two rewards of an environment are, by sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from irlhf.functional.distance import pearson_distance
from irlhf.randomness import Key
from irlhf.worlds.gym.batch import GymBatch


@torch.no_grad()
def epic(
    a: Any, b: Any, batch: GymBatch, *, discount: float | int, n: int = 256, others: int = 256, key: Key | None = None
) -> float:
    """EPIC (Gleave et al. 2021, section 5 and appendix A.1.1) from steps of a batch: 0 for the same, 1 for opposites.

    ``n`` steps are looked at; each reward is brought into its canonical form with ``others`` draws of (action, next
    state) from the batch, the same for both. Flags are left out: nothing ends in what is compared.

    Args:
        a, b: rewards with ``step``.
        batch: steps that people or policies took; absorbing time is not looked at.
        discount: of the shaping that is to be ignored.
    """
    own = batch.decided.nonzero()[:, 0]
    rng = (Key(0).at("epic") if key is None else key).numpy()
    seen, drawn = (torch.from_numpy(own.numpy()[rng.integers(len(own), size=k)]) for k in (n, others))
    steps, other = (replace(rows, terminated=torch.zeros_like(rows.terminated)) for rows in
                    (batch.rows(seen), batch.rows(drawn)))  # fmt: skip
    values = []
    for reward in (a, b):
        now, after = (_mean_from(reward, states, other) for states in (steps.obs, steps.next_obs))
        values.append(reward.step(steps).double() + discount * after - now)
    return float(pearson_distance(values[0], values[1]))


def _mean_from(reward: Any, states: Tensor, other: GymBatch) -> Tensor:
    """[states] ``E[R(s, A, S')]`` over the (action, next state) of other steps."""
    m = len(other.obs)
    means = []
    for some in states.split(max(1, 65_536 // m)):
        which = torch.arange(m).repeat(len(some))
        grid = replace(other.rows(which), obs=some.repeat_interleave(m, 0))
        means.append(reward.step(grid).double().reshape(len(some), m).mean(1))
    return torch.cat(means)
