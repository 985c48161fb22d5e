"""The demos say what they claim to say, in quick mode."""

import pytest

from irlhf.demos import lineup

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
