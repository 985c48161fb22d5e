"""``irlhf fit``: files in, a reward out, and on the screen how far to trust it."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from irlhf import __version__
from irlhf.cli.flags import fit_flags, settings_of
from irlhf.cli.folders import default_path, newest, nothing_left_behind
from irlhf.cli.guard import guarded, say
from irlhf.cli.words import in_the_shell
from irlhf.errors import ConfigError, IrlhfError
from irlhf.signals import Terminated, catching

# torch and the worlds take seconds to import: the command does it, so that --help need not

FIT_HELP = """
Fit a reward to what people did and preferred.

Settings come from one TOML file, from flags, or from both: flags override the
file. Each world has its own flags: irlhf fit --world text --help

\b
irlhf fit --panel panel.csv --features features.csv --discount 0.9999
irlhf fit --panel trips.csv --features links.csv --destinations
irlhf fit --panel panel.csv --choices pairs.jsonl --features features.csv \\
          --discount 0.95 --cluster person
irlhf fit --world text --model smollm2 --feedback liked.jsonl --pool all.jsonl
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
    from irlhf import distributed
    from irlhf.cli import board, jobs
    from irlhf.storage.rundir import open_run

    distributed.start()
    first = distributed.first()
    tell = say if first else _silent  # of an error every process says its own
    settings = _settings(config, resume, flags)
    path = settings.out
    board.require(settings.tensorboard)
    tell(f"irlhf {__version__}: reading {', '.join(file.name for file in settings.data_files())}")
    with catching() as caught, nothing_left_behind(path) as made:
        job = jobs.prepare(settings, lambda sentence: tell(f"  {sentence}"))
        tell(f"  {job.setup.world!r}", *(f"  {term.name}: {term.feedback!r}" for term in job.terms))
        tell(*(f"  {note}" for note in job.notes))
        files = settings.data_files()
        # Files may have moved: what is in them is compared.
        may = (*settings.MAY_CHANGE, *settings.FILES, *settings.NAMES)
        stored = settings.model_dump(mode="json")
        with open_run(path, config=stored, data_files=files, resume=resume is not None, may_change=may) as run:
            if first and run.attempt == 1:
                made.append(run.path)
            tell(f"  run: {path}", *(f"note: {note}" for note in run.notes), "")
            try:
                bars = progress_bar() if first else contextlib.nullcontext(_silent)
                with bars as bar, board.scalars(path, settings.tensorboard and first, bar) as progress:
                    fit = jobs.run_fit(job, run, progress)
                if fit.status.name == "INTERRUPTED":  # the fit kept the interrupt, to hand back its last whole step
                    raise Terminated if caught else KeyboardInterrupt
                if first:
                    _show(job, fit, path)
                    if settings.report:
                        _try_report(job, fit, path)
            except KeyboardInterrupt:
                tell(f"Every complete step is in {path}. To go on: irlhf fit --resume {quote(str(path))}")
                raise
    named = quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))
    again = "" if settings.report else f"irlhf report {named}, or "
    page = ", its page in report.html" if (path / "report.html").exists() else ""
    tell(f"The run is in {path}{page}. Next: {again}irlhf evaluate {named} FILE")


def _silent(*told: Any) -> None:
    """What a process does that is not the first of those that torchrun started: the first tells for all."""


def _settings(config: str | None, resume: str | None, flags: dict[str, Any]) -> Any:
    """The settings of a fit, ``out`` resolved: where a new run goes, or where the one to be resumed is."""
    from irlhf import distributed
    from irlhf.cli.finished import stored_settings
    from irlhf.config import read_toml, settings_from

    if resume and config is None and resume.endswith(".toml"):
        config, resume = resume, ""
    path = Path(resume).absolute() if resume else None
    if resume == "" and config is None and "out" not in flags:
        path = newest("*", policies=False)
    if config is not None:
        _refuse_data(config, flags.get("world", "tabular"))
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
    # The clock is in the default: all processes go where the first goes.
    return settings.model_copy(update={"out": Path(distributed.from_first(lambda: str(path)))})


def _refuse_data(config: str, world: str) -> None:
    """What is given in place of a configuration now and then. Raises ConfigError saying where it belongs."""
    from irlhf.config import world_config

    name = config.lower().removesuffix(".gz")
    if name.endswith((".csv", ".parquet", ".pq", ".tsv", ".jsonl", ".ndjson")):
        flag = world_config(world).Settings.flag_for(name)
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
            if "read" in step:
                bar.update(task, description=f"read {step['read']:,} of {step['of']:,}")
                return
            text = f"step {step['step']}" + (f" of {step['of']}" if "of" in step else "")
            text += f"  objective {step['objective']:.6f}"
            for name, called in (("max_gradient", "largest gradient"), ("gradient_norm", "length of the gradient")):
                if name in step:
                    text += f"  {called} {step[name]:.1e}"
            bar.update(task, description=text)

        yield advance


def _show(job: Any, fit: Any, path: Path) -> None:
    """The table of parameters, what log Z is worth and the held-out scores, on stdout."""
    from irlhf.cli import finished, jobs

    kind = jobs.error_kind(job, fit)
    if kind is not None:
        print(in_the_shell(fit.summary(kind, cluster=job.settings.cluster)))
    elif job.setup.minibatches is not None:
        print(in_the_shell(fit.summary()))
    else:
        print(
            f"{in_the_shell(str(fit.status))}\n\n{len(fit.theta)} parameters; for their standard errors give --errors"
        )
        print(fit.log_likelihood.to_string())
    if told := finished.of_log_z(path):
        print("", *told, sep="\n")
    print_scores(jobs.held_out(job), "held out")
    print()


def print_scores(tables: dict[str, Any], what: str) -> None:
    for name, table in tables.items():
        print(f"\n{what}, {name}: log-likelihood in nats, beside what needs no reward")
        print(table.to_string(float_format=lambda x: f"{x:.4f}"))


def _try_report(job: Any, fit: Any, path: Path) -> None:
    """The page, if what draws it is installed; the fit is safe either way."""
    try:
        make_report(job, fit, path)
    except (ImportError, IrlhfError) as error:
        say(f"note: there is no report.html: {error}")


def make_report(job: Any, fit: Any, path: Path) -> Path:
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
