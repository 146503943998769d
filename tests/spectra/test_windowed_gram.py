"""The eigenvalues of windows, with and without a sliding Gram matrix."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
import tempbalance as tb
from tempbalance.errors import WeightError
from tempbalance.spectra.gram import GramOptions
from tempbalance.spectra.windowed_gram import sliding_saves_work, window_values


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SHAPES = [(90, 70), (70, 90), (64, 64), (40, 200)]
DTYPES = [torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


@st.composite
def weights_and_windows(draw):
    """Matrices of any shape and dtype, with blocks of zeros or huge rows; windows at any places, also repeated."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, rows, columns = draw(st.integers(1, 2)), draw(st.integers(1, 24)), draw(st.integers(1, 24))
    numbers = generator.standard_normal((batch, rows, columns))
    dtype = draw(st.sampled_from(DTYPES))
    if dtype.is_complex:
        numbers = numbers + 1j * generator.standard_normal(numbers.shape)
    bottom, left = draw(st.integers(0, rows)), draw(st.integers(0, columns))
    numbers[:, :bottom, left:] *= draw(st.sampled_from([0, 1, 1, 200] if dtype.itemsize < 4 else [0, 1, 1, 1e-6, 1e8]))
    if dtype is torch.float64:
        numbers *= draw(st.sampled_from([1, 1e-130, 1e130]))
    weight = torch.from_numpy(numbers)
    weight = (weight.clamp(-400, 400) if dtype.itemsize < 2 else weight).to(dtype)
    size = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    corner = st.tuples(st.integers(0, rows - size[0]), st.integers(0, columns - size[1]))
    return weight, size, draw(st.lists(corner, min_size=1, max_size=15))


@settings(max_examples=300, deadline=None)
@given(case=weights_and_windows(), slide=st.booleans(), little_memory=st.booleans())
def test_windows_have_the_eigenvalues_of_the_submatrices(case, slide, little_memory):
    weight, size, starts = case
    options = GramOptions(sliding=True if slide else None)
    if little_memory:
        options = replace(options, sliding_bytes=8 * (min(size) + 3) ** 2, group_bytes=1, block=5)
    found = window_values([weight], [size], [starts], options=options)[0]
    numbers = weight.to(torch.complex128 if weight.is_complex() else torch.float64).numpy()
    least = 64 * max(size) * np.finfo(float).eps  # below this share of the largest, eigenvalues count as zero
    for place, start in enumerate(starts):
        for index, matrix in enumerate(numbers):
            expected = oracles.eigenvalues(oracles.cut(matrix[None], size, [start]))
            values = found.eigenvalues[place, index].numpy()
            zero = expected <= least * expected[-1]
            np.testing.assert_allclose(values[~zero], expected[~zero], rtol=2e-3)
            assert (values[zero] <= least * expected[-1]).all()


def test_windows_of_zeros_in_a_weight_of_extreme_scale_have_zero_eigenvalues():
    for scale in (1e-120, 1e120):
        weight = torch.zeros(1, 30, 30, dtype=torch.float64)
        weight[0, 0, 0] = scale
        found = window_values([weight], [(10, 10)], [[(20, 20)]])[0]
        assert not found.eigenvalues.any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_a_sliding_gram_matrix_has_the_eigenvalues_of_single_ones(shape, ratio):
    weight = random(3, *shape)
    grid = tb.FARMS(ratio, windows=9).grid(shape)
    values = [
        window_values([weight], [grid.size], [grid.starts], options=GramOptions(sliding=sliding))[0].eigenvalues
        for sliding in (True, False)
    ]
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-12 * float(values[0].max()))


def test_sliding_saves_work_only_for_many_windows_over_the_same_rows():
    saves = {
        windows: sliding_saves_work(grid.size, grid.starts[: grid.first])
        for windows in (2, 15, "auto")
        for grid in [tb.FARMS(windows=windows).grid((384, 384))]
    }
    assert saves == {2: False, 15: True, "auto": False}


def test_huge_rows_leave_no_error_in_a_sliding_gram_matrix_below_them():
    weight = random(60, 60)
    weight[0] *= 1e9
    grid = tb.FARMS(rows=40, windows=15).grid((60, 60))
    assert sliding_saves_work(grid.size, grid.starts)
    found = window_values([weight[None]], [grid.size], [grid.starts])[0].eigenvalues[:, 0]
    for values, start in zip(found, grid.starts, strict=True):
        if start[0] == 0:
            continue  # all but the largest of their eigenvalues are numerically zero
        np.testing.assert_allclose(
            values.numpy(), oracles.eigenvalues(oracles.cut(weight[None].numpy(), grid.size, [start])), rtol=1e-3
        )


def test_memory_limits_change_eigenvalues_by_rounding_errors_only():
    weight = random(1, 80, 70)
    grid = tb.FARMS(windows=8).grid((80, 70))
    few = GramOptions(group_bytes=1, sliding_bytes=8 * 45**2, sliding_factor=0, rows=7, chunk=0)
    expected, found = (window_values([weight], [grid.size], [grid.starts], options=o)[0] for o in (GramOptions(), few))
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-9, atol=1e-10)


def test_tensors_that_are_not_stacks_of_matrices_raise():
    with pytest.raises(WeightError, match="expected tensors"):
        window_values([random(3, 3)], [(2, 2)], [[(0, 0)]])
