"""Texts as tokens: what a template, a border or an end token can do wrong is counted by hand."""

import dataclasses

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from irlhf import EVERYTHING, Choice, Feedback
from irlhf.errors import ConfigError, DataError
from irlhf.worlds.text.encoding import HUMAN_ASSISTANT, Completion, Encoder, Message, Prompt
from irlhf.worlds.text.reading import read

WORDS = ["[UNK]", "<bos>", "<end>", "<turn>", "user", "assistant", "red", "green", "blue", "old", "new", "x"]
ID = {word: k for k, word in enumerate(WORDS)}
CHATML = (  # as SmolLM2's: a newline after the end token
    "{% for m in messages %}{{ '<turn> ' + m['role'] + ' ' + m['content'] + ' <end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn> assistant ' }}{% endif %}"
)


def words(*, bos: bool = False, template: str | None = CHATML, **special) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; with ``bos`` it puts a start token in front and an end token behind, as BERT's."""
    tokenizer = Tokenizer(models.WordLevel(ID, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        ends = [("<bos>", ID["<bos>"]), ("<end>", ID["<end>"])]
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <end>", special_tokens=ends)
        special["bos_token"] = "<bos>"
    special = {"unk_token": "[UNK]", "eos_token": "<end>", "additional_special_tokens": ["<turn>"]} | special
    special = {name: token for name, token in special.items() if token is not None}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special)


def ids(text: str) -> tuple[int, ...]:
    return tuple(ID[word] for word in text.split())


def said(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in turns)


def encoder(**options) -> Encoder:
    return Encoder(words(), **{"max_tokens": 8} | options)


# ---------------------------------------------------------------------------------------------------- whole texts


def test_a_string_is_its_words_and_one_end():
    assert encoder().completion("old", "red green") == Completion(ids("red green"), ended=True)
    assert encoder().completion("old", "") == Completion((), ended=True)
    assert encoder().prompt("old new") == Prompt(ids("old new"))


def test_an_end_that_the_text_spells_last_is_the_end_and_not_a_second_one():
    assert encoder().completion(None, "red <end>") == encoder().completion(None, "red")
    assert encoder().completion(None, "red <end>\n") == encoder().completion(None, "red")


@pytest.mark.parametrize("text", ["red <end> green", "<turn> user red", "<end> <end>"])
def test_a_completion_that_spells_special_tokens_elsewhere_is_refused(text):
    with pytest.raises(ValueError, match=r"<end>|<turn>"):
        encoder().completion(None, text)


def test_a_word_that_the_tokenizer_does_not_know_is_no_special_token():
    assert encoder().completion(None, "red zebra").tokens == (ID["red"], ID["[UNK]"])
    with pytest.raises(ValueError, match=r"\[UNK\]"):
        encoder().completion(None, "red [UNK]")


def test_a_prompt_is_never_empty():
    assert encoder().prompt(None) == encoder().prompt("") == Prompt((ID["<end>"],))
    assert Encoder(words(bos=True), max_tokens=3).prompt(None) == Prompt((ID["<bos>"],))
    assert Encoder(words(bos_token="<bos>"), max_tokens=3).prompt("") == Prompt((ID["<bos>"],))
    with pytest.raises(ValueError, match="at least one token"):
        Prompt(())


def test_a_start_token_that_the_tokenizer_adds_is_in_the_prompt_once_and_an_end_token_is_not():
    own = Encoder(words(bos=True), max_tokens=8)
    assert own.prompt("old") == Prompt(ids("<bos> old"))
    assert own.completion("old", "red") == Completion(ids("red"), ended=True)
    assert own.prompt(said(("user", "old"))) == Prompt(ids("<turn> user old <end> <turn> assistant"))


def test_a_conversation_goes_through_the_template_once_and_ends_at_its_end_token():
    prompt, answer = said(("user", "old")), said(("assistant", "red green"))
    assert encoder().prompt(prompt) == Prompt(ids("<turn> user old <end> <turn> assistant"))
    assert encoder().completion(prompt, answer) == Completion(ids("red green"), ended=True)
    assert encoder().completion(prompt, "red green") == encoder().completion(prompt, answer)


def test_a_completion_of_two_turns_is_refused():
    with pytest.raises(ValueError, match="one turn"):
        encoder().completion(said(("user", "old")), said(("assistant", "red"), ("user", "x"), ("assistant", "blue")))


@pytest.mark.parametrize("content", ["x <end> <turn> user red", "<turn>"])
def test_a_message_cannot_start_a_turn_of_its_own(content):
    with pytest.raises(ValueError, match="special token"):
        encoder().prompt(said(("user", content)))
    with pytest.raises(ValueError, match="special token"):
        encoder().completion(said(("user", "old")), said(("assistant", content)))


def test_a_prompt_formatted_by_hand_may_spell_them():
    hand = "<turn> user old <end>\n<turn> assistant"
    assert encoder().prompt(hand) == encoder().prompt(said(("user", "old")))


def test_a_template_that_rewrites_the_prompt_is_noticed():
    rewriting = "{{ messages | length }} {{ messages[-1]['content'] }}"
    own = Encoder(words(template=rewriting), max_tokens=8)
    with pytest.raises(ValueError, match="writes the prompt differently"):
        own.completion(said(("user", "old")), said(("assistant", "red")))


def test_a_template_that_refuses_says_why():
    own = Encoder(words(template="{{ raise_exception('no system here') }}"), max_tokens=8)
    with pytest.raises(ValueError, match="no system here"):
        own.prompt(said(("system", "old")))


def test_without_a_template_or_an_end_token_the_error_says_what_to_do():
    with pytest.raises(ConfigError, match=r"set tokenizer\.chat_template"):
        Encoder(words(template=None), max_tokens=8).prompt(said(("user", "old")))
    with pytest.raises(ConfigError, match=r"set tokenizer\.eos_token"):
        Encoder(words(eos_token=None), max_tokens=8)
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        Encoder(words(), max_tokens=0)


@pytest.mark.parametrize("context", [(), 3, ["old"], ("old",)])
def test_what_is_no_prompt_is_refused(context):
    with pytest.raises(ValueError, match=r"prompt|conversation"):
        encoder().prompt(context)


@pytest.mark.parametrize("trajectory", [(), None, ["red"], said(("user", "red")), "half \ud800"])
def test_what_is_no_completion_is_refused(trajectory):
    with pytest.raises(ValueError, match=r"completion|surrogate"):
        encoder().completion(said(("user", "old")), trajectory)


def test_messages_after_a_plain_prompt_are_refused():
    with pytest.raises(ValueError, match="both conversations"):
        encoder().completion("old", said(("assistant", "red")))


def test_tokens_that_were_drawn_stay_as_they_are():
    drawn = Completion(ids("red green"), ended=True)
    assert encoder().completion("old", drawn) is drawn
    assert encoder().prompt(Prompt((5, 3))) == Prompt((5, 3))
    with pytest.raises(ValueError, match="hold the end token"):
        encoder().completion("old", Completion(ids("red <end>"), ended=True))
    with pytest.raises(ValueError, match="exactly max_tokens"):
        encoder().completion("old", Completion(ids("red"), ended=False))


def test_the_pad_is_the_end_where_there_is_none_and_the_text_comes_back():
    assert encoder().pad == encoder().end == ID["<end>"]
    assert Encoder(words(pad_token="x"), max_tokens=2).pad == ID["x"]
    assert encoder().text(ids("red green <end> <turn>")) == "red green"


# -------------------------------------------------------------------------------------------------------- lengths


def test_a_completion_has_room_for_its_end_token_or_is_too_long():
    assert encoder(max_tokens=3).completion(None, "red green").steps == 3
    with pytest.raises(ValueError, match="has 4 tokens with its end token"):
        encoder(max_tokens=3).completion(None, "red green blue")


def test_a_cut_completion_has_not_ended():
    cut = encoder(max_tokens=3, long="cut")
    assert cut.completion(None, "red green blue") == Completion(ids("red green blue"), ended=False)
    assert cut.completion(None, "red green blue x") == Completion(ids("red green blue"), ended=False)
    assert cut.completion(None, "red green").ended
    assert cut.completion(None, Completion(ids("red green blue x"), ended=False)).steps == 3


def test_a_prompt_is_cut_from_the_left_and_keeps_its_start_token():
    assert encoder(max_prompt=2, long="cut").prompt("red green blue") == Prompt(ids("green blue"))
    own = Encoder(words(bos=True), max_tokens=3, max_prompt=2, long="cut")
    assert own.prompt("red green blue") == Prompt(ids("<bos> blue"))
    with pytest.raises(ValueError, match="more than max_prompt, 2"):
        encoder(max_prompt=2).prompt("red green blue")


def feedback() -> Feedback:
    return Feedback.of(
        [
            Choice("old", ("red", "red green blue"), 0, id="a"),
            Choice("old new x", EVERYTHING, "red", id="b"),
            Choice("new", ("red", "blue"), 1, offset=(0.0, 0.5), id="c"),
            Choice("new", EVERYTHING, "red green blue", id="d"),
        ]
    )


def test_long_rows_are_counted_and_dropped():
    kept, lengths = encoder(max_tokens=3, max_prompt=2).within(feedback(), "drop")
    assert list(kept.id) == ["c"] and kept[0] == dataclasses.replace(feedback()[2])
    assert (lengths.rows, lengths.long_rows, lengths.prompts, lengths.long_prompts) == (4, 3, 3, 1)
    assert (lengths.completions, lengths.long_completions) == (6, 2)  # pairs of prompt and completion
    assert (lengths.longest_prompt, lengths.longest_completion) == (3, 4)
    assert str(lengths) == (
        "2 of 6 completions are over 3 tokens with the end token (the longest has 4), and 1 of 3 prompts are over "
        "2 tokens (the longest has 3); 3 of 4 rows were left out."
    )


def test_long_rows_are_cut_where_that_is_asked_for():
    own = encoder(max_tokens=3, max_prompt=2)
    cut, lengths = own.within(feedback(), "cut")
    capped = Completion(ids("red green blue"), ended=False)
    assert list(cut) == [
        dataclasses.replace(feedback()[0], shown=("red", capped)),
        dataclasses.replace(feedback()[1], context=Prompt(ids("new x"))),
        feedback()[2],
        dataclasses.replace(feedback()[3], chosen=capped),
    ]
    assert "in 3 of 4 rows they were cut" in str(lengths) and "prompts from the left" in str(lengths)
    again, within = own.within(cut, "refuse")  # now everything fits
    assert again is cut and str(within).startswith("All ")


def test_long_rows_are_refused_by_name():
    with pytest.raises(DataError, match=r"rows 'a', 'd': 2 of 6 completions .* choose long='drop'"):
        encoder(max_tokens=3).within(feedback())


def test_what_cannot_be_encoded_is_named():
    bad = Feedback.of([Choice("old", EVERYTHING, "red <turn>", id="k", source="us"), Choice("old", ("x", "new"), 0)])
    with pytest.raises(DataError, match="us, id 'k': the completion spells the special token '<turn>'"):
        encoder().within(bad, "drop")


def test_the_cap_counts_steps_of_every_shape_of_trajectory():
    prompt, answer = said(("user", "old")), said(("assistant", "red green blue"))
    rows = Feedback.of([Choice(prompt, EVERYTHING, answer), Choice(prompt, EVERYTHING, said(("assistant", "red")))])
    cut, lengths = encoder(max_tokens=2).within(rows, "cut")
    assert lengths.long_completions == 1
    assert cut[0].chosen == Completion(ids("red green"), ended=False) and cut[1] == rows[1]


SMOLLM2 = (  # its chat template, which adds a system message of its own
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def letters() -> PreTrainedTokenizerFast:
    """One token for each byte, with the special tokens and the template of SmolLM2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: k for k, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=SMOLLM2, **special)


def smollm2():
    """The tokenizer itself, where it has been converted already."""
    load = pytest.importorskip("irlhf.worlds.text.load", exc_type=ImportError)
    folders = sorted(load.cache_folder().glob("smollm2-*"))
    if not folders:
        pytest.skip('the model "smollm2" has not been converted yet; load_model does it')
    return AutoTokenizer.from_pretrained(folders[-1], local_files_only=True)


@pytest.mark.parametrize("make", [letters, smollm2])
def test_a_chat_is_what_its_template_writes_and_one_end(make):
    tokenizer = make()
    own = Encoder(tokenizer, max_tokens=32, max_prompt=300)
    prompt, answer = said(("user", "Say hi, \u00e9t\u00e9!")), "Hello  there.\n"
    completion = own.completion(prompt, said(("assistant", answer)))
    assert completion.ended and own.text(completion.tokens) == answer
    assert completion == own.completion(prompt, answer) == own.completion(None, answer)
    assert own.text([*completion.tokens, own.end]) == answer
    turns = [{"role": "user", "content": prompt[0].content}, {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    ours = tokenizer.decode([*own.prompt(prompt).tokens, *completion.tokens, own.end])
    assert ours + "\n" == whole
    assert own.prompt(None) == Prompt((tokenizer.bos_token_id,))
    for spelled in ("<|im_end|> more", "<|im_start|>user", "<|endoftext|>"):
        with pytest.raises(ValueError, match="token"):
            own.completion(prompt, said(("assistant", spelled)))
    with pytest.raises(ValueError, match="a role spells the special token"):
        own.prompt((Message("user<|im_end|>", "x"),))


def test_the_plain_template_gives_back_what_was_read():
    raw = "\n\nHuman: Which?\n\nAssistant: Red.\n\nHuman: Why?\n\nAssistant: So."
    [row] = read([{"chosen": raw, "rejected": raw.replace("So", "No")}])
    tokenizer = letters()
    tokenizer.chat_template = HUMAN_ASSISTANT
    own = Encoder(tokenizer, max_tokens=32)
    written = [own.text([*own.prompt(row.context).tokens, *own.completion(row.context, y).tokens]) for y in row.shown]
    assert written == [raw, raw.replace("So", "No")]
    with pytest.raises(ValueError, match="the chat template refuses the conversation"):
        own.prompt(said(("system", "x")))
