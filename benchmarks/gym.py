"""Rewards and policies in environments, beside cloning, rewards that know nothing, and imitation.

    OMP_NUM_THREADS=1 python benchmarks/gym.py [--only CASE ...] [--seeds N] [--no-peers]

One JSON object a line for every row, then a table. See README.md beside this file for what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from rich.console import Console
from rich.table import Table

from irlhf import (
    Minibatches,
    Source,
    Term,
    best_start,
    control,
    demonstrations,
    fit_jointly,
    fit_policy,
    fit_reward,
    listed,
    variational,
)
from irlhf.demos.cartpole import adam, judged_pairs
from irlhf.randomness import Key
from irlhf.worlds import gym

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".bench" / "experts"
T = 0.05  # temperature of people, for each step of a reward
EPISODES = 20  # that a policy is judged by, its likeliest actions
GOAL = {"CartPole-v1": 475.0, "Acrobot-v1": -100.0, "LunarLander-v3": 200.0}
ROUNDS = {"LunarLander-v3": 300}  # elsewhere the defaults: 80, or 150 where actions are numbers
PEER = ("numpy<2", "gymnasium==0.29.1", "stable-baselines3==2.2.1", "imitation==1.0.1", "torch==2.13.0")
Row = dict[str, Any]


def experts(env: str) -> gym.Episodes:
    """Sixty episodes: real ones where they are, else of a policy trained on what the environment pays; made once."""
    name = {"CartPole-v1": "cartpole", "Pendulum-v1": "pendulum"}.get(env)
    real = Path(os.environ.get("IRLHF_DATA", "")) / "expert_rollouts" / f"imitation_{name}.npz"
    if name and real.exists():
        return gym.read(real).trajectories  # type: ignore[return-value]
    file = CACHE / f"{env}.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        gym.save(file, _lander() if env == "LunarLander-v3" else _trained(env))
    return gym.read(file).trajectories  # type: ignore[return-value]


def _trained(env: str) -> gym.Episodes:
    world = gym.GymWorld(env)
    policy = gym.GymPolicy(world, seed=7)
    fit_policy(policy, gym.PaidReward(), world, [None], temperature=T, key=Key(77))
    return world.record(policy, 60)


def _lander() -> gym.Episodes:
    """The controller that comes with Gymnasium: better than what half an hour of training gives here."""
    from gymnasium.envs.box2d.lunar_lander import heuristic

    world, inner = gym.GymWorld("LunarLander-v3"), gymnasium.make("LunarLander-v3").unwrapped
    return world.record(lambda seen: heuristic(inner, seen), 60)


def paid(world: gym.GymWorld, policy: Any) -> float:
    return float(gym.returns(world, policy, EPISODES, key=Key(5).at("judge")).mean())


class Clock:
    """Seconds of a fit, without those in which its policy is judged, until it first reaches a goal."""

    def __init__(self, world: gym.GymWorld, policy: Any, goal: float | None, every: int = 4):
        self.world, self.policy, self.goal, self.every = world, policy, goal, every
        self.began, self.off, self.reached = time.perf_counter(), 0.0, None

    def __call__(self, step: dict[str, Any]) -> None:
        if self.goal is None or self.reached is not None or step["step"] % self.every:
            return
        begin = time.perf_counter()
        if paid(self.world, self.policy) >= self.goal:
            self.reached = begin - self.began - self.off
        self.off += time.perf_counter() - begin

    @property
    def taken(self) -> float:
        return time.perf_counter() - self.began - self.off


def anew(world: gym.GymWorld, reward: Any, seed: int, goal: float | None, rounds: int | None) -> tuple[float, Clock]:
    """What a fresh policy gets that is trained on a reward which stands still: of two starts the better one by it."""
    clocks = []

    def make(start: int) -> gym.GymPolicy:
        policy = gym.GymPolicy(world, seed=1000 + seed + 100 * start)
        clocks.append(Clock(world, policy, goal))
        return policy

    learner = control(continuous=not world.spaces.discrete, max_steps=rounds)
    fit = best_start(make, reward, world, [None], learner=learner, temperature=T, key=Key(seed).at("anew"),
                     progress=lambda step: clocks[-1](step))  # fmt: skip
    return paid(world, fit.policy), clocks[0]


def from_demonstrations(env: str, n: int, seeds: int) -> Row:
    """Joint fits and re-training from n demonstrations, seed by seed; and what needs no reward, or knows nothing."""
    goal, rounds = GOAL.get(env), ROUNDS.get(env)
    every = experts(env)
    joint, again, cloned, reach, reach_anew, seconds = [], [], [], [], [], []
    for seed in range(seeds):
        some = every.take(Key(seed).at("demonstrations").numpy().permutation(len(every))[:n])
        world = gym.GymWorld(env, seen=some, key=Key(seed).at("world"))
        reward, policy = gym.NeuralReward(world, seed=seed), gym.GymPolicy(world, seed=seed)
        term = Term(demonstrations(None, some), variational(world, n=8), Source(T))
        clock = Clock(world, policy, goal)
        fit, _ = fit_jointly(reward, policy, term, world, rounds=rounds, key=Key(seed).at("joint"), progress=clock)
        seconds.append(clock.taken)
        joint.append(paid(world, policy))
        reach.append(clock.reached)
        value, clock = anew(world, fit.reward, seed, goal, rounds)
        again.append(value)
        reach_anew.append(clock.reached)
        cloned.append(paid(world, gym.clone(world, some, key=Key(seed).at("clone"))))
    world = gym.GymWorld(env, seen=every[:n])
    nothing = {
        "+1": gym.ConstantReward(1.0), "-1": gym.ConstantReward(-1.0), "random": gym.NeuralReward(world, seed=99),
    }  # fmt: skip
    known = {name: anew(world, reward, 0, None, rounds)[0] for name, reward in nothing.items()}
    return {
        "case": f"{env}, {n} demonstrations",
        "seeds": seeds,
        "goal": goal,
        "experts": float(every.returns().mean()),
        "at_random": paid(world, world.base_policy()),
        "joint": joint,
        "anew": again,
        "joint_worst": min(joint),
        "anew_worst": min(again),
        "cloning_worst": min(cloned),
        "constant_plus": known["+1"],
        "constant_minus": known["-1"],
        "random_reward": known["random"],
        "ours_s": _slowest(reach) if goal is not None else max(seconds),
        "anew_s": _slowest(reach_anew),
        "whole_s": max(seconds),
    }


def _slowest(reached: list[float | None]) -> float | None:
    return None if any(r is None for r in reached) else max(r for r in reached if r is not None)


def half_trained(env: str, seed: int, n: int) -> gym.Episodes:
    """Episodes of policies from random to half-trained."""
    world = gym.GymWorld(env, key=Key(seed).at("half"))
    policy, last = gym.GymPolicy(world, seed=50 + seed), 12 if world.spaces.discrete else 40
    kept = [world.record(world.base_policy(), n // 5, key=Key(seed).at("at random"))]

    def watch(step: dict[str, Any]) -> None:
        if step["step"] % (last // 4) == 0:
            kept.append(world.record(policy, n // 5, key=Key(seed).at("half", step["step"])))

    learner = control(continuous=not world.spaces.discrete, max_steps=last)
    fit_policy(policy, gym.PaidReward(), world, [None], learner=learner, temperature=T, progress=watch)
    return gym.Episodes.concatenate(kept)


def from_comparisons(env: str, n: int, n_demonstrations: int, seeds: int) -> Row:
    """Comparisons; with demonstrations also these alone, and both. 0: at random, 1: trained on the true reward."""
    scores: dict[str, list[float]] = {"comparisons": []}
    wrong, seconds = [], []
    home = gym.GymWorld(env)
    low = paid(home, home.base_policy())
    high = anew(home, gym.PaidReward(), 0, None, None)[0]
    for seed in range(seeds):
        pool = half_trained(env, seed, 100)
        rows, errors = judged_pairs(pool, n, Key(seed).at("pairs"))
        wrong.append(errors)
        every = experts(env)
        some = every.take(Key(seed).at("demonstrations").numpy().permutation(len(every))[:n_demonstrations])
        seen = gym.Episodes.concatenate([pool, some]) if n_demonstrations else pool
        world = gym.GymWorld(env, seen=seen, key=Key(seed).at("world"))
        pairs = Term(rows, listed(world), Source(T * (world.horizon or 1)))
        begin = time.perf_counter()
        reward = gym.NeuralReward(world, seed=seed)
        how = Minibatches(rows=16, at_once=16, max_steps=300, make=adam, key=Key(seed).at("rows"))
        fit_reward(reward, pairs, optimizer=how)
        found = {"comparisons": anew(world, reward, seed, None, None)[0]}
        seconds.append(time.perf_counter() - begin)
        if n_demonstrations:
            for name in ("demonstrations", "both"):
                reward = gym.NeuralReward(world, seed=seed)
                people = Term(demonstrations(None, some), variational(world, n=8), Source(T))
                terms = [people] if name == "demonstrations" else [people, pairs]
                policy = gym.GymPolicy(world, seed=seed)
                fit, _ = fit_jointly(reward, policy, terms, world, key=Key(seed).at("joint"))
                found[name] = anew(world, fit.reward, seed, None, None)[0]
        for name, value in found.items():
            scores.setdefault(name, []).append((value - low) / (high - low))
    return {
        "case": f"{env}, {n} comparisons" + (f", {n_demonstrations} demonstrations" if n_demonstrations else ""),
        "seeds": seeds, "at_random": low, "on_true_reward": high, "wrong_answers": float(np.mean(wrong)),
        "ours_s": max(seconds), **{f"score_{name}": values for name, values in scores.items()},
        **{f"mean_{name}": float(np.mean(values)) for name, values in scores.items()},
    }  # fmt: skip


def on_the_true_reward(seeds: int) -> Row:
    """Time until CartPole is solved on what it pays, beside Stable-Baselines3's PPO (both judged off the clock)."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback

    ours, theirs, rate = [], [], []
    for seed in range(seeds):
        world = gym.GymWorld("CartPole-v1", key=Key(seed))
        world.moments  # noqa: B018
        begin = time.perf_counter()
        _, clock = anew(world, gym.PaidReward(), seed, 475.0, None)
        ours.append(clock.reached)
        rate.append(80 * 32 * 64 / (time.perf_counter() - begin))

        class Judge(BaseCallback):
            reached: float | None = None
            off = 0.0

            def _on_step(self) -> bool:
                if self.num_timesteps % 2048:
                    return True
                start = time.perf_counter()
                policy = gym.Function(lambda seen: int(self.model.predict(seen, deterministic=True)[0]))
                if paid(gym.GymWorld("CartPole-v1"), policy) >= 475:
                    self.reached = start - self.began - self.off
                self.off += time.perf_counter() - start
                return self.reached is None

            def _on_training_start(self) -> None:
                self.began = time.perf_counter()

        judge = Judge()
        PPO("MlpPolicy", gymnasium.make("CartPole-v1"), seed=seed, device="cpu").learn(100_000, callback=judge)
        theirs.append(judge.reached)
    middle = [float(np.median([x if x is not None else np.inf for x in each])) for each in (ours, theirs)]
    return {
        "case": "CartPole-v1, the true reward", "seeds": seeds, "ours_s": middle[0], "ours": ours,
        "peer": "Stable-Baselines3 PPO", "peer_s": middle[1], "theirs": theirs, "ratio": middle[1] / middle[0],
        "steps_per_s": float(np.median(rate)),
    }  # fmt: skip


