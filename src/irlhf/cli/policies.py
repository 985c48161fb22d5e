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
from irlhf.config import File, Learning, Strict, learning_of, validated, world_config
from irlhf.distillation import Distillation
from irlhf.errors import CheckpointError, ConfigError, InfeasibleError
from irlhf.fit import Fit, Status
from irlhf.learners import Learner, actor_critic, expected, grpo, ppo, reinforce, rloo
from irlhf.likelihood import listed
from irlhf.overoptimization import Frontier, frontier
from irlhf.policy_fit import PolicyFit, alarms_by_name, best_of, estimate_log_z, fit_policy, write_down
from irlhf.proximal import control
from irlhf.randomness import Key
from irlhf.storage.files import parse_json
from irlhf.storage.rundir import RunDir

APPROVED = 512  # draws of mu of a context, by which expected approval is judged
FEWEST = 32  # draws of a context that the policy is judged by
LEARNERS = {
    "rloo": rloo, "reinforce": reinforce, "grpo": grpo, "ppo": ppo, "actor-critic": actor_critic, "expected": expected,
    "control": control,
}  # fmt: skip


class Limit(Strict):
    """How far the comparisons of a run allow to optimize its reward. ``kl``: None where they raise no alarm."""

    kl: float | None
    says: str


class Settings(Strict):
    """Settings of ``irlhf distill``, as its ``config.json`` holds them."""

    run: File
    learner: Literal["rloo", "reinforce", "grpo", "ppo", "actor-critic", "expected", "control"] | None = None
    draws: int | None = Field(None, ge=2, le=1_000_000)
    steps: int | None = Field(None, ge=1, le=10**9)
    rate: float | None = Field(None, gt=0)
    temperature: float | None = Field(None, gt=0)
    best_of: int = Field(8, ge=1, le=1_000_000)
    batch: int | None = Field(None, ge=1, le=10**9)
    at_once: int | None = Field(None, ge=1, le=10**9)
    rank: int | None = Field(None, ge=1, le=4096)
    seed: int = Field(0, ge=0, lt=2**63)
    start: list[str] = Field([])
    prompts: File | None = None
    tensorboard: bool = False
    contexts: Annotated[list[Any], Field(min_length=1)] | None = None
    limit: Limit | None = None

    def learner_of(self, world: Any = None) -> Learner:
        """Raises ConfigError for flags that the learner has no use for."""
        if self.learner == "control":
            return self._control(world)
        given = {"n": self.draws, "rate": self.rate, "max_steps": self.steps}
        given = {name: value for name, value in given.items() if value is not None}
        lost = [flag for flag in ("draws", "rate", "batch", "at_once") if getattr(self, flag)]
        if self.learner == "expected" and lost:
            flag = lost[0].replace("_", "-")
            raise ConfigError(f"--learner expected draws nothing and has no rate; leave out --{flag}")
        return LEARNERS[self.learner or "rloo"](**given)

    def _control(self, world: Any) -> Learner:
        if lost := [flag for flag in ("draws", "batch", "at_once") if getattr(self, flag)]:
            flag = lost[0].replace("_", "-")
            raise ConfigError(f"--learner control plays on from where it was, so it has no use for --{flag}")
        continuous = world is not None and not world.spaces.discrete
        return control(continuous=continuous, rate=self.rate, max_steps=self.steps)

    def as_in(self, learning: Learning) -> Settings:
        """With what the world takes where nothing is said."""
        if self.learner is None:
            return self.model_copy(update={"learner": learning.learner}).as_in(learning)
        if (self.learner == "control") != (learning.learner == "control"):
            fit = "control" if learning.learner == "control" else "a learner of whole trajectories, for example rloo"
            raise ConfigError(f"--learner {self.learner} is not for this world; choose {fit}")
        if self.learner == "expected":
            return self
        names = ("rate", "steps", "batch", "at_once")
        own = {name: getattr(learning, name) for name in names if getattr(self, name) is None}
        return self.model_copy(update=own)


@dataclass(frozen=True, eq=False)
class Distilled:
    """A run reopened, with what is learned from it. ``settings`` say all that was left open."""

    settings: Settings
    job: Job
    policy: Any
    contexts: list[Any]
    learner: Learner
    learning: Learning

    def files(self, policy: Any) -> dict[str, bytes]:
        """A policy as others read it."""
        return world_config(self.job.settings.world).policy_files(self.job.setup, policy)

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


