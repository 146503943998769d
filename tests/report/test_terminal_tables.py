from tempbalance.report.terminal_tables import sparkline


def test_a_sparkline_of_equal_values_is_flat():
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_a_sparkline_has_one_character_per_value():
    assert sparkline([1.0, 2.0, 3.0]) == "▁▄█"
