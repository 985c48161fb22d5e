"""``irlhf fit`` killed at any moment and resumed gives, to the bit, what it would have given undisturbed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from irlhf.cli import jobs
from irlhf.storage.rundir import digest, read_metrics
from tests.cli_data import irlhf, write_replacement
from tests.toy_driver import count_calls, in_child


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
def fit(tmp_path_factory):
    """A function that fits in a directory, resuming what is there, and raises unless the exit code is 0."""
    folder = tmp_path_factory.mktemp("data")
    write_replacement(folder)
    files = [
        "--panel",
        folder / "panel.csv",
        "--features",
        folder / "features.csv",
        "--choices",
        folder / "pairs.jsonl",
    ]
    flags = [*files, "--discount", 0.9, "--holdout", 0.1, "--no-report", "--resume"]

    def run(path, *more):
        code = irlhf("fit", *flags, "--out", path, *more)
        if code:
            raise SystemExit(code)

    run.flags = [str(flag) for flag in flags]
    run(folder / "warm")  # compiled kernels are loaded once, here, and not in every child
    return run


@pytest.fixture(scope="module")
def whole(fit, tmp_path_factory):
    """The run that nobody disturbed."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert in_child(lambda: fit(path)) == 0
    assert len(read_metrics(path)) > 10
    return path


def killed_at_step(fit, path, step):
    """Fit in a child that kills itself when a step is reached, before anything of the next one."""

    def action():
        genuine = jobs.fit_reward

        def stopped(*args, progress, **kwargs):
            def at(info):
                if info["step"] == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            return genuine(*args, progress=at, **kwargs)

        jobs.fit_reward = stopped
        fit(path)

    return in_child(action)


def test_killed_at_every_step(fit, whole, tmp_path):
    path, last = tmp_path / "run", len(read_metrics(whole)) - 1
    for step in range(1, last + 1):  # each attempt comes one step further than the last one
        assert killed_at_step(fit, path, step) == -signal.SIGKILL
        assert read_metrics(path)[-1]["step"] == step
    assert in_child(lambda: fit(path)) == 0
    assert digest(path) == digest(whole)
    assert (path / "result.json").read_bytes() == (whole / "result.json").read_bytes()


def calls_of_a_fit(fit, path, at_call=lambda *_: None):
    """The system calls of a fit in a child: how many, and what is done at each."""
    return in_child(lambda: (count_calls(at_call), fit(path)))


def number_of_calls(fit, path):
    count = path.with_suffix(".count")

    def action():
        seen = count_calls(lambda *_: None)
        fit(path)
        count.write_text(str(len(seen)))

    assert in_child(action) == 0
    return int(count.read_text())


def kill_at_calls(fit, whole, tmp_path, numbers):
    for number in numbers:
        path = tmp_path / f"call {number}"

        def at_call(n, name, args, number=number):
            if n == number:
                os.kill(os.getpid(), signal.SIGKILL)

        assert calls_of_a_fit(fit, path, at_call) == -signal.SIGKILL, number
        assert in_child(lambda path=path: fit(path)) == 0, number
        assert digest(path) == digest(whole), number
        shutil.rmtree(path)


def test_killed_at_some_system_calls(fit, whole, tmp_path):
    total = number_of_calls(fit, tmp_path / "counted")
    numbers = random.Random(0).sample(range(1, total), 5)
    kill_at_calls(fit, whole, tmp_path, [1, *numbers, total])


@pytest.mark.long
def test_killed_at_every_system_call(fit, whole, tmp_path):
    total = number_of_calls(fit, tmp_path / "counted")
    kill_at_calls(fit, whole, tmp_path, range(1, total + 1))


SIGNALS = ((signal.SIGTERM, 143), (signal.SIGINT, 130))
MANY_STEPS = ("--reward", "neural", "--hidden", "4", "--max-steps", "60")


@pytest.fixture(scope="module")
def many(fit, tmp_path_factory):
    """An undisturbed run of many small steps."""
    path = tmp_path_factory.mktemp("many") / "run"
    assert in_child(lambda: fit(path, *MANY_STEPS)) == 0
    return path


def kill_at_random(fit, path, patience, seed, most=6):
    """Kill one run after random times, then let it finish; how often it was killed."""
    rng, kills = random.Random(seed), 0
    while kills < most and in_child(lambda: fit(path, *MANY_STEPS), patience=rng.uniform(0.05, patience)) != 0:
        kills += 1
    assert in_child(lambda: fit(path, *MANY_STEPS)) == 0
    return kills


def test_killed_at_random_times(fit, many, tmp_path):
    assert kill_at_random(fit, tmp_path / "run", 0.5, seed=1) > 0
    assert digest(tmp_path / "run") == digest(many)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_200_random_kills(fit, many, tmp_path):
    kills = 0
    for seed in range(1000):
        kills += kill_at_random(fit, tmp_path / f"run {seed}", 0.3, seed)
        assert digest(tmp_path / f"run {seed}") == digest(many)
        shutil.rmtree(tmp_path / f"run {seed}")
        if kills >= 200:
            return


@pytest.mark.parametrize("command", ["fit", "score"])
@pytest.mark.parametrize(("number", "code", "line"), [(2, 130, "irlhf: interrupted"), (15, 143, "irlhf: terminated")])
def test_stopped_while_it_starts(fit, tmp_path, command, number, code, line):
    """Ctrl-C and SIGTERM while torch and pandas are imported: one line, no traceback, the right exit code."""
    run, flags = tmp_path / "run", fit.flags
    arguments = ["score", str(run), flags[1]] if command == "score" else ["fit", *flags, "--out", str(run)]
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # whatever started the tests
        "from irlhf.__main__ import main; print(flush=True); sys.exit(main())"
    )
    for delay in (0.05, 0.2, 0.5, 1.0, 1.5):
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()  # Python itself has started
        time.sleep(delay)
        process.send_signal(number)
        screen = process.communicate()[1]
        if delay >= 1 and process.returncode in (0, 2):
            continue  # a fast machine was done: fitted, or told that there is no such run
        said = screen.splitlines()
        assert process.returncode == code and said[-1] == line and "Traceback" not in screen, (delay, screen)
        assert len(said) == 1 or "reading panel.csv" in said[0], screen


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), *(pytest.param(*p, marks=pytest.mark.long) for p in SIGNALS)],
)
def test_a_real_process(fit, many, tmp_path, number, code):
    path = tmp_path / "run"
    command = [sys.executable, "-m", "irlhf", "fit", *fit.flags, "--out", str(path), *MANY_STEPS]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while len(read_metrics(path)) < 5:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    screen = process.communicate()[1]
    assert process.returncode == code and "Traceback" not in screen
    if number != signal.SIGKILL:
        assert "irlhf fit --resume" in screen
    assert in_child(lambda: irlhf("fit", "--resume", path)) == 0
    assert digest(path) == digest(many)
