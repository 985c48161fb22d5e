"""From a run directory back to a reward: what ``score``, ``evaluate``, ``report`` and ``--resume`` start from."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from irlhf.cli.folders import is_policy
from irlhf.cli.jobs import (
    VERSIONS,
    Job,
    bounds_of,
    by_source_and_kind,
    likelihood_for,
    prepare,
    prior_of,
    rows_of,
    scores,
    tensors_of,
)
from irlhf.cli.partition import sentences
from irlhf.config import Settings, settings_from, world_config
from irlhf.errors import CheckpointError, ConfigError, IrlhfError
from irlhf.feedback import KINDS, Feedback
from irlhf.fit import Fit, Status
from irlhf.io.wording import nearest, shown
from irlhf.likelihood import Term
from irlhf.minibatches import Pieces
from irlhf.objective import Objective
from irlhf.sources import Source, davidson, rao_kupper
from irlhf.storage.checkpoint import check_like, read_tensors
from irlhf.storage.files import parse_json
from irlhf.storage.fingerprint import hash_files
from irlhf.storage.rundir import read_metrics


def stored_settings(path: Path) -> dict[str, Any]:
    """The settings in a run's ``config.json``. Raises CheckpointError if there are none."""
    file = path / "config.json"
    try:
        raw = parse_json(file.read_bytes(), str(file))
    except OSError as error:
        raise CheckpointError(
            f"{path} is not a run of irlhf fit: {file.name} cannot be read ({error.strerror})"
        ) from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} is not a JSON object; it is damaged")
    if is_policy(raw):
        raise CheckpointError(
            f"{path} is a policy that irlhf distill made, not a run of irlhf fit; the run is {shown(raw.get('run'))}"
        )
    return raw


def reopen(path: Path, *, data: bool = True) -> Job:
    """The fitted job of a run. Reads only: no byte of the run is changed.

    Where its data files are gone, or with ``data=False`` (nothing is asked of them), the world is the one that the run
    kept, and the job has no terms.

    Raises:
        CheckpointError: it is no run, it has no reward yet, or its data files have changed since.
    """
    settings = settings_from(stored_settings(path), where=f"{path / 'config.json'}: ")
    file = path / "reward.safetensors"
    if not file.exists():
        raise CheckpointError(f"{path} has no reward yet; finish it with: irlhf fit --resume {path}")
    tensors, info = read_tensors(file)
    files = settings.data_files()
    absent = [one for one in files if not one.exists()]
    if (absent or not data) and (path / "world.safetensors").exists():
        _same_data(path, [one for one in files if one.exists()])
        job = _without_data(path, settings, absent, tensors, info)
    else:
        _same_data(path, files)
        job = prepare(settings)
    parameters = tensors_of(job)
    check_like(tensors, parameters, (), str(file))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    if job.setup.policy is not None and (path / "policy.safetensors").exists():
        learned, _ = read_tensors(path / "policy.safetensors")
        check_like(learned, job.setup.policy.state_dict(), (), str(path / "policy.safetensors"))
        job.setup.policy.load_state_dict(learned)
    if info.get("status") == "INTERRUPTED":
        job.warnings.append(f"the fit in {path} was interrupted: this reward is not final")
    return job


def _without_data(
    path: Path, settings: Settings, absent: list[Path], tensors: dict[str, torch.Tensor], info: dict[str, Any]
) -> Job:
    setup = world_config(settings.world).from_kept(settings, *read_tensors(path / "world.safetensors"))
    sources = {}
    for name in info.get("sources", []):
        prefix = f"sources.{name}."
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        ties = davidson() if "ties.log_nu" in own else rao_kupper() if "ties.raw" in own else None
        more = {"fit_noise": "log_odds_of_noise" in own, "fit_position": "position" in own}
        sources[name] = Source(ties=ties, thresholds=[0.0] * len(own.get("thresholds", ())), **more)
    named = ", ".join(file.name for file in absent)
    warning = f"{named} is not where the fit found it: baselines that learn from the feedback of the fit are left out"
    told = {"warnings": [warning] if absent else [], "demonstrators": list(info.get("demonstrators", []))}
    return Job(settings, setup, sources, [], {}, absent=absent, **told)


def _same_data(path: Path, files: list[Path]) -> None:
    file = path / "fingerprint.json"
    if not file.exists():
        return
    stored = parse_json(file.read_bytes(), str(file))
    before = stored.get("data") if isinstance(stored, dict) else None
    if not isinstance(before, list) or not all(isinstance(known, dict) for known in before):
        raise CheckpointError(f"{file} is damaged; fit again in a new directory")
    sums = [known.get("sha256") for known in before]
    changed = [now["file"] for now in hash_files(files) if now["sha256"] not in sums]
    if changed:
        raise CheckpointError(f"{', '.join(changed)} changed since the fit in {path}; put it back, or fit again")


