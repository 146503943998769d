"""Recover a pruned language model by LoRA fine-tuning that keeps every zero, with or without balancing."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Collection, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tempbalance._files import write_atomically
from tempbalance._progress import progress_bar
from tempbalance.balance import Balancer, Recipe, Refresh
from tempbalance.compress.evaluation.causal_lm import restored_modes
from tempbalance.compress.evaluation.likelihood import (
    Perplexity,
    check_causal,
    check_vocabulary,
    default_length,
    token_losses,
)
from tempbalance.compress.evaluation.tokens import Documents, read_documents
from tempbalance.compress.pruning.calibration import is_linear
from tempbalance.compress.pruning.pruned_checkpoint import save_folder
from tempbalance.compress.pruning.targets import check_unwrapped
from tempbalance.compress.recovery.sparse_lora import sparse_lora
from tempbalance.errors import (
    AllocationError,
    ArgumentError,
    NonFiniteError,
    TokensError,
    check_integer,
    check_numbers,
    check_seed,
)
from tempbalance.layers import Select, find_weights, plain_modules, unwrapped
from tempbalance.layers.tuners import is_tuner

__all__ = ["RECOVERY_FILE", "RecoveryResult", "RecoverySettings", "recover", "save_recovered"]

RECOVERY_FILE = "recovery.json"
_SCHEMA = 1
_WARM_UP = 0.03
_MAX_NORM = 1.0
_PRUNED = 0.01  # fraction of zeros; fewer are chance (dead units, underflow), not pruning


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySettings:
    """Settings of ``recover``; rate, epochs, batch and length as published with AlphaPruning, for LLMs on C4.

    Attributes:
        rank: Rank of the LoRA factors; ``lora_alpha`` is twice the rank, as in SQFT.
        lr: Peak learning rate of AdamW: linear warm-up over 3 % of the steps, then linear decay to zero.
        epochs: Passes over all tokens.
        batch: Sequences per step.
        length: Tokens in a sequence; by default the model's context length, at most 2,048.
        seed: Seed for the LoRA factors, the order of the sequences, and dropout.
    """

    rank: int = 8
    lr: float = 1e-4
    epochs: int = 1
    batch: int = 1
    length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch"):
            check_integer(name, getattr(self, name), 1)
        if self.length is not None:
            check_integer("length", self.length, 2)
        check_seed(self.seed)
        check_numbers(lr=self.lr)
        if not 0 < self.lr < math.inf:
            raise ArgumentError(f"lr must be positive and finite, got {self.lr}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryResult:
    """A recovered model: how it was trained, and the change of perplexity.

    Attributes:
        settings: The settings.
        recipe: Name of the recipe for balancing; None without balancing.
        sparsity: Fraction of zeros of every trained weight, which recovery does not change.
        mean_sparsity: Fraction of zeros of all trained weights together.
        losses: Mean negative log-likelihood of a token at every step.
        history: One entry per refresh of the multipliers.
        perplexity: Perplexity before and after; None if it was not measured.
    """

    settings: RecoverySettings
    recipe: str | None
    sparsity: dict[str, float]
    mean_sparsity: float
    losses: list[float]
    history: list[Refresh]
    perplexity: tuple[Perplexity, Perplexity] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return settings, recipe, sparsities, losses, and the perplexity if it was measured, as plain JSON values."""
        record = {name: getattr(self, name) for name in ("recipe", "sparsity", "mean_sparsity", "losses")}
        measured = self.perplexity and {
            "perplexity": dict(zip(("before", "after"), map(asdict, self.perplexity), strict=True))
        }
        return {"schema": _SCHEMA, "settings": asdict(self.settings), **record, **(measured or {})}


def recover(
    model: nn.Module,
    tokens: Documents,
    settings: RecoverySettings | None = None,
    *,
    recipe: Recipe | None = None,
    progress: bool = True,
) -> RecoveryResult:
    """Fine-tune a pruned Hugging Face causal language model by LoRA, in place, and keep every zero.

    Each linear layer inside the blocks with at least 1 % zeros gets LoRA with a masked update: ``W + (W != 0) *
    (alpha/r) B A`` is trained, balanced and merged, so merging loses nothing (SparsePEFT of SQFT, Findings of EMNLP
    2024). All other parameters are frozen. A dense model, which may have a few zeros by chance, is refused. Documents
    are joined and cut into sequences of equal length, without the incomplete last one. Gradients are clipped to norm 1.
    If training or merging raises (Ctrl-C, too), the model is unchanged.

    Training computes the adapted weight of every layer, which needs about the memory of these weights once more.

    The defaults follow AlphaPruning: LoRA, 1 epoch over 100,000 samples of C4, block 2048, rate 1e-4, batch 1. The
    mask, the rank, the choice of layers, warm-up and clipping are our choices.

    Args:
        model: A pruned model on one device; its training mode is restored.
        tokens: Token ids to train on, each document of shape ``(length,)`` or in another form of ``load_tokens``.
        settings: Training settings, by default ``RecoverySettings()``.
        recipe: Recipe for balancing, such as ``tempbalance.recipes.model_balancing()``; None for one learning rate.
        progress: Whether to show a progress bar with the loss (on a terminal only).

    Returns:
        The settings, the sparsities, the losses and the balancer's history.

    Raises:
        MissingExtraError: PEFT is not installed.
        AllocationError: No linear layer inside the blocks has 1 % zeros, or the model already has adapters.
        TokensError: There are too few tokens, one is outside the vocabulary, or the model is no causal language model.
        NonFiniteError: The loss or a gradient is not finite.
        BalanceError: The recipe cannot balance this model.

    Example:
        >>> import tempbalance as tb, transformers
        >>> sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        >>> model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))
        >>> _ = tb.prune(model, tb.allocate_sparsity(tb.analyze(model), sparsity=0.5, method="uniform"))
        >>> settings = RecoverySettings(length=10)
        >>> result = recover(model, [torch.arange(50)], settings, recipe=tb.recipes.model_balancing())
        >>> len(result.losses), result.sparsity["model.layers.0.mlp.up_proj.weight"]
        (5, 0.5)
    """
    settings = settings or RecoverySettings()
    root = unwrapped(model)
    sequences = _sequences(root, tokens, settings)
    layers = [name.rpartition(".")[0] for name in _sparsity(root)[0]]
    check_unwrapped(root, layers)
    device = next(root.parameters()).device
    per_epoch = math.ceil(len(sequences) / settings.batch)
    total = settings.epochs * per_epoch
    with _training(root, settings.seed), sparse_lora(root, layers, settings.rank) as factors:
        optimizer = torch.optim.AdamW(factors, lr=settings.lr, weight_decay=0.0)
        balancer = Balancer(optimizer, root, recipe, steps_per_epoch=per_epoch) if recipe is not None else None
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total))
        losses: list[float] = []
        with progress_bar("recovering", total, progress) as advance:
            for _ in range(settings.epochs):
                for batch in torch.split(sequences[torch.randperm(len(sequences))], settings.batch):
                    losses.append(_step(root, batch.to(device), optimizer, factors))
                    scheduler.step()
                    advance(1, f"recovering, loss {losses[-1]:.3f}")
    sparsity, mean = _sparsity(root)
    return RecoveryResult(
        settings=settings,
        recipe=recipe.name if recipe is not None else None,
        sparsity=sparsity,
        mean_sparsity=mean,
        losses=losses,
        history=balancer.history if balancer is not None else [],
    )


