"""Scripts in ``experiments/`` that run on their own."""

from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "experiments"


def test_each_script_parses_its_arguments_so_that_help_does_not_start_it():
    texts = {path.name: path.read_text(encoding="utf-8") for path in SCRIPTS.glob("*.py")}
    scripts = {name: text for name, text in texts.items() if '__name__ == "__main__"' in text}
    assert len(scripts) >= 10
    assert [name for name, text in scripts.items() if ".parse_args(" not in text] == []
