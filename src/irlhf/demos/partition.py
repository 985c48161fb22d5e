"""Log Z from samples: the same 256 draws from five proposals, and what their weights say about themselves."""

from __future__ import annotations

import torch
from rich.console import Console

from irlhf import Base, FromPolicy, Mixture
from irlhf.demos.gradients import SHARES, Multisets, log_proposal
from irlhf.demos.screen import say, table
from irlhf.demos.town import HOME, Town
from irlhf.functional.weights import k_hat_threshold, log_z
from irlhf.proposals import Proposal
from irlhf.randomness import Key
from irlhf.worlds.tabular import Start

DRAWS = 256


def proposals(town: Town) -> dict[str, Proposal]:
    """The proposals of the library that :data:`irlhf.demos.gradients.SHARES` names, towards the true reward."""
    wrong = FromPolicy(town.policy(-town.theta))
    trained = {name: FromPolicy(town.policy(share * town.theta)) for name, share in SHARES.items() if share}
    return {name: Base() if share == 0 else trained.get(name, Mixture(Base(), wrong)) for name, share in SHARES.items()}


def measure(town: Town, key: Key, n: int) -> dict[str, float]:
    """Every number of table 6; the bias is that of n draws."""
    sets = Multisets.of(len(town.listing.paths), n)
    exact = (town.listing.features @ town.theta + town.log_mu).logsumexp(0)
    numbers = {"log_z": float(exact), "few": float(n)}
    reward, world = town.reward(town.theta), town.world
    for name, proposal in proposals(town).items():
        draws = proposal.draw(world, [Start(HOME)], DRAWS, key.at(name))
        with torch.no_grad():
            log_w = torch.cat([reward(d.batch) + proposal.offset(world, d.batch) for d in draws])
        found = log_z(log_w)
        log_q = log_proposal(town, name, town.theta)
        every = town.listing.features @ town.theta + town.log_mu - log_q  # log w of each path
        few = torch.log(sets.counts @ every.exp() / sets.n)
        numbers |= {
            f"{name}.estimate": float(found.log_z),
            f"{name}.error": float(found.standard_error),
            f"{name}.effective": float(found.effective_sample_size),
            f"{name}.k_hat": float(found.k_hat),
            f"{name}.mean": float(found.mean),
            f"{name}.bound": float(log_q.exp() @ every),  # log Z - KL(q, P)
            f"{name}.bias": float(sets.probability(log_q) @ few - exact),
        }
    return numbers


def show(to: Console, numbers: dict[str, float]) -> None:
    rows = table(
        f"6. Log Z from {DRAWS} draws: exactly {numbers['log_z']:.4f}",
        *("drawn from", "estimate", "standard\nerror", "effective\ndraws", "k-hat", "mean of\nlog w"),
        *("log Z -\nKL(q, P)", f"bias\nat n = {numbers['few']:.0f}"),
    )
    for name in SHARES:
        a, e, k, d, m, b, s = (
            numbers[f"{name}.{x}"] for x in ("estimate", "error", "effective", "k_hat", "mean", "bound", "bias")
        )
        rows.add_row(name, f"{a:.3f}", f"{e:.3f}", f"{k:.1f}", f"{d:.2f}", f"{m:.3f}", f"{b:.3f}", f"{s:.3f}")
    to.print(rows)
    say(
        to,
        f"""
        log w = R/T + log mu - log q for y ~ q. Its log-mean-exp estimates log Z, its mean falls short by KL(q, P), and
        k-hat, to be below {k_hat_threshold(DRAWS):.2f}, says whether the standard error may be believed. Drawn from P
        all weights are Z: one draw is enough, and k-hat is -inf. Among 13 paths a weight has 13 values, so that k-hat
        sees a few steps and not a tail; the effective draws tell more. The bias is exact, a sum over all multisets; of
        exp(estimate) there is none.
        """,
    )
