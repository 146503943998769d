"""Bits for GPTQModel, AutoRound and torchao: read back by the tool, or by rules of its source."""

import json
import re

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.compress import allocate_bits, export_autoround, export_gptqmodel, export_torchao
from tempbalance.errors import AllocationError

NAMES = [f"layers.{i}.fc" for i in (0, 1, 10, 11)]


@pytest.fixture
def model() -> nn.Module:
    """Twelve layers, four of them allocated: ``layers.1`` must not match ``layers.10``."""
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(128, 128)}) for _ in range(12))})


@pytest.fixture
def formats_of(analysis_of):
    """An allocation with one format per layer of NAMES."""

    def make(*formats: str) -> tb.Allocation:
        shapes = [(128, 128)] * len(formats)
        analysis = analysis_of([f"{name}.weight" for name in NAMES[: len(formats)]], [2.0] * len(formats), shapes)
        errors = {
            name: {each: float(each != own) for each in formats} for name, own in zip(NAMES, formats, strict=False)
        }
        return allocate_bits(analysis, 16, widths=formats, method="error", errors=errors)

    return make


def gptqmodel_settings(config: dict, name: str) -> dict | None:
    """The rule of gptqmodel.quantization.config.dynamic_get: the first pattern that matches from the start counts."""
    assert set(config) == {"bits", "group_size", "dynamic"}
    for pattern, settings in config["dynamic"].items():
        if re.match(pattern.removeprefix("-:").removeprefix("+:"), name):
            return None if pattern.startswith("-:") else {**config, **settings}
    return config


def test_gptqmodel_quantizes_the_allocated_modules_only(formats_of, tmp_path):
    export_gptqmodel(formats_of("int3_g128", "int4_g64", "bf16", "int8"), tmp_path / "config.json")
    config = json.loads((tmp_path / "config.json").read_text())
    assert all(
        value in range(2, 9) for value in (config["bits"], *(s["bits"] for s in config["dynamic"].values() if s))
    )
    found = {name: gptqmodel_settings(config, name) for name in [*NAMES, "layers.2.fc", "layers.100.fc", "lm_head"]}
    picked = {name: settings and (settings["bits"], settings["group_size"]) for name, settings in found.items()}
    assert picked == {
        **{NAMES[0]: (3, 128), NAMES[1]: (4, 64), NAMES[2]: None, NAMES[3]: (8, -1)},
        **{"layers.2.fc": None, "layers.100.fc": None, "lm_head": None},
    }


@pytest.mark.filterwarnings("ignore")  # of AutoRound
def test_autoround_reads_the_format_of_every_layer(formats_of, model, tmp_path):
    resolver = pytest.importorskip("auto_round.compressors.layer_config_resolver")
    resolution = pytest.importorskip("auto_round.compressors.config_resolution")
    export_autoround(formats_of("int3_g128", "nvfp4", "mxfp4", "bf16"), tmp_path / "layers.json")
    resolved = resolver.resolve_layer_config(
        model=model,
        scheme=resolution.resolve_scheme_value("W4A16", {}),
        layer_config=json.loads((tmp_path / "layers.json").read_text()),
    )
    fields = ("bits", "group_size", "data_type", "act_bits")
    found = {name: tuple(resolved[name][field] for field in fields) for name in NAMES}
    assert [value[:2] for value in found.values()] == [(3, 128), (4, 16), (4, 32), (16, -1)]
    assert [value[2].rstrip("48") for value in found.values()] == ["int", "nv_fp", "mx_fp", "float"]
    assert {value[3] for value in found.values()} == {16}


def test_torchao_gets_the_json_of_its_configurations(formats_of, tmp_path):
    """The layout of torchao.core.config.config_to_dict, version 0.18."""
    export_torchao(formats_of("int3_g128", "int8", "fp8", "bf16"), tmp_path / "config.json")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["_type"], config["_version"], set(config)) == ("FqnToConfig", 1, {"_type", "_version", "_data"})
    found = config["_data"]["fqn_to_config"]
    assert {name: one and one["_type"] for name, one in found.items()} == {
        **{NAMES[0]: "IntxWeightOnlyConfig", NAMES[1]: "IntxWeightOnlyConfig", NAMES[2]: "Float8WeightOnlyConfig"},
        NAMES[3]: None,
    }
    data = [found[name]["_data"] for name in NAMES[:2]]
    assert [each["weight_dtype"] for each in data] == [{"_type": "torch.dtype", "_data": f"int{b}"} for b in (3, 8)]
    assert [each["granularity"]["_data"] for each in data] == [{"group_size": 128}, {"axis": 0}]


@pytest.mark.filterwarnings("ignore")  # of torchao
def test_torchao_quantizes_the_allocated_modules_only(formats_of, model, tmp_path):
    pytest.importorskip("torchao", reason="needs torchao, which other packages would find and load")
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    allocation = formats_of("int3_g128", "int8", "fp8", "bf16")
    export_torchao(allocation, tmp_path / "config.json")
    quantize_(model, config_from_dict(json.loads((tmp_path / "config.json").read_text())), filter_fn=None)
    changed = {name for name, each in model.named_parameters() if type(each) is not nn.Parameter}
    kinds = {name: type(model.get_submodule(name).weight).__name__ for name in NAMES}
    assert [kinds[name] for name in NAMES] == ["IntxUnpackedToInt8Tensor"] * 2 + ["Float8Tensor", "Parameter"]
    assert changed <= {f"{name}.weight" for name in NAMES[:3]}
    assert torch.dtype is type(model.get_submodule(NAMES[0]).weight.target_dtype)
    assert str(model.get_submodule(NAMES[0]).weight.target_dtype) == "torch.int3"


EXPORTERS = [export_gptqmodel, export_autoround, export_torchao]


@pytest.mark.parametrize("export", EXPORTERS)
def test_plain_widths_are_integers_with_a_scale_per_group_of_columns(analysis_of, export, tmp_path):
    allocation = allocate_bits(analysis_of(["h.0.a.weight"], [2.0], [(64, 96)]), 4)
    export(allocation, tmp_path / "out.json", group_size=32)
    assert '"group_size": 32' in (tmp_path / "out.json").read_text()
    with pytest.raises(AllocationError, match=r"96 columns, not a multiple of 128: .* --formats int4_g32,int8_g32"):
        export(allocation, tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize(("export", "format_name"), [*zip(EXPORTERS, ["nvfp4", "fp8", "mxfp4"], strict=True)])
def test_a_format_that_a_tool_does_not_have_is_refused(formats_of, export, format_name, tmp_path):
    with pytest.raises(AllocationError, match=rf"cannot quantize weights to {format_name}: layers\.0\.fc"):
        export(formats_of(format_name), tmp_path / "out.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("export", EXPORTERS)
def test_experts_in_a_stack_and_other_quantities_are_refused(analysis_of, export, tmp_path):
    analysis = analysis_of(["h.0.experts.down_proj:1"], [2.0], [(128, 128)])
    with pytest.raises(AllocationError, match=r"down_proj:1 is not a module"):
        export(allocate_bits(analysis, 4), tmp_path / "out.json")
    with pytest.raises(AllocationError, match="expected an allocation of bits, got one of sparsity"):
        export(tb.allocate_sparsity(analysis, 0.5), tmp_path / "out.json")
