"""The command line: ``irlhf fit | distill | score | evaluate | whatif | report | demo``.

Results go to stdout, everything about the work to stderr. What is the input's fault is one sentence and exit code 2;
a traceback is a bug. Ctrl-C ends with 130, SIGTERM with 143, and a fit can be resumed after either.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from irlhf import __version__
from irlhf.cli.distill import distill
from irlhf.cli.evaluate import evaluate
from irlhf.cli.fit import fit_command, make_report
from irlhf.cli.flags import UsageError, refuse_repeated, usage, whole_resume, world_named
from irlhf.cli.guard import guarded, say, write
from irlhf.cli.whatif import whatif
from irlhf.cli.words import in_the_shell
from irlhf.errors import ConfigError, IrlhfError

# torch and the worlds take seconds to import: the commands do it, so that --help need not

DEMOS = {
    "icu": "intensive care records",
    "lineup": "RLHF beside IRL, enumerated",
    "taxi": "routes of taxis",
    "text": "reviews of films, and a language model",
    "cartpole": "a pole that is balanced, and a longer one",
}


Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that irlhf fit made.", show_default=False)]
WhoseSource = Annotated[
    str | None, typer.Option("--source", metavar="NAME", help="Whose temperature all rows have, whatever they say.")
]


@guarded
def score(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A panel, JSON Lines, or texts.", show_default=False)],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there: .csv or .jsonl.")] = None,
    format: Annotated[
        str | None, typer.Option(metavar="csv|jsonl", help="Default: by the name, or csv; texts: jsonl.")
    ] = None,
    source: WhoseSource = None,
) -> None:
    """The log-likelihood of each row of a file under a fitted reward; of texts, the reward of each.

    \b
    irlhf score runs/buses new-panel.csv > scores.csv
    irlhf score runs/both comparisons.jsonl --out scores.jsonl
    irlhf score runs/reviews texts.jsonl             each line, with its "score"
    """
    from irlhf.cli import finished

    if format not in (None, "csv", "jsonl"):
        raise ConfigError(f"format is {format!r}; choose csv or jsonl")
    job = finished.reopen(run, data=False)
    records = finished.scored(job, file)
    table = finished.score(job, finished.read_feedback(job, file, source)) if records is None else None
    say(*(f"note: {note}" for note in job.warnings))
    if records is not None:
        if format == "csv" or source is not None:
            raise ConfigError(f"the records of {file} keep their fields; leave out --source and --format csv")
        write(out, "".join(json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n" for record in records))
        say(f"{file}: {len(records)} records scored")
        return
    if format is None:
        format = "jsonl" if out is not None and out.suffix in (".jsonl", ".ndjson") else "csv"
    assert table is not None
    if format == "csv":
        text = table.to_csv(index=False, lineterminator="\n")
    else:
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in table.to_dict("records"))
    write(out, text)
    for name, rows in table.groupby("source", sort=False):
        weight, values = rows["weight"].to_numpy(), rows["log_likelihood"].to_numpy()
        total = weight @ values
        say(f"{name}: {len(rows)} rows, log-likelihood {total:.6f}, {total / weight.sum():.6f} a row")


@guarded
def report(run: Run) -> None:
    """Make report.html of a run (again): one page that explains the fit.

    \b
    irlhf report runs/buses
    """
    from irlhf.cli import finished

    job = finished.reopen(run)
    try:
        print(make_report(job, finished.refit(job, run), run))
    except ImportError as error:
        raise ConfigError(f'a report needs jinja2 and matplotlib ({error}): pip install "irlhf[report]"') from None


@guarded
def demo(
    name: Annotated[str, typer.Argument(metavar="NAME", help="; ".join(f"{k}: {v}" for k, v in DEMOS.items()))] = "icu",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller, to see that it runs.")] = False,
    model: Annotated[str, typer.Option(help="text: a folder, a name on the Hugging Face Hub, or smollm2.")] = "",
) -> None:
    """Watch the library answer a question on real input.

    \b
    irlhf demo            what clinicians value, from what they do and prefer
    irlhf demo lineup     are RLHF and inverse reinforcement learning one thing?
    irlhf demo taxi       how drivers choose a route (needs data, see docs/taxi.md)
    irlhf demo text       what people like about films, and a model that writes for it
    irlhf demo cartpole   what a reward is good for where imitation would do

    Each ends within two minutes, that of texts within ten.
    """
    if name not in DEMOS:
        raise ConfigError(f"there is no demo {name!r}; the demos are {', '.join(DEMOS)}")
    if model and name != "text":
        raise ConfigError(f"the demo {name} uses no language model; leave --model out")
    how = {"model": model} if model else {}
    importlib.import_module(f"irlhf.demos.{name}").main(seed=seed, quick=quick, **how)


# ------------------------------------------------------------------------------------------------------------- the app


def make_app(world: str | None = "tabular") -> typer.Typer:
    """All commands; ``world``: whose flags ``fit`` has."""
    app = typer.Typer(
        name="irlhf",
        help="Rewards from what people do and from what people prefer.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_version)
    app.command("fit")(fit_command(world))
    for command in (distill, score, evaluate, whatif, report, demo):
        app.command()(command)
    return app


def _print_version(asked: bool) -> bool:
    if asked:
        print(f"irlhf {__version__}")
        raise typer.Exit
    return asked


def _version(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        world = world_named(arguments) if arguments[:1] == ["fit"] else None
        command = typer.main.get_command(make_app(world))
        refuse_repeated(arguments, command)
        code = command.main(whole_resume(arguments), prog_name="irlhf", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except UsageError as error:
        say(f"irlhf: {usage(error)}")
    except IrlhfError as error:
        say(f"irlhf: {in_the_shell(str(error))}")
    except typer.Abort:  # what Ctrl-C becomes outside of a command
        say("irlhf: interrupted")
        return 130
    return 2


def __getattr__(name: str) -> Any:
    if name == "app":  # with the flags of the tabular world, whose import takes seconds
        return make_app()
    raise AttributeError(name)
