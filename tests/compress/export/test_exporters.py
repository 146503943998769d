"""Errors that the exporters share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tempbalance import compress
from tempbalance.compress import Allocation, LayerAllocation, export_llmcompressor, export_npy
from tempbalance.errors import AllocationError, AnalysisError

Allocate = Callable[..., Allocation]
WRONG_QUANTITIES = {
    "export_autoround": ["sparsity", "rank"],
    "export_axolotl": ["sparsity", "bits", "rank"],
    "export_gptqmodel": ["sparsity", "rank"],
    "export_llama_quantize": ["sparsity", "rank"],
    "export_llmcompressor": ["rank"],
    "export_npy": ["bits", "rank"],
    "export_peft": ["sparsity", "bits"],
    "export_torch": ["bits", "rank"],
    "export_torchao": ["sparsity", "rank"],
    "lora_config": ["sparsity", "bits"],
}


@pytest.mark.parametrize("name", ["h.0.attn.c_attn.weight:q", "h.0.experts.down_proj:3", "h.0.experts.down_proj"])
@pytest.mark.parametrize("export", [export_llmcompressor, export_npy])
def test_a_part_of_a_weight_is_refused_by_name(name: str, export: Any, allocation_of: Allocate, tmp_path: Path):
    allocation = allocation_of({"h.0.fc.weight": 8, name: 8}, {"h.0.fc.weight": (4, 4), name: (4, 4)})
    with pytest.raises(AllocationError, match=name):
        export(allocation, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export", [export_llmcompressor, export_npy])
def test_a_file_that_cannot_be_written_is_an_analysis_error(export: Any, allocation_of: Allocate, tmp_path: Path):
    with pytest.raises(AnalysisError):
        export(allocation_of({"a.weight": 8}, {"a.weight": (4, 4)}), tmp_path / "missing" / "out")


@pytest.mark.parametrize(
    ("export", "quantity"),
    [(name, quantity) for name, quantities in WRONG_QUANTITIES.items() for quantity in quantities],
)
def test_an_allocation_of_another_quantity_is_refused(export: str, quantity: Any, tmp_path: Path, trained: Any):
    layer = LayerAllocation(name="0.weight", unit="0", shape=(80, 80), zeros=1, bits=2, rank=3)
    allocation = Allocation(source="m", quantity=quantity, budget=2, method="x", unit="layer", layers=(layer,))
    target = {"export_torch": [trained], "lora_config": []}.get(export, [tmp_path / "out"])
    with pytest.raises(AllocationError, match=f"of {quantity}"):
        getattr(compress, export)(allocation, *target)
    assert list(tmp_path.iterdir()) == []


def test_every_exporter_has_a_row_of_wrong_quantities():
    assert WRONG_QUANTITIES.keys() == {name for name in compress.__all__ if name.startswith("export_")} | {
        "lora_config"
    }
