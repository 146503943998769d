"""The windows of the code released with FARMS, against its output."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tempbalance as tb
from tempbalance.errors import WindowError
from tempbalance.weight_fit import fit_weight

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "farms.json").read_text())["cases"]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['shape']}-{case['aspect_ratio']}")
def test_spectra_and_fits_equal_those_of_the_released_code(case):
    generator = torch.Generator().manual_seed(case["seed"])
    draw = {"generator": generator, "dtype": torch.float64}
    weight = torch.randn(case["shape"], **draw) / (0.3 + torch.rand(case["shape"], **draw))
    windows = tb.released.FARMSAsReleased(case["rows"], case["ops_per_dim"], case["aspect_ratio"])
    for name, estimator in {"hill": tb.released.HillAsReleased(), "peak": tb.released.PeakAsReleased()}.items():
        found = fit_weight(weight, tb.spectra.Layout(case["layout"]), windows=windows, estimator=estimator)
        expected = np.array(case["eigenvalues"])
        np.testing.assert_allclose(found.spectrum.eigenvalues.numpy(), expected, rtol=1e-9, atol=1e-12 * expected[-1])
        assert found.fit.alpha == pytest.approx(case[name]["alpha"], rel=1e-6)
        assert found.fit.ks_distance == pytest.approx(case[name]["D"], abs=1e-6)


def test_a_window_of_another_aspect_ratio_raises():
    with pytest.raises(WindowError, match="does not keep its aspect ratio"):
        fit_weight(random(100, 100), windows=tb.released.FARMSAsReleased(64, 3, 2.0))


def test_released_windows_may_not_cover_the_far_edge():
    found = fit_weight(random(105, 105), windows=tb.released.FARMSAsReleased(20, 10))
    assert (found.num_windows, found.coverage < 1) == (100, True)


def test_a_convolution_has_no_fit_if_one_of_its_places_has_none():
    taps = torch.cat([random(30, 30, 2, 2), torch.zeros(30, 30, 2, 2)])
    found = fit_weight(taps, tb.spectra.Layout.TAPS, windows=tb.released.FARMSAsReleased(30, 2))
    assert found.fit.status is tb.types.Status.ZERO


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0, 3), "rows"), ((8, 1), "ops_per_dim"), ((8, 2.5), "ops_per_dim"), ((8, 3, 0), "aspect_ratio")],
)
def test_parameters_out_of_range_raise(arguments, name):
    with pytest.raises(WindowError, match=name):
        tb.released.FARMSAsReleased(*arguments)
