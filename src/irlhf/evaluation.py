"""How well a fitted reward predicts feedback, beside what needs no reward: baselines, accuracy, calibration.

Everything is computed on a :class:`irlhf.likelihood.Term`, the one a fit saw or a held-out one (``term.on(feedback)``).
A *decision* is one choice that the model gives probabilities to: a row of comparisons, rankings or ratings, a step of a
demonstration. Its *options* are what could have been answered or done. The baselines are predictors of the same
options, so all numbers of a table are comparable:

* **uniform**: every option alike: ``-log n``; log 2 for two.
* **base measure**: ``log mu(a|s)``, normalized, where the world has one.
* **cloning**: how often each action was taken in each state of the training feedback, plus one.
* **myopic**: the same reward at discount 0: what looking ahead adds.
* **tie rate**, **level frequencies**: answers as frequent as in the training feedback, whatever was shown.
* **length only**: what is longer, or shorter, is preferred; by how much is fitted to the training feedback.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import minimize

from irlhf.calibration import calibration_table, expected_calibration_error, noise_level
from irlhf.feedback import CHOICE, DEMONSTRATION, RATING, Feedback
from irlhf.likelihood import Term, exact, listed
from irlhf.simulated import sampled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well a reward predicts one term's feedback.

    ``scores`` has one row for each predictor, the model first, and the columns ``log_likelihood`` (weighted total, in
    nats), ``per_row``, ``per_choice``, ``gain`` (the model's advantage over this predictor, nats for each choice),
    ``gain_error`` (its standard error over data, choices of one ranking or path counted as one datum), ``accuracy``.
    """

    name: str
    what: str
    """What a decision is: "step", "choice" or "rating"."""
    rows: float
    choices: float
    """How many rows and decisions there are, each counted as often as its weight says."""
    scores: pd.DataFrame
    calibration: pd.DataFrame | None
    """See :func:`calibration_table`; None where the likelihood gives no probability to single choices."""

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the average of |observed - predicted| over bins (Naeini et al. 2015, eq. 2)."""
        return np.nan if self.calibration is None else expected_calibration_error(self.calibration)

    @property
    def calibration_noise(self) -> float:
        """The calibration error that a perfect model would show on as little feedback, by chance alone."""
        return np.nan if self.calibration is None else noise_level(self.calibration)


@dataclass(frozen=True, eq=False)
class Options:
    """What could have been chosen at each decision, and what was.

    ``decision`` does not decrease. Decisions that are the same to the model (a state visited often) are one, with
    counts.
    """

    decision: Ints  # [options]
    count: Floats  # [options] how often it was chosen
    option_of_unit: Ints  # [units] the option that each factor of the likelihood chose
    symmetric: bool  # the order of the options means nothing (what was shown first)

    def normalize(self, utility: Floats) -> Floats:
        """``log softmax`` of utilities within each decision."""
        first = np.flatnonzero(np.diff(self.decision, prepend=-1))
        top = np.maximum.reduceat(utility, first)[self.decision]
        total = np.add.reduceat(np.exp(utility - top), first)[self.decision]
        return utility - top - np.log(total)

    def accuracy(self, log_prob: Floats) -> float:
        """The share of decisions in which the most probable option was chosen; credit is split between equal ones."""
        first = np.flatnonzero(np.diff(self.decision, prepend=-1))
        best = log_prob >= np.maximum.reduceat(log_prob, first)[self.decision] - 1e-9
        equals = np.add.reduceat(best.astype(float), first)[self.decision]
        return float((self.count * best / equals).sum() / self.count.sum())

    def calibration(self, log_prob: Floats) -> pd.DataFrame:
        """See :func:`calibration_table`. Of two interchangeable options only the likelier counts: they mirror."""
        total = np.bincount(self.decision, self.count).astype(float)[self.decision]
        keep = np.ones(len(total), bool)
        if self.symmetric:
            first = np.flatnonzero(np.diff(self.decision, prepend=-1))
            pair = np.bincount(self.decision)[self.decision[first]] == 2
            left = first[pair]
            keep[np.where(log_prob[left] >= log_prob[left + 1], left + 1, left)] = False
        return calibration_table(np.exp(log_prob[keep]), self.count[keep], total[keep])


def evaluate(reward: Any, term: Term, *, training: Term | None = None) -> Evaluation:
    """How well a reward predicts the feedback of a term, beside the baselines.

    Args:
        reward: fitted; the term's source holds its temperature, ties and thresholds.
        term: the feedback to predict: held-out, or what was fitted.
        training: what the reward was fitted to: baselines that need data learn from it alone; None: they are left out.

    Raises:
        InfeasibleError: the partition function diverges at this reward.
    """
    predicted, baselines, options = None, {}, None
    with torch.no_grad():
        log_probs = {"model": term.log_prob(reward).double().numpy()}
        if isinstance(term.likelihood, listed):
            options = _listed_options(term)
            predicted = answer_log_prob(reward, term, *answers(term)).double().numpy()
            baselines = _listed_baselines(term, training, options)
        elif isinstance(term.likelihood, exact) and hasattr(term.likelihood.world, "transitions"):
            steps = _steps(reward, term)
            options = steps.options
            predicted, baselines = _step_log_prob(reward, term, steps), _step_baselines(reward, term, training, steps)
        elif isinstance(term.likelihood, sampled):  # the same rivals with their offsets, and no reward
            no_reward = term.likelihood.log_prob(term.prepared, _nothing, term.source)
            log_probs["base measure"] = no_reward.numpy()
    accuracy = {"model": np.nan if options is None or predicted is None else options.accuracy(predicted)}
    for name, values in baselines.items():
        assert options is not None
        log_probs[name] = _rows(term, values[options.option_of_unit])
        accuracy[name] = options.accuracy(values)
    weight = term.row_weight.numpy()
    decisions = _decisions(term)
    scores = _score_table(log_probs, weight, decisions, term.feedback)
    scores["accuracy"] = pd.Series(accuracy)
    kind = int(term.feedback.kind[0])
    return Evaluation(
        name=term.name,
        what="step" if kind == DEMONSTRATION else "rating" if kind == RATING else "choice",
        rows=float(weight.sum()),
        choices=float((weight * decisions).sum()),
        scores=scores,
        calibration=options.calibration(predicted) if options and predicted is not None else None,
    )


def _nothing(batch: Any) -> torch.Tensor:
    """The reward that is zero for everything."""
    return torch.zeros(batch.n_items, dtype=torch.float64)


def _score_table(log_probs: dict[str, Floats], weight: Floats, decisions: Floats, feedback: Feedback) -> pd.DataFrame:
    """Totals, means, and the model's gain over each predictor with its standard error over data."""
    datum = feedback.groups("datum")
    rows, choices = weight.sum(), (weight * decisions).sum()
    table = {}
    for name, values in log_probs.items():
        # The gain is a ratio of two sums over data; its error is the ratio estimator's (Cochran 1977, section 2.11).
        gained = np.zeros_like(weight)
        np.subtract(log_probs["model"], values, out=gained, where=weight > 0)
        gain = (weight * gained).sum() / choices
        residual = np.bincount(datum, weight * (gained - gain * decisions))
        total = float((weight[weight > 0] * values[weight > 0]).sum())
        table[name] = {
            "log_likelihood": total,
            "per_row": total / rows,
            "per_choice": total / choices,
            "gain": gain,
            "gain_error": 0.0 if abs(residual).max() < 1e-9 else float(np.sqrt((residual**2).sum()) / choices),
        }
    return pd.DataFrame.from_dict(table, orient="index")


