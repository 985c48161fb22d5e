"""Counterfactuals: each number by solving the changed world anew, each error by differences."""

import numpy as np
import pandas as pd
import pytest
import torch

from irlhf import Term, comparisons, demonstrations, exact, fit_reward, listed
from irlhf.errors import ConfigError
from irlhf.worlds.tabular import (
    Features,
    Linear,
    Path,
    Start,
    changed,
    features,
    from_table,
    sample_paths,
    whatif,
)
from tests.worlds.problems import diamond, random_world, replacement


def fitted(world, columns, theta, starts, steps=20, seed=0):
    truth = Linear(columns, theta)
    log_policy = world.solve(truth).log_policy[0].detach()
    paths = sample_paths(world, log_policy, starts, max_steps=steps, seed=seed)
    return fit_reward(Linear(columns), Term(demonstrations([None] * len(starts), paths), exact(world)))


def by_differences(fit, value, h=1e-5):
    """Standard errors of a vector of numbers: ``sqrt(diag(G V G'))`` with G by central differences."""
    theta = fit.theta.numpy()
    columns = []
    for k in range(len(theta)):
        up, down = theta.copy(), theta.copy()
        up[k] += h
        down[k] -= h
        columns.append((value(up) - value(down)) / (2 * h))
    g = np.stack(columns, 1)
    return np.sqrt(np.diag(g @ fit.covariance().to_numpy() @ g.T))


@pytest.mark.parametrize("how", ["discount", "transitions", "forbid", "parameters", "features"])
def test_every_change_against_a_solution_of_its_own(how):
    world, columns = replacement(8, 0.9)
    fit = fitted(world, columns, [2.0, 3.0], [0, 3] * 50)
    given, other, moved, table = {}, world, fit.theta.numpy(), columns
    if how == "discount":
        other = changed(world, discount=0.5)
    elif how == "transitions":
        rows = world.outcome_table()
        rows["probability"] = rows["probability"] ** 2
        rows["probability"] /= rows.groupby(["state", "action"])["probability"].transform("sum")
        other = changed(world, transitions=rows)
    elif how == "forbid":
        other = changed(world, forbid=[(s, 1) for s in range(4)])
    elif how == "parameters":
        given, moved = {"parameters": {"cost": lambda x: 1.5 * x, "replace": 2.0}}, np.array([1.5 * moved[0], 2.0])
    else:
        table = Features(columns.values * torch.tensor([1.0, 0.8]).double(), columns.names, columns.on)
        given = {"features": table}
    found = whatif(fit, world=None if other is world else other, **given)

    def after(theta):
        theta = np.array([1.5 * theta[0], 2.0]) if how == "parameters" else theta
        with torch.no_grad():
            solution = other.solve(Linear(table, theta))
            policy = solution.log_policy[0].exp().numpy()
            t = other.transitions
            choose = np.zeros((8, t.n_pairs))
            choose[t.state, np.arange(t.n_pairs)] = policy
            start = np.bincount([0, 3], minlength=8) / 2
            visits = np.linalg.solve(np.eye(8) - other.discount * (choose @ t.matrix.toarray()).T, start)
            values = solution.values[0].numpy()
            return np.concatenate([policy, visits[t.state] * policy, visits, values[[0, 3]], [values[[0, 3]].mean()]])

    told = np.concatenate([x["after"] for x in (found.policy, found.flows, found.visits, found.welfare)])
    np.testing.assert_allclose(told, after(fit.theta.numpy()), atol=1e-10)
    errors = np.concatenate([x["std. error"] for x in (found.policy, found.flows, found.visits, found.welfare)])
    np.testing.assert_allclose(errors, by_differences(fit, after), rtol=1e-5, atol=1e-8)
    assert moved is not None
    for table in found.tables.values():
        np.testing.assert_allclose(table["change"], table["after"] - table["before"], atol=1e-12)
        np.testing.assert_allclose(
            table["lower 95%"], table["after"] - 1.959963984540054 * table["std. error"], atol=1e-12
        )


def test_simulation_agrees_with_the_delta_method():
    world, columns = replacement(8, 0.9)
    fit = fitted(world, columns, [2.0, 3.0], [0, 3] * 200)
    other = changed(world, discount=0.5)
    delta, drawn = (whatif(fit, world=other, money="cost", draws=n) for n in (None, 400))
    for name in ("policy", "flows", "visits", "welfare"):
        a, b = delta.tables[name], drawn.tables[name]
        large = a["change: std. error"] > 1e-3
        ratio = (b["change: std. error"] / a["change: std. error"])[large]
        assert (
            large.any() and (ratio - 1).abs().max() < 0.15
        )  # 5 standard errors of a deviation of 2,000, and curvature
    cost = fit.params["cost"]
    np.testing.assert_allclose(delta.welfare["change in cost"], delta.welfare["change"] / cost)
    assert "draws" in drawn.how and "delta" in delta.how


