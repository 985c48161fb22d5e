"""Small files for the tests of the command line: a replacement problem, comparisons of its histories, and routes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from irlhf.cli import main
from irlhf.gather import demonstrations
from irlhf.worlds.tabular import Linear, features, from_table, sample_paths
from irlhf.worlds.tabular.panel import write_panel

STATES, BUSES, STEPS = 12, 20, 25


def write_replacement(folder: Path) -> None:
    """``panel.csv, features.csv, transitions.csv, pairs.jsonl``: when to replace an engine, after Rust (1987)."""
    rows = [
        (s, a, min(base + d, STATES - 1), p)
        for s in range(STATES)
        for a, base in ((0, s), (1, 0))
        for d, p in ((0, 0.3), (1, 0.5), (2, 0.2))
    ]
    table = pd.DataFrame(rows, columns=["state", "action", "next_state", "probability"])
    table = table.groupby(["state", "action", "next_state"], as_index=False).sum()
    columns = [(s, a, -0.1 * s * (a == 0), -1.0 * (a == 1)) for s in range(STATES) for a in (0, 1)]
    of_pairs = pd.DataFrame(columns, columns=["state", "action", "mileage", "replace"])
    world = from_table(table, discount=0.9)
    reward = Linear(features(world, of_pairs), [3.0, 3.0])
    policy = world.solve(reward, [None]).log_policy.detach()
    paths = sample_paths(world, policy, [0] * BUSES, max_steps=STEPS, seed=1)
    people = [f"mechanic {k // 2}" for k in range(BUSES)]
    names = [f"bus {k}" for k in range(BUSES)]
    write_panel(demonstrations([None] * BUSES, paths, ids=names, persons=people), folder / "panel.csv")
    of_pairs.to_csv(folder / "features.csv", index=False)
    table.to_csv(folder / "transitions.csv", index=False)
    rng = np.random.default_rng(2)
    with torch.no_grad():
        worth = reward(world.collate([None] * BUSES, paths)).numpy()
    trajectories = [{"states": [int(s) for s in p.states], "actions": [int(a) for a in p.actions]} for p in paths]
    with open(folder / "pairs.jsonl", "w") as file:
        for k in range(150):
            i, j = (int(x) for x in rng.choice(BUSES, 2, replace=False))
            chosen = int(rng.random() > 1 / (1 + np.exp(-(worth[i] - worth[j]) / 2)))
            shown = [trajectories[i], trajectories[j]]
            print(
                json.dumps({"id": f"pair {k}", "shown": shown, "chosen": chosen, "person": f"judge {k % 5}"}), file=file
            )
    with open(folder / "opinions.jsonl", "w") as file:
        for k in range(30):
            ties = {"shown": [trajectories[k % BUSES], trajectories[(k + 7) % BUSES]]}
            ties |= {"chosen": "tie" if k % 3 == 0 else k % 2, "source": "judges"}
            rating = {
                "trajectory": trajectories[k % BUSES],
                "level": int(worth[k % BUSES] > np.median(worth)),
                "levels": 2,
            }
            rating["level"] = rating["level"] if k % 5 else 1 - rating["level"]
            order = [trajectories[(k + m) % BUSES] for m in (0, 3, 8)]
            ranking = {
                "shown": order,
                "ranks": (np.argsort(np.argsort([-worth[(k + m) % BUSES] for m in (0, 3, 8)])) + 1).tolist(),
            }
            if k % 4 == 0:
                ranking["ranks"].reverse()
            for row in (ties, rating, ranking):
                print(json.dumps(row), file=file)


def write_routes(folder: Path) -> None:
    """``trips.csv, links.csv``: routes through a grid of streets, each to its own destination."""
    n, rng = 4, np.random.default_rng(0)
    links = [
        (f"{i}-{j} st", f"{i + di}-{j + dj} st", 1 + rng.random(), rng.random())
        for i in range(n)
        for j in range(n)
        for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0))
        if 0 <= i + di < n and 0 <= j + dj < n
    ]
    table = pd.DataFrame(links, columns=["state", "action", "length", "noise"])
    world = from_table(table.assign(next_state=table.action)[["state", "action", "next_state"]], destinations=True)
    goals = [g for g in world.states[rng.integers(n * n, size=40)] if g != "0-0 st"]
    policy = world.solve(Linear(features(world, table), [-2.0, -0.5]), goals).log_policy.detach()
    trips = sample_paths(world, policy, ["0-0 st"] * len(goals), destinations=goals, max_steps=200, seed=3)
    write_panel(demonstrations(goals, trips), folder / "trips.csv")
    table.to_csv(folder / "links.csv", index=False)


def irlhf(*arguments: object) -> int:
    """The exit code of a command line, run in this process."""
    return main([str(argument) for argument in arguments])
