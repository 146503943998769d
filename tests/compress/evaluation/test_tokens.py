"""Token ids from files, and calibration sequences."""

import json

import numpy as np
import pytest
import torch

import tempbalance as tb
from tempbalance.compress.evaluation.tokens import batches
from tempbalance.errors import TokensError


def test_token_ids_are_read_from_npz_and_npy(tmp_path):
    np.savez(tmp_path / "many.npz", tokens=np.arange(6, dtype=np.uint16), offsets=[0, 2, 2, 6])
    np.savez(tmp_path / "one.npz", tokens=np.arange(3))
    np.save(tmp_path / "one.npy", np.arange(3))
    assert [d.tolist() for d in tb.compress.load_tokens(tmp_path / "many.npz")] == [[0, 1], [2, 3, 4, 5]]
    for name in ("one.npz", "one.npy"):
        (document,) = tb.compress.load_tokens(tmp_path / name)
        assert document.dtype == torch.int64
        assert document.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("a.txt", "one two\nthree", 1),
        ("a.json", json.dumps(["one", {"text": "two"}]), 2),
        ("a.jsonl", '{"text": "one"}\n\n{"text": "two"}\n', 2),
    ],
)
def test_text_is_tokenized_by_the_tokenizer_of_the_model(name, content, documents, tmp_path, minilm):
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = tb.compress.load_tokens(tmp_path / name, minilm)
    assert len(found) == documents
    assert found[0][0] == 101  # [CLS] of BERT


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"1,2", "the suffix must be"),
        ("a.npy", b"nonsense", "cannot read tokens from"),
        ("a.npz", b"", "cannot read tokens from"),
        ("a.json", b"{", "cannot read tokens from"),
        ("a.json", b"[{}]", "cannot read tokens from"),
        ("a.txt", b"words", "folder or hub id of a tokenizer"),
    ],
)
def test_invalid_token_files_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokensError, match=message):
        tb.compress.load_tokens(tmp_path / name)


def test_missing_empty_and_two_dimensional_token_files_are_refused(tmp_path):
    with pytest.raises(TokensError, match="nowhere"):
        tb.compress.load_tokens(tmp_path / "nowhere.npz")
    np.save(tmp_path / "empty.npy", np.arange(0))
    np.save(tmp_path / "matrix.npy", np.zeros((2, 2), int))
    for name in ("empty", "matrix"):
        with pytest.raises(TokensError, match="one-dimensional documents"):
            tb.compress.load_tokens(tmp_path / f"{name}.npy")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(TokensError, match="cannot load a tokenizer"):
        tb.compress.load_tokens(tmp_path / "a.txt", tmp_path)


def test_calibration_sequences_depend_on_the_seed_and_come_from_long_documents():
    documents = [torch.arange(10), torch.arange(100, 200)]
    first, again, other = (tb.compress.draw_calibration(documents, 8, 32, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(len(sample) == 32 and sample.min() >= 100 for sample in first)


def test_short_documents_are_joined_for_calibration():
    (sample,) = tb.compress.draw_calibration([torch.arange(10), torch.arange(10)], 1, 2048)
    assert len(sample) == 20


@pytest.mark.parametrize("bad", [{"samples": 0}, {"length": 0}, {"documents": []}])
def test_calibration_without_tokens_or_with_invalid_sizes_is_refused(bad):
    with pytest.raises(TokensError, match="cannot draw"):
        tb.compress.draw_calibration(**{"documents": [torch.arange(9)], **bad})


def test_batches_keep_the_order_of_sequences():
    lengths = [3, 3, 4, 3, 3, 3]
    found = [tuple(batch.shape) for batch in batches([torch.zeros(n) for n in lengths], size=2)]
    assert found == [(2, 3), (1, 4), (2, 3), (1, 3)]


@pytest.mark.parametrize("array", [np.array([1, -2]), np.array([1.5, 2.0]), np.array(["a"]), np.array([True])])
def test_what_is_no_token_id_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(TokensError, match=r"a\.npy: (a token id is negative|expected integers as token ids)"):
        tb.compress.load_tokens(tmp_path / "a.npy")


def test_damaged_archives_and_deep_json_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", tokens=np.arange(1000), offsets=np.int64(3))
    whole = (tmp_path / "a.npz").read_bytes()
    for position in range(0, len(whole), 37):
        (tmp_path / "a.npz").write_bytes(whole[:position] + b"\xff\x80" + whole[position + 2 :])
        with pytest.raises(TokensError, match=r"a\.npz"):
            tb.compress.load_tokens(tmp_path / "a.npz")
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(TokensError, match=r"cannot read tokens from .*a\.json"):
        tb.compress.load_tokens(tmp_path / "a.json", tmp_path)
