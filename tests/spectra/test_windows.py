import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import oracles
import tempbalance as tb
from tempbalance.errors import AnalysisError, NonFiniteError, WeightError, WindowError
from tempbalance.spectra import gram
from tempbalance.spectra import windowed_gram as spectrum
from tempbalance.spectra.windows import coverage
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
from tempbalance.weight_fit import fit_weight, fit_weights

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "farms.json").read_text())["cases"]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cut(matrices, size, starts):
    """The windows themselves, by slicing: ``(W * B, rows, columns)``."""
    height, width = size
    return np.concatenate([matrices[:, row : row + height, column : column + width] for row, column in starts])


class TestPositions:
    @settings(max_examples=200, deadline=None)
    @given(
        rows=st.integers(1, 300),
        columns=st.integers(1, 300),
        ratio=st.sampled_from([1.0, 1.5, 2.0, 4.0]),
        side=st.one_of(st.none(), st.integers(1, 400)),
        windows=st.sampled_from(["auto", 1, 3, 15, (2, 5)]),
    )
    def test_windows_lie_inside_are_different_and_have_the_aspect_ratio(self, rows, columns, ratio, side, windows):
        farms = tb.FARMS(ratio, rows=side, windows=windows)
        if max(rows, columns) < ratio:
            with pytest.raises(WindowError, match="fits into"):
                farms.grid((rows, columns))
            return
        (height, width), starts, first = farms.grid((rows, columns))
        short, long = sorted((height, width))
        assert long == int(ratio * short)
        assert (height >= width) == (rows >= columns) or height == width
        assert len(set(starts)) == len(starts)
        assert all(0 <= r <= rows - height and 0 <= c <= columns - width for r, c in starts)
        assert 1 <= first <= len(starts)
        if windows == "auto":
            assert coverage((rows, columns), (height, width), starts[:first]) == pytest.approx(1.0)

    def test_the_default_window_is_half_of_the_short_side(self):
        assert tb.FARMS().size((384, 1536)) == (192, 192)
        assert tb.FARMS(aspect_ratio=2).size((384, 1536)) == (192, 384)
        assert tb.FARMS(aspect_ratio=2).size((1536, 384)) == (384, 192)

    def test_a_matrix_smaller_than_the_window_gets_the_largest_that_fits(self):
        # The released code, with a window of 128 rows, goes on with 28 of the 100.
        assert tb.FARMS(rows=128).size((100, 300)) == (100, 100)
        assert tb.FARMS(aspect_ratio=2, rows=128).size((100, 120)) == (60, 120)
        assert tb.FARMS(aspect_ratio=16).size((384, 384)) == (384, 24)

    def test_even_positions_reach_both_edges(self):
        assert tb.FARMS(rows=10, windows=(3, 2)).grid((50, 31)).starts == tuple(
            (row, column) for row in (0, 20, 40) for column in (0, 21)
        )
        assert tb.FARMS(rows=10, windows=1).grid((51, 30)).starts == ((20, 10),)

    def test_more_windows_keep_those_there_are(self):
        plan = tb.FARMS().grid((384, 384))
        assert plan.starts[:4] == ((0, 0), (0, 192), (192, 0), (192, 192))
        assert (plan.first, len(plan.starts)) == (5, 64)

    def test_coverage_counts_entries_once(self):
        generator = np.random.default_rng(0)
        starts = [(int(r), int(c)) for r, c in generator.integers(0, 20, (12, 2))]
        inside = np.zeros((27, 25), dtype=bool)
        for row, column in starts:
            inside[row : row + 7, column : column + 5] = True
        assert coverage((27, 25), (7, 5), starts) == pytest.approx(inside.mean())


