"""Maximizing an :class:`irlhf.objective.Objective`: Newton, L-BFGS, any torch optimizer; bounds and infeasible points.

Each optimizer is ``init(objective) -> state`` and ``step(objective, state) -> (state, info)`` with a state of tensors,
so that a run can be stopped anywhere and go on bit for bit. ``info["done"]`` ends the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from irlhf.errors import NonFiniteError
from irlhf.loop import State, under, within
from irlhf.objective import Objective

STALLED = 1e-4  # nats still promised when no step improves: more than rounding explains


@runtime_checkable
class Climbable(Protocol):
    """What L-BFGS asks of an objective: a start, its limits, and a value with its gradient."""

    start: Tensor
    scale: Tensor  # a typical size of each parameter's effect
    free: Tensor
    lower: Tensor
    upper: Tensor

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]: ...

    def trial(self, theta: Tensor) -> tuple[float, Tensor, Exception | None]: ...


def _scalar(value: float) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS (Nocedal 1980) with bounds by projection and a line search that backs out of infeasibility.

    Why our own: a diverging partition function must shorten the step instead of ending the fit, and the state must be
    in tensors to be resumed. Stops when the gain that the quadratic model still predicts is below ``tolerance`` nats.

    Args:
        tolerance: predicted gain, in nats, at which to stop.
        memory: curvature pairs kept.
        max_steps: line searches before giving up.
        newton: finish with Newton steps on the exact Hessian if there are at most so many parameters.
    """

    tolerance: float = 1e-9
    memory: int = 40
    max_steps: int = 1000
    newton: int = 10

    def init(self, objective: Climbable) -> State:
        theta = objective.start
        value, gradient = objective.value_and_gradient(theta)
        n = len(theta)
        return {
            "theta": theta,
            "value": _scalar(value),
            "gradient": gradient,
            "s": theta.new_zeros(0, n),
            "y": theta.new_zeros(0, n),
        }

    def step(self, objective: Climbable, state: State) -> tuple[State, dict[str, Any]]:
        theta, gradient = state["theta"], state["gradient"]
        held = _held(objective, theta, gradient)
        uphill = torch.where(held, 0.0, gradient)
        direction = torch.where(held, 0.0, _two_loop(uphill, state["s"], state["y"], objective.scale))
        gain = float(uphill @ direction)
        if not len(state["s"]):
            gain = float(uphill.abs().sum())  # no curvature is known yet: only a zero gradient may stop here
        if gain / 2 <= self.tolerance:
            return self._finish(objective, state)
        first = 1.0 if len(state["s"]) else min(1.0, 1.0 / float((uphill / objective.scale).abs().sum()))
        found = _line_search(objective, state, direction, first)
        if found is None:
            if len(state["s"]):  # forget the curvature once: the model may have been bad
                return state | {"s": state["s"][:0], "y": state["y"][:0]}, _info(state, "restart")
            return self._finish(objective, state, stalled=gain > STALLED)
        new_theta, new_value, new_gradient = found
        s, y = new_theta - theta, gradient - new_gradient  # y: of the negated objective, which is minimized
        keep = float(s @ y) > 1e-10 * float(s.norm() * y.norm())
        pairs = {
            "s": torch.cat([state["s"], s[None]])[-self.memory :] if keep else state["s"],
            "y": torch.cat([state["y"], y[None]])[-self.memory :] if keep else state["y"],
        }
        new = {"theta": new_theta, "value": _scalar(new_value), "gradient": new_gradient, **pairs}
        return new, _info(new, "")

    def _finish(self, objective: Climbable, state: State, stalled: bool = False) -> tuple[State, dict[str, Any]]:
        """Newton steps: digits that L-BFGS does not give."""
        if isinstance(objective, Objective) and len(state["theta"]) <= self.newton:
            state = _polish(objective, state)
        return state, _info(state, "stalled" if stalled else "converged")


