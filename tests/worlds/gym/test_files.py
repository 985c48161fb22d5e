"""Episodes from files, and rewards and policies used by others."""

import io
import json
import os
import pickle
import zipfile

import gymnasium
import numpy as np
import pytest
import torch

from irlhf.errors import ConfigError, DataError
from irlhf.feedback import TIE
from irlhf.randomness import Key
from irlhf.worlds.gym import (
    ConstantReward,
    Episode,
    Episodes,
    GymWorld,
    NeuralReward,
    RewardWrapper,
    VectorRewardWrapper,
    read,
    save,
)
from tests.worlds.gym.envs import corridor
from tests.worlds.gym.test_world import CUT, GONE

DATA = os.environ.get("IRLHF_DATA", "")
EXPERTS = os.path.join(DATA, "expert_rollouts", "imitation_cartpole.npz")


def npz(path, **arrays):
    np.savez(path, allow_pickle=True, **arrays)
    return path


def flat(**changes):
    arrays = {
        "obs": np.array([[0, 1], [1, 1], [0, 1]], float),
        "next_obs": np.array([[1, 1], [2, 1], [1, 1]], float),
        "acts": np.array([1, 1, 1]),
        "episode": np.array([7, 7, 9]),
        "terminated": np.array([False, True, False]),
        "rewards": np.array([1.0, 2.0, 1.0]),
    }
    return {name: value for name, value in (arrays | changes).items() if value is not None}


class TestArrays:
    def test_what_is_saved_is_read_again(self, tmp_path):
        save(tmp_path / "e.npz", [GONE, CUT])
        for a, b in zip(read(tmp_path / "e.npz").trajectories, [GONE, CUT], strict=True):
            assert np.array_equal(a.obs, b.obs) and np.array_equal(a.acts, b.acts)
            assert a.terminated == b.terminated and np.array_equal(a.rewards, b.rewards)

    @pytest.mark.skipif(not os.path.exists(EXPERTS), reason="the data of imitation are not here")
    def test_the_experts_of_imitation(self):
        feedback = read(EXPERTS)
        episodes = feedback.trajectories
        assert len(feedback) == 57 and episodes.first[-1] == 26_964
        assert episodes.returns().mean() == pytest.approx(473, abs=0.5)
        batch = GymWorld("CartPole-v1").collate([None] * 57, episodes)
        # "terminal" is true of all there; those of 500 steps were ended by the limit of time
        assert int(batch.terminated.sum()) == int((episodes.steps < 500).sum()) > 0

    def test_pickled_objects_are_never_loaded(self, tmp_path):
        class Gadget:
            def __reduce__(self):
                return (os.system, ("touch " + str(tmp_path / "owned"),))

        good = {"obs": np.zeros((3, 2)), "acts": np.zeros(2, int), "terminal": np.array([True])}
        path = npz(tmp_path / "infos.npz", **good, infos=np.array([Gadget(), {}], dtype=object))
        with pytest.warns(UserWarning, match="infos not read: pickled objects are never loaded"):
            assert len(read(path)) == 1
        assert not (tmp_path / "owned").exists()

    def test_one_row_a_step(self, tmp_path):
        episodes = read(npz(tmp_path / "flat.npz", **flat())).trajectories
        assert episodes.steps.tolist() == [2, 1] and episodes.terminated.tolist() == [True, False]
        assert episodes[0].obs[:, 0].tolist() == [0, 1, 2] and episodes[1].obs[:, 0].tolist() == [0, 1]
        assert episodes.ids == ["7", "9"] and episodes.returns().tolist() == [3, 1]
        assert read(npz(tmp_path / "seen.npz", **flat(acts=None))).trajectories.acts is None

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"terminated": np.array([True, False, False])}, "row 0 ends episode 7, but its steps go on"),
            ({"episode": np.array([7, 9, 7])}, "do not stand together"),
            ({"acts": np.zeros(2)}, "field 'acts': 2 rows, but obs has 3"),
            ({"rewards": np.zeros((3, 2))}, "has shape"),
            ({"obs": np.array([["a", "b"]] * 3)}, "not numbers"),
            ({"next_obs": None}, "field 'next_obs': the array is missing"),
        ],
    )
    def test_what_is_wrong_in_rows(self, changes, words, tmp_path):
        with pytest.raises(DataError, match=words):
            read(npz(tmp_path / "flat.npz", **flat(**changes)))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"obs": np.zeros((4, 2))}, "4 rows, but 3 actions in 2 episodes need 5"),
            ({"indices": np.array([5])}, "must rise"),
            ({"indices": np.array([0])}, "episode 0 has no step"),
            ({"terminal": np.array([True])}, "1 entries for 2 episodes"),
            ({"rews": np.zeros(7)}, "one number for each of 3 steps"),
        ],
    )
    def test_what_is_wrong_in_imitation_s_shape(self, changes, words, tmp_path):
        good = {"obs": np.zeros((5, 2)), "acts": np.zeros(3, int), "indices": np.array([2])}
        good["terminal"] = np.array([True, False])
        with pytest.raises(DataError, match=words):
            read(npz(tmp_path / "e.npz", **good | changes))

    def test_a_header_that_promises_more_than_there_is(self, tmp_path):
        path = tmp_path / "bomb.npz"
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 4)})
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("obs.npy", header.getvalue())
        with pytest.raises(DataError, match="its header says"):
            read(path)

    def test_damaged_files_are_refused_in_a_sentence(self, tmp_path):
        save(tmp_path / "good.npz", [GONE, CUT])
        data = (tmp_path / "good.npz").read_bytes()
        rng = np.random.default_rng(0)
        read_well = 0
        for _ in range(400):
            bad = bytearray(data)
            for _ in range(int(rng.integers(1, 6))):
                bad[int(rng.integers(len(bad)))] = int(rng.integers(256))
            if rng.random() < 0.3:
                bad = bad[: int(rng.integers(len(bad)))]
            (tmp_path / "bad.npz").write_bytes(bytes(bad))
            try:
                read(tmp_path / "bad.npz")
                read_well += 1
            except DataError:
                pass
        assert read_well < 400
        (tmp_path / "bad.npz").write_bytes(pickle.dumps({"obs": 1}))
        with pytest.raises(DataError, match=r"not a readable \.npz"):
            read(tmp_path / "bad.npz")
        with pytest.raises(DataError, match="no such file"):
            read(tmp_path / "none.npz")


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ONE = {"obs": [[0, 1], [1, 1], [2, 1]], "acts": [1, 1], "terminated": False}


