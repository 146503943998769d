"""The files of a model folder: find the weights, check that none is missing, copy the others."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tempbalance._files import read_regular
from tempbalance.checkpoints.torch_file import TORCH_SUFFIXES
from tempbalance.checkpoints.unsupported import SUPPORTED, describe_unsupported
from tempbalance.errors import CheckpointError, CorruptFileError

__all__ = [
    "ADAPTERS",
    "NUMBERED",
    "PIPELINE",
    "WEIGHTS",
    "copy_non_weights",
    "model_parts",
    "pipeline_folders",
    "read_json",
    "weight_files",
]

_logger = logging.getLogger("tempbalance")
PIPELINE = "model_index.json"  # of diffusers

WEIGHTS = (".safetensors", ".gguf", *TORCH_SUFFIXES)  # of files that are read
# In order of preference: the first match is used, other files are ignored.
_INDEXES = ("model.safetensors.index.json", "*.safetensors.index.json")
_TORCH_INDEXES = ("pytorch_model.bin.index.json", "*.bin.index.json")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
# Files that are not weights: optimizer state and the like, and copies in the original naming of the model.
_NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state\w*|random_states\w*|consolidated.*|adapter_model)\..*"
)
_NOT_COPIED = (*WEIGHTS, ".h5", ".msgpack", ".onnx", ".index.json")
_MOST_JSON = 100 << 20  # as the header of a safetensors file
NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<suffix>\.\w+)")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise a CorruptFileError."""
    try:
        if path.stat().st_size > _MOST_JSON:
            raise CorruptFileError(f"{path}: larger than {_MOST_JSON >> 20} MB, which no configuration or index is")
        parsed = json.loads(read_regular(path).decode())
    except (OSError, ValueError, RecursionError) as error:  # JSON errors are ValueErrors, too long numbers as well
        raise CorruptFileError(f"{path}: not readable as JSON ({error}); download or copy it again") from error
    if not isinstance(parsed, dict):
        raise CorruptFileError(f"{path}: expected a JSON object, found a {type(parsed).__name__}")
    return parsed


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the weight files (safetensors, else pickles, else GGUF), and the index from tensor to file name, or {}."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    files = [entry for entry in entries if entry.is_file()]
    adapters = [folder / name for name in ADAPTERS if (folder / name) in files][:1]
    for indexes, suffixes, single in (
        (_INDEXES, (".safetensors",), ("model.safetensors", "diffusion_pytorch_model.safetensors")),
        (_TORCH_INDEXES, TORCH_SUFFIXES, ("pytorch_model.bin", "diffusion_pytorch_model.bin")),
        ((), (".gguf",), ()),
    ):
        for pattern in indexes:
            for index in sorted(folder.glob(pattern)):
                return _indexed(index, files, adapters)
        found = [f for f in files if f.suffix.lower() in suffixes and not _NOT_WEIGHTS.fullmatch(f.name)]
        found = [f for f in found if f.name in single] or found
        if found:
            _check_numbering(found)
            return [*found, *adapters], {}
    if adapters:
        return adapters, {}
    raise CheckpointError(_no_weights(folder, entries))


def pipeline_folders(folder: Path) -> dict[str, Path]:
    """Return the folders with the weights of a pipeline of diffusers, by component; {} for any other folder."""
    index = folder / PIPELINE
    if not index.is_file():
        return {}
    parts = {name: folder / name for name, value in read_json(index).items() if _is_component(name, value)}
    missing = [name for name, part in parts.items() if not part.is_dir()]
    if missing:
        _logger.warning("%s: these components of %s are not there: %s", folder, PIPELINE, ", ".join(missing))
    suffixes = (".safetensors", *TORCH_SUFFIXES)
    return {name: part for name, part in parts.items() if any(f.suffix in suffixes for f in _listed(part))}


def _is_component(name: str, value: object) -> bool:
    """Return whether an entry of ``model_index.json`` is a component: library and class, of which neither is null."""
    return isinstance(value, list) and all(isinstance(v, str) for v in value) and Path(name).name == name != ".."


def _indexed(index: Path, files: list[Path], adapters: list[Path]) -> tuple[list[Path], dict[str, str]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CorruptFileError(f"{index}: no weight_map from tensor names to files; download or copy it again")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CorruptFileError(f"{index}: names a file outside its folder: {outside[0]!r}")
    present = {file.name for file in files}
    missing = [name for name in names if name not in present]
    if missing:
        raise CorruptFileError(
            f"{index}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing[:5])}; "
            "download or copy them into the same folder"
        )
    return [*(index.parent / name for name in names), *adapters], weight_map


def _check_numbering(files: Sequence[Path]) -> None:
    """Check the shards of a folder without an index by the numbers in their names."""
    numbered = [match for match in (NUMBERED.fullmatch(file.name) for file in files) if match is not None]
    for match in {(m["stem"], m["count"], m["suffix"]): m for m in numbered}.values():
        model_parts(files[0].with_name(match.string))


def model_parts(file: Path) -> list[Path]:
    """Return all shards of the model that a file belongs to, in their order, by the numbers in their names.

    A file whose name has no numbers is alone.

    Raises:
        CorruptFileError: A shard is missing.

    Example:
        >>> [part.name for part in model_parts(Path("model.gguf"))]
        ['model.gguf']
    """
    match = NUMBERED.fullmatch(file.name)
    if match is None:
        return [file]
    parts = []
    for number in range(1, 1 + int(match["count"])):
        name = f"{match['stem']}-{number:0{len(match['number'])}d}-of-{match['count']}{match['suffix']}"
        parts.append(file.with_name(name))
        if not parts[-1].is_file():
            raise CorruptFileError(f"{file.parent}: the shard {name} is missing; download or copy it")
    return parts


def _no_weights(folder: Path, entries: list[Path]) -> str:
    nested = [e.name for e in entries if e.is_dir() and any(f.suffix in WEIGHTS for f in _listed(e))]
    if nested:
        hint = f"but its folders {', '.join(nested[:5])} have weights: open one of them"
    else:
        present = ", ".join(e.name for e in entries[:8])
        hint = f"it contains {present}" if present else "it is empty"
        known = next(((e.name, about) for e in (folder, *entries) if (about := describe_unsupported(e))), None)
        hint += f"; {known[0]} is {known[1]}" if known else ""
    return f"{folder}: no weights found, {hint}; {SUPPORTED}"


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def copy_non_weights(source: Path, folder: Path, exclude: Collection[Path] = ()) -> None:
    """Copy configuration, tokenizer and licence of a model, without some files; those in the target folder stay."""
    left_out = {path.resolve() for path in exclude}
    for entry in sorted(source.iterdir()):
        if entry.is_file() and not entry.name.lower().endswith(_NOT_COPIED) and entry.resolve() not in left_out:
            if not (folder / entry.name).exists():
                shutil.copyfile(entry, folder / entry.name)
