"""Compare two models, or two analyses, layer by layer."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from tempbalance._progress import progress_bar
from tempbalance.analysis.analyzer import Source
from tempbalance.analysis.change_findings import alpha_findings, weight_findings
from tempbalance.analysis.compared_model import ComparedModel, align
from tempbalance.analysis.comparison_result import Comparison
from tempbalance.analysis.layer_delta import LayerDelta
from tempbalance.analysis.match_findings import RENAME, match_findings, rounded_findings
from tempbalance.analysis.matching import Matching, match_layers
from tempbalance.analysis.result import Analysis
from tempbalance.analysis.weight_change import WeightChange, weight_change
from tempbalance.errors import AnalysisError, TempBalanceError
from tempbalance.layers import Select, Weight
from tempbalance.spectra.windows import Windows
from tempbalance.tail import TailEstimator
from tempbalance.types import Finding, Severity

__all__ = ["compare", "measured"]

_UNKNOWN = "it is square, and may be stored (in, out) in one model only: give folders with a config.json, or models"
_Measure: TypeAlias = Callable[[Weight, Weight], WeightChange]


def compare(  # noqa: PLR0913  all but the sources are options by keyword
    before: Analysis | Source,
    after: Analysis | Source,
    *,
    estimator: TailEstimator | str | None = None,
    windows: Windows | None = None,
    select: Select | Sequence[str] | str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
    key: str | None = None,
    rename: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare two models layer by layer, for example before and after fine-tuning.

    Of two sources, the weights are compared: the relative change of each, the ranks of the update, and alpha. Both are
    read tensor by tensor, one pair at a time. Of analyses, alpha is compared. Layers are matched by name; if one of the
    models has a prefix that the other has not (``bert.``), without it. An adapter of PEFT as the second model is merged
    with the first.

    Args:
        before: The first model: an analysis, a file that ``Analysis.save("x.json")`` wrote, or a source as for
            ``analyze``.
        after: The second model.
        estimator: Estimator of the tail for sources, by default ``Hill()``; two analyses must have the same one.
        windows: Windows for sources, as for ``analyze``.
        select: Weights to compare, for sources.
        device: Device for the computation, for sources.
        dtype: ``"float32"`` computes eigenvalues in float32, as for ``analyze``; changes of weights stay in float64.
        cache: A folder for rows, as for ``analyze``.
        progress: Whether to show a progress bar (on a terminal only).
        key: Key of the state dict in a training checkpoint.
        rename: New names for layers of the first model, ``{old: new}``: the beginning of names, or a pattern with ``*``
            for the whole name, whose ``*`` in ``new`` are what they stand for in ``old``. The first rule that fits a
            name is used.

    Returns:
        The changes, and the findings about them.

    Raises:
        AnalysisError: The estimators or the windows differ, no layer is in both, or an option is given that has no
            effect on two analyses.
        SelectionError: A rule of ``rename`` fits no layer.

    Example:
        >>> import tempbalance as tb, torch
        >>> model = torch.nn.Linear(64, 64, bias=False)
        >>> weight = tb.testing.matrix_with_spectrum(tb.testing.pareto_quantiles(64, alpha=3.0), (64, 64), seed=0)
        >>> _ = model.load_state_dict({"weight": weight})
        >>> row = tb.compare(model.state_dict(), {"weight": 1.1 * weight}).layers[0]
        >>> round(row.relative_change, 6), round(row.delta, 6)
        (0.1, 0.0)
    """
    options: dict[str, Any] = {"estimator": estimator, "windows": windows, "select": select, "device": device}
    options |= {"dtype": dtype, "cache": cache}
    one, two = (_load(side) for side in (before, after))
    if isinstance(one, Analysis) and isinstance(two, Analysis):
        unused = [name for name, value in (options | {"key": key}).items() if value is not None]
        if unused:
            raise AnalysisError(f"{unused[0]} has no effect on two analyses: give the models, or leave it out")
    with contextlib.ExitStack() as stack:
        notes: list[Finding] = []
        options |= {"progress": progress}
        first = ComparedModel.of(one, stack, key, options)
        second = ComparedModel.of(two, stack, key, options, base=first, notes=notes)
        _check_settings(first.analysis, second.analysis)
        weights = first.opened is not None and second.opened is not None
        if weights:
            selection = replace(Select.parse(select), embeddings=True)
            first.find(selection)
            second.find(selection)
        matching = match_layers(first.shapes, second.shapes, rename)
        with progress_bar("comparing weights", len(matching.pairs), progress and weights) as advance:

            def measure(before: Weight, after: Weight) -> WeightChange:
                advance(1)
                return weight_change(before, after, device=device)

            return _compared(first, second, matching, notes, measure if weights else None)


def _load(side: Analysis | Source) -> Analysis | Source:
    """Return a saved analysis; anything else as it is."""
    if isinstance(side, (str, os.PathLike)) and os.fspath(side).lower().endswith(".json"):
        return Analysis.load(side)
    return side


