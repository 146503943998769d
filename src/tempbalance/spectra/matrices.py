"""A weight tensor as a batch of matrices.

Shapes: ``B`` matrices of ``rows x columns``; the spectra of the ``B`` matrices of one weight are pooled into one ESD.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from torch import Tensor

from tempbalance.errors import WeightError, check_type

__all__ = ["MATRIX_NDIM", "Layout", "as_matrices", "matrix_shape"]

MATRIX_NDIM = 2
_STACK_NDIM = 3


class Layout(str, Enum):
    """The meaning of the axes of a weight tensor.

    ``MATRIX`` is ``(rows, columns)``. ``TAPS`` is ``(a, b, *rest)``: one ``a x b`` matrix per element of ``rest``,
    as in a convolution ``(out, in, kh, kw)`` (a matrix per kernel tap) and in a spectral convolution
    ``(in, out, *modes)`` (a complex matrix per mode). ``STACK`` is ``(B, rows, columns)``, as in stacked experts.
    """

    MATRIX = "matrix"
    TAPS = "taps"
    STACK = "stack"


def matrix_shape(shape: Sequence[int], layout: Layout) -> tuple[int, int]:
    """Return ``(rows, columns)`` of the matrices that ``as_matrices`` returns for a tensor."""
    rows, columns = shape[1:3] if layout is Layout.STACK else shape[:2]
    return rows, columns


def as_matrices(weight: Tensor, layout: Layout = Layout.MATRIX) -> Tensor:
    """View a weight tensor as a batch of matrices.

    A convolution is sliced by kernel tap and not unfolded to ``(out, in * kh * kw)``, as in the released code of
    TempBalance, FARMS and AlphaDecay and in WeightWatcher with ``pool=True``. Their scale factor ``sqrt(1/2)`` is left
    out: alpha does not depend on it.

    Args:
        weight: Real or complex floating-point tensor; its number of axes must fit the layout.
        layout: Layout of the tensor.

    Returns:
        A view of shape ``(B, rows, columns)``, the dtype unchanged.

    Raises:
        WeightError: The tensor is not floating-point, is empty, or its axes do not fit the layout.

    Example:
        >>> import torch
        >>> as_matrices(torch.zeros(64, 32, 3, 3), Layout.TAPS).shape
        torch.Size([9, 64, 32])
    """
    check_type("weight", weight, Tensor)
    if not (weight.is_floating_point() or weight.is_complex()):
        raise WeightError(f"a weight must be floating-point or complex, got {weight.dtype}")
    if weight.numel() == 0:
        raise WeightError(f"a weight of shape {tuple(weight.shape)} holds no numbers")
    if layout is Layout.MATRIX and weight.ndim == MATRIX_NDIM:
        return weight.unsqueeze(0)
    if layout is Layout.STACK and weight.ndim == _STACK_NDIM:
        return weight
    if layout is Layout.TAPS and weight.ndim >= MATRIX_NDIM:
        rows, columns = weight.shape[:2]
        return weight.reshape(rows, columns, -1).permute(2, 0, 1)
    raise WeightError(f"shape {tuple(weight.shape)} does not fit the layout {layout.value!r}")
