"""Files that are written whole or not at all, and JSON without NaN."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tempbalance.errors import AnalysisError

__all__ = ["dumps", "register_renderer", "renderer", "write_whole"]

_renderers: dict[str, Callable[..., str]] = {}


def register_renderer(suffix: str, render: Callable[..., str]) -> None:
    """Say what renders a result as a file of a kind. The package does so for ``.html``: reports know results.

    Args:
        suffix: Ending of the file.
        render: From a result, and what else it takes, to the text.
    """
    _renderers[suffix] = render


def renderer(suffix: str) -> Callable[..., str]:
    """What renders a result as a file of a kind.

    Args:
        suffix: Ending of the file.

    Returns:
        What was registered.
    """
    return _renderers[suffix]


def dumps(value: Any) -> str:
    """JSON text of plain values, with null for NaN and Inf, which JSON does not have.

    Args:
        value: Mappings, sequences, strings, numbers.

    Returns:
        One line.
    """
    return json.dumps(_without_nan(value), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return value


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that a reader, or a crash, never meets half of it.

    Args:
        path: Its folder must exist.
        content: All of it.

    Raises:
        AnalysisError: The file cannot be written.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)  # mkstemp makes files private
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise AnalysisError(f"cannot write {target}: {error.strerror or error}") from error
