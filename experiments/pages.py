"""The pages of results: the text between the markers of a page is generated from the results."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from claims import Claim, Experiment
from figures import gain_figure
from gains import Results, brief
from tables import gain_text, line, published_table, study_tables
from verdict import claimed_gain, growth, judge

from tempbalance.errors import StudyError


def experiment_page(experiment: Experiment, results: Mapping[str, Results], text: str) -> str:
    """Update the generated parts of a page.

    Args:
        experiment: The experiment.
        results: Results of the studies that have been run, by name.
        text: The page.

    Returns:
        The updated page.
    """
    claims = "\n\n".join(_claim(experiment, claim, results) for claim in experiment.claims)
    tables = "\n\n".join(
        f"### Study {name}\n\n{study_tables(found, experiment.others)}" for name, found in results.items()
    )
    return fill(
        fill(text, "claims", claims),
        "tables",
        f"{_extent(experiment, results)}\n\n{tables}" if results else "Nothing has been run yet.",
    )


def new_page(experiment: Experiment) -> str:
    """A page with empty markers.

    Args:
        experiment: The experiment.

    Returns:
        The page.
    """
    heading = (experiment.claims[0].sentence if experiment.claims else experiment.name).rstrip(".")
    blocks = [f"<!-- begin {name} -->\n<!-- end {name} -->" for name in ("claims", "tables")]
    return (
        f"# {heading}\n\n{blocks[0]}\n\n## All studies\n\n{blocks[1]}\n\n## Run it again\n\n"
        f"```sh\n{command(experiment)}\npython experiments/report_study.py {experiment.name}\n```\n"
    )


def paper_size_section(experiment: Experiment, results: Mapping[str, Results]) -> str:
    """The claims of an experiment at the size of its paper: the paper's numbers, and ours if it has been run.

    Args:
        experiment: The experiment.
        results: Results of the studies that have been run, by name.

    Returns:
        A part of the page of all claims.
    """
    if results:
        return "\n\n".join(_claim(experiment, claim, results) for claim in experiment.claims)
    parts = []
    for claim in experiment.claims:
        outcomes = judge(claim, results).outcomes
        parts.append(f"**{claim.sentence}** ({claim.paper})")
        parts.append(f"Not run yet: `python experiments/run_paper_size.py {experiment.name}`.")
        parts.append(published_table(experiment, claim, results, outcomes))
    return "\n\n".join(parts)


def figures(experiment: Experiment, results: Mapping[str, Results]) -> dict[str, str]:
    """The figures of an experiment.

    Args:
        experiment: The experiment.
        results: Results of the studies that have been run, by name.

    Returns:
        SVG by file name, one per claim.
    """
    return {_file(experiment, claim): gain_figure(experiment, claim, results) for claim in experiment.claims}


def index_rows(experiment: Experiment, results: Mapping[str, Results]) -> list[str]:
    """The rows of an experiment in the table of all claims.

    Args:
        experiment: The experiment.
        results: Results of the studies that have been run, by name.

    Returns:
        A row per claim: claim, the paper's number, ours, verdict with the page.
    """
    rows = []
    for claim in experiment.claims:
        verdict = judge(claim, results)
        paper = ""
        if claim.published:
            first = claim.published[0]
            paper = f"{first.baseline:g} → {first.method:g} ({first.where}, {first.size})"
        ours = _first_gain(experiment, claim, results)
        page = f"[{experiment.name}]({experiment.name}.md)" if results else experiment.name
        found = f"**{verdict.word}** ({page}): {verdict.reason}"
        rows.append(line(f"{claim.sentence} {claim.paper}", paper, ours, found))
    return rows


def _first_gain(experiment: Experiment, claim: Claim, results: Mapping[str, Results]) -> str:
    """Our gain with the least data."""
    for panel, names in claim.panels.items():
        for name in names:
            gain = claimed_gain(claim, results[name]) if name in results else None
            if gain is not None:
                size = results[name].study.parameters[experiment.size[0]]
                shown = gain_text(gain, experiment.metric)
                return f"{shown} {experiment.metric.unit} ({panel}, {size:g} {experiment.size[1]})"
    return ""


def command(experiment: Experiment) -> str:
    """The command that makes the results."""
    return f"python experiments/run_study.py {experiment.name} --full"


def fill(text: str, name: str, content: str) -> str:
    """Replace the text between two markers.

    Args:
        text: A page.
        name: Name of the markers.
        content: The new text.

    Returns:
        The page.

    Raises:
        StudyError: The page does not have these markers.
    """
    pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
    filled, count = re.subn(pattern, lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise StudyError(f"a page needs the lines <!-- begin {name} --> and <!-- end {name} -->, once each")
    return filled


def _claim(experiment: Experiment, claim: Claim, results: Mapping[str, Results]) -> str:
    """Verdict, figure, and the paper's numbers with ours."""
    verdict, baseline = judge(claim, results), brief(claim.baseline)
    parts = [
        f"**{claim.sentence}** ({claim.paper})",
        f"**{verdict.word.capitalize()}**: {verdict.reason}.",
        *_growths(experiment, claim, results),
        f"![Gain of each method over {baseline}, by {experiment.size[1]}]({_file(experiment, claim)})",
        f"*Gain of each method over `{baseline}` with its 95 % interval; above 0 is better. Hollow markers: controls.*",
        published_table(experiment, claim, results, verdict.outcomes),
    ]
    return "\n\n".join(parts)


def _growths(experiment: Experiment, claim: Claim, results: Mapping[str, Results]) -> list[str]:
    """Whether the gain grows with less data, for each panel."""
    found = []
    for panel, names in claim.panels.items():
        slope = growth(claim, [results[name] for name in names if name in results], experiment.size[0])
        if slope is not None:
            word = "grows" if slope.low > 0 else "shrinks" if slope.high < 0 else "does not change significantly"
            found.append(
                f"{panel}: with less data the gain {word}: {gain_text(slope, experiment.metric)} "
                f"{experiment.metric.unit} per halving of the {experiment.size[1]}."
            )
    return found


def _extent(experiment: Experiment, results: Mapping[str, Results]) -> str:
    """The number of trials, their cost, and the versions."""
    trials = [trial for found in results.values() for trial in found.entry["runs"]]
    counts = Counter(trial["status"] for trial in trials)
    versions = {tuple(found.entry["settings"]["settings"]["versions"].items()): None for found in results.values()}
    made = "; ".join(", ".join(f"{name} {version}" for name, version in each) for each in versions)
    hours = sum(trial["seconds"] for trial in trials) / 3600
    return (
        f"{len(trials):,} trials including tuning, {counts['diverged']} diverged, {counts['failed']} failed; "
        f"{hours:.1f} hours of training ({made}). All are in `experiments/results/{experiment.name}.json`."
    )


def _file(experiment: Experiment, claim: Claim) -> str:
    return f"{experiment.name}-{claim.name}.svg"
