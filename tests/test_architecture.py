"""Rules of the package: the import order, sizes, file names, side effects of imports, public names.

Each rule is a function that returns violations, and is tested to find one.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tempbalance

PACKAGE = Path(tempbalance.__file__).parent
TESTS = Path(__file__).parent

# A module imports only modules that are before it in this order. "" is the package itself (its public names).
CORE = ("errors", "types", "spectra", "tail", "metrics", "traps", "float32", "weight_fit")
ADAPTERS = (
    *("_files", "_progress", "_saved", "_text", "layers", "checkpoints", "analysis", "balance", "released", "compress"),
    *("testing", "study", "report", "integrations", "demo", "cli", "__main__", ""),
)
ORDER = CORE + ADAPTERS

# The core imports torch, numpy and the standard library, without modules, optimizers, files or loggers.
CORE_MAY_IMPORT = ("torch", "numpy", "tempbalance")
CORE_MAY_NOT_IMPORT = ("torch.nn", "torch.optim", "torch.utils", "logging", "pathlib", "io", "subprocess")

MAX_FILE_LINES, MAX_BODY_LINES = 400, 60
# Tests of the whole package, of several packages at once, or of scripts outside of it.
TEST_FOLDERS = ("distributed", "experiments", "fuzz", "golden")
TEST_FILES = (
    *("test_architecture.py", "test_cuda.py", "test_documentation.py", "test_examples.py", "test_language.py"),
    *("test_fetch_data.py", "test_gpu_script.py", "test_project.py", "test_skips.py"),
)
HEAVY = {"torch", "numpy", "pandas", "transformers", "plotly", "sklearn", "safetensors"}


def imported(path: Path, module: str) -> Iterator[str]:
    """Qualified names of all imports of a file: in functions, under TYPE_CHECKING and by import_module, too."""
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
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0]
            first = name.values[0] if isinstance(name, ast.JoinedStr) else name  # an f-string counts by its beginning
            yield from [str(first.value)] if isinstance(first, ast.Constant) else []


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Every module of a package as (dotted name below the package, file); the package itself is ""."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def order_violations(root: Path) -> list[str]:
    found = []
    for name, path in modules(root):
        own = name.partition(".")[0]
        if own not in ORDER:
            found.append(f"{name}: not in the order")
            continue
        for target in imported(path, name):
            package, _, rest = target.partition(".")
            if package != "tempbalance":
                continue
            other = rest.partition(".")[0]
            other = other if other in ORDER else ""  # else a name of the package, not a module
            if own not in (other, "") and ORDER.index(other) > ORDER.index(own):
                found.append(f"{name} imports {target}, which is after it in the order")
    return found


def core_violations(root: Path) -> list[str]:
    found = []
    for name, path in modules(root):
        if name.partition(".")[0] not in CORE:
            continue
        for target in imported(path, name):
            top = target.partition(".")[0]
            forbidden = any(target == bad or target.startswith(f"{bad}.") for bad in CORE_MAY_NOT_IMPORT)
            if forbidden or not (top in CORE_MAY_IMPORT or top in sys.stdlib_module_names):
                found.append(f"{name} imports {target}")
    return found


def size_violations(root: Path) -> list[str]:
    """Files and function bodies that are too long; a docstring does not count as body."""
    found = []
    for path in sorted(root.rglob("*.py")):
        text = path.read_text("utf-8")
        if len(text.splitlines()) > MAX_FILE_LINES:
            found.append(f"{path.name} is too long")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                if body and body[-1].end_lineno - body[0].lineno >= MAX_BODY_LINES:
                    found.append(f"{path.name}: {node.name} is too long")
    return found


def repeated_names(root: Path) -> list[str]:
    """File names that occur more than once; ``__init__.py`` may."""
    names = [path.name for path in root.rglob("*.py") if path.name != "__init__.py"]
    return sorted({name for name in names if names.count(name) > 1})


def unmirrored_tests(tests: Path, package: Path) -> list[str]:
    """Test files that are neither in a folder of the package, nor named after a module of it, nor listed above."""
    found = []
    for path in sorted(tests.rglob("test_*.py")):
        folder = path.parent.relative_to(tests)
        if folder.parts:
            known = folder.parts[0] in TEST_FOLDERS or (package / folder).is_dir()
        else:
            name = path.name.removeprefix("test_")
            known = path.name in TEST_FILES or (package / name).is_file() or (package / f"_{name}").is_file()
        if not known:
            found.append(str(path.relative_to(tests)))
    return found


def all_list_violations(root: Path) -> list[str]:
    """Modules without ``__all__``, and names in ``__all__`` that the module does not define or import."""
    found = []
    for name, path in modules(root):
        if any(part.startswith("_") for part in name.split(".")):
            continue
        defined: dict[str, ast.AST] = {}
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                defined |= {(alias.asname or alias.name).partition(".")[0]: node for alias in node.names}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                parts = (each for target in targets for each in ast.walk(target))
                defined |= {each.id: node for each in parts if isinstance(each, ast.Name)}
        if name and "__all__" not in defined:
            found.append(f"{name} has no __all__")
        elif name:
            listed = ast.literal_eval(defined["__all__"].value)
            found += [f"{name} has no {each}" for each in listed if each not in defined]
    return found


BUILT_IN = {"ValueError", "TypeError", "RuntimeError", "KeyError", "IndexError", "AttributeError", "OSError"}
# Raised and caught inside the package: reading of files and of the optional metadata of a model.
CAUGHT_INSIDE = {
    *(
        "_files",
        "_saved",
        "analysis.result",
        "analysis.resume",
        "analysis.rows",
        "compress.allocation",
        "balance.state",
    ),
    *("layers.meta_model", "layers.peft_model", "layers.registration_limit"),
}


def bare_errors(root: Path) -> list[str]:
    """Built-in exceptions that are raised: a user catches ``TempBalanceError``, or the built-in one it stands for."""
    found = []
    for name, path in modules(root):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and name and name not in CAUGHT_INSIDE:
                error = ast.unparse(node.exc.func)
                found += [f"{name} raises {error}"] if error in BUILT_IN else []
    return found


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_modules_import_only_what_is_before_them_in_the_order():
    assert order_violations(PACKAGE) == []


def test_the_core_imports_only_torch_numpy_and_the_standard_library():
    assert core_violations(PACKAGE) == []


def test_no_file_has_over_400_lines_and_no_function_body_over_60():
    assert size_violations(PACKAGE) == []


def test_no_module_raises_a_built_in_exception():
    assert bare_errors(PACKAGE) == []


def test_the_check_of_exceptions_finds_one(tmp_path: Path):
    write(tmp_path / "tail" / "hill.py", "raise ValueError('no')")
    write(tmp_path / "tail" / "ks.py", "raise ArgumentError('no')\nraise")
    assert bare_errors(tmp_path) == ["tail.hill raises ValueError"]


def test_each_file_name_occurs_once_in_the_package():
    assert repeated_names(PACKAGE) == []


def test_the_test_folders_mirror_the_package():
    assert unmirrored_tests(TESTS, PACKAGE) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("types", "from tempbalance.spectra import spectra"),
        ("types", "import tempbalance.cli"),
        ("types", "def f():\n    from tempbalance import analysis"),
        ("types", "def f():\n    import importlib\n    importlib.import_module('tempbalance.analysis')"),
        ("types", "from importlib import import_module\ndef f(name):\n    import_module(f'tempbalance.{name}')"),
        ("types", "from . import layers"),
        ("types", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .analysis import Analysis"),
        ("metrics", "from tempbalance._files import dumps"),
        ("tail/hill", "from ..metrics import layer_metrics"),
        ("tail/__init__", "from ..metrics import layer_metrics"),
        ("analysis/result", "from tempbalance.report import render_analysis"),
        ("balance/balancer", "from tempbalance.released import RankAsReleased"),
        ("layers/units", "def f():\n    from tempbalance.analysis import analyze"),
        ("analysis", "import tempbalance as tb"),
        ("analysis", "from tempbalance import Hill"),
        ("novelty", "import torch"),
    ],
)
def test_the_order_check_finds_an_upward_import(tmp_path: Path, module: str, line: str):
    write(tmp_path / f"{module}.py", line)
    assert len(order_violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("__init__", "from tempbalance.cli import main"),
        ("tail/ks", "from tempbalance.tail.hill import Hill\nfrom ..types import Spectrum\nfrom .hill import Hill"),
        ("tail/__init__", "from .hill import Hill"),
        ("layers/units", "from tempbalance._files import dumps\nfrom tempbalance._progress import progress_bar"),
        ("compress/sparsity", "from tempbalance.released import RankAsReleased"),
        ("report/page", "def f():\n    from tempbalance.analysis import Analysis"),
        ("report/page", "import importlib\nimportlib.import_module('tempbalance.analysis')"),
        ("__init__", "import tempbalance.cli"),
    ],
)
def test_the_order_check_accepts_a_downward_import(tmp_path: Path, module: str, line: str):
    write(tmp_path / f"{module}.py", line)
    assert order_violations(tmp_path) == []


@pytest.mark.parametrize("line", ["from torch import nn", "import torch.nn as nn", "import logging", "import pandas"])
def test_the_check_of_the_core_finds_a_forbidden_import(tmp_path: Path, line: str):
    write(tmp_path / "metrics.py", line)
    write(tmp_path / "layers.py", line)  # not in the core
    assert len(core_violations(tmp_path)) == 1


def test_the_size_check_finds_long_files_and_long_functions(tmp_path: Path):
    write(tmp_path / "limits.py", "def f():\n" + '    """Text.\n\n    Text.\n    """\n' + "    pass\n" * MAX_BODY_LINES)
    assert size_violations(tmp_path) == []
    write(tmp_path / "long_body.py", "def f():\n" + "    pass\n" * (MAX_BODY_LINES + 1))
    write(tmp_path / "long_file.py", "pass\n" * (MAX_FILE_LINES + 1))
    assert size_violations(tmp_path) == ["long_body.py: f is too long", "long_file.py is too long"]


def test_the_check_of_file_names_finds_a_repeated_one(tmp_path: Path):
    for name in ("a/__init__.py", "a/base.py", "b/__init__.py", "b/base.py", "b/other.py"):
        write(tmp_path / name)
    assert repeated_names(tmp_path) == ["base.py"]


def test_the_check_of_the_tests_finds_files_without_source(tmp_path: Path):
    package, tests = tmp_path / "package", tmp_path / "tests"
    write(package / "tail" / "hill.py")
    write(package / "metrics.py")
    for name in ("tail/test_hill.py", "golden/test_golden.py", "test_metrics.py", "test_cuda.py"):
        write(tests / name)
    assert unmirrored_tests(tests, package) == []
    write(tests / "novelty" / "test_runs.py")
    write(tests / "test_novelty.py")
    assert unmirrored_tests(tests, package) == ["novelty/test_runs.py", "test_novelty.py"]


def heavy_modules_loaded_by(code: str) -> set[str]:
    """Packages of HEAVY that are loaded after a piece of code ran in a fresh interpreter."""
    report = f"import sys\nprint(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_importing_the_package_loads_neither_torch_nor_another_heavy_package():
    assert heavy_modules_loaded_by("import tempbalance, tempbalance.errors") == set()


def test_help_of_every_command_loads_neither_torch_nor_another_heavy_package():
    code = """
