"""Retired words stay out: one word per thing, in plain technical English (docs/reference/glossary.md).

Prose, code, comments and messages are scanned as text, of the tests only their names. CHANGELOG.md is left out: its
table maps old names to new ones.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Whole words, case ignored, also as parts of a name (``find_rungs``, ``ArenaTask``); and what to write instead.
RETIRED_WORDS = {
    # words of our own, where the field has one
    r"(?<!malloc )arenas?": "study",  # MALLOC_ARENA_MAX is a variable of glibc
    r"contests?": "study",
    r"contenders?": "candidate",
    r"rungs?": "depth group",
    r"makers": "custom_methods",
    r"judged": "tracked, measured or analysed; layers with an alpha",
    r"holders": "mesh_ranks",
    r"motion": "drift",
    r"(?<!num )(?<!min )evals|eigs": "eigenvalues",  # num_evals and min_evals are names of WeightWatcher
    r"neighbours of balancing": "other layer-wise methods",
    r"lightest(?= ?[=:(\[)]| if\b)": "embeddings_and_head_at_max",
    # phrases that no documentation of PyTorch has
    r"(?:stand|stands|standing|stood) out": "a finding; differ",
    r"(?:share|shares|shared|sharing) (?:\w+ )?out(?! of\b)": "allocate or distribute",
    r"\d in the middle": "median",
    r"whichever way": "name both cases",
    r"as it were|if one insists|by and by|again and again": "leave it out",
    r"beside training": "asynchronously",
    r"(?:lie|lies|lay) beside": "is in the same folder",
    r"makes? of": "computes from",
    r"(?:come|comes|came) to nothing": "fail; is not used",
    r"(?:go|goes|went|going) on(?! to\b)": "continue or resume",
    r"(?:hold|holds|held) (?:a|the|its) (?:study|comparison)": "run a study",
    r"in no seed": "no seed",
    r"the luck of": "noise",
    r"troubles?": "problem",
    r"alike": "the same, or equal",
    r"is decreed|are decreed": "is fixed",
    r"was made for": "the model's context length",
    r"surprised": "perplexity",
    r"on every ground": "for every task",
    r"counts? for nobody": "is excluded",
}
# Classes and functions that were renamed, in the spelling of the code.
RETIRED_NAMES = {
    r"class (?:Judged|Known|Begun|References|Pending|Ranks|Whole|FullTensor|Fall|Prediction)\b": "DESIGN.md",
    r"\bWindowedFit\b": "WeightFit",
}
PATTERNS = {
    re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE): say for pattern, say in RETIRED_WORDS.items()
}
NAMES = {re.compile(pattern): say for pattern, say in RETIRED_NAMES.items()}


def hits(text: str, where: str) -> list[str]:
    """Each use of a retired word, with its place and what to write instead. Line breaks do not hide a phrase."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text.replace("_", " "))
    words = re.sub(r"\n[ \t]*(?:#|//|\*|>)?[ \t]*", lambda match: "\n", words)  # the margin of a comment or docstring
    found = []
    for patterns, searched in ((PATTERNS, words.replace("\n", " ")), (NAMES, text)):
        for pattern, say in patterns.items():
            for match in pattern.finditer(searched):
                line = (words if patterns is PATTERNS else text).count("\n", 0, match.start()) + 1
                found.append(f'{where}:{line}: "{match[0]}"; write: {say}')
    return found


def sources() -> list[Path]:
    """All files whose text is scanned."""
    package, experiments = ROOT / "src" / "tempbalance", ROOT / "experiments"
    return sorted(
        [
            ROOT / "README.md",
            ROOT / "CONTRIBUTING.md",
            *(ROOT / "docs").rglob("*.md"),
            *experiments.rglob("*.md"),
            *experiments.rglob("*.py"),
            *package.rglob("*.py"),
            *package.rglob("*.html"),
            *package.rglob("*.js"),
        ]
    )


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_no_retired_words(path: Path):
    assert hits(path.read_text("utf-8"), str(path.relative_to(ROOT))) == []


def test_compression_calls_a_plan_an_allocation():
    package = ROOT / "src" / "tempbalance"
    files = [*(package / "compress").rglob("*.py"), *package.glob("report/*pruning*"), package / "cli" / "prune.py"]
    assert len(files) > 20
    assert [path.name for path in files if re.search(r"\bplans?\b", path.read_text("utf-8"), re.IGNORECASE)] == []


def test_names_of_tests_have_no_retired_words():
    names = [
        (path, name)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert [hit for path, name in names for hit in hits(name, f"{path.relative_to(ROOT)}::{name}")] == []


@pytest.mark.parametrize(
    "text",
    [
        "Hold a contest in the arena.",
        "def find_rungs(): ...",
        "class ArenaTask: ...",
        "# the layers that stand\n    # out",
        "a thread beside\n    training",
        "class WindowedFit:",
        "sparsity is shared out by alpha",
        "training goes on",
    ],
)
def test_the_scan_finds_retired_words_in_names_and_across_lines(text: str):
    assert hits(text, "file")


@pytest.mark.parametrize(
    "text",
    [
        "the heaviest and the lightest tail",
        "Hill(share=0.5)",
        "a share out of range",
        "8 neighbours in a row",
        "goes on to the next page",
        "wrong, drunk, eigsh, emotion, promotions, contestable",
    ],
)
def test_the_scan_allows_ordinary_words(text: str):
    assert hits(text, "file") == []