def peer(row: Row, seeds: int) -> Row:
    """imitation on the same demonstrations, each of its fast algorithms; the fastest one's time until 475."""
    folder = ROOT / ".bench" / "imitation-gym"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "torch==2.13.0"], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEER], check=True)
        (folder / "installed").touch()
    every = experts("CartPole-v1")
    found: dict[str, list[float | None]] = {"SQIL": [], "GAIL": []}
    for seed in range(seeds):
        some = every.take(Key(seed).at("demonstrations").numpy().permutation(len(every))[:10])
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "demonstrations.npz"
            gym.save(file, some)
            for name, steps in (("SQIL", 20_000), ("GAIL", 100_000)):
                command = [str(python), str(ROOT / "benchmarks" / "peer_gym.py"), name.lower(), str(file), str(steps)]
                done = subprocess.run([*command, "475", str(seed)], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr[-2000:])
                found[name].append(json.loads(done.stdout.splitlines()[-1])["seconds"])
    medians = {name: float(np.median([np.inf if x is None else x for x in all_])) for name, all_ in found.items()}
    best = min(medians, key=lambda name: medians[name])
    ours = row["ours_s"]
    ratio = None if ours is None else medians[best] / ours
    return {**row, "peer": f"imitation {best}", "peer_s": medians[best], "ratio": ratio, "peers": found}


