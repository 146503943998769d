import pytest
import torch

from tempbalance.errors import WeightError
from tempbalance.spectra.matrices import Layout, as_matrices


def test_a_convolution_is_sliced_by_kernel_tap():
    weight = torch.randn(8, 5, 3, 2)
    matrices = as_matrices(weight, Layout.TAPS)
    assert matrices.shape == (6, 8, 5)
    assert torch.equal(matrices[2 * 2 + 1], weight[:, :, 2, 1])


def test_matrices_are_views():
    weight = torch.randn(8, 5, 3)
    assert as_matrices(weight, Layout.TAPS).data_ptr() == weight.data_ptr()


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((3,), Layout.MATRIX), ((3, 4, 5), Layout.MATRIX), ((3, 4), Layout.STACK), ((3,), Layout.TAPS)],
)
def test_a_shape_that_does_not_fit_the_layout_raises(shape, layout):
    with pytest.raises(WeightError, match="does not fit the layout"):
        as_matrices(torch.zeros(shape), layout)


def test_integer_weights_raise():
    with pytest.raises(WeightError, match="uint8"):
        as_matrices(torch.zeros(4, 4, dtype=torch.uint8))


def test_an_empty_weight_raises():
    with pytest.raises(WeightError, match="holds no numbers"):
        as_matrices(torch.zeros(0, 4))
