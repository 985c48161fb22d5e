"""Do RLHF and inverse reinforcement learning line up? Answered in numbers where every path can be listed.

In a town of thirteen ways (:mod:`irlhf.demos.town`) each objective that the field has a name for is a line or two of
plain tensors. Each is maximized by SciPy, beside the one likelihood of this library; the two columns must be the same
number: tables 1 to 3. The tables after them follow the note line by line, each in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from irlhf import (
    Feedback,
    Fit,
    Source,
    Term,
    comparisons,
    demonstrations,
    exact,
    fit_reward,
    listed,
    rankings,
    ratings,
)
from irlhf.demos import baselines, closing, distilled, gradients, offsets, partition
from irlhf.demos.screen import console, say, table
from irlhf.demos.town import HOME, TRUE, Listed, Town, build, kl, maximum
from irlhf.randomness import Key
from irlhf.rewards import Implicit
from irlhf.worlds.tabular import Path, SoftmaxPolicy, Tabular, TabularWorld

COMPARER = 2.0  # T_s: whoever compares two walks is noisier than the walker
KINDS = ("demonstrations", "comparisons", "rankings", "ratings")


@dataclass(frozen=True)
class Answers:
    """What the simulated people said, as numbers of paths."""

    walked: Tensor  # [n]
    preferred: Tensor  # [n, 2] the preferred one first
    ranked: Tensor  # [n, 4] best first
    rated: Tensor  # [n]
    thumb: Tensor  # [n] 1 is up

    def as_feedback(self, paths: list[Path]) -> dict[str, Feedback]:
        def walks(numbers: Tensor) -> list[Path]:
            return [paths[int(i)] for i in numbers]

        at = ["home"] * len(self.walked)
        first, second = walks(self.preferred[:, 0]), walks(self.preferred[:, 1])
        return {
            "demonstrations": demonstrations(at, walks(self.walked)),
            "comparisons": comparisons(at, first, second, [0] * len(at)),
            "rankings": rankings(at, [walks(row) for row in self.ranked]),
            "ratings": ratings(at, walks(self.rated), self.thumb.tolist()),
        }


def ask(listing: Listed, n: int, rng: np.random.Generator) -> Answers:
    """Simulated people who all have one reward in mind: (1) for walks, Gumbel noise (Luce choices) for the rest."""
    reward = (listing.features @ torch.tensor(list(TRUE.values())).double()).numpy()
    mu = (listing.streets @ listing.log_mu).numpy()
    k = len(reward)
    p = np.exp(reward + mu)
    shown = rng.permuted(np.tile(np.arange(k), (n, 1)), axis=1)
    pair, four = shown[:, :2], shown[:, 2:6]
    pair_order = np.argsort(-(reward[pair] / COMPARER + rng.gumbel(size=pair.shape)), axis=1)
    four_order = np.argsort(-(reward[four] + rng.gumbel(size=four.shape)), axis=1)
    rated = shown[:, 6]
    up = rng.random(n) < 1 / (1 + np.exp(-(reward[rated] - np.median(reward))))
    arrays = (
        rng.choice(k, n, p=p / p.sum()),
        np.take_along_axis(pair, pair_order, 1),
        np.take_along_axis(four, four_order, 1),
        rated,
        up.astype(int),
    )
    return Answers(*(torch.from_numpy(a) for a in arrays))


def named_objectives(listing: Listed, said: Answers) -> dict[tuple[str, str], tuple[str, Callable, int]]:
    """(feedback, column) -> the field's name, its log-likelihood of a flat vector, and the length of that vector."""
    n_features, n_streets = listing.features.shape[1], len(listing.corner)
    log_mu = listing.streets @ listing.log_mu
    logsigmoid = torch.nn.functional.logsigmoid

    def explicit(theta: Tensor) -> Tensor:
        return listing.features @ theta

    def implicit(logits: Tensor) -> Tensor:
        return listing.log_pi(logits) - log_mu

    def irl(theta):
        return (explicit(theta) + log_mu).log_softmax(0)[said.walked].sum()

    def cloning(logits):
        return listing.log_pi(logits)[said.walked].sum()

    def bradley_terry(reward):
        return lambda v: logsigmoid((reward(v)[said.preferred] @ torch.tensor([1.0, -1.0]).double()) / COMPARER).sum()

    def dpo(logits):
        log_pi, beta = listing.log_pi(logits), 1.0 / COMPARER
        win, lose = said.preferred.T
        return logsigmoid(beta * ((log_pi[win] - log_mu[win]) - (log_pi[lose] - log_mu[lose]))).sum()

    def plackett_luce(reward):
        def value(v):
            u = reward(v)[said.ranked]
            return sum((u[:, k] - u[:, k:].logsumexp(1)).sum() for k in range(u.shape[1] - 1))

        return value

    def bernoulli(reward):
        sign = (2 * said.thumb - 1).double()
        return lambda v: logsigmoid(sign * (reward(v[:-1])[said.rated] - v[-1])).sum()

    return {
        ("demonstrations", "explicit"): ("maximum-entropy IRL", irl, n_features),
        ("demonstrations", "implicit"): ("behavioral cloning", cloning, n_streets),
        ("comparisons", "explicit"): ("Bradley-Terry reward model", bradley_terry(explicit), n_features),
        ("comparisons", "implicit"): ("DPO, beta = T/T_s", dpo, n_streets),
        ("rankings", "explicit"): ("Plackett-Luce reward model", plackett_luce(explicit), n_features),
        ("rankings", "implicit"): ("Plackett-Luce DPO", plackett_luce(implicit), n_streets),
        ("ratings", "explicit"): ("classifier reward model", bernoulli(explicit), n_features + 1),
        ("ratings", "implicit"): ("binary classifier optimization", bernoulli(implicit), n_streets + 1),
    }


