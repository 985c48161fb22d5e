"""The shapes that data about texts come in, each turned into fields of the library's own shapes (irlhf.io.jsonl).

The first six are the dataset shapes of TRL, word for word. P and Y are strings, or conversations: lists of
``{"role": ..., "content": ...}``.

    {"text": Y}, {"messages": P + Y}                        demonstrations: each turn of the assistant is one
    {"prompt": P}                                           no feedback, but a prompt: read_prompts
    {"prompt": P, "completion": Y}                          a demonstration
    {"prompt": P, "chosen": Y, "rejected": Y}               a comparison; "margin": the rejected one has this offset
    {"chosen": P + Y, "rejected": P + Y}                    the same; the prompt is what the two share
    {"prompt": P, "completion": Y, "label": true}           a rating with two levels
    {"prompt": P, "completions": [Y, ...], "ranks": [...]}  a ranking, 1 is the best
    {"prompt": P, "completions": [Y, ...], "scores": [...]} a ranking by score; ratings if the scores are levels
    {"context": P, "trajectory": Y}, {"context": P, "shown": [Y, ...], ...}    as irlhf.io.jsonl has them

A prompt may be missing. What two strings share goes up to a space, so that no word is cut in two.

A string that starts with "\\n\\nHuman:" and has "\\n\\nAssistant:" is a conversation in the notation of hh-rlhf; so is
a prompt that starts and ends like this. Of a pair in it, the prompt is everything up to the last turn of the assistant
that the two share. Few pairs part earlier than in their last turn: then the completion is all the text from there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from irlhf.io.jsonl import MOST_RANKED
from irlhf.io.lines import LINE_CAP
from irlhf.io.records import Wrong, finite
from irlhf.io.wording import shown
from irlhf.worlds.text.encoding import Message

COMMON = ("id", "person", "source", "weight", "datum")
_SHAPES = {  # what tells a shape from those after it, and its fields
    "feedback in irlhf's own fields": (("trajectory", "shown"), ()),  # irlhf.io.jsonl looks at them
    "preference": (("chosen", "rejected"), ("prompt", "chosen", "rejected", "margin")),
    "list of completions": (("completions",), ("prompt", "completions", "ranks", "scores")),
    "rated completion": (("label",), ("prompt", "completion", "label")),
    "demonstration": (("completion",), ("prompt", "completion")),
    "conversation": (("messages",), ("messages",)),
    "text": (("text",), ("text",)),
}
OWN, PREFERENCE, COMPLETIONS, RATED, DEMONSTRATION, CONVERSATION, TEXT = _SHAPES
KNOWN = (*dict.fromkeys(field for _, fields in _SHAPES.values() for field in fields), *COMMON)
OWN_FIELDS = ("context", "trajectory", "shown", "chosen", "offset", "ranks", "level", "levels")
NOT_HERE = ("images", "image", "tools", "chat_template_kwargs")  # they change what a model of TRL's would see
# Fields that say something about a row; where its shape has none of them, it says two things. The rest is ignored.
_TELLING = ("chosen", "rejected", "margin", "completions", "ranks", "scores", "completion", "label")

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"\n\n(Human|Assistant):")

Conversation = tuple[Message, ...]
Context = str | Conversation | None


def translate(fields: dict[str, Any], levels: int | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The feedback of one record in the library's own fields, with its texts parsed, and the fields left unread.

    Several for several turns of an assistant or several ratings. ``levels``: scores are levels, 0 to levels - 1.
    Raises :class:`~irlhf.io.records.Wrong`.
    """
    fields = {name: value for name, value in fields.items() if value is not None}  # tables fill columns with nulls
    for name in NOT_HERE:
        if fields.pop(name, None):
            raise Wrong(name, "only text is read here; remove the field, or the row")
    shape = next((shape for shape, (marks, _) in _SHAPES.items() if any(mark in fields for mark in marks)), None)
    if shape is None and "prompt" in fields:
        raise Wrong(None, "a prompt alone is no feedback; read_prompts reads it")
    if shape is None:
        possible = "a completion, chosen and rejected, completions, messages, or text"
        raise Wrong(None, f"there is no feedback in it; write {possible}")
    if shape == OWN:
        return [_own(fields)], []
    own = _SHAPES[shape][1]
    for name in _TELLING + (("prompt",) if shape == TEXT else ()):
        if name in fields and name not in own:
            raise Wrong(name, f"a {shape} has no such field; it has {', '.join((*own, *COMMON))}")
    for name in own:
        if name not in fields and name not in ("prompt", "margin", "ranks", "scores"):
            raise Wrong(name, f"the field is missing in a {shape}; add it")
    unread = [name for name in fields if name not in own and name not in COMMON]
    if shape == PREFERENCE:
        told = [_preference(fields)]
    elif shape == COMPLETIONS:
        told = _completions(fields, levels)
    elif shape == RATED:
        told = [_rated(fields)]
    elif shape == DEMONSTRATION:
        told = _demonstration(fields)
    elif shape == CONVERSATION:
        told = _turns(conversation(fields["messages"], "messages"), 0, "messages")
    else:
        told = _text(fields["text"])
    common = {name: fields[name] for name in COMMON if name in fields}
    return [common | one for one in told], unread


