import dataclasses
import io
import json
import sys
from statistics import fmean

import pytest
import torch
from rich.console import Console

import tempbalance as tb
from tempbalance.demo import ARMS, Outcome, SeedResult, Settings, finetune_digits, print_outcome, to_json
from tempbalance.errors import MissingExtraError

pytest.importorskip("sklearn")

SMALL = Settings(seeds=2, examples=4, epochs=4, blocks=3, width=64, pretrain_epochs=2)


@pytest.fixture(scope="module")
def outcome():
    return finetune_digits(SMALL, progress=False)


class TestRuns:
    def test_every_seed_has_the_accuracy_of_all_arms(self, outcome):
        assert [result.seed for result in outcome.results] == [0, 1]
        assert all(tuple(result.accuracy) == ARMS for result in outcome.results)
        assert all(20 < accuracy < 100 for result in outcome.results for accuracy in result.accuracy.values())

    def test_all_other_images_of_the_new_digits_are_tested(self, outcome):
        assert outcome.test_images == 896 - 5 * 4

    def test_the_control_gets_the_mean_multiplier_of_the_blocks(self, outcome):
        assert [unit.name for unit in outcome.history[0].units] == ["blocks.0", "blocks.1", "blocks.2"]
        assert len({unit.multiplier for unit in outcome.history[0].units}) > 1
        mean = fmean(unit.multiplier for refresh in outcome.history for unit in refresh.units)
        assert outcome.results[0].mean_multiplier == mean

    def test_results_do_not_depend_on_the_global_seed_or_the_number_of_threads(self, outcome):
        torch.manual_seed(12345)
        before, threads = torch.get_rng_state(), torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            assert finetune_digits(SMALL, progress=False).results == outcome.results
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(torch.get_rng_state(), before)

    def test_at_a_rate_of_0_the_arms_are_equal_and_seeds_differ(self):
        results = finetune_digits(dataclasses.replace(SMALL, lr=0.0, epochs=1), progress=False).results
        assert all(len(set(result.accuracy.values())) == 1 for result in results)
        assert results[0].accuracy != results[1].accuracy

    def test_the_fine_tuned_network_has_its_blocks_in_an_analysis(self, outcome):
        blocks = {layer.block for layer in tb.analyze(outcome.model, progress=False).layers}
        assert blocks == {None, "blocks.0", "blocks.1", "blocks.2"}

    @pytest.mark.parametrize("wrong", [{"seeds": 1}, {"examples": 0}, {"examples": 101}])
    def test_settings_out_of_range_are_refused(self, wrong):
        with pytest.raises(ValueError, match="seeds must be at least 2 and examples 1 to 100"):
            Settings(**wrong)

    def test_without_scikit_learn_the_error_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(MissingExtraError, match=r"tempbalance\[demo\]"):
            finetune_digits(SMALL)


def shown(outcome):
    console = Console(file=io.StringIO(), width=80)
    print_outcome(console, outcome)
    return console.file.getvalue()


def made_up(*accuracies):
    """An outcome with the given (plain, balanced, one rate) of each seed."""
    results = [SeedResult(i, dict(zip(ARMS, each, strict=True)), 1.25) for i, each in enumerate(accuracies)]
    settings = Settings(seeds=len(results))
    return Outcome(
        settings=settings,
        test_images=856,
        results=results,
        pretrained=torch.nn.Identity(),
        model=torch.nn.Identity(),
        history=[],
    )


class TestPrinting:
    def test_every_seed_and_the_means_are_printed(self):
        text = shown(made_up(*[(80.0 + i, 81.0 + i, 80.5 + i) for i in range(12)]))
        rows = [line.split() for line in text.splitlines()]
        assert all([str(i), f"{80 + i}.0", f"{81 + i}.0", f"{80 + i}.5", "+1.00", "+0.50"] in rows for i in range(12))
        assert ["mean", "85.5", "86.5", "86.0", "+1.00", "+0.50"] in rows
        assert "balanced - plain     +1.00  +1.00 to +1.00  12 of 12 (100%)     0     0" in text

    @pytest.mark.parametrize(
        ("gain", "words"),
        [
            (+1.0, "Balancing was better than plain fine-tuning."),
            (-1.0, "Balancing was worse than plain fine-tuning."),
            (0.0, "Balancing was not significantly different from plain fine-tuning."),
        ],
    )
    def test_the_conclusion_follows_the_interval(self, gain, words):
        text = shown(made_up(*[(80.0, 80.0 + gain + (-1) ** i * 0.5, 80.0) for i in range(12)]))
        assert words in " ".join(text.split())

    def test_the_control_is_compared_with_the_other_arms(self):
        text = shown(made_up(*[(80.0, 81.0, 82.0)] * 12))
        assert "Balancing was better than plain fine-tuning." in text
        assert "Balancing was worse than one rate for all blocks." in text

    def test_9_seeds_are_too_few_for_a_conclusion(self):
        text = shown(made_up(*[(80.0, 90.0, 80.0)] * 9))
        assert "9 seeds are too few for a conclusion: run 10 or more." in text
        assert "Balancing was" not in text

    def test_the_tables_can_be_made_again_from_the_json(self, outcome):
        data = json.loads(json.dumps(to_json(outcome), allow_nan=False))
        differences = [seed["accuracy"]["balanced"] - seed["accuracy"]["plain"] for seed in data["seeds"]]
        assert data["differences"][0]["mean"] == pytest.approx(fmean(differences))
        assert data["settings"]["lr"] == SMALL.lr
        assert len(data["history_of_first_seed"]) == len(outcome.history)