def refit(job: Job, path: Path) -> Fit:
    """The :class:`Fit` of a reopened job, for a report: parameters of the run, trace from its curve, no step taken.

    Raises:
        CheckpointError: the data files are gone.
    """
    if job.absent:
        gone = ", ".join(map(str, job.absent))
        raise CheckpointError(f"a report needs the feedback of the fit, and {gone} is not there; put it back")
    settings, stored = job.settings, _result(path)
    status = Status.__members__.get(str(stored.get("status")), Status.INTERRUPTED)
    drawing = any(getattr(term.likelihood, "saddle", False) for term in job.terms)
    if job.setup.minibatches is not None and not drawing:
        problem = Pieces(job.reward, job.terms, prior=prior_of(job))
        theta, objective = problem.weights.vector(), problem.value()
    else:
        limits = {"fixed": settings.fix, "bounds": bounds_of(settings), "start": settings.start}
        problem = Objective(job.reward, job.terms, prior=prior_of(job), **limits)
        theta = problem.current()
        with torch.no_grad():
            objective = float(problem.value(theta))
    trace = pd.DataFrame(read_metrics(path))
    return Fit(job.reward, job.terms, objective, status, trace, problem, theta, stored.get("not_identified", []))


def _result(path: Path) -> dict[str, Any]:
    file = path / "result.json"
    stored = parse_json(file.read_bytes(), str(file)) if file.exists() else {}
    return stored if isinstance(stored, dict) else {}


def of_log_z(path: Path) -> list[str]:
    """What the result of a run says of log Z, as sentences."""
    found = _result(path).get("log_z")
    return sentences(found) if isinstance(found, dict) else []


def report_inputs(job: Job, fit: Fit, path: Path) -> dict[str, Any]:
    """What a report says beside the fit itself: arguments of :func:`irlhf.report.write_report`."""
    prints = path / "fingerprint.json"
    about = parse_json(prints.read_bytes(), str(prints)) if prints.exists() else {}
    estimate = job.setup.estimate
    draw = getattr(world_config(job.settings.world), "pictures", None)
    try:
        pictures = draw(fit) if draw else ()
    except IrlhfError:  # a reward that the world cannot draw is no reason for no report
        pictures = ()
    return {
        "pictures": pictures,
        "held_out": list(job.held_terms.values()),
        "config": {**job.settings.model_dump(mode="json"), "data": about.get("data", [])},
        "versions": {name: about[name] for name in VERSIONS if name in about} or None,
        "notes": [*job.notes, *of_log_z(path)],
        "transitions": None if estimate is None else vars(estimate),
    }


@contextlib.contextmanager
def warned(job: Job) -> Iterator[None]:
    """What a world warns of while it reads is a warning of the job."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield
    job.warnings.extend(str(one.message) for one in said)


def read_feedback(job: Job, path: Path, source: str | None = None) -> Feedback:
    """Feedback from another file, as the job's world reads it; ``source``: whose all of its rows are."""
    with warned(job):
        feedback = world_config(job.settings.world).read(job.settings, path)
    if job.settings.temperature_by == "person":
        feedback = feedback.by_person()
    if source is not None:
        if source not in job.sources:
            raise ConfigError(f"source is {source!r}; {nearest(source, list(job.sources))}")
        column = np.empty(len(feedback), object)
        column[:] = source
        feedback = replace(feedback, source=column)
    return feedback


def scored(job: Job, path: Path) -> list[dict[str, Any]] | None:
    """The records of a file, each with its score, where the job's world scores records; else None."""
    score_records = getattr(world_config(job.settings.world), "scored", None)
    if score_records is None:
        return None
    with warned(job):
        return score_records(job.setup, path)


def score(job: Job, feedback: Feedback) -> pd.DataFrame:
    """``id, source, kind, person, weight, log_likelihood`` of each row, in the order of the file. In nats."""
    values = np.full(len(feedback), np.nan)
    for _, source, kind, _ in by_source_and_kind([feedback], list(job.sources)):
        rows = np.flatnonzero((feedback.kind == kind) & (feedback.source == source))
        term = Term(rows_of(feedback, rows), likelihood_for(job.settings, job.setup, kind), job.sources[source])
        with torch.no_grad():
            values[rows] = term.log_prob(job.reward).numpy()
    return pd.DataFrame(
        {
            "id": feedback.id,
            "source": feedback.source,
            "kind": [KINDS[k] for k in feedback.kind],
            "person": feedback.person,
            "weight": feedback.weight,
            "log_likelihood": values,
        }
    )


def assess(job: Job, parts: Sequence[Feedback]) -> dict[str, pd.DataFrame]:
    """The scores of the model and of the baselines on other feedback, one table for each kind of each source."""
    training = {(id(term.source), int(term.feedback.kind[0])): term for term in job.terms}
    tables = {}
    for name, source, kind, rows in by_source_and_kind(parts, list(job.sources)):
        term = Term(rows, likelihood_for(job.settings, job.setup, kind), job.sources[source], name=name)
        tables[name] = scores(job, term, training.get((id(job.sources[source]), kind)))
    return tables