def _decisions(term: Term) -> Floats:
    """[rows] How many decisions each row has: the steps of a demonstration, 1 otherwise."""
    if isinstance(term.likelihood, exact):
        return np.bincount(term.prepared.batch.item.numpy(), minlength=len(term.feedback)).astype(float)
    return np.ones(len(term.feedback))


def _rows(term: Term, units: Floats) -> Floats:
    """[rows] What a predictor's log-probability of each decision makes of a row, as the term's likelihood would."""
    if not isinstance(term.likelihood, exact):
        return units
    batch, kind = term.prepared.batch, term.likelihood.kind
    total: torch.Tensor = batch.sum(torch.from_numpy(units), discounted=kind == "weighted")
    if kind == "anticipative":  # here nature's draws are part of what is predicted
        total = total + term.likelihood.world.log_dynamics(batch)  # type: ignore[attr-defined]
    return total.numpy()


# Demonstrations in a world of transitions: a decision is a state (at a time, under a context), options are its pairs.


@dataclass(frozen=True, eq=False)
class _Steps:
    options: Options
    pair: Ints  # [options]
    state: Ints  # [options]
    time: Ints  # [options]
    context: Ints  # [options]


def _steps(reward: Any, term: Term) -> _Steps:
    batch, world = term.prepared.batch, term.likelihood.world
    t = world.transitions
    item, state, pair = batch.item.numpy(), batch.state.numpy(), batch.pair.numpy()
    depends = world.destinations or getattr(reward, "contextual", False)
    context = batch.context.numpy()[item] if depends else np.zeros(len(item), np.int64)
    time = batch.time.numpy() if world.horizon is not None else np.zeros(len(item), np.int64)
    key = (context * (time.max(initial=0) + 1) + time) * t.n_states + state
    _, where, cell = np.unique(key, return_index=True, return_inverse=True)
    size = np.diff(t.first_pair)[state[where]]
    first = np.cumsum(size) - size
    decision = np.repeat(np.arange(len(where)), size)
    option_pair = t.first_pair[state[where]][decision] + np.arange(len(decision)) - first[decision]
    allowed = ~np.isneginf(world.log_base_of_pair.numpy()[option_pair])
    number = np.cumsum(allowed) - 1  # what the base measure forbids is no option
    chosen = number[first[cell] + pair - t.first_pair[state]]
    decision, option_pair = decision[allowed], option_pair[allowed]
    count = np.bincount(chosen, term.row_weight.numpy()[item], minlength=len(decision)).astype(float)
    options = Options(decision, count, chosen, symmetric=False)
    at = where[decision]
    return _Steps(options, option_pair, state[at], time[at], context[at])


