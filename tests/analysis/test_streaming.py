"""Weights are copied to the device one batch ahead. Here the device is the CPU, so only the order is tested."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

import tempbalance as tb
from tempbalance.analysis.batching import fit_model_weights
from tempbalance.analysis.streaming import streamed
from tempbalance.errors import NonFiniteError, WeightError
from tempbalance.layers import Weight, find_weights

CPU = torch.device("cpu")


def make_weights(count: int = 4) -> list[Weight]:
    generator = torch.Generator().manual_seed(0)
    state = {f"w{i}": torch.randn(40 + i, 40, generator=generator, requires_grad=i == 1) for i in range(count)}
    return find_weights(state)[0]


def watched(weight: Weight, read: list[str], event: threading.Event) -> Weight:
    def cut(reader):
        read.append(weight.name)
        event.set()
        return weight.cut(reader)

    return dataclasses.replace(weight, cut=cut)


def test_streamed_yields_every_weight_in_order_and_unchanged():
    weights = make_weights()
    batches = [weights[:2], weights[2:3], weights[3:]]
    found = list(streamed(batches, CPU))
    assert [batch for batch, _ in found] == batches
    for batch, there in found:
        for weight, brought in zip(batch, there, strict=True):
            assert torch.equal(brought.load(), weight.load())
            assert not brought.load().requires_grad


def test_streamed_reads_one_batch_ahead_and_no_more():
    read: list[str] = []
    events = [threading.Event() for _ in range(4)]
    weights = [watched(w, read, event) for w, event in zip(make_weights(), events, strict=True)]
    coming = streamed([[weight] for weight in weights], CPU)
    next(coming)
    assert events[1].wait(10)
    assert read == ["w0", "w1"]
    next(coming)
    assert events[2].wait(10)
    assert read == ["w0", "w1", "w2"]
    coming.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tempbalance")]


def test_streamed_raises_an_error_of_reading_when_the_weight_is_used():
    def fail(_):
        raise WeightError("gone")

    first, second = make_weights(2)
    coming = streamed([[first], [dataclasses.replace(second, cut=fail)]], CPU)
    next(coming)
    _, (broken,) = next(coming)
    with pytest.raises(WeightError, match="gone"):
        broken.load()


def test_streamed_without_weights_yields_nothing():
    assert list(streamed([], CPU)) == []


@pytest.mark.parametrize("windows", [None, tb.FARMS()], ids=["whole", "farms"])
def test_streamed_weights_have_the_same_fits_and_errors(windows):
    state = {weight.name: weight.load().detach() for weight in make_weights(5)}
    state["bad"] = torch.full((40, 40), torch.nan)
    weights, _ = find_weights(state)

    def fits(**options):
        batches = fit_model_weights(weights, estimator=tb.Hill(), windows=windows, **options)
        return {weight.name: found for batch in batches for weight, found in batch}

    expected, found = fits(), fits(device="cpu", stream=True)
    assert found.keys() == expected.keys()
    assert isinstance(found.pop("bad"), NonFiniteError)
    for name, fit in found.items():
        assert torch.equal(fit.spectrum.eigenvalues, expected[name].spectrum.eigenvalues)
        assert fit.fit == expected[name].fit
