"""A tensor that cannot be read is skipped with a reason, wherever it is and whatever it raises."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import tempbalance as tb
from tempbalance.errors import WeightError

GOOD = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse (CSR|BSR) tensor support", "ignore:The PyTorch API of (nested tensors|MaskedTensors)",
    "ignore:torch.quantize_per_tensor",
)  # fmt: skip


class RaisesAlways(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise KeyError(func.__name__)


class RaisesInArithmetic(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func.__name__ in {"__get__", "dim", "size", "numel", "detach"}:
            return super().__torch_function__(func, types, args, kwargs or {})
        raise LookupError(func.__name__)


class RaisesInKernels(torch.Tensor):
    @staticmethod
    def __new__(cls, tensor):
        return torch.Tensor._make_wrapper_subclass(cls, tensor.shape, dtype=tensor.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise ArithmeticError(func)


class HasNoShape(torch.Tensor):
    @property
    def shape(self):
        raise OSError("no shape")


def freed(left):
    tensor = GOOD.clone()
    tensor.untyped_storage().resize_(left)
    return tensor


def fake():
    with FakeTensorMode():
        return torch.empty(64, 48)


# What makes it, a part of its reason, whether it is broken (with strict, it raises).
BAD = {
    "sparse": (GOOD.to_sparse, "sparse", True),
    "CSR": (GOOD.to_sparse_csr, "sparse", True),
    "BSR": (lambda: GOOD.to_sparse_bsr((4, 4)), "sparse", True),
    "MKL-DNN": (GOOD.to_mkldnn, "MKL-DNN", True),
    "uninitialised parameter": (nn.UninitializedParameter, "not initialised", True),
    "uninitialised buffer": (nn.UninitializedBuffer, "not initialised", True),
    "freed": (lambda: freed(0), "freed", True),
    "half freed": (lambda: freed(5000), "freed", True),
    "meta": (lambda: GOOD.to("meta"), "no data", True),
    "fake": (fake, "no data", True),
    "nested": (lambda: torch.nested.nested_tensor([GOOD, GOOD]), "nested", True),
    "jagged": (lambda: torch.nested.nested_tensor([GOOD, GOOD], layout=torch.jagged), "nested", True),
    "NaN": (lambda: GOOD * float("nan"), "NaN or Inf", True),
    "huge": (lambda: GOOD.double() * 1e300, "too large", True),
    "denormal": (lambda: GOOD.double() * 1e-315, "too small", True),
    "float4": (lambda: torch.empty(64, 24, dtype=torch.float4_e2m1fn_x2), "4-bit floats", False),
    "quantised": (lambda: torch.quantize_per_tensor(GOOD, 0.1, 0, torch.qint8), "quantised", False),
    "int4": (lambda: torch.empty(64, 48, dtype=torch.int4), "integer", False),
    "raises always": (lambda: GOOD.as_subclass(RaisesAlways), "KeyError", True),
    "raises in arithmetic": (lambda: GOOD.as_subclass(RaisesInArithmetic), "LookupError", True),
    "raises in kernels": (lambda: RaisesInKernels(GOOD), "ArithmeticError", True),
    "has no shape": (lambda: GOOD.as_subclass(HasNoShape), "no shape", True),
}


def in_module(tensor):
    model = nn.Sequential(nn.Linear(48, 64), nn.Linear(48, 64))
    model[0]._parameters["weight"] = tensor
    return model


SOURCES = {
    "state dict": lambda tensor: {"0.weight": tensor, "1.weight": GOOD},
    "nested state dict": lambda tensor: {"epoch": 1, "model": {"0.weight": tensor, "1.weight": GOOD}},
    "live model": in_module,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", BAD)
def test_one_bad_tensor_is_skipped_with_its_reason(kind, source):
    make, reason, broken = BAD[kind]
    tensor = make()
    analysis = tb.analyze(SOURCES[source](tensor))
    assert [row.name for row in analysis.layers] == ["1.weight"]
    assert [skipped.name for skipped in analysis.skipped] == ["0.weight"]
    assert reason in analysis.skipped[0].reason
    if broken:
        with pytest.raises(WeightError, match=r"^0\.weight: .*" + reason):
            tb.analyze(SOURCES[source](tensor), strict=True)


class Fails(nn.Module):
    """A parametrization that works until it is switched off."""

    works = True

    def forward(self, weight):
        if not self.works:
            raise LookupError("not again")
        return weight


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(64, 192)
        self.out = nn.Linear(64, 64)

    @property
    def config(self):
        raise RuntimeError("no configuration")


def test_a_weight_whose_parametrization_raises_is_skipped():
    model = nn.Sequential(nn.Linear(48, 64), nn.Linear(48, 64))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Fails(), unsafe=True)
    model[0].parametrizations["weight"][0].works = False
    analysis = tb.analyze(model)
    assert [row.name for row in analysis.layers] == ["1.weight"]
    assert "not again" in analysis.skipped[0].reason


def test_a_property_that_raises_ends_no_analysis():
    analysis = tb.analyze(Attention())
    assert "out.weight" in [row.name for row in analysis.layers]
    assert {name.partition(":")[0] for name in (r.name for r in (*analysis.layers, *analysis.skipped))} == {
        "qkv.weight", "out.weight",
    }  # fmt: skip
