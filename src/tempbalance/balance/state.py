"""How a balancer travels in the state dict of its optimizer: one text per parameter group.

A text is one leaf to whatever saves, flattens, gathers or broadcasts a state dict; torch.distributed.checkpoint drops
empty containers, and what a container holds besides what it held before the first step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from tempbalance.balance.param_groups import KEY
from tempbalance.errors import BalanceError

__all__ = ["pack", "read", "unpack"]


def pack(_optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """After an optimizer has made its state dict: put what the groups say of themselves into texts.

    Args:
        state_dict: The state dict; its groups are changed, those of the optimizer are not.
    """
    for group in state_dict["param_groups"]:
        if KEY in group:
            group[KEY] = json.dumps(group[KEY])


def read(group: dict[str, Any]) -> None:
    """Read the text of a group, where something has put it past ``unpack`` (ZeroRedundancyOptimizer does)."""
    if isinstance(group.get(KEY), str):
        group[KEY] = json.loads(group[KEY])


def unpack(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Before an optimizer loads a state dict: read the texts, and make sure that its groups are those that were saved.

    Args:
        optimizer: A balanced optimizer.
        state_dict: What it is about to load.

    Returns:
        What it is to load instead.

    Raises:
        BalanceError: The groups differ.
    """
    groups = [{**group, KEY: json.loads(group[KEY])} if KEY in group else group for group in state_dict["param_groups"]]
    _check(optimizer.param_groups, groups)
    return {**state_dict, "param_groups": groups}


def _check(own_groups: Sequence[Mapping[str, Any]], saved_groups: Sequence[Mapping[str, Any]]) -> None:
    own, saved = (
        [group[KEY]["names"] if KEY in group else None for group in groups] for groups in (own_groups, saved_groups)
    )
    if own == saved:
        return
    if all(names is None for names in saved):
        raise BalanceError(
            "this optimizer state was saved without tempbalance: load it before the Balancer is built, which keeps it"
        )
    place = next((i for i, (a, b) in enumerate(zip(own, saved, strict=False)) if a != b), min(len(own), len(saved)))
    here, there = ((names[place] or ["?"])[0] if place < len(names) else "none" for names in (own, saved))
    raise BalanceError(
        f"this optimizer state was saved with other parameter groups ({len(saved)}, here {len(own)}): group {place} "
        f"began with {there}, here with {here}; use the same model, optimizer groups and recipe as in the saved run"
    )
