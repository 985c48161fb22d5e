"""The loop of every fit: how often it saves."""

from __future__ import annotations

import pytest
import torch

from irlhf.loop import iterate
from irlhf.storage.rundir import RunDir


class Slow(RunDir):
    """A run directory whose saves take so many seconds of a clock that only steps and saves move."""

    def __init__(self, path, seconds):
        super().__init__(path)
        self.seconds, self.clock, self.saved = seconds, 0.0, []

    def load(self, like=None, *, free=()):
        return None

    def log(self, metrics):
        pass

    def save(self, step, tensors, info=None):
        self.saved.append(step)
        self.clock += self.seconds if isinstance(self.seconds, float) else self.seconds[len(self.saved) - 1]


def fitted(run, monkeypatch, *, steps=100, step_takes=3.0, end=lambda number: None):
    def step(state, number):
        run.clock += step_takes
        end(number)
        return {"x": state["x"] + 1}, {}

    monkeypatch.setattr("irlhf.loop.time.monotonic", lambda: run.clock)
    return iterate(
        lambda: ({"x": torch.zeros(())}, {}), step, put=lambda state: None, max_steps=steps, run=run,
        restore=lambda tensors, trace: tensors,
    )  # fmt: skip


def test_a_quick_save_follows_every_step(tmp_path, monkeypatch):
    run = Slow(tmp_path, 0.1)
    fitted(run, monkeypatch, step_takes=0.01)
    assert run.saved == list(range(101))


def test_a_slow_save_takes_a_twentieth_of_the_time(tmp_path, monkeypatch):
    run = Slow(tmp_path, 5.0)
    fitted(run, monkeypatch)
    assert run.saved[:3] == [0, 1, 35]  # the first two tell what a save takes; 100 seconds are 34 steps
    assert run.saved[-1] == 100 and len(run.saved) == 5
    hiccup = Slow(tmp_path, [0.1, 9.0, *[0.1] * 99])
    fitted(hiccup, monkeypatch)
    assert hiccup.saved == list(range(101))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_last_whole_step_is_saved_at_every_end(error, tmp_path, monkeypatch):
    run = Slow(tmp_path, 5.0)

    def end(number):
        if number == 20:
            raise error

    if error is KeyboardInterrupt:
        loop = fitted(run, monkeypatch, end=end)
        assert loop.interrupted and len(loop.trace) == 20 and float(loop.state["x"]) == 19
    else:
        with pytest.raises(error):
            fitted(run, monkeypatch, end=end)
    assert run.saved == [0, 1, 19]
