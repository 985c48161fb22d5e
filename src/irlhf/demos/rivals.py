"""The taxi routes again, the sum over all routes replaced by a few that are drawn: what sampling costs in precision."""

from __future__ import annotations

import numpy as np
import torch
from rich.console import Console

from irlhf import Fit, FromPolicy, Term, estimate_log_z, fit_reward, sampled
from irlhf.demos.screen import say, table
from irlhf.demos.shanghai import Shanghai
from irlhf.feedback import Feedback
from irlhf.randomness import Key
from irlhf.worlds.tabular import Linear, SoftPolicy, Start

AGAIN = "8, then 8 from the policy of that fit"
ROWS = {"1": 1, "8": 8, "32": 32, AGAIN: 8}
DRAWS, ENDS = 256, 100  # draws of log Z for so many pairs of ends


def among_rivals(city: Shanghai, proposal: Fit, whole: Fit, routes: Feedback, *, seed: int) -> dict[str, float]:
    """The linear reward from routes among rivals drawn from q, beside the exact fit to the same routes."""
    goals = sorted({routes.contexts[x] for x in routes.context})
    with torch.no_grad():
        q = SoftPolicy(city.world.solve(proposal.reward, goals))
    exactly, scores = whole.params.to_numpy(), whole.standard_errors().to_numpy()
    numbers = {"rivals.routes": float(len(routes)), "rivals.exact.test": mean(whole.terms[0].on(city.test), whole)}
    again = q
    for name, n in ROWS.items():
        how = sampled(city.world, FromPolicy(again if name == AGAIN else q), n=n, key=Key(seed).at(name))
        fit = fit_reward(Linear(city.eight), Term(routes, how))
        if name == "8":
            again = SoftPolicy(city.world.solve(fit.reward, goals))
        apart = np.abs(fit.params.to_numpy() - exactly) / scores
        error = fit.standard_errors().to_numpy() / scores
        numbers |= {f"rivals.{name}.apart": float(apart.max()), f"rivals.{name}.error": float(error.max())}
        numbers |= {f"rivals.{name}.test": mean(whole.terms[0].on(city.test), fit)}
    paths, contexts = routes.trajectories, routes.context
    ends = [Start(paths[k].states[0], routes.contexts[contexts[k]]) for k in range(min(ENDS, len(routes)))]
    found = estimate_log_z(whole.reward, city.world, ends, q, n=DRAWS, key=Key(seed).at("log_z"))
    with torch.no_grad():
        truth = city.world.best(whole.reward, ends).numpy()
    share = found["effective_sample_size"].to_numpy() / DRAWS
    wrong, trusted = (found["log_z"].to_numpy() - truth) ** 2, (found["verdict"] == "reliable").to_numpy()
    numbers |= {
        "rivals.share": float(np.median(share)),
        "rivals.trusted": float(trusted.mean()),
        "rivals.log_z": float(np.sqrt(wrong.mean())),
        "rivals.log_z.trusted": float(np.sqrt(wrong[trusted].mean())),
    }
    return numbers


def mean(term: Term, fit: Fit) -> float:
    """The mean exact log-likelihood of a term under a reward that was fitted otherwise."""
    with torch.no_grad():
        return float(term.log_prob(fit.reward).mean())


def show_rivals(to: Console, numbers: dict[str, float]) -> None:
    """The fourth table."""
    rows = table(
        f"4. The same reward from {numbers['rivals.routes']:,.0f} routes, each among rivals drawn from q",
        *("rivals of each route", "test route", "largest difference\nin exact errors", "largest ratio\nof errors"),
    )
    rows.add_row("all routes (exact)", f"{numbers['rivals.exact.test']:.4f}", "", "1.00")
    for row in ROWS:
        cells = (numbers[f"rivals.{row}.{name}"] for name in ("test", "apart", "error"))
        rows.add_row(row, *(f"{x:.{digits}f}" for x, digits in zip(cells, (4, 2, 2), strict=True)))
    to.print(rows)
    say(
        to,
        f"""
        q is the fit with two features of table 3; mu's own walks hardly ever arrive. "errors": standard errors, the
        exact ones and those of the sampled likelihood, which know of the rivals: what sampling loses. Rivals from a
        poor q cost precision, and where the reward is not the whole truth they also move what fits best; rivals from
        the policy of the fit itself give the exact fit back, which is what a joint fit does in rounds. Log Z between
        {ENDS} pairs of ends by {DRAWS} draws of q: {numbers["rivals.share"]:.0%} of the draws are effective (median),
        {numbers["rivals.trusted"]:.0%} of the verdicts are "reliable", and the error is {numbers["rivals.log_z"]:.2f}
        nats (root mean square), {numbers["rivals.log_z.trusted"]:.2f} where the verdict is so.
        """,
    )
