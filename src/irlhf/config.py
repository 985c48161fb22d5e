"""Settings of a fit: one TOML file, flags that override it, and refusals that a stranger understands.

:class:`Settings` has what every world shares. A world's ``config`` module extends it (``Settings``) and says
how files become a world, a reward and feedback (``from_config``, ``read``); :func:`world_config` finds that module by
name, so a new world touches no file here.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from irlhf.errors import ConfigError
from irlhf.io.wording import nearest, shown

FILE_CAP, LINE_CAP = 1 << 16, 4000  # bytes of a configuration, and of a line of it: dotted keys take quadratic time
FIT, SOURCES, RUN = "How to fit", "Whom to believe how much", "The run"  # headings of `irlhf fit --help`

# ------------------------------------------------------------------------------------------------ types of settings


def _path(value: Path) -> Path:
    if not str(value).strip() or not str(value).isprintable() or len(str(value)) > 4000:
        raise ValueError("is not a path of printable characters")
    return Path(os.path.abspath(value))


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str | os.PathLike) else value


def named(form: str, parse: Callable[[str], Any] = lambda text: text) -> BeforeValidator:
    """A table of settings by name: a TOML table, or flags ``NAME=VALUE``. ``parse`` reads a value that is text."""

    def table(given: Any) -> Any:
        if isinstance(given, list | tuple):
            pairs = [text.rpartition("=") if isinstance(text, str) else ("", "", text) for text in given]
            if wrong := [text for text, (name, _, _) in zip(given, pairs, strict=True) if not name.strip()]:
                raise ValueError(f"found {shown(wrong[0])}; write {form}")
            given = {}
            for name, _, value in pairs:
                if name.strip() in given:
                    raise ValueError(f"{name.strip()!r} is given twice; give it once")
                given[name.strip()] = value
        if not isinstance(given, Mapping):
            raise ValueError(f"found {shown(given)}; write {form}")
        return {name: parse(value) if isinstance(value, str) else value for name, value in given.items()}

    return BeforeValidator(table)


def _range(text: str) -> Any:
    low, colon, high = text.partition(":")
    if not colon:
        raise ValueError(f"found {shown(text)}; write LOW:HIGH, one of which may be left out")
    return (low.strip() or None, high.strip() or None)


def _open_range(value: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    low, high = value
    if low is not None and high is not None and low > high:
        raise ValueError(f"the lower bound {low:g} exceeds the upper bound {high:g}")
    return value


File = Annotated[Path, AfterValidator(_path)]
Files = Annotated[list[File], BeforeValidator(_one_or_more)]
Bound = Annotated[tuple[float | None, float | None], AfterValidator(_open_range)]
Ties = Literal["davidson", "rao-kupper"]
Model = TypeVar("Model", bound=BaseModel)


def setting(default: Any, help: str, heading: str = FIT, metavar: str | None = None, **limits: Any) -> Any:
    """A field of settings: what it means, and under which heading of ``--help`` it goes."""
    return Field(default, description=help, json_schema_extra={"heading": heading, "metavar": metavar}, **limits)


# ---------------------------------------------------------------------------------------------------------- settings


class Strict(BaseModel):
    """Settings that refuse what they do not know, and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class SourceSettings(Strict):
    """One source: ``[sources.NAME]`` in the file. None: the default, explained on the screen."""

    temperature: float | None = Field(None, gt=0)
    fit_temperature: bool | None = None
    ties: Ties | None = None
    noise: float | None = Field(None, ge=0, lt=1)
    fit_noise: bool = False
    position: float | None = None
    fit_position: bool = False


