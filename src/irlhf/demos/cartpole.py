"""What is a reward good for where imitation would do? Learned from episodes and comparisons, and taken elsewhere.

Somebody balances a pole. From ten episodes, from comparisons of worse ones, and from both a reward is learned, and
policies are trained on it. Then the pole is three times as long and gravity three times as strong: whoever copied what
was done is lost there, and a policy that is trained anew on the learned reward should not be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from rich.console import Console

from irlhf import (
    Minibatches,
    Source,
    Term,
    comparisons,
    demonstrations,
    fit_jointly,
    fit_policy,
    fit_reward,
    listed,
    variational,
)
from irlhf.demos.screen import console, say, table, working
from irlhf.errors import ConfigError
from irlhf.proximal import control
from irlhf.randomness import Key
from irlhf.worlds.gym import (
    ConstantReward,
    Episodes,
    GymPolicy,
    GymWorld,
    NeuralReward,
    PaidReward,
    clone,
    returns,
)

ENV = "CartPole-v1"
LENGTH, GRAVITY = 1.5, 30.0  # of the other pole, for 0.5 (half its length, in m) and 9.8
SHARPNESS = 0.05  # temperature, for each step of a reward
WRONG = 0.1  # share of comparisons that are answered the wrong way


@dataclass(frozen=True)
class Sizes:
    """How much is done; the smaller one is for a first look."""

    demonstrations: int = 10
    comparisons: int = 200
    rounds: int = 60
    steps: int = 300
    episodes: int = 20


QUICK = Sizes(3, 20, 6, 20, 4)


def longer_pole() -> gymnasium.Env:
    """The same cart under a longer pole in stronger gravity."""
    env = gymnasium.make(ENV)
    cart: Any = env.unwrapped
    cart.length, cart.gravity = LENGTH, GRAVITY
    cart.polemass_length = cart.masspole * LENGTH
    return env


def main(seed: int = 0, quick: bool = False) -> None:
    """Fits, trains and prints it all."""
    to = console()
    study = Study(seed, QUICK if quick else Sizes(), to)
    study.run()


class Study:
    """People's episodes and comparisons, and what is made of them."""

    def __init__(self, seed: int, sizes: Sizes, to: Console):
        self.key, self.sizes, self.to = Key(seed).at("cartpole"), sizes, to
        self.found: dict[str, dict[str, float]] = {}

    def run(self) -> None:
        with working() as self.starting:
            self.observe()
            self.copy()
            for name, learn in self.rewards().items():
                self.judge(name, learn)
        self.show()

    # ------------------------------------------------------------------------------------------------- what was seen

    def observe(self) -> None:
        """Ten episodes of somebody who can; and worse ones, of all who were on the way there, in pairs."""
        home, s = GymWorld(ENV, key=self.key.at("home")), self.sizes
        expert, worse = GymPolicy(home, seed=1), [home.record(home.base_policy(), 20, key=self.key.at("random"))]

        shown = self.starting("somebody learns to balance")

        def watch(step: dict[str, Any]) -> None:
            shown(step)
            if step["step"] in (4, 8, 12, 16):
                worse.append(home.record(expert, 20, key=self.key.at("worse", step["step"])))

        fit_policy(
            expert, PaidReward(), home, [None], learner=control(max_steps=max(s.rounds, 16) if s.rounds < 16 else 40),
            temperature=SHARPNESS, key=self.key.at("expert"), progress=watch,
        )  # fmt: skip
        self.episodes = home.record(expert, s.demonstrations, key=self.key.at("shown"))
        self.pool = Episodes.concatenate(worse)
        self.pairs, self.errors = judged_pairs(self.pool, s.comparisons, self.key.at("pairs"))
        self.home = GymWorld(ENV, seen=Episodes.concatenate([self.pool, self.episodes]), key=self.key.at("home"))
        self.away = GymWorld(longer_pole, moments=self.home.moments, key=self.key.at("away"))
        self.note("whoever demonstrated", expert)

    def copy(self) -> None:
        """The policy under which the ten episodes are likeliest."""
        self.note("cloning, 10 episodes", clone(self.home, self.episodes, key=self.key.at("clone")))

    # ------------------------------------------------------------------------------------------------- what is learned

    def rewards(self) -> dict[str, Callable[[], tuple[Any, Any]]]:
        """(reward, the policy that was learned with it or None) by name, to be made when they are asked for."""
        return {
            LEARNED[0]: lambda: self.jointly(self.shown()),
            LEARNED[1]: lambda: (self.listed(), None),
            LEARNED[2]: lambda: self.jointly(self.shown(), self.compared()),
            "reward +1": lambda: (ConstantReward(1.0), None),
            "reward -1": lambda: (ConstantReward(-1.0), None),
        }

    def shown(self) -> Term:
        return Term(demonstrations(None, self.episodes), variational(self.home, n=8), Source(SHARPNESS))

    def compared(self) -> Term:
        length = self.home.horizon or 1
        return Term(self.pairs, listed(self.home), Source(SHARPNESS * length))

    def jointly(self, *terms: Term) -> tuple[Any, Any]:
        ends = len(terms) > 1 or bool(self.episodes.terminated.any())  # the world has seen the comparisons, too
        reward, policy = NeuralReward(self.home, ends=ends, seed=2), GymPolicy(self.home, seed=3)
        fit, learned = fit_jointly(
            reward, policy, list(terms), self.home, rounds=self.sizes.rounds, key=self.key.at("joint", len(terms)),
            progress=self.starting(f"a reward from {LEARNED[0] if len(terms) == 1 else LEARNED[2]}"),
        )  # fmt: skip
        return fit.reward, learned.policy

    def listed(self) -> Any:
        reward = NeuralReward(self.home, seed=4)
        how = Minibatches(rows=16, at_once=16, max_steps=self.sizes.steps, make=adam, key=self.key.at("rows"))
        shown = self.starting(f"a reward from {LEARNED[1]}")
        return fit_reward(reward, self.compared(), optimizer=how, progress=shown).reward

    def judge(self, name: str, learn: Callable[[], tuple[Any, Any]]) -> None:
        """A reward's own policy at home, and policies trained anew on the frozen reward, at home and away."""
        reward, policy = learn()
        if policy is not None:
            self.note(name, policy)
        for place, world in (("home", self.home), ("away", self.away)):
            shown = self.starting(f"{name}: anew, {'the same pole' if place == 'home' else 'the longer pole'}")
            fresh = GymPolicy(world, seed=50)
            learner = control(max_steps=self.sizes.rounds)
            fit_policy(
                fresh, reward, world, [None], learner=learner, temperature=SHARPNESS, key=self.key.at("anew", place),
                progress=shown,
            )  # fmt: skip
            self.found.setdefault(name, {})[f"anew {place}"] = self.paid(world, fresh)

    def note(self, name: str, policy: Any) -> None:
        """What a policy gets as it is, at home and away."""
        self.found.setdefault(name, {}).update(
            {"home": self.paid(self.home, policy), "away": self.paid(self.away, policy)}
        )

    def paid(self, world: GymWorld, policy: Any) -> float:
        return float(returns(world, policy, self.sizes.episodes, key=self.key.at("judge")).mean())

    # ---------------------------------------------------------------------------------------------------- what is said

    def show(self) -> None:
        columns = ("home", "anew home", "away", "anew away")
        to, s = self.to, self.sizes
        made = table(
            f"1. Steps that the pole stays up, of 500 (mean of {s.episodes} episodes)", "", "as it is", "anew",
            "longer pole, as it is", "anew",
        )  # fmt: skip
        for name, row in self.found.items():
            made.add_row(name, *(f"{row[c]:.0f}" if c in row else "" for c in columns))
        to.print(made)
        shown, pool = self.episodes.returns(), self.pool.returns()
        say(
            to,
            f"""
            {s.demonstrations} episodes last {shown.mean():.0f} steps on average. {s.comparisons} comparisons are of
            episodes of {pool.min():.0f} to {pool.max():.0f} steps (half of them below {np.median(pool):.0f}), and
            {self.errors:.0%} of the answers are wrong. "anew": a fresh policy is trained on the reward, which stands
            still. The longer pole is three times as long, and gravity {GRAVITY:g} m/s2. Ended episodes are padded to
            500 steps, so that a constant reward says nothing.
            """,
        )
        say(to, self.verdict())

    def verdict(self) -> str:
        """What happened, either way."""
        copied = self.found["cloning, 10 episodes"]
        lines = [
            f"Cloning gets {copied['home']:.0f} at home and {copied['away']:.0f} on the longer pole, and there is "
            "nothing that it could be trained on."
        ]
        for name in LEARNED:
            row = self.found[name]
            kept = (
                "holds"
                if row["anew away"] >= 475
                else "does better than cloning"
                if (row["anew away"] > copied["away"] + 50)
                else "does not help"
            )
            lines.append(f"The reward from {name} {kept} there: {row['anew away']:.0f}.")
        best = max(self.found[name]["anew away"] for name in self.found if name not in LEARNED and "anew away" in
                   self.found[name])  # fmt: skip
        lines.append(f"The best of the rewards that know nothing gets {best:.0f}.")
        return " ".join(lines)


