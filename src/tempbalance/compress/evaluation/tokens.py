"""Read token ids from files, draw calibration sequences, and stack sequences to batches."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tempbalance.errors import MissingExtraError, TokensError, require_extra

__all__ = ["Calibration", "Documents", "batches", "draw_calibration", "load_tokens", "read_documents"]

Documents = str | os.PathLike[str] | Sequence[Tensor]


def load_tokens(path: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None) -> list[Tensor]:
    """Read documents as token ids.

    Args:
        path: ``.npz`` with ``tokens`` and, for ``n`` documents, ``offsets`` of length ``n + 1``; ``.npy`` with one
            document; or text for a tokenizer: ``.txt`` (one document), ``.json`` (a list of strings, or of objects with
            ``text``) or ``.jsonl`` (one such object per line).
        tokenizer: Folder or hub id of a Hugging Face model; required for text.

    Returns:
        One int64 tensor of shape ``(length,)`` per document.

    Raises:
        TokensError: The file is missing, empty or of another type, or there is no tokenizer for a text.
        MissingExtraError: The file is text, and Transformers is not installed.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "tokens.npz"
        >>> np.savez(file, tokens=np.arange(5), offsets=[0, 2, 5])
        >>> load_tokens(file)
        [tensor([0, 1]), tensor([2, 3, 4])]
    """
    path = Path(path)
    suffix = path.suffix.lower()
    try:
        if suffix == ".npz":
            documents = _from_npz(path)
        elif suffix == ".npy":
            documents = [np.load(path, allow_pickle=False)]
        elif suffix in {".txt", ".json", ".jsonl"}:
            documents = _tokenized(_texts(path, suffix), path, tokenizer)
        else:
            raise TokensError(f"{path}: the suffix must be .npz, .npy, .txt, .json or .jsonl")
        arrays = [np.asarray(document) for document in documents]
    except Exception as error:  # a damaged archive raises many types
        if isinstance(error, (TokensError, MissingExtraError)):
            raise
        raise TokensError(f"cannot read tokens from {path}: {error}") from error
    if any(array.size and array.dtype.kind not in "iu" for array in arrays):
        raise TokensError(f"{path}: expected integers as token ids, in one-dimensional documents")
    result = [torch.from_numpy(array.astype(np.int64)) for array in arrays]
    if any(document.ndim != 1 for document in result) or not any(len(document) for document in result):
        raise TokensError(f"{path}: expected one-dimensional documents of token ids with at least one token")
    if min(int(document.min()) for document in result if len(document)) < 0:
        raise TokensError(f"{path}: a token id is negative")
    return [document for document in result if len(document)]


def _from_npz(path: Path) -> list[Any]:
    with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
        tokens = file["tokens"]
        return [tokens] if "offsets" not in file else np.split(tokens, file["offsets"][1:-1])


def _texts(path: Path, suffix: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if suffix == ".txt":
        return [text]
    rows = json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.splitlines() if line.strip()]
    return [row if isinstance(row, str) else str(row["text"]) for row in rows]


def _tokenized(texts: Sequence[str], path: Path, tokenizer: str | os.PathLike[str] | None) -> list[Any]:
    if tokenizer is None:
        raise TokensError(f"{path} is text: pass the folder or hub id of a tokenizer, or token ids as .npz")
    with require_extra("transformers", "reading text needs Transformers"):
        from transformers import AutoTokenizer
    try:
        encode = AutoTokenizer.from_pretrained(tokenizer)
    except Exception as error:  # tokenizers and the hub raise many types
        raise TokensError(
            f"cannot load a tokenizer from {tokenizer} for {path}: pass token ids as .npz ({error})"
        ) from error
    return [encode(text, verbose=False)["input_ids"] for text in texts]


def read_documents(tokens: Documents, tokenizer: str | os.PathLike[str] | None = None) -> list[Tensor]:
    """Read documents from a file (see ``load_tokens``); return token ids unchanged."""
    return load_tokens(tokens, tokenizer) if isinstance(tokens, (str, os.PathLike)) else list(tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Calibration text, and how sequences are drawn from it.

    Attributes:
        tokens: File of tokens or text (see ``load_tokens``), or token ids, each document of shape ``(length,)``.
        samples: Number of sequences.
        length: Tokens in a sequence.
        seed: Seed for the draw.
    """

    tokens: Documents
    samples: int = 128
    length: int = 2048
    seed: int = 0

    @property
    def settings(self) -> dict[str, int]:
        """The numbers, without the text."""
        return {"samples": self.samples, "length": self.length, "seed": self.seed}

    def draw(self, tokenizer: str | os.PathLike[str] | None = None) -> list[Tensor]:
        """Draw the sequences (see ``draw_calibration``); text needs the folder or hub id of a tokenizer."""
        return draw_calibration(read_documents(self.tokens, tokenizer), self.samples, self.length, self.seed)


def draw_calibration(
    documents: Sequence[Tensor], samples: int = 128, length: int = 2048, seed: int = 0
) -> list[Tensor]:
    """Draw random token sequences, as Wanda and SparseGPT calibrate (128 sequences of 2,048 tokens, from C4).

    Args:
        documents: Token ids, each of shape ``(length,)``.
        samples: Number of sequences.
        length: Tokens in a sequence. If all documents are shorter, they are joined first.
        seed: Seed for the draw.

    Returns:
        ``samples`` int64 tensors of shape ``(length,)``; shorter if there are fewer tokens in all.

    Raises:
        TokensError: There is no token, or a number is not positive.

    Example:
        >>> [len(sample) for sample in draw_calibration([torch.arange(100)], samples=2, length=16)]
        [16, 16]
    """
    if samples < 1 or length < 1 or not sum(map(len, documents)):
        raise TokensError(f"cannot draw {samples} sequences of {length} tokens from {len(documents)} documents")
    long = [document for document in documents if len(document) >= length] or [torch.cat(list(documents))]
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(samples):
        document = long[int(torch.randint(len(long), (), generator=generator))]
        start = int(torch.randint(max(1, len(document) - length + 1), (), generator=generator))
        result.append(document[start : start + length].long())
    return result


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
