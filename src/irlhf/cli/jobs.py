"""From a configuration to a fit in a run directory; :mod:`irlhf.cli.finished` is the way back.

job = prepare(settings)                          reads every file, builds world, reward, sources and terms
fit = run_fit(job, run, progress)                fits, and leaves reward.safetensors and result.json in the run
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from irlhf.config import Settings, Setup, world_config
from irlhf.errors import ConfigError
from irlhf.evaluation import evaluate
from irlhf.feedback import CHOICE, DEMONSTRATION, KINDS, RATING, Feedback, concatenate
from irlhf.fit import Fit, Status, fit_reward
from irlhf.io.wording import nearest
from irlhf.likelihood import Source, Term, davidson, exact, listed, rao_kupper
from irlhf.objective import Normal, Objective
from irlhf.optimize import LBFGS, TorchOptimizer
from irlhf.storage.rundir import RunDir

MANY = 200  # parameters: with more, standard errors are computed only if they are asked for
STEPS = 1000
VERSIONS = ("python", "irlhf", "torch", "numpy", "scipy", "numba", "system", "cpu", "threads", "git")
TIES = {"davidson": davidson, "rao-kupper": rao_kupper}


@dataclass(frozen=True, eq=False)
class Job:
    """A configuration with all its files read: ready to be fitted, or fitted."""

    settings: Settings
    setup: Setup
    sources: dict[str, Source]
    terms: list[Term]
    held_out: dict[str, Feedback]
    """By the name of the term that predicts it."""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    absent: list[Path] = field(default_factory=list)
    """Data files that are gone: then there are no terms, and nothing held out."""

    @property
    def reward(self) -> torch.nn.Module:
        return self.setup.reward


# ------------------------------------------------------------------------------------------------------ preparation


def prepare(settings: Settings) -> Job:
    """Read the files and build what is fitted.

    Raises:
        DataError: a file cannot be read.
        ConfigError: settings that contradict the data or each other, or parameters that do not exist.
    """
    setup = world_config(settings.world).from_config(settings)
    kept, held = split(setup.feedback, settings.holdout, by=settings.split_by, seed=settings.seed)
    sources, notes = make_sources(settings, setup.feedback)
    terms = make_terms(setup, sources, kept)
    if lost := [name for name in sources if all(term.source is not sources[name] for term in terms)]:
        raise ConfigError(
            f"all feedback of the source {lost[0]!r} is held out; choose a smaller --holdout, or another --split-by"
        )
    held_out = {name: rows for name, _, _, rows in by_source_and_kind(held, list(sources))} if held else {}
    Objective(
        setup.reward, terms, fixed=settings.fix, bounds=bounds_of(settings), start=settings.start
    )  # do they exist?
    if held_out:
        notes.append(
            f"held out: {sum(map(len, held_out.values()))} of {sum(map(len, setup.feedback))} rows, "
            f"by whole groups of one {settings.split_by}"
        )
    return Job(settings, setup, sources, terms, held_out, [*setup.notes, *notes])


def split(parts: Sequence[Feedback], fraction: float, *, by: str, seed: int) -> tuple[list[Feedback], list[Feedback]]:
    """(kept, held out): of each part whole groups; groups of persons and contexts are the same in all parts.

    For one part it is :meth:`irlhf.feedback.Feedback.split`.

    Raises:
        ConfigError: a fraction that holds out nothing, or everything.
    """
    if not fraction:
        return list(parts), []
    together = by in ("person", "context")
    names = [_group_names(part, by, number) for number, part in enumerate(parts)]
    held: list[np.ndarray] = [np.zeros(len(part), bool) for part in parts]
    for some in [range(len(parts))] if together else [[k] for k in range(len(parts))]:
        code: dict[Any, int] = {}
        codes = {k: np.array([code.setdefault(name, len(code)) for name in names[k]], np.int64) for k in some}
        chosen = np.random.default_rng(seed).permutation(len(code))[: round(fraction * len(code))]
        if not 0 < len(chosen) < len(code):
            raise ConfigError(
                f"--holdout {fraction:g} of {len(code)} groups of one {by} holds out {len(chosen)} of them; "
                "choose another share, or another --split-by"
            )
        for k in some:
            held[k] = np.isin(codes[k], chosen)
    kept = [rows_of(part, ~mask) for part, mask in zip(parts, held, strict=True) if not mask.all()]
    return kept, [rows_of(part, mask) for part, mask in zip(parts, held, strict=True) if mask.any()]


def rows_of(part: Feedback, rows: np.ndarray) -> Feedback:
    return cast(Feedback, part[rows])


def _group_names(part: Feedback, by: str, number: int) -> list[Any]:
    if by == "context":
        return [repr(part.contexts[x]) for x in part.context]
    return [("nobody", number, row) if name is None else name for row, name in enumerate(getattr(part, by))]


def make_sources(settings: Settings, parts: Sequence[Feedback]) -> tuple[dict[str, Source], list[str]]:
    """A Source for each source name, demonstrators first, and sentences that say which temperatures are fitted.

    Reward and temperatures have one scale in common, so one source keeps its temperature: one that the settings give a
    temperature to, otherwise the first. All further sources fit theirs unless the settings say otherwise.
    """
    names = list(dict.fromkeys(name for part in parts for name in part.where(kind=DEMONSTRATION).source))
    names = list(dict.fromkeys([*names, *(name for part in parts for name in part.source)]))
    for name in settings.sources:
        if name not in names:
            raise ConfigError(f"sources.{name}: the feedback has no such source; {nearest(name, names)}")
    own = {name: settings.sources.get(name) for name in names}
    fitted: dict[str, bool | None] = {}
    for name, given in own.items():
        said = None if given is None else given.fit_temperature
        fitted[name] = False if said is None and given is not None and given.temperature is not None else said
    held = any(value is False for value in fitted.values())
    for name in names:
        if fitted[name] is None:
            fitted[name] = held
            held = True
    sources, notes = {}, []
    for name in names:
        given = own[name]
        temperature = 1.0 if given is None or given.temperature is None else given.temperature
        tied = any(((p.source == name) & (p.kind == CHOICE) & (p.chosen < 0)).any() for p in parts)
        ties = given.ties if given is not None and given.ties else settings.ties if tied else None
        sources[name] = Source(temperature, fit_temperature=bool(fitted[name]), ties=TIES[ties]() if ties else None)
        how = "fitted" if fitted[name] else f"fixed at {temperature:g}"
        notes.append(f"source {name}: temperature {how}" + (f", ties after {ties}" if ties else ""))
    return sources, notes if len(names) > 1 or settings.sources or settings.ties else []


def make_terms(setup: Setup, sources: Mapping[str, Source], parts: Sequence[Feedback]) -> list[Term]:
    """One Term for each source; where a source gave several kinds of feedback, one for each, with the same Source."""
    return [
        Term(rows, likelihood_for(setup, kind), sources[source], name=name)
        for name, source, kind, rows in by_source_and_kind(parts, list(sources))
    ]


def likelihood_for(setup: Setup, kind: int) -> Any:
    return exact(setup.world, setup.kind) if kind == DEMONSTRATION else listed(setup.world)


def by_source_and_kind(parts: Sequence[Feedback], sources: Sequence[str]) -> list[tuple[str, str, int, Feedback]]:
    """(name of the term, source, kind, rows) of all rows, in the order of the sources."""
    for part in parts:
        if unknown := [name for name in part.source if name not in sources]:
            raise ConfigError(
                f"source {unknown[0]!r} is not one that was fitted: {nearest(unknown[0], list(sources))} "
                "Say with --source whose temperature it has"
            )
    result = []
    for source in sources:
        for kind in (DEMONSTRATION, CHOICE, RATING):
            own = [part.where(kind=kind, source=source) for part in parts]
            own = [part for part in own if len(part)]
            if own:
                several = any((part.kind[part.source == source] != kind).any() for part in parts)
                name = f"{source} ({KINDS[kind]}s)" if several else source
                result.append((name, source, kind, concatenate(own)))
    return result


def bounds_of(settings: Settings) -> dict[str, tuple[float | None, float | None]]:
    return dict(settings.bound)


# ------------------------------------------------------------------------------------------------------------ fitting


def run_fit(job: Job, run: RunDir | None = None, progress: Callable[[dict[str, Any]], None] | None = None) -> Fit:
    """Fit a job, from where its run was left. An interrupted fit comes back with ``Status.INTERRUPTED``.

    With a run directory, the reward and the result are written there (of an interrupted fit: the reward alone).
    """
    settings = job.settings
    by_gradient = settings.optimizer == "adam" or (settings.optimizer is None and _is_neural(settings))
    steps = settings.max_steps or STEPS
    optimizer = (
        TorchOptimizer(lambda parameters: torch.optim.Adam(parameters, lr=settings.rate), max_steps=steps)
        if by_gradient
        else LBFGS(tolerance=settings.tolerance, max_steps=steps)
    )
    fit = fit_reward(
        job.reward,
        job.terms,
        optimizer=optimizer,
        prior=None if settings.prior is None else Normal(sd=settings.prior),
        fixed=settings.fix,
        bounds=bounds_of(settings),
        start=settings.start,
        run=run,
        progress=progress,
    )
    if run is not None:
        write_world(job, run)
        write_reward(job, fit, run)
        if fit.status is not Status.INTERRUPTED:
            run.write_json("result.json", result(job, fit))
            run.status["fit"] = fit.status.name
    return fit


def write_world(job: Job, run: RunDir) -> None:
    """``world.safetensors``: what the reward was fitted in: the run can be used where its data files are not."""
    keep = getattr(world_config(job.settings.world), "keep", None)
    if keep:
        run.write_tensors("world.safetensors", *keep(job.setup))


def write_reward(job: Job, fit: Fit, run: RunDir) -> None:
    """``reward.safetensors``: every parameter of the reward and of the sources, their names in its metadata."""
    info = {
        "world": job.settings.world,
        "parameters": fit.problem.names,
        "sources": list(job.sources),
        "status": fit.status.name,
        "objective": fit.objective,
    }
    run.write_tensors("reward.safetensors", tensors_of(job), info)


def tensors_of(job: Job) -> dict[str, torch.Tensor]:
    modules = {"reward": job.reward, **{f"sources.{name}": source for name, source in job.sources.items()}}
    return {f"{prefix}.{name}": p for prefix, module in modules.items() for name, p in module.named_parameters()}


def error_kind(job: Job, fit: Fit) -> str | None:
    """The kind of standard errors to print; None if nobody asked for those of many parameters, or of a network's."""
    asked = job.settings.errors or job.settings.cluster
    few = len(fit.problem.names) <= MANY and not _is_neural(job.settings)
    return job.settings.error_kind if asked or few else None


