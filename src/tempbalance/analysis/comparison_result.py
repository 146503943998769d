"""The result of a comparison, and its files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tempbalance._files import RENDERERS
from tempbalance._text import encodable
from tempbalance.analysis.change_findings import block_changes
from tempbalance.analysis.layer_delta import LayerDelta
from tempbalance.analysis.result import SCHEMA, save_report
from tempbalance.types import Finding

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

__all__ = ["Comparison"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The changes between two models, layer by layer.

    Attributes:
        before: Source of the first analysis.
        after: Source of the second analysis.
        settings: Settings of the second analysis.
        layers: One row per layer that is in both, in the order of the second model. If the weights were compared,
            embeddings have a row, too, without an alpha.
        only_before: Names of the layers that are only in the first.
        only_after: Names of the layers that are only in the second.
        imbalance_before: Standard deviation of alpha over all layers, before.
        imbalance_after: The same, after.
        findings: What to look at first, the most severe first: layers without a partner, identical ones, the blocks
            that moved most, whether alpha changed.
    """

    before: str
    after: str
    settings: Mapping[str, Any]
    layers: list[LayerDelta]
    only_before: list[str]
    only_after: list[str]
    imbalance_before: float
    imbalance_after: float
    findings: list[Finding] = field(default_factory=list[Finding])

    def __repr__(self) -> str:
        """Return the sources, and the numbers of layers and findings."""
        return f"Comparison({self.before} -> {self.after}, {len(self.layers)} layers, {len(self.findings)} findings)"

    @property
    def blocks(self) -> dict[str, float]:
        """Relative change of each block, over its weight matrices; empty if the weights were not compared."""
        return block_changes(self.layers)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with one row per common layer and one column per field of ``LayerDelta``."""
        import pandas as pd  # slow to import

        rows = [asdict(row) for row in self.layers]
        for row in rows:  # pandas takes no unpaired surrogate
            row |= {key: encodable(value) for key, value in row.items() if isinstance(value, str)}
        return pd.DataFrame(rows, columns=[f.name for f in fields(LayerDelta)])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values; NaN stays."""
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file atomically.

        Args:
            path: A path that ends in ``.json``, ``.csv`` or ``.html`` (a report for a browser, in one file).

        Raises:
            AnalysisError: The path ends differently, or the file cannot be written.
        """
        save_report(self, path, "render_comparison")

    def plot(self) -> Figure:
        """Draw how far each weight moved against depth; of two analyses, the change of alpha.

        Returns:
            A plotly figure.

        Raises:
            MissingExtraError: plotly is not installed.

        Example:
            >>> import tempbalance as tb, torch
            >>> weight = torch.randn(64, 64)
            >>> figure = tb.compare({"fc.weight": weight}, {"fc.weight": 1.1 * weight}, progress=False).plot()
            >>> round(figure.data[0].y[0], 4)
            0.1
        """
        moved = any(math.isfinite(row.relative_change) for row in self.layers)
        return RENDERERS["plot"]("weight_change_figure" if moved else "alpha_change_figure", self)
