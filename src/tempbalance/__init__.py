"""Inspect, train and compress PyTorch models layer by layer, and measure whether it helped.

Public names are loaded when they are first used (PEP 562): importing the package is quick and does not load torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tempbalance._files import RENDERERS

if TYPE_CHECKING:
    from tempbalance import analysis as analysis
    from tempbalance import balance as balance
    from tempbalance import checkpoints as checkpoints
    from tempbalance import compress as compress
    from tempbalance import errors, study, testing
    from tempbalance import integrations as integrations
    from tempbalance import layers as layers
    from tempbalance import metrics as metrics
    from tempbalance import released as released
    from tempbalance import report as report
    from tempbalance import spectra as spectra
    from tempbalance import tail as tail
    from tempbalance import types as types
    from tempbalance import weight_fit as weight_fit
    from tempbalance.analysis import Analysis, Comparison, analyze, compare, track
    from tempbalance.balance import Balancer, Every, Recipe, assign, recipes
    from tempbalance.checkpoints import Checkpoint, open_checkpoint
    from tempbalance.compress import (
        Allocation,
        allocate_bits,
        allocate_ranks,
        allocate_sparsity,
        allocate_trainable,
        perplexity,
        prune,
        prune_checkpoint,
        recover,
        save_pruned,
    )
    from tempbalance.errors import TempBalanceError
    from tempbalance.layers import Select
    from tempbalance.spectra import FARMS, weight_spectrum
    from tempbalance.tail import KS, AveragedHill, Hill, Peak

    __version__: str

_NAMES = {
    "analysis": ("Analysis", "Comparison", "analyze", "compare", "track"),
    "balance": ("Balancer", "Every", "Recipe", "assign", "recipes"),
    "checkpoints": ("Checkpoint", "open_checkpoint"),
    "compress": (
        *("Allocation", "allocate_bits", "allocate_ranks", "allocate_sparsity", "allocate_trainable"),
        *("perplexity", "prune", "prune_checkpoint", "recover", "save_pruned"),
    ),
    "errors": ("TempBalanceError",),
    "layers": ("Select",),
    "spectra": ("FARMS", "weight_spectrum"),
    "tail": ("KS", "AveragedHill", "Hill", "Peak"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
_SUBMODULES = (
    *("types", "errors", "testing", "spectra", "tail", "metrics", "weight_fit", "layers", "checkpoints", "analysis"),
    *("balance", "released", "compress", "study", "report", "integrations"),
)

# inspect; one weight: estimators, windows; train; compress; compare methods; the rest
__all__ = ["Analysis", "Checkpoint", "Comparison", "Select", "analyze", "compare", "open_checkpoint", "track"]
__all__ += ["FARMS", "KS", "AveragedHill", "Hill", "Peak", "weight_spectrum"]
__all__ += ["Balancer", "Every", "Recipe", "assign", "recipes"]
__all__ += ["Allocation", "allocate_bits", "allocate_ranks", "allocate_sparsity", "allocate_trainable"]
__all__ += ["perplexity", "prune", "prune_checkpoint", "recover", "save_pruned"]
__all__ += ["study"]
__all__ += ["TempBalanceError", "__version__", "errors", "testing"]


if not TYPE_CHECKING:  # a type checker reports names that do not exist

    def __getattr__(name: str) -> Any:
        """Load a public name or a subpackage when it is first used (PEP 562)."""
        if name in _MODULE_OF:
            value = getattr(importlib.import_module(f"tempbalance.{_MODULE_OF[name]}"), name)
        elif name in _SUBMODULES:
            value = importlib.import_module(f"tempbalance.{name}")
        elif name == "__version__":
            from importlib.metadata import version

            value = version("tempbalance")
        else:
            raise AttributeError(f"module 'tempbalance' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Return the public names and the subpackages."""
    return sorted({*__all__, *_SUBMODULES})


def _renderer(name: str) -> Callable[..., Any]:
    def render(*arguments: Any) -> Any:
        """Call the function, which is loaded now."""
        return getattr(importlib.import_module("tempbalance.report"), name)(*arguments)

    return render


RENDERERS |= {
    name: _renderer(name) for name in ("plot", "render_analysis", "render_comparison", "render_track", "view_analysis")
}
