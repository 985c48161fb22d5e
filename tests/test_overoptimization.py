"""The frontier against enumeration, and the alarm in worlds where gold falls and where it does not."""

import numpy as np
import pytest
import torch
from benchmarks.overoptimization import Candidates, OnFeatures, simulate

from irlhf import Normal, Term, comparisons, fit_reward, listed
from irlhf.errors import ConfigError
from irlhf.overoptimization import frontier
from irlhf.protocols import Draws


def small(seed=0, n_pairs=400, squares=False):
    rng = np.random.default_rng(seed)
    world = Candidates(torch.from_numpy(rng.normal(size=(4, 300, 10))))
    theta = torch.from_numpy(np.concatenate([rng.normal(size=10) * 0.5, -0.3 * rng.random(10)]))
    gold = OnFeatures(True, theta).requires_grad_(False)
    context = rng.integers(4, size=n_pairs).tolist()
    pair = rng.integers(300, size=(2, n_pairs))
    a, b = (gold(world.collate(context, items.tolist())).numpy() for items in pair)
    answer = (rng.random(n_pairs) < 1 / (1 + np.exp(a - b))).astype(int).tolist()
    rows = comparisons(context, pair[0].tolist(), pair[1].tolist(), answer)
    fit = fit_reward(OnFeatures(squares), Term(rows, listed(world)), prior=Normal(1.0))
    every = [x for x in range(4) for _ in range(300)]
    batch = world.collate(every, list(range(300)) * 4)
    return fit, gold, Draws(batch, torch.tensor(every), None, torch.ones(1200, dtype=torch.bool))


def test_every_policy_on_the_frontier_by_enumeration():
    fit, gold, draws = small()
    found = frontier(fit, draws, gold=gold)
    with torch.no_grad():
        r, g = fit.reward(draws.batch).reshape(4, 300).numpy(), gold(draws.batch).reshape(4, 300).numpy()
    z = (r - r.mean(1, keepdims=True)) / np.sqrt(((r - r.mean(1, keepdims=True)) ** 2).mean())
    for _, row in found.table.iloc[::9].iterrows():
        p = np.exp(r / row["temperature"])
        p /= p.sum(1, keepdims=True)
        assert row["kl"] == pytest.approx((p * np.log(p * 300)).sum(1).mean(), rel=1e-9)
        assert row["reward"] == pytest.approx(((p - 1 / 300) * r).sum(1).mean(), rel=1e-9)
        assert row["gold"] == pytest.approx(((p - 1 / 300) * g).sum(1).mean(), rel=1e-9, abs=1e-12)
        assert row["gold_error"] == pytest.approx(((p - 1 / 300) * g).sum(1).std(ddof=1) / 2, rel=1e-9)
        u = found.slope * z + found.curvature * (z**2 - 1)
        assert row["utility"] == pytest.approx(((p - 1 / 300) * u).sum(1).mean(), rel=1e-9, abs=1e-12)
    assert (np.diff(found.table["kl"]) > 0).all() and (np.diff(found.table["reward"]) > 0).all()


def test_best_of_n_by_drawing_it():
    fit, gold, draws = small()
    found = frontier(fit, draws, gold=gold).best_of.set_index("n")
    with torch.no_grad():
        r, g = fit.reward(draws.batch).reshape(4, 300).numpy(), gold(draws.batch).reshape(4, 300).numpy()
    rng = np.random.default_rng(1)
    for n in (2, 8):
        items = rng.integers(300, size=(4, 20_000, n))
        best = np.take_along_axis(items, r[np.arange(4)[:, None, None], items].argmax(-1)[..., None], -1)[..., 0]
        gain = (g[np.arange(4)[:, None], best] - g.mean(1, keepdims=True)).mean(0)
        assert abs(found.loc[n, "gold"] - gain.mean()) < 5 * gain.std() / np.sqrt(20_000)
        assert found.loc[n, "kl"] == pytest.approx(np.log(n) - (n - 1) / n)


def test_an_alarm_where_the_proxy_cannot_see_what_people_dislike():
    found, gold = simulate(1, 10_000, squares=False, curvature=2.0)
    assert gold["fall"] > 2 * gold["noise"]
    assert found.alarm is not None and 0.5 <= found.alarm / gold["peak"] <= 1.5
    assert found.curvature < -2 * found.curvature_error and "Stop at a KL" in str(found)
    with pytest.warns(UserWarning, match="Stop at a KL"):
        found.watch()({"step": 3, "kl": found.alarm + 0.1})


def test_no_alarm_where_it_can():
    found, gold = simulate(1, 1000, squares=True, curvature=1.0)
    assert gold["fall"] <= 2 * gold["noise"] and found.alarm is None and "No alarm" in str(found)
    heard = []
    found.watch(heard.append)({"step": 3, "kl": 100.0})  # no warning, which would be an error here
    assert len(heard) == 1


def test_the_fit_is_left_as_it_was():
    fit, _, draws = small()
    before = fit.reward.theta.detach().clone()
    temperature = fit.terms[0].source.log_temperature.detach().clone()
    frontier(fit, draws)
    assert torch.equal(before, fit.reward.theta) and torch.equal(temperature, fit.terms[0].source.log_temperature)


def test_what_it_refuses():
    fit, _, draws = small(n_pairs=4)
    with pytest.raises(ConfigError, match="fewer than 5 folds"):
        frontier(fit, draws)
    flat = small()[0]
    with torch.no_grad():
        flat.reward.theta.zero_()
    with pytest.raises(ConfigError, match="nothing to optimize"):
        frontier(flat, draws, refit=lambda terms: flat.reward)
