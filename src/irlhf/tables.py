"""Tables for people: on a screen, in Markdown, in a paper (LaTeX), as CSV."""

from __future__ import annotations

import numpy as np
import pandas as pd

from irlhf.errors import ConfigError

FORMATS = ("text", "markdown", "latex", "csv")


def formatted(table: pd.DataFrame, how: str = "text", *, digits: int = 4, caption: str = "") -> str:
    """A table of numbers in one of ``FORMATS``.

    Markdown and LaTeX (with the rules of booktabs) have ``digits`` after the point; CSV has every digit.

    Raises:
        ConfigError: another format, or the package tabulate is missing.
    """
    if how not in FORMATS:
        raise ConfigError(f"format is {how!r}; choose one of {', '.join(FORMATS)}")
    flat = table.reset_index() if table.index.nlevels > 1 or table.index.name else table
    named = table.index.nlevels == 1 and not table.index.name
    if how == "csv":
        return flat.to_csv(index=named, lineterminator="\n")
    if how == "text":
        shown = flat.to_string(index=named, float_format=lambda x: f"{x:.{digits}f}", na_rep="")
        return f"{caption}\n{shown}\n" if caption else f"{shown}\n"
    try:
        from tabulate import tabulate
    except ImportError:
        raise ConfigError(f'the format {how} needs the package tabulate: pip install "irlhf[report]"') from None
    headers = ([""] if named else []) + [str(c) for c in flat.columns]
    cells = [[_cell(x, digits) for x in row] for row in flat.to_numpy(object)]
    if named:
        cells = [[str(name), *row] for name, row in zip(flat.index, cells, strict=True)]
    numeric = [False] * named + [pd.api.types.is_numeric_dtype(flat.dtypes.iloc[k]) for k in range(len(flat.columns))]
    align = ["right" if number else "left" for number in numeric]
    style = "latex_booktabs" if how == "latex" else "pipe"
    text = tabulate(cells, headers, tablefmt=style, colalign=align, disable_numparse=True)
    if not caption:
        return f"{text}\n"
    if how == "markdown":
        return f"{caption}\n\n{text}\n"
    return f"\\begin{{table}}\n\\caption{{{caption}}}\n{text}\n\\end{{table}}\n"


def _cell(x: object, digits: int) -> str:
    if isinstance(x, (float, np.floating)):
        return "" if np.isnan(x) else f"{x:.{digits}f}"
    return str(x)