def prepare(settings: Settings, tell: Callable[[str], None] = lambda sentence: None) -> Distilled:
    """Reopen the run and make a policy that starts as the base measure; what takes long is told before it begins.

    Raises:
        CheckpointError: it is no finished run of ``irlhf fit``.
        ConfigError: settings that contradict the run or each other.
    """
    settings.learner_of()
    job = finished.reopen(settings.run, data=settings.contexts is None and settings.prompts is None)
    config = world_config(job.settings.world)
    if lacks := [name for name in ("contexts_of", "policy_of", "policy_files") if not hasattr(config, name)]:
        raise ConfigError(f"the world {job.settings.world!r} has no {lacks[0]}, so its rewards cannot be distilled")
    settings = settings.as_in(learning := learning_of(job.settings.world))
    with finished.warned(job):
        contexts = settings.contexts or config.contexts_of(job.setup, settings)
    policy, as_drawn = config.policy_of(job.setup, contexts, settings)
    temperature = settings.temperature or _temperature(job)
    with finished.warned(job):
        limit = settings.limit or _limit(job, as_drawn, settings, tell)
    settings = settings.model_copy(update={"contexts": contexts, "temperature": temperature, "limit": limit})
    return Distilled(settings, job, policy, as_drawn, settings.learner_of(job.setup.world), learning)


