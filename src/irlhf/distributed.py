"""Several processes as one: the only module that knows of ranks.

Processes that ``torchrun`` started do the same fits in the same order, on the same data. Each computes its share of a
sum (:func:`sum_in_lanes`); how a sum is put together does not depend on how many there are, so 1, 2 and 4 processes
have the same numbers to the bit. They speak in two ways: short texts go through the store that torchrun brought them
together with, which tells who is missing, and tensors go from process to process over gloo. Nothing is ever pickled.

What fails in one process, or a signal that reaches it, ends the step in all (:func:`agreed`). On one process everything
here does nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from irlhf import errors, signals
from irlhf.errors import ProcessError

LANES = 8  # more processes than this have nothing to add to a sum; each doubling is one more vector in memory
PATIENCE = 600.0  # seconds without an answer, after which another process is taken for dead
HURRY = 5.0  # the same when told to stop: torchrun kills for good after 30
GOODBYE = 10.0  # seconds that the process which keeps the store waits for the others when it ends
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun and by all who stand in for it


class _Others:
    """The other processes: who they are, and how to reach them."""

    def __init__(self, store: Any, rank: int, size: int, group: Any, patience: float):
        self.store, self.rank, self.size, self.group, self.patience = store, rank, size, group, patience
        self.count = 0  # exchanges so far: all processes have the same ones
        self.lost = False
        self.held: signals.Held | None = None  # signals that wait for the next agreement
        self.interrupted = False  # whether one has come since then
        self.doing = "while starting"
        self.hosts = ["?"] * size
        self.hosts = self.exchange(socket.gethostname())

    def exchange(self, own: Any) -> list[Any]:
        """What each process gave, in the order of ranks; anything JSON can hold."""
        if self.lost:
            raise ProcessError(f"{self.doing}: other processes were lost before. Resume the run")
        self.count += 1
        answer: list[Any] = []
        done = threading.Event()

        def ask() -> None:
            try:
                answer.append(self._ask(json.dumps(own)))
            except Exception as error:
                answer.append(error)
            done.set()

        # In a thread: a call of the store hears no signal, and never ends where the process that keeps it is frozen.
        threading.Thread(target=ask, daemon=True).start()
        began, self.lost = time.monotonic(), True  # until there is an answer
        while not done.wait(0.5):
            waited = time.monotonic() - began
            hurry = self.held is not None and self.held.told
            if waited > (HURRY if hurry else self.patience + HURRY):
                raise ProcessError(f"{self.doing}: no answer in {waited:.0f} seconds. Resume the run")
        if isinstance(answer[0], Exception):
            raise answer[0]
        self.lost = False
        return answer[0]

    def _ask(self, own: str) -> list[Any]:
        keys = [f"{self.count}/{rank}" for rank in range(self.size)]
        try:
            self.store.set(keys[self.rank], own)
            try:
                self.store.wait(keys, timedelta(seconds=self.patience))
            except dist.DistStoreError:
                who = ", ".join(self.name(rank) for rank, key in enumerate(keys) if not self.store.check([key]))
                raise ProcessError(
                    f"{self.doing}: no answer from {who} in {self.patience:.0f} seconds: dead, frozen, or not in the "
                    "same fit. Resume the run"
                ) from None
            found = [json.loads(text) for text in self.store.multi_get(keys)]
            if self.count > 1:  # who is here has read what was there before
                self.store.delete_key(f"{self.count - 1}/{self.rank}")
        except RuntimeError as error:
            raise ProcessError(f"{self.doing}: what keeps the processes together is gone ({_line(error)})") from error
        return found

    def name(self, rank: int) -> str:
        return f"process {rank} on {self.hosts[rank]}"

    def send(self, tensor: Tensor, to: int) -> None:
        self._reach(dist.send, tensor, to)

    def receive(self, tensor: Tensor, source: int) -> Tensor:
        self._reach(dist.recv, tensor, source)
        return tensor

    def _reach(self, how: Callable[..., Any], tensor: Tensor, other: int) -> None:
        flat = tensor.view(-1).view(torch.uint8)
        try:
            if len(flat):
                how(flat, other, group=self.group)
        except RuntimeError as error:
            self.lost = True
            raise ProcessError(f"{self.doing}: lost {self.name(other)} ({_line(error)}). Resume the run") from error


def _line(error: BaseException) -> str:
    """The first sentence of a message of torch, without the place in its source."""
    return re.sub(r"^\[\S+\] ", "", str(error).partition("\n")[0]).partition(". ")[0]


_others: _Others | None = None


def start(*, patience: float = PATIENCE) -> None:
    """Joins the other processes that ``torchrun`` started, if it started this one. Every fit does it by itself.

    Args:
        patience: seconds without an answer, after which another process is taken for dead.

    Raises:
        ProcessError: the others did not come.
    """
    global _others
    if _others is not None or not all(os.environ.get(name) for name in ENVIRONMENT):
        return
    size = int(os.environ["WORLD_SIZE"])
    if size == 1:
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    wait = timedelta(seconds=patience)
    try:
        store, rank, size = next(rendezvous("env://", timeout=wait))
        # torchrun may keep one store for all its attempts, with what the last one left in it.
        store = PrefixStore(f"irlhf/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        group = None
        if dist.is_initialized():
            group = dist.new_group(backend="gloo", timeout=wait)
        else:
            dist.init_process_group("gloo", store=PrefixStore("gloo", store), rank=rank, world_size=size, timeout=wait)
    except RuntimeError as error:
        raise ProcessError(f"the {size} processes of torchrun did not come together: {error}") from error
    _others = _Others(store, rank, size, group, patience)
    atexit.register(stop)


def stop() -> None:
    """Leaves the others; done at the end of a process. The first waits a little for them where it keeps the store."""
    global _others
    left, _others = _others, None
    if left is None or left.lost:
        return
    with contextlib.suppress(RuntimeError):
        left.store.set(f"left/{left.rank}", "")
        if left.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            left.store.wait([f"left/{rank}" for rank in range(left.size)], timedelta(seconds=GOODBYE))
    with contextlib.suppress(RuntimeError, AssertionError):
        dist.destroy_process_group(left.group)


def size() -> int:
    return 1 if _others is None else _others.size


def first() -> bool:
    """Whether this process is the one that writes files and tells the user."""
    return _others is None or _others.rank == 0


# ----------------------------------------------------------------------------------------------------------- one will


@contextlib.contextmanager
def together(doing: str = "") -> Iterator[None]:
    """Inside, signals wait for the next agreement, so that no process leaves while others count on it.

    Args:
        doing: where the processes are, for errors: "step 7".
    """
    others = _others
    if others is None:
        yield
        return
    before, others.doing = others.doing, doing or others.doing
    try:
        if others.held is not None:
            yield
            return
        with signals.held() as held:
            others.held, others.interrupted = held, False
            try:
                yield
            finally:
                others.held = None
                if others.interrupted:  # one Ctrl-C reaches all, some a little later
                    held.told = [number for number in held.told if number != signal.SIGINT]
    finally:
        others.doing = before


@contextlib.contextmanager
def agreed(doing: str = "") -> Iterator[None]:
    """What fails inside in one process fails in all, with the same kind of error, and so does what interrupts it.

    Raises:
        ProcessError: another process raised something that is no error of this library, or does not answer.
        KeyboardInterrupt: one of the processes was told to stop.
    """
    others = _others
    if others is None:
        yield
        return
    own: BaseException | None = None
    with together(doing):
        try:
            yield
            if others.held is not None:
                others.held.deliver()
        except BaseException as error:
            if others.lost:
                raise
            own = error
        problems = others.exchange(None if own is None else [type(own).__name__, str(own), _interrupts(own)])
        others.interrupted |= any(problem is not None and problem[2] for problem in problems)
        for rank, problem in enumerate(problems):
            if problem is not None:
                raise _others_problem(others, rank, *problem) if own is None else own


def _interrupts(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt | SystemExit)


def _others_problem(others: _Others, rank: int, kind: str, text: str, interrupts: bool) -> BaseException:
    if interrupts:
        return KeyboardInterrupt()
    known = {"ConfigError", "CheckpointError", "InfeasibleError", "NonFiniteError"}
    make = getattr(errors, kind) if kind in known else ProcessError
    return make(f"{others.doing}, {others.name(rank)}: " + (text if kind in known else f"{kind}: {text}"))


def from_first(make: Callable[[], Any]) -> Any:
    """What ``make()`` gives in the first process, for all; anything JSON can hold. What it raises there, all raise."""
    if _others is None:
        return make()
    value = None
    with agreed():
        if _others.rank == 0:
            value = make()
    return _others.exchange(value)[0]


def as_first(tensors: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The tensors of the first process, in all of them."""
    if _others is None:
        return tensors
    own = None if tensors is None else [[name, str(t.dtype), list(t.shape)] for name, t in tensors.items()]
    form = _others.exchange(own)[0]
    if form is None:
        return None
    if tensors is None or _others.rank > 0:
        tensors = {name: torch.empty(shape, dtype=getattr(torch, dtype[6:])) for name, dtype, shape in form}
    return {name: _spread(_others, tensor.contiguous()) for name, tensor in tensors.items()}


