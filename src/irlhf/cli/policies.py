"""From a fitted reward to a policy in a run directory: what ``irlhf distill`` does.

job = prepare(settings)                          reopens the run, makes policy and contexts
fit = run_fit(job, run, progress)                learns, and leaves policy.safetensors, policy.csv, result.json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from irlhf.cli import finished
from irlhf.cli.jobs import Job
from irlhf.config import File, Strict, validated, world_config
from irlhf.errors import CheckpointError, ConfigError, InfeasibleError
from irlhf.feedback import DEMONSTRATION
from irlhf.fit import Status
from irlhf.learners import Learner, actor_critic, expected, grpo, ppo, reinforce, rloo
from irlhf.policy_fit import PolicyFit, alarms_by_name, best_of, fit_policy
from irlhf.randomness import Key
from irlhf.storage.files import parse_json
from irlhf.storage.rundir import RunDir

MOST_DRAWS = 200_000  # of all contexts together, to judge the policy by
CHOICES = 1000  # of best-of-n, at least
LEARNERS = {
    "rloo": rloo, "reinforce": reinforce, "grpo": grpo, "ppo": ppo, "actor-critic": actor_critic, "expected": expected,
}  # fmt: skip
ABOUT = ("objective", "reward", "kl", "kl_error", "log_z", "log_z_error", "gap", "effective_share", "k_hat", "cut")


class Settings(Strict):
    """Settings of ``irlhf distill``, as its ``config.json`` holds them."""

    run: File
    learner: Literal["rloo", "reinforce", "grpo", "ppo", "actor-critic", "expected"] = "rloo"
    draws: int | None = Field(None, ge=2, le=1_000_000)
    steps: int | None = Field(None, ge=1, le=10**9)
    rate: float | None = Field(None, gt=0)
    temperature: float | None = Field(None, gt=0)
    best_of: int = Field(8, ge=1, le=1_000_000)
    seed: int = Field(0, ge=0, lt=2**63)
    start: list[str] = Field([])
    contexts: Annotated[list[Any], Field(min_length=1)] | None = None

    def learner_of(self) -> Learner:
        """Raises ConfigError for flags that the learner has no use for."""
        given = {"n": self.draws, "rate": self.rate, "max_steps": self.steps}
        given = {name: value for name, value in given.items() if value is not None}
        if self.learner == "expected" and (lost := [flag for flag in ("draws", "rate") if getattr(self, flag)]):
            raise ConfigError(f"--learner expected draws nothing and has no rate; leave out --{lost[0]}")
        return LEARNERS[self.learner](**given)


@dataclass(frozen=True, eq=False)
class Distilled:
    """A run reopened, with what is learned from it. ``settings`` say all that was left open."""

    settings: Settings
    job: Job
    policy: Any
    contexts: list[Any]
    learner: Learner

    @property
    def temperature(self) -> float:
        assert self.settings.temperature is not None
        return self.settings.temperature


def stored_settings(path: Path) -> dict[str, Any]:
    """The settings in the ``config.json`` of a policy. Raises CheckpointError if there are none."""
    file = path / "config.json"
    try:
        raw = parse_json(file.read_bytes(), str(file))
    except OSError as error:
        raise CheckpointError(
            f"{path} is not a policy of irlhf distill: {file.name} cannot be read ({error.strerror})"
        ) from None
    if not finished.is_policy(raw):
        raise CheckpointError(f"{path} is not a policy of irlhf distill; to make one of a run: irlhf distill RUN")
    return raw


def settings_from(stored: dict[str, Any], flags: dict[str, Any], where: str = "") -> Settings:
    """Raises ConfigError naming each setting that is wrong."""
    return validated(Settings, stored, flags, where)


def prepare(settings: Settings) -> Distilled:
    """Reopen the run and make a policy that starts as the base measure.

    Raises:
        CheckpointError: it is no finished run of ``irlhf fit``.
        ConfigError: settings that contradict the run or each other.
    """
    learner = settings.learner_of()
    job = finished.reopen(settings.run)
    config = world_config(job.settings.world)
    if lacks := [name for name in ("contexts_of", "policy_of", "policy_table") if not hasattr(config, name)]:
        raise ConfigError(f"the world {job.settings.world!r} has no {lacks[0]}, so its rewards cannot be distilled")
    contexts = settings.contexts or config.contexts_of(job.setup, settings.start)
    policy, as_drawn = config.policy_of(job.setup, contexts)
    temperature = settings.temperature or _temperature(job)
    settings = settings.model_copy(update={"contexts": contexts, "temperature": temperature})
    return Distilled(settings, job, policy, as_drawn, learner)


def _temperature(job: Job) -> float:
    """That of the demonstrations, so that the policy is theirs; 1 without any."""
    for term in job.terms:
        if int(term.feedback.kind[0]) == DEMONSTRATION:
            return float(term.source.temperature.detach())
    return 1.0


def data_files(settings: Settings) -> list[Path]:
    """What a policy is made of: the reward, and the world that the run kept."""
    files = [settings.run / name for name in ("reward.safetensors", "world.safetensors")]
    return [file for file in files if file.exists()]


def run_fit(job: Distilled, run: RunDir, progress: Callable[[dict[str, Any]], None] | None) -> PolicyFit:
    """Learn, from where the run was left. An interrupted fit comes back with ``Status.INTERRUPTED``."""
    setup = job.job.setup
    return fit_policy(
        job.policy,
        setup.reward,
        setup.world,
        job.contexts,
        learner=job.learner,
        temperature=job.temperature,
        key=Key(job.settings.seed).at("distill"),
        run=run,
        progress=progress,
    )


def write(job: Distilled, fit: PolicyFit, run: RunDir) -> dict[str, Any]:
    """Judge the policy by fresh draws, and leave it and the result in the run; the result."""
    found = result(job, fit)
    info = {
        "world": job.job.settings.world,
        "run": str(job.settings.run),
        "temperature": job.temperature,
        "status": fit.status.name,
        "objective": fit.objective,
    }
    run.write_tensors("policy.safetensors", dict(fit.policy.state_dict()), info)
    table = world_config(job.job.settings.world).policy_table(job.job.setup, fit.policy)
    run.write_bytes("policy.csv", table.to_csv(index=False, lineterminator="\n").encode("utf-8", "replace"))
    run.write_json("result.json", found)
    run.status["fit"] = fit.status.name
    return found


def result(job: Distilled, fit: PolicyFit) -> dict[str, Any]:
    """What was learned, as JSON: what ``result.json`` holds. Means over contexts, in nats, the reward in its units."""
    problem = fit.problem
    key = Key(job.settings.seed).at("judge")
    n = int(np.clip(MOST_DRAWS // len(job.contexts), 32, 256))
    with torch.no_grad():
        draws = problem.draw(n, key)
        assert draws.log_q is not None
        told = problem.info(problem.worth(draws, draws.log_q), draws, n)
    verdicts: dict[str, int] = {}
    if problem.comparable and bool(draws.whole.any()):
        verdicts = dict(Counter(str(v).partition(":")[0] for v in fit.diagnose(n, key=key)["verdict"]))
    heard = {**alarms_by_name(fit.trace), **alarms_by_name(pd.DataFrame([{"step": 0}, {"step": 1, **told}]))}
    return {
        "status": fit.status.name,
        "learner": job.settings.learner,
        "temperature": job.temperature,
        "steps": len(fit.trace) - 1,
        "contexts": len(job.contexts),
        "draws": n,
        "policy": {name: told[name] for name in ABOUT},
        "log_z_verdicts": verdicts,
        "exact": exact(job, fit),
        "best_of": chosen(job, job.settings.best_of, key.at("best")),
        "alarms": list(heard.values()),
    }


def exact(job: Distilled, fit: PolicyFit) -> dict[str, float] | None:
    """What the policy attains beside what no policy exceeds, solved for; None where the world cannot be solved."""
    setup = job.job.setup
    if not hasattr(setup.world, "attained"):
        return None
    how = {"temperature": job.temperature}
    with torch.no_grad():
        try:
            best = setup.world.best(setup.reward, job.contexts, **how)
        except InfeasibleError:  # at this temperature the sum over paths diverges
            return None
        attained = setup.world.attained(fit.policy, setup.reward, job.contexts, **how)
    return {"best": float(best.mean()), "attained": float(attained.mean()), "gap": float((best - attained).mean())}


def chosen(job: Distilled, n: int, key: Key) -> dict[str, Any]:
    """Best of n draws of the base measure, by the same reward: no training."""
    setup = job.job.setup
    again = -(-CHOICES // len(job.contexts)) if len(job.contexts) < CHOICES else 1
    base = setup.world.base_policy()
    picked = best_of(n, base, setup.reward, setup.world, _repeated(job.contexts, again), key=key)
    with torch.no_grad():
        reward = setup.reward(picked.batch).double()
    return {
        "n": n,
        "reward": float(reward.mean()),
        "reward_error": float(reward.std() / len(reward) ** 0.5) if len(reward) > 1 else float("nan"),
        "kl_bound": float(np.log(n) - (n - 1) / n),
    }


def _repeated(contexts: Sequence[Any], times: int) -> list[Any]:
    return [context for context in contexts for _ in range(times)]


def sentence(fit: PolicyFit) -> str:
    """How it ended, and what to do."""
    if fit.status is Status.BUDGET:
        steps = len(fit.trace) - 1
        return f"All {steps} steps are done. If the objective still rises, give more --steps, and another --out."
    return str(fit.status).partition(":")[0] + "."
