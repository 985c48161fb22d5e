"""Tests of hypotheses against formulas written out for a logit, and by how often they reject what is true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize
from torch import nn

from irlhf import Normal, Source, Term, comparisons, fit_reward, listed
from irlhf.errors import ConfigError
from irlhf.hypothesis import (
    added_information,
    criteria,
    derived,
    likelihood_ratio,
    score_test,
    sources_agree,
    vuong,
    wald,
)


@dataclass(frozen=True, eq=False)
class Rows:
    x: torch.Tensor


class Vectors:
    """Trajectories are tuples of numbers, and only choices out of lists are made."""

    deterministic = True

    def collate(self, contexts, trajectories):
        return Rows(torch.tensor([list(t) for t in trajectories], dtype=torch.float64))

    def log_base(self, batch):
        return torch.zeros(len(batch.x), dtype=torch.float64)

    log_base_step = log_base


class Inner(nn.Module):
    def __init__(self, columns=(0, 1, 2)):
        super().__init__()
        self.columns = list(columns)
        self.theta = nn.Parameter(torch.zeros(len(self.columns), dtype=torch.float64))

    @property
    def parameter_labels(self):
        return {"theta": [f"x{k}" for k in self.columns]}

    def forward(self, batch):
        return batch.x[:, self.columns] @ self.theta


TRUE = np.array([0.8, -0.5, 0.0])


def pairs(n, seed, theta=TRUE, temperature=1.0, **how):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    first = rng.random(n) < 1 / (1 + np.exp(-((a - b) @ theta) / temperature))
    data = comparisons([None] * n, list(map(tuple, a)), list(map(tuple, b)), np.where(first, 0, 1).tolist(), **how)
    return data, (a - b) * np.where(first, 1, -1)[:, None]


def value(theta, x):
    return -np.logaddexp(0, -x @ theta).sum()


def information(theta, x):
    p = 1 / (1 + np.exp(-x @ theta))
    return (x * (p * (1 - p))[:, None]).T @ x


@pytest.fixture(scope="module")
def fitted():
    data, x = pairs(300, 0)
    term = Term(data, listed(Vectors()))
    return fit_reward(Inner(), term), fit_reward(Inner(), term, fixed={"x2": 0.0}), x


def test_three_tests_of_one_hypothesis_are_their_formulas(fitted):
    full, small, x = fitted
    theta = full.theta.numpy()
    best = minimize(lambda t: -value(t, x), np.zeros(3), tol=1e-12).x
    assert np.allclose(theta, best, atol=1e-5)
    variance = np.linalg.inv(information(theta, x))
    assert wald(full, {"x2": 0.0}).statistic == pytest.approx(theta[2] ** 2 / variance[2, 2], rel=1e-8)
    r = small.theta.numpy()
    assert likelihood_ratio(small, full).statistic == pytest.approx(2 * (value(theta, x) - value(r, x)), rel=1e-6)
    p = 1 / (1 + np.exp(-x @ r))
    g = ((1 - p)[:, None] * x).sum(0)
    assert score_test(small, ["x2"]).statistic == pytest.approx(g @ np.linalg.inv(information(r, x)) @ g, rel=1e-6)
    scores = (1 - p)[:, None] * x
    opg = g @ np.linalg.inv(scores.T @ scores) @ g
    assert score_test(small, ["x2"], kind="opg").statistic == pytest.approx(opg, rel=1e-6)
    assert all(t.df == 1 for t in (wald(full, {"x2": 0.0}), likelihood_ratio(small, full), score_test(small, ["x2"])))
    assert wald(full, {"x0": 0.0, "x1": 0.0}).df == 2 and wald(full, {"x0": 0.0, "x1": 0.0}).p < 1e-6


def test_a_function_of_parameters_by_the_delta_method_and_by_simulation(fitted):
    full, _, x = fitted
    theta = full.theta.numpy()
    variance = np.linalg.inv(information(theta, x))
    gradient = np.array([1 / theta[1], -theta[0] / theta[1] ** 2, 0.0])
    table = derived(full, lambda p: p["x0"] / p["x1"])
    assert table["estimate"][0] == pytest.approx(theta[0] / theta[1])
    assert table["std. error"][0] == pytest.approx(np.sqrt(gradient @ variance @ gradient), rel=1e-8)
    exact = derived(full, lambda p: torch.stack([p["x0"], p["x1"]]))
    drawn = derived(full, lambda p: torch.stack([p["x0"], p["x1"]]), draws=4000)
    assert np.allclose(drawn["std. error"], exact["std. error"], rtol=0.06)
    assert np.allclose(drawn["lower 95%"], exact["lower 95%"], atol=0.05)


def test_criteria(fitted):
    full, small, x = fitted
    for fit, k in ((full, 3), (small, 2)):
        found = criteria(fit)
        assert found["k"] == k and found["n"] == 300
        assert found["aic"] == pytest.approx(2 * k - 2 * value(fit.theta.numpy(), x))
        assert found["bic"] == pytest.approx(k * np.log(300) - 2 * value(fit.theta.numpy(), x))


def test_vuong_is_its_formula_and_tells_two_models_apart():
    data, x = pairs(900, 1)
    term = Term(data, listed(Vectors()))
    right, wrong = fit_reward(Inner((0, 2)), term), fit_reward(Inner((1,)), term)
    m = -np.logaddexp(0, -x[:, [0, 2]] @ right.theta.numpy()) + np.logaddexp(0, -x[:, [1]] @ wrong.theta.numpy())
    z = (m.sum() - 0.5 * np.log(900)) / (np.sqrt(900) * m.std())
    found = vuong(right, wrong)
    assert found.statistic == pytest.approx(z, rel=1e-6) and found.p < 0.05 and "first" in found.sentence
    assert vuong(wrong, right).statistic == pytest.approx(-z, rel=1e-6)


@pytest.mark.long
def test_true_hypotheses_are_rejected_as_often_as_they_should():
    """1,000 data sets at a level of 5 %, within the 99.9 % binomial band (a doubled likelihood rejects 166)."""
    rejected = dict.fromkeys(("wald", "lr", "score"), 0)
    for seed in range(1000):
        data, _ = pairs(120, 1000 + seed)
        term = Term(data, listed(Vectors()))
        full, small = fit_reward(Inner(), term), fit_reward(Inner(), term, fixed={"x2": 0.0})
        rejected["wald"] += wald(full, {"x2": 0.0}).p < 0.05
        rejected["lr"] += likelihood_ratio(small, full).p < 0.05
        rejected["score"] += score_test(small, ["x2"]).p < 0.05
    low, high = stats.binom.ppf([0.0005, 0.9995], 1000, 0.05)
    assert all(low <= count <= high for count in rejected.values()), rejected


@pytest.mark.parametrize("fit_temperature", [False, True])
def test_sources_that_agree_and_sources_that_do_not(fit_temperature):
    ours, _ = pairs(400, 3, source="we")
    theirs, _ = pairs(400, 4, temperature=2.0 if fit_temperature else 1.0, source="they")
    others, _ = pairs(400, 5, theta=np.array([-0.5, 0.8, 0.0]), source="they")
    for data, agree in ((theirs, True), (others, False)):
        terms = [
            Term(ours, listed(Vectors())),
            Term(data, listed(Vectors()), Source(fit_temperature=fit_temperature)),
        ]
        found = sources_agree(fit_reward(Inner(), terms))
        assert found.df == 3 - fit_temperature
        assert (found.p > 0.01) == agree


def test_what_each_source_adds():
    ours, x = pairs(200, 6, source="we")
    few, y = pairs(50, 7, source="they")
    blind = comparisons([None] * 20, [(1.0, 0.0, 0.0)] * 20, [(0.0, 0.0, 0.0)] * 20, [0] * 15 + [1] * 5, source="one")
    fit = fit_reward(Inner(), [Term(data, listed(Vectors())) for data in (ours, few, blind)])
    table = added_information(fit)
    theta = fit.theta.numpy()
    a, b = information(theta, x).diagonal(), information(theta, y).diagonal()
    assert np.allclose(table["we: share"][1:], (a / (a + b))[1:])
    assert np.allclose(table["we: alone"], np.sqrt(np.linalg.inv(information(theta, x)).diagonal()))
    assert np.isfinite(table["one: alone"].iloc[0]) and np.isinf(table["one: alone"].iloc[1:]).all()


def test_sources_that_share_nothing_are_refused():
    n = 30
    zero = [(0.0, 0.0, 0.0)] * n
    answers = [0] * 20 + [1] * 10
    one = comparisons([None] * n, [(1.0, 0.0, 0.0)] * n, zero, answers, source="one")
    other = comparisons([None] * n, [(0.0, 1.0, 0.0)] * n, zero, answers, source="other")
    fit = fit_reward(Inner((0, 1)), [Term(one, listed(Vectors())), Term(other, listed(Vectors()))])
    with pytest.raises(ConfigError, match="no direction"):
        sources_agree(fit)


def test_what_cannot_be_tested_is_refused_with_a_reason(fitted):
    full, small, _ = fitted
    with pytest.raises(ConfigError, match="no parameter 'y'"):
        wald(full, {"y": 0.0})
    with pytest.raises(ConfigError, match="repeat"):
        wald(full, lambda p: torch.stack([p["x0"], 2 * p["x0"]]))
    with pytest.raises(ConfigError, match="free in this fit"):
        score_test(full, ["x2"])
    with pytest.raises(ConfigError, match="swap them"):
        likelihood_ratio(full, small)
    data, _ = pairs(300, 9)
    other = fit_reward(Inner(), Term(data[:100], listed(Vectors())))
    with pytest.raises(ConfigError, match="not the same"):
        vuong(full, other)
    with pytest.raises(ConfigError, match="prior"):
        criteria(fit_reward(Inner(), Term(data, listed(Vectors())), prior=Normal(sd=1.0)))
    with pytest.raises(ConfigError, match="nothing to compare"):
        vuong(full, full)
