"""Small problems with known answers, made by ``dev/golden.py``: estimates and standard errors to 1e-8."""

import json
from pathlib import Path

import numpy as np
import pytest

from irlhf import TIE, Source, Term, comparisons, davidson, demonstrations, exact, fit_reward, listed
from irlhf.worlds.tabular import Linear, features, from_arrays
from irlhf.worlds.tabular import Path as Walk

FOLDER = Path(__file__).parent / "golden"
PROBLEMS = {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}


def fitted(problem):
    if problem["what"] == "comparisons":
        x = np.array(problem["features"])
        n = len(x)
        p = np.zeros((n + 1, 1, n + 1))
        p[:, 0, n] = 1.0
        world = from_arrays(p, terminal=[n])
        walks = [Walk((k, n), (0,)) for k in range(n)]
        first, second = np.array(problem["pairs"]).T
        preferred = [TIE if k == 2 else k for k in problem["preferred"]]
        pairs = comparisons([None] * len(first), [walks[k] for k in first], [walks[k] for k in second], preferred)
        source = Source(ties=davidson() if problem["ties"] else None)
        return fit_reward(Linear(features(world, x)), Term(pairs, listed(world), source))
    world = from_arrays(np.array(problem["transitions"]), discount=problem["discount"], horizon=problem["horizon"])
    x = np.array(problem["features"]).reshape(world.transitions.n_pairs, -1)
    walks = [Walk(tuple(states), tuple(actions)) for states, actions in problem["demonstrations"]]
    term = Term(demonstrations(None, walks), exact(world, kind=problem["kind"]))
    return fit_reward(Linear(features(world, x)), term)


def test_there_are_as_many_as_promised():
    kinds = [problem["what"] for problem in PROBLEMS.values()]
    assert kinds.count("comparisons") == 3 and kinds.count("inverse reinforcement learning") == 3


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_the_known_answer_is_found(name):
    problem = PROBLEMS[name]
    fit = fitted(problem)
    np.testing.assert_allclose(fit.params, problem["answer"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(fit.standard_errors(), problem["standard_errors"], rtol=1e-6)
