"""What do people like about films? A reward for texts from texts alone, and a language model that writes for it.

Favorable reviews are demonstrations. No label and no unfavorable review is shown to the learner: rivals are drawn from
a pool of unlabeled ones of both kinds. Beside it the same fit with rivals that the language model wrote, which learns
something else: who wrote a text. Then 200 labeled pairs join the demonstrations. Last, the reward is distilled into
the model's own writing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console

from irlhf import (
    Implicit,
    Minibatches,
    Normal,
    Pool,
    Source,
    Term,
    comparisons,
    demonstrations,
    exact,
    fit_policy,
    fit_reward,
    listed,
    rloo,
    sampled,
)
from irlhf.demos.reviews import OPENINGS, PROMPT, Reviews, area, load, pairs_of
from irlhf.demos.screen import console, say, table
from irlhf.randomness import Key
from irlhf.worlds.text import Encoder, LanguageModel, LinearReward, TextPolicy, TextWorld, load_model

DEPTH = 16 / 30  # of the layers: about there, the last word's features say most of what a text is about
SD = 0.02  # of the prior; .01 to .02 is what the held-out likelihood of demonstrations chooses (dev/LOG.md)
RIVALS = 8
CAP = 120  # tokens of a review; the longest has 81
BATCH = 16  # reviews of a step of fine-tuning
TEMPERATURES = (0.1, 0.2, 0.3, 0.5, 1.0)  # of the pairs, in units of the demonstrations'
TOP = 12 / 30  # of the layers, that adapters are in: above those that the reward reads, which need no backward pass


@dataclass(frozen=True)
class Sizes:
    """How much is done; the smaller one is for a first look."""

    demonstrations: tuple[int, ...] = (200, 1700)
    pool: int = 1500
    held_out: int = 1000
    pairs: int = 200
    written: int = 300
    prompts: int = 8
    fresh: int = 16
    tokens: int = 40
    tuning: int = 320
    steps: int = 24


QUICK = Sizes((100,), 200, 200, 50, 40, 4, 6, 16, 32, 3)


@dataclass(eq=False)
class Study:
    """The model, the world, and what has been found so far."""

    reviews: Reviews
    sizes: Sizes
    world: TextWorld
    model: LanguageModel
    tell: Callable[[str], None]
    found: dict[str, float] = field(default_factory=dict)

    def batch(self, texts: Sequence[str]) -> Any:
        return self.world.collate([PROMPT] * len(texts), list(texts))

    @property
    def depth(self) -> int:
        return max(1, round(DEPTH * self.model.model.config.num_hidden_layers))

    def read(self) -> None:
        """All texts that are learned from, once; what the features' units are, too, is taken from these."""
        self.reader = LinearReward(self.model, depth=self.depth, end=self.world.encoder.end)
        r, s = self.reviews, self.sizes
        texts = [*r.pool[: s.pool], *r.liked[: max(s.demonstrations)]]
        done = [0]

        def tell(items: int) -> None:
            done[0] += items
            self.tell(f"reading reviews: {done[0]:,} of {len(texts):,}")

        self.reader.standardize(self.batch(texts), tell=tell)