class TestLines:
    def test_episodes_and_parts_of_them_compared(self, tmp_path):
        save(tmp_path / "e.npz", [GONE, CUT])
        path = written(
            tmp_path / "f.jsonl",
            {"trajectory": ONE, "person": "ann"},
            {"shown": [{"file": "e.npz", "episode": 0, "start": 1, "stop": 4}, ONE], "chosen": "tie"},
            {"shown": [ONE, {"file": "e.npz", "episode": 1}], "chosen": 1},
            {"trajectory": {**ONE, "acts": None, "rewards": [1, 2]}, "level": True},
        )
        feedback = read(path, ties=True)
        assert [int(k) for k in feedback.kind] == [0, 1, 1, 2]
        part = feedback[1].shown[0]
        assert feedback[1].chosen is TIE and len(part) == 2 and part.terminated and part.length == 3
        assert feedback[2].shown[1].length is None and len(feedback[2].shown[1]) == 5
        assert feedback[3].trajectory.acts is None and feedback[3].trajectory.rewards.tolist() == [1, 2]
        assert feedback[0].person == "ann"

    @pytest.mark.parametrize(
        ("episode", "words"),
        [
            ({**ONE, "terminated": None}, "terminated is None"),
            ({**ONE, "obs": [[0, 1]]}, "fewer than two"),
            ({**ONE, "obs": [[0, 1], [0], [1, 1]]}, "differ in length"),
            ({**ONE, "obs": [[0, 1], [0, "x"], [1, 1]]}, "among its numbers"),
            ({**ONE, "acts": [1]}, "acts has 1 entries for 2 steps"),
            ({**ONE, "length": 1}, "length is 1"),
            ({**ONE, "action": [1]}, "no field"),
            ({"file": "e.npz", "episode": 5}, "has 0 to 1"),
            ({"file": "e.npz", "episode": 0, "start": 3}, "no part of 3 steps"),
            ({"file": "none.npz", "episode": 0}, "no such file"),
            ([1], "write an episode"),
        ],
    )
    def test_what_is_wrong_is_named_with_its_line(self, episode, words, tmp_path):
        save(tmp_path / "e.npz", [GONE, CUT])
        with pytest.raises(DataError, match=f"line 2.*{words}"):
            read(written(tmp_path / "f.jsonl", {"trajectory": ONE}, {"trajectory": episode}))


