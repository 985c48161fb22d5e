"""Where demonstrations were explained by rivals: log Z of each context, and a loud word where it cannot be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from irlhf.config import learning_of
from irlhf.fit import Fit
from irlhf.policy_fit import estimate_log_z
from irlhf.proposals import Pool
from irlhf.randomness import Key
from irlhf.simulated import sampled

LOOKED_AT = 4  # contexts of each term
COLUMNS = ("log_z", "standard_error", "effective_sample_size", "k_hat", "verdict")
LONGEST = 60  # characters of a context on the screen


def log_z(settings: Any, fit: Fit) -> dict[str, dict[str, Any]]:
    """For each term that was sampled, by its name: what ``result.json`` says of log Z.

    Fresh draws of the base measure, not the rivals of the fit: those the reward has seen. Where rivals came from a pool
    there is no log Z: a reward is then relative to the pool.
    """
    found = {}
    learning = learning_of(settings.world)
    for term in fit.terms:
        how = term.likelihood
        if not isinstance(how, sampled):
            continue
        if isinstance(how.proposal, Pool):
            found[term.name] = {"relative_to": "the pool"}
            continue
        world: Any = how.world
        origins = list(dict.fromkeys(term.prepared.origins))  # type: ignore[attr-defined]
        some = origins[:LOOKED_AT]
        n = int(np.clip(learning.judged // len(some), 32, 256))
        temperature = float(term.source.temperature.detach())
        key = Key(settings.seed).at("log_z", term.name)
        table = estimate_log_z(fit.reward, world, some, world.base_policy(), n=n, temperature=temperature, key=key)
        table.insert(0, "context", list(map(getattr(world, "name", str), some)))
        rows = table[["context", *COLUMNS]].to_dict("records")  # type: ignore[call-overload]
        found[term.name] = {"temperature": temperature, "draws": n, "contexts": len(origins), "estimates": rows}
    return found


def sentences(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same for people."""
    told = []
    for term, one in found.items():
        if "estimates" not in one:
            told.append(
                f"{term}: the reward is relative to the pool that rivals were picked from: it says what the "
                "chosen have more of, and there is no log Z"
            )
            continue
        rows, n = one["estimates"], one["draws"]
        for row in rows:
            context = " ".join(str(row["context"]).split())
            context = context if len(context) <= LONGEST else context[: LONGEST - 3] + "..."
            told.append(
                f"{term}: log Z {float(row['log_z']):.4f} ({float(row['standard_error']):.4f}) at {context}; "
                f"{float(row['effective_sample_size']):.1f} of {n} draws effective, k-hat {float(row['k_hat']):.2f}: "
                f"{row['verdict']}"
            )
        wrong = [row for row in rows if not str(row["verdict"]).startswith("reliable")]
        if len(rows) < one["contexts"]:
            told.append(f"{term}: these are {len(rows)} of {one['contexts']} contexts")
        if wrong:
            told.append(
                f"careful: {term}: log Z cannot be trusted at {len(wrong)} of {len(rows)} contexts: the reward is far "
                "from what the base measure draws, so few of its draws count"
            )
    return told
