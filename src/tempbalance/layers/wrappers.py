"""Names without wrappers: the components that compiled, parallel, checkpointed, averaged and adapted modules add.

One rule serves live models, state dicts and checkpoints, so that the same layer has the same name in each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

from torch import nn

__all__ = ["plain_modules", "plain_namer", "plain_parameters", "unwrapped"]

# torch.compile, activation checkpointing, FSDP, fairscale, Lightning, Opacus; data parallel and AveragedModel.
_COMPONENTS = frozenset(
    {
        *("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module", "_forward_module"),
        *("_module", "module"),
    }
)
_PEFT = re.compile(r"base_model\.(lora_model\.)?model\.")  # X-LoRA has a model of LoRA inside
_PROMPTED = re.compile(r"base_model\.")  # a model with learned prompts is not inside a tuner
_AVERAGES = ("ema.", "ema_model.", "model_ema.", "averaged_model.", "swa_model.")  # if all names begin with it


def plain_namer(names: Iterable[str]) -> Callable[[str], str]:
    """Return the function from a name of a parameter or module to its name without wrappers.

    ``names`` are those of all parameters; two parameters that would have one name keep their own.

    Example:
        >>> plain = plain_namer(["module.layers.0._orig_mod.weight"])
        >>> plain("module.layers.0._orig_mod.weight"), plain("module.layers")
        ('layers.0.weight', 'layers')
    """
    names = list(names)
    peft = _PROMPTED if any(".prompt_encoder." in f".{name}" for name in names) else _PEFT
    inner = [_drop(name, peft) for name in names]
    members = [name for name in inner if "." in name]  # an average has counters next to it
    average = next((front for front in _AVERAGES if members and all(name.startswith(front) for name in members)), "")
    counts = Counter(name.removeprefix(average) for name in inner)
    kept = {name for name, short in zip(names, inner, strict=True) if counts[short.removeprefix(average)] > 1}

    def plain(name: str) -> str:
        return name if name in kept else f"{_drop(name, peft)}.".removeprefix(average).removesuffix(".")

    return plain


def _drop(name: str, peft: re.Pattern[str]) -> str:
    """Return a name without the components of wrappers that may be anywhere in it, and without the prefix of PEFT."""
    short = ".".join(part for part in name.split(".") if part not in _COMPONENTS)
    match = peft.match(f"{short}.")
    return f"{short}."[match.end() if match else 0 :].removesuffix(".")


def plain_parameters(model: nn.Module) -> Callable[[str], str]:
    """Return the function from a name of a parameter or module of a live model to its name without wrappers.

    Example:
        >>> plain_parameters(nn.DataParallel(nn.Linear(2, 2)))("module.weight")
        'weight'
    """
    return plain_namer(name for name, _ in model.named_parameters(remove_duplicate=False))


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules inside the wrappers by name without wrappers; shared modules under each of their names.

    Example:
        >>> list(plain_modules(nn.DataParallel(nn.Sequential(nn.ReLU()))))
        ['', '0']
    """
    plain = plain_parameters(model)
    return {plain(name): module for name, module in model.named_modules(remove_duplicate=False)}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside all wrappers around a model; the model itself, if it is not wrapped.

    Example:
        >>> unwrapped(nn.DataParallel(nn.Linear(2, 2)))
        Linear(in_features=2, out_features=2, bias=True)
    """
    while True:
        inner: list[object] = [model._modules[name] for name in model._modules if name in _COMPONENTS]
        if any(cls.__name__ == "PeftModel" for cls in type(model).__mro__):
            inner = [model.base_model]
        elif any(cls.__name__ in {"BaseTuner", "AdaptionPromptModel"} for cls in type(model).__mro__):
            inner = [model._modules.get("lora_model", model._modules.get("model"))]
        if len(inner) != 1 or not isinstance(inner[0], nn.Module):
            return model
        model = inner[0]
