"""Fits a few rows at a time: one gradient however they are read, one fit after a kill, and near the exact one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from irlhf import LBFGS, Minibatches, Source, Term, comparisons, fit_reward, listed, ratings, sampled
from irlhf.errors import ConfigError, NonFiniteError
from irlhf.minibatches import Pieces
from irlhf.objective import Normal, Objective
from irlhf.optimize import torch_step
from irlhf.proposals import Base
from irlhf.randomness import Key
from irlhf.storage.checkpoint import load_checkpoint
from irlhf.storage.rundir import RunDir, digest, open_run
from irlhf.weights import Weights
from irlhf.worlds.text.rewards import ScoreReward
from tests.torchrun_script import Curve, Line
from tests.worlds.text import tiny
from tests.worlds.text.test_world import PROMPTS, drawn, truth


def problem(**model):
    """Three kinds of feedback, one source with a temperature of its own."""
    world, language = tiny.world(**model)
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


def small():
    """A network of one number, and pairs of numbers."""
    first, second = np.random.default_rng(0).normal(size=(2, 61))
    nearer = (np.abs(first) < np.abs(second)).astype(int)
    pairs = comparisons(["x"] * 61, first.tolist(), second.tolist(), nearer.tolist())
    return Curve(), [Term(pairs, listed(Line()))]


def test_rows_of_a_part_are_those_of_the_whole():
    reward, terms = problem()
    given = terms[0].prepared  # whose rivals come from mu, and so have no offset: any will do
    terms[0].prepared = replace(given, offset=torch.randn(len(given.offset), generator=Key(5).torch()).double())
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
    how = Minibatches(lambda p: torch.optim.Adam(p, lr=0.05), rows=12, at_once=12, epochs=20, clip=None)
    prior = Normal(sd=1.0)
    fit = fit_reward(reward, terms, optimizer=how, prior=prior)
    near = fit.objective
    exact = fit_reward(reward, terms, optimizer=LBFGS(newton=0, tolerance=1e-2), prior=prior)
    start = Objective(*problem(), prior=prior)
    assert exact.objective - near < 0.1 * (exact.objective - float(start.value(start.start).detach()))
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
    assert whole.trace.equals(again.trace[whole.trace.columns])


@pytest.mark.parametrize("at_once", [1, 3])
def test_how_many_are_read_at_once_changes_nothing(at_once):
    def run(at_once):
        reward, terms = problem()
        how = Minibatches(lambda p: torch.optim.SGD(p, lr=0.05), rows=8, at_once=at_once, max_steps=4)
        return fit_reward(reward, terms, optimizer=how).theta

    torch.testing.assert_close(run(at_once), run(8), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------- what goes wrong amid a step

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
}


class Broken:
    """A small fit that goes wrong in step 3, and what is left of it."""

    def __init__(self, path, make):
        self.path, self.how = path, Minibatches(make, rows=12, at_once=4, max_steps=5)
        self.reward, self.terms = small()
        self.step, self.kept = 0, {}

    def held(self):
        return Pieces(self.reward, self.terms).weights.vector().numpy().tobytes()

    def fit(self):
        def tell(info):
            self.step, self.kept[info["step"]] = info["step"], self.held()

        with open_run(self.path, config={}, resume=True) as run:
            return fit_reward(self.reward, self.terms, optimizer=self.how, run=run, progress=tell)

    @property
    def now(self):
        return self.step == 2  # in step 3

    def require_whole(self):
        """Module and checkpoint are those of step 2, and everything in them is finite."""
        saved = load_checkpoint(self.path / "checkpoint")
        assert saved.step == 2 and all(bool(torch.isfinite(t).all()) for t in saved.tensors.values())
        assert len(saved.tensors) > 1
        assert self.held() == self.kept[2] == saved.tensors["theta"].numpy().tobytes()


def spoiled(tensor, bad):
    tensor = tensor.clone()
    tensor[-1] = bad
    return tensor


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["log-likelihood", "gradient", "moments", "parameters"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_not_finite_reaches_no_parameter(name, where, bad, tmp_path, monkeypatch):
    broken = Broken(tmp_path / "run", OPTIMIZERS[name])

    def log_prob(self, reward, real=Term.log_prob):
        found = real(self, reward)
        return found * torch.where(torch.arange(len(found)) == 1, bad, 1.0) if broken.now else found

    def add_gradient(self, value, total, real=Weights.add_gradient):
        real(self, value, total)
        if broken.now:
            total[0] = bad

    def step(make, theta, gradient, moments, **how):
        theta, moments = torch_step(make, theta, gradient, moments, **how)
        if broken.now and where == "parameters":
            theta = spoiled(theta, bad)
        if broken.now and where == "moments":
            moments = {k: spoiled(m, bad) if m.shape == theta.shape else m for k, m in moments.items()}
        return theta, moments

    if where == "log-likelihood":
        monkeypatch.setattr(Term, "log_prob", log_prob)
    elif where == "gradient":
        monkeypatch.setattr(Weights, "add_gradient", add_gradient)
    else:
        monkeypatch.setattr("irlhf.minibatches.torch_step", step)
    says = {"log-likelihood": "for rows", "gradient": "for rows", "moments": "of the optimizer", "parameters": "vector"}
    with pytest.raises(NonFiniteError, match=f"{says[where]}.*; no parameter was changed"):
        broken.fit()
    broken.require_whole()


@pytest.mark.parametrize("seldom", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("where", ["gradient", "optimizer", "parameters", "saving"])
def test_a_step_that_breaks_off_has_not_been(where, error, seldom, tmp_path, monkeypatch):
    """Wherever Ctrl-C or an error comes, the last whole step is kept, on the disk too, and the fit can go on."""
    if seldom:  # as where a save takes minutes
        monkeypatch.setattr("irlhf.loop.QUICK", -1.0)
        monkeypatch.setattr("irlhf.loop.SHARE", 0.0)
    broken, whole = Broken(tmp_path / "run", OPTIMIZERS["AdamW"]), Broken(tmp_path / "whole", OPTIMIZERS["AdamW"])
    whole.fit()
    armed = [True]

    def maybe():
        if broken.now and armed.pop():
            armed.append(False)
            raise error

    def add_gradient(self, value, total, real=Weights.add_gradient):
        real(self, value, total)
        maybe()

    def adamw(self, *args, real=torch.optim.AdamW.step):
        real(self, *args)
        maybe()

    def assign(self, vector, what="", real=Weights.assign):
        with torch.no_grad():
            self.tensors[0].copy_(vector[: self.sizes[0]])
        maybe()
        real(self, vector, what)

    def log(self, metrics, real=RunDir.log):
        real(self, metrics)
        if metrics["step"] == 2:
            broken.kept[2] = broken.held()
            raise error

    with monkeypatch.context() as patched:
        if where == "gradient":
            patched.setattr(Weights, "add_gradient", add_gradient)
        elif where == "optimizer":
            patched.setattr(torch.optim.AdamW, "step", adamw)
        elif where == "parameters":
            patched.setattr(Weights, "assign", assign)
        else:
            patched.setattr(RunDir, "log", log)
        if error is KeyboardInterrupt:
            assert broken.fit().status.name == "INTERRUPTED"
        else:
            with pytest.raises(error):
                broken.fit()
    if where != "saving":
        broken.require_whole()
    broken.fit()
    assert broken.held() == whole.held() and digest(broken.path) == digest(whole.path)


def test_what_is_finite_is_seen_by_its_sum_and_an_overflow_is_no_alarm():
    from irlhf.weights import all_finite

    large = torch.tensor([3e38, 3e38])
    assert all_finite(large) and not torch.isfinite(large.sum())
    assert all_finite(torch.empty(0)) and all_finite(torch.randn(100))
    for bad in ([torch.inf, -torch.inf], [1.0, torch.nan], [torch.inf]):
        assert not all_finite(torch.tensor(bad))


def test_the_norm_of_many_numbers_is_not_lost_in_single_precision():
    from irlhf.weights import norm_of

    values = torch.full((40_000_001,), 1e-3, dtype=torch.float32)
    values[-1] = 3.0
    assert norm_of(values) == pytest.approx((40_000_000 * float(values[0]) ** 2 + 9) ** 0.5, rel=1e-6)
    assert norm_of(torch.empty(0)) == 0
    assert norm_of(torch.tensor([3e30, 4e30])) == pytest.approx(5e30, rel=1e-6)  # whose squares overflow


def test_room_that_is_used_again_changes_no_bit():
    """Steps into the memory of the step before the last are those into fresh memory."""
    how = Minibatches(lambda p: torch.optim.AdamW(p, lr=0.05, fused=True), rows=8, max_steps=6)
    reward, terms = problem()
    pieces = Pieces(reward, terms)
    states = [how.init(pieces)[0]]
    for number in range(1, 7):
        before = {name: tensor.clone() for name, tensor in states[-1].items()}
        states.append(how.step(pieces, states[-1], number)[0])
        assert all(torch.equal(tensor, before[name]) for name, tensor in states[-2].items())
        pieces.weights.assign(states[-1]["theta"])
    reward, terms = problem()
    fit = fit_reward(reward, terms, optimizer=how)
    assert torch.equal(fit.theta, states[-1]["theta"])
    spare = {name: torch.full_like(tensor, torch.nan) for name, tensor in states[-1].items()}
    pieces.weights.assign(states[-2]["theta"])
    again = how.step(pieces, states[-2], 6, spare)[0]
    assert again["theta"].data_ptr() == spare["theta"].data_ptr()
    assert all(torch.equal(tensor, states[-1][name]) for name, tensor in again.items())
