"""Verdicts on what the feedback leaves open: no miss, no false alarm, a direction that means something."""

import numpy as np
import pytest
import torch

from irlhf import Normal, Source, Status, Term, comparisons, demonstrations, exact, fit_reward, listed
from irlhf.errors import ConfigError
from irlhf.objective import Objective
from irlhf.worlds.tabular import Features, Linear, features, from_arrays, sample_paths
from tests.test_fit import buses
from tests.worlds.problems import random_world


def pairs(seed: int, n_features: int, n: int, noise: float):
    """Comparisons of random paths by a random linear reward; separable without noise."""
    rng = np.random.default_rng(seed)
    world, _ = random_world(seed, n_states=8, discount=0.9)
    t = world.transitions
    columns = features(world, rng.standard_normal((t.n_pairs, n_features)))
    paths = list(sample_paths(world, np.full(t.n_pairs, np.log(1 / 3)), [0] * 2 * n, max_steps=6, seed=seed))
    reward = Linear(columns, rng.standard_normal(n_features))
    returns = reward(world.collate([None] * 2 * n, paths)).detach().numpy()
    gap = returns[:n] - returns[n:] + noise * rng.logistic(size=n)
    return world, columns, comparisons([None] * n, paths[:n], paths[n:], [int(g < 0) for g in gap])


@pytest.mark.parametrize("n_features", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_separable_comparisons_are_never_called_converged(n_features, seed):
    world, columns, feedback = pairs(seed, n_features, 40, noise=0.0)
    fit = fit_reward(Linear(columns), Term(feedback, listed(world)))
    assert fit.status is Status.SEPARATED
    assert np.isinf(fit.standard_errors()).any()
    # Going along the direction that is named explains every answer ever better.
    way = fit.unidentified[-1]
    along = Linear(columns, [way.get(name, 0.0) for name in columns.names])
    sign = np.sign(sum(way.get(k, 0.0) * v for k, v in fit.params.items()))
    with torch.no_grad():
        first = along(world.collate([None] * 80, [feedback.trajectories[i] for i in feedback.trajectory]))
    gap = sign * (first[0::2] - first[1::2]).numpy() * np.where(feedback.chosen == 0, 1, -1)
    assert (gap > -1e-6).all()


@pytest.mark.parametrize("n_features", [1, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_noisy_comparisons_are_not_called_separated(n_features, seed):
    world, columns, feedback = pairs(seed, n_features, 200, noise=1.0)
    fit = fit_reward(Linear(columns), Term(feedback, listed(world)))
    assert fit.status is Status.CONVERGED and np.isfinite(fit.standard_errors()).all()


@pytest.mark.parametrize("shift", [1e3, 1e5])
def test_a_feature_far_from_zero_is_as_well_identified_as_one_around_it(shift):
    world, columns = random_world(0, discount=0.9)
    paths = sample_paths(
        world, world.solve(Linear(columns, [1.0, -1.0, 0.5])).log_policy.detach(), [0] * 60, max_steps=20
    )
    term = Term(demonstrations(None, paths), exact(world))
    moved = Features(columns.values + torch.tensor([shift, 0.0, 0.0]), columns.names, columns.on)
    near, far = (fit_reward(Linear(f), term) for f in (columns, moved))
    assert far.status is Status.CONVERGED
    np.testing.assert_allclose(far.params, near.params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(far.standard_errors(), near.standard_errors(), rtol=1e-3)


def test_near_collinearity_spares_the_others():
    world, columns = random_world(0, discount=0.9)
    rng = np.random.default_rng(0)
    twin = columns.values[:, :1] + 1e-5 * torch.from_numpy(rng.standard_normal((len(columns.values), 1)))
    both = Features(torch.cat([columns.values, twin], 1), ("a", "b", "c", "twin"), "pairs")
    paths = sample_paths(
        world, world.solve(Linear(columns, [1.0, -1.0, 0.5])).log_policy.detach(), [0] * 60, max_steps=20
    )
    term = Term(demonstrations(None, paths), exact(world))
    single, doubled = fit_reward(Linear(columns), term), fit_reward(Linear(both), term)
    for name in ("b", "c"):
        assert doubled.standard_errors()[name] == pytest.approx(single.standard_errors()[name], rel=0.2)


def test_a_comparison_explained_perfectly_does_not_pass_as_a_temperature():
    world, columns, feedback = buses()
    better, worse = feedback.trajectories[0], feedback.trajectories[1]
    returns = Linear(columns, [1.5, 4.0])(world.collate([None] * 2, [better, worse])).tolist()
    said = comparisons([None], [better], [worse], [int(returns[0] < returns[1])])
    terms = [Term(feedback, exact(world)), Term(said, listed(world), Source(fit_temperature=True))]
    fit = fit_reward(Linear(columns), terms)
    assert fit.status in (Status.SEPARATED, Status.UNIDENTIFIED)
    assert np.isinf(fit.standard_errors()["comparisons.log_temperature"])
    assert np.isfinite(fit.standard_errors()[["cost", "replace"]]).all()


def test_at_a_bound_there_is_no_interval_and_the_others_are_given_it():
    world, columns, feedback = buses()
    term = Term(feedback, exact(world))
    bounded = fit_reward(Linear(columns), term, bounds={"replace": (None, 3.0)})
    fixed = fit_reward(Linear(columns), term, fixed={"replace": 3.0})
    assert np.isnan(bounded.standard_errors()["replace"])
    assert bounded.standard_errors()["cost"] == pytest.approx(fixed.standard_errors()["cost"], rel=1e-6)
    with pytest.raises(ConfigError, match="outside its bounds"):
        fit_reward(Linear(columns), term, fixed={"replace": 5.0}, bounds={"replace": (None, 3.0)})


def test_a_frozen_reward_with_a_fitted_temperature():
    world, columns, feedback = buses()
    reward = Linear(columns, [3.0, 8.0])
    reward.theta.requires_grad_(False)
    fit = fit_reward(reward, Term(feedback, exact(world), Source(fit_temperature=True)))
    assert list(fit.params.index) == ["demonstrations.log_temperature"]
    assert np.exp(fit.params.iloc[0]) == pytest.approx(2.0, rel=0.15)
    scale = Objective(reward, [Term(feedback, exact(world), Source(fit_temperature=True))]).scale
    assert scale.tolist() == [1.0]


def test_a_prior_makes_everything_identified():
    p = np.full((2, 2, 2), 0.5)
    world = from_arrays(p, discount=0.5)
    columns = features(world, np.ones((4, 1)), names=["constant"])
    paths = sample_paths(world, np.full(4, np.log(0.5)), [0] * 5, max_steps=4)
    term = Term(demonstrations(None, paths), exact(world))
    assert fit_reward(Linear(columns), term).status is Status.UNIDENTIFIED
    fit = fit_reward(Linear(columns), term, prior=Normal(sd=2.0))
    assert fit.status is Status.CONVERGED and fit.standard_errors().iloc[0] == pytest.approx(2.0)
