"""Rewards, the learner with a critic, the contrast of people and policy, and fits of both."""

import numpy as np
import pytest
import torch

from irlhf import Source, Term, comparisons, demonstrations, exact, fit_jointly, fit_policy, listed, variational
from irlhf.distillation import Distillation
from irlhf.errors import ConfigError
from irlhf.objective import Normal
from irlhf.proximal import control
from irlhf.randomness import Key
from irlhf.rewards import Implicit
from irlhf.saddle import Contrast, Saddle
from irlhf.storage.rundir import open_run
from irlhf.worlds import gym
from irlhf.worlds.gym import (
    ConstantReward,
    Episode,
    GymPolicy,
    GymWorld,
    LinearReward,
    NeuralReward,
    PaidReward,
    clone,
    energy_distance,
    gap_from_below,
    judged,
    returns,
)
from tests.worlds.gym.envs import Numbers, Once, corridor
from tests.worlds.gym.test_world import CUT, GONE

NOBODY = torch.empty(0, 2)  # nobody's episode ended
QUICK = {"copies": 4, "steps": 8, "epochs": 2, "minibatch": 16}


def corridor_world(**more):
    return GymWorld(corridor(end=3, limit=5), **more)


class TestRewards:
    @pytest.mark.parametrize("on", ["state", "state_action", "next_state", "transition"])
    def test_a_step_depends_on_what_it_may_and_on_nothing_else(self, on):
        world = corridor_world()
        reward = NeuralReward(world, on=on)
        batch = world.collate([None], [GONE])
        reads = {"obs": on != "next_state", "next_obs": on in ("next_state", "transition")}
        reads["action"] = on in ("state_action", "transition")
        before = reward.step(batch).detach()
        for name, matters in reads.items():
            from dataclasses import replace

            values = getattr(batch, name).clone()
            values[1] = 1 - values[1] if name == "action" else values[1] + 1
            after = reward.step(replace(batch, **{name: values})).detach()
            assert bool(after[1] != before[1]) == matters, name
            assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])

    def test_the_end_and_the_time_after_it_are_told_apart(self):
        world = corridor_world()
        reward = NeuralReward(world)
        steps = reward.step(world.collate([None, None], [GONE, CUT])).detach()
        same_place = NeuralReward.step(reward, world.collate([None], [GONE.part(0, 3)])).detach()
        assert steps[3] != steps[2]  # over, and ending
        assert (steps[:3] - same_place[:3]).abs().max() < 1e-6

    @pytest.mark.parametrize("on", ["state", "state_action", "next_state", "transition"])
    def test_ends_are_told_apart_only_where_some_were_seen(self, on):
        elsewhere = Episode(GONE.obs + 1, GONE.acts, True)  # ends in another place
        for seen, given, apart in (
            (None, None, True), ([CUT, GONE], None, True), ([CUT], None, False), ([CUT], True, True),
            ([GONE], False, False),
        ):  # fmt: skip
            reward = NeuralReward(corridor_world(seen=seen), on=on, ends=given)
            batch = corridor_world().collate([None, None], [GONE, elsewhere])
            steps = reward.step(batch).detach()
            one, other = steps[batch.absorbing]
            assert bool(one != other) == apart
            one, other = steps[batch.terminated]
            assert one != other  # the step that ends it says where it led, all the same

    def test_shaping_adds_up_to_the_ends_of_an_episode(self):
        world = corridor_world()
        plain, shaped = NeuralReward(world, seed=3), NeuralReward(world, seed=3, shaping=True)
        batch = world.collate([None, None], [GONE, CUT])
        phi = lambda obs: shaped.potential(shaped.standardize(torch.tensor([obs]))).item()  # noqa: E731
        added = (shaped(batch) - plain(batch)).detach()
        assert added[0].item() == pytest.approx(-phi([0.0, 1.0]), abs=1e-5)
        assert added[1].item() == pytest.approx(phi([2.0, 1.0]) - phi([0.0, 1.0]), abs=1e-5)

    def test_roughness_is_the_square_of_the_slope(self):
        world = corridor_world()
        reward = NeuralReward(world).double()
        batch = world.collate([None], [CUT])
        batch = batch.rows(torch.arange(5))
        reward.inputs = lambda b, own=reward.inputs: own(b).double()  # type: ignore[method-assign]
        found = reward.roughness(batch, batch, torch.full((5, 1), 0.5, dtype=torch.float64)).detach()
        x = reward.inputs(batch)
        by_hand = torch.zeros(5, dtype=torch.float64)
        for k in range(x.shape[1]):
            d = torch.zeros_like(x)
            d[:, k] = 1e-5
            by_hand += ((reward.net(x + d) - reward.net(x - d))[:, 0].detach() / 2e-5) ** 2
        assert found.numpy() == pytest.approx(by_hand.numpy(), rel=1e-6)

    def test_linear_rewards_are_sums_of_features(self):
        world = corridor_world()
        reward = LinearReward(lambda b: torch.stack([b.next_obs[:, 0], b.absorbing.float()], 1), ["place", "over"])
        with torch.no_grad():
            reward.theta.copy_(torch.tensor([1.0, 10.0]))
        steps = reward.step(world.collate([None], [GONE])).tolist()
        assert steps == [1.0, 2.0, 3.0, 13.0]  # who is over stays where it ended
        assert reward(world.collate([None, None], [GONE, CUT])).tolist() == [6.0 + 2 * 13, 7.0]


