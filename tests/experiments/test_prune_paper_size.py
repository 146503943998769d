"""Pruning at the size of the papers: rehearsed on a tiny model, in pieces."""

import pytest

pytest.importorskip("transformers")

import prune_paper_size


@pytest.mark.slow
def test_a_rehearsal_in_pieces_equals_a_run_without_pauses(capsys):
    assert prune_paper_size.main(["--rehearse"]) == 0
    assert "12 cells in 18 pieces, as without pauses" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--text", "a", "--calibration", "b"], "--model is missing"),
        (["--model", "c", "--text", "a", "--calibration", "b", "--device", "cuda"], "there is no CUDA device"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(given, message, capsys, monkeypatch):
    monkeypatch.setattr(prune_paper_size.torch.cuda, "is_available", lambda: False)
    assert prune_paper_size.main(given) == 1
    assert message in capsys.readouterr().err


def test_the_table_has_the_papers_numbers_beside_ours():
    cells = {"sparsegpt|0.8|farms": {"perplexity": 81.234}}
    assert "| sparsegpt | 80% | farms | 81.23 | 79.42 |" in prune_paper_size.table({"cells": cells})
