"""Policies fitted to rewards, against the closed form, by enumeration."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from irlhf import (
    Key,
    actor_critic,
    best_of,
    best_start,
    estimate_log_z,
    expected,
    fit_policy,
    grpo,
    ppo,
    reinforce,
    rloo,
)
from irlhf.distillation import Distillation
from irlhf.errors import ConfigError, NonFiniteError
from irlhf.functional import policy_gradient as pg
from irlhf.policy_fit import alarms
from irlhf.worlds.tabular import Linear, SoftmaxPolicy, SoftPolicy, Start
from tests.test_simulated import TRUE, strings
from tests.worlds.problems import diamond, random_world

LEARNERS = {"reinforce": reinforce, "rloo": rloo, "grpo": grpo, "ppo": ppo, "actor_critic": actor_critic}


def problems():
    """Deterministic and stochastic, with and without discount, with a base measure, going to destinations."""
    sequences, columns = strings()
    stochastic, of = random_world(3, n_states=3, n_actions=2, horizon=3)
    discounted, of_discounted = random_world(3, n_states=3, n_actions=2, horizon=4, discount=0.6)
    discounted.log_base_of_pair = torch.from_numpy(np.random.default_rng(0).normal(size=6))
    town, reward = diamond()
    return {
        "sequences": (sequences, Linear(columns, TRUE), [0]),
        "stochastic": (stochastic, Linear(of, TRUE), [0, 2]),
        "discounted": (discounted, Linear(of_discounted, TRUE), [0, 1]),
        "destinations": (town, reward, [Start(0, 5), Start(1, 4)]),
    }


def policy_for(world, contexts):
    goals = [x.destination for x in contexts] if world.destinations else None
    return SoftmaxPolicy(world, contexts=goals)


@pytest.mark.parametrize("name", list(problems()))
def test_the_exact_expectation_reaches_the_closed_form(name):
    world, reward, contexts = problems()[name]
    policy = policy_for(world, contexts)
    fit = fit_policy(policy, reward, world, contexts, learner=expected(), temperature=0.5)
    assert fit.status.name == "CONVERGED"
    assert fit.gap().abs().max() < 1e-9
    assert fit.objective == pytest.approx(
        float(world.best(reward, contexts, temperature=0.5).detach().mean()), abs=1e-9
    )
    every = world.every(contexts).batch
    best = SoftPolicy(world.solve(reward, every.contexts, temperature=0.5)).log_prob(every)
    assert (policy.log_prob(every).exp() - best.exp()).abs().max() < 1e-3  # rare steps count for little


@pytest.mark.parametrize("learner", list(LEARNERS))
@pytest.mark.parametrize("name", ["sequences", "discounted"])
def test_every_learner_closes_the_gap(name, learner):
    world, reward, contexts = problems()[name]
    policy = policy_for(world, contexts)
    start = fit_policy(policy_for(world, contexts), reward, world, contexts, learner=rloo(max_steps=0)).gap().max()
    fit = fit_policy(policy, reward, world, contexts, learner=LEARNERS[learner](16, max_steps=150), key=Key(1))
    assert fit.gap().max() < 0.02 < 0.2 * start
    assert (fit.gap() > 0).all()


def exact_gradient(world, reward, contexts, policy, temperature=1.0):
    """Of E_pi[log w] by the policy's parameters, by differentiating the sum over all trajectories."""
    every = world.every(contexts)
    log_pi = policy.log_prob(every.batch)
    log_p = every.batch.sum(log_pi, discounted=False) + world.log_dynamics(every.batch)
    log_w = reward(every.batch).detach() / temperature - every.batch.sum(log_pi - world.log_base_step(every.batch))
    value = (log_p.exp() * log_w).sum() / len(contexts)
    return torch.autograd.grad(value, policy.logits)[0]


@pytest.mark.parametrize("name", ["sequences", "discounted"])
def test_drawing_learners_follow_the_exact_gradient_on_average(name):
    """What a learner climbs, at the policy that drew, over many draws: within five standard errors everywhere."""
    world, reward, contexts = problems()[name]
    policy = policy_for(world, contexts)
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(0))
    exact = exact_gradient(world, reward, contexts, policy, 0.7)
    problem = Distillation(policy, reward, world, contexts, temperature=0.7)
    found = []
    for k in range(400):
        draws = problem.draw(4, Key(k))
        log_w = problem.worth(draws, draws.log_q).log_w.reshape(-1, 4)
        advantage = pg.leave_one_out(log_w).reshape(-1)[draws.batch.item]
        surrogate = pg.reinforce(policy.log_prob(draws.batch), advantage)
        objective = draws.batch.sum(surrogate, discounted=False).mean()
        found.append(torch.autograd.grad(objective, policy.logits)[0])
    each = torch.stack(found)
    error = each.std(0) / len(each) ** 0.5
    assert ((each.mean(0) - exact).abs() <= 5 * error + 1e-12).all()
    assert error.max() < 0.2 * exact.abs().max()