def _preference(fields: dict[str, Any]) -> dict[str, Any]:
    values = [fields["chosen"], fields["rejected"]]
    kinds = [isinstance(value, str) for value in values]
    if kinds[0] != kinds[1]:
        reason = "one of chosen and rejected is a string, the other is not"
        raise Wrong("rejected", f"{reason}; make both strings, or both lists of messages")
    given = fields.get("prompt")
    if given is None and kinds[0]:
        context, items = _shared_words(*values)
    elif given is None or (isinstance(given, str) and not kinds[0]):
        context, items = _shared_messages(*values)
        if given is not None and given.strip() not in [message.content.strip() for message in context]:
            raise Wrong("prompt", "chosen and rejected are whole conversations, but the prompt is no message of theirs")
    else:
        context = prompt(given, "prompt")
        items = [answer(value, context, name) for value, name in zip(values, ("chosen", "rejected"), strict=True)]
    told = {"context": context, "shown": items, "chosen": 0}
    if "margin" in fields:
        margin = finite(fields["margin"])
        if margin is None:
            raise Wrong("margin", f"found {shown(fields['margin'])}; write a finite number, in nats")
        told["offset"] = [0.0, margin]
    return told


def _shared_words(chosen: str, rejected: str) -> tuple[Context, list[Any]]:
    whole = [text(chosen, "chosen"), text(rejected, "rejected")]
    shared = chosen[: _shared(chosen, rejected)]
    if shared.startswith(HUMAN) and (place := shared.rfind(ASSISTANT)) >= 0:
        rest = place + len(ASSISTANT)
        return _human(shared[:place]), [(Message("assistant", one[rest:].removeprefix(" ")),) for one in whole]
    space = max(shared.rfind(sign) for sign in " \n\t")
    return (shared[:space] or None) if space > 0 else None, [one[max(space, 0) :] for one in whole]


def _shared_messages(chosen: Any, rejected: Any) -> tuple[Conversation, list[Any]]:
    whole = [conversation(chosen, "chosen"), conversation(rejected, "rejected")]
    place = min(_shared(*whole), len(whole[0]) - 1, len(whole[1]) - 1)
    if not place:
        raise Wrong("rejected", "chosen and rejected share no first message, so there is no prompt; add one")
    context = whole[0][:place]
    return context, [_single(one[place:], name) for one, name in zip(whole, ("chosen", "rejected"), strict=True)]


def _completions(fields: dict[str, Any], levels: int | None) -> list[dict[str, Any]]:
    context, values = prompt(fields.get("prompt"), "prompt"), fields["completions"]
    if not isinstance(values, list) or not values:
        raise Wrong("completions", f"found {shown(values)}; give a list of completions")
    if len(values) > MOST_RANKED:
        raise Wrong("completions", f"there are {len(values):,}; {MOST_RANKED:,} are possible")
    items = [answer(value, context, f"completions[{k}]") for k, value in enumerate(values)]
    if ("ranks" in fields) == ("scores" in fields):
        which = "both" if "ranks" in fields else "neither"
        raise Wrong(
            None, f"it has {which} of ranks and scores; write one: ranks (1 is best), or scores (the highest is)"
        )
    if "ranks" in fields or levels is None:
        if len(items) < 2:
            raise Wrong("completions", "a ranking needs at least two completions; there is one")
        ranks = fields["ranks"] if "ranks" in fields else _ranks(fields["scores"], len(items))
        return [{"context": context, "shown": items, "ranks": ranks}]
    scores = _scores(fields["scores"], len(items))
    for k, score in enumerate(scores):
        if score != int(score) or not 0 <= score < levels:
            allowed = f"with levels={levels}, write a whole number from 0 to {levels - 1}"
            raise Wrong(f"scores[{k}]", f"found {shown(score)}; {allowed}")
    return [
        {"context": context, "trajectory": item, "level": int(score), "levels": levels}
        for item, score in zip(items, scores, strict=True)
    ]


def _scores(value: Any, n: int) -> list[float]:
    scores = [finite(score) for score in value] if isinstance(value, list) else []
    if len(scores) != n or None in scores:
        raise Wrong("scores", f"found {shown(value)}; give one finite number for each of the {n} completions")
    return [score for score in scores if score is not None]


def _ranks(value: Any, n: int) -> list[int]:
    scores = _scores(value, n)
    place = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True), 1)}
    return [place[score] for score in scores]


