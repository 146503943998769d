"""The pages of results: what is written between the markers of a page follows from the results alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from evidence.compare import Compared, brief
from evidence.figure import figure
from evidence.keep import read_results
from evidence.study import Claim, Study, StudyError
from evidence.tables import contest_tables, gain_text, line, published_table
from evidence.verdict import claimed_gain, growth, judge


def load_contests(study: Study, results: Path) -> dict[str, Compared]:
    """What has been run of a study.

    Args:
        study: The study.
        results: The folder of results.

    Returns:
        Its contests by name, in the order of the study.
    """
    entries = read_results(results / f"{study.name}.json")
    return {
        contest.name: Compared(contest, entries[contest.name], study.metric)
        for contest in study.full
        if contest.name in entries
    }


def study_page(study: Study, contests: Mapping[str, Compared], text: str) -> str:
    """A page with what stands between its markers renewed.

    Args:
        study: The study.
        contests: What has been run, by name.
        text: The page as it is.

    Returns:
        The page as it should be.
    """
    claims = "\n\n".join(_claim(study, claim, contests) for claim in study.claims)
    tables = "\n\n".join(f"### Contest {name}\n\n{contest_tables(compared)}" for name, compared in contests.items())
    made = f"{_made(study, contests)}\n\n{tables}" if contests else "Nothing has been run yet."
    return fill(fill(text, "claims", claims), "tables", made)


def new_page(study: Study) -> str:
    """A page to begin with.

    Args:
        study: The study.

    Returns:
        The page, with nothing between its markers.
    """
    heading = (study.claims[0].sentence if study.claims else study.name).rstrip(".")
    blocks = [f"<!-- begin {name} -->\n<!-- end {name} -->" for name in ("claims", "tables")]
    return (
        f"# {heading}\n\n{blocks[0]}\n\n## Every contest\n\n{blocks[1]}\n\n## Run it again\n\n"
        f"```sh\n{command(study)}\npython experiments/report_study.py {study.name}\n```\n"
    )


def figures(study: Study, contests: Mapping[str, Compared]) -> dict[str, str]:
    """The figures of a study.

    Args:
        study: The study.
        contests: What has been run, by name.

    Returns:
        SVG by file name, one for each claim.
    """
    return {_file(study, claim): figure(study, claim, contests) for claim in study.claims}


def index_rows(study: Study, contests: Mapping[str, Compared]) -> list[str]:
    """Its rows in the table of all claims.

    Args:
        study: The study.
        contests: What has been run, by name.

    Returns:
        A row per claim: claim, the paper's number, ours, verdict, command.
    """
    rows = []
    for claim in study.claims:
        verdict = judge(claim, contests)
        published = claim.published[0] if claim.published else None
        paper = "" if published is None else f"{published.baseline:g} → {published.method:g} ({published.where}, "
        paper += "" if published is None else f"{published.size})"
        ours = _first_gain(study, claim, contests)
        cells = (f"{claim.sentence} {claim.paper}", paper, ours, f"**{verdict.word}**: {verdict.reason}")
        page = f"[{study.name}]({study.name}.md)" if contests else study.name
        rows.append(line(*cells, page, f"`{command(study)}`"))
    return rows


def _first_gain(study: Study, claim: Claim, contests: Mapping[str, Compared]) -> str:
    """Ours at the least data."""
    for panel, names in claim.panels.items():
        for name in names:
            gain = claimed_gain(claim, contests[name]) if name in contests else None
            if gain is not None:
                size = contests[name].contest.settings[study.size[0]]
                return f"{gain_text(gain, study.metric)} {study.metric.unit} ({panel}, {size:g} {study.size[1]})"
    return ""


def command(study: Study) -> str:
    """What makes the results."""
    return f"python experiments/run_study.py {study.name} --full"


def fill(text: str, name: str, content: str) -> str:
    """Put something between two markers.

    Args:
        text: A page.
        name: Of the markers.
        content: What goes between them.

    Returns:
        The page.

    Raises:
        StudyError: It has no such markers.
    """
    pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
    filled, count = re.subn(pattern, lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise StudyError(f"a page needs the lines <!-- begin {name} --> and <!-- end {name} -->, once each")
    return filled


def _claim(study: Study, claim: Claim, contests: Mapping[str, Compared]) -> str:
    """Verdict, figure, the paper's numbers beside ours."""
    verdict, baseline = judge(claim, contests), brief(claim.baseline)
    parts = [
        f"**{claim.sentence}** ({claim.paper})",
        f"**{verdict.word.capitalize()}**: {verdict.reason}.",
        *_growths(study, claim, contests),
        f"![Gain of each method over {baseline}, by {study.size[1]}]({_file(study, claim)})",
        f"*Gain of each method over `{baseline}` with its 95 % interval; above 0 is better. Hollow: controls.*",
        published_table(study, claim, contests, verdict),
    ]
    return "\n\n".join(parts)


def _growths(study: Study, claim: Claim, contests: Mapping[str, Compared]) -> list[str]:
    """Whether the gain grows as data shrinks, for each panel."""
    found = []
    for panel, names in claim.panels.items():
        slope = growth(claim, [contests[name] for name in names if name in contests], study.size[0])
        if slope is not None:
            word = "grows" if slope.low > 0 else "shrinks" if slope.high < 0 else "does not clearly change"
            found.append(
                f"{panel}: as data shrinks the gain {word}, by {gain_text(slope, study.metric)} {study.metric.unit} "
                f"each time that the {study.size[1]} are halved."
            )
    return found


def _made(study: Study, contests: Mapping[str, Compared]) -> str:
    """How much was run, with what."""
    runs = [run for compared in contests.values() for run in compared.entry["runs"]]
    counts = Counter(run["status"] for run in runs)
    versions = {
        tuple(compared.entry["settings"]["settings"]["versions"].items()): None for compared in contests.values()
    }
    made = "; ".join(", ".join(f"{name} {version}" for name, version in each) for each in versions)
    hours = sum(run["seconds"] for run in runs) / 3600
    return (
        f"{len(runs):,} runs, the tuning included, {counts['diverged']} diverged, {counts['failed']} failed; "
        f"{hours:.1f} hours of training ({made}). All of them are in `experiments/results/{study.name}.json`."
    )


def _file(study: Study, claim: Claim) -> str:
    return f"{study.name}-{claim.name}.svg"
