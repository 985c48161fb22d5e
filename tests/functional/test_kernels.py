"""The vectorized exponential that all backups take."""

import numpy as np
import pytest

from irlhf.functional.kernels import exp_of_nonpositive


def test_it_is_the_exponential_to_the_last_bits():
    x = -np.concatenate([np.linspace(0, 1, 1001), np.linspace(0, 700, 5003), [1e-300, 1e-16, 0.5 * np.log(2), 707.9]])
    found = x.copy()
    exp_of_nonpositive(found, np.empty_like(x))
    np.testing.assert_allclose(found, np.exp(x), rtol=5e-16, atol=0)


@pytest.mark.parametrize("x", [-709.0, -1e4, -1e308, -np.inf])
def test_what_is_too_small_is_zero(x):
    found = np.full(8, x)
    exp_of_nonpositive(found, np.full(8, 7.0))
    assert (found == 0).all()
