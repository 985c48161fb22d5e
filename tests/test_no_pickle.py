"""No file can make the library run code: nothing in the source loads a pickle, and no loader does when fed with one."""

import ast
import contextlib
import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from irlhf.cli.finished import reopen
from irlhf.config import read_toml
from irlhf.errors import IrlhfError
from irlhf.io import read_jsonl
from irlhf.storage.checkpoint import load_checkpoint, read_tensors
from irlhf.storage.rundir import digest, open_run, read_metrics
from irlhf.worlds import tabular
from irlhf.worlds.tabular import read_features, read_panel, read_transitions

SOURCE = Path(__file__).parent.parent / "src" / "irlhf"

MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "torch.load": "reads pickles",
    "torch.jit.load": "runs code",
    "torch.hub.load": "runs code",
    "torch.package": "runs code",
    "dcp.load": "reads pickles",
    "torch.distributed.checkpoint.load": "reads pickles",
    "os.system": "runs commands",
    "os.popen": "runs commands",
}


def forbidden(source: str) -> list[str]:
    """Every way to run code from a file that this source text holds."""
    found, names = [], {}  # names: what an imported name stands for
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names if alias.asname}
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found += [node.module] if node.module.split(".")[0] in MODULES else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            dotted = ast.unparse(node)
            first, *rest = dotted.split(".")
            dotted = ".".join([names.get(first, first), *rest])
            found += [dotted] if (dotted in CALLS or dotted.endswith(".read_pickle")) else []
            found += [dotted] if isinstance(node, ast.Name) and node.id in BUILTINS else []
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found += (
                ["allow_pickle"] if not (isinstance(node.value, ast.Constant) and node.value.value is False) else []
            )
        elif isinstance(node, ast.keyword) and node.arg in ("shell", "trust_remote_code"):
            found += [node.arg] if not (isinstance(node.value, ast.Constant) and node.value.value is False) else []
    return found


