"""Closing a choice set with samples: what is lost against the exact likelihood of the same kind, on real sizes of data.

``sampled`` estimates the anticipative likelihood, ``variational`` the weighted causal one. Each is fitted to data sets
redrawn from people of its own kind, beside the exact fit; nature takes part in two of three towns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor

from irlhf import (
    Base,
    Feedback,
    FromPolicy,
    Term,
    demonstrations,
    exact,
    expected,
    fit_jointly,
    fit_reward,
    sampled,
    variational,
)
from irlhf.demos.screen import say, table
from irlhf.demos.town import HOME, SIDE, TRUE, Town, maximum
from irlhf.randomness import Key
from irlhf.worlds.tabular import (
    Linear,
    Path,
    SoftmaxPolicy,
    SoftPolicy,
    TabularWorld,
    enumerate_paths,
    features,
    from_table,
)

SLIP = 0.2  # how often a walker of the stochastic towns is carried along another street of the corner
DISCOUNT = 0.9
MATCHED, IN_ROUNDS = "exact feature matching", "variational, 256 draws"


@dataclass(frozen=True)
class Sizes:
    data_sets: int = 10
    joint: int = 4  # data sets for variational, which is fitted in rounds
    people: int = 300
    rounds: int = 60


def chance(meant: bool, streets: int) -> float:
    """How often who means to take one street of a corner takes this one."""
    if streets == 1:
        return 1.0
    return 1 - SLIP if meant else SLIP / (streets - 1)


def slippery(town: Town, discount: float) -> TabularWorld:
    """The same streets, where who sets out on one may find himself on another."""
    pairs = town.world.pair_table()
    pairs["to"] = town.world.states.to_numpy()[town.world.transitions.next_state]
    rows = [
        {"state": state, "action": meant, "next_state": to, "probability": chance(meant == taken, len(streets))}
        for state, streets in pairs.groupby("state", sort=False)
        for meant in streets["action"]
        for taken, to in zip(streets["action"], streets["to"], strict=True)
    ]
    base = pairs[["state", "action"]].assign(log_base=town.world.log_base_of_pair.numpy())
    return from_table(pd.DataFrame(rows), log_base=base, discount=discount)


@dataclass(frozen=True)
class Case:
    """One world, and people of one kind in it."""

    town: Town
    world: TabularWorld
    kind: str

    def reward(self, theta: Tensor | None = None) -> Linear:
        columns = features(self.world, self.town.street_features.numpy(), names=list(TRUE))  # in the same order
        return Linear(columns, theta)

    def policy(self, theta: Tensor) -> SoftPolicy:
        return SoftPolicy(self.world.solve(self.reward(theta), [None]))

    def data(self, people: int, n: int, key: Key) -> Iterator[Feedback]:
        """So many data sets of people who choose by this kind of likelihood."""
        paths: list[Path] = list(enumerate_paths(self.world, HOME, max_steps=2 * SIDE))
        batch = self.world.collate([None] * len(paths), paths)
        kind = "causal" if self.kind == "weighted" else self.kind  # the policy of both
        with torch.no_grad():
            log_p = self.world.solve(self.reward(self.town.theta), [None], kind=kind).log_prob(batch)
            if kind == "causal":
                log_p = log_p + self.world.log_dynamics(batch)
        for k in range(n):
            chosen = key.at("people", k).numpy().choice(len(paths), people, p=log_p.softmax(0).numpy())
            yield demonstrations(None, [paths[i] for i in chosen])

    def matched(self, feedback: Feedback) -> Tensor:
        """The exact maximum of ``mean return - V(x)``: feature matching, to which variational comes down."""
        batch = self.world.collate([None] * len(feedback), feedback.trajectories)
        rows = self.town.reward().features.values[batch.pair]
        mean = (rows * batch.step_weight[:, None]).sum(0) / len(feedback)

        def objective(theta: Tensor) -> Tensor:
            reward = self.reward()
            value = torch.func.functional_call(_Value(self.world, reward), {"reward.theta": theta}, ())
            return theta @ mean - value

        return maximum(objective, len(mean))[1]


class _Value(torch.nn.Module):
    def __init__(self, world: TabularWorld, reward: Linear):
        super().__init__()
        self.world, self.reward = world, reward

    def forward(self) -> Tensor:
        return self.world.solve(self.reward, [None]).log_z([None], [HOME])[0]


def ways(case: Case, sizes: Sizes) -> dict[str, Callable[[Feedback, Key], Tensor]]:
    """Name -> how theta is fitted to one data set."""
    world, theta = case.world, case.town.theta
    kind = None if world.deterministic else "anticipative"

    def rivals(proposal, n: int = 8) -> Callable[[Feedback, Key], Tensor]:
        return lambda data, key: (
            fit_reward(case.reward(), Term(data, sampled(world, proposal, n=n, kind=kind, key=key))).theta
        )

    def in_rounds(data: Feedback, key: Key) -> Tensor:
        term = Term(data, variational(world, n=256))
        learner = expected()
        return fit_jointly(
            case.reward(),
            SoftmaxPolicy(world),
            term,
            world,
            learner=learner,
            rounds=sizes.rounds,
            policy_steps=3,
            key=key,
        )[0].theta

    half, wrong = case.policy(theta / 2), case.policy(-theta)
    found = {
        f"exact, {case.kind}": lambda data, key: (
            fit_reward(case.reward(), Term(data, exact(world, kind=case.kind))).theta
        )
    }
    if case.kind == "weighted":
        return found | {
            MATCHED: lambda data, key: case.matched(data),
            IN_ROUNDS: in_rounds,
        }
    return found | {
        "8 rivals from mu": rivals(Base()),
        "8, half-trained policy": rivals(FromPolicy(half)),
        "8, wrong-signed policy": rivals(FromPolicy(wrong)),
        "8, half mu, half wrong": rivals(wrong),
        "32, wrong-signed policy": rivals(FromPolicy(wrong), 32),
    }


def cases(town: Town) -> dict[str, Case]:
    return {
        "town": Case(town, town.world, "anticipative"),
        "slippery": Case(town, slippery(town, 1.0), "anticipative"),
        "discounted": Case(town, slippery(town, DISCOUNT), "weighted"),
    }


def measure(town: Town, key: Key, sizes: Sizes) -> dict[str, float]:
    """Every number of table 10: root mean square errors in units of 1/spread of the features."""
    numbers: dict[str, float] = {"people": float(sizes.people)}
    f, p = town.listing.features, town.log_p(town.theta).exp()
    spread = (p @ f.square() - (p @ f).square()).sqrt()
    for where, case in cases(town).items():
        n = sizes.joint if case.kind == "weighted" else sizes.data_sets
        found: dict[str, list[Tensor]] = {}
        for k, data in enumerate(case.data(sizes.people, n, key.at(where))):
            for name, fit in ways(case, sizes).items():
                found.setdefault(name, []).append(fit(data, key.at(where, "rivals", k)) * spread)
        best = torch.stack(found[f"exact, {case.kind}"])
        for name, thetas in found.items():
            these = torch.stack(thetas)
            numbers[f"{where}.{name}.error"] = float((these - town.theta * spread).square().mean().sqrt())
            numbers[f"{where}.{name}.to_exact"] = float((these - best).square().mean().sqrt())
            if name == IN_ROUNDS:
                numbers["rounds.to_matched"] = float((these - torch.stack(found[MATCHED])).square().mean().sqrt())
        numbers[f"{where}.data_sets"] = float(n)
    return numbers


TITLES = {
    "town": "the town",
    "slippery": f"slippery: {SLIP:.0%} are\ncarried elsewhere",
    "discounted": f"slippery, and\ndiscount {DISCOUNT:g}",
}


def show(to: Console, numbers: dict[str, float]) -> None:
    rows = table(
        "10. Beside the exact likelihood of their kind: root mean square errors",
        *("world", "likelihood", "to the truth", "to the exact\nlikelihood's"),
        left=2,
    )
    for where, title in TITLES.items():
        names = [k.split(".")[1] for k in numbers if k.startswith(f"{where}.") and k.endswith(".error")]
        lines = [*title.splitlines(), *[""] * len(names)]
        for line, name in zip(lines, names, strict=False):
            error, distance = numbers[f"{where}.{name}.error"], numbers[f"{where}.{name}.to_exact"]
            rows.add_row(line, name, f"{error:.3f}", f"{distance:.3f}" if distance else "-")
        rows.add_section()
    to.print(rows)
    a, b = f"{numbers['town.data_sets']:.0f}", f"{numbers['discounted.data_sets']:.0f}"
    say(
        to,
        f"""
        Sampled (rivals) and variational: {a} data sets ({b} under a discount) of {numbers["people"]:.0f} demonstrations
        each, by people of the kind that is fitted; errors of theta in nats for one spread of a feature. Rivals are
        drawn once, from policies towards the true reward. A bad proposal costs, half a base measure insures against it,
        and more rivals help slowly. Variational, here with the exact policy of every round, comes down to feature
        matching, the mean return of the demonstrations minus the soft value, from which it is
        {numbers["rounds.to_matched"]:.3f} away. With nature's luck in the return, that differs from the likelihood of
        steps on a finite sample; it agrees in expectation.
        """,
    )
