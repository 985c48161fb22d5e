"""Flags: one for each setting of a world, what may be written short, and a sentence for what does not exist."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Annotated, Any, Literal

import typer

UsageError: Any = typer.BadParameter.__base__  # of the library under typer, which some versions bring themselves


def fit_flags(model: Any) -> list[inspect.Parameter]:
    """The flags of ``irlhf fit``: one for each setting of a world, explained as the setting is."""
    from irlhf.config import Settings

    flags = []
    own_first = sorted(model.model_fields, key=lambda name: name in Settings.model_fields)
    for name in own_first:
        field = model.model_fields[name]
        extra = field.json_schema_extra or {}
        if name == "sources":  # a table of tables: in the file only
            continue
        origin = typing.get_origin(field.annotation)
        several = origin is dict or (origin is list and name in model.FILES)
        kind = bool | None if field.annotation is bool else list[str] | None if several else str | None
        shown = field.description + (
            f" Default: {field.default}." if field.default not in (None, {}, [], False) else ""
        )
        option = typer.Option(
            f"--{name.replace('_', '-')}" + ("" if field.annotation is not bool else f"/--no-{name.replace('_', '-')}"),
            help=shown,
            metavar=extra.get("metavar") or _metavar(field.annotation),
            rich_help_panel=extra.get("heading"),
        )
        flags.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])
        )
    return flags


def _metavar(annotation: Any) -> str | None:
    inner = [part for part in typing.get_args(annotation) if part is not type(None)]
    if typing.get_origin(annotation) is Literal:
        return "|".join(inner)
    if annotation in (int, float, bool, str):
        return {int: "N", float: "NUMBER", str: "NAME", bool: None}[annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _metavar(inner[0])
    return "FILE"


def usage(error: Any) -> str:
    """One sentence about a flag or command that does not exist or is not complete."""
    from irlhf.io.wording import nearest  # brings pandas, which takes a second

    where = error.ctx.command_path if error.ctx is not None else "irlhf"
    flag = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and error.ctx is not None:
        known = [name for parameter in error.ctx.command.params for name in parameter.opts if name.startswith("--")]
        return f"{where} has no flag {flag}; {nearest(str(flag), known)} See {where} --help"
    return f"{error.format_message().rstrip('.')}; see {where} --help"


def world_named(arguments: list[str]) -> str:
    """The world whose flags a command line uses: it must be known before they can be read."""
    for k, argument in enumerate(arguments):
        if argument.startswith("--world="):
            return argument.partition("=")[2]
        if argument == "--world" and k + 1 < len(arguments):
            return arguments[k + 1]
    return "tabular"


def whole_resume(arguments: list[str]) -> list[str]:
    """``--resume`` may stand alone: an option cannot, so it gets an empty value."""
    alone = [
        a == "--resume" and (k + 1 == len(arguments) or arguments[k + 1].startswith("-"))
        for k, a in enumerate(arguments)
    ]
    return ["--resume=" if single else argument for argument, single in zip(arguments, alone, strict=True)]
