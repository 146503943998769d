"""Balance training: multipliers per unit on learning rate or weight decay, applied inside ``optimizer.step``."""

from __future__ import annotations

from tempbalance.balance import assign, recipes
from tempbalance.balance.balancer import Balancer
from tempbalance.balance.history import Refresh, UnitState
from tempbalance.balance.pull_back import PullBack
from tempbalance.balance.recipe import Every, Recipe

__all__ = ["Balancer", "Every", "PullBack", "Recipe", "Refresh", "UnitState", "assign", "recipes"]