def _step_log_prob(reward: Any, term: Term, steps: _Steps) -> Floats | None:
    """[options] The model's; None for the anticipative kind, which mixes nature's draws into the choice."""
    if term.likelihood.kind == "anticipative":
        return None
    world, source = term.likelihood.world, term.source
    if getattr(reward, "normalized", False) and getattr(reward, "temperature", None) == float(source.temperature):
        options = _laid_out(term, steps)
        utility = reward.step(options) / source.temperature + world.log_base_step(options)
        return steps.options.normalize(utility.double().numpy())
    memory = term.prepared.memory.get("values")
    return steps.options.normalize(_policy(world, reward, term, steps, warm_start=memory))


def _step_baselines(reward: Any, term: Term, training: Term | None, steps: _Steps) -> dict[str, Floats]:
    """Each baseline's log-probability of every option of a demonstration."""
    world, options = term.likelihood.world, steps.options
    result = {"uniform": options.normalize(np.zeros(len(steps.pair)))}
    base = options.normalize(world.log_base_of_pair.numpy()[steps.pair])
    if not np.allclose(base, result["uniform"]):
        result["base measure"] = base
    if training is not None and getattr(training.likelihood, "world", None) is world:
        if world.destinations:
            result["cloning by state and destination"] = _cloning(term, training, steps, by_context=True)
        result["cloning"] = _cloning(term, training, steps, by_context=False)
    if world.discount > 0 and term.likelihood.kind != "anticipative" and not getattr(reward, "normalized", False):
        myopic = copy.copy(world)
        myopic.discount = 0.0
        values = options.normalize(_policy(myopic, reward, term, steps))
        if not np.allclose(values, base):  # a reward of states alone sees no difference between actions now
            result["myopic"] = values
    return result


def _policy(world: Any, reward: Any, term: Term, steps: _Steps, warm_start: Any = None) -> Floats:
    """[options] ``log pi(a|s)`` of a reward in a world, at the temperature of the term."""
    batch = term.prepared.batch
    solution = world.solve(
        reward, batch.contexts, temperature=term.source.temperature, kind="causal", warm_start=warm_start
    )
    return solution.step_log_prob(_laid_out(term, steps)).double().numpy()


def _laid_out(term: Term, steps: _Steps) -> Any:
    """Every option as a path of one step, so that a solution or a policy is asked as the likelihood asks it."""
    world, batch = term.likelihood.world, term.prepared.batch
    each = torch.arange(len(steps.pair))
    pair = torch.from_numpy(steps.pair)
    return replace(
        batch,
        context=torch.from_numpy(steps.context),
        item=each,
        step_weight=torch.ones(len(each), dtype=torch.float64),
        state=torch.from_numpy(steps.state),
        pair=pair,
        outcome=pair if world.deterministic else torch.full_like(pair, -1),
        time=torch.from_numpy(steps.time),
    )


def _cloning(term: Term, training: Term, steps: _Steps, *, by_context: bool) -> Floats:
    """[options] ``log (count + 1)``, normalized over the options: the rule of succession (Laplace 1774)."""
    batch, n_pairs = training.prepared.batch, term.likelihood.world.transitions.n_pairs
    item, pair = batch.item.numpy(), batch.pair.numpy()
    wanted, group = steps.pair, pair
    if by_context:
        number = {x: i for i, x in enumerate(batch.contexts)}
        known = np.array([number.get(x, len(number)) for x in term.prepared.batch.contexts], np.int64)
        wanted = known[steps.context] * n_pairs + steps.pair
        group = batch.context.numpy()[item] * n_pairs + pair
    keys, inverse = np.unique(group, return_inverse=True)
    count = np.append(np.bincount(inverse.reshape(-1), training.feedback.weight[item]), 0.0)
    at = np.searchsorted(keys, wanted)
    at[(at == len(keys)) | (keys[np.minimum(at, len(keys) - 1)] != wanted)] = len(keys)
    return steps.options.normalize(np.log1p(count[at]))


# Listed choices: a decision is a row, its options are the items shown, or a tie, or the levels of a scale.