class TestControl:
    def problem(self, reward, **more):
        world = corridor_world(**more)
        return Distillation(GymPolicy(world), reward, world, [None], temperature=0.1)

    def test_what_lies_beyond_an_end_is_paid_with_the_last_step(self):
        problem = self.problem(ConstantReward(1.0, absorbing=7.0))
        learner = control(discount=0.5, **QUICK)
        draws, _, _ = problem.world.stretch(problem.policy, 20, 8, {}, Key(0))
        batch = draws.batch
        own = batch.decided.nonzero()[:, 0]
        gain, _ = learner._gain(problem, draws, own)
        ratio = (draws.log_q - problem.world.log_base_step(batch))[own]
        left = 5 - (batch.time[own] + 1)
        beyond = torch.where(batch.terminated[own], 7 * (0.5 * (1 - 0.5**left) / 0.5), 0.0)
        assert (gain - (1 - 0.1 * ratio + beyond)).abs().max() < 1e-5
        assert batch.terminated.any() and (left[batch.terminated[own]] > 0).any()

    def test_it_learns_to_stay_where_going_on_ends_it_and_to_go_where_that_pays(self):
        for absorbing, goes in ((-5.0, False), (5.0, True)):
            world = corridor_world()
            policy = GymPolicy(world, seed=1)
            learner = control(copies=8, steps=16, max_steps=25, rate=1e-2, discount=0.9)
            fit_policy(policy, ConstantReward(0.0, absorbing), world, [None], learner=learner, temperature=0.05)
            at = torch.tensor([[2.0, 1.0]])
            p_go = float(policy.log_density(at, torch.tensor([1])).detach().exp())
            assert p_go > 0.9 if goes else p_go < 0.1

    def test_the_soft_optimum_is_reached_in_a_single_state(self):
        """One step, two actions that pay 0 and 1: pi = exp(r/T) / sum, whatever the entropy coefficient."""
        world = GymWorld(Once, horizon=1)
        reward = LinearReward(lambda b: b.action[:, None].float(), ["go"])
        with torch.no_grad():
            reward.theta.fill_(1.0)
        policy = GymPolicy(world)
        learner = control(copies=64, steps=8, max_steps=60, discount=0.9)
        fit_policy(policy, reward, world, [None], learner=learner, temperature=1.0, key=Key(2))
        p = float(policy.log_density(torch.tensor([[0.0, 1.0]]), torch.tensor([1])).detach().exp())
        assert p == pytest.approx(1 / (1 + np.exp(-1)), abs=0.03)

    def test_numbers_are_learned_too(self):
        class Target(Numbers):
            def step(self, action):
                obs, _, _, _, info = super().step(action)
                return obs, -float(((action - np.array([0.5, 1.0])) ** 2).sum()), False, False, info

        world = GymWorld(Target, horizon=10)
        policy = GymPolicy(world)
        before = returns(world, policy).mean()
        learner = control(continuous=True, max_steps=30, copies=8, rate=3e-3)
        fit_policy(policy, PaidReward(), world, [None], learner=learner, temperature=0.01)
        assert returns(world, policy).mean() > before / 10

    def test_a_reward_that_is_not_finite_stops_it(self):
        from irlhf.errors import NonFiniteError

        problem = self.problem(ConstantReward(float("nan")))
        before = problem.theta().clone()
        learner = control(**QUICK, max_steps=2)
        with pytest.raises(NonFiniteError, match="reward"):
            fit_policy(problem.policy, problem.reward, problem.world, [None], learner=learner)
        assert torch.equal(problem.theta(), before)


