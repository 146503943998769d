"""DDP and FSDP2: every process measures some weights and gets the alphas of all."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

import tempbalance as tb

from .loops import FITTED, LAZY, RECIPE, alone, equal, make, state_of, train, trained, units_of, weights_of
from .worlds import run


@dataclasses.dataclass(frozen=True)
class Recording(tb.Hill):
    """Notes the largest eigenvalue of each weight that this process fits."""

    largest: tuple[list[float], ...] = ([],)

    def fit_tails(self, eigenvalues):
        self.largest[0].extend(eigenvalues[:, -1].tolist())
        return super().fit_tails(eigenvalues)


def measured_by_each(engine: str) -> dict[str, Any]:
    model, optimizer = make(engine)
    estimator = Recording(largest=([],))
    balancer = tb.Balancer(optimizer, model, dataclasses.replace(RECIPE, estimator=estimator))
    train(model, optimizer, 5)
    estimator.largest[0].clear()
    balancer.refresh()
    weights = weights_of(model)
    of_weight = {name: float(torch.linalg.matrix_norm(weights[f"{name}.weight"], 2)) ** 2 for name in FITTED}
    mine = [
        name
        for value in estimator.largest[0]
        for name in of_weight
        if math.isclose(value, of_weight[name], rel_tol=1e-4)
    ]
    return {"mine": mine, "units": units_of(balancer), "weights": weights, "state": state_of(balancer)}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_all_processes_have_the_multipliers_of_a_single_process_and_divide_its_work(engine, size):
    ranks = run(size, measured_by_each, engine)
    expected = alone(ranks[0]["weights"])
    assert len({multiplier for _, _, multiplier in expected}) == 7
    for rank in ranks:
        assert equal(rank["units"], expected)
        assert equal(rank["state"], ranks[0]["state"])
    assert all(rank["mine"] for rank in ranks)
    assert sorted(itertools.chain.from_iterable(rank["mine"] for rank in ranks)) == sorted(FITTED)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_run_on_shared_data_is_that_of_a_single_process(engine, size):
    expected = trained("none", RECIPE)
    for rank in run(size, trained, engine, RECIPE):
        assert equal(rank, expected)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_with_a_tolerance_all_processes_measure_the_weights_of_a_single_process(engine):
    expected = trained("none", LAZY)
    assert expected["measured"][0] == 7
    assert 0 < sum(expected["measured"][1:]) < 6 * 7  # some weights have moved too far, others have not
    for rank in run(2, trained, engine, LAZY):
        assert equal(rank, expected)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_processes_with_different_data_measure_the_same_weights(engine):
    first, *others = run(4, trained, engine, LAZY, 7, False)
    assert 0 < sum(first["measured"][1:]) < 6 * 7
    for other in others:
        assert equal(other, first)


def plain_and_neutral(engine: str) -> tuple[Any, Any]:
    neutral = dataclasses.replace(RECIPE, assignment=tb.assign.Sigmoid(0.0))
    return trained(engine, None, shared=False), trained(engine, neutral, shared=False)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_neutral_multipliers_change_no_bit(engine):
    for plain, neutral in run(2, plain_and_neutral, engine):
        assert neutral["measured"]
        assert equal(neutral["weights"], plain["weights"])
        assert equal(neutral["moments"], plain["moments"])
