"""How long an exact gradient and a whole fit take in the tabular world, beside the peers and the machine's limits.

    python benchmarks/tabular.py [--full] [--only CASE ...] [--no-peers]

One JSON object a line for every row, then a table. See README.md beside this file for what is measured.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import problem
import scipy.sparse as sp
import torch
from rich.console import Console
from rich.table import Table
from scipy.spatial import Delaunay

import irlhf
from irlhf.functional.stationary import soft_values
from irlhf.objective import Objective
from irlhf.worlds.tabular import (
    Linear,
    Paths,
    TabularWorld,
    features,
    from_arrays,
    from_table,
    sample_paths,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
GAP = 1e-3  # |score| / steps: how far features demonstrated and expected are apart, per step, in the 2-norm
NEAR = 1e-6
TRAJECTORIES = 1000
PEERS = {
    "imitation": (
        "imitation==1.0.1",
        "torch==2.13.0",
        "numpy<2",
        "gymnasium==0.29.1",
        "stable-baselines3==2.2.1",
        "setuptools<81",
    ),
    "econirl": ("econirl==0.1.1", "jax", "jaxlib"),
}


class Limits(NamedTuple):
    """What this machine can do on the threads in use, measured at the start of the run."""

    bytes_per_s: float
    exps_per_s: float

    def seconds(self, moved: float, exps: float) -> float:
        """The least time in which so many bytes can move and so many exponentials be taken."""
        return moved / self.bytes_per_s + exps / self.exps_per_s


def measure_limits() -> Limits:
    """Memory bandwidth by a triad on arrays beyond any cache, exp throughput on one that stays in it."""
    a, b = np.ones(16_000_000), np.ones(16_000_000)
    triad = best(lambda: np.multiply(a, 1.5, out=b), 7)  # reads a, writes b
    x, out = np.linspace(-5.0, 0.0, 8192), np.empty(8192)
    exp = best(lambda: [np.exp(x, out=out) for _ in range(100)], 7) / 100
    return Limits(2 * a.nbytes / triad, len(x) / exp)


def best(call: Callable[[], Any], repeats: int) -> float:
    return min(seconds(call) for _ in range(repeats))


def median(call: Callable[[], Any], repeats: int = 5) -> float:
    return statistics.median(seconds(call) for _ in range(repeats))


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# The problem


def grid_world(n: int, **ends: Any) -> tuple[problem.Grid, TabularWorld]:
    grid = problem.grid(n)
    here = np.arange(n * n)
    lands = [sp.csr_array((np.ones(n * n), (here, grid.arrival[:, a])), shape=(n * n, n * n)) for a in range(5)]
    intended = [sum(p * m for p, m in zip(row, lands, strict=True)) for row in problem.HAPPENS]
    return grid, from_arrays(intended, **ends)


def demonstrate(world: TabularWorld, grid: problem.Grid, steps: int) -> Paths:
    """Trajectories of the soft-optimal policy of the true reward, from uniformly random starts."""
    with torch.no_grad():
        log_policy = world.solve(Linear(features(world, grid.features), grid.theta)).log_policy[0].numpy()
    starts = np.random.default_rng(problem.SEED).integers(len(grid.arrival), size=TRAJECTORIES)
    return sample_paths(world, log_policy, starts.tolist(), max_steps=steps, seed=problem.SEED)


def term_of(world: TabularWorld, paths: Paths) -> irlhf.Term:
    return irlhf.Term(irlhf.demonstrations(None, paths), irlhf.exact(world))


class Climb(NamedTuple):
    """When a fit first came within each gap."""

    seconds: dict[float, float]
    evaluations: dict[float, int]
    theta: np.ndarray


def climb(world: TabularWorld, grid: problem.Grid, paths: Paths, gaps: tuple[float, ...]) -> Climb:
    """A fit by L-BFGS from zero, from demonstrations as they come to within the smallest gap."""
    start = time.perf_counter()
    term = term_of(world, paths)
    objective = Objective(Linear(features(world, grid.features)), [term])
    optimizer = irlhf.LBFGS(tolerance=0.0, newton=0)
    state = optimizer.init(objective)
    taken: dict[float, float] = {}
    evaluations: dict[float, int] = {}
    while True:
        gap = float(state["gradient"].norm()) / len(paths.state)
        for goal in gaps:
            if gap <= goal and goal not in taken:
                taken[goal], evaluations[goal] = time.perf_counter() - start, objective.evaluations
        if len(taken) == len(gaps):
            return Climb(taken, evaluations, state["theta"].numpy())
        state, info = optimizer.step(objective, state)
        if info["why"] == "converged":
            raise RuntimeError(f"stopped at a gap of {gap:.2g}, short of {min(gaps):.2g}")


def median_climb(*args: Any, repeats: int = 3) -> Climb:
    return sorted((climb(*args) for _ in range(repeats)), key=lambda c: max(c.seconds.values()))[repeats // 2]


def compile_everything() -> None:
    """Loads the compiled loops, which the first use of each does."""
    for ends in ({"horizon": 16}, {"discount": 0.95}, {"discount": 0.999}):
        for n in (8, 40):
            grid, world = grid_world(n, **ends)
            climb(world, grid, demonstrate(world, grid, 16), (0.1,))


# The peers, each in an environment of its own


def peer_python(name: str) -> Path:
    folder = ROOT / ".bench" / name
    mark = folder / "installed"
    wanted = hashlib.sha256(" ".join(PEERS[name]).encode()).hexdigest()
    if not mark.exists() or mark.read_text() != wanted:
        print(f"installing {name} into {folder.relative_to(ROOT)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PEERS[name]], check=True)
        mark.write_text(wanted)
    return folder / "bin" / "python"


def run_peer(name: str, gap: float, repeats: int, data: dict[str, Any], most: int) -> dict[str, Any]:
    """The median run of a peer on these demonstrations."""
    python = peer_python(name)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "data.npz", **data)
        command = [python, HERE / f"peer_{name}.py", Path(folder) / "data.npz", gap, THREADS, most]
        results = []
        for _ in range(repeats):
            out = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
            results.append(json.loads(out.stdout.splitlines()[-1]))
    return sorted(results, key=lambda r: r["seconds"])[len(results) // 2] | {"runs": repeats}


def columns(paths: Paths, steps: int) -> dict[str, np.ndarray]:
    """The demonstrations as matrices [trajectories, steps] of numbers."""
    both = {"states": paths.state, "actions": paths.action, "next_states": paths.next_state}
    return {name: column.astype(np.int64).reshape(-1, steps) for name, column in both.items()}


# The rows


class Run(NamedTuple):
    limits: Limits
    full: bool
    peers: bool


def imitation(run: Run):
    """imitation's own task: undiscounted, a horizon of four times the width."""
    n, horizon = 32, 128
    grid, world = grid_world(n, horizon=horizon)
    paths = demonstrate(world, grid, horizon)
    ours = median_climb(world, grid, paths, (GAP, NEAR))
    t = world.transitions
    # every step's policy is written and read once; the world itself stays in the cache
    least = run.limits.seconds(2 * 8 * horizon * t.n_pairs, horizon * t.n_pairs) * ours.evaluations[GAP]
    row = {
        "ours_s": ours.seconds[GAP],
        "goal": "ratio >= 100 (150)",
        "evaluations": ours.evaluations[GAP],
        "limit_s": least,
        "gap": GAP,
    }
    if run.peers:
        seen = columns(paths, horizon)
        states = np.concatenate([seen["states"], seen["next_states"][:, -1:]], 1)
        found = run_peer(
            "imitation",
            GAP * horizon,
            3 if run.full else 1,
            {"n": n, "horizon": horizon, "states": states},
            1000,
        )
        row |= peer_columns("imitation 1.0.1", found, ours)
    yield "imitation's task to 1e-3", row
    yield (
        "imitation's task to 1e-6",
        {
            "ours_s": ours.seconds[NEAR],
            "of_the_time_to_1e-3": ours.seconds[NEAR] / ours.seconds[GAP],
            "goal": "at most 2 times the time to 1e-3",
            "evaluations": ours.evaluations[NEAR],
            "limit_s": least / ours.evaluations[GAP] * ours.evaluations[NEAR],
            "gap": NEAR,
        },
    )


