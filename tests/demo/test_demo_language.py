"""The language model of the demo."""

import pytest
import torch

from tempbalance.demo import CANDIDATES, train_language_model
from tempbalance.study import Method


def loss(name="plain", seed=0, steps=20):
    return train_language_model(seed, Method(name, seed=seed), 4e-3, steps=steps)["test"]


def test_it_learns_more_than_the_frequencies_of_bytes():
    assert loss(steps=60) < 3.0  # with their frequencies alone 3.2 nats


def test_the_seed_decides_everything_and_a_neutral_method_changes_no_bit():
    before = torch.get_num_threads()
    first = loss()
    torch.rand(3)
    assert loss() == first != loss(seed=1)
    assert loss("by_role:multipliers={'v':1.0}") == first != loss("by_role:multipliers={'v':0.25}")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", CANDIDATES.values())
def test_every_candidate_of_the_demo_is_a_method(name):
    assert Method(name.replace("plain:lr=0.004", "plain")).name
