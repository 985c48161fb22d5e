"""Beside TRL 1.16, on the same models and batches: the same losses, gradients, advantages and rewards.

What differs is how sums are normalized. Here a fit maximizes a sum over rows, and a policy gradient is the mean over
completions of sums over tokens, of advantages in units of T. In TRL

- RewardTrainer and DPOTrainer minimize the mean over pairs;
- SFTTrainer minimizes the mean over all completion tokens of a batch;
- RLOOTrainer's advantage is T times that here, with ``beta = T``;
- GRPOTrainer (``loss_type="dr_grpo"``) divides by ``max_completion_length`` besides, and its divergence, if any, is k3
  in the loss, which has another optimum: compared without.
"""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("trl")
from datasets import Dataset
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from irlhf import Implicit, Key, Source, Term, demonstrations, exact, grpo, listed, rloo
from irlhf.centering import centered
from irlhf.distillation import Distillation
from irlhf.feedback import Choice, Feedback
from irlhf.functional.policy_gradient import leave_one_out, standardized
from irlhf.protocols import Draws
from irlhf.weights import Weights
from irlhf.worlds.text.batch import text_batch
from irlhf.worlds.text.encoding import Completion, Encoder, Message
from irlhf.worlds.text.export import as_reward_function, export_reward
from irlhf.worlds.text.model import LanguageModel
from irlhf.worlds.text.policies import TextPolicy
from irlhf.worlds.text.rewards import LinearReward, ScoreReward
from irlhf.worlds.text.world import TextWorld
from tests.worlds.text import tiny
from tests.worlds.text.test_export import CHAT
from tests.worlds.text.test_rewards import moved

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's, of what it uses of transformers

PAIRS = [("a b", " c b", " a"), ("c", " c b a", " b b a a"), ("a b", " a a", " b")]
CAP = 5


def tokenizer(chat=False):
    """Of words; for conversations one in which a line break is a word, as it is in real ones."""
    if not chat:
        return tiny.tokenizer(pad_token="<end>")
    made = tiny.tokenizer(("user", "assistant", "a", "b", "\n"), pad_token="<end>")
    parts = [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    made.chat_template = CHAT
    return made


def trainer(kind, config, folder, model, rows, **how):
    settings = {
        name: how.pop(name) for name in list(how) if name not in ("reward_funcs", "ref_model", "processing_class")
    }
    how.setdefault("processing_class", tokenizer())
    args = config(
        output_dir=str(folder / "trainer"), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
        save_strategy="no", **settings,
    )  # fmt: skip
    return kind(model=model, args=args, train_dataset=Dataset.from_list(rows), **how)


def collated(made):
    return made.data_collator(list(made.train_dataset))


def world_on(model=None):
    """The world of a tokenizer, on a base model of its own."""
    policy = None if model is None else TextPolicy(LanguageModel(copy.deepcopy(model), tokenizer()))
    return TextWorld(Encoder(tokenizer(), max_tokens=CAP), policy)


def pairs(margins=(0.0, 0.0, 0.0)):
    """A margin is what the chosen one must be ahead by: an offset on the other."""
    rows = zip(PAIRS, margins, strict=True)
    return Feedback.of(Choice(x, (a, b), 0, offset=(0.0, m), id=x + a) for (x, a, b), m in rows)


def gradients(model):
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------------------------------------------------ rewards


@pytest.mark.parametrize("center", [None, 0.3], ids=["", "centered"])
@pytest.mark.parametrize("margins", [None, (0.5, -1.0, 2.0)], ids=["", "margins"])
def test_the_loss_of_a_reward_model(margins, center, tmp_path):
    """Of the exported reward in TRL's hands, and its gradient by the head."""
    language = LanguageModel(tiny.llama(dtype=torch.float32), tokenizer())
    language.add_adapter("reward", rank=2, key=Key(1))
    moved(language.adapter("reward"))
    reward = ScoreReward(language, "reward")
    export_reward(reward, tmp_path / "exported")
    rows = [{"prompt": x, "chosen": a, "rejected": b} for x, a, b in PAIRS]
    if margins is not None:
        rows = [{**row, "margin": m} for row, m in zip(rows, margins, strict=True)]
    how = {"processing_class": None, "center_rewards_coefficient": center}
    made = trainer(RewardTrainer, RewardConfig, tmp_path, str(tmp_path / "exported"), rows, **how)
    theirs = made.compute_loss(made.model, collated(made))
    theirs.backward()
    data, world = pairs() if margins is None else pairs(margins), world_on()
    terms = [Term(data, listed(world))]
    if center is not None:
        terms.append(Term(data, centered(world, sd=(8 * center) ** -0.5)))
    ours = -sum(term.log_prob(reward).sum() for term in terms) / len(data)
    ours.backward()
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(reward.head.grad, made.model.score.weight.grad[0], rtol=1e-5, atol=1e-5)


def test_the_loss_of_direct_preference_optimization(tmp_path):
    """The mean over pairs, ``beta = T / T_s``; and its gradient by every weight of the policy."""
    base, model = tiny.llama(), moved(tiny.llama(), size=0.1)
    policy = TextPolicy(LanguageModel(copy.deepcopy(model), tokenizer()), whole=True)
    rows = [{"prompt": x, "chosen": a, "rejected": b} for x, a, b in PAIRS]
    made = trainer(DPOTrainer, DPOConfig, tmp_path, model, rows, ref_model=base, beta=0.25)
    theirs = made.compute_loss(made.model, collated(made))
    theirs.backward()
    world = world_on(base)
    term = Term(pairs(), listed(world), Source(temperature=2.0))
    ours = -term.log_prob(Implicit(policy, world, temperature=0.5)).mean()
    ours.backward()
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5)
    same_gradients(policy.model.model, made.model)