class TestBadParameters:
    @pytest.mark.parametrize("ratio", [0.5, 0, -1, math.nan, math.inf, "1", True, None])
    def test_aspect_ratio(self, ratio):
        with pytest.raises(WindowError, match="aspect_ratio"):
            tb.FARMS(aspect_ratio=ratio)

    @pytest.mark.parametrize("rows", [0, -3, 2.5, "12", True])
    def test_rows(self, rows):
        with pytest.raises(WindowError, match="rows"):
            tb.FARMS(rows=rows)

    @pytest.mark.parametrize("windows", [0, -1, 2.0, "all", (3,), (3, 3, 3), (3, 0), (3, "auto"), True, None])
    def test_windows(self, windows):
        with pytest.raises(WindowError, match="windows"):
            tb.FARMS(windows=windows)

    @pytest.mark.parametrize("tolerance", [0, -0.1, math.nan, "0.1"])
    def test_tolerance(self, tolerance):
        with pytest.raises(WindowError, match="tolerance"):
            tb.FARMS(tolerance=tolerance)

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [((0, 3), "rows"), ((8, 1), "ops_per_dim"), ((8, 2.5), "ops_per_dim"), ((8, 3, 0), "aspect_ratio")],
    )
    def test_as_released(self, arguments, name):
        with pytest.raises(WindowError, match=name):
            tb.released.FARMSAsReleased(*arguments)

    def test_errors_are_value_errors_and_say_what_to_do(self):
        with pytest.raises(ValueError, match="give 2 instead"):
            tb.FARMS(aspect_ratio=0.5)


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