def test_the_source_has_no_way_to_run_code_from_a_file():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 5
    assert {str(file): found for file in files if (found := forbidden(file.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import os, pickle as p",
        "from pickle import loads",
        "def f():\n    import joblib",
        "import yaml; yaml.load(x)",
        "import torch; torch.load(x)",
        "import torch as t; t.load(x)",
        "from torch import load as get; get(x)",
        "import torch.distributed.checkpoint as dcp; dcp.load(x)",
        "from torch.distributed.checkpoint import load; load(x)",
        "np.load(x, allow_pickle=True)",
        "np.load(x, allow_pickle=flag)",
        "eval(x)",
        "run = exec",
        "__import__(x)",
        "os.system(x)",
        "subprocess.run(x, shell=True)",
        "pd.read_pickle(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_the_test_sees_it(line):
    assert forbidden(line)


def test_the_test_lets_the_harmless_pass():
    assert not forbidden("model.eval(); np.load(x, allow_pickle=False); safetensors.torch.load(x); json.load(x)")


# -------------------------------------------------------------------------------------------------- at run time


class Sprung(BaseException):  # not an Exception: no loader may catch it by accident
    pass


class Gadget:
    """Pickled, it is the call os.mkdir(path)."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def gadgets(tmp_path):
    """Files that make a directory when they are unpickled, by name."""
    sprung = tmp_path / "sprung"
    pickled, packed, saved = pickle.dumps(Gadget(sprung)), io.BytesIO(), io.BytesIO()
    np.savez(packed, theta=np.array([Gadget(sprung)], dtype=object))
    torch.save({"theta": Gadget(sprung)}, saved)
    old, plain_npy = io.BytesIO(), io.BytesIO()
    torch.save({"theta": Gadget(sprung)}, old, _use_new_zipfile_serialization=False)
    np.save(plain_npy, np.array([Gadget(sprung)], dtype=object))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../escaped", "x")
    header = b'{"__metadata__":{"irlhf":"__import__(\'os\').mkdir(\'sprung\')"}}'
    return {
        "pickle": pickled,
        "protocol 0": pickle.dumps(Gadget(sprung), protocol=0),
        "npz": packed.getvalue(),
        "npy": plain_npy.getvalue(),
        "pt": saved.getvalue(),
        "old pt": old.getvalue(),
        "zip": archive.getvalue(),
        "safetensors with code": len(header).to_bytes(8, "little") + header,
        "safetensors around a pickle": len(pickled).to_bytes(8, "little") + pickled,
        "JSON with a tag": b'{"py/reduce": [{"py/function": "os.mkdir"}, ["sprung"]]}\n',
        "YAML with a tag": b"!!python/object/apply:os.mkdir [sprung]\n",
    }


@pytest.fixture
def traps(monkeypatch):
    """Unpickling anything and running any command raises :class:`Sprung`."""

    def spring(*args, **kwargs):
        raise Sprung

    class Unpickler:
        def __init__(self, *args, **kwargs):
            raise Sprung

    for place, name in [(pickle, "load"), (pickle, "loads"), (torch, "load"), (os, "system"), (os, "popen")]:
        monkeypatch.setattr(place, name, spring)
    monkeypatch.setattr(pickle, "Unpickler", Unpickler)
    monkeypatch.setattr(pickle, "_Unpickler", Unpickler)


def test_the_gadgets_and_the_traps_work(gadgets, tmp_path, request):
    for name in ("pickle", "protocol 0"):
        pickle.loads(gadgets[name])
        (tmp_path / "sprung").rmdir()
    np.load(io.BytesIO(gadgets["npy"]), allow_pickle=True)
    (tmp_path / "sprung").rmdir()
    request.getfixturevalue("traps")
    for load in (pickle.loads, lambda data: pickle.Unpickler(io.BytesIO(data)), lambda data: torch.load(data)):
        with pytest.raises(Sprung):
            load(gadgets["pickle"])
    with pytest.raises(Sprung):
        np.load(io.BytesIO(gadgets["npz"]), allow_pickle=True)["theta"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("module") / "run"
    with open_run(path, {"a": 1}) as run:
        run.log({"step": 1})
        for step in (1, 2):
            run.save(step, {"theta": torch.ones(2)})
        run.write_tensors("reward.safetensors", {"theta": torch.ones(2)})
    return path


FILES = ["config.json", "status.json", "fingerprint.json", "metrics.jsonl", "lock", "reward.safetensors"]
FILES += [f"checkpoint/0000000{n}.{kind}" for n in (1, 2) for kind in ("json", "safetensors")]


@pytest.mark.filterwarnings("ignore::UserWarning")  # a damaged last checkpoint is passed over with a warning
@pytest.mark.parametrize("name", FILES)
def test_no_file_of_a_run_springs_a_trap(tmp_path, run, gadgets, traps, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: None)

    def resume(path):
        open_run(path, {"a": 1}, resume=True).close()

    loaders = [digest, read_metrics, lambda path: load_checkpoint(path / "checkpoint"), resume]
    loaders += [lambda path: read_tensors(path / name)]
    for number, data in enumerate(gadgets.values()):
        path = tmp_path / str(number)
        shutil.copytree(run, path)
        (path / name).write_bytes(data)
        for load in loaders:
            with contextlib.suppress(IrlhfError):  # any other error fails the test
                load(path)
    assert not (tmp_path / "sprung").exists() and not (tmp_path.parent / "escaped").exists()


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.parquet", "x.jsonl", "x.jsonl.gz", "x.toml"])
def test_no_file_that_a_user_brings_springs_a_trap(tmp_path, gadgets, traps, name):
    loaders = [read_jsonl, read_panel, read_features, read_transitions, read_toml, reopen, lambda p: tabular.load(p, p)]
    for data in gadgets.values():
        path = tmp_path / name
        path.write_bytes(data)
        for read in loaders:
            with pytest.raises(IrlhfError):
                read(path)
    assert not (tmp_path / "sprung").exists()
