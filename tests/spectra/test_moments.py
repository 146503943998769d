"""The mean of the entries of a weight, over their standard deviation."""

import math

import numpy as np
import pytest
import torch

from tempbalance.spectra.moments import mean_over_std


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
@pytest.mark.parametrize("shape", [(1, 3, 1000), (2, 1000, 7)])
def test_mean_over_std_is_that_of_numpy(shape, scale):
    values = 0.1 + torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert mean_over_std(values * scale) == pytest.approx(abs(np.mean(values.numpy())) / np.std(values.numpy()))


def test_mean_over_std_of_complex_entries_uses_absolute_values():
    values = torch.complex(torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[1.0, -1.0]]]))  # 1 + i, 1 - i
    assert mean_over_std(values) == pytest.approx(1.0)


def test_mean_over_std_of_equal_entries_is_infinite():
    assert mean_over_std(torch.ones(1, 4, 4)) == math.inf
