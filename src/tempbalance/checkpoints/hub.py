"""Hugging Face hub ids: the files of a repository, downloaded once into the usual cache."""

from __future__ import annotations

import re
from pathlib import Path

from tempbalance.errors import MissingExtraError, NotFoundError

__all__ = ["is_hub_id", "snapshot"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_METADATA = ["*.json"]
_BESIDE = ["*/*", "consolidated*", "optimizer*", "training_args*", "*.index.json.lock"]


def is_hub_id(source: str) -> bool:
    """Whether a string that is no path could be a hub id: ``organisation/name``.

    Args:
        source: What the user wrote.

    Returns:
        False as well where the first part is an existing folder: then it is a path with a typo.
    """
    return bool(_ID.fullmatch(source)) and not Path(source).parent.exists()


def snapshot(repo_id: str, revision: str | None = None) -> Path:
    """Download a model repository, or find it in the cache: safetensors, and pickles only where there are none.

    Args:
        repo_id: ``organisation/name``.
        revision: Branch, tag or commit.

    Returns:
        The folder in the cache.

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.
        NotFoundError: The hub has no such repository or revision, access is denied, or it cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError(
            f"there is no path {repo_id!r} here; if it is a Hugging Face hub id, install the extra that downloads it: "
            "pip install 'tempbalance[hub]'"
        ) from error
    folder = Path()
    for weights in ("*.safetensors", "*.bin"):
        patterns = [*_METADATA, weights]
        try:
            path = snapshot_download(repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=_BESIDE)
        except Exception as error:  # the hub raises a wide family, of requests', its own and built-in errors
            raise NotFoundError(
                f"there is no path {repo_id!r} here, and the Hugging Face hub does not give it either: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
        folder = Path(path)
        if any(folder.glob(weights)):
            break
    return folder
