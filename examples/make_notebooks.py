"""Make notebooks of some examples: `python examples/make_notebooks.py`. A line `# %%` begins a cell, with its title."""

import ast
import json
from pathlib import Path

SCRIPTS = ("analyze", "track", "own_estimator")
FOLDER = Path(__file__).parent


def notebook(script: str) -> str:
    """Return the file of a notebook, without outputs."""
    head, *parts = script.split("\n# %% ")
    title = ast.get_docstring(ast.parse(script))
    imports = head[head.index('"""', 3) + 3 :]
    cells = [("markdown", title), ("code", imports)]
    for part in parts:
        name, _, code = part.partition("\n")
        cells += [("markdown", f"## {name}"), ("code", code)]
    content = {
        "cells": [
            {
                "cell_type": kind,
                "id": f"cell-{number}",
                "metadata": {},
                **({"execution_count": None, "outputs": []} if kind == "code" else {}),
                "source": text.strip("\n").splitlines(keepends=True),
            }
            for number, (kind, text) in enumerate(cells)
            if text.strip()
        ],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (FOLDER / "notebooks").mkdir(exist_ok=True)
    for each in SCRIPTS:
        text = notebook((FOLDER / f"{each}.py").read_text("utf-8"))
        (FOLDER / "notebooks" / f"{each}.ipynb").write_text(text, "utf-8")
