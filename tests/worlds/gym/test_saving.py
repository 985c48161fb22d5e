"""Rewards and policies of environments as files."""

import numpy as np
import pytest
import torch

from irlhf import fit_policy
from irlhf.errors import CheckpointError, ConfigError
from irlhf.proximal import control
from irlhf.rewards import Ensemble
from irlhf.storage.checkpoint import encode_tensors
from irlhf.worlds.gym import (
    ConstantReward,
    Episode,
    GymPolicy,
    GymWorld,
    LinearReward,
    NeuralReward,
    RewardWrapper,
    UniformPolicy,
    load_policy,
    load_reward,
    save_policy,
    save_reward,
)
from tests.worlds.gym.envs import Numbers, corridor
from tests.worlds.gym.test_world import CUT, GONE


def world_of(limit=5, **more):
    return GymWorld(corridor(end=3, limit=limit), **more)


def other_world():
    """The same observations and actions, seen elsewhere: moments and discount differ."""
    far = Episode(GONE.obs * 7 + 1, GONE.acts, True)
    return world_of(seen=[far], discount=0.5)


def test_ends_that_are_one_state_stay_so(tmp_path):
    """Whoever loads a reward may have seen other episodes than whoever fitted it."""
    for seen in ([CUT], [GONE]):
        kept = NeuralReward(world_of(seen=seen))
        save_reward(kept, world_of(seen=seen), tmp_path)
        for world in (world_of(), world_of(seen=[CUT]), other_world()):
            assert bool(load_reward(tmp_path, world).ends) == bool(kept.ends) == (seen == [GONE])


def numbers():
    return GymWorld(Numbers, horizon=6)


