"""How a program of the command line ends when it is told to stop: at once, with one line and no traceback.

While Python imports torch and pandas, for seconds, a ``KeyboardInterrupt`` would come out of the middle of some module,
or be swallowed there. Nothing is open then, so the process simply ends. Once there is work that must be put away, a
command catches the signals itself (:func:`catching`).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def end_at_once() -> None:
    """From now on Ctrl-C ends this process with 130 and SIGTERM with 143. What is ignored (``nohup``) stays so."""
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"irlhf: {WORDS[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a fit as Ctrl-C does, with another exit code."""


@contextlib.contextmanager
def catching() -> Iterator[list[int]]:
    """Ctrl-C raises KeyboardInterrupt inside, SIGTERM :class:`Terminated`, and its number goes into the list."""
    caught: list[int] = []

    def terminate(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        raise Terminated

    before = {number: signal.getsignal(number) for number in WORDS}
    try:
        signal.signal(signal.SIGTERM, terminate)
        if before[signal.SIGINT] is _end:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    except ValueError:  # not the main thread: there are no signals to catch
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Held:
    """Signals that wait, and the handlers that they wait for."""

    def __init__(self):
        self.told: list[int] = []
        self.handlers = {number: signal.getsignal(number) for number in WORDS}

    def keep(self, number: int, frame: FrameType | None) -> None:
        """The handler meanwhile. A second signal of a kind does not wait."""
        self.told.append(number)
        if self.told.count(number) > 1:
            self.deliver()

    def deliver(self) -> None:
        """Hands on what was kept. Where SIGTERM had no handler that is SystemExit, which closes files on its way."""
        told = dict.fromkeys(self.told)
        self.told.clear()
        for number in told:
            handler = self.handlers[signal.Signals(number)]
            if not callable(handler):
                raise SystemExit(128 + number)
            handler(number, None)


@contextlib.contextmanager
def held() -> Iterator[Held]:
    """Ctrl-C and SIGTERM wait inside, until they are delivered or it ends: what is done there is not torn."""
    held = Held()
    try:
        for number, handler in held.handlers.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, held.keep)
    except ValueError:  # not the main thread: signals do not come here
        yield held
        return
    try:
        yield held
    finally:
        for number, handler in held.handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        held.deliver()
