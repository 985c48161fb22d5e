"""A fit as a user writes it, for torchrun: ``torchrun --nproc-per-node 2 -m tests.torchrun_script RUN [STEP]``.

With a STEP, the second of the processes kills itself in it, once.
"""

import os
import signal
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from irlhf import Minibatches, Term, comparisons, fit_reward, listed
from irlhf.protocols import Batch
from irlhf.storage.rundir import open_run


@dataclass(frozen=True, eq=False)
class Numbers(Batch):
    """Trajectories of one step: a number."""

    number: Tensor


class Line:
    """A world of numbers."""

    deterministic = True

    def collate(self, contexts, trajectories):
        n = len(contexts)
        steps = torch.arange(n)
        return Numbers(["x"], torch.zeros(n, dtype=torch.int64), steps, torch.ones(n), torch.tensor(trajectories))

    def log_base(self, batch):
        return torch.zeros(batch.n_items)

    def log_base_step(self, batch):
        return torch.zeros(batch.n_items)


class Curve(nn.Module):
    """A small network of a number."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(16, generator=generator))
        self.bias = nn.Parameter(torch.randn(16, generator=generator))
        self.last = nn.Parameter(torch.randn(16, generator=generator) / 4)

    def forward(self, batch):
        return (batch.number.float()[:, None] * self.first + self.bias).tanh() @ self.last


def fit(folder, step=None):
    first, second = np.random.default_rng(0).normal(size=(2, 61))
    nearer = (np.abs(first) < np.abs(second)).astype(int)
    pairs = comparisons(["x"] * 61, first.tolist(), second.tolist(), nearer.tolist())
    reward, how = Curve(), Minibatches(rows=12, at_once=2, max_steps=6)
    if step is not None and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
        numbers = iter(range(100))
        forward = reward.forward

        def until(batch):
            if next(numbers) == 3 * step:  # 6 parts of 12 rows in a step, 3 of them here
                os.kill(os.getpid(), signal.SIGKILL)
            return forward(batch)

        reward.forward = until
    with open_run(folder, config={}, resume=True) as run:
        fit_reward(reward, Term(pairs, listed(Line())), optimizer=how, run=run, progress=tell)


def tell(info):
    print("step", info["step"], flush=True)


if __name__ == "__main__":
    fit(sys.argv[1], *map(int, sys.argv[2:]))
