"""Hugging Face hub ids: download a repository into the hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from tempbalance.errors import NotFoundError, require_extra

__all__ = ["is_hub_id", "snapshot"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_METADATA = ["*.json"]
_NOT_WEIGHTS = ["*/*", "consolidated*", "optimizer*", "training_args*", "*.index.json.lock"]


def is_hub_id(source: str) -> bool:
    """Return whether a string has the form ``organisation/name`` and its first part is not an existing folder."""
    return bool(_ID.fullmatch(source)) and not Path(source).parent.exists()


def snapshot(repo_id: str, revision: str | None = None) -> Path:
    """Return the cached folder of a hub repository, after a download; pickles only if it has no safetensors."""
    need = f"there is no path {repo_id!r} here; if it is a Hugging Face hub id, install the extra that downloads it"
    with require_extra("hub", need):
        from huggingface_hub import snapshot_download
    folder = Path()
    for weights in ("*.safetensors", "*.bin"):
        patterns = [*_METADATA, weights]
        try:
            path = snapshot_download(repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=_NOT_WEIGHTS)
        except Exception as error:  # the hub raises its own, requests' and built-in errors
            raise NotFoundError(
                f"there is no path {repo_id!r} here, and the Hugging Face hub cannot provide it: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
        folder = Path(path)
        if any(folder.glob(weights)):
            break
    return folder