def walkers(n=3):
    """People who go on until 2 and stay there: they never end it."""
    return [Episode(np.array([[p, 1.0] for p in (0, 1, 2, 2, 2, 2)]), np.array([1, 1, 0, 0, 0]), False)] * n


class TestContrast:
    def contrast(self, how=None, terms=None, **world_more):
        world = corridor_world(**world_more)
        reward = NeuralReward(world, hidden=(8,))
        people = Term(demonstrations(None, walkers()), variational(world, n=4), Source(0.05))
        return Contrast(reward, [people, *(terms(world) if terms else [])], world, how or Saddle(rows=4096)), world

    def test_its_value_is_the_difference_of_the_expectations(self):
        contrast, world = self.contrast(Saddle(rows=20_000, magnitude=0.0, roughness=0))
        draws = world.draw(world.base_policy(), [None], 400, key=Key(1))
        batch, people = draws.batch, contrast.people[0].batch
        played = type(batch).of_columns(batch.columns())
        span = batch.span.double()
        over = float(span[batch.absorbing].sum() / span.sum())
        rng = np.random.default_rng(0)
        rows = torch.from_numpy(rng.integers(0, len(played.obs), 20_000))
        ends = batch.ends()
        at = torch.from_numpy(
            rng.choice(len(ends["span"]), 20_000, p=(ends["span"].double() / ends["span"].double().sum()).numpy())
        )
        value, _ = contrast._value(played.rows(rows), ends["obs"][at], over, 1.0, rng)
        with torch.no_grad():
            step = contrast.reward.step
            expected = step(people).double().mean() - (step(batch).double() * span).sum() / span.sum()
            spread = step(batch).std() + step(people).std()
        assert abs(float(value.detach()) - float(expected)) < 5 * float(spread) / 20_000**0.5

    def test_listed_rows_count_as_their_share_of_the_likelihood(self):
        def pairs(world):
            rows = comparisons([None] * 6, [GONE] * 6, [CUT] * 6, [0] * 6)
            return [Term(rows, listed(world), Source(2.0))]

        contrast, world = self.contrast(Saddle(rows=64, magnitude=0, roughness=0, listed=6), pairs)
        alone, _ = self.contrast(Saddle(rows=64, magnitude=0, roughness=0))
        alone.reward.load_state_dict(contrast.reward.state_dict())
        draws = world.draw(world.base_policy(), [None], 5, key=Key(2))
        played = type(draws.batch).of_columns(draws.batch.columns())
        with_pairs, told = contrast._value(played, NOBODY, 0.0, 1.0, np.random.default_rng(3))
        without, _ = alone._value(played, NOBODY, 0.0, 1.0, np.random.default_rng(3))
        nats = contrast.listed[0].log_prob(contrast.reward).sum().detach()
        per_unit = 3 * 5 / 0.05  # demonstrations times steps over T
        assert float((with_pairs - without).detach()) == pytest.approx(float(nats) / per_unit, rel=1e-4)
        assert told["listed"] == pytest.approx(float(nats) / 6, rel=1e-5)

    def test_longer_episodes_count_for_longer_where_ends_are_not_padded(self):
        contrast, world = self.contrast(Saddle(rows=64, magnitude=0, roughness=0), absorbing=False)
        draws = world.draw(world.base_policy(), [None], 5, key=Key(2))
        played = type(draws.batch).of_columns(draws.batch.columns())
        values = [
            contrast._value(played, NOBODY, 0.0, length, np.random.default_rng(3))[0].detach() for length in (5.0, 10.0)
        ]
        ours = contrast._value(played, NOBODY, 0.0, 5.0, np.random.default_rng(3))[1]
        assert float(values[0] - values[1]) == pytest.approx(ours["played"], rel=1e-4)