def test_the_loss_of_supervised_fine_tuning(tmp_path):
    """The mean over the tokens of all completions, end tokens included."""
    model = tiny.llama()
    policy = TextPolicy(LanguageModel(copy.deepcopy(model), tokenizer()), whole=True)
    rows = [{"prompt": x, "completion": a} for x, a, _ in PAIRS]
    made = trainer(SFTTrainer, SFTConfig, tmp_path, model, rows, completion_only_loss=True)
    theirs = made.compute_loss(made.model, collated(made))
    theirs.backward()
    world = world_on(tiny.llama(seed=1))  # the base measure is no part of it
    term = Term(demonstrations([x for x, _, _ in PAIRS], [a for _, a, _ in PAIRS]), exact(world))
    ours = -term.log_prob(Implicit(policy, world)).sum() / len(term.prepared.batch.token)
    ours.backward()
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5)
    same_gradients(policy.model.model, made.model)


def same_gradients(ours, theirs, factor=1.0):
    a, b = gradients(ours), gradients(theirs)
    assert a.keys() == b.keys() and len(a) == 21
    for name, expected in b.items():
        torch.testing.assert_close(
            a[name] * factor, expected, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


# ----------------------------------------------------------------------------------------------------------- policies


def drawn_by(made, prompts):
    """What TRL draws and makes of it, and the same completions as draws of ours."""
    made.model.train()
    output = made._generate_and_score_completions([{"prompt": prompt} for prompt in prompts])
    length = output["completion_mask"].sum(1)
    token = torch.cat([ids[:n] for ids, n in zip(output["completion_ids"], length, strict=True)])
    encoder = Encoder(tokenizer(), max_tokens=CAP)
    batch = text_batch([encoder.prompt(x) for x in prompts], torch.arange(len(prompts)), token, length)
    number = {x: k for k, x in enumerate(dict.fromkeys(prompts))}
    request = torch.tensor([number[x] for x in prompts])
    return output, batch, request


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_the_advantages_of_leave_one_out_and_their_gradient(beta, tmp_path):
    """log w has the divergence in it, as TRL's rewards have: ``R - beta KL = T log w``."""
    base = tiny.llama()
    base.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    world = world_on(base)
    reward = moved(LinearReward(LanguageModel(tiny.llama(seed=3))))
    how = {"reward_funcs": as_reward_function(reward, world), "beta": beta, "num_generations": 4,
           "max_completion_length": CAP, "per_device_train_batch_size": 8}  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    made = trainer(RLOOTrainer, RLOOConfig, tmp_path, model, [{"prompt": "a"}, {"prompt": "b c"}], **how)
    moved(made.model, size=0.1)
    output, batch, request = drawn_by(made, ["a"] * 4 + ["b c"] * 4)
    policy = TextPolicy(LanguageModel(copy.deepcopy(made.model), tokenizer()), whole=True)
    T = beta or 1.0
    if not beta:
        world.base = policy  # then log pi/mu is 0
    problem = Distillation(policy, reward, world, ["a", "b c"], temperature=T)
    log_q = policy.log_prob(batch).detach()
    total = batch.sum(log_q, discounted=False)
    torch.testing.assert_close(total, output["old_logps"].double(), rtol=0, atol=1e-5)
    draws = Draws(batch, request, log_q, torch.ones(8, dtype=torch.bool))
    learner = rloo(4)
    advantage = learner.advantage(problem.worth(draws, log_q).log_w.reshape(2, 4)).reshape(-1)
    assert learner.advantage is leave_one_out
    torch.testing.assert_close(T * advantage, output["advantages"].double(), rtol=0, atol=1e-5)
    made.compute_loss(made.model, output).backward()
    ours = learner._gradient(problem, draws, advantage)
    named = Weights(policy).split(ours)
    for name, expected in gradients(made.model).items():
        torch.testing.assert_close(-T * named[f"whole.{name}"].view_as(expected), expected, rtol=1e-4, atol=1e-5)


def test_the_advantages_of_grpo_and_their_gradient(tmp_path):
    """Standardized within a prompt; the gradient is ours over the cap."""
    model = tiny.llama()
    world = world_on(model)
    reward = moved(LinearReward(LanguageModel(tiny.llama(seed=3))))
    how = {"reward_funcs": as_reward_function(reward, world), "beta": 0.0, "num_generations": 4, "loss_type": "dr_grpo",
           "max_completion_length": CAP, "per_device_train_batch_size": 8}  # fmt: skip
    made = trainer(GRPOTrainer, GRPOConfig, tmp_path, model, [{"prompt": "a"}, {"prompt": "b c"}], **how)
    output, batch, request = drawn_by(made, ["a"] * 4 + ["b c"] * 4)
    policy = TextPolicy(LanguageModel(copy.deepcopy(made.model), tokenizer()), whole=True)
    world.base = policy
    problem = Distillation(policy, reward, world, ["a", "b c"])
    log_q = policy.log_prob(batch).detach()
    draws = Draws(batch, request, log_q, torch.ones(8, dtype=torch.bool))
    learner = grpo(4)
    advantage = learner.advantage(problem.worth(draws, log_q).log_w.reshape(2, 4)).reshape(-1)
    assert learner.advantage is standardized
    torch.testing.assert_close(advantage, output["advantages"].double(), rtol=0, atol=1e-5)
    made.current_gradient_accumulation_steps = 1
    made.compute_loss(made.model, output).backward()
    named = Weights(policy).split(learner._gradient(problem, draws, advantage))
    for name, expected in gradients(made.model).items():
        torch.testing.assert_close(-named[f"whole.{name}"].view_as(expected) / CAP, expected, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------- exported rewards in TRL's trainers


TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def one_step(kind, folder, reward_funcs, own, prompts=("a ", "b c "), cap=CAP):
    """A step of training; gives what was scored: prompts, completions and their rewards."""
    how = {"num_generations": 4, "max_completion_length": cap, "per_device_train_batch_size": 8, "max_steps": 1,
           "beta": 0.0, "logging_strategy": "no"}  # fmt: skip
    model = tiny.llama(len(own), dtype=torch.float32)
    rows = [{"prompt": prompt} for prompt in prompts]
    made = trainer(*TRAINERS[kind], folder, model, rows, reward_funcs=reward_funcs, processing_class=own, **how)
    made.train()
    ((_, rewards),) = made._logs["rewards"].items()
    return list(made._logs["prompt"]), list(made._logs["completion"]), torch.tensor(list(rewards))


@pytest.mark.parametrize("kind", list(TRAINERS))
def test_a_reward_function_is_a_reward_in_trl(kind, tmp_path):
    """It sees whether a completion has ended."""
    world = TextWorld(Encoder(tokenizer(), max_tokens=2))
    reward = moved(LinearReward(LanguageModel(tiny.llama(dtype=torch.float32))))
    function, seen = as_reward_function(reward, world), []

    def listening(prompts, completions, completion_ids, **columns):
        seen.extend(zip(prompts, completion_ids, strict=True))
        return function(prompts, completions, completion_ids, **columns)

    _, _, found = one_step(kind, tmp_path, listening, tokenizer(), cap=2)
    end, completions = world.encoder.end, []
    for _, ids in seen:
        ended = ids[-1] == end
        completions.append(Completion(tuple(ids[:-1] if ended else ids), ended))
    assert {c.ended for c in completions} == {True, False} and len(completions) == 8
    with torch.no_grad():
        expected = reward(world.collate([prompt for prompt, _ in seen], completions))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("end", [None, 3], ids=["", "that is not read"])
@pytest.mark.parametrize("kind", list(TRAINERS))
def test_a_folder_gets_plain_texts_without_their_end(kind, end, tmp_path):
    """TRL decodes without special tokens: what the folder scores is the text before its end, which is another score
    unless the reward reads no end."""
    language = LanguageModel(tiny.llama(dtype=torch.float32), tokenizer())
    reward = moved(LinearReward(language, end=end))
    export_reward(reward, tmp_path / "exported")
    prompts, completions, found = one_step(kind, tmp_path, str(tmp_path / "exported"), tokenizer())
    encoder = Encoder(tokenizer(), max_tokens=CAP + 1)
    contexts = [encoder.prompt(prompt) for prompt in prompts]
    token = [encoder.completion(x, y).tokens for x, y in zip(prompts, completions, strict=True)]
    length = torch.tensor([len(tokens) for tokens in token])
    flat = torch.tensor([t for tokens in token for t in tokens])
    cut = text_batch(contexts, torch.arange(len(contexts)), flat, length)
    with torch.no_grad():
        torch.testing.assert_close(found.double(), reward(cut), rtol=1e-5, atol=1e-5)
        ended = reward(TextWorld(encoder).collate(prompts, completions))
    if end is None:
        assert float((found - ended).abs().min()) > 1e-3
    else:
        torch.testing.assert_close(found.double(), ended, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("end", [None, 5], ids=["", "that is not read"])
@pytest.mark.parametrize("kind", list(TRAINERS))
def test_a_folder_gets_conversations_with_their_end(kind, end, tmp_path):
    """The chat template writes it; behind it this one would put a line break, where the score would be read."""
    own = tokenizer(chat=True)
    language = LanguageModel(tiny.llama(6, dtype=torch.float32), own)
    reward = moved(LinearReward(language, end=end))
    export_reward(reward, tmp_path / "exported")
    asked = [[{"role": "user", "content": content}] for content in ("a", "b a b")]
    prompts, completions, found = one_step(kind, tmp_path, str(tmp_path / "exported"), own, asked)
    world = TextWorld(Encoder(own, max_tokens=CAP + 1))

    def turns(conversation):
        return tuple(Message(turn["role"], turn["content"]) for turn in conversation)

    batch = world.collate([turns(x) for x in prompts], [turns(y) for y in completions])
    with torch.no_grad():
        torch.testing.assert_close(found.double(), reward(batch), rtol=1e-5, atol=1e-5)
