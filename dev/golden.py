"""Makes ``tests/golden/*.json``: small problems with their data and answers that owe nothing to this library's solver.

Answers come from listing every trajectory (or every pair) and maximizing the written-out likelihood with SciPy in
float64, polished by Newton steps on differences of its analytic gradient. Run once; the files are kept.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import root

FOLDER = Path(__file__).parents[1] / "tests" / "golden"
STATES, ACTIONS, FEATURES = 3, 2, 3


def histories(p: np.ndarray, start: int, horizon: int) -> list[tuple[list[int], list[int]]]:
    """Every (states, actions) of positive probability."""
    found = [([start], [])]
    for _ in range(horizon):
        found = [
            ([*s, n], [*a, act])
            for s, a in found
            for act, n in itertools.product(range(ACTIONS), range(STATES))
            if p[s[-1], act, n] > 0
        ]
    return found


def solved(score: Callable[[np.ndarray], np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The root of a score, to the last digits by Newton steps with a Jacobian by differences, and standard errors."""
    theta, h = root(score, np.zeros(n), tol=1e-14).x, 1e-6
    for _ in range(5):
        jacobian = np.stack([(score(theta + h * e) - score(theta - h * e)) / (2 * h) for e in np.eye(n)], 1)
        theta = theta - np.linalg.solve(jacobian, score(theta))
    assert np.abs(score(theta)).max() < 1e-9
    return theta, np.sqrt(np.diag(np.linalg.inv(-jacobian)))


def inverse_rl(seed: int, kind: str, discount: float, horizon: int, n: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    p = rng.random((STATES, ACTIONS, STATES)) * (rng.random((STATES, ACTIONS, STATES)) < 0.6)
    p[..., 0] += 0.1
    p = (p / p.sum(-1, keepdims=True)).round(6)
    p[..., 0] += 1 - p.sum(-1)
    x = rng.standard_normal((STATES, ACTIONS, FEATURES)).round(4)
    every = histories(p, 1, horizon)
    weight = np.array([discount**t for t in range(horizon)])
    of = np.array([sum(w * x[s, a] for w, s, a in zip(weight, h[0], h[1], strict=False)) for h in every])
    log_p = np.array([sum(np.log(p[s, a, n]) for s, a, n in zip(h[0], h[1], h[0][1:], strict=False)) for h in every])
    mass = np.exp(of @ np.array([0.9, -0.5, 0.3]) + log_p)
    chosen = rng.choice(len(every), n, p=mass / mass.sum())

    def anticipative(theta: np.ndarray) -> np.ndarray:
        w = np.exp(of @ theta + log_p)
        return of[chosen].sum(0) - n * (w / w.sum()) @ of

    def causal(theta: np.ndarray) -> np.ndarray:
        """Score by the recursion over times, with derivatives carried along."""
        v, dv = np.zeros(STATES), np.zeros((STATES, FEATURES))
        pi, dq = [], []
        for _ in range(horizon):
            q = x @ theta + discount * p @ v
            grad = x + discount * np.einsum("san,nk->sak", p, dv)
            top = q.max(1, keepdims=True)
            v = (top + np.log(np.exp(q - top).sum(1, keepdims=True)))[:, 0]
            now = np.exp(q - v[:, None])
            dv = np.einsum("sa,sak->sk", now, grad)
            pi.append(now)
            dq.append(grad - dv[:, None])
        slope = dq[::-1]
        return sum(
            (slope[t][every[i][0][t], every[i][1][t]] for i in chosen for t in range(horizon)), np.zeros(FEATURES)
        )

    score = causal if kind == "causal" else anticipative
    theta, errors = solved(score, FEATURES)
    return {
        "what": "inverse reinforcement learning",
        "kind": kind,
        "discount": discount,
        "horizon": horizon,
        "transitions": p.tolist(),
        "features": x.tolist(),
        "demonstrations": [[every[i][0], every[i][1]] for i in chosen.tolist()],
        "answer": theta.tolist(),
        "standard_errors": errors.tolist(),
    }


def bradley_terry(seed: int, items: int, n: int, ties: bool) -> dict[str, Any]:
    """Items are paths of one step, each with features of its own; ties after Davidson with log nu as last number."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((items, 2)).round(4)
    pairs = np.array([rng.choice(items, 2, replace=False) for _ in range(n)])
    u = x @ np.array([1.0, -0.6])
    a, b = u[pairs[:, 0]], u[pairs[:, 1]]
    options = np.stack([a, b, (a + b) / 2 - (0.3 if ties else 50.0)], 1)
    answer = (options + rng.gumbel(size=options.shape)).argmax(1)  # 0 the first, 1 the second, 2 a tie
    of = np.stack([x[pairs[:, 0]], x[pairs[:, 1]], (x[pairs[:, 0]] + x[pairs[:, 1]]) / 2], 1)
    of = np.concatenate([of, np.zeros((n, 3, 1))], 2)
    of[:, 2, 2] = 1.0
    k = 3 if ties else 2
    of = of[:, :k, :k]

    def score(theta: np.ndarray) -> np.ndarray:
        v = of @ theta
        w = np.exp(v - v.max(1, keepdims=True))
        w /= w.sum(1, keepdims=True)
        return (of[np.arange(n), answer] - np.einsum("no,nok->nk", w, of)).sum(0)

    theta, errors = solved(score, k)
    return {
        "what": "comparisons",
        "ties": ties,
        "features": x.tolist(),
        "pairs": pairs.tolist(),
        "preferred": answer.tolist(),
        "answer": theta.tolist(),
        "standard_errors": errors.tolist(),
    }


def main() -> None:
    problems = {
        "irl_causal_discounted": inverse_rl(0, "causal", 0.7, 4, 60),
        "irl_causal_undiscounted": inverse_rl(1, "causal", 1.0, 3, 80),
        "irl_anticipative": inverse_rl(2, "anticipative", 0.9, 3, 80),
        "bt_small": bradley_terry(3, 6, 60, False),
        "bt_large": bradley_terry(4, 12, 300, False),
        "bt_ties": bradley_terry(5, 8, 200, True),
    }
    FOLDER.mkdir(exist_ok=True)
    for name, problem in problems.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(problem) + "\n")


if __name__ == "__main__":
    main()
