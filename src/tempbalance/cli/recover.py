"""``tempbalance recover``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tempbalance.balance.recipes import model_balancing
from tempbalance.checkpoints.writing import check_replaceable
from tempbalance.cli.app import DeviceOption, app, say_saved
from tempbalance.cli.compress import LengthOption, QuietOption, transformers_bars
from tempbalance.compress import Recovery, load_causal_lm, load_tokens, perplexity, recover, save_recovered
from tempbalance.compress.recovery.recovery import RECORD
from tempbalance.report.pruning_terminal import print_perplexities

__all__ = ["recover_command"]

_DEFAULTS = Recovery()


@app.command("recover")
def recover_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    source: Annotated[Path, typer.Argument(help="Folder of a pruned causal language model.", metavar="FOLDER")],
    tokens: Annotated[
        Path, typer.Option("--tokens", help="Tokens or text to train on: .npz, .npy, .txt, .json, .jsonl.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the recovered model; an earlier recovery is replaced.")
    ],
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA factors.")] = _DEFAULTS.rank,
    lr: Annotated[float, typer.Option(min=1e-12, help="Highest learning rate.")] = _DEFAULTS.lr,
    epochs: Annotated[int, typer.Option(min=1, help="How often to go through all tokens.")] = _DEFAULTS.epochs,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = _DEFAULTS.batch,
    length: LengthOption = None,
    seed: Annotated[int, typer.Option(help="Of LoRA and of the order of the sequences.")] = _DEFAULTS.seed,
    balance: Annotated[bool, typer.Option(help="A learning rate for each block, by Model Balancing.")] = True,
    evaluate: Annotated[
        Path | None, typer.Option(help="Tokens or text to measure the perplexity on, before and after.")
    ] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune a pruned language model by LoRA, with every zero kept, and save it as a folder.

    The folder holds dense safetensors with the same zeros, what lay beside the weights, and recovery.json.

    [bold]Examples[/]

      tempbalance recover pruned --tokens c4.jsonl --evaluate wikitext.txt --out recovered

      tempbalance recover pruned --tokens tokens.npz --lr 3e-4 --epochs 2 --no-balance --out recovered
    """
    settings = Recovery(rank=rank, lr=lr, epochs=epochs, batch=batch, length=length, seed=seed)
    check_replaceable(out, RECORD)
    documents = load_tokens(tokens, source)
    held_out = load_tokens(evaluate, source) if evaluate else None
    progress = not quiet
    with transformers_bars(progress):
        model = load_causal_lm(source, device)
        before = perplexity(model, held_out, length=length, progress=progress) if held_out else None
        done = recover(model, documents, settings, recipe=model_balancing() if balance else None, progress=progress)
        save_recovered(model, done, out, source)
    console = Console()
    if held_out is not None and before is not None:
        after = perplexity(model, held_out, length=length, progress=progress)
        print_perplexities(console, before, after)
    if not quiet:
        console.print(f"{len(done.sparsity)} weights trained, every zero kept", highlight=False)
        say_saved(console, [out])
