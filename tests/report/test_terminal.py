import io

from rich.console import Console

from tempbalance.report.terminal import plain_table, plain_text, print_names, print_table, sparkline


def test_a_sparkline_of_equal_values_is_flat():
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_a_sparkline_has_one_character_per_value():
    assert sparkline([1.0, 2.0, 3.0]) == "▁▄█"


def test_a_sparkline_of_differences_within_their_errors_is_flat():
    assert sparkline([1.0, 1.2, 1.1], error=0.1) == "▁▁▁"
    assert sparkline([1.0, 1.2, 3.1], error=0.1) == "▁▁█"


def test_a_narrow_terminal_cuts_neither_names_nor_numbers_nor_titles():
    stream = io.StringIO()
    console = Console(file=stream, width=30)
    table = plain_table("name", *"abcd", title="a title that is longer than the table and the terminal")
    table.add_row("layers.10.weight", *["123456.7"] * 4)
    print_table(console, table)
    *title, _, row = stream.getvalue().splitlines()
    assert " ".join(line.strip() for line in title) == "a title that is longer than the table and the terminal"
    assert row.split() == ["layers.10.weight", *["123456.7"] * 4]
    assert console.width == 30


def test_the_title_of_a_narrow_table_is_one_line():
    stream = io.StringIO()
    table = plain_table("name", title="a title that is longer than the table")
    print_table(Console(file=stream, width=80), table)
    assert stream.getvalue().splitlines()[0] == "a title that is longer than the table"


def test_names_are_printed_as_they_are_and_escaped():
    stream = io.StringIO()
    console = Console(file=stream, width=80)
    table = plain_table("name", title="of [b]\x1b")
    table.add_row(plain_text("[/]\x07"))
    console.print(table)
    print_names(console, "skipped", ["\x1b]0;x\x07", "[red]a"])
    assert stream.getvalue().split() == [
        "of",
        r"[b]\x1b",
        "name",
        r"[/]\x07",
        "skipped",
        "(2):",
        r"\x1b]0;x\x07,",
        "[red]a",
    ]
