"""Policy gradients by exact enumeration: every sample of K draws from a softmax over five sequences, in float64."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from irlhf.functional.policy_gradient import (
    batch_mean,
    clipped_ratio,
    group_mean,
    kl_k1_unbiased_value_no_gradient,
    kl_k2_biased_value_true_gradient,
    kl_k3_unbiased_value_reverse_gradient,
    leave_one_out,
    reinforce,
    standardized,
)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


THETA = vector(0.3, -0.5, 0.9, 0.0, -1.2)
RETURN = vector(0.2, 1.5, -0.7, 0.4, 6.0)
OTHER = vector(-1.0, 0.3, 2.0, 5.0, 0.1)
PROBABILITY = THETA.softmax(0)
MU = vector(0.1, 0.4, 0.2, 0.25, 0.05)


def score(y: torch.Tensor) -> torch.Tensor:
    """grad log pi(y) of the softmax: worked by hand, so that the surrogate under test supplies the weights only."""
    return torch.eye(5, dtype=torch.float64)[y] - PROBABILITY


def true_gradient(returns: torch.Tensor) -> torch.Tensor:
    theta = THETA.clone().requires_grad_()
    return torch.autograd.grad(theta.softmax(0) @ returns, theta)[0]


def every_sample(k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All 5^k samples of k draws, and the probability of each."""
    draws = torch.tensor(list(itertools.product(range(5), repeat=k)))
    return draws, PROBABILITY[draws].prod(1)


def estimates(draws, returns, advantage, surrogate) -> torch.Tensor:
    """The gradient estimate, [samples, 5], of each sample: the mean over its draws of the surrogate's gradient."""
    log_prob = PROBABILITY.log()[draws].requires_grad_()
    (weight,) = torch.autograd.grad(surrogate(log_prob, advantage(returns[draws])).sum(), log_prob)
    return (weight[..., None] * score(draws)).mean(1)


def clipped_at_the_old_policy(log_prob, advantage):
    return clipped_ratio(log_prob, log_prob.clone(), advantage, 0.2)


SURROGATES = pytest.mark.parametrize("surrogate", [reinforce, clipped_at_the_old_policy])


@SURROGATES
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(
    ("advantage", "factor"),
    [(lambda r: r, lambda k: 1), (leave_one_out, lambda k: 1), (group_mean, lambda k: 1 - 1 / k)],
    ids=["none", "leave_one_out", "group_mean"],
)
def test_expected_gradient(advantage, factor, k, surrogate):
    draws, probability = every_sample(k)
    expected = probability @ estimates(draws, RETURN, advantage, surrogate)
    close(expected, factor(k) * true_gradient(RETURN))


@SURROGATES
def test_the_mean_of_the_batch_loses_one_part_in_all_its_draws(surrogate):
    # Two contexts with returns of their own and two draws each: N = 4, K = 2.
    draws, probability = every_sample(4)
    draws = draws.reshape(-1, 2, 2)
    returns = torch.stack([RETURN[draws[:, 0]], OTHER[draws[:, 1]]], 1)
    advantage = torch.stack([batch_mean(batch) for batch in returns])
    log_prob = PROBABILITY.log()[draws].requires_grad_()
    (weight,) = torch.autograd.grad(surrogate(log_prob, advantage).sum(), log_prob)
    expected = torch.einsum("s,scd,scdi->ci", probability, weight / 2, score(draws))
    close(expected, 3 / 4 * torch.stack([true_gradient(RETURN), true_gradient(OTHER)]))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a, b, 0).item()


@SURROGATES
def test_the_division_by_the_deviation_bends_the_direction(surrogate):
    draws, probability = every_sample(3)
    expected = probability @ estimates(draws, RETURN, lambda r: standardized(r, eps=0.0), surrogate)
    assert cosine(expected, true_gradient(RETURN)) < 1 - 1e-3
    undivided = probability @ estimates(draws, RETURN, group_mean, surrogate)
    assert cosine(undivided, true_gradient(RETURN)) == pytest.approx(1, abs=1e-12)


def test_variance_of_the_baselines():
    def variance(advantage, returns, k=3):
        draws, probability = every_sample(k)
        each = estimates(draws, returns, advantage, reinforce)
        return (probability @ (each - probability @ each).square()).sum().item()

    for offset in (3.0, -3.0, 100.0):
        # what the others got says how high returns are here: the offset cancels exactly
        assert variance(leave_one_out, RETURN + offset) == pytest.approx(variance(leave_one_out, RETURN), rel=1e-10)
    assert variance(leave_one_out, RETURN + 3) < 0.9 * variance(lambda r: r, RETURN + 3)
    assert variance(lambda r: r, RETURN + 100) > 1000 * variance(leave_one_out, RETURN + 100)
    # one draw of variance, over K of them
    single = variance(lambda r: r, RETURN, k=1)
    assert variance(lambda r: r, RETURN, k=3) == pytest.approx(single / 3, rel=1e-12)


def test_advantages_by_hand():
    returns = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    close(batch_mean(returns), torch.tensor([[-1.0, 0.0, 4.0], [-2.0, -2.0, 1.0]], dtype=torch.float64))
    close(group_mean(returns), torch.tensor([[-2.0, -1.0, 3.0], [-1.0, -1.0, 2.0]], dtype=torch.float64))
    close(leave_one_out(returns), torch.tensor([[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]], dtype=torch.float64))
    close(standardized(returns, eps=0.0), group_mean(returns) / vector(7**0.5, 3**0.5)[:, None])
    close(standardized(returns, eps=1.0), group_mean(returns) / vector(7**0.5 + 1, 3**0.5 + 1)[:, None])


