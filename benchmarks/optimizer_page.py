"""Write docs/reference/optimizers.md from the results of ``optimizers.py``."""

from __future__ import annotations

from typing import Any

from optimizer_cases import PACKAGES

__all__ = ["page"]

INTRODUCTION = """\
# Optimizers

`python benchmarks/optimizers.py` remakes this page: each optimizer trains a small network with and without a balancer.
"Works" means, for the learning rate and the weight decay:

- between steps the groups and their options are those of a run without a balancer, also after an exception in a step
  or in a closure;
- with all multipliers equal to 1, the run is bit-identical to one without a balancer;
- with other multipliers, the optimizer has exactly multiplier times rate inside its steps, and the run is bit-identical
  to that of the same optimizer built with one group per unit and these rates;
- state dicts load from plain runs and into plain runs, and a resumed run is bit-identical to an uninterrupted one.

An optimizer that cannot take different rates is refused when the balancer is built, with the message below, and is then
unchanged. `Balancer` reads the groups and, if the optimizer is not one of torch, lets a small copy of it make a few
steps: with its groups, with one group per parameter, and with different rates. So optimizers that are not listed here
are checked, too.

Wrappers (SAM, Lookahead, schedule-free, gradient projections) are balanced inside: the optimizer that they call has the
multiplied rates. What a wrapper itself does with `lr` uses the scheduled rate. "Its own" state dicts and checkpoints
are those of runs without a balancer.

To balance an optimizer that is refused because it works on whole groups, use one that does not (AdamW, Lion, SGD).
"""


def page(results: dict[str, Any]) -> str:
    """Return the page: per package what works, and a row for each other result."""
    verdicts = [each["verdict"] for package in results.values() for each in package["results"]]
    counts = ", ".join(f"{verdicts.count(each)} {each}" for each in ("works", "refused", "not run", "fails"))
    lines = [INTRODUCTION, f"{len(verdicts)} were tried on a CPU: {counts}.", ""]
    for package in PACKAGES:
        if package not in results:
            continue
        lines += [f"## {package} {results[package]['version']}", "", "| optimizer | result |", "|---|---|"]
        rows: dict[str, list[str]] = {}
        for each in results[package]["results"]:
            rows.setdefault(described(each), []).append(each["name"])
        lines += [f"| {', '.join(names)} | {text} |" for text, names in rows.items()]
        lines.append("")
    return "\n".join(lines)


def described(result: dict[str, Any]) -> str:
    """Return the result in words."""
    words = {"works": "works", "refused": "refused: ", "not run": "not run here: ", "fails": "**fails**: "}
    text = words[result["verdict"]] + result["text"].replace("|", "\\|")
    text += f"; needs {result['needs']}" if result["needs"] and result["verdict"] == "works" else ""
    return "; ".join([text, *dict.fromkeys(result["notes"])])
