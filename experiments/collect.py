"""Join folders of ``tempbalance arena`` in one file: settings, summary, and a line for every run, tuning included.

For example ``python experiments/collect.py experiments/results/digits.json digits/2 digits/8``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tempbalance.results import dumps, write_whole


def collect(folder: Path) -> str:
    """One folder as JSON, by its name."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("runs/*/seed-*.json")]
    runs.sort(key=lambda run: (run["method"], run["lr"] or 0, run["seed"]))
    lines = ",\n".join(map(dumps, runs))
    return f'"{folder.name}": {{\n"settings": {dumps(settings)},\n"summary": {dumps(summary)},\n"runs": [\n{lines}\n]}}'


def main(out: Path, folders: list[Path]) -> None:
    """Read, join, write."""
    write_whole(out, ("{\n" + ",\n".join(map(collect, folders)) + "\n}\n").encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
