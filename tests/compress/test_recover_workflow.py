"""recover_folder: a pruned folder becomes a recovered folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tempbalance as tb
from tempbalance.compress import RecoverySettings, load_causal_lm, recover_folder
from tempbalance.errors import CheckpointError, TokensError

pytest.importorskip("transformers")
pytest.importorskip("peft")


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter == 0 for name, parameter in model.named_parameters() if parameter.ndim > 1}


def test_a_recovered_folder_has_the_same_zeros_and_a_lower_perplexity(
    stories: tuple[Path, list[Tensor]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    folder, documents = stories
    pruned, out = tmp_path / "pruned", tmp_path / "recovered"
    tb.compress.prune_folder(folder, pruned, 0.5)
    settings = RecoverySettings(lr=3e-3, batch=8, length=256)
    text = torch.cat(documents[100:140])
    result = recover_folder(pruned, out, [text], settings, recipe=tb.recipes.model_balancing(), evaluate=documents[:1])
    assert capfd.readouterr().err == ""  # no progress bars without a terminal
    mask, model = zeros(load_causal_lm(pruned)), load_causal_lm(out)
    found = zeros(model)
    assert all(torch.equal(found[name], mask[name]) for name in mask)
    assert (out / "allocation.json").read_bytes() == (pruned / "allocation.json").read_bytes()
    assert (result.settings, result.recipe) == (settings, "model_balancing")
    assert result.perplexity is not None
    before, after = map(float, result.perplexity)
    assert after < before
    assert after == pytest.approx(float(tb.perplexity(model, documents[:1], length=256)))


def test_an_output_folder_that_is_not_an_earlier_recovery_is_refused_before_the_source_is_read(tmp_path: Path):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="choose another folder"):
        recover_folder("nowhere", tmp_path, "nothing.npy")
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_a_missing_text_is_refused_before_the_model_is_loaded(tmp_path: Path):
    with pytest.raises(TokensError, match=r"nothing\.npy"):
        recover_folder("nowhere", tmp_path / "out", "nothing.npy")
