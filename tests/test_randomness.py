"""Keyed randomness: a name fixes its numbers, in any process and order, and no two names share them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from irlhf.randomness import Key

PARTS = st.lists(st.integers() | st.text(), max_size=4)
PINNED_BITS = 15290925618089745923
PINNED_NUMPY = [2940019896, 1715007501, 1411653314]
PINNED_TORCH = [671818055, 1686444177, 1872444939]


def test_numbers_are_pinned():
    """These change only with a new major version: old runs are resumed with them."""
    key = Key(7).at(3, "rivals", "trip-17")
    assert key.bits(64) == PINNED_BITS
    assert key.numpy().integers(0, 2**32, 3).tolist() == PINNED_NUMPY
    assert torch.randint(0, 2**31, (3,), generator=key.torch()).tolist() == PINNED_TORCH


def test_another_process_draws_the_same_numbers():
    code = "from irlhf.randomness import Key; print(Key(7).at(3, 'rivals', 'trip-17').bits())"
    env = {"PYTHONHASHSEED": "1"}  # Python's own hash() of a string depends on it
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) == PINNED_BITS


@given(PARTS, PARTS)
def test_a_path_is_a_chain(first, second):
    assert Key(1).at(*first).at(*second) == Key(1).at(*first, *second)
    assert Key(1).at(*first).at(*second).bits() == Key(1).at(*first, *second).bits()


@given(PARTS, PARTS, st.integers(), st.integers())
def test_different_names_have_different_numbers(first, second, seed, other):
    a, b = Key(seed).at(*first), Key(other).at(*second)
    assert (a == b) == (a.bits(128) == b.bits(128))


def test_names_that_look_alike_differ():
    keys = [Key(0), Key(0).at(0), Key(0).at(""), Key(0).at("0"), Key(0).at(0, 0), Key(0).at("i0"), Key(0).at(-1)]
    keys += [Key(0).at("ab", "c"), Key(0).at("a", "bc"), Key(0).at("abc"), Key(0).at(12, 3), Key(0).at(1, 23), Key(1)]
    assert len({key.bits(64) for key in keys}) == len(keys)


def test_numpy_integers_and_strings_are_plain_ones():
    assert Key(3).at(np.int32(4), np.str_("a")) == Key(3).at(4, "a")
    assert type(Key(0).at(np.str_("a")).path[0]) is str


@pytest.mark.parametrize("part", [1.0, True, None, torch.tensor(1), (1,), b"a"])
def test_other_parts_are_refused(part):
    with pytest.raises(TypeError):
        Key(0).at(part)


def test_a_key_is_not_consumed():
    key = Key(0).at("a")
    assert torch.equal(torch.rand(5, generator=key.torch()), torch.rand(5, generator=key.torch()))
    assert key.numpy().random() == key.numpy().random()


def test_torch_streams_use_more_than_32_bits_of_the_key():
    """torch's own seeding keeps 32 bits on the CPU, so that every 4,294,967,296th seed is the same stream."""
    a, b = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7 + 2**32)
    assert torch.equal(torch.rand(9, generator=a), torch.rand(9, generator=b))  # the trap is still there
    states = {bytes(Key(0).at(i).torch().get_state().numpy()) for i in range(300)}
    assert len(states) == 300
    low = [Key(0).at(i).torch() for i in range(300)]
    for generator in low:  # the same 32 bits of seed, different streams
        state = generator.get_state()
        state[:8] = 0
        generator.set_state(state)
    assert len({float(torch.rand(1, generator=g, dtype=torch.float64)) for g in low}) == 300


@pytest.mark.parametrize("draw", ["torch", "numpy", "first"])
def test_streams_are_uniform_and_independent(draw):
    """chi2 of 64 cells over 40,000 numbers, within a stream and across the first numbers of neighboring keys."""
    n = 40_000
    if draw == "torch":
        u = torch.rand(n, generator=Key(3).at("u").torch(), dtype=torch.float64).numpy()
    elif draw == "numpy":
        u = Key(3).at("u").numpy().random(n)
    else:
        n = 4_000
        u = np.array([Key(3).at(i).numpy().random() for i in range(n)])
    counts, _ = np.histogram(u, 64, (0, 1))
    chi2 = ((counts - n / 64) ** 2 / (n / 64)).sum()
    assert 25 < chi2 < 120  # 63 degrees of freedom: mean 63, standard deviation 11.2
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / n**0.5
