"""The page that answers the note: what its tables say has to be so, and could not be so by chance."""

import math

import numpy as np
import pytest
import torch

from irlhf.demos import baselines, closing, distilled, gradients, lineup, offsets, partition
from irlhf.demos.town import TRUE, build
from irlhf.functional.policy_gradient import leave_one_out
from irlhf.randomness import Key


@pytest.fixture(scope="module")
def town():
    return build(Key(0).at("lineup").numpy())


@pytest.fixture(scope="module")
def gradient(town):
    return gradients.measure(town, 4)


@pytest.fixture(scope="module")
def trained(town):
    return distilled.measure(town, town.theta, Key(0).at("test"), 100)


MU, HALF, CONVERGED, WRONG, MIXED = gradients.SHARES


def test_enumeration_agrees_with_draws(town):
    """Mean and covariance of ranking NCE, and of weights, against 40,000 simulated demonstrations with rivals."""
    problem = gradients.Problem(town, gradients.Multisets.of(13, 3))
    theta, rng, n = town.theta / 2, np.random.default_rng(0), 40_000
    log_q = gradients.log_proposal(town, MIXED, theta)
    f, p = problem.scaled, town.log_p(town.theta).exp()
    y = torch.from_numpy(rng.choice(13, n, p=p.numpy()))
    rivals = torch.from_numpy(rng.choice(13, (n, 3), p=log_q.exp().numpy()))
    log_w = town.log_p(theta) - log_q
    among = torch.cat([y[:, None], rivals], 1)
    drawn = {
        "ranking": f[y] - (log_w[among].softmax(1)[..., None] * f[among]).sum(1),
        "weighted": f[y] - (log_w[rivals].softmax(1)[..., None] * f[rivals]).sum(1),
        "unweighted": f[y] - f[rivals].mean(1),
    }
    for name, each in drawn.items():
        covariance = problem.covariance(name, MIXED, theta)
        error = (covariance.diagonal() / n).sqrt()
        assert ((each.mean(0) - problem.mean(name, MIXED, theta)).abs() < 4.5 * error).all(), name
        assert torch.allclose(torch.cov(each.T), covariance, rtol=0.1, atol=0.03), name


def test_every_multiset_is_counted_once():
    sets = gradients.Multisets.of(13, 4)
    assert len(sets.counts) == math.comb(16, 4)
    log_q = torch.randn(13, generator=Key(0).torch()).double().log_softmax(0)
    assert float(sets.probability(log_q).sum()) == pytest.approx(1, abs=1e-12)
    assert (sets.counts.sum(1) == 4).all()


@pytest.mark.parametrize("where", ["half", "true"])
def test_without_weights_only_a_converged_policy_has_no_bias(gradient, where):
    assert gradient[f"unweighted.{CONVERGED}.{where}.bias"] < 1e-12
    for proposal in (MU, HALF, WRONG, MIXED):
        assert gradient[f"unweighted.{proposal}.{where}.bias"] > 0.5
        assert gradient[f"weighted.{proposal}.{where}.bias"] < gradient[f"unweighted.{proposal}.{where}.bias"]


def test_the_bias_of_weights_falls_with_the_number_of_rivals(town, gradient):
    more = gradients.Problem(town, gradients.Multisets.of(13, 6))
    few = gradients.Problem(town, gradients.Multisets.of(13, 3))
    for proposal in (MU, HALF):
        exact = more.mean("exact", "", town.theta)
        far, near = ((p.mean("weighted", proposal, town.theta) - exact).norm() for p in (few, more))
        assert near < 0.8 * far


def test_ranking_is_right_at_the_truth_for_every_proposal(gradient):
    for proposal in gradients.SHARES:
        assert gradient[f"ranking.{proposal}.true.bias"] < 1e-12
        assert gradient[f"ranking.{proposal}.share"] == pytest.approx(1, abs=1e-6)
        assert gradient[f"ranking.{proposal}.demos"] > 1.05
    assert gradient[f"ranking.{WRONG}.demos"] > 5
    assert gradient[f"ranking.{MIXED}.demos"] < 3


