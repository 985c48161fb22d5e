"""``irlhf whatif``: a fit in, and what its people would do if the world were another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from irlhf.cli.guard import guarded, say, write
from irlhf.errors import ConfigError

# torch and the worlds take seconds to import: the command does it, so that --help need not

SHOWN = 10  # largest changes of each table on the screen


@guarded
def whatif(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run that irlhf fit made.", show_default=False)],
    discount: Annotated[float | None, typer.Option(metavar="X", help="What the next step counts for instead.")] = None,
    horizon: Annotated[int | None, typer.Option(metavar="N", help="After how many steps episodes end instead.")] = None,
    transitions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV with other transitions; pairs it lacks become impossible.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV with other features, of the same names.")
    ] = None,
    forbid: Annotated[
        list[str] | None,
        typer.Option(metavar="ACTION", help="Not possible any more; or STATE:ACTION. May repeat."),
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A parameter that has this value. May be repeated.")
    ] = None,
    scale: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FACTOR", help="A parameter that is so many times as large.")
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option(metavar="STATE", help="Start there, not where people did; or STATE:DESTINATION. May be repeated."),
    ] = None,
    money: Annotated[
        str | None, typer.Option(metavar="NAME", help="A parameter that prices something: welfare in its units.")
    ] = None,
    errors: Annotated[
        str | None, typer.Option(metavar="WORD", help="hessian, opg or sandwich. Default: as the run was fitted.")
    ] = None,
    cluster: Annotated[str | None, typer.Option(metavar="WORD", help="person, context or datum.")] = None,
    draws: Annotated[
        int | None, typer.Option(metavar="N", help="Intervals by simulation, not by the delta method.", min=2)
    ] = None,
    table: Annotated[
        str | None, typer.Option(metavar="WORD", help="Print this table alone: welfare, policy, flows or visits.")
    ] = None,
    format: Annotated[str, typer.Option(metavar="WORD", help="text, markdown, latex, csv or json.")] = "text",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write every table there, as CSV.")] = None,
) -> None:
    """What people would do if the world were another: policy, flows and welfare, with intervals.

    Their reward stays as it was fitted; what changes is the world, the
    features, or a parameter. Errors are those of the estimates.

    \b
    irlhf whatif runs/buses --discount 0.9
    irlhf whatif runs/buses --scale replace=1.2 --money cost
    irlhf whatif runs/trips --forbid 17 --table flows --format csv
    irlhf whatif runs/trips --features without-tolls.csv --start 3:12

    \b
    welfare   the expected value of a start, in units of the reward
    policy    the probability of each action in each state
    flows     how often each action is taken in each state, on a trip
    visits    how often each state is left, on a trip
    """
    from irlhf.cli import finished
    from irlhf.config import world_config
    from irlhf.tables import FORMATS, formatted

    names = ("welfare", "policy", "flows", "visits")
    if table is not None and table not in names:
        raise ConfigError(f"table is {table!r}; choose one of {', '.join(names)}")
    if format not in (*FORMATS, "json"):
        raise ConfigError(f"format is {format!r}; choose one of {', '.join(FORMATS)}, json")
    job = finished.reopen(run)
    counterfactual = getattr(world_config(job.settings.world), "counterfactual", None)
    if counterfactual is None:
        raise ConfigError(f"the world {job.settings.world!r} cannot be solved, so it has no counterfactuals")
    how = {"discount": discount, "horizon": horizon, "transitions": transitions, "features": features}
    how |= {"forbid": forbid or [], "set": _numbers(set, "--set"), "scale": _numbers(scale, "--scale")}
    how |= {"start": start or [], "money": money, "draws": draws, "cluster": cluster or job.settings.cluster}
    how["errors"] = errors or ("sandwich" if cluster else job.settings.error_kind)
    found = counterfactual(job.setup, finished.refit(job, run), how)
    say(*(f"note: {note}" for note in job.warnings))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, rows in found.tables.items():
            write(out / f"{name}.csv", formatted(rows, "csv"))
        say(f"welfare.csv, policy.csv, flows.csv and visits.csv are in {out}")
    if format == "json":
        plain = {name: json.loads(rows.reset_index().to_json(orient="records")) for name, rows in found.tables.items()}
        shown = plain if table is None else {table: plain[table]}
        print(json.dumps({"errors": found.how, **shown}, indent=2))
        return
    if table is not None:
        print(formatted(found.tables[table], format), end="")
        return
    print(formatted(_narrow(found.welfare), format, caption=f"Welfare (standard errors: {found.how})"))
    for name in ("policy", "visits"):
        rows = found.tables[name]
        largest = rows.loc[rows["change"].abs().sort_values(ascending=False, kind="stable").index[:SHOWN]]
        what = {"policy": "Probabilities of actions", "visits": "Visits of states on a trip"}[name]
        print(formatted(_narrow(largest), format, caption=f"{what}: the largest changes of {len(rows)}"))


def _narrow(table: Any) -> Any:
    """What fits a screen: before, after, and the change with its interval."""
    kept = [c for c in table.columns if c in ("before", "after") or str(c).startswith("change")]
    return table[kept].rename(columns=lambda c: str(c).removeprefix("change: "))


def _numbers(given: list[str] | None, flag: str) -> dict[str, float]:
    found = {}
    for text in given or []:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise ConfigError(f"{flag} {text!r} is not NAME=NUMBER")
    return found
