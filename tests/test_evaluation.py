"""Evaluation: every number by hand on worlds of one or two states, and each predictor against its own likelihood."""

import numpy as np
import pandas as pd
import pytest
import torch

from irlhf import TIE, comparisons, demonstrations, rankings, ratings
from irlhf.calibration import calibration_table, expected_calibration_error, noise_level
from irlhf.errors import ConfigError
from irlhf.evaluation import evaluate
from irlhf.likelihood import Term, exact, listed
from irlhf.rewards import Implicit
from irlhf.sources import Source, davidson
from irlhf.worlds.tabular import Linear, Path, SoftmaxPolicy, features, from_arrays, from_table
from tests.test_fit import everything
from tests.worlds.problems import diamond, random_world

LOG = np.log


def coin(theta: float = LOG(3), *, discount: float = 0.5, base: tuple[float, float] | None = None):
    """One state, two actions that lead back to it: the policy is softmax(0, theta) (plus log base), at any discount."""
    table = pd.DataFrame({"state": [0, 0], "action": ["no", "yes"], "next_state": [0, 0]})
    log_base = None if base is None else table[["state", "action"]].assign(log_base=np.log(base))
    world = from_table(table, discount=discount, log_base=log_base)
    return world, Linear(features(world, np.array([[0.0], [1.0]])), [theta])


def tosses(*words: str, **columns):
    """Demonstrations of the coin: "yyn" is yes, yes, no."""
    paths = [Path((0,) * (len(word) + 1), tuple("yes" if x == "y" else "no" for x in word)) for word in words]
    return demonstrations(None, paths, **columns)


def test_steps_by_hand():
    world, reward = coin()
    training = Term(tosses("nyyyyy"), exact(world))
    result = evaluate(reward, training.on(tosses("yyyn", "yn")), training=training)
    model = np.array([3 * LOG(0.75) + LOG(0.25), LOG(0.75) + LOG(0.25)])
    cloned = np.array([3 * LOG(6 / 8) + LOG(2 / 8), LOG(6 / 8) + LOG(2 / 8)])  # (5 + 1) / (6 + 2)
    scores = result.scores
    assert list(scores.index) == ["model", "uniform", "cloning", "myopic"]
    assert (result.what, result.rows, result.choices) == ("step", 2, 6)
    np.testing.assert_allclose(scores.log_likelihood, [model.sum(), 6 * LOG(0.5), cloned.sum(), model.sum()])
    np.testing.assert_allclose(scores.per_choice, scores.log_likelihood / 6)
    np.testing.assert_allclose(scores.per_row, scores.log_likelihood / 2)
    gain = (model.sum() - 6 * LOG(0.5)) / 6
    residual = model - np.array([4, 2]) * LOG(0.5) - gain * np.array([4, 2])
    assert scores.gain["uniform"] == pytest.approx(gain)
    assert scores.gain_error["uniform"] == pytest.approx(np.sqrt((residual**2).sum()) / 6)
    np.testing.assert_allclose(scores.accuracy, [4 / 6, 1 / 2, 4 / 6, 4 / 6])
    assert scores.gain["cloning"] == pytest.approx(0, abs=1e-12)


def test_calibration_of_steps_by_hand():
    world, reward = coin()
    result = evaluate(reward, Term(tosses("yyyn", "yn"), exact(world)))
    assert list(result.scores.index) == ["model", "uniform", "myopic"], "no cloning without training feedback"
    table = result.calibration
    np.testing.assert_allclose(table.predicted, [0.25, 0.75])
    np.testing.assert_allclose(table.observed, [2 / 6, 4 / 6])
    np.testing.assert_allclose(table.n, [6, 6])
    assert result.calibration_error == pytest.approx(1 / 12)
    assert result.calibration_noise == pytest.approx(np.sqrt(2 / np.pi) * np.sqrt(0.75 * 0.25 / 6))


