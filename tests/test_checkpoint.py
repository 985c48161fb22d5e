"""Checkpoints and run directories survive kills, full disks and flipped bytes, and refuse what is not theirs."""

import os
import signal

import pytest
from tests.toy_driver import STEPS, drive, in_child

from irlhf.rundir import digest, read_metrics

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the tests fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The digest of an uninterrupted run, by its number of steps."""
    found = {}
    for steps in (3, STEPS):
        path = tmp_path_factory.mktemp("whole") / "run"
        drive(path, steps=steps)
        found[steps] = digest(path)
    return found


@pytest.fixture(autouse=True)
def outside_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def kill_now(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_killed_at_each_step(tmp_path, whole, at):
    path = tmp_path / "run"
    code = in_child(lambda: drive(path, at_step=lambda step: step == at and kill_now()))
    assert code == -signal.SIGKILL
    drive(path)
    assert digest(path) == whole[STEPS]
    assert [line["step"] for line in read_metrics(path)] == list(range(1, STEPS + 1))
