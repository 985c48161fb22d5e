"""From a configuration to a fit in a run directory; :mod:`irlhf.cli.finished` is the way back.

job = prepare(settings)                          reads every file, builds world, reward, sources and terms
fit = run_fit(job, run, progress)                fits, and leaves reward.safetensors and result.json in the run
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from irlhf.cli.partition import log_z
from irlhf.config import Settings, Setup, world_config
from irlhf.errors import ConfigError
from irlhf.evaluation import evaluate
from irlhf.feedback import CHOICE, DEMONSTRATION, KINDS, RATING, Feedback, concatenate
from irlhf.fit import Fit, Status, fit_reward
from irlhf.io.wording import nearest
from irlhf.joint import fit_jointly
from irlhf.likelihood import Term, exact, listed
from irlhf.minibatches import Minibatches, Pieces
from irlhf.objective import Normal, Objective
from irlhf.optimize import LBFGS, TorchOptimizer
from irlhf.proposals import Pool
from irlhf.randomness import Key
from irlhf.simulated import sampled, variational
from irlhf.sources import Source, davidson, rao_kupper
from irlhf.storage.rundir import RunDir
from irlhf.wording import plural

NAMED = 10_000  # parameters: of more, no list is made
MANY = 200  # parameters: with more, standard errors are computed only if they are asked for
STEPS = 1000
JUDGED = 16  # episodes by which the bound of a joint fit is estimated in the end
RATE = 1e-2
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

    demonstrators: list[str] = field(default_factory=list)
    """Sources that demonstrated."""

    @property
    def reward(self) -> torch.nn.Module:
        return self.setup.reward

    def term(self, name: str) -> Term:
        return next(term for term in self.terms if term.name == name)

    @cached_property
    def held_terms(self) -> dict[str, Term]:
        """What was held out, laid out once."""
        return {name: self.term(name).on(rows) for name, rows in self.held_out.items()}


# ------------------------------------------------------------------------------------------------------ preparation


def prepare(settings: Settings, tell: Callable[[str], None] = lambda sentence: None) -> Job:
    """Read the files and build what is fitted; what takes long is told before it begins.

    Raises:
        DataError: a file cannot be read.
        ConfigError: settings that contradict the data or each other, or parameters that do not exist.
    """
    setup = world_config(settings.world).from_config(settings)
    if settings.temperature_by == "person":
        setup = replace(setup, feedback=[part.by_person() for part in setup.feedback])
    kept, held = split(setup.feedback, settings.holdout, by=settings.split_by, seed=settings.seed)
    sources, notes = make_sources(
        settings, setup.feedback, fit_temperatures=setup.fit_temperatures, temperatures=setup.temperatures
    )
    if likelihood_of(settings, setup) == "sampled" and (
        rows := sum(int((part.kind == DEMONSTRATION).sum()) for part in kept)
    ):
        tell(f"drawing {settings.rivals} rivals for each of {plural(rows, 'demonstration')}")
    terms = make_terms(settings, setup, sources, kept)
    if lost := [name for name in sources if all(term.source is not sources[name] for term in terms)]:
        raise ConfigError(
            f"all feedback of the source {lost[0]!r} is held out; choose a smaller --holdout, or another --split-by"
        )
    held_out = {name: rows for name, _, _, rows in by_source_and_kind(held, list(sources))} if held else {}
    if setup.minibatches is None:  # do the parameters exist that settings name?
        Objective(setup.reward, terms, fixed=settings.fix, bounds=bounds_of(settings), start=settings.start)
    if held_out:
        notes.append(
            f"held out: {sum(map(len, held_out.values()))} of {sum(map(len, setup.feedback))} rows, "
            f"by whole groups of one {settings.split_by}"
        )
    demonstrators = [name for name, source in sources.items() if any(_demonstrates(t, source) for t in terms)]
    return Job(settings, setup, sources, terms, held_out, [*setup.notes, *notes], demonstrators=demonstrators)


def _demonstrates(term: Term, source: Source) -> bool:
    return term.source is source and int(term.feedback.kind[0]) == DEMONSTRATION


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


def make_sources(
    settings: Settings,
    parts: Sequence[Feedback],
    *,
    fit_temperatures: bool = True,
    temperatures: Mapping[int, float] | None = None,
) -> tuple[dict[str, Source], list[str]]:
    """A Source for each source name, demonstrators first, and sentences that say which temperatures are fitted.

    Reward and temperatures have one scale in common, so one source keeps its temperature: one that the settings give a
    temperature to, otherwise the first. All further sources fit theirs unless the settings (or the world, by
    ``fit_temperatures=False``) say otherwise. ``temperatures``: of sources by the kind of their first feedback, where
    the settings give none; 1 otherwise.
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
            fitted[name] = held and fit_temperatures
            held = True
    sources, notes = {}, []
    for name in names:
        given = own[name]
        temperature = None if given is None else given.temperature
        if temperature is None:
            kinds = [int(part.kind[part.source == name][0]) for part in parts if (part.source == name).any()]
            temperature = (temperatures or {}).get(kinds[0], 1.0)
        tied = any(((p.source == name) & (p.kind == CHOICE) & (p.chosen < 0)).any() for p in parts)
        ties = given.ties if given is not None and given.ties else settings.ties if tied else None
        more: dict[str, Any] = {}
        if given is not None:
            more = {"fit_noise": given.fit_noise, "fit_position": given.fit_position}
            more |= {"noise": given.noise or 0.0, "position": given.position or 0.0}
        model = TIES[ties]() if ties else None
        sources[name] = source = Source(temperature, fit_temperature=bool(fitted[name]), ties=model, **more)
        how = "fitted" if fitted[name] else f"fixed at {temperature:g}"
        note = f"source {name}: temperature {how}" + (f", ties after {ties}" if ties else "")
        note += ", a share of answers by chance" if source.log_odds_of_noise is not None else ""
        notes.append(note + (", a liking for what is shown first" if source.position is not None else ""))
    return sources, notes if len(names) > 1 or settings.sources or settings.ties else []