class Settings(Strict):
    """What every world shares. ``FILES`` names the settings that are data files: relative to the configuration."""

    FILES: ClassVar[tuple[str, ...]] = ()
    NAMES: ClassVar[tuple[str, ...]] = ()  # settings that may name a folder beside the configuration, or something else
    MAY_CHANGE: ClassVar[tuple[str, ...]] = (  # when a run is resumed
        "out", "max_steps", "errors", "cluster", "report", "tensorboard",
    )  # fmt: skip

    world: str = setting("tabular", "The kind of world: a name, or the dotted path of a module.", RUN, "NAME")
    prior: float | None = setting(None, "Standard deviation of a Gaussian prior on the reward's parameters.", gt=0)
    fix: Annotated[dict[str, float], named("NAME=VALUE")] = setting(
        {}, "Keep a parameter at a value.", FIT, "NAME=VALUE"
    )
    bound: Annotated[dict[str, Bound], named("NAME=LOW:HIGH", _range)] = setting(
        {}, "Keep a parameter in a range.", FIT, "NAME=LOW:HIGH"
    )
    start: Annotated[dict[str, float], named("NAME=VALUE")] = setting(
        {}, "Where the search for a parameter starts.", FIT, "NAME=VALUE"
    )
    optimizer: Literal["lbfgs", "adam"] | None = setting(
        None, "How to search: lbfgs, or adam (default for a neural reward)."
    )
    max_steps: int | None = setting(None, "Stop after so many steps (default: 1000).", ge=1, le=10**9)
    tolerance: float = setting(1e-9, "Stop when no more than so many nats are to be gained (lbfgs).", gt=0)
    rate: float = setting(1e-2, "Learning rate (adam).", gt=0)
    errors: Literal["hessian", "opg", "sandwich"] | None = setting(
        None,
        "Standard errors: hessian (default), opg (outer product of scores), or sandwich (default of --cluster).",
    )
    cluster: Literal["person", "context", "datum"] | None = setting(None, "Add up scores within clusters first.")
    ties: Ties | None = setting(None, "How two equal answers arise, in every source that has some.", SOURCES)
    likelihood: Literal["exact", "sampled"] | None = setting(
        None, "How demonstrations are explained: exact, out of everything possible, or sampled, out of drawn rivals."
    )
    rivals: int = setting(8, "Rivals drawn for each demonstration (sampled).", ge=1, le=10**6)
    sources: dict[str, SourceSettings] = setting(
        {},
        "In the file only: [sources.NAME] with temperature, ties, noise, position, and whether to fit_ them.",
        SOURCES,
    )
    temperature_by: Literal["source", "person"] = setting(
        "source", "Who has a temperature: every source, or every person in it (all but one are fitted).", SOURCES
    )
    holdout: float = setting(0.0, "Hold out this share of the feedback, to be predicted.", RUN, "SHARE", ge=0, lt=1)
    split_by: Literal["datum", "person", "context"] = setting("datum", "Hold out whole groups of these.", RUN)
    seed: int = setting(
        0, "Of everything random: which rows are held out, where a network starts.", RUN, ge=0, lt=2**63
    )
    out: File | None = setting(
        None, "The run directory (default: runs/NAME OF THE FILE, or runs/DATE-TIME).", RUN, "DIR"
    )

    report: bool = setting(True, "Write report.html when the fit is done.", RUN)
    tensorboard: bool = setting(False, "Write the curve for TensorBoard, too (needs the package).", RUN)

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        if self.cluster and self.errors == "hessian":
            raise ValueError(
                "--errors is hessian and --cluster is given, but the inverse Hessian knows no clusters; "
                "choose --errors sandwich or --errors opg, or leave --cluster out"
            )
        for name in self.fix.keys() & self.start.keys():
            raise ValueError(f"{name!r} is in --fix and in --start; a fixed parameter needs no start")
        return self

    @property
    def error_kind(self) -> str:
        """The kind of standard errors; the inverse Hessian knows no clusters."""
        return self.errors or ("sandwich" if self.cluster else "hessian")

    @classmethod
    def flag_for(cls, name: str) -> str:
        """Where a data file of this name belongs, if somebody gives it in place of a configuration."""
        return f"--{cls.FILES[0]}"

    def data_files(self) -> list[Path]:
        """All files that the fit reads, in the order of ``FILES``."""
        values = [getattr(self, name) for name in self.FILES]
        return [path for value in values if value for path in (value if isinstance(value, list) else [value])]


# ----------------------------------------------------------------------------------------------------- worlds by name


