"""The errors a user can meet. Each says what was asked, what was given and what to do, in one sentence."""

from __future__ import annotations

from dataclasses import dataclass


class IrlhfError(Exception):
    """Base of all errors that are the input's fault, not the program's. The command line prints it and exits 2."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in one place of a file. ``line`` counts from 1 and includes the header; None: the whole file."""

    file: str
    line: int | None
    field: str | None
    reason: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}, field {self.field!r}: {self.reason}" if self.field else f"{place}: {self.reason}"


class DataError(IrlhfError):
    """Input that cannot be read. ``problems`` lists each place; the message shows up to 20 of them."""

    SHOWN = 20

    def __init__(self, problems: list[Problem] | Problem):
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        lines = [str(problem) for problem in self.problems[: self.SHOWN]]
        if len(self.problems) > self.SHOWN:
            lines.append(f"... and {len(self.problems) - self.SHOWN} more")
        super().__init__("\n".join(lines))


class ConfigError(IrlhfError):
    """A setting that cannot be honored: names the setting, what was given and what is possible."""


class TrajectoryError(ConfigError):
    """A trajectory that its world does not allow; ``item`` is its number among those that were laid out."""

    def __init__(self, item: int, reason: str):
        self.item, self.reason = item, reason
        super().__init__(f"trajectory {item}, {reason}")


class CheckpointError(IrlhfError):
    """A run directory or checkpoint that cannot be used: damaged, of another model, or in use by another process."""


class InfeasibleError(IrlhfError):
    """The partition function diverges at these parameters (undiscounted sum of positive rewards)."""


class NonFiniteError(IrlhfError):
    """A NaN or an infinity where a finite number is needed: names the tensor and the ids of the rows it came from."""


class ProcessError(IrlhfError):
    """Another process of this fit failed or did not answer: names it, its machine and the step."""