def measure(study: Study) -> dict[str, LinearReward]:
    """Fits all rewards, notes their areas in ``study.found``, and returns those that are used further."""
    r, s, world = study.reviews, study.sizes, study.world
    pool = Pool(r.pool[: s.pool], [PROMPT] * s.pool)
    held, truth = study.batch(r.held_out[: s.held_out]), r.held_out_favorable[: s.held_out]

    study.tell(f"reading {s.held_out:,} held-out reviews")
    study.reader.features(held)

    written = bank(study)
    rivals, others = written[::2], study.batch(written[1::2])
    whose = np.arange(held.n_items + others.n_items) < held.n_items

    def judged(name: str, reward: Any) -> None:
        with torch.no_grad():
            people, model = reward(held).numpy(), reward(others).numpy()
        study.found[name], study.found[f"{name}.error"] = area(people, truth)
        study.found[f"{name}.who"], study.found[f"{name}.who.error"] = area(np.concatenate([people, model]), whose)

    length = np.array([len(text) for text in r.held_out[: s.held_out]])
    study.found["length"], study.found["length.error"] = area(length, truth)
    good, bad = pairs_of(r, min(s.pairs, s.pool // 4))
    pairs = comparisons([PROMPT] * len(good), good, bad, [0] * len(good))
    rewards: dict[str, LinearReward] = {}
    for n in s.demonstrations:
        study.tell(f"fitting to {n:,} favorable reviews")
        rows = demonstrations([PROMPT] * n, r.liked[:n])
        term = Term(rows, sampled(world, pool, n=RIVALS))
        rewards[f"{n}.people"] = fit(study, [term])
        by_model = Term(rows, sampled(world, Pool(rivals, [PROMPT] * len(rivals)), n=RIVALS))
        rewards[f"{n}.model"] = fit(study, [by_model])
        temperature = chosen(study, term, pairs)
        study.found[f"{n}.temperature"] = temperature
        rewards[f"{n}.both"] = fit(study, [term, Term(pairs, listed(world), Source(temperature))])
    study.tell("fitting to pairs alone")
    rewards["pairs"] = fit(study, [Term(pairs, listed(world))])
    for name, reward in rewards.items():
        judged(name, reward)
    return rewards


def fit(study: Study, terms: list[Term]) -> Any:
    return fit_reward(study.reader.another(), terms, prior=Normal(SD)).reward


def chosen(study: Study, term: Term, pairs: Any) -> float:
    """The temperature of the pairs under which half of them is best predicted from the rest and the demonstrations.

    Fitted with the reward it would be wrong: the prior holds the reward small, and the temperature follows it.
    """
    half, other = pairs.split(0.5)
    scores = []
    for temperature in TEMPERATURES:
        source = Source(temperature)
        reward = fit(study, [term, Term(half, listed(study.world), source)])
        with torch.no_grad():
            scores.append(float(Term(other, listed(study.world), source).log_prob(reward).sum()))
    return TEMPERATURES[int(np.argmax(scores))]


def bank(study: Study) -> list[Any]:
    """Reviews that the model writes by itself, as a stored bank of draws from mu."""
    written: list[Any] = []
    world = TextWorld(Encoder(study.model.tokenizer, max_tokens=2 * study.sizes.tokens), study.world.base)
    for k, count in enumerate(_shares(study.sizes.written, 50)):
        study.tell(f"the model writes reviews: {len(written)} of {study.sizes.written}")
        draws = world.draw(world.base_policy(), [PROMPT], count, key=Key(0).at("bank", k))
        texts = [row["completion"].strip() for row in world.readable(draws)]
        written += [text for text in texts if text]
    return written


def _shares(total: int, most: int) -> list[int]:
    return [min(most, total - first) for first in range(0, total, most)]


def tuned(study: Study) -> TextPolicy:
    """The base measure of the second half: the model after a look at unlabeled reviews, which it then ends like people.

    Fine-tuning is the implicit column of the same fit: the reward is T log(pi/mu), and the demonstrations are reviews.
    """
    s, start = study.sizes, time.perf_counter()
    study.model.add_adapter("mu", rank=16, layers=_top(study.model), key=Key(1))
    policy = TextPolicy(study.model, "mu")
    rows = demonstrations([PROMPT] * s.tuning, study.reviews.pool[: s.tuning])
    steps = max(1, 2 * s.tuning // BATCH)

    def told(step: dict[str, Any]) -> None:
        took = (time.perf_counter() - start) / max(step["step"], 1)
        study.tell(f"reading unlabeled reviews: step {step['step']} of {steps}, {took:.0f} s each")

    how = Minibatches(partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0), rows=BATCH, at_once=BATCH,
                      max_steps=steps, key=Key(0).at("tuning"))  # fmt: skip
    fit_reward(Implicit(policy, study.world), Term(rows, exact(study.world)), optimizer=how, progress=told)
    return policy


def _top(model: LanguageModel) -> range:
    layers = model.model.config.num_hidden_layers
    return range(layers - max(1, round(TOP * layers)), layers)


def distill(study: Study, reward: LinearReward) -> dict[str, Any]:
    """The model's writing before and after it has learned the reward: on openings that it did not learn from."""
    s = study.sizes
    base = tuned(study)
    world = TextWorld(Encoder(study.model.tokenizer, max_tokens=s.tokens), base)
    starts = [PROMPT + opening for opening in OPENINGS[: s.prompts + s.fresh]]
    learned, fresh = starts[: s.prompts], starts[s.prompts :]
    study.model.add_adapter("policy", rank=16, layers=_top(study.model), key=Key(0))
    study.model.adapter("policy").load_state_dict(study.model.adapter("mu").state_dict())
    policy = TextPolicy(study.model, "policy")
    with torch.no_grad():
        spread = float(reward(study.batch(study.reviews.pool[: s.pool])).std())

    def judge() -> dict[str, Any]:
        draws = world.draw(policy, fresh, 8, key=Key(0).at("fresh"))
        with torch.no_grad():
            worth = reward(draws.batch)
            assert draws.log_q is not None
            kl = draws.batch.sum(draws.log_q - world.log_base_step(draws.batch))
        each = worth.reshape(len(fresh), -1).mean(1)  # completions of one opening are not independent
        cut = world.describe(draws)["truncated"]
        return {"reward": each, "kl": float(kl.mean()), "cut": cut, "texts": world.readable(draws)[::8]}

    study.tell("judging before")
    before = judge()
    start = time.perf_counter()

    def told(step: dict[str, Any]) -> None:
        took = (time.perf_counter() - start) / step["step"]
        study.tell(f"learning: step {step['step']} of {s.steps}, reward {step['reward']:.2f}, {took:.0f} s each")

    temperature = 0.2 * spread
    fit_policy(policy, reward, world, learned, learner=rloo(8, rate=1.5e-3, max_steps=s.steps),
               temperature=temperature, at_once=32, progress=told)  # fmt: skip
    study.tell("judging after")
    after = judge()
    gain = after["reward"] - before["reward"]
    error = float(gain.std() / len(gain) ** 0.5)
    study.found |= {
        "gain": float(gain.mean()), "gain.error": error, "spread": spread, "kl": after["kl"],
        "before": float(before["reward"].mean()), "after": float(after["reward"].mean()), "T": temperature,
        "cut": after["cut"],
    }  # fmt: skip
    return {"before": before["texts"], "after": after["texts"]}


# ----------------------------------------------------------------------------------------------------------- printing


def print_areas(to: Console, study: Study) -> None:
    found, s = study.found, study.sizes
    made = table(
        "1. How often a favorable review is ranked above an unfavorable one (area under the curve)",
        "what is known", *(f"{n:,} demonstrations" for n in s.demonstrations),
    )  # fmt: skip

    def row(name: str, key: str) -> None:
        keys = [key.format(n=n) for n in s.demonstrations]
        made.add_row(name, *(f"{found[k]:.3f} ({found[f'{k}.error']:.3f})" for k in keys))

    row("demonstrations, rivals from unlabeled reviews", "{n}.people")
    row("... and labeled pairs", "{n}.both")
    row("labeled pairs alone", "pairs")
    row("careful: rivals that the model wrote", "{n}.model")
    row("the length of a review", "length")
    made.add_section()
    row("people above the model: rivals from reviews", "{n}.people.who")
    row("people above the model: rivals it wrote", "{n}.model.who")
    to.print(made)
    temperatures = ", ".join(f"{found[f'{n}.temperature']:g}" for n in s.demonstrations)
    say(
        to,
        f"""
        On {s.held_out:,} held-out reviews, standard errors in parentheses. A reward is {study.model.width} weights on
        what layer {study.depth} of {study.model.name} makes of the last word; nothing else is trained. Demonstrations
        are favorable reviews without a label; {RIVALS} rivals for each come from {s.pool:,} unlabeled ones, half of
        which are favorable too. {s.pairs} pairs, judged by the labels, have temperatures of {temperatures}, chosen on
        pairs held out. Last rows: how often a review by people is ranked above one that the model wrote. With rivals
        that the model wrote, a reward learns who wrote a text, and less of what people like.
        """,
    )


def print_policy(to: Console, study: Study, texts: dict[str, Any]) -> None:
    found, s = study.found, study.sizes
    made = table("2. The reward as a writer: completions of openings that were not learned from", "", "before", "after")
    made.add_row("reward, mean", f"{found['before']:.2f}", f"{found['after']:.2f}")
    made.add_row("divergence from mu, nats", "0", f"{found['kl']:.2f}")
    to.print(made)
    units = found["gain"] / max(found["gain.error"], 1e-12)
    verdict = "rose" if units >= 2 else "did not rise"
    say(
        to,
        f"""
        The reward {verdict}: by {found["gain"]:.2f} (standard error {found["gain.error"]:.2f}, over {s.fresh}
        openings), where the reviews of people differ by {found["spread"]:.2f}. It was learned relative to people's
        reviews and is distilled relative to mu, the model after a look at {s.tuning} unlabeled ones: a second, stated
        approximation. {s.steps} steps of RLOO on {s.prompts} openings, T = {found["T"]:.2f}. At {s.tokens} tokens
        {found["cut"]:.0%} of the completions are cut amid a sentence.
        """,
    )
    for name in ("before", "after"):
        to.print(f"{name}:", style="bold")
        for shown in texts[name][:3]:
            text = f"{shown['prompt'].removeprefix(PROMPT)} | {shown['completion']}"
            to.print("  " + " ".join(text.split()), markup=False)
    to.print()


def build(model: LanguageModel, reviews: Reviews, sizes: Sizes, tell: Callable[[str], None]) -> Study:
    """A study of these reviews by this model."""
    world = TextWorld(Encoder(model.tokenizer, max_tokens=CAP), TextPolicy(model))
    return Study(reviews, sizes, world, model, tell)


def main(*, seed: int = 0, quick: bool = False, model: str = "smollm2") -> None:
    """Runs the demo and prints its two tables."""
    to, reviews = console(), load(seed)
    started = time.perf_counter()
    with to.status("loading the model") as line:

        def tell(what: str) -> None:
            seconds = time.perf_counter() - started
            line.update(f"[{seconds:.0f} s] {what}")
            if not to.is_terminal:
                print(f"[{seconds:.0f} s] {what}", flush=True, file=sys.stderr)

        language = LanguageModel(*load_model(model), name=model)
        study = build(language, reviews, QUICK if quick else Sizes(), tell)
        study.read()
        rewards = measure(study)
        best = rewards[f"{study.sizes.demonstrations[-1]}.both"]
        texts = distill(study, best)
    print_areas(to, study)
    print_policy(to, study, texts)
