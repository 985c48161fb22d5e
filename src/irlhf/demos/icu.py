"""What do clinicians value? Learned from what they do, from what they would prefer, and from both.

Intensive-care stays are sampled from the clinicians' policy of an MDP that was estimated from records; comparisons of
stays are simulated by a judge who knows that policy. Neither source is told the reward it should show. Eleven numbers
of a linear reward are fitted to each alone and to both together; where the two can be compared they should agree, and
shuffled comparisons should not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy import stats
from torch import Tensor, nn

from irlhf import Feedback, Fit, Source, Term, comparisons, demonstrations, exact, fit_reward, listed
from irlhf.demos.screen import console, say, table, working, write_page
from irlhf.demos.sepsis import INSTALL, PATIENT_STATES, Sepsis, load
from irlhf.randomness import Key
from irlhf.rewards import Implicit
from irlhf.worlds.tabular import Features, Linear, SoftmaxPolicy, TabularBatch, TabularWorld

REPORT = Path("runs") / "demo-icu" / "report.html"
COLD = 1e-3  # a temperature at which the likeliest dose is the best one
Numbers = dict[str, float | str]
REWARDS = ("demonstrations", "comparisons", "both", "shuffled")
SAYS = {
    "demonstrations": "demonstrations",
    "comparisons": "comparisons",
    "both": "both",
    "shuffled": "shuffled comparisons",
    "as sums": "comparisons, read as sums",
    "survival only": "demonstrations, survival only",
    "cloning": "no reward: cloned stays",
}
POLICIES = {
    "random": "any admissible dose",
    "clinicians": "clinicians",
    "learned": "of the learned reward (both)",
    "greedy": "... always its best dose",
    "optimal": "best for survival",
}
NOTES = (
    "An MDP estimated from intensive-care records (package icu-sepsis); not medical advice.",
    "Stays are sampled from the clinicians' policy; the comparisons are simulated.",
)


class SoftOptimal(nn.Module):
    """The policy of a reward: ``pi(a|s) = mu exp(r + E V - V)`` with the soft values V of the world."""

    def __init__(self, reward: nn.Module, world: TabularWorld):
        super().__init__()
        self.reward, self.world = reward, world

    def log_prob(self, batch: TabularBatch) -> Tensor:
        return self.world.solve(self.reward).step_log_prob(batch)


class Decisions(Implicit):
    """A linear reward, seen through the decisions that it makes: a stay is worth ``sum_t log pi_R(a_t|s_t)/mu``.

    A judge of decisions does not credit luck: a patient who died after the best doses was treated well. The sum of
    rewards along a stay does credit it. In a deterministic world the two differ by a constant per start; here they do
    not, and a model must compare what the judge compares (Knox et al. 2022; Hejna et al. 2023). For demonstrations
    nothing changes: their likelihood is ``sum_t log pi_R`` anyway.
    """

    def __init__(self, features: Features, world: TabularWorld):
        super().__init__(SoftOptimal(Linear(features), world), world, temperature=1.0)
        self.parameter_labels = {"policy.reward.theta": list(features.names)}
        self.parameter_scale = Linear(features).parameter_scale


def clinicians_judgment(sepsis: Sepsis) -> Implicit:
    """``log pi/mu`` of the clinicians' own policy, state by state: what the simulated judge goes by."""
    policy = SoftmaxPolicy(sepsis.world)
    with torch.no_grad():
        policy.logits.copy_(sepsis.log_clinicians)
    return Implicit(policy, sepsis.world)


def observe(sepsis: Sepsis, n: int, rng: np.random.Generator) -> tuple[Feedback, Feedback]:
    """(n stays as clinicians treat them, n simulated comparisons of two such stays that start in the same state)."""
    starts = sepsis.starts(n, rng)
    stays = demonstrations(starts, sepsis.sample(sepsis.log_clinicians, starts, rng))
    starts = sepsis.starts(n, rng)
    first, second = (sepsis.sample(sepsis.log_clinicians, starts, rng) for _ in range(2))
    judge = clinicians_judgment(sepsis)
    with torch.no_grad():
        one, other = (judge(sepsis.world.collate(starts, stay)).numpy() for stay in (first, second))
    prefers_second = rng.random(n) < 1 / (1 + np.exp(one - other))  # Bradley-Terry
    return stays, comparisons(starts, first, second, prefers_second.astype(int).tolist())


