"""The command line: ``irlhf fit | distill | score | evaluate | report | demo``.

Results go to stdout, everything about the work to stderr. What is the input's fault is one sentence and exit code 2;
a traceback is a bug. Ctrl-C ends with 130, SIGTERM with 143, and a fit can be resumed after either.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from irlhf import __version__
from irlhf.cli.distill import distill
from irlhf.cli.flags import UsageError, fit_flags, refuse_repeated, settings_of, usage, whole_resume, world_named
from irlhf.cli.folders import default_path, newest, nothing_left_behind
from irlhf.cli.guard import guarded, say
from irlhf.cli.words import in_the_shell
from irlhf.errors import ConfigError, IrlhfError
from irlhf.signals import Terminated, catching

# torch and the worlds take seconds to import: the commands do it, so that --help need not

DEMOS = {"icu": "intensive care records", "lineup": "RLHF beside IRL, enumerated", "taxi": "routes of taxis"}


# ------------------------------------------------------------------------------------------------------------ irlhf fit

FIT_HELP = """
Fit a reward to what people did and preferred.

Settings come from one TOML file, from flags, or from both: flags override the file.

\b
irlhf fit --panel panel.csv --features features.csv --discount 0.9999
irlhf fit --panel trips.csv --features links.csv --destinations
irlhf fit --panel panel.csv --choices pairs.jsonl --features features.csv \\
          --discount 0.95 --cluster person
irlhf fit buses.toml --holdout 0.2
irlhf fit --resume runs/buses

\b
buses.toml:
    panel = "panel.csv"            # paths are relative to this file
    features = "features.csv"
    discount = 0.9999
    pooling = "increments"
    reset = { "1" = 0 }            # action 1 starts from state 0
    \\[sources.comparisons]          # comparisons are noisier: fit how much
    fit_temperature = true

