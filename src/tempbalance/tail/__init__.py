"""Tail estimators, one per file: how the threshold ``xmin`` of the power law is chosen."""

from tempbalance.tail.averaged import AveragedHill
from tempbalance.tail.estimator import TailEstimator
from tempbalance.tail.hill import Hill, HillAsReleased
from tempbalance.tail.ks import KS, KSAsReleased
from tempbalance.tail.peak import Peak, PeakAsReleased

__all__ = ["KS", "AveragedHill", "Hill", "HillAsReleased", "KSAsReleased", "Peak", "PeakAsReleased", "TailEstimator"]
