"""Who may import whom, what an import may do, and what is public. Each check is itself shown to fail once."""

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tempbalance

PACKAGE = Path(tempbalance.__file__).parent

# A module imports only what stands above it. "" is the package itself (its public names), for the command line only.
CORE = ("errors", "types", "spectra", "tail", "metrics", "weight_fit")
ADAPTERS = (
    *("_files", "_progress", "layers", "checkpoints", "analysis", "balance", "released", "compress"),
    *("testing", "study", "report", "integrations", "demo", "cli", "__main__", ""),
)
ORDER = CORE + ADAPTERS

# Beside the standard library, the core knows tensors only: no module, optimizer, file, terminal or logger.
CORE_MAY_IMPORT = ("torch", "numpy", "tempbalance")
CORE_MAY_NOT_IMPORT = ("torch.nn", "torch.optim", "torch.utils", "logging", "pathlib", "io", "subprocess")


def imported(path: Path, module: str) -> Iterator[str]:
    """Qualified names of all that a file imports, inside functions and under TYPE_CHECKING, too."""
    parts = ["tempbalance", *filter(None, module.split("."))]
    if path.name == "__init__.py":
        parts.append("__init__")
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Every module of a package as (dotted name below the package, file); the package itself is ""."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def unit(name: str) -> str:
    """The entry of the order a module belongs to: the first part of its name below the package."""
    return name.partition(".")[0]


def order_violations(root: Path, order: tuple[str, ...]) -> list[str]:
    found = []
    for name, path in modules(root):
        own = unit(name)
        if own not in order:
            found.append(f"{name}: not in the order")
            continue
        for target in imported(path, name):
            package, _, rest = target.partition(".")
            if package != "tempbalance":
                continue
            other = unit(rest) if unit(rest) in order else ""  # else a name of the package, not a module
            if own not in (other, "") and order.index(other) > order.index(own):
                found.append(f"{name} imports {target}, which stands below it")
    return found


def core_violations(root: Path) -> list[str]:
    found = []
    for name, path in modules(root):
        if unit(name) not in CORE:
            continue
        for target in imported(path, name):
            top = target.partition(".")[0]
            forbidden = any(target == bad or target.startswith(f"{bad}.") for bad in CORE_MAY_NOT_IMPORT)
            if forbidden or not (top in CORE_MAY_IMPORT or top in sys.stdlib_module_names):
                found.append(f"{name} imports {target}")
    return found


def test_a_module_imports_only_what_stands_above_it():
    assert order_violations(PACKAGE, ORDER) == []


def test_the_core_knows_tensors_and_nothing_else():
    assert core_violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("types", "from tempbalance.spectra import spectra"),
        ("types", "import tempbalance.cli"),
        ("types", "def f():\n    from tempbalance import analysis"),
        ("types", "from . import layers"),
        ("types", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .analysis import Analysis"),
        ("tail/hill", "from ..metrics import layer_metrics"),
        ("tail/__init__", "from ..metrics import layer_metrics"),
        ("analysis/result", "from tempbalance.report import render_analysis"),
        ("layers/units", "def f():\n    from tempbalance.analysis import analyze"),
        ("analysis", "import tempbalance as tb"),
        ("analysis", "from tempbalance import Hill"),
        ("novelty", "import torch"),
    ],
)
def test_the_order_check_can_fail(tmp_path: Path, module: str, line: str):
    path = tmp_path / f"{module}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(line)
    assert len(order_violations(tmp_path, ORDER)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("__init__", "from tempbalance.cli import main"),
        ("tail/ks", "from tempbalance.tail.hill import Hill\nfrom ..types import Spectrum\nfrom .hill import Hill"),
        ("tail/__init__", "from .hill import Hill"),
        ("report/page", "def f():\n    from tempbalance.analysis import Analysis"),
        ("__init__", "import tempbalance.cli"),
    ],
)
def test_the_order_check_can_pass(tmp_path: Path, module: str, line: str):
    path = tmp_path / f"{module}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(line)
    assert order_violations(tmp_path, ORDER) == []


