"""How the demos print: at most 100 columns, tables without boxes around them, paragraphs that wrap."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

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
