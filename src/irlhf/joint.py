"""Reward and policy together: ``fit_jointly(reward, policy, terms, world) -> (Fit, PolicyFit)``.

The policy is drawn from to estimate the reward, and learns the reward it is drawn for: rivals come half from the base
measure and half from the policy (``sampled``), or the policy's own draws stand for everything (``variational``). Both
end where reward and policy are one distribution, that of maximum-entropy IRL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from irlhf.distillation import Distillation
from irlhf.errors import ConfigError
from irlhf.fit import Fit, Status, diagnose, warn_of
from irlhf.functional.choice import set_logsumexp
from irlhf.learners import ActorCritic, Expected, Learner, Sequences, climb, finite_gradient, rloo
from irlhf.likelihood import Term
from irlhf.loop import State, iterate, under, within
from irlhf.objective import Normal, Objective, start_warm, warm_starts
from irlhf.optimize import LBFGS, TorchOptimizer
from irlhf.policy_fit import PolicyFit
from irlhf.proposals import as_proposal
from irlhf.proximal import Control, control
from irlhf.randomness import Key
from irlhf.saddle import Contrast, Saddle
from irlhf.simulated import Simulated
from irlhf.storage.rundir import RunDir

STILL = 0.02  # relative change of the averaged reward over the last quarter of the rounds, below which it has settled


def fit_jointly(
    reward: nn.Module,
    policy: nn.Module,
    terms: Sequence[Term] | Term,
    world: Any,
    *,
    learner: Learner | None = None,
    optimizer: LBFGS | TorchOptimizer | Saddle | None = None,
    rounds: int | None = None,
    policy_steps: int | None = None,
    prior: Normal | None = None,
    fixed: Mapping[str, float] | None = None,
    key: Key | None = None,
    run: RunDir | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Fit, PolicyFit]:
    """The reward of all terms and the policy that it stands for, in rounds that alternate between the two.

    In each round the policy takes some steps towards the reward, rivals are drawn anew, and the reward is fitted to
    them. What is delivered is the reward averaged over the second half of the rounds: the last one still carries the
    luck of its rivals.

    Args:
        reward, policy: fitted in place; the policy should be able to be ``mu exp(R/T)/Z``.
        terms: any; of at least one the likelihood is ``sampled`` or ``variational``. A ``sampled(world)`` without a
            proposal draws half from the base measure and half from the policy, a ``variational(world)`` without a
            policy from this one; others draw anew from what they were given.
        world: where the policy draws.
        learner: of the policy; default ``rloo(n=8)``. Its learning rate falls over all rounds.
        optimizer: of the reward in a round. Default: L-BFGS to the end, or, with a variational term, which is a saddle
            point and has no end within a round, one step of Adam whose length falls to zero over the rounds.
        rounds: how often the two alternate; default 60, or 300 of a single step each with a variational term.
        policy_steps: of the learner in each round.
        prior, fixed: as in :func:`irlhf.fit_reward`. With a variational term and a flexible reward give a prior.
        key: of the random numbers.
        run: a run directory: every round is saved there, and the fit goes on from the last one it finds.
        progress: called after every round.

    Raises:
        ConfigError: no term draws; settings that contradict each other.
    """
    kind = _Played if hasattr(world, "stretch") else _Joint
    joint = kind(reward, policy, terms, world, learner, optimizer, rounds, policy_steps, prior, fixed or {}, key)
    warn_of(joint.terms)
    loop = iterate(
        joint.init, joint.step, put=joint.assign, max_steps=joint.rounds, run=run, restore=joint.restore,
        extra=lambda: warm_starts(joint.terms), progress=progress,
        about={"parameters": joint.objective(joint.terms).names},
    )  # fmt: skip
    return joint.finish(loop.state, loop.trace, interrupted=loop.interrupted)


class _Joint:
    def __init__(self, reward, policy, terms, world, learner, optimizer, rounds, policy_steps, prior, fixed, key):
        self.terms = [terms] if isinstance(terms, Term) else list(terms)
        drawing = [term for term in self.terms if isinstance(term.prepared, Simulated)]
        if not drawing:
            raise ConfigError("no term draws anything: use fit_reward, or sampled(world) or variational(world)")
        self.reward, self.world, self.prior, self.fixed = reward, world, prior, fixed
        self.saddle = any(getattr(term.likelihood, "saddle", False) for term in drawing)
        self.key = Key(0).at("joint") if key is None else key
        self.optimizer, self.rounds, self.policy_steps, self.learner = self.how(
            optimizer, rounds, policy_steps, learner
        )
        for term in self.terms:
            term.prepared.memory.clear()  # a warm start from an earlier fit would show in the last digits
        self.source = drawing[0].source  # the policy is a model of whoever demonstrated
        origins = dict.fromkeys(origin for term in drawing for origin in term.prepared.origins)
        self.problem = Distillation(policy, reward, world, list(origins), temperature=self.temperature)
        if not isinstance(self.learner, Expected):  # its rate falls over all rounds, however many it was made for
            self.learner = replace(self.learner, max_steps=self.rounds * self.policy_steps)  # type: ignore[type-var]

    def how(self, optimizer: Any, rounds: Any, policy_steps: Any, learner: Any) -> tuple[Any, int, int, Learner]:
        """What was given, and the defaults for what was not."""
        if optimizer is None and self.saddle:
            optimizer = TorchOptimizer(lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.99)), max_steps=1)
        optimizer = optimizer or LBFGS(tolerance=1e-3, newton=0, max_steps=50)
        if isinstance(optimizer, Saddle):
            raise ConfigError("Saddle() moves the reward of a variational term in a world that is played step by step")
        return optimizer, rounds or (300 if self.saddle else 60), policy_steps or 5, learner or rloo()

    @property
    def temperature(self) -> float:
        return float(self.source.temperature.detach())

    def objective(self, terms: Sequence[Term]) -> Objective:
        return Objective(self.reward, terms, prior=self.prior, fixed=self.fixed)

    def redrawn(self, key: Key) -> list[Term]:
        """All terms, those that draw with new draws of the policy as it is."""
        result = []
        for number, term in enumerate(self.terms):
            how = term.likelihood
            if isinstance(term.prepared, Simulated):
                given = getattr(how, "proposal", None) or getattr(how, "policy", None) or self.problem.policy
                by = given if getattr(how, "saddle", False) else as_proposal(given)
                term = term.redrawn(by, key.at(number))
            result.append(term)
        return result

    def init(self) -> tuple[State, dict[str, Any]]:
        state, _ = self.learner.init(self.problem)
        theta = self.objective(self.terms).start
        start = {"reward.theta": theta, "reward.sum": torch.zeros_like(theta), "reward.early": torch.zeros_like(theta)}
        return {**under("policy.", state), **start}, {}

    def assign(self, state: State) -> None:
        self.objective(self.terms).assign(state["reward.theta"])
        self.problem.assign(state["policy.theta"])

    def step(self, state: State, number: int) -> tuple[State, dict[str, Any]]:
        key = self.key.at(number)
        own = within(state, "policy.")
        info: dict[str, Any] = {}
        self.problem.temperature = self.temperature
        terms = self.redrawn(key.at("rivals"))
        seen = self.rivals_by_weight(terms)
        if isinstance(self.learner, Expected):  # the value, slope and curvature that it remembers are of another reward
            own, _ = self.learner.init(self.problem)
        for k in range(self.policy_steps):
            own = self.wake(own, seen)
            own, info = self.learner.step(self.problem, own, key.at("policy", k))
        objective = self.objective(terms)
        before = state["reward.theta"]
        found = {**self.optimizer.init(objective), **under("moment.", within(state, "reward.moment."))}
        gradient = float(found["gradient"].abs().max()) if len(before) else 0.0
        for _ in range(self.optimizer.max_steps):
            found, how = self.optimizer.step(objective, found)
            if how["why"]:
                break
        damping = 1.0 - (number - 1) / self.rounds if isinstance(self.optimizer, TorchOptimizer) else 1.0
        theta = before + damping * (found["theta"] - before)
        objective.assign(theta)
        late, later = number > self.rounds // 2, number > self.rounds - self.rounds // 4
        state = {
            **under("policy.", own),
            "reward.theta": theta,
            "reward.sum": state["reward.sum"] + theta if late else state["reward.sum"],
            "reward.early": state["reward.early"] + theta if late and not later else state["reward.early"],
            **under("reward.moment.", within(found, "moment.")),
        }
        info.pop("why", None)  # a policy that has converged to this reward is no end: the reward moves on
        own_names = {"fit": float(found["value"]), "max_gradient": gradient, "moved": float((theta - before).norm())}
        return state, {**info, **own_names}

    def rivals_by_weight(self, terms: Sequence[Term]) -> list[tuple[Any, Tensor, Tensor]]:
        """All rivals in batches, each with its share of P among those from its origin, and that origin's number.

        The share is ``w / sum w``, w = P/q.
        """
        number = {origin: k for k, origin in enumerate(self.problem.contexts)}
        batches: list[Any] = []
        log_w, origin = [], []
        for term in terms:
            seen = term.prepared
            if isinstance(seen, Simulated) and not getattr(term.likelihood, "saddle", False):
                rows = torch.tensor([number[o] for o in seen.origins])
                with torch.no_grad():
                    returns = torch.cat([self.reward(d.batch).double() for d in seen.draws]) / self.temperature
                batches += [d.batch for d in seen.draws]
                log_w.append(returns + seen.offset[len(seen.origins) :])
                origin.append(rows[seen.set_of])
        if not batches:
            return []
        weight, of = torch.cat(log_w), torch.cat(origin)
        share = (weight - set_logsumexp(weight, of, len(number))[of]).exp() / len(number)
        items = [batch.n_items for batch in batches]
        return list(zip(batches, share.split(items), of.split(items), strict=True))

    def wake(self, state: State, seen: list[tuple[Any, Tensor, Tensor]]) -> State:
        """One step of the policy towards P as the rivals see it, whatever drew them.

        Policy gradients need draws of what should be learned; a policy that has collapsed elsewhere has none. Half of
        the rivals come from the base measure, and know the way back. At pi = P this step is zero in expectation (the
        wake phase of Bornschein and Bengio 2015).
        """
        if not seen or not isinstance(self.learner, Sequences | ActorCritic):
            return state
        self.problem.assign(state["theta"])
        log_prob = self.problem.policy.log_prob
        each = [share * batch.sum(log_prob(batch), discounted=False) for batch, share, _ in seen]  # type: ignore[operator]
        of = torch.cat([of for _, _, of in seen])
        gradient = finite_gradient(self.problem, self.problem.policy, torch.cat(each), of, "policy")
        return climb(self.problem, state, gradient, self.learner)

    def restore(self, tensors: State, trace: list[dict[str, Any]]) -> State:
        if tensors["reward.theta"].shape != self.objective(self.terms).start.shape:
            raise ConfigError("the checkpoint is of a fit with other parameters; start a new run directory")
        return start_warm(self.terms, tensors)

    def delivered(self, state: State, done: int) -> tuple[Tensor, Status]:
        """The reward averaged over the second half of the rounds, and whether it has settled by the end."""
        averaged = done - self.rounds // 2
        if averaged <= 0:
            return state["reward.theta"], Status.BUDGET
        theta = state["reward.sum"] / averaged
        early = self.rounds - self.rounds // 4 - self.rounds // 2
        drift = theta - state["reward.early"] / max(early, 1)
        settled = done == self.rounds and float(drift.norm()) <= STILL * max(float(theta.norm()), 1e-8)
        return theta, Status.CONVERGED if settled else Status.BUDGET

    def finish(self, state: State, trace: list[dict[str, Any]], *, interrupted: bool) -> tuple[Fit, PolicyFit]:
        theta, status = self.delivered(state, len(trace) - 1)
        self.problem.assign(state["policy.theta"])
        if interrupted:
            status = Status.INTERRUPTED
        terms = self.redrawn(self.key.at("last"))
        theta = theta.double()
        objective = self.objective(terms)
        objective.assign(theta)
        with torch.no_grad():
            value = float(objective.value(theta))
        frame = pd.DataFrame(trace)
        fit = Fit(self.reward, terms, value, status, frame, objective, theta)
        if status is Status.CONVERGED and not self.saddle and len(theta) <= 200:
            diagnose(fit)
        attained = float(frame["objective"].iloc[-1]) if "objective" in frame else np.nan
        return fit, PolicyFit(self.problem.policy, attained, status, frame, self.problem)


class _Played(_Joint):
    """The same where a world is played step by step: both halves learn from what was just played.

    The reward moves in the first three quarters of the rounds. In the last one it is the average over the second half
    of those, and the policy learns that: so the two that are delivered belong together.
    """

    def how(self, optimizer: Any, rounds: Any, policy_steps: Any, learner: Any) -> tuple[Any, int, int, Learner]:
        learner = learner or control(continuous=not self.world.spaces.discrete)
        optimizer = optimizer or Saddle()
        if not self.saddle or not isinstance(optimizer, Saddle):
            raise ConfigError("where a world is played step by step, a joint fit needs a variational term and Saddle()")
        if not isinstance(learner, Control):
            raise ConfigError(f"{type(learner).__name__} learns from whole trajectories; here the learner is control()")
        self.contrast = Contrast(self.reward, self.terms, self.world, optimizer)
        rounds = rounds or learner.max_steps
        self.moving = rounds - rounds // 4
        return optimizer, rounds, policy_steps or 1, learner

    def init(self) -> tuple[State, dict[str, Any]]:
        state, _ = self.learner.init(self.problem)
        moving = self.contrast.init(self.key.at("past"))
        moving["sum"] = torch.zeros_like(moving["theta"])
        return {**under("policy.", state), **under("reward.", moving)}, {}

    def assign(self, state: State) -> None:
        self.contrast.weights.assign(state["reward.theta"])
        self.problem.assign(state["policy.theta"])

    def step(self, state: State, number: int) -> tuple[State, dict[str, Any]]:
        key, own = self.key.at(number), within(state, "policy.")
        info: dict[str, Any] = {}
        self.problem.temperature = self.temperature
        if number == self.moving + 1:
            state = {**state, "reward.theta": self.averaged(state, self.moving)}
        self.contrast.weights.assign(state["reward.theta"])
        for k in range(self.policy_steps):
            own, info = self.learner.step(self.problem, own, key.at("policy", k))
        state = {**state, **under("policy.", own)}
        if number > self.moving:
            return state, info
        draws, slower = self.problem.played, 1.0 - (number - 1) / self.moving
        assert draws is not None
        found, told = self.contrast.step(within(state, "reward."), draws, info.get("length"), key.at("reward"), slower)
        if number > self.moving // 2:
            found["sum"] = state["reward.sum"] + found["theta"]
        return {**state, **under("reward.", found)}, {**info, **told}

    def averaged(self, state: State, done: int) -> Tensor:
        """The reward over the second half of the rounds in which it moved, as far as they are done."""
        so_far = min(done, self.moving) - self.moving // 2
        return state["reward.sum"] / so_far if so_far > 0 else state["reward.theta"]

    def restore(self, tensors: State, trace: list[dict[str, Any]]) -> State:
        if tensors["reward.theta"].shape != self.contrast.weights.vector().shape:
            raise ConfigError("the checkpoint is of a fit with other parameters; start a new run directory")
        return tensors

    def delivered(self, state: State, done: int) -> tuple[Tensor, Status]:
        return self.averaged(state, done), Status.DONE if done == self.rounds else Status.BUDGET
