"""Read token ids from files, draw calibration sequences, and stack sequences to batches."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tempbalance._files import as_path, read_regular
from tempbalance._saved import parse_json
from tempbalance.errors import MissingExtraError, TokensError, check_integer, check_seed, require_extra

__all__ = [
    "Calibration",
    "Documents",
    "as_documents",
    "batch_size",
    "batches",
    "context_length",
    "draw_calibration",
    "files_of",
    "load_tokens",
    "read_documents",
]

_logger = logging.getLogger("tempbalance")

_LENGTH = 2048
_REPEATED = 2  # times that calibration may read its text without a warning
_LOGITS = 2**29  # of a batch
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")

_TEXT, _ARRAYS = (".txt", ".json", ".jsonl"), (".npz", ".npy")

Documents = str | os.PathLike[str] | Tensor | Iterable[Any]
Tokenizer = str | os.PathLike[str] | Callable[..., Any]


def load_tokens(path: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> list[Tensor]:
    """Read documents as token ids.

    Args:
        path: ``.npz`` with ``tokens`` and, for ``n`` documents, ``offsets`` of length ``n + 1``; ``.npy`` of shape
            ``(length,)`` or ``(documents, length)``; or text for a tokenizer: ``.txt`` (one document), ``.json`` (a
            list of strings, or of objects with ``text``) or ``.jsonl`` (one such object per line). Of a folder, all
            files of these types, in the order of their names, without those in its folders.
        tokenizer: A Hugging Face tokenizer, or the folder or hub id of its model; required for text.

    Returns:
        One int64 tensor of shape ``(length,)`` per document.

    Raises:
        TokensError: The file is missing, empty or of another type, the folder has no such file, or there is no
            tokenizer for a text.
        MissingExtraError: The file is text, and Transformers is not installed.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "tokens.npz"
        >>> np.savez(file, tokens=np.arange(5), offsets=[0, 2, 5])
        >>> load_tokens(file)
        [tensor([0, 1]), tensor([2, 3, 4])]
    """
    path = as_path("path", path)
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            return _from_folder(path, tokenizer)
        if suffix == ".npz":
            documents = _from_npz(path)
        elif suffix == ".npy":
            documents = [np.load(io.BytesIO(read_regular(path)), allow_pickle=False)]
        elif suffix in _TEXT:
            documents = _tokenized(_texts(path, suffix), path, tokenizer)
        else:
            raise TokensError(f"{path}: the suffix must be .npz, .npy, .txt, .json or .jsonl")
    except Exception as error:  # a damaged archive raises many types
        if isinstance(error, (TokensError, MissingExtraError)):
            raise
        raise TokensError(f"cannot read tokens from {path}: {error}") from error
    try:
        return as_documents(documents)
    except TokensError as error:
        raise TokensError(f"{path}: {error}") from None


def _from_folder(folder: Path, tokenizer: Tokenizer | None) -> list[Tensor]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise TokensError(f"cannot read the folder {folder}: {error.strerror}") from error
    files = [path for path in entries if path.suffix.lower() in {*_TEXT, *_ARRAYS} and path.is_file()]
    if not files:
        raise TokensError(f"{folder} is a folder without a file .npz, .npy, .txt, .json or .jsonl")
    first = next((path for path in files if path.suffix.lower() in _TEXT), None)
    encode = tokenizer if first is None or tokenizer is None else _encoder(tokenizer, first)  # loaded once
    return [document for path in files for document in load_tokens(path, encode)]


def _from_npz(path: Path) -> list[Any]:
    with np.load(io.BytesIO(read_regular(path)), allow_pickle=False) as file:
        tokens = file["tokens"]
        if "offsets" not in file:
            return [tokens]
        offsets = file["offsets"]
    whole = tokens.ndim == offsets.ndim == 1 and offsets.dtype.kind in "iu" and offsets.size > 1
    if not whole or offsets[0] != 0 or offsets[-1] != len(tokens) or (offsets[1:] < offsets[:-1]).any():
        raise TokensError(f"{path}: offsets must ascend from 0 to the number of tokens, {tokens.size}")
    return np.split(tokens, offsets[1:-1])


def _texts(path: Path, suffix: str) -> list[str]:
    text = read_regular(path).decode()
    if not text.strip():  # a tokenizer may add a token to nothing
        raise TokensError(f"{path} is empty: pass a file with text")
    if suffix == ".txt":
        return [text]
    rows = parse_json(text) if suffix == ".json" else [parse_json(line) for line in text.split("\n") if line.strip()]
    return [row if isinstance(row, str) else str(row["text"]) for row in rows]


def _tokenized(texts: Sequence[str], path: Path, tokenizer: Tokenizer | None) -> list[Any]:
    if tokenizer is None:
        raise TokensError(f"{path} is text: pass the folder or hub id of a tokenizer, or token ids as .npz")
    encode = _encoder(tokenizer, path)
    return [encode(text, verbose=False)["input_ids"] for text in texts]


def _encoder(tokenizer: Tokenizer, path: Path) -> Callable[..., Any]:
    if callable(tokenizer):
        return tokenizer
    if os.path.isfile(tokenizer):
        raise TokensError(f"{tokenizer} is a file without a tokenizer, which {path} needs: pass the folder of a model")
    with require_extra("transformers", "reading text needs Transformers"):
        from transformers import AutoTokenizer
    try:
        encode: Callable[..., Any] = AutoTokenizer.from_pretrained(tokenizer)
    except Exception as error:  # tokenizers and the hub raise many types
        raise TokensError(
            f"cannot load a tokenizer from {tokenizer} for {path}: pass token ids as .npz ({error})"
        ) from error
    return encode


def files_of(*texts: Documents | None) -> list[Path]:
    """Return the texts that are files."""
    return [Path(text) for text in texts if isinstance(text, (str, os.PathLike))]


def read_documents(tokens: Documents, tokenizer: Tokenizer | None = None) -> list[Tensor]:
    """Read documents from a file (see ``load_tokens``), or from token ids in any form (see ``as_documents``)."""
    return load_tokens(tokens, tokenizer) if isinstance(tokens, (str, os.PathLike)) else as_documents(tokens)


def as_documents(tokens: object) -> list[Tensor]:
    """Return token ids in a usual form as one int64 tensor of shape ``(length,)`` per document that is not empty.

    Usual are one document of shape ``(length,)``, several of shape ``(documents, length)``, or an iterable of them:
    tensors, arrays, lists, the output of a tokenizer (``input_ids``; masked tokens are left out), or pairs of inputs
    and labels as in the loaders of Wanda and GPTQ.

    Raises:
        TokensError: These are no token ids, or there are none.

    Example:
        >>> as_documents([torch.tensor([[1, 2]]), [3, 4], {"input_ids": [5, 0], "attention_mask": [1, 0]}])
        [tensor([1, 2]), tensor([3, 4]), tensor([5])]
    """
    try:
        whole = isinstance(tokens, (Tensor, np.ndarray, Mapping))
        items: list[Any] = [tokens] if whole else list(tokens)  # type: ignore[call-overload]
        if items and all(isinstance(item, Integral) for item in items):
            items = [items]
        documents = [row for item in items for row in _rows(item) if len(row)]
    except TokensError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError, KeyError) as error:
        raise TokensError(f"cannot take these as token ids: {type(error).__name__}: {error}") from error
    if not documents:
        raise TokensError("there is no token: pass token ids, at least one")
    return documents


def _rows(item: Any) -> list[Tensor]:
    """Return the documents in one item of a sequence."""
    if isinstance(item, Mapping):
        return _unmasked(item)
    if isinstance(item, tuple) and any(not isinstance(each, Integral) for each in item):
        return _inputs(item)
    ids = item.detach().cpu() if isinstance(item, Tensor) else _tensor(item)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        raise TokensError(f"expected integers as token ids, got {ids.dtype}")
    if ids.ndim == 0 or any(size != 1 for size in ids.shape[1:-1]):
        raise TokensError(f"expected documents of shape (length,) or (documents, length), got {tuple(ids.shape)}")
    ids = ids.long()
    if ids.numel() and int(ids.min()) < 0:
        raise TokensError(f"a token id is negative: {int(ids.min())}")
    return list(ids.reshape(-1, ids.shape[-1])) if ids.numel() else []


def _tensor(item: Any) -> Tensor:
    array = np.asarray(item)
    parts = item if isinstance(item, Sequence) else ()
    if (array.dtype.kind not in "iu" and array.size) or any(isinstance(part, (Tensor, np.ndarray)) for part in parts):
        raise TokensError(f"expected integers as token ids, got {type(item).__name__}: {repr(item)[:80]}")
    return torch.from_numpy(array.astype(np.int64))


def _unmasked(item: Mapping[str, Any]) -> list[Tensor]:
    """Return the token ids in the output of a tokenizer, without padding."""
    rows = _rows(item["input_ids"])
    mask = item.get("attention_mask")
    if mask is None:
        return rows
    masks = _rows(mask)
    if [len(row) for row in rows] != [len(row) for row in masks]:
        raise TokensError("input_ids and attention_mask differ in shape")
    return [row[mask != 0] for row, mask in zip(rows, masks, strict=True)]


def _inputs(pair: tuple[Any, ...]) -> list[Tensor]:
    """Return the inputs of a pair of inputs and labels, where labels are the inputs or -100."""
    if len(pair) == 1:
        return _rows(pair[0])
    inputs, labels = (torch.as_tensor(part) for part in pair)
    if inputs.shape != labels.shape or not bool(((labels < 0) | (labels == inputs)).all()):
        raise TokensError("expected pairs of inputs and equal labels: pass the token ids alone")
    return _rows(inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Calibration text, and how sequences are drawn from it.

    Attributes:
        tokens: File or folder of tokens or text (see ``load_tokens``), or token ids (see ``as_documents``).
        samples: Number of sequences.
        length: Tokens in a sequence; by default the model's context length, at most 2,048.
        seed: Seed for the draw.
    """

    tokens: Documents
    samples: int = 128
    length: int | None = None
    seed: int = 0

    def for_model(self, folder: str | os.PathLike[str]) -> Calibration:
        """Return the same with a length, from the configuration in the folder of a model."""
        return self if self.length is not None else replace(self, length=_context_length(Path(folder)))

    @property
    def settings(self) -> dict[str, int]:
        """The numbers, without the text."""
        length = _LENGTH if self.length is None else self.length
        return {"samples": self.samples, "length": length, "seed": self.seed}

    def draw(self, tokenizer: Tokenizer | None = None) -> list[Tensor]:
        """Draw the sequences (see ``draw_calibration``); text needs a tokenizer.

        Args:
            tokenizer: As for ``load_tokens``.

        Returns:
            The sequences.

        Raises:
            TokensError: The text cannot be read, or is shorter than one sequence.
            ArgumentError: A number is out of range.
        """
        length = self.settings["length"]
        check_integer("samples", self.samples, 1)
        check_integer("length", length, 1)
        documents = read_documents(self.tokens, tokenizer)
        if (found := sum(map(len, documents))) < length:
            raise TokensError(
                f"the calibration text has {found:,} tokens, fewer than one sequence of {length:,}: use more text, or "
                "a smaller length (--length)"
            )
        if (times := self.samples * length / found) > _REPEATED:
            _logger.warning(
                "%d sequences of %s tokens are %.0f times the calibration text of %s tokens: use more text, or fewer "
                "sequences (--samples %d), which takes less time",
                *(self.samples, f"{length:,}", times, f"{found:,}", max(1, found // length)),
            )
        return draw_calibration(documents, self.samples, length, self.seed)


def _context_length(folder: Path) -> int:
    """Return the context length in the configuration of a Hugging Face folder, at most 2,048."""
    try:
        config = parse_json(read_regular(folder / "config.json"))
    except (OSError, ValueError):
        return _LENGTH  # a folder that is not of a language model is refused where it is loaded
    return context_length(config.get if isinstance(config, dict) else {}.get)


def context_length(setting: Callable[[str], Any]) -> int:
    """Return the context length among the settings of a language model, at most 2,048; they are got by their names."""
    found = [setting(name) for name in _CONTEXT_NAMES]
    return min([_LENGTH, *(length for length in found if type(length) is int and length > 1)])


def draw_calibration(documents: Documents, samples: int = 128, length: int = 2048, seed: int = 0) -> list[Tensor]:
    """Draw random token sequences, as Wanda and SparseGPT calibrate (128 sequences of 2,048 tokens, from C4).

    Args:
        documents: Token ids, each document of shape ``(length,)`` or in another form of ``as_documents``.
        samples: Number of sequences.
        length: Tokens in a sequence. If all documents are shorter, they are joined first.
        seed: Seed for the draw.

    Returns:
        ``samples`` int64 tensors of shape ``(length,)``; shorter if there are fewer tokens in all.

    Raises:
        TokensError: There is no token.
        ArgumentError: A number is out of range.

    Example:
        >>> [len(sample) for sample in draw_calibration([torch.arange(100)], samples=2, length=16)]
        [16, 16]
    """
    check_integer("samples", samples, 1)
    check_integer("length", length, 1)
    check_seed(seed)
    documents = read_documents(documents)
    long = [document for document in documents if len(document) >= length] or [torch.cat(documents)]
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(samples):
        document = long[int(torch.randint(len(long), (), generator=generator))]
        start = int(torch.randint(max(1, len(document) - length + 1), (), generator=generator))
        result.append(document[start : start + length].long())
    return result


def batch_size(sequences: Sequence[Tensor], vocabulary: int) -> int:
    """Return how many sequences to run at a time, so that their logits take 2 GiB in float32 at most; 1 to 8."""
    return max(1, min(8, _LOGITS // (vocabulary * max(map(len, sequences)))))


def batches(sequences: Sequence[Tensor], size: int = 8) -> Iterator[Tensor]:
    """Stack consecutive sequences of equal length to batches ``(batch, length)`` of at most ``size``."""
    waiting: list[Tensor] = []
    for sequence in sequences:
        if waiting and (len(waiting) == size or len(sequence) != len(waiting[0])):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(sequence)
    if waiting:
        yield torch.stack(waiting)
