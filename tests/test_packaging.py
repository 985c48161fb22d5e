"""The wheel holds what it needs, and the README is true."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    names = zipfile.ZipFile(build(tmp_path)).namelist()
    assert "irlhf/py.typed" in names
    assert any(name.endswith(".html.j2") for name in names)
    assert all(name.startswith(("irlhf/", "irlhf-")) for name in names)
    assert not [name for name in names if "__pycache__" in name]
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert modules <= set(names)


@pytest.mark.long
def test_the_wheel_runs_in_an_empty_environment(tmp_path):
    wheel = build(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(tmp_path / "venv/bin/pip"), "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(pip, check=True)
    demo = [str(tmp_path / "venv/bin/irlhf"), "demo", "lineup"]
    printed = subprocess.run(demo, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert "maximum-entropy IRL" in printed


@pytest.mark.filterwarnings("ignore:.*never seen")
def test_the_three_lines_of_the_readme_run(tmp_path, monkeypatch, capsys):
    from irlhf.worlds.tabular import Linear, sample_paths
    from irlhf.worlds.tabular.panel import write_panel
    from tests.worlds.problems import replacement

    world, columns = replacement()
    policy = world.solve(Linear(columns, [1.5, 4.0])).log_policy.detach()
    from irlhf import demonstrations

    write_panel(demonstrations(None, sample_paths(world, policy, [0] * 40, max_steps=60)), tmp_path / "panel.csv")
    table = world.pair_table()
    for name, column in zip(columns.names, columns.values.T.tolist(), strict=True):
        table[name] = column
    table.to_csv(tmp_path / "features.csv", index=False)
    code = re.search(r"## Three lines\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    exec_globals: dict = {}
    exec(compile(code[1], "README.md", "exec"), exec_globals)
    assert "Converged" in capsys.readouterr().out
    assert exec_globals["fit"].params["replace"] == pytest.approx(4.0, abs=1.0)


@pytest.mark.parametrize("page", ["README.md", pytest.param("docs/taxi.md", marks=pytest.mark.long)])
def test_the_numbers_of_a_page_are_those_that_the_demos_print(page):
    command = [sys.executable, str(ROOT / "dev/readme.py"), "--check", str(ROOT / page)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
