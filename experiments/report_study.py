"""Write the pages of results: ``python experiments/report_study.py digits``.

From ``experiments/results/NAME.json`` this makes the figures, the text between the markers of ``docs/results/NAME.md``
(a new page where there is none), and the pages of all experiments: the table of claims in ``docs/results/index.md``,
``what-helps.md`` and ``training-methods.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import methods_page
import what_helps
from diagnosis_page import load_diagnosis
from pages import experiment_page, figures, fill, index_rows, new_page, paper_size_section
from results_file import load_results
from studies import NAMES, load_experiment
from studies.paper_size import PAPER_SIZE

from tempbalance._files import write_atomically
from tempbalance.errors import TempBalanceError

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGES = HERE.parent / "docs" / "results"
DIAGNOSIS = "diagnosis"
HEAD = "| claim | paper | ours, least data | verdict |\n|---|---|---|---|"


def report(name: str, pages: Path = PAGES, results: Path = RESULTS) -> dict[Path, str]:
    """Make the page and the figures of an experiment.

    Args:
        name: The experiment.
        pages: The folder of pages.
        results: The folder of results.

    Returns:
        Contents by file.
    """
    page = pages / f"{name}.md"
    if name == DIAGNOSIS:
        diagnosis = load_diagnosis(results)
        text, drawn = diagnosis.page(page.read_text(encoding="utf-8")), diagnosis.figures()
    else:
        experiment = load_experiment(name)
        found = load_results(experiment, results)
        before = page.read_text(encoding="utf-8") if page.exists() else new_page(experiment)
        text, drawn = experiment_page(experiment, found, before), figures(experiment, found)
    return {page: text, **{pages / file: svg for file, svg in drawn.items()}}


def index(pages: Path = PAGES, results: Path = RESULTS) -> dict[Path, str]:
    """Make the pages of all experiments: their claims, also at the size of the papers, what helps, and all methods.

    Args:
        pages: The folder of pages.
        results: The folder of results.

    Returns:
        Contents by file.
    """
    experiments = [load_experiment(name) for name in NAMES]
    rows = [row for each in experiments for row in index_rows(each, load_results(each, results))]
    page = pages / "index.md"
    content = "\n".join([HEAD, *rows, *load_diagnosis(results).index_rows()])
    large = [(each, load_results(each, results)) for each in PAPER_SIZE.values()]
    text = fill(page.read_text(encoding="utf-8"), "claims", content)
    section = "\n\n".join(paper_size_section(*item) for item in large)
    drawn = {file: svg for each, found in large if found for file, svg in figures(each, found).items()}
    rows, helps = what_helps.load_rows(results), pages / "what-helps.md"
    methods, compared = methods_page.load_rows(results), pages / "training-methods.md"
    return {
        page: fill(text, "paper-size", section),
        **{pages / file: svg for file, svg in drawn.items()},
        helps: what_helps.page(rows, helps.read_text(encoding="utf-8")),
        pages / what_helps.FIGURE: what_helps.figure(rows),
        compared: methods_page.page(methods, compared.read_text(encoding="utf-8")),
        pages / methods_page.FIGURE: methods_page.figure(methods),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages.

    Args:
        argv: The command line.

    Returns:
        0, or 1 after an error.
    """
    parser = argparse.ArgumentParser(description="Write the pages of results.")
    parser.add_argument("experiments", nargs="+", choices=(*NAMES, DIAGNOSIS))
    try:
        for name in dict.fromkeys((*parser.parse_args(argv).experiments, DIAGNOSIS)):
            for path, content in {**report(name), **index()}.items():
                write_atomically(path, content.encode())
                print(f"saved {path}")
    except TempBalanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
