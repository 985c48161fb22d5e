"""Rewrites the numbers in README and docs from what the commands print: ``make readme``; ``--check`` compares instead.

A block between ``<!-- printed by: irlhf demo lineup, table 2 -->`` and ``<!-- end -->`` holds that table as printed.
Blocks of a demo whose data or package are missing stay as they are. Pages can be named; default: all.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
REFUSED = 2  # the exit code of a command that says what it misses
BLOCK = re.compile(
    r"(<!-- printed by: irlhf demo (\w+), table (\d+) -->\n```text\n)(.*?)(```\n<!-- end -->)", re.DOTALL
)
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


@cache
def tables(demo: str) -> dict[str, str]:
    """The numbered tables that a demo prints, each with the lines below it."""
    command = [sys.executable, "-m", "irlhf", "demo", demo]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == REFUSED:
        print(f"left as they are, the tables of {demo}: {run.stderr.strip()}", file=sys.stderr)
        return {}
    run.check_returncode()
    printed = run.stdout
    printed = re.split(r"^(?=The page of |No report was written)", printed, flags=re.MULTILINE)[0]
    parts = re.split(r"^(?=\d+\. )", printed, flags=re.MULTILINE)[1:]
    return {
        part.partition(".")[0]: "\n".join(line.rstrip() for line in part.rstrip().splitlines()) + "\n" for part in parts
    }


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
    named = [Path(name).resolve() for name in sys.argv[1:] if not name.startswith("--")]
    wrong = []
    for page in named or PAGES:
        text = page.read_text()
        if "--check" in sys.argv:
            blocks = [(m[4], tables(m[2]).get(m[3], m[4])) for m in BLOCK.finditer(text)]
            wrong += [f"{page.name}: {d}" for written, printed in blocks for d in differences(written, printed)]
        else:
            page.write_text(BLOCK.sub(lambda m: m[1] + tables(m[2]).get(m[3], m[4]) + m[5], text))
    if "--check" in sys.argv:
        print("\n".join(wrong) or "the pages say what the demos print")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
