import math

import numpy as np
import pytest
import torch

from tempbalance.analysis.weight_change import weight_change
from tempbalance.errors import WeightError
from tempbalance.layers import find_weights


def weights(**tensors):
    return [find_weights({"a.weight": tensor})[0][0] for tensor in tensors.values()]


def change(before, after, **options):
    return weight_change(*weights(before=before, after=after), **options)


def naive(before, after):
    """The definitions in float64: Frobenius norms and a full SVD of each matrix of the update."""
    one, two = (tensor.to(torch.float64).numpy() for tensor in (before, after))
    update = two - one
    matrices = np.moveaxis(update, (0, 1), (-2, -1)).reshape(-1, *update.shape[:2]) if update.ndim > 2 else update[None]
    values = np.stack([np.linalg.svd(matrix, compute_uv=False) for matrix in matrices])
    shares = values.ravel()[values.ravel() > 1e-12 * values.max()] / values.sum()
    return {
        "relative": np.linalg.norm(update) / np.linalg.norm(one),
        "norm_before": np.linalg.norm(one),
        "stable_rank": np.mean((values**2).sum(1) / values.max(1) ** 2),
        "effective_rank": np.exp(-np.sum(shares * np.log(shares))) / len(matrices),
        "largest": np.sort(values.ravel())[::-1][:8],
    }


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (12, 10, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_change_agrees_with_a_naive_computation(shape, dtype):
    before = random(*shape).to(dtype)
    after = (before.double() + random(*shape, seed=1, scale=1e-2).double()).to(dtype)
    found, expected = change(before, after), naive(before, after)
    for name in ("relative", "norm_before", "stable_rank", "effective_rank"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=1e-6)
    assert found.singular_values == pytest.approx(expected["largest"], rel=1e-6)
    assert not found.identical


def test_a_tiny_change_of_a_large_weight_keeps_its_digits():
    before = random(50, 40, scale=1e3)
    after = before.clone()
    after[0, 0] += 1e-3
    assert change(before, after).relative == pytest.approx(naive(before, after)["relative"], rel=1e-6)


def test_an_update_of_rank_3_has_3_singular_values():
    update = random(60, 3, seed=2).double() @ random(3, 50, seed=3).double()
    found = change(torch.ones(60, 50).double(), 1 + update)
    assert 1 <= found.stable_rank <= found.effective_rank <= 3 + 1e-6
    assert found.singular_values[2] > 0
    assert found.singular_values[3:] == (0.0,) * 5


def test_equal_weights_are_identical_and_have_no_spectrum():
    found = change(random(20, 20), random(20, 20))
    assert (found.identical, found.relative, found.singular_values) == (True, 0.0, ())
    assert math.isnan(found.stable_rank)


def test_a_rounded_weight_is_identical_in_the_narrower_dtype():
    before = random(20, 20)
    for one, two in ((before, before.bfloat16()), (before.bfloat16(), before)):
        found = change(one, two)
        assert found.identical
        assert 1e-4 < found.relative < 4e-3
    assert not change(before, (before + 1).bfloat16()).identical


def test_the_drift_alone_has_no_spectrum():
    assert change(random(20, 20), random(20, 20, seed=1), spectrum=False).singular_values == ()


def test_a_weight_that_was_zero_changed_infinitely():
    assert change(torch.zeros(20, 20), random(20, 20)).relative == math.inf


def test_complex_weights_are_compared():
    before = torch.complex(random(20, 20), random(20, 20, seed=1))
    assert weight_change(
        *[find_weights({"a.weight": t})[0][0] for t in (before, 1.5 * before)]
    ).relative == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("after", [torch.zeros(20, 21), torch.full((20, 20), math.nan), torch.full((20, 20), math.inf)])
def test_other_shapes_and_weights_that_are_not_finite_raise(after):
    with pytest.raises(WeightError):
        change(random(20, 20), after)
