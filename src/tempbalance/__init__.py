"""The spectrum of a weight matrix tells how well its layer is trained; tempbalance measures it and acts on it."""

from tempbalance import errors, recipes, testing
from tempbalance.allocation import Allocation, LayerShare, allocate_bits, allocate_ranks, allocate_sparsity
from tempbalance.analysis import analyze
from tempbalance.assign import (
    AlphaChange,
    Damped,
    LayerwiseDecay,
    Linear,
    Log2,
    Rank,
    RankAsReleased,
    Sigmoid,
    SlowLearner,
    Sqrt,
    Times,
)
from tempbalance.checkpoints import Checkpoint, open_checkpoint
from tempbalance.errors import TempBalanceError
from tempbalance.layers import Select
from tempbalance.matrices import Layout
from tempbalance.optim import Balancer, Every, Recipe, Refresh, UnitState, param_groups
from tempbalance.pooling import WindowedFit, fit_windows
from tempbalance.pruning import (
    Perplexity,
    Recovered,
    Recovery,
    draw_calibration,
    load_tokens,
    outlier_ratios,
    perplexity,
    prune,
    prune_checkpoint,
    recover,
    save_pruned,
    save_recovered,
)
from tempbalance.results import Analysis, Comparison, compare
from tempbalance.spectrum import weight_spectrum
from tempbalance.tail import KS, AveragedHill, Hill, HillAsReleased, KSAsReleased, Peak, PeakAsReleased
from tempbalance.types import LayerStats, Skipped, Spectrum, Status, TailFit
from tempbalance.windows import FARMS, FARMSAsReleased

__all__ = [
    # diagnose
    "Analysis",
    "Checkpoint",
    "Comparison",
    "Select",
    "analyze",
    "compare",
    "open_checkpoint",
    # train
    "Balancer",
    "Every",
    "Recipe",
    "Refresh",
    "UnitState",
    "param_groups",
    "recipes",
    # compress
    "Allocation",
    "LayerShare",
    "Perplexity",
    "Recovered",
    "Recovery",
    "allocate_bits",
    "allocate_ranks",
    "allocate_sparsity",
    "draw_calibration",
    "load_tokens",
    "outlier_ratios",
    "perplexity",
    "prune",
    "prune_checkpoint",
    "recover",
    "save_pruned",
    "save_recovered",
    # assignments of multipliers
    "AlphaChange",
    "Damped",
    "LayerwiseDecay",
    "Linear",
    "Log2",
    "Rank",
    "RankAsReleased",
    "Sigmoid",
    "SlowLearner",
    "Sqrt",
    "Times",
    # estimators of the tail
    "KS",
    "AveragedHill",
    "Hill",
    "HillAsReleased",
    "KSAsReleased",
    "Peak",
    "PeakAsReleased",
    # FARMS windows
    "FARMS",
    "FARMSAsReleased",
    # the core, for one weight at a time
    "Layout",
    "fit_windows",
    "weight_spectrum",
    # values
    "LayerStats",
    "Skipped",
    "Spectrum",
    "Status",
    "TailFit",
    "WindowedFit",
    # the rest
    "TempBalanceError",
    "errors",
    "testing",
]
