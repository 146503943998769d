"""Hugging Face hub ids: download a repository, or a folder or file in it, into the hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from tempbalance.checkpoints.folder import PIPELINE, WEIGHTS
from tempbalance.errors import CheckpointError, NotFoundError, require_extra

__all__ = ["snapshot", "split_hub_id"]

_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/(?P<part>[\w.-]+(/[\w.-]+)*))?")
_NUMBER_OF_PART = re.compile(r"-\d+(?=-of-\d+\.gguf$)")  # of a model that is opened with all parts
_METADATA = "*.json"
_NOT_WEIGHTS = ["consolidated*", "optimizer*", "training_args*", "*.index.json.lock"]
_VARIANTS = ["*.fp16.*", "*.bf16.*", "*.non_ema.*", "*.fp8.*"]  # of the weights of diffusers


def split_hub_id(source: str) -> tuple[str, str]:
    """Return the repository and the folder or file of a hub id; empty ones for anything else, such as a path.

    Example:
        >>> split_hub_id("organisation/name/vae"), split_hub_id("model.pt")
        (('organisation/name', 'vae'), ('', ''))
    """
    match = _ID.fullmatch(source)
    if match is None or Path(source.partition("/")[0]).exists() or {"..", "."} & {*source.split("/")}:
        return "", ""
    return match["id"], match["part"] or ""


def snapshot(repo_id: str, revision: str | None = None, part: str = "") -> Path:
    """Return the cached folder of a hub repository, after a download; pickles only if it has no safetensors.

    These are the weights at its top, or all components of a pipeline; with ``part``, a folder or file in it.

    Raises:
        NotFoundError: The hub cannot provide it.
        CheckpointError: The repository has no such folder or file.
    """
    named = f"{repo_id}/{part}" if part else repo_id
    need = f"there is no path {named!r} here; if it is a Hugging Face hub id, install the extra that downloads it"
    with require_extra("hub", need):
        from huggingface_hub import snapshot_download

    def download(allow: list[str], ignore: list[str]) -> Path:
        try:
            path = snapshot_download(repo_id, revision=revision, allow_patterns=allow, ignore_patterns=ignore)
        except Exception as error:  # the hub raises its own, requests' and built-in errors, some without a text
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise NotFoundError(
                f"there is no path {named!r} here, and the Hugging Face hub cannot provide it: "
                f"{reason}. Check the id and the connection, or pass a local folder"
            ) from error
        return Path(path)

    if part.endswith(WEIGHTS):
        file = download([_NUMBER_OF_PART.sub("-*", part)], []) / part
        if not file.exists():
            raise CheckpointError(f"{repo_id} has no file {part}")
        return file
    inside = f"{part}/" if part else ""
    deeper, folder = [f"{inside}*/*"], Path()
    for weights in ("*.safetensors", "*.bin"):
        folder = download([f"{inside}{_METADATA}", f"{inside}{weights}"], [*deeper, *_NOT_WEIGHTS]) / part
        if any(folder.glob(weights)):
            return folder
        if (folder / PIPELINE).exists():
            download([f"{inside}*/{_METADATA}", f"{inside}*/{weights}"], [f"{inside}*/*/*", *_VARIANTS])
            if any(folder.glob(f"*/{weights}")):
                return folder
    if not folder.exists():
        raise CheckpointError(f"{repo_id} has no folder {part} with weights")
    return folder
