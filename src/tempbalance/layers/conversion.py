"""Names on disk become names of the live model, by the conversion that Transformers runs when it loads a checkpoint.

A model may have other names, fused weights or stacked experts than its checkpoint: Transformers renames, merges, splits
and transposes while it loads. Its own list of conversions and its own operations are used here, on tensors without data
(see ``traced_tensors``), so that a parameter of the model is known by the stored tensors that it is made of.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from tempbalance.layers.names import TensorInfo
from tempbalance.layers.traced_tensors import Node, leaf, traced
from tempbalance.layers.wrappers import plain_namer

__all__ = ["Conversion", "convert_names"]


class Conversion(NamedTuple):
    """The tensors of a checkpoint, by their names in the model.

    Attributes:
        nodes: Parameters and buffers of the model that the checkpoint has, by their names in the model.
        failed: Parameters that its tensors cannot be converted to, with the reason.
        outside: Stored tensors that the model does not have, with the names that they would have in it.
    """

    nodes: dict[str, Node]
    failed: dict[str, str]
    outside: dict[str, str]


def convert_names(model: Any, tensors: Mapping[str, TensorInfo]) -> Conversion:
    """Return how each parameter and buffer of a model of Transformers is made of the tensors on disk."""
    expected = model.state_dict()
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key
    except ImportError:
        return _renamed(model, tensors, expected)
    transforms = get_model_conversion_mapping(model)
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    renamings = [transform for transform in transforms if not isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix
    plain = plain_namer(tensors)

    def rename(name: str) -> tuple[str, str | None]:
        """Return the name in the model, and the pattern of the conversion that the tensor is a source of."""
        found: tuple[str, str | None] = rename_source_key(name, renamings, converters, prefix, expected)
        return (
            rename_source_key(name, [], [], prefix, expected)
            if found[0] not in expected and name in expected
            else found
        )

    nodes: dict[str, Node] = {}
    outside: dict[str, str] = {}
    groups: dict[str, Any] = {}
    for name in sorted(tensors, key=lambda name: dot_natural_key(plain(name))):
        live, pattern = rename(name)
        if live not in expected and plain(name) != name:
            live, pattern = rename(plain(name))
        if live not in expected:
            outside[name] = live
        elif pattern is None:
            nodes.setdefault(live, leaf(name, tensors[name].shape))
        else:
            if live not in groups:
                groups[live] = copy.deepcopy(by_pattern[pattern])
            groups[live].add_tensor(live, name, pattern, traced(name, tensors[name].shape, tensors[name].dtype))
    return Conversion(nodes, _merge(model, groups, nodes), outside)


def _merge(model: Any, groups: Mapping[str, Any], nodes: dict[str, Node]) -> dict[str, str]:
    """Run the operations of each group of stored tensors; return the parameters whose operations fail."""
    failed = {}
    for live, group in groups.items():
        try:
            for target, made in group.convert(live, model=model, config=model.config).items():
                nodes[target] = (made[0] if isinstance(made, list) else made).node
        except Exception as error:  # shapes or counts that the operations of Transformers do not expect
            failed[live] = f"its tensors on disk cannot be merged ({type(error).__name__}: {error}): are they complete?"
    return failed


def _renamed(model: nn.Module, tensors: Mapping[str, TensorInfo], expected: Iterable[str]) -> Conversion:
    """Return the names of a model by what versions of Transformers without a list of conversions do."""
    wanted, plain = set(expected), plain_namer(tensors)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    patterns: Mapping[str, str] = getattr(model, "_checkpoint_conversion_mapping", {})
    nodes: dict[str, Node] = {}
    outside: dict[str, str] = {}
    for name, info in tensors.items():
        renamed = name if name in wanted else plain(name)
        for pattern, replacement in patterns.items():
            renamed = re.sub(pattern, replacement, renamed)
        spellings = (renamed, name, plain(name), prefix + renamed, renamed.removeprefix(prefix))
        live = next((spelling for spelling in spellings if spelling in wanted), None)
        if live is None:
            outside[name] = renamed
        else:
            nodes.setdefault(live, leaf(name, info.shape))
    return Conversion(nodes, {}, outside)