def _spread(others: _Others, tensor: Tensor) -> Tensor:
    """From the first process to all, in a tree: the first of each half hands it to the first of the other half."""
    begin, end = 0, others.size
    while end - begin > 1:
        middle = (begin + end + 1) // 2
        if others.rank == begin:
            others.send(tensor, middle)
        elif others.rank == middle:
            others.receive(tensor, begin)
        begin, end = (begin, middle) if others.rank < middle else (middle, end)
    return tensor


# --------------------------------------------------------------------------------------------------------------- sums


def sum_in_lanes(
    add: Callable[[Any, Tensor], None],
    shards: Sequence[Any],
    length: int,
    dtype: torch.dtype,
    room: Tensor | None = None,
) -> Tensor:
    """The sum of what ``add(shard, total)`` adds in place to a vector of zeros, over all shards, in all processes.

    Shards are dealt in their order to lanes, as many as there are shards but at most 8. A lane is summed one shard
    after the other, the lanes as a tree of halves, each process its own branch: which numbers are added to which
    depends on the number of shards and on nothing else. One process holds at most four vectors at a time. ``room`` is a
    vector that may be written over, and may be the sum.

    Raises:
        ProcessError: another process failed or is lost.
    """
    lanes = min(LANES, len(shards))

    def branch(low: int, high: int) -> Tensor:
        if high - low > 1:
            middle = (low + high + 1) // 2
            return branch(low, middle).add_(branch(middle, high))
        total = torch.zeros(length, dtype=dtype) if room is None or low else room.zero_()
        for shard in shards[low * len(shards) // lanes : high * len(shards) // lanes]:
            add(shard, total)
        return total

    if _others is None:
        return branch(0, lanes) if lanes else torch.zeros(length, dtype=dtype)
    others, low, high = _others, 0, lanes
    with together():
        with agreed():
            # Halves of the lanes go to halves of the processes until one of both is left.
            above: list[tuple[int, int]] = []  # (the process that adds, the one that gives), of the halvings so far
            begin, end = 0, others.size
            while end - begin > 1 and high - low > 1:
                middle, half = (low + high + 1) // 2, (begin + end + 1) // 2
                above.append((begin, half))
                low, high, begin, end = (low, middle, begin, half) if others.rank < half else (middle, high, half, end)
            works = others.rank == begin and lanes > 0
            total = branch(low, high) if works else torch.zeros(length, dtype=dtype)
        for adds, gives in reversed(above):
            if others.rank == gives:
                others.send(total, adds)
            elif others.rank == adds:
                total.add_(others.receive(torch.empty_like(total), gives))
        return _spread(others, total)