class TestJointly:
    def fit(self, run=None, rounds=12, progress=None, terms=None, **more):
        world = corridor_world()
        reward, policy = NeuralReward(world, hidden=(16,)), GymPolicy(world, hidden=(16,), seed=5)
        terms = terms or [Term(demonstrations(None, walkers()), variational(world, n=8), Source(0.05))]
        fit, learned = fit_jointly(
            reward, policy, terms, world, rounds=rounds, learner=control(copies=8, steps=16, rate=1e-2), run=run,
            progress=progress, optimizer=Saddle(rows=64, rate=1e-2), **more,
        )  # fmt: skip
        return fit, learned, world

    def test_the_policy_comes_to_do_what_people_do(self):
        _, learned, world = self.fit(rounds=40)
        batch = world.draw(learned.policy, [None], 100, key=Key(1)).batch
        assert float(batch.absorbing.double().sum()) < 10  # hardly anybody ends it
        assert float((batch.obs[batch.time == 4, 0] == 2).double().mean()) > 0.8

    def test_the_reward_that_is_delivered_is_the_one_of_the_last_rounds(self):
        seen = []
        fit, learned, _ = self.fit(rounds=8, progress=seen.append)
        assert "people" in seen[5] and "people" not in seen[6]
        assert torch.equal(learned.problem.weights.vector(), learned.problem.theta())
        assert fit.saddle and "bound" in fit.summary() and np.isfinite(fit.objective)

    @pytest.mark.parametrize("at", [3, 7])
    def test_killed_and_resumed_it_ends_with_the_same_bits(self, at, tmp_path):
        whole, learned, _ = self.fit(rounds=10)

        class Killed(Exception):
            pass

        def kill(entry):
            if entry["step"] == at:
                raise Killed

        with pytest.raises(Killed), open_run(tmp_path / "run", config={}, data_files=[]) as run:
            self.fit(run=run, rounds=10, progress=kill)
        with open_run(tmp_path / "run", config={}, data_files=[], resume=True) as run:
            again, same, _ = self.fit(run=run, rounds=10)
        assert torch.equal(whole.theta, again.theta)
        assert torch.equal(learned.problem.theta(), same.problem.theta())

    def test_what_it_cannot_do_is_said(self):
        world = corridor_world()
        term = Term(demonstrations(None, walkers()), variational(world, n=2), Source(0.05))
        from irlhf.learners import rloo

        with pytest.raises(ConfigError, match="here the learner is control"):
            fit_jointly(NeuralReward(world), GymPolicy(world), term, world, learner=rloo())

    def test_lengths_that_speak_are_warned_of(self):
        world = corridor_world(absorbing=False)
        term = Term(demonstrations(None, walkers()), variational(world, n=2), Source(0.05))
        learner = control(**QUICK, max_steps=4)
        with pytest.warns(UserWarning, match="not padded"):
            fit, _ = fit_jointly(NeuralReward(world), GymPolicy(world), term, world, learner=learner)
        assert "careful: episodes of different length" in fit.summary()


