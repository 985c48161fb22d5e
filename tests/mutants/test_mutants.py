"""Every planted bug must make its tests fail: the test of the tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.bugs import BUGS

ROOT = Path(__file__).parents[2]
QUICK = {"offset dropped", "likelihood doubled", "base measure dropped", "planning without the discount"}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in BUGS])
def test_a_planted_bug_is_noticed(name, tmp_path):
    file, stands, becomes, tests = BUGS[name]
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "src" / "irlhf" / file
    text = path.read_text()
    assert text.count(stands) >= 1, f"the place of this bug has changed: {stands!r} is not in {file}"
    path.write_text(text.replace(stands, becomes))
    cache = {"NUMBA_CACHE_DIR": str(ROOT / ".numba-cache")}
    command = [sys.executable, "-m", "pytest", "-x", "-q", *_words(tests)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), **cache}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert run.returncode == 1, f"{name}: the tests did not notice (pytest said {run.returncode})\n{run.stdout[-2000:]}"


def _words(command: str) -> list[str]:
    return command.split()
