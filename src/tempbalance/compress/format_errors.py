"""The error that each number format makes in each layer, for an allocation of bits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tempbalance._progress import progress_bar
from tempbalance.analysis.analyzer import open_source
from tempbalance.checkpoints import Checkpoint
from tempbalance.compress.evaluation.causal_lm import load_causal_lm, restored_modes, transformers_bars
from tempbalance.compress.evaluation.fake_quantization import changed_part, modules_of, oriented
from tempbalance.compress.evaluation.likelihood import check_vocabulary, next_token_logits
from tempbalance.compress.evaluation.tokens import Documents, batch_size, batches, read_documents
from tempbalance.compress.formats import WeightFormat, find_format
from tempbalance.errors import AllocationError, check_seed, check_type
from tempbalance.layers import Weight, parameter_names, unwrapped
from tempbalance.layers.routers import find_routers

__all__ = ["quantization_errors"]

_NOISE = 0.1  # norm of the noise over that of the weight: about the error of four bits


def quantization_errors(  # noqa: PLR0913  most are keyword options
    source: nn.Module | Mapping[str, Tensor] | Checkpoint | str | os.PathLike[str],
    formats: Iterable[str],
    *,
    calibration: Documents | None = None,
    measure: Literal["rounding", "noise"] = "rounding",
    key: str | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Measure the error of rounding each linear layer or expert to each format, for ``allocate_bits``.

    Without calibration text, the error is the squared norm ``||W - Q(W)||^2``. With it, the error is the KL divergence
    per token from the model's own predictions. ``measure="rounding"`` rounds the layer alone; one forward pass per
    layer and format. ``measure="noise"`` predicts it as the linearity theorem of HIGGS does
    (Malinovskii et al. 2024, arXiv:2411.17525): ``a ||W - Q(W)||^2 / ||W||^2``, where ``a`` is the divergence after
    Gaussian noise of a tenth of the norm of the weight, over 0.01 (HIGGS fits ``a`` to 15 noise levels); one forward
    pass per layer. On our language model ``"rounding"`` was better: docs/results/quantization.md.

    Args:
        source: A source as for ``analyze``, read tensor by tensor. With calibration, a live causal language model, or
            the folder or hub id of one, which is loaded.
        formats: Names of formats, see ``find_format``.
        calibration: Token ids, each sequence of shape ``(length,)``, see ``draw_calibration``.
        measure: With calibration: how the divergence is found.
        key: Key of the state dict in a training checkpoint.
        seed: Seed for the noise.
        device: Device of a model that is loaded from a folder; by default the CPU.
        progress: Whether to show a progress bar (on a terminal only).

    Returns:
        The errors by layer and format, without routers of experts, as in an allocation. A format whose blocks do not
        divide the inputs of a layer is left out there.

    Raises:
        AllocationError: A format is unknown, a weight is not finite, or there is calibration text without a live model.
        TokensError: The calibration set is empty, a token is not in the vocabulary, or the model has no head for the
            next token.

    Example:
        >>> errors = quantization_errors({"a.weight": torch.linspace(-1, 1, 64).view(2, 32)}, ["int4", "int8", "nvfp4"])
        >>> [round(error, 4) for error in errors["a"].values()]
        [0.0981, 0.0003, 0.2505]
    """
    check_type("formats", formats, Iterable)
    if isinstance(formats, str):
        raise AllocationError(f"formats must be several names, such as ({formats!r},), got {formats!r}")
    chosen = [find_format(name) for name in dict.fromkeys(formats)]
    check_seed(seed)
    if measure not in ("noise", "rounding"):
        raise AllocationError(f"measure must be 'noise' or 'rounding', got {measure!r}")
    if calibration is not None and isinstance(source, (str, os.PathLike)):
        calibration = read_documents(calibration, source)
        with transformers_bars(progress):
            source = load_causal_lm(source, device)
    if calibration is not None and not isinstance(source, nn.Module):
        raise AllocationError("errors on calibration text need a live model, or its folder")
    with open_source(source, key) as (opened, _):
        weights = modules_of(unwrapped(opened) if isinstance(opened, nn.Module) else opened)
        routers = find_routers(weights)
        weights = {name: weight for name, weight in weights.items() if name not in routers}
        if calibration is None or measure == "noise":
            found = {}
            with progress_bar("rounding weights", len(weights), progress) as advance:
                for name, weight in weights.items():
                    found[name] = _errors(name, weight, chosen, relative=calibration is not None)
                    advance(1)
        if calibration is None:
            return found
        assert isinstance(opened, nn.Module)
        sequences, numbers = read_documents(calibration), {name: place for place, name in enumerate(weights)}

        def noisy(name: str, part: Tensor) -> dict[str, Tensor]:
            return {"": _noisy(part, seed + numbers[name])}

        def rounded(name: str, part: Tensor) -> dict[str, Tensor]:
            turned = oriented(weights[name], part)
            fitting = [each for each in chosen if each.fits(tuple(turned.shape))]
            return {each.name: oriented(weights[name], each.round(turned)) for each in fitting}

        divergences = _divergences(opened, weights, noisy if measure == "noise" else rounded, sequences, progress)
    if measure == "rounding":
        return divergences
    factors = {name: own[""] / _NOISE**2 for name, own in divergences.items()}
    return {name: {key: factors[name] * error for key, error in own.items()} for name, own in found.items()}


