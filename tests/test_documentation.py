"""The examples in README and docs run; links lead somewhere (of the web, their syntax is checked); options exist."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import typer

from tempbalance.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PUBLIC_MODULES = [
    *("tempbalance", "tempbalance.tail", "tempbalance.released", "tempbalance.balance", "tempbalance.balance.assign"),
    *(
        "tempbalance.balance.recipes",
        "tempbalance.compress",
        "tempbalance.study",
        "tempbalance.study.methods",
        "tempbalance.errors",
        "tempbalance.testing",
    ),
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
ARXIV = re.compile(r"/abs/\d{4}\.\d{4,5}(v\d+)?")
DOI = re.compile(r"/10\.\d{4,9}/\S+")


def python_only(text: str) -> str:
    """The text with all lines blank that are not inside a fenced Python block: fences would be taken for output."""
    kept, inside = [], False
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        kept.append(line if inside and not fence else "")
        if fence:
            inside = not inside and line.strip() == "```python"
    return "\n".join(kept)


def files_of(text: str) -> dict[str, str]:
    """Modules that a page shows, by name: fenced ``py`` blocks that begin with the comment ``# name.py``."""
    return dict(re.findall(r"^```py\n# (\w+)\.py\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def failures_of(text: str, name: str) -> str:
    """What goes wrong when the examples of a page are run as one session; empty if nothing does."""
    example = doctest.DocTestParser().get_doctest(python_only(text), {}, name, name, 0)
    output: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=FLAGS)  # by default it reads the -v of pytest
    runner.run(example, out=output.append)
    return "".join(output)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = page.read_text("utf-8")
    for name, source in files_of(text).items():
        (tmp_path / f"{name}.py").write_text(source, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with torch.random.fork_rng():
        assert failures_of(text, page.name) == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_are_sessions_so_that_they_are_tested(page: Path):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert all(block.startswith(">>> ") for block in blocks)


def documented_names(text: str) -> set[str]:
    """The objects that the autodoc directives of a page document, by qualified name."""
    names = {match.rstrip("()") for match in re.findall(r"^\.\. auto(?:class|function):: (\S+)", text, re.MULTILINE)}
    for module, options in re.findall(r"^\.\. automodule:: (\S+)\n((?:   :.*\n)*)", text, re.MULTILINE):
        excluded = re.findall(r"\w+", "".join(re.findall(r":exclude-members:(.*)", options)))
        names |= {f"{module}.{name}" for name in importlib.import_module(module).__all__ if name not in excluded}
    return names


def test_the_api_reference_documents_every_public_object():
    pages = (ROOT / "docs" / "reference" / "api").glob("*.md")
    names = set().union(*(documented_names(page.read_text("utf-8")) for page in pages))
    documented = {
        id(getattr(importlib.import_module(module), name))
        for module, _, name in (name.rpartition(".") for name in names)
    }
    public = [(module, name) for module in PUBLIC_MODULES for name in importlib.import_module(module).__all__]
    objects = {f"{module}.{name}": getattr(importlib.import_module(module), name) for module, name in public}
    missing = [
        name
        for name, value in objects.items()
        if (inspect.isfunction(value) or inspect.isclass(value)) and id(value) not in documented
    ]
    assert not missing


def test_the_check_of_the_api_reference_reads_the_directives():
    page = ".. autofunction:: tempbalance.analyze\n.. automodule:: tempbalance.tail\n   :exclude-members: KS, Peak\n"
    names = documented_names(page)
    assert {"tempbalance.analyze", "tempbalance.tail.Hill"} <= names
    assert "tempbalance.tail.KS" not in names


def test_the_check_of_examples_can_fail():
    assert failures_of("text\n```python\n>>> 1 + 1\n2\n```\nmore", "good") == ""
    assert failures_of("text\n```sh\n>>> 1 + 1\n3\n```\nmore", "not python") == ""
    assert "Got:\n    2" in failures_of("text\n```python\n>>> 1 + 1\n3\n```\nmore", "bad")


def broken_links(page: Path) -> list[str]:
    return [link for link in LINK.findall(page.read_text("utf-8")) if not _leads_somewhere(page, link)]


def _leads_somewhere(page: Path, link: str) -> bool:
    url = urlsplit(link)
    if url.scheme or url.netloc:
        if url.scheme != "https" or not re.fullmatch(r"([a-z0-9-]+\.)+[a-z]+", url.netloc):
            return False
        pattern = {"arxiv.org": ARXIV, "doi.org": DOI}.get(url.netloc)
        return pattern is None or pattern.fullmatch(url.path) is not None
    return not url.path or (page.parent / url.path).exists()  # anchors are checked by the build of the docs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_a_target(page: Path):
    assert broken_links(page) == []


def test_the_check_of_links_can_fail(tmp_path: Path):
    page = tmp_path / "page.md"
    good = [
        "page.md",
        "#anchor",
        "page.md#anchor",
        "https://arxiv.org/abs/0706.1062",
        "https://doi.org/10.1137/070710111",
    ]
    bad = ["missing.md", "http://arxiv.org/abs/0706.1062", "https://arxiv.org/abs/07061062", "https://nowhere/x"]
    page.write_text(" ".join(f"[text]({link})" for link in good + bad))
    assert broken_links(page) == bad


def test_the_page_on_the_command_line_has_every_option_and_no_other():
    commands = typer.main.get_command(app).commands.values()
    options = [{*option.opts, *option.secondary_opts} for command in commands for option in command.params]
    options = [names for names in options if any(name.startswith("--") for name in names)]
    documented = set(re.findall(r"--[a-z][a-z-]+", (ROOT / "docs" / "reference" / "cli.md").read_text("utf-8")))
    assert documented - set().union(*options) == {"--help", "--install-completion"}
    assert [names for names in options if not names & documented] == []


def unknown_names(text: str) -> list[str]:
    """Dotted names of a page, such as ``tb.assign.Linear``, that do not exist."""
    names = re.findall(r"(?<![\w/@.-])(?:tb|tempbalance)((?:\.[A-Za-z_]\w*)+)", text)
    return [name[1:] for name in names if not _exists(f"tempbalance{name}")]


def _exists(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_names_of_the_package_exist(page: Path):
    assert unknown_names(page.read_text("utf-8")) == []


def test_the_check_of_names_can_fail():
    page = "`tb.Hill`, `tb.assign.Linear(0.5, 1.5)`, tempbalance.report, `tb.Hil`, `tb.assign.Circular`, me@tb.org"
    assert unknown_names(page) == ["Hil", "assign.Circular"]


def unknown_options(text: str) -> list[str]:
    """What the shell examples of a page pass to ``tempbalance`` that does not exist."""
    commands = typer.main.get_command(app).commands
    wrong = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for call in re.findall(r"\btempbalance ([a-z].*)", block.replace("\\\n", " ")):
            name, *words = call.split("#")[0].split()
            known = {option for parameter in getattr(commands.get(name), "params", ()) for option in parameter.opts}
            wrong += [name] if name not in commands else [w for w in words if w.startswith("-") and w not in known]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_shell_examples_use_existing_commands_and_options(page: Path):
    assert unknown_options(page.read_text("utf-8")) == []


def test_the_check_of_shell_examples_can_fail():
    calls = ["tempbalance analyze x --out y", "tempbalance analyse x", "tempbalance prune x \\", " --sparse 1"]
    assert unknown_options("\n".join(["```sh", *calls, "```"])) == ["analyse", "--sparse"]


def test_the_layout_table_names_existing_files():
    rows = re.findall(r"^\| .* \| (`.*`) \|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    paths = [path for row in rows for path in re.findall(r"`(\w+(?:/\w+)*(?:\.py|/))`", row)]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / "src" / "tempbalance" / path).exists()] == []


def test_code_refers_to_existing_pages():
    reference = re.compile(r"\bdocs/(?:tutorials|how-to|concepts|reference|results)/[a-z/-]+\.md")
    files = [path for folder in ("src", "experiments", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
    pages = {(path, page) for path in files for page in reference.findall(path.read_text("utf-8"))}
    assert [(path, page) for path, page in pages if not (ROOT / page).exists()] == []