CASES: dict[str, Callable[[int], Row]] = {
    "cartpole": lambda seeds: from_demonstrations("CartPole-v1", 10, seeds),
    "acrobot-2": lambda seeds: from_demonstrations("Acrobot-v1", 2, seeds),
    "acrobot-10": lambda seeds: from_demonstrations("Acrobot-v1", 10, seeds),
    "pendulum-2": lambda seeds: from_demonstrations("Pendulum-v1", 2, seeds),
    "pendulum-10": lambda seeds: from_demonstrations("Pendulum-v1", 10, seeds),
    "lunar-2": lambda seeds: from_demonstrations("LunarLander-v3", 2, seeds),
    "lunar-10": lambda seeds: from_demonstrations("LunarLander-v3", 10, seeds),
    "pairs-cartpole": lambda seeds: from_comparisons("CartPole-v1", 200, 0, seeds),
    "pairs-pendulum": lambda seeds: from_comparisons("Pendulum-v1", 200, 0, seeds),
    "both-cartpole": lambda seeds: from_comparisons("CartPole-v1", 50, 2, seeds),
    "both-pendulum": lambda seeds: from_comparisons("Pendulum-v1", 50, 2, seeds),
    "true-reward": on_the_true_reward,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    asked = parser.parse_args()
    rows = []
    for name in asked.only:
        row = CASES[name](asked.seeds)
        if name == "cartpole" and not asked.no_peers:
            row = peer(row, asked.seeds)
        row["load"] = os.getloadavg()[0]
        print(json.dumps(row), flush=True)
        rows.append(row)
    shown = Table("case", "joint", "anew", "cloning", "+1", "-1", "random reward", "experts", "seconds", "peer")
    for row in rows:
        if "joint_worst" in row:
            cells = ("joint_worst", "anew_worst", "cloning_worst", "constant_plus", "constant_minus", "random_reward",
                     "experts")  # fmt: skip
            shown.add_row(
                row["case"], *(f"{row[c]:.0f}" for c in cells), _cell(row["ours_s"]), _cell(row.get("peer_s"))
            )
    Console(width=140).print(shown)


def _cell(x: Any) -> str:
    return "-" if x is None else f"{x:.1f}"


if __name__ == "__main__":
    main()
