"""The tables of ``irlhf evaluate``, as a user asks for them."""

import io
import json

import pandas as pd
import pytest

from irlhf.cli.policies import Limit, beyond
from tests.cli_data import irlhf, write_replacement


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    write_replacement(folder)
    given = ["--panel", folder / "panel.csv", "--choices", folder / "pairs.jsonl", "--features",
             folder / "features.csv", "--transitions", folder / "transitions.csv", "--discount", "0.9"]  # fmt: skip
    assert irlhf("fit", *given, "--no-report", "--holdout", "0.2", "--out", folder / "both") == 0
    alone = [*given[:2], *given[4:], "--no-report", "--cluster", "person", "--out", folder / "alone"]
    assert irlhf("fit", *alone) == 0
    return folder


def test_everything_at_once(run, told):
    code, out, err = told("evaluate", run / "both", "--table", "all", "--draws", "25")
    assert code == 0, err
    for piece in (
        "held out, demonstrations", "myopic", "Estimates (standard errors: inverse Hessian)", "aic",
        "demonstrations: share", "Agreement of sources: chi2(1)", "All 3 parameters are identified",
        "which is the scale of the reward against temperatures; seen by demonstrations", "Calibration of comparisons",
        "elpd", "Bootstrap by datum, 25 resamples",
    ):  # fmt: skip
        assert piece in out, piece


def test_estimates_for_a_paper(run, told):
    code, out, _ = told("evaluate", run / "alone", "--table", "estimates", "--format", "latex")
    assert code == 0 and "sandwich, clustered by person" in out and "\\toprule" in out
    _, out, _ = told("evaluate", run / "alone", "--table", "estimates", "--format", "csv")
    table = pd.read_csv(io.StringIO(out), index_col=0)
    result = json.loads((run / "alone" / "result.json").read_text())["parameters"]
    assert table.loc["mileage", "std. error"] == pytest.approx(result["mileage"]["std. error"], rel=1e-9)
    _, out, _ = told("evaluate", run / "alone", "--table", "estimates", "--format", "markdown")
    assert "| mileage |" in out.replace("  ", " ").replace("  ", " ")
    _, out, _ = told("evaluate", run / "both", "--table", "criteria", "--json")
    assert json.loads(out)["Criteria (smaller is better)"]["criteria"]["k"] == 3


def test_how_far_to_optimize(run, told):
    asked = ["evaluate", run / "both", "--table", "over-optimization", "--draws", "64"]
    code, out, err = told(*asked)
    assert code == 0, err
    assert "How far to optimize: No alarm up to a KL of" in out or "How far to optimize: Stop at a KL of about" in out
    _, plain, _ = told(*asked, "--json")
    rows = next(v for k, v in json.loads(plain).items() if k.startswith("Policies mu exp(R/T)"))
    kl = [float(k) for k in rows]
    assert len(kl) > 3 and kl == sorted(kl)
    gains = [row["reward"] for row in rows.values()]
    assert gains == sorted(gains) and gains[0] > 0  # a policy that goes further is paid more by the reward
    code, _, err = told("evaluate", run / "alone", "--table", "over-optimization")
    assert code == 2 and "there are no comparisons" in err


def test_a_policy_is_told_how_far_people_agree(run, told, tmp_path):
    _, table, _ = told("evaluate", run / "both", "--table", "over-optimization")
    given = ["--steps", "3", "--draws", "4", "--out", tmp_path / "policy"]
    code, out, err = told("distill", run / "both", *given)
    assert code == 0, err
    limit = json.loads((tmp_path / "policy" / "result.json").read_text())["limit"]
    assert f"How far to optimize: {limit['says']}" in table and limit["says"] in out
    assert "asking the comparisons how far to go" in err
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["limit"] == limit  # a resumed one keeps it
    code, out, _ = told("distill", run / "alone", *given[:-1], tmp_path / "other")
    assert code == 0 and "higher rewards" not in out
    assert json.loads((tmp_path / "other" / "result.json").read_text())["limit"] is None


def test_a_policy_beyond_what_people_agree_with():
    trace = pd.DataFrame({"step": [0, 1, 2, 3], "kl": [0.0, 0.4, 1.6, 2.5]})
    (said,) = beyond(Limit(kl=1.5, says="Stop."), trace)
    assert said.startswith("over-optimized: from step 2 on") and "a KL of 1.50 nats, and ends at 2.50" in said
    for limit in (None, Limit(kl=None, says="No alarm."), Limit(kl=2.6, says="Stop.")):
        assert beyond(limit, trace) == []
    assert beyond(Limit(kl=1.5, says="Stop."), pd.DataFrame({"step": [0], "objective": [1.0]})) == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "held nothing out"),
        (["--table", "prices"], "choose one of prediction"),
        (["--table", "estimates", "--format", "xml"], "choose one of text"),
        (["--table", "bootstrap", "--by", "bus"], "choose datum"),
        (["--table", "sources"], "one source only"),
    ],
)
def test_refusals_are_sentences(run, told, given, sentence):
    code, out, err = told("evaluate", run / "alone", *given)
    assert code == 2 and sentence in err and out == "" and "Traceback" not in err


def test_everybody_has_a_temperature(run, told):
    """Two mechanics answer the same questions, one of them by chance: his temperature is the higher one."""
    lines = [json.loads(line) for line in (run / "pairs.jsonl").read_text().splitlines()]
    rows = [{**{k: v for k, v in row.items() if k != "id"}, "person": "sure"} for row in lines]
    rows += [{**row, "person": "erratic", "chosen": k % 2} for k, row in enumerate(rows)]
    (run / "persons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--choices", run / "persons.jsonl", "--features", run / "features.csv", "--no-report"]
    given += ["--transitions", run / "transitions.csv", "--temperature-by", "person", "--out", run / "persons"]
    code, out, err = told("fit", *given)
    assert code == 0, err
    found = json.loads((run / "persons" / "result.json").read_text())["temperature"]
    assert set(found) == {"comparisons: sure", "comparisons: erratic"}
    assert found["comparisons: sure"] == 1 and found["comparisons: erratic"] > 2
    code, out, err = told("evaluate", run / "persons", run / "persons.jsonl")
    assert code == 0 and "comparisons: erratic" in out, err
