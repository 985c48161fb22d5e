"""``import irlhf`` is quick, and has every name that it promises."""

import ast
import subprocess
import sys
from pathlib import Path

import irlhf


def test_every_name_is_there():
    tree = ast.parse(Path(irlhf.__file__).read_text())
    typed = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(irlhf.__all__) == typed - {"annotations", "TYPE_CHECKING", "Any"}
    for name in irlhf.__all__:
        assert getattr(irlhf, name) is not None and name in dir(irlhf)


def test_importing_it_waits_for_nothing():
    code = "import irlhf, irlhf.__main__, sys; print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