def test_equal_returns_have_no_advantage_and_one_draw_has_nothing_to_be_compared_with():
    for eps in (0.0, 1e-4):
        # the mean of three times 0.1 is not 0.1 in floating point
        returns = torch.tensor([[0.1, 0.1, 0.1], [1.0, 2.0, 3.0]], dtype=torch.float64)
        advantage = standardized(returns, eps=eps)
        assert (advantage[0] == 0).all() and advantage[1, 2] > 0.99
    one = torch.zeros(4, 1)
    for function in (leave_one_out, standardized):
        with pytest.raises(ValueError, match="two at least, not 1"):
            function(one)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.floats(-100, 100), st.floats(0.1, 10))
def test_shift_and_scale(values, shift, scale):
    returns = vector(*values)[None]
    for function in (batch_mean, group_mean, leave_one_out):
        close(function(returns * scale + shift), function(returns) * scale, atol=1e-9)
        close(function(returns).sum(), torch.zeros((), dtype=torch.float64), atol=1e-9)
    if returns.std() > 1e-3:
        close(standardized(returns * scale + shift, eps=0.0), standardized(returns, eps=0.0), atol=1e-6)


def test_no_gradient_flows_into_advantages_or_the_old_policy():
    """With log pi inside the return (the KL enters there), a graph through it would add a second gradient."""
    theta = THETA.clone().requires_grad_()
    log_prob = theta.log_softmax(0)
    advantage = leave_one_out((RETURN + MU.log() - log_prob)[None])[0]
    for surrogate in (
        reinforce(log_prob, advantage),
        clipped_ratio(log_prob, log_prob, advantage, 0.2),
    ):
        (gradient,) = torch.autograd.grad(surrogate.sum(), theta, retain_graph=True)
        (expected,) = torch.autograd.grad((log_prob * advantage.detach()).sum(), theta, retain_graph=True)
        assert expected.abs().max() > 0.1
        close(gradient, expected)


def test_clipping_on_the_side_of_the_advantage():
    ratio = vector(0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0)
    for sign in (1.0, -1.0):
        advantage = torch.full_like(ratio, 2 * sign)
        log_prob = (ratio.log() - 1.3).requires_grad_()
        value = clipped_ratio(log_prob, torch.full_like(ratio, -1.3), advantage, 0.2)
        close(value, torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))  # eq. 7, word by word
        (gradient,) = torch.autograd.grad(value.sum(), log_prob)
        still = ratio < 1.2 if sign > 0 else ratio > 0.8
        close(gradient, torch.where(still, ratio * advantage, 0.0))


def test_a_ratio_that_overflows_is_clipped_without_nan():
    log_prob = torch.tensor([200.0, 200.0, -200.0]).requires_grad_()
    value = clipped_ratio(log_prob, torch.zeros(3), torch.tensor([1.0, 0.0, -1.0]), 0.2)
    close(value, torch.tensor([1.2, 0.0, -0.8]), atol=1e-6)
    assert (torch.autograd.grad(value.sum(), log_prob)[0] == 0).all()
    for clip in (0.0, 1.0):
        with pytest.raises(ValueError, match="clip must lie between"):
            clipped_ratio(log_prob, log_prob, log_prob, clip)


K1, K2, K3 = (
    kl_k1_unbiased_value_no_gradient,
    kl_k2_biased_value_true_gradient,
    kl_k3_unbiased_value_reverse_gradient,
)


def test_values_of_the_kl_estimators():
    log_ratio = PROBABILITY.log() - MU.log()
    kl = (PROBABILITY * log_ratio).sum()
    close(PROBABILITY @ K1(log_ratio), kl)
    close(PROBABILITY @ K3(log_ratio), kl)
    assert (K3(log_ratio) >= 0).all()
    assert abs((PROBABILITY @ K2(log_ratio) - kl).item()) > 0.01
    close(K2(log_ratio), log_ratio**2 / 2)


def test_gradients_of_the_kl_estimators_as_losses():
    def as_a_loss(estimator):
        # the draws come from pi, and no gradient goes through the drawing
        theta = THETA.clone().requires_grad_()
        return torch.autograd.grad(PROBABILITY @ estimator(theta.log_softmax(0) - MU.log()), theta)[0]

    def gradient(divergence):
        theta = THETA.clone().requires_grad_()
        return torch.autograd.grad(divergence(theta.log_softmax(0)), theta)[0]

    forward = gradient(lambda log_pi: (log_pi.exp() * (log_pi - MU.log())).sum())
    reverse = gradient(lambda log_pi: (MU * (MU.log() - log_pi)).sum())
    close(as_a_loss(K1), torch.zeros(5, dtype=torch.float64))
    close(as_a_loss(K2), forward)
    close(as_a_loss(K3), reverse)
    assert cosine(forward, reverse) < 1 - 1e-3


@settings(deadline=None, max_examples=100)
@given(st.floats(-50, 50))
def test_k3_is_never_negative(log_ratio):
    assert K3(vector(log_ratio)).item() >= 0
