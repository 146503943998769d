"""Trainable layers as ``unfrozen_parameters`` of axolotl."""

from __future__ import annotations

import json
import os
import re

from tempbalance._files import write_atomically
from tempbalance.compress.allocation import Allocation
from tempbalance.errors import AllocationError

__all__ = ["export_axolotl"]


def export_axolotl(allocation: Allocation, path: str | os.PathLike[str]) -> None:
    """Write the trainable layers as YAML that goes into a configuration of axolotl, which freezes all others.

    Each line is a pattern for the parameters of one layer, its bias included. axolotl escapes the dots itself.

    Args:
        allocation: The result of ``allocate_trainable``.
        path: The file, usually ``.yaml``.

    Raises:
        AllocationError: It is not of trainable layers, or a name has characters that a pattern would misread.
        AnalysisError: The file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from tempbalance.compress import LayerAllocation
        >>> layer = LayerAllocation(name="h.1.fc.weight", unit="h.1.fc.weight", shape=(4, 4), trainable=1)
        >>> head = {"source": "model", "quantity": "trainable", "budget": 1.0, "method": "by hand", "unit": "layer"}
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "unfrozen.yaml"
        >>> export_axolotl(Allocation(**head, layers=(layer,)), path)
        >>> print(path.read_text(), end="")
        unfrozen_parameters:
        - "^h.1.fc.(weight|bias)$"
    """
    allocation.check_quantity("trainable")
    lines = ["unfrozen_parameters:"]
    for name, trained in allocation.items():
        if not re.fullmatch(r"[\w.-]+", name):
            raise AllocationError(f"axolotl cannot address {name!r}: its patterns allow letters, digits, _, - and dots")
        if trained:
            pattern = re.sub("weight$", "(weight|bias)", name) if name.endswith("weight") else f"{name}(_bias)?"
            lines.append(f"- {json.dumps(f'^{pattern}$')}")
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
