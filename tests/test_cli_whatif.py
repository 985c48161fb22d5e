"""``irlhf whatif`` as a user runs it."""

import io
import json

import pandas as pd
import pytest

from tests.cli_data import irlhf, write_replacement, write_routes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whatif")
    write_replacement(folder)
    write_routes(folder)
    panel = ["--panel", folder / "panel.csv", "--features", folder / "features.csv"]
    code = irlhf("fit", *panel, "--transitions", folder / "transitions.csv", "--discount", "0.9", "--no-report",
                     "--out", folder / "buses")  # fmt: skip
    assert code == 0
    code = irlhf("fit", "--panel", folder / "trips.csv", "--features", folder / "links.csv", "--destinations",
                     "--no-report", "--out", folder / "trips")  # fmt: skip
    assert code == 0
    return folder


def table(text):
    return pd.read_csv(io.StringIO(text))


def test_a_table_as_csv_json_latex_and_on_the_screen(runs, told, tmp_path):
    asked = ["whatif", runs / "buses", "--scale", "replace=1.5", "--money", "mileage"]
    code, out, _ = told(*asked)
    assert code == 0 and "Welfare" in out and "change in mileage" in out and "delta method" in out
    code, out, _ = told(*asked, "--table", "policy", "--format", "csv")
    policy = table(out)
    sums = policy.groupby("state")["after"].sum()
    assert code == 0 and (sums - 1).abs().max() < 1e-9 and (policy["std. error"] > 0).all()
    code, out, _ = told(*asked, "--format", "json", "--table", "welfare")
    plain = json.loads(out)
    assert plain["errors"] == "inverse Hessian, delta method" and plain["welfare"][-1]["index"] == "on average"
    assert plain["welfare"][-1]["change"] < 0
    code, out, _ = told(*asked, "--table", "visits", "--format", "latex")
    assert out.startswith("\\begin{tabular}") and "\\toprule" in out and "std. error" in out
    code, *_ = told(*asked, "--out", tmp_path / "tables")
    assert code == 0 and {f.name for f in (tmp_path / "tables").iterdir()} == {
        "welfare.csv", "policy.csv", "flows.csv", "visits.csv"
    }  # fmt: skip


def test_clusters_and_simulation_are_named(runs, told):
    asked = ["whatif", runs / "buses", "--discount", "0.5"]
    assert "sandwich, clustered by person, delta method" in told(*asked, "--cluster", "person")[1]
    assert "opg" not in told(*asked)[1]
    assert "20 draws of the parameters" in told(*asked, "--draws", "20")[1]


def test_a_link_that_is_closed(runs, told):
    links = pd.read_csv(runs / "trips.csv")
    link = links.groupby(["state", "action"]).size().idxmax()
    code, out, err = told("whatif", runs / "trips", "--forbid", f"{link[0]}:{link[1]}", "--table", "flows", "--format",
                           "csv")  # fmt: skip
    assert code == 0, err
    flows = table(out).set_index(["state", "action"])
    assert flows.loc[link, "after"] == 0 and flows.loc[link, "before"] > 0
    code, _, err = told("whatif", runs / "trips", "--forbid", f"{link[0]}:{link[1]}", "--start", "0")
    assert code == 2 and "STATE:DESTINATION" in err


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "nothing is changed"),
        (["--set", "replace"], "not NAME=NUMBER"),
        (["--set", "tolls=1"], "no parameter 'tolls'"),
        (["--set", "replace=1", "--scale", "replace=2"], "keep one"),
        (["--forbid", "fly"], "no action 'fly'"),
        (["--discount", "1"], "never ends"),
        (["--discount", "0.5", "--table", "prices"], "choose one of welfare"),
        (["--discount", "0.5", "--format", "xml"], "choose one of text"),
        (["--discount", "0.5", "--start", "99"], "99 is not a state"),
        (["--features", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_refusals_are_sentences(runs, told, given, sentence):
    code, out, err = told("whatif", runs / "buses", *given)
    assert code == 2 and sentence in err and "Traceback" not in err and out == ""
