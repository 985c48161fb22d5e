"""``irlhf distill``: a learned reward in, a policy out, and on the screen how far it came."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from irlhf import __version__
from irlhf.cli.folders import default_path, newest, nothing_left_behind
from irlhf.cli.guard import guarded, say
from irlhf.errors import ConfigError
from irlhf.signals import Terminated, catching

# torch and the worlds take seconds to import: the command does it, so that --help need not

ROWS = {  # of the table on stdout: name -> (what it is called, its standard error)
    "objective": ("objective", None),
    "reward": ("reward", None),
    "kl": ("KL to mu", "kl_error"),
    "log_z": ("log Z", "log_z_error"),
    "gap": ("gap", None),
    "effective_share": ("effective share", None),
    "entropy": ("entropy", None),
    "tokens": ("tokens", None),
    "truncated": ("truncated", None),
    "return": ("paid in truth", None),
    "length": ("length", None),
}


@guarded
def distill(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run that irlhf fit made.", show_default=False)
    ] = None,
    learner: Annotated[
        str | None,
        typer.Option(
            metavar="WORD",
            help="rloo (default), reinforce, grpo, ppo, actor-critic, expected; of environments: control.",
        ),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(metavar="N", help="Trajectories from each context in a step. Default: 8.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Contexts in a step. Default: all; texts: 8 prompts.")
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(metavar="N", help="Draws in one backward pass. Default: all; texts: 16.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="How often. Default: 300; texts: 100; expected: 1000.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="X", help="Learning rate, falling to zero over the steps. Default: 0.1; texts: 0.001."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(metavar="N", help="Of the matrices that are learned of a text model. Default: 16.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="T", help="In units of the reward. Default: that of the demonstrations, or 1."),
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option(metavar="STATE", help="Start there, not where the demonstrations do. May be repeated."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts of texts. Default: those of the feedback.")
    ] = None,
    best_of: Annotated[
        int | None, typer.Option(metavar="N", help="Compare with the best of N draws, untrained. Default: 8.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of everything random. Default: 0.")] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Write the curve for TensorBoard, too.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the policy goes. Default: runs/NAME-policy.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="DIR", help="Go on with a policy (default: the newest, or that of RUN).")
    ] = None,
) -> None:
    """Turn a learned reward into a policy.

    The policy maximizes reward/T minus KL(policy, mu), mu being the base
    measure: the distribution that inverse reinforcement learning fits.

    \b
    irlhf distill runs/buses
    irlhf distill runs/buses --learner actor-critic --steps 500 --start 0
    irlhf distill runs/trips --learner ppo --draws 16 --out runs/walker
    irlhf distill runs/reviews --prompts prompts.jsonl --steps 200
    irlhf distill --resume runs/buses-policy

    \b
    The screen shows, averaged over contexts and in nats:
    objective         reward/T minus KL to mu: at most log Z
    KL to mu          how far the policy went from the base measure
    gap               a lower bound of KL(policy, optimum), from the draws
    effective share   of the draws, as weighted samples of the optimum

    The directory (--out) holds policy.safetensors, result.json, the curve and
    checkpoints; policy.csv, or of texts an adapter for PEFT and
    completions.jsonl. It can be resumed after any interruption, and then ends
    with the same numbers to the bit. The last lines say how far from mu people
    would still agree, where comparisons can tell; the table behind it:
    irlhf evaluate RUN --table over-optimization
    """
    from irlhf.cli import board, policies
    from irlhf.fit import Status
    from irlhf.storage.rundir import open_run
    from irlhf.wording import plural

    flags = {
        "run": run, "learner": learner, "draws": draws, "steps": steps, "rate": rate, "temperature": temperature,
        "start": start, "best_of": best_of, "seed": seed, "batch": batch, "at_once": at_once, "rank": rank,
        "prompts": prompts, "tensorboard": tensorboard,
    }  # fmt: skip
    settings, path = _settings({name: value for name, value in flags.items() if value not in (None, [])}, out, resume)
    board.require(settings.tensorboard)
    say(f"irlhf {__version__}: distilling {settings.run.name}")
    with catching() as caught, nothing_left_behind(path) as made:
        job = policies.prepare(settings, lambda sentence: say(f"  {sentence}"))
        settings = job.settings
        say(*(f"  note: {note}" for note in job.job.warnings))
        say(f"  {job.job.setup.world!r}")
        say(f"  learner {settings.learner}, {plural(len(job.contexts), 'context')}, temperature {job.temperature:g}")
        with open_run(
            path,
            config=settings.model_dump(mode="json"),
            data_files=policies.data_files(settings),
            resume=resume is not None,
            may_change=("run", "best_of", "prompts", "tensorboard"),
        ) as opened:
            if opened.attempt == 1:
                made.append(opened.path)
            say(f"  policy: {path}", *(f"note: {note}" for note in opened.notes), "")
            try:
                bar = _progress_bar(job.learner.max_steps)
                with bar as shown, board.scalars(path, settings.tensorboard, shown) as progress:
                    fit = policies.run_fit(job, opened, progress)
                if fit.status is Status.INTERRUPTED:  # the fit kept the interrupt, to hand back its last whole step
                    raise Terminated if caught else KeyboardInterrupt
                found = policies.write(job, fit, opened)
            except KeyboardInterrupt:
                say(f"Every complete step is in {path}. To go on: irlhf distill --resume {quote(str(path))}")
                raise
    _show(found, fit, policies.sentence(fit))
    say(f"The policy is in {path}: {', '.join(['policy.safetensors', *job.files(fit.policy)])}")
    if (path / "completions.jsonl").exists():
        say("What it wrote before, on the way and in the end is in completions.jsonl")


def _settings(flags: dict[str, Any], out: Path | None, resume: str | None) -> tuple[Any, Path]:
    """The settings, and where a new policy goes, or where the one to be resumed is."""
    from irlhf.cli import policies

    path = Path(resume).absolute() if resume else None if out is None else out.absolute()
    run = flags.get("run")
    if path is None and run is not None:
        path = default_path(f"{run.absolute().name}-policy", resume is not None, policies=True)
    if path is None:
        if resume is None:
            raise ConfigError("nothing says what to distill; give a run: irlhf distill RUN")
        path = newest("*", policies=True)
    stored: dict[str, Any] = {}
    if resume is not None and ((path / "config.json").exists() or run is None):
        stored = policies.stored_settings(path)
    return policies.settings_from(stored, flags, f"{path / 'config.json'}: " if stored else ""), path


@contextlib.contextmanager
def _progress_bar(steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar on stderr that shows step, objective, divergence, gap and effective share."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("drawing", total=steps)

        def advance(step: dict[str, Any]) -> None:
            text = f"step {step['step']}"
            for name, called in (("objective", "objective"), ("kl", "KL"), ("gap", "gap")):
                if math.isfinite(step.get(name, math.nan)):
                    text += f"  {called} {step[name]:.3f}"
            if math.isfinite(step.get("effective_share", math.nan)):
                text += f"  effective {step['effective_share']:.0%}"
            bar.update(task, description=text, completed=step["step"])

        yield advance


def _show(found: dict[str, Any], fit: Any, ended: str) -> None:
    """The table of the first step, the last step and fresh draws; the verdicts; what to be careful about. On stdout."""
    steps = [row for row in fit.trace.to_dict("records") if math.isfinite(row.get("objective", math.nan))]
    print(f"{ended}\n")
    fresh = f"{found['draws']} fresh draws"
    print(f"{'':>17}{'first step':>14}{'last step':>14}{fresh:>24}")
    for name, (called, error) in ROWS.items():
        cells = [_cell(row, name) for row in (steps[0], steps[-1])]
        last = _cell(found["policy"], name)
        if error and last != "-":
            last += f" ({_cell(found['policy'], error)})"
        if set(cells) | {last} != {"-"}:
            print(f"{called:>17}{cells[0]:>14}{cells[1]:>14}{last:>24}")
    print()
    likeliest = found["likeliest"]
    if likeliest is not None:
        print(
            f"With the likeliest action each time, as policies are compared by custom: {likeliest['return']:.4f} paid "
            f"in truth, {likeliest['length']:.1f} steps long."
        )
    verdicts = found["log_z_verdicts"]
    if verdicts:
        print(f"log Z from these draws can be trusted at {verdicts.get('reliable', 0)} of {found['judged']} contexts.")
    else:
        print("log Z, gap and effective share are left out: nature's draws or the discount would be in them.")
    exact = found["exact"]
    if exact is not None:
        print(
            f"Exactly: the policy attains {exact['attained']:.4f} of at most {exact['best']:.4f}, "
            f"a gap of {exact['gap']:.2g} nats."
        )
    best = found["best_of"]
    print(
        f"Best of {best['n']} draws of mu, untrained: reward {best['reward']:.4f} ({best['reward_error']:.4f}) at a KL "
        f"of at most {best['kl_bound']:.4f}."
    )
    if found["limit"] is not None:
        print(found["limit"]["says"])
    for alarm in found["alarms"]:
        print(f"careful: {alarm}")


def _cell(row: dict[str, Any], name: str) -> str:
    value = row.get(name, math.nan)
    if not math.isfinite(value):
        return "-"
    return f"{value:.1%}" if name in ("effective_share", "truncated") else f"{value:.4f}"
