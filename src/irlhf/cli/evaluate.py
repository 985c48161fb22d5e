"""``irlhf evaluate``: how well a fit predicts, and how far it can be trusted, as tables one can paste into a paper."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from irlhf.cli.guard import guarded, say
from irlhf.errors import ConfigError

# torch and the worlds take seconds to import: the command does it, so that --help need not

TABLES = (
    "prediction",
    "estimates",
    "criteria",
    "sources",
    "blind",
    "calibration",
    "leave-one-out",
    "bootstrap",
    "simulation",
    "over-optimization",
)

SHOWN = 8  # policies of a frontier


@guarded
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run that irlhf fit made.", show_default=False)],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Panels or JSON Lines; default: what was held out.")
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD", help=f"{', '.join(TABLES)}, or all. May be repeated. Default: prediction."),
    ] = None,
    format: Annotated[str, typer.Option(metavar="WORD", help="text, markdown, latex or csv.")] = "text",
    by: Annotated[
        str, typer.Option(metavar="WORD", help="What is left out or resampled: datum, person or context.")
    ] = "datum",
    draws: Annotated[
        int | None,
        typer.Option(metavar="N", help="Resamples (200), draws of leave-one-out (1000) or of a context (512).", min=25),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of what is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose temperature all rows have, whatever they say.")
    ] = None,
) -> None:
    """How well a fitted reward predicts feedback, and how far it can be trusted.

    \b
    irlhf evaluate runs/buses                      what --holdout kept back
    irlhf evaluate runs/buses later-panel.csv comparisons.jsonl
    irlhf evaluate runs/buses --table estimates --format latex
    irlhf evaluate runs/both --table sources --table blind
    irlhf evaluate runs/buses --table bootstrap --by person

    \b
    prediction     log-likelihood, beside baselines
    estimates      with the standard errors of the fit
    criteria       log-likelihood, AIC, BIC
    sources        what each source adds, and whether they agree
    blind          what the feedback, or one source of it, cannot tell
    calibration    predicted probabilities beside what happened
    leave-one-out  the same without held-out feedback, by importance sampling
    bootstrap      estimates from resampled feedback
    simulation     what other rivals would change, in a fit that draws them
    over-optimization   how far a policy may go before people stop agreeing
    """
    from irlhf.cli import finished, jobs
    from irlhf.tables import FORMATS, formatted

    asked = list(table or ["prediction"])
    if unknown := [word for word in asked if word not in (*TABLES, "all")]:
        raise ConfigError(f"table is {unknown[0]!r}; choose one of {', '.join(TABLES)}, all")
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; choose one of {', '.join(FORMATS)}")
    if by not in ("datum", "person", "context"):
        raise ConfigError(f"--by is {by!r}; choose datum, person or context")
    job = finished.reopen(run)
    if "all" in asked:
        held = bool(files or job.held_out)
        of_run = {"prediction": held, "sources": len(job.terms) > 1, "simulation": _draws(job)}
        of_run["over-optimization"] = False  # draws from the world, which may take long: by name only
        asked = [word for word in TABLES if of_run.get(word, True)]
    words = [word for word in asked if word != "prediction"]
    predicted = _prediction(job, run, files, source) if "prediction" in asked else {}
    say(*(f"note: {note}" for note in job.warnings))
    if as_json:
        plain: dict[str, Any] = {
            file: {name: jobs.as_json(t) for name, t in by_term.items()} for file, by_term in predicted.items()
        }
        for caption, rows in _about(job, run, words, by, draws, seed):
            plain[caption] = rows if isinstance(rows, str) else json.loads(rows.to_json(orient="index"))
        print(json.dumps(plain, indent=2))
        return
    for file, by_term in predicted.items():
        for name, rows in by_term.items():
            caption = f"{file}, {name}: log-likelihood in nats, beside what needs no reward"
            print(("\n" if format == "text" else "") + formatted(rows, format, caption=caption), end="")
    for caption, rows in _about(job, run, words, by, draws, seed):
        between = "\n" if format == "text" else ""
        if isinstance(rows, str):
            print(f"{between}{caption}: {rows}" if format != "csv" else f"# {caption}: {rows}")
        else:
            print(between + formatted(rows, format, caption="" if format == "csv" else caption), end="")


def _draws(job: Any) -> bool:
    return any(hasattr(term.likelihood, "proposal") for term in job.terms)


def _prediction(job: Any, run: Path, files: list[Path] | None, source: str | None) -> dict[str, dict[str, Any]]:
    from irlhf.cli import finished

    if files:
        return {str(file): finished.assess(job, [finished.read_feedback(job, file, source)]) for file in files}
    if job.held_out:
        return {"held out": finished.assess(job, list(job.held_out.values()))}
    if job.absent:
        gone = ", ".join(map(str, job.absent))
        raise ConfigError(
            f"what was held out is in {gone}, which is not there; put it back, or give files to predict: "
            f"irlhf evaluate {run} FILE"
        )
    raise ConfigError(
        f"the fit in {run} held nothing out; give files to predict: irlhf evaluate {run} FILE, or choose another "
        "table: --table leave-one-out"
    )


def _about(job: Any, run: Path, words: list[str], by: str, draws: int | None, seed: int) -> Iterator[tuple[str, Any]]:
    """(caption, table or sentence) of each table that was asked for, in order."""
    if not words:
        return
    from irlhf import hypothesis, inference
    from irlhf.cli import finished
    from irlhf.cli.fit import progress_bar
    from irlhf.cli.policies import APPROVED
    from irlhf.evaluation import evaluate as predict
    from irlhf.identification import blind_spots
    from irlhf.resampling import bootstrap, leave_one_out, simulation_variance

    fit, settings = finished.refit(job, run), job.settings
    with progress_bar() as bar:
        steps: Callable[[dict[str, Any]], None] = lambda told: bar(  # noqa: E731
            {"read": told.get("draw", told.get("resample")), "of": told["of"]}
        )
        for word in words:
            if word == "estimates":
                label = inference.label(settings.error_kind, settings.cluster)
                yield f"Estimates (standard errors: {label})", fit.table(settings.error_kind, cluster=settings.cluster)
                derived = fit.derived(settings.error_kind, cluster=settings.cluster)
                if len(derived):
                    yield "Behind them", derived
            elif word == "criteria":
                yield "Criteria (smaller is better)", hypothesis.criteria(fit).to_frame().T
            elif word == "sources":
                if len(fit.terms) < 2:
                    raise ConfigError("there is one source only: nothing is added, and nothing can disagree")
                yield "What each source adds (share of the information; error alone)", hypothesis.added_information(fit)
                yield "Agreement of sources", str(hypothesis.sources_agree(fit)).partition(": ")[2]
            elif word == "blind":
                yield "What the feedback cannot tell", str(blind_spots(fit))
            elif word == "calibration":
                for term in fit.terms:
                    found = predict(fit.reward, job.held_terms.get(term.name, term))
                    if found.calibration is not None:
                        where = "held out" if term.name in job.held_terms else "as fitted"
                        error, chance = found.calibration_error, found.calibration_noise
                        caption = f"Calibration of {term.name}, {where}: error {error:.4f}, by chance {chance:.4f}"
                        yield caption, found.calibration.set_index("low")
            elif word == "leave-one-out":
                loo = leave_one_out(fit, by=by, draws=draws or 1000, seed=seed, progress=steps)
                yield f"Leave-one-out by {by}", str(loo).partition(": ")[2]
            elif word == "bootstrap":
                drawn = bootstrap(fit, draws or 200, by=by, seed=seed, progress=steps)
                yield (
                    (f"Bootstrap by {by}, {len(drawn.draws)} resamples, {drawn.failed} without a maximum"),
                    drawn.table(),
                )
            elif word == "over-optimization":
                seen = _frontier(job, fit, run, n := draws or APPROVED, seed)
                yield "How far to optimize", str(seen)
                caption = f"Policies mu exp(R/T): rewards, and what people are expected to think ({n} draws)"
                yield caption, seen.table.iloc[:: max(1, len(seen.table) // SHOWN)].set_index("kl")
            elif word == "simulation":
                yield "Standard errors, and what other rivals would change", simulation_variance(fit, seed=seed)


def _frontier(job: Any, fit: Any, run: Path, n: int, seed: int) -> Any:
    from irlhf.cli import policies
    from irlhf.config import world_config

    config = world_config(job.settings.world)
    settings = policies.settings_from({}, {"run": run, "seed": seed})
    some = policies.first_of(job, config.contexts_of(job.setup, settings), n)
    _, as_drawn = config.policy_of(job.setup, some, settings)
    return policies.frontier_of(fit, job.setup.world, as_drawn, n, seed)
