"""The text world's own settings, and how its files become a world, a reward and feedback."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import AfterValidator, field_validator, model_validator

from irlhf.config import File, Files, Setup, setting
from irlhf.config import Settings as Shared
from irlhf.errors import CheckpointError, ConfigError, DataError
from irlhf.feedback import DEMONSTRATION, Feedback
from irlhf.proposals import Pool
from irlhf.randomness import Key
from irlhf.rewards import Implicit
from irlhf.worlds.text.batch import TextBatch
from irlhf.worlds.text.distill import LEARNING, contexts_of, policy_files, policy_of
from irlhf.worlds.text.encoding import HUMAN_ASSISTANT, Encoder, Lengths
from irlhf.worlds.text.load import fast_dtype, identify, load_model, load_tokenizer, model_folder
from irlhf.worlds.text.model import LanguageModel
from irlhf.worlds.text.pictures import pictures
from irlhf.worlds.text.policies import TextPolicy
from irlhf.worlds.text.reading import read as read_texts
from irlhf.worlds.text.rewards import LinearReward, ScoreReward
from irlhf.worlds.text.scored import scored
from irlhf.worlds.text.world import TextWorld

__all__ = [  # what irlhf.config asks of a world
    "LEARNING",
    "Settings",
    "contexts_of",
    "from_config",
    "from_kept",
    "keep",
    "pictures",
    "policy_files",
    "policy_of",
    "read",
    "scored",
]

DATA, WORLD, REWARD, FIT = "What was observed", "The world", "The reward", "How to fit"
RATES = {"score": 1e-3, "lora": 2e-4, "whole": 1e-5, "implicit": 1e-4}  # of rewards that are fitted some rows at a time
ADAPTER = "reward"


def _named(value: str) -> str:
    """A folder by its whole path; all else is a name."""
    return os.path.abspath(os.path.expanduser(value)) if os.path.isdir(os.path.expanduser(value)) else value


class Settings(Shared):
    """Settings of a fit in the text world."""

    FILES: ClassVar[tuple[str, ...]] = ("feedback", "pool")
    NAMES: ClassVar[tuple[str, ...]] = ("model",)

    feedback: Files = setting(
        [],
        "Demonstrations, comparisons, rankings, ratings: JSON Lines or Parquet in the shapes of TRL and others. "
        "May be repeated.",
        DATA,
    )
    pool: File | None = setting(None, "Texts of people without any label, from which rivals are picked.", DATA)
    levels: int | None = setting(None, "Scores of completions are ratings with so many levels.", DATA, ge=2, le=1000)
    long: Literal["refuse", "drop", "cut"] = setting("refuse", "What to do with texts that are too long.", DATA)
    model: Annotated[str, AfterValidator(_named)] | None = setting(
        None, "The language model: a folder, owner/model on the Hugging Face Hub, or smollm2.", WORLD, "NAME"
    )
    template: Literal["own", "plain"] = setting(
        "own", "How conversations are written: as the model has learned it, or plain, for a model without a template: "
        "Human: ... Assistant: ...",
        WORLD,
    )  # fmt: skip
    dtype: Literal["float32", "bfloat16", "float64"] | None = setting(
        None, "Of the model: float32, bfloat16 or float64. Default: bfloat16 where this processor is faster with it.",
        WORLD, validate_default=True,
    )  # fmt: skip
    max_tokens: int = setting(256, "Tokens of a completion, its end token included.", WORLD, ge=1, le=10**6)
    max_prompt: int | None = setting(None, "Tokens of a prompt (default: any number).", WORLD, ge=1, le=10**6)
    reward: Literal["linear", "score", "lora", "whole", "implicit"] = setting(
        "linear",
        "linear: on frozen features, fitted to the last digit. score: a head, trained; lora: with an adapter, whole: "
        "with all of the model. implicit: T log(pi/mu), which is fine-tuning and DPO.",
        REWARD,
    )
    depth: int | None = setting(None, "Layers of the model that a reward reads (default: all).", REWARD, ge=1)
    rank: int = setting(16, "Of the adapter (lora, implicit).", REWARD, ge=1, le=4096)
    proposal: Literal["pool", "base"] | None = setting(
        None, "Where rivals come from: the pool (default, if there is one), or the model.", FIT
    )
    rate: float | None = setting(None, "Learning rate. Default: by the reward.", FIT, gt=0)  # pyright: ignore
    rows: int = setting(32, "Rows of feedback in a step (all rewards but linear).", FIT, ge=1, le=10**9)
    at_once: int = setting(8, "Rows read together: what memory a step takes.", FIT, ge=1, le=10**9)
    epochs: float = setting(1.0, "How often every row is seen (all rewards but linear).", FIT, gt=0, le=10**6)

    @field_validator("dtype", mode="before")
    @classmethod
    def _measured(cls, value: Any) -> Any:
        return str(fast_dtype()).removeprefix("torch.") if value is None else value

    @model_validator(mode="after")
    def _agree_in_this_world(self) -> Settings:
        if not self.feedback:
            raise ValueError("there is nothing to learn from: give --feedback FILE")
        if self.model is None:
            raise ValueError("nothing says which model reads the texts: give --model FOLDER, or --model smollm2")
        if self.proposal == "pool" and self.pool is None:
            raise ValueError("--proposal pool needs a pool: give --pool FILE, or --proposal base")
        if self.reward == "implicit" and (self.pool or self.proposal or self.likelihood == "sampled"):
            raise ValueError(
                "an implicit reward needs no rivals, since its exp(R/T) mu sums to one; leave out --pool, --proposal "
                "and --likelihood"
            )
        if self.reward != "linear":
            given = [
                name for name in ("fix", "bound", "start", "optimizer", "errors", "cluster") if getattr(self, name)
            ]
            if given:
                raise ValueError(f"--{given[0]} is for a linear reward; a {self.reward} one is fitted by minibatches")
        return self

    @property
    def models_ties(self) -> bool:
        return self.ties is not None or any(source.ties for source in self.sources.values())

    @property
    def from_pool(self) -> bool:
        return self.pool is not None and self.proposal != "base"

    def data_files(self) -> list[Path]:
        """The feedback, and the weights of the model: a fit is of both."""
        assert self.model is not None
        return [*super().data_files(), *sorted(model_folder(self.model).glob("*.safetensors"))]


# -------------------------------------------------------------------------------------------------------- feedback


def read(settings: Settings, path: Path) -> Feedback:
    """Feedback from one file, within the limits. What is to be said of it (lengths, fields not read) is a warning.

    Raises:
        DataError: names file, line, field and reason.
    """
    assert settings.model is not None
    feedback, lengths = _read(settings, path, _encoder(settings, load_tokenizer(settings.model)))
    if lengths.long_rows:
        warnings.warn(f"{path}: {lengths}", stacklevel=2)
    return feedback


def _read(settings: Settings, path: Path, encoder: Encoder) -> tuple[Feedback, Lengths]:
    found = read_texts(path, ties=settings.models_ties, levels=settings.levels)
    try:
        return encoder.within(found, settings.long)
    except DataError as error:  # texts know their rows, and not where these came from
        raise DataError([replace(problem, file=f"{path}, {problem.file}") for problem in error.problems]) from None


def _encoder(settings: Settings, tokenizer: Any) -> Encoder:
    if settings.template == "plain":
        tokenizer.chat_template = HUMAN_ASSISTANT
    long = "cut" if settings.long == "cut" else "refuse"
    return Encoder(tokenizer, max_tokens=settings.max_tokens, max_prompt=settings.max_prompt, long=long)


@dataclass(eq=False)
class _StoredPool:
    """The pool of a run, read when it is asked for: most of what is done with a run does without it."""

    settings: Settings
    encoder: Encoder
    found: list[Pool] = field(default_factory=list)

    def draw(self, *given: Any) -> Any:
        if not self.found:
            self.found.append(_pool(self.settings, self.encoder)[0])
        return self.found[0].draw(*given)

    def offset(self, world: Any, batch: Any) -> torch.Tensor:
        return Pool([]).offset(world, batch)


def _pool(settings: Settings, encoder: Encoder) -> tuple[Pool, Lengths]:
    """The texts that rivals are picked from: demonstrations nobody calls so."""
    assert settings.pool is not None
    feedback, lengths = _read(settings, settings.pool, encoder)
    if (feedback.kind != DEMONSTRATION).any():
        raise ConfigError(f"{settings.pool} is the pool, but has comparisons or ratings; give texts without any label")
    if not len(feedback):
        raise ConfigError(f"{settings.pool} is the pool, but nothing in it is short enough; raise --max-tokens")
    texts = [feedback.trajectories[k] for k in feedback.trajectory]
    return Pool(texts, [feedback.contexts[x] for x in feedback.context]), lengths


# ------------------------------------------------------------------------------------------- the world and the reward


def from_config(settings: Settings) -> Setup:
    """Everything that the files of a configuration say.

    Raises:
        DataError: a file that cannot be read.
        ConfigError: settings that do not fit the data, or a model that is not there.
    """
    setup = _bare(settings)
    encoder: Encoder = setup.world.encoder
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        for path in settings.feedback:
            feedback, lengths = _read(settings, path, encoder)
            if not len(feedback):
                raise ConfigError(f"{path}: {lengths} Nothing is left; raise --max-tokens, or choose --long cut")
            setup.feedback.append(feedback)
            setup.notes.append(f"{path.name}: {lengths}")
        demonstrated = any((part.kind == DEMONSTRATION).any() for part in setup.feedback)
        if settings.from_pool and demonstrated:
            pool, lengths = _pool(settings, encoder)
            setup = replace(setup, proposal=pool)
            setup.notes.append(f"{cast(Path, settings.pool).name}, the pool: {lengths}")
    setup.notes.extend(str(warning.message) for warning in said)
    setup.notes.extend(_about_rivals(settings, setup, demonstrated))
    setup.notes.append(_about_reward(settings, setup))
    if len({name for part in setup.feedback for name in part.source}) > 1:
        setup.notes.append(
            "temperatures are fixed unless [sources.NAME] in a file says fit_temperature = true: beside a prior, or in "
            "the small steps of a large model, a fitted one means little. Compare some by --holdout"
        )
    return setup


def _about_rivals(settings: Settings, setup: Setup, demonstrated: bool) -> list[str]:
    if settings.pool is not None and not demonstrated:
        return ["careful: the pool is not used: there are no demonstrations that rivals could be picked for"]
    if demonstrated and setup.proposal is None and (settings.likelihood or setup.likelihood) == "sampled":
        return [
            "careful: rivals are written by the model, so the reward may learn who wrote a text and not what is liked; "
            "with --pool FILE they are texts of people"
        ]
    return []


def _about_reward(settings: Settings, setup: Setup) -> str:
    if settings.reward == "linear":
        sd = setup.prior if settings.prior is None else settings.prior
        default = "" if settings.prior else ", half of one over the root of their number: compare others by --holdout"
        return (
            f"reward: linear in {setup.reward.model.width} features, each divided by its standard deviation; prior: "
            f"standard deviation {sd:.3g}{default}"
        )
    count = sum(p.numel() for p in setup.reward.parameters() if p.requires_grad)
    prior = "no prior" if settings.prior is None else f"prior: standard deviation {settings.prior:g}"
    assert setup.minibatches is not None
    also = "; comparisons are DPO with beta = 1 / temperature of their source" if settings.reward == "implicit" else ""
    return (
        f"reward: {settings.reward}, {count:,} parameters, learning rate {setup.minibatches['rate']:g}, {prior}{also}"
    )


def _bare(settings: Settings) -> Setup:
    """World and reward, without feedback."""
    assert settings.model is not None and settings.dtype is not None
    dtype = getattr(torch, settings.dtype)
    if settings.reward in ("lora", "implicit"):
        require_peft()
    model, tokenizer = load_model(settings.model, dtype=dtype)
    language = LanguageModel(model, tokenizer, name=settings.model)
    world = TextWorld(_encoder(settings, tokenizer), TextPolicy(language))
    reward = _reward(settings, world, language)
    linear = isinstance(reward, LinearReward)
    weights = identify(settings.model)
    return Setup(
        world,
        reward,
        [],
        likelihood="exact" if settings.reward == "implicit" else "sampled",
        prior=0.5 * reward.model.width**-0.5 if linear else None,
        minibatches=None if linear else _minibatches(settings),
        fit_temperatures=False,
        first_pass=_Reader(reward) if linear else None,
        about={
            "model": {"name": weights.name, "sha256": weights.sha256},
            "texts": {"max_tokens": settings.max_tokens, "max_prompt": settings.max_prompt, "long": settings.long},
        },
    )


def _minibatches(settings: Settings) -> dict[str, Any]:
    rate = RATES[settings.reward] if settings.rate is None else settings.rate
    return {"rows": settings.rows, "at_once": settings.at_once, "epochs": settings.epochs, "rate": rate}


def _reward(settings: Settings, world: TextWorld, language: LanguageModel) -> torch.nn.Module:
    key = Key(settings.seed).at("reward")
    if settings.reward == "linear":
        return LinearReward(language, depth=settings.depth, end=world.encoder.end)
    if settings.reward == "whole":  # a model of its own: the world's is the base measure, and stays as it is
        model, tokenizer = load_model(cast(str, settings.model), dtype=language.dtype)
        own = LanguageModel(model, tokenizer, name=language.name)
        return ScoreReward(own, whole=True, depth=settings.depth, key=key)
    if settings.reward == "score":
        return ScoreReward(language, depth=settings.depth, end=world.encoder.end, key=key)
    layers = None if settings.depth is None or settings.reward == "implicit" else range(settings.depth)
    language.add_adapter(ADAPTER, rank=settings.rank, layers=layers, key=key)
    if settings.reward == "lora":
        return ScoreReward(language, ADAPTER, depth=settings.depth, key=key)
    return Implicit(TextPolicy(language, ADAPTER), world)


def require_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise ConfigError('adapters need the package peft, which is missing: pip install "irlhf[text]"')


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads all texts of a fit once, telling how far it is, and sets the units of the features."""

    reward: LinearReward

    def __call__(self, batches: Sequence[TextBatch], tell: Callable[[dict[str, Any]], None]) -> None:
        whole = list(dict.fromkeys(map(_root, batches)))
        counts = {"read": 0, "of": sum(batch.n_items for batch in whole)}

        def count(items: int) -> None:
            counts["read"] += items
            tell(dict(counts))

        self.reward.standardize(*whole, tell=count)


def _root(batch: TextBatch) -> TextBatch:
    return batch if batch.taken_from is None else _root(batch.taken_from[0])


# ------------------------------------------------------------------------------------------------------- kept worlds


def keep(setup: Setup) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What :func:`from_kept` checks: a model is too large to be kept, so it must be where it was."""
    return {}, dict(setup.about)


def from_kept(settings: Settings, tensors: dict[str, torch.Tensor], info: dict[str, Any]) -> Setup:
    """The setup without its feedback. Raises CheckpointError if the model is not the one of the fit."""
    setup = _bare(settings)
    if info.get("model", {}).get("sha256") != setup.about["model"]["sha256"]:
        raise CheckpointError(f"the model {settings.model} is not the one of the fit: its weights have changed")
    return replace(setup, proposal=_StoredPool(settings, setup.world.encoder)) if settings.from_pool else setup