def distill(listing: Listed, reward: Tensor) -> tuple[float, Tensor]:
    """max over policies of ``E_pi[R] - KL(pi || mu)``, exact expectation: (the maximum, log pi of each path)."""
    log_mu = listing.streets @ listing.log_mu

    def value(logits: Tensor) -> Tensor:
        log_pi = listing.log_pi(logits)
        return (log_pi.exp() * (reward - (log_pi - log_mu))).sum()

    best, logits = maximum(value, len(listing.corner))
    return best, listing.log_pi(logits)


def fit(world: TabularWorld, feedback: Feedback, kind: str, reward: torch.nn.Module) -> Fit:
    """The one likelihood of this library: only how the choice set is closed depends on the kind of feedback."""
    return fit_reward(reward, term(world, feedback, kind))


def term(world: TabularWorld, feedback: Feedback, kind: str) -> Term:
    likelihood = exact(world) if kind == "demonstrations" else listed(world)
    return Term(feedback, likelihood, Source(COMPARER if kind == "comparisons" else 1.0))


def main(*, seed: int = 0, quick: bool = False) -> dict[str, float | str]:
    """Prints ten tables; returns every number in them. ``quick`` asks fewer simulated people."""
    rng = Key(seed).at("lineup").numpy()
    town = build(rng)
    world, listing, log_mu = town.world, town.listing, town.log_mu
    said = ask(listing, 500 if quick else 2000, rng)
    feedback = said.as_feedback(listing.paths)
    numbers: dict[str, float | str] = {"paths": float(len(listing.paths)), "answers": float(len(said.walked))}

    named = named_objectives(listing, said)
    linear: dict[str, Fit] = {}
    implicit: dict[str, Fit] = {}
    for (kind, column), (name, objective, n) in named.items():
        if column == "explicit":
            ours = linear[kind] = fit(world, feedback[kind], kind, town.reward())
        else:
            reward = Implicit(SoftmaxPolicy(world), world, temperature=1.0)
            ours = implicit[kind] = fit(world, feedback[kind], kind, reward)
        theirs, _ = maximum(objective, n)
        key = f"{kind}.{column}"
        numbers |= {f"{key}.name": name, f"{key}.irlhf": ours.objective, f"{key}.field": theirs}
        numbers[f"{key}.difference"] = abs(ours.objective - theirs)

    for kind in KINDS:
        by_street = fit(world, feedback[kind], kind, Tabular(world, on="pairs"))
        batch = world.collate(["home"] * len(listing.paths), listing.paths)
        with torch.no_grad():
            reward = by_street.reward(batch)
            solution = world.solve(by_street.reward)
            log_p = solution.log_prob(batch)  # P = mu exp(R) / Z: what IRL says people do who have this R
            log_z = float(solution.log_z([None], [HOME]))
            log_direct = implicit[kind].reward(batch) + log_mu
        best, log_pi = distill(listing, reward)
        numbers |= {
            f"{kind}.street.irlhf": by_street.objective,
            f"{kind}.distilled": best,
            f"{kind}.log_z": log_z,
            f"{kind}.distilled.difference": abs(best - log_z),
            f"{kind}.kl_to_irl": kl(log_pi, log_p),
            f"{kind}.kl_to_implicit": kl(log_pi, log_direct),
        }

    together = fit_reward(town.reward(), [term(world, feedback[kind], kind) for kind in KINDS])
    for k, (name, true) in enumerate(TRUE.items()):
        numbers[f"{name}.true"] = true
        for label, one in {**linear, "together": together}.items():
            numbers[f"{name}.{label}"] = float(one.params.to_numpy()[k])
            numbers[f"{name}.{label}.se"] = float(one.standard_errors().to_numpy()[k])
    show(numbers)
    key = Key(seed).at("lineup")
    return numbers | follow_the_note(town, linear["demonstrations"].theta, key, quick=quick)


