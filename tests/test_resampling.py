"""The bootstrap, leave-one-out and redrawn rivals, against doing it all by hand."""

import copy

import numpy as np
import pytest
import torch

from irlhf import Normal, Source, Term, comparisons, demonstrations, exact, fit_reward, listed, sampled
from irlhf.errors import ConfigError
from irlhf.resampling import bootstrap, leave_one_out, simulation_variance
from irlhf.worlds.tabular import Linear, sample_paths
from tests.test_hypothesis import Inner, Vectors
from tests.worlds.problems import diamond, replacement


def logit(n=120, seed=0, theta=(1.0, -0.7), persons=None):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n, 2))
    p = 1 / (1 + np.exp(-(b - a) @ np.array(theta)))
    answers = (rng.random(n) < p).astype(int)
    rows = comparisons([None] * n, list(map(tuple, a)), list(map(tuple, b)), answers.tolist(), persons=persons)
    return rows, (b - a) * np.where(answers == 1, 1, -1)[:, None]


def fitted(rows, **options):
    return fit_reward(Inner((0, 1)), Term(rows, listed(Vectors())), **options)


def test_a_bootstrap_is_refits_of_resampled_rows():
    rows, _ = logit()
    fit = fitted(rows)
    found = bootstrap(fit, 12, seed=3)
    rng = np.random.default_rng(3)
    for k in range(12):
        drawn = torch.from_numpy(np.sort(rng.integers(120, size=120)))
        by_hand = fit_reward(Inner((0, 1)), fit.terms[0].on(rows[drawn.numpy()]))
        np.testing.assert_allclose(found.draws.iloc[k], by_hand.params, atol=1e-5)
    np.testing.assert_array_equal(fit.params, fitted(rows).params)  # the fit itself is as it was


def test_bootstrap_errors_are_those_of_theory():
    rows, _ = logit(400)
    fit = fitted(rows)
    ratio = bootstrap(fit, 300, seed=1).standard_errors / fit.standard_errors("sandwich")
    assert (ratio - 1).abs().max() < 5 / np.sqrt(600) + 0.03  # of a standard deviation of 300 draws; and small samples


def test_whole_persons_are_drawn_together():
    """Everybody answers every question five times alike: resampling rows would see five times as much."""
    rows, _ = logit(60)
    five = comparisons(
        [None] * 300,
        [rows.trajectories[rows.trajectory[2 * r]] for r in range(60) for _ in range(5)],
        [rows.trajectories[rows.trajectory[2 * r + 1]] for r in range(60) for _ in range(5)],
        [int(rows.chosen[r]) for r in range(60) for _ in range(5)],
        persons=[f"p{r}" for r in range(60) for _ in range(5)],
    )
    fit = fitted(five)
    by_person, by_row = (bootstrap(fit, 150, by=by).standard_errors for by in ("person", "datum"))
    assert (by_person / by_row).min() > 1.7 and (by_person / by_row).max() < 2.9  # sqrt 5 = 2.24
    expected = fit.standard_errors("sandwich", cluster="person")
    assert (by_person / expected - 1).abs().max() < 0.35


def test_persons_in_two_terms_are_one_cluster():
    rows, _ = logit(80, persons=[f"p{k % 20}" for k in range(80)])
    more, _ = logit(80, seed=5, persons=[f"p{k % 20}" for k in range(80)])
    others = Term(more, listed(Vectors()), Source(2.0), name="b")
    fit = fit_reward(Inner((0, 1)), [Term(rows, listed(Vectors())), others])
    found = bootstrap(fit, 40, by="person")
    ratio = found.standard_errors / fit.standard_errors("sandwich", cluster="person")
    assert ratio.between(0.5, 2.0).all() and found.by == "person"
    assert list(found.table().columns) == ["estimate", "bias", "std. error", "lower 95%", "upper 95%"]


