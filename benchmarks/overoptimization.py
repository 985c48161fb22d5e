"""Does the alarm fire where a gold reward falls? Proxies from noisy pairs, a known gold reward, everything enumerated.

    OMP_NUM_THREADS=1 python benchmarks/overoptimization.py [--seeds N]

Four contexts with 4,096 candidates each, of ten Gaussian features; gold is quadratic in them, too much of anything is
bad. A proxy that sees the squares can express gold, one that sees the features alone cannot. Pairs are answered by
Bradley-Terry on gold, one answer in ten is flipped. For each proxy the frontier up to a KL of 4 nats; gold *falls* if
its mean over contexts drops by more than two standard errors of the paired difference after its peak. Beside it what
could be known: an observer who is told what gold is made of fits that to the same pairs, and says where its estimate
of gold falls along the same policies.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from irlhf import Normal, Term, comparisons, fit_reward, listed
from irlhf.overoptimization import Frontier, frontier
from irlhf.protocols import Batch, Draws

CONTEXTS, CANDIDATES, FEATURES = 4, 4096, 10


@dataclass(frozen=True, eq=False)
class Vectors(Batch):
    x: Tensor


class Candidates:
    """A trajectory is the number of a candidate; its features are a table."""

    deterministic = True

    def __init__(self, x: Tensor):
        self.x = x  # [contexts, candidates, features]

    def collate(self, contexts, trajectories) -> Vectors:
        distinct = list(dict.fromkeys(contexts))
        context = torch.tensor([distinct.index(c) for c in contexts])
        rows = self.x[torch.tensor(list(contexts)), torch.tensor(list(trajectories))]
        each = torch.arange(len(context))
        return Vectors(distinct, context, each, torch.ones(len(each), dtype=torch.float64), rows)

    def log_base(self, batch) -> Tensor:
        return torch.zeros(batch.n_items, dtype=torch.float64)

    log_base_step = log_base


class OnFeatures(nn.Module):
    """Linear in the features, and in their squares where it sees them."""

    def __init__(self, squares: bool, theta: Tensor | None = None):
        super().__init__()
        self.squares = squares
        self.theta = nn.Parameter(torch.zeros(FEATURES * (1 + squares), dtype=torch.float64))
        if theta is not None:
            self.theta.data.copy_(theta)

    def forward(self, batch: Vectors) -> Tensor:
        x = torch.cat([batch.x, batch.x.square() - 1], 1) if self.squares else batch.x
        return x @ self.theta


def simulate(seed: int, n_pairs: int, *, squares: bool, curvature: float) -> tuple[Frontier, dict[str, float]]:
    """One proxy: its frontier, what gold does along it, and where one who knows its form sees its peak."""
    rng = np.random.default_rng(seed)
    slope = rng.normal(size=FEATURES) * 1.5 / np.sqrt(FEATURES)
    bend = rng.gamma(2.0, 0.5, size=FEATURES) * curvature
    gold = OnFeatures(True, torch.from_numpy(np.concatenate([slope, -bend / 2])))
    world = Candidates(torch.from_numpy(rng.normal(size=(CONTEXTS, CANDIDATES, FEATURES))))
    context = rng.integers(CONTEXTS, size=n_pairs).tolist()
    pair = rng.integers(CANDIDATES, size=(2, n_pairs))
    with torch.no_grad():
        a, b = (gold(world.collate(context, items.tolist())).numpy() for items in pair)
    answer = (rng.random(n_pairs) < 1 / (1 + np.exp(a - b))).astype(int)
    answer = np.where(rng.random(n_pairs) < 0.1, 1 - answer, answer)
    rows = comparisons(context, pair[0].tolist(), pair[1].tolist(), answer.tolist())
    fit = fit_reward(OnFeatures(squares), Term(rows, listed(world)), prior=Normal(sd=1.0))
    every = [x for x in range(CONTEXTS) for _ in range(CANDIDATES)]
    batch = world.collate(every, list(range(CANDIDATES)) * CONTEXTS)
    draws = Draws(batch, torch.tensor(every), None, torch.ones(len(every), dtype=torch.bool))
    found = frontier(fit, draws, gold=gold, seed=seed)
    table = found.table[found.table["kl"] <= 4.0]
    best = int(table["gold"].argmax())
    fall = float(table["gold"].iloc[best] - table["gold"].iloc[-1])
    noise = float(np.hypot(table["gold_error"].iloc[best], table["gold_error"].iloc[-1]))
    told = fit_reward(OnFeatures(True), Term(rows, listed(world)), prior=Normal(sd=1.0))
    guess = frontier(fit, draws, gold=told.reward, seed=seed).table.query("kl <= 4.0")
    top = int(guess["gold"].argmax())
    informed = float(guess["kl"].iloc[top]) if top < len(guess) - 1 else np.inf
    return found, {"peak": float(table["kl"].iloc[best]), "fall": fall, "noise": noise, "informed": informed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    for squares, curvature in ((True, 1.0), (False, 1.0), (False, 2.0)):
        for n_pairs in (100, 1000, 10_000):
            fell = caught = fired = still = false = told = told_false = 0
            for seed in range(seeds):
                found, gold = simulate(seed, n_pairs, squares=squares, curvature=curvature)
                if gold["fall"] > 2 * gold["noise"]:
                    fell += 1
                    fired += found.alarm is not None
                    caught += found.alarm is not None and 0.5 <= found.alarm / gold["peak"] <= 1.5
                    told += 0.5 <= gold["informed"] / gold["peak"] <= 1.5
                else:
                    still += 1
                    false += found.alarm is not None
                    told_false += np.isfinite(gold["informed"])
            sees = "can" if squares else "cannot"
            case = f"proxy {sees} express gold, curvature {curvature:g}, {n_pairs} pairs"
            row = {"case": case, "gold_falls": fell, "alarm": fired, "alarm_near_the_peak": caught,
                   "gold_stands": still, "false_alarms": false, "informed_near_the_peak": told,
                   "informed_false_alarms": int(told_false)}  # fmt: skip
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