@dataclass(frozen=True, eq=False)
class Setup:
    """What a world's ``from_config(settings)`` makes of a configuration: what :mod:`irlhf.cli.jobs` fits.

    ``feedback`` is in the parts it was read in; ``notes`` are sentences for the screen; ``about`` goes into the result.
    """

    world: Any
    reward: Any
    feedback: list[Any]
    kind: str = ""  # of the likelihood of demonstrations: causal, weighted or anticipative; empty: the world's own
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    estimate: Any = None  # of the transitions, if they were estimated
    likelihood: str = "exact"  # of demonstrations, where the settings do not say: exact, sampled or variational
    model: Any = None  # what of a trajectory is compared; None: its return
    proposal: Any = None  # what rivals are drawn from where demonstrations are sampled; None: the base measure
    prior: float | None = None  # standard deviation, where the settings give none
    minibatches: dict[str, Any] | None = None  # rows, at_once, epochs, rate: of a fit some rows at a time
    fit_temperatures: bool = True  # whether all sources but one fit theirs, where the settings do not say
    temperatures: Mapping[int, float] = field(default_factory=dict)  # of sources by kind of feedback; 1 where not
    policy: Any = None  # learned with the reward, where demonstrations are explained by one: variational
    rounds: int | None = None  # of such a fit
    judge: Callable[..., Any] | None = None  # (world, policy, held-out, kept demonstrations) -> a table
    first_pass: Callable[[Sequence[Any], Callable[[dict[str, Any]], None]], None] | None = None
    """Given all batches of the terms before the first step, and whom to tell ``{"read": ..., "of": ...}``."""


@dataclass(frozen=True)
class Learning:
    """How ``irlhf distill`` learns in a world where flags do not say: a world's ``LEARNING``."""

    learner: str = "rloo"
    rate: float | None = None  # None, here and below: the learner's own
    steps: int | None = None
    batch: int | None = None  # contexts in a step; None: all
    at_once: int | None = None  # draws in a backward pass; None: all
    judged: int = 200_000  # draws that the policy is judged by, at most
    choices: int = 1000  # of best-of-n, at least


def world_names() -> list[str]:
    """The worlds that come with the library."""
    spec = importlib.util.find_spec("irlhf.worlds")  # its path only: no world is imported
    return [module.name for module in pkgutil.iter_modules(spec and spec.submodule_search_locations)]


def learning_of(world: str) -> Learning:
    """What a world, by its name, learns with where flags do not say."""
    return getattr(world_config(world), "LEARNING", Learning())


def world_config(name: Any) -> Any:
    """The configuration module of a world, which has ``Settings``, ``from_config(settings)``, ``read(settings, path)``.

    It may have ``pictures(fit)``, and ``keep(setup) -> tensors, info`` with ``from_kept(settings, tensors, info)``: how
    a run can be used without the files that it was fitted to, and ``scored(setup, path)``, the records of a file with
    a score, for ``irlhf score``. For ``irlhf distill``, whose settings are ``how``, it has ``contexts_of(setup, how) ->
    contexts`` as JSON can hold them, ``policy_of(setup, contexts, how) -> policy, contexts`` as the world draws from
    them, and ``policy_files(setup, policy) -> {name: bytes}``; it may have ``LEARNING``, a :class:`Learning`, and
    ``learner_of(setup, **given)``, where learners of whole trajectories are not for it. For ``irlhf whatif`` it may
    have ``counterfactual(setup, fit, how) -> tables``.

    Raises ConfigError for a world that is not there, lacks one of them, or needs a package that is not installed.
    """
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"world is {shown(name)}; it must be a name or a dotted path; {nearest('', world_names())}")
    dotted = name if "." in name else f"irlhf.worlds.{name}"
    try:
        module = importlib.import_module(f"{dotted}.config")
    except ModuleNotFoundError as error:
        if error.name is None or not f"{dotted}.config".startswith(error.name):
            if error.name is None or error.name.startswith("irlhf"):
                raise
            extra = f'pip install "irlhf[{name}]"' if "." not in name else "install it"
            raise ConfigError(f"the world {name!r} needs the package {error.name}, which is missing: {extra}") from None
        raise ConfigError(f"there is no world {name!r}; {nearest(name, world_names())}") from None
    if lacks := [part for part in ("Settings", "from_config", "read") if not hasattr(module, part)]:
        raise ConfigError(f"the world {name!r} has no {', '.join(lacks)} in {dotted}.config; choose another world")
    return module


