"""What a command says and writes, and how it ends when the input, the user or the system says no."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from irlhf.cli.words import in_the_shell
from irlhf.errors import ConfigError, IrlhfError
from irlhf.signals import Terminated, catching


def say(*sentences: str) -> None:
    """Lines on stderr."""
    for sentence in sentences:
        with contextlib.suppress(OSError, ValueError):  # nobody is listening
            print(sentence, file=sys.stderr, flush=True)


def write(out: Path | None, text: str) -> None:
    """A result: a file that is whole or absent, or stdout."""
    from irlhf.storage.files import atomic_write

    if out is None:
        sys.stdout.write(text.encode("utf-8", "replace").decode())
        sys.stdout.flush()
        return
    try:
        atomic_write(out, text.encode("utf-8", "replace"))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}; choose another --out") from None


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose refusals are sentences: errors of the input exit 2, an interrupt 130, a termination 143."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        importlib.import_module("irlhf.cli.finished")  # takes seconds, and Ctrl-C may end them at once
        with warnings.catch_warnings(), catching():
            # What other libraries deprecate is not the user's concern; what this one has to say is in run.notes.
            warnings.simplefilter("ignore")
            try:
                command(*args, **kwargs)
            except IrlhfError as error:
                say(f"irlhf: {in_the_shell(str(error))}")
                raise typer.Exit(2) from None
            except MemoryError as error:
                say(f"irlhf: there is not enough memory ({error}); give a smaller problem")
                raise typer.Exit(2) from None
            except BrokenPipeError:  # `irlhf score ... | head`: the reader has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            except Terminated:
                say("irlhf: terminated")
                raise typer.Exit(143) from None
            except KeyboardInterrupt:
                say("irlhf: interrupted")
                raise typer.Exit(130) from None

    return run