\b
A run directory (--out) holds the resolved configuration, the curve,
checkpoints, reward.safetensors, result.json and report.html. It can be
resumed after any interruption, and then ends with the same numbers to the bit.
"""


def _fit(config: str | None, resume: str | None, flags: dict[str, Any]) -> None:
    from irlhf.cli import jobs
    from irlhf.storage.rundir import open_run

    settings = _settings(config, resume, flags)
    path = settings.out
    say(f"irlhf {__version__}: reading {', '.join(file.name for file in settings.data_files())}")
    with catching() as caught, nothing_left_behind(path) as made:
        job = jobs.prepare(settings)
        say(f"  {job.setup.world!r}", *(f"  {term.name}: {term.feedback!r}" for term in job.terms))
        say(*(f"  {note}" for note in job.notes))
        files = settings.data_files()
        may = (*settings.MAY_CHANGE, *settings.FILES)  # files may have moved: what is in them is compared
        stored = settings.model_dump(mode="json")
        with open_run(path, config=stored, data_files=files, resume=resume is not None, may_change=may) as run:
            if run.attempt == 1:
                made.append(run.path)
            say(f"  run: {path}", *(f"note: {note}" for note in run.notes), "")
            try:
                with progress_bar() as progress:
                    fit = jobs.run_fit(job, run, progress)
                if fit.status.name == "INTERRUPTED":  # the fit kept the interrupt, to hand back its last whole step
                    raise Terminated if caught else KeyboardInterrupt
                _show(job, fit)
                if settings.report:
                    _try_report(job, fit, path)
            except KeyboardInterrupt:
                say(f"Every complete step is in {path}. To go on: irlhf fit --resume {quote(str(path))}")
                raise
    named = quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))
    again = "" if settings.report else f"irlhf report {named}, or "
    page = ", its page in report.html" if (path / "report.html").exists() else ""
    say(f"The run is in {path}{page}. Next: {again}irlhf evaluate {named} FILE")


def _settings(config: str | None, resume: str | None, flags: dict[str, Any]) -> Any:
    """The settings of a fit, ``out`` resolved: where a new run goes, or where the one to be resumed is."""
    from irlhf.cli.finished import stored_settings
    from irlhf.config import read_toml, settings_from

    if resume and config is None and resume.endswith(".toml"):
        config, resume = resume, ""
    path = Path(resume).absolute() if resume else None
    if resume == "" and config is None and "out" not in flags:
        path = newest("*", policies=False)
    if config is not None:
        _refuse_data(config)
        raw, folder, where = read_toml(config), Path(config).absolute().parent, f"{config}: "
    elif path is not None and ((path / "config.json").exists() or not flags):
        raw, folder, where = stored_settings(path), None, f"{path / 'config.json'}: "
    else:
        raw, folder, where = {}, None, ""
    if not raw and not flags:
        raise ConfigError("nothing says what to fit; give a configuration, or flags (see irlhf fit --help)")
    settings = settings_from(raw, folder=folder, flags=flags, where=where)
    if path is None:
        stem = Path(config).stem if config else datetime.now().strftime("%Y%m%d-%H%M%S")
        path = settings.out or default_path(stem, resume is not None, policies=False)
    return settings.model_copy(update={"out": path})


def _refuse_data(config: str) -> None:
    """What is given in place of a configuration now and then. Raises ConfigError saying where it belongs."""
    name = config.lower().removesuffix(".gz")
    if name.endswith((".csv", ".parquet", ".pq", ".tsv", ".jsonl", ".ndjson")):
        flag = "--choices" if name.endswith((".jsonl", ".ndjson")) else "--panel"
        raise ConfigError(f"{config} is not TOML but data; give it as {flag} {quote(config)}")
    if (Path(config) / "config.json").exists():
        raise ConfigError(
            f"{config} is a run, not a configuration; to go on with it: irlhf fit --resume {quote(config)}"
        )


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar on stderr that shows step, objective and gradient."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("solving for the start", total=None)

        def advance(step: dict[str, Any]) -> None:
            gradient = step.get("max_gradient", float("nan"))
            text = f"step {step['step']}  objective {step['objective']:.6f}  largest gradient {gradient:.1e}"
            bar.update(task, description=text)

        yield advance


def _show(job: Any, fit: Any) -> None:
    """The table of parameters and the held-out scores, on stdout."""
    from irlhf.cli import jobs

    kind = jobs.error_kind(job, fit)
    if kind is not None:
        print(in_the_shell(fit.summary(kind, cluster=job.settings.cluster)))
    else:
        print(
            f"{in_the_shell(str(fit.status))}\n\n{len(fit.params)} parameters; for their standard errors give --errors"
        )
        print(fit.log_likelihood.to_string())
    _print_scores(jobs.held_out(job, fit), "held out")
    print()


def _print_scores(tables: dict[str, Any], what: str) -> None:
    for name, table in tables.items():
        print(f"\n{what}, {name}: log-likelihood in nats, beside what needs no reward")
        print(table.to_string(float_format=lambda x: f"{x:.4f}"))


def _try_report(job: Any, fit: Any, path: Path) -> None:
    """The page, if what draws it is installed; the fit is safe either way."""
    try:
        _report(job, fit, path)
    except (ImportError, IrlhfError) as error:
        say(f"note: there is no report.html: {error}")


def _report(job: Any, fit: Any, path: Path) -> Path:
    from irlhf.cli import finished
    from irlhf.report import write_report

    return write_report(fit, path / "report.html", **finished.report_inputs(job, fit, path))


def fit_command(world: str | None) -> Callable[..., None]:
    """``irlhf fit`` with the flags of a world; with none of them for None (they take seconds to import)."""

    def fit(config: str | None = None, resume: str | None = None, **flags: Any) -> None:
        _fit(config, resume, settings_of(flags))

    about = Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="A TOML file with settings.", show_default=False)
    ]
    again = Annotated[
        str | None, typer.Option(help="Go on with a run (default: the newest, or that of --out).", metavar="RUN")
    ]
    own: list[inspect.Parameter] = []
    if world is not None:
        from irlhf.config import world_config

        own = fit_flags(world_config(world).Settings)
    parameters = [
        inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=about),
        inspect.Parameter("resume", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=again),
        *own,
    ]
    run = guarded(fit)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = FIT_HELP
    return run


# ------------------------------------------------------------------------------------------------- the other commands

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that irlhf fit made.", show_default=False)]
WhoseSource = Annotated[
    str | None, typer.Option("--source", metavar="NAME", help="Whose temperature all rows have, whatever they say.")
]


@guarded
def score(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A panel, or JSON Lines.", show_default=False)],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there: .csv or .jsonl.")] = None,
    format: Annotated[str | None, typer.Option(metavar="csv|jsonl", help="Default: by the name, or csv.")] = None,
    source: WhoseSource = None,
) -> None:
    """The log-likelihood of each row of a file under a fitted reward.

    \b
    irlhf score runs/buses new-panel.csv > scores.csv
    irlhf score runs/both comparisons.jsonl --out scores.jsonl
    """
    from irlhf.cli import finished
    from irlhf.storage.files import atomic_write

    if format is None:
        format = "jsonl" if out is not None and out.suffix in (".jsonl", ".ndjson") else "csv"
    if format not in ("csv", "jsonl"):
        raise ConfigError(f"format is {format!r}; choose csv or jsonl")
    job = finished.reopen(run)
    say(*(f"note: {note}" for note in job.warnings))
    table = finished.score(job, finished.read_feedback(job, file, source))
    if format == "csv":
        text = table.to_csv(index=False, lineterminator="\n")
    else:
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in table.to_dict("records"))
    if out is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        try:
            atomic_write(out, text.encode("utf-8", "replace"))
        except OSError as error:
            raise ConfigError(f"{out} cannot be written: {error.strerror}; choose another --out") from None
    for name, rows in table.groupby("source", sort=False):
        weight, values = rows["weight"].to_numpy(), rows["log_likelihood"].to_numpy()
        total = weight @ values
        say(f"{name}: {len(rows)} rows, log-likelihood {total:.6f}, {total / weight.sum():.6f} a row")


@guarded
def evaluate(
    run: Run,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Panels or JSON Lines; default: what was held out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    source: WhoseSource = None,
) -> None:
    """How well a fitted reward predicts feedback it has not seen, beside baselines.

    \b
    irlhf evaluate runs/buses                      what --holdout kept back
    irlhf evaluate runs/buses later-panel.csv comparisons.jsonl
    """
    from irlhf.cli import finished, jobs

    job = finished.reopen(run)
    say(*(f"note: {note}" for note in job.warnings))
    if files:
        tables = {str(file): finished.assess(job, [finished.read_feedback(job, file, source)]) for file in files}
    elif job.held_out:
        tables = {"held out": finished.assess(job, list(job.held_out.values()))}
    elif job.absent:
        gone = ", ".join(map(str, job.absent))
        raise ConfigError(
            f"what was held out is in {gone}, which is not there; put it back, or give files to predict: "
            f"irlhf evaluate {run} FILE"
        )
    else:
        raise ConfigError(f"the fit in {run} held nothing out; give files to predict: irlhf evaluate {run} FILE")
    if as_json:
        plain = {file: {name: jobs.as_json(t) for name, t in by_term.items()} for file, by_term in tables.items()}
        print(json.dumps(plain, indent=2))
        return
    for file, by_term in tables.items():
        _print_scores(by_term, file)


@guarded
def report(run: Run) -> None:
    """Make report.html of a run (again): one page that explains the fit.

    \b
    irlhf report runs/buses
    """
    from irlhf.cli import finished

    job = finished.reopen(run)
    try:
        print(_report(job, finished.refit(job, run), run))
    except ImportError as error:
        raise ConfigError(f'a report needs jinja2 and matplotlib ({error}): pip install "irlhf[report]"') from None


@guarded
def demo(
    name: Annotated[str, typer.Argument(metavar="NAME", help="; ".join(f"{k}: {v}" for k, v in DEMOS.items()))] = "icu",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller, to see that it runs.")] = False,
) -> None:
    """Watch the library answer a question on real input.

    \b
    irlhf demo            what clinicians value, from what they do and prefer
    irlhf demo lineup     are RLHF and inverse reinforcement learning one thing?
    irlhf demo taxi       how drivers choose a route (needs data, see docs/taxi.md)

    Each ends within two minutes.
    """
    if name not in DEMOS:
        raise ConfigError(f"there is no demo {name!r}; the demos are {', '.join(DEMOS)}")
    importlib.import_module(f"irlhf.demos.{name}").main(seed=seed, quick=quick)


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
    for command in (distill, score, evaluate, report, demo):
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