# --------------------------------------------------------------------------------------------- reading a configuration


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a file, paths made relative to its folder. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_CAP + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"the configuration {os.fspath(path)} cannot be read: {reason}; check the path") from None
    if len(data) > FILE_CAP:
        raise ConfigError(f"the configuration {os.fspath(path)} is larger than {FILE_CAP:,} bytes; is it another file?")
    return parse_toml(data, os.fspath(path))


def parse_toml(data: bytes, name: str) -> dict[str, Any]:
    """The settings in the bytes of a TOML file called ``name``. Raises ConfigError."""
    if long := [number for number, line in enumerate(data.split(b"\n"), 1) if len(line) > LINE_CAP]:
        raise ConfigError(f"{name}, line {long[0]}, is longer than {LINE_CAP} bytes; break it into several")
    try:
        raw = tomllib.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply to be a configuration; write it flatter") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from None
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(f"{name} is not TOML: {reason}; write lines like discount = 0.99") from None
    return raw


def settings_from(
    raw: Mapping[str, Any], *, folder: Path | None = None, flags: Mapping[str, Any] | None = None, where: str = ""
) -> Any:
    """Validated settings of the world that is named in them, from those of a file and of flags that override them.

    Args:
        raw: as in a file: dashes and underscores in names are alike.
        folder: what paths in ``raw`` are relative to; those in ``flags`` are relative to the working directory.
        where: how to name the file in an error.

    Raises:
        ConfigError: names each setting that is unknown or wrong, and what is possible.
    """
    given: dict[str, Any] = {}
    for name, value in raw.items():
        plain = name.replace("-", "_")
        if plain in given:
            raise ConfigError(f"{where}the setting {plain!r} is there twice, with a dash and an underscore; keep one")
        given[plain] = value
    world = {**given, **(flags or {})}.get("world", "tabular")
    model: type[Settings] = world_config(world).Settings
    if folder is not None:
        for name in (*model.FILES, "out"):
            if name in given:
                given[name] = _beside(folder, given[name])
        for name in model.NAMES:
            if isinstance(given.get(name), str) and (beside := Path(folder, given[name])).exists():
                given[name] = str(beside)
    return validated(model, given, flags or {}, where)


def validated(model: type[Model], given: Mapping[str, Any], flags: Mapping[str, Any], where: str = "") -> Model:
    """Settings out of a file and out of flags that override them. Raises ConfigError naming each that is wrong."""
    try:
        return model.model_validate({**given, **flags})
    except ValidationError as error:
        raise ConfigError(where + _sentence(error, model, flags)) from None


def _beside(folder: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_beside(folder, item) for item in value]
    return os.path.join(folder, value) if isinstance(value, str) and value.strip() else value


def _sentence(error: ValidationError, model: type[BaseModel], flags: Mapping[str, Any]) -> str:
    """What pydantic found, in one sentence: every wrong setting, what was given, what is possible."""
    reasons: dict[str, None] = {}  # a set that keeps its order
    for problem in error.errors(include_url=False):
        place = [
            str(part)[:60] for part in problem["loc"] if not (isinstance(part, str) and part.startswith("function"))
        ]
        name, found, kind = ".".join(place), shown(problem["input"]), problem["type"]
        if place and place[0] in flags:  # said as it was given
            name = " ".join([f"--{place[0].replace('_', '-')}", *(part for part in place[1:2] if not part.isdigit())])
        if kind == "extra_forbidden":
            nested = place[0] == "sources" and len(place) == 3
            known = SourceSettings.model_fields if nested else model.model_fields
            reasons[f"unknown setting {name!r}; {nearest(place[-1].replace('-', '_'), list(known))}"] = None
        elif kind == "value_error":
            reason = str(problem["ctx"]["error"]) if "ctx" in problem else problem["msg"]
            reasons[f"{name}: {reason}" if name else reason] = None
        else:
            should = (
                problem["msg"]
                .removeprefix("Input should be ")
                .partition(", unable to")[0]
                .replace("valid ", "")
                .replace("a integer", "a whole number")
            )
            reasons[f"{name} is {found}, but should be {should[:200]}"] = None
    more = f"; and {len(reasons) - 10} more" if len(reasons) > 10 else ""
    return "; ".join(list(reasons)[:10]) + more
