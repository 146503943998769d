"""Tail estimators, one per file: they fit alpha to eigenvalues, and differ in the choice of the threshold ``xmin``."""

from tempbalance.tail.averaged import AveragedHill
from tempbalance.tail.estimator import TailEstimator, Tails
from tempbalance.tail.hill import Hill
from tempbalance.tail.ks import KS
from tempbalance.tail.peak import Peak
from tempbalance.tail.registry import find_estimator, register_estimator

__all__ = ["KS", "AveragedHill", "Hill", "Peak", "TailEstimator", "Tails", "find_estimator", "register_estimator"]