class TestEigenvalues:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("windows", [2, 9, "auto"])
    @pytest.mark.parametrize("ratio", [1.0, 1.5])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
    def test_pooled_eigenvalues_are_those_of_the_windows(self, shape, windows, ratio, dtype):
        weight = random(*shape).to(dtype)
        weight = weight * (1 + 0.5j) if dtype.is_complex else weight
        farms = tb.FARMS(ratio, windows=windows)
        found = fit_weight(weight, windows=farms)
        plan = farms.grid(shape)
        numbers = weight.to(torch.complex128 if dtype.is_complex else torch.float64)[None].numpy()
        expected = oracles.eigenvalues(cut(numbers, plan.size, plan.starts[: found.num_windows]))
        np.testing.assert_allclose(
            found.spectrum.eigenvalues.numpy(), expected, rtol=1e-10, atol=found.spectrum.error_bound * expected[-1]
        )

    @settings(max_examples=300, deadline=None)
    @given(case=weights_and_windows(), slide=st.booleans(), little_memory=st.booleans())
    def test_any_windows_have_the_eigenvalues_that_they_have_alone(self, case, slide, little_memory):
        weight, size, starts = case
        with pytest.MonkeyPatch.context() as patch:
            if slide:
                patch.setattr(spectrum, "_sliding_pays", lambda *_: True)
            if little_memory:
                patch.setattr(spectrum, "_SLIDING_BYTES", 8 * (min(size) + 3) ** 2)
                patch.setattr(spectrum, "_GROUP", 1)
                patch.setattr(spectrum, "BLOCK", 5)
            found = spectrum.window_values([weight], [size], [starts])[0]
        numbers = weight.to(torch.complex128 if weight.is_complex() else torch.float64).numpy()
        least = 64 * max(size) * np.finfo(float).eps  # below this share of the largest, eigenvalues count as zero
        for place, start in enumerate(starts):
            for index, matrix in enumerate(numbers):
                expected = oracles.eigenvalues(cut(matrix[None], size, [start]))
                values = found.eigenvalues[place, index].numpy()
                zero = expected <= least * expected[-1]
                np.testing.assert_allclose(values[~zero], expected[~zero], rtol=2e-3)
                assert (values[zero] <= least * expected[-1]).all()

    def test_windows_without_a_number_in_a_weight_of_extreme_scale(self):
        for scale in (1e-120, 1e120):
            weight = torch.zeros(1, 30, 30, dtype=torch.float64)
            weight[0, 0, 0] = scale
            found = spectrum.window_values([weight], [(10, 10)], [[(20, 20)]])[0]
            assert not found.eigenvalues.any()

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("ratio", [1.0, 1.5])
    def test_a_sliding_gram_matrix_gives_what_single_ones_give(self, shape, ratio, monkeypatch):
        weight = random(3, *shape)
        plan = tb.FARMS(ratio, windows=9).grid(shape)
        values = []
        for pays in (True, False):
            monkeypatch.setattr(spectrum, "_sliding_pays", lambda *_, pays=pays: pays)
            values.append(spectrum.window_values([weight], [plan.size], [plan.starts])[0].eigenvalues)
        torch.testing.assert_close(*values, rtol=1e-9, atol=1e-12 * float(values[0].max()))

    def test_sliding_pays_for_many_windows_over_the_same_rows_only(self):
        pays = {
            windows: spectrum._sliding_pays(plan.size, plan.starts[: plan.first])
            for windows in (2, 15, "auto")
            for plan in [tb.FARMS(windows=windows).grid((384, 384))]
        }
        assert pays == {2: False, 15: True, "auto": False}

    def test_huge_rows_that_have_left_a_sliding_gram_matrix_leave_no_error(self):
        weight = random(60, 60)
        weight[0] *= 1e9
        plan = tb.FARMS(rows=40, windows=15).grid((60, 60))
        assert spectrum._sliding_pays(plan.size, plan.starts)
        found = spectrum.window_values([weight[None]], [plan.size], [plan.starts])[0].eigenvalues[:, 0]
        for values, start in zip(found, plan.starts, strict=True):
            if start[0] == 0:
                continue  # all but the largest of their eigenvalues are numerically zero
            np.testing.assert_allclose(
                values.numpy(), oracles.eigenvalues(cut(weight[None].numpy(), plan.size, [start])), rtol=1e-3
            )

    def test_kernel_taps_experts_and_complex_modes_are_pooled(self):
        taps = random(40, 30, 3, 3)
        found = fit_weight(taps, tb.spectra.Layout.TAPS, windows=tb.FARMS(windows=2))
        assert found.spectrum.num_matrices == 9 * 4
        matrices = taps.flatten(2).permute(2, 0, 1).numpy()
        expected = oracles.eigenvalues(cut(matrices, (15, 15), [(0, 0), (0, 15), (25, 0), (25, 15)]))
        np.testing.assert_allclose(found.spectrum.eigenvalues.numpy(), expected, rtol=1e-9, atol=1e-12 * expected[-1])
        stacked = fit_weight(taps.flatten(2).permute(2, 0, 1), tb.spectra.Layout.STACK, windows=tb.FARMS(windows=2))
        assert torch.equal(stacked.spectrum.eigenvalues, found.spectrum.eigenvalues)

    def test_weights_share_a_batch_and_get_the_bits_they_get_alone(self):
        weights = [random(1, 60, 60), random(1, 200, 60, seed=1), random(2, 60, 90, seed=2)]
        layouts = [tb.spectra.Layout.MATRIX, tb.spectra.Layout.MATRIX, tb.spectra.Layout.STACK]
        options = {"windows": tb.FARMS(), "estimator": tb.Hill()}
        together = fit_weights(weights, layouts, **options)
        for weight, layout, found in zip(weights, layouts, together, strict=True):
            alone = fit_weights([weight], [layout], **options)[0]
            assert torch.equal(found.spectrum.eigenvalues, alone.spectrum.eigenvalues)
            assert found.fit == alone.fit

    def test_memory_limits_do_not_change_the_result(self, monkeypatch):
        weight = random(80, 70)
        expected = fit_weight(weight, windows=tb.FARMS(windows=8))
        monkeypatch.setattr(spectrum, "_GROUP", 1)
        monkeypatch.setattr(spectrum, "_SLIDING_BYTES", 8 * 45**2)  # some of the columns at a time
        monkeypatch.setattr(spectrum, "_SLIDING", 0)
        monkeypatch.setattr(gram, "_ROWS", 7)
        monkeypatch.setattr(gram, "_CHUNK", 0)
        found = fit_weight(weight, windows=tb.FARMS(windows=8))
        torch.testing.assert_close(found.spectrum.eigenvalues, expected.spectrum.eigenvalues, rtol=1e-9, atol=1e-10)

    def test_the_weight_is_not_changed(self):
        weight = random(50, 40)
        before = weight.clone()
        fit_weight(weight, windows=tb.FARMS(windows=9))
        assert torch.equal(weight, before)

    @pytest.mark.parametrize("scale", [1e-150, 1e150])
    def test_alpha_does_not_depend_on_scale(self, scale):
        weight = random(60, 60)
        expected = fit_weight(weight, windows=tb.FARMS()).fit.alpha
        assert fit_weight(weight * scale, windows=tb.FARMS()).fit.alpha == pytest.approx(expected, rel=1e-9)

    def test_ill_conditioned_windows_fall_back_to_an_svd(self):
        weight = matrix_with_spectrum(torch.logspace(-13, 0, 40, dtype=torch.float64), (40, 40))
        found = fit_weight(weight, windows=tb.FARMS(rows=40)).spectrum.eigenvalues
        assert found[0].item() == pytest.approx(1e-13, rel=1e-2)


