"""What a search found, as files for tempbalance, for axolotl and for plain PyTorch."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tempbalance._files import write_atomically
from tempbalance._saved import dump_saved
from tempbalance.balance.assign import Fixed
from tempbalance.study.search_result import SearchTrial
from tempbalance.study.search_space import SearchSpace

__all__ = ["write_exports"]

_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")
_DIGITS = 4


def write_exports(folder: Path, best: SearchTrial, space: SearchSpace) -> tuple[Path, ...]:
    """Write ``multipliers.yaml``, ``axolotl.yaml`` and ``param_groups.py`` to a folder, and return their paths."""
    multipliers = Fixed(best.multipliers).to_dict() | {"learning_rate": best.lr}
    globs = {glob: best.multipliers[unit] for glob, unit in _globs(space).items()}
    lines = "".join(f"    {glob!r}: {multiplier!r},\n" for glob, multiplier in globs.items())
    code = _CODE.format(lr=best.lr, multipliers=f"{{\n{lines}}}")
    contents = {
        "multipliers.yaml": dump_saved("multipliers.yaml", multipliers),
        "axolotl.yaml": _axolotl(best, space),
        "param_groups.py": code.encode(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return tuple(folder / name for name in contents)


def _globs(space: SearchSpace) -> dict[str, str]:
    """Return the unit by a glob for names of parameters; the first that matches counts."""
    units = {name: unit for unit, names in space.units.items() for name in names}
    globs = {_INDEX.sub("*", name): unit for name, unit in units.items()}
    exact = all(_first(name, globs, fnmatch.fnmatchcase) == units.get(name) for name in space.facts)
    return globs if exact else units


def _first(name: str, units: Mapping[str, str], matches: Any) -> str | None:
    return next((unit for pattern, unit in units.items() if matches(name, pattern)), None)


_CODE = '''\
"""Learning rates found by `tempbalance search`, as parameter groups of plain PyTorch.

    optimizer = torch.optim.AdamW(param_groups(model), lr=LR)
"""

from fnmatch import fnmatchcase

LR = {lr!r}
MULTIPLIERS = {multipliers}


def param_groups(model, groups=None, lr=LR):
    """Divide the trained parameters of a model into groups with a learning rate each.

    groups: your own groups, for example without weight decay for norms; by default one of all parameters.
    """
    names = {{parameter: name for name, parameter in model.named_parameters()}}
    patterns = {{name: next((p for p in MULTIPLIERS if fnmatchcase(name, p)), None) for name in names.values()}}
    if unused := set(MULTIPLIERS).difference(patterns.values()):
        raise ValueError(f"no parameter of the model matches {{sorted(unused)}}")
    divided = []
    for group in groups or [{{"params": [parameter for parameter in names if parameter.requires_grad]}}]:
        members = {{}}
        for parameter in group["params"]:
            members.setdefault(MULTIPLIERS.get(patterns[names[parameter]], 1.0), []).append(parameter)
        rate = group.get("lr", lr)
        divided += [{{**group, "params": own, "lr": rate * multiplier}} for multiplier, own in members.items()]
    return divided
'''


def _axolotl(best: SearchTrial, space: SearchSpace) -> bytes:
    """Return the settings of axolotl: its groups have modules by part of the name, and contain no norms and biases."""
    units = {name: unit for unit, names in space.units.items() for name in names}
    embeddings = [name for name in space.facts if "embed_tokens" in name or "lm_head" in name]
    weights = [
        name
        for name, facts in space.facts.items()
        if facts.role != "norm" and not name.endswith("bias") and name not in embeddings
    ]
    parts = _parts({name: units.get(name) for name in weights})
    settings: dict[str, Any] = {"learning_rate": best.lr}
    rates = {_rate(best, units.get(name)) for name in embeddings}
    if len(rates) == 1 and rates != {best.lr}:
        settings["embedding_lr"] = rates.pop()
    settings["lr_groups"] = [
        {"name": unit, "modules": own, "lr": _rate(best, unit)}
        for unit in space.units
        if (own := [part for part, its_unit in parts.items() if its_unit == unit])
    ]
    applied = {*(weights if parts else ()), *(embeddings if len(rates) < 2 else ())}  # noqa: PLR2004
    lost = [name for name, unit in units.items() if name not in applied and best.multipliers[unit] != 1]
    shown = ", ".join(dict.fromkeys(_INDEX.sub("*", name) for name in lost))
    note = f"# Not applied, as axolotl has no groups for norms, biases and embeddings: {shown}\n" if lost else ""
    return f"# Found by tempbalance search\n{note}".encode() + dump_saved("axolotl.yaml", settings)


def _parts(units: Mapping[str, str | None]) -> dict[str, str]:
    """Return the unit by a part of the names of its weights, as short as it can be; empty if parts are ambiguous."""
    named = {name: unit for name, unit in units.items() if unit is not None}
    modules = {re.sub(r"(?<=\.)[^.]+$", "", name): unit for name, unit in named.items()}  # with the dot at the end
    short = {re.split(r"\.\d+\.", module)[-1] or module: unit for module, unit in modules.items()}
    for parts in (short, modules, named):
        if all(_first(name, parts, lambda name, part: part in name) == unit for name, unit in units.items()):
            return parts
    return {}


def _rate(best: SearchTrial, unit: str | None) -> float:
    multiplier = best.multipliers[unit] if unit else 1.0
    return float(f"{best.lr * multiplier:.{_DIGITS}g}")
