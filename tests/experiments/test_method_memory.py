"""The memory of training methods."""

import json

import pytest

pytest.importorskip("transformers")

import method_memory


def test_results_are_resumed(tmp_path, monkeypatch):
    measured = []

    def in_a_process(method, data):
        measured.append(method)
        return 100.0

    monkeypatch.setattr(method_memory, "in_a_process", in_a_process)
    out = tmp_path / "memory.json"
    for repeats in ("1", "2"):
        method_memory.main([str(out), "--repeats", repeats, "--methods", "plain", "lora"])
    assert measured == ["plain", "lora"] * 2
    assert json.loads(out.read_text())["megabytes"] == {"plain": [100.0, 100.0], "lora": [100.0, 100.0]}
