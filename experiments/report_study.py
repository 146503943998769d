"""Write the pages of results: ``python experiments/report_study.py digits``.

From ``experiments/results/NAME.json`` this makes the figures, and what stands between the markers of
``docs/results/NAME.md``, which it begins where there is none; and the table of all claims in ``docs/results/index.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.diagnosis_page import Diagnosis
from evidence.pages import figures, fill, index_rows, load_contests, new_page, study_page
from studies import NAMES, load_study

from tempbalance._files import write_whole
from tempbalance.errors import TempBalanceError

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGES = HERE.parent / "docs" / "results"
DIAGNOSIS = "diagnosis"
HEAD = "| claim | in the paper | ours, with least data | verdict | page | command |\n|---|---|---|---|---|---|"


def report(name: str, pages: Path = PAGES, results: Path = RESULTS) -> dict[Path, str]:
    """The files of a study.

    Args:
        name: The study.
        pages: The folder of pages.
        results: The folder of results.

    Returns:
        What each should hold.
    """
    page = pages / f"{name}.md"
    if name == DIAGNOSIS:
        diagnosis = Diagnosis(results)
        text, drawn = diagnosis.page(page.read_text(encoding="utf-8")), diagnosis.figures()
    else:
        study = load_study(name)
        contests = load_contests(study, results)
        before = page.read_text(encoding="utf-8") if page.exists() else new_page(study)
        text, drawn = study_page(study, contests, before), figures(study, contests)
    return {page: text, **{pages / file: svg for file, svg in drawn.items()}}


def index(pages: Path = PAGES, results: Path = RESULTS) -> dict[Path, str]:
    """The page of all claims.

    Args:
        pages: The folder of pages.
        results: The folder of results.

    Returns:
        What it should hold.
    """
    studies = [load_study(name) for name in NAMES]
    rows = [row for study in studies for row in index_rows(study, load_contests(study, results))]
    page = pages / "index.md"
    content = "\n".join([HEAD, *rows, *Diagnosis(results).index_rows()])
    return {page: fill(page.read_text(encoding="utf-8"), "claims", content)}


def main(argv: Sequence[str] | None = None) -> int:
    """Write.

    Args:
        argv: The command line.

    Returns:
        0, or 1 if it cannot be done.
    """
    parser = argparse.ArgumentParser(description="Write the pages of results.")
    parser.add_argument("studies", nargs="+", choices=(*NAMES, DIAGNOSIS))
    try:
        for name in parser.parse_args(argv).studies:
            for path, content in {**report(name), **report(DIAGNOSIS), **index()}.items():
                write_whole(path, content.encode())
                print(f"saved {path}")
    except TempBalanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