def _errors(name: str, weight: Weight, formats: Sequence[WeightFormat], *, relative: bool) -> dict[str, float]:
    values = oriented(weight, weight.load().detach())
    norm = float(values.double().square().sum())
    if not torch.isfinite(values).all():
        raise AllocationError(f"{name} is not finite, so it cannot be quantized")
    errors = {
        each.name: float((values.double() - each.round(values).double()).square().sum())
        for each in formats
        if each.fits(tuple(values.shape))
    }
    return {key: error / norm if norm else 0.0 for key, error in errors.items()} if relative else errors


@torch.no_grad()
def _divergences(
    model: nn.Module,
    weights: Mapping[str, Weight],
    variants: Callable[[str, Tensor], Mapping[str, Tensor]],
    sequences: Sequence[Tensor],
    progress: bool,
) -> dict[str, dict[str, float]]:
    """Return the divergence per token from the predictions of the model, for each variant of each weight alone."""
    check_vocabulary(model, sequences)
    parameters = parameter_names(unwrapped(model))
    computed = next((name for name, weight in weights.items() if weight.parameter not in parameters), None)
    if computed:
        raise AllocationError(f"{computed} is computed from other tensors (an adapter, a parametrization): merge them")
    totals: dict[str, dict[str, float]] = {name: {} for name in weights}
    device = next(iter(parameters.values())).device

    def predict(batch: Tensor) -> Tensor:
        return next_token_logits(model, batch.to(device)).float().log_softmax(dim=-1)

    with restored_modes(model):
        model.eval()
        stacks = [*batches(sequences, batch_size(sequences, predict(sequences[0][None, :1]).shape[-1]))]
    with restored_modes(model), progress_bar("measuring layers", len(stacks) * len(weights), progress) as advance:
        model.eval()
        for batch in stacks:
            dense = predict(batch)  # of one batch at a time: predictions are large
            for name, weight in weights.items():
                parameter = parameters[weight.parameter]
                for key, values in variants(name, weight.within(parameter)).items():
                    with changed_part(weight, parameter, values):
                        changed = predict(batch)
                    total = float(torch.linalg.vecdot(dense.exp(), dense - changed).sum(dtype=torch.float64))
                    totals[name][key] = totals[name].get(key, 0.0) + total
                advance(1)
    tokens = sum(map(len, sequences))
    return {name: {key: max(total, 0.0) / tokens for key, total in own.items()} for name, own in totals.items()}


def _noisy(part: Tensor, seed: int) -> Tensor:
    noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(seed % 2**63)).to(part.device)
    size: Tensor = torch.linalg.vector_norm(part.float()) / torch.linalg.vector_norm(noise)
    return (part.float() + noise * (_NOISE * size)).to(part.dtype)