class TestAsReleased:
    @pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['shape']}-{case['aspect_ratio']}")
    def test_equals_the_released_code(self, case):
        generator = torch.Generator().manual_seed(case["seed"])
        draw = {"generator": generator, "dtype": torch.float64}
        weight = torch.randn(case["shape"], **draw) / (0.3 + torch.rand(case["shape"], **draw))
        windows = tb.released.FARMSAsReleased(case["rows"], case["ops_per_dim"], case["aspect_ratio"])
        for name, estimator in {"hill": tb.released.HillAsReleased(), "peak": tb.released.PeakAsReleased()}.items():
            found = fit_weight(weight, tb.spectra.Layout(case["layout"]), windows=windows, estimator=estimator)
            expected = np.array(case["eigenvalues"])
            np.testing.assert_allclose(
                found.spectrum.eigenvalues.numpy(), expected, rtol=1e-9, atol=1e-12 * expected[-1]
            )
            assert found.fit.alpha == pytest.approx(case[name]["alpha"], rel=1e-6)
            assert found.fit.ks_distance == pytest.approx(case[name]["D"], abs=1e-6)

    def test_raises_where_the_released_code_cuts_a_sliver(self):
        with pytest.raises(WindowError, match="does not keep its aspect ratio"):
            fit_weight(random(100, 100), windows=tb.released.FARMSAsReleased(64, 3, 2.0))

    def test_the_far_edge_may_stay_uncovered(self):
        found = fit_weight(random(105, 105), windows=tb.released.FARMSAsReleased(20, 10))
        assert (found.num_windows, found.coverage < 1) == (100, True)

    def test_a_place_of_a_convolution_without_a_fit_leaves_none(self):
        taps = torch.cat([random(30, 30, 2, 2), torch.zeros(30, 30, 2, 2)])
        found = fit_weight(taps, tb.spectra.Layout.TAPS, windows=tb.released.FARMSAsReleased(30, 2))
        assert found.fit.status is tb.types.Status.ZERO


class TestError:
    def test_is_that_of_a_jackknife(self):
        weight = random(60, 90)
        farms = tb.FARMS(windows=(2, 3))
        found = fit_weight(weight, windows=farms)
        plan = farms.grid((60, 90))
        windows = [oracles.eigenvalues(cut(weight[None].numpy(), plan.size, [start])) for start in plan.starts]
        alphas = [oracles.hill(np.concatenate(windows[:j] + windows[j + 1 :])) for j in range(6)]
        jackknife = math.sqrt(5 / 6 * np.sum((np.array(alphas) - np.mean(alphas)) ** 2))
        assert found.fit.stderr == pytest.approx(jackknife * 2.5706 / 1.9600, rel=1e-3)

    def test_windows_are_added_until_it_is_small_enough(self):
        weight = random(96, 96)
        loose, tight = (fit_weight(weight, windows=tb.FARMS(tolerance=t)) for t in (1.0, 0.015))
        assert loose.num_windows == 5 < tight.num_windows <= 64
        assert tight.fit.stderr <= 0.015 or tight.num_windows == 64

    def test_there_are_never_more_than_all_positions(self):
        found = fit_weight(random(40, 41), windows=tb.FARMS(rows=40, tolerance=1e-9))
        assert found.num_windows == 2

    def test_a_single_window_has_the_error_of_the_estimator(self):
        weight = random(40, 40)
        fit = fit_weight(weight, windows=tb.FARMS(rows=40)).fit
        assert fit == tb.Hill().fit(tb.weight_spectrum(weight))

    @pytest.mark.parametrize("weight", [torch.zeros(40, 40), torch.eye(40), torch.ones(3, 3), torch.ones(1, 50)])
    def test_what_cannot_be_fitted_says_so_after_the_first_windows(self, weight):
        found = fit_weight(weight, windows=tb.FARMS())
        assert found.fit.status is not tb.types.Status.OK
        assert math.isnan(found.fit.stderr)

    def test_is_never_less_than_that_of_a_random_matrix(self):
        weight = random(20, 20).tile(2, 2)  # four windows that are all the same
        fit = fit_weight(weight, windows=tb.FARMS(windows=2)).fit
        assert fit.stderr == pytest.approx(3.5 * (fit.alpha - 1) / 20 / 2)

    @pytest.mark.parametrize("estimator", [tb.Hill(), tb.AveragedHill()], ids=["hill", "averaged"])
    def test_is_honest_where_the_tail_does_not_jump(self, estimator):
        """The alpha of 225 windows lies within 2 standard errors in 95 % of small matrices."""
        within = []
        for seed in range(12):
            weight = random(64, 64, seed=seed) * random(64, seed=seed + 100).exp().sqrt()
            fit = fit_weight(weight, estimator=estimator, windows=tb.FARMS()).fit
            many = fit_weight(weight, estimator=estimator, windows=tb.FARMS(windows=15)).fit
            within.append(abs(fit.alpha - many.alpha) <= 2 * fit.stderr)
        assert sum(within) >= 0.95 * len(within)

    @pytest.mark.parametrize("estimator", [tb.Peak(), tb.KS()], ids=["peak", "ks"])
    def test_is_finite_and_no_less_than_that_of_a_random_matrix_where_the_tail_jumps(self, estimator):
        found = fit_weight(random(64, 64), estimator=estimator, windows=tb.FARMS())
        least = 3.5 * (found.fit.alpha - 1) / 32 / math.sqrt(found.num_windows)
        assert least <= found.fit.stderr < math.inf

    @pytest.mark.slow
    def test_is_honest_on_a_real_transformer(self, minilm):
        """The alpha of 225 windows, as many as the paper takes, lies within 2 standard errors in 95 % of layers."""
        weights = {k: w for k, w in load_file(minilm / "model.safetensors").items() if w.ndim == 2 and "embed" not in k}
        assert len(weights) == 37
        outside = 0
        for weight in weights.values():
            fit = fit_weight(weight, windows=tb.FARMS()).fit
            many = fit_weight(weight, windows=tb.released.FARMSAsReleased(192, 15)).fit
            outside += abs(fit.alpha - many.alpha) > 2 * fit.stderr
        assert outside <= 1


