"""Numbers and counts as readers expect them."""

from __future__ import annotations

from typing import Any

import numpy as np

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(x: Any, digits: int = 4) -> str:
    """So many significant digits, a true minus sign, thin groups of thousands, powers of ten where they are needed.

    Example:
        >>> number(-1234.5678), number(0.5), number(2e-9, 2), number(float("inf"))
        ('−1\u202f235', '0.5000', '2.0·10⁻⁹', '∞')
    """
    x = float(x)
    if np.isnan(x):
        return "–"
    if np.isinf(x):
        return "∞" if x > 0 else "−∞"
    size = abs(x)
    if size and (size < 1e-4 or size >= 1e7):
        mantissa, exponent = f"{x:.{min(digits, 3) - 1}e}".split("e")
        text = f"{mantissa}·{power_of_ten(int(exponent))}"
    elif x == round(x):
        text = f"{int(x):,}"
    else:
        decimals = max(digits - 1 - int(np.floor(np.log10(size))), 0)
        text = f"{x:,.{decimals}f}"
    return text.replace("-", "−").replace(",", "\u202f")


def power_of_ten(exponent: int) -> str:
    return "10" + str(exponent).translate(_RAISED)


def plural(n: float | int, noun: str) -> str:
    """A count and its noun: "1 step", "2 steps"."""
    return f"{number(n)} {noun}" + ("" if n == 1 else "s")


def p_value(p: Any) -> str:
    """A p-value; below what anybody should believe, only that it is below."""
    return "< 0.0001" if p < 1e-4 else number(p, 2)
