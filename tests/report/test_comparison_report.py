import io

import torch
from rich.console import Console

import tempbalance as tb
from tempbalance.report.comparison_report import print_comparison


def test_the_largest_change_is_printed_first_and_layers_without_a_pair_are_named(trained):
    before = tb.analyze(trained)
    with torch.no_grad():
        trained[1].weight += 0.1 * torch.randn(80, 80, generator=torch.Generator().manual_seed(1))
        trained[2].weight.normal_(generator=torch.Generator().manual_seed(2))
    stream = io.StringIO()
    print_comparison(Console(file=stream, width=80), tb.compare(before, tb.analyze(trained, select="[0-2].*")))
    text = stream.getvalue()
    assert text[text.index("Largest changes") :].splitlines()[2].startswith("1 ")
    assert "with an alpha only before (1): 2.weight" in text
    assert "1 only in the first model (3.weight)" in text