def econirl(run: Run):
    """The same grid, discounted."""
    n, discount, steps = 32, 0.95, 100
    grid, world = grid_world(n, discount=discount)
    paths = demonstrate(world, grid, steps)
    ours = median_climb(world, grid, paths, (GAP, NEAR))
    row = {
        "ours_s": ours.seconds[GAP],
        "goal": "ratio >= 300",
        "evaluations": ours.evaluations[GAP],
        "limit_s": stationary_limit(run.limits, world) * ours.evaluations[GAP],
        "gap": GAP,
    }
    if run.peers:
        data = {"n": n, "discount": discount, **columns(paths, steps)}
        row |= peer_columns("econirl 0.1.1", run_peer("econirl", GAP, 3 if run.full else 1, data, 300), ours)
    yield "econirl's task to 1e-3", row


def peer_columns(name: str, found: dict[str, Any], ours: Climb) -> dict[str, Any]:
    return {
        "peer": name,
        "peer_s": found["seconds"],
        "ratio": found["seconds"] / ours.seconds[GAP],
        "peer_gradients": found["steps"],
        "peer_runs": found["runs"],
        "difference_of_estimates": float(np.abs(np.array(found["theta"]) - ours.theta).max()),
    }


def stationary_limit(limits: Limits, world: TabularWorld) -> float:
    """One gradient that reads everything once: the world for the values and for the visits, features twice."""
    t = world.transitions
    outcome, pair = 8 + 4, 8
    moved = 2 * t.n_outcomes * outcome + 4 * t.n_pairs * pair + 2 * t.n_states * problem.FEATURES * 8
    return limits.seconds(moved, t.n_pairs)


