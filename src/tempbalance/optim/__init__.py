"""Balancing as an add-on: per-unit multipliers applied inside ``optimizer.step``."""

from __future__ import annotations

from tempbalance.optim.balancer import Balancer
from tempbalance.optim.history import Refresh, UnitState
from tempbalance.optim.param_groups import param_groups
from tempbalance.optim.recipe import Every, Recipe

__all__ = ["Balancer", "Every", "Recipe", "Refresh", "UnitState", "param_groups"]
