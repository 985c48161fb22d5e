"""Texts on the command line: the numbers of the library, sentences for errors, runs that are killed and resumed."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from irlhf import Normal, Pool, Term, fit_reward, listed, sampled
from irlhf import config as configuration
from irlhf.cli import finished, jobs, partition, policies
from irlhf.errors import ConfigError
from irlhf.policy_fit import estimate_log_z
from irlhf.randomness import Key
from irlhf.storage.checkpoint import read_tensors
from irlhf.storage.rundir import digest, read_metrics
from irlhf.worlds.text.config import Settings
from irlhf.worlds.text.encoding import Encoder, Message, Prompt
from irlhf.worlds.text.load import load_model
from irlhf.worlds.text.model import LanguageModel
from irlhf.worlds.text.policies import TextPolicy
from irlhf.worlds.text.reading import read
from irlhf.worlds.text.rewards import LinearReward
from irlhf.worlds.text.world import TextWorld
from tests.cli_data import irlhf
from tests.toy_driver import in_child
from tests.worlds.text import tiny

WORDS = ("good", "bad", "film", "very")
CAP = 5


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """One thread, and no waiting for the disk: a kill does not lose what the system has taken over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
    torch.set_num_threads(before)


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a model of a few words, demonstrations, comparisons, a pool and prompts."""
    folder = tmp_path_factory.mktemp("data")
    tiny.llama(len(WORDS) + 1).save_pretrained(folder / "model")
    tiny.tokenizer(WORDS).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)

    def text(p):
        return " ".join(rng.choice(WORDS, size=rng.integers(1, CAP), p=p))

    liked, any_ = [0.5, 0.1, 0.2, 0.2], [0.25] * 4
    write(folder / "demos.jsonl", [{"text": text(liked)} for _ in range(30)])
    write(folder / "pool.jsonl", [{"text": text(any_)} for _ in range(60)])
    pairs = [(text(any_), text(any_)) for _ in range(30)]
    ordered = [sorted(pair, key=lambda t: t.count("bad") - t.count("good")) for pair in pairs]
    write(folder / "pairs.jsonl", [{"prompt": "film", "chosen": a, "rejected": b} for a, b in ordered])
    write(folder / "prompts.jsonl", [{"prompt": p} for p in ("film", "very", "very film", "bad film", "film")])
    return folder


def flags(data, *more, cap=CAP):
    return ["fit", "--world", "text", "--model", data / "model", "--max-tokens", cap, "--dtype", "float64",
            "--no-report", *more]  # fmt: skip


@pytest.fixture(scope="module")
def fitted(data):
    """A linear reward from demonstrations, a pool and comparisons."""
    given = ["--feedback", data / "demos.jsonl", "--feedback", data / "pairs.jsonl", "--pool", data / "pool.jsonl"]
    assert irlhf(*flags(data), *given, "--rivals", 4, "--out", data / "run") == 0
    return data / "run"


def result_of(run):
    return json.loads((run / "result.json").read_text())


def language_of(data):
    model, tokenizer = load_model(data / "model", dtype=torch.float64)
    return LanguageModel(model, tokenizer)


# ------------------------------------------------------------------------------------------------ the fit of a reward


def test_the_numbers_of_the_library(data, fitted):
    language = language_of(data)
    world = TextWorld(Encoder(language.tokenizer, max_tokens=CAP), TextPolicy(language))
    demos, pairs, texts = (read(data / f"{name}.jsonl") for name in ("demos", "pairs", "pool"))
    pool = Pool([texts.trajectories[k] for k in texts.trajectory])
    terms = [Term(demos, sampled(world, pool, n=4, key=Key(0).at("rivals"))), Term(pairs, listed(world))]
    reward = LinearReward(language, end=world.encoder.end)
    reward.standardize(terms[0].prepared.batch, pool.batch(world), terms[1].prepared.batch)
    fit = fit_reward(reward, terms, prior=Normal(sd=0.5 * 16**-0.5))
    found = result_of(fitted)
    theta = [row["estimate"] for row in found["parameters"].values()]
    np.testing.assert_allclose(theta, fit.params, rtol=1e-6, atol=1e-9)
    assert found["log_likelihood"] == pytest.approx(fit.log_likelihood.to_dict(), rel=1e-9)
    assert found["prior"] == 0.125 and found["status"] == "CONVERGED"
    assert found["likelihood"] == {"demonstrations": "sampled, 4 rivals picked from a pool", "comparisons": "listed"}
    assert found["log_z"] == {"demonstrations": {"relative_to": "the pool"}}
    tensors, _ = read_tensors(fitted / "reward.safetensors")
    torch.testing.assert_close(tensors["reward.scale"], reward.scale)


def test_a_file_and_flags_say_the_same(data, tmp_path, capsys):
    (data / "texts.toml").write_text(
        'world = "text"\nmodel = "model"\nfeedback = ["demos.jsonl"]\npool = "pool.jsonl"\nmax-tokens = 5\n'
        'dtype = "float64"\nreport = false\n'
    )
    assert irlhf("fit", data / "texts.toml", "--rivals", 2, "--out", tmp_path / "file") == 0
    screen = capsys.readouterr()
    assert (
        "pool.jsonl, the pool: All " in screen.err
        and "prior: standard deviation 0.125, half of one over the root" in screen.err
    )
    assert "relative to the pool" in screen.out and "log Z 0" not in screen.out
    given = ["--feedback", data / "demos.jsonl", "--pool", data / "pool.jsonl", "--rivals", 2]
    assert irlhf(*flags(data), *given, "--out", tmp_path / "flags") == 0
    configs = [json.loads((tmp_path / name / "config.json").read_text()) | {"out": ""} for name in ("file", "flags")]
    assert configs[0] == configs[1]
    assert result_of(tmp_path / "file") == result_of(tmp_path / "flags")
    assert (
        irlhf("fit", "--resume", tmp_path / "file", "--tolerance", "1e-9") == 0
    )  # flags of this world, without its name


def test_log_z_is_that_of_the_listed_world(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert irlhf(*flags(data, cap=6), "--feedback", data / "demos.jsonl", "--prior", 0.05, "--out", run) == 0
    screen = capsys.readouterr()
    assert "careful: rivals are written by the model" in screen.err
    job = finished.reopen(run, data=False)
    exact = float(job.setup.world.best(job.reward, [None]).detach())
    (found,) = result_of(run)["log_z"]["demonstrations"]["estimates"]
    assert found["context"] == "no prompt" and found["verdict"] == "reliable"
    assert abs(found["log_z"] - exact) < 4 * found["standard_error"] < 1
    assert f"demonstrations: log Z {found['log_z']:.4f}" in screen.out and "careful" not in screen.out
    table = estimate_log_z(
        job.reward, job.setup.world, [None], job.setup.world.base, n=256, key=Key(0).at("log_z", "demonstrations")
    )
    assert table["log_z"].iloc[0] == pytest.approx(found["log_z"], abs=1e-9)


def test_a_log_z_that_cannot_be_trusted_is_said_loudly(data, tmp_path, capsys):
    more = ["--feedback", data / "demos.jsonl", "--prior", 50, "--out", tmp_path / "run"]
    assert irlhf(*flags(data), *more) == 0
    screen = capsys.readouterr().out
    found = result_of(tmp_path / "run")["log_z"]
    assert "not to be trusted" in found["demonstrations"]["estimates"][0]["verdict"]
    assert "careful: demonstrations: log Z cannot be trusted at 1 of 1 contexts" in screen
    assert partition.sentences(found)[-1].startswith("careful:")


@pytest.mark.parametrize("reward", ["score", "lora", "whole", "implicit"])
def test_rewards_that_are_fitted_some_rows_at_a_time(data, tmp_path, capsys, reward):
    run = tmp_path / "run"
    given = ["--feedback", data / "demos.jsonl", "--feedback", data / "pairs.jsonl", "--rivals", 2, "--rank", 2]
    assert irlhf(*flags(data), *given, "--reward", reward, "--rows", 16, "--rate", 0.01, "--out", run) == 0
    screen, found = capsys.readouterr(), result_of(run)
    assert found["status"] == "DONE" and found["steps"] == 4 and found["standard_errors"] is None
    assert "fitted by minibatches: no standard errors" in screen.out and f"reward: {reward}," in screen.err
    how = "exact, anticipative" if reward == "implicit" else "sampled, 2 rivals drawn from the base measure"
    assert found["likelihood"]["demonstrations"] == how
    rows = read_metrics(run)[1:]
    assert all(np.isfinite(row["objective"]) and row["gradient_norm"] > 0 for row in rows)
    assert irlhf("report", run) == 0 and "some rows at a time" in (run / "report.html").read_text()
    assert irlhf("evaluate", run, data / "pairs.jsonl") == 0
    assert f"{found['log_likelihood']['comparisons']:.4f}" in capsys.readouterr().out
    tensors, info = read_tensors(run / "reward.safetensors")
    whole = 16 * 5 * (1 if "reward.whole.lm_head.weight" not in tensors else 2)
    assert (sum(t.numel() for t in tensors.values()) > whole) == (reward != "score")
    assert info["demonstrators"] == ["demonstrations"]


def test_what_is_too_long(data, tmp_path, capsys):
    write(
        tmp_path / "texts.jsonl", [{"text": "good film", "id": "short"}, {"text": "good " * 9 + "film", "id": "long"}]
    )
    given = [*flags(data), "--feedback", tmp_path / "texts.jsonl", "--pool", data / "pool.jsonl"]
    assert irlhf(*given, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "texts.jsonl, rows 'long': 1 of 2 completions are over 5 tokens" in said and "--long drop" in said
    assert not (tmp_path / "run").exists()
    assert irlhf(*given, "--long", "drop", "--out", tmp_path / "drop") == 0
    assert "1 of 2 rows were left out" in capsys.readouterr().err
    assert result_of(tmp_path / "drop")["rows"] == {"demonstrations": 1}
    assert irlhf(*given, "--long", "cut", "--out", tmp_path / "cut") == 0
    assert "in 1 of 2 rows they were cut" in capsys.readouterr().err
    assert result_of(tmp_path / "cut")["rows"] == {"demonstrations": 2}
    assert irlhf("score", tmp_path / "cut", tmp_path / "texts.jsonl") == 0
    assert all(isinstance(json.loads(line)["score"], float) for line in capsys.readouterr().out.splitlines())


def test_sources_keep_their_temperature_unless_asked(data, tmp_path, capsys):
    (data / "two.toml").write_text(
        'world = "text"\nmodel = "model"\nfeedback = ["demos.jsonl", "pairs.jsonl"]\npool = "pool.jsonl"\n'
        'max_tokens = 5\ndtype = "float64"\nreport = false\nreward = "linear"\n'
        "[sources.comparisons]\nfit_temperature = true\n"
    )
    assert irlhf("fit", data / "two.toml", "--out", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "source comparisons: temperature fitted" in said and "temperatures are fixed unless" in said
    assert "comparisons.log_temperature" in result_of(tmp_path / "run")["parameters"]


def test_the_page_shows_what_the_reward_tells_apart(data, fitted, tmp_path):
    assert irlhf("report", fitted) == 0
    page = (fitted / "report.html").read_text()
    assert "the one of the demonstrations has the larger reward in" in page
    assert "the one of the chosen has the larger reward in" in page
    assert "the reward is relative to the pool" in page


def test_other_ways_to_search(data, fitted, tmp_path):
    given = [*flags(data), "--feedback", data / "demos.jsonl", "--feedback", data / "pairs.jsonl", "--rivals", 4]
    given += ["--pool", data / "pool.jsonl", "--optimizer", "adam", "--rate", 0.05, "--max-steps", 300]
    assert irlhf(*given, "--out", tmp_path / "run") == 0
    assert result_of(tmp_path / "run")["objective"] == pytest.approx(result_of(fitted)["objective"], abs=1e-3)


def test_conversations_for_a_model_without_a_template(data, tmp_path, capsys):
    turns = [[{"role": "user", "content": "film"}, {"role": "assistant", "content": w}] for w in ("good", "bad")]
    write(tmp_path / "talk.jsonl", [{"chosen": turns[0], "rejected": turns[1]}])
    given = [*flags(data), "--feedback", tmp_path / "talk.jsonl"]
    assert irlhf(*given, "--out", tmp_path / "run") == 2
    assert "no chat template; give --template plain, or use an instruct model" in capsys.readouterr().err
    assert irlhf(*given, "--template", "plain", "--out", tmp_path / "run") == 0
    assert irlhf("distill", tmp_path / "run", "--steps", 1, "--draws", 2, "--out", tmp_path / "policy") == 0
    contexts = json.loads((tmp_path / "policy" / "config.json").read_text())["contexts"]
    assert contexts == [[{"role": "user", "content": "film"}]]


# -------------------------------------------------------------------------------------------------------------- score


def test_scores_of_records(data, fitted, tmp_path, capsys):
    records = [
        {"text": "good film", "note": [1, None]},
        {"prompt": "film", "completion": "bad"},
        {"prompt": "film", "chosen": "good", "rejected": "very bad"},
        {"prompt": "film", "completions": ["bad", "good", "very"]},
        {"text": "good good good good good film"},
        {"text": "good film", "score": "old"},
    ]
    write(tmp_path / "records.jsonl", records)
    assert irlhf("score", fitted, tmp_path / "records.jsonl", "--out", tmp_path / "out.jsonl") == 0
    said = capsys.readouterr().err
    assert "1 of 9 rows were left out. Their score is null" in said and "6 records scored" in said
    found = lines(tmp_path / "out.jsonl")
    assert [{k: v for k, v in row.items() if k != "score"} for row in found] == [
        {k: v for k, v in row.items() if k != "score"} for row in records
    ]
    job = finished.reopen(fitted)
    world, reward = job.setup.world, job.reward
    texts = [(None, "good film"), ("film", "bad"), ("film", "good"), ("film", "very bad"), ("film", "very")]
    with torch.no_grad():
        worth = dict(zip(texts, reward(world.collate(*zip(*texts, strict=True))).tolist(), strict=True))
    assert found[0]["score"] == pytest.approx(worth[texts[0]]) == found[5]["score"]
    assert found[1]["score"] == pytest.approx(worth[texts[1]])
    assert found[2]["score"] == pytest.approx([worth[texts[2]], worth[texts[3]]])
    assert found[3]["score"] == pytest.approx([worth[texts[1]], worth[texts[2]], worth[texts[4]]])
    assert found[4]["score"] is None
    assert irlhf("score", fitted, tmp_path / "records.jsonl") == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found


def test_scores_need_no_feedback_of_the_fit(data, fitted, tmp_path, capsys):
    assert irlhf("score", fitted, data / "demos.jsonl") == 0
    before = capsys.readouterr().out
    moved = tmp_path / "data"
    shutil.copytree(data, moved)
    stored = (moved / "run" / "config.json").read_text().replace(str(data), str(moved))
    (moved / "run" / "config.json").write_text(stored)
    for name in ("pairs.jsonl", "pool.jsonl"):
        (moved / name).unlink()
    assert irlhf("score", moved / "run", moved / "demos.jsonl") == 0
    screen = capsys.readouterr()
    assert screen.out == before and "pairs.jsonl, pool.jsonl is not where the fit found it" in screen.err
    assert irlhf("evaluate", moved / "run", moved / "demos.jsonl") == 2  # rivals came from the pool
    assert "pool.jsonl: there is no such file" in capsys.readouterr().err
    (moved / "model" / "model.safetensors").write_bytes((moved / "run" / "reward.safetensors").read_bytes())
    assert irlhf("score", moved / "run", moved / "demos.jsonl") == 2
    assert "model.safetensors changed since the fit" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ distill


def distill(run, data, path, *more):
    given = ["--prompts", data / "prompts.jsonl", "--steps", 4, "--draws", 4, "--batch", 3, "--at-once", 5, "--rank", 2]
    return irlhf("distill", run, *given, "--rate", 0.02, "--best-of", 2, "--out", path, *more)


def test_a_policy(data, fitted, tmp_path, capsys):
    path = tmp_path / "policy"
    assert distill(fitted, data, path) == 0
    screen, found = capsys.readouterr(), result_of(path)
    assert found["contexts"] == found["judged"] == 4 and found["steps"] == 4  # a prompt that is there twice is one
    rows = read_metrics(path)[1:]
    told = {"reward", "kl", "entropy", "spread", "effective_share", "tokens", "truncated"}
    assert all(told <= row.keys() for row in rows)
    assert abs(rows[0]["kl"]) < 1e-5 < abs(rows[-1]["kl"])  # the adapter starts as nothing
    assert rows[0]["objective"] == pytest.approx(rows[0]["reward"], abs=1e-5)
    assert 0 < rows[0]["tokens"] <= CAP and 0 < rows[0]["entropy"] < CAP * np.log(5) and rows[0]["spread"] > 0
    for word in (
        "entropy",
        "truncated",
        "KL to mu",
        "Best of 2 draws",
        "completions.jsonl",
        "adapter_model.safetensors",
    ):
        assert word in screen.out + screen.err
    written = lines(path / "completions.jsonl")
    assert [row["step"] for row in written] == [step for step in (1, 2, 3, 4) for _ in range(3)] + [5] * 4
    assert {row["prompt"] for row in written[-4:]} == {"film", "very", "very film", "bad film"}
    job = finished.reopen(fitted)
    last = written[-1]
    batch = job.setup.world.collate([last["prompt"]], [last["completion"]]) if last["ended"] else None
    if batch is not None:
        assert float(job.reward(batch).detach()) == pytest.approx(last["reward"], abs=1e-9)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's own
def test_peft_loads_the_adapter(data, fitted, tmp_path):
    from peft import PeftModel

    path = tmp_path / "policy"
    assert distill(fitted, data, path) == 0
    tensors, _ = read_tensors(path / "policy.safetensors")
    language = language_of(data)
    language.add_adapter("policy", rank=2)
    policy = TextPolicy(language, "policy")
    policy.load_state_dict(tensors)
    batch = TextWorld(Encoder(language.tokenizer, max_tokens=CAP)).collate(["film"], ["good very"])
    with torch.no_grad():
        own = policy.log_prob(batch)
        loaded = PeftModel.from_pretrained(load_model(data / "model", dtype=torch.float64)[0], path / "adapter")
        tokens = torch.tensor([[*batch.contexts[0].tokens, *batch.token.tolist()]])
        theirs = loaded.double()(tokens).logits[0].log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])[:, 0]
        base = TextPolicy(language_of(data)).log_prob(batch)
    torch.testing.assert_close(theirs[-len(own) :], own, rtol=0, atol=1e-6)
    assert (own - base).abs().max() > 1e-4


def test_prompts_of_the_feedback_and_those_of_conversations(data, fitted, tmp_path):
    job = finished.reopen(fitted)
    how = policies.Settings(run=fitted)
    config = configuration.world_config("text")
    assert config.contexts_of(job.setup, how) == [None]  # the demonstrations have no prompt
    given = [
        None,
        "very",
        (Message("user", "good?"), Message("assistant", "bad"), Message("user", "film")),
        Prompt((1, 2)),
    ]
    as_json = [None, "very", [{"role": "user", "content": "good?"}, {"role": "assistant", "content": "bad"},
                              {"role": "user", "content": "film"}], {"tokens": [1, 2]}]  # fmt: skip
    from irlhf.worlds.text import distill as module

    assert [module._to_json(prompt) for prompt in given] == as_json
    assert [module._from_json(value) for value in json.loads(json.dumps(as_json))] == given


# --------------------------------------------------------------------------------------------------------- refusals

REFUSALS = [
    (["fit", "--world", "text"], "there is nothing to learn from: give --feedback FILE"),
    (["fit", "--world", "text", "--feedback", "DATA/demos.jsonl"], "give --model FOLDER"),
    (["FIT", "--model", "nowhere"], "there is no model 'nowhere'"),
    (["FIT", "--model", "DATA"], "has no config.json"),
    (["FIT", "--feedback", "DATA/nothing.jsonl"], "nothing.jsonl: there is no such file"),
    (["FIT", "--proposal", "pool"], "--proposal pool needs a pool: give --pool FILE, or --proposal base"),
    (["FIT", "--pool", "DATA/pairs.jsonl"], "is the pool, but has comparisons"),
    (["FIT", "--pool", "DATA/prompts.jsonl"], "prompts.jsonl, line 1: a prompt alone is no feedback"),
    (["FIT", "--pool", "DATA/elsewhere.jsonl"], "the pool has no trajectory from no prompt; add some, or choose"),
    (["FIT", "--reward", "implicit", "--pool", "DATA/pool.jsonl"], "an implicit reward needs no rivals"),
    (["FIT", "--reward", "lora", "--errors", "opg"], "--errors is for a linear reward"),
    (["FIT", "--reward", "neural"], "--reward is 'neural'"),
    (["FIT", "--depth", "9"], "depth is 9"),
    (["FIT", "--likelihood", "exact", "--max-tokens", "20"], "too many to list"),
    (["FIT", "--max-tokens", "0"], "--max-tokens is '0'"),
    (["FIT", "--panel", "x"], "has no flag --panel"),
    (["fit", "DATA/demos.jsonl", "--world", "text"], "give it as --feedback"),
    (["FIT", "--rivals", "0"], "--rivals is '0'"),
    (["distill", "RUN", "--start", "good"], "--start is of worlds with states"),
    (["distill", "RUN", "--prompts", "DATA/nothing.jsonl"], "nothing.jsonl: there is no such file"),
    (["distill", "RUN", "--prompts", "DATA/demos.jsonl"], "field 'prompt': the field is missing"),
    (["distill", "RUN", "--learner", "actor-critic", "--prompts", "DATA/prompts.jsonl"], "has no critic"),
    (["distill", "RUN", "--learner", "expected", "--batch", "2"], "leave out --batch"),
    (["distill", "RUN", "--batch", "0"], "--batch is 0"),
    (["score", "RUN", "DATA/nothing.jsonl"], "nothing.jsonl: there is no such file"),
    (["score", "RUN", "DATA/prompts.jsonl"], "a prompt alone is no feedback"),
    (["score", "RUN", "DATA/demos.jsonl", "--format", "csv"], "keep their fields"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "sentence"), REFUSALS)
def test_refused_in_one_sentence(data, fitted, tmp_path, monkeypatch, capsys, line, sentence):
    monkeypatch.chdir(tmp_path)
    write(data / "elsewhere.jsonl", [{"prompt": "film", "completion": "good"}])
    if line[0] == "FIT":
        own = {flag: str(value) for flag, value in zip(flags(data)[1::2], flags(data)[2::2], strict=False)}
        own["--feedback"] = str(data / "demos.jsonl")
        own.pop("--no-report", None)
        own |= dict(zip(line[1::2], line[2::2], strict=True))
        line = ["fit", *(word for pair in own.items() for word in pair)]
    line = [str(fitted) if word == "RUN" else word.replace("DATA", str(data)) for word in line]
    assert irlhf(*line) == 2
    screen = capsys.readouterr()
    assert sentence in " ".join(screen.err.split()) and "Traceback" not in screen.err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("package", ["transformers", "tokenizers"])
def test_a_missing_package_is_named(monkeypatch, package):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(configuration.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=rf'needs the package {package}, .*pip install "irlhf\[text\]"'):
        configuration.world_config("text")


def test_every_setting_has_a_flag_and_the_help_a_place_for_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert irlhf("fit", "--world", "text", "--help") == 0
    screen = capsys.readouterr().out
    for name in set(Settings.model_fields) - {"sources"}:
        assert f"--{name.replace('_', '-')}"[:18] in screen


# ------------------------------------------------------------------------------------------------------ tensorboard


def scalars(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    return {tag: {event.step: event.value for event in board.Scalars(tag)} for tag in board.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore")
def test_the_curve_for_tensorboard(data, fitted, tmp_path):
    given = ["--feedback", data / "pairs.jsonl", "--reward", "score", "--rows", 8, "--tensorboard"]
    for attempt in (["--out", tmp_path / "fit"], ["--resume", tmp_path / "fit"]):
        assert irlhf(*flags(data), *given, *attempt) == 0
        rows = read_metrics(tmp_path / "fit")
        found = scalars(tmp_path / "fit")
        assert found["objective"] == pytest.approx({row["step"]: row["objective"] for row in rows[1:]}, rel=1e-6)
        assert set(found) == {"objective", "gradient_norm"}
    assert distill(fitted, data, tmp_path / "policy", "--tensorboard") == 0
    found = scalars(tmp_path / "policy")
    assert {"reward", "kl", "entropy", "spread", "tokens", "truncated", "effective_share"} <= set(found)
    assert set(found["reward"]) == {1, 2, 3, 4}


def test_without_tensorboard(data, tmp_path, monkeypatch, capsys):
    from irlhf.cli import board

    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: None)
    assert irlhf(*flags(data), "--feedback", data / "pairs.jsonl", "--tensorboard", "--out", tmp_path / "run") == 2
    assert "pip install tensorboard" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- kill and resume


def killed(module, name, step, action):
    """Run in a child that kills itself when a step is done."""

    def child():
        genuine = getattr(module, name)

        def stopped(*args, progress, **how):
            def at(told):
                if told["step"] == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            return genuine(*args, progress=at, **how)

        setattr(module, name, stopped)
        action()

    return in_child(child)


@pytest.mark.parametrize("reward", ["linear", "lora"])
def test_a_fit_that_is_killed_and_resumed(data, tmp_path, reward):
    given = [*flags(data), "--feedback", data / "demos.jsonl", "--feedback", data / "pairs.jsonl", "--rivals", 2]
    given += ["--reward", reward, "--rank", 2, "--rows", 16, "--rate", 0.01]
    assert irlhf(*given, "--out", tmp_path / "whole") == 0

    def fit():
        code = irlhf(*given, "--out", tmp_path / "run", "--resume")
        if code:
            raise SystemExit(code)

    for step in (1, 3):
        assert killed(jobs, "fit_reward", step, fit) == -signal.SIGKILL
        assert read_metrics(tmp_path / "run")[-1]["step"] == step
    assert in_child(fit) == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    assert (tmp_path / "run" / "result.json").read_bytes() == (tmp_path / "whole" / "result.json").read_bytes()


def test_a_policy_that_is_killed_and_resumed(data, fitted, tmp_path):
    def learn(path):
        code = distill(fitted, data, path, "--resume")
        if code:
            raise SystemExit(code)

    learn(tmp_path / "whole")
    for step in (1, 2, 4):
        assert killed(policies, "fit_policy", step, lambda: learn(tmp_path / "run")) == -signal.SIGKILL
    assert in_child(lambda: learn(tmp_path / "run")) == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    for name in ("result.json", "completions.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
