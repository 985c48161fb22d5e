"""Fits: gradients by differences, standard errors by hand, bounds, priors, separation, what is not identified."""

import numpy as np
import pytest
import torch

from irlhf import (
    LBFGS,
    TIE,
    Choice,
    Feedback,
    Newton,
    Normal,
    Source,
    Status,
    Term,
    TorchOptimizer,
    comparisons,
    davidson,
    demonstrations,
    exact,
    fit_reward,
    listed,
    rankings,
    rao_kupper,
    ratings,
)
from irlhf.errors import ConfigError, NonFiniteError
from irlhf.objective import Objective
from irlhf.worlds.tabular import Features, Linear, Neural, Path, Tabular, features, sample_paths
from tests.worlds.problems import diamond, random_world, replacement


def buses(n: int = 30, steps: int = 60, seed: int = 1):
    world, columns = replacement()
    policy = world.solve(Linear(columns, [1.5, 4.0])).log_policy.detach()
    paths = sample_paths(world, policy, [0] * n, max_steps=steps, seed=seed)
    return world, columns, demonstrations(None, paths, persons=[f"bus {i // 2}" for i in range(n)])


def everything(seed: int = 0):
    """One reward, every kind of feedback about it, ties and all."""
    world, columns = random_world(seed, discount=0.9)
    rng = np.random.default_rng(seed)
    policy = world.solve(Linear(columns, [0.0, 0.0, 0.0])).log_policy.detach()
    paths = list(sample_paths(world, policy, [0] * 60, max_steps=6, seed=seed))
    people = [f"p{i % 7}" for i in range(60)]
    tied = comparisons([None] * 20, paths[:20], paths[20:40], [0, 1, TIE, 0, 1] * 4, persons=people[:20])
    ranked = rankings([None] * 10, [paths[3 * i : 3 * i + 3] for i in range(10)], persons=people[:10])
    rated = ratings([None] * 60, paths, rng.integers(0, 3, 60), levels=3, persons=people)
    shown = demonstrations(None, paths[:30], persons=people[:30], weights=rng.integers(1, 3, 30).astype(float))
    terms = [
        Term(shown, exact(world), Source()),
        Term(tied, listed(world), Source(fit_temperature=True, ties=davidson())),
        Term(ranked, listed(world), Source(temperature=2.0)),
        Term(rated, listed(world), Source(fit_temperature=True)),
    ]
    return Linear(columns, [0.3, -0.2, 0.1]), terms


@pytest.mark.parametrize("kind", ["causal", "weighted"])
def test_gradient_scores_and_hessian_are_derivatives_of_the_public_log_likelihood(kind):
    reward, terms = everything()
    if kind == "weighted":
        terms[0] = Term(terms[0].feedback, exact(terms[0].likelihood.world, kind="weighted"))
    problem = Objective(reward, terms, prior=Normal(sd=2.0))
    theta = problem.start + 0.1 * torch.randn(len(problem.start), generator=torch.Generator().manual_seed(0)).double()

    def public(point):
        problem.assign(point.detach())
        total = problem.prior.log_density(point[torch.from_numpy(problem.is_reward)])
        for term in terms:
            total = total + (term.log_prob(reward) * term.row_weight).sum()
        return float(total.detach())

    step = 1e-5
    eye = torch.eye(len(theta), dtype=torch.float64)
    differences = torch.tensor([(public(theta + step * e) - public(theta - step * e)) / (2 * step) for e in eye])
    _, gradient = problem.value_and_gradient(theta)
    torch.testing.assert_close(gradient, differences.double(), rtol=1e-7, atol=1e-7)
    hessian, scores = problem.derivatives(theta)
    summed = sum((g * w[:, None]).sum(0) for g, w in zip(scores, problem.unit_weights(), strict=True))
    prior_slope = torch.where(torch.from_numpy(problem.is_reward), -theta / 4.0, 0.0)
    torch.testing.assert_close(summed + prior_slope, gradient, rtol=1e-10, atol=1e-10)
    columns = [
        (problem.value_and_gradient(theta + step * e)[1] - problem.value_and_gradient(theta - step * e)[1]) / (2 * step)
        for e in eye
    ]
    torch.testing.assert_close(hessian, torch.stack(columns), rtol=1e-6, atol=1e-6)


