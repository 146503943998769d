import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tempbalance as tb
from tempbalance.errors import WindowError
from tempbalance.spectra.windows import coverage


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

    def test_auto_adds_windows_after_those_that_cover_the_matrix(self):
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
    def test_aspect_ratio_out_of_range_raises(self, ratio):
        with pytest.raises(WindowError, match="aspect_ratio"):
            tb.FARMS(aspect_ratio=ratio)

    @pytest.mark.parametrize("rows", [0, -3, 2.5, "12", True])
    def test_rows_out_of_range_raises(self, rows):
        with pytest.raises(WindowError, match="rows"):
            tb.FARMS(rows=rows)

    @pytest.mark.parametrize("windows", [0, -1, 2.0, "all", (3,), (3, 3, 3), (3, 0), (3, "auto"), True, None])
    def test_windows_out_of_range_raises(self, windows):
        with pytest.raises(WindowError, match="windows"):
            tb.FARMS(windows=windows)

    @pytest.mark.parametrize("tolerance", [0, -0.1, math.nan, "0.1"])
    def test_tolerance_out_of_range_raises(self, tolerance):
        with pytest.raises(WindowError, match="tolerance"):
            tb.FARMS(tolerance=tolerance)

    def test_errors_are_value_errors_with_the_value_to_use(self):
        with pytest.raises(ValueError, match="give 2 instead"):
            tb.FARMS(aspect_ratio=0.5)
