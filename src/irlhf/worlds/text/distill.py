"""What ``irlhf distill`` asks of the text world: prompts, an adapter that can be learned, and that adapter as files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import safetensors.torch

from irlhf.config import Learning, Setup
from irlhf.errors import CheckpointError, ConfigError, DataError, Problem
from irlhf.feedback import DEMONSTRATION
from irlhf.randomness import Key
from irlhf.worlds.text.encoding import Message, Prompt
from irlhf.worlds.text.policies import TextPolicy
from irlhf.worlds.text.reading import read_prompts

LEARNING = Learning(rate=1e-3, steps=100, batch=8, at_once=16, judged=512, choices=64)
ADAPTER = "policy"
RANK = 16


def contexts_of(setup: Setup, how: Any) -> list[Any]:
    """The distinct prompts of a file, or else those of the demonstrations, or else of all that was shown; as JSON.

    Args:
        setup: the world, and the feedback of the fit as far as it is there.
        how: settings of ``irlhf distill``; ``how.prompts``: the file.

    Raises:
        DataError: a prompt cannot be read, or is too long.
        ConfigError: there are none.
    """
    if how.start:
        raise ConfigError("--start is of worlds with states; texts start from --prompts FILE")
    if how.prompts is not None:
        found = _within(setup, dict.fromkeys(read_prompts(how.prompts)), str(how.prompts))
    else:
        found = _seen(setup)
    if not found:
        raise ConfigError("nothing says from which prompts to write: give --prompts FILE")
    return [_to_json(prompt) for prompt in found]


def _within(setup: Setup, prompts: dict[Any, None], name: str) -> list[Any]:
    """Those that the world takes. Too long ones are refused or left out, as the fit did."""
    good, problems = [], []
    for prompt in prompts:
        try:
            setup.world.encoder.prompt(prompt)
            good.append(prompt)
        except ValueError as error:
            problems.append(Problem(name, None, "prompt", str(error)))
    if problems and (setup.about["texts"]["long"] != "drop" or not good):
        raise DataError(problems)
    if problems:
        warnings.warn(f"{name}: {len(problems)} of {len(prompts)} prompts were left out: {problems[0]}", stacklevel=3)
    return good


def _seen(setup: Setup) -> list[Any]:
    """The prompts of every demonstration; without any, of everything."""
    found: dict[bool, dict[Any, None]] = {True: {}, False: {}}
    for part in setup.feedback:
        for kind, number in zip(part.kind, part.context, strict=True):
            found[bool(kind == DEMONSTRATION)][part.contexts[int(number)]] = None
    return list(found[True] or found[False])


def _to_json(prompt: Any) -> Any:
    if isinstance(prompt, Prompt):  # one that was cut
        return {"tokens": list(prompt.tokens)}
    if isinstance(prompt, tuple):
        return [{"role": message.role, "content": message.content} for message in prompt]
    return prompt


def _from_json(value: Any) -> Any:
    try:
        if isinstance(value, dict):
            return Prompt(tuple(int(token) for token in value["tokens"]))
        if isinstance(value, list):
            return tuple(Message(str(message["role"]), str(message["content"])) for message in value)
        if value is None or isinstance(value, str):
            return value
    except (KeyError, TypeError, ValueError):
        pass
    raise CheckpointError("the contexts of the run are not prompts; distill again")


def policy_of(setup: Setup, contexts: Sequence[Any], how: Any) -> tuple[TextPolicy, list[Any]]:
    """The base model with a new adapter, which changes nothing yet, and the prompts as the world draws from them.

    Raises:
        CheckpointError: contexts that are no prompts.
    """
    language = setup.world.base_policy().model
    rank = RANK if how.rank is None else how.rank
    language.add_adapter(ADAPTER, rank=rank, key=Key(how.seed).at("policy"))
    return TextPolicy(language, ADAPTER), [_from_json(value) for value in contexts]


def policy_files(setup: Setup, policy: TextPolicy) -> dict[str, bytes]:
    """The folder ``adapter``: ``PeftModel.from_pretrained(model, folder)`` is the policy."""
    language = policy.model
    how = language.model.peft_config[ADAPTER].to_dict()
    how = {name: sorted(value) if isinstance(value, set) else value for name, value in how.items()}
    how |= {"base_model_name_or_path": language.name, "inference_mode": True}
    tensors = {}
    for path, pair in language.adapter(ADAPTER).items():
        for part in ("A", "B"):
            name = f"base_model.model.{path.replace('-', '.')}.lora_{part}.weight"
            tensors[name] = pair[part].weight.detach().contiguous()  # type: ignore[index]
    return {
        "adapter/adapter_config.json": json.dumps(how, indent=2, default=str).encode(),
        "adapter/adapter_model.safetensors": safetensors.torch.save(tensors, metadata={"format": "pt"}),
    }
