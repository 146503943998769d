"""Recover a pruned language model: LoRA fine-tuning that keeps every zero, with or without balancing."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from tempbalance._files import write_whole
from tempbalance._progress import progress_bar
from tempbalance.balance import Balancer, Recipe, Refresh
from tempbalance.compress.evaluation.likelihood import check_vocabulary, default_length, token_losses
from tempbalance.compress.pruning.calibration import is_linear
from tempbalance.compress.pruning.pruned_folder import save_folder
from tempbalance.compress.recovery.sparse_lora import sparse_lora
from tempbalance.errors import AllocationError, NonFiniteError, TokensError
from tempbalance.layers import Select, find_weights, wrapper_prefix
from tempbalance.layers.lora import is_lora

__all__ = ["RECORD", "Recovered", "Recovery", "recover", "save_recovered"]

RECORD = "recovery.json"
_SCHEMA = 1
_WARM_UP = 0.03
_MAX_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Settings of ``recover``; rate, epochs, batch and length as published with AlphaPruning, for LLMs on C4.

    Attributes:
        rank: Of the LoRA factors; ``lora_alpha`` is twice that, as in SQFT.
        lr: Highest learning rate of AdamW: it rises over 3 % of the steps and falls in a straight line to zero.
        epochs: How often all tokens are gone through.
        batch: Sequences in a step.
        length: Tokens in a sequence; by default what the model was made for, at most 2,048.
        seed: Of the LoRA factors, of the order of the sequences, and of the model's own dropout.
    """

    rank: int = 8
    lr: float = 1e-4
    epochs: int = 1
    batch: int = 1
    length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is not positive, or a sequence would have no token to predict.
        """
        counts = (self.rank, self.epochs, self.batch)
        if min(counts) < 1 or not 0 < self.lr < math.inf or (self.length is not None and self.length <= 1):
            raise ValueError(f"rank, lr, epochs and batch must be positive and length at least 2, got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What a recovery has done.

    Attributes:
        settings: How it was done.
        recipe: Name of the recipe it was balanced by; None without one.
        sparsity: Share of zeros, now as before, of every weight that was trained.
        losses: Mean negative log-likelihood of a token at every step.
        history: One entry per refresh of the multipliers.
    """

    settings: Recovery
    recipe: str | None
    sparsity: dict[str, float]
    losses: list[float]
    history: list[Refresh]


def recover(
    model: nn.Module,
    tokens: Sequence[Tensor],
    settings: Recovery | None = None,
    *,
    recipe: Recipe | None = None,
    progress: bool = True,
) -> Recovered:
    """Fine-tune a pruned Hugging Face causal language model by LoRA, in place, with every zero kept.

    Each linear layer of the blocks that has zeros gets LoRA whose update is masked by them: ``W + (W != 0) * (alpha/r)
    B A`` is what is trained, what is balanced and what is merged, so merging loses nothing (SparsePEFT of SQFT,
    Findings of EMNLP 2024). All else is frozen. Documents are joined and cut into sequences of equal length, an
    incomplete last one is left out; gradients are clipped to norm 1. If anything goes wrong, the model is as before.

    Training forms the adapted weight of every layer, which takes about the memory of these weights once more.

    The defaults follow what is published with AlphaPruning: LoRA, 1 epoch over 100,000 samples of C4, block 2048, rate
    1e-4, batch 1. The mask, the rank, which layers are adapted, warm-up and clipping are choices made here.

    Args:
        model: A pruned model, in one piece on one device; its mode is put back.
        tokens: Token ids to train on, each document of shape ``(length,)``.
        settings: How to train, by default ``Recovery()``.
        recipe: What to balance by, such as ``tempbalance.recipes.model_balancing()``; None for one rate for all.
        progress: Whether to show a progress bar with the loss (only ever on a terminal).

    Returns:
        What was done.

    Raises:
        MissingExtraError: PEFT is not installed.
        AllocationError: No linear layer of the blocks has zeros, or the model has adapters already.
        TokensError: There are too few tokens, or they are of another model.
        NonFiniteError: The loss or a gradient is not finite.
        BalanceError: The recipe cannot balance this model.

    Example:
        >>> import tempbalance as tb, transformers
        >>> sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        >>> model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))
        >>> _ = tb.prune(model, tb.allocate_sparsity(tb.analyze(model), sparsity=0.5, method="uniform"))
        >>> done = recover(model, [torch.arange(50)], Recovery(length=10), recipe=tb.recipes.model_balancing())
        >>> len(done.losses), done.sparsity["model.layers.0.mlp.up_proj.weight"]
        (5, 0.5)
    """
    settings = settings or Recovery()
    root = model.get_submodule(wrapper_prefix(model).rstrip("."))
    sequences = _sequences(root, tokens, settings)
    layers = [name.rpartition(".")[0] for name in _zeros(root)]
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
    return Recovered(
        settings=settings,
        recipe=recipe.name if recipe is not None else None,
        sparsity=_zeros(root),
        losses=losses,
        history=balancer.history if balancer is not None else [],
    )


