"""What the errors of all formats have in common: showing what was found, and suggesting what was meant."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Sequence
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 2, 6, 4
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: Any) -> str:
    """What was found, short enough for a sentence."""
    return _SHORT.repr(value)


def nearest(name: str, known: Sequence[str]) -> str:
    """A suggestion: the known name that looks most like ``name``, or all of them."""
    close = difflib.get_close_matches(name[:100].lower(), known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"the known ones are {', '.join(known)}"