class TestCloning:
    def test_it_is_the_maximum_of_the_implicit_likelihood(self):
        """The same objective as fit_reward with an implicit reward: no step of L-BFGS gains much."""
        from irlhf import LBFGS, fit_reward

        world = GymWorld("CartPole-v1")
        kept = world.record(lambda obs: int(obs[2] + obs[3] > 0), 3)
        policy = clone(world, kept)
        term = Term(demonstrations(None, kept), exact(world))
        before = float(term.log_prob(Implicit(policy, world)).sum().detach())
        again = GymPolicy(world, seed=3)
        fit = fit_reward(Implicit(again, world), term, optimizer=LBFGS(newton=0, max_steps=60), prior=Normal(sd=10.0))
        assert before > 0.8 * float(fit.log_likelihood.sum())  # both negative, near the maximum
        assert returns(world, policy, 10).mean() > 100

    def test_without_actions_there_is_nothing_to_clone(self):
        world = corridor_world()
        only_seen = Episode(GONE.obs, None, True)
        with pytest.raises(ConfigError, match="no actions"):
            clone(world, demonstrations(None, [only_seen]))


class TestJudging:
    def test_a_policy_is_no_further_from_itself_than_chance(self):
        world = GymWorld("CartPole-v1")
        policy = GymPolicy(world)
        one, other = (world.draw(policy, [None], 40, key=Key(k)).batch for k in (1, 2))
        distance, chance = energy_distance(world, one, other)
        assert abs(distance) < 0.05 and abs(chance) < 0.05
        leaning = world.draw(world.base_policy(), [None], 1, key=Key(3)).batch
        steady = world.collate([None] * 9, world.record(lambda obs: int(obs[2] + obs[3] > 0), 9))
        assert energy_distance(world, steady, one)[0] > 5 * abs(chance)
        assert leaning.n_items == 1

    def test_the_table_has_a_row_for_each(self):
        world = GymWorld("CartPole-v1")
        kept = world.record(lambda obs: int(obs[2] + obs[3] > 0), 4)
        table = judged(world, {"cloning": clone(world, kept), "at random": world.base_policy()}, kept)
        assert table.loc["cloning", "log_likelihood"] > table.loc["at random", "log_likelihood"]
        assert table.loc["at random", "log_likelihood"] == pytest.approx(-np.log(2))
        assert table.loc["cloning", "return"] > table.loc["at random", "return"] + 50
        assert (table["distance"] > table["chance"]).all()

    def test_the_gap_is_never_negative_in_expectation_and_zero_for_no_reward(self):
        world = GymWorld(corridor(end=99, limit=4))
        gap, error = gap_from_below(world, world.base_policy(), ConstantReward(0.0), temperature=1.0)
        assert abs(gap) < 1e-9 and error < 1e-9
        far, _ = gap_from_below(world, world.base_policy(), PaidReward(), temperature=1.0, n=64)
        assert far > 0.1


def test_judging_changes_nothing():
    """Promise 13: the bytes of world, reward and policy are the same after every way to judge them."""
    world = gym.GymWorld("CartPole-v1")
    episodes = world.record(world.base_policy(), 4)
    world = gym.GymWorld("CartPole-v1", seen=episodes)
    policy, reward = gym.GymPolicy(world), gym.NeuralReward(world)

    def state():
        moments = [torch.as_tensor(x).clone() for x in world.moments]
        return [*moments, *(v.clone() for m in (policy, reward) for v in m.state_dict().values())]

    before = state()
    gym.returns(world, policy, 3)
    gym.judged(world, {"policy": policy}, episodes, n=3)
    gym.gap_from_below(world, policy, reward, temperature=0.05, n=4)
    gym.log_likelihood(world, policy, episodes)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
