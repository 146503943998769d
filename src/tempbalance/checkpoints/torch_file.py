"""Read one file that ``torch.save`` wrote, with ``weights_only=True``: no code in it is executed."""

from __future__ import annotations

import errno
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tempbalance.errors import CheckpointError, CorruptFileError, UnsafeFileError
from tempbalance.layers import Index, TensorInfo
from tempbalance.layers.names import StateDict

__all__ = ["SUPPORTED", "TORCH_MAGIC", "TORCH_SUFFIXES", "TorchShard"]

SUPPORTED = (
    "supported are .safetensors files, PyTorch state dicts (.bin, .pt, .pth, .ckpt) and folders of them "
    "(a Hugging Face model folder, a PEFT adapter)"
)
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
TORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights", "ema")


class TorchShard:
    """A state dict saved by ``torch.save``; tensor data is read by ``load`` where the format allows it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        in_memory = StateDict(self._read())
        self._unmapped = None if self._is_zip() else in_memory
        self.tensors: Mapping[str, TensorInfo] = {
            name: info._replace(identity=info.identity and (path, info.identity))
            for name, info in in_memory.tensors.items()
        }

    def _is_zip(self) -> bool:
        """Return whether the file can be mapped; the format before PyTorch 1.6 has to be read in full."""
        with self._path.open("rb") as file:
            return file.read(4) == TORCH_MAGIC[0]

    def _read(self) -> Mapping[str, Any]:
        try:
            loaded = torch.load(self._path, map_location="cpu", weights_only=True, mmap=self._is_zip())
        except pickle.UnpicklingError as error:
            raise _refusal(self._path, error) from error
        except OSError as error:
            if error.errno == errno.EINVAL:  # the archive points past the end of the file
                raise CorruptFileError(f"{self._path}: truncated; download or copy it again") from error
            raise CheckpointError(f"{self._path}: cannot be opened: {error}") from error
        except Exception as error:  # torch raises RuntimeError, EOFError, KeyError and others on damaged files
            if "TorchScript" in str(error):
                raise UnsafeFileError(
                    f"{self._path}: a TorchScript archive contains code; load it with torch.jit.load and analyse "
                    "the module"
                ) from error
            first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise CorruptFileError(
                f"{self._path}: not a readable PyTorch file ({first_line}); it is truncated or has another format: "
                "download or copy it again"
            ) from error
        return _find_state_dict(loaded, self._path)

    def load(self, name: str, index: Index = ()) -> Tensor:
        """Read a tensor or a part of it, mapped from the file where the format allows it."""
        tensor: Tensor = self._unmapped.load(name) if self._unmapped is not None else self._read()[name]
        return tensor.detach()[index] if index else tensor.detach()


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


def _find_state_dict(loaded: object, path: Path) -> Mapping[str, Any]:
    """Return the state dict, which may be nested in the object that was saved."""
    level = [loaded]
    while level:
        mappings = [value for value in level if isinstance(value, Mapping)]
        for value in mappings:
            if any(isinstance(v, Tensor) for v in value.values()):
                return value
        level = [value[key] for value in mappings for key in _WRAPPERS if key in value]
    kind = type(loaded).__name__
    keys = f" with keys {list(loaded)[:8]}" if isinstance(loaded, Mapping) else ""
    raise CheckpointError(
        f"{path}: no state dict found in it (a {kind}{keys}); save one: torch.save(model.state_dict(), path)"
    )
