"""Spectra and matrices with a known alpha, and tolerances, for tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from tempbalance.errors import ArgumentError, check_integer, check_numbers, check_seed, check_type

__all__ = ["TOLERANCE", "matrix_with_spectrum", "pareto_quantiles", "pareto_sample"]

#: Relative accuracy of an eigenvalue of the tail, by the dtype in which the spectrum is computed.
TOLERANCE = MappingProxyType({torch.float64: 1e-10, torch.float32: 1e-3})


def pareto_sample(n: int, alpha: float, *, xmin: float = 1.0, seed: int = 0) -> Tensor:
    """Draw independent samples from the power law ``p(x) ~ x^-alpha``, ``x >= xmin``.

    Args:
        n: Number of samples.
        alpha: Exponent, greater than 1.
        xmin: Smallest possible value.
        seed: Seed of the generator.

    Returns:
        Shape ``(n,)``, float64, ascending.

    Raises:
        ArgumentError: ``alpha`` is not greater than 1.

    Example:
        >>> pareto_sample(3, 2.0).shape
        torch.Size([3])
    """
    check_seed(seed)
    check_integer("n", n, 0)
    uniform = 1 - torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return _pareto(uniform, alpha, xmin).sort().values


def pareto_quantiles(n: int, alpha: float, *, xmin: float = 1.0) -> Tensor:
    """Return the ``n`` mid-quantiles of the power law ``p(x) ~ x^-alpha``: a spectrum without noise.

    Args:
        n: Number of quantiles.
        alpha: Exponent, greater than 1.
        xmin: Smallest possible value.

    Returns:
        Shape ``(n,)``, float64, ascending.

    Raises:
        ArgumentError: ``alpha`` is not greater than 1.

    Example:
        >>> pareto_quantiles(2, 2.0)
        tensor([1.3333, 4.0000], dtype=torch.float64)
    """
    check_integer("n", n, 0)
    return _pareto((torch.arange(n, 0, -1, dtype=torch.float64) - 0.5) / n, alpha, xmin)


def _pareto(survival: Tensor, alpha: float, xmin: float) -> Tensor:
    check_numbers(alpha=alpha, xmin=xmin)
    if not 1 < alpha < math.inf or not 0 < xmin < math.inf:
        raise ArgumentError(f"alpha must be greater than 1 and xmin greater than 0, got {alpha} and {xmin}")
    return xmin * survival ** (-1 / (alpha - 1))


def matrix_with_spectrum(eigenvalues: Tensor, shape: tuple[int, int], *, seed: int = 0) -> Tensor:
    """Return a matrix with the given eigenvalues of ``W^T W`` and random singular vectors.

    Args:
        eigenvalues: Shape ``(min(shape),)``, not negative.
        shape: ``(rows, columns)``.
        seed: Seed for the singular vectors.

    Returns:
        Shape ``shape``, float64.

    Raises:
        ArgumentError: The number of eigenvalues is not ``min(shape)``.

    Example:
        >>> matrix_with_spectrum(torch.tensor([1.0, 4.0]), (3, 2)).square().sum().round(decimals=6)
        tensor(5., dtype=torch.float64)
    """
    check_type("eigenvalues", eigenvalues, Tensor)
    check_type("shape", shape, Sequence)
    check_seed(seed)
    for side in shape:
        check_integer("a side of shape", side, 1)
    if len(shape) != 2:  # noqa: PLR2004
        raise ArgumentError(f"shape must be (rows, columns), got {shape}")
    n = min(shape)
    if eigenvalues.shape != (n,):
        raise ArgumentError(f"a {shape[0]} x {shape[1]} matrix has {n} eigenvalues, got {tuple(eigenvalues.shape)}")
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(side, n, generator=generator, dtype=torch.float64)).Q for side in shape)
    weight: Tensor = (left * eigenvalues.to(torch.float64).sqrt()) @ right.mT
    return weight
