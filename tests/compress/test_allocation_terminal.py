"""The header of an allocation in the terminal."""

import io

import pytest
from rich.console import Console

import tempbalance as tb
from tempbalance.report.allocation_terminal import print_allocation


@pytest.fixture
def header(analysis_of):
    analysis = analysis_of([f"h.{i}.a.weight" for i in range(4)], [2.0, 3.0, 2.5, 2.2], [(64, 64)] * 4)

    def found(allocate, *arguments, **options):
        stream = io.StringIO()
        print_allocation(Console(file=stream, width=200), allocate(analysis, *arguments, **options))
        return stream.getvalue().splitlines()[1]

    return found


@pytest.mark.parametrize("bits", [4.5, 5])
def test_bits_that_are_not_used_are_stated(header, bits):
    stated = "" if bits == 4.5 else " (target 5)"
    text = header(tb.allocate_bits, bits, widths=("int4_g32", "int8_g32"))
    assert text.startswith(f"4 weight matrices, 4.5 bits per weight{stated}, allocated by uniform")


def test_a_sparsity_that_groups_do_not_reach_is_stated(header):
    assert "62.5% sparsity (target 60.0%), allocated" in header(tb.allocate_sparsity, 0.6, group=4)
    assert "60.0% sparsity, allocated" in header(tb.allocate_sparsity, 0.6)
