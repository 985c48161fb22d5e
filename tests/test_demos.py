"""The demos say what they claim to say, in quick mode."""

import importlib.util
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from irlhf.demos import icu, lineup
from irlhf.demos.sepsis import INSTALL, load
from irlhf.errors import ConfigError
from irlhf.randomness import Key

KINDS = ("demonstrations", "comparisons", "rankings", "ratings")


@pytest.fixture(scope="module")
def lined_up():
    return lineup.main(quick=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", ["explicit", "implicit"])
def test_every_cell_is_the_fields_own_objective(lined_up, kind, column):
    assert lined_up[f"{kind}.{column}.difference"] < 1e-8
    assert lined_up[f"{kind}.{column}.irlhf"] < 0


@pytest.mark.parametrize("kind", KINDS)
def test_distilling_a_reward_reaches_log_z_and_the_distribution_of_irl(lined_up, kind):
    assert lined_up[f"{kind}.distilled"] == pytest.approx(lined_up[f"{kind}.log_z"], abs=1e-9)
    assert abs(lined_up[f"{kind}.kl_to_irl"]) < 1e-10
    assert abs(lined_up[f"{kind}.kl_to_implicit"]) < 1e-10
    assert lined_up[f"{kind}.street.irlhf"] == pytest.approx(lined_up[f"{kind}.implicit.irlhf"], abs=1e-8)


@pytest.mark.parametrize("name", lineup.TRUE)
def test_the_fits_of_the_lineup_surround_the_truth(lined_up, name):
    for kind in (*KINDS, "together"):
        z = (lined_up[f"{name}.{kind}"] - lined_up[f"{name}.true"]) / lined_up[f"{name}.{kind}.se"]
        assert abs(z) < 4
        assert lined_up[f"{name}.together.se"] <= lined_up[f"{name}.{kind}.se"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("icu")


@pytest.fixture(scope="module")
def clinic(folder):
    if importlib.util.find_spec("icu_sepsis") is None:
        pytest.skip(f"the package icu-sepsis is not installed: {INSTALL}")
    return icu.main(quick=True, report=folder / "report.html")


def test_both_sources_of_the_clinic_agree_where_both_see(clinic, folder):
    assert clinic["comparisons.directions"] == 10  # of 11: neither sees shaping
    assert clinic["comparisons.correlation"] > 0.9
    assert clinic["comparisons.explains stays"] > 0.7 * clinic["demonstrations.explains stays"] > 0.15
    assert clinic["demonstrations.explains pairs"] > 0.7 * clinic["comparisons.explains pairs"] > 0.15
    assert clinic["survival only.explains stays"] < 0.1 * clinic["both.explains stays"]
    assert "not medical advice" in (folder / "report.html").read_text()


def test_shuffled_comparisons_do_not_agree(clinic):
    assert clinic["shuffled.correlation"] < 0.7
    assert clinic["shuffled.wald"] > 3 * clinic["comparisons.wald"]
    assert clinic["shuffled.explains stays"] < 0.2 * clinic["comparisons.explains stays"]
    assert clinic["as sums.explains stays"] < 0.5 * clinic["comparisons.explains stays"]


def test_together_the_sources_are_surer_than_each_alone(clinic):
    names = [k.removeprefix("both.").removesuffix(".se") for k in clinic if k.startswith("both.") and k.endswith(".se")]
    seen = [name for name in names if name != "SOFA change"]
    assert len(seen) == 10
    assert np.isinf([clinic[f"{source}.SOFA change.se"] for source in icu.REWARDS]).all()
    for name in seen:
        alone = min(clinic[f"demonstrations.{name}.se"], clinic[f"comparisons.{name}.se"])
        assert clinic[f"both.{name}.se"] <= alone


def test_survival_in_the_clinic_is_what_was_published(clinic):
    assert clinic["policy random.survival"] == pytest.approx(0.780, abs=5e-4)
    assert clinic["policy clinicians.survival"] == pytest.approx(0.782, abs=5e-4)
    assert clinic["policy optimal.survival"] == pytest.approx(0.875, abs=5e-4)


def test_the_lineup_is_the_same_for_the_same_seed(lined_up):
    assert lineup.main(quick=True) == lined_up
    assert lineup.main(quick=True, seed=1) != lined_up


def test_what_the_clinic_observes_is_the_same_for_the_same_seed(clinic):
    sepsis = load()
    stays, pairs = icu.observe(sepsis, 20, Key(3).numpy())
    again, again_pairs = icu.observe(sepsis, 20, Key(3).numpy())
    assert list(stays) == list(again)
    assert list(pairs) == list(again_pairs)
    other, _ = icu.observe(sepsis, 20, Key(4).numpy())
    assert list(stays) != list(other)


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape(INSTALL)) as error:
        icu.main(quick=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["both", "replacement", "routes"])
def test_a_recipe_runs_and_finds_its_taste(name, capsys):
    if name == "routes":
        pytest.importorskip("networkx")
    found = runpy.run_path(str(Path(__file__).parents[1] / "recipes" / f"{name}.py"))
    assert "Converged" in capsys.readouterr().out
    true = {
        "both": {"length": -1.0, "trees": 0.8},
        "replacement": {"RC": 9.0, "maintenance": 3.0},
        "routes": {"length": -2.0, "main road": -0.7},
    }[name]
    estimate, error = found["fit"].params, found["fit"].standard_errors()
    assert all(abs(estimate[k] - value) < 3 * error[k] for k, value in true.items())
    assert all(error[k] < 0.3 * abs(value) for k, value in true.items())