def test_minari_datasets(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "set" / "data").mkdir(parents=True)
    with h5py.File(tmp_path / "set" / "data" / "main_data.hdf5", "w") as file:
        for k, e in enumerate([GONE, CUT] * 6):
            group = file.create_group(f"episode_{k}")
            ends = np.zeros(len(e), bool)
            ends[-1] = e.terminated
            cut = np.zeros(len(e), bool)
            cut[-1] = not e.terminated
            columns = {"observations": e.obs, "actions": e.acts, "rewards": e.rewards}
            for name, values in {**columns, "terminations": ends, "truncations": cut}.items():
                group[name] = values
    episodes = read(tmp_path / "set").trajectories
    assert len(episodes) == 12 and episodes.terminated.tolist() == [True, False] * 6
    assert np.array_equal(episodes[10].obs, GONE.obs) and episodes.ids[10] == "10"
    with pytest.raises(DataError, match="no Minari dataset"):
        read(tmp_path)
    (tmp_path / "x.h5").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "x.h5")


class TestWrappers:
    def world(self):
        world = GymWorld(corridor())
        return world, NeuralReward(world, on="transition")

    def test_it_pays_what_the_reward_says_and_the_time_after_an_end(self):
        world, reward = self.world()
        env = RewardWrapper(corridor()(), world, reward, discount=0.9)
        env.reset(seed=0)
        paid = [env.step(1)[1] for _ in range(3)]
        steps = reward.step(world.collate([None], [GONE])).detach().double()
        assert paid[:2] == pytest.approx(steps[:2].tolist(), abs=1e-6)
        assert paid[2] == pytest.approx(float(steps[2] + steps[3] * (0.9 + 0.81)), abs=1e-6)
        env.reset()
        assert env.step(1)[4]["paid"] == 1.0

    def test_many_at_once_are_paid_alike(self):
        world, reward = self.world()
        one = RewardWrapper(corridor()(), world, reward)
        many = VectorRewardWrapper(gymnasium.vector.SyncVectorEnv([corridor()] * 3), world, reward)
        one.reset(seed=0)
        many.reset(seed=0)
        rng, over = np.random.default_rng(1), False
        for _ in range(30):
            action = int(rng.integers(2))
            _, paid, terminated, truncated, _ = many.step(np.full(3, action))
            if over:
                one.reset()
                assert (paid == 0).all()
                over = False
                continue
            _, alone, *ended, _ = one.step(action)
            over = any(ended)
            assert paid == pytest.approx(np.full(3, alone), abs=1e-6)
            assert terminated.any() == ended[0] and truncated.any() == ended[1]

    def test_stable_baselines3_learns_on_it(self):
        sb3 = pytest.importorskip("stable_baselines3")
        world = GymWorld("CartPole-v1")
        env = RewardWrapper(gymnasium.make("CartPole-v1"), world, ConstantReward(1.0, absorbing=0.0))
        model = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, device="cpu", seed=0)
        model.learn(128)
        kept = world.record(lambda obs: int(model.predict(obs, deterministic=True)[0]), 2)
        assert len(kept) == 2

    def test_a_discount_that_is_none(self):
        world, reward = self.world()
        with pytest.raises(ConfigError, match="discount"):
            RewardWrapper(corridor()(), world, reward, discount=1.5)


def test_segments_are_compared_by_their_partial_returns():
    from irlhf import Source, Term, comparisons, listed

    world = GymWorld(corridor())
    rows = comparisons([None], [GONE.part(0, 2)], [CUT.part(3, 5)], [0])
    reward = NeuralReward(world)
    term = Term(rows, listed(world), Source(2.0))
    a, b = (reward.step(world.collate([None], [e])).sum() for e in (GONE.part(0, 2), CUT.part(3, 5)))
    expected = torch.nn.functional.logsigmoid((a - b) / 2.0)
    assert term.log_prob(reward).item() == pytest.approx(float(expected.detach()), abs=1e-5)


def test_what_was_recorded_can_be_saved_and_learned_from(tmp_path):
    world = GymWorld("Pendulum-v1")
    kept = world.record(world.base_policy(), 2, key=Key(3))
    save(tmp_path / "p.npz", kept)
    again = read(tmp_path / "p.npz").trajectories
    assert isinstance(again, Episodes) and np.allclose(again.acts, kept.acts)
    assert again.returns() == pytest.approx(kept.returns())
    assert isinstance(again[0], Episode)
