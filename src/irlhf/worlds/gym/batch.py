"""Episodes laid end to end as tensors, padded with an absorbing state."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from irlhf.protocols import Batch


@dataclass(frozen=True, eq=False)
class GymBatch(Batch):
    """Steps of episodes: step -> item -> context, see :class:`irlhf.protocols.Batch`.

    An episode that terminated early stays where it ended, and nothing happens. One row stands for all of that time: its
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

    def columns(self) -> dict[str, Tensor]:
        """The steps that were decided, without the episodes that they are of: what a memory keeps."""
        own = self.decided.nonzero()[:, 0]
        return {name: getattr(self, name)[own] for name in ("obs", "next_obs", "action", "terminated")}

    @classmethod
    def of_columns(cls, columns: dict[str, Tensor]) -> GymBatch:
        """The way back: each step is an item of its own that counts once; when it was, and what was paid, is lost."""
        n = len(columns["terminated"])
        zero = torch.zeros(n, dtype=torch.int64)
        return cls(
            [None], zero, torch.arange(n), torch.ones(n, dtype=torch.float64), absorbing=torch.zeros(n).bool(),
            time=zero, span=torch.ones(n), paid=torch.full((n,), torch.nan), **columns,
        )  # fmt: skip

    def ends(self) -> dict[str, Tensor]:
        """Where episodes ended, and for how many steps they are over."""
        return {"obs": self.obs[self.absorbing], "span": self.span[self.absorbing]}

    @classmethod
    def of_ends(cls, like: GymBatch, obs: Float[Tensor, "rows d"]) -> GymBatch:
        """One step of the time after each of some ends, in the world of another batch."""
        rows = like.rows(torch.zeros(len(obs), dtype=torch.int64))
        yes = torch.ones(len(obs), dtype=torch.bool)
        return replace(rows, obs=obs, next_obs=obs, absorbing=yes, terminated=~yes)
