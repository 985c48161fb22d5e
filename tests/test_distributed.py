"""Several processes learn what one learns, to the bit, and end together, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from irlhf import LBFGS, Minibatches, distributed, fit_reward
from irlhf.distributed import LANES, sum_in_lanes
from irlhf.errors import CheckpointError
from irlhf.minibatches import Pieces
from irlhf.randomness import Key
from irlhf.storage.checkpoint import load_checkpoint
from irlhf.storage.rundir import RunDir, digest, open_run, read_metrics
from irlhf.weights import Weights
from irlhf.worlds.text.rewards import ScoreReward
from tests.processes import environment, free_port, in_processes
from tests.test_minibatches import problem, small

ROOT = Path(__file__).parents[1]
STEPS = 4
HOW = Minibatches(lambda p: torch.optim.AdamW(p, lr=0.05), rows=9, at_once=2, max_steps=STEPS)


def fitted(reward, terms, **how):
    fit = fit_reward(reward, terms, optimizer=HOW, **how)
    return {"theta": fit.theta.tolist(), "objective": fit.objective, "status": fit.status.name, "steps": len(fit.trace)}


# ----------------------------------------------------------------------------------------------------------- the sums


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_a_sum_is_the_same_to_the_bit(size, tmp_path):
    """Single-precision numbers of all sizes, whose sum depends on the order in nearly every digit."""
    shards = [torch.randn(50, generator=Key(k).torch()) * 10.0 ** (k % 7) for k in range(21)]
    counts = [1, 2, 3, LANES, LANES + 1, 20, 21]

    def sums(rank):
        seen, found = [], []
        for n in counts:

            def add(k, total, n=n):
                seen.append([n, k])
                total += shards[k]

            found.append(sum_in_lanes(add, range(n), 50, torch.float32).tolist())
        return {"sums": found, "seen": seen}

    alone = sums(0)["sums"]
    together = in_processes(size, sums, tmp_path)
    assert all(each["sums"] == alone for each in together)
    assert sorted(x for each in together for x in each["seen"]) == [[n, k] for n in counts for k in range(n)]
    assert sum(bool(each["seen"]) for each in together) == size  # nobody is idle
    plain = sum(shards[1:], shards[0].clone())
    assert plain.tolist() != alone[-1]  # so the order matters, and the test can fail
    torch.testing.assert_close(plain, torch.tensor(alone[-1]))


# ----------------------------------------------------------------------------------------------------------- the fits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_fit_is_the_same_to_the_bit_and_sees_each_row_once(dtype, tmp_path, monkeypatch):
    reward, terms = problem(dtype=dtype)
    start = Pieces(reward, terms).weights.vector()
    assert start.dtype == dtype

    def run(rank):
        seen, real = [], Pieces._of_shard

        def of_shard(self, shard):
            if torch.is_grad_enabled():
                seen.extend(int(self.first[shard[0]] + row) for row in shard[1])
            return real(self, shard)

        monkeypatch.setattr(Pieces, "_of_shard", of_shard)
        if rank:
            Pieces(reward, terms).weights.assign(start + rank)  # all start from what the first has
        return {**fitted(reward, terms), "seen": seen}

    (alone,) = in_processes(1, run, tmp_path / "1")
    assert alone["steps"] == STEPS + 1 and alone["theta"] != start.tolist()
    for size in (2, 4):
        each = in_processes(size, run, tmp_path / str(size))
        assert all(one["theta"] == alone["theta"] and one["objective"] == alone["objective"] for one in each)
        rows = [row for one in each for row in one["seen"]]
        assert sorted(rows) == sorted(alone["seen"])  # which a test of minibatches counts
        assert all(one["seen"] for one in each)


def test_a_run_is_one_run_and_is_resumed_by_any_number(tmp_path):
    reward, terms = problem()

    def run(rank, folder="whole", stop=None):
        told = []

        def progress(info):
            told.append(info["step"])
            if info["step"] == stop:
                os.kill(os.getpid(), signal.SIGINT)

        with open_run(tmp_path / folder, config={"seed": 1}, resume=True) as opened:
            return {**fitted(reward, terms, run=opened, progress=progress), "told": told, "attempt": opened.attempt}

    (alone,) = in_processes(1, run, tmp_path / "1")
    broken = in_processes(2, lambda rank: run(rank, "broken", stop=2), tmp_path / "2")
    assert [(one["status"], one["steps"]) for one in broken] == [("INTERRUPTED", 3)] * 2
    assert [one["told"] for one in broken] == [[1, 2], []]
    assert load_checkpoint(tmp_path / "broken" / "checkpoint").tensors["theta"].tolist() == broken[1]["theta"]
    again = in_processes(4, lambda rank: run(rank, "broken"), tmp_path / "4")
    assert all(one["theta"] == alone["theta"] and one["attempt"] == 2 for one in again)
    assert [one["told"] for one in again] == [[3, 4], [], [], []]
    assert digest(tmp_path / "broken") == digest(tmp_path / "whole")
    assert [line["step"] for line in read_metrics(tmp_path / "broken")] == list(range(STEPS + 1))


def test_a_fit_of_another_kind_is_the_same_in_all_and_written_once(tmp_path):
    """Each computes all of it: nothing is gained, and nothing goes wrong."""
    reward, terms = small()

    def run(rank, folder="whole"):
        with open_run(tmp_path / folder, config={}) as opened:
            fit = fit_reward(reward, terms, optimizer=LBFGS(newton=0, max_steps=8), run=opened)
            opened.write_json("result.json", {"rank": rank})
        return fit.theta.tolist()

    (alone,) = in_processes(1, run, tmp_path / "1")
    assert in_processes(2, lambda rank: run(rank, "two"), tmp_path / "2") == [alone] * 2
    assert digest(tmp_path / "two") == digest(tmp_path / "whole")
    assert json.loads((tmp_path / "two" / "result.json").read_text()) == {"rank": 0}


# ----------------------------------------------------------------------------------------------------------- the ends


def amid(step, who, do, monkeypatch):
    """Has ``do()`` done by one process amid a step, before its first shard."""
    numbers = []

    def gradient(self, rows, at_once, room=None, real=Pieces.gradient):
        numbers.append(len(numbers) + 1)
        return real(self, rows, at_once, room)

    def of_shard(self, shard, real=Pieces._of_shard):
        if numbers[-1:] == [step] and distributed.first() == (who == 0):
            do()
        return real(self, shard)

    monkeypatch.setattr(Pieces, "gradient", gradient)
    monkeypatch.setattr(Pieces, "_of_shard", of_shard)


def ends(tmp_path, **how):
    """What became of two processes, the last step that was saved, and the seconds it took."""
    reward, terms = problem()

    def run(rank):
        try:
            with open_run(tmp_path / "run", config={}) as opened:
                return fitted(reward, terms, run=opened)
        finally:
            (tmp_path / f"held{rank}").write_text(repr(Pieces(reward, terms).weights.vector().tolist()))

    began = time.monotonic()
    each = in_processes(2, run, tmp_path / "out", **how)
    saved = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert torch.isfinite(saved.tensors["theta"]).all()
    for rank in range(2):  # what a process holds at its end is what was saved, all of one step
        held = tmp_path / f"held{rank}"
        assert not held.exists() or held.read_text() == repr(saved.tensors["theta"].tolist())
    return each, saved.step, time.monotonic() - began


def fail():
    raise RuntimeError("no memory\nat all")


@pytest.mark.parametrize("who", [0, 1])
def test_an_error_in_one_ends_all_and_is_named(who, tmp_path, monkeypatch):
    amid(3, who, fail, monkeypatch)
    each, step, _ = ends(tmp_path)
    assert step == 2
    assert each[who] == "RuntimeError: no memory\nat all"
    other = each[1 - who]
    assert other.startswith(
        f"ProcessError: in step 3, process {who} on {socket.gethostname()}: RuntimeError: no memory"
    )


def test_what_is_not_finite_in_one_ends_all_as_the_same_error(tmp_path, monkeypatch):
    def poison():
        ScoreReward.forward = lambda self, batch: torch.full((batch.n_items,), torch.nan)

    monkeypatch.setattr(ScoreReward, "forward", ScoreReward.forward)  # put back afterwards
    amid(3, 1, poison, monkeypatch)
    each, step, _ = ends(tmp_path)
    assert step == 2 and all(one.startswith("NonFiniteError: ") and "is not finite for rows" in one for one in each)
    assert each[0].startswith("NonFiniteError: in step 3, process 1 on ")


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_all_stop_on_the_step_in_which_one_is_told_to(how, who, tmp_path, monkeypatch):
    amid(3, who, lambda: os.kill(os.getpid(), getattr(signal, how)), monkeypatch)
    each, step, _ = ends(tmp_path)
    assert step == 2
    told = each.pop(who)
    assert each[0]["status"] == "INTERRUPTED" and each[0]["steps"] == 3
    assert told == 143 if how == "SIGTERM" else told["status"] == "INTERRUPTED" and told["steps"] == 3


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("how", ["SIGSTOP", "SIGKILL"])
def test_a_dead_or_frozen_process_is_not_waited_for_longer_than_that(how, who, tmp_path, monkeypatch):
    amid(2, who, lambda: os.kill(os.getpid(), getattr(signal, how)), monkeypatch)
    each, step, seconds = ends(tmp_path, patience=2.0, linger=6.0)
    assert step == 1 and seconds < 30
    assert each.pop(who) == -signal.SIGKILL
    if who == 1:
        assert each[0].startswith("ProcessError: in step 2: ")
        assert f"no answer from process 1 on {socket.gethostname()} in 2 seconds" in each[0]
    else:  # the first keeps the store: it may be gone before the other has read that they agreed, and nobody is named
        assert each[0].startswith(("ProcessError: in step 2: ", "ProcessError: after step 1: "))


def test_a_process_lost_amid_an_exchange_is_named(tmp_path, monkeypatch):
    def send(self, tensor, to, real=distributed._Others.send):
        return os._exit(9) if self.rank == 1 else real(self, tensor, to)

    monkeypatch.setattr(distributed._Others, "send", send)
    each, step, _ = ends(tmp_path)
    assert step == 0 and each[1] == 9
    assert each[0].startswith(f"ProcessError: in step 1: lost process 1 on {socket.gethostname()} (")


def test_what_the_first_cannot_write_ends_all(tmp_path, monkeypatch):
    def save(self, step, tensors, info, real=RunDir.save):
        if step == 2:
            raise CheckpointError("the disk is full")
        real(self, step, tensors, info)

    monkeypatch.setattr(RunDir, "save", save)
    reward, terms = problem()

    def run(rank):
        with open_run(tmp_path / "run", config={}) as opened:
            return fitted(reward, terms, run=opened)

    each = in_processes(2, run, tmp_path / "out")
    assert each[0] == "CheckpointError: the disk is full"
    assert each[1].startswith("CheckpointError: after step 2, process 0 on ")
    again = in_processes(2, run, tmp_path / "out")  # and where there is a run already, nobody starts
    assert all("holds a run already" in one for one in again)


def test_ctrl_c_that_comes_late_to_some_is_one_ctrl_c(tmp_path, monkeypatch):
    """It breaks the step off in all; who hears of it after that has stopped already."""

    def put_late(self, vector, what="", real=Weights.assign):
        if "SIGINT" in os.environ and not distributed.first():
            os.kill(os.getpid(), signal.SIGINT)
        real(self, vector, what)

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(Weights, "assign", put_late)
    amid(3, 0, interrupt, monkeypatch)
    amid(3, 1, lambda: os.environ.update(SIGINT="late"), monkeypatch)
    each, step, _ = ends(tmp_path)
    assert step == 2 and [one["status"] for one in each] == ["INTERRUPTED"] * 2


def test_a_fit_without_a_run_raises_the_interrupt_in_all(tmp_path, monkeypatch):
    amid(2, 1, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    reward, terms = problem()
    each = in_processes(2, lambda rank: fitted(reward, terms), tmp_path)
    assert each == ["KeyboardInterrupt: "] * 2


# ----------------------------------------------------------------------------------------------------------- torchrun


def test_torchrun_starts_anew_what_was_killed(tmp_path):
    """A script knows nothing of processes; one is killed for good in step 3, torchrun starts all again."""
    from tests import torchrun_script

    torchrun_script.fit(tmp_path / "alone")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1",
        "--master-addr", "127.0.0.1", "--master-port", str(free_port()), "-m", "tests.torchrun_script",
        str(tmp_path / "together"), "3",
    ]  # fmt: skip
    there = {k: v for k, v in environment(0, 2, 0).items() if k.startswith("GLOO")}
    run = subprocess.run(command, env={**os.environ, **there}, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    assert digest(tmp_path / "together") == digest(tmp_path / "alone")
    status = json.loads((tmp_path / "together" / "status.json").read_text())
    assert status["attempt"] == 2 and status["state"] == "finished"
    assert run.stdout.count("step 4\n") == 1  # the first tells, and only it
