"""Token ids from files, and calibration sequences."""

import json

import numpy as np
import pytest
import torch

import tempbalance as tb
from tempbalance.compress.evaluation.tokens import as_documents, batch_size, batches
from tempbalance.errors import ArgumentError, ArgumentTypeError, CheckpointError, TempBalanceError, TokensError


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


def test_the_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path):
    for name, text in {"b.txt": "2", "a.txt": "1", "c.jsonl": '{"text": "3"}\n{"text": "4"}', "notes.md": "9"}.items():
        (tmp_path / name).write_text(text)
    np.save(tmp_path / "d.npy", np.arange(5, 7))
    (tmp_path / "more.txt").mkdir()
    tokenizer = lambda text, **_: {"input_ids": [int(text)]}  # noqa: E731
    found = tb.compress.load_tokens(tmp_path, tokenizer)
    assert [document.tolist() for document in found] == [[1], [2], [3], [4], [5, 6]]


def test_a_folder_without_a_file_of_tokens_or_with_a_wrong_one_is_refused(tmp_path):
    with pytest.raises(TokensError, match=r"is a folder without a file .npz, .npy, .txt"):
        tb.compress.load_tokens(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(TokensError, match=r"a\.json"):
        tb.compress.load_tokens(tmp_path, lambda text, **_: {"input_ids": [int(text)]})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"1,2", "the suffix must be"),
        ("a.npy", b"nonsense", "cannot read tokens from"),
        ("a.npz", b"", "cannot read tokens from"),
        ("a.json", b"{", "cannot read tokens from"),
        ("a.json", b"[{}]", "cannot read tokens from"),
        ("a.txt", b"words", "folder or hub id of a tokenizer"),
        ("a.txt", b" \n", "a.txt is empty: pass a file with text"),
    ],
)
def test_invalid_token_files_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokensError, match=message):
        tb.compress.load_tokens(tmp_path / name)


def test_missing_and_empty_token_files_and_one_hot_vectors_are_refused(tmp_path):
    with pytest.raises(TokensError, match="nowhere"):
        tb.compress.load_tokens(tmp_path / "nowhere.npz")
    np.save(tmp_path / "empty.npy", np.arange(0))
    np.save(tmp_path / "one_hot.npy", np.zeros((2, 2, 2), int))
    for name, message in (("empty", "there is no token"), ("one_hot", "of shape")):
        with pytest.raises(TokensError, match=rf"{name}\.npy: .*{message}"):
            tb.compress.load_tokens(tmp_path / f"{name}.npy")


@pytest.mark.parametrize("offsets", [[1, 3], [0, 2], [0, 4, 3], [0, -1, 3], [0.0, 3.0], [], [0], 3])
def test_wrong_offsets_of_documents_are_refused(offsets, tmp_path):
    np.savez(tmp_path / "a.npz", tokens=np.arange(3), offsets=np.array(offsets))
    with pytest.raises(TokensError, match=r"a\.npz: offsets must ascend from 0 to the number of tokens, 3"):
        tb.compress.load_tokens(tmp_path / "a.npz")


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
PADDED = {"input_ids": [[0, 1, 2, 3], [4, 5, 6, 0]], "attention_mask": [[0, 1, 1, 1], [1, 1, 1, 0]]}
LABELS = torch.tensor([[-100, -100, 3], [-100, -100, 6]])
FORMS = {
    "tensors": list(IDS),
    "tensors (1, length)": [row[None] for row in IDS],
    "a tensor (documents, length)": IDS,
    "a tensor (documents, 1, length)": IDS[:, None],
    "an array": IDS.numpy().astype(np.uint16),
    "lists": IDS.tolist(),
    "lists (1, length)": [[row] for row in IDS.tolist()],
    "tuples": [tuple(row) for row in IDS.tolist()],
    "a generator": (row for row in IDS.int()),
    "the output of a tokenizer": {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)},
    "a padded output": PADDED,
    "rows of a data set": [{"input_ids": row, "text": "x"} for row in IDS.tolist()],
    "the loader of Wanda": [(row[None], label[None]) for row, label in zip(IDS, LABELS, strict=True)],
    "a TensorDataset": torch.utils.data.TensorDataset(IDS),
}


@pytest.mark.parametrize("form", FORMS)
def test_token_ids_in_any_form_are_one_tensor_per_document(form):
    found = as_documents(FORMS[form])
    assert [(document.dtype, document.tolist()) for document in found] == [(torch.int64, row) for row in IDS.tolist()]


def test_a_list_of_integers_is_one_document():
    assert [document.tolist() for document in as_documents([3, 4])] == [[3, 4]]