def test_weights_count_rows_and_a_term_weight_keeps_means():
    world, reward = coin()
    plain = evaluate(reward, Term(tosses("yn", "yn", "n"), exact(world)))
    weighted = evaluate(reward, Term(tosses("yn", "n", weights=[2.0, 1.0]), exact(world), weight=3.0))
    np.testing.assert_allclose(weighted.scores.per_choice, plain.scores.per_choice)
    np.testing.assert_allclose(weighted.scores.log_likelihood, 3 * plain.scores.log_likelihood)
    np.testing.assert_allclose(weighted.scores.accuracy, plain.scores.accuracy)
    np.testing.assert_allclose(weighted.calibration.observed, plain.calibration.observed)


def test_base_measure_is_a_baseline_and_what_it_forbids_is_no_option():
    world, reward = coin(0.7, base=(0.2, 0.8))
    scores = evaluate(reward, Term(tosses("yyn"), exact(world))).scores
    assert scores.log_likelihood["base measure"] == pytest.approx(2 * LOG(0.8) + LOG(0.2))
    with np.errstate(divide="ignore"):
        world, reward = coin(0.7, base=(1.0, 0.0))
    scores = evaluate(reward, Term(tosses("nn"), exact(world))).scores
    assert scores.log_likelihood["uniform"] == 0
    assert scores.accuracy["model"] == 1


def test_myopic_is_the_same_reward_without_a_future():
    world, columns = random_world(3, discount=0.9)
    reward, near = Linear(columns, [1.0, -1.0, 0.5]), from_arrays(_dense(world), discount=0.0)
    feedback = demonstrations(None, [Path((0, 1, 2), (0, 1)), Path((1, 0), (2,))])
    score = evaluate(reward, Term(feedback, exact(world))).scores
    expected = Term(feedback, exact(near)).log_prob(Linear(features(near, columns.values.numpy()), [1.0, -1.0, 0.5]))
    assert score.log_likelihood["myopic"] == pytest.approx(float(expected.sum().detach()))
    assert abs(score.gain["myopic"]) > 0.01


def _dense(world):
    t = world.transitions
    dense = np.zeros((t.n_states, len(world.actions), t.n_states))
    dense[t.state[t.pair_of_outcome], world.action_of_pair[t.pair_of_outcome], t.next_state] = t.probability
    return dense


@pytest.mark.parametrize("kind", ["causal", "weighted", "anticipative"])
def test_every_kind_scores_rows_as_its_likelihood_does(kind):
    world, columns = random_world(3, discount=0.9, horizon=4)
    reward = Linear(columns, [1.0, -1.0, 0.5])
    term = Term(demonstrations(None, [Path((0, 1, 2), (0, 1)), Path((1, 0), (2,))]), exact(world, kind=kind))
    result = evaluate(reward, term)
    assert result.scores.log_likelihood["model"] == pytest.approx(float(term.log_prob(reward).sum().detach()))
    size = len(world.actions)
    uniform = {"causal": -3 * LOG(size), "weighted": -2.9 * LOG(size)}
    nature = float(world.log_dynamics(term.prepared.batch).sum())
    assert result.scores.log_likelihood["uniform"] == pytest.approx(uniform.get(kind, -3 * LOG(size) + nature))
    assert (result.calibration is None) == (kind == "anticipative")


def test_options_give_what_the_likelihood_gives():
    """The model's probability of each option, at what was chosen, is the term's own log-likelihood."""
    from irlhf import evaluation

    reward, terms = everything()
    for term in terms:
        with torch.no_grad():
            if isinstance(term.likelihood, exact):
                steps = evaluation._steps(reward, term)
                options, values = steps.options, evaluation._step_log_prob(reward, term, steps)
            else:
                options = evaluation._listed_options(term)
                values = evaluation.answer_log_prob(reward, term, *evaluation.answers(term)).numpy()
            expected = term.unit_log_prob(reward).numpy()
        assert values is not None
        np.testing.assert_allclose(values[options.option_of_unit], expected, atol=1e-10)
        np.testing.assert_allclose(np.bincount(options.decision, np.exp(values)), 1.0)
        assert options.count.sum() == pytest.approx(sum(float(w) for w in term.row_weight[term.unit_row]))


