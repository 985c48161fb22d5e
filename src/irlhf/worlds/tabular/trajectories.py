"""A path as JSON: what ``trajectory`` and ``shown`` hold in the JSON Lines of a tabular world.

{"states": [...], "actions": [...]}              one state more than actions where it is known where the path ended
... "next_states": [...], "times": [...]}        for a path with gaps: where each step led (null: nobody knows) and
                                                 when it was; one of the two is enough, as in a panel
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

from irlhf.io import label
from irlhf.io.wording import shown
from irlhf.worlds.tabular.paths import UNKNOWN, Path, Paths

FORM = '{"states": [...], "actions": [...]}'
FIELDS = ("states", "actions", "next_states", "times")
LATEST = 10**15


def parse_context(value: Any) -> Any:
    """A context is the label of a state, or nothing."""
    return None if value is None else label(value)


def parse_trajectory(value: Any) -> Path:
    """A path from its JSON value; without actions it is a path in a network.

    Raises:
        ValueError: says what was found and what is needed.
    """
    if not isinstance(value, dict) or not isinstance(value.get("states"), list):
        raise ValueError(f"found {shown(value)}; write a trajectory as {FORM}")
    if unknown := sorted(value.keys() - set(FIELDS)):
        raise ValueError(
            f"found the unknown field {shown(unknown[0])}; write a trajectory as {FORM}, one with gaps also with "
            "next_states and times"
        )
    states = tuple(map(label, value["states"]))
    actions = value.get("actions", list(states[1:]))
    if not isinstance(actions, list) or len(states) - len(actions) not in (0, 1):
        raise ValueError(
            f"found {len(states)} states and actions {shown(actions)}; give one action for each state, and, if it is "
            "known, the state where the trajectory ended"
        )
    if not actions:
        raise ValueError("there is no step in it; give at least one state and one action")
    actions = tuple(map(label, actions))
    following, times = value.get("next_states"), value.get("times")
    if following is None and times is None:
        return Path(states, actions)
    return _with_gaps(states, actions, following, times)


def _with_gaps(states: tuple[Any, ...], actions: tuple[Any, ...], following: Any, times: Any) -> Path:
    n = len(actions)
    if times is not None and not _are_times(times, n):
        raise ValueError(
            f"found times {shown(times)}; give one whole number for each of the {n} actions, from 0 and increasing"
        )
    at_once = [times is None or times[t + 1] == times[t] + 1 for t in range(n - 1)]
    usual = [*states[1:], UNKNOWN][:n]  # if nothing is missing
    if following is None:
        led = [state if t == n - 1 or at_once[t] else UNKNOWN for t, state in enumerate(usual)]
    elif isinstance(following, list) and len(following) == n:
        led = [UNKNOWN if state is None else label(state) for state in following]
    else:
        raise ValueError(f"found next_states {shown(following)}; give one for each of the {n} actions, null if unknown")
    if len(states) == n and led[-1] is not UNKNOWN:
        states, usual = (*states, led[-1]), [*usual[:-1], led[-1]]
    if led[-1] != usual[-1]:
        raise ValueError(
            f"the last of next_states is {_found(led[-1])}, but states end with {shown(states[-1])}; correct one"
        )
    for t in range(n - 1):
        if times is not None and at_once[t] and led[t] != states[t + 1]:
            raise ValueError(
                f"next_states[{t}] is {_found(led[t])}, but at the next time, {times[t + 1]}, the state is "
                f"{shown(states[t + 1])}; correct one of them, or leave a gap in times"
            )
    return _usual(Path(states, actions, tuple(led), None if times is None else tuple(times)))


def _usual(path: Path) -> Path:
    """The same path, with next states and times only if they are not what they would be without them."""
    return cast(Path, Paths.of([path])[0])


def _are_times(times: Any, n: int) -> bool:
    if not isinstance(times, list) or len(times) != n:
        return False
    if any(not isinstance(t, int) or isinstance(t, bool) or not 0 <= t < LATEST for t in times):
        return False
    return all(a < b for a, b in pairwise(times))


def _found(state: Any) -> str:
    return "null" if state is UNKNOWN else shown(state)


def trajectory_json(path: Path) -> dict[str, Any]:
    """The JSON value of a path, for ``write_jsonl``; :func:`parse_trajectory` gives the path back.

    Raises:
        ValueError: labels that are neither whole numbers nor text, or times that reading would refuse.
    """
    whole = _usual(path)
    value: dict[str, Any] = {"states": list(map(label, whole.states)), "actions": list(map(label, whole.actions))}
    if whole.next_states is not None or whole.times is not None:
        columns = Paths.of([whole])
        value["next_states"] = [None if state is UNKNOWN else label(state) for state in columns.next_state]
        value["times"] = columns.time.tolist()
    if parse_trajectory(value) != whole:
        raise ValueError(f"{shown(whole)} would be read back as {shown(parse_trajectory(value))}; use plain labels")
    return value
