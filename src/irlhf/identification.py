"""What feedback can tell about a reward, and what it cannot: before anything is fitted, and afterwards.

A direction of the parameters is *blind* if the feedback has no information about it: the null space of the joint
information. Each source has a null space of its own (its gauge); what one is blind to, another may see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from irlhf import inference
from irlhf.errors import ConfigError
from irlhf.likelihood import Term
from irlhf.objective import Objective

RANK = 1e-8  # of the largest eigenvalue, in scaled parameters: information below this share is none
Direction = dict[str, float]


@dataclass(frozen=True)
class Blind:
    """A direction of the parameters that somebody is blind to."""

    direction: Direction
    """In the user's parameters, largest component 1."""
    meaning: str | None
    """What it is, where it has a name: shaping, a constant, the scale against a temperature."""
    seen_by: list[str] = field(default_factory=list)
    """Sources that see it; none: it is not identified."""

    def __str__(self) -> str:
        text = inference.direction_in_words(self.direction, self.meaning)
        return text + (f"; seen by {' and '.join(self.seen_by)}" if self.seen_by else "")


@dataclass(frozen=True, eq=False)
class Identification:
    """What feedback can tell. ``joint``: what none of it sees; ``by_source``: what each term alone is blind to."""

    parameters: int
    joint: list[Blind]
    by_source: dict[str, list[Blind]]

    @property
    def identified(self) -> bool:
        """Whether everything can be estimated."""
        return not self.joint

    def __str__(self) -> str:
        free = self.parameters
        lines = [
            f"All {free} parameters are identified."
            if self.identified
            else f"{free - len(self.joint)} of {free} directions of the parameters are identified. Not identified:"
        ]
        lines += [f"  {blind}" for blind in self.joint]
        for name, blinds in self.by_source.items():
            others = [blind for blind in blinds if blind.seen_by]
            if len(self.by_source) > 1 and others:
                lines.append(f"{name} alone would also be blind to:")
                lines += [f"  {blind}" for blind in others]
        return "\n".join(lines)


def identify(
    reward: nn.Module,
    terms: Sequence[Term] | Term,
    *,
    fixed: Mapping[str, float] | None = None,
    at: Mapping[str, float] | None = None,
) -> Identification:
    """What the feedback could tell about a reward, from its information; nothing is fitted.

    Args:
        fixed: parameters that are known.
        at: where to look, by name; default: the parameters as they are. A direction that is blind for a reason
            (shaping, a constant) is so wherever one looks.

    Raises:
        ConfigError: a variational term, more than 2,000 parameters.
        InfeasibleError: the partition function diverges there.
    """
    terms = [terms] if isinstance(terms, Term) else list(terms)
    if any(getattr(term.likelihood, "saddle", False) for term in terms):
        raise ConfigError("a variational term has no information of its own; leave it out")
    problem = Objective(reward, terms, fixed=fixed, start=at)
    if len(problem.names) > 2000:
        raise ConfigError(f"{len(problem.names)} parameters are too many for their information; fit, and use a prior")
    return _of(problem, problem.start)


def blind_spots(fit: Any) -> Identification:
    """The same for a fit, at its estimates. Raises ConfigError for a variational fit, or one by minibatches."""
    _ = fit.information  # refuses what has none
    return _of(cast(Objective, fit.problem), fit.theta)


def _of(problem: Objective, theta: Tensor) -> Identification:
    free = problem.free.nonzero()[:, 0]
    own = {term.name: information_of(problem, [term], theta) for term in problem.terms}
    total = sum(own.values(), torch.zeros(len(theta), len(theta)).double())
    joint = [_blind(problem, v, own) for v in _null_space(total[free][:, free], free, len(theta))]
    by_source = {}
    for name, information in own.items():
        concerned = torch.tensor([k for k in free.tolist() if not _of_other(problem, k, name)], dtype=torch.int64)
        null = _null_space(information[concerned][:, concerned], concerned, len(theta))
        by_source[name] = [_blind(problem, v, own) for v in null]
    return Identification(len(free), joint, by_source)


def _of_other(problem: Objective, k: int, name: str) -> bool:
    """Whether a parameter belongs to the source of another term."""
    if problem.is_reward[k]:
        return False
    term = next(t for t in problem.terms if t.name == name)
    mine = {t.name for t in problem.terms if t.source is term.source}
    return not any(problem.names[k].startswith(f"{one}.") for one in mine)


def information_of(problem: Objective, terms: Sequence[Term], theta: Tensor) -> Tensor:
    """[parameters, parameters] What some terms alone say, in scaled parameters: the outer product of what each answer
    could have said, or the observed information where that is not smaller."""
    # Held fixed in name only: a single source may then have a temperature that is free in the joint fit.
    held = {f"{term.name}.log_temperature": 0.0 for term in terms if term.source.log_temperature.requires_grad}
    own = Objective(cast(nn.Module, problem.reward), list(terms), fixed=held)
    numbers = torch.tensor([problem.names.index(name) for name in own.names])
    hessian, scores = own.derivatives(theta[numbers])
    scale = problem.scale[numbers]
    curvature = -hessian / scale[:, None] / scale
    # Observed information may lose its sign away from a maximum; scores then still say what is seen.
    if float(torch.linalg.eigvalsh(curvature)[0]) < -1e-8 * float(curvature.diagonal().abs().max()):
        curvature = inference.outer([g / scale for g in scores], own.unit_weights(), len(numbers))
    result = torch.zeros(len(theta), len(theta), dtype=torch.float64)
    result[numbers[:, None], numbers] = curvature
    return result


def _null_space(information: Tensor, numbers: Tensor, n: int) -> list[Tensor]:
    """Directions without information, as few parameters in each as can be: a reduced echelon form."""
    if not len(numbers):
        return []
    size, vectors = torch.linalg.eigh(information)
    basis = vectors[:, size <= RANK * max(float(size[-1]), 1e-300)].T.clone()
    for row in range(len(basis)):
        rest = basis[row:].abs()
        pivot = int(rest.max(0).values.argmax())
        best = row + int(rest[:, pivot].argmax())
        basis[[row, best]] = basis[[best, row]]
        basis[row] = basis[row] / basis[row, pivot]
        for other in range(len(basis)):
            if other != row:
                basis[other] = basis[other] - basis[other, pivot] * basis[row]
    full = torch.zeros(len(basis), n, dtype=torch.float64)
    full[:, numbers] = torch.where(basis.abs() > 1e-6, basis, 0.0)
    return list(full / full.norm(dim=1, keepdim=True).clamp(min=1e-300))


def _blind(problem: Objective, direction: Tensor, own: Mapping[str, Tensor]) -> Blind:
    seen = [
        name for name, information in own.items()
        if float(direction @ information @ direction) > RANK**0.5 * 1e-2 * float(information.diagonal().max())
    ]  # fmt: skip
    named = {name: float(x) for name, x in zip(problem.names, direction / problem.scale, strict=True) if x}
    largest = max(named.values(), key=abs, default=1.0)
    named = {name: x / largest for name, x in named.items()}
    return Blind(named, meaning(problem, named), seen)


def meaning(problem: Objective, direction: Mapping[str, float]) -> str | None:
    """What a direction is, in words, if it has a name."""
    temperatures = [name for name in direction if name.endswith(".log_temperature")]
    if temperatures:
        return "is the scale of the reward against temperatures" if len(direction) > len(temperatures) else None
    worlds = {id(t.likelihood.world): t.likelihood.world for t in problem.terms if hasattr(t.likelihood, "world")}
    for world in worlds.values():
        if hasattr(world, "explain") and (found := world.explain(problem.reward, direction)):
            return found
    return None
