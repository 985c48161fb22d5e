"""The loop that every fit is: a state of tensors, step by step, saved on the way, and resumed from there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from irlhf import distributed, signals
from irlhf.storage.rundir import RunDir

State = dict[str, Tensor]

QUICK = 0.2  # seconds: a save that takes less follows every step
SHARE = 0.05  # of the time a fit takes, for saves that take more


def within(state: State, prefix: str) -> State:
    """What a state keeps under names that begin so, by the rest of the name."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def under(prefix: str, state: State) -> State:
    """The same the other way round: a state to be kept within another one."""
    return {prefix + name: tensor for name, tensor in state.items()}


@dataclass(frozen=True)
class Loop:
    """Where a loop is: its state, one entry of the trace for each step, and whether it was interrupted."""

    state: State
    trace: list[dict[str, Any]]
    interrupted: bool

    @property
    def why(self) -> str:
        """What ended it: "converged", "stalled", or nothing if it ran out of steps."""
        return str(self.trace[-1].get("why", ""))


def iterate(
    init: Callable[[], tuple[State, dict[str, Any]]],
    step: Callable[[State, int], tuple[State, dict[str, Any]]],
    *,
    put: Callable[[State], None],
    max_steps: int,
    run: RunDir | None,
    restore: Callable[[State, list[dict[str, Any]]], State],
    extra: Callable[[], State] = dict,
    about: dict[str, Any] | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Loop:
    """Step until a step says why it is the last one, or until there are no more.

    Several processes take the same steps and stop at the same one; the first writes and tells, and all start from what
    it has.

    Args:
        init: (state, first entry of the trace).
        step: (state, number of the step) -> the same, one further, in new tensors; ``info["why"]`` ends the loop.
        put: makes the modules what a state says, or raises if it is not finite. A step that fails, there or before, has
            not been: what was put before it is put again.
        run: what the loop goes on from, and saves to: after every step, or, where saving takes long, as often as it
            costs a twentieth of the time; and at every end. Ctrl-C then ends the loop; without a run nobody asked for
            half a fit, and it is raised.
        restore: what else there is to restore; returns the state without what ``extra`` added, or raises if it is of
            another fit.
        extra: what else a checkpoint holds.
        about: what a checkpoint says of its state.
        progress: called after every step, with the entry of the trace.
    """
    distributed.start()
    state: State = {}
    trace: list[dict[str, Any]] = []  # empty until there is a state that was put
    saves = _Saves(run if distributed.first() else None, about or {})
    try:
        with distributed.together():
            with distributed.agreed("at the start"):
                new, known, resumed = _begin(init, restore, run)
                put(new)
            with distributed.agreed("at the start"), signals.held():
                state, trace = new, known
                if not resumed:
                    saves.after(trace, {**state, **extra()})
            while not trace[-1].get("why") and len(trace) <= max_steps:
                with distributed.agreed(f"in step {len(trace)}"):
                    new, info = step(state, len(trace))
                    put(new)
                with distributed.agreed(f"after step {len(trace)}"), signals.held():  # state and trace go together
                    state = new
                    trace.append({"step": len(trace), **info})
                    saves.after(trace, {**state, **extra()})
                    if progress is not None and distributed.first():
                        progress(trace[-1])
            with distributed.agreed("at the end"), signals.held():
                saves.now()
    except BaseException as error:
        if trace:
            put(state)
            with signals.held():
                saves.now()
        if isinstance(error, KeyboardInterrupt) and trace and run is not None:
            return Loop(state, trace, interrupted=True)
        raise
    return Loop(state, trace, interrupted=False)


def _begin(init: Any, restore: Any, run: RunDir | None) -> tuple[State, list[dict[str, Any]], bool]:
    """Where the first process was left, or else where it starts, in all of them; and which of both it is."""
    with distributed.agreed():
        found = run.load() if run is not None and distributed.first() else None
    tensors = distributed.as_first(None if found is None else found.tensors)
    trace = distributed.from_first(lambda: [] if found is None else found.info["trace"])
    with distributed.agreed():
        if tensors is not None:
            return restore(tensors, trace), trace, True
        tensors, info = init()
    return distributed.as_first(tensors) or {}, [{"step": 0, **info}], False


class _Saves:
    """Puts a fit away so often that a kill costs little, and so seldom that it costs little."""

    def __init__(self, run: RunDir | None, about: dict[str, Any]):
        self.run, self.about = run, about
        self.behind: tuple[list[dict[str, Any]], State] | None = None  # what the last save does not have
        self.took = [0.0, 0.0]  # seconds, of the last two saves; a hiccup of the disk is in one of them
        self.ended = time.monotonic()

    def after(self, trace: list[dict[str, Any]], tensors: State) -> None:
        """A step is whole."""
        if self.run is None:
            return
        self.run.log(trace[-1])
        self.behind = trace, tensors
        if min(self.took) <= QUICK or min(self.took) <= SHARE * (time.monotonic() - self.ended):
            self.now()

    def now(self) -> None:
        """The last whole step is on the disk after this."""
        if self.run is None or self.behind is None:
            return
        (trace, tensors), self.behind = self.behind, None  # what could not be written is not tried twice
        began = time.monotonic()
        self.run.save(len(trace) - 1, tensors, {**self.about, "trace": trace})
        self.ended = time.monotonic()
        self.took = [self.took[1], self.ended - began]