def _is_neural(settings: Settings) -> bool:
    return getattr(settings, "reward", "") == "neural"


def result(job: Job, fit: Fit) -> dict[str, Any]:
    """What a fit found, as JSON: what ``result.json`` holds."""
    kind = error_kind(job, fit)
    if kind is None:
        parameters, derived = {name: {"estimate": value} for name, value in fit.params.items()}, {}
    else:
        parameters = as_json(fit.table(kind, cluster=job.settings.cluster))
        derived = as_json(fit.derived(kind, cluster=job.settings.cluster))
    return {
        "status": fit.status.name,
        "sentence": str(fit.status),
        "parameters": parameters,
        "derived": derived,
        "standard_errors": None if kind is None else {"kind": kind, "cluster": job.settings.cluster},
        "not_identified": fit.unidentified,
        "objective": fit.objective,
        "log_likelihood": {str(name): float(value) for name, value in fit.log_likelihood.items()},
        "rows": {term.name: len(term.feedback) for term in fit.terms},
        "likelihood": {term.name: _how(term) for term in fit.terms},
        "temperature": {name: float(source.temperature.detach()) for name, source in job.sources.items()},
        **job.setup.about,
        "held_out": {name: as_json(table) for name, table in held_out(job, fit).items()},
        "steps": len(fit.trace) - 1,
        "evaluations": int(fit.trace["evaluations"].iloc[-1]),
    }


def _how(term: Term) -> str:
    kind = getattr(term.likelihood, "kind", None)
    return type(term.likelihood).__name__ + (f", {kind}" if kind else "")


def as_json(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """A table of numbers for JSON."""
    return {str(name): {str(k): float(v) for k, v in row.items()} for name, row in table.iterrows()}


def held_out(job: Job, fit: Fit) -> dict[str, pd.DataFrame]:
    """The scores of the model and of the baselines on what was held out, by term."""
    training = {term.name: term for term in fit.terms}
    tables = {}
    for name, rows in job.held_out.items():
        term = training[name]
        tables[name] = evaluate(job.reward, term.on(rows), training=term).scores
    return tables