def shaken(module, seed=0):
    """No weight as it was made, so that nothing is right by being made anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor += torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return module


@pytest.mark.parametrize("on", ["state", "state_action", "next_state", "transition"])
@pytest.mark.parametrize("shaping", [False, True])
def test_a_reward_comes_back_in_another_world_of_the_same_kind(tmp_path, on, shaping):
    world = world_of(seen=[GONE, CUT])
    reward = shaken(NeuralReward(world, on=on, hidden=(5, 3), shaping=shaping))
    save_reward(reward, world, tmp_path)
    elsewhere = other_world()
    again = load_reward(tmp_path, elsewhere)
    batch = world.collate([None, None], [GONE, CUT])
    assert torch.equal(again.step(batch), reward.step(batch))
    fresh = NeuralReward(elsewhere, on=on, hidden=(5, 3), shaping=shaping)
    assert not torch.equal(fresh.step(batch), reward.step(batch))


def test_an_ensemble_comes_back_with_its_spread_and_is_paid_by_steps(tmp_path):
    world = world_of(seen=[GONE, CUT])
    reward = Ensemble(shaken(NeuralReward(world, seed=k, on=on), k) for k, on in enumerate(("state", "next_state")))
    save_reward(reward, world, tmp_path)
    again = load_reward(tmp_path, world)
    batch = world.collate([None, None], [GONE, CUT])
    assert isinstance(again, Ensemble)
    assert torch.equal(again(batch), reward(batch)) and torch.equal(again.spread(batch), reward.spread(batch))
    torch.testing.assert_close(batch.sum(again.step(batch)), again(batch))
    env = RewardWrapper(corridor(end=3, limit=5)(), world, again, discount=1)
    env.reset(seed=0)
    paid, over = 0.0, False
    while not over:
        _, own, terminated, truncated, _ = env.step(1)
        paid, over = paid + own, terminated or truncated
    assert terminated
    assert paid == pytest.approx(float(again(batch)[0].detach()), rel=1e-5)  # GONE: three steps to the right


def test_an_ensemble_of_one_stays_an_ensemble(tmp_path):
    world = world_of()
    save_reward(Ensemble([NeuralReward(world)]), world, tmp_path)
    assert isinstance(load_reward(tmp_path, world), Ensemble)


def test_a_policy_learns_from_an_ensemble():
    """One member would have it go on to the end and the other would not; their mean would."""
    world = world_of()
    reward = Ensemble([ConstantReward(0.0, absorbing=12.0), ConstantReward(0.0, absorbing=-2.0)])
    policy = GymPolicy(world, seed=1)
    learner = control(copies=8, steps=16, max_steps=25, rate=1e-2, discount=0.9)
    fit_policy(policy, reward, world, [None], learner=learner, temperature=0.05)
    goes = policy.log_density(torch.tensor([[2.0, 1.0]]), torch.tensor([1])).detach().exp()
    assert float(goes) > 0.9


def test_a_linear_reward_needs_its_features_again(tmp_path):
    world = world_of()
    reward = shaken(LinearReward(lambda batch: batch.obs, ["place", "one"]))
    save_reward(reward, world, tmp_path)
    with pytest.raises(ConfigError, match="linear in place, one; give features="):
        load_reward(tmp_path, world)
    again = load_reward(tmp_path, world, features=lambda batch: batch.obs)
    assert torch.equal(again.theta, reward.theta) and again.names == ["place", "one"]


@pytest.mark.parametrize("make", [lambda: world_of(seen=[GONE, CUT]), numbers])
def test_a_policy_comes_back(tmp_path, make):
    world = make()
    policy = shaken(GymPolicy(world, hidden=(7,)))
    save_policy(policy, world, tmp_path)
    again = load_policy(tmp_path, make())
    obs = torch.randn(20, world.spaces.observation_size, generator=torch.Generator().manual_seed(3))
    noise = policy.noise(np.random.default_rng(0), (20,))
    for mine, theirs in zip(policy.act(obs, noise), again.act(obs, noise), strict=True):
        assert torch.equal(mine, theirs)


def test_another_environment_is_refused_and_says_why(tmp_path):
    world = numbers()
    save_reward(NeuralReward(world), world, tmp_path)
    save_policy(GymPolicy(world), world, tmp_path)
    for load in (load_reward, load_policy):
        with pytest.raises(CheckpointError, match=r"observation size 3, here 2.*discrete False, here True"):
            load(tmp_path, world_of())


def test_a_policy_of_a_run_with_other_bounds_is_refused(tmp_path):
    """A run keeps the tensors alone: the reach of actions is among them."""
    world = numbers()
    kept = GymPolicy(world).state_dict()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "policy.safetensors").write_bytes(encode_tensors(kept, {"world": "gym"}))
    assert torch.equal(load_policy(tmp_path, world).log_sd, kept["log_sd"])
    wider = {**kept, "half_range": 2 * kept["half_range"]}
    (tmp_path / "policy.safetensors").write_bytes(encode_tensors(wider, {"world": "gym"}))
    with pytest.raises(CheckpointError, match="its actions reach other bounds"):
        load_policy(tmp_path, world)


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    world = world_of()
    with pytest.raises(ConfigError, match="a ConstantReward cannot be saved"):
        save_reward(ConstantReward(1.0), world, tmp_path / "new")
    with pytest.raises(ConfigError, match="a ConstantReward cannot be saved"):
        save_reward(Ensemble([NeuralReward(world), ConstantReward(1.0)]), world, tmp_path / "new")
    with pytest.raises(ConfigError, match="a UniformPolicy cannot be saved"):
        save_policy(UniformPolicy(world), world, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a run, which keeps a policy"):
        save_policy(GymPolicy(world), world, tmp_path)
    assert not (tmp_path / "policy.safetensors").exists()


def test_a_damaged_file_is_named(tmp_path):
    world = world_of()
    with pytest.raises(CheckpointError, match=r"reward\.safetensors cannot be read"):
        load_reward(tmp_path, world)
    save_reward(NeuralReward(world), world, tmp_path)
    file = tmp_path / "reward.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"reward\.safetensors is damaged"):
        load_reward(tmp_path, world)
    forged = {"format": 1, "environment": "e", "ensemble": True, "members": []}
    file.write_bytes(encode_tensors({}, forged))
    with pytest.raises(CheckpointError, match="members: List should have at least 1 item"):
        load_reward(tmp_path, world)
    save_policy(GymPolicy(world), world, tmp_path)
    (tmp_path / "policy.safetensors").rename(file)
    with pytest.raises(CheckpointError, match="is not one that this version can read: ensemble"):
        load_reward(tmp_path, world)