def test_a_perfect_critic_leaves_the_gradient_of_the_objective_and_takes_the_luck_out():
    """At the soft-optimal policy with its values as critic every advantage is nature's luck alone; without, zero."""
    world, reward, contexts = problems()["sequences"]
    solution = world.solve(reward)
    policy = SoftmaxPolicy(world)
    with torch.no_grad():
        policy.logits.copy_(solution.log_policy[0])
    problem = Distillation(policy, reward, world, contexts)
    with torch.no_grad():
        problem.critic.values.copy_(solution.values[0, :-1])
    draws = problem.draw(8, Key(0))
    batch, critic = draws.batch, problem.critic
    last = torch.ones_like(batch.item, dtype=torch.bool)
    last[:-1] = batch.item[1:] != batch.item[:-1]
    gain = reward.step(batch) - draws.log_q
    advantage = pg.generalized_advantage(gain, critic.now(batch), critic.after(batch), last, last, 1.0, 0.95)
    assert advantage.abs().max() < 1e-9


# Where the divergence goes. Exact expected gradients at three tokens, as in the field's trainers.


def settle(update, world, policy, steps=1500, rate=0.05):
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (-update()).backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("placement", "least", "most"),
    [("in the return", 0.0, 1e-5), ("k3 in the loss", 0.05, 5.0), ("k3 by step times ratio", 0.002, 5.0),
     ("k1 in the loss", 0.2, 50.0)],
)  # fmt: skip
def test_the_divergence_belongs_into_the_return_and_nowhere_else(placement, least, most):
    world, columns = strings(tokens=3, length=3)
    reward = Linear(columns, TRUE)
    world.log_base_of_pair = torch.from_numpy(np.random.default_rng(1).normal(size=world.transitions.n_pairs))
    world.log_base_of_pair = world.base_policy().log_prob(world.table("pairs"))
    world.__dict__.pop("base_is_normalized", None)
    policy = SoftmaxPolicy(world)
    every = world.every([0]).batch
    returns = reward(every).detach()

    def update():
        log_pi_step = policy.log_prob(every)
        ratio_step = log_pi_step - world.log_base_step(every)
        log_pi, ratio = every.sum(log_pi_step), every.sum(ratio_step)
        p = log_pi.detach().exp()
        worth = returns - ratio.detach() if placement == "in the return" else returns
        advantage = worth - (p * worth).sum()
        value = (p * pg.reinforce(log_pi, advantage)).sum()
        if placement == "k3 in the loss":
            value = value - (p * pg.kl_k3_unbiased_value_reverse_gradient(ratio)).sum()
        if placement == "k1 in the loss":
            value = value - (p * pg.kl_k1_unbiased_value_no_gradient(ratio)).sum()
        if placement == "k3 by step times ratio":  # the default of GRPO trainers with beta > 0
            by_step = pg.kl_k3_unbiased_value_reverse_gradient(ratio_step) * (log_pi_step - log_pi_step.detach()).exp()
            value = value - (p * every.sum(by_step)).sum()
        return value

    settle(update, world, policy)
    log_pi = every.sum(policy.log_prob(every)).detach()
    log_p = (returns + world.log_base(every)).log_softmax(0)
    divergence = float((log_pi.exp() * (log_pi - log_p)).sum())
    assert least <= divergence <= most
    if placement == "k1 in the loss":  # it does nothing: the policy goes where the reward alone is largest
        assert float(log_pi.exp()[returns.argmax()]) > 0.99


# ------------------------------------------------------------------------------------------------ what a fit tells


def test_at_the_soft_policy_log_w_is_log_z_and_far_from_it_a_warning_says_so():
    world, columns = strings(tokens=3, length=5)
    reward = Linear(columns, [4 * x for x in TRUE])
    solution = world.solve(reward)
    log_z = float(solution.log_z([None], [0]).detach())
    perfect = estimate_log_z(reward, world, [0], SoftPolicy(solution), n=64)
    assert perfect["log_z"].iloc[0] == pytest.approx(log_z, abs=1e-9)
    assert perfect["standard_error"].iloc[0] < 1e-9 and perfect["gap"].iloc[0] == pytest.approx(0.0, abs=1e-9)
    assert perfect["verdict"].iloc[0] == "reliable"
    far = estimate_log_z(reward, world, [0], SoftPolicy(world.solve(Linear(columns, [-4 * x for x in TRUE]))), n=64)
    assert "not to be trusted" in far["verdict"].iloc[0]
    near = estimate_log_z(reward, world, [0], SoftPolicy(world.solve(Linear(columns, [3.6 * x for x in TRUE]))), n=4000)
    assert abs(near["log_z"].iloc[0] - log_z) < 5 * near["standard_error"].iloc[0]
    stochastic, of = random_world(3, n_states=3, n_actions=2, horizon=3)
    drawn = estimate_log_z(Linear(of, TRUE), stochastic, [0], stochastic.base_policy(), n=8000)
    anticipative = stochastic.solve(Linear(of, TRUE), kind="anticipative")
    assert (
        abs(drawn["log_z"].iloc[0] - float(anticipative.log_z([None], [0]).detach()))
        < 5 * drawn["standard_error"].iloc[0]
    )


