"""A toy fit in 20 deterministic steps with momentum, noise and a growing history: what the kill tests kill.

``python -m tests.toy_driver RUN_DIRECTORY`` runs it, resuming what is there.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from irlhf.randomness import Key
from irlhf.storage import fingerprint
from irlhf.storage.rundir import open_run

STEPS = 20
CONFIG = {"seed": 5, "rate": 0.1, "optimizer": {"name": "momentum", "beta": 0.9}}


def drive(path: Path, *, steps: int = STEPS, at_step=lambda step: None, pause: float = 0.0) -> None:
    """Fit, from the last checkpoint if there is one."""
    key = Key(CONFIG["seed"])
    theta = torch.randn(8, generator=key.at("start").torch(), dtype=torch.float64)
    momentum, history, trace, first = torch.zeros_like(theta), torch.zeros(0, 8, dtype=torch.float64), [], 0
    with open_run(path, config=CONFIG, resume=True) as run:
        checkpoint = run.load(like={"theta": theta, "momentum": momentum}, free=("history",))
        if checkpoint is not None:
            theta, momentum, history = (checkpoint.tensors[name] for name in ("theta", "momentum", "history"))
            trace, first = checkpoint.info["trace"], checkpoint.step
        for step in range(first + 1, steps + 1):
            at_step(step)
            noise = torch.randn(8, generator=key.at(step, "noise").torch(), dtype=torch.float64)
            momentum = 0.9 * momentum + torch.sin(theta) + 0.1 * noise
            theta = theta - CONFIG["rate"] * momentum
            history = torch.cat([history, theta[None]])
            trace = [*trace, theta.cos().sum().item()]
            run.log({"step": step, "objective": trace[-1], "time": {"clock": time.time()}})
            run.save(step, {"theta": theta, "momentum": momentum, "history": history}, {"trace": trace})
            time.sleep(pause)
        run.write_tensors("reward.safetensors", {"theta": theta}, {"kind": "toy"})


def in_child(action, *, patience: float | None = None) -> int:
    """Run ``action()`` in a forked child, killed after ``patience`` seconds. Its exit code, or minus its signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", file=sys.__stderr__)
        finally:
            os._exit(code)
    if patience is not None:
        time.sleep(patience)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


CALLS = ("open", "write", "fsync", "replace", "unlink", "ftruncate", "mkdir", "close")


def count_calls(at_call, *, real_fsync: bool = False, names: tuple[str, ...] = CALLS, patch=setattr) -> list[str]:
    """Have every system call of a writer announced: ``at_call(n, name, args)`` before the n-th. Returns their names."""
    seen: list[str] = []

    def announced(name, call):
        def inner(*args, **kwargs):
            seen.append(name)
            at_call(len(seen), name, args)
            # a kill does not lose what the system has taken over: without it the tests are ten times faster
            return None if name == "fsync" and not real_fsync else call(*args, **kwargs)

        return inner

    patch(fingerprint, "_git_commit", lambda: None)  # another process, with calls of its own
    for name in names:
        patch(os, name, announced(name, getattr(os, name)))
    return seen


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