def save_recovered(
    model: nn.Module,
    recovered: Recovered,
    out: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Save a recovered model with ``recovery.json``, a record of how it was trained, whole or not at all.

    Args:
        model: The model.
        recovered: What ``recover`` returned.
        out: Folder to write; an earlier recovery there is replaced.
        source: Folder of the pruned model: its tokenizer and plan are copied.

    Raises:
        AllocationError: The model has no ``save_pretrained``.
        CheckpointError: The folder cannot be written; what was there stays.
    """
    record = {"schema": _SCHEMA, **asdict(replace(recovered, history=[]))}
    del record["history"]
    content = json.dumps(record, indent=1, allow_nan=False).encode() + b"\n"
    save_folder(model, out, source, (RECORD, lambda path: write_whole(path, content)))


def _sequences(model: nn.Module, tokens: Sequence[Tensor], settings: Recovery) -> Tensor:
    """The documents, joined and cut: shape ``(sequences, length)``."""
    documents = [document.long() for document in tokens if len(document)]
    length = settings.length or default_length(model)
    count = sum(map(len, documents)) // length
    if not count:
        raise TokensError(f"{sum(map(len, documents))} tokens are not one sequence of {length}: give more, or a length")
    check_vocabulary(model, documents)
    return torch.cat(documents)[: count * length].view(count, length)


def _zeros(model: nn.Module) -> dict[str, float]:
    """Share of zeros of the pruned linear layers of the blocks, by the name of the weight."""
    if any(is_lora(module) for module in model.modules()):
        raise AllocationError("the model has LoRA adapters already: merge them first (merge_and_unload)")
    found: dict[str, float] = {}
    for weight in find_weights(model, Select(split=False))[0]:
        layer, _, attribute = weight.parameter.rpartition(".")
        if weight.block is not None and attribute == "weight" and is_linear(model.get_submodule(layer)):
            share = float((weight.load() == 0).double().mean())
            found |= {weight.name: share} if share else {}
    if not found:
        raise AllocationError("no linear layer of the model's blocks has zeros to keep: prune it first")
    return found


@contextlib.contextmanager
def _training(model: nn.Module, seed: int) -> Generator[None]:
    """Training mode and random numbers of its own; both are put back."""
    mode = model.training
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            torch.manual_seed(seed)
            model.train()
            yield
    finally:
        model.train(mode)


def _rate(step: int, total: int) -> float:
    """Warm-up, then linear decay; never zero at a step that is taken."""
    warm = math.ceil(_WARM_UP * total)
    return min((step + 1) / warm, (total - step) / (total - warm + 1))


def _step(model: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer, factors: list[nn.Parameter]) -> float:
    mean = token_losses(model, batch).mean()
    optimizer.zero_grad()
    mean.backward()  # type: ignore[no-untyped-call]
    loss, norm = mean.item(), nn.utils.clip_grad_norm_(factors, _MAX_NORM).item()
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise NonFiniteError(
            f"the loss is {loss} and the norm of its gradient {norm}: take a lower learning rate, and make sure that "
            "the pruned model has a finite perplexity"
        )
    optimizer.step()
    return loss
