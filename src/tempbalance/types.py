"""The result types of the core: frozen and typed, without behaviour."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from torch import Tensor

__all__ = ["ESD", "Finding", "LayerStats", "ModelSize", "Severity", "Skipped", "Spectrum", "Status", "TailFit"]


class Status(str, Enum):
    """Outcome of a measurement; ``alpha`` is NaN for all but ``OK``.

    Files contain the value; :attr:`message` is the text for a person.

    Example:
        >>> Status.TOO_FEW.value
        'too_few'
        >>> Status("random") is Status.RANDOM
        True
    """

    OK = "ok"
    TOO_FEW = "too_few"
    CONSTANT = "constant"
    NO_TAIL = "no_tail"
    ZERO = "zero"
    RANDOM = "random"

    @property
    def message(self) -> str:
        """Explanation of the status in one sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.OK: "fitted",
    Status.TOO_FEW: "too few non-zero eigenvalues for a fit; the matrix is tiny, a vector, or of very low rank",
    Status.CONSTANT: "the eigenvalues of the tail are all equal (an orthogonal or constant spectrum has no tail)",
    Status.NO_TAIL: "no threshold gives a decaying tail (alpha > 1); try another estimator",
    Status.ZERO: "all weights are zero",
    Status.RANDOM: (
        "the spectrum cannot be distinguished from that of a random matrix (Marchenko-Pastur): the layer looks "
        "untrained, and an exponent would only describe its shape"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum:
    """The empirical spectral density (ESD) of one weight matrix, or pooled over a batch of matrices of one shape.

    Attributes:
        eigenvalues: Eigenvalues of ``W^T W`` (squared singular values), ascending, float, shape
            ``(num_matrices * min(shape),)``. Numerically zero ones are exactly 0.
        shape: ``(rows, columns)`` of one matrix.
        num_matrices: Number of matrices that are pooled.
        error_bound: Bound on the absolute error of an eigenvalue, as a fraction of the largest. It is probabilistic;
            square matrices of 1,000 and more rows exceeded it by a factor of up to 2.
        stable_rank: Mean over the matrices, except all-zero ones, of the sum of the eigenvalues over the largest one;
            NaN if unknown.
    """

    eigenvalues: Tensor
    shape: tuple[int, int]
    num_matrices: int
    error_bound: float
    stable_rank: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class TailFit:
    """A power law ``p(x) ~ x^-alpha`` for ``x >= xmin``, fitted to the tail of a spectrum.

    Attributes:
        status: ``Status.OK``, or the reason for no fit; then every float is NaN and ``num_tail`` is 0.
        alpha: Exponent of the density (one more than the exponent of the survival function).
        stderr: Standard error of alpha, ``(alpha - 1) / sqrt(num_tail)`` unless the estimator or the windows
            define another one.
        xmin: Threshold, in units of eigenvalues.
        num_tail: Number of eigenvalues in the tail.
        ks_distance: Kolmogorov-Smirnov distance between the tail and the fitted law, in [0, 1].
    """

    status: Status
    alpha: float
    stderr: float
    xmin: float
    num_tail: int
    ks_distance: float


class ESD(NamedTuple):
    """A spectrum thinned for plotting: a subset of the eigenvalues with their exact ranks.

    Attributes:
        eigenvalues: Positive eigenvalues, ascending: all of the largest, and a subset of the others.
        ranks: Number of eigenvalues greater than or equal to each of them; ``rank / num_eigenvalues`` is the survival
            function.
    """

    eigenvalues: tuple[float, ...]
    ranks: tuple[int, ...]

    def __repr__(self) -> str:
        """Return the number of eigenvalues, the smallest and the largest."""
        ends = f" from {self.eigenvalues[0]} to {self.eigenvalues[-1]}" if self.eigenvalues else ""
        return f"ESD({len(self.eigenvalues)} eigenvalues{ends})"


class Skipped(NamedTuple):
    """A weight that was not analysed, and the reason."""

    name: str
    reason: str


class ModelSize(NamedTuple):
    """Number of parameters of a model, analysed or not.

    Attributes:
        parameters: All parameters: biases, norms and embeddings included, a tied one once.
        weights: Entries of its weight matrices that are selected, without embeddings and tables.
        block_weights: Those of them that are inside blocks; 0 without blocks.
    """

    parameters: int
    weights: int
    block_weights: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStats:
    """One row of an analysis: the metrics of one weight matrix, or of a batch of matrices of one shape.

    Attributes:
        name: Qualified parameter name; a part of a fused parameter is ``name:part`` (``h.0.attn.c_attn.weight:q``).
        kind: Kind of weight: ``linear``, ``conv2d``, ``embedding``, ``attention``, ``rnn``, ``experts``, ...
        block: Name of the transformer block (or other repeated module) that contains it, or None.
        shape: Shape of the weight as stored, after splitting fused parameters.
        role: What the weight does: ``q``, ``up``, ``conv``, ``head``, ... (``tempbalance.layers.ROLES``); empty in
            files of older versions.
        quantisation: Format and bits of a weight that is stored quantised (``"GPTQ, 4 bits"``); the numbers of the row
            are those of the rounded weight. Empty for other weights.
        transposed: Whether it is stored as ``(inputs, outputs)``, unlike ``nn.Linear``, as far as its type is known:
            ``Conv1D`` of Transformers (GPT-2) and some experts.
        num_matrices: Number of matrices whose spectra are pooled (kernel taps, modes), 1 for a linear layer.
        num_windows: Number of FARMS windows per matrix; 1 without windows. The fields below then describe their pooled
            spectrum.
        coverage: Fraction of the weight's entries inside at least one window; 1 without windows.
        num_eigenvalues: Eigenvalues in the pooled spectrum, numerically zero ones included.
        num_zero: Numerically zero eigenvalues, left out of the fit.
        status: Outcome of the fit; ``alpha`` is NaN unless ``Status.OK``.
        alpha: Power-law exponent; a smaller alpha means a heavier tail.
        stderr: Standard error of alpha.
        xmin: Threshold of the tail.
        num_tail: Eigenvalues in the tail.
        ks_distance: Kolmogorov-Smirnov distance of the tail from the fitted law.
        alpha_hat: ``alpha * log10(lambda_max)``.
        lambda_max: Largest eigenvalue, the square of the spectral norm.
        log10_frobenius_norm: log10 of the Frobenius norm (with windows: the root mean square over windows).
        log10_spectral_norm: log10 of the largest singular value.
        log10_alpha_norm: log10 of the alpha-norm, ``sum_i eigenvalue_i ** alpha`` (with windows: the mean over
            windows).
        stable_rank: ``||W||_F^2 / lambda_max``, at least 1; of several matrices or windows, the mean of theirs.
        matrix_rank: Eigenvalues that are not numerically zero.
        spectral_entropy: Shannon entropy of the normalised eigenvalues over log(matrix_rank), in [0, 1].
        mp_edge: Upper edge of the Marchenko-Pastur bulk.
        num_spikes: Eigenvalues above ``mp_edge``.
        mp_ks_distance: Kolmogorov-Smirnov distance of the spectrum from the Marchenko-Pastur law of a random matrix of
            the same shape and variance.
        num_traps: Eigenvalues beyond those of a random matrix after the entries were shuffled (``traps.count_traps``);
            None if not counted.
        delta_erg: ERG threshold minus ``xmin``, over the mean eigenvalue (``traps.delta_erg``); NaN if not measured.
        mean_square: Mean of the squared entries (their variance if their mean is 0); NaN in files of older versions.
        error_bound: Bound on the absolute error of an eigenvalue, as a fraction of ``lambda_max``; probabilistic, see
            ``Spectrum``.
        esd: The spectrum, thinned for plotting.
    """

    name: str
    kind: str
    block: str | None
    shape: tuple[int, ...]
    num_matrices: int
    role: str = ""
    quantisation: str = ""
    transposed: bool = False
    num_windows: int = 1
    coverage: float = 1.0
    num_eigenvalues: int
    num_zero: int
    status: Status
    alpha: float
    stderr: float
    xmin: float
    num_tail: int
    ks_distance: float
    alpha_hat: float
    lambda_max: float
    log10_frobenius_norm: float
    log10_spectral_norm: float
    log10_alpha_norm: float
    stable_rank: float
    matrix_rank: int
    spectral_entropy: float
    mp_edge: float
    num_spikes: int
    mp_ks_distance: float
    num_traps: int | None = None
    delta_erg: float = math.nan
    mean_square: float = math.nan
    error_bound: float
    esd: ESD


class Severity(str, Enum):
    """Importance of a finding, from the most to the least severe.

    ``ERROR``: the weights are damaged, or cannot be used as they are. ``WARNING``: something is probably wrong, or a
    result is not what it looks like. ``NOTE``: worth knowing, and often intended.

    Example:
        >>> [severity.value for severity in Severity]
        ['error', 'warning', 'note']
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is worth the attention of a user: what is wrong, how sure that is, and what to do.

    Attributes:
        kind: Short name of the kind of finding, the same in every output: ``untrained``, ``outlier``, ...
        severity: How important it is.
        layers: Names of the layers it is about; empty if it is about the whole model.
        message: One sentence: what is wrong, with the numbers.
        next_step: One sentence: what to do; empty if there is nothing to do.
        evidence: The numbers behind the message, by name, as JSON values; a number that is unknown is None.

    Example:
        >>> finding = Finding(
        ...     kind="untrained",
        ...     severity=Severity.WARNING,
        ...     layers=("pooler.dense.weight",),
        ...     message="pooler.dense.weight looks untrained",
        ...     next_step="train it, or leave it out",
        ...     evidence={"mp_ks_distance": 0.004},
        ... )
        >>> finding.kind, finding.severity.value
        ('untrained', 'warning')
    """

    kind: str
    severity: Severity
    layers: tuple[str, ...]
    message: str
    next_step: str
    evidence: Mapping[str, float | int | str | None]
