"""The text world: contexts are prompts, trajectories are completions, steps are tokens."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from irlhf.worlds.text.encoding import Completion, Encoder, Message, Prompt
    from irlhf.worlds.text.export import as_reward_function, export_reward
    from irlhf.worlds.text.load import load_model
    from irlhf.worlds.text.model import LanguageModel
    from irlhf.worlds.text.policies import TextPolicy
    from irlhf.worlds.text.reading import read, read_prompts
    from irlhf.worlds.text.rewards import LinearReward, ScoreReward
    from irlhf.worlds.text.saving import load_reward, save_reward
    from irlhf.worlds.text.sentences import SentenceModel, load_sentence_model
    from irlhf.worlds.text.world import TextWorld

__all__ = [
    "Completion",
    "Encoder",
    "LanguageModel",
    "LinearReward",
    "Message",
    "Prompt",
    "ScoreReward",
    "SentenceModel",
    "TextPolicy",
    "TextWorld",
    "as_reward_function",
    "export_reward",
    "load_model",
    "load_reward",
    "load_sentence_model",
    "read",
    "read_prompts",
    "save_reward",
]

# Each is imported when it is first used: transformers takes seconds, which reading a file of texts should not wait for.
_HOMES = ("encoding", "reading", "model", "load", "world", "policies", "rewards", "sentences", "saving", "export")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            module = importlib.import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                globals()[name] = value = getattr(module, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
