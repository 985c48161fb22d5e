"""Policies that are learned: killed and resumed to the bit, never touched by a NaN, and alarms that mean something."""

import os

import numpy as np
import pandas as pd
import pytest
import torch

from irlhf.distillation import Distillation
from irlhf.errors import NonFiniteError
from irlhf.functional.weights import log_z
from irlhf.gather import comparisons, demonstrations
from irlhf.joint import fit_jointly
from irlhf.learners import actor_critic, expected, grpo, ppo, reinforce, rloo
from irlhf.likelihood import Term, exact, listed
from irlhf.policy_fit import alarms, alarms_by_name, fit_policy
from irlhf.randomness import Key
from irlhf.simulated import sampled, variational
from irlhf.sources import Source
from irlhf.storage.checkpoint import load_checkpoint
from irlhf.storage.rundir import digest, open_run
from irlhf.worlds.tabular import BasePolicy, Linear, SoftmaxPolicy, Start, enumerate_paths, sample_paths
from tests.worlds.problems import diamond, random_world

LEARNERS = {
    "rloo": lambda steps: rloo(4, max_steps=steps),
    "reinforce": lambda steps: reinforce(4, max_steps=steps),
    "grpo": lambda steps: grpo(4, epochs=2, max_steps=steps),
    "ppo": lambda steps: ppo(4, max_steps=steps),
    "actor-critic": lambda steps: actor_critic(4, max_steps=steps),
    "expected": lambda steps: expected(max_steps=steps),
}
CONTEXTS = [Start(0, 5), Start(1, 5), Start(0, 4)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """No waiting for the disk: a kill does not lose what the system has taken over."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def network():
    """World, reward and a policy that starts as the base measure; the way to 4 may end at 5, a dead end."""
    world, reward = diamond()
    return world, reward, SoftmaxPolicy(world, contexts=[5, 4])


class Killed(BaseException):
    """What nothing on the way catches."""


def at(step):
    def progress(info):
        if info["step"] == step:
            raise Killed

    return progress


# ------------------------------------------------------------------------------------------------- killed and resumed


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("how", [Killed, KeyboardInterrupt])
def test_a_policy_killed_after_every_step(tmp_path, name, how):
    steps = 6

    def attempt(path, progress=None):
        world, reward, policy = network()
        with open_run(path, config={}, resume=True) as run:
            return fit_policy(
                policy, reward, world, CONTEXTS, learner=LEARNERS[name](steps), run=run, progress=progress
            )

    whole = attempt(tmp_path / "whole")
    last = len(whole.trace) - 1
    assert last >= 4
    for step in range(1, last + 1):

        def stop(info, step=step):
            if info["step"] == step:
                raise how

        if how is Killed:
            with pytest.raises(Killed):
                attempt(tmp_path / "killed", stop)
        else:
            attempt(tmp_path / "killed", stop)
        assert load_checkpoint(tmp_path / "killed" / "checkpoint").step == step
    resumed = attempt(tmp_path / "killed")
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    pd.testing.assert_frame_equal(resumed.trace, whole.trace, check_like=True)
    assert torch.equal(resumed.policy.logits, whole.policy.logits)


def joint_terms(kind):
    """Demonstrations whose likelihood draws, and where the world is not the network others beside them."""
    if kind == "variational":
        world, features = random_world(1, horizon=3, discount=0.9)
        paths = list(enumerate_paths(world, 0, max_steps=3))[::40]
        return world, Linear(features), SoftmaxPolicy(world), [
            Term(demonstrations([None] * len(paths), paths), variational(world, n=8)),
        ]  # fmt: skip
    if kind == "variational, exact":  # a solver that goes on from where it was
        world, features = random_world(1, discount=0.5)
        policy = world.solve(Linear(features, [0.5, -0.5, 1.0])).log_policy.detach()
        rows = demonstrations([None] * 8, sample_paths(world, policy, [0] * 8, max_steps=12, seed=0))
        terms = [Term(rows, variational(world, n=8)), Term(rows, exact(world), name="again")]
        return world, Linear(features), SoftmaxPolicy(world), terms
    world, reward = diamond()
    paths = list(enumerate_paths(world, 0, destination=5, max_steps=10))
    judges = Source(fit_temperature=True)
    terms = [
        Term(demonstrations([5] * 6, paths[:6]), sampled(world, n=4)),
        Term(comparisons([5] * 4, paths[:4], paths[2:6], [0, 1, 1, 0]), listed(world), judges, name="judges"),
    ]
    if kind == "sampled, exact":
        terms.append(Term(demonstrations([5] * 6, paths[:6]), exact(world), name="again"))
    return world, Linear(reward.features, [-0.8, -0.5]), SoftmaxPolicy(world, contexts=[5]), terms


@pytest.mark.parametrize("kind", ["sampled", "sampled, exact", "variational", "variational, exact"])
@pytest.mark.parametrize("name", ["rloo", "actor-critic"])
def test_a_joint_fit_killed_after_every_round(tmp_path, kind, name):
    rounds = 6

    def attempt(path, progress=None):
        world, reward, policy, terms = joint_terms(kind)
        with open_run(path, config={}, resume=True) as run:
            return fit_jointly(
                reward, policy, terms, world, learner=LEARNERS[name](2 * rounds), rounds=rounds, policy_steps=2,
                run=run, progress=progress,
            )  # fmt: skip

    fit, learned = attempt(tmp_path / "whole")
    for step in range(1, rounds + 1):
        with pytest.raises(Killed):
            attempt(tmp_path / "killed", at(step))
    again, relearned = attempt(tmp_path / "killed")
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    assert torch.equal(again.theta, fit.theta) and torch.equal(relearned.policy.logits, learned.policy.logits)
    assert again.objective == fit.objective


@pytest.mark.parametrize("name", ["ppo", "actor-critic", "expected"])
def test_interrupted_in_the_middle_of_a_step(tmp_path, name):
    """What comes back is the last complete step, not the half of the next one."""
    world, reward, policy = network()
    genuine, seen = policy.log_prob, []

    def log_prob(batch):
        seen.append(policy.logits.detach().clone())
        if len(seen) == 9:
            raise KeyboardInterrupt
        return genuine(batch)

    policy.log_prob = log_prob
    with open_run(tmp_path / "run", config={}) as run:
        fit = fit_policy(policy, reward, world, CONTEXTS[:2], learner=LEARNERS[name](50), run=run)
    assert fit.status.name == "INTERRUPTED"
    stored = load_checkpoint(tmp_path / "run" / "checkpoint").tensors["theta"]
    assert torch.equal(fit.policy.logits.detach().reshape(-1), stored)


# ------------------------------------------------------------------------------------------- no NaN in any parameter


class Poisoned(torch.autograd.Function):
    """The identity, whose gradient is not finite where it is asked for."""

    @staticmethod
    def forward(ctx, x, where, bad):
        ctx.where, ctx.bad = where, bad
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.where(ctx.where & (gradient != 0), ctx.bad, gradient), None, None


class BadReward(Linear):
    """Not finite on the edge that the ways from 1 begin with, in ``step`` and so in every sum of it."""

    bad = 0.0

    def step(self, batch):
        value = super().step(batch)
        return torch.where(batch.state == 2, self.bad, value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["reward", "logits", "log-probability", "gradient"])
@pytest.mark.parametrize("name", LEARNERS)
def test_nothing_infinite_reaches_a_parameter(tmp_path, name, where, bad):
    world, reward, policy = network()
    contexts = [Start(0, 5), Start(3, 5)]
    with torch.no_grad():
        policy.logits += 0.1
    if where == "reward":
        reward = BadReward(reward.features, [-0.8, -0.5])
        reward.bad = bad
        names = "the reward of draws is not finite from 0 to 5;"
    elif where == "logits":
        with torch.no_grad():
            policy.logits[0, 3] = bad  # an action of state 1
        names = "the policy's parameter vector is not finite"
    else:
        genuine, calls = policy.log_prob, []

        def log_prob(batch):
            value = genuine(batch)
            calls.append(1)
            if not value.requires_grad or len(calls) < 3:
                return value
            if where == "gradient":
                return Poisoned.apply(value, batch.state == 2, bad)
            return torch.where(batch.state == 2, bad, value)

        policy.log_prob = log_prob
        names = f"the {where} of "
    before = policy.logits.detach().numpy().tobytes()
    kept = {}

    def remember(info):
        kept["policy"] = policy.logits.detach().numpy().tobytes()

    with open_run(tmp_path / "run", config={}) as run, pytest.raises(NonFiniteError) as error:
        fit_policy(policy, reward, world, contexts, learner=LEARNERS[name](20), run=run, progress=remember)
    assert names in str(error.value), error.value
    if where == "gradient":
        assert "(logits)" in str(error.value)
    if where in ("reward", "gradient", "log-probability"):
        assert "from 0 to 5;" in str(error.value), error.value  # and not from 3, which never comes to 2
    assert policy.logits.detach().numpy().tobytes() == kept.get("policy", before)
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint")
    if checkpoint is not None and where != "logits":
        assert all(bool(torch.isfinite(t).all()) for t in checkpoint.tensors.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["rloo", "ppo", "actor-critic"])
def test_an_infinite_moment_reaches_no_parameter(name, bad):
    world, reward, policy = network()
    problem = Distillation(policy, reward, world, CONTEXTS[:2])
    learner = LEARNERS[name](10)
    state, _ = learner.init(problem)
    for k in range(2):
        state, _ = learner.step(problem, state, Key(0).at(k))
    before = policy.logits.detach().clone()
    state = {**state, "adam.exp_avg": torch.full_like(state["adam.exp_avg"], bad)}
    with pytest.raises(NonFiniteError, match="after a step"):
        learner.step(problem, state, Key(0).at(3))
    assert torch.equal(policy.logits, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_policy_that_gives_no_numbers_draws_nothing(bad):
    world, reward, policy = network()
    genuine = policy.log_prob
    policy.log_prob = lambda batch: torch.where(batch.state == 2, bad, genuine(batch))
    with pytest.raises(NonFiniteError, match="action 3 in state 2 on the way to 5"):
        fit_policy(policy, reward, world, CONTEXTS[:1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_joint_fit_that_fails_leaves_the_last_round(tmp_path, bad):
    world, reward, policy, terms = joint_terms("sampled")
    kept = {}

    def remember(info):
        kept.update(theta=reward.theta.detach().clone(), logits=policy.logits.detach().clone())
        if info["step"] == 3:
            genuine, calls = policy.log_prob, []

            def log_prob(batch):
                calls.append(1)  # late in the round, when the policy has moved
                return Poisoned.apply(genuine(batch), batch.state == 2, bad) if len(calls) > 20 else genuine(batch)

            policy.log_prob = log_prob

    with open_run(tmp_path / "run", config={}) as run, pytest.raises(NonFiniteError, match=r"\(logits\)"):
        fit_jointly(reward, policy, terms, world, rounds=6, run=run, progress=remember)
    assert torch.equal(reward.theta, kept["theta"]) and torch.equal(policy.logits, kept["logits"])


# ------------------------------------------------------------------------------------------------------------- alarms

QUIET = {
    "objective": 1.0, "reward": 1.0, "kl": 0.5, "kl_error": 0.01, "log_z": 1.1, "log_z_error": 0.1, "gap": 0.1,
    "effective_share": 0.9, "k_hat": 0.2, "alike": 0.0, "cut": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "alarm"),
    [
        ({}, None),
        ({"effective_share": 0.11}, None),
        ({"effective_share": 0.09}, "effective_share"),
        ({"k_hat": 0.69}, None),
        ({"k_hat": 0.71, "effective_share": 0.8}, "k_hat"),
        ({"k_hat": 0.71, "effective_share": 0.95}, None),  # a tail of weights that are all but alike
        ({"k_hat": np.inf}, None),  # few trajectories have no tail; how many count is said by the effective share
        ({"k_hat": -np.inf}, None),
        ({"kl": -0.039}, None),
        ({"kl": -0.041}, "kl"),
        ({"kl": -1e-16, "kl_error": 0.0}, None),
        ({"alike": 0.9}, None),
        ({"alike": 1.0, "gap": 0.0}, "alike"),
        ({"alike": np.nan}, None),  # one draw of each context
        ({"cut": 0.005}, None),
        ({"cut": 0.02}, "cut"),
        ({"cut": np.nan, "gap": np.nan}, None),
    ],
)
def test_alarms_of_a_trace(change, alarm):
    trace = pd.DataFrame([{"step": 0}, *({"step": k, **QUIET, **change} for k in range(1, 13))])
    assert list(alarms_by_name(trace)) == ([alarm] if alarm else [])
    assert len(alarms(trace)) == (alarm is not None)


def told(problem, n=256):
    draws = problem.draw(n, Key(0))
    info = problem.info(problem.worth(draws, draws.log_q), draws, n)
    return list(alarms_by_name(pd.DataFrame([{"step": 0}, {"step": 1, **info}])))


def test_no_alarm_at_the_optimum():
    world, reward, policy = network()
    fit = fit_policy(policy, reward, world, CONTEXTS[:2], learner=expected())
    assert told(fit.problem) in ([], ["alike"])  # at the last digit all draws are worth the same
    assert float(fit.gap().abs().max()) < 1e-9
    near = fit_policy(network()[2], reward, world, CONTEXTS[:2], learner=rloo(max_steps=60))
    assert told(near.problem) == []


def test_alarm_of_a_policy_far_from_the_reward():
    world, reward, policy = network()
    with torch.no_grad():
        policy.logits.copy_(-2 * reward.step(world.table("pairs")).detach())  # it goes where nobody wants to go
    assert "effective_share" in told(Distillation(policy, reward, world, CONTEXTS[:1], temperature=0.5))


def test_alarm_of_a_heavy_tail():
    tail = torch.from_numpy(np.random.default_rng(0).pareto(0.9, 2000) + 1).log()
    found = log_z(tail[None])
    share = float(found.effective_sample_size) / 2000
    assert float(found.k_hat) > 0.7
    assert share < 0.9
    trace = pd.DataFrame([{"step": 0}, {**QUIET, "step": 1, "k_hat": float(found.k_hat), "effective_share": share}])
    assert "k_hat" in alarms_by_name(trace)


def test_alarm_of_a_policy_that_is_not_what_draws():
    """The log-probabilities are those of another policy than the one that drew."""

    class Sampler:
        def __init__(self, world, other):
            self.world, self.other = world, other

        def __getattr__(self, name):
            return getattr(self.world, name)

        def draw(self, policy, contexts, n, *, key):
            from dataclasses import replace

            draws = self.world.draw(self.other, contexts, n, key=key)
            return replace(draws, log_q=policy.log_prob(draws.batch).detach())

    world, reward, policy = network()
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(1)).mul_(2)
    assert "kl" in told(Distillation(policy, reward, Sampler(world, BasePolicy(world)), CONTEXTS[:2]))
    assert "kl" not in told(Distillation(policy, reward, world, CONTEXTS[:2]))


def test_alarm_of_a_policy_that_goes_one_way():
    world, reward, policy = network()
    with torch.no_grad():
        policy.logits.copy_(50.0 * torch.arange(policy.logits.shape[-1]))
    fit = fit_policy(policy, reward, world, CONTEXTS[:2], learner=rloo(4, max_steps=3))
    assert any("nothing is learned" in sentence for sentence in fit.alarms)


def test_alarm_of_draws_that_come_to_no_end():
    """A dead end is no end where paths have destinations."""
    world, reward, policy = network()
    assert "cut" not in told(Distillation(policy, reward, world, [Start(0, 4)]))  # it knows where it is going
    assert "cut" in told(Distillation(SoftmaxPolicy(world), reward, world, [Start(0, 4)]))
    world, features = random_world(0, discount=0.5)
    endless = Distillation(SoftmaxPolicy(world), Linear(features, [0.1, 0.2, 0.3]), world, [0])
    assert "cut" not in told(endless)  # cut where the discount has left nothing
