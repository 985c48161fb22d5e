"""Reward and policy fitted together, against the exact fit on the same data."""

import numpy as np
import pytest
import torch

from irlhf import (
    Key,
    Source,
    Term,
    comparisons,
    demonstrations,
    exact,
    expected,
    fit_jointly,
    fit_reward,
    listed,
    rloo,
    sampled,
    variational,
)
from irlhf.errors import ConfigError
from irlhf.worlds.tabular import Linear, SoftmaxPolicy, sample_paths
from tests.test_simulated import TRUE, paths_of, strings
from tests.worlds.problems import random_world

N = 300


def observed(world, columns, n=N, **options):
    policy = world.solve(Linear(columns, TRUE)).log_policy.detach()
    return demonstrations(None, sample_paths(world, policy, [0] * n, max_steps=99, seed=0), **options)


def adversary(world, columns):
    """A reward that is wrong in sign and too large, and the policy that has long converged to it."""
    reward, policy = Linear(columns, [-3 * x for x in TRUE]), SoftmaxPolicy(world)
    with torch.no_grad():
        log_pi = world.solve(reward).log_policy
        policy.logits.copy_(log_pi[0])
    return reward, policy


@pytest.mark.parametrize("start", ["cold", "adversarial"])
def test_sampled_rounds_converge_to_the_exact_fit(start):
    world, columns = strings(tokens=4, length=4)  # 256 sequences
    rows = observed(world, columns)
    best = fit_reward(Linear(columns), Term(rows, exact(world)))
    cold = Linear(columns), SoftmaxPolicy(world)
    reward, policy = cold if start == "cold" else adversary(world, columns)
    fit, learned = fit_jointly(reward, policy, Term(rows, sampled(world)), world)
    z = (fit.params - best.params) / best.standard_errors()
    assert z.abs().max() < 0.7  # standard errors of the data, to which 8 rivals a row add a little in each round
    assert fit.status.name == "CONVERGED"
    assert learned.gap().max() < 0.05
    last = fit.trace.iloc[-1]
    assert last["effective_share"] > 0.9 and abs(last["gap"]) < 0.05
    assert last["log_z"] == pytest.approx(float(world.best(reward, [0]).detach()[0]), abs=0.3)
    assert {"objective", "log_z", "log_z_error", "effective_share", "gap"} <= set(fit.trace.columns)
    # What is learned from a policy that never follows is wrong by many standard errors: the test can fail.
    assert abs(best.params["a"] / best.standard_errors()["a"]) > 5


@pytest.mark.parametrize("options", [{"horizon": 4, "discount": 0.8}, {"horizon": 4}])
def test_a_saddle_point_is_the_weighted_causal_fit(options):
    world, columns = random_world(4, n_states=3, n_actions=2, **options)
    rows = observed(world, columns)
    best = fit_reward(Linear(columns), Term(rows, exact(world, kind="weighted")))
    learner = expected() if "discount" in options else rloo(32)
    term = Term(rows, variational(world, n=1000))
    fit, learned = fit_jointly(Linear(columns), SoftmaxPolicy(world), term, world, learner=learner, policy_steps=5)
    z = (fit.params - best.params) / best.standard_errors("sandwich")
    # Feature matching on a finite sample is not the gradient of the causal likelihood: equal in expectation only.
    assert z.abs().max() < 1.5
    assert learned.gap().max() < 0.05
    with pytest.raises(ConfigError, match="no standard errors"):
        fit.standard_errors()
    assert "no standard errors" in fit.summary()


def test_demonstrations_and_comparisons_join_in_one_fit():
    world, columns = strings(tokens=3, length=3)
    rows = observed(world, columns, 200)
    paths = paths_of(world, world.draw(world.base_policy(), [0], 600, key=Key(2)))
    reward = Linear(columns, TRUE)
    worth = reward(world.collate([None] * 600, paths)).detach().numpy() / 2.0
    first = np.random.default_rng(0).random(300) < 1 / (1 + np.exp(worth[300:] - worth[:300]))
    pairs = comparisons([None] * 300, paths[:300], paths[300:], np.where(first, 0, 1).tolist())

    def terms(closed):
        return [Term(rows, closed), Term(pairs, listed(world), Source(fit_temperature=True))]

    best = fit_reward(Linear(columns), terms(exact(world)))
    fit, _ = fit_jointly(Linear(columns), SoftmaxPolicy(world), terms(sampled(world)), world, rounds=30)
    assert list(fit.params.index) == list(best.params.index) and len(fit.params) == 4
    assert ((fit.params - best.params) / best.standard_errors()).abs().max() < 0.5


def test_the_policy_follows_the_temperature_of_who_demonstrated():
    world, columns = strings(tokens=3, length=3)
    rows = observed(world, columns, 200)
    reward, policy = Linear(columns), SoftmaxPolicy(world)
    fit, learned = fit_jointly(reward, policy, Term(rows, sampled(world), Source(2.0)), world, rounds=30)
    assert learned.problem.temperature == 2.0
    single = fit_reward(Linear(columns), Term(rows, exact(world), Source(2.0)))
    assert ((fit.params - single.params) / single.standard_errors()).abs().max() < 0.5
    assert learned.gap().max() < 0.1


def test_the_same_key_gives_the_same_fit_and_nothing_to_draw_is_refused():
    world, columns = strings(tokens=3, length=3)
    rows = observed(world, columns, 50)
    made = []
    for key in (Key(0), Key(0), Key(1)):
        fit, _ = fit_jointly(
            Linear(columns), SoftmaxPolicy(world), Term(rows, sampled(world)), world, rounds=3, key=key
        )
        made.append(fit.theta)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    with pytest.raises(ConfigError, match="no term draws"):
        fit_jointly(Linear(columns), SoftmaxPolicy(world), Term(rows, exact(world)), world)
