"""Likelihoods of demonstrations whose choice set is neither listed nor summed, but sampled.

* :class:`sampled`: the chosen trajectory among rivals drawn from a proposal, each with its offset: again a choice out
  of a list (McFadden 1978, "Modelling the choice of residential location", on the sampling of alternatives; Ma and
  Collins 2018 call it ranking noise-contrastive estimation). Consistent wherever the proposal may go.
* :class:`variational`: the soft value replaced by its lower bound under a policy. Not a likelihood but an upper bound
  of one, and of use only while the policy follows the reward: a saddle point, for :func:`irlhf.fit_jointly`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from irlhf.errors import ConfigError
from irlhf.feedback import CHOICE, RATING, Feedback
from irlhf.functional.choice import choice_log_prob
from irlhf.likelihood import Prepared, collated, refuse
from irlhf.proposals import Proposal, as_proposal
from irlhf.protocols import Draws, World
from irlhf.randomness import Key
from irlhf.sources import Source

RIVALS, DRAWS = Key(0).at("rivals"), Key(0).at("draws")
REMAINDER = 1e-3  # share of a discounted future that a demonstration may leave out


@dataclass(frozen=True, eq=False)
class Simulated(Prepared):
    """Demonstrations with what was drawn for them."""

    origins: Sequence[Any] = ()  # of each row
    draws: list[Draws] = field(default_factory=list)
    set_of: Tensor = field(
        default_factory=lambda: torch.empty(0, dtype=torch.int64)
    )  # [drawn items] -> rows or origins
    offset: Tensor = field(default_factory=lambda: torch.empty(0))  # [rows + drawn items] known part of each utility

    def take(self, rows: Tensor) -> Simulated:
        """The part of these rows with the rivals of each; nothing is drawn anew."""
        if len(self.item):
            raise ConfigError("a variational term bounds the value of whole starts, so it has no parts of single rows")
        number = torch.full((len(self.feedback),), -1)
        number[rows] = torch.arange(len(rows))
        draws, offset = [], [self.offset[rows]]
        at = len(self.feedback)
        for drawn in self.draws:
            own = (number[drawn.request] >= 0).nonzero()[:, 0]
            own = own[number[drawn.request[own]].argsort(stable=True)]
            draws.append(Draws(drawn.batch.take(own), number[drawn.request[own]], None, drawn.whole[own]))
            offset.append(self.offset[at + own])
            at += len(drawn.request)
        return replace(
            self,
            feedback=cast(Feedback, self.feedback[rows.numpy()]),
            batch=self.batch.take(rows),
            unit_row=torch.arange(len(rows)),
            origins=[self.origins[k] for k in rows.tolist()],
            draws=draws,
            set_of=torch.cat([d.request for d in draws]),
            offset=torch.cat(offset),
            memory={},
            counts={},
        )


@dataclass(frozen=True, eq=False)
class sampled:
    """The choice set is everything, and rivals drawn from a proposal stand for it.

    Args:
        world: one with ``draw``.
        proposal: a policy (half of a mixture with the base measure), ``Base()``, ``FromPolicy(pi)``, ``Mixture(...)``
            or ``Pool(...)``. None: the base measure; in a joint fit a mixture of it with the policy that is learned.
        n: rivals for each demonstration.
        kind: "anticipative", which has to be asked for where the three likelihoods of a demonstration differ: in a
            stochastic or a discounted world a sum over trajectories is of this kind and of no other.
        key: of the random numbers. Rivals are drawn once, so that a fit climbs one function.

    Raises:
        ConfigError: the world does not fit the kind; a demonstration that is not whole, or that the proposal never
            draws.
    """

    world: World
    proposal: Any = None
    n: int = 8
    kind: str | None = None
    key: Key = RIVALS

    def __post_init__(self):
        _require(self.world, "draw", "sampled")
        as_proposal(self.proposal)
        if self.n < 1:
            raise ConfigError(f"sampled with n = {self.n} rivals; give at least 1")
        if self.kind not in (None, "anticipative"):
            raise ConfigError(f"sampled estimates the anticipative likelihood, not the {self.kind}; see variational")
        reasons = [] if self.world.deterministic else ["is stochastic"]
        if getattr(self.world, "discount", 1.0) != 1:
            reasons.append(f"has discount {self.world.discount:g}")  # type: ignore[attr-defined]
        if reasons and self.kind is None:
            raise ConfigError(
                f"this world {' and '.join(reasons)}: there, rivals drawn as whole trajectories give the anticipative "
                "likelihood (nature's draws are part of what was chosen), not the causal one that exact(world) has by "
                "default. Say sampled(world, kind='anticipative') if that is meant, or use exact(world) or variational"
            )

    def prepare(self, feedback: Feedback, source: Source) -> Simulated:
        batch = _demonstrations(self.world, feedback)
        cut = ~self.world.whole(batch)  # type: ignore[attr-defined]
        if cut.any():
            raise ConfigError(
                f"demonstration {feedback.id[int(cut.nonzero()[0])]!r} is not whole: it stops before its end or has a "
                "gap, but rivals are whole trajectories; leave it out, or use exact(world)"
            )
        rows = torch.arange(len(feedback))
        bare = Simulated(feedback, batch, unit_row=rows, origins=self.world.origins(batch))  # type: ignore[attr-defined]
        return self.redraw(bare, as_proposal(self.proposal), self.key)

    def redraw(self, prepared: Simulated, proposal: Proposal, key: Key) -> Simulated:
        """The same demonstrations with other rivals."""
        world, feedback = self.world, prepared.feedback
        offset = proposal.offset(world, prepared.batch)
        impossible = ~torch.isfinite(offset)
        if impossible.any():
            raise ConfigError(
                f"the proposal cannot draw demonstration {feedback.id[int(impossible.nonzero()[0])]!r}; give one that "
                "may go wherever people go, for example a mixture with the base measure"
            )
        draws = proposal.draw(world, prepared.origins, self.n, key)
        # What was cut on its way is no trajectory of the world: drawn, but of no weight.
        of_rivals = [torch.where(d.whole, proposal.offset(world, d.batch), -torch.inf) for d in draws]
        if not any(bool(d.whole.any()) for d in draws):
            raise ConfigError("none of the rivals came to an end; give a proposal that ends, or a horizon")
        return replace(
            prepared,
            draws=draws,
            set_of=torch.cat([d.request for d in draws]),
            offset=torch.cat([offset, *of_rivals]),
        )

    def log_prob(self, prepared: Simulated, reward: Any, source: Source) -> Float[Tensor, "rows"]:
        batches = [prepared.batch, *(d.batch for d in prepared.draws)]
        returns = torch.cat([reward(batch) for batch in batches]).double() / source.temperature
        rows = prepared.unit_row
        return choice_log_prob(returns + prepared.offset, torch.cat([rows, prepared.set_of]), rows)


@dataclass(frozen=True, eq=False)
class variational:
    """The soft value of a demonstration's start, bounded from below by what a policy attains.

        sum_t g^t (r_t/T + log mu_t) - E_pi[ sum_t g^t (r_t/T - log pi_t/mu_t) ]

    The expectation is the mean over draws from the policy, unweighted: the note's estimator. It is at most the soft
    value (the gap is the discounted KL divergence of pi from the soft-optimal policy), so this is at least the weighted
    causal log-likelihood (in a deterministic world path by path, otherwise in expectation), and equal to it at the
    soft-optimal policy. It is never reported as a likelihood, and no standard error comes from it.

    Args:
        world: one with ``draw``.
        policy: that draws; None in a joint fit, which gives it the policy that is learned.
        n: draws for each distinct start.
        key: of the random numbers.
    """

    world: World
    policy: Any = None
    n: int = 64
    key: Key = DRAWS

    saddle = True  # to be maximized over rewards while a policy minimizes it

    def __post_init__(self):
        _require(self.world, "draw", "variational")
        if self.n < 1:
            raise ConfigError(f"variational with n = {self.n} draws; give at least 1")

    def prepare(self, feedback: Feedback, source: Source) -> Simulated:
        world = self.world
        batch = _demonstrations(world, feedback)
        steps = torch.bincount(batch.item, minlength=batch.n_items)
        left = getattr(world, "discount", 1.0) ** steps.double()
        cut = ~world.whole(batch) & (left > REMAINDER)  # type: ignore[attr-defined]
        if cut.any():
            raise ConfigError(
                f"demonstration {feedback.id[int(cut.nonzero()[0])]!r} stops before its end, and what it leaves out "
                "still counts; use exact(world), or longer demonstrations"
            )
        of_row = world.origins(batch)  # type: ignore[attr-defined]
        number = {origin: k for k, origin in enumerate(dict.fromkeys(of_row))}
        bare = Simulated(
            feedback,
            batch,
            unit_row=torch.arange(len(feedback)),
            origins=list(number),
            item=torch.tensor([number[origin] for origin in of_row]),
            offset=batch.sum(world.log_base_step(batch)),
        )
        return bare if self.policy is None else self.redraw(bare, self.policy, self.key)

    def redraw(self, prepared: Simulated, policy: Any, key: Key) -> Simulated:
        """The same demonstrations with other draws."""
        world = self.world
        draws = world.draw(policy, prepared.origins, self.n, key=key)  # type: ignore[attr-defined]
        if not draws.whole.all() and getattr(world, "discount", 1.0) == 1:
            share = 1 - draws.whole.double().mean().item()
            raise ConfigError(f"{share:.0%} of what the policy drew came to no end; give a horizon or a discount")
        known = draws.batch.sum(world.log_base_step(draws.batch) - draws.log_q)
        own = prepared.offset[: len(prepared.feedback)]
        return replace(prepared, draws=[draws], set_of=draws.request, offset=torch.cat([own, known]))

    def log_prob(self, prepared: Simulated, reward: Any, source: Source) -> Float[Tensor, "rows"]:
        if not prepared.draws:
            raise ConfigError("variational needs a policy: variational(world, policy), or fit_jointly, which has one")
        (draws,), rows = prepared.draws, len(prepared.feedback)
        attained = reward(draws.batch).double() / source.temperature + prepared.offset[rows:]
        count = torch.bincount(prepared.set_of, minlength=len(prepared.origins))
        bound = attained.new_zeros(len(prepared.origins)).index_add(0, prepared.set_of, attained) / count
        return reward(prepared.batch).double() / source.temperature + prepared.offset[:rows] - bound[prepared.item]


def _demonstrations(world: Any, feedback: Feedback) -> Any:
    refuse(feedback, CHOICE, "what was shown is a list: use listed(world)")
    refuse(feedback, RATING, "it is one trajectory judged, not chosen: use listed(world)")
    return collated(world, feedback)


def _require(world: Any, what: str, who: str) -> None:
    if not hasattr(world, what):
        raise ConfigError(f"{who} draws trajectories, but {type(world).__name__} has no {what}(policy, contexts, n)")