@dataclass(frozen=True)
class Newton:
    """Newton's method on the exact Hessian with a line search: few parameters in any units, to the last digit.

    Where the objective is not concave the curvature's absolute values are used, which keeps every direction uphill
    (Nocedal and Wright 2006, section 3.4). Invariant to the scale of the parameters.

    Args:
        tolerance: predicted gain, in nats, at which to stop.
        max_steps: line searches before giving up.
    """

    tolerance: float = 1e-9
    max_steps: int = 200

    def init(self, objective: Objective) -> State:
        value, gradient = objective.value_and_gradient(objective.start)
        return {"theta": objective.start, "value": _scalar(value), "gradient": gradient}

    def step(self, objective: Objective, state: State) -> tuple[State, dict[str, Any]]:
        theta, gradient = state["theta"], state["gradient"]
        free = ~_held(objective, theta, gradient)
        direction = _newton_map(objective, theta, free) @ gradient if free.any() else torch.zeros_like(theta)
        if not free.any() or float(gradient @ direction) / 2 <= self.tolerance:
            state = _polish(objective, state)
            return state, _info(state, "converged")
        found = _line_search(objective, state, direction, 1.0)
        if found is None:
            return state, _info(state, "stalled" if float(gradient @ direction) > STALLED else "converged")
        new = {"theta": found[0], "value": _scalar(found[1]), "gradient": found[2]}
        return new, _info(new, "")


def _newton_map(objective: Objective, theta: Tensor, free: Tensor) -> Tensor:
    """``|-H|^-1`` over the free parameters, 0 for the others and along directions without curvature."""
    scale = objective.scale[free]
    curvature = -objective.derivatives(theta)[0][free][:, free] / scale[:, None] / scale
    values, vectors = torch.linalg.eigh(curvature)
    size = values.abs()
    inverse = torch.where(size > 1e-12 * size.max(), 1 / size.clamp(min=1e-300), 0.0)
    result = torch.zeros(len(theta), len(theta), dtype=torch.float64)
    numbers = free.nonzero()[:, 0]
    result[numbers[:, None], numbers] = (vectors * inverse) @ vectors.T / scale[:, None] / scale
    return result


def _polish(objective: Objective, state: State) -> State:
    """Full Newton steps near the maximum, with one Hessian, for as long as they make the gradient smaller."""
    free = ~_held(objective, state["theta"], state["gradient"])
    if not free.any():
        return state
    newton = _newton_map(objective, state["theta"], free)

    def size(gradient: Tensor) -> float:
        return float((gradient / objective.scale)[free].norm())

    for _ in range(4):
        direction = newton @ state["gradient"]
        if not 0 < float(direction @ state["gradient"]) < 1e-2:
            break
        trial = (state["theta"] + direction).clamp(objective.lower, objective.upper)
        value, gradient, problem = objective.trial(trial)
        if problem is not None or size(gradient) > 0.5 * size(state["gradient"]):
            break
        state = {**state, "theta": trial, "value": _scalar(value), "gradient": gradient}
    return state


@dataclass(frozen=True)
class TorchOptimizer:
    """Any ``torch.optim`` optimizer on the whole objective, for neural rewards; delivers the best point it saw.

    Args:
        make: ``lambda parameters: torch.optim.Adam(parameters, lr=1e-2)``.
        max_steps: how many steps to take.
    """

    make: Callable[[list[Tensor]], torch.optim.Optimizer]
    max_steps: int = 500

    def init(self, objective: Objective) -> State:
        theta = objective.start
        value, gradient = objective.value_and_gradient(theta)
        return {
            "theta": theta,
            "value": _scalar(value),
            "gradient": gradient,
            "best": theta,
            "best_value": _scalar(value),
            "count": _scalar(0.0),
        }

    def step(self, objective: Objective, state: State) -> tuple[State, dict[str, Any]]:
        theta, moments = torch_step(self.make, state["theta"], -state["gradient"], within(state, "moment."))
        new_theta = torch.where(objective.free, theta, state["theta"])
        new_theta = new_theta.clamp(objective.lower, objective.upper)
        value, gradient = objective.value_and_gradient(new_theta)
        new = {"theta": new_theta, "value": _scalar(value), "gradient": gradient, "count": state["count"] + 1}
        better = value > float(state["best_value"])
        new["best"] = new_theta if better else state["best"]
        new["best_value"] = new["value"] if better else state["best_value"]
        new |= under("moment.", moments)
        return new, _info(new, "")


