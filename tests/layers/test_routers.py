"""Routers of experts are found by name, in the conventions of Transformers."""

import pytest

from tempbalance.layers.routers import find_routers

EXPERTS = ["layers.0.mlp.experts.0.gate.weight", "layers.0.mlp.experts.1.up.weight"]


@pytest.mark.parametrize(
    "name",
    [
        *("mlp.gate.weight", "mlp.router.weight", "mlp.router.layer.weight", "mlp.router.classifier.weight"),
        *("mlp.shared_expert_gate.weight", "mlp.gate.wg.weight"),
    ],
)
def test_a_router_is_found(name):
    name = f"layers.0.{name}"
    assert find_routers([name, *EXPERTS]) == {name}


def test_a_router_is_found_next_to_stacked_experts():
    names = ["mlp.gate.weight", "mlp.experts.gate_up_proj:0:gate", "mlp.experts.gate_up_proj:0:up"]
    assert find_routers(names) == {"mlp.gate.weight"}


def test_the_gate_of_a_dense_mlp_is_no_router():
    assert (
        find_routers(["layers.0.mlp.gate.weight", "layers.0.mlp.gate_proj.weight", "layers.1.mlp.experts.0.w"]) == set()
    )
