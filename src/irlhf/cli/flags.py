"""Flags: one for each setting of a world, what may be written short, and a sentence for what does not exist."""

from __future__ import annotations

import inspect
import json
import tomllib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from irlhf.errors import ConfigError

NOT = "no_"
LARGEST = 1 << 16  # bytes of a configuration
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
        origin, long = typing.get_origin(field.annotation), name.replace("_", "-")
        several = origin is dict or (origin is list and name in model.FILES)
        is_switch = field.annotation is bool
        flags.append(
            _flag(
                name,
                bool | None if is_switch else list[str] | None if several else str | None,
                f"--{long}/--no-{long}" if is_switch and field.default else f"--{long}",
                help=_help(field),
                metavar=extra.get("metavar") or _metavar(field.annotation),
                rich_help_panel=extra.get("heading"),
            )
        )
        if is_switch and not field.default:  # only to take back what a file says: not worth a column of the help
            flags.append(_flag(f"{NOT}{name}", bool | None, f"--no-{long}", hidden=True))
    return flags


def _flag(name: str, kind: Any, declared: str, **about: Any) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(declared, **about)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def settings_of(flags: dict[str, Any]) -> dict[str, Any]:
    """The settings that flags give; ``--no-X`` gives X."""
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    return {name.removeprefix(NOT): not value if name.startswith(NOT) else value for name, value in given.items()}


def _help(field: Any) -> str:
    """What a setting means, what it may be, and what it is unless it is given."""
    about, default, words = field.description, field.default, _choices(field.annotation)
    if words and not all(word in about for word in words):  # in the text they break between words, in a column within
        named = [f"{word} (default)" if word == default else word for word in words]
        return f"{about} One of {', '.join(named)}."
    if default is True:
        return f"{about} This is the default."
    if default in (None, {}, [], False):
        return about
    return f"{about} Default: {','.join(map(str, default)) if isinstance(default, list) else default}."


def _inner(annotation: Any) -> Any:
    """Without "or None"."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def _choices(annotation: Any) -> tuple[str, ...]:
    inner = _inner(annotation)
    return typing.get_args(inner) if typing.get_origin(inner) is Literal else ()


def _metavar(annotation: Any) -> str | None:
    if _choices(annotation):
        return "WORD"
    return {int: "N", float: "NUMBER", str: "NAME", bool: ""}.get(_inner(annotation), "FILE")


def usage(error: Any) -> str:
    """One sentence about a flag or command that does not exist or is not complete."""
    from irlhf.io.wording import nearest  # brings pandas, which takes a second

    where = error.ctx.command_path if error.ctx is not None else "irlhf"
    flag = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and error.ctx is not None:
        known = [name for parameter in error.ctx.command.params for name in parameter.opts if name.startswith("--")]
        return f"{where} has no flag {flag}; {nearest(str(flag), known)} See {where} --help"
    return f"{error.format_message().rstrip('.')}; see {where} --help"


def refuse_repeated(arguments: list[str], app: Any) -> None:
    """Of a flag that is given twice the parser would take the last, and nobody would know.

    Raises:
        ConfigError: names the flag.
    """
    command = getattr(app, "commands", {}).get(arguments[0])
    named = [argument.partition("=")[0] for argument in arguments]
    for option in command.params if command is not None else ():
        found = [name for name in named if name.startswith("--") and name in (*option.opts, *option.secondary_opts)]
        if len(found) > 1 and not getattr(option, "multiple", False):
            raise ConfigError(
                f"{' and '.join(dict.fromkeys(found))} {'are' if found[0] != found[1] else 'is'} given "
                "more than once; give it once"
            )


def world_named(arguments: list[str]) -> str:
    """The world whose flags a command line uses: it must be known before they can be read.

    The one that a flag names; else the one of the configuration, or of the run to be resumed, among the arguments.
    """
    for k, argument in enumerate(arguments):
        if argument.startswith("--world="):
            return argument.partition("=")[2]
        if argument == "--world" and k + 1 < len(arguments):
            return arguments[k + 1]
    for argument in arguments:
        told = _told_by(Path(argument.removeprefix("--resume=")))
        if isinstance(told, str):
            return told
    return "tabular"


def _told_by(path: Path) -> Any:
    """The world that a configuration or a run names, if it is one; what is wrong with it is said when it is read."""
    try:
        if path.suffix == ".toml":
            return tomllib.loads(path.read_bytes()[:LARGEST].decode("utf-8-sig")).get("world")
        if (file := path / "config.json").is_file():
            return json.loads(file.read_bytes()).get("world")
    except (OSError, ValueError, RecursionError, AttributeError):
        pass
    return None


def whole_resume(arguments: list[str]) -> list[str]:
    """``--resume`` may stand alone: an option cannot, so it gets an empty value."""
    alone = [
        a == "--resume" and (k + 1 == len(arguments) or arguments[k + 1].startswith("-"))
        for k, a in enumerate(arguments)
    ]
    return ["--resume=" if single else argument for argument, single in zip(arguments, alone, strict=True)]
