"""The spectrum of a weight matrix tells how well its layer is trained; tempbalance measures it and acts on it."""

from tempbalance.spectrum import spectrum
from tempbalance.tail import KS, Hill, HillAsReleased, Peak, PeakAsReleased
