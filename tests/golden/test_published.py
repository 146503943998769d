"""Numbers that were published, from the data they were computed on."""

import math
from statistics import fmean

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tempbalance as tb

# CalculatedContent/ww-trends-2020 at efe4723213, distiller/WeightWatcher-Intel-Distiller-ResNet20.ipynb
WEIGHTWATCHER_0_1_2 = {
    "trained_4D_regularized_5Lremoved_finetuned": {
        "norm": 5.1753674,
        "lognorm": 0.6895095,
        "alpha": 2.9283531958171505,
        "alpha_weighted": 1.011312074596075,
    },
    "trained_dense": {
        "norm": 5.1555324,
        "lognorm": 0.7015861,
        "alpha": 3.290030522834247,
        "alpha_weighted": 1.261966776000048,
    },
}


@pytest.fixture(scope="module")
def distiller(data_file):
    """For each of two ResNet-20: what WeightWatcher 0.1.2 published, and the spectra of its 45 slices of 64 x 64."""
    models = {}
    for name, published in WEIGHTWATCHER_0_1_2.items():
        tensors = load_file(data_file(f"weights/distiller/checkpoint_{name}.safetensors"))
        convolutions = [w for w in tensors.values() if w.ndim == 4 and min(w.shape[:2]) >= 50]
        slices = [w[:, :, i, j] for w in convolutions for i in range(3) for j in range(3)]
        assert len(slices) == 45
        models[name] = (published, [tb.weight_spectrum(matrix).eigenvalues for matrix in slices])
    return models


class TestWeightWatcher2019:
    def test_alpha_of_a_network_is_the_published_one(self, distiller):
        for published, spectra in distiller.values():
            fits = tb.released.KSAsReleased().fit_batch(torch.stack(spectra))
            assert fmean(fit.alpha for fit in fits) == pytest.approx(published["alpha"], abs=5e-6)

    def test_weighted_alpha_of_a_network_is_the_published_one(self, distiller):
        for published, spectra in distiller.values():
            fits = tb.released.KSAsReleased().fit_batch(torch.stack(spectra))
            weighted = [fit.alpha * math.log10(values[-1]) for fit, values in zip(fits, spectra, strict=True)]
            assert fmean(weighted) == pytest.approx(published["alpha_weighted"], abs=5e-6)

    def test_norms_of_a_network_are_the_published_ones(self, distiller):
        for published, spectra in distiller.values():
            norms = [math.sqrt(values.sum()) for values in spectra]
            assert fmean(norms) == pytest.approx(published["norm"], rel=1e-6)
            assert fmean(map(math.log10, norms)) == pytest.approx(published["lognorm"], rel=1e-6)


def spread(integers):
    """Integers as the reals they were rounded from: each value spread evenly over the unit interval around it."""
    values, counts = np.unique(integers, return_counts=True)
    offsets = np.concatenate([(np.arange(count) + 0.5) / count - 0.5 for count in counts])
    return torch.from_numpy(np.repeat(values, counts) + offsets)


class TestClausetShaliziNewman2009:
    """Table 6.1 of the paper, with its uncertainties. KS is for reals; two of the three sets are counts."""

    def test_the_fit_of_blackouts_is_the_published_one(self, data_file):
        fit = tb.KS().fit(torch.from_numpy(np.loadtxt(data_file("powerlaw/blackouts.txt"))))
        assert (round(fit.alpha, 1), fit.xmin) == (2.3, 230_000)

    @pytest.mark.parametrize(
        ("name", "alpha", "xmin"), [("words", (1.95, 0.02), (7, 2)), ("terrorism", (2.4, 0.2), (12, 4))]
    )
    def test_the_fit_of_counts_is_the_published_one(self, data_file, name, alpha, xmin):
        fit = tb.KS().fit(spread(np.loadtxt(data_file(f"powerlaw/{name}.txt"))))
        assert fit.alpha == pytest.approx(alpha[0], abs=alpha[1])
        assert fit.xmin == pytest.approx(xmin[0], abs=xmin[1])

    @pytest.mark.parametrize(("name", "alpha", "xmin"), [("words", 1.95, 7), ("terrorism", 2.37, 12)])
    def test_alpha_of_counts_at_the_published_threshold_is_the_published_one(self, data_file, name, alpha, xmin):
        values = spread(np.loadtxt(data_file(f"powerlaw/{name}.txt")))
        below = int((values < xmin - 0.5).sum())
        fit = tb.released.HillAsReleased(xmin_position=(len(values) + 0.5) / (below + 0.5)).fit(values)
        assert fit.num_tail == len(values) - below
        assert round(fit.alpha, 2) == alpha
