"""What one kind of person adds to the reward: temperature, ties, thresholds, mistakes, a liking for what came first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from irlhf.errors import ConfigError
from irlhf.functional.choice import davidson_log_prob, rao_kupper_log_prob

Derived = dict[str, tuple[str, Callable[[Tensor], Tensor]]]
"""By the name of a parameter: what people call the quantity behind it, and how to get there (increasing)."""


class Davidson(nn.Module):
    """Ties after Davidson (1970): a tie has utility ``log nu + (u_a + u_b)/2``; ``log_nu`` is fitted."""

    def __init__(self, nu: float = 1.0):
        super().__init__()
        if not nu > 0:
            raise ConfigError(f"nu is {nu}; it must be positive")
        self.log_nu = nn.Parameter(torch.tensor(float(np.log(nu)), dtype=torch.float64))

    def forward(self, first: Tensor, second: Tensor, outcome: Tensor) -> Tensor:
        return davidson_log_prob(first, second, outcome, self.log_nu)

    def derived(self) -> Derived:
        return {"log_nu": ("nu", torch.exp)}


class RaoKupper(nn.Module):
    """Ties after Rao and Kupper (1967): a difference below a threshold is not noticed; ``log theta >= 0`` is fitted.

    The parameter is ``raw`` with ``log theta = softplus(raw)``.
    """

    def __init__(self, theta: float = 2.0):
        super().__init__()
        if not theta > 1:
            raise ConfigError(f"theta is {theta}; it must exceed 1 (at 1 nothing ever ties)")
        self.raw = nn.Parameter(torch.tensor(float(np.log(np.expm1(np.log(theta)))), dtype=torch.float64))

    @property
    def log_theta(self) -> Tensor:
        return nn.functional.softplus(self.raw)

    def forward(self, first: Tensor, second: Tensor, outcome: Tensor) -> Tensor:
        return rao_kupper_log_prob(first, second, outcome, self.log_theta)

    def derived(self) -> Derived:
        return {"raw": ("theta", lambda raw: nn.functional.softplus(raw).exp())}


def davidson(nu: float = 1.0) -> Davidson:
    """Ties after Davidson (1970), starting at ``nu``."""
    return Davidson(nu)


def rao_kupper(theta: float = 2.0) -> RaoKupper:
    """Ties after Rao and Kupper (1967), starting at ``theta``."""
    return RaoKupper(theta)


class Source(nn.Module):
    """What one kind of person adds to the reward.

    Args:
        temperature: T_s; utilities are ``R/T_s``. Positive.
        fit_temperature: whether T_s is estimated (as ``log_temperature``). At least one source of a fit must keep it
            fixed: reward and temperatures have one scale in common.
        ties: how ties arise: ``davidson()`` or ``rao_kupper()``; None: there are none.
        thresholds: ``c_1 .. c_K`` of ratings, where the fit starts; None: zeros, as many as the feedback has levels.
        noise: the share of answers that are given by chance, all answers alike: ``(1 - noise) P + noise / n``.
        fit_noise: whether it is estimated (as ``log_odds_of_noise``), starting there (from 0: at 0.05).
        position: what being shown first adds to a utility, in nats.
        fit_position: whether it is estimated, starting there.

    Raises:
        ConfigError: a temperature that is not positive, a noise outside of [0, 1).
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        fit_temperature: bool = False,
        ties: Davidson | RaoKupper | None = None,
        thresholds: list[float] | None = None,
        noise: float | int = 0.0,
        fit_noise: bool = False,
        position: float | int = 0.0,
        fit_position: bool = False,
    ):
        super().__init__()
        if not (temperature > 0 and np.isfinite(temperature)):
            raise ConfigError(f"temperature is {temperature}; it must be positive")
        log_temperature = torch.tensor(float(np.log(temperature)), dtype=torch.float64)
        self.log_temperature = nn.Parameter(log_temperature, requires_grad=fit_temperature)
        self.ties = ties
        self.thresholds = nn.Parameter(torch.tensor(thresholds, dtype=torch.float64)) if thresholds else None
        if not 0 <= noise < 1:
            raise ConfigError(f"noise is {noise}; it is a share of answers: 0 or more, and below 1")
        if not np.isfinite(position):
            raise ConfigError(f"position is {position}; it must be a finite number of nats")
        self.log_odds_of_noise = self.position = None
        if noise or fit_noise:
            start = noise or 0.05
            log_odds = torch.tensor(float(np.log(start / (1 - start))), dtype=torch.float64)
            self.log_odds_of_noise = nn.Parameter(log_odds, requires_grad=fit_noise)
        if position or fit_position:
            self.position = nn.Parameter(torch.tensor(float(position), dtype=torch.float64), requires_grad=fit_position)

    @property
    def temperature(self) -> Float[Tensor, ""]:
        return self.log_temperature.exp()

    def derived(self) -> Derived:
        """The quantities behind the parameters that are fitted: T of log_temperature, nu of log_nu, and so on."""
        of_ties = {} if self.ties is None else self.ties.derived()
        ties: Derived = {f"ties.{name}": (f"ties.{plain}", to) for name, (plain, to) in of_ties.items()}
        return {"log_temperature": ("temperature", torch.exp), "log_odds_of_noise": ("noise", torch.sigmoid), **ties}

    def with_noise(self, log_prob: Float[Tensor, "rows"], answers: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """``log((1 - noise) P + noise / n)``: somebody who now and then answers by chance, of n possible answers."""
        if self.log_odds_of_noise is None:
            return log_prob
        log_odds = self.log_odds_of_noise
        kept, by_chance = nn.functional.logsigmoid(-log_odds), nn.functional.logsigmoid(log_odds)
        return torch.logaddexp(kept + log_prob, by_chance - answers.double().log())

    def require_levels(self, levels: int) -> None:
        """Makes room for the thresholds of ratings with so many levels. Raises ConfigError if there are others."""
        if self.thresholds is None:
            self.thresholds = nn.Parameter(torch.zeros(levels - 1, dtype=torch.float64))
        elif len(self.thresholds) != levels - 1:
            raise ConfigError(
                f"this source has {len(self.thresholds)} thresholds, but its ratings have {levels} levels, which need "
                f"{levels - 1}; give each scale its own source"
            )
