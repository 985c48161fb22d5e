"""Episodes laid end to end as tensors, padded with an absorbing state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from irlhf.protocols import Batch


@dataclass(frozen=True, eq=False)
class GymBatch(Batch):
    """Steps of episodes: step -> item -> context, see :class:`irlhf.protocols.Batch`.

    An episode that terminated early goes on in a state where nothing happens. One row stands for all of that time: its
    ``absorbing`` is True, its ``span`` how many steps it stands for, its ``step_weight`` what the discount leaves of
    them, and nothing was decided in it.
    """

    obs: Float[Tensor, "steps d"]
    next_obs: Float[Tensor, "steps d"]  # where the step led, also where the episode ended
    action: Tensor  # [steps] int64, from 0, or [steps, k] float32 in the environment's units; -1 or NaN: not recorded
    terminated: Bool[Tensor, "steps"]  # this step ended the episode: nothing follows but the absorbing state
    absorbing: Bool[Tensor, "steps"]
    time: Int[Tensor, "steps"]
    span: Float[Tensor, "steps"]
    paid: Float[Tensor, "steps"]  # by the environment; NaN: not recorded

    @property
    def decided(self) -> Bool[Tensor, "steps"]:
        """Whether a step was somebody's choice: all but the absorbing ones."""
        return ~self.absorbing

    def rows(self, steps: Int[Tensor, "rows"]) -> GymBatch:
        """Single steps, each an item of its own that counts once."""
        each = torch.arange(len(steps))
        return GymBatch(
            self.contexts, self.context[self.item[steps]], each, torch.ones(len(steps), dtype=torch.float64),
            self.obs[steps], self.next_obs[steps], self.action[steps], self.terminated[steps], self.absorbing[steps],
            self.time[steps], torch.ones(len(steps)), self.paid[steps],
        )  # fmt: skip


def joined(parts: list[GymBatch]) -> GymBatch:
    """All items of all parts, which share their contexts."""
    before, item = 0, []
    for part in parts:
        item.append(part.item + before)
        before += part.n_items
    names = ("step_weight", "obs", "next_obs", "action", "terminated", "absorbing", "time", "span", "paid")
    columns = [torch.cat([getattr(part, name) for part in parts]) for name in names]
    return GymBatch(parts[0].contexts, torch.cat([part.context for part in parts]), torch.cat(item), *columns)
