"""The file of an allocation of sparsity, bits or ranks, and what it contains."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest

import tempbalance as tb
from tempbalance.compress import Allocation, LayerAllocation
from tempbalance.errors import AllocationError

# Written by the version before one class replaced three: three modules with alpha 2, none and 6.
BEFORE = Path(__file__).parent / "allocations_before"


@pytest.fixture
def analysis(analysis_of) -> tb.Analysis:
    found = analysis_of([f"h.{i}.fc.weight" for i in range(3)], [2.0, math.nan, 6.0], [(8, 4)] * 3)
    rows = [
        dataclasses.replace(row, stderr=stderr) for row, stderr in zip(found.layers, (0.25, math.nan, 0.5), strict=True)
    ]
    return dataclasses.replace(found, layers=rows, settings={"estimator": "Hill()", "revision": "abc"})


@pytest.fixture(params=["sparsity", "bits", "rank"])
def allocation(request, analysis) -> Allocation:
    if request.param == "sparsity":
        return tb.allocate_sparsity(analysis, 0.5, method="alpha")
    return (
        tb.allocate_bits(analysis, 3, method="alpha", gamma=9)
        if request.param == "bits"
        else tb.allocate_ranks(analysis, 4)
    )


def test_a_loaded_allocation_equals_the_saved_one(allocation, tmp_path):
    allocation.save(tmp_path / "allocation.json")
    assert Allocation.load(tmp_path / "allocation.json") == allocation


def test_what_each_method_gives_on_the_text_is_saved(allocation, tmp_path):
    scores = (("search", 1.25, 20.5), ("uniform", math.inf, math.inf))
    compared = tuple(tb.compress.MethodScore(method=name, kl=kl, perplexity=value) for name, kl, value in scores)
    measured = dataclasses.replace(allocation, compared=compared, criterion="wanda")
    measured.save(tmp_path / "allocation.json")
    assert Allocation.load(tmp_path / "allocation.json") == measured
    assert "compared" not in allocation.to_dict()


def test_a_file_of_the_version_before_loads(allocation):
    name = {"sparsity": "sparsity", "bits": "bits", "rank": "ranks"}[allocation.quantity]
    before = Allocation.load(BEFORE / f"{name}.json")
    assert dict(before) == dict(allocation)
    assert [(layer.name, layer.unit, layer.shape) for layer in before.layers] == [
        (layer.name, layer.unit, layer.shape) for layer in allocation.layers
    ]
    assert [layer.alpha for layer in before.layers] == pytest.approx([2.0, math.nan, 6.0], nan_ok=True)
    attributes = ("quantity", "budget", "method", "unit", "group", "revision", "settings")
    assert [getattr(before, each) for each in attributes] == [getattr(allocation, each) for each in attributes]


def test_a_file_of_sparsity_has_the_bytes_of_the_version_before(analysis, tmp_path):
    tb.allocate_sparsity(analysis, 0.5, method="alpha").save(tmp_path / "allocation.json")
    assert (tmp_path / "allocation.json").read_bytes() == (BEFORE / "sparsity.json").read_bytes()


def test_a_missing_alpha_is_nan_in_memory_and_null_in_the_file(allocation, tmp_path):
    assert math.isnan(allocation.layers[1].alpha)
    assert math.isnan(allocation.layers[1].stderr)
    allocation.save(tmp_path / "allocation.json")
    row = json.loads((tmp_path / "allocation.json").read_text())["layers"][1]
    assert (row["alpha"], row["stderr"]) == (None, None)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"schema": 99}', '{"schema": 1, "layers": [{}]}', '{"schema": 1, "sparsity": 0.5, "layers": [{}]}'],
)
def test_a_file_that_is_not_an_allocation_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(AllocationError, match=r"x\.json"):
        Allocation.load(tmp_path / "x.json")


def test_a_layer_without_its_amount_in_the_file_is_refused(allocation, tmp_path):
    allocation.save(tmp_path / "x.json")
    data = json.loads((tmp_path / "x.json").read_text())
    del data["layers"][0]["zeros" if allocation.quantity == "sparsity" else allocation.quantity]
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(AllocationError, match=r"x\.json"):
        Allocation.load(tmp_path / "x.json")


def test_layers_without_alpha_are_equal_if_their_other_fields_are():
    layer = LayerAllocation(name="a", unit="a", shape=(2, 2), alpha=float("nan"))
    same = copy.deepcopy(dataclasses.replace(layer, alpha=-float("nan")))
    assert layer == same
    assert hash(layer) == hash(same)
    assert layer != dataclasses.replace(layer, alpha=2.0)
    assert layer != "a"


def write(data, path):
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("source", 1, r"\$\.source"),
        ("unit", "head", r"\$\.unit"),
        ("sparsity", 1.5, r"\$\.sparsity"),
        ("sparsity", "0.5", r"\$\.sparsity"),
        ("group", 0, r"\$\.group"),
        ("settings", [], r"\$\.settings"),
        ("size", {"parameters": -1}, r"\$\.size"),
        ("layers", {}, r"\$\.layers"),
        ("layers", [], r"\$\.layers"),
        ("bits", 4, "it must have one of sparsity, bits, rank, trainable, found 2"),
    ],
)
def test_a_damaged_allocation_is_refused_with_the_field(tmp_path, field, value, message):
    data = json.loads((BEFORE / "sparsity.json").read_text()) | {field: value}
    with pytest.raises(AllocationError, match=rf"x\.json is not an allocation saved by tempbalance: .*{message}"):
        Allocation.load(write(data, tmp_path / "x.json"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", None, r"\.name"),
        ("shape", [], r"\.shape"),
        ("shape", [0, 4], r"\.shape"),
        ("shape", 4, r"\.shape"),
        ("alpha", "[/]", r"\.alpha"),
        ("zeros", -1, r"\.zeros"),
        ("zeros", 1.5, r"\.zeros"),
        ("zeros", 10**6, "1000000 zeros of"),
        ("numel", 3, "numel 3"),
        ("sparsity", 0.99, "sparsity 0.99"),
    ],
)
def test_a_damaged_layer_is_refused_with_the_field(tmp_path, field, value, message):
    data = json.loads((BEFORE / "sparsity.json").read_text())
    data["layers"][0][field] = value
    with pytest.raises(AllocationError, match=rf"x\.json is not an allocation saved by tempbalance: .*{message}"):
        Allocation.load(write(data, tmp_path / "x.json"))


def test_two_layers_of_one_name_are_refused(tmp_path):
    data = json.loads((BEFORE / "sparsity.json").read_text())
    data["layers"].append(data["layers"][0])
    with pytest.raises(AllocationError, match="two layers have the same name"):
        Allocation.load(write(data, tmp_path / "x.json"))


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 5000, "NaN", '"a plan"', "\x00"])
def test_a_file_of_other_json_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(AllocationError, match="is not an allocation"):
        Allocation.load(tmp_path / "x.json")
