"""A plan: one value for every layer, in model order, and its file."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from tempbalance._files import write_whole
from tempbalance.errors import AllocationError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BudgetPlan"]

SCHEMA = 1
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, kw_only=True)
class BudgetPlan(Mapping[str, _Number]):
    """A mapping from the names of layers to what each gets of a budget; subclasses say what that is.

    Attributes:
        source: The model that was analysed.
        method: How the budget was shared out, and with which parameters.
        unit: Whether layers or blocks share a value.
        layers: What each layer gets, in model order.
        revision: Commit of a model from the hub, where it is known.
        settings: Of the analysis: estimator, windows, versions.
    """

    _share: ClassVar[type[Any]]  # dataclass of the elements of ``layers``, with a name and a shape
    _quantity: ClassVar[str]  # which of its attributes is the value

    source: str
    method: str
    unit: Literal["layer", "block"]
    layers: tuple[Any, ...]
    revision: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @functools.cached_property
    def _values(self) -> dict[str, _Number]:
        return {layer.name: getattr(layer, self._quantity) for layer in self.layers}

    def __getitem__(self, name: str) -> _Number:
        """The value of a layer."""
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the layers, in model order."""
        return iter(self._values)

    def __len__(self) -> int:
        """How many layers there are."""
        return len(self._values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all.

        Args:
            path: The file.

        Raises:
            AnalysisError: It cannot be written.
        """
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {"layers", "settings"}}
        layers = [{**asdict(layer), self._quantity: self[layer.name]} for layer in self.layers]
        data = {"schema": SCHEMA, **head, "settings": dict(self.settings), "layers": layers}
        write_whole(path, json.dumps(data, indent=1, allow_nan=False).encode() + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The plan, equal to the one saved.

        Raises:
            AllocationError: The file is missing, is no plan of this kind, or was written by a newer version.
        """
        names = {f.name for f in fields(cls._share)}
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data.pop("schema") > SCHEMA:
                raise AllocationError(f"{path} was written by a newer tempbalance: upgrade")
            rows = ({name: value for name, value in row.items() if name in names} for row in data.pop("layers"))
            return cls(layers=tuple(cls._share(**{**row, "shape": tuple(row["shape"])}) for row in rows), **data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AllocationError(f"cannot read a plan from {path}: {error}") from error
