"""Texts and conversations as token ids: the one place where a chat template or a tokenizer is applied.

Policy, reward and reference all see what is encoded here, so they cannot differ in a template, an end token or the
border between prompt and completion. The rules:

- a prompt is never empty (no text: the start token, or else the end token);
- a completion is encoded apart from its prompt, so its tokens do not depend on where the prompt stopped;
- a completion ends with the end token, once, and with nothing after it (templates put a newline there);
- only a template writes special tokens: a completion or message that spells one is refused, because it would end
  the text early or start another speaker's turn. A prompt that is a plain string may spell them: it may have been
  formatted by hand. And a completion may spell the end token as its last characters: that is the end token.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from irlhf.errors import ConfigError, DataError, Problem
from irlhf.feedback import Feedback
from irlhf.io.wording import shown

HUMAN_ASSISTANT = (
    "{% for message in messages %}"
    "{{ {'user': '\n\nHuman: ', 'assistant': '\n\nAssistant: '}[message['role']] + message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""A chat template for models that have none: the plain notation of hh-rlhf, given back as it was read."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. ``role`` is what the chat template knows: user, assistant, system."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """What the model sees before the completion; never empty."""

    tokens: tuple[int, ...]

    def __post_init__(self):
        if not self.tokens:
            raise ValueError("a prompt has at least one token; Encoder.prompt(None) is the prompt without a text")


@dataclass(frozen=True)
class Completion:
    """``tokens`` without the end token; ``ended``: the end token follows. It has ``len(tokens) + ended`` steps.

    Not ended: the text was capped, so it has exactly as many tokens as the world allows and no term for an end.
    """

    tokens: tuple[int, ...]
    ended: bool

    @property
    def steps(self) -> int:
        return len(self.tokens) + self.ended


@dataclass(frozen=True)
class Lengths:
    """How many texts were over the limits, and what was done with them; ``str`` of it is a sentence for the screen."""

    rows: int
    long_rows: int  # with a long prompt or a long completion
    prompts: int  # distinct
    long_prompts: int
    longest_prompt: int
    max_prompt: int | None
    completions: int  # distinct, each at its prompt
    long_completions: int
    longest_completion: int  # steps, the end token included
    max_tokens: int
    done: Literal["drop", "cut", "refuse"]

    def __str__(self) -> str:
        if not self.long_rows:
            return (
                f"All {self.completions:,} completions have at most {self.longest_completion} tokens (allowed: "
                f"{self.max_tokens}), all {self.prompts:,} prompts at most {self.longest_prompt}."
            )
        parts = []
        if self.long_completions:
            parts.append(
                f"{self.long_completions:,} of {self.completions:,} completions are over {self.max_tokens} tokens with "
                f"the end token (the longest has {self.longest_completion})"
            )
        if self.long_prompts:
            parts.append(
                f"{self.long_prompts:,} of {self.prompts:,} prompts are over {self.max_prompt} tokens "
                f"(the longest has {self.longest_prompt})"
            )
        rows = f"{self.long_rows:,} of {self.rows:,} rows"
        cut = " and ".join(
            how
            for count, how in (
                (self.long_completions, "completions after the last token allowed, without an end token"),
                (self.long_prompts, "prompts from the left"),
            )
            if count
        )
        what = {"drop": f"{rows} were left out", "cut": f"in {rows} they were cut: {cut}", "refuse": f"{rows} have one"}
        return f"{', and '.join(parts)}; {what[self.done]}."


class Encoder:
    """Prompts and completions from texts, conversations, or tokens that a policy drew. Encodings are cached.

    Args:
        tokenizer: a Hugging Face tokenizer. Its ``eos_token`` is the end token; where a chat model ends its turns
            with another one, set that as ``eos_token`` first.
        max_tokens: the steps that a completion may have, its end token included: the world's cap.
        max_prompt: the tokens that a prompt may have; None: any number.
        long: what :meth:`prompt` and :meth:`completion` do with a longer one: ``"refuse"`` it, or ``"cut"`` it: a
            completion after ``max_tokens`` tokens (it has not ended then), a prompt from the left. Feedback goes
            through :meth:`within`, which counts and reports.

    Raises:
        ConfigError: the tokenizer has no end token, or a limit is below 1.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_tokens: int,
        max_prompt: int | None = None,
        long: Literal["refuse", "cut"] = "refuse",
    ):
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no end-of-text token, so no text could end; set tokenizer.eos_token")
        for name, limit in (("max_tokens", max_tokens), ("max_prompt", max_prompt)):
            if limit is not None and limit < 1:
                raise ConfigError(f"{name} is {limit}; at least one token is needed")
        if long not in ("refuse", "cut"):
            raise ConfigError(f"long is {long!r}; choose 'refuse' or 'cut'")
        self.tokenizer, self.max_tokens, self.max_prompt, self.long = tokenizer, max_tokens, max_prompt, long
        self.end: int = tokenizer.eos_token_id
        self.pad: int = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._special = _special_tokens(tokenizer)
        self._start = _start_tokens(tokenizer)
        self._blank: int = self.end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self._numbers = list(range(len(tokenizer)))  # cached texts share these integers: a fifth of the memory
        self._prompts: dict[Hashable, Prompt] = {}
        self._completions: dict[Hashable, Completion] = {}
        self._latest: tuple[Any, str] = (None, "")  # a conversation and its prompt in the template

    def prompt(self, context: Any) -> Prompt:
        """The prompt of a context: None, a string, a conversation (a tuple of messages), or a Prompt as it is.

        Raises:
            ValueError: too long, or not to be encoded; the reason.
            ConfigError: a conversation, but the tokenizer has no chat template.
        """
        prompt = self._whole_prompt(context)
        if self._is_long_prompt(prompt):
            if self.long == "refuse":
                raise ValueError(f"the prompt has {len(prompt.tokens)} tokens, more than max_prompt, {self.max_prompt}")
            prompt = self._cut_prompt(prompt)
        return prompt

    def completion(self, context: Any, trajectory: Any) -> Completion:
        """The completion of a string, of messages (then the context is a conversation), or a Completion as it is.

        Raises:
            ValueError: too long, or not to be encoded; the reason.
            ConfigError: messages, but the tokenizer has no chat template.
        """
        completion = self._whole_completion(context, trajectory)
        if completion.steps > self.max_tokens:
            if self.long == "refuse":
                reason = f"the completion has {completion.steps} tokens with its end token, more than max_tokens"
                raise ValueError(f"{reason}, {self.max_tokens}")
            completion = self._cut_completion(completion)
        if not completion.ended and len(completion.tokens) < self.max_tokens:
            reason = f"the completion stops after {len(completion.tokens)} tokens without an end token, but a text that"
            raise ValueError(f"{reason} has not ended has exactly max_tokens, {self.max_tokens}")
        return completion

    def text(self, tokens: Iterable[Any]) -> str:
        """The text of token ids, without special ones."""
        return self.tokenizer.decode(
            [int(token) for token in tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def within(self, feedback: Feedback, long: Literal["drop", "cut", "refuse"] = "refuse") -> tuple[Feedback, Lengths]:
        """The feedback that is within the limits, and what was over them.

        Args:
            long: ``"drop"`` leaves out rows with a prompt or completion over the limit; ``"cut"`` keeps them with the
                cut texts in their place, as a Prompt or a Completion; ``"refuse"`` allows none.

        Raises:
            DataError: a text cannot be encoded, or is over the limit and ``long`` is ``"refuse"``; names the rows.
        """
        if long not in ("drop", "cut", "refuse"):
            raise ValueError(f"long is {long!r}; choose 'drop', 'cut' or 'refuse'")
        row = np.repeat(np.arange(len(feedback)), feedback.sizes)  # [items]
        at = feedback.context[row]
        problems: list[Problem] = []
        prompts: dict[int, Prompt] = {}
        completions: dict[tuple[int, int], Completion] = {}
        for r, x, y in zip(row.tolist(), at.tolist(), feedback.trajectory.tolist(), strict=True):
            try:
                if x not in prompts:
                    prompts[x] = self._whole_prompt(feedback.contexts[x])
                if (x, y) not in completions:
                    completions[x, y] = self._whole_completion(feedback.contexts[x], feedback.trajectories[y])
            except ValueError as error:
                problems.append(Problem(f"{feedback.source[r]}, id {feedback.id[r]!r}", None, None, str(error)))
        if problems:
            raise DataError(problems)
        long_prompts = {x for x, prompt in prompts.items() if self._is_long_prompt(prompt)}
        long_pairs = {pair for pair, completion in completions.items() if completion.steps > self.max_tokens}
        pairs = list(zip(at.tolist(), feedback.trajectory.tolist(), strict=True))
        is_long = np.array([x in long_prompts or (x, y) in long_pairs for x, y in pairs], bool)
        long_rows = np.unique(row[is_long])
        lengths = Lengths(
            rows=len(feedback),
            long_rows=len(long_rows),
            prompts=len(prompts),
            long_prompts=len(long_prompts),
            longest_prompt=max((len(prompt.tokens) for prompt in prompts.values()), default=0),
            max_prompt=self.max_prompt,
            completions=len(completions),
            long_completions=len(long_pairs),
            longest_completion=max((completion.steps for completion in completions.values()), default=0),
            max_tokens=self.max_tokens,
            done=long,
        )
        if not len(long_rows):
            return feedback, lengths
        if long == "refuse":
            named = ", ".join(repr(feedback.id[r]) for r in long_rows[:5]) + (", ..." if len(long_rows) > 5 else "")
            what = str(lengths).removesuffix(".")
            reason = f"{what}; choose long='drop' or long='cut', or allow more tokens"
            raise DataError(Problem(f"rows {named}", None, None, reason))
        if long == "drop":
            return feedback._select(np.setdiff1d(np.arange(len(feedback)), long_rows)), lengths
        contexts = [
            self._cut_prompt(prompts[x]) if x in long_prompts else context
            for x, context in enumerate(feedback.contexts)
        ]
        # What a trajectory is cut to depends on its prompt where the template says so: each pair gets its own.
        trajectories = list(feedback.trajectories)
        number = {pair: len(trajectories) + k for k, pair in enumerate(sorted(long_pairs))}
        trajectories += [self._cut_completion(completions[pair]) for pair in sorted(long_pairs)]
        trajectory = np.array([number.get(pair, pair[1]) for pair in pairs], np.int64)
        return replace(feedback, contexts=contexts, trajectories=trajectories, trajectory=trajectory), lengths

    # ---------------------------------------------------------------------------------------------- whole texts

    def _whole_prompt(self, context: Any) -> Prompt:
        if isinstance(context, Prompt):
            return context
        if not (context is None or isinstance(context, str) or _is_conversation(context)):
            raise ValueError(f"a prompt is None, a string or a tuple of messages; found {shown(context)}")
        prompt = self._prompts.get(context)
        if prompt is None:
            if isinstance(context, tuple):
                tokens = self._tokens(self._opened(context))
            else:
                tokens = (*self._start, *self._tokens(context or ""))
            prompt = self._prompts[context] = Prompt(tokens or (self._blank,))
        return prompt

    def _whole_completion(self, context: Any, trajectory: Any) -> Completion:
        if isinstance(trajectory, Completion):
            if self.end in trajectory.tokens:
                raise ValueError("the tokens of a completion hold the end token; write ended=True in its place")
            return trajectory
        if not (isinstance(trajectory, str) or (_is_conversation(trajectory) and trajectory)):
            raise ValueError(f"a completion is a string or a tuple of messages; found {shown(trajectory)}")
        if isinstance(trajectory, tuple) and not (_is_conversation(context) and context):
            reason = f"the completion is messages, but the prompt is {shown(context)}"
            raise ValueError(f"{reason}; make both conversations, or both plain strings")
        key: Hashable = trajectory if isinstance(trajectory, str) else (context, trajectory)
        completion = self._completions.get(key)
        if completion is None:
            if isinstance(trajectory, str):
                text = self._until_end(trajectory)
                self._refuse_special(text, "the completion")
            else:
                text = self._until_end(self._answer(context, trajectory))
            completion = Completion(self._tokens(text), ended=True)
            if self.end in completion.tokens:
                raise ValueError(f"the completion holds {self.tokenizer.eos_token!r}, the end token; remove it")
            self._completions[key] = completion
        return completion

    def _answer(self, context: Any, messages: tuple[Message, ...]) -> str:
        """What the chat template writes for these messages after the prompt."""
        if messages[0].role != "assistant":
            raise ValueError(f"the completion starts with the role {messages[0].role!r}; it is the assistant's turn")
        prompt, whole = self._opened(context), self._templated((*context, *messages), open=False)
        if not whole.startswith(prompt):
            reason = "the chat template writes the prompt differently when the completion follows it"
            raise ValueError(f"{reason}; use a template that only appends, or plain strings")
        return whole[len(prompt) :]

    def _opened(self, context: tuple[Message, ...]) -> str:
        """The conversation in the template, open for the assistant's turn."""
        if self._latest[0] != context:  # a prompt and its completions come one after the other
            self._latest = (context, self._templated(context, open=True))
        return self._latest[1]

    def _templated(self, messages: tuple[Message, ...], *, open: bool) -> str:
        if not self.tokenizer.chat_template:
            reason = (
                "the data are conversations, but the tokenizer has no chat template; set tokenizer.chat_template "
                "(text.HUMAN_ASSISTANT is a plain one), or use an instruct model"
            )
            raise ConfigError(reason)
        if not messages:
            raise ValueError("the conversation has no messages; without a prompt, use plain strings")
        for message in messages:
            self._refuse_special(message.role, "a role")
            self._refuse_special(message.content, f"the {message.role}'s message")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open)
        except Exception as error:  # a template is a program that came with the model: it may raise anything
            raise ValueError(f"the chat template refuses the conversation: {error}") from None

    def _until_end(self, text: str) -> str:
        """The text before its end token, which only white space may follow."""
        text, end, rest = text.partition(self.tokenizer.eos_token)
        if rest.strip():
            reason = f"the completion goes on after its end token, {end!r}"
            raise ValueError(f"{reason}; a trajectory is one turn, so put earlier turns into the prompt")
        return text

    def _refuse_special(self, text: str, what: str) -> None:
        if found := self._special.search(text):
            raise ValueError(f"{what} spells the special token {found[0]!r}; remove it, the encoder adds its own")

    def _tokens(self, text: str) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("the text holds half of a character (a lone surrogate); save it as UTF-8") from None
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tuple(map(self._numbers.__getitem__, ids))

    # ------------------------------------------------------------------------------------------------- cut texts

    def _is_long_prompt(self, prompt: Prompt) -> bool:
        return self.max_prompt is not None and len(prompt.tokens) > self.max_prompt

    def _cut_prompt(self, prompt: Prompt) -> Prompt:
        """Its last tokens, still with the start token in front."""
        start = self._start if prompt.tokens[: len(self._start)] == self._start else ()
        keep = (self.max_prompt or 0) - len(start)
        return Prompt((*start, *prompt.tokens[len(prompt.tokens) - keep :]) if keep > 0 else prompt.tokens[-1:])

    def _cut_completion(self, completion: Completion) -> Completion:
        return Completion(completion.tokens[: self.max_tokens], ended=False)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(message, Message) for message in value)


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Finds special tokens where a text spells them; one that stands for something unknown is not spelled there."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    spelled = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    return re.compile("|".join(map(re.escape, sorted(spelled, key=len, reverse=True))))


def _start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The start token, if the tokenizer puts one in front of a text by itself (not what it puts behind)."""
    own = tokenizer("", verbose=False)["input_ids"]
    return (own[0],) if own and own[0] == tokenizer.bos_token_id else ()
