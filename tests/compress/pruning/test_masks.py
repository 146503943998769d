"""Masks: the exact number of zeros, at the smallest scores."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tempbalance.compress.pruning.masks import magnitude_scores, mask_by_row, mask_smallest, wanda_scores

FEW_VALUES = st.sampled_from([0.0, 0.5, 1.0, 2.0])  # many ties
SCORES = arrays.arrays("float32", st.tuples(st.integers(1, 8), st.integers(1, 12)), elements=FEW_VALUES)


@given(values=SCORES, part=st.floats(0, 1))
def test_the_smallest_scores_of_a_tensor_are_marked(values, part):
    scores = torch.from_numpy(values)
    zeros = round(part * scores.numel())
    mask = mask_smallest(scores, zeros)
    assert int(mask.sum()) == zeros
    if 0 < zeros < scores.numel():
        assert scores[mask].max() <= scores[~mask].min()


@given(values=SCORES, part=st.floats(0, 1))
def test_the_smallest_scores_of_each_row_are_marked_and_rows_differ_by_one_at_most(values, part):
    scores = torch.from_numpy(values)
    zeros = round(part * scores.numel())
    mask = mask_by_row(scores, zeros)
    counts = mask.sum(dim=1)
    assert int(counts.sum()) == zeros
    assert int(counts.max() - counts.min()) <= 1
    for row, marked in zip(scores, mask, strict=True):
        if marked.any() and not marked.all():
            assert row[marked].max() <= row[~marked].min()


def test_among_equal_scores_the_first_are_marked():
    assert mask_smallest(torch.ones(6), 2).tolist() == [True, True, False, False, False, False]
    scores = torch.tensor([[2.0, 1, 1, 1], [0, 3, math.inf, math.inf], [5, 1, 5, 5]])
    assert mask_by_row(scores, 7).int().tolist() == [[0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


@given(values=SCORES, part=st.floats(0, 1))
def test_the_marked_scores_are_those_of_a_stable_sort(values, part):
    zeros = round(part * values.size)
    each, extra = divmod(zeros, len(values))
    order = np.argsort(values, axis=1, kind="stable")
    expected = np.zeros_like(values, dtype=bool)
    np.put_along_axis(expected, order[:, :each], True, axis=1)
    if extra:
        following = [row[places[each]] for row, places in zip(values, order, strict=True)]
        for row in np.argsort(following, kind="stable")[:extra]:
            expected[row, order[row, each]] = True
    assert mask_by_row(torch.from_numpy(values), zeros).numpy().tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_magnitudes_of_every_dtype_are_float32_or_wider(dtype):
    weight = torch.tensor([[3.0, -4.0]]).to(dtype)
    scores = magnitude_scores(weight)
    assert scores.tolist() == [[3.0, 4.0]]
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_wanda_scores_are_magnitude_times_input_norm():
    assert wanda_scores(torch.tensor([[1.0, -2.0]]), torch.tensor([3.0, 0.5])).tolist() == [[3.0, 1.0]]