def _check_settings(before: Analysis, after: Analysis) -> None:
    for key in ("estimator", "windows"):
        one, other = before.settings.get(key), after.settings.get(key)
        if one != other:
            raise AnalysisError(f"alphas of different {key.rstrip('s')}s cannot be compared: {one} and {other}")


def _compared(
    first: ComparedModel, second: ComparedModel, matching: Matching, notes: Sequence[Finding], measure: _Measure | None
) -> Comparison:
    unknown = align(first, second, matching.pairs)
    before, after = first.shapes, second.shapes
    reasons = _reasons(first, second, matching)
    pairs = {new: old for new, old in matching.pairs.items() if before[old] and after[new] and new not in reasons}
    matched = set(pairs.values())
    only_before = [name for name in before if before[name] and name not in matched]
    only_after = [name for name in after if after[name] and name not in pairs]
    if not pairs:
        raise AnalysisError(_no_pair(only_before, only_after, reasons))
    rows = []
    for new, old in pairs.items():
        row = _row(first, second, old, new)
        if new in unknown:
            reasons[new] = _UNKNOWN
        elif measure is not None and row.shape == row.shape_before:
            try:
                row = measured(row, measure(first.weights[old], second.weights[new]))
            except (MemoryError, torch.cuda.OutOfMemoryError):  # the machine is too small, the weight is not bad
                raise
            except Exception as error:  # one bad weight never ends a comparison
                known = isinstance(error, TempBalanceError)
                reasons[new] = str(error) if known else f"{type(error).__name__}: {error}"
        rows.append(row)
    unexplained = {*reasons, *(matching.pairs.get(name, "") for name in reasons)}
    about_names = match_findings(
        matching,
        rows,
        [name for name in only_before if name not in unexplained],
        [name for name in only_after if name not in unexplained],
        reasons,
    )
    formats = {new: (first.quantisation(old), second.quantisation(new)) for new, old in pairs.items()}
    equal = {row.name: ("", "") for row in rows if row.relative_change == 0}  # without a change, none is of rounding
    about_names += rounded_findings(formats | equal)
    findings = [*weight_findings(rows), *alpha_findings(rows), *notes, *about_names]
    return Comparison(
        before=first.analysis.source,
        after=second.analysis.source,
        settings=second.analysis.settings,
        layers=rows,
        only_before=only_before,
        only_after=only_after,
        imbalance_before=first.analysis.imbalance,
        imbalance_after=second.analysis.imbalance,
        findings=sorted(findings, key=lambda finding: [*Severity].index(finding.severity)),
    )


def _reasons(first: ComparedModel, second: ComparedModel, matching: Matching) -> dict[str, str]:
    """Return why layers of both models cannot be compared, by their names in the second."""
    before, after = first.shapes, second.shapes
    reasons = {}
    for new, old in matching.pairs.items():
        if before[old] and not after[new]:
            reasons[new] = f"in the second model, {second.skipped[new]}"
        elif after[new] and not before[old]:
            reasons[new] = f"in the first model, {first.skipped[old]}"
        elif before[old] and (first.kind(old) == "lora") != (second.kind(new) == "lora"):
            which = "first" if first.kind(old) == "lora" else "second"
            reasons[new] = f"in the {which} model it is the update of an adapter without its base model"
    return reasons


def _no_pair(only_before: Sequence[str], only_after: Sequence[str], reasons: Mapping[str, str]) -> str:
    if reasons:
        name, reason = next(iter(reasons.items()))
        return f"no layer can be compared: {name}: {reason}"
    first, second = next(iter(only_before), None), next(iter(only_after), None)
    return f"no layer is in both: {first!r}, ... and {second!r}, ...; {RENAME}"


def _row(first: ComparedModel, second: ComparedModel, old: str, new: str) -> LayerDelta:
    """Return the row of a pair without the change of its weights."""
    one, two = first.rows.get(old), second.rows.get(new)
    alphas = [math.nan if row is None else row.alpha for row in (one, two)]
    delta = alphas[1] - alphas[0]
    stderr = math.nan if one is None or two is None else math.hypot(one.stderr, two.stderr)
    shape_before, shape = first.shapes[old], second.shapes[new]
    return LayerDelta(
        name=new,
        block=two.block if two is not None else second.weights[new].block,
        alpha_before=alphas[0],
        alpha_after=alphas[1],
        delta=delta,
        stderr=stderr,
        z=delta / stderr if stderr > 0 and shape == shape_before else math.nan,
        name_before=old,
        kind=second.kind(new),
        shape_before=shape_before,
        shape=shape,
    )


def measured(row: LayerDelta, change: WeightChange) -> LayerDelta:
    """Return a row with the change of its weights."""
    return replace(
        row,
        relative_change=change.relative,
        norm_before=change.norm_before,
        identical=change.identical,
        sparsity_before=change.sparsity_before,
        sparsity_after=change.sparsity_after,
        update_stable_rank=change.stable_rank,
        update_effective_rank=change.effective_rank,
        update_singular_values=change.singular_values,
    )
