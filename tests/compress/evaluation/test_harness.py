"""Tasks of lm-evaluation-harness on a live model; needs the extra eval."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tempbalance.compress.evaluation.harness import evaluate
from tempbalance.errors import MissingExtraError


@pytest.fixture
def tokenizer() -> Any:
    """A tokenizer whose tokens are letters."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    letters = {letter: place for place, letter in enumerate("?^$abcdefghijklmnopqrstuvwxyz ")}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="?"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, bos_token="^", eos_token="$", pad_token="$")


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A task on a local file: choose the next word of two."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    words = ["ab", "cd", "ef", "gh", "ij", "kl"]
    rows = [{"context": f"say {word}", "choices": [f" {word}", " zz"], "gold": 0} for word in words]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return {
        "task": "words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }


def expected_accuracy(model: Any, tokenizer: Any, path: Path) -> float:
    """Compute the fraction of rows whose first choice has the higher log-likelihood."""
    right = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        scores = []
        for choice in row["choices"]:
            start, whole = len(tokenizer.encode(row["context"])), tokenizer.encode(row["context"] + choice)
            tokens = torch.tensor([whole])
            with torch.no_grad():
                logs = model.eval()(tokens).logits[0, start - 1 : -1].log_softmax(-1)
            scores.append(float(logs.gather(1, tokens[0, start:, None]).sum()))
        right.append(scores[0] > scores[1])
    return sum(right) / len(right)


# warnings of the harness and its dependencies
@pytest.mark.filterwarnings("default")
def test_a_task_on_a_local_file_gives_the_accuracy_computed_by_hand(
    make_llama: Any, tokenizer: Any, task: dict[str, Any], tmp_path: Path
):
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness, extra eval")
    model = make_llama().train()
    wanted = expected_accuracy(model, tokenizer, tmp_path / "rows.json")
    model.train()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = evaluate(model, tokenizer, [task])
    assert found["words"]["acc,none"] == pytest.approx(wanted)
    assert model.training
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert evaluate(model, tokenizer, [task], limit=3)["words"]["sample_len"] == 3


def test_without_the_harness_the_extra_is_named(make_llama: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"tempbalance\[eval\]"):
        evaluate(make_llama(), None, ["hellaswag"])