def _term(case: str):
    """Demonstrations that a solver explains: one term for each way in which worlds and likelihoods differ."""
    if case == "destinations":
        world, reward = diamond()
        paths = [Path((0, 1, 3, 5), (1, 3, 5)), Path((1, 2, 4), (2, 4))]
        weights = np.array([2.0, 0.5])
        return reward, Term(demonstrations([5, 4], paths, weights=weights), exact(world), Source(0.7), weight=1.5)
    kind, _, ends = case.partition(", ")
    options = {"stationary": {"discount": 0.9}, "horizon": {"discount": 0.8, "horizon": 5}}[ends]
    world, columns = random_world(3, **options)
    with torch.no_grad():
        policy = world.solve(Linear(columns, [0.0, 0.0, 0.0])).log_policy
    paths = sample_paths(world, policy, [0, 1, 2, 3] * 3, max_steps=5, seed=1)
    shown = demonstrations(None, paths, weights=np.linspace(0.5, 2.0, 12))
    reward = Neural(columns, hidden=(2,)) if kind == "neural" else Linear(columns, [0.3, -0.2, 0.1])
    return reward, Term(shown, exact(world, kind="causal" if kind == "neural" else kind), Source(0.7), weight=1.5)


CASES = ["destinations"] + [
    f"{kind}, {ends}" for kind in ("causal", "weighted", "anticipative", "neural") for ends in ("stationary", "horizon")
]
CASES.remove("anticipative, stationary")  # needs a base measure that sums to one


@pytest.mark.parametrize("case", CASES)
def test_counts_and_tangents_are_the_sums_and_derivatives_of_the_factors(case):
    reward, term = _term(case)
    direct = (term.unit_log_prob(reward) * term.row_weight[term.unit_row]).sum()
    torch.testing.assert_close(term.total(reward), direct, rtol=1e-12, atol=1e-12)
    problem = Objective(reward, [term])
    theta, step = problem.start, 1e-5
    eye = torch.eye(len(theta), dtype=torch.float64)
    hessian, (scores,) = problem.derivatives(theta)
    columns = [
        (problem.value_and_gradient(theta + step * e)[1] - problem.value_and_gradient(theta - step * e)[1]) / (2 * step)
        for e in eye
    ]
    torch.testing.assert_close(hessian, torch.stack(columns), rtol=1e-6, atol=1e-7)
    slopes = [
        (problem.unit_log_probs(theta + step * e)[0] - problem.unit_log_probs(theta - step * e)[0]) / (2 * step)
        for e in eye
    ]
    torch.testing.assert_close(scores, torch.stack(slopes, 1), rtol=1e-6, atol=1e-8)


def test_all_optimizers_arrive_at_the_same_maximum():
    world, columns, feedback = buses()
    found = {}
    for name, optimizer in {
        "newton": Newton(),
        "lbfgs": LBFGS(),
        "lbfgs alone": LBFGS(tolerance=1e-12, newton=0),
        "adam": TorchOptimizer(lambda p: torch.optim.Adam(p, lr=0.1), max_steps=600),
    }.items():
        fit = fit_reward(Linear(columns), Term(feedback, exact(world)), optimizer=optimizer)
        found[name] = fit.params
        assert fit.status is (Status.BUDGET if name == "adam" else Status.CONVERGED)
    for name, params in found.items():
        tolerance = 1e-3 if name == "adam" else 1e-5 if name == "lbfgs alone" else 1e-8
        np.testing.assert_allclose(params, found["newton"], rtol=tolerance, err_msg=name)


def test_the_maximum_is_one_by_an_independent_grid():
    world, columns, feedback = buses()
    term = Term(feedback, exact(world))
    fit = fit_reward(Linear(columns), term)
    best = term.log_prob(Linear(columns, fit.params.to_numpy())).sum()
    for change in ([0.01, 0], [-0.01, 0], [0, 0.01], [0, -0.01], [0.01, 0.01]):
        assert term.log_prob(Linear(columns, fit.params.to_numpy() + np.array(change))).sum() < best