def test_leave_one_out_against_refits():
    rows, _ = logit(60)
    fit = fitted(rows, prior=Normal(sd=2.0))
    found = leave_one_out(fit, draws=4000)
    assert found.unreliable == 0 and "Reliable" in found.verdict
    rng = np.random.default_rng(0)
    for k in (0, 7, 31):
        rest = torch.tensor([j for j in range(60) if j != k])
        other = fit_reward(Inner((0, 1)), fit.terms[0].on(rows[rest.numpy()]), prior=Normal(sd=2.0))
        left_out = fit.terms[0].on(rows[np.array([k])])
        points = rng.multivariate_normal(other.theta.numpy(), other.covariance().to_numpy(), size=4000)
        reward = Inner((0, 1))
        values = []
        for point in points:
            with torch.no_grad():
                reward.theta.copy_(torch.from_numpy(point))
                values.append(float(left_out.log_prob(reward)[0]))
        density = np.exp(values)
        error = density.std() / np.sqrt(4000) / density.mean()
        assert abs(found.each["elpd"][k] - np.log(density.mean())) < 5 * np.sqrt(2) * error + 0.01
    assert 1.0 < found.effective_parameters < 3.0


def test_leave_one_out_tells_the_better_model_and_warns_of_the_datum_that_decides():
    rows, _ = logit(200)
    both = leave_one_out(fitted(rows))
    one = leave_one_out(fit_reward(Inner((0,)), Term(rows, listed(Vectors()))))
    gain, error = both.gain_over(one)
    assert gain > 2.5 * error > 0
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 30, 2))
    a[:, 1] = b[:, 1] = 0.0
    b[0, 1] = 3.0  # one row alone says what the second feature is worth
    rows = comparisons([None] * 30, list(map(tuple, a)), list(map(tuple, b)), rng.integers(2, size=30).tolist())
    weak = fitted(rows, prior=Normal(sd=3.0))
    found = leave_one_out(weak)
    assert found.each["k_hat"].idxmax() == 0
    with pytest.raises(ConfigError, match="same groups"):
        found.gain_over(both)


def test_paths_are_one_datum_whatever_their_steps():
    world, columns = replacement(8, 0.9)
    paths = sample_paths(world, world.solve(Linear(columns, [2.0, 3.0])).log_policy[0].detach(), [0] * 40, max_steps=15)
    rows = demonstrations([None] * 40, paths, persons=[f"p{k % 8}" for k in range(40)])
    fit = fit_reward(Linear(columns), Term(rows, exact(world)))
    found = leave_one_out(fit, draws=400)
    assert len(found.each) == 40 and found.elpd < float(fit.log_likelihood.sum())
    assert len(leave_one_out(fit, draws=400, by="person").each) == 8
    drawn = bootstrap(fit, 30, by="person")
    ratio = drawn.standard_errors / fit.standard_errors("sandwich", cluster="person")
    assert drawn.failed == 0 and ratio.between(0.5, 2.0).all()


def test_rivals_that_are_drawn_again():
    network, truth = diamond()
    paths = sample_paths(
        network, network.solve(truth, [5]).log_policy.detach(), [0] * 400, destinations=[5] * 400, max_steps=20, seed=1
    )
    rows, share = demonstrations([5] * 400, paths), {}
    for n in (1, 16):
        fit = fit_reward(Linear(truth.features), Term(rows, sampled(network, n=n)))
        before = copy.deepcopy(fit.theta)
        found = simulation_variance(fit, 8)
        share[n] = found["share"].mean()
        np.testing.assert_allclose(found["together"] ** 2, found["sampling"] ** 2 + found["simulation"] ** 2)
        assert torch.equal(before, fit.theta)
    assert share[16] < share[1] and share[1] > 0.02
    with pytest.raises(ConfigError, match="draws rivals"):
        simulation_variance(fit_reward(Linear(truth.features), Term(rows, exact(network))))


def test_what_resampling_refuses():
    rows, _ = logit(30, persons=["p"] * 30)
    with pytest.raises(ConfigError, match="one person only"):
        bootstrap(fitted(rows), by="person")
    n = 12
    separated = comparisons([None] * n, [(0.0, 0.0)] * n, [(1.0, 0.0)] * n, [1] * n)
    with pytest.raises(ConfigError, match="not identified"):
        leave_one_out(fitted(separated))
