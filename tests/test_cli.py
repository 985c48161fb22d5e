"""The command line from end to end: the numbers of the Python API, sentences for errors, runs that can be resumed."""

import errno
import json
import os
import shutil
import signal
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
import pandas as pd
import pytest
import torch

from irlhf.cli import finished, jobs
from irlhf.cli.flags import fit_flags, settings_of
from irlhf.fit import fit_reward
from irlhf.io import read_jsonl
from irlhf.likelihood import Term, exact, listed
from irlhf.sources import Source
from irlhf.storage.checkpoint import load_checkpoint, read_tensors
from irlhf.storage.rundir import digest, open_run, read_metrics
from irlhf.worlds.tabular import Linear, features, from_table
from irlhf.worlds.tabular.config import Settings, parse_trajectory
from irlhf.worlds.tabular.estimate import estimate_transitions
from irlhf.worlds.tabular.panel import read_features, read_panel, read_transitions
from tests.cli_data import STATES, irlhf, write_replacement, write_routes
from tests.processes import in_processes


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """One thread, and no waiting for the disk: a kill does not lose what the system has taken over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_replacement(folder)
    write_routes(folder)
    return folder


@pytest.fixture
def replacement(data, tmp_path):
    """Flags of a small fit that takes a fraction of a second, without the page."""
    files = ["--panel", data / "panel.csv", "--features", data / "features.csv"]
    return [*files, "--discount", 0.9, "--pooling", "increments", "--reset", "1=0", "--no-report"]


def result_of(run):
    return json.loads((run / "result.json").read_text())


def estimates(run):
    return {name: row["estimate"] for name, row in result_of(run)["parameters"].items()}


# ------------------------------------------------------------------------------------- the numbers of the Python API


def test_replacement_with_pooled_increments(data, replacement, tmp_path, capsys):
    run = tmp_path / "run"
    assert irlhf("fit", *replacement, "--errors", "sandwich", "--cluster", "person", "--out", run) == 0
    panel = read_panel(data / "panel.csv")
    estimate = estimate_transitions(panel.trajectories, pooling="increments", states=range(STATES), reset={1: 0})
    world = from_table(estimate.table, discount=0.9)
    fit = fit_reward(Linear(features(world, read_features(data / "features.csv"))), [Term(panel, exact(world))])
    assert estimates(run) == fit.params.to_dict()
    found = result_of(run)
    errors = fit.standard_errors("sandwich", cluster="person")
    assert {name: row["std. error"] for name, row in found["parameters"].items()} == errors.to_dict()
    assert found["standard_errors"] == {"kind": "sandwich", "cluster": "person"}
    assert found["log_likelihood"] == {"demonstrations": fit.log_likelihood.iloc[0]}
    assert found["status"] == "CONVERGED" and found["sentence"] == str(fit.status)
    about = found["transitions"]
    assert about["log_likelihood"] == estimate.log_likelihood and about["increments"].keys() == {"0", "1", "2"}
    assert about["never_seen"] == estimate.n_unseen and about["parameters"] == 2
    screen = capsys.readouterr()
    assert fit.summary("sandwich", cluster="person") in screen.out
    assert f"{estimate.n_unseen} pairs (state, action) never seen" in screen.err and str(run) in screen.err


def test_routes_to_their_destinations(data, tmp_path):
    run = tmp_path / "run"
    flags = ["--panel", data / "trips.csv", "--features", data / "links.csv", "--destinations", "--no-report"]
    assert irlhf("fit", *flags, "--out", run) == 0
    trips, table = read_panel(data / "trips.csv"), read_features(data / "links.csv")
    links = table[["state", "action"]].assign(next_state=table["action"])
    world = from_table(links, destinations=True)
    start = {"length": -2.0, "noise": 0.0}
    fit = fit_reward(Linear(features(world, table)), [Term(trips, exact(world))], start=start)
    # the search started elsewhere: the maximum is the same, the last digits are not
    assert estimates(run) == pytest.approx(fit.params.to_dict(), rel=1e-6)
    assert result_of(run)["log_likelihood"]["demonstrations"] == pytest.approx(fit.objective, rel=1e-12)
    assert result_of(run)["transitions"]["links"] == len(table)


def test_routes_out_of_sampled_rivals(data, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--panel", data / "trips.csv", "--features", data / "links.csv", "--destinations", "--no-report"]
    assert irlhf("fit", *flags, "--out", tmp_path / "exact") == 0
    assert irlhf("fit", *flags, "--likelihood", "sampled", "--rivals", 50, "--out", run) == 0
    found, exactly = result_of(run), result_of(tmp_path / "exact")["parameters"]
    assert found["likelihood"] == {"demonstrations": "sampled, 50 rivals drawn from the base measure"}
    for name, row in found["parameters"].items():
        assert abs(row["estimate"] - exactly[name]["estimate"]) < 2 * row["std. error"]
    screen = capsys.readouterr()
    assert "drawing 50 rivals for each of 37 demonstrations" in screen.err
    looked_at = found["log_z"]["demonstrations"]["estimates"]
    assert len(looked_at) == 4 and "careful: demonstrations: log Z cannot be trusted at" in screen.out
    assert f"log Z {looked_at[0]['log_z']:.4f} ({looked_at[0]['standard_error']:.4f})" in screen.out


def test_destinations_nobody_wrote_down(data, tmp_path, capsys):
    trips = pd.read_csv(data / "trips.csv")
    bare = tmp_path / "bare.csv"
    trips.drop(columns=["context", "action"]).to_csv(bare, index=False)
    last = trips.groupby("trajectory")["step"].transform("max") == trips["step"]
    assert trips.loc[last, "next_state"].equals(trips.loc[last, "context"])
    flags = ["--features", data / "links.csv", "--destinations", "--no-report"]
    assert irlhf("fit", "--panel", bare, *flags, "--out", tmp_path / "bare") == 0
    assert irlhf("fit", "--panel", data / "trips.csv", *flags, "--out", tmp_path / "full") == 0
    assert estimates(tmp_path / "bare") == estimates(tmp_path / "full")


def test_comparisons_and_demonstrations_with_a_fitted_temperature(data, tmp_path, capsys):
    run = tmp_path / "run"
    files = ["--panel", data / "panel.csv", "--choices", data / "pairs.jsonl", "--features", data / "features.csv"]
    flags = [*files, "--transitions", data / "transitions.csv", "--discount", 0.9, "--no-report"]
    assert irlhf("fit", *flags, "--prior", 2, "--bound", "mileage=0:", "--out", run) == 0
    world = from_table(read_transitions(data / "transitions.csv"), discount=0.9)
    pairs = read_jsonl(data / "pairs.jsonl", parse_trajectory=parse_trajectory)
    terms = [
        Term(read_panel(data / "panel.csv"), exact(world)),
        Term(pairs, listed(world), Source(fit_temperature=True)),
    ]
    fit = fit_reward(
        Linear(features(world, read_features(data / "features.csv"))),
        terms,
        prior=jobs.Normal(sd=2.0),
        bounds={"mileage": (0.0, None)},
    )
    assert estimates(run) == fit.params.to_dict() and "comparisons.log_temperature" in fit.params
    assert result_of(run)["log_likelihood"] == fit.log_likelihood.to_dict()
    screen = capsys.readouterr().err
    assert "source demonstrations: temperature fixed at 1" in screen
    assert "source comparisons: temperature fitted" in screen
    tensors, info = read_tensors(run / "reward.safetensors")
    assert info["parameters"] == fit.problem.names and tensors["reward.theta"].tolist() == fit.params[:2].tolist()


def test_ties_ratings_and_rankings(data, tmp_path, capsys):
    run, flags = tmp_path / "run", ["--choices", data / "opinions.jsonl", "--features", data / "features.csv"]
    flags += ["--transitions", data / "transitions.csv", "--discount", 0.9, "--no-report"]
    assert irlhf("fit", *flags, "--out", run) == 2
    assert "a tie, but its source models none" in capsys.readouterr().err and not run.exists()
    assert irlhf("fit", *flags, "--ties", "davidson", "--prior", 3, "--holdout", 0.2, "--out", run) == 0
    assert "source judges: temperature fixed at 1, ties after davidson" in capsys.readouterr().err
    found = result_of(run)
    assert set(found["rows"]) == {"judges", "ratings", "rankings"} == set(found["held_out"])
    assert {"judges.ties.log_nu", "ratings.thresholds", "rankings.log_temperature"} <= set(found["parameters"])
    assert {"judges.ties.nu", "rankings.temperature"} <= set(found["derived"])
    assert found["derived"]["judges.ties.nu"]["estimate"] == pytest.approx(np.exp(estimates(run)["judges.ties.log_nu"]))
    assert irlhf("evaluate", run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["held out"]["judges"].keys() >= {"model", "uniform", "tie rate"}


@pytest.mark.parametrize(
    "options", [("--reward", "tabular"), ("--reward", "neural", "--hidden", "4", "--max-steps", 5)]
)
def test_other_rewards_and_the_seed(replacement, tmp_path, options):
    for run, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert irlhf("fit", *replacement, *options, "--prior", 1, "--seed", seed, "--out", tmp_path / run) == 0
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert (digest(tmp_path / "a") != digest(tmp_path / "c")) == ("neural" in options)


# ----------------------------------------------------------------------------------------------------- configurations


def test_a_file_and_flags_say_the_same(data, replacement, tmp_path):
    (tmp_path / "bus.toml").write_text(
        f"""
        panel = "{os.path.relpath(data / "panel.csv", tmp_path)}"  # relative to this file
        features = "{data / "features.csv"}"
        discount = 0.5
        pooling = "increments"
        reset = {{ "1" = 0 }}
        holdout = 0.25
        split-by = "person"
        report = false
        [fix]
        replace = 2.0
        """
    )
    flags = [*replacement, "--fix", "replace=2", "--holdout", 0.25, "--split-by", "person"]
    assert irlhf("fit", *flags, "--out", tmp_path / "flags") == 0
    assert irlhf("fit", tmp_path / "bus.toml", "--discount", 0.9, "--out", tmp_path / "file") == 0
    assert digest(tmp_path / "flags") == digest(tmp_path / "file")
    one, other = (json.loads((tmp_path / run / "config.json").read_text()) for run in ("flags", "file"))
    assert one | {"out": ""} == other | {"out": ""} and one["discount"] == 0.9


def test_every_setting_is_a_flag():
    flags = {flag.name for flag in fit_flags(Settings)}
    assert flags - {"no_destinations", "no_tensorboard"} == Settings.model_fields.keys() - {"sources"}
    assert settings_of({"no_destinations": True, "report": False, "reset": [], "panel": None}) == {
        "destinations": False,
        "report": False,
    }


@pytest.mark.parametrize("width", [80, 100, 120])
def test_help_breaks_no_word(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert irlhf("fit", "--help") == 0
    screen = capsys.readouterr().out
    assert max(map(len, screen.splitlines())) <= width
    words = set(screen.replace("│", " ").split())
    for flag in fit_flags(Settings):
        option = flag.annotation.__metadata__[0]
        if not option.hidden:
            expected = {f"--{flag.name.replace('_', '-')}", *option.help.split(), *option.metavar.split()}
            assert expected <= words, expected - words


def test_sources_in_the_file(data, tmp_path, capsys):
    config = tmp_path / "both.toml"
    config.write_text(
        f"""
        panel = "{data / "panel.csv"}"
        choices = "{data / "pairs.jsonl"}"
        features = "{data / "features.csv"}"
        transitions = "{data / "transitions.csv"}"
        discount = 0.9
        report = false
        [sources.comparisons]
        temperature = 2
        """
    )
    assert irlhf("fit", config, "--out", tmp_path / "run") == 0
    screen = capsys.readouterr().err
    assert "source demonstrations: temperature fitted" in screen
    assert "source comparisons: temperature fixed at 2" in screen
    config.write_text(config.read_text().replace("[sources.comparisons]", "[sources.comparison]"))
    assert irlhf("fit", config, "--out", tmp_path / "other") == 2
    assert "no such source; did you mean 'comparisons'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fit"], "nothing says what to fit"),
        (["fit", "--discont", "0.9"], "did you mean '--discount'?"),
        (["fit", "--panel"], "requires an argument"),
        (["fat"], "Did you mean 'fit'"),
        (["fit", "PANEL", "--discount", "0.5"], "is not TOML but data; give it as --panel"),
        (["fit", "pairs.jsonl.gz"], "give it as --choices"),
        (["fit", "--panel", "PANEL", "--panel", "PANEL"], "--panel is given more than once; give it once"),
        (["fit", "--report", "--panel", "PANEL", "--no-report"], "--report and --no-report are given more than once"),
        (["score", "--out=a", "x", "y", "--out", "b"], "--out is given more than once"),
        (["fit", "--panel", "PANEL", "--features", "PANEL", "--discount", "0.9"], "this is a panel; features have"),
        (["fit", "--panel", "PANEL", "--features", "FEATURES", "--discount", "1.5"], "less than or equal to 1"),
        (["fit", "--panel", "PANEL", "--features", "FEATURES", "--discount", "high"], "should be a number"),
        (["fit", "--panel", "PANEL", "--features", "FEATURES", "--kind", "causl"], "'causal', 'weighted'"),
        (["fit", "--panel", "PANEL", "--features", "FEATURES", "--fix", "x"], "write NAME=VALUE"),
        (["fit", "--panel", "PANEL", "--features", "FEATURES", "--bound", "x=3:1"], "exceeds the upper bound"),
        (["fit", "--panel", "PANEL", "--features", "FEATURES", "--world", "gim"], "there is no world 'gim'"),
        (["fit", "--panel", "PANEL", "--features", "FEATURES"], "give --discount below 1"),
        (["fit", "--panel", "PANEL"], "a linear reward needs features"),
        (["fit", "--features", "FEATURES"], "nothing to learn from"),
        (["fit", "--panel", "nothing.csv", "--features", "FEATURES", "--discount", "0.9"], "there is no such file"),
        (["fit", "--panel", "FEATURES", "--features", "FEATURES", "--discount", "0.9"], "column is missing"),
        (
            ["fit", "--panel", "PANEL", "--features", "FEATURES", "--discount", "0.9", "--fix", "milage=1"],
            "there is no parameter 'milage'; the parameters are mileage, replace",
        ),
        (
            ["fit", "--panel", "PANEL", "--features", "FEATURES", "--discount", "0.9", "--holdout", "0.001"],
            "holds out 0 of them",
        ),
        (
            ["fit", "--panel", "PANEL", "--features", "FEATURES", "--errors", "hessian", "--cluster", "person"],
            "knows no clusters",
        ),
        (["fit", "--resume", "nowhere"], "is not a run of irlhf fit"),
        (["fit", "--resume"], "there is no run in the folder runs"),
        (["score", "nowhere", "PANEL"], "is not a run of irlhf fit"),
        (["score", "nowhere"], "Missing argument 'FILE'"),
        (["evaluate", "nowhere"], "is not a run of irlhf fit"),
        (["report", "nowhere"], "is not a run of irlhf fit"),
        (["demo", "icy"], "the demos are icu, lineup"),
    ],
)
def test_refusals_are_one_sentence(data, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    files = {"PANEL": data / "panel.csv", "FEATURES": data / "features.csv"}
    assert irlhf(*(files.get(argument, argument) for argument in arguments)) == 2
    screen = capsys.readouterr()
    assert sentence in screen.err and "irlhf: " in screen.err and "Traceback" not in screen.err and not screen.out
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["fit", "score", "evaluate", "report", "demo"])
def test_help_has_examples(command, capsys):
    assert irlhf(command, "--help") == 0
    assert f"irlhf {command} " in capsys.readouterr().out


def test_where_runs_go(data, replacement, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bus.toml").write_text("discount = 0.9")
    for _ in range(2):
        assert irlhf("fit", "bus.toml", *replacement) == 0
    assert sorted(os.listdir("runs")) == ["bus", "bus-2"]
    for resume in (["bus.toml", "--resume"], ["--resume"], ["--resume", "runs/bus-2"], ["--resume", "bus.toml"]):
        assert irlhf("fit", *resume, *(replacement if "bus.toml" in resume else [])) == 0
    assert json.loads((tmp_path / "runs/bus-2/status.json").read_text())["attempt"] == 5
    assert irlhf("fit", *replacement, "--out", "runs/bus") == 2
    assert "holds a run already" in capsys.readouterr().err
    assert irlhf("fit", "runs/bus") == 2
    assert "is a run, not a configuration; to go on with it: irlhf fit --resume runs/bus" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- score, evaluate, report


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    """A run with a report, on both kinds of feedback, a part of which was held out."""
    run = tmp_path_factory.mktemp("runs") / "both"
    files = ["--panel", data / "panel.csv", "--choices", data / "pairs.jsonl", "--features", data / "features.csv"]
    assert irlhf("fit", *files, "--discount", 0.9, "--holdout", 0.2, "--out", run) == 0
    return run


def snapshot(run):
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_scores_of_rows(data, fitted, tmp_path, capsys):
    before = snapshot(fitted)
    assert irlhf("score", fitted, data / "pairs.jsonl") == 0
    screen = capsys.readouterr()
    assert irlhf("score", fitted, data / "panel.csv", "--out", tmp_path / "scores.jsonl") == 0
    job = finished.reopen(fitted)
    pairs, panel = (finished.read_feedback(job, data / name) for name in ("pairs.jsonl", "panel.csv"))
    table = pd.read_csv(StringIO(screen.out))
    with torch.no_grad():
        of_pairs = Term(pairs, listed(job.setup.world), job.sources["comparisons"]).log_prob(job.reward)
        of_panel = Term(panel, exact(job.setup.world), job.sources["demonstrations"]).log_prob(job.reward)
    assert table["log_likelihood"].tolist() == of_pairs.tolist() and table["id"].tolist() == list(pairs.id)
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["log_likelihood"] for line in lines] == of_panel.tolist()
    assert f"log-likelihood {float(of_pairs.sum()):.6f}" in screen.err
    assert snapshot(fitted) == before


def test_evaluation_beside_baselines(data, fitted, capsys):
    before = snapshot(fitted)
    assert irlhf("evaluate", fitted, data / "panel.csv", data / "pairs.jsonl", "--json") == 0
    tables = json.loads(capsys.readouterr().out)
    steps = tables[str(data / "panel.csv")]["demonstrations"]
    never = result_of(fitted)["transitions"]["never_seen"]  # there, the other action is the only one
    assert -20 * 25 * np.log(2) < steps["uniform"]["log_likelihood"] < -20 * 24 * np.log(2) and never > 0
    pairs = tables[str(data / "pairs.jsonl")]["comparisons"]
    assert pairs["uniform"]["per_row"] == pytest.approx(-np.log(2)) and pairs["model"]["accuracy"] > 0.55
    assert irlhf("evaluate", fitted) == 0
    assert "held out, comparisons" in capsys.readouterr().out
    assert result_of(fitted)["held_out"].keys() == {"demonstrations", "comparisons"}
    assert snapshot(fitted) == before


def test_a_source_that_was_not_fitted(data, fitted, tmp_path, capsys):
    rows = [json.loads(line) | {"source": "experts"} for line in (data / "pairs.jsonl").read_text().splitlines()]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert irlhf("score", fitted, tmp_path / "more.jsonl") == 2
    assert "source 'experts' is not one that was fitted" in capsys.readouterr().err
    assert irlhf("score", fitted, tmp_path / "more.jsonl", "--source", "comparisons") == 0


def test_the_report_again(fitted, capsys):
    page = fitted / "report.html"
    first = page.read_text()
    page.unlink()
    assert irlhf("report", fitted) == 0
    again = page.read_text()  # values found from a cold start differ in the last bits, so the pages are not equal
    assert all(name in again for name in ("mileage", "replace", "comparisons", "held out"))
    assert abs(len(again) - len(first)) < 0.01 * len(first)


def test_without_the_report_extra(replacement, tmp_path, monkeypatch, capsys):
    import builtins

    genuine = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("jinja2", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    flags = [flag for flag in replacement if flag != "--no-report"]
    assert irlhf("fit", *flags, "--out", tmp_path / "run") == 0
    assert "note: there is no report.html" in capsys.readouterr().err
    assert irlhf("report", tmp_path / "run") == 2


@pytest.mark.parametrize(
    "kind",
    [
        ["--panel", "panel.csv", "--choices", "pairs.jsonl", "--choices", "opinions.jsonl", "--ties", "rao-kupper"],
        ["--panel", "panel.csv", "--transitions", "transitions.csv", "--base", "base.csv", "--kind", "weighted"],
        ["--panel", "panel.csv", "--reward", "neural", "--hidden", "4", "--max-steps", "3"],
        ["--panel", "panel.csv", "--reward", "tabular", "--on", "pairs", "--prior", "1", "--horizon", "30"],
        ["--choices", "opinions.jsonl", "--transitions", "transitions.csv", "--ties", "davidson", "--max-steps", "40"],
    ],
)
def test_a_run_whose_data_are_gone(data, tmp_path, monkeypatch, capsys, kind):
    """The same scores to the bit from what the run kept, in another place."""
    here = tmp_path / "here"
    shutil.copytree(data, here)
    (here / "base.csv").write_text("state,action,log_base\n0,0,-0.5\n1,1,0.25\n")
    monkeypatch.chdir(here)
    assert irlhf("fit", *kind, "--features", "features.csv", "--discount", 0.9, "--no-report", "--out", "run") == 0
    new = [name for name in ("panel.csv", "pairs.jsonl", "opinions.jsonl") if name in kind]
    before = {}
    for name in new:
        capsys.readouterr()
        assert irlhf("score", "run", name) == 0
        before[name] = capsys.readouterr().out
        assert irlhf("evaluate", "run", name, "--json") == 0
        before[name, "tables"] = json.loads(capsys.readouterr().out)
    there = tmp_path / "there"
    there.mkdir()
    shutil.move(here / "run", there / "run")
    for name in new:
        shutil.move(here / name, there / name)
    shutil.rmtree(here)
    monkeypatch.chdir(there)
    kept = snapshot(there / "run")
    for name in new:
        capsys.readouterr()
        assert irlhf("score", "run", name) == 0
        screen = capsys.readouterr()
        assert screen.out == before[name] and "is not where the fit found it" in screen.err
        assert irlhf("evaluate", "run", name, "--json") == 0
        tables = json.loads(capsys.readouterr().out)[name]
        for term, by_predictor in tables.items():
            for predictor, numbers in by_predictor.items():
                assert numbers["log_likelihood"] == before[name, "tables"][name][term][predictor]["log_likelihood"]
    for command, sentence in ((["evaluate"], "give files to predict"), (["report"], "a report needs the feedback")):
        capsys.readouterr()
        assert irlhf(*command, "run") == 2
        assert sentence in capsys.readouterr().err
    assert snapshot(there / "run") == kept
    damaged = bytearray(kept[there / "run" / "world.safetensors"])
    damaged[-3] ^= 1
    (there / "run" / "world.safetensors").write_bytes(damaged)
    assert irlhf("score", "run", new[0]) == 2
    assert "world.safetensors is damaged" in capsys.readouterr().err


def test_data_that_changed_since(data, tmp_path, capsys):
    panel = tmp_path / "panel.csv"
    panel.write_bytes((data / "panel.csv").read_bytes())
    flags = ["--panel", panel, "--features", data / "features.csv", "--discount", 0.9, "--no-report"]
    assert irlhf("fit", *flags, "--out", tmp_path / "run") == 0
    panel.write_bytes(b"".join(panel.read_bytes().splitlines(keepends=True)[:-25]))
    for command in (["score", tmp_path / "run", panel], ["fit", "--resume", tmp_path / "run"]):
        capsys.readouterr()
        assert irlhf(*command) == 2
        assert "changed" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- it can be resumed


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_usable_run(replacement, tmp_path, monkeypatch, capsys, request, stop, code):
    assert irlhf("fit", *replacement, "--out", tmp_path / "whole") == 0
    # A shell that starts the tests in the background has them ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    genuine = jobs.fit_reward

    def stopped(*args, progress, **kwargs):
        def at(step):
            progress(step)
            if step["step"] == 2:
                os.kill(os.getpid(), stop)

        return genuine(*args, progress=at, **kwargs)

    monkeypatch.setattr(jobs, "fit_reward", stopped)
    run = tmp_path / "run"
    handler = signal.getsignal(signal.SIGTERM)
    assert irlhf("fit", *replacement, "--out", run) == code
    assert signal.getsignal(signal.SIGTERM) is handler
    assert f"irlhf fit --resume {run}" in capsys.readouterr().err
    assert load_checkpoint(run / "checkpoint").step == 2 and len(read_metrics(run)) == 3
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert irlhf("score", run, replacement[1]) == 0
    assert "was interrupted: this reward is not final" in capsys.readouterr().err
    monkeypatch.undo()
    assert irlhf("fit", "--resume", run) == 0
    assert digest(run) == digest(tmp_path / "whole")


def test_one_writer(replacement, tmp_path, capsys):
    run = tmp_path / "run"
    with open_run(run, config={}):
        assert irlhf("fit", *replacement, "--out", run) == 2
        assert "in use by process" in capsys.readouterr().err
        assert irlhf("fit", *replacement, "--resume", "--out", run) == 2
        assert "in use by process" in capsys.readouterr().err
    assert run.exists()


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_a_directory_with_other_files(replacement, tmp_path, capsys, flags):
    """Whatever happens, what was in a directory is there afterwards, as it was, and nothing else."""
    folder = tmp_path / "thesis"
    folder.mkdir()
    for name in ("notes.txt", "result.json", ".git"):
        (folder / name).write_text(name)
    before = snapshot(folder)
    assert irlhf("fit", *replacement, "--out", folder, *flags) == 2
    assert "holds other files (.git, notes.txt, result.json) and no run; choose an empty dir" in capsys.readouterr().err
    assert snapshot(folder) == before


def test_an_empty_directory_is_as_good_as_none(replacement, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    assert irlhf("fit", *replacement, "--fix", "milage=1", "--out", folder) == 2
    assert os.listdir(folder) == []
    assert irlhf("fit", *replacement, "--out", folder) == 0


def test_refused_while_another_process_writes(replacement, tmp_path, monkeypatch):
    """Two fits that start together: the one that comes second leaves the run of the first alone."""
    run, genuine = tmp_path / "run", jobs.prepare
    first = []

    def prepared(settings, *tell):
        job = genuine(settings, *tell)
        first.append(open_run(run, config={}))  # between the look at the path and the lock
        return job

    monkeypatch.setattr(jobs, "prepare", prepared)
    assert irlhf("fit", *replacement, "--out", run) == 2
    assert {"lock", "config.json", "status.json"} <= set(os.listdir(run))
    first[0].close()


def test_a_resumed_run_keeps_its_settings(replacement, tmp_path, capsys):
    run = tmp_path / "run"
    assert irlhf("fit", *replacement, "--max-steps", 2, "--out", run) == 0
    assert result_of(run)["status"] == "BUDGET"
    assert irlhf("fit", "--resume", run, "--discount", 0.8) == 2
    assert "discount was 0.9, is 0.8" in capsys.readouterr().err
    assert irlhf("fit", "--resume", run, "--max-steps", 100) == 0
    assert irlhf("fit", *replacement, "--out", tmp_path / "whole") == 0
    assert digest(run) == digest(tmp_path / "whole")


def test_a_full_disk_leaves_the_last_checkpoint(replacement, tmp_path, monkeypatch, capsys):
    genuine, room = os.write, {"bytes": 10**9}

    def write(descriptor, data):
        if descriptor < 3:  # the screen
            return genuine(descriptor, data)
        if room["bytes"] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = genuine(descriptor, bytes(data)[: room["bytes"]])
        room["bytes"] -= done
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        assert irlhf("fit", *replacement, "--out", tmp_path / "whole") == 0
    needed, steps = 10**9 - room["bytes"], set()
    for share in (0.3, 0.5, 0.7):
        run, room["bytes"] = tmp_path / f"run {share}", int(share * needed)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            assert irlhf("fit", *replacement, "--out", run) == 2
        assert "No space left on device" in capsys.readouterr().err
        steps.add(load_checkpoint(run / "checkpoint").step)
        assert irlhf("fit", "--resume", run) == 0
        assert digest(run) == digest(tmp_path / "whole")
    assert len(steps) == 3, steps


def test_of_processes_the_first_tells_and_all_have_its_numbers(replacement, tmp_path, monkeypatch):
    """Without --out each would choose a folder by its own clock."""
    monkeypatch.chdir(tmp_path)

    def body(rank):
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            code = irlhf("fit", *replacement)
        return code, out.getvalue(), err.getvalue()

    first, second = in_processes(2, body, tmp_path / "said")
    assert first[0] == second[0] == 0 and "replace" in first[1] and "The run is in" in first[2]
    assert second[1:] == ["", ""]
    (run,) = (tmp_path / "runs").iterdir()
    assert irlhf("fit", *replacement, "--out", tmp_path / "alone") == 0
    assert estimates(run) == estimates(tmp_path / "alone")
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
