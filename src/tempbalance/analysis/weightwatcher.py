"""An analysis as the table of WeightWatcher 0.7.7."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tempbalance._text import encodable
from tempbalance.errors import AnalysisError
from tempbalance.types import LayerStats, Status

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["weightwatcher_table"]

_LAYER_TYPES = {"linear": "dense"}  # others have the same name
_OVER_TRAINED, _UNDER_TRAINED = 2.0, 6.0


def weightwatcher_table(layers: Sequence[LayerStats], estimator: str) -> pd.DataFrame:
    """Return rows as ``WeightWatcher.analyze()`` does; an AnalysisError for windows and estimators that it has not."""
    import pandas as pd  # slow to import

    if not estimator.startswith(("KS(", "Peak(", "PeakAsReleased(")):
        raise AnalysisError(
            f"WeightWatcher's columns describe the fit of KS, or of Peak (its fix_fingers='xmin_peak'), and this "
            f"analysis used {estimator}: analyze with estimator=tb.KS()"
        )
    if any(layer.num_windows > 1 for layer in layers):
        raise AnalysisError("WeightWatcher has no windows: analyze without windows=")
    rows = [_row(number, layer) for number, layer in enumerate(layers)]
    return pd.DataFrame(rows, columns=list(_row(0, layers[0])) if layers else ["layer_id", "name"])


def _row(number: int, layer: LayerStats) -> dict[str, Any]:
    # WeightWatcher multiplies the kernels of 2-D convolutions by sqrt(1/2).
    scale = 0.5 if layer.kind == "conv2d" else 1.0
    largest, smallest = _matrix_shape(layer)
    longname = encodable(layer.name.removesuffix(".weight"))
    log_norm = 2 * layer.log10_frobenius_norm + math.log10(scale)
    log_spectral_norm = 2 * layer.log10_spectral_norm + math.log10(scale)
    lambda_max = layer.lambda_max * scale
    return {
        "layer_id": number,
        "name": longname.rpartition(".")[2],
        "D": layer.ks_distance,
        "M": smallest,
        "N": largest,
        "Q": largest / smallest,
        "alpha": layer.alpha,
        "alpha_weighted": layer.alpha * log_spectral_norm,
        "entropy": layer.spectral_entropy,
        "has_esd": True,
        "lambda_max": lambda_max,
        "layer_type": _LAYER_TYPES.get(layer.kind, layer.kind),
        "log_alpha_norm": layer.log10_alpha_norm + layer.alpha * math.log10(scale),
        "log_norm": log_norm,
        "log_spectral_norm": log_spectral_norm,
        "longname": longname,
        "matrix_rank": layer.matrix_rank,
        "norm": 10**log_norm,
        "num_evals": layer.num_eigenvalues,
        "num_pl_spikes": layer.num_tail,
        "rank_loss": layer.num_zero,
        "rf": layer.num_matrices,
        "sigma": layer.stderr,
        "spectral_norm": lambda_max,
        "stable_rank": 10 ** (log_norm - log_spectral_norm),  # of pooled matrices; ours is the mean of theirs
        "status": "success" if layer.status is Status.OK else layer.status.value,
        "sv_max": math.sqrt(lambda_max),
        "warning": _warning(layer.alpha),
        "xmax": lambda_max if layer.status is Status.OK else math.nan,
        "xmin": layer.xmin * scale,
    }


def _matrix_shape(layer: LayerStats) -> tuple[int, int]:
    """Return the larger and the smaller side of one of the matrices."""
    smallest = layer.num_eigenvalues // layer.num_matrices
    return math.prod(layer.shape) // (layer.num_matrices * smallest), smallest


def _warning(alpha: float) -> str:
    if alpha < _OVER_TRAINED:
        return "over-trained"
    return "under-trained" if alpha > _UNDER_TRAINED else ""
