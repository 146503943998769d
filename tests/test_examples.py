"""The scripts in examples/ run, and print their answer; the notebooks are made from them, and run, too."""

import ast
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples"
ANSWERS = {  # part of the answer
    "analyze": "encoder.layer.3.intermediate.dense.weight",
    "compare": "moved most",
    "own_estimator": "encoder.layer.0.attention.self.query.weight",
    "own_loop": "tensorboard --logdir runs shows 17 curves",
    "prune_and_recover": "of each layer",
    "study": "model_balancing_sciml:control=uniform",
    "track": "step  300",
    "trainer": "encoder.layer.5",
}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder as the working directory; random numbers after the test are as before it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with torch.random.fork_rng():
        yield tmp_path


def test_every_script_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*ANSWERS, "make_notebooks"}


def run_cell(source: str, namespace: dict) -> str:
    """Run a cell as Jupyter does; return what it would show of a last expression."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), namespace)
    if last is None:
        return ""
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
    return "" if value is None else getattr(value, "_repr_html_", value.__repr__)()


NOTEBOOKS = {path.stem: path for path in (FOLDER / "notebooks").glob("*.ipynb")}


@pytest.mark.filterwarnings("default")  # of other packages
@pytest.mark.parametrize("name", sorted(ANSWERS.keys() - NOTEBOOKS))
def test_a_script_prints_its_answer(name, elsewhere, capsys):
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert ANSWERS[name] in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_a_notebook_prints_the_answer_of_its_script(name, elsewhere, capsys):
    cells = json.loads(NOTEBOOKS[name].read_text("utf-8"))["cells"]
    namespace: dict = {"__name__": "__main__"}
    shown = [run_cell("".join(cell["source"]), namespace) for cell in cells if cell["cell_type"] == "code"]
    assert any(shown)  # each ends with a result, not only with print
    assert ANSWERS[name] in capsys.readouterr().out


def test_notebooks_are_made_from_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    sys.modules.pop("make_notebooks", None)
    from make_notebooks import SCRIPTS, notebook

    assert NOTEBOOKS.keys() == set(SCRIPTS)
    for name in SCRIPTS:
        saved = (FOLDER / "notebooks" / f"{name}.ipynb").read_text("utf-8")
        assert saved == notebook((FOLDER / f"{name}.py").read_text("utf-8")), name