@pytest.mark.parametrize("line", ["from torch import nn", "import torch.nn as nn", "import logging", "import pandas"])
def test_the_check_of_the_core_can_fail(tmp_path: Path, line: str):
    (tmp_path / "metrics.py").write_text(line)
    (tmp_path / "layers.py").write_text(line)  # not of the core
    assert len(core_violations(tmp_path)) == 1


# Runs in a fresh interpreter: imports argv[1] and writes to argv[2] what that changed.
PROBE = """
import json, locale, logging, multiprocessing.reduction, os, random, signal, sys, warnings
import numpy, torch

def state():
    return {
        "warning filters": list(map(repr, warnings.filters)),
        "logging": repr((logging.root.level, logging.root.handlers, logging.root.manager.disable)),
        "torch settings": repr((
            torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), torch.get_num_threads(),
            torch.get_num_interop_threads(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        )),
        "numpy settings": repr((numpy.geterr(), numpy.get_printoptions())),
        "random states": repr((
            hash(random.getstate()), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
        )),
        "environment": dict(os.environ),
        "hooks": repr((sys.excepthook, sys.displayhook, signal.getsignal(signal.SIGINT), sys.stdout, sys.stderr)),
        "search path": list(sys.path),
        "locale": repr(locale.setlocale(locale.LC_ALL)),
        "pickling": repr(multiprocessing.reduction.ForkingPickler),
    }

before, loaded = state(), {name.partition(".")[0] for name in sys.modules}
__import__(sys.argv[1])
after = state()
new = {name.partition(".")[0] for name in sys.modules} - loaded - set(sys.stdlib_module_names) - {sys.argv[1]}
changed = [key for key in before if before[key] != after[key]]
with open(sys.argv[2], "w") as file:
    json.dump({"changed": changed, "loaded": sorted(new)}, file)
"""


def effects_of_importing(module: str, tmp_path: Path) -> dict[str, object]:
    """What an import prints, changes, and loads beyond torch, numpy and the standard library."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-c", PROBE, module, str(report)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    return {"printed": done.stdout + done.stderr, **json.loads(report.read_text())}


def test_importing_prints_nothing_changes_nothing_and_loads_torch_and_numpy_only(tmp_path: Path):
    assert effects_of_importing("tempbalance", tmp_path) == {"printed": "", "changed": [], "loaded": []}


def test_the_check_of_imports_can_fail(tmp_path: Path):
    lines = [
        "import locale, logging, os, random, sys, warnings, multiprocessing.reduction, numpy, torch, pluggy",
        "print('hello')",
        "warnings.simplefilter('ignore')",
        "logging.basicConfig()",
        "torch.set_default_dtype(torch.float64)",
        "numpy.seterr(all='raise')",
        "random.seed(7)",
        "os.environ['SINNER'] = '1'",
        "sys.excepthook = print",
        "sys.path.append('elsewhere')",
        "multiprocessing.reduction.ForkingPickler = None",
    ]
    (tmp_path / "sinner.py").write_text("\n".join(lines))
    effects = effects_of_importing("sinner", tmp_path)
    assert effects["printed"] == "hello\n"
    assert effects["loaded"] == ["pluggy"]
    assert set(effects["changed"]) == {
        *("warning filters", "logging", "torch settings", "numpy settings", "random states", "environment", "hooks"),
        *("search path", "pickling"),
    }


def test_every_public_name_can_be_imported():
    assert [name for name in tempbalance.__all__ if not hasattr(tempbalance, name)] == []
    assert set(tempbalance.__all__) <= set(dir(tempbalance))


def test_a_name_that_is_not_public_is_pythons_own_error():
    with pytest.raises(AttributeError, match="module 'tempbalance' has no attribute 'arena'"):
        _ = tempbalance.arena


def test_every_module_says_what_it_offers():
    for info in pkgutil.walk_packages([str(PACKAGE)], "tempbalance."):
        if any(part.startswith("_") for part in info.name.split(".")):
            continue
        module = importlib.import_module(info.name)
        missing = [name for name in getattr(module, "__all__", ["__all__"]) if not hasattr(module, name)]
        assert missing == [], f"{info.name} lists names that it does not have, or has no __all__"
