"""Importance weights against exact enumeration; Pareto k-hat against ArviZ and against a known tail."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from irlhf.functional.weights import k_hat_threshold, log_weight, log_z, pareto_smoothed

# Five trajectories. Proposal and base measure are unlike each other and unlike the model, and T is not 1.
REWARD = torch.tensor([0.4, -1.1, 2.0, 0.7, -0.3], dtype=torch.float64)
LOG_MU = torch.tensor([0.1, 0.3, 0.05, 0.35, 0.2], dtype=torch.float64).log()
Q = torch.tensor([0.1, 0.2, 0.1, 0.2, 0.4], dtype=torch.float64)
T = 0.8
UTILITY = REWARD / T + LOG_MU
LOG_Z = torch.logsumexp(UTILITY, 0)
LOG_W = log_weight(REWARD, LOG_MU, Q.log(), T)
KL = (Q * (Q.log() - UTILITY.log_softmax(0))).sum()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def every_sample(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The log weights of all 5^n samples of n draws, and the probability of each sample."""
    draws = torch.tensor(list(itertools.product(range(5), repeat=n)))
    return LOG_W[draws], Q[draws].prod(1)


def test_a_sample_in_proportion_to_the_proposal_is_exact():
    estimate = log_z(LOG_W[torch.tensor([0, 1, 1, 2, 3, 3, 4, 4, 4, 4])])
    close(estimate.log_z, LOG_Z)
    close(estimate.mean, LOG_Z - KL)
    w = LOG_W.exp()
    close(estimate.effective_sample_size, 10 * LOG_Z.exp() ** 2 / (Q * w**2).sum())


@pytest.mark.parametrize("n", [2, 3, 5])
def test_expectations_over_all_samples(n):
    log_w, probability = every_sample(n)
    estimate = log_z(log_w)
    close((probability * estimate.log_z.exp()).sum(), LOG_Z.exp())  # exp(log_z) is unbiased
    close((probability * estimate.mean).sum(), LOG_Z - KL)
    # m * SE = s / sqrt(n), whose square is an unbiased estimate of the variance of the mean: n - 1, not n
    variance = (Q * LOG_W.exp() ** 2).sum() - LOG_Z.exp() ** 2
    close((probability * (estimate.log_z.exp() * estimate.standard_error) ** 2).sum(), variance / n)
    assert (probability * estimate.log_z).sum() < LOG_Z


def test_standard_error_and_bias_as_promised():
    n, contexts = 400, 4000
    draws = torch.multinomial(Q, n * contexts, replacement=True, generator=torch.Generator().manual_seed(1))
    estimate = log_z(LOG_W[draws].reshape(contexts, n))
    off = estimate.log_z - LOG_Z
    typical = estimate.standard_error.mean().item()
    assert off.std().item() == pytest.approx(typical, rel=5 / math.sqrt(2 * contexts))
    bias = -(estimate.standard_error**2).mean().item() / 2
    assert abs(off.mean().item() - bias) < 5 * typical / math.sqrt(contexts)
    ratio = (off / estimate.standard_error).square().mean().item()
    assert ratio == pytest.approx(1, abs=5 * math.sqrt(2 / contexts))


def test_equal_weights_are_certain():
    log_w = torch.full((3, 100), -700.3, dtype=torch.float64)
    estimate = log_z(log_w)
    assert (estimate.log_z == -700.3).all() and (estimate.standard_error == 0).all()
    assert (estimate.effective_sample_size == 100).all() and (estimate.k_hat == -math.inf).all()
    assert torch.equal(pareto_smoothed(log_w)[0], log_w)


def test_nearly_equal_weights_keep_their_spread():
    log_w = 3.0 + 1e-9 * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert log_z(log_w).standard_error.item() == pytest.approx(1e-9, rel=1e-5)


def test_zero_weights_count_as_draws():
    inf = math.inf
    log_w = torch.tensor([[0.0, 0.0, -inf, -inf], [-inf] * 4], dtype=torch.float64)
    estimate = log_z(log_w)
    close(estimate.log_z, torch.tensor([math.log(0.5), -inf], dtype=torch.float64))
    close(estimate.effective_sample_size, torch.tensor([2.0, 0.0], dtype=torch.float64))
    close(estimate.standard_error, torch.tensor([math.sqrt(1 / 3), inf], dtype=torch.float64))
    assert (estimate.mean == -inf).all() and (estimate.k_hat == inf).all()


def test_no_overflow_and_single_precision():
    log_w = torch.tensor([[5000.0, 5000.0 + math.log(3)], [-5000.0, 5000.0]], dtype=torch.float32)
    estimate = log_z(log_w)
    assert estimate.log_z.dtype == estimate.k_hat.dtype == torch.float32
    close(estimate.log_z, torch.tensor([5000 + math.log(2), 5000 - math.log(2)], dtype=torch.float32), atol=1e-3)
    assert torch.isfinite(estimate.standard_error).all()
    assert log_z(torch.zeros(1)).standard_error.item() == math.inf


def test_what_is_no_weight_is_refused():
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="log weights must be finite"):
            log_z(torch.tensor([0.0, bad]))
    with pytest.raises(ValueError, match="at least one draw"):
        log_z(torch.zeros(3, 0))
    with pytest.raises(ValueError, match="must be positive"):
        k_hat_threshold(0)


def test_gradients():
    log_w = randn(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: (log_z(x).log_z, log_z(x).mean), (log_w,))
    outside = torch.tensor([0.5, -math.inf], dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(log_z(outside).log_z, outside)
    close(gradient, torch.tensor([1.0, 0.0], dtype=torch.float64))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=60), st.floats(-500, 500))