def gradients(n: int, discount: float, run: Run, goals: tuple[float | None, float | None], repeats: int = 5):
    """One exact gradient, cold and from the values at parameters 1 % smaller, through a fit's objective and bare."""
    grid, world = grid_world(n, discount=discount)
    objective = Objective(Linear(features(world, grid.features)), [term_of(world, demonstrate(world, grid, 100))])
    memory = objective.terms[0].prepared.memory
    theta = torch.tensor(grid.theta)
    objective.value_and_gradient(0.99 * theta)
    near = memory["values"].clone()

    def evaluate(start: torch.Tensor | None) -> None:
        memory.clear()
        if start is not None:
            memory["values"] = start
        objective.value_and_gradient(theta)

    def bare(start: torch.Tensor | None) -> None:
        utility = torch.from_numpy((grid.features @ grid.theta)[world.transitions.state]).requires_grad_()
        values = soft_values(utility, world.transitions, discount, warm_start=start, tolerance=1e-14)
        values.mean().backward()

    for name, start, goal in (("cold", None, goals[0]), ("warm", near, goals[1])):
        row = {
            "ours_s": median(functools.partial(evaluate, start), repeats),
            "goal": f"<= {goal} s" if goal else "said",
            "solver_alone_s": median(functools.partial(bare, None if start is None else start[0]), repeats),
            "limit_s": stationary_limit(run.limits, world),
        }
        yield f"discount {discount}, {n} x {n}, gradient, {name}", row


def discounted(run: Run):
    yield from gradients(100, 0.95, run, (0.02, 0.01), 9)
    yield from gradients(316, 0.95, run, (0.3, 0.15))


def maximum(run: Run):
    """A whole fit of 100,000 states by fit_reward, from demonstrations to parameters."""
    n = 316
    grid, world = grid_world(n, discount=0.95)
    paths = demonstrate(world, grid, 100)
    ours = median_climb(world, grid, paths, (GAP, NEAR))
    start = time.perf_counter()
    fit = irlhf.fit_reward(
        Linear(features(world, grid.features)), term_of(world, paths), optimizer=irlhf.LBFGS(newton=0)
    )
    whole = time.perf_counter() - start
    yield (
        f"discount 0.95, {n} x {n}, maximum to 1e-6",
        {
            "ours_s": ours.seconds[NEAR],
            "goal": "<= 3 s",
            "evaluations": ours.evaluations[NEAR],
            "limit_s": stationary_limit(run.limits, world) * ours.evaluations[NEAR],
            "gap": NEAR,
            "fit_reward_s": whole,
            "fit_reward_steps": len(fit.trace) - 1,
            "fit_reward_says": fit.status.name.lower(),
        },
    )


def million(run: Run):
    """A million states, in a process of its own for the sake of its peak memory."""
    out = subprocess.run(
        [sys.executable, str(HERE / "tabular.py"), "--only", "_million"], check=True, capture_output=True, text=True
    )
    for line in out.stdout.splitlines()[1:]:  # the first is about the machine
        row = json.loads(line)
        yield row.pop("case"), row


def million_here(run: Run):
    for case, row in gradients(1000, 0.95, run, (5.0, None), 3):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        yield case, row | {"peak_gb": peak, "goal": row["goal"] + ", < 4 GB" if "cold" in case else row["goal"]}


def patient(run: Run):
    """Close to undiscounted."""
    yield from gradients(100, 0.999, run, (0.5, 0.1))
    yield from gradients(316, 0.999, run, (None, None), 3)


