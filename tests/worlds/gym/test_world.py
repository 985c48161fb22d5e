"""Episodes as batches: padding, ends of both kinds, what was played, and what is refused."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from irlhf.errors import ConfigError, TrajectoryError
from irlhf.randomness import Key
from irlhf.worlds.gym import Episode, Episodes, GymPolicy, GymWorld, PaidReward, UniformPolicy
from tests.worlds.gym.envs import Corridors, Numbers, corridor


def episode(places, acts, *, terminated, **more):
    obs = np.array([[p, 1.0] for p in places], np.float32)
    return Episode(obs, np.array(acts), terminated, np.array(places[1:], float), **more)


GONE = episode([0, 1, 2, 3], [1, 1, 1], terminated=True)  # terminates after 3 of at most 5 steps
CUT = episode([0, 1, 1, 1, 2, 2], [1, 0, 0, 1, 0], terminated=False)  # reaches the limit of 5


class TestPadding:
    def test_an_early_end_is_followed_by_the_rest_of_the_time(self):
        world = GymWorld(corridor())
        batch = world.collate([None, None], [GONE, CUT])
        assert batch.absorbing.tolist() == [False] * 3 + [True] + [False] * 5
        assert batch.step_weight.tolist() == [1, 1, 1, 2, 1, 1, 1, 1, 1]
        assert batch.terminated.tolist() == [False, False, True] + [False] * 6
        assert batch.time.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
        assert world.whole(batch).tolist() == [True, True]

    def test_every_episode_lasts_as_long_so_a_constant_says_nothing(self):
        world = GymWorld(corridor())
        batch = world.collate([None, None], [GONE, CUT])
        assert batch.sum(torch.ones(9)).tolist() == [5.0, 5.0]
        plain = GymWorld(corridor(), absorbing=False)
        assert plain.collate([None, None], [GONE, CUT]).sum(torch.ones(8)).tolist() == [3.0, 5.0]

    def test_the_discount_of_the_time_after_an_end_is_summed(self):
        batch = GymWorld(corridor(), discount=0.5).collate([None], [GONE])
        assert batch.step_weight.tolist() == [1, 0.5, 0.25, 0.125 + 0.0625]

    def test_without_a_limit_a_discount_sums_for_ever(self):
        world = GymWorld(Numbers, discount=0.9)
        one = Episode(np.zeros((3, 3)), np.zeros((2, 2)), True)
        assert float(world.collate([None], [one]).step_weight.sum()) == pytest.approx(10.0)
        with pytest.raises(ConfigError, match="no limit of time"):
            GymWorld(Numbers)

    def test_a_segment_is_padded_to_its_own_length(self):
        world = GymWorld(corridor())
        whole = world.collate([None], [GONE.part(1, 4)])  # steps 1 and 2 of 3, then over: 3 in all
        assert whole.step_weight.tolist() == [1, 1, 1] and whole.absorbing.tolist() == [False, False, True]
        inner = world.collate([None], [GONE.part(0, 2)])  # ends before the end: nothing is over
        assert not inner.absorbing.any() and not inner.terminated.any()

    def test_what_the_environment_paid_is_the_sum_of_its_steps(self):
        batch = GymWorld(corridor()).collate([None, None], [GONE, CUT])
        assert PaidReward()(batch).tolist() == [6.0, 7.0]

    @pytest.mark.parametrize(("terminated", "steps"), [(True, 3), (False, 3), (True, 5), (False, 5)])
    def test_four_ways_to_end(self, terminated, steps):
        """Terminated early; cut early; and at the limit of time, where old files say terminal and mean the limit."""
        places = [0, 1, 2, 2, 2, 2][: steps + 1]
        world = GymWorld(corridor())
        batch = world.collate([None], [episode(places, [1] * steps, terminated=terminated)])
        early = terminated and steps == 3
        assert bool(batch.terminated.any()) == early == bool(batch.absorbing.any())
        assert bool(world.whole(batch)[0]) == (early or steps == 5)


class TestPlayed:
    @pytest.mark.parametrize("native", [False, True])
    def test_no_reset_is_taken_for_a_step(self, native, monkeypatch):
        world = GymWorld(corridor())
        if native:
            monkeypatch.setattr(world, "make", lambda n: Corridors(n))
        draws = world.draw(UniformPolicy(world), [None], 200, key=Key(1))
        batch = draws.batch
        own = batch.decided
        step = batch.next_obs[own, 0] - batch.obs[own, 0]
        assert torch.equal(step, batch.action[own].float()), "a step leads to where its action goes"
        first = torch.searchsorted(batch.item, torch.arange(200))
        assert (batch.obs[first, 0] == 0).all() and (batch.time[first] == 0).all()
        assert batch.sum(batch.span.double(), discounted=False).tolist() == [5.0] * 200
        assert torch.equal(batch.next_obs[own, 0] >= 3, batch.terminated[own])
        assert draws.whole.all()
        assert torch.equal(batch.paid[own], batch.next_obs[own, 0])

    def test_draws_are_not_biased_to_short_episodes(self):
        world = GymWorld(corridor(end=3, limit=20))
        draws = world.draw(UniformPolicy(world), [None], 4000, key=Key(2))
        length = draws.batch.sum(draws.batch.decided.double(), discounted=False).numpy()
        # the third success of fair coins: mean 6, variance 6
        assert abs(length.mean() - 6) < 5 * (6 / 4000) ** 0.5
        assert draws.batch.n_items == 4000

    def test_the_same_key_gives_the_same_episodes(self):
        one, other = (GymWorld(corridor()).draw(GymPolicy(GymWorld(corridor())), [None], 9, key=Key(3)) for _ in "ab")
        assert torch.equal(one.batch.obs, other.batch.obs) and torch.equal(one.log_q, other.log_q)

    @pytest.mark.parametrize("make", ["CartPole-v1", "Pendulum-v1", corridor()])
    def test_a_stretch_goes_on_from_a_written_state_as_if_never_interrupted(self, make):
        def play(copied):
            world = GymWorld(make, key=Key(4))
            policy = GymPolicy(world, seed=1)
            state, seen = {}, []
            for k in range(6):
                if copied:  # what a checkpoint holds, in another process
                    state = {name: tensor.clone() for name, tensor in state.items()}
                    world = GymWorld(make, key=Key(4))
                draws, state, told = world.stretch(policy, 7, 3, state, Key(5).at(k))
                seen.append((draws.batch.obs, draws.log_q, draws.batch.time, draws.batch.terminated, told))
            return seen

        for one, other in zip(play(False), play(True), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True)) and one[4] == other[4]

    def test_the_clock_of_an_episode_goes_on_over_stretches(self):
        world = GymWorld(corridor(end=99, limit=5))
        state, times = {}, []
        for k in range(4):
            draws, state, _ = world.stretch(UniformPolicy(world), 3, 1, state, Key(6).at(k))
            times += draws.batch.time.tolist()
        # 12 steps of one copy: every sixth is a reset; after 4 times the limit it starts again, not here
        assert times == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]

    def test_log_q_is_the_policy_s_own(self):
        for make in ("CartPole-v1", "Pendulum-v1"):
            world = GymWorld(make)
            policy = GymPolicy(world, seed=2)
            draws = world.draw(policy, [None], 3, key=Key(7))
            assert (policy.log_prob(draws.batch) - draws.log_q).abs().max() < 1e-5

    def test_recorded_episodes_can_be_laid_out_again(self):
        world = GymWorld("CartPole-v1")
        kept = world.record(lambda obs: int(obs[2] > 0), 5)
        batch = world.collate([None] * 5, kept)
        assert torch.equal(batch.sum(batch.decided.double(), discounted=False), torch.from_numpy(kept.returns()))
        assert (kept.acts == (kept.obs[batch_rows(kept), 2] > 0)).all()

    def test_evaluating_changes_nothing(self):
        world = GymWorld("CartPole-v1")
        policy = GymPolicy(world)
        before = {k: v.clone() for k, v in policy.state_dict().items()}
        a = world.draw(policy, [None], 4, key=Key(8), greedy=True)
        b = world.draw(policy, [None], 4, key=Key(8), greedy=True)
        assert torch.equal(a.batch.obs, b.batch.obs)
        assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())


def batch_rows(episodes):
    return np.arange(episodes.first[-1]) + np.repeat(np.arange(len(episodes)), episodes.steps)


class TestPolicies:
    def test_the_density_of_numbers_sums_to_one_in_their_own_units(self):
        world = GymWorld(Numbers, horizon=10)
        policy = GymPolicy(world)
        grid = torch.linspace(-12, 14, 521)
        a, b = torch.meshgrid(grid, grid, indexing="ij")
        action = torch.stack([a.reshape(-1), b.reshape(-1)], 1)
        density = policy.log_density(torch.zeros(len(action), 3), action).exp().sum() * (grid[1] - grid[0]) ** 2
        assert float(density.detach()) == pytest.approx(1, abs=1e-4)

    def test_probabilities_of_actions_sum_to_one(self):
        world = GymWorld("Acrobot-v1")
        policy = GymPolicy(world)
        obs = torch.randn(7, 6)
        each = torch.stack([policy.log_density(obs, torch.full((7,), k)) for k in range(3)])
        assert each.exp().sum(0).detach().numpy() == pytest.approx(np.ones(7), abs=1e-6)

    def test_the_base_measure_is_uniform_over_what_is_allowed(self):
        world = GymWorld(Numbers, horizon=10)
        batch = world.draw(world.base_policy(), [None], 50, key=Key(9)).batch
        assert world.log_base_step(batch)[0].item() == pytest.approx(-np.log(3 * 4))
        low, high = batch.action.min(0).values, batch.action.max(0).values
        assert (low >= torch.tensor([-2.0, 0])).all() and (high <= torch.tensor([1.0, 4])).all()
        assert abs(float(batch.action[:, 1].mean()) - 2) < 5 * (16 / 12 / 500) ** 0.5

    def test_nothing_is_decided_when_it_is_over(self):
        world = GymWorld(corridor())
        batch = world.collate([None], [GONE])
        policy = GymPolicy(world)
        assert policy.log_prob(batch)[3] == 0 and world.log_base_step(batch)[3] == 0

    def test_observations_are_standardized_by_what_was_seen_and_then_frozen(self):
        far = Episode(np.full((3, 4), 50.0), np.array([0, 1]), False)
        one, other = GymWorld("CartPole-v1"), GymWorld("CartPole-v1", seen=[far])
        assert float(other.moments[0][0]) == pytest.approx(25 + float(one.moments[0][0]) / 2, abs=1e-4)
        policy = GymPolicy(one)
        assert not any(p.requires_grad for p in policy.standardize.buffers())


class TestRefused:
    def test_what_is_not_finite_is_named(self):
        world = GymWorld("CartPole-v1")
        obs = np.zeros((4, 4))
        good = Episode(obs, np.zeros(3), False)
        bad = obs.copy()
        bad[2, 1] = np.nan
        with pytest.raises(TrajectoryError, match="trajectory 1, step 2: an observation is not finite"):
            world.collate([None, None], [good, Episode(bad, np.zeros(3), False)])
        with pytest.raises(TrajectoryError, match="trajectory 1, step 1: an action is not finite"):
            world.collate([None, None], [good, Episode(obs, np.array([0, np.nan, 1]), False)])

    @pytest.mark.parametrize(
        ("one", "words"),
        [
            (Episode(np.zeros((1, 4)), np.zeros(0), False), "has no step"),
            (Episode(np.zeros((4, 3)), np.zeros(3), False), r"have shape \(3,\), but the environment's have \(4,\)"),
            (Episode(np.zeros((4, 4)), np.array([0, 1, 2]), False), "an action is 2, but the environment's are 0 to 1"),
            (Episode(np.zeros((4, 4)), np.array([0, 0.5, 1]), False), "takes one of 2"),
            (Episode(np.zeros((502, 4)), np.zeros(501), False), "has 501 steps, but CartPole-v1 ends after 500"),
        ],
    )
    def test_what_is_of_another_environment(self, one, words):
        with pytest.raises(ConfigError, match=words):
            GymWorld("CartPole-v1").collate([None], [one])

    def test_dictionaries_and_images_need_an_encoder(self):
        class Shown(gymnasium.Env):
            observation_space = spaces.Dict({"at": spaces.Box(-1, 1, (2,)), "on": spaces.Discrete(3)})
            action_space = spaces.Discrete(2)

            def reset(self, *, seed=None, options=None):
                super().reset(seed=seed)
                return {"at": np.zeros(2, np.float32), "on": 1}, {}

            def step(self, action):
                return {"at": np.full(2, action, np.float32), "on": 2}, 0.0, False, False, {}

        with pytest.raises(ConfigError, match="dictionaries with at, on, which a network cannot read"):
            GymWorld(Shown, horizon=4)
        world = GymWorld(Shown, horizon=4, encoder=lambda seen: np.append(seen["at"], seen["on"]))
        batch = world.draw(world.base_policy(), [None], 3, key=Key(0)).batch
        assert batch.obs.shape[1] == 3 and torch.equal(batch.next_obs[:, 0], batch.action.float())

        class Image(Shown):
            observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)

        with pytest.raises(ConfigError, match="an image"):
            GymWorld(Image, horizon=4)

    def test_actions_without_bounds(self):
        class Free(Numbers):
            def __init__(self):
                super().__init__()
                self.action_space = spaces.Box(-np.inf, np.inf, (1,))

        with pytest.raises(ConfigError, match="no bounds"):
            GymWorld(Free, horizon=3)

    def test_an_environment_that_is_not_there(self):
        with pytest.raises(ConfigError, match="cannot be made"):
            GymWorld("CartPool-v1")


def test_taking_and_joining_episodes_keeps_them_whole():
    many = Episodes.of([GONE, CUT])
    again = Episodes.concatenate([many[[1]], many[[0]]])
    for a, b in zip(again, [CUT, GONE], strict=True):
        assert np.array_equal(a.obs, b.obs) and np.array_equal(a.acts, b.acts) and a.terminated == b.terminated
    assert many.returns().tolist() == [6.0, 7.0]