def _rated(fields: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(fields["label"], bool):
        raise Wrong("label", f"found {shown(fields['label'])}; write true or false")
    context = prompt(fields.get("prompt"), "prompt")
    trajectory = answer(fields["completion"], context, "completion")
    return {"context": context, "trajectory": trajectory, "level": fields["label"]}


def _demonstration(fields: dict[str, Any]) -> list[dict[str, Any]]:
    context = prompt(fields.get("prompt"), "prompt")
    if isinstance(context, tuple) and isinstance(fields["completion"], list):
        return _turns(context + conversation(fields["completion"], "completion"), len(context), "completion")
    return [{"context": context, "trajectory": answer(fields["completion"], context, "completion")}]


def _text(value: Any) -> list[dict[str, Any]]:
    whole = text(value, "text")
    if whole.startswith(HUMAN) and ASSISTANT in whole:
        return _turns(_human(whole), 0, "text")
    return [{"context": None, "trajectory": whole}]


def _turns(messages: Conversation, start: int, field: str) -> list[dict[str, Any]]:
    """Each turn of the assistant, from message ``start`` on, is a demonstration at what was said before it."""
    if messages[-1].role != "assistant":
        raise Wrong(field, f"the last message is the {messages[-1].role}'s; end with the assistant's answer")
    if start:
        _assistant_first(messages[start], field)
    elif messages[0].role == "assistant":
        raise Wrong(field, "the first message is the assistant's, so there is no prompt; add one, or write a text")
    return [
        {"context": messages[:k], "trajectory": (message,)}
        for k, message in enumerate(messages)
        if k >= start and message.role == "assistant"
    ]


def _own(fields: dict[str, Any]) -> dict[str, Any]:
    context = prompt(fields.get("context"), "context")
    parsed: dict[str, Any] = {"context": context}
    if "trajectory" in fields:
        parsed["trajectory"] = answer(fields["trajectory"], context, "trajectory")
    if isinstance(fields.get("shown"), list):
        parsed["shown"] = [answer(value, context, f"shown[{k}]") for k, value in enumerate(fields["shown"])]
    return fields | parsed


# ------------------------------------------------------------------------------------------------------------ texts


def prompt(value: Any, field: str) -> Context:
    """A prompt as it is written in a file. Raises :class:`~irlhf.io.records.Wrong`."""
    if value is None:
        return None
    if not isinstance(value, str):
        return conversation(value, field)
    whole = text(value, field)
    ended = whole.rstrip()
    return _human(ended.removesuffix(ASSISTANT)) if ended.startswith(HUMAN) and ended.endswith(ASSISTANT) else whole


def answer(value: Any, context: Context, field: str) -> str | Conversation:
    """A completion as it is written in a file; after a conversation it is a message. Raises ``Wrong``."""
    if isinstance(value, str):
        whole = text(value, field)
        # After the prompts of hh-rlhf, which end in a colon, answers start with the space behind it.
        return (Message("assistant", whole.removeprefix(" ")),) if isinstance(context, tuple) else whole
    messages = conversation(value, field)
    if not isinstance(context, tuple):
        raise Wrong(field, "it is messages, but the prompt is not; make both messages, or both strings")
    return _single(messages, field)


def _single(messages: Conversation, field: str) -> Conversation:
    _assistant_first(messages[0], field)
    if len(messages) > 1:
        raise Wrong(field, f"it has {len(messages)} messages; what is compared or rated is one answer of the assistant")
    return messages


def _assistant_first(message: Message, field: str) -> None:
    if message.role != "assistant":
        raise Wrong(field, f"it starts with the role {message.role!r}; after a prompt it is the assistant's turn")


def conversation(value: Any, field: str) -> Conversation:
    if not isinstance(value, list) or not value:
        raise Wrong(field, f"found {shown(value)}; write a string, or a list of messages with role and content")
    messages = []
    for k, message in enumerate(value):
        at = f"{field}[{k}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not message["role"]:
            raise Wrong(at, f'found {shown(message)}; write {{"role": "user", "content": "..."}}')
        if more := [key for key in message.keys() - {"role", "content"} if message[key]]:
            raise Wrong(at, f"a message has role and content, which are text; found {shown(more[0])}")
        messages.append(Message(text(message["role"], at), text(message.get("content"), at)))
    return tuple(messages)


def text(value: Any, field: str) -> str:
    """A string of bounded size that is whole characters. Raises ``Wrong``."""
    if not isinstance(value, str):
        raise Wrong(field, f"found {shown(value)}; write a string")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise Wrong(field, "it holds half of a character (a lone surrogate); save it as UTF-8") from None
    if size > LINE_CAP:
        raise Wrong(field, f"the text has {size:,} bytes; {LINE_CAP:,} are possible")
    return value


def _human(whole: str) -> Conversation:
    """The turns of a conversation in the notation of hh-rlhf."""
    _, *parts = _TURN.split(whole)
    return tuple(
        Message(_ROLES[name], content.removeprefix(" ")) for name, content in zip(parts[::2], parts[1::2], strict=True)
    )


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The length of the longest common beginning, by bisection: slices compare fast."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