def test_where_the_unweighted_estimator_comes_to_rest(gradient):
    """A policy that follows the reward to a share a rests where that share of the reward is the truth: at 1/a."""
    shares = {p: gradient[f"unweighted.{p}.share"] for p in gradients.SHARES}
    assert shares[HALF] == pytest.approx(2, abs=1e-6)
    assert shares[CONVERGED] == pytest.approx(1, abs=1e-6)
    assert shares[WRONG] == pytest.approx(-1, abs=1e-6)
    assert math.isnan(shares[MU]) and math.isnan(shares[MIXED])
    # n draws of P add 1/n to the variance of the demonstration
    assert gradient[f"unweighted.{CONVERGED}.demos"] == pytest.approx(1 + 1 / 4, abs=1e-6)


def test_log_z_of_a_converged_policy_needs_one_draw(town):
    found = partition.measure(town, Key(0).at("test"), 4)
    for name in gradients.SHARES:
        if found[f"{name}.effective"] > 50:
            assert abs(found[f"{name}.estimate"] - found["log_z"]) < 4 * found[f"{name}.error"] + 1e-9
        assert found[f"{name}.bound"] <= found["log_z"] + 1e-12
        assert found[f"{name}.bias"] <= 1e-12
    assert found[f"{CONVERGED}.estimate"] == pytest.approx(found["log_z"], abs=1e-9)
    assert found[f"{CONVERGED}.effective"] == pytest.approx(partition.DRAWS)
    assert found[f"{WRONG}.effective"] < 0.1 * partition.DRAWS < found[f"{MIXED}.effective"]
    assert found[f"{WRONG}.bias"] < -1


def test_pairs_need_their_offset(town):
    found = offsets.measure(town)
    for name, share in offsets.SHARES.items():
        assert found[f"{name}.with.share"] == pytest.approx(1, abs=1e-3)
        assert found[f"{name}.with.error"] < 1e-3
        if share is not None:
            assert found[f"{name}.without.share"] == pytest.approx(1 - share, abs=1e-3)
    assert found["half mu, half converged.without.share"] < 0.7
    assert found["half mu, half converged.without.correlation"] < 0.995


def test_the_policy_of_rlhf_is_the_distribution_of_irl(trained):
    assert trained["exact expectation.kl"] < 1e-8
    assert trained["exact expectation.objective"] == pytest.approx(trained["log_z"], abs=1e-8)
    assert trained["exact expectation.effective"] == pytest.approx(1, abs=1e-6)
    for name in ("reinforce, n = 8", "rloo, n = 8", "ppo, n = 8"):
        assert trained[f"{name}.kl"] < 0.02
    for name in (*distilled.LEARNERS, *distilled.PLACES):
        gap = trained["log_z"] - trained[f"{name}.objective"]
        assert gap == pytest.approx(trained[f"{name}.kl"], abs=1e-9)


def test_the_divergence_in_the_loss_ends_elsewhere(trained):
    assert trained["k2 in the loss.kl"] < 1e-3
    assert trained["k3 in the loss.kl"] > 0.04
    assert trained["k3 x ratio, by the step.kl"] > 0.02
    assert trained["k1 in the loss.kl"] > 0.4
    assert trained["k1 in the loss.reward"] > trained["exact expectation.reward"] + 0.5


def test_k3_in_the_loss_maximizes_the_reverse_divergence(town, trained):
    """What it ends at is the maximum of ``E_pi R - KL(mu, pi)``, found here from the value itself."""
    from irlhf.demos.town import kl, maximum

    reward = town.listing.features @ town.theta

    def value(logits):
        log_pi = town.listing.log_pi(logits)
        return log_pi.exp() @ reward - town.log_mu.exp() @ (town.log_mu - log_pi)

    _, logits = maximum(value, len(town.listing.corner))
    found = kl(town.listing.log_pi(logits), town.log_p(town.theta))
    assert found == pytest.approx(trained["k3 in the loss.kl"], abs=1e-3)


