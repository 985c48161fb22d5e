"""How the demos print: at most 100 columns, tables without boxes around them, paragraphs that wrap; and their page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import cleandoc
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from irlhf import Fit
from irlhf.errors import ConfigError

WIDTH = 100


def console() -> Console:
    """The terminal, or 100 columns where the output is not one."""
    found = Console()
    return Console(width=min(WIDTH, found.width) if found.is_terminal else WIDTH, highlight=False)


def table(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first ``left`` columns hold words and the others numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, box=box.SIMPLE_HEAD)
    for k, name in enumerate(columns):
        made.add_column(name, justify="left" if k < left else "right", no_wrap=k < left)
    return made


def say(to: Console, text: str, **style: Any) -> None:
    """Paragraphs, each wrapped to the screen; a line that starts with two spaces or more stands as it is."""
    paragraphs: list[str] = []
    for line in cleandoc(text).splitlines():
        joins = paragraphs and line.strip() and paragraphs[-1] and not line.startswith("  ")
        if joins and not paragraphs[-1].startswith("  "):
            paragraphs[-1] += " " + line.strip()
        else:
            paragraphs.append(line)
    to.print("\n".join(paragraphs) + "\n", **style)


@contextmanager
def working() -> Iterator[Callable[[str], Callable[[dict[str, Any]], None]]]:
    """A line for every fit, while it runs: ``starting(name)`` is what ``fit_reward`` takes as ``progress``."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TextColumn("{task.fields[state]}")
    with Progress(*columns, console=console(), transient=True) as lines:

        def starting(name: str) -> Callable[[dict[str, Any]], None]:
            task = lines.add_task(f"{name:<38}", total=None, state="")
            return lambda step: lines.update(task, state=f"step {step['step']}, objective {step['objective']:.3f}")

        yield starting


def write_page(to: Console, what: str, fit: Fit, path: Path, **contents: Any) -> None:
    """The report of a fit, where the extra for reports is installed; ``contents`` as ``write_report`` takes them."""
    from irlhf.report import write_report

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = write_report(fit, path, **contents)
    except (ConfigError, OSError) as error:
        to.print(f"No report was written: {error}", markup=False)
    else:
        to.print(f"The page of the {what}: {written}", markup=False, soft_wrap=True)
