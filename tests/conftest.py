"""Every test runs with the shapes in all signatures checked (jaxtyping and beartype), in float64."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from jaxtyping import install_import_hook

install_import_hook("irlhf", "beartype.beartype")


@pytest.fixture(autouse=True)
def _seeded():
    """The same numbers in every run and on every worker, whatever ran before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def told(capsys):
    """Runs a command line in this process: exit code, stdout, stderr."""
    from tests.cli_data import irlhf

    def run(*arguments):
        capsys.readouterr()
        code = irlhf(*arguments)
        return code, *capsys.readouterr()

    return run
