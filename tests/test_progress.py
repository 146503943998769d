"""A progress bar on a terminal or in a notebook, and nothing elsewhere."""

import sys
import types
from typing import Any

import pytest
from rich.console import Console

from tempbalance._progress import progress_bar, show_line


@pytest.fixture
def notebook(monkeypatch):
    """The outputs of a cell: what IPython displays, and the updates of it."""
    shown: list[str] = []

    class Handle:
        def update(self, content: Any) -> None:
            shown[-1] = content

    def display(content: Any, *, display_id: bool) -> Handle:
        assert display_id
        shown.append(content)
        return Handle()

    module = types.ModuleType("IPython.display")
    module.HTML, module.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(Console, "is_jupyter", True, raising=False)
    monkeypatch.setattr(Console, "__init__", lambda self, **_: None)
    return shown


def test_a_notebook_has_one_bar_that_advances(notebook):
    with progress_bar("<b>analysing", 3) as advance:
        assert notebook == ["<div>&lt;b&gt;analysing <progress max='3' value='0'></progress> 0 of 3</div>"]
        advance(2)
        advance(1, "done")
    assert notebook == ["<div>done <progress max='3' value='3'></progress> 3 of 3</div>"]


def test_a_notebook_shows_nothing_if_no_bar_is_wanted(notebook):
    with progress_bar("analysing", 3, wanted=False) as advance:
        advance(1)
    assert notebook == []


def test_a_notebook_shows_a_line(notebook, capsys):
    show_line("checkpoint 1 of 2")
    assert capsys.readouterr() == ("", "checkpoint 1 of 2\n")


def test_a_pipe_gets_nothing(capsys):
    with progress_bar("analysing", 3) as advance:
        advance(3)
    show_line("checkpoint 1 of 2")
    assert capsys.readouterr() == ("", "")
