"""How do taxi drivers choose a route? Learned from routes that they took, and from pairs of taken and not taken.

24,468 observed routes on 714 links of Shanghai's streets, undiscounted, each to its own destination: the sum over all
routes of the network is exact. A linear reward, a neural one and one with a number for each turn are fitted to 100,
1,000 and 10,000 routes and asked about 4,893 others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as File
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.sparse.csgraph import connected_components, shortest_path
from torch import nn

from irlhf import LBFGS, Choice, Feedback, Fit, Normal, Term, exact, fit_reward, listed
from irlhf.demos.rivals import among_rivals, show_rivals
from irlhf.demos.screen import console, say, table, working, write_page
from irlhf.demos.shanghai import LEAST_TURN, SIZES, Shanghai, load
from irlhf.drawing import Picture, fading
from irlhf.errors import InfeasibleError
from irlhf.randomness import Key
from irlhf.worlds.tabular import Features, Linear, Neural, Path, Tabular, sample_paths
from irlhf.worlds.tabular.maps import network_map

REPORT = File("runs") / "demo-taxi" / "report.html"
Numbers = dict[str, float]
Progress = Callable[[dict[str, Any]], None]
COMMON = ("length/100 m", "u-turn")  # what the routes not taken are drawn by
MODELS = {
    "ways": "every way on alike",
    "two": "linear: length and u-turns",
    "eight": "linear, 8 features",
    "many": "linear, 22 features and a constant",
    "neural": "neural, the same 22 features",
    "turns": "a number for each of 1,737 turns",
}
# Chosen on a fifth of the 10,000 routes to train on, never on the test fold; see dev/LOG.md.
HIDDEN = (32, 32)
PRIOR = {"many": Normal(sd=1.0), "neural": Normal(sd=0.3), "turns": Normal(sd=2.0, mean=-1.0)}
STEPS = 150
# Where steps cost nothing, endless walks outweigh all others. These start where each step costs enough.
COSTLY = {"neural": {"net.4.bias": -3.0}, "two": {"length/100 m": -1.0, "u-turn": -2.0}}
NOTES = (
    "Routes of taxis with passengers in Shanghai: Zhao and Liang (2022), arXiv 2206.10598. The data are not part of "
    "irlhf.",
    "The files have only routes of 15 links or more that pass no link twice; the model has all routes.",
)


def only(features: Features, names: tuple[str, ...]) -> Features:
    """Some columns of a table."""
    return Features(features.values[:, [features.names.index(name) for name in names]], names, features.on)


def learn(city: Shanghai, model: str, routes: Feedback, *, steps: int = STEPS, progress: Progress | None = None) -> Fit:
    """One of ``MODELS``, fitted to some routes by its exact likelihood."""
    term = Term(routes, exact(city.world))
    one = torch.ones(len(city.many.values), 1).double()
    rewards: dict[str, Callable[[], nn.Module]] = {
        "two": lambda: Linear(only(city.eight, COMMON)),
        "eight": lambda: Linear(city.eight),
        "many": lambda: Linear(
            Features(torch.cat([city.many.values, one], 1), (*city.many.names, "constant"), "pairs")
        ),
        "neural": lambda: Neural(city.many, hidden=HIDDEN),
        "turns": lambda: Tabular(city.world, on="pairs"),
    }
    # Maximum likelihood to the last digit, or where many numbers have a prior, to a nat of thousands.
    search = LBFGS(max_steps=steps, tolerance=1.0, newton=0) if model in PRIOR else None
    how = {"prior": PRIOR.get(model), "optimizer": search, "start": COSTLY.get(model)}
    return fit_reward(rewards[model](), term, progress=progress, **how)


# ------------------------------------------------------------------------------------- routes taken, routes not taken


def destinations(routes: Feedback) -> list[Any]:
    return [routes.contexts[x] for x in routes.context]


def drawn(city: Shanghai, reward: nn.Module, routes: Feedback, rng: np.random.Generator) -> list[Path]:
    """For every route another one between the same ends, from the policy of a reward."""
    ends = np.array(destinations(routes))
    goals = np.unique(ends)
    with torch.no_grad():
        policies = city.world.solve(reward, goals.tolist()).log_policy
    result: list[Any] = [None] * len(ends)
    for goal, policy in zip(goals.tolist(), policies, strict=True):
        rows = np.flatnonzero(ends == goal)
        starts = [routes.trajectories[row].states[0] for row in rows.tolist()]
        paths = sample_paths(city.world, policy, starts, destinations=[goal] * len(rows), max_steps=10_000, seed=rng)
        for row, path in zip(rows, paths, strict=True):
            result[row] = path
    return result


def pairs(city: Shanghai, proposal: nn.Module, routes: Feedback, rng: np.random.Generator) -> tuple[Feedback, Feedback]:
    """(pairs of a route taken and one drawn from the proposal q, with the offset log mu - log q of both; without it).

    mu = 1 here. Where both are the same route nothing was chosen, and the pair is left out.
    """
    goals, taken, other = destinations(routes), list(routes.trajectories), drawn(city, proposal, routes, rng)
    with torch.no_grad():
        q = city.world.solve(proposal, sorted(set(goals)))
        offsets = [(-q.log_prob(city.world.collate(goals, paths))).tolist() for paths in (taken, other)]
    rows = [
        Choice(goal, shown, 0, offset, source="pairs")
        for goal, shown, offset in zip(goals, zip(taken, other, strict=True), zip(*offsets, strict=True), strict=True)
        if shown[0].states != shown[1].states
    ]
    bare = [Choice(row.context, row.shown, 0, source="pairs") for row in rows]
    return Feedback.of(rows), Feedback.of(bare)


# ----------------------------------------------------------------------------------------- what a reward says of routes


def step_rewards(city: Shanghai, reward: Any) -> NDArray[np.float64]:
    """[turns] The reward of each turn."""
    with torch.no_grad():
        return reward.step(city.world.table("pairs")).numpy()


def summed(city: Shanghai, step: NDArray[np.float64], routes: Feedback) -> NDArray[np.float64]:
    """[routes] A number of each turn, added up along each route."""
    batch = city.world.collate(destinations(routes), list(routes.trajectories))
    return np.bincount(batch.item.numpy(), step[batch.pair.numpy()], minlength=len(routes)).astype(float)


def best_taken(city: Shanghai, step: NDArray[np.float64], routes: Feedback) -> float:
    """The share of routes that are the best between their ends, by the reward of each turn."""
    t = city.world.transitions
    cost = sp.csr_array((-step, (t.state, t.next_state)), shape=(t.n_states, t.n_states))
    least = shortest_path(cost, method="J")
    own = summed(city, -step, routes)
    ends = [(path.states[0], path.states[-1]) for path in routes.trajectories]
    start, end = (city.world.state_numbers(side) for side in zip(*ends, strict=True))
    return float((own <= least[start, end] + 1e-9).mean())


def expected_use(city: Shanghai, reward: Any, routes: Feedback) -> NDArray[np.float64]:
    """[turns] How often each turn is taken by as many routes between the same ends: the gradient of all their log Z."""
    free = Tabular(city.world, on="pairs")
    with torch.no_grad():
        free.theta.copy_(torch.from_numpy(step_rewards(city, reward)))
    goals = destinations(routes)
    solution = city.world.solve(free, sorted(set(goals)))
    log_z = solution.log_z(goals, [path.states[0] for path in routes.trajectories])
    return torch.autograd.grad(log_z.sum(), free.theta)[0].numpy()


def observed_use(city: Shanghai, routes: Feedback) -> NDArray[np.float64]:
    """[turns] How often each turn was taken."""
    batch = city.world.collate(destinations(routes), list(routes.trajectories))
    return np.bincount(batch.pair.numpy(), minlength=city.world.transitions.n_pairs).astype(float)


# ---------------------------------------------------------------------------------------------------------------- main


def main(*, seed: int = 0, quick: bool = False, report: File | None = REPORT) -> Numbers:
    """Prints four tables; returns every number in them. ``quick`` learns from fewer routes; ``report`` is a page.

    Raises:
        ConfigError: the data are not there; says how to name their folder.
    """
    to = console()
    city = load()
    sizes = SIZES[:2] if quick else SIZES
    most, steps = sizes[-1], 20 if quick else STEPS
    introduce(to, city)
    fits: dict[tuple[str, int], Fit] = {}
    with working() as starting:
        for model in list(MODELS)[1:]:
            for size in sizes[-1:] if model == "two" else sizes:
                progress = starting(f"{MODELS[model]}, {size:,} routes")
                fits[model, size] = learn(city, model, city.train[size], steps=steps, progress=progress)
    numbers = estimates({size: fits["eight", size] for size in sizes})
    numbers |= predictions(city, fits, city.train[most])
    rng = Key(seed).at("taxi").numpy()
    numbers |= compared(city, fits["two", most], fits["eight", most], city.train[most], rng)
    numbers |= among_rivals(city, fits["two", most], fits["eight", most], city.train[most], seed=seed)
    show(to, list(city.eight.names), list(sizes), numbers)
    show_rivals(to, numbers)
    if report is not None:
        held_out = [fits["eight", most].terms[0].on(city.test)]
        config = {"demo": "taxi", "seed": seed, "routes": most, "features": list(city.eight.names)}
        drawings = maps(city, fits["neural", most].reward, "The neural reward.")
        contents = {"held_out": held_out, "config": config, "notes": NOTES, "pictures": drawings}
        write_page(to, "linear fit and the maps", fits["eight", most], report, **contents)
    return numbers


def estimates(fits: dict[int, Fit]) -> Numbers:
    """Estimate and standard error of each of the eight features, by number of routes."""
    return {
        f"{size}.{feature}{end}": float(value)
        for size, fit in fits.items()
        for end, column in (("", fit.params), (".se", fit.standard_errors()))
        for feature, value in column.items()
    }


def predictions(city: Shanghai, fits: dict[tuple[str, int], Fit], seen: Feedback) -> Numbers:
    """Log-likelihood of the test routes, all and those nobody took in training, and how many are the best route."""
    taken = {path.states for path in seen.trajectories}
    new = np.array([path.states not in taken for path in city.test.trajectories])
    numbers: Numbers = {"test": float(len(city.test)), "new": float(new.mean())}
    t = city.world.transitions
    ways = -np.log(np.bincount(t.state, minlength=t.n_states))[t.state]
    alike = summed(city, ways, city.test)
    scores = {("ways", len(seen)): alike} | {key: fit.score(city.test).to_numpy() for key, fit in fits.items()}
    for (model, size), score in scores.items():
        numbers[f"{model}.{size}.test"] = float(score.mean())
        if size == len(seen):
            numbers[f"{model}.new"] = float(score[new].mean())
    for model, size in fits:
        numbers[f"{model}.parameters"] = float(len(fits[model, size].theta))
        if size == len(seen):
            numbers[f"{model}.best"] = best_taken(city, step_rewards(city, fits[model, size].reward), city.test)
    numbers["shortest"] = best_taken(city, -city.length[t.next_state], city.test)
    return numbers


def compared(city: Shanghai, proposal: Fit, whole: Fit, routes: Feedback, rng: np.random.Generator) -> Numbers:
    """The eight coefficients from pairs, with the offsets that they need and without, beside those of whole routes."""
    offered, bare = pairs(city, proposal.reward, routes, rng)
    numbers: Numbers = {"pairs": float(len(offered)), "routes": float(len(routes))}
    sources = {"pairs": offered, "bare": bare}
    fits = {name: fit_reward(Linear(city.eight), Term(told, listed(city.world))) for name, told in sources.items()}
    for name, fit in {"whole": whole, **fits}.items():
        for end, column in (("", fit.params), (".se", fit.standard_errors())):
            numbers |= {f"{name}.{feature}{end}": float(value) for feature, value in column.items()}
        numbers[f"{name}.test"] = mean_or_nan(whole.terms[0].on(city.test), fit.reward)
    for feature in city.eight.names:
        numbers[f"proposal.{feature}"] = float(proposal.params.reindex([feature], fill_value=0.0).iloc[0])
    return numbers


def mean_or_nan(term: Term, reward: nn.Module) -> float:
    """The mean log-likelihood; NaN where the sum over all routes diverges."""
    try:
        with torch.no_grad():
            return float(term.log_prob(reward).mean())
    except InfeasibleError:
        return float("nan")


def maps(city: Shanghai, reward: Any, called: str) -> list[Picture]:
    """What a link costs by a reward, and where the test routes went beside where it expects them."""
    world, step = city.world, step_rewards(city, reward)
    following, n = world.transitions.next_state, world.transitions.n_states
    observed, expected = observed_use(city, city.test), expected_use(city, reward, city.test)
    weight = expected + 1e-9  # of the turns into a link: as they are expected to be taken
    cost = -np.bincount(following, weight * step, n) / np.bincount(following, weight, n) / city.length
    ranked = np.argsort(cost)
    share = np.cumsum(city.length[ranked]) / city.length.sum()
    low, high = (float(cost[ranked][np.searchsorted(share, at)]) for at in (0.05, 0.95))
    used = {"observed": np.bincount(following, observed, n).astype(float)}
    used["expected"] = np.bincount(following, expected, n).astype(float)
    part = connected_components(sp.csr_array((expected + 1, (world.transitions.state, following)), shape=(n, n)))[1]
    shown = part == np.bincount(part).argmax()
    bar = (1000.0, "1 km")
    return [
        network_map(
            city.segments[shown],
            {"cost": np.clip(cost, low, high)[shown]},
            title="What 100 m of each link cost",
            what="nats per 100 m",
            caption=f"{called} Each line is a link, on the right-hand side of its street. The turns into a link are "
            "part of its cost, each weighed as it is expected to be taken, so short links are dear. Colors end where "
            f"5% of all meters cost less or more. {int((~shown).sum())} links without a way to the rest are not shown.",
            bar=bar,
        ),
        network_map(
            city.segments[shown],
            {name: use[shown] for name, use in used.items()},
            title="Where the test routes went, and where they were expected",
            what="routes through the link",
            caption=f"{called} {len(city.test):,} routes that were not fitted; expected are as many between the same "
            "ends, and the sum over all routes is exact. Correlation over links "
            f"{np.corrcoef(used['observed'], used['expected'])[0, 1]:.3f}.",
            colors=fading(),
            by_width=True,
            bar=bar,
        ),
    ]


def introduce(to: Console, city: Shanghai) -> None:
    t = city.world.transitions
    say(
        to,
        f"""
        [bold]How do taxi drivers choose a route? Learned from routes that they took.[/bold]

        Streets of Shanghai: {t.n_states} links, {t.n_pairs:,} turns from link to link (Zhao and Liang 2022, arXiv
        2206.10598). Observed routes of 15 links or more, each to its own destination; the model has every route there
        is, and their sum is exact: no discount, no horizon, no sampled alternatives. mu = 1. Every number
        on {len(city.test):,} test routes is of routes that were not fitted.
        """,
    )


def show(to: Console, features: list[str], sizes: list[int], numbers: Numbers) -> None:
    """Three tables: what was learned, how well it predicts, and the same from pairs."""
    most = sizes[-1]
    rows = table("1. The linear reward: estimate (standard error)", "feature", *(f"{n:,} routes" for n in sizes))
    for name in features:
        rows.add_row(name, *(estimate(numbers, f"{n}.{name}") for n in sizes))
    to.print(rows)
    say(
        to,
        f"""
        Of the link that is entered: length, a constant, its class (others are the reference); of the turn into it: left
        or right by more than {LEAST_TURN:.0f} degrees, and back. In nats. Standard errors are from the Hessian, as if
        routes were independent: nobody knows which of them one driver took.
        """,
    )
    rows = table(
        "2. Log-likelihood of a test route, by the number of routes that were fitted",
        *("reward", "fitted\nnumbers", *(f"{n:,}" for n in sizes), "new\nroutes", "best\nroute"),
    )
    for model, words in MODELS.items():
        cells = [f"{numbers[f'{model}.parameters']:,.0f}" if model != "ways" else ""]
        cells += [f"{numbers[f'{model}.{n}.test']:.4f}" if f"{model}.{n}.test" in numbers else "" for n in sizes]
        cells += [f"{numbers[f'{model}.new']:.3f}"]
        rows.add_row(words, *cells, f"{numbers[f'{model}.best']:.1%}" if f"{model}.best" in numbers else "")
    rows.add_row("the shortest route", *[""] * (len(sizes) + 2), f"{numbers['shortest']:.1%}")
    to.print(rows)
    say(
        to,
        f"""
        The two columns on the right are of the fits to {most:,} routes. "new routes": the {numbers["new"]:.0%} of the
        test routes that nobody took in those {most:,}; the folds are of a random split, and busy routes are in both.
        "best route": how many test routes are the one best route between their ends. A number for each turn can say all
        that a Markov reward can say on this network; with enough routes it does, and tells nothing of another network.
        """,
    )
    rows = table(
        f"3. The same reward from {numbers['pairs']:,.0f} pairs of routes between the same ends",
        *("feature", "whole routes", "pairs", "pairs without\noffset", "whole routes\nminus q's"),
    )
    for name in features:
        cells = [estimate(numbers, f"{source}.{name}") for source in ("whole", "pairs", "bare")]
        rows.add_row(name, *cells, f"{numbers[f'whole.{name}'] - numbers[f'proposal.{name}']:.3f}")
    scores = ["infinite sum" if np.isnan(s := numbers[f"{k}.test"]) else f"{s:.4f}" for k in ("whole", "pairs", "bare")]
    rows.add_row("test route", *scores, "")
    to.print(rows)
    theta = ", ".join(f"{numbers[f'proposal.{name}']:.2f} for {name}" for name in COMMON)
    say(
        to,
        f"""
        In each pair one route was taken; the other is drawn from q, a fit with two features ({theta}). It is not what
        the driver was offered, but what q finds easy: each route of a pair needs the offset log mu - log q (McFadden
        1978). Without it the pairs learn the reward minus q's: right where q has no feature, wrong where it has, here
        in sign. With it they differ from whole routes by more than their errors: a linear reward is not the whole
        truth, and where it is not, what fits best depends on what the routes are set against.
        """,
    )


def estimate(numbers: Numbers, name: str) -> str:
    return f"{numbers[name]:.3f} ({numbers[f'{name}.se']:.3f})"


if __name__ == "__main__":
    main()
