"""Hostile command lines: exit code 0, 1 or 2, one line of error, no traceback, no control characters."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from fuzz.corpus import Corpus
from fuzz.mutate import NUMBERS, TEXTS, Mutator
from tempbalance.cli import main

# Commands on files of the corpus ({name}) and on outputs (<name>).
COMMANDS = [
    "analyze {model.pt} --out <a.json>",
    "analyze {model.safetensors} --estimator ks --select * --out <a.csv>",
    "analyze {llama} --farms-rows 4 --device cpu --out <a.json> --quiet",
    "analyze {adapter} --key x --exclude b* --lora update",
    "analyze {legacy.pt} --farms --embeddings --strict",
    "compare {analysis.json} {analysis.json} --out <a.csv>",
    "compare {model.pt} {model.safetensors} --estimator hill --device cpu --rename layers.=layers. --json",
    "prune {model.pt} --sparsity 0.5 --epsilon 0.3 --unit layer --out <p>",
    "prune {llama} --sparsity 0.5 --method wanda --calibration {tokens.npz} --samples 2 --length 8 --seed 0 --out <p>",
    "prune {llama} --from-allocation {sparsity.json} --out <p> --report <r.json>",
    "prune {llama} --sparsity 0.5 --group 4 --allocation uniform --evaluate {text.txt} --out <p>",
    "allocate {analysis.json} --sparsity 0.5 --allocation alpha --epsilon 0.3 --unit layer --out <a.json>",
    "allocate {model.pt} --bits 3 --unit layer --json",
    "allocate {analysis.json} --rank 4 --quiet --out <a.json>",
    "allocate {llama} --bits 5 --formats int4,nvfp4,bf16 --by error --out <a.json> --quiet",
    "allocate {model.pt} --trainable 0.5 --by snr --out <a.json>",
    "perplexity {llama} {text.txt} --length 8 --stride 4 --device cpu",
    "recover {llama} --tokens {tokens.npy} --rank 2 --lr 0.1 --epochs 1 --batch 2 --length 8 --seed 0 --out <r>",
    "study --task {tokens.npy} --methods llr --out <s> --seeds 1 --lr 0.1 --first-seed 0 --tuning-seeds 1 --set a=1",
    "demo --seeds 1 --examples 0 --out <d>",
]


def _spelled(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # of an integer with more than 4,300 digits
        return "9" * 5000


def _command(mutator: Mutator, corpus: Corpus, place: Path) -> list[str]:
    """Return the words of a command of which one word, or one of its files, is damaged."""
    words = mutator.choice(COMMANDS).split()
    damaged = mutator.randrange(1, len(words))
    result = []
    for number, word in enumerate(words):
        name = word.strip("{}<>")
        if word.startswith("{"):
            result.append(str(corpus.copy(name, place)))
        else:
            result.append(str(place / name) if word.startswith("<") else word)
        if number != damaged:
            continue
        if word.startswith("{") and mutator.random() < 0.6:
            _damage(mutator, Path(result[-1]))
        elif word.startswith("<") and mutator.random() < 0.6:
            result[-1] = str(place / mutator.choice([*TEXTS, "a", "a.json", "a.txt"]).lstrip("/"))
        elif word.startswith("<"):
            mutator.place(Path(result[-1]))
        else:
            result[-1] = _spelled(mutator.choice([*NUMBERS, *TEXTS]))
    return result


def _damage(mutator: Mutator, path: Path) -> None:
    if path.is_dir():
        path = mutator.choice(sorted(path.iterdir()))
    kind = mutator.random()
    if kind < 0.2:
        mutator.place(path)
    elif path.suffix == ".json" and kind < 0.8:
        path.write_bytes(mutator.json(path.read_bytes()))
    elif path.suffix == ".safetensors" and kind < 0.8:
        path.write_bytes(mutator.safetensors(path.read_bytes()))
    else:
        path.write_bytes(mutator.bytes(path.read_bytes()))


def commands(mutator: Mutator, corpus: Corpus, place: Path) -> None:
    """Run a command, and check how it ends."""
    words = _command(mutator, corpus, place)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))  # as those of a terminal
    before, code = Path.cwd(), None
    os.chdir(place)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(*words)
    except SystemExit as stopped:
        code = stopped.code
    finally:
        out.flush()
        err.flush()
        os.chdir(before)
    printed, errors = (stream.buffer.getvalue().decode() for stream in (out, err))
    told = f"{words!r:.3000}\nexit code {code}\n{printed[-1000:]}\n{errors[-3000:]}"
    assert code in (0, 1, 2), told
    assert "Traceback" not in told
    for text in (printed, errors):
        assert all(line.isprintable() for line in text.split("\n")), repr(told)
    if code == 1:
        last = errors.rstrip("\n").rpartition("\n")[2]
        assert last.startswith("error: "), told


TARGETS = {commands: 1}
