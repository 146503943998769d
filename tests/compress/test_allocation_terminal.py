import io

import pytest
from rich.console import Console

import tempbalance as tb
from tempbalance.report.allocation_terminal import print_allocation


@pytest.mark.parametrize(
    ("bits", "formats", "stated"),
    [(5, ("int4_g32", "int8_g32"), "4.5 of at most 5 bits per weight"), (4.5, ("int4_g32",), "4.5 bits per weight")],
)
def test_bits_that_are_not_used_are_stated(analysis_of, bits, formats, stated):
    analysis = analysis_of(["h.0.a.weight", "h.1.a.weight"], [2.0, 3.0], [(64, 64)] * 2)
    stream = io.StringIO()
    print_allocation(Console(file=stream, width=200), tb.allocate_bits(analysis, bits, widths=formats))
    assert f"2 weight matrices, {stated}, allocated by uniform" in stream.getvalue()
