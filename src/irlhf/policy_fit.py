"""Fitting a policy to a reward, ``fit_policy(policy, reward, world, contexts) -> PolicyFit``, and choosing by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from irlhf.distillation import Distillation
from irlhf.errors import ConfigError
from irlhf.fit import Status
from irlhf.functional.weights import k_hat_threshold, log_z
from irlhf.learners import Learner, rloo
from irlhf.loop import iterate
from irlhf.protocols import Draws
from irlhf.proximal import control
from irlhf.randomness import Key
from irlhf.storage.rundir import RunDir

ROUNDING = 1e-9  # nats of a divergence that are no news
NOTED = 10  # times in a fit that draws are written down to be read
LAST = 8  # steps whose objectives are averaged where policies are compared: one is noisy
SHOWN = 8  # contexts that they are of
ALIKE = 0.9  # share of effective draws, above which the weights differ so little that their tail does not matter
HEAVY = 0.7  # k-hat, from which on no number of draws will do (Vehtari et al. 2024)
TRUSTED_SHARE = 0.1  # effective draws among all, below which a sentence says that log Z cannot be trusted


@dataclass(eq=False)
class PolicyFit:
    """A policy that was fitted to a reward.

    ``objective`` is the last step's mean of log w, which is at most log Z; ``trace`` has one row for each step: see
    :meth:`irlhf.distillation.Distillation.info`.
    """

    policy: nn.Module
    objective: float
    status: Status
    trace: pd.DataFrame
    problem: Distillation = field(repr=False)

    @property
    def alarms(self) -> list[str]:
        """What the steps say that a user should hear, as sentences; empty if all is well."""
        return alarms(self.trace)

    def diagnose(self, n: int = 256, *, key: Key | None = None) -> pd.DataFrame:
        """Fresh draws of the policy, one row for each context; see :func:`estimate_log_z`."""
        problem = self.problem
        key = Key(0).at("diagnose") if key is None else key
        return estimate_log_z(
            problem.reward,
            problem.world,
            problem.contexts,
            problem.policy,
            n=n,
            temperature=problem.temperature,
            key=key,
        )

    def gap(self) -> pd.Series:
        """``KL(pi || P)`` of each context, exactly, where the world can be solved.

        With stochastic dynamics or a discount: by how much the policy falls short of the soft value.
        """
        problem = self.problem
        how = {"temperature": problem.temperature}
        best = problem.world.best(problem.reward, problem.contexts, **how)
        attained = problem.world.attained(self.policy, problem.reward, problem.contexts, **how)
        return pd.Series((best.detach() - attained).numpy(), index=[str(x) for x in problem.contexts], name="gap")

    def summary(self) -> str:
        """How it ended, what it reached, and what to be careful about, as text."""
        last = self.trace.iloc[-1]
        lines = [str(self.status), ""]
        told = ("objective", "reward", "kl", "log_z", "gap", "effective_share", "k_hat", "cut")
        lines += [f"{name:>16}  {last[name]:.4f}" for name in told if name in last and pd.notna(last[name])]
        return "\n".join(lines + [""] * bool(self.alarms) + [f"careful: {sentence}" for sentence in self.alarms])


def fit_policy(
    policy: nn.Module,
    reward: Any,
    world: Any,
    contexts: Sequence[Any],
    *,
    learner: Learner | None = None,
    temperature: float = 1.0,
    at_once: int | None = None,
    batch: int | None = None,
    key: Key | None = None,
    run: RunDir | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> PolicyFit:
    """The policy that maximizes ``E_pi[R/T] - KL(pi || mu)``: the distribution that inverse RL fits, as a sampler.

    Args:
        policy: a module with ``log_prob(batch) -> ["steps"]``; fitted in place.
        reward: any that the world can evaluate.
        world: one with ``draw``.
        contexts: where trajectories start, as ``world.draw`` takes them; all count alike.
        learner: default ``rloo(n=8)``; see :mod:`irlhf.learners`. It holds the number of steps and the learning rate.
        temperature: T, in units of the reward. The divergence to the base measure is inside the return, once.
        at_once: draws in one backward pass; the memory of a step grows with it, and nothing else. None: all.
        batch: contexts that one step draws from, picked by chance; None: all.
        key: of the random numbers.
        run: a run directory: every step is saved there, and the fit goes on from the last one it finds. Where the world
            has ``readable(draws)``, some of what was drawn on the way is in its ``completions.jsonl``.
        progress: called after every step.

    Raises:
        ConfigError: a policy without parameters, no contexts, a learner that this world cannot serve.
        NonFiniteError: a reward, log-probability or gradient that is not finite; no parameter was changed.
    """
    problem = Distillation(policy, reward, world, contexts, temperature=temperature, at_once=at_once, batch=batch)
    if learner is None:
        learner = control(continuous=not world.spaces.discrete) if hasattr(world, "stretch") else rloo()
    key = Key(0).at("policy") if key is None else key

    def restore(tensors: dict[str, Tensor], trace: list[dict[str, Any]]) -> dict[str, Tensor]:
        if tensors["theta"].shape != problem.theta().shape:
            raise ConfigError("the checkpoint is of another policy; start a new run directory")
        return tensors

    def step(state: dict[str, Tensor], number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        found = learner.step(problem, state, key.at(number))
        if run is not None and (number - 1) % max(1, learner.max_steps // NOTED) == 0:
            write_down(run, problem, number)
        return found

    loop = iterate(
        lambda: learner.init(problem),
        step,
        put=lambda state: problem.assign(state["theta"]),
        max_steps=learner.max_steps,
        run=run,
        restore=restore,
        progress=progress,
    )
    trace = pd.DataFrame(loop.trace)
    objective = float(trace["objective"].iloc[-1]) if "objective" in trace else float("nan")
    return PolicyFit(policy, objective, Status.of(loop), trace, problem)


def best_start(
    make: Callable[[int], nn.Module],
    reward: Any,
    world: Any,
    contexts: Sequence[Any],
    *,
    starts: int = 2,
    key: Key | None = None,
    **how: Any,
) -> PolicyFit:
    """Of several policies that are trained from other random starts, the one that got the most of the *learned* reward.

    A learner of episodes now and then stays where it began to repeat itself; that shows in what it was asked to climb,
    without any look at what is true.

    Args:
        make: a fresh policy from the number of a start.
        starts: how many.
        how: as in :func:`fit_policy`.
    """
    if starts < 1:
        raise ConfigError(f"{starts} starts; give at least 1")
    key = Key(0).at("policy") if key is None else key
    fits = [fit_policy(make(k), reward, world, contexts, key=key.at("start", k), **how) for k in range(starts)]
    return max(fits, key=lambda fit: float(fit.trace["objective"].iloc[-LAST:].mean()))


def write_down(run: RunDir, problem: Distillation, number: int) -> None:
    """Adds what step ``number`` drew to the run's ``completions.jsonl``: one trajectory of each of the first contexts.

    They are the policy's before it learned from them. What a killed run noted of later steps is dropped.
    """
    readable = getattr(problem.world, "readable", None)
    if problem.last is None or readable is None:
        return
    draws, worth = problem.last
    first = torch.nonzero(torch.diff(draws.request, prepend=torch.tensor([-1])))[:SHOWN, 0]
    lines = [
        {"step": number, **text, "reward": reward, "log_w": log_w}
        for text, reward, log_w in zip(
            readable(draws.take(first)), worth.reward[first].tolist(), worth.log_w[first].tolist(), strict=True
        )
    ]
    file = run.path / "completions.jsonl"
    before = file.read_bytes().splitlines(True) if file.exists() else []
    before = [line for line in before if json.loads(line)["step"] < number]
    told = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    run.write_bytes(file.name, b"".join(before) + told.encode("utf-8", "replace"))


def estimate_log_z(
    reward: Any,
    world: Any,
    contexts: Sequence[Any],
    proposal: Any,
    *,
    n: int = 256,
    temperature: float = 1.0,
    key: Key | None = None,
    draws: Draws | None = None,
) -> pd.DataFrame:
    """Log Z of each context by importance sampling from a policy, and how far to trust it.

    One row for each context: ``log_z``, its ``standard_error``, ``effective_sample_size``, ``k_hat``, ``bound`` (the
    mean of log w, which is log Z minus the divergence of the policy from P), ``gap`` (their difference: a lower bound
    of that divergence, on average), ``reward``, ``log_ratio`` (mean of log pi/mu) and a ``verdict`` in words. In a
    stochastic or discounted world log Z is the anticipative one, and the verdict says that log w has nature's luck in
    it.

    Args:
        draws: those of the proposal, ``n`` from each context, if they have been drawn already.

    Raises:
        ConfigError: the policy draws trajectories that come to no end.
    """
    key = Key(0).at("log_z") if key is None else key
    drawn: Draws = world.draw(proposal, contexts, n, key=key) if draws is None else draws
    if not drawn.whole.any():
        raise ConfigError("nothing that was drawn came to an end; give a policy that ends, or a horizon")
    batch = drawn.batch
    with torch.no_grad():
        returns = reward(batch).double()
        log_mu, log_q = world.log_base(batch), batch.sum(drawn.log_q, discounted=False)
    log_w = torch.where(drawn.whole, returns / temperature + log_mu - log_q, -torch.inf).reshape(len(contexts), n)
    found = log_z(log_w)
    fair = bool(world.deterministic and getattr(world, "discount", 1.0) == 1)
    verdicts = [
        _verdict(fair, float(e), float(k), n) for e, k in zip(found.effective_sample_size, found.k_hat, strict=True)
    ]
    return pd.DataFrame(
        {
            "log_z": found.log_z.numpy(),
            "standard_error": found.standard_error.numpy(),
            "effective_sample_size": found.effective_sample_size.numpy(),
            "k_hat": found.k_hat.numpy(),
            "bound": found.mean.numpy(),
            "gap": (found.log_z - found.mean).numpy(),
            "reward": returns.reshape(len(contexts), n).mean(1).numpy(),
            "log_ratio": (log_q - log_mu).reshape(len(contexts), n).mean(1).numpy(),
            "verdict": verdicts,
        },
        index=[str(x) for x in contexts],
    )


def _verdict(fair: bool, effective: float, k_hat: float, n: int) -> str:
    if effective < TRUSTED_SHARE * n:
        return f"not to be trusted: {effective:.1f} effective draws of {n}; draw from something nearer to the reward"
    if np.isinf(k_hat) and effective < n / 2:  # few trajectories, drawn again and again, have no tail to be judged
        return f"not to be trusted: {effective:.1f} effective draws of {n}, and too few large weights to judge the tail"
    if np.isfinite(k_hat) and k_hat > k_hat_threshold(n) and effective < ALIKE * n:
        return f"not to be trusted: the tail of the weights is too heavy (k-hat {k_hat:.2f}); draw more, or from nearer"
    return "reliable" if fair else "reliable; of the anticipative log Z, with nature's luck in its spread"


def alarms(trace: pd.DataFrame) -> list[str]:
    """Sentences about a policy fit that should not pass in silence."""
    return list(alarms_by_name(trace).values())


def alarms_by_name(trace: pd.DataFrame) -> dict[str, str]:
    """The same, each under the column of the trace that it is about."""
    last = trace.iloc[-min(10, max(len(trace) - 1, 1)) :]
    said: dict[str, str] = {}
    if "alike" in last and (last["alike"] == 1).all():
        said["alike"] = (
            "all draws of a context are worth the same, so nothing is learned: the policy goes one way, or the reward "
            "sees no difference; draw more, or start from a wider policy"
        )
    if "kl" in last and (last["kl"] < -4 * last["kl_error"] - ROUNDING).any():
        said["kl"] = (
            "the divergence from the base measure came out negative by more than 4 standard errors: what draws and "
            "what gives log-probabilities are not the same policy"
        )
    if "effective_share" in last and last["effective_share"].mean() < TRUSTED_SHARE:
        share = last["effective_share"].mean()
        said["effective_share"] = f"only {share:.1%} of the draws are effective: log Z cannot be trusted"
    alike = "effective_share" in last and last["effective_share"].mean() > ALIKE
    if "k_hat" in last and not alike and np.isfinite(k_hat := last["k_hat"].median()) and k_hat > HEAVY:
        said["k_hat"] = f"the weights have a heavy tail (k-hat {k_hat:.2f}): log Z cannot be trusted"
    if "cut" in last and last["cut"].mean() > 0.01:
        said["cut"] = f"{last['cut'].mean():.0%} of the draws came to no end and were cut"
    return said


def best_of(n: int, policy: Any, reward: Any, world: Any, contexts: Sequence[Any], *, key: Key | None = None) -> Draws:
    """Of ``n`` draws of each context the one with the largest reward: what a reward does without any training.

    The divergence of this choice from the policy is at most ``log n - (n - 1)/n`` (Beirami et al. 2024).
    """
    draws = world.draw(policy, contexts, n, key=Key(0).at("best") if key is None else key)
    with torch.no_grad():
        returns = reward(draws.batch).double().reshape(len(contexts), n)
    chosen = torch.arange(len(contexts)) * n + returns.argmax(1)
    return draws.take(chosen)