def save_recovered(
    model: nn.Module,
    result: RecoveryResult,
    out: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    exclude: Collection[Path] = (),
) -> None:
    """Save a recovered model with ``recovery.json``, a record of the training, atomically.

    Args:
        model: The model.
        result: The result of ``recover``.
        out: Folder to write; an earlier recovery there is replaced.
        source: Folder of the pruned model, to copy the tokenizer and ``allocation.json`` from.
        exclude: Files in this folder that are not copied, such as training text.

    Raises:
        AllocationError: The model has no ``save_pretrained``.
        CheckpointError: The folder cannot be written; an earlier output is then kept.
    """
    content = json.dumps(result.to_dict(), indent=1, allow_nan=False).encode() + b"\n"
    save_folder(model, out, source, (RECOVERY_FILE, lambda path: write_atomically(path, content)), exclude)


def _sequences(model: nn.Module, tokens: Documents, settings: RecoverySettings) -> Tensor:
    """Join the documents and cut them to shape ``(sequences, length)``."""
    documents = read_documents(tokens)
    length = settings.length or default_length(model)
    count = sum(map(len, documents)) // length
    if not count:
        found = sum(map(len, documents))
        raise TokensError(f"{found} tokens are fewer than one sequence of {length}: give more tokens or a length")
    check_vocabulary(model, documents)
    check_causal(model, [torch.cat(documents)[:length]])
    return torch.cat(documents)[: count * length].view(count, length)


def _sparsity(model: nn.Module) -> tuple[dict[str, float], float]:
    """Return the fraction of zeros of each pruned linear layer inside the blocks, by name, and of all of them."""
    if any(is_tuner(module) for module in model.modules()):
        raise AllocationError("the model already has adapters: merge them first (merge_and_unload)")
    found: dict[str, tuple[int, int]] = {}
    modules = plain_modules(model)
    for weight in find_weights(model, Select(split=False))[0]:
        layer, _, attribute = weight.parameter.rpartition(".")
        if weight.block is not None and attribute == "weight" and is_linear(modules[layer]):
            values = weight.load()
            found[weight.name] = int((values == 0).sum()), values.numel()
    pruned = {name: counts for name, counts in found.items() if counts[0] >= _PRUNED * counts[1]}
    if not pruned:
        zeros, weights = map(sum, zip((0, 0), *found.values(), strict=True))
        raise AllocationError(
            f"the model is not pruned: {zeros:,} of {weights:,} weights of the linear layers inside its blocks are "
            f"zero, less than {_PRUNED:.0%} in each layer; prune it first (tempbalance prune)"
        )
    zeros, weights = map(sum, zip(*pruned.values(), strict=True))
    return {name: count / size for name, (count, size) in pruned.items()}, zeros / weights


@contextlib.contextmanager
def _training(model: nn.Module, seed: int) -> Generator[None]:
    """Set training mode and seed; restore modes and random state at the end."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with restored_modes(model), torch.random.fork_rng(devices=sorted(devices)):
        torch.manual_seed(seed)
        model.train()
        yield


def _rate(step: int, total: int) -> float:
    """Return the factor of linear warm-up and linear decay; never zero at a step that is taken."""
    warm = math.ceil(_WARM_UP * total)
    return min((step + 1) / warm, (total - step) / (total - warm + 1))


def _step(model: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer, factors: list[nn.Parameter]) -> float:
    mean = token_losses(model, batch).mean()
    optimizer.zero_grad()
    mean.backward()  # type: ignore[no-untyped-call]
    loss, norm = mean.item(), nn.utils.clip_grad_norm_(factors, _MAX_NORM).item()
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise NonFiniteError(
            f"the loss is {loss} and its gradient norm {norm}: use a lower learning rate, and check that the pruned "
            "model has a finite perplexity"
        )
    optimizer.step()
    return loss
