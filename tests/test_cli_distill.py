"""``irlhf distill`` from end to end: the numbers of the library, sentences for errors, killed and resumed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from irlhf.cli import finished, policies
from irlhf.learners import rloo
from irlhf.policy_fit import fit_policy
from irlhf.randomness import Key
from irlhf.storage.checkpoint import load_checkpoint, read_tensors
from irlhf.storage.rundir import digest, open_run, read_metrics
from irlhf.worlds.tabular import SoftmaxPolicy, SoftPolicy, Start
from tests.cli_data import irlhf, write_replacement, write_routes
from tests.toy_driver import count_calls, in_child

QUICK = ("--steps", 6, "--draws", 4, "--best-of", 2)


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """One thread, and no waiting for the disk: a kill does not lose what the system has taken over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with three finished runs: ``buses`` (stochastic, discounted), ``trips`` (a network), ``games``."""
    folder = tmp_path_factory.mktemp("data")
    write_replacement(folder)
    write_routes(folder)
    panel = ["fit", "--no-report", "--panel", folder / "panel.csv", "--features", folder / "features.csv"]
    assert irlhf(*panel, "--discount", 0.9, "--out", folder / "buses") == 0
    assert irlhf(*panel, "--horizon", 25, "--out", folder / "games") == 0
    trips = ["--panel", folder / "trips.csv", "--features", folder / "links.csv", "--destinations"]
    assert irlhf("fit", "--no-report", *trips, "--out", folder / "trips") == 0
    return folder


def result_of(path):
    return json.loads((path / "result.json").read_text())


# ------------------------------------------------------------------------------------------------ what it does, leaves


def test_the_numbers_of_the_library(data, tmp_path, capsys):
    path = tmp_path / "policy"
    assert irlhf("distill", data / "trips", *QUICK, "--seed", 3, "--out", path) == 0
    job = finished.reopen(data / "trips")
    world, reward = job.setup.world, job.reward
    seen = pd.read_csv(data / "trips.csv")
    ends = dict.fromkeys(
        (f"{g.state.iloc[0]}", f"{g.next_state.iloc[-1]}") for _, g in seen.groupby("trajectory", sort=False)
    )
    contexts = [Start(*pair) for pair in ends]
    policy = SoftmaxPolicy(world, contexts=list(dict.fromkeys(x.destination for x in contexts)))
    key = Key(3).at("distill")
    fit = fit_policy(policy, reward, world, contexts, learner=rloo(4, max_steps=6), key=key)
    tensors, info = read_tensors(path / "policy.safetensors")
    assert torch.equal(tensors["logits"], policy.logits) and info["temperature"] == 1
    assert [row["objective"] for row in read_metrics(path)[1:]] == fit.trace["objective"][1:].tolist()
    found, capture = result_of(path), capsys.readouterr()
    assert found["contexts"] == len(contexts) and found["steps"] == 6
    assert found["exact"]["gap"] == pytest.approx(fit.gap().mean(), abs=1e-9)
    assert found["best_of"]["kl_bound"] == pytest.approx(np.log(2) - 1 / 2)
    for word in ("objective", "reward", "KL to mu", "log Z", "gap", "effective share", "Best of 2 draws", "Exactly"):
        assert word in capture.out
    assert f"{found['policy']['reward']:.4f}" in capture.out
    assert all(f"careful: {alarm}" in capture.out for alarm in found["alarms"])
    table = pd.read_csv(path / "policy.csv")
    assert list(table) == ["destination", "state", "action", "probability"]
    own = table[table.destination == contexts[0].destination].probability.to_numpy()
    np.testing.assert_allclose(own, policy.log_policy()[0].exp().detach(), rtol=0, atol=1e-12)


def test_a_world_with_a_discount(data, tmp_path, capsys):
    path = tmp_path / "policy"
    assert irlhf("distill", data / "buses", "--steps", 150, "--draws", 16, "--out", path) == 0
    screen = capsys.readouterr().out
    found = result_of(path)
    assert "left out" in screen and "log Z  " not in screen and "nan" not in screen.lower()
    assert 0 <= found["exact"]["gap"] < 0.1
    assert found["policy"]["objective"] == pytest.approx(found["exact"]["attained"], abs=0.5)
    table = pd.read_csv(path / "policy.csv")
    assert list(table) == ["state", "action", "probability"]
    np.testing.assert_allclose(table.groupby("state").probability.sum(), 1, atol=1e-12)
    job = finished.reopen(data / "buses")
    best = SoftPolicy(job.setup.world.solve(job.reward)).log_prob(job.setup.world.table("pairs")).exp()
    visited = table.state.isin([0, 1, 2]).to_numpy()
    assert np.abs(table.probability - best.detach().numpy())[visited].max() < 0.2


def test_a_world_with_a_horizon(data, tmp_path):
    path = tmp_path / "policy"
    flags = ["--steps", 3, "--draws", 2, "--start", 0, "--start", 5, "--out", path]
    assert irlhf("distill", data / "games", *flags) == 0
    table = pd.read_csv(path / "policy.csv")
    assert list(table) == ["time", "state", "action", "probability"] and table.time.max() == 24
    assert json.loads((path / "config.json").read_text())["contexts"] == [[0], [5]]


@pytest.mark.parametrize("learner", ["reinforce", "grpo", "ppo", "actor-critic"])
def test_every_learner(data, tmp_path, learner):
    assert irlhf("distill", data / "buses", *QUICK, "--learner", learner, "--out", tmp_path / "policy") == 0
    assert result_of(tmp_path / "policy")["learner"] == learner


def test_the_temperature_is_that_of_the_demonstrations(data, tmp_path):
    (tmp_path / "buses.toml").write_text(
        f"panel = {str(data / 'panel.csv')!r}\nfeatures = {str(data / 'features.csv')!r}\ndiscount = 0.9\n"
        "[sources.demonstrations]\ntemperature = 2.0\n"
    )
    assert irlhf("fit", tmp_path / "buses.toml", "--no-report", "--out", tmp_path / "run") == 0
    assert irlhf("distill", tmp_path / "run", *QUICK, "--out", tmp_path / "policy") == 0
    assert result_of(tmp_path / "policy")["temperature"] == 2
    assert irlhf("distill", tmp_path / "run", *QUICK, "--temperature", 0.5, "--out", tmp_path / "cold") == 0
    assert result_of(tmp_path / "cold")["temperature"] == 0.5


def test_without_the_files_of_the_fit(data, tmp_path, capsys):
    write_replacement(tmp_path)
    files = ["--panel", tmp_path / "panel.csv", "--features", tmp_path / "features.csv"]
    assert irlhf("fit", *files, "--discount", 0.9, "--no-report", "--out", tmp_path / "run") == 0
    assert irlhf("distill", tmp_path / "run", *QUICK, "--out", tmp_path / "first") == 0
    (tmp_path / "panel.csv").unlink()
    assert irlhf("distill", "--resume", tmp_path / "first") == 0  # it knows its contexts
    assert irlhf("distill", tmp_path / "run", *QUICK, "--out", tmp_path / "second") == 0
    assert "panel.csv is not where the fit found it" in capsys.readouterr().err
    world = finished.reopen(tmp_path / "run").setup.world
    assert result_of(tmp_path / "second")["contexts"] == len(world.states)


def test_alarms_are_on_the_screen(data, tmp_path, capsys):
    path = tmp_path / "policy"
    assert irlhf("distill", data / "trips", "--steps", 1, "--draws", 2, "--temperature", 0.1, "--out", path) == 0
    screen = capsys.readouterr().out
    found = result_of(path)
    assert found["policy"]["k_hat"] > 0.7 and "careful: the weights have a heavy tail" in screen
    assert sum(found["log_z_verdicts"].values()) == found["contexts"] > found["log_z_verdicts"].get("reliable", 0)
    assert irlhf("distill", data / "games", "--steps", 1, "--draws", 2, "--out", tmp_path / "luck") == 0
    assert "careful" not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- refusals

REFUSALS = [
    ([], "nothing says what to distill; give a run"),
    (["nowhere"], "nowhere is not a run of irlhf fit"),
    (["RUN", "--learner", "rlo"], "--learner is 'rlo'"),
    (["RUN", "--learner", "expected"], "choose another --learner"),
    (["RUN", "--learner", "expected", "--draws", "4"], "leave out --draws"),
    (["RUN", "--draws", "1"], "--draws is 1"),
    (["RUN", "--steps", "0"], "--steps is 0"),
    (["RUN", "--rate", "nan"], "--rate is nan"),
    (["RUN", "--temperature", "-1"], "--temperature is -1"),
    (["RUN", "--best-of", "0"], "--best-of is 0"),
    (["RUN", "--seed", "-1"], "--seed is -1"),
    (["RUN", "--steps", "many"], "--steps"),
    (["RUN", "--start", "99"], "99 is not a state of this world"),
    (["RUN", "--start", ""], "--start"),
    (["RUN", "--steps", "2", "--steps", "3"], "given more than once"),
    (["--resume"], "there is no policy in the folder runs to resume"),
    (["--resume", "RUN"], "is not a policy of irlhf distill"),
    (["--speed"], "has no flag --speed"),
]


@pytest.mark.parametrize(("line", "sentence"), REFUSALS)
def test_refused_in_one_sentence(data, tmp_path, monkeypatch, capsys, line, sentence):
    monkeypatch.chdir(tmp_path)
    line = [str(data / "buses") if word == "RUN" else word for word in line]
    assert irlhf("distill", *line) == 2
    screen = capsys.readouterr()
    assert sentence in " ".join(screen.err.split()) and "Traceback" not in screen.err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_policy_is_no_run_and_a_run_no_policy(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert irlhf("distill", data / "buses", *QUICK) == 0
    path = tmp_path / "runs" / "buses-policy"
    assert path.is_dir()
    for line in (["report", path], ["distill", path], ["fit", "--resume", path]):
        assert irlhf(*line) == 2
        assert "is a policy that irlhf distill made" in capsys.readouterr().err
    assert irlhf("fit", "--resume") == 2  # the newest run is not the newest policy
    assert "there is no run in the folder runs" in capsys.readouterr().err
    assert irlhf("distill", data / "buses", *QUICK) == 0  # numbered
    assert (tmp_path / "runs" / "buses-policy-2").is_dir()
    assert irlhf("distill", "--resume") == 0
    assert "buses-policy-2" in capsys.readouterr().err


def test_what_a_resumed_policy_may_not_change(data, tmp_path, capsys):
    path = tmp_path / "policy"
    assert irlhf("distill", data / "buses", *QUICK, "--out", path) == 0
    before = digest(path)
    assert irlhf("distill", "--resume", path, "--steps", 7) == 2
    assert "steps was 6, is 7" in capsys.readouterr().err
    assert irlhf("distill", "--resume", path, "--best-of", 4) == 0
    assert result_of(path)["best_of"]["n"] == 4
    assert digest(path) == before
    (path / "config.json").write_text('{"learner": 3, "run": 4}')
    assert irlhf("distill", "--resume", path) == 2
    assert "config.json" in capsys.readouterr().err


def test_another_reward_is_refused(data, tmp_path, capsys):
    shutil.copytree(data / "buses", tmp_path / "run")
    assert irlhf("distill", tmp_path / "run", *QUICK, "--out", tmp_path / "policy") == 0
    shutil.copy(data / "games" / "reward.safetensors", tmp_path / "run" / "reward.safetensors")
    assert irlhf("distill", "--resume", tmp_path / "policy") == 2
    assert "began with other data" in capsys.readouterr().err


def test_one_writer(data, tmp_path, capsys):
    path = tmp_path / "policy"
    assert irlhf("distill", data / "buses", *QUICK, "--out", path) == 0
    with open_run(path, data_files=[data / "buses" / f"{x}.safetensors" for x in ("reward", "world")], resume=True):
        assert irlhf("distill", "--resume", path) == 2
    assert "is in use by process" in capsys.readouterr().err


def test_help_fits_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert irlhf("distill", "--help") == 0
    screen = capsys.readouterr().out
    assert "irlhf distill runs/buses" in screen and "--learner" in screen
    assert max(map(len, screen.splitlines())) <= 80


def test_a_reward_that_is_not_finite(data, tmp_path, monkeypatch, capsys):
    """One sentence that names contexts; the checkpoint on the disk is finite."""
    genuine = policies.fit_policy

    def broken(policy, reward, *rest, **how):
        step = reward.step
        monkeypatch.setattr(reward, "step", lambda batch: torch.where(batch.state == 3, torch.nan, step(batch)))
        return genuine(policy, reward, *rest, **how)

    monkeypatch.setattr(policies, "fit_policy", broken)
    path = tmp_path / "policy"
    assert irlhf("distill", data / "buses", *QUICK, "--out", path) == 2
    assert "the reward of draws is not finite from 0; no parameter was changed" in capsys.readouterr().err
    tensors = load_checkpoint(path / "checkpoint").tensors
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    assert json.loads((path / "status.json").read_text())["state"] == "failed"


# ---------------------------------------------------------------------------------------------------- kill and resume


def distill(data, path, learner, *more):
    code = irlhf("distill", data / "buses", *QUICK, "--learner", learner, "--out", path, "--resume", *more)
    if code:
        raise SystemExit(code)


def same(path, whole):
    assert digest(path) == digest(whole)
    for name in ("result.json", "policy.csv"):
        assert (path / name).read_bytes() == (whole / name).read_bytes()


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Policies that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    for learner in ("rloo", "actor-critic"):
        distill(data, folder / learner, learner)  # here, so that compiled kernels need not be loaded in every child
    return folder


@pytest.mark.parametrize("learner", ["rloo", "actor-critic"])
def test_killed_at_every_step(data, whole, tmp_path, learner):
    path = tmp_path / "policy"
    for step in range(1, 7):  # each attempt comes one step further than the last one

        def action(step=step):
            genuine = policies.fit_policy

            def stopped(*args, progress, **how):
                def at(info):
                    if info["step"] == step:
                        os.kill(os.getpid(), signal.SIGKILL)

                return genuine(*args, progress=at, **how)

            policies.fit_policy = stopped
            distill(data, path, learner)

        assert in_child(action) == -signal.SIGKILL
        assert read_metrics(path)[-1]["step"] == step
    assert in_child(lambda: distill(data, path, learner)) == 0
    same(path, whole / learner)


def kill_at_calls(data, whole, tmp_path, choose):
    count = tmp_path / "count"

    def counted():
        seen = count_calls(lambda *_: None)
        distill(data, tmp_path / "counted", "rloo")
        count.write_text(str(len(seen)))

    assert in_child(counted) == 0
    for number in choose(int(count.read_text())):
        path = tmp_path / f"call {number}"

        def at_call(n, name, args, number=number):
            if n == number:
                os.kill(os.getpid(), signal.SIGKILL)

        def action(path=path, at_call=at_call):
            count_calls(at_call)
            distill(data, path, "rloo")

        assert in_child(action) == -signal.SIGKILL, number
        assert in_child(lambda path=path: distill(data, path, "rloo")) == 0, number
        same(path, whole / "rloo")
        shutil.rmtree(path)


def test_killed_at_some_system_calls(data, whole, tmp_path):
    kill_at_calls(data, whole, tmp_path, lambda n: [1, *random.Random(0).sample(range(1, n), 4), n])


@pytest.mark.long
def test_killed_at_every_system_call(data, whole, tmp_path):
    kill_at_calls(data, whole, tmp_path, lambda n: range(1, n + 1))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_real_process(data, tmp_path, number, code):
    flags = ["--steps", "60", "--draws", "2", "--best-of", "2"]
    assert in_child(lambda: irlhf("distill", data / "buses", *flags, "--out", tmp_path / "whole")) == 0
    path = tmp_path / "policy"
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # whatever started the tests
        "from irlhf.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "distill", str(data / "buses"), *flags, "--out", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while len(read_metrics(path)) < 5:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    screen = process.communicate()[1]
    assert process.returncode == code and "Traceback" not in screen
    if number != signal.SIGKILL:
        assert "To go on: irlhf distill --resume" in screen
        assert json.loads((path / "status.json").read_text())["state"] == "interrupted"
    assert in_child(lambda: irlhf("distill", "--resume", path)) == 0
    same(path, tmp_path / "whole")