def torch_step(
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    theta: Tensor,
    gradient: Tensor,
    moments: State,
    *,
    slower: float = 1.0,
    spare: State | None = None,
) -> tuple[Tensor, State]:
    """One step of a ``torch.optim`` optimizer downhill, its memory given and taken as tensors: (theta, moments).

    What is given stays as it is. ``slower``: what the learning rate is multiplied with. ``spare``: tensors of a step
    before the last that nobody needs any more, by the names of moments and ``theta``; the new ones are written there.
    """
    spare = spare or {}
    moving = _copied(theta, spare.get("theta")).requires_grad_()
    optimizer = make([moving])
    if moments:
        packed = optimizer.state_dict()
        packed["state"] = {0: {k: _copied(v, spare.get(k)) for k, v in moments.items()}}
        optimizer.load_state_dict(packed)
    for group in optimizer.param_groups:
        group["lr"] *= slower
    moving.grad = gradient
    optimizer.step()
    kept = optimizer.state_dict()["state"].get(0, {})
    return moving.detach(), {name: torch.as_tensor(v).detach() for name, v in kept.items() if v is not None}


def _copied(tensor: Tensor, into: Tensor | None) -> Tensor:
    # Fresh memory of this size costs several times what the copy does.
    return tensor.clone() if into is None or into.shape != tensor.shape else into.copy_(tensor)


def _info(state: State, why: str) -> dict[str, Any]:
    gradient = state["gradient"]
    norm = float(gradient.abs().max()) if len(gradient) else 0.0
    return {"objective": float(state["value"]), "max_gradient": norm, "why": why}


def _held(objective: Climbable, theta: Tensor, gradient: Tensor) -> Tensor:
    """Fixed parameters, and those at a bound that the gradient pushes against."""
    at_bound = ((theta <= objective.lower) & (gradient < 0)) | ((theta >= objective.upper) & (gradient > 0))
    return ~objective.free | at_bound


def _two_loop(gradient: Tensor, s: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """The L-BFGS direction uphill (Nocedal and Wright 2006, algorithm 7.4), in parameters divided by their scale."""
    q = gradient / scale
    s, y = s * scale, y / scale
    rho = 1.0 / (s * y).sum(1)
    alpha = []
    for k in reversed(range(len(s))):
        a = rho[k] * (s[k] @ q)
        alpha.append(a)
        q = q - a * y[k]
    if len(s):
        q = q * ((s[-1] @ y[-1]) / (y[-1] @ y[-1]))
    for k, a in zip(range(len(s)), reversed(alpha), strict=True):
        q = q + s[k] * (a - rho[k] * (y[k] @ q))
    return q / scale


def _line_search(
    objective: Climbable, state: State, direction: Tensor, first: float
) -> tuple[Tensor, float, Tensor] | None:
    """A point that satisfies the weak Wolfe conditions, by bracketing (Lewis and Overton 2013, algorithm 2.6).

    A point without a finite value counts as too far. None if no step improves the objective.

    Raises:
        NonFiniteError: no step improves the objective, and at some trial it was not finite.
    """
    theta, value = state["theta"], float(state["value"])
    slope = float(state["gradient"] @ direction)
    rounding = 1e-14 * (1.0 + abs(value))
    low, high, t = 0.0, np.inf, first
    best: tuple[Tensor, float, Tensor] | None = None
    problem: Exception | None = None
    for _ in range(40):
        trial = (theta + t * direction).clamp(objective.lower, objective.upper)
        new_value, new_gradient, why = objective.trial(trial)
        problem = why or problem
        if why is not None or new_value < value + 1e-4 * t * slope - rounding:
            high = t
        else:
            if best is None or new_value >= best[1]:
                best = trial, new_value, new_gradient
            if float(new_gradient @ direction) > 0.9 * slope and t < 1e6:
                low = t
            else:
                return trial, new_value, new_gradient
        if not np.isfinite(high):
            t = 2 * low
        elif why is not None:
            t = low + (high - low) / 8  # nothing is known there but that it is too far
        elif low == 0:  # the parabola through value, slope and the point that was too far
            t = float(np.clip(-slope * t * t / (2 * (new_value - value - slope * t)), 0.1 * t, 0.5 * t))
        else:
            t = (low + high) / 2
        if high - low <= 1e-12 * high:
            break
    if best is not None and best[1] > value:
        return best
    if isinstance(problem, NonFiniteError):
        raise problem
    return None