def first_of(job: Job, contexts: Sequence[Any], n: int) -> Sequence[Any]:
    """As many contexts as there is time to take ``n`` draws of each."""
    return contexts[: max(1, learning_of(job.settings.world).judged // n)]


def frontier_of(fit: Fit, world: Any, contexts: Sequence[Any], n: int, seed: int) -> Frontier:
    """Rewards and expected approval of ``n`` draws of the base measure in each context, tilted by a run's reward.

    Raises:
        ConfigError: no comparisons, too few of them, or a fit that is not repeated with parts of its feedback.
    """
    drawn = world.draw(world.base_policy(), contexts, n, key=Key(seed).at("frontier"))
    return frontier(fit, drawn, seed=seed)


def _limit(job: Job, contexts: Sequence[Any], settings: Settings, tell: Callable[[str], None]) -> Limit | None:
    """None where nobody compared anything, or a fit of minutes would be needed to tell."""
    if job.setup.minibatches is not None or not any(isinstance(term.likelihood, listed) for term in job.terms):
        return None
    tell("asking the comparisons how far to go from mu, by draws of it")
    fit, some = finished.refit(job, settings.run), first_of(job, contexts, APPROVED)
    try:
        seen = frontier_of(fit, job.setup.world, some, APPROVED, settings.seed)
    except (ConfigError, InfeasibleError) as error:
        return Limit(kl=None, says=f"How far to optimize is not known: {error}.")
    return Limit(kl=seen.alarm, says=str(seen))


def _temperature(job: Job) -> float:
    """That of the demonstrations, so that the policy is theirs; 1 without any."""
    return float(job.sources[job.demonstrators[0]].temperature.detach()) if job.demonstrators else 1.0


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
        at_once=job.settings.at_once,
        batch=job.settings.batch,
        key=Key(job.settings.seed).at("distill"),
        run=run,
        progress=progress,
    )


def write(job: Distilled, fit: PolicyFit, run: RunDir) -> dict[str, Any]:
    """Judge the policy by fresh draws, and leave it and the result in the run; the result."""
    found, problem = result(job, fit)
    info = {
        "world": job.job.settings.world,
        "run": str(job.settings.run),
        "temperature": job.temperature,
        "status": fit.status.name,
        "objective": fit.objective,
    }
    run.write_tensors("policy.safetensors", dict(fit.policy.state_dict()), info)
    for name, data in job.files(fit.policy).items():
        run.write_bytes(name, data)
    write_down(run, problem, len(fit.trace))  # as the step after the last would have begun
    run.write_json("result.json", found)
    run.status["fit"] = fit.status.name
    return found


def result(job: Distilled, fit: PolicyFit) -> tuple[dict[str, Any], Distillation]:
    """What was learned, as JSON: what ``result.json`` holds. Means over contexts, in nats, the reward in its units.

    And the problem that the policy was judged in: the same, or where there are many contexts one with some of them.
    """
    key = Key(job.settings.seed).at("judge")
    most = max(1, job.learning.judged // FEWEST)
    contexts = job.contexts
    if len(contexts) > most:
        contexts = [contexts[k] for k in np.sort(key.at("contexts").numpy().permutation(len(contexts))[:most])]
    n = int(np.clip(job.learning.judged // len(contexts), FEWEST, 256))
    setup = job.job.setup
    problem = Distillation(fit.policy, setup.reward, setup.world, contexts, temperature=job.temperature)
    with torch.no_grad():
        draws = problem.draw(n, key)
        assert draws.log_q is not None
        told = problem.info(problem.worth(draws, draws.log_q), draws, n)
    verdicts: dict[str, int] = {}
    if problem.comparable and bool(draws.whole.any()):
        table = estimate_log_z(
            setup.reward, setup.world, contexts, fit.policy, n=n, temperature=job.temperature, draws=draws
        )
        verdicts = dict(Counter(str(v).partition(":")[0] for v in table["verdict"]))
    limit = job.settings.limit
    heard = {**alarms_by_name(fit.trace), **alarms_by_name(pd.DataFrame([{"step": 0}, {"step": 1, **told}]))}
    found = {
        "status": fit.status.name,
        "learner": job.settings.learner,
        "temperature": job.temperature,
        "steps": len(fit.trace) - 1,
        "contexts": len(job.contexts),
        "judged": len(contexts),
        "draws": n,
        "policy": told,
        "log_z_verdicts": verdicts,
        "likeliest": likeliest(job, fit, contexts, n, key.at("likeliest")),
        "exact": exact(job, fit),
        "best_of": chosen(job, contexts, job.settings.best_of, key.at("best")),
        "limit": None if limit is None else limit.model_dump(),
        "alarms": [*heard.values(), *beyond(limit, fit.trace)],
    }
    return found, problem


def beyond(limit: Limit | None, trace: pd.DataFrame) -> list[str]:
    """A sentence, if the policy ended further from the base measure than people agree with."""
    if limit is None or limit.kl is None or "kl" not in trace or not trace["kl"].iloc[-1] > limit.kl:
        return []
    first = int(trace["step"].to_numpy()[(trace["kl"] > limit.kl).to_numpy()][0])
    return [
        f"over-optimized: from step {first} on the policy is further from mu than a KL of {limit.kl:.2f} nats, and "
        f"ends at {trace['kl'].iloc[-1]:.2f}; beyond it people are expected to like less what the reward likes more. "
        "Give fewer --steps, or a higher --temperature"
    ]


def likeliest(job: Distilled, fit: PolicyFit, contexts: Sequence[Any], n: int, key: Key) -> dict[str, float] | None:
    """What is told of episodes in which the policy always takes its likeliest action; None where nobody plays so.

    Policies of environments are compared so by custom, while all else here is of drawn actions.
    """
    world = job.job.setup.world
    return world.likeliest(fit.policy, contexts, n, key=key) if hasattr(world, "likeliest") else None


def exact(job: Distilled, fit: PolicyFit) -> dict[str, float] | None:
    """What the policy attains beside what no policy exceeds, solved for; None where the world cannot be solved."""
    setup = job.job.setup
    if not hasattr(setup.world, "attained"):
        return None
    how = {"temperature": job.temperature}
    with torch.no_grad():
        try:
            best = setup.world.best(setup.reward, job.contexts, **how)
        except (InfeasibleError, ConfigError):  # the sum over paths diverges, or over texts has too many terms
            return None
        attained = setup.world.attained(fit.policy, setup.reward, job.contexts, **how)
    return {"best": float(best.mean()), "attained": float(attained.mean()), "gap": float((best - attained).mean())}


def chosen(job: Distilled, contexts: Sequence[Any], n: int, key: Key) -> dict[str, Any]:
    """Best of n draws of the base measure, by the same reward: no training."""
    setup = job.job.setup
    again = -(-job.learning.choices // len(contexts))
    base = setup.world.base_policy()
    picked = best_of(n, base, setup.reward, setup.world, _repeated(contexts, again), key=key)
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