LEARNED = ("10 episodes", "200 comparisons", "both")


def adam(parameters: list[Any]) -> Any:
    import torch

    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)


def judged_pairs(episodes: Episodes, n: int, key: Key) -> tuple[Any, float]:
    """Comparisons of episodes by what they were paid, a tenth of them wrong on average (Bradley and Terry 1952)."""
    paid, rng = episodes.returns(), key.numpy()
    first, second = rng.integers(0, len(paid), (2, 20 * n))
    apart = first != second
    first, second = first[apart][:n], second[apart][:n]
    if len(first) < n:
        raise ConfigError("too few episodes to compare; give more")
    gap = np.abs(paid[first] - paid[second])
    low, high = 1e-3, 1e4
    for _ in range(60):  # the temperature at which as many answers are wrong
        middle = np.sqrt(low * high)
        low, high = (middle, high) if (1 / (1 + np.exp(gap / middle))).mean() < WRONG else (low, middle)
    right = rng.random(n) > 1 / (1 + np.exp(gap / low))
    better = np.where(paid[first] >= paid[second], 0, 1)
    answers = np.where(right, better, 1 - better)
    rows = comparisons(
        [None] * n, [episodes[k] for k in first], [episodes[k] for k in second], [int(a) for a in answers]
    )
    return rows, float(1 - right.mean())