def test_baselines_by_enumeration(town):
    found = baselines.measure(town, town.theta, (2, 4))
    for where in ("mu", "half"):
        for n in (2, 4):
            for name in ("none", "leave one out"):
                assert found[f"{where}.{name}.{n}.along"] == pytest.approx(1, abs=1e-10)
            assert found[f"{where}.batch mean.{n}.along"] == pytest.approx(1 - 1 / n, abs=1e-10)
            assert found[f"{where}.batch mean.{n}.angle"] < 1e-4
            assert found[f"{where}.standardized (GRPO).{n}.angle"] > 3
            assert found[f"{where}.leave one out.{n}.sd"] < 0.6 * found[f"{where}.none.{n}.sd"]


def test_the_variance_of_leave_one_out_against_draws(town):
    log_pi, score = baselines.score(town, town.theta / 2)
    returns = town.listing.features @ town.theta + town.log_mu - log_pi
    sets = gradients.Multisets.of(13, 3)
    mean, covariance = baselines.estimate(sets, log_pi, returns, score, leave_one_out)
    drawn = torch.multinomial(log_pi.exp(), 3 * 50_000, replacement=True, generator=Key(1).torch()).reshape(-1, 3)
    each = (leave_one_out(returns[drawn])[..., None] * score[drawn]).mean(1)
    assert torch.allclose(each.mean(0), mean, atol=4.5 * float((covariance.diagonal().max() / 50_000).sqrt()))
    assert float(torch.cov(each.T).trace()) == pytest.approx(float(covariance.trace()), rel=0.05)


def test_slippery_streets_are_a_world(town):
    world = closing.slippery(town, 1.0)
    table = world.outcome_table()
    assert not world.deterministic
    assert np.allclose(table.groupby(["state", "action"])["probability"].sum(), 1)
    meant = town.world.pair_table().assign(to=town.world.states.to_numpy()[town.world.transitions.next_state])
    both = table.merge(meant, on=["state", "action"])
    kept = both[both["next_state"] == both["to"]]["probability"]
    assert set(kept.round(9)) == {1 - closing.SLIP, 1.0}


@pytest.mark.long
def test_sampling_costs_what_it_should(town):
    found = closing.measure(town, Key(0).at("test"), closing.Sizes(4, 1, 300, 60))
    for where in ("town", "slippery"):
        mu, wrong, mixed = (
            found[f"{where}.{name}.to_exact"]
            for name in ("8 rivals from mu", "8, wrong-signed policy", "8, half mu, half wrong")
        )
        assert 1e-3 < mu < 0.1
        assert mixed < 0.7 * wrong
        assert wrong > 1.5 * mu
    assert found["rounds.to_matched"] < 0.15


def test_feature_matching_is_the_weighted_likelihood_without_luck(town):
    """In a deterministic world the two are one likelihood; with nature in it they are not, on a finite sample."""
    from irlhf import Term, exact, fit_reward

    for world, kind in ((town.world, "anticipative"), (closing.slippery(town, 0.9), "weighted")):
        case = closing.Case(town, world, kind)
        (data,) = case.data(200, 1, Key(0).at("test"))
        likely = fit_reward(case.reward(), Term(data, exact(world, kind=kind))).theta
        same = torch.allclose(case.matched(data), likely, atol=1e-4)
        assert same == world.deterministic


def test_the_lineup_returns_what_its_parts_measure():
    numbers = lineup.main(quick=True, seed=3)
    for part in ("gradients", "partition", "offsets", "distilled", "baselines", "closing"):
        assert sum(name.startswith(f"{part}.") for name in numbers) > 5
    assert numbers["distilled.exact expectation.kl"] < 1e-8
    assert set(TRUE) == {"minutes", "shade", "shops"}
