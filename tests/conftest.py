"""Every test runs with the shapes in all signatures checked (jaxtyping and beartype), in float64."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("irlhf", "beartype.beartype")
