"""The spectrum of a weight matrix tells how well its layer is trained; tempbalance measures it and acts on it."""

from tempbalance import errors, testing
from tempbalance.errors import TempBalanceError
from tempbalance.matrices import Layout
from tempbalance.spectrum import weight_spectrum
from tempbalance.tail import KS, Hill, HillAsReleased, KSAsReleased, Peak, PeakAsReleased
from tempbalance.types import LayerStats, Skipped, Spectrum, Status, TailFit
