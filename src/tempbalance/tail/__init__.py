"""Eigenvalues -> alpha: tail estimators, one per file. They differ in how the threshold ``xmin`` is chosen."""

from tempbalance.tail.averaged import AveragedHill
from tempbalance.tail.estimator import TailEstimator, Tails
from tempbalance.tail.hill import Hill
from tempbalance.tail.ks import KS
from tempbalance.tail.peak import Peak
from tempbalance.tail.registry import find_estimator, register_estimator

__all__ = [
    "KS",
    "AveragedHill",
    "Hill",
    "Peak",
    "TailEstimator",
    "Tails",
    "find_estimator",
    "register_estimator",
]
