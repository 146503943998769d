"""Weights are brought to the device one batch ahead; here the device is the CPU, and only the order is seen."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

import tempbalance as tb
from tempbalance.analysis import batching as fitting
from tempbalance.analysis.streaming import streamed
from tempbalance.errors import WeightError
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


def test_all_come_in_order_as_they_were():
    weights = make_weights()
    batches = [weights[:2], weights[2:3], weights[3:]]
    found = list(streamed(batches, CPU))
    assert [batch for batch, _ in found] == batches
    for batch, there in found:
        for weight, brought in zip(batch, there, strict=True):
            assert torch.equal(brought.load(), weight.load())
            assert not brought.load().requires_grad


def test_the_next_is_read_while_one_is_used_but_not_the_one_after():
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


def test_an_error_is_raised_when_the_turn_of_its_weight_has_come():
    def fail(_):
        raise WeightError("gone")

    first, second = make_weights(2)
    coming = streamed([[first], [dataclasses.replace(second, cut=fail)]], CPU)
    next(coming)
    _, (broken,) = next(coming)
    with pytest.raises(WeightError, match="gone"):
        broken.load()


def test_nothing_to_bring():
    assert list(streamed([], CPU)) == []


@pytest.mark.parametrize("windows", [None, tb.FARMS()], ids=["whole", "farms"])
def test_an_analysis_of_weights_that_are_brought_gives_the_same(monkeypatch, windows):
    state = {weight.name: weight.load().detach() for weight in make_weights(5)}
    state["bad"] = torch.full((40, 40), torch.nan)
    expected = tb.analyze(state, windows=windows)
    monkeypatch.setattr(fitting, "_is_streamed", lambda _: True)
    found = tb.analyze(state, windows=windows, device="cpu")
    assert repr(found.layers) == repr(expected.layers)  # NaN is not equal to NaN
    assert found.skipped == expected.skipped