def test_a_shift_moves_log_z_and_nothing_else(values, shift):
    log_w = torch.tensor(values, dtype=torch.float64)
    a, b = log_z(log_w), log_z(log_w + shift)
    close(b.log_z, a.log_z + shift, atol=1e-10)
    close(b.mean, a.mean + shift, atol=1e-10)
    close(b.effective_sample_size, a.effective_sample_size, atol=1e-8)
    close(b.standard_error, a.standard_error, atol=1e-8)
    assert a.mean <= a.log_z + 1e-12
    assert 1 - 1e-9 <= a.effective_sample_size <= len(values)


@pytest.mark.parametrize("n", [25, 31, 100, 225, 226, 256, 1000, 5000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0, 10.0])
def test_k_hat_and_smoothing_agree_with_arviz(n, spread):
    array_stats = pytest.importorskip("arviz_stats.base").array_stats
    log_w = spread * randn(2, 3, n, seed=n) - 50
    smoothed, k_hat = pareto_smoothed(log_w)
    expected, expected_k = array_stats.psislw(-log_w.numpy())  # ArviZ takes minus the log weights
    np.testing.assert_allclose(k_hat.numpy(), expected_k, rtol=0, atol=1e-8)
    np.testing.assert_allclose(smoothed.log_softmax(-1).numpy(), expected, rtol=0, atol=1e-8)
    assert torch.equal(log_z(log_w).k_hat, k_hat)
    plain = array_stats.pareto_khat((log_w - log_w.amax(-1, keepdim=True)).exp().numpy(), r_eff=1.0, tail="right")
    assert plain.shape == (2,)  # it flattens the last two axes, so each row of ours is asked for by itself
    for k, row in zip(k_hat.reshape(-1), log_w.reshape(-1, 1, n), strict=True):
        weight = (row - row.max()).exp().numpy()
        assert k.item() == pytest.approx(array_stats.pareto_khat(weight, r_eff=1.0, tail="right").item(), abs=1e-8)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_k_hat_of_a_tail_that_is_known(k):
    n, contexts = 20_000, 40
    uniform = torch.rand(contexts, n, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    k_hat = pareto_smoothed(-k * uniform.log())[1]  # w = u^-k is Pareto with shape k exactly
    tail = 3 * math.sqrt(n)
    # The estimate has standard deviation (1 + k)/sqrt(tail), and the prior pulls it toward 1/2 by 10/(tail + 10).
    expected = (tail * k + 5) / (tail + 10)
    assert k_hat.mean().item() == pytest.approx(expected, abs=5 * (1 + k) / math.sqrt(tail * contexts))


def test_smoothing_tames_the_largest_weights_and_keeps_the_rest():
    log_w = 2 * randn(5, 400)
    smoothed, _ = pareto_smoothed(log_w)
    tail = log_w.argsort(-1)[:, -60:]
    body = log_w.argsort(-1)[:, :-60]
    assert torch.equal(smoothed.gather(1, body), log_w.gather(1, body))
    assert (smoothed.amax(-1) <= log_w.amax(-1)).all() and not torch.equal(smoothed, log_w)
    assert (smoothed.gather(1, tail).diff(dim=1) >= 0).all()  # the order of the draws survives
    assert not pareto_smoothed(log_w.requires_grad_())[0].requires_grad


def test_where_no_fit_is_possible_k_hat_says_so_and_nothing_is_smoothed():
    inf = math.inf
    few = randn(24)
    no_tail = torch.cat([randn(80) - 5, torch.zeros(20, dtype=torch.float64)])
    too_many_zeros = torch.cat([torch.full((90,), -inf, dtype=torch.float64), randn(10)])
    only_zeros = torch.full((100,), -inf, dtype=torch.float64)
    ties = torch.cat([torch.zeros(90, dtype=torch.float64), torch.arange(1.0, 11, dtype=torch.float64)])
    vanishing = 1000 * torch.arange(100, dtype=torch.float64)
    cases = (few, inf), (no_tail, -inf), (too_many_zeros, inf), (only_zeros, inf), (ties, inf), (vanishing, inf)
    for log_w, expected in cases:
        smoothed, k_hat = pareto_smoothed(log_w)
        assert k_hat.item() == expected
        assert torch.equal(smoothed, log_w)
    # side by side in one call the failures do not touch the context that can be fitted
    fine = randn(100, seed=5)
    together = torch.stack([fine, *(log_w for log_w, _ in cases[1:])])
    smoothed, k_hat = pareto_smoothed(together)
    assert k_hat[0].item() == pareto_smoothed(fine)[1].item() and math.isfinite(k_hat[0].item())
    assert not torch.isnan(smoothed).any() and not torch.isnan(k_hat).any()


def test_zero_weights_below_the_tail_change_nothing_in_it():
    log_w = randn(100)
    inside = log_w.clone()
    inside[log_w.argsort()[:50]] = -math.inf
    assert pareto_smoothed(inside)[1].item() == pareto_smoothed(log_w)[1].item()
    assert torch.isinf(pareto_smoothed(inside)[0]).sum() == 50


def test_threshold():
    assert k_hat_threshold(100) == pytest.approx(0.5)
    assert k_hat_threshold(1000) == pytest.approx(2 / 3)
    assert k_hat_threshold(2154) < 0.7 == k_hat_threshold(2155) == k_hat_threshold(10**6)
    assert k_hat_threshold(10) == 0 and k_hat_threshold(1) == -math.inf


def test_a_light_tail_is_trusted_and_one_without_a_mean_is_not():
    n = 1000
    log_u = torch.rand(20, n, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).log()
    for k, trusted in ((0.05, True), (3.0, False)):  # five standard deviations, (1 + k)/sqrt(94), off the threshold
        assert ((log_z(-k * log_u).k_hat < k_hat_threshold(n)) == trusted).all()