def answers(term: Term) -> tuple[Ints, Ints]:
    """(row, answer) of everything that could have been answered: a position, -1 for a tie, or a level."""
    feedback = term.feedback
    size = np.where(feedback.kind == RATING, feedback.levels, feedback.sizes + term.prepared.pairwise.numpy())
    row = np.repeat(np.arange(len(feedback)), size)
    answer = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
    tied = term.prepared.pairwise.numpy()[row] & (answer == 2)
    return row, np.where(tied, -1, answer)


def answer_log_prob(reward: Any, term: Term, row: Ints, answer: Ints) -> Float[torch.Tensor, "answers"]:
    """What the term's own likelihood says of every answer that could have been given, see :func:`answers`."""
    return answers_given(term.likelihood.compared(term.prepared, reward), term, row, answer)


def answers_given(
    compared: Float[torch.Tensor, "distinct"], term: Term, row: Ints, answer: Ints
) -> Float[torch.Tensor, "answers"]:
    """The same, given what is compared."""
    feedback, is_rating = term.feedback, term.feedback.kind == RATING
    result = compared.new_zeros(len(row))
    for value in np.unique(answer):
        mine = np.flatnonzero(answer == value)
        given = np.zeros(len(feedback), np.int64)
        given[row[mine]] = value
        asked = replace(feedback, chosen=np.where(is_rating, 0, given), level=np.where(is_rating, given, 0))
        found = term.likelihood.given(replace(term.prepared, feedback=asked), compared, term.source)
        result = result.index_put((torch.from_numpy(mine),), found[torch.from_numpy(row[mine])])
    return result


def _listed_options(term: Term) -> Options:
    feedback = term.feedback
    row, answer = answers(term)
    given = np.where(feedback.kind == RATING, feedback.level, feedback.chosen)
    chosen = np.flatnonzero(answer == given[row])
    count = np.zeros(len(row))
    count[chosen] = term.row_weight.numpy()
    return Options(row, count, chosen, symmetric=not (feedback.kind == RATING).any())


def _listed_baselines(term: Term, training: Term | None, options: Options) -> dict[str, Floats]:
    """Uniform; answers as frequent as in the training feedback (levels, ties); and the longer or the shorter one."""
    result = {"uniform": options.normalize(np.zeros(len(options.decision)))}
    if training is None or not isinstance(training.likelihood, listed):
        return result
    by_length = _by_length(term, training)
    if by_length is not None:
        result["length only"] = by_length
    (row, answer), (_, train_answer) = answers(term), answers(training)
    if (term.feedback.kind == RATING).all() and (training.feedback.kind == RATING).all():
        seen = np.bincount(train_answer, _listed_options(training).count, minlength=int(answer.max()) + 1) + 1
        return result | {"level frequencies": np.log(seen / seen.sum())[answer]}
    paired, train_paired = term.prepared.pairwise.numpy(), training.prepared.pairwise.numpy()
    if not (paired.any() and train_paired.any()):
        return result
    weight = training.feedback.weight[train_paired]
    share = ((weight * (training.feedback.chosen[train_paired] == -1)).sum() + 1) / (weight.sum() + 3)
    guess = np.log(np.where(answer == -1, share, (1 - share) / 2))
    return result | {"tie rate": np.where(paired[row], guess, result["uniform"])}


def _by_length(term: Term, training: Term) -> Floats | None:
    """[options] A choice by the number of steps alone, ``exp(b n)`` with b from the training feedback; ties and ratings
    as the source of the term has them. None where all items that were shown together are of one length."""
    try:
        lengths = [_lengths(t) for t in (training, term)]
    except (AttributeError, TypeError):  # a world without steps
        return None
    set_of = np.repeat(np.arange(len(training.feedback)), training.feedback.sizes)
    of_item = lengths[0][training.prepared.item.numpy()]
    mean = np.bincount(set_of, of_item) / np.bincount(set_of)
    if not (training.feedback.kind == CHOICE).any() or np.allclose(of_item, mean[set_of]):
        return None
    scale = max(float(np.std(of_item - mean[set_of])), 1e-9)

    def log_prob(slope: Floats) -> float:
        compared = torch.from_numpy(lengths[0] * float(slope[0]) / scale)
        found = training.likelihood.given(training.prepared, compared, training.source)
        return -float((found * training.row_weight).sum()) + 0.5e-2 * float(slope[0]) ** 2

    slope = minimize(log_prob, np.zeros(1), method="Nelder-Mead").x
    return answers_given(torch.from_numpy(lengths[1] * float(slope[0]) / scale), term, *answers(term)).numpy()


def _lengths(term: Term) -> Floats:
    """[distinct items] The number of steps of each."""
    batch = term.prepared.batch
    return np.bincount(batch.item.numpy(), minlength=batch.n_items).astype(float)