@pytest.mark.parametrize(
    "tokens",
    [
        *(
            None,
            3,
            [],
            [[]],
            torch.tensor([]),
            torch.tensor(3),
            IDS.float(),
            IDS > 2,
            -IDS,
            IDS[:, :, None].repeat(1, 1, 2),
        ),
        *(["text"], [None], ["a", 1], [1.5], [10**30], [[[1, 2], [3]]], [{}], {"ids": IDS}),
        *([(IDS, IDS + 1)], [(IDS, torch.ones_like(IDS), IDS)], [[IDS[0], IDS[1]]], [(IDS, "label")]),
        {"input_ids": IDS, "attention_mask": IDS[:1]},
    ],
)
def test_what_is_no_token_ids_is_refused(tokens):
    with pytest.raises(TokensError):
        as_documents(tokens)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(TokensError, match="cannot load a tokenizer"):
        tb.compress.load_tokens(tmp_path / "a.txt", tmp_path)


def test_a_file_of_weights_is_no_language_model_and_has_no_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "model.gguf").write_text("GGUF")
    with pytest.raises(TokensError, match=r"model.gguf is a file without a tokenizer.*pass the folder of a model"):
        tb.perplexity(tmp_path / "model.gguf", tmp_path / "a.txt")
    with pytest.raises(CheckpointError, match=r"model.gguf is a file: .* needs its Hugging Face folder"):
        tb.perplexity(tmp_path / "model.gguf", [torch.arange(9)])


def test_calibration_sequences_depend_on_the_seed_and_come_from_long_documents():
    documents = [torch.arange(10), torch.arange(100, 200)]
    first, again, other = (tb.compress.draw_calibration(documents, 8, 32, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(len(sample) == 32 and sample.min() >= 100 for sample in first)


def test_a_text_that_is_drawn_many_times_is_reported(caplog):
    tb.compress.Calibration(tokens=torch.arange(1000), samples=4, length=250).draw()
    assert caplog.text == ""
    sequences = tb.compress.Calibration(tokens=torch.arange(1000), samples=12, length=250).draw()
    assert len(sequences) == 12
    assert "12 sequences of 250 tokens are 3 times the calibration text of 1,000 tokens" in caplog.text
    assert "--samples 4" in caplog.text


def test_a_tokenizer_object_reads_text(tmp_path):
    (tmp_path / "text.txt").write_text("cab")
    by_letter = lambda text, **_: {"input_ids": [ord(letter) - 97 for letter in text]}  # noqa: E731
    found = tb.compress.load_tokens(tmp_path / "text.txt", by_letter)
    assert [each.tolist() for each in found] == [[2, 0, 1]]


def test_a_text_shorter_than_one_sequence_is_refused():
    calibration = tb.compress.Calibration(tokens=[torch.arange(10), torch.arange(5)], samples=2, length=16)
    with pytest.raises(TokensError, match="15 tokens, fewer than one sequence of 16"):
        calibration.draw()


@pytest.mark.parametrize(("length", "error"), [(0, ArgumentError), (-1, ArgumentError), ("9", ArgumentTypeError)])
def test_a_length_of_calibration_sequences_that_is_no_size_is_refused(length, error):
    with pytest.raises(error, match="length"):
        tb.compress.Calibration(tokens=[torch.arange(10)], length=length).draw()


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 8192}, 2048),
        ({}, 2048),
        ([], 2048),
        ({"max_position_embeddings": "x"}, 2048),
    ],
)
def test_calibration_sequences_have_the_context_length_of_the_model(tmp_path, config, length):
    (tmp_path / "config.json").write_text(json.dumps(config))
    calibration = tb.compress.Calibration(tokens=[torch.arange(3000)], samples=1)
    assert [len(each) for each in calibration.for_model(tmp_path).draw()] == [length]


def test_short_documents_are_joined_for_calibration():
    (sample,) = tb.compress.draw_calibration([torch.arange(10), torch.arange(10)], 1, 2048)
    assert len(sample) == 20


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"length": 0}, "length must be at least 1"),
        ({"seed": 2**63}, "seed must be less than"),
        ({"documents": []}, "no token"),
    ],
)
def test_calibration_without_tokens_or_with_invalid_sizes_is_refused(bad, message):
    with pytest.raises(TempBalanceError, match=message):
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


def test_lines_of_json_end_at_line_feeds_only(tmp_path, minilm):
    rows = [{"text": "one\u2028two\x85three"}, {"text": "four"}]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert len(tb.compress.load_tokens(path, minilm)) == 2


@pytest.mark.parametrize(
    ("length", "vocabulary", "size"), [(2048, 32_000, 8), (2048, 128_256, 2), (131_072, 151_936, 1)]
)
def test_logits_of_a_batch_are_bounded(length, vocabulary, size):
    assert batch_size([torch.zeros(length), torch.zeros(9)], vocabulary) == size