def test_the_trace_holds_what_happened():
    world, reward, contexts = problems()["sequences"]
    fit = fit_policy(SoftmaxPolicy(world), reward, world, contexts, learner=rloo(64, max_steps=60))
    log_z = float(world.best(reward, contexts).detach()[0])
    last, first = fit.trace.iloc[-1], fit.trace.iloc[1]
    assert abs(first["kl"]) < 1e-12 < last["kl"]
    assert abs(last["log_z"] - log_z) < 5 * last["log_z_error"]
    assert last["effective_share"] > 0.9 > first["effective_share"]
    assert 0 <= last["gap"] < first["gap"]
    assert "objective" in fit.summary()
    stochastic, of, starts = problems()["stochastic"]
    luck = fit_policy(SoftmaxPolicy(stochastic), of, stochastic, starts, learner=rloo(8, max_steps=2))
    assert math.isnan(luck.trace["gap"].iloc[-1]) and math.isfinite(luck.trace["kl"].iloc[-1])


def test_the_best_of_n_draws_is_the_one_with_the_largest_reward():
    world, reward, _ = problems()["sequences"]
    chosen = best_of(16, world.base_policy(), reward, world, [0] * 200, key=Key(0))
    assert chosen.batch.n_items == 200 and torch.equal(chosen.request, torch.arange(200))
    drawn = world.draw(world.base_policy(), [0] * 200, 16, key=Key(0))
    best = reward(drawn.batch).detach().reshape(200, 16).amax(1)
    torch.testing.assert_close(reward(chosen.batch).detach(), best, rtol=0, atol=0)
    torch.testing.assert_close(chosen.log_q, world.base_policy().log_prob(chosen.batch), rtol=0, atol=1e-12)


def test_a_reward_that_is_not_finite_changes_no_parameter():
    world, reward, contexts = problems()["sequences"]

    class Broken(nn.Module):
        def forward(self, batch):
            return torch.where(batch.item.new_zeros(batch.n_items) == 0, torch.nan, reward(batch))

        step = forward

    for learner in (rloo(4), ppo(4), actor_critic(4), expected()):
        policy = SoftmaxPolicy(world)
        before = policy.logits.detach().clone()
        with pytest.raises(NonFiniteError, match="reward"):
            fit_policy(policy, Broken(), world, contexts, learner=learner)
        assert torch.equal(policy.logits, before)


def test_what_cannot_be_fitted_is_refused():
    world, reward, contexts = problems()["sequences"]
    with pytest.raises(ConfigError, match="no parameters"):
        fit_policy(world.base_policy(), reward, world, contexts)
    with pytest.raises(ConfigError, match="no contexts"):
        fit_policy(SoftmaxPolicy(world), reward, world, [])
    with pytest.raises(ConfigError, match="positive"):
        fit_policy(SoftmaxPolicy(world), reward, world, contexts, temperature=0.0)
    endless, of = random_world(0, discount=0.9)
    with pytest.raises(ConfigError, match="without end"):
        fit_policy(SoftmaxPolicy(endless), Linear(of, TRUE), endless, [0], learner=expected())


def test_the_same_key_gives_the_same_policy_and_another_another():
    world, reward, contexts = problems()["sequences"]
    made = []
    for key in (Key(0), Key(0), Key(1)):
        policy = SoftmaxPolicy(world)
        fit = fit_policy(policy, reward, world, contexts, learner=rloo(4, max_steps=5), key=key)
        made.append(policy.logits.detach().clone())
        assert alarms(fit.trace) == fit.alarms
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_of_several_starts_the_best_by_what_was_learned():
    """The first start can go nowhere: its logits have no gradient. The reward that was learned says so."""
    world, reward = diamond()

    class Stuck(SoftmaxPolicy):
        def log_policy(self):
            return super().log_policy().detach() + 0.0 * self.logits.sum()

    made = []

    def make(start):
        made.append(Stuck(world) if start == 0 else SoftmaxPolicy(world))
        return made[-1]

    starts = [Start(0, 5)]
    fit = best_start(make, reward, world, starts, learner=rloo(8, rate=0.3, max_steps=40))
    assert len(made) == 2 and fit.policy is made[1]
    with pytest.raises(ConfigError, match="at least 1"):
        best_start(make, reward, world, starts, starts=0)