def test_alpha_does_not_depend_on_the_aspect_ratio():
    """Of matrices with independent Student-t entries, whole ones differ by their shape, windows do not."""
    whole, windows = [], []
    for ratio in (1, 4, 16):
        torch.manual_seed(ratio)
        weight = torch.distributions.StudentT(4.0).sample((96, 96 * ratio))
        whole.append(tb.Hill().fit(tb.weight_spectrum(weight)).alpha)
        windows.append(fit_weight(weight, windows=tb.FARMS()).fit)
    assert whole[2] - whole[0] > 1
    for fit in windows[1:]:
        assert abs(fit.alpha - windows[0].alpha) < 3 * math.hypot(fit.stderr, windows[0].stderr)


class TestBadWeights:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_not_finite(self, bad):
        weight = random(30, 30)
        weight[29, 0] = bad
        with pytest.raises(NonFiniteError, match="1 of 900"):
            fit_weight(weight, windows=tb.FARMS(windows=1, rows=4))  # wherever the windows lie

    def test_no_window_fits(self):
        with pytest.raises(WindowError, match="aspect ratio 4 fits into 2 x 3"):
            fit_weight(random(2, 3), windows=tb.FARMS(aspect_ratio=4))

    def test_not_a_stack_of_matrices(self):
        with pytest.raises(WeightError, match="expected tensors"):
            spectrum.window_values([random(3, 3)], [(2, 2)], [[(0, 0)]])

    def test_integers(self):
        with pytest.raises(WeightError, match="floating-point"):
            fit_weight(torch.ones(9, 9, dtype=torch.int64), windows=tb.FARMS())


