"""Checkpoints on disk or on the Hugging Face hub, read tensor by tensor."""

from __future__ import annotations

from tempbalance.checkpoints.checkpoint import Checkpoint, FileInfo
from tempbalance.checkpoints.opening import open_checkpoint

__all__ = ["Checkpoint", "FileInfo", "open_checkpoint"]
