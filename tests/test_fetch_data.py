"""``make data`` writes what has the right SHA-256, and refuses the rest."""

import io
import struct

import pytest
import torch
from safetensors.torch import load

import fetch_data


@pytest.fixture
def files(monkeypatch):
    """One file, at a URL."""
    content = b"1 2 3"
    monkeypatch.setattr(
        fetch_data, "FILES", {"a/b.txt": fetch_data.File("https://x.org/b", fetch_data.sha256(content))}
    )
    return {"https://x.org/b": content}


def test_only_missing_and_damaged_files_are_fetched(files, tmp_path):
    (tmp_path / fetch_data.STORIES).mkdir(parents=True)
    assert fetch_data.fetch(tmp_path, files.__getitem__) == ["a/b.txt"]
    assert fetch_data.fetch(tmp_path, {}.__getitem__) == []
    (tmp_path / "a" / "b.txt").write_text("damaged")
    assert fetch_data.fetch(tmp_path, files.__getitem__) == ["a/b.txt"]
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"1 2 3"


def test_content_with_another_sha256_is_refused_and_not_written(files, tmp_path):
    files["https://x.org/b"] = b"1 2 4"
    with pytest.raises(SystemExit, match=r"a/b\.txt: the SHA-256 is .* expected .* from https://x\.org/b"):
        fetch_data.fetch(tmp_path, files.__getitem__)
    assert not (tmp_path / "a").exists()


def test_a_training_checkpoint_becomes_its_state_dict():
    file = io.BytesIO()
    torch.save({"epoch": 3, "state_dict": {"module.fc.weight": torch.arange(6.0).view(2, 3)}}, file)
    assert load(fetch_data.of_state_dict(file.getvalue()))["fc.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_model_of_llama2c_has_the_order_of_transformers():
    """One head of width 4: the pairs that llama2.c rotates are neighbours, those of Transformers half a head apart."""
    width, inner, words = 4, 6, 8
    sizes = {"embed": 32, "norm1": 4, "q": 16, "k": 16, "v": 16, "o": 16, "norm2": 4, "w1": 24, "w2": 24, "w3": 24}
    values = torch.arange(float(sum(sizes.values()) + 4))
    content = struct.pack("<7i", width, inner, 1, 1, 1, words, 16) + values.numpy().tobytes()
    tensors = load(fetch_data.of_llama2c(content))
    assert tensors["model.embed_tokens.weight"].flatten().tolist() == values[:32].tolist()
    assert tensors["model.layers.0.self_attn.q_proj.weight"][:, 0].tolist() == [36, 44, 40, 48]
    assert tensors["model.layers.0.self_attn.v_proj.weight"][:, 0].tolist() == [68, 72, 76, 80]
    assert tensors["model.norm.weight"].tolist() == values[-4:].tolist()
