"""Generalized advantage estimation by hand and against the plain recursion, episode by episode."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from irlhf.functional.policy_gradient import generalized_advantage


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


GAE = {"reward": vector(1.0, 2.0, 3.0), "value": vector(0.5, 0.25, 0.75), "next_value": vector(0.25, 0.75, 4.0)}


@pytest.mark.parametrize(
    ("terminated", "last", "expected"),
    [
        # discount 1/2, lambda 1/2, decay 1/4; delta = (1 + 1/8 - 1/2, 2 + 3/8 - 1/4, ...) = (0.625, 2.125, ...)
        (True, True, [1.296875, 2.6875, 2.25]),  # ended: delta_3 = 3 - 0.75
        (False, True, [1.421875, 3.1875, 4.25]),  # cut: delta_3 = 3 + 2 - 0.75
        (True, False, [1.296875, 2.6875, 2.25]),  # nothing follows an end, flagged as last or not
    ],
)
def test_generalized_advantage_by_hand(terminated, last, expected):
    flags = torch.tensor([False, False, terminated]), torch.tensor([False, False, last])
    close(
        generalized_advantage(**GAE, terminated=flags[0], last=flags[1], discount=0.5, lambda_=0.5), vector(*expected)
    )
    # The same in front of another episode, and behind it.
    other = vector(100.0, -50.0)
    flags = torch.cat([flags[0], torch.tensor([False, True])]), torch.cat([flags[1], torch.tensor([False, True])])
    steps = {name: torch.cat([x, other]) for name, x in GAE.items()}
    both = generalized_advantage(**steps, terminated=flags[0], last=flags[1], discount=0.5, lambda_=0.5)
    close(both[:3], vector(*expected))


def test_steps_that_end_in_the_middle_of_an_episode_are_refused():
    none = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="mark the final step as last"):
        generalized_advantage(**GAE, terminated=none, last=none, discount=0.5, lambda_=0.5)
    for wrong in ({"discount": 1.5, "lambda_": 0.5}, {"discount": 0.5, "lambda_": -0.1}):
        with pytest.raises(ValueError, match="must lie in"):
            generalized_advantage(**GAE, terminated=none, last=~none, **wrong)
    empty = torch.zeros(0)
    assert len(generalized_advantage(empty, empty, empty, empty > 0, empty > 0, 0.9, 0.9)) == 0


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.3, 0.95, 1.0]),
)
def test_generalized_advantage_is_the_recursion_episode_by_episode(episodes, discount, lambda_):
    n = sum(length for length, _ in episodes)
    reward, value, next_value = torch.randn(3, n, dtype=torch.float64)
    terminated, last, expected = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool), torch.zeros(n)
    expected, start = expected.double(), 0
    for length, ended in episodes:
        end, ahead = start + length, 0.0
        last[end - 1], terminated[end - 1] = True, ended
        for t in reversed(range(start, end)):
            after = 0.0 if terminated[t] else next_value[t].item()
            ahead = reward[t].item() + discount * after - value[t].item() + discount * lambda_ * ahead
            expected[t] = ahead
        start = end
    close(generalized_advantage(reward, value, next_value, terminated, last, discount, lambda_), expected, atol=1e-11)


def test_lambda_of_one_without_values_is_the_reward_to_go():
    reward, zero = vector(1.0, 2.0, 4.0, 8.0), torch.zeros(4, dtype=torch.float64)
    last = torch.tensor([False, False, True, True])
    advantage = generalized_advantage(reward, zero, zero, last, last, 0.5, 1.0)
    close(advantage, vector(1 + 1 + 1, 2 + 2, 4, 8))


def test_nothing_leaks_from_the_next_episode_not_even_nan():
    reward = vector(1.0, 2.0, float("inf"), float("nan"))
    zero = torch.zeros(4, dtype=torch.float64)
    unknown = torch.tensor([0.0, float("nan"), 0.0, float("nan")], dtype=torch.float64)  # not read after an end
    last = torch.tensor([False, True, False, True])
    close(generalized_advantage(reward, zero, unknown, last, last, 1.0, 1.0)[:2], vector(3.0, 2.0))


def test_no_gradient_flows_into_it():
    steps, ends = vector(1.0, 2.0).requires_grad_(), torch.tensor([False, True])
    assert not generalized_advantage(steps, steps, steps, ends, ends, 0.9, 0.9).requires_grad