from tempbalance.cli import app, main
names = [command.name or command.callback.__name__ for command in app.registered_commands]
for arguments in [["--help"], ["--version"], *([name, "--help"] for name in names)]:
    try:
        main(*arguments)
    except SystemExit as stopped:
        assert stopped.code == 0, arguments
"""
    assert heavy_modules_loaded_by(code) == set()


def test_the_check_of_heavy_packages_finds_one():
    assert heavy_modules_loaded_by("import numpy") == {"numpy"}


# Imports the modules in argv[1] in a fresh interpreter and writes the state that this changed to argv[2].
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
for module in sys.argv[1].split(","):
    __import__(module)
after = state()
new = {name.partition(".")[0] for name in sys.modules} - loaded - set(sys.stdlib_module_names)
changed = [key for key in before if before[key] != after[key]]
with open(sys.argv[2], "w") as file:
    json.dump({"changed": changed, "loaded": sorted(new)}, file)
"""


LIBRARY = (*CORE, "layers", "checkpoints", "analysis", "balance", "released", "compress", "testing", "study")


def effects_of_importing(names: list[str], tmp_path: Path) -> dict[str, object]:
    """What importing modules prints, changes, and loads beyond torch, numpy and the standard library."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-c", PROBE, ",".join(names), str(report)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    return {"printed": done.stdout + done.stderr, **json.loads(report.read_text())}


def test_importing_the_library_prints_nothing_and_changes_no_global_state(tmp_path: Path):
    """It loads torch, numpy and msgspec only."""
    effects = effects_of_importing([f"tempbalance.{name}" for name in LIBRARY], tmp_path)
    assert effects == {"printed": "", "changed": [], "loaded": ["msgspec", "tempbalance"]}


def test_the_check_of_imports_finds_each_side_effect(tmp_path: Path):
    lines = [
        "import locale, logging, os, random, sys, warnings, multiprocessing.reduction, numpy, torch, pluggy",
        "print('hello')",
        "warnings.simplefilter('ignore')",
        "logging.basicConfig()",
        "torch.set_default_dtype(torch.float64)",
        "numpy.seterr(all='raise')",
        "random.seed(7)",
        "os.environ['SIDE_EFFECT'] = '1'",
        "sys.excepthook = print",
        "sys.path.append('elsewhere')",
        "multiprocessing.reduction.ForkingPickler = None",
    ]
    (tmp_path / "side_effects.py").write_text("\n".join(lines))
    effects = effects_of_importing(["side_effects"], tmp_path)
    assert effects["printed"] == "hello\n"
    assert effects["loaded"] == ["pluggy", "side_effects"]
    assert set(effects["changed"]) == {
        *("warning filters", "logging", "torch settings", "numpy settings", "random states", "environment", "hooks"),
        *("search path", "pickling"),
    }


def test_type_checkers_see_the_names_that_are_loaded_lazily():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    guard = next(node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    names = {alias.name for node in guard.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names | {"__version__"} == set(dir(tempbalance))
    assert all(not isinstance(node, ast.FunctionDef) or node.name != "__getattr__" for node in tree.body)


def test_every_public_name_can_be_imported():
    assert [name for name in tempbalance.__all__ if not hasattr(tempbalance, name)] == []
    assert set(tempbalance.__all__) <= set(dir(tempbalance))


def test_an_unknown_name_of_the_package_raises_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tempbalance' has no attribute 'arena'"):
        _ = tempbalance.arena


def test_every_public_module_has_an_all_list_without_unknown_names():
    assert all_list_violations(PACKAGE) == []


def test_the_check_of_all_lists_finds_a_missing_list_and_an_unknown_name(tmp_path: Path):
    write(
        tmp_path / "good.py",
        "import a.b\nfrom c import d as e\nf: int = 1\n__all__ = ['E', 'a', 'e', 'f']\nclass E: ...",
    )
    write(tmp_path / "_private.py")
    write(tmp_path / "missing.py")
    write(tmp_path / "unknown.py", "__all__ = ['f']")
    assert all_list_violations(tmp_path) == ["missing has no __all__", "unknown has no f"]
