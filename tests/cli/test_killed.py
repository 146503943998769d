"""A sample of ``make kills``: commands that are killed, terminated or out of space lose nothing and leave no litter."""

import random
import warnings
from pathlib import Path

import pytest
import torch

from kills.commands import EXPECTED, Trials
from processes import exit_code

pytest.importorskip("plotly")


def end_in_the_middle(command: str, folder: Path) -> None:
    """Write what is wrong to the file "wrong"."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    trials, draw, wrong = Trials(command, folder), random.Random(command), []
    for way in EXPECTED:
        for number in draw.sample(range(trials.changes), 2 if way == "kill" else 1):
            wrong += [f"{way} at change {number}: {each}\n" for each in trials.at_change(way, number)]
    delay = draw.uniform(0, trials.seconds)
    wrong += [f"kill after {delay:.3f} s: {each}\n" for each in trials.at_moment("kill", delay)[1]]
    (folder / "wrong").write_text("".join(wrong))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["analyze", "prune", "study"])
def test_a_command_that_is_ended_loses_nothing_and_the_next_run_ends_in_the_same_bytes(command, tmp_path):
    assert exit_code(end_in_the_middle, command, tmp_path) == 0
    assert (tmp_path / "wrong").read_text() == ""
