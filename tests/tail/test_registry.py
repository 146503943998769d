"""Estimators by name."""

from dataclasses import dataclass

import pytest

import tempbalance as tb
from tempbalance.errors import SelectionError
from tempbalance.tail import find_estimator, register_estimator


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hill", tb.Hill()),
        ("peak", tb.Peak()),
        ("KS", tb.KS()),
        ("averaged_hill", tb.AveragedHill()),
        ("averaged-hill", tb.AveragedHill()),
        ("tempbalance.released:PeakAsReleased", tb.released.PeakAsReleased()),
        ("hill_as_released", tb.released.HillAsReleased()),
        ("ks-as-released", tb.released.KSAsReleased()),
        (tb.Hill(0.3), tb.Hill(0.3)),
        (None, tb.Hill()),
    ],
    ids=str,
)
def test_an_estimator_is_found_by_name_place_or_itself(name, expected):
    assert find_estimator(name) == expected


def test_parameters_replace_the_defaults_of_an_estimator():
    assert find_estimator("hill", share=0.3, min_eigenvalues=20) == tb.Hill(0.3, min_eigenvalues=20)
    assert find_estimator(tb.Hill(0.3), min_eigenvalues=20) == tb.Hill(0.3, min_eigenvalues=20)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kolmogorov", r"unknown estimator 'kolmogorov': expected one of hill, peak, ks, averaged_hill"),
        ("nowhere:KS", "cannot load the estimator 'nowhere:KS'"),
        ("tempbalance.tail:Nothing", "cannot load the estimator"),
        ("tempbalance:FARMS", "'tempbalance:FARMS' is not a subclass of TailEstimator"),
        (3, "expected an estimator or its name, got int"),
    ],
)
def test_an_unknown_estimator_raises_with_the_known_names(name, message):
    with pytest.raises(SelectionError, match=message):
        find_estimator(name)


def test_an_unknown_estimator_parameter_raises_with_the_known_ones():
    with pytest.raises(SelectionError, match="Hill has no parameter 'bins'; it has min_eigenvalues, share"):
        find_estimator("hill", bins=3)


def test_a_registered_estimator_is_found():
    @dataclass(frozen=True)
    class Mine(tb.Hill):
        pass

    register_estimator("test_registry_mine", Mine)
    assert find_estimator("test-registry-mine") == Mine()
