"""Assignments by what is known of a parameter without its values: its role, its shape or its name."""

from __future__ import annotations

import fnmatch
import math
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, get_args

import msgspec

from tempbalance._files import write_atomically
from tempbalance._saved import dump_saved, read_saved
from tempbalance.balance.assign.assignment import Assignment, UnitFacts
from tempbalance.errors import ArgumentError, ArgumentTypeError, BalanceError, BalanceWarning, check_numbers, check_type
from tempbalance.layers import ROLES, ParameterFacts

__all__ = ["ByParameter", "ByRole", "ByShape", "Fixed"]

SCHEMA = 1
_SHOWN = 5
_ROLE = "role:"
_FUSED = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "gate_up": ("gate", "up")}


@dataclass(frozen=True)
class ByParameter(Assignment):
    """Base class of assignments by role, shape or name. To write your own, implement ``multiplier_of``."""

    @property
    def uses_alpha(self) -> bool:
        """Always False, so no spectrum is computed."""
        return False

    @property
    def uses_parameters(self) -> bool:
        """Always True, so every trained parameter gets a multiplier."""
        return True

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign a multiplier to every unit."""
        return [self.multiplier_of(unit) for unit in units]

    @abstractmethod
    def multiplier_of(self, unit: UnitFacts) -> float:
        """Return the multiplier of a unit by its ``role``, ``kind``, ``fan_in``, ``fan_out`` and ``parameter``."""


@dataclass(frozen=True)
class _Given(ByParameter):
    """Multipliers by a key, in an order that counts."""

    multipliers: Mapping[str, float] = field(default_factory=dict[str, float])

    def __hash__(self) -> int:
        return hash((type(self), *self.multipliers.items()))


@dataclass(frozen=True)
class ByRole(_Given):
    """A multiplier for each role: attention, MLP, norms, embeddings, ...

    Attributes:
        multipliers: Multiplier by role (see ``tempbalance.layers.ROLES``); other roles have 1. A bias has the role of
            its layer.
        strict: Whether a role that the model lacks is an error.

    Raises:
        ArgumentError: There is no such role, or a multiplier is negative or not finite.
        BalanceError: When it is used: the model lacks a role, or stores parts with different multipliers (q, k and v)
            in one parameter.

    Example:
        >>> units = [UnitFacts(role="q"), UnitFacts(role="v"), UnitFacts(role="norm")]
        >>> ByRole({"v": 0.25, "norm": 3.0}).assign(units)
        [1.0, 0.25, 3.0]
    """

    strict: bool = True

    __hash__ = _Given.__hash__

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", _checked(self.multipliers))
        _check_roles(self.multipliers)

    def group_of(self, name: str, facts: ParameterFacts) -> str:
        """Return the role."""
        return facts.role

    def check_model(self, parameters: Mapping[str, ParameterFacts]) -> None:
        """Check that the model has every role, apart from the others."""
        present = dict.fromkeys(facts.role for facts in parameters.values())
        for role, parts in _FUSED.items():
            differ = len({self.multipliers.get(part, 1.0) for part in parts}) > 1
            if role in present and role not in self.multipliers and differ:
                name = next(name for name, facts in parameters.items() if facts.role == role)
                raise BalanceError(
                    f"{name} contains {', '.join(parts)}, which cannot have different multipliers: give one for "
                    f"{role!r} (ByRole, recipes.by_role)"
                )
        available = {part for role in present for part in (role, *_FUSED.get(role, ()))}
        if self.strict and (missing := [role for role in self.multipliers if role not in available]):
            has = ", ".join(present)
            raise BalanceError(f"the model has no parameter with role {missing[0]!r}; its roles are {has}")

    def multiplier_of(self, unit: UnitFacts) -> float:
        """Return the multiplier of the role; a fused parameter has that of its parts."""
        parts = (unit.role, *_FUSED.get(unit.role, ()))
        return next((self.multipliers[part] for part in parts if part in self.multipliers), 1.0)


_Rule = Literal["mup", "spectral", "muon", "muon_rms"]
_Family = Literal["adam", "sgd", "muon"]
_TABLES = {"embedding", "position"}


@dataclass(frozen=True)
class ByShape(ByParameter):
    """A multiplier by fan-in and fan-out, relative to a reference width, at which square matrices have 1.

    With ``n = fan_in``, ``m = fan_out`` and the reference width ``w``:

    ============  =========  =====================  =====================  =========================
    rule          optimizer  hidden layers          head                   embeddings, biases, norms
    ============  =========  =====================  =====================  =========================
    ``mup``       ``adam``   ``w / n``              ``w / n``              1
    ``mup``       ``sgd``    1                      ``w / n``              ``m / w``
    ``spectral``  ``adam``   ``w / n``              ``w / n``              1
    ``spectral``  ``sgd``    ``m / n``              ``m / n``              ``m / w``
    ``spectral``  ``muon``   ``(m / n)^½``          ``(m / n)^½``          1
    ``muon``      ``muon``   ``max(1, m / n)^½``    ``max(1, m / n)^½``    1
    ``muon_rms``  ``muon``   ``(max(m, n) / w)^½``  ``(max(m, n) / w)^½``  1
    ============  =========  =====================  =====================  =========================

    Sources: ``mup``: Yang et al. 2022 (arXiv 2203.03466), table 3; ``spectral``: Yang, Simon and Bernstein 2023 (arXiv
    2310.17813), updates of spectral norm in proportion to ``(m / n)^½``; ``muon``: Jordan 2024; ``muon_rms``: Moonlight
    (arXiv 2502.16982). Deviations: learning rates only, the initialisation and the output multipliers of muP are the
    model's own; Moonlight's factor 0.2 belongs to the learning rate.

    Attributes:
        rule: The rule.
        optimizer: The family of the optimizer: its update has entries of equal size (``adam``: also Lion and
            Adafactor), is the gradient (``sgd``), or has equal singular values (``muon``).
        width: Reference width; None for the median fan-in of the model's hidden layers.

    Raises:
        ArgumentError: There is no such rule for this optimizer, or the width is not positive.

    Example:
        >>> units = [UnitFacts(role="up", fan_in=64, fan_out=256), UnitFacts(role="down", fan_in=256, fan_out=64)]
        >>> ByShape("spectral", "adam", width=64).assign(units)
        [1.0, 0.25]
    """

    rule: _Rule = "spectral"
    optimizer: _Family = "adam"
    width: int | None = None

    def __post_init__(self) -> None:
        check_type("rule", self.rule, str)
        check_type("optimizer", self.optimizer, str)
        families = {"mup": ("adam", "sgd"), "spectral": ("adam", "sgd", "muon")}
        if self.rule not in get_args(_Rule):
            raise ArgumentError(f"rule must be one of {', '.join(get_args(_Rule))}, got {self.rule!r}")
        if self.optimizer not in (allowed := families.get(self.rule, ("muon",))):
            raise ArgumentError(f"rule {self.rule} is for optimizer {' or '.join(allowed)}, got {self.optimizer!r}")
        if self.width is not None:
            check_numbers(width=self.width)
            if not 0 < self.width < math.inf:
                raise ArgumentError(f"width must be positive and finite, got {self.width}")

    @property
    def optimizer_family(self) -> str:
        """The family of the optimizer."""
        return self.optimizer

    def group_of(self, name: str, facts: ParameterFacts) -> str:
        """Return role and shape."""
        return f"{facts.role} {facts.fan_out}x{facts.fan_in}" if facts.fan_in else f"{facts.role} {facts.fan_out}"

    def check_model(self, parameters: Mapping[str, ParameterFacts]) -> None:
        """Warn of weights whose axes are not known: they keep the base value."""
        if unknown := [name for name, facts in parameters.items() if facts.kind in _UNKNOWN_AXES]:
            text = f"{len(unknown)} weights keep the base value, because which axis has their inputs is not known"
            warnings.warn(f"{text}: {unknown[0]}, ...", BalanceWarning, stacklevel=2)

    def assign(self, units: Sequence[UnitFacts]) -> list[float]:
        """Assign a multiplier to every unit."""
        widths = [unit.fan_in for unit in units if unit.fan_in and unit.role not in _TABLES]
        width = self.width or (median(widths) if widths else 1)
        return [self._multiplier(unit, width) for unit in units]

    def multiplier_of(self, unit: UnitFacts) -> float:
        """Return the multiplier of a unit alone."""
        return self.assign([unit])[0]

    def _multiplier(self, unit: UnitFacts, width: float) -> float:
        inputs, outputs = unit.fan_in, unit.fan_out
        if unit.kind in _UNKNOWN_AXES:
            return 1.0
        if not inputs or unit.role in _TABLES:  # a vector counts as a table of one row
            return outputs / width if self.optimizer == "sgd" else 1.0
        if self.rule == "muon":
            return math.sqrt(max(1.0, outputs / inputs))
        if self.rule == "muon_rms":
            return math.sqrt(max(outputs, inputs) / width)
        if self.optimizer == "adam" or (self.rule == "mup" and unit.role == "head"):
            return width / inputs
        ratio = outputs / inputs
        return {"mup": 1.0, "spectral": ratio if self.optimizer == "sgd" else math.sqrt(ratio)}[self.rule]


_UNKNOWN_AXES = {"experts", "lora", "parameter"}


@dataclass(frozen=True)
class Fixed(_Given):
    """Multipliers that are given by name or role, for example in a file that ``tempbalance search`` wrote.

    Attributes:
        multipliers: Multiplier by pattern, the first that matches a parameter counts: a glob for its name
            (``"*.v_proj.*"``), or ``"role:v"``. Other parameters have 1.

    Raises:
        ArgumentError: There is no such role, or a multiplier is negative or not finite.
        BalanceError: When it is used: a pattern matches no parameter of the model.

    Example:
        >>> units = [UnitFacts(parameter="h.0.v_proj.weight"), UnitFacts(parameter="norm.bias", role="norm")]
        >>> Fixed({"*.v_proj.*": 0.25, "role:norm": 3.0}).assign(units)
        [0.25, 3.0]
    """

    __hash__ = _Given.__hash__

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", _checked(self.multipliers))
        _check_roles(pattern.removeprefix(_ROLE) for pattern in self.multipliers if pattern.startswith(_ROLE))

    def group_of(self, name: str, facts: ParameterFacts) -> str:
        """Return the pattern, or ``rest``."""
        return self._pattern(name, facts.role) or "rest"

    def check_model(self, parameters: Mapping[str, ParameterFacts]) -> None:
        """Check that every pattern is the first that matches some parameter."""
        used = {self._pattern(name, facts.role) for name, facts in parameters.items()}
        if unused := [pattern for pattern in self.multipliers if pattern not in used]:
            shown = ", ".join(list(parameters)[:_SHOWN])
            raise BalanceError(
                f"the pattern {unused[0]!r} is the first to match no parameter of the model; it has {shown}, ... "
                f"with roles {', '.join(sorted({facts.role for facts in parameters.values()}))}"
            )

    def multiplier_of(self, unit: UnitFacts) -> float:
        """See the base class."""
        pattern = self._pattern(unit.parameter, unit.role)
        return self.multipliers[pattern] if pattern else 1.0

    def _pattern(self, name: str, role: str) -> str | None:
        matches = (
            pattern
            for pattern in self.multipliers
            if pattern == f"{_ROLE}{role}" or (not pattern.startswith(_ROLE) and fnmatch.fnmatchcase(name, pattern))
        )
        return next(matches, None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the multipliers to a file, atomically.

        Args:
            path: A path that ends in ``.json``, ``.yaml`` or ``.yml``.

        Raises:
            ArgumentError: The path ends differently.
            OutputError: The file cannot be written.
            MissingExtraError: PyYAML is not installed, for YAML.
        """
        write_atomically(path, dump_saved(path, self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a file of multipliers."""
        return {"schema": SCHEMA, "multipliers": dict(self.multipliers)}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Fixed:
        """Read multipliers from a file that ``save`` or ``tempbalance search`` wrote, or that you wrote.

        Args:
            path: A ``.json``, ``.yaml`` or ``.yml`` file: ``{"multipliers": {"*.v_proj.*": 0.25, "role:norm": 3}}``.

        Returns:
            The multipliers.

        Raises:
            BalanceError: The file is missing, or contains other things.
            MissingExtraError: PyYAML is not installed, for YAML.
        """
        saved = read_saved(path, _SavedMultipliers, "a file of multipliers", BalanceError, newest=SCHEMA)
        try:
            return cls(saved.multipliers)
        except ArgumentError as error:
            raise BalanceError(f"{path}: {error}") from error


class _SavedMultipliers(msgspec.Struct):
    multipliers: dict[str, float]
    schema: int = 1


def _checked(multipliers: Mapping[str, float]) -> dict[str, float]:
    """Return a copy, after a check of the numbers."""
    if not isinstance(multipliers, Mapping):
        raise ArgumentTypeError(f"multipliers must be a mapping to numbers, got {multipliers!r}")
    for name, value in multipliers.items():
        check_numbers(**{f"the multiplier of {name}": value})
        if not 0 <= value < math.inf:
            raise ArgumentError(f"the multiplier of {name} must be finite and not negative, got {value}")
    return {str(name): float(value) for name, value in multipliers.items()}


def _check_roles(roles: Iterable[str]) -> None:
    if unknown := sorted({*roles} - {*ROLES}):
        raise ArgumentError(f"there is no role {unknown[0]!r}; the roles are {', '.join(ROLES)}")
