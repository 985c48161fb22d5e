"""Rewrites the numbers in the README and in docs/ from what the commands print: ``make readme``; ``--check`` compares.

A block between ``<!-- printed by: irlhf demo lineup, table 2 -->`` and ``<!-- end -->`` holds that table as printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(<!-- printed by: irlhf demo (\w+), table (\d+) -->\n```text\n)(.*?)(```\n<!-- end -->)", re.DOTALL
)
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


@cache
def tables(demo: str) -> dict[str, str]:
    """The numbered tables that a demo prints, each with the lines below it."""
    command = [sys.executable, "-m", "irlhf", "demo", demo]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts = re.split(r"^(?=\d+\. )", printed, flags=re.MULTILINE)[1:]
    stripped = ["\n".join(line.rstrip() for line in part.rstrip().splitlines()) + "\n" for part in parts]
    return {part.partition(".")[0]: part for part in stripped}


def differences(written: str, printed: str) -> list[str]:
    """Lines that differ in words, or in numbers by more than one unit of their last digit (or both below 1e-8)."""
    found = []
    before, now = written.splitlines(), printed.splitlines()
    if len(before) != len(now):
        return [f"{len(before)} lines written, {len(now)} printed"]
    for a, b in zip(before, now, strict=True):
        numbers = list(zip(NUMBER.findall(a), NUMBER.findall(b), strict=False))
        words = " ".join(NUMBER.sub("#", a).split()), " ".join(NUMBER.sub("#", b).split())
        if words[0] != words[1] or not all(_close(x, y) for x, y in numbers):
            found.append(f"- {a}\n+ {b}")
    return found


def _close(a: str, b: str) -> bool:
    x, y = float(a.replace(",", "")), float(b.replace(",", ""))
    unit = 10.0 ** -len(a.partition(".")[2].partition("e")[0])
    if "e" in a or "e" in b:
        return (abs(x) < 1e-8 and abs(y) < 1e-8) or 0.5 <= x / y <= 2
    return abs(x - y) <= 1.001 * unit


def main() -> int:
    wrong = []
    for page in PAGES:
        text = page.read_text()
        if "--check" in sys.argv:
            wrong += [d for m in BLOCK.finditer(text) for d in differences(m[4], tables(m[2])[m[3]])]
        else:
            page.write_text(BLOCK.sub(lambda m: m[1] + tables(m[2])[m[3]] + m[5], text))
    if "--check" in sys.argv:
        print("\n".join(wrong) or "the pages say what the demos print")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
