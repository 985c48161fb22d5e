"""95 % intervals hold the truth in 95 % of data sets: demonstrations, comparisons and both, each kind of error.

``pytest -m long`` repeats it with 1,000 data sets each, where the band is 92.7 to 97.3 %.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from irlhf import Source, Term, comparisons, demonstrations, exact, fit_reward, listed
from irlhf.worlds.tabular import Linear, sample_paths
from tests.test_preferences import segments
from tests.worlds.problems import random_world

TRUTH = np.array([1.0, -0.7, 0.5])
SCALE = 1.5  # temperature of the comparisons


def band(n, level=0.95, beyond=0.001):
    """The number of intervals of n that may hold the truth, but for chances of 0.1 %."""
    return stats.binom.ppf([beyond / 2, 1 - beyond / 2], n, level)


class Setting:
    def __init__(self):
        self.world, self.columns = random_world(11, n_states=5, n_actions=3, discount=0.8)
        truth = Linear(self.columns, TRUTH).requires_grad_(False)
        self.log_policy = self.world.solve(truth).log_policy[0]
        self.paths = segments(self.world, 400, 3, 12)
        self.returns = truth(self.world.collate([None] * 400, self.paths)).numpy()

    def demonstrations(self, seed):
        starts = [k % 5 for k in range(40)]
        paths = sample_paths(self.world, self.log_policy, starts, max_steps=8, seed=seed)
        return Term(demonstrations([None] * 40, paths), exact(self.world))

    def comparisons(self, seed, source=None, persons=False):
        """150 pairs; with ``persons`` three pairs are one and the same, answered alike by one person."""
        rng = np.random.default_rng([seed, 1])
        pair = rng.integers(400, size=(2, 150))
        if persons:
            pair = np.repeat(pair[:, :50], 3, axis=1)
        u = rng.random(50).repeat(3) if persons else rng.random(150)
        p = 1 / (1 + np.exp(-(self.returns[pair[1]] - self.returns[pair[0]]) / SCALE))
        first, second = ([self.paths[k] for k in items] for items in pair)
        people = [f"p{k // 3}" for k in range(150)] if persons else None
        rows = comparisons([None] * 150, first, second, (u < p).astype(int).tolist(), persons=people)
        return Term(rows, listed(self.world), source or Source(SCALE))

    def terms(self, what, seed):
        if what == "demonstrations":
            return [self.demonstrations(seed)]
        if what == "comparisons":
            return [self.comparisons(seed)]
        return [self.demonstrations(seed), self.comparisons(seed, Source(1.0, fit_temperature=True))]


SETTING = Setting()


def held(what, n, kinds, **how):
    """How many of n intervals of each parameter hold the truth, for each kind of error."""
    counts = {kind: np.zeros(3) for kind in kinds}
    for seed in range(n):
        terms = SETTING.comparisons(seed, **how) if how else SETTING.terms(what, seed)
        fit = fit_reward(Linear(SETTING.columns), terms)
        for kind in kinds:
            name, _, cluster = kind.partition(" by ")
            errors = fit.standard_errors(name, cluster=cluster or None)[["a", "b", "c"]]
            counts[kind] += np.abs(fit.params[["a", "b", "c"]] - TRUTH) <= stats.norm.ppf(0.975) * errors
    return counts


def check(what, n):
    low, high = band(n)
    for kind, counts in held(what, n, ("hessian", "sandwich")).items():
        # Three parameters are looked at: the mean of their counts varies less than one, so its band is a safe one.
        slack = 0.0 if kind == "hessian" else 0.01 * n  # the sandwich is too small in small samples (White 1982)
        assert low - slack <= counts.mean() <= high, (what, kind, counts / n)


@pytest.mark.parametrize("what", ["demonstrations", "comparisons", "both"])
def test_intervals_hold_the_truth(what):
    check(what, 100)


@pytest.mark.long
@pytest.mark.parametrize("what", ["demonstrations", "comparisons", "both"])
def test_intervals_hold_the_truth_in_1000_data_sets(what):
    check(what, 1000)


def test_only_clusters_are_right_where_answers_are_not_independent():
    """Every answer stands there three times: errors that count rows are too small by the root of three."""
    n = 120
    low, high = band(n)
    counts = held("comparisons", n, ("hessian", "sandwich", "sandwich by person"), persons=True)
    assert counts["hessian"].mean() < low and counts["sandwich"].mean() < low
    assert low - 0.03 * n <= counts["sandwich by person"].mean() <= high


def test_the_band_notices_what_it_should():
    """A likelihood counted twice makes intervals of 83 %: outside of the band that the tests above use."""
    n, counts = 60, 0
    for seed in range(n):
        term = SETTING.comparisons(seed)
        term.row_weight = 2 * term.row_weight
        fit = fit_reward(Linear(SETTING.columns), term)
        counts += (np.abs(fit.params - TRUTH) <= stats.norm.ppf(0.975) * fit.standard_errors()).to_numpy().mean()
    assert counts < band(n)[0]
    assert torch.isfinite(fit.theta).all()
