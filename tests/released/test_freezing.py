"""The choice of layers of the code released with Spectrum, commit 0ed1756, restated by hand."""

import numpy as np
import pytest
import torch

from tempbalance.compress import signal_to_noise
from tempbalance.released import spectrum_snr, spectrum_unfrozen


@pytest.mark.parametrize("shape", [(64, 64), (96, 40), (40, 96)])
def test_the_ratio_is_that_of_the_released_code(shape):
    """calculate_snr_for_layer, marchenko_pastur_threshold and estimate_sigma_with_full_iqr."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + 0.2
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    sigma = (np.quantile(values, 0.75) - np.quantile(values, 0.25)) / 1.349
    n, m = shape
    beta = n / m if n < m else m / n
    threshold = sigma * np.sqrt((1 + np.sqrt(beta)) ** 2)
    expected = values[values > threshold].sum() / values[values <= threshold].sum() / values[0]
    assert spectrum_snr(weight) == pytest.approx(expected, rel=1e-4)


def test_it_takes_a_part_of_the_noise_for_signal():
    noise = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    assert spectrum_snr(noise) > 0.01
    assert signal_to_noise({"noise": noise}, progress=False) == {"noise": 0}


def test_a_norm_has_the_ratio_one_and_a_weight_without_noise_an_infinite_one():
    """A norm is one row, its only singular value is the signal; the noise is then counted as 1."""
    assert spectrum_snr(torch.full((9,), 2.0)) == 1
    assert spectrum_snr(torch.diag(torch.tensor([4.0, 0.0, 0.0, 0.0, 0.0]))) == np.inf


def test_the_number_of_layers_is_rounded_down_and_the_first_of_equals_is_first():
    scores = {f"layers.{i}.{part}": value for part in "ab" for i, value in enumerate([0.1, 0.3, 0.3])}
    types = {name: name[-1] for name in scores}
    found = spectrum_unfrozen(scores, types, 70)
    assert found == [
        *("^lm_head.weight$", "^model.embed_tokens.weight$"),
        *("layers.1.a", "layers.2.a", "layers.1.b", "layers.2.b"),
    ]
    assert spectrum_unfrozen(scores, types, 30) == found[:2]
