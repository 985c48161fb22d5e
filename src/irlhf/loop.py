"""The loop that every fit is: a state of tensors, step by step, saved after each, and resumed from there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from irlhf.storage.rundir import RunDir

State = dict[str, Tensor]


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
    max_steps: int,
    run: RunDir | None,
    restore: Callable[[State, list[dict[str, Any]]], State],
    extra: Callable[[], State] = dict,
    about: dict[str, Any] | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Loop:
    """Step until a step says why it is the last one, or until there are no more.

    Args:
        init: (state, first entry of the trace).
        step: (state, number of the step) -> the same, one further; ``info["why"]`` ends the loop.
        run: saved to after every step, and gone on from where it was left. Ctrl-C then ends the loop; without a run
            nobody asked for half a fit, and it is raised.
        restore: makes the program what it was when the state was saved; returns the state without what ``extra`` added.
        extra: what else a checkpoint holds.
        about: what a checkpoint says of its state.
    """
    checkpoint = run.load() if run is not None else None
    state: State | None = None
    trace: list[dict[str, Any]] = []

    def save() -> None:
        if run is not None and state is not None:
            run.log(trace[-1])
            run.save(len(trace) - 1, {**state, **extra()}, {**(about or {}), "trace": trace})

    try:
        if checkpoint is not None:
            trace = checkpoint.info["trace"]
            state = restore(checkpoint.tensors, trace)
        else:
            state, info = init()
            trace = [{"step": 0, **info}]
            save()
        while not trace[-1].get("why") and len(trace) <= max_steps:
            state, info = step(state, len(trace))
            trace.append({"step": len(trace), **info})
            save()
            if progress:
                progress(trace[-1])
    except KeyboardInterrupt:
        if state is None or run is None:
            raise
        return Loop(state, trace, interrupted=True)
    return Loop(state, trace, interrupted=False)