def pair_term(preferred, source=None, likelihood=None):
    """Comparisons of "yes" (reward log 3) with "no" (reward 0)."""
    world, reward = coin()
    yes, no = Path((0, 0), ("yes",)), Path((0, 0), ("no",))
    n = len(preferred)
    return reward, Term(comparisons([None] * n, [yes] * n, [no] * n, preferred), likelihood or listed(world), source)


def test_comparisons_by_hand():
    reward, term = pair_term([0, 0, 1])
    result = evaluate(reward, term, training=term)
    assert list(result.scores.index) == ["model", "uniform"]
    np.testing.assert_allclose(result.scores.log_likelihood, [2 * LOG(0.75) + LOG(0.25), -3 * LOG(2)])
    assert result.scores.accuracy["model"] == pytest.approx(2 / 3)
    assert result.scores.accuracy["uniform"] == pytest.approx(1 / 2)
    # Two options mirror one another, so only the likelier is in the table.
    assert result.calibration.predicted.tolist() == pytest.approx([0.75])
    assert result.calibration.observed.tolist() == pytest.approx([2 / 3])
    assert result.calibration.n.tolist() == [3]


def test_ties_by_hand():
    reward, term = pair_term([0, TIE, 1, 0], Source(ties=davidson(2.0)))
    result = evaluate(reward, term, training=term)
    total = 3 + 1 + 2 * np.sqrt(3)
    model = 2 * LOG(3 / total) + LOG(2 * np.sqrt(3) / total) + LOG(1 / total)
    tie_rate = LOG(2 / 7) + 3 * LOG(5 / 14)  # (1 + 1) / (4 + 3), and half of the rest
    np.testing.assert_allclose(result.scores.log_likelihood, [model, -4 * LOG(3), tie_rate])
    assert result.scores.accuracy["model"] == 0.25  # the tie is the likeliest answer


def test_ratings_by_hand():
    world, reward = coin()
    yes, no = Path((0, 0), ("yes",)), Path((0, 0), ("no",))
    source = Source(thresholds=[0.0, 1.0])
    term = Term(ratings([None] * 3, [yes, no, yes], [2, 0, 1], levels=3), listed(world), source)
    result = evaluate(reward, term, training=term)
    z_yes, z_no = 1 + 3 + 9 / np.e, 1 + 1 + 1 / np.e
    np.testing.assert_allclose(
        result.scores.log_likelihood, [LOG(9 / np.e / z_yes) - LOG(z_no) + LOG(3 / z_yes), -3 * LOG(3), -3 * LOG(3)]
    )
    other = term.on(ratings([None] * 2, [yes, no], [2, 2], levels=3))
    assert evaluate(reward, other, training=other).scores.log_likelihood["level frequencies"] == pytest.approx(
        2 * LOG(3 / 5)
    )
    assert result.what == "rating"


def test_choices_of_one_ranking_are_one_datum():
    world, reward = coin()
    one, two, three = (Path((0,) * 4, ("yes",) * k + ("no",) * (3 - k)) for k in (1, 2, 3))
    term = Term(rankings([None] * 2, [[three, two, one], [one, two, three]]), listed(world))
    scores = evaluate(reward, term).scores
    values = term.log_prob(reward).detach().numpy()
    uniform = np.array([-LOG(3), -LOG(2)] * 2)
    gained = (values - uniform).reshape(2, 2).sum(1)
    gain = gained.sum() / 4
    assert scores.gain["uniform"] == pytest.approx(gain)
    assert scores.gain_error["uniform"] == pytest.approx(np.sqrt(((gained - 2 * gain) ** 2).sum()) / 4)


