"""The spectrum of a weight matrix tells how well its layer is trained; tempbalance measures it and acts on it."""

from tempbalance import errors as errors
from tempbalance import testing as testing
from tempbalance.errors import TempBalanceError as TempBalanceError
from tempbalance.matrices import Layout as Layout
from tempbalance.spectrum import weight_spectrum as weight_spectrum
from tempbalance.tail import KS as KS
from tempbalance.tail import Hill as Hill
from tempbalance.tail import HillAsReleased as HillAsReleased
from tempbalance.tail import KSAsReleased as KSAsReleased
from tempbalance.tail import Peak as Peak
from tempbalance.tail import PeakAsReleased as PeakAsReleased
from tempbalance.types import LayerStats as LayerStats
from tempbalance.types import Skipped as Skipped
from tempbalance.types import Spectrum as Spectrum
from tempbalance.types import Status as Status
from tempbalance.types import TailFit as TailFit