def make_terms(
    settings: Settings, setup: Setup, sources: Mapping[str, Source], parts: Sequence[Feedback]
) -> list[Term]:
    """One Term for each source; where a source gave several kinds of feedback, one for each, with the same Source."""
    return [
        Term(rows, likelihood_for(settings, setup, kind), sources[source], name=name)
        for name, source, kind, rows in by_source_and_kind(parts, list(sources))
    ]


def likelihood_of(settings: Settings, setup: Setup) -> str:
    return settings.likelihood or setup.likelihood


def likelihood_for(settings: Settings, setup: Setup, kind: int) -> Any:
    """How feedback of a kind is explained: demonstrations as the settings say, all else out of what was shown."""
    if kind != DEMONSTRATION:
        return listed(setup.world, setup.model)
    if likelihood_of(settings, setup) == "exact":
        return exact(setup.world, setup.kind)
    if likelihood_of(settings, setup) == "variational":
        return variational(setup.world, setup.policy, n=JUDGED, key=Key(settings.seed).at("draws"))
    asked = None if setup.kind in ("", "causal") else setup.kind  # causal is what nobody asked for
    key = Key(settings.seed).at("rivals")
    return sampled(setup.world, setup.proposal, n=settings.rivals, kind=asked, key=key)


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
    if any(getattr(term.likelihood, "saddle", False) for term in job.terms):
        return _fit_jointly(job, run, progress)
    settings, optimizer, tell = job.settings, optimizer_of(job), progress or (lambda told: None)
    if job.setup.first_pass is not None:
        job.setup.first_pass(batches_of(job.terms), tell)
    if isinstance(optimizer, Minibatches):
        known = {"of": optimizer.steps(Pieces(job.reward, job.terms))}
        progress = lambda told: tell({**told, **known})  # noqa: E731
    fit = fit_reward(
        job.reward,
        job.terms,
        optimizer=optimizer,
        prior=prior_of(job),
        fixed=settings.fix,
        bounds=bounds_of(settings),
        start=settings.start,
        run=run,
        progress=progress,
    )
    _leave(job, fit, run)
    return fit


def _fit_jointly(job: Job, run: RunDir | None, progress: Callable[[dict[str, Any]], None] | None) -> Fit:
    """Reward and policy, where demonstrations are explained by one. The policy is left in the run, too."""
    setup = job.setup
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the notes say it
        fit, learned = fit_jointly(
            job.reward, setup.policy, job.terms, setup.world,
            rounds=setup.rounds, key=Key(job.settings.seed).at("joint"), run=run, progress=progress,
        )  # fmt: skip
    if run is not None:
        run.write_tensors("policy.safetensors", dict(learned.policy.state_dict()), {"status": learned.status.name})
    _leave(job, fit, run)
    return fit


def _leave(job: Job, fit: Fit, run: RunDir | None) -> None:
    """The world, the reward, and unless the fit was interrupted the result, in the run."""
    if run is None:
        return
    write_world(job, run)
    write_reward(job, fit, run)
    if fit.status is not Status.INTERRUPTED:
        run.write_json("result.json", result(job, fit))
        run.status["fit"] = fit.status.name
    if fit.cautions:
        run.status["careful"] = fit.cautions


def batches_of(terms: Sequence[Term]) -> list[Any]:
    """All that the reward is asked about in a fit."""
    return [batch for t in terms for batch in (t.prepared.batch, *(d.batch for d in getattr(t.prepared, "draws", ())))]


def prior_of(job: Job) -> Normal | None:
    sd = job.setup.prior if job.settings.prior is None else job.settings.prior
    return None if sd is None else Normal(sd=sd)


def optimizer_of(job: Job) -> LBFGS | TorchOptimizer | Minibatches:
    settings, how = job.settings, job.setup.minibatches
    if how is not None:
        rate, rest = how["rate"], {name: value for name, value in how.items() if name != "rate"}
        key = Key(settings.seed).at("minibatches")
        make = partial(torch.optim.AdamW, lr=rate, weight_decay=0.0)
        return Minibatches(make, max_steps=settings.max_steps, key=key, **rest)
    steps = settings.max_steps or STEPS
    if settings.optimizer == "adam" or (settings.optimizer is None and _is_neural(settings)):
        return TorchOptimizer(partial(torch.optim.Adam, lr=settings.rate or RATE), max_steps=steps)
    return LBFGS(tolerance=settings.tolerance, max_steps=steps)


