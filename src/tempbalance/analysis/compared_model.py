"""One of two models that are compared: its analysis, and its weights if they can be read."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tempbalance.analysis.adapted import is_adapter, with_base
from tempbalance.analysis.analyzer import Opened, Source, analyze, open_source
from tempbalance.analysis.change_findings import make_finding
from tempbalance.analysis.result import Analysis
from tempbalance.checkpoints import Checkpoint
from tempbalance.errors import AnalysisError
from tempbalance.layers import Select, Weight, find_weights
from tempbalance.spectra.matrices import MATRIX_NDIM
from tempbalance.types import Finding, LayerStats

__all__ = ["ComparedModel", "align"]


@dataclass
class ComparedModel:
    """One of the two models.

    Attributes:
        analysis: Its analysis.
        opened: Its weights; None for an analysis.
        weights: The weights to compare, by name; with embeddings.
    """

    analysis: Analysis
    opened: Opened | None
    weights: dict[str, Weight] = field(default_factory=dict[str, Weight])

    @classmethod
    def of(
        cls,
        source: Analysis | Source,
        stack: contextlib.ExitStack,
        key: str | None,
        options: Mapping[str, Any],
        *,
        base: ComparedModel | None = None,
        notes: list[Finding] | None = None,
    ) -> ComparedModel:
        """Open and analyse a source; merge an adapter with its base, and note that."""
        if isinstance(source, Analysis):
            return cls(source, None)
        opened, name = stack.enter_context(open_source(source, key))
        if base is not None and notes is not None and isinstance(opened, Checkpoint) and is_adapter(opened):
            if base.opened is None:
                raise AnalysisError(f"{name} is an adapter: give its base model, not an analysis of it, to merge them")
            opened = with_base(opened, base.opened)
            notes.append(make_finding("adapter_merged", f"the adapter {name} was merged with {base.analysis.source}"))
        return cls(replace(analyze(opened, **options), source=name), opened)

    def find(self, selection: Select) -> None:
        """Find the weights."""
        if self.opened is not None:
            self.weights = {weight.name: weight for weight in find_weights(self.opened, selection)[0]}

    @functools.cached_property
    def rows(self) -> dict[str, LayerStats]:
        """The rows of the analysis by name."""
        return {row.name: row for row in self.analysis.layers}

    @functools.cached_property
    def skipped(self) -> dict[str, str]:
        """The reasons of weights without a row, by name."""
        return {row.name: row.reason for row in self.analysis.skipped}

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights, in the order of the model; empty for a weight that was skipped."""
        rows = {name: row.shape for name, row in self.rows.items()}
        tables = {name: w.shape for name, w in self.weights.items() if w.kind == "embedding"}
        known = dict.fromkeys(self.skipped, ()) | rows | tables
        order = {name: place for place, name in enumerate(dict.fromkeys([*self.weights, *rows]))}
        return {name: known[name] for name in sorted(known, key=lambda name: order.get(name, len(order)))}

    def quantisation(self, name: str) -> str:
        """Return the format of a layer that is stored quantised; empty for others."""
        return (self.rows[name] if name in self.rows else self.weights[name]).quantisation

    def kind(self, name: str) -> str:
        """Return the kind of a layer."""
        return self.rows[name].kind if name in self.rows else self.weights[name].kind

    def transpose(self, name: str) -> None:
        """Take the transposed matrix for a weight."""
        weight = self.weights[name]
        shape = weight.shape[::-1]
        self.weights[name] = replace(
            weight, shape=shape, cut=lambda read: weight.cut(read).mT, transposed=not weight.transposed
        )
        self.shapes[name] = shape


def align(first: ComparedModel, second: ComparedModel, pairs: Mapping[str, str]) -> list[str]:
    """Transpose the weights of the first model that the second stores the other way round, such as those of GPT-2.

    The type of a layer tells how it is stored, but in a state dict types are not known; the shapes of the layers that
    are not square tell then how the square ones are stored. ``pairs`` maps names in the second model to names in the
    first.

    Returns:
        Names, in the second model, of square weights that may be transposed or not.
    """
    unknown: list[str] = []
    both = [(new, first.weights.get(old), second.weights.get(new)) for new, old in pairs.items()]
    matrices = [(n, a, b) for n, a, b in both if a and b and b.kind != "embedding" and len(a.shape) == MATRIX_NDIM]
    for differ in (True, False):
        group = [(n, a.shape, b.shape) for n, a, b in matrices if (a.transposed != b.transposed) == differ]
        square = [name for name, one, two in group if one == two == two[::-1]]
        turned = [name for name, one, two in group if one == two[::-1] != two]
        straight = any(one == two != two[::-1] for _, one, two in group)
        if differ and turned and not straight:
            for name in (*turned, *square):
                first.transpose(pairs[name])
        elif turned or (differ and not straight):
            unknown += square
    return unknown