def shuffled(pairs: Feedback, rng: np.random.Generator) -> Feedback:
    """The same pairs with each other's answers: what is left is chance."""
    return replace(pairs, chosen=rng.permutation(pairs.chosen))


def learn(
    sepsis: Sepsis, stays: Feedback, pairs: Feedback, mixed: Feedback
) -> Iterator[tuple[str, Callable[[Any], Fit]]]:
    """(name, a function that fits) for every reward that is learned."""
    world, features = sepsis.world, sepsis.features()

    def of(reward: nn.Module, *terms: Term) -> Callable[[Any], Fit]:
        return lambda progress: fit_reward(reward, list(terms), progress=progress)

    def own() -> Decisions:
        return Decisions(features, world)

    did = Term(stays, exact(world))
    yield "demonstrations", of(own(), did)
    yield "comparisons", of(own(), Term(pairs, listed(world)))
    yield "both", of(own(), did, Term(pairs, listed(world), Source(fit_temperature=True)))
    yield "shuffled", of(own(), Term(mixed, listed(world)))
    yield "as sums", of(Linear(features), Term(pairs, listed(world)))
    survival = Features(features.values[:, features.names.index("survival")][:, None], ("survival",), "pairs")
    yield "survival only", of(Decisions(survival, world), did)


def main(*, seed: int = 0, quick: bool = False, report: Path | None = REPORT) -> Numbers:
    """Prints three tables; returns every number in them. ``quick`` observes fewer stays; ``report`` is a page to write.

    Raises:
        ConfigError: the package ``icu-sepsis`` is not installed.
    """
    to = console()
    sepsis = load()
    introduce(to, sepsis)
    n = 1500 if quick else 5000
    rng = Key(seed).at("icu").numpy()
    stays, pairs = observe(sepsis, n, rng)
    new_stays, new_pairs = observe(sepsis, n // 2, rng)
    fits: dict[str, Fit] = {}
    with working() as starting:
        for name, fit in learn(sepsis, stays, pairs, shuffled(pairs, rng)):
            fits[name] = fit(starting(SAYS[name]))
    temperature = fits["both"].sources["comparisons"].temperature.item()
    numbers: Numbers = {"stays": float(n), "outside": sepsis.outside(), "temperature": temperature}
    numbers |= parameters(fits, temperature)
    for name in ("comparisons", "shuffled", "as sums"):
        numbers |= {f"{name}.{k}": v for k, v in agreement(fits["demonstrations"], fits[name], temperature).items()}
    numbers |= explained(sepsis, fits, new_stays, new_pairs)
    for name, log_policy in policies(sepsis, fits["both"]).items():
        numbers |= {f"policy {name}.{k}": v for k, v in sepsis.outlook(log_policy).items()}
    show(to, list(sepsis.features().names), numbers)
    if report is not None:
        held_out = [fits["both"].terms[0].on(new_stays), fits["both"].terms[1].on(new_pairs)]
        config = {"demo": "icu", "seed": seed, "stays": n, "data": INSTALL}
        write_page(to, "joint fit", fits["both"], report, held_out=held_out, config=config, notes=NOTES)
    return numbers


def parameters(fits: dict[str, Fit], temperature: float) -> Numbers:
    """Estimates and standard errors by name; those from comparisons in units of the demonstrations' reward."""
    numbers: Numbers = {}
    for name in REWARDS:
        unit = temperature if name == "comparisons" else 1.0
        table = fits[name].table()
        for feature, estimate, error in zip(table.index, table["estimate"], table["std. error"], strict=True):
            if not str(feature).endswith("log_temperature"):
                numbers |= {f"{name}.{feature}": float(unit * estimate), f"{name}.{feature}.se": float(unit * error)}
    return numbers


def agreement(one: Fit, other: Fit, temperature: float) -> dict[str, float]:
    """Compares two rewards in the directions that both sources see.

    What a source is blind to is the null space of its information matrix; whatever an estimate says there is the
    starting value. So both are projected on what is left, and measured in standard errors of their difference
    (sandwich: neither model need be right). Returns the correlation of the two (the cosine of their angle; what is
    hardly seen hardly counts) and the squared length of their difference, Wald's test that they are one.
    """
    scale, names = one.problem.scale.numpy(), list(one.params.index)
    blind = [[d.get(name, 0.0) for name in names] for fit in (one, other) for d in fit.unidentified]
    u, size, _ = np.linalg.svd((np.array([*blind, np.zeros(len(names))]) * scale).T)
    seen = u[:, int((size > 1e-6).sum()) :].T

    def project(fit: Fit, unit: float) -> tuple[np.ndarray, np.ndarray]:
        covariance = np.nan_to_num(fit.covariance("sandwich", cluster="datum").to_numpy(), posinf=0.0)
        to_seen = seen * scale * unit
        return to_seen @ fit.params.to_numpy(), to_seen @ covariance @ to_seen.T

    (a, variance_a), (b, variance_b) = project(one, 1.0), project(other, temperature)
    root = np.linalg.cholesky(variance_a + variance_b)
    a, b = np.linalg.solve(root, a), np.linalg.solve(root, b)
    statistic = float((a - b) @ (a - b))
    return {
        "directions": float(len(seen)),
        "correlation": float(a @ b / np.sqrt((a @ a) * (b @ b))),
        "wald": statistic,
        "p": float(stats.chi2.sf(statistic, len(seen))),
    }


def explained(sepsis: Sepsis, fits: dict[str, Fit], stays: Feedback, pairs: Feedback) -> Numbers:
    """How much of what can be known about new stays and new comparisons each reward knows: 0 chance, 1 the source."""
    world, numbers = sepsis.world, {}
    judge = clinicians_judgment(sepsis)
    for what, term in (("stays", Term(stays, exact(world))), ("pairs", Term(pairs, listed(world)))):
        with torch.no_grad():
            best = float(term.log_prob(judge).sum())
            chance = len(pairs) * np.log(0.5)
            if what == "stays":
                chance = float(world.log_base(term.prepared.batch).sum())
            rewards = {name: fit.reward for name, fit in fits.items()} | {"cloning": cloned(fits["demonstrations"])}
            for name, reward in rewards.items():
                numbers[f"{name}.explains {what}"] = float((term.log_prob(reward).sum() - chance) / (best - chance))
    return numbers


def cloned(fit: Fit) -> Implicit:
    """Behavioral cloning of the same stays, without any features: log(count + 1) of every state and dose."""
    term = fit.terms[0]
    world = term.likelihood.world
    policy = SoftmaxPolicy(world)
    counts = torch.bincount(term.prepared.batch.pair, minlength=world.transitions.n_pairs)
    with torch.no_grad():
        policy.logits.copy_(torch.log1p(counts.double()))
    return Implicit(policy, world)


def policies(sepsis: Sepsis, fit: Fit) -> dict[str, Tensor]:
    """log pi [pairs] of those whose survival is compared."""
    world, features = sepsis.world, sepsis.features()
    survival = Linear(features, [float(name == "survival") for name in features.names])
    learned = fit.reward.policy.reward  # type: ignore[union-attr]
    with torch.no_grad():
        return {
            "random": world.log_base_of_pair,
            "clinicians": sepsis.log_clinicians,
            "learned": world.solve(learned).log_policy[0],
            "greedy": sepsis.likeliest(world.solve(learned, temperature=COLD).log_policy[0]),
            "optimal": sepsis.likeliest(world.solve(survival, temperature=COLD).log_policy[0]),
        }


def introduce(to: Console, sepsis: Sepsis) -> None:
    t, outside = sepsis.world.transitions, sepsis.outside()
    say(
        to,
        f"""
        [bold]What do clinicians value? Learned from what they do, and from what they would prefer.[/bold]

        An MDP estimated from records of intensive care (package icu-sepsis); [bold]not medical advice[/bold].
        {PATIENT_STATES} states of patients with sepsis, 5 levels of fluid x 5 of vasopressor, {t.n_pairs:,} admissible
        pairs of a state and a dose ({outside:.0%} of what clinicians do is too rare in the records to know what it
        leads to, and left out). A stay ends in death or survival, so nothing is discounted (discount 1: all sums are
        finite). mu gives every admissible dose alike.
        """,
    )


def show(to: Console, features: list[str], numbers: Numbers) -> None:
    """Three tables: what was learned, how far it agrees, what it means for survival."""
    values = {name: float(value) for name, value in numbers.items()}
    n = f"{values['stays']:,.0f}"
    say(
        to,
        f"""
        Demonstrations: {n} stays sampled from the clinicians' policy. Comparisons: {n} pairs of such stays with the
        same start; [bold]the answers are simulated[/bold], by Bradley-Terry on sum_t log pi/mu of the clinicians' own
        policy. The linear reward R never sees those numbers: a stay is worth sum_t log pi_R/mu to it.
        """,
    )
    rows = table("1. The reward: estimate (standard error), and z of the difference", "feature", *REWARDS, "z")
    for name in features:
        cells = []
        for source in REWARDS:
            estimate, error = (values[f"{source}.{name}{end}"] for end in ("", ".se"))
            cells.append(f"{estimate:.3f} ({error:.3f})" if np.isfinite(error) else "not seen")
        (a, sa), (b, sb) = ([values[f"{s}.{name}{e}"] for e in ("", ".se")] for s in REWARDS[:2])
        z = f"{(a - b) / np.hypot(sa, sb):.1f}" if np.isfinite(sa + sb) else ""
        rows.add_row(name, *cells, z)
    to.print(rows)
    say(
        to,
        f"""
        fluid and vasopressor are levels 0 to 4; SOFA (organ failure) and axis 2 (second principal component of 47
        measurements) have standard deviation 1; survival is the probability that this step ends in discharge.
        Comparisons are in units of the demonstrations, T_s = {values["temperature"]:.2f} from the joint fit; standard
        errors are from the Hessian. "SOFA change", a reward often written by hand, is pure shaping: no decision depends
        on it, both information matrices are blind to it, and {values["comparisons.directions"]:.0f} of {len(features)}
        directions are left to compare. "shuffled": the same pairs with each other's answers.
        """,
    )
    rows = table(
        "2. Do they agree? And how much of what can be predicted of new observations do they predict?",
        *("reward learned from", "correlation with\ndemonstrations", "chi2 of the\ndifference", "p"),
        *("explains\nnew stays", "explains\nnew pairs"),
    )
    for name, words in SAYS.items():
        cells = ["", "", ""]
        if f"{name}.correlation" in values:
            correlation, wald, p = (values[f"{name}.{k}"] for k in ("correlation", "wald", "p"))
            cells = [f"{correlation:.3f}", f"{wald:.0f}", f"{p:.1g}"]
        rows.add_row(words, *cells, *(f"{values[f'{name}.explains {k}']:.1%}" for k in ("stays", "pairs")))
    to.print(rows)
    say(
        to,
        """
        Correlation and chi2 are over the directions that both see, in units of standard errors. Explained: 0% is
        chance, 100% the clinicians' own policy (for pairs: the judge's own numbers). A small p says that more data tell
        the two apart: a few features are not what clinicians go by, and what they leave out weighs differently in one
        dose and in a whole stay. "read as sums": the same comparisons, fitted as if a judge added up rewards along the
        stay. This judge does not credit luck, so that model is wrong here and disagrees: what people compare is part
        of the model. Cloning has a number for every state and dose, not one for each feature: it predicts the same
        hospital better, and says nothing of why.
        """,
    )
    rows = table(
        "3. What for? Exact values of five policies", "policy", "survival", "steps", "fluid level", "vasopressor"
    )
    for name, words in POLICIES.items():
        survival, steps, fluid, pressor = (
            values[f"policy {name}.{k}"] for k in ("survival", "steps", "fluid", "vasopressor")
        )
        rows.add_row(words, f"{survival:.3f}", f"{steps:.1f}", f"{fluid:.2f}", f"{pressor:.1%}")
    to.print(rows)
    say(
        to,
        f"""
        Clinicians do not act in this MDP as if survival alone counted. Survival alone, at its best weight, explains
        {values["survival only.explains stays"]:.1%} of what can be explained of new stays, the learned reward
        {values["both.explains stays"]:.0%}; in it, beside the doses (few vasopressors above all), survival weighs
        {values["both.survival"]:.2f} ({values["both.survival.se"]:.2f}). Its policy survives like the clinicians',
        {values["policy learned.survival"]:.3f}; what is best for survival in the MDP is not what they do
        ({values["policy optimal.survival"]:.3f}). The records may explain that as well as the clinicians: states are
        coarse, and doses were given for reasons that no state holds.
        """,
    )


if __name__ == "__main__":
    main()
