"""A prior on the level of rewards, as a term of a fit like any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from irlhf.errors import ConfigError
from irlhf.feedback import Feedback, picked
from irlhf.likelihood import Prepared
from irlhf.protocols import World
from irlhf.sources import Source


@dataclass(frozen=True, eq=False)
class centered:
    """The mean reward of what each row shows is Normal around 0: ``-(mean R)^2 / (2 sd^2)``, in nats.

    Comparisons tell differences, so that the level of a reward is free to drift, in every context by itself. A term
    beside theirs holds it: ``fit_reward(reward, [Term(pairs, listed(world)), Term(pairs, centered(world, sd=2.0))])``.
    On pairs it is the centering of Eisenstein et al. 2023, eq. 2, and of TRL: ``c mean (R_a + R_b)^2`` beside a mean
    over pairs, with ``c = 1 / (8 sd^2)``. What was chosen does not matter to it: any feedback will do. A narrow one
    shrinks differences too, where an item is in several rows.

    Args:
        world: of the feedback.
        sd: of the prior, in units of the reward.
    """

    world: World
    sd: float | int = 1.0

    def __post_init__(self):
        if not self.sd > 0:
            raise ConfigError(f"sd is {self.sd}; it must be positive")

    def prepare(self, feedback: Feedback, source: Source) -> Prepared:
        contexts = [feedback.contexts[int(x)] for x in np.repeat(feedback.context, feedback.sizes)]
        batch = self.world.collate(contexts, picked(feedback.trajectories, feedback.trajectory))
        rows, items = torch.arange(len(feedback)), torch.arange(len(contexts))
        return Prepared(feedback, batch, rows, items, torch.zeros(len(rows), dtype=torch.bool))

    def log_prob(self, prepared: Prepared, reward: Any, source: Source) -> Float[Tensor, "units"]:
        size = torch.from_numpy(prepared.feedback.sizes)
        row = torch.repeat_interleave(torch.arange(len(size)), size)
        returns = reward(prepared.batch).double()[prepared.item]
        level = returns.new_zeros(len(size)).index_add(0, row, returns) / size
        return -0.5 * (level / self.sd).square()
