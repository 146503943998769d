"""The bound within which a change of a weight keeps alpha within a tolerance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tempbalance as tb
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles


def alpha(weight: torch.Tensor, share: float = 0.5) -> float:
    return tb.Hill(share=share).fit(tb.weight_spectrum(weight)).alpha


def adversarial(weight: torch.Tensor, size: float, share: float, down: bool) -> torch.Tensor:
    """Return the change of that size which moves the threshold most: adjacent values move with it."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    place = s.numel() - (s.numel() - int(share * s.numel()))  # of the threshold, from the top
    order = range(place, s.numel()) if down else range(place, -1, -1)
    low, high = 0.0, size
    for _ in range(60):  # the farthest x with sum (x - gap)^2 <= size^2
        x = (low + high) / 2
        change = sum(max(0.0, x - abs(float(s[i] - s[place]))) ** 2 for i in order)
        low, high = (x, high) if change <= size**2 else (low, x)
    new = s.clone()
    for i in order:
        target = s[place] - low if down else s[place] + low
        new[i] = min(s[i], target) if down else max(s[i], target)
    return u @ torch.diag(new - s) @ v


@settings(max_examples=40, deadline=None)
@given(
    exponent=st.floats(1.5, 6.0),
    n=st.integers(12, 80),
    tall=st.integers(1, 3),
    share=st.sampled_from([0.3, 0.5]),
    tolerance=st.sampled_from([0.01, 0.1, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_no_change_within_the_radius_moves_alpha_beyond_the_tolerance(exponent, n, tall, share, tolerance, seed):
    weight = matrix_with_spectrum(pareto_quantiles(n, exponent), (n * tall, n), seed=seed)
    radius = tb.Hill(share=share).radius(tb.weight_spectrum(weight), tolerance)
    assert radius > 0
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    low_rank = torch.outer(noise[:, 0], noise[0])
    shrink = -weight
    changes = [change / change.norm() * radius for change in (noise, low_rank, shrink)]
    changes += [adversarial(weight, radius, share, down) for down in (True, False)]
    for change in changes:
        assert float(change.norm()) <= radius * (1 + 1e-6)
        assert abs(alpha(weight + change, share) - alpha(weight, share)) <= tolerance * (1 + 1e-6)


def test_the_worst_change_uses_a_third_of_the_tolerance():
    weight = matrix_with_spectrum(pareto_quantiles(100, 3.0), (100, 100), seed=1)
    radius = tb.Hill().radius(tb.weight_spectrum(weight), 0.1)
    moved = [abs(alpha(weight + adversarial(weight, radius, 0.5, down)) - alpha(weight)) for down in (True, False)]
    assert max(moved) > 0.03


def test_the_radius_grows_with_the_tolerance_and_scales_with_the_weight():
    spectrum = pareto_quantiles(100, 3.0)
    radii = [tb.Hill().radius(spectrum, tolerance) for tolerance in (0.01, 0.1, 1.0)]
    assert radii == sorted(radii)
    assert tb.Hill().radius(spectrum * 100, 0.1) == pytest.approx(10 * radii[1], rel=1e-4)


@pytest.mark.parametrize(
    "spectrum",
    [torch.ones(50), torch.cat([torch.zeros(1), torch.arange(1.0, 50)]), torch.arange(1.0, 5)],
    ids=["constant", "with a zero", "too few"],
)
def test_the_radius_is_zero_if_the_threshold_is_not_well_defined(spectrum):
    assert tb.Hill().radius(spectrum, 0.1) == 0.0


@pytest.mark.parametrize("estimator", [tb.KS(), tb.Peak(), tb.released.HillAsReleased(), tb.AveragedHill()])
def test_the_radius_is_zero_for_estimators_without_a_bound(estimator):
    assert estimator.radius(pareto_quantiles(100, 3.0), 0.1) == 0.0