def test_three_kinds_of_standard_errors_by_hand():
    world, columns, feedback = buses()
    term = Term(feedback, exact(world))
    fit = fit_reward(Linear(columns), term)
    theta, step = fit.theta, 1e-5

    def steps(point):
        return term.unit_log_prob(Linear(columns, point)).detach()

    eye = torch.eye(2, dtype=torch.float64)
    scores = torch.stack([(steps(theta + step * e) - steps(theta - step * e)) / (2 * step) for e in eye], 1)
    problem = Objective(Linear(columns), [term])
    slope = [
        problem.value_and_gradient(theta + step * e)[1] - problem.value_and_gradient(theta - step * e)[1] for e in eye
    ]
    hessian = torch.stack(slope) / (2 * step)
    bread = torch.linalg.inv(-hessian)
    meat = scores.T @ scores

    def check(kind, cluster, expected):
        ours = fit.covariance(kind, cluster=cluster).to_numpy()
        np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-6, err_msg=f"{kind} {cluster}")

    check("hessian", None, bread)
    check("opg", None, torch.linalg.inv(meat))
    check("sandwich", None, bread @ meat @ bread)
    for cluster, of_row in (("person", torch.arange(30) // 2), ("datum", torch.arange(30))):
        group = of_row[term.unit_row]
        summed = torch.zeros(int(group.max()) + 1, 2, dtype=torch.float64).index_add(0, group, scores)
        check("opg", cluster, torch.linalg.inv(summed.T @ summed))
        check("sandwich", cluster, bread @ (summed.T @ summed) @ bread)


def test_a_weight_of_two_is_two_rows_and_a_term_split_in_two_is_the_same_fit():
    world, columns, feedback = buses(n=10)
    heavy = Feedback.of(
        Choice(c.context, c.shown, c.chosen, weight=2.0 if k < 4 else 1.0, person=c.person, id=str(k))
        for k, c in enumerate(feedback)
    )
    repeated = feedback + feedback[:4]
    fits = [
        fit_reward(Linear(columns), Term(heavy, exact(world))),
        fit_reward(Linear(columns), Term(repeated, exact(world))),
        fit_reward(Linear(columns), [Term(feedback, exact(world), name="all"), Term(feedback[:4], exact(world))]),
    ]
    for other in fits[1:]:
        np.testing.assert_allclose(other.params, fits[0].params, rtol=1e-8)
        for kind, cluster in (("hessian", None), ("opg", None), ("sandwich", "person")):
            ours, theirs = fits[0].standard_errors(kind, cluster=cluster), other.standard_errors(kind, cluster=cluster)
            np.testing.assert_allclose(ours, theirs, rtol=1e-7)


def test_fixed_bounded_and_started():
    world, columns, feedback = buses()
    term = Term(feedback, exact(world))
    free = fit_reward(Linear(columns), term)
    held = fit_reward(Linear(columns), term, fixed={"cost": 1.0})
    assert held.params["cost"] == 1.0 and held.standard_errors()["cost"] == 0.0
    assert held.objective < free.objective
    top = free.params["replace"] - 0.5
    for optimizer in (Newton(), LBFGS()):
        bounded = fit_reward(Linear(columns), term, bounds={"replace": (None, top)}, optimizer=optimizer)
        assert bounded.params["replace"] == pytest.approx(top, abs=1e-12)
        same = fit_reward(Linear(columns), term, fixed={"replace": top})
        assert bounded.params["cost"] == pytest.approx(same.params["cost"], rel=1e-6)
    again = fit_reward(Linear(columns), term, start=free.params.to_dict())
    assert len(again.trace) <= 3
    with pytest.raises(ConfigError, match=r"no parameter 'costs'.*cost, replace"):
        fit_reward(Linear(columns), term, fixed={"costs": 1.0})


def test_a_prior_is_ridge():
    world, columns, feedback = buses()
    fit = fit_reward(Linear(columns), Term(feedback, exact(world)), prior=Normal(sd=0.5, mean=1.0))
    problem = Objective(Linear(columns), [Term(feedback, exact(world))])
    _, gradient = problem.value_and_gradient(fit.theta)
    torch.testing.assert_close(gradient, (fit.theta - 1.0) / 0.25, rtol=1e-6, atol=1e-6)


def test_separation_is_said_and_a_prior_cures_it():
    world, columns = random_world(3, discount=0.9)
    paths = list(sample_paths(world, np.full(18, np.log(1 / 3)), [0] * 8, max_steps=5, seed=0))
    returns = Linear(columns, [1.0, 0.0, 0.0])(world.collate([None] * 8, paths)).tolist()
    better = [int(returns[2 * i] < returns[2 * i + 1]) for i in range(4)]
    feedback = comparisons([None] * 4, paths[0::2], paths[1::2], better)
    term = Term(feedback, listed(world))
    for optimizer in (Newton(), LBFGS()):
        fit = fit_reward(Linear(columns), term, optimizer=optimizer)
        assert fit.status is Status.SEPARATED
        assert "prior" in str(fit.status)
        assert np.isinf(fit.standard_errors()).any()
    cured = fit_reward(Linear(columns), term, prior=Normal(sd=1.0))
    assert cured.status is Status.CONVERGED and np.isfinite(cured.standard_errors()).all()


def test_what_is_not_identified_has_infinite_intervals_and_is_named():
    world, columns, feedback = buses()
    doubled = Features(torch.cat([columns.values, columns.values[:, :1]], 1), ("cost", "replace", "again"), "pairs")
    fit = fit_reward(Linear(doubled), Term(feedback, exact(world)))
    assert fit.status is Status.UNIDENTIFIED
    for kind in ("hessian", "opg", "sandwich"):
        errors = fit.standard_errors(kind)
        assert np.isinf(errors[["cost", "again"]]).all() and np.isfinite(errors["replace"])
    assert set(fit.unidentified[0]) == {"cost", "again"}
    assert fit.unidentified[0]["cost"] == pytest.approx(-fit.unidentified[0]["again"], rel=1e-6)
    single = fit_reward(Linear(columns), Term(feedback, exact(world)))
    assert fit.params["cost"] + fit.params["again"] == pytest.approx(single.params["cost"], rel=1e-6)
    assert fit.standard_errors()["replace"] == pytest.approx(single.standard_errors()["replace"], rel=1e-6)


def test_a_tabular_reward_is_known_up_to_its_gauge_only():
    world, _, feedback = buses(n=200, steps=30)
    fit = fit_reward(Tabular(world, on="pairs"), Term(feedback, exact(world)), prior=Normal(sd=3.0))
    assert fit.status is Status.CONVERGED
    flat = fit_reward(Tabular(world, on="states"), Term(feedback, exact(world)))
    assert flat.status in (Status.UNIDENTIFIED, Status.SEPARATED)


def test_a_neural_reward_fits_better_than_its_linear_part():
    world, _, feedback = buses()
    curved = features(world, np.sin(np.arange(40.0))[:, None] * np.ones((1, 2)), names=["sin", "twice"])
    term = Term(feedback, exact(world))
    linear = fit_reward(Linear(curved), term)
    network = Neural(curved, hidden=(8,), seed=1)
    neural = fit_reward(network, term, optimizer=LBFGS(max_steps=60))
    assert neural.objective > linear.objective + 1.0
    again = fit_reward(Neural(curved, hidden=(8,), seed=1), term, optimizer=LBFGS(max_steps=60))
    assert torch.equal(again.theta, neural.theta)


class Poisoned(Linear):
    """A reward that is not a number for one state, from the second evaluation on."""

    calls = 0
    value = float("nan")

    def step(self, batch):
        type(self).calls += 1
        per_step = super().step(batch)
        return torch.where(batch.state == 3, self.value, per_step) if type(self).calls > 3 else per_step


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("optimizer", [Newton(), LBFGS(), TorchOptimizer(lambda p: torch.optim.Adam(p), max_steps=9)])
def test_a_value_that_is_not_finite_never_reaches_the_parameters(value, optimizer):
    world, columns, feedback = buses(n=6)
    reward = Poisoned(columns, [0.1, 0.2])
    Poisoned.calls, Poisoned.value = 0, value
    seen = []
    with pytest.raises((NonFiniteError, ArithmeticError, Exception)) as caught:
        fit_reward(
            reward,
            Term(feedback, exact(world)),
            optimizer=optimizer,
            progress=lambda _: seen.append(reward.theta.clone()),
        )
    assert "not finite" in str(caught.value) or "infin" in str(caught.value)
    assert torch.isfinite(reward.theta).all()
    if seen:
        assert torch.equal(reward.theta, seen[-1])


def test_the_temperature_of_a_source_is_found_and_one_must_stay_fixed():
    reward, terms = everything()
    fit = fit_reward(reward, terms)
    assert {"comparisons.log_temperature", "comparisons.ties.log_nu", "ratings.thresholds[0]"} <= set(fit.params.index)
    with pytest.raises(ConfigError, match="temperature of one source fixed"):
        fit_reward(reward, terms[1])


def test_ties_by_both_models_and_refused_without():
    reward, terms = everything()
    tied, world = terms[1].feedback, terms[1].likelihood.world
    for model in (davidson(), rao_kupper()):
        fit = fit_reward(Linear(reward.features), Term(tied, listed(world), Source(ties=model)))
        assert fit.status is Status.CONVERGED
    with pytest.raises(ConfigError, match="is a tie"):
        Term(tied, listed(world))


def test_what_people_call_the_parameters_of_a_source():
    """T, nu and theta with standard errors by the delta method, here by hand from the covariance."""
    reward, terms = everything()
    fit = fit_reward(reward, terms)
    shown = fit.derived("sandwich", cluster="person")
    assert list(shown.index) == ["comparisons.temperature", "comparisons.ties.nu", "ratings.temperature"]
    errors, table = fit.standard_errors("sandwich", cluster="person"), fit.table("sandwich", cluster="person")
    for name, raw in (("comparisons.temperature", "comparisons.log_temperature"), ("comparisons.ties.nu",) * 2):
        raw = raw.replace(".nu", ".log_nu")
        value = np.exp(fit.params[raw])
        assert shown.loc[name].tolist() == pytest.approx(
            [value, value * errors[raw], *np.exp(table.loc[raw].iloc[-2:])], rel=1e-12
        )
    assert shown.loc["comparisons.temperature", "estimate"] == float(terms[1].source.temperature.detach())
    text = fit.summary("sandwich", cluster="person")
    assert "comparisons.ties.nu" in text and "comparisons.ties.log_nu" in text
    tied, world = terms[1].feedback, terms[1].likelihood.world
    fit = fit_reward(Linear(reward.features), Term(tied, listed(world), Source(ties=rao_kupper())))
    raw = fit.params["comparisons.ties.raw"]
    assert fit.derived().index.tolist() == ["comparisons.ties.theta"]  # the temperature is not fitted
    theta = 1 + np.exp(raw)  # exp(softplus(raw))
    slope = np.exp(raw)
    expected = [theta, slope * fit.standard_errors()["comparisons.ties.raw"]]
    assert fit.derived().iloc[0, :2].tolist() == pytest.approx(expected, rel=1e-10)
    assert fit.derived().iloc[0]["lower 95%"] > 1
    assert not len(fit_reward(Linear(reward.features), terms[0]).derived())


def test_kinds_of_feedback_that_do_not_fit_a_likelihood_are_refused():
    _, terms = everything()
    world = terms[0].likelihood.world
    with pytest.raises(ConfigError, match="demonstration"):
        Term(terms[0].feedback, listed(world))
    with pytest.raises(ConfigError, match="choice"):
        Term(terms[2].feedback, exact(world))
    with pytest.raises(ConfigError, match="rating"):
        Term(terms[3].feedback, exact(world))


def test_summary_says_what_was_fitted():
    world, columns, feedback = buses()
    fit = fit_reward(Linear(columns), Term(feedback, exact(world)))
    text = fit.summary("sandwich", cluster="person")
    for part in ("Converged", "causal", "sandwich, clustered by person", "cost", "replace", f"{fit.objective:.4f}"):
        assert part in text
