"""The tail fits of the code released with the papers; tests/tail tests them together with the others."""

import pytest
import torch

import tempbalance as tb


def test_hill_as_released_has_no_fit_if_the_tail_contains_a_zero():
    values = torch.cat([torch.zeros(50), torch.arange(1.0, 31.0)])
    assert tb.released.HillAsReleased().fit(values).status is tb.types.Status.NO_TAIL


def test_hill_as_released_leaves_out_eigenvalues_up_to_zero():
    values = torch.cat([torch.full((50,), 1e-6), torch.arange(1.0, 31.0)])
    assert tb.released.HillAsReleased(zero=1e-5).fit(values).num_tail == 15


@pytest.mark.parametrize(("parameters", "name"), [({"xmin_position": 1.0}, "xmin_position"), ({"zero": -1.0}, "zero")])
def test_parameters_out_of_range_raise(parameters, name):
    with pytest.raises(ValueError, match=name):
        tb.released.HillAsReleased(**parameters)


def test_peak_as_released_searches_below_the_peak_where_peak_does_not():
    values = torch.cat(
        [torch.linspace(5, 40, 40), torch.full((200,), 50.0) + torch.linspace(0, 1, 200), 60 * torch.rand(9)]
    )
    released, corrected = (estimator.fit(values) for estimator in (tb.released.PeakAsReleased(), tb.Peak()))
    assert corrected.xmin >= 45
    assert released.num_tail >= corrected.num_tail


def test_ks_as_released_measures_the_distance_to_the_law_cut_off_at_the_largest_eigenvalue():
    values = tb.testing.pareto_sample(300, 1.8, seed=3)
    cut_off, plain = tb.released.KSAsReleased().fit(values), tb.KS().fit(values)
    assert cut_off.ks_distance != plain.ks_distance
    assert cut_off.alpha == pytest.approx(1.8, abs=0.3)
