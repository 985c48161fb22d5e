"""The command line with an environment: fit, resume, score, evaluate, distill."""

import json

import pytest
import torch
from typer.testing import CliRunner

from irlhf.cli import make_app
from irlhf.errors import CheckpointError
from irlhf.randomness import Key
from irlhf.storage.checkpoint import read_tensors
from irlhf.worlds.gym import Episodes, GymWorld, load_policy, load_reward, read, returns, save


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = GymWorld("CartPole-v1")
    steady = world.record(lambda seen: int(seen[2] + seen[3] > 0), 4)
    save("people.npz", steady)
    save("all.npz", Episodes.concatenate([steady, world.record(world.base_policy(), 4)]))
    rows = [
        {"shown": [{"file": "all.npz", "episode": k}, {"file": "all.npz", "episode": 4 + k, "start": 0, "stop": 9}],
         "chosen": 0}
        for k in range(4)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def irlhf(*arguments, code=0):
    done = CliRunner().invoke(make_app("gym"), [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_from_files_to_a_policy(data):
    how = ("--world", "gym", "--env", "CartPole-v1", "--rounds", "4", "--no-report")
    irlhf(
        "fit", *how, "--demonstrations", "people.npz", "--choices", "pairs.jsonl", "--holdout", "0.25", "--out", "run"
    )
    found = json.loads((data / "run" / "result.json").read_text())
    assert found["status"] == "DONE" and "demonstrations" in found["bound"]
    assert list(found["log_likelihood"]) == ["comparisons"]
    assert {"policy", "cloning"} <= set(found["held_out"]["demonstrations"])
    scores = [json.loads(line) for line in irlhf("score", "run", "all.npz").splitlines() if line.startswith("{")]
    assert [one["steps"] for one in scores] and all("score" in one for one in scores) and len(scores) == 8
    assert "model" in irlhf("evaluate", "run", "pairs.jsonl")
    said = irlhf("distill", "run", "--steps", "1", "--out", "policy")
    world, episodes = GymWorld("CartPole-v1"), read("all.npz").trajectories
    with torch.no_grad():
        again = load_reward("run", world)(world.collate([None] * 8, episodes))
    assert again.tolist() == [one["score"] for one in scores]
    for folder in ("run", "policy"):
        kept, _ = read_tensors(data / folder / "policy.safetensors")
        policy = load_policy(folder, world).state_dict()
        assert policy.keys() == kept.keys() and all(torch.equal(policy[name], kept[name]) for name in kept)
    kept = json.loads((data / "policy" / "result.json").read_text())
    key = Key(0).at("judge").at("likeliest")
    assert kept["likeliest"]["return"] == returns(world, load_policy("policy", world), kept["draws"], key=key).mean()
    assert (
        f"the likeliest action each time, as policies are compared by custom: {kept['likeliest']['return']:.4f}" in said
    )
    assert kept["likeliest"]["return"] != kept["policy"]["return"]
    with pytest.raises(CheckpointError, match="of another model"):
        load_reward("run", GymWorld("Acrobot-v1"))
    (data / "run" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json is not one that this version can read"):
        load_reward("run", world)


def test_lengths_that_speak_are_in_the_status(data):
    irlhf("fit", "--world", "gym", "--env", "CartPole-v1", "--rounds", "4", "--no-report", "--no-absorbing",
          "--demonstrations", "people.npz", "--out", "run")  # fmt: skip
    assert "not padded" in json.loads((data / "run" / "status.json").read_text())["careful"][0]