def follow_the_note(town: Town, theta: Tensor, key: Key, *, quick: bool) -> dict[str, float]:
    """Tables 4 to 10, each printed as soon as it is known; theta is what IRL found in the demonstrations."""
    rivals, steps, sizes = (4, 60, closing.Sizes(2, 1, 200, 20)) if quick else (8, 150, closing.Sizes())
    to, numbers = console(), {}
    for part, measured in (
        (gradients, lambda: gradients.measure(town, rivals)),
        (partition, lambda: partition.measure(town, key.at("log z"), rivals)),
        (offsets, lambda: offsets.measure(town)),
        (distilled, lambda: distilled.measure(town, theta, key.at("distilled"), steps)),
        (baselines, lambda: baselines.measure(town, theta, (2, 4) if quick else (2, 4, 8))),
        (closing, lambda: closing.measure(town, key.at("closing"), sizes)),
    ):
        found = measured()
        part.show(to, found)
        numbers |= {f"{part.__name__.rpartition('.')[2]}.{name}": value for name, value in found.items()}
    return numbers


def show(numbers: dict[str, float | str]) -> None:
    """The numbers as three tables with captions, at most 100 columns wide."""
    to = console()
    n, asked, beta = f"{numbers['paths']:.0f}", f"{numbers['answers']:.0f}", 1 / COMPARER
    say(
        to,
        f"""
        [bold]Is RLHF related to inverse RL? Write out the mathematics of both and see if they line up.[/bold]

            P(y|x) = mu(y|x) exp(R(y)/T) / Z(x)          exp(R)/Z of maximum-entropy IRL: mu = 1, T = 1

        A town with {n} ways y from home to work, so Z is a sum of {n} terms. mu is a stroller who turns at random, R
        adds up over the streets of a way, T = 1. {asked} simulated people answer each kind of question.
        """,
    )
    rows = table(
        "1. One likelihood under eight names: the largest log-likelihood that each of them reaches",
        *("feedback", "R is", "what the field calls it", "irlhf", "by hand", "difference"),
        left=3,
    )
    for kind in KINDS:
        for column, of in (("explicit", "3 features"), ("implicit", "log pi/mu")):
            key = f"{kind}.{column}"
            a, b, d = (numbers[f"{key}.{x}"] for x in ("irlhf", "field", "difference"))
            first = kind if column == "explicit" else ""
            rows.add_row(first, of, str(numbers[f"{key}.name"]), f"{a:.3f}", f"{b:.3f}", f"{d:.0e}")
        rows.add_section()
    to.print(rows)
    say(
        to,
        f"""
        "3 features": R = theta . (minutes, shade, shops); three numbers are fitted. "log pi/mu": the logits of a
        walker pi are fitted, and R = T log pi/mu is what pi stands for; then Z = 1. Under "irlhf" is one function,
        fit_reward; under "by hand" the named objective in a line of plain tensors, maximized by SciPy. People who
        compare are noisier, T_s = {COMPARER:g}, hence DPO's beta = T/T_s = {beta:g}.
        """,
    )
    rows = table(
        "2. The rows end alike: RLHF's policy is IRL's distribution is DPO's policy",
        *("feedback", "log-lik.\nR by street", "log-lik.\nR = log pi/mu", "distilled: max of\nE_pi R - T KL(pi,mu)"),
        *("T log Z", "KL(pi, P)\nP is IRL's", "KL(pi, pi')\npi' direct"),
    )
    for kind in KINDS:
        keys = ("street.irlhf", "implicit.irlhf", "distilled", "log_z")
        values = [f"{numbers[f'{kind}.{k}']:.6f}" for k in keys]
        small = [f"{abs(float(numbers[f'{kind}.{k}'])):.0e}" for k in ("kl_to_irl", "kl_to_implicit")]
        rows.add_row(kind, *values, *small)
    to.print(rows)
    say(
        to,
        """
        Here R has one number for each street, so an explicit and an implicit R can say the same things, and reach the
        same likelihood. Then R is distilled: E_pi R - T KL(pi, mu) is maximized over policies pi (the RL of RLHF, with
        exact expectations). Its maximum is T log Z and its maximizer is P = mu exp(R/T)/Z: the distribution that IRL
        fits, and the walker pi' that cloning or DPO finds directly.
        """,
    )
    rows = table(
        "3. So they add up: theta (standard error) from each, and from all together", "", "true", *KINDS, "all"
    )
    for name in TRUE:
        cells = [f"{numbers[f'{name}.{k}']:.2f} ({numbers[f'{name}.{k}.se']:.2f})" for k in (*KINDS, "together")]
        rows.add_row(name, f"{numbers[f'{name}.true']:.2f}", *cells)
    to.print(rows)


if __name__ == "__main__":
    main()
