"""Intervals of predicted probabilities: by formula for a logit, by last layer for a network, by an ensemble."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from irlhf import (
    TIE,
    Choice,
    Ensemble,
    Feedback,
    Normal,
    Rating,
    Source,
    Term,
    TorchOptimizer,
    davidson,
    demonstrations,
    exact,
    fit_reward,
    listed,
)
from irlhf.errors import ConfigError
from irlhf.predictive import choice_probabilities, last_layer
from irlhf.worlds.tabular import Linear, Path
from tests.test_hypothesis import Inner, Vectors
from tests.test_resampling import fitted, logit
from tests.worlds.problems import diamond


def test_the_interval_of_a_probability_by_formula():
    rows, _ = logit(150)
    fit = fitted(rows)
    found = choice_probabilities(fit, level=0.9)
    x = np.array([np.subtract(rows.trajectories[rows.trajectory[2 * r + 1]], rows.trajectories[rows.trajectory[2 * r]])
                  for r in range(150)])  # fmt: skip
    log_odds = x @ fit.params.to_numpy()
    error = np.sqrt(np.einsum("ri,ij,rj->r", x, fit.covariance().to_numpy(), x))
    second = found[found.answer == 1].reset_index()
    p = 1 / (1 + np.exp(-log_odds))
    np.testing.assert_allclose(second.probability, p, atol=1e-12)
    np.testing.assert_allclose(second["std. error"], p * (1 - p) * error, rtol=1e-9)
    np.testing.assert_allclose(second.upper, 1 / (1 + np.exp(-log_odds - stats.norm.ppf(0.95) * error)), rtol=1e-9)
    assert (found.groupby("id").probability.sum() - 1).abs().max() < 1e-12
    assert found.given.sum() == 150


def test_every_kind_of_answer_has_one():
    world, reward = diamond()
    paths = [Path([0, 1, 3, 5], [1, 3, 5]), Path([0, 2, 4, 5], [2, 4, 5]), Path([0, 1, 4, 5], [1, 4, 5])]
    rows = Feedback.of([
        Choice(5, (paths[0], paths[1]), 0), Choice(5, (paths[1], paths[2]), TIE), Choice(5, tuple(paths), 2),
        Rating(5, paths[0], 1, 3), Choice(5, (paths[2], paths[0]), 1),
    ])  # fmt: skip
    term = Term(rows, listed(world), Source(ties=davidson()))
    fit = fit_reward(Linear(reward.features), term, prior=Normal(1.0), fixed={"default.ties.log_nu": -1.0})
    found = choice_probabilities(fit)
    assert found.answer.tolist() == [0, 1, "tie", 0, 1, "tie", 0, 1, 2, 0, 1, 2, 0, 1, "tie"]
    assert found.given.sum() == 5
    assert ((found.lower <= found.probability) & (found.probability <= found.upper)).all()


def test_coverage_of_true_probabilities():
    """Of 300 fits, 95 % intervals hold the true probability of a choice that was not seen."""
    new, _ = logit(1, seed=99)
    x = np.subtract(new.trajectories[1], new.trajectories[0])
    truth = 1 / (1 + np.exp(-x @ np.array([1.0, -0.7])))
    covered = 0
    for seed in range(300):
        fit = fitted(logit(100, seed=1000 + seed)[0])
        second = choice_probabilities(fit, fit.terms[0].on(new)).iloc[1]
        covered += second.lower <= truth <= second.upper
    low, high = stats.binom.ppf([0.0005, 0.9995], 300, 0.95)
    assert low <= covered <= high


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(2, 6).double(), nn.Linear(6, 1).double()

    def forward(self, batch):
        return self.second(torch.tanh(self.first(batch.x)))[:, 0]


def network(seed, rows):
    optimizer = TorchOptimizer(lambda p: torch.optim.Adam(p, lr=0.05), max_steps=100)
    return fit_reward(Net(seed), Term(rows, listed(Vectors())), optimizer=optimizer, prior=Normal(2.0))


def test_the_last_layer_is_a_linear_reward_on_what_it_reads():
    rows, _ = logit(200)
    fit = network(0, rows)
    found = last_layer(fit, prior=1.5)
    assert len(found.theta) == 6 and all(p.requires_grad for p in fit.reward.parameters())
    with torch.no_grad():
        x = torch.tensor([list(t) for t in rows.trajectories], dtype=torch.float64)
        phi = torch.tanh(fit.reward.first(x)).numpy()
    d = phi[rows.trajectory[1::2]] - phi[rows.trajectory[::2]]
    p = 1 / (1 + np.exp(-d @ fit.reward.second.weight.detach().numpy()[0]))
    information = (d * (p * (1 - p))[:, None]).T @ d + np.eye(6) / 1.5**2
    np.testing.assert_allclose(found.covariance().to_numpy(), np.linalg.inv(information), rtol=1e-8)
    second = choice_probabilities(found)
    expected = np.sqrt(np.einsum("ri,ij,rj->r", d, np.linalg.inv(information), d))
    np.testing.assert_allclose(second["std. error"][1::2], p * (1 - p) * expected, rtol=1e-6)


def test_an_ensemble_is_less_sure_where_nothing_was_seen():
    rows, _ = logit(200)
    ensemble = Ensemble(network(seed, rows).reward for seed in range(4))
    near = choice_probabilities(ensemble, Term(rows, listed(Vectors())))
    far_away = Feedback.of([Choice(None, ((8.0, 8.0), (-8.0, 8.0)), 0), Choice(None, ((0.0, 9.0), (0.0, -9.0)), 0)])
    far = choice_probabilities(ensemble, Term(far_away, listed(Vectors())))
    width = [np.log(x.upper / (1 - x.upper)) - np.log(x.lower / (1 - x.lower)) for x in (near, far)]
    assert width[1].mean() > 2 * width[0].mean()


def test_what_has_no_such_intervals():
    rows, _ = logit(30)
    world, reward = diamond()
    paths = demonstrations([5], [Path([0, 1, 3, 5], [1, 3, 5])])
    with pytest.raises(ConfigError, match="no linear layer"):
        last_layer(fitted(rows))
    with pytest.raises(ConfigError, match="no list"):
        choice_probabilities(Ensemble([reward]), Term(paths, exact(world)))
    with pytest.raises(ConfigError, match="one has no spread"):
        choice_probabilities(Ensemble([Inner((0, 1))]), Term(rows, listed(Vectors())))
    with pytest.raises(ConfigError, match="give a term"):
        choice_probabilities(Ensemble([reward]))
