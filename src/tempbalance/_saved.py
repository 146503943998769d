"""Read saved results: JSON (or YAML) whose every value is checked, with the field named in the error."""

from __future__ import annotations

import json
import math
import os
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from tempbalance._files import as_path, read_regular
from tempbalance.errors import TempBalanceError, require_extra
from tempbalance.types import ModelSize

__all__ = ["Count", "SavedSize", "Settings", "Size", "dump_saved", "parse_json", "read_saved"]

_T = TypeVar("_T")
_YAML = (".yaml", ".yml")

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
_Scalar: TypeAlias = bool | int | float | str | None
_Flat: TypeAlias = _Scalar | list[_Scalar]
Settings: TypeAlias = dict[str, _Flat | dict[str, _Flat]]


class SavedSize(msgspec.Struct):
    """The size of a model."""

    parameters: Count
    weights: Count
    block_weights: Count

    def restored(self) -> ModelSize:
        """Return the size."""
        return ModelSize(self.parameters, self.weights, self.block_weights)


class _Version(msgspec.Struct):
    """The field that is read first."""

    schema: int = 1


def parse_json(text: str | bytes) -> Any:
    """Return JSON as lists, dicts, strings and finite numbers.

    Args:
        text: The text; unpaired surrogates may be in it, escaped.

    Returns:
        The value.

    Raises:
        ValueError: It is not JSON, has a number that is not finite or too long, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits:.40} is too large for a number")
    return number


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def _parse_yaml(text: bytes) -> Any:
    """Return YAML as lists, dicts and scalars; aliases, with which a short text can be a huge one, are refused."""
    with require_extra("yaml", "a .yaml file needs PyYAML"):
        import yaml
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it has aliases")
        return parse_json(json.dumps(yaml.safe_load(text), default=str))  # with the same checks
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(f"it is not YAML ({type(error).__name__})") from None


def dump_saved(path: str | os.PathLike[str], data: dict[str, Any]) -> bytes:
    """Return JSON, or YAML for a path that ends in ``.yaml`` or ``.yml``."""
    if as_path("path", path).suffix.lower() not in _YAML:
        return json.dumps(data, indent=1, allow_nan=False).encode() + b"\n"
    with require_extra("yaml", "a .yaml file needs PyYAML"):
        import yaml
    content: bytes = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, encoding="utf-8")
    return content


def read_saved(
    path: str | os.PathLike[str], schema: type[_T], what: str, error: type[TempBalanceError], *, newest: int = 1
) -> _T:
    """Read a saved result and check every value in it.

    Args:
        path: A JSON file, or a YAML file if it ends in ``.yaml`` or ``.yml``.
        schema: The type that it must have.
        what: The result, for messages: ``"an analysis"``.
        error: The type of the errors.
        newest: The newest version of the format that can be read.

    Returns:
        The result.

    Raises:
        TempBalanceError: The file cannot be read, is damaged, or was written by a newer version; of the given type.
    """
    path = as_path("path", path)
    try:
        parse = _parse_yaml if path.suffix.lower() in _YAML else parse_json
        data = parse(read_regular(path))
        version = msgspec.convert(data, _Version).schema
        if version <= newest:
            return msgspec.convert(data, schema)
    except OSError as reason:
        raise error(f"cannot read {what} from {path}: {reason.strerror or reason}") from reason
    except ValueError as reason:  # msgspec.ValidationError is one
        raise error(f"{path} is not {what} saved by tempbalance: {reason}") from reason
    raise error(f"{path} was written by a newer tempbalance (schema {version}): upgrade")