def write_world(job: Job, run: RunDir) -> None:
    """``world.safetensors``: what the reward was fitted in: the run can be used where its data files are not."""
    keep = getattr(world_config(job.settings.world), "keep", None)
    if keep:
        run.write_tensors("world.safetensors", *keep(job.setup))


def write_reward(job: Job, fit: Fit, run: RunDir) -> None:
    """``reward.safetensors``: every parameter of the reward and of the sources, their names in its metadata."""
    info = {
        "world": job.settings.world,
        "parameters": fit.problem.names if len(fit.theta) <= NAMED else len(fit.theta),
        "sources": list(job.sources),
        "demonstrators": job.demonstrators,
        "status": fit.status.name,
        "objective": fit.objective,
    }
    run.write_tensors("reward.safetensors", tensors_of(job), info)


def tensors_of(job: Job) -> dict[str, torch.Tensor]:
    modules = {"reward": job.reward, **{f"sources.{name}": source for name, source in job.sources.items()}}
    tensors = {f"{prefix}.{name}": p for prefix, module in modules.items() for name, p in module.named_parameters()}
    kept = job.reward.state_dict().keys()  # buffers that are part of what was learned, such as units of features
    return tensors | {f"reward.{name}": b for name, b in job.reward.named_buffers() if name in kept}


def error_kind(job: Job, fit: Fit) -> str | None:
    """The kind of standard errors to print; None if nobody asked for those of many parameters, or of a network's."""
    if job.setup.minibatches is not None:
        return None
    asked = job.settings.errors or job.settings.cluster
    few = len(fit.theta) <= MANY and not _is_neural(job.settings)
    return job.settings.error_kind if asked or few else None


def _is_neural(settings: Settings) -> bool:
    return getattr(settings, "reward", "") == "neural"


def result(job: Job, fit: Fit) -> dict[str, Any]:
    """What a fit found, as JSON: what ``result.json`` holds."""
    kind = error_kind(job, fit)
    if kind is None:
        few = len(fit.theta) <= NAMED
        parameters, derived = {str(k): {"estimate": v} for k, v in fit.params.items()} if few else {}, {}
    else:
        parameters = as_json(fit.table(kind, cluster=job.settings.cluster))
        derived = as_json(fit.derived(kind, cluster=job.settings.cluster))
    return {
        "status": fit.status.name,
        "sentence": str(fit.status),
        "parameters": parameters,
        "derived": derived,
        "standard_errors": None if kind is None else {"kind": kind, "cluster": job.settings.cluster},
        "prior": None if (prior := prior_of(job)) is None else prior.sd,
        "not_identified": fit.unidentified,
        "objective": fit.objective,
        **_attained(fit),
        "rows": {term.name: len(term.feedback) for term in fit.terms},
        "likelihood": {term.name: _how(term) for term in fit.terms},
        "temperature": {name: float(source.temperature.detach()) for name, source in job.sources.items()},
        **job.setup.about,
        "log_z": log_z(job.settings, fit),
        "held_out": {name: as_json(table) for name, table in held_out(job).items()},
        "steps": len(fit.trace) - 1,
        "evaluations": int(fit.trace["evaluations"].iloc[-1]) if "evaluations" in fit.trace else None,
    }


def _attained(fit: Fit) -> dict[str, dict[str, float]]:
    """The log-likelihood of each term; apart from them the bound of those that are variational."""
    bounds = {term.name for term in fit.terms if getattr(term.likelihood, "saddle", False)}
    found = {str(name): float(value) for name, value in fit.log_likelihood.items()}
    told = {"log_likelihood": {name: value for name, value in found.items() if name not in bounds}}
    return told | ({"bound": {name: found[name] for name in bounds}} if bounds else {})


def _how(term: Term) -> str:
    how = term.likelihood
    if isinstance(how, sampled):
        drawn = "picked from a pool" if isinstance(how.proposal, Pool) else "drawn from the base measure"
        return f"sampled, {plural(how.n, 'rival')} {drawn}"
    kind = getattr(how, "kind", None)
    return type(how).__name__ + (f", {kind}" if kind else "")


def as_json(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """A table of numbers for JSON."""
    return {str(name): {str(k): float(v) for k, v in row.items()} for name, row in table.iterrows()}


def held_out(job: Job) -> dict[str, pd.DataFrame]:
    """The scores of the model and of the baselines on what was held out, by term."""
    return {name: scores(job, term, job.term(name)) for name, term in job.held_terms.items()}


def scores(job: Job, term: Term, training: Term | None) -> pd.DataFrame:
    """How well a term's feedback is predicted, beside baselines; demonstrations of a joint fit by its policy."""
    if not getattr(term.likelihood, "saddle", False):
        return evaluate(job.reward, term, training=training).scores
    assert job.setup.judge is not None
    known = None if training is None else training.feedback
    return job.setup.judge(job.setup.world, job.setup.policy, term.feedback, known)
