"""``tempbalance recover``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tempbalance.cli.app import DeviceOption, JsonOption, QuietOption, app, print_json, print_saved
from tempbalance.cli.prune import FILES, EvaluateOption, LengthOption

__all__ = ["recover_command"]


@app.command("recover")
def recover_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    source: Annotated[Path, typer.Argument(help="Folder of a pruned causal language model.", metavar="FOLDER")],
    tokens: Annotated[Path, typer.Option("--tokens", help=f"Text or tokens to train on: {FILES}.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder; an earlier recovery is replaced.")],
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA factors.")] = 8,
    lr: Annotated[float, typer.Option(min=1e-12, help="Peak learning rate.")] = 1e-4,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over all tokens.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Sequences per step.")] = 1,
    length: LengthOption = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed for LoRA and the order of sequences.")] = 0,
    balance: Annotated[
        bool, typer.Option("--balance", help="One learning rate per block, by Model Balancing; no gain in our study.")
    ] = False,
    evaluate: EvaluateOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune a pruned language model by LoRA that keeps every zero, and save it as a folder.

    The folder contains dense safetensors with the same zeros, the config and tokenizer files, and recovery.json.

    [bold]Examples[/]

      tempbalance recover pruned --tokens c4.jsonl --evaluate wikitext.txt --out recovered

      tempbalance recover pruned --tokens tokens.npz --lr 3e-4 --epochs 2 --out recovered
    """
    from tempbalance.balance.recipes import model_balancing
    from tempbalance.compress import RecoverySettings, recover_folder
    from tempbalance.report.pruning_report import print_perplexities
    from tempbalance.report.terminal import count, output_console

    result = recover_folder(
        source,
        out,
        tokens,
        RecoverySettings(rank=rank, lr=lr, epochs=epochs, batch=batch, length=length, seed=seed),
        recipe=model_balancing() if balance else None,
        evaluate=evaluate,
        device=device,
        progress=not quiet,
    )
    console = output_console()
    if as_json:
        print_json(result.to_dict())
        return
    if result.perplexity is not None:
        print_perplexities(console, *result.perplexity)
    if not quiet:
        trained = count(len(result.sparsity), "weight matrix", "weight matrices")
        console.print(f"{trained} trained, {result.mean_sparsity:.1%} of their weights zero, every zero kept")
        print_saved(console, [out])
