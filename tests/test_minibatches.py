"""Fits a few rows at a time: one gradient however they are read, one fit after a kill, and near the exact one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from irlhf import LBFGS, Minibatches, Source, Term, comparisons, fit_reward, listed, ratings, sampled
from irlhf.errors import ConfigError, NonFiniteError
from irlhf.minibatches import Pieces
from irlhf.objective import Normal, Objective
from irlhf.proposals import Base
from irlhf.randomness import Key
from irlhf.storage.rundir import open_run
from irlhf.worlds.text.rewards import ScoreReward
from tests.worlds.text import tiny
from tests.worlds.text.test_world import PROMPTS, drawn, truth


def problem():
    """Three kinds of feedback, one source with a temperature of its own."""
    world, language = tiny.world()
    rng = np.random.default_rng(0)
    words = np.array(["a", "b", "c", "a b", "b b", "c a"])
    first, second = words[rng.integers(0, 6, 20)], words[rng.integers(0, 6, 20)]
    pairs = comparisons(["a", "b c"] * 10, first.tolist(), second.tolist(), [0, 1] * 10)
    rated = ratings(["a"] * 7, words[rng.integers(0, 6, 7)].tolist(), rng.integers(0, 3, 7), levels=3)
    terms = [
        Term(drawn(world, truth(language), PROMPTS, 3), sampled(world, Base(), n=4)),
        Term(pairs, listed(world), Source(fit_temperature=True), weight=0.5),
        Term(rated, listed(world)),
    ]
    language.add_adapter("reward", rank=2, key=Key(1))
    reward = ScoreReward(language, "reward")
    with torch.no_grad():
        for p in reward.parameters():
            p.add_(torch.randn(p.shape, generator=Key(4).torch(), dtype=p.dtype) * 0.2)
    return reward, terms


def test_the_gradient_is_that_of_the_whole_objective():
    """All rows, in shards of any size, in lanes: the mean of what an Objective sums."""
    reward, terms = problem()
    prior = Normal(sd=2.0)
    whole = Objective(reward, terms, prior=prior)
    value, gradient = whole.value_and_gradient(whole.start)
    for at_once in (1, 4, 100):
        pieces = Pieces(reward, terms, prior=prior)
        found, mean = pieces.gradient(np.arange(pieces.n_rows), at_once)
        torch.testing.assert_close(found * pieces.total_weight, gradient, rtol=0, atol=1e-11)
        assert mean * pieces.total_weight == pytest.approx(value, abs=1e-10)
    assert pieces.names == whole.names or len(pieces.names) == len(whole.names)


def test_rows_of_a_part_are_those_of_the_whole():
    reward, terms = problem()
    for term in terms:
        with torch.no_grad():
            whole = term.log_prob(reward)
            rows = torch.tensor([4, 0, 6])
            torch.testing.assert_close(term.take(rows).log_prob(reward), whole[rows], rtol=0, atol=1e-12)


def test_every_row_is_seen_once_in_an_epoch():
    how = Minibatches(rows=4)
    for epoch in range(3):
        n = 12
        seen = np.concatenate([how.rows_of(epoch * 3 + k + 1, n) for k in range(3)])
        assert sorted(seen) == list(range(n))
    odd = np.concatenate([how.rows_of(k + 1, 7) for k in range(7)])  # 28 = 4 epochs of 7, across steps
    assert all(sorted(odd[7 * e : 7 * e + 7]) == list(range(7)) for e in range(4))
    assert not np.array_equal(how.rows_of(1, 12), how.rows_of(4, 12))


def test_a_fit_by_minibatches_comes_near_the_exact_one():
    reward, terms = problem()
    how = Minibatches(lambda p: torch.optim.Adam(p, lr=0.02), rows=12, at_once=5, epochs=60, clip=None)
    prior = Normal(sd=1.0)
    fit = fit_reward(reward, terms, optimizer=how, prior=prior)
    near = fit.objective
    exact = fit_reward(reward, terms, optimizer=LBFGS(newton=0), prior=prior)
    start = Objective(*problem(), prior=prior)
    assert exact.objective - near < 0.1 * (exact.objective - float(start.value(start.start)))
    assert fit.trace["objective"].iloc[-5:].mean() > fit.trace["objective"].iloc[1:6].mean()
    with pytest.raises(ConfigError, match="minibatches"):
        fit.standard_errors()
    assert "minibatches" in fit.summary()


def test_it_is_resumed_to_the_bit(tmp_path):
    how = Minibatches(lambda p: torch.optim.AdamW(p, lr=0.05), rows=8, max_steps=6)

    def run(folder, stop=None):
        reward, terms = problem()

        def count(info):
            if info["step"] == stop:
                raise KeyboardInterrupt

        with open_run(folder, config={}, resume=True) as opened:
            return fit_reward(reward, terms, optimizer=how, run=opened, progress=count)

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "broken", stop=3).status.name == "INTERRUPTED"
    again = run(tmp_path / "broken")
    assert torch.equal(whole.theta, again.theta)
    assert whole.trace.drop(columns="seconds", errors="ignore").equals(
        again.trace.drop(columns="seconds", errors="ignore")
    )


@pytest.mark.parametrize("at_once", [1, 3])
def test_how_many_are_read_at_once_changes_nothing(at_once):
    def run(at_once):
        reward, terms = problem()
        how = Minibatches(lambda p: torch.optim.SGD(p, lr=0.05), rows=8, at_once=at_once, max_steps=4)
        return fit_reward(reward, terms, optimizer=how).theta

    torch.testing.assert_close(run(at_once), run(8), rtol=0, atol=1e-12)


def test_what_is_not_finite_reaches_no_parameter():
    reward, terms = problem()
    before = torch.cat([p.detach().reshape(-1).clone() for p in reward.parameters()])

    def poisoned(self, batch, real=ScoreReward.forward):
        values = real(self, batch)
        return torch.where(torch.arange(len(values)) == 1, torch.nan, values)

    monkey = pytest.MonkeyPatch()
    monkey.setattr(ScoreReward, "forward", poisoned)
    try:
        with pytest.raises(NonFiniteError, match="is not finite for rows"):
            fit_reward(reward, terms, optimizer=Minibatches(rows=8, max_steps=2))
    finally:
        monkey.undo()
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in reward.parameters()]), before)
