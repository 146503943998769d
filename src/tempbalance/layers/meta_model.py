"""Build the architecture of a configuration on the meta device, without data and without running what a file says."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import nn

from tempbalance.layers.registration_limit import registration_limit

__all__ = ["build_on_meta"]

_logger = logging.getLogger("tempbalance")
# Settings that name code or files to run or fetch; they do not change the weights.
_UNSAFE = re.compile(r"auto_map|trust_remote_code|quantization_config|\w*_implementation(_internal)?|name_or_path")
_FLOAT = "__float__"  # Transformers writes an infinite number as {"__float__": "Infinity"}
# Largest integers, by the name of the setting: Transformers makes lists of that length.
_BOUNDS = (
    *(("num_labels|num_classes", 2**20), (r".*(layer|depth|block|stage)s?|n_layer\w*", 2**16)),
    *((r".*(theta|base|seed).*", math.inf), (".*", 2**24)),
)
_LONGEST = 2**16  # list
_CALLS, _CALLS_PER_TENSOR = 5_000_000, 5_000  # of functions: most models need 200 to 2,000 per tensor
_SECONDS, _CHECKED = 5, 64  # of work, for what calls slow functions (most models need less than one), checked so often
_MODULES = 100  # most modules per stored tensor; more are a configuration that does not belong to the checkpoint


def build_on_meta(config: Mapping[str, Any], num_tensors: int) -> nn.Module | None:
    """Return the model of a configuration of Transformers, without data; None if it cannot be built: the log says why.

    Only model classes of Transformers are built. Code of the hub is not used, and nothing is fetched. The number of
    tensors in the checkpoint limits the number of modules.
    """
    if "model_type" not in config:  # it may have the settings of a quantised file alone
        _logger.info("config.json has no model_type: layer types come from names and shapes")
        return None
    try:
        import transformers
    except ImportError:
        _logger.info("without transformers, layer types come from names and shapes alone")
        return None
    most = _MODULES * (num_tensors + _MODULES)
    too_many = f"it has more than {most} modules and parameters, too many for its checkpoint"
    limit = registration_limit(most, ("module", "parameter"), lambda _: 1, too_many)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with contextlib.suppress(Exception):  # import its module before calls are counted
        _ = transformers.MODEL_MAPPING[transformers.CONFIG_MAPPING[config["model_type"]]]
    try:
        calls = _call_limit(_CALLS + _CALLS_PER_TENSOR * num_tensors, _SECONDS + num_tensors / 1000)
        with calls, warnings.catch_warnings(), _offline(), limit, torch.device("meta"):
            warnings.simplefilter("ignore")
            model = _build(_safe(config))
            with contextlib.suppress(AttributeError):
                model.tie_weights()  # type: ignore[operator]
            return model
    except Exception as error:  # any error of a model with an incomplete or newer configuration
        _logger.info(
            "%s cannot be built (%s: %s): layer types come from names and shapes",
            config.get("architectures") or config.get("model_type"), type(error).__name__, error,
        )  # fmt: skip
        return None
    finally:
        transformers.logging.set_verbosity(level)


def _build(config: Mapping[str, Any]) -> nn.Module:
    import transformers

    settings = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    _check_timm(settings)
    names = config.get("architectures")
    if not names:
        base: nn.Module = transformers.AutoModel.from_config(settings, trust_remote_code=False)
        return base
    name = names[0]
    cls = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ValueError(f"transformers has no model class {name!r}")
    built: nn.Module = cls(settings)
    return built


def _safe(value: Any, key: str = "") -> Any:
    """Return a copy of a configuration without the settings that name code or files, at any depth."""
    if isinstance(value, Mapping):
        if value.keys() == {_FLOAT}:
            return float(value[_FLOAT])
        return {k: _safe(inner, str(k)) for k, inner in value.items() if not _UNSAFE.fullmatch(str(k).lstrip("_"))}
    most = next(most for pattern, most in _BOUNDS if re.fullmatch(pattern, key))
    if isinstance(value, int) and value > most:
        raise ValueError(f"{key} is {value}, more than {most}")
    if isinstance(value, list) and len(value) > _LONGEST:
        raise ValueError(f"{key} has {len(value)} items, more than {_LONGEST}")
    return [_safe(inner, key) for inner in value] if isinstance(value, list) else value


def _check_timm(settings: Any) -> None:
    """Refuse backbones of timm: their settings are arguments of functions of that package."""
    nested = [value for value in vars(settings).values() if hasattr(value, "model_type")]
    if str(settings.model_type).startswith("timm_"):
        raise ValueError("a backbone of timm is not built from a file")
    for inner in nested:
        _check_timm(inner)


class _TooLongError(BaseException):
    """Not an Exception: code that catches any error must not go around the limit."""


@contextlib.contextmanager
def _call_limit(most: int, seconds: float) -> Iterator[None]:
    """Raise a ValueError when this thread calls more functions, outside of imports, or works longer."""
    left, importing, deadline, before = most, 0, time.thread_time() + seconds, sys.getprofile()

    def count(frame: FrameType, event: Any, argument: Any) -> None:
        nonlocal left, importing, deadline
        if frame.f_code.co_name == "_find_and_load" and event in {"call", "return"}:
            outermost = importing == (event == "return")
            importing += 1 if event == "call" else -1
            deadline += outermost * (-time.thread_time() if event == "call" else time.thread_time())
        elif not importing:
            left -= 1
            if left < 0 or (left % _CHECKED == 0 and time.thread_time() > deadline):
                raise _TooLongError
        if before is not None:
            before(frame, event, argument)

    sys.setprofile(count)
    try:
        yield
    except _TooLongError:
        raise ValueError("it takes too long for the size of its checkpoint") from None
    finally:
        sys.setprofile(before)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let huggingface_hub fetch nothing: some configurations name a backbone by its hub id."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
