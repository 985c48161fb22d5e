"""Steps of optimizers, beside those of torch."""

from __future__ import annotations

import pytest
import torch

from irlhf.functional.adam import adam_step
from irlhf.optimize import torch_step
from irlhf.randomness import Key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_is_that_of_torch_to_the_bit(dtype):
    own = theta = torch.randn(50, generator=Key(0).torch(), dtype=dtype)
    own_moments, moments = {}, {}
    for k in range(30):
        gradient = torch.randn(50, generator=Key(0).at(k).torch(), dtype=dtype) * 10.0 ** (k % 5 - 2)
        rate, before = 0.1 * (1 - k / 30), (own.clone(), {name: m.clone() for name, m in own_moments.items()})
        new, new_moments = adam_step(own, gradient, own_moments, rate)
        assert torch.equal(own, before[0]) and all(torch.equal(own_moments[n], m) for n, m in before[1].items())
        own, own_moments = new, new_moments
        theta, moments = torch_step(lambda p, rate=rate: torch.optim.Adam(p, lr=rate), theta, gradient, moments)
        assert torch.equal(own, theta) and own_moments.keys() == moments.keys()
        for name, moment in moments.items():
            assert torch.equal(own_moments[name], moment) and own_moments[name].dtype == moment.dtype


def test_a_step_leaves_what_it_was_given():
    theta, moments = torch.ones(3), {}
    for _ in range(3):
        given = theta.clone(), {name: m.clone() for name, m in moments.items()}
        new = torch_step(lambda p: torch.optim.AdamW(p, lr=0.1), theta, torch.ones(3), moments, slower=0.5)
        assert torch.equal(theta, given[0]) and all(torch.equal(moments[name], m) for name, m in given[1].items())
        theta, moments = new
    assert float(moments["step"]) == 3
    once, _ = torch_step(lambda p: torch.optim.SGD(p, lr=0.1), torch.ones(3), torch.ones(3), {}, slower=0.5)
    torch.testing.assert_close(once, torch.full((3,), 0.95))
