"""Write docs/reference/optimizers.md from the results of ``optimizers.py``."""

from __future__ import annotations

from typing import Any

from optimizer_cases import PACKAGES

__all__ = ["page"]

INTRODUCTION = """\
# Optimizers

A `Balancer` works with most optimizers. One that cannot take different rates is refused when the balancer is built,
with the reason, and is then unchanged: use one that can (AdamW, Lion, SGD). Optimizers that are not listed here are
checked, too: `Balancer` reads the groups and, if the optimizer is not one of torch, lets a small copy of it make a few
steps: with its groups, with one group per parameter, and with different rates.

Wrappers (SAM, Lookahead, schedule-free, gradient projections) are balanced inside: the optimizer that they call has the
multiplied rates. What a wrapper itself does with `lr` uses the scheduled rate. "Its own" state dicts and checkpoints
are those of runs without a balancer.
"""
CRITERIA = """\

## What "works" means

`python benchmarks/optimizers.py` remakes this page: each optimizer trains a small network with and without a balancer.
For the learning rate and the weight decay:

- between steps the groups and their options are those of a run without a balancer, also after an exception in a step
  or in a closure;
- with all multipliers equal to 1, the run is bit-identical to one without a balancer;
- with other multipliers, the optimizer has exactly multiplier times rate inside its steps, and the run is bit-identical
  to that of the same optimizer built with one group per unit and these rates;
- state dicts load from plain runs and into plain runs, and a resumed run is bit-identical to an uninterrupted one.
"""


def page(results: dict[str, Any]) -> str:
    """Return the page: per package what works, and a row for each other result."""
    verdicts = [each["verdict"] for package in results.values() for each in package["results"]]
    words = {"works": "work", "refused": "are refused", "not run": "could not be run", "fails": "fail"}
    counts = ", ".join(f"{verdicts.count(each)} {word}" for each, word in words.items())
    lines = [INTRODUCTION, f"{len(verdicts)} were tried on a CPU: {counts}.", ""]
    lines += ["| package | optimizer | result |", "|---|---|---|"]
    for package in PACKAGES:
        rows: dict[str, list[str]] = {}
        for each in results[package]["results"] if package in results else ():
            rows.setdefault(described(each), []).append(each["name"])
        for number, (text, names) in enumerate(rows.items()):
            title = "" if number else f"{package} {results[package]['version']}"
            lines.append(f"| {title} | {', '.join(names)} | {text} |")
    return "\n".join([*lines, CRITERIA])


def described(result: dict[str, Any]) -> str:
    """Return the result in words, without the name of the optimizer."""
    words = {"works": "works", "refused": "refused: ", "not run": "not run here: ", "fails": "**fails**: "}
    name = result["name"].split(" (")[0]
    text = words[result["verdict"]] + result["text"].removeprefix(f"{name} ").replace("|", "\\|")
    text += f"; needs {result['needs']}" if result["needs"] and result["verdict"] == "works" else ""
    return "; ".join([text, *dict.fromkeys(result["notes"])])
