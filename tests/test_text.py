import io

import pandas as pd
import pytest

from tempbalance._text import csv_bytes, encodable, one_line, printable


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("h.0.weight α ▁", "h.0.weight α ▁"),
        ("a\x1b[2Jb\x07\x9b", r"a\x1b[2Jb\x07\x9b"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\u202ea\u2028\u200b", r"\u202ea\u2028\u200b"),
        ("\ud800a", r"\ud800a"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text, escaped):
    assert printable(text) == escaped


def test_a_message_of_several_lines_becomes_one():
    assert one_line("first:\n\n  second\x1b\n") == r"first: second\x1b"


def test_unpaired_surrogates_are_escaped():
    assert encodable("a\udcff\n") == "a\\udcff\n"


def test_cells_that_a_spreadsheet_would_run_are_quoted_in_csv():
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "a=1"]
    content = csv_bytes(pd.DataFrame({"name": names, "alpha": [-1.5] * 6}))
    read = pd.read_csv(io.BytesIO(content))
    assert [*read["name"]] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "a=1"]
    assert [*read["alpha"]] == [-1.5] * 6