def test_what_a_network_would_see_without_a_link():
    network, truth = diamond()
    log_policy = network.solve(truth, [5]).log_policy.detach()
    paths = sample_paths(network, log_policy, [0] * 300, destinations=[5] * 300, max_steps=20, seed=1)
    fit = fit_reward(Linear(truth.features), Term(demonstrations([5] * 300, paths), exact(network)))
    found = whatif(fit, world=changed(network, forbid=[(3, 5)]), money="toll")
    gone = found.flows.loc[(3, 5)]
    assert gone["before"] > 0.05 and gone["after"] == 0.0 and gone["std. error"] == 0.0
    assert found.flows["after"].to_numpy()[found.flows.index.get_level_values("action") == 5].sum() == pytest.approx(
        1.0
    )
    assert found.welfare.loc["0 to 5", "change"] < 0
    assert found.policy.index.names == ["destination", "state", "action"]
    assert (found.visits["before"] <= 1 + 1e-9).all()
    alone = whatif(fit, world=changed(network, forbid=[(3, 5)]), starts=[Start(2, 5)])
    assert list(alone.welfare.index) == ["2 to 5", "on average"]


def test_a_horizon_has_a_policy_for_every_time():
    world, columns = random_world(0, n_states=4, n_actions=2, discount=0.9, horizon=3)
    fit = fitted(world, columns, [1.0, -0.5, 0.3], [0, 1, 2, 3] * 40, steps=3)
    found = whatif(fit, world=changed(world, horizon=3, discount=0.5))
    assert found.policy.index.names == ["time", "state", "action"] and len(found.policy) == 3 * 8
    assert found.visits["before"].sum() == pytest.approx(1 + 0.9 + 0.81)
    assert found.visits["after"].sum() == pytest.approx(1 + 0.5 + 0.25)


def test_what_is_identified_keeps_its_interval_where_parameters_do_not():
    """Pure shaping is never seen: its parameter has an infinite error, the policy that follows a finite one."""
    world, columns = random_world(1, n_states=4, n_actions=2, discount=0.9)
    t, potential = world.transitions, np.array([0.3, -1.0, 2.0, 0.5])
    shaping = 0.9 * (t.matrix @ potential) - potential[t.state]
    both = Features(
        torch.cat([columns.values, torch.from_numpy(shaping)[:, None]], 1), (*columns.names, "shaping"), "pairs"
    )
    fit = fitted(world, both, [1.0, -0.5, 0.3, 0.0], [0, 1, 2, 3] * 60)
    plain = fitted(world, columns, [1.0, -0.5, 0.3], [0, 1, 2, 3] * 60)
    assert fit.status.name == "UNIDENTIFIED" and np.isinf(fit.standard_errors()["shaping"])
    other, same = (whatif(f, world=changed(world, forbid=[(0, 1)])) for f in (fit, plain))
    np.testing.assert_allclose(other.policy["std. error"], same.policy["std. error"], rtol=1e-4, atol=1e-9)
    assert np.isinf(other.welfare["std. error"]).all()  # values move with the potential


def test_what_cannot_be_asked():
    world, columns = replacement(6, 0.9)
    fit = fitted(world, columns, [2.0, 3.0], [0] * 30)
    with pytest.raises(ConfigError, match="nothing is changed"):
        whatif(fit)
    with pytest.raises(ConfigError, match="'fly'"):
        changed(world, forbid=["fly"])
    with pytest.raises(ConfigError, match="in state 77"):
        changed(world, forbid=[(77, 1)])
    with pytest.raises(ConfigError, match="without any action"):
        changed(world, forbid=[(2, 0), (2, 1)])
    with pytest.raises(ConfigError, match="no parameter 'toll'"):
        whatif(fit, parameters={"toll": 1.0})
    rows = world.outcome_table()
    extra = pd.concat([rows, pd.DataFrame({"state": [0], "action": [7], "next_state": [0], "probability": [1.0]})])
    with pytest.raises(ConfigError, match="says nothing about it"):
        changed(world, transitions=extra)
    with pytest.raises(ConfigError, match="other states"):
        whatif(fit, world=from_table(rows[rows.state < 3].assign(next_state=0), discount=0.9))
    with pytest.raises(ConfigError, match="in this order"):
        whatif(fit, features=features(world, columns.values[:, :1].numpy(), names=["x"]))
    fewer = changed(world, transitions=rows[~((rows.state == 1) & (rows.action == 1))])
    assert np.isneginf(fewer.log_base_of_pair.numpy()).sum() == 1


def test_comparisons_alone_have_counterfactuals_too():
    world, columns = replacement(6, 0.9)
    paths = [Path([k % 6, 0], [1]) if k % 2 else Path([k % 6, min(5, k % 6 + 1)], [0]) for k in range(12)]
    rows = comparisons([None] * 6, paths[:6], paths[6:], [0, 1, 1, 0, 1, 0])
    fit = fit_reward(Linear(columns), Term(rows, listed(world)), prior=None, fixed={"cost": 1.0})
    found = whatif(fit, world=changed(world, discount=0.5), starts=[0, 1])
    assert list(found.welfare.index) == ["0", "1", "on average"]
