"""Parts of merged, split, transposed and reshaped tensors: equal to the same part of the whole, from few reads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tempbalance.layers import StoredTensor
from tempbalance.layers.names import StateDict
from tempbalance.layers.traced_tensors import traced

SOURCES = {name: torch.randn(4, 6, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abc")}
OPERATIONS = {
    "cat": lambda ts: torch.cat(ts, 0),
    "cat_columns": lambda ts: torch.cat(ts, -1),
    "stack": torch.stack,
    "stack_last": lambda ts: torch.stack(ts, -1),
    "stack_then_cat": lambda ts: torch.cat([torch.stack(ts), torch.stack(ts[::-1])], 1),
    "second_chunk": lambda ts: torch.chunk(torch.cat(ts), 3)[1],
    "split_columns": lambda ts: torch.split(ts[0], [1, 5], dim=1)[1],
    "transposed": lambda ts: ts[0].transpose(0, 1).contiguous(),
    "stack_transposed": lambda ts: torch.stack(ts).transpose(1, 2),
    "interleaved": lambda ts: torch.stack(ts).reshape(3, 2, 2, 6).transpose(1, 2).reshape(3, 4, 6),
    "squeezed": lambda ts: torch.chunk(torch.stack(ts), 3)[2].squeeze(),
    "unsqueezed": lambda ts: ts[0].unsqueeze(1),
    "flattened": lambda ts: torch.stack(ts).reshape(3, -1),
    "scaled": lambda ts: 2 * torch.cat(ts),
    "maximum": lambda ts: torch.stack(ts).max(0)[0],
}


class Counted(StateDict):
    """A state dict that records what is read."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.read = []

    def load(self, name, index=()):
        part = super().load(name, index)
        self.read.append((name, part.numel()))
        return part


def moved(operation, store):
    sources = [traced(name, info.shape, info.dtype) for name, info in store.tensors.items()]
    return StoredTensor(store, OPERATIONS[operation](sources).node)


@st.composite
def indices(draw, shape):
    """A tuple of numbers and slices, shorter than the shape or as long."""
    entries = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        start = draw(st.integers(0, size - 1))
        stop = draw(st.integers(start + 1, size))
        entries.append(draw(st.sampled_from([start, start - size, slice(start, stop), slice(None)])))
    return tuple(entries)


@pytest.mark.parametrize("operation", OPERATIONS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_part_is_the_part_of_the_whole(operation, data):
    expected = OPERATIONS[operation](list(SOURCES.values()))
    tensor = moved(operation, StateDict(SOURCES))
    index = data.draw(indices(tuple(expected.shape)))
    assert tensor.shape == tuple(expected.shape)
    torch.testing.assert_close(tensor(index), expected[index], rtol=0, atol=0)


def test_one_expert_of_a_stack_reads_one_tensor():
    store = Counted(SOURCES)
    moved("stack", store)((1,))
    assert store.read == [("b", 24)]


def test_one_half_of_a_merged_expert_reads_one_tensor():
    store = Counted(SOURCES)
    moved("stack_then_cat", store)((0, slice(4, 8)))
    assert store.read == [("c", 24)]


def test_one_chunk_reads_its_rows_alone():
    store = Counted(SOURCES)
    half = StoredTensor(store, torch.chunk(traced("a", (4, 6), torch.float32), 2)[1].node)
    half()
    assert store.read == [("a", 12)]


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in {"scaled", "maximum"}])
def test_positions_lead_back_to_the_stored_entries(operation):
    store = StateDict(SOURCES)
    tensor = moved(operation, store)
    rebuilt = torch.full(tensor.shape, torch.nan)
    for name in tensor.names:
        positions = tensor.positions(name)(())
        here = positions >= 0
        rebuilt[here] = SOURCES[name].reshape(-1)[positions[here]]
    assert tensor.moved
    assert torch.equal(rebuilt, tensor())


def test_a_computed_tensor_is_not_moved():
    assert not moved("scaled", StateDict(SOURCES)).moved


def test_the_names_of_a_part_are_those_that_it_consists_of():
    tensor = moved("stack_then_cat", StateDict(SOURCES))
    assert tensor.names == ("a", "b", "c")
    assert tensor.names_of(lambda read: read((0, slice(0, 4)))) == ("a",)
    assert tensor.names_of(lambda read: read((0,))) == ("a", "c")
