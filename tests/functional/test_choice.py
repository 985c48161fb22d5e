"""Choice probabilities against numbers worked by hand, sums to one, and gradients by differences."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from irlhf.functional.choice import (
    choice_log_prob,
    davidson_log_prob,
    rao_kupper_log_prob,
    rating_log_prob,
    set_logsumexp,
)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_pair_is_the_logistic_loss():
    utility = vector(1.3, -0.4, 2.0, 2.5)
    log_prob = choice_log_prob(utility, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2]))
    expected = [-math.log1p(math.exp(-1.7)), -math.log1p(math.exp(0.5))]
    torch.testing.assert_close(log_prob, vector(*expected), rtol=0, atol=1e-15)


def test_sets_may_be_ragged_unsorted_huge_and_hold_minus_infinity():
    utility = vector(1000.0, -1e308, 999.0, 0.0, -math.inf, -1e4)
    set_of = torch.tensor([0, 1, 0, 2, 2, 1])
    total = set_logsumexp(utility, set_of, 4)
    assert total[0].item() == pytest.approx(1000 + math.log1p(math.exp(-1)), abs=1e-12)
    assert total[1].item() == -1e4
    assert total[2].item() == 0.0
    assert total[3].item() == -math.inf


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=6), st.floats(-3, 3))
def test_probabilities_sum_to_one(utilities, extra):
    u = vector(*utilities)
    zeros = torch.zeros(len(u), dtype=torch.int64)
    each = [choice_log_prob(u, zeros, torch.tensor([k])).exp().item() for k in range(len(u))]
    assert sum(each) == pytest.approx(1.0, abs=1e-12)
    a, b = u[:1], u[1:2]
    for model, parameter in ((davidson_log_prob, extra), (rao_kupper_log_prob, abs(extra))):
        each = [model(a, b, torch.tensor([k]), vector(parameter)[0]).exp().item() for k in range(3)]
        assert sum(each) == pytest.approx(1.0, abs=1e-12)
    thresholds = torch.cat([vector(0.0), u])
    each = [rating_log_prob(a, torch.tensor([k]), thresholds).exp().item() for k in range(len(thresholds))]
    assert sum(each) == pytest.approx(1.0, abs=1e-12)


def test_davidson_by_hand():
    # nu = 2, utilities log 1 and log 4: weights 1, 4 and 2 * sqrt(4) = 4.
    a, b = vector(0.0), vector(math.log(4))
    weights = [davidson_log_prob(a, b, torch.tensor([k]), vector(math.log(2))[0]).exp().item() for k in range(3)]
    assert weights == pytest.approx([1 / 9, 4 / 9, 4 / 9])


def test_rao_kupper_by_hand():
    # theta = 3, strengths 1 and 4: P(a) = 1/13, P(b) = 4/7, P(tie) = 8 * 4 / (13 * 7).
    a, b = vector(0.0), vector(math.log(4))
    weights = [rao_kupper_log_prob(a, b, torch.tensor([k]), vector(math.log(3))[0]).exp().item() for k in range(3)]
    assert weights == pytest.approx([1 / 13, 4 / 7, 32 / 91])


def test_without_ties_both_models_are_bradley_terry():
    a, b, outcome = vector(0.3, 0.3), vector(-1.1, -1.1), torch.tensor([0, 1])
    logistic = choice_log_prob(torch.stack([a, b], 1).reshape(-1), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 3]))
    torch.testing.assert_close(davidson_log_prob(a, b, outcome, vector(-745.0)[0]), logistic, rtol=0, atol=1e-12)
    torch.testing.assert_close(rao_kupper_log_prob(a, b, outcome, vector(0.0)[0]), logistic, rtol=0, atol=1e-12)
    assert rao_kupper_log_prob(a[:1], b[:1], torch.tensor([2]), vector(0.0)[0]).item() == -math.inf


def test_two_levels_are_a_bernoulli():
    u = vector(0.7)
    up = rating_log_prob(u, torch.tensor([1]), vector(0.0, 0.2))
    assert up.item() == pytest.approx(-math.log1p(math.exp(-0.5)))


def test_gradients_of_both_orders():
    u = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    set_of, chosen = torch.tensor([0, 0, 1, 1, 1, 2, 2]), torch.tensor([1, 4, 5])
    extra = vector(0.4).requires_grad_()
    outcome = torch.tensor([0, 1, 2])
    for function in (
        lambda u, e: choice_log_prob(u, set_of, chosen) + e,
        lambda u, e: davidson_log_prob(u[:3], u[3:6], outcome, e[0]),
        lambda u, e: rao_kupper_log_prob(u[:3], u[3:6], outcome, e[0]),
        lambda u, e: rating_log_prob(u[:3], outcome, torch.cat([torch.zeros(1).double(), e, u[3:4]])),
    ):
        assert torch.autograd.gradcheck(function, (u, extra), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, (u, extra))


def test_minus_infinity_in_a_set_gives_no_nan_gradient():
    u = vector(0.5, -math.inf, 1.0).requires_grad_()
    choice_log_prob(u, torch.zeros(3, dtype=torch.int64), torch.tensor([0])).sum().backward()
    assert u.grad is not None and torch.isfinite(u.grad).all()
