"""A fit as one function of one flat vector: log-likelihood, gradient, scores and Hessian, all by autograd.

The vector holds every parameter of the reward and of the sources. Modules are called functionally, so evaluating a
point changes no parameter of theirs; only :meth:`Objective.assign` does.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf.errors import ConfigError, InfeasibleError, NonFiniteError
from irlhf.likelihood import Term
from irlhf.loop import State, under, within
from irlhf.protocols import Factors, finite_or_raise


@dataclass(frozen=True)
class Normal:
    """A Gaussian prior on each parameter of the reward: ``-(theta - mean)^2 / (2 sd^2)`` is added to the objective."""

    sd: float
    mean: float = 0.0

    def log_density(self, theta: Tensor) -> Tensor:
        """Without its constant, so that an objective with a flat prior is the log-likelihood."""
        return -0.5 * ((theta - self.mean) / self.sd).square().sum()


def warm_starts(terms: Sequence[Term]) -> State:
    """Where the solvers of the terms start from: a resumed fit is the same to the bit only with them."""
    known = {f"{k}": term.prepared.memory.get("values") for k, term in enumerate(terms)}
    return under("warm.", {k: values for k, values in known.items() if values is not None})


def start_warm(terms: Sequence[Term], tensors: State) -> State:
    """Gives the solvers what :func:`warm_starts` kept; returns the other tensors."""
    for k, values in within(tensors, "warm.").items():
        terms[int(k)].prepared.memory["values"] = values
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("warm.")}


class Joined(nn.Module):
    """All modules of a fit in one, the reward first, so that all parameters can be swapped at once."""

    def __init__(self, reward: nn.Module, terms: Sequence[Term]):
        super().__init__()
        self.reward = reward
        self.sources = nn.ModuleList({id(t.source): t.source for t in terms}.values())
        self.terms = terms

    def forward(self, what: Any) -> Any:
        if callable(what):
            return what(self.reward)
        return [getattr(term, what)(self.reward) for term in self.terms]


class Objective:
    """``sum_terms weight * sum_rows weight * log P(row) + log prior``, to be maximized.

    Args:
        reward: the module to learn.
        terms: what was observed.
        prior: on the parameters of the reward; None: flat, the maximum-likelihood estimate.
        fixed: parameters that keep the given value, by name.
        bounds: (lower, upper) by name; None: unbounded on that side.
    """

    def __init__(
        self,
        reward: nn.Module,
        terms: Sequence[Term],
        *,
        prior: Normal | None = None,
        fixed: Mapping[str, float] | None = None,
        bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
        start: Mapping[str, float] | None = None,
    ):
        if not terms:
            raise ConfigError("nothing to fit: give at least one term")
        self.reward, self.terms, self.prior = reward, list(terms), prior
        self._joint = Joined(reward, self.terms)
        self._parameters = {n: p for n, p in self._joint.named_parameters() if p.requires_grad}
        self.names = [label for n, p in self._parameters.items() for label in self._labels(n, p)]
        self.is_reward = np.array(
            [n.startswith("reward.") for n, p in self._parameters.items() for _ in range(p.numel())], bool
        )
        if len(set(self.names)) != len(self.names):
            doubled = next(n for n in self.names if self.names.count(n) > 1)
            raise ConfigError(f"two parameters are named {doubled!r}; give features and sources different names")
        if self.is_reward.any() and not fixed and all(t.source.log_temperature.requires_grad for t in self.terms):
            raise ConfigError(
                "every source fits its temperature, but reward and temperatures have one scale in common; "
                "keep the temperature of one source fixed"
            )
        current = self.current()
        self.free = torch.ones(len(self.names), dtype=torch.bool)
        self.lower, self.upper = torch.full_like(current, -torch.inf), torch.full_like(current, torch.inf)
        for name, value in {**(start or {}), **(fixed or {})}.items():
            current[self._number(name)] = float(value)
        for name, (low, high) in (bounds or {}).items():
            k = self._number(name)
            self.lower[k] = -torch.inf if low is None else low
            self.upper[k] = torch.inf if high is None else high
            if not self.lower[k] <= self.upper[k]:
                raise ConfigError(f"the bounds of {name!r} are {low} and {high}; the lower must not exceed the upper")
        for name, value in (fixed or {}).items():
            k = self._number(name)
            self.free[k] = False
            if not self.lower[k] <= value <= self.upper[k]:
                raise ConfigError(f"{name!r} is fixed at {value}, outside its bounds; change one of them")
        self.start = current.clamp(self.lower, self.upper)
        # A typical size of each parameter's effect, so that an optimizer need not care for units; 1 where unknown.
        self.scale = torch.ones_like(current)
        sizes = getattr(reward, "parameter_scale", None)
        if sizes is not None and "reward.theta" in self._parameters:
            before = itertools.takewhile(lambda name: name != "reward.theta", self._parameters)
            offset = sum(self._parameters[name].numel() for name in before)
            self.scale[offset : offset + len(sizes)] = sizes
        self._unit_weights = [term.row_weight[term.unit_row] for term in self.terms]
        self.evaluations = 0

    def _labels(self, name: str, parameter: Tensor) -> list[str]:
        kind, _, rest = name.partition(".")
        if kind == "reward":
            own = getattr(self.reward, "parameter_labels", {}).get(rest)
            if own is not None:
                return list(own)
        else:
            number, _, rest = rest.partition(".")
            source = self._joint.sources[int(number)]
            rest = next(t.name for t in self.terms if t.source is source) + "." + rest
        return [rest] if parameter.numel() == 1 else [f"{rest}[{k}]" for k in range(parameter.numel())]

    def _number(self, name: str) -> int:
        if name not in self.names:
            shown = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
            raise ConfigError(f"there is no parameter {name!r}; the parameters are {shown}")
        return self.names.index(name)

    def current(self) -> Float[Tensor, "parameters"]:
        """The vector the modules hold now, in float64."""
        parts = [p.detach().reshape(-1).double() for p in self._parameters.values()]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)

    def assign(self, theta: Float[Tensor, "parameters"]) -> None:
        """Writes a vector into the modules. Refuses one that is not finite."""
        finite_or_raise("the parameter vector", theta, self.names)
        with torch.no_grad():
            for parameter, values in zip(self._parameters.values(), self._split(theta), strict=True):
                parameter.copy_(values)

    def copied_reward(self, theta: Float[Tensor, "parameters"]) -> nn.Module:
        """A copy of the reward at other parameters; nothing that exists is changed."""
        reward = copy.deepcopy(self.reward)
        own = dict(reward.named_parameters())
        with torch.no_grad():
            for name, values in zip(self._parameters, self._split(theta), strict=True):
                if name.startswith("reward."):
                    own[name.removeprefix("reward.")].copy_(values)
        return reward

    def _split(self, theta: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self._parameters.values()]
        parts = zip(self._parameters.values(), theta.split(sizes), strict=True)
        return [part.view(p.shape).to(p.dtype) for p, part in parts]

    def unit_log_probs(self, theta: Tensor) -> list[Tensor]:
        """For each term the log-likelihood of its factors, unweighted. Differentiable in theta, twice."""
        return self._of_terms("unit_log_prob", theta)

    def _of_terms(self, what: str, theta: Tensor) -> list[Any]:
        return self.evaluated(theta, what)

    def evaluated(self, theta: Tensor, what: Callable[[Any], Any] | str) -> Any:
        """A function of the reward (and of the terms' sources) at other parameters; differentiable in theta."""
        return torch.func.functional_call(
            self._joint, dict(zip(self._parameters, self._split(theta), strict=True)), (what,)
        )

    def unit_weights(self) -> list[Tensor]:
        return self._unit_weights

    def log_prior(self, theta: Tensor) -> Tensor:
        if self.prior is None:
            return theta.new_zeros(())
        return self.prior.log_density(theta[torch.from_numpy(self.is_reward)])

    def value(self, theta: Tensor) -> Tensor:
        """The objective. Raises NonFiniteError naming rows, InfeasibleError."""
        self.evaluations += 1
        total = self.log_prior(theta)
        sums = self._of_terms("total", theta)
        if all(bool(torch.isfinite(x)) for x in sums):
            return total + sum(sums)
        for term, values, weight in zip(self.terms, self.unit_log_probs(theta), self.unit_weights(), strict=True):
            if not torch.isfinite(values.detach()).all():
                rows = term.unit_row[~torch.isfinite(values.detach())].unique()
                ids = [term.feedback.id[int(r)] for r in rows]
                finite_or_raise(f"the log-likelihood of {term.name!r}", torch.full((len(ids),), torch.nan), ids)
            total = total + (values * weight).sum()
        return total

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """The objective and its gradient. Fixed parameters have gradient 0."""
        theta = theta.detach().requires_grad_()
        value = self.value(theta)
        gradient = torch.autograd.grad(value, theta)[0] if len(theta) else torch.empty_like(theta)
        finite_or_raise("the gradient", gradient, self.names)
        return float(value.detach()), torch.where(self.free, gradient, 0.0)

    def trial(self, theta: Tensor) -> tuple[float, Tensor, Exception | None]:
        """As :meth:`value_and_gradient`, but a point without a finite value has value -inf, and says why."""
        try:
            return (*self.value_and_gradient(theta), None)
        except (InfeasibleError, NonFiniteError) as error:
            return -np.inf, torch.zeros_like(theta), error

    def derivatives(self, theta: Tensor) -> tuple[Tensor, list[Float[Tensor, "_ parameters"]]]:
        """The Hessian of the objective, and for each term the scores: d log-likelihood of each factor / d theta.

        Both by differentiating the gradient once more. With ``g = J' c``, J of what the parameters reach without a
        solver and c the weights of that, the derivative of ``g_k`` by theta is a row of the Hessian (but for what lies
        beyond) and by c a column of J. Scores are unweighted; the Hessian is symmetrized.
        """
        theta = theta.detach().requires_grad_()
        parts: list[Factors] = self._of_terms("factors", theta)
        slopes = [part.slope.clone().requires_grad_() for part in parts]
        total = self.log_prior(theta) + sum((part.inner * c).sum() for part, c in zip(parts, slopes, strict=True))
        gradient = torch.autograd.grad(total, theta, create_graph=True)[0]
        hessian = torch.zeros(len(theta), len(theta), dtype=torch.float64)
        columns = [torch.zeros(len(theta), *c.shape, dtype=torch.float64) for c in slopes]
        for k in range(len(theta)):
            row, *found = torch.autograd.grad(gradient[k], [theta, *slopes], retain_graph=True, materialize_grads=True)
            hessian[k] = row
            for column, one in zip(columns, found, strict=True):
                column[k] = one
        scores = []
        for part, column in zip(parts, columns, strict=True):
            score, beyond = part.finish(column)
            scores.append(score)
            hessian = hessian + beyond
        return (hessian + hessian.T) / 2, scores
