"""The output of the released code and of WeightWatcher, with the commit or version that computed it."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tempbalance as tb

GOLDEN = Path(__file__).parent
RELEASED = json.loads((GOLDEN / "tempbalance.json").read_text())["results"]
SPECTRA = json.loads((GOLDEN / "released_spectra.json").read_text())["spectra"]
WEIGHTWATCHER = json.loads((GOLDEN / "weightwatcher.json").read_text())["results"]


@pytest.fixture(scope="module")
def weights(minilm, data_file):
    """The spectra of which the released code computed alpha, with its scale of convolutions."""
    path = data_file("weights/resnet20_cifar10.safetensors")
    scaled = {
        "minilm": load_file(minilm / "model.safetensors"),
        "resnet20_cifar10": {
            name: weight * math.sqrt(0.5) if weight.ndim == 4 else weight for name, weight in load_file(path).items()
        },
    }
    names = {model: RELEASED[f"{model} fix-finger"] for model in scaled}
    layouts = {2: tb.spectra.Layout.MATRIX, 4: tb.spectra.Layout.TAPS}
    return {
        model: {name: tb.weight_spectrum(tensors[name].double(), layouts[tensors[name].ndim]) for name in names[model]}
        for model, tensors in scaled.items()
    }


@pytest.mark.parametrize("model", ["minilm", "resnet20_cifar10"])
@pytest.mark.parametrize(
    ("setting", "estimator"),
    [
        ("median 2", tb.released.HillAsReleased(min_eigenvalues=2)),
        ("median 1.5", tb.released.HillAsReleased(1.5, min_eigenvalues=2)),
        ("fix-finger", tb.released.PeakAsReleased(min_eigenvalues=2)),
        ("goodness-of-fit", tb.KS(min_eigenvalues=2)),
    ],
)
def test_alphas_equal_those_of_the_code_of_tempbalance(weights, model, setting, estimator):
    golden = RELEASED[f"{model} {setting}"]
    assert len(golden) == {"minilm": 37, "resnet20_cifar10": 20}[model]
    for name, expected in golden.items():
        fit = estimator.fit(weights[model][name])
        assert fit.alpha == pytest.approx(expected["alpha"], rel=1e-6), name
        # its empirical distribution is float32, whatever the weights are
        assert fit.ks_distance == pytest.approx(expected["D"], abs=1e-6), name


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(
    ("setting", "estimator"),
    [
        ("median 2", tb.released.HillAsReleased(min_eigenvalues=2)),
        ("median 1.5", tb.released.HillAsReleased(1.5, min_eigenvalues=2)),
        ("fix-finger", tb.released.PeakAsReleased(min_eigenvalues=2)),
        ("goodness-of-fit", tb.KS(min_eigenvalues=2)),
    ],
)
def test_alphas_equal_those_of_the_code_of_four_papers(name, setting, estimator):
    if name == "ties" and setting == "goodness-of-fit":
        pytest.skip("the released code also starts tails within a run of equal eigenvalues")
    expected = SPECTRA[name]["results"][setting]
    fit = estimator.fit(torch.tensor(SPECTRA[name]["eigenvalues"], dtype=torch.float64))
    assert fit.alpha == pytest.approx(expected["alpha"], rel=1e-6)
    assert fit.alpha == pytest.approx(expected["alpha_float32"], rel=1e-5 * fit.alpha)
    assert fit.ks_distance == pytest.approx(expected["D"], abs=1e-6)


def test_peak_differs_from_the_released_code():
    found = {
        name: tuple(
            estimator.fit(torch.tensor(case["eigenvalues"], dtype=torch.float64)).alpha
            for estimator in (tb.Peak(min_eigenvalues=2), tb.released.PeakAsReleased(min_eigenvalues=2))
        )
        for name, case in SPECTRA.items()
    }
    differ = {name for name, (ours, released) in found.items() if ours != released}
    assert differ == {"square Gaussian", "two bulks", "ties"}


@pytest.fixture(scope="module")
def rows(minilm):
    """The rows of MiniLM, with embeddings."""
    analysis = tb.analyze(minilm, estimator=tb.KS(), select=tb.Select(embeddings=True))
    return {row.name.removesuffix(".weight"): row for row in analysis.layers}


class TestWeightWatcher:
    def test_alpha_equals_that_of_weightwatcher_if_it_reports_one(self, minilm, rows):
        tensors = load_file(minilm / "model.safetensors")
        assert len(WEIGHTWATCHER) == 39
        for name, expected in WEIGHTWATCHER.items():
            fit = tb.KS().fit(tb.weight_spectrum(tensors[f"{name}.weight"]))
            assert fit.alpha == pytest.approx(expected["alpha"], abs=1e-3), name
            assert fit.num_tail == expected["num_pl_spikes"], name
            assert fit.xmin == pytest.approx(expected["xmin"], rel=1e-5), name
            assert fit.ks_distance == pytest.approx(expected["D"], abs=1e-5), name
            assert (
                rows[name].alpha == pytest.approx(fit.alpha, rel=1e-9) or rows[name].status is tb.types.Status.RANDOM
            ), name

    def test_the_untrained_pooler_has_no_alpha(self, rows):
        assert WEIGHTWATCHER["pooler.dense"]["alpha"] > 12
        assert [name for name, row in rows.items() if row.status is tb.types.Status.RANDOM] == ["pooler.dense"]

    @pytest.mark.parametrize(
        ("column", "of_row"),
        [
            ("stable_rank", lambda row: row.stable_rank),
            ("entropy", lambda row: row.spectral_entropy),
            ("log_norm", lambda row: 2 * row.log10_frobenius_norm),
            ("log_spectral_norm", lambda row: 2 * row.log10_spectral_norm),
            ("lambda_max", lambda row: row.lambda_max),
            ("matrix_rank", lambda row: row.matrix_rank),
        ],
    )
    def test_metrics_equal_those_of_weightwatcher(self, rows, column, of_row):
        for name, expected in WEIGHTWATCHER.items():
            assert of_row(rows[name]) == pytest.approx(expected[column], rel=1e-4), name

    @pytest.mark.parametrize(
        ("column", "of_row"),
        [
            ("alpha_weighted", lambda row: row.alpha_hat),
            ("log_alpha_norm", lambda row: row.log10_alpha_norm),
            ("sigma", lambda row: row.stderr),
        ],
    )
    def test_metrics_that_depend_on_alpha_equal_those_of_weightwatcher(self, rows, column, of_row):
        for name, expected in WEIGHTWATCHER.items():
            if rows[name].status is tb.types.Status.OK:
                assert of_row(rows[name]) == pytest.approx(expected[column], rel=1e-4), name
