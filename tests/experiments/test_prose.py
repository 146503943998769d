"""An interval in prose is one of the generated tables of results: it cannot stay when a study is run again."""

import re

import pytest
from run_study import HERE

ROOT = HERE.parent
GENERATED = re.compile(r"<!-- begin .*?<!-- end [^>]*-->", re.DOTALL)
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
NUMBER = r"([-+−]?\d+(?:\.\d+)?)"
IN_PROSE = re.compile(rf"\((?:[^()]*?[,;] |95 % interval )?{NUMBER} to {NUMBER}(?=[,;)])")
IN_TABLE = re.compile(rf"{NUMBER} to {NUMBER}")
FOLDERS = [ROOT / "docs" / name for name in ("how-to", "concepts", "results")]
PAGES = [ROOT / "README.md", *(page for folder in FOLDERS for page in sorted(folder.glob("*.md")))]
OTHERS = {  # what no generated table has, by page
    "layer-wise-methods.md": ["(+1.01 to +4.29"],  # digits: plain of study 8 and of study 8-rate-0.001
    "digits.md": ["(+1.01 to +4.29"],
    "pde.md": ["(At one fixed rate, 0.01, the method is\n  better, by 1.3 %, 0.6 to 2.0"],  # two studies
    "diagnosis.md": ["(0.275 to 0.077", "(+0.27 to +0.57"],  # a change, and correlations of five studies
    "prune.md": ["(2.15 to 2.23"],  # alphas of blocks
    "pruning.md": ["(2.12 to 2.21"],
    "farms.md": ["(0.69 to 0.72", "(62 to 63"],  # benchmarks/farms.json
}
BY_HAND = {"quantization.md"}  # its table is from experiments/quantize_lm.json


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def published() -> list[tuple[float, float]]:
    """The intervals of all generated tables, and the same with the other sign: `worse by`."""
    pages = (ROOT / "docs" / "results").glob("*.md")
    tables = "".join(block for page in pages for block in GENERATED.findall(page.read_text("utf-8")))
    found = [(number(low), number(high)) for low, high in IN_TABLE.findall(tables)]
    return [*found, *((-high, -low) for low, high in found)]


def unknown(text: str, known: list[tuple[float, float]]) -> list[str]:
    """The intervals of a page that are no rounded interval of the tables."""
    missing = []
    for match in IN_PROSE.finditer(CODE.sub("", GENERATED.sub("", text))):
        tolerances = [0.51 * 10.0 ** -len(end.partition(".")[2]) for end in match.groups()]
        ends = [number(end) for end in match.groups()]
        equal = any(all(abs(a - b) <= t for a, b, t in zip(ends, pair, tolerances, strict=True)) for pair in known)
        if not equal:
            missing.append(match[0])
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_intervals_in_prose_are_those_of_the_tables(page):
    if page.name not in BY_HAND:
        assert unknown(page.read_text("utf-8"), published()) == OTHERS.get(page.name, [])


def test_the_check_of_intervals_can_fail():
    known = [(0.1299, 0.1588), (-0.1588, -0.1299)]
    text = "0.144 nats (0.130 to 0.159, all seeds), worse (-0.16 to -0.13), (95 % interval 0.13 to 0.16)"
    assert unknown(text, known) == []
    assert unknown("0.144 nats (0.130 to 0.158)", known) == ["(0.130 to 0.158"]