class TestAnalyze:
    def test_rows_say_how_many_windows_and_what_they_cover(self, trained, tmp_path):
        analysis = tb.analyze(trained, windows=tb.FARMS())
        row = analysis.layers[0]
        assert (row.num_matrices, row.coverage) == (1, 1.0)
        assert row.num_eigenvalues == 40 * row.num_windows
        assert analysis.settings["windows"] == repr(tb.FARMS())
        assert row.alpha == fit_weight(trained[0].weight.detach(), windows=tb.FARMS()).fit.alpha
        path = tmp_path / "a.json"
        analysis.save(path)
        assert repr(tb.Analysis.load(path).layers) == repr(analysis.layers)
        assert {"num_windows", "coverage"} <= set(analysis.to_pandas().columns)
        analysis.save(tmp_path / "a.html")

    def test_norms_do_not_grow_with_the_number_of_windows(self, trained):
        few, many = (tb.analyze(trained, windows=tb.FARMS(windows=k)).layers[0] for k in (2, 8))
        assert many.log10_frobenius_norm == pytest.approx(few.log10_frobenius_norm, abs=0.02)
        assert few.log10_frobenius_norm < tb.analyze(trained).layers[0].log10_frobenius_norm

    def test_an_untrained_layer_is_still_random(self):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"linear": torch.nn.Linear(300, 200), "conv": torch.nn.Conv2d(64, 128, 3)})
        for windows in (tb.FARMS(), tb.FARMS(windows=8), tb.FARMS(aspect_ratio=2.0)):
            rows = tb.analyze(model, windows=windows).layers
            assert [row.status.value for row in rows] == ["random"] * 2

    def test_layers_of_different_shapes_and_kinds(self):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict(
            {
                "wide": torch.nn.Linear(300, 60),
                "square": torch.nn.Linear(60, 60),
                "conv": torch.nn.Conv2d(60, 90, 3),
                "tiny": torch.nn.Linear(4, 3),
            }
        )
        for windows in (tb.FARMS(), tb.released.FARMSAsReleased(30, 3)):
            rows = tb.analyze(model, windows=windows).layers
            assert [row.name for row in rows] == ["wide.weight", "square.weight", "conv.weight", "tiny.weight"]
            assert [row.num_matrices for row in rows] == [1, 1, 9, 1]

    def test_a_layer_that_no_window_fits_is_skipped(self):
        analysis = tb.analyze(
            {"a.weight": random(20, 20), "b.weight": random(2, 3)}, windows=tb.FARMS(aspect_ratio=5.0)
        )
        assert [row.name for row in analysis.layers] == ["a.weight"]
        assert "fits into 2 x 3" in analysis.skipped[0].reason

    def test_the_numbers_do_not_depend_on_resuming_or_batches(self, trained, tmp_path, monkeypatch):
        path = tmp_path / "model.safetensors"
        save_file(trained.state_dict(), path)
        expected = tb.analyze(path, windows=tb.FARMS())
        monkeypatch.setattr("tempbalance.analysis.batching._BATCH", 1)
        again = tb.analyze(path, windows=tb.FARMS(), resume=tmp_path / "partial")
        assert repr(again.layers) == repr(expected.layers)

    def test_other_windows_cannot_be_compared(self, trained):
        with pytest.raises(AnalysisError, match="different windows"):
            tb.compare(tb.analyze(trained), tb.analyze(trained, windows=tb.FARMS()))

    def test_files_from_before_windows_can_be_loaded(self, trained, tmp_path):
        path = tmp_path / "a.json"
        tb.analyze(trained).save(path)
        data = json.loads(path.read_text())
        for row in data["layers"]:
            del row["num_windows"], row["coverage"]
        del data["settings"]["windows"]
        path.write_text(json.dumps(data))
        old = tb.Analysis.load(path)
        assert {(row.num_windows, row.coverage) for row in old.layers} == {(1, 1.0)}
        assert len(tb.compare(old, tb.analyze(trained)).layers) == 4


class TestCommandLine:
    def run(self, *arguments):
        from tempbalance.cli import main

        with pytest.raises(SystemExit) as stopped:
            main(*map(str, arguments))
        return stopped.value.code

    @pytest.fixture
    def model(self, trained, tmp_path):
        path = tmp_path / "model.safetensors"
        save_file(trained.state_dict(), path)
        return path

    @pytest.mark.parametrize("options", [("--farms",), ("--farms-rows", 20)])
    def test_farms(self, model, tmp_path, options):
        assert self.run("analyze", model, *options, "--quiet", "--out", tmp_path / "a.json") == 0
        saved = tb.Analysis.load(tmp_path / "a.json")
        assert saved.settings["windows"].startswith("FARMS(")
        assert all(row.num_windows >= 5 for row in saved.layers)

    def test_compare(self, model, tmp_path, capsys):
        self.run("analyze", model, "--farms", "--quiet", "--out", tmp_path / "a.json")
        assert self.run("compare", tmp_path / "a.json", model, "--farms") == 0
        assert self.run("compare", tmp_path / "a.json", model) == 1
        assert "different windows" in capsys.readouterr().err

    def test_impossible_rows_are_one_line(self, model, capsys):
        assert self.run("analyze", model, "--farms-rows", 0) == 1
        assert capsys.readouterr().err.startswith("error: rows must be")


def test_pareto_spectra_keep_the_order_of_their_alphas():
    fits = [
        fit_weight(matrix_with_spectrum(pareto_quantiles(128, alpha), (128, 256)), windows=tb.FARMS()).fit.alpha
        for alpha in (2.0, 3.0, 5.0)
    ]
    assert fits == sorted(fits)
