"""The prior on the level of rewards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from irlhf import Normal, Term, comparisons, demonstrations, fit_reward, listed
from irlhf.centering import centered
from irlhf.errors import ConfigError
from irlhf.feedback import Choice, Feedback
from irlhf.worlds.text.rewards import LinearReward
from tests.worlds.text import tiny
from tests.worlds.text.test_rewards import moved


def test_it_is_the_normal_density_of_the_mean_of_a_row():
    """Of any number of items, chosen or not; rows of a part are those of the whole."""
    world, language = tiny.world()
    reward = moved(LinearReward(language))
    shown = [("a", "b"), ("b", "a b", "c"), ("a",) * 2]
    term = Term(Feedback.of(Choice("a", s, 0, id=str(k)) for k, s in enumerate(shown)), centered(world, sd=2))
    with torch.no_grad():
        means = [float(reward(world.collate(["a"] * len(s), list(s))).mean()) for s in shown]
        found = term.log_prob(reward)
        np.testing.assert_allclose(found.numpy(), -0.5 * (np.array(means) / 2) ** 2, atol=1e-12)
        rows = torch.tensor([2, 0])
        torch.testing.assert_close(term.take(rows).log_prob(reward), found[rows], rtol=0, atol=1e-12)
        alone = Term(demonstrations(["a"], ["b"]), centered(world, sd=2)).log_prob(reward)
        assert float(alone) == pytest.approx(-0.5 * (float(reward(world.collate(["a"], ["b"]))) / 2) ** 2)
    with pytest.raises(ConfigError, match="sd is 0"):
        centered(world, sd=0)


def test_it_holds_the_level_of_rewards():
    """The level goes down to a third, and the likelihood of the comparisons keeps most of what it gained."""
    world, language = tiny.world()
    words = ["a", "b", "c", "a b", "b b", "c a"]
    rng = np.random.default_rng(0)
    first, second = ([words[k] for k in rng.integers(0, 6, 40)] for _ in range(2))
    better = [int(b.count("b") > a.count("b")) for a, b in zip(first, second, strict=True)]
    pairs = comparisons(["b c"] * 40, first, second, better)
    prior = Normal(sd=3.0, mean=1.0)  # away from rewards of zero
    free, held = (
        fit_reward(LinearReward(language), [Term(pairs, listed(world)), *more], prior=prior)
        for more in ([], [Term(pairs, centered(world, sd=2.0))])
    )
    with torch.no_grad():
        level = [fit.reward(world.collate(["b c"] * 6, words)).mean().abs() for fit in (free, held)]
    assert float(level[1]) < float(level[0]) / 3
    gained = [fit.log_likelihood.iloc[0] - 40 * np.log(0.5) for fit in (free, held)]
    assert gained[1] > 0.7 * gained[0] > 5
