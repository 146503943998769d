"""Read one file that ``torch.save`` wrote, with ``weights_only=True``: no code in it is executed."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tempbalance.errors import CheckpointError, CorruptFileError, UnsafeFileError
from tempbalance.layers import Index, TensorInfo
from tempbalance.layers.names import StateDict
from tempbalance.layers.nested import FoundStateDict, find_state_dict

__all__ = ["SUPPORTED", "TORCH_MAGIC", "TORCH_SUFFIXES", "TorchShard"]

SUPPORTED = (
    "supported are .safetensors files, PyTorch state dicts (.bin, .pt, .pth, .ckpt) and folders of them "
    "(a Hugging Face model folder, a PEFT adapter)"
)
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
TORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# Pattern for the members of a zip archive that torch.load cannot read, and the error.
_ARCHIVES: tuple[tuple[str, type[CheckpointError], str], ...] = (
    (
        r"[^/]*/constants\.pkl",
        UnsafeFileError,
        "a TorchScript archive, which contains code: load it with torch.jit.load and analyse the module",
    ),
    (
        r"(.*/)?(models/model\.json|archive_format|serialized_exported_program\.json)",
        CheckpointError,
        "an exported program (.pt2): load it with torch.export.load and analyse its state_dict",
    ),
    (
        r"policy\.pth",
        CheckpointError,
        "a model of Stable-Baselines3: unpack the zip archive and analyse its policy.pth",
    ),
    (
        r"[^/]*\.(pth?|bin|ckpt|safetensors)",
        CheckpointError,
        "a zip archive of checkpoints: unpack it and analyse one of them",
    ),
)

_logger = logging.getLogger("tempbalance")


class TorchShard:
    """A state dict saved by ``torch.save``; tensor data is read by ``load`` where the format allows it."""

    def __init__(self, path: Path, key: str | None = None) -> None:
        self._path, self._key = path, key
        _check_archive(path)
        found = self._read()
        if found.message:
            _logger.warning("%s: %s", path, found.message)
        self._key = found.key or None
        in_memory = StateDict(found.tensors)
        self._unmapped = None if self._is_zip() else in_memory
        self.tensors: Mapping[str, TensorInfo] = {
            name: info._replace(identity=info.identity and (path, info.identity))
            for name, info in in_memory.tensors.items()
        }

    def _is_zip(self) -> bool:
        """Return whether the file can be mapped; the format before PyTorch 1.6 has to be read in full."""
        with self._path.open("rb") as file:
            return file.read(4) == TORCH_MAGIC[0]

    def _read(self) -> FoundStateDict:
        try:
            with _allowed_types():
                loaded = torch.load(self._path, map_location="cpu", weights_only=True, mmap=self._is_zip())
        except pickle.UnpicklingError as error:
            raise _refusal(self._path, error) from error
        except OSError as error:
            if error.errno == errno.EINVAL:  # the archive points past the end of the file
                raise CorruptFileError(f"{self._path}: truncated; download or copy it again") from error
            raise CheckpointError(f"{self._path}: cannot be opened: {error}") from error
        except Exception as error:  # torch raises RuntimeError, EOFError, KeyError and others on damaged files
            first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise CorruptFileError(
                f"{self._path}: not a readable PyTorch file ({first_line}); it is truncated or has another format: "
                "download or copy it again"
            ) from error
        if not isinstance(loaded, Mapping):
            raise CheckpointError(
                f"{self._path}: no state dict found in it (a {type(loaded).__name__}); "
                "save one: torch.save(model.state_dict(), path)"
            )
        try:
            return find_state_dict(loaded, self._key)
        except CheckpointError as error:
            raise CheckpointError(f"{self._path}: {error}") from None

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor or a part of it, mapped from the file where the format allows it."""
        tensor: Tensor = self._unmapped.load(name) if self._unmapped is not None else self._read().tensors[name]
        return tensor.detach()[index] if index else tensor.detach()


def _plain_dict(_: object = None) -> dict[Any, Any]:
    return {}


def _plain_path(*parts: str) -> str:
    return "/".join(parts)


def _allowed_types() -> contextlib.AbstractContextManager[None]:
    """Let the safe loader of torch build what scripts save beside weights: NumPy numbers and arrays, namespaces."""
    # For a defaultdict or a path, which the loader cannot fill, a dict or a string is built instead.
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):  # torch before 2.6
        return contextlib.nullcontext()
    core: Any = getattr(np, "_core", None) or np.core
    numbers = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDGUS"]
    renamed = [
        (getattr(core.multiarray, name), f"numpy.{module}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for module in ("core", "_core")
    ]
    paths = [
        (_plain_path, f"{module}.{name}")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
        for module in ("pathlib", "pathlib._local")
    ]
    builtin = [dict, list, set, int, float, str]  # factories of a defaultdict
    types = [argparse.Namespace, np.ndarray, np.dtype, *numbers, *builtin]
    return torch.serialization.safe_globals([*types, *renamed, *paths, (_plain_dict, "collections.defaultdict")])


def _check_archive(path: Path) -> None:
    """Raise a CheckpointError for a zip archive that is not of ``torch.save``."""
    members: list[str] = []
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    for pattern, kind, description in _ARCHIVES:
        if any(re.fullmatch(pattern, member) for member in members):
            raise kind(f"{path} is {description}")


def _refusal(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    """Return the error for a file that ``weights_only=True`` refuses: it contains code, or is not a pickle."""
    text = str(error)
    found = re.search(r"Unsupported (?:global|class|operand)[^\n]*?(?:GLOBAL )?([\w.]+\.[\w.]+)", text)
    if not found and not re.search(r"Unsupported|not an allowed global|Trying to", text):
        return CorruptFileError(f"{path}: not a readable PyTorch file; {SUPPORTED}")
    needed = f" ({found.group(1)})" if found else ""
    return UnsafeFileError(
        f"{path}: the pickle would run code or build objects{needed} and was refused; nothing was executed. "
        "If you trust it, load it yourself and save plain tensors: torch.save(model.state_dict(), path)"
    )
