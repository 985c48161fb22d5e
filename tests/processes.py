"""Several processes on this machine, as torchrun starts them, but forked: what is imported and made is there."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from irlhf import distributed

DEADLINE = 120.0  # seconds, after which what still runs is killed
LINGER = 30.0  # the same after the first has ended


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    alone = {"GLOO_SOCKET_IFNAME": "lo"} if os.path.exists("/sys/class/net/lo") else {}
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **alone}


def in_processes(
    size: int, body: Callable[[int], Any], folder: Path, *, patience: float = 60.0, linger: float = LINGER
) -> list[Any]:
    """What ``body(rank)`` gave in each of ``size`` processes: anything JSON can hold, or "Kind: message" of an error.

    A process that was killed gives the number of the signal, negative. One alone is told of no others.
    """
    folder.mkdir(exist_ok=True, parents=True)
    port, files = free_port(), [folder / f"{rank}.json" for rank in range(size)]
    children = [_child(rank, size, port, body, files[rank], patience) for rank in range(size)]
    ends: dict[int, int] = {}
    until = time.monotonic() + DEADLINE
    while len(ends) < size:
        for pid in set(children) - ends.keys():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ends[pid] = os.waitstatus_to_exitcode(status)
                until = min(until, time.monotonic() + linger)
            elif time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [json.loads(f.read_text()) if f.exists() else ends[pid] for pid, f in zip(children, files, strict=True)]


def _child(rank: int, size: int, port: int, body: Callable[[int], Any], out: Path, patience: float) -> int:
    out.unlink(missing_ok=True)
    pid = os.fork()
    if pid:
        return pid
    code = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background has switched off
    try:
        if size > 1:
            os.environ.update(environment(rank, size, port))
            distributed.start(patience=patience)
        try:
            out.write_text(json.dumps(body(rank)))
            code = 0
        finally:
            distributed.stop()
    except SystemExit as end:
        code = int(str(end.code))
    except BaseException as error:
        traceback.print_exc()
        out.write_text(json.dumps(f"{type(error).__name__}: {error}"))
    finally:
        os._exit(code)
