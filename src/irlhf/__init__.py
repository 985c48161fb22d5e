"""Reward functions from what people do and from what people prefer, with one likelihood.

fit = irlhf.fit_reward(reward, [irlhf.Term(demonstrations, irlhf.exact(world))])
print(fit.summary())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from irlhf.centering import centered
    from irlhf.distance import distance_of_returns
    from irlhf.feedback import EVERYTHING, TIE, Choice, Feedback, Rating
    from irlhf.fit import Fit, Status, fit_reward
    from irlhf.gather import comparisons, demonstrations, rankings, ratings
    from irlhf.joint import fit_jointly
    from irlhf.learners import actor_critic, expected, grpo, ppo, reinforce, rloo
    from irlhf.likelihood import Term, exact, listed
    from irlhf.minibatches import Minibatches
    from irlhf.objective import Normal
    from irlhf.optimize import LBFGS, Newton, TorchOptimizer
    from irlhf.policy_fit import PolicyFit, best_of, best_start, estimate_log_z, fit_policy
    from irlhf.proposals import Base, FromPolicy, Mixture, Pool
    from irlhf.proximal import control
    from irlhf.randomness import Key
    from irlhf.rewards import Ensemble, Implicit
    from irlhf.saddle import Saddle
    from irlhf.simulated import sampled, variational
    from irlhf.sources import Source, davidson, rao_kupper

__version__ = "0.1.0"

__all__ = [
    "EVERYTHING",
    "LBFGS",
    "TIE",
    "Base",
    "Choice",
    "Ensemble",
    "Feedback",
    "Fit",
    "FromPolicy",
    "Implicit",
    "Key",
    "Minibatches",
    "Mixture",
    "Newton",
    "Normal",
    "PolicyFit",
    "Pool",
    "Rating",
    "Saddle",
    "Source",
    "Status",
    "Term",
    "TorchOptimizer",
    "actor_critic",
    "best_of",
    "best_start",
    "centered",
    "comparisons",
    "control",
    "davidson",
    "demonstrations",
    "distance_of_returns",
    "estimate_log_z",
    "exact",
    "expected",
    "fit_jointly",
    "fit_policy",
    "fit_reward",
    "grpo",
    "listed",
    "ppo",
    "rankings",
    "rao_kupper",
    "ratings",
    "reinforce",
    "rloo",
    "sampled",
    "variational",
]

# Each name is imported when it is first used: torch takes seconds, which `irlhf --help` and Ctrl-C should not wait for.
_HOMES = (
    "feedback",
    "gather",
    "randomness",
    "sources",
    "likelihood",
    "proposals",
    "simulated",
    "centering",
    "distance",
    "objective",
    "optimize",
    "minibatches",
    "rewards",
    "fit",
    "learners",
    "proximal",
    "saddle",
    "policy_fit",
    "joint",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            module = importlib.import_module(f"irlhf.{home}")
            if hasattr(module, name):
                globals()[name] = value = getattr(module, name)
                return value
    raise AttributeError(f"module 'irlhf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
