"""FARMS windows on the command line."""

import pytest
from safetensors.torch import save_file

import tempbalance as tb
from command_line import run


@pytest.fixture
def model(trained, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(trained.state_dict(), path)
    return path


@pytest.mark.parametrize("options", [("--farms",), ("--farms-rows", 20)])
def test_analyze_uses_the_windows_of_the_command(model, tmp_path, options):
    assert run("analyze", model, *options, "--quiet", "--out", tmp_path / "a.json") == 0
    saved = tb.Analysis.load(tmp_path / "a.json")
    assert saved.settings["windows"].startswith("FARMS(")
    assert all(row.num_windows >= 5 for row in saved.layers)


def test_compare_analyses_a_model_with_the_windows_of_the_command(model, tmp_path, capsys):
    run("analyze", model, "--farms", "--quiet", "--out", tmp_path / "a.json")
    assert run("compare", tmp_path / "a.json", model, "--farms") == 0
    assert run("compare", tmp_path / "a.json", model) == 1
    assert "different windows" in capsys.readouterr().err


def test_rows_out_of_range_are_a_usage_error(model, capsys):
    for rows in (-1, 0, 1):
        assert run("analyze", model, "--farms-rows", rows) == 2
        assert "--farms-rows" in capsys.readouterr().err