def destinations(run: Run):
    """One undiscounted road network, 200 places to go to."""
    rng = np.random.default_rng(problem.SEED)
    places = rng.random((700, 2))
    triangles = Delaunay(places).simplices
    links = np.unique(
        np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]]), 1), axis=0
    )
    both = np.concatenate([links, links[:, ::-1]])
    length = np.linalg.norm(places[both[:, 0]] - places[both[:, 1]], axis=1)
    table = pd.DataFrame({"state": both[:, 0], "action": both[:, 1], "next_state": both[:, 1]})
    world = from_table(table, states=list(range(700)), destinations=True)
    attributes = table[["state", "action"]].assign(
        length=length / length.mean(), constant=1.0, attraction=rng.normal(size=len(both))
    )
    theta = np.array([-1.5, -1.5, 0.5])
    goals = rng.choice(700, 200, replace=False)
    each = 10
    contexts = np.repeat(goals, each).tolist()
    starts = rng.integers(700, size=len(contexts))
    starts = np.where(starts == contexts, (starts + 1) % 700, starts).tolist()
    with torch.no_grad():
        policy = world.solve(Linear(features(world, attributes), theta), goals.tolist()).log_policy.numpy()
    paths = sample_paths(
        world, np.repeat(policy, each, 0), starts, destinations=contexts, max_steps=10_000, seed=problem.SEED
    )
    everything = irlhf.demonstrations(contexts, paths)
    first = dict(zip(attributes.columns[2:], (-2.0, -2.0, 0.0), strict=True))  # at zero the sum over paths diverges

    def fit(feedback: irlhf.Feedback) -> irlhf.Fit:
        return irlhf.fit_reward(
            Linear(features(world, attributes)),
            irlhf.Term(feedback, irlhf.exact(world)),
            start=first,
            optimizer=irlhf.LBFGS(newton=0),
        )

    def gradient(feedback: irlhf.Feedback) -> Callable[[], Any]:
        objective = Objective(
            Linear(features(world, attributes)), [irlhf.Term(feedback, irlhf.exact(world))], start=first
        )
        return lambda: objective.value_and_gradient(objective.start)

    def one(k: int) -> irlhf.Feedback:
        return everything[np.arange(k * each, (k + 1) * each)]

    sample = range(0, 200, 20)
    fit(one(0))  # compiles
    t = world.transitions
    least = run.limits.seconds(2 * 2 * 8 * 200 * t.n_states + 2 * 20 * t.n_pairs, t.n_pairs)
    gradient_of_one = statistics.median(median(gradient(one(k)), 5) for k in sample)
    gradient_of_all = median(gradient(everything), 5)
    yield (
        f"200 destinations on {len(both)} links, gradient",
        {
            "ours_s": gradient_of_all,
            "one_s": gradient_of_one,
            "times_one": gradient_of_all / gradient_of_one,
            "goal": "at most 12 times one",
            "limit_s": least,
        },
    )
    fits = [(seconds(lambda k=k: fit(one(k))), k) for k in sample]
    separate = statistics.mean(s for s, _ in fits) * 200
    together = sorted((seconds(lambda: fit(everything)), k) for k in range(3))[1][0]
    evaluations = int(fit(everything).trace["evaluations"].iloc[-1])
    yield (
        f"200 destinations on {len(both)} links, fit",
        {
            "ours_s": together,
            "peer": f"200 separate fits, from {len(fits)}",
            "peer_s": separate,
            "ratio": separate / together,
            "goal": "ratio >= 15, at most 12 times one fit",
            "times_one": together / statistics.median(s for s, _ in fits),
            "evaluations": evaluations,
            "limit_s": least * evaluations,
        },
    )


CASES: dict[str, Callable[[Run], Any]] = {
    "imitation": imitation,
    "econirl": econirl,
    "discounted": discounted,
    "maximum": maximum,
    "million": million,
    "patient": patient,
    "destinations": destinations,
    "_million": million_here,
}


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Tabular worlds")
    for name in ("case", "ours [s]", "peer", "peer [s]", "ratio", "times the limit", "goal"):
        table.add_column(name, justify="left" if name in ("case", "peer", "goal") else "right")
    for row in rows:
        texts = [f"{row[k]:.3g}" if k in row else "" for k in ("peer_s", "ratio", "times_limit")]
        table.add_row(row["case"], f"{row['ours_s']:.3g}", row.get("peer", ""), *texts, row.get("goal", ""))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="run each peer three times instead of once")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave the peers out")
    shown = [c for c in CASES if c[0] != "_"]
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="CASE", help=", ".join(shown))
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    run = Run(measure_limits(), asked.full, asked.peers)
    machine = {
        "case": "machine",
        "threads": THREADS,
        "load": os.getloadavg()[0],
        "bandwidth_gb_per_s": run.limits.bytes_per_s / 1e9,
        "ns_per_exp": 1e9 / run.limits.exps_per_s,
    }
    print(json.dumps(machine), flush=True)
    compile_everything()
    rows = []
    for name in asked.only or shown:
        for case, row in CASES[name](run):
            row = {"case": case, "peer": None, "peer_s": None, "ratio": None} | row
            row["times_limit"] = row["ours_s"] / row["limit_s"]
            row["load"] = os.getloadavg()[0]
            rows.append({k: v for k, v in row.items() if v is not None})
            print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    if "_million" not in (asked.only or []):
        Console(width=150).print(table_of(rows))


if __name__ == "__main__":
    main()