def test_cloning_knows_destinations():
    world, reward = diamond()
    feedback = demonstrations(
        [5, 5, 4], [Path((0, 1, 3, 5), (1, 3, 5)), Path((0, 2, 4, 5), (2, 4, 5)), Path((0, 1, 4), (1, 4))]
    )
    term = Term(feedback, exact(world))
    scores = evaluate(reward, term, training=term).scores
    # By state: 0 -> {1: 3/5, 2: 2/5}, 1 -> {2: 1/5, 3: 2/5, 4: 2/5}, 2 -> {3: 1/3, 4: 2/3}, 3 -> {5: 2/3}, 4 -> 5 alone
    expected = (LOG(3 / 5) + LOG(2 / 5) + LOG(2 / 3)) + (LOG(2 / 5) + LOG(2 / 3)) + (LOG(3 / 5) + LOG(2 / 5))
    assert scores.log_likelihood["cloning"] == pytest.approx(expected)
    # By state and destination: going to 5, 0 -> {1: 1/2, 2: 1/2}; 1 -> {3: 2/4}; 2 -> {4: 2/3}; 3 -> {5: 2/3}
    five = (LOG(1 / 2) + LOG(1 / 2) + LOG(2 / 3)) + (LOG(1 / 2) + LOG(2 / 3))
    four = LOG(2 / 3) + LOG(1 / 2)
    assert scores.log_likelihood["cloning by state and destination"] == pytest.approx(five + four)


def test_an_implicit_reward_is_its_own_policy():
    world, _ = coin()
    policy = SoftmaxPolicy(world)
    with torch.no_grad():
        policy.logits.copy_(torch.tensor([0.0, LOG(4)]))
    result = evaluate(Implicit(policy, world), Term(tosses("yyyyn"), exact(world)))
    assert result.scores.log_likelihood["model"] == pytest.approx(4 * LOG(0.8) + LOG(0.2))
    np.testing.assert_allclose(result.calibration.predicted, [0.2, 0.8])
    assert "myopic" not in result.scores.index


def test_calibration_table_by_hand():
    probability, count, total = (
        np.array([0.05, 0.15, 0.19, 1.0]),
        np.array([1.0, 0.0, 2.0, 3.0]),
        np.array([10.0, 4.0, 4.0, 3.0]),
    )
    table = calibration_table(probability, count, total, edges=np.array([0.0, 0.1, 0.5, 1.0]))
    assert table.low.tolist() == [0.0, 0.1, 0.5]
    np.testing.assert_allclose(table.predicted, [0.05, 0.17, 1.0])
    np.testing.assert_allclose(table.observed, [0.1, 0.25, 1.0])
    np.testing.assert_allclose(
        table.noise, [np.sqrt(0.05 * 0.95 / 10), np.sqrt(4 * (0.15 * 0.85 + 0.19 * 0.81)) / 8, 0]
    )
    # Wilson's interval for 1 of 10, from Newcombe (1998)'s formula: (0.0179, 0.4042)
    assert (table.lower[0], table.upper[0]) == pytest.approx((0.0179, 0.4042), abs=1e-4)
    assert expected_calibration_error(table) == pytest.approx((10 * 0.05 + 8 * 0.08) / 21)
    assert noise_level(table) == pytest.approx(np.sqrt(2 / np.pi) * (10 * table.noise[0] + 8 * table.noise[1]) / 21)
    with pytest.raises(ConfigError, match="edges must cover"):
        calibration_table(np.array([0.7]), np.ones(1), np.ones(1), edges=np.array([0.0, 0.5]))


def test_noise_is_what_a_perfect_model_shows():
    rng = np.random.default_rng(0)
    probability, total = rng.uniform(size=400), np.full(400, 5.0)
    errors = []
    for _ in range(200):
        table = calibration_table(probability, rng.binomial(5, probability).astype(float), total)
        errors.append(expected_calibration_error(table))
    assert np.mean(errors) == pytest.approx(noise_level(table), rel=0.1)
