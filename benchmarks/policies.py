"""How fast the tabular world is sampled and learned in, and what a joint fit costs beside the exact one.

Rows are printed as one JSON object a line. Run by ``make bench`` after ``tabular.py``; about two minutes. The peer of
sampling is a loop over ``gymnasium``'s own toy-text environment, which is how most tabular code draws.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import torch

import irlhf
from irlhf.worlds import tabular

Row = dict[str, Any]


def median(call: Callable[[], Any], repeats: int = 5) -> float:
    call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def grid(n: int, **ends: Any) -> tuple[tabular.TabularWorld, tabular.Features]:
    """n x n, four moves, 10 % slip; eight features of pairs."""
    here = np.arange(n * n)
    row, column = here // n, here % n
    lands = np.stack(
        [np.clip(row + i, 0, n - 1) * n + np.clip(column + j, 0, n - 1) for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))],
        1,
    )
    p = np.zeros((n * n, 4, n * n))
    for a in range(4):
        for b in range(4):
            np.add.at(p, (here, a, lands[:, b]), 0.9 * (a == b) + 0.025)
    world = tabular.from_arrays(p, **ends)
    x = np.random.default_rng(0).standard_normal((world.transitions.n_pairs, 8)) / 4
    return world, tabular.features(world, x)


def sampling() -> Iterator[Row]:
    """Steps a second of drawing from a policy, as a batch that a reward can read."""
    world, columns = grid(16, horizon=64)
    policy = tabular.SoftPolicy(world.solve(tabular.Linear(columns, [1.0] * 8)))
    n = 4000
    ours = median(lambda: world.draw(policy, [0], n, key=irlhf.Key(0)))
    steps = n * 64
    env = gymnasium.make("FrozenLake-v1", map_name="8x8", is_slippery=True)
    p = np.full(4, 0.25)
    rng = np.random.default_rng(0)

    def loop() -> None:
        done, _ = 0, env.reset(seed=0)
        while done < 5000:
            *_, terminated, truncated, _ = env.step(int(rng.choice(4, p=p)))
            done += 1
            if terminated or truncated:
                env.reset()

    peer = median(loop, 3) * steps / 5000
    yield {
        "case": "sampling, 16 x 16 grid, 4,000 walks of 64 steps",
        "ours_s": ours,
        "peer": "gymnasium loop",
        "peer_s": peer,
        "ratio": peer / ours,
        "steps_per_s": steps / ours,
    }


def learning() -> Iterator[Row]:
    """Steps a second of learning: drawing, log-probabilities, advantages, gradient, Adam."""
    world, columns = grid(8, horizon=32)
    reward = tabular.Linear(columns, [1.0] * 8)
    for name, learner in {"rloo": irlhf.rloo, "ppo": irlhf.ppo, "actor_critic": irlhf.actor_critic}.items():

        def run(learner: Any = learner) -> None:
            policy = tabular.SoftmaxPolicy(world)
            irlhf.fit_policy(policy, reward, world, [0, 9, 27, 63], learner=learner(64, max_steps=20))

        ours = median(run, 3)
        yield {
            "case": f"learning by {name}, 20 steps of 256 walks",
            "ours_s": ours,
            "steps_per_s": 20 * 256 * 32 / ours,
        }


def joint() -> Iterator[Row]:
    """A joint fit against the exact one on the same 1,000 sequences of 4 tokens out of 4."""
    p = np.zeros((5, 4, 5))
    for a in range(4):
        p[:, a, a + 1] = 1.0
    world = tabular.from_arrays(p, horizon=4)
    columns = tabular.features(world, np.random.default_rng(0).standard_normal((world.transitions.n_pairs, 3)))
    truth = world.solve(tabular.Linear(columns, [1.0, -0.7, 0.5])).log_policy.detach()
    rows = irlhf.demonstrations(None, tabular.sample_paths(world, truth, [0] * 1000, max_steps=4, seed=0))

    def exactly() -> irlhf.Fit:
        return irlhf.fit_reward(tabular.Linear(columns), irlhf.Term(rows, irlhf.exact(world)))

    def among_rivals() -> irlhf.Fit:
        return irlhf.fit_reward(tabular.Linear(columns), irlhf.Term(rows, irlhf.sampled(world, n=8)))

    def together() -> irlhf.Fit:
        term = irlhf.Term(rows, irlhf.sampled(world))
        return irlhf.fit_jointly(tabular.Linear(columns), tabular.SoftmaxPolicy(world), term, world)[0]

    best = exactly()
    error = best.standard_errors()
    of_exact = median(exactly, 5)
    for name, fit, repeats in (("sampled, 8 rivals from the base", among_rivals, 3), ("joint, 60 rounds", together, 1)):
        found = fit()
        taken = median(fit, repeats) if repeats > 1 else _once(fit)
        yield {
            "case": f"{name}, 1,000 sequences",
            "ours_s": taken,
            "peer": "our exact fit",
            "peer_s": of_exact,
            "ratio": of_exact / taken,
            "off_by_standard_errors": float(((found.params - best.params) / error).abs().max()),
            "standard_error_ratio": float((found.standard_errors() / error).max()),
        }


def _once(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for case in (sampling, learning, joint):
        for row in case():
            row["load"] = os.getloadavg()[0]
            print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
